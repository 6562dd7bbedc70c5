"""Text in each package's own format becomes rows in the canonical form of its kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hushtune.common.errors import BadValueError, MissingFileError
from hushtune.common.tasks.packaged.brown_tags import CLASSES, universal
from hushtune.common.tasks.packaged.chat import read_chat, read_replies
from hushtune.common.tasks.packaged.documents import read_newsgroups, read_reuters
from hushtune.common.tasks.packaged.pronunciations import read_pronunciations
from hushtune.common.tasks.packaged.sentences import (
    FILES,
    read_differences,
    read_preferences,
    read_scores,
)
from hushtune.common.tasks.packaged.tagged import read_brown


def sentences(folder: Path, scores: list[float]) -> Path:
    for site, name in FILES.items():
        lines = [f"{n}\t{score}\t{site} text {n}" for n, score in enumerate(scores)]
        (folder / name).write_text("\r\n".join(lines), encoding="utf-8")
    return folder


def test_scores_keep_neutral_sentences(tmp_path: Path) -> None:
    rows = list(read_scores(sentences(tmp_path, [-4, 0.0, 0.3, 2.25])))
    assert [(row.text, row.label) for row in rows[:4]] == [
        ("amazon text 0", "-4.0"),
        ("amazon text 1", "0.0"),
        ("amazon text 2", "0.3"),
        ("amazon text 3", "2.25"),
    ]
    assert [row.site for row in rows] == [site for site in FILES for _ in range(4)]


def test_each_sentence_is_in_one_pair_of_its_own_site(tmp_path: Path) -> None:
    rows = list(read_differences(sentences(tmp_path, [float(n) / 10 for n in range(41)])))
    pairs = [json.loads(str(row.text)) for row in rows]
    texts = [text for pair in pairs for text in pair]
    assert len(texts) == len(set(texts)) == 4 * 40  # the odd one out of 41 has no pair
    for row, (first, second) in zip(rows, pairs, strict=True):
        assert first.split()[0] == second.split()[0] == row.site
        difference = int(first.split()[-1]) / 10 - int(second.split()[-1]) / 10
        assert float(str(row.label)) == pytest.approx(difference)
    assert rows == list(read_differences(tmp_path))
    assert any(abs(int(a.split()[-1]) - int(b.split()[-1])) > 1 for a, b in pairs)  # not neighbours


def test_pairs_do_not_depend_on_the_order_of_lines(tmp_path: Path) -> None:
    def pairs() -> set[str | None]:
        return {row.text for row in read_differences(tmp_path)}

    sentences(tmp_path, [float(n) / 10 for n in range(30)])
    before = pairs()
    for name in FILES.values():
        lines = (tmp_path / name).read_text(encoding="utf-8").splitlines()
        (tmp_path / name).write_text("\n".join(reversed(lines)), encoding="utf-8")
    assert pairs() == before


def test_preferences_leave_out_what_is_too_close(tmp_path: Path) -> None:
    sentences(tmp_path, [float(n) / 10 for n in range(40)])
    differences = {row.text: float(str(row.label)) for row in read_differences(tmp_path)}
    chosen = {row.text: row.label for row in read_preferences(tmp_path)}
    assert chosen == {
        text: "first" if difference > 0 else "second"
        for text, difference in differences.items()
        if abs(difference) >= 0.5
    }
    assert len(chosen) < len(differences)


def test_documents_skip_their_header_and_blank_lines(tmp_path: Path) -> None:
    header = "Category\tText\nd\tstring\nclass\t\n\n"
    (tmp_path / "20newsgroups-train.tab").write_text(header + "sci.med\ta  post\n\n")
    (tmp_path / "20newsgroups-test.tab").write_text(header + "rec.autos\tb\n")
    rows = list(read_newsgroups(tmp_path))
    assert [(row.text, row.label, row.site) for row in rows] == [
        ("a post", "sci.med", None),
        ("b", "rec.autos", None),
    ]
    assert str(rows[0].place).endswith("train.tab:5")
    (tmp_path / "reuters-r8-train.tab").write_text(header + "earn only\n")
    with pytest.raises(BadValueError, match="split by a tab"):
        list(read_reuters(tmp_path))


def test_brown_has_a_tag_for_each_word(tmp_path: Path) -> None:
    (tmp_path / "ca01").write_text("\n\n\tThe/at jury's/nn$ 1/2/cd it's/pps+bez ./.\n\n")
    (tmp_path / "cr09").write_text("``/`` Ha/uh-hl ''/'' deux/fw-cd")
    (tmp_path / "README").write_text("no text/nn")
    rows = list(read_brown(tmp_path))
    assert [(row.text, row.label, row.site, row.group) for row in rows] == [
        ("The jury's 1/2 it's .", "DET NOUN NUM PRON .", "news", "ca01"),
        ("`` Ha '' deux", ". PRT . X", "humor", "cr09"),
    ]
    (tmp_path / "cr09").write_text("word/zz")
    with pytest.raises(BadValueError, match="word/zz"):
        list(read_brown(tmp_path))
    with pytest.raises(MissingFileError):
        list(read_brown(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        *[("NN-TL", "NOUN"), ("np$-tl-hl", "NOUN"), ("md*", "VERB"), ("*", "ADV"), ("--", ".")],
        *[("pp$", "DET"), ("pp$$", "PRON"), ("wp$", "DET"), ("fw-in+at-tl", "X"), ("---hl", ".")],
        *[("ppss+ber-n", "PRON"), ("cs", "ADP"), ("to", "PRT"), (".-hl", "."), ("(-hl", ".")],
        *[("*-hl", "ADV"), ("nil", "X"), ("at", "DET"), ("dod*", "VERB"), ("jj$-tl", "ADJ")],
    ],
)
def test_a_brown_tag_is_reduced_to_its_base(tag: str, expected: str) -> None:
    assert universal(tag) == expected
    assert expected in CLASSES


def test_a_word_that_is_no_tag_is_refused() -> None:
    for tag in ("", "zz", "n", "-tl"):
        with pytest.raises(KeyError):
            universal(tag)
    assert len(CLASSES) == 12


CHAT = """\
categories:
- x
conversations:
- - Hello
  - Hi
  - And you?
  - Fine.
  - Good.
- - Hello
  - Hi
- Not a list
- - Year?
  - 1963
"""


def test_both_sides_of_a_conversation_take_turns(tmp_path: Path) -> None:
    (tmp_path / "greetings.yml").write_text(CHAT)
    (tmp_path / "trivia.yml").write_text("conversations:\n- - Year?\n  - '1963'\n")
    rows = list(read_chat(tmp_path))
    hello = {"role": "user", "content": "Hello"}
    turns = [
        hello,
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "And you?"},
    ]
    assert [(json.loads(str(row.text)), row.label, row.site) for row in rows] == [
        ([hello], "Hi", "other"),
        (turns, "Fine.", "other"),
        ([{"role": "user", "content": "Year?"}], "1963", "other"),
        ([{"role": "user", "content": "Year?"}], "1963", "trivia"),
    ]
    replies = [(row.text, row.label) for row in read_replies(tmp_path)]
    assert replies == [("Hello", "Hi"), ("Year?", "1963"), ("Year?", "1963")]


def test_emotion_has_several_answers_to_a_line(tmp_path: Path) -> None:
    (tmp_path / "emotion.yml").write_text("conversations:\n- - You lie\n  - No.\n  - Me?\n")
    rows = list(read_chat(tmp_path))
    asked = json.dumps([{"role": "user", "content": "You lie"}])
    assert [(row.text, row.label) for row in rows] == [(asked, "No."), (asked, "Me?")]


def test_conversations_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        list(read_chat(tmp_path))
    for content in ("conversations: [", "categories: [x]", "- x"):
        (tmp_path / "ai.yml").write_text(content)
        with pytest.raises(BadValueError, match="list of conversations"):
            list(read_chat(tmp_path))


def test_a_word_is_said_in_the_first_way(tmp_path: Path) -> None:
    path = tmp_path / "cmudict.dict"
    path.write_text("'bout B AW1 T\nread R EH1 D\nread(2) R IY1 D\naalen AE1 L # place\n")
    rows = [(row.text, row.label, row.site) for row in read_pronunciations(tmp_path)]
    assert rows == [("'bout", "B AW1 T", None), ("read", "R EH1 D", None), ("aalen", "AE1 L", None)]
    path.write_text("word\n")
    with pytest.raises(BadValueError, match="its sounds"):
        list(read_pronunciations(tmp_path))
