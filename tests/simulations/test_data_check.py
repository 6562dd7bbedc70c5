"""``hushtune data check`` finds what is wrong, says where, and shows no text."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune.common.config import DataConfig, TaskConfig
from hushtune.common.errors import EmptyDataError
from hushtune.common.tasks.data import load_data
from hushtune.simulations.datacheck.near import (
    ALIKE,
    near_pairs,
    resemblance,
    sampled,
    shingles,
)

WORDS = (
    *("river", "stone", "cloud", "paper", "window", "garden"),
    *("letter", "table", "door", "coat", "song", "meal"),
)


def sentence(number: int, size: int = 8) -> str:
    """Distinct ones share no three words in a row."""
    return " ".join(f"{WORDS[(number + i) % len(WORDS)]}{number}" for i in range(size))


def many(count: int, begin: int = 0) -> list[tuple[str, str]]:
    return [(sentence(begin + i), ("no", "yes")[i % 2]) for i in range(count)]


def written(
    folder: Path, name: str, rows: Sequence[Sequence[str]], header: str = "text,label"
) -> Path:
    path = folder / name
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(header + "\n")
        csv.writer(file).writerows(rows)
    return path


def checked(hushtune: Any, *arguments: object, status: int = 0) -> dict[str, list[dict[str, Any]]]:
    answer = hushtune("data", "check", *arguments, "--json")
    assert answer.status == status, answer.out + answer.err
    report = json.loads(answer.out.splitlines()[-1])
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in report["findings"]:
        found.setdefault(finding["what"], []).append(finding)
    return found


def worst(found: dict[str, list[dict[str, Any]]], what: str) -> str:
    return found[what][0]["level"] if what in found else "none"


def test_fine_data_end_with_nothing_but_notes(hushtune: Any, tmp_path: Path) -> None:
    north = written(tmp_path, "north.csv", many(900))
    south = written(tmp_path, "south.csv", many(900, 900))
    found = checked(hushtune, north, south, "--epsilon", 8, "--delta", 1e-4, "--strict")
    assert {what for what in found if worst(found, what) != "note"} == set()
    # At a tenth of the budget the same rows are too few, which alone is no reason to stop.
    strong = (north, south, "--epsilon", 0.8, "--delta", 1e-4)
    assert worst(checked(hushtune, *strong), "size") == "warning"
    checked(hushtune, *strong, "--strict", status=1)


def test_repeats_within_and_across_sites(hushtune: Any, tmp_path: Path) -> None:
    rows = many(60)
    north = written(tmp_path, "north.csv", [*rows, (rows[3][0].replace(" ", "  "), rows[3][1])])
    south = written(tmp_path, "south.csv", [*many(60, 60), rows[5], (rows[6][0], rows[7][1])])
    found = checked(hushtune, north, south, "--delta", 1e-3)
    (within,) = found["duplicates"]
    assert within["text"].startswith("1 of 123 rows")
    assert within["places"] == ["north.csv:62"]
    (across,) = found["duplicates across sites"]
    assert across["places"] == ["south.csv:62"]
    (other,) = found["inconsistent labels"]
    assert other["places"] == ["south.csv:63", "north.csv:8"]


def table(count: int, begin: int = 0) -> list[tuple[str, str, str]]:
    """Rows that differ in their two columns, and nowhere in one alone."""
    return [
        (str((begin + i) // 10), f"c{(begin + i) % 10}", ("no", "yes")[i % 2]) for i in range(count)
    ]


@pytest.mark.parametrize("kind", ["tabular-classification", "tabular-regression"])
def test_rows_of_tables_are_compared_by_all_their_columns(
    hushtune: Any, tmp_path: Path, kind: str
) -> None:
    numbers = kind == "tabular-regression"
    first, second = (
        [(a, b, str(float(c == "yes")) if numbers else c) for a, b, c in part]
        for part in (table(60), table(60, 60))
    )
    other = {first[6][2]: first[7][2], first[7][2]: first[6][2]}
    head = "age,town,label"
    north = written(tmp_path, "north.csv", [*first, first[3], first[3]], head)
    again = [*second, first[5], (*first[6][:2], other[first[6][2]])]
    south = written(tmp_path, "south.csv", again, head)
    options: tuple[object, ...] = ("--kind", kind, "--columns", "age,town", "--delta", 1e-3)
    options += ("--range", "0,1") if numbers else ()
    found = checked(hushtune, north, south, *options)
    (within,) = found["duplicates"]
    assert within["text"].startswith("2 of 124 rows")
    assert within["places"] == ["north.csv:62", "north.csv:63"]
    (across,) = found["duplicates across sites"]
    assert across["text"].startswith("1 of 124 rows")
    assert across["places"] == ["south.csv:62"]
    (contrary,) = found["inconsistent labels"]
    assert contrary["text"].startswith("1 distinct row of columns (of 120)")
    assert contrary["places"] == ["north.csv:8", "south.csv:63"]
    assert [f["level"] for f in (within, across, contrary)] == ["warning"] * 3
    # By one of the columns alone all rows would be equal to others, and so by fewer than there are.
    clean = written(tmp_path, "clean.csv", first, head), written(tmp_path, "c.csv", second, head)
    found = checked(hushtune, *clean, *options)
    absent = {"duplicates", "duplicates across sites", "inconsistent labels", "leakage"}
    assert not absent & set(found)


def test_rows_of_tables_that_train_and_test(hushtune: Any, tmp_path: Path) -> None:
    rows, head = table(80), "age,town,label"
    options = ("--kind", "tabular-classification", "--columns", "age,town", "--delta", 1e-3)
    twice = [row for row in rows for _ in range(2)]
    path = written(tmp_path, "twice.csv", twice, head)
    (leak,) = checked(hushtune, path, *options)["leakage"]
    leaked = int(leak["text"].split()[0])
    tested = round(0.2 * len(twice))
    assert leak["level"] == "warning"
    assert f"of {tested} test rows" in leak["text"]
    # Of each pair one trains with probability 0.7 or so when the other tests.
    assert 0.4 * tested < leaked <= tested
    exact = load_data(
        DataConfig(files={"twice": path}, columns=("age", "town")),
        TaskConfig(kind="tabular-classification"),
        seed=0,
    )
    (split,) = exact.sites.values()
    learnt = {exact.texts[row] for row in split.train}
    assert leaked == sum(exact.texts[row] in learnt for row in split.test)


def test_columns_that_do_not_tell_rows_apart_are_no_reason_to_warn(
    hushtune: Any, tmp_path: Path
) -> None:
    """Two columns of two values: nearly every row is equal to many, as it must be."""
    rows = [(str(i % 2), str(i // 2 % 2), ("no", "yes")[i // 4 % 2]) for i in range(160)]
    path = written(tmp_path, "north.csv", rows, "age,town,label")
    options = ("--kind", "tabular-classification", "--columns", "age,town", "--delta", 1e-3)
    found = checked(hushtune, path, *options)
    for what in ("duplicates", "inconsistent labels", "leakage"):
        assert [f["level"] for f in found[what]] == ["note"]
        assert "do not tell rows apart" in found[what][0]["text"]


def test_pairs_are_compared_by_both_their_texts(hushtune: Any, tmp_path: Path) -> None:
    rows = [(sentence(i), sentence(500), ("no", "yes")[i % 2]) for i in range(60)]
    rows += [(sentence(600), sentence(700 + i), ("no", "yes")[i % 2]) for i in range(60)]
    head = "text,other,label"
    options = ("--kind", "text-pair-classification", "--second", "other", "--delta", 1e-3)
    found = checked(hushtune, written(tmp_path, "north.csv", rows, head), *options)
    assert not {"duplicates", "inconsistent labels"} & set(found)
    again = [*rows, rows[3], (*rows[70][:2], rows[71][2])]
    found = checked(hushtune, written(tmp_path, "again.csv", again, head), *options)
    assert found["duplicates"][0]["places"] == ["again.csv:122"]
    assert found["inconsistent labels"][0]["places"] == ["again.csv:123", "again.csv:72"]


def test_near_repeats_and_what_they_leak(hushtune: Any, tmp_path: Path) -> None:
    rows = many(60)
    copies = [(text.upper() + " !", label) for text, label in rows]
    path = written(tmp_path, "north.csv", [*rows, *copies])
    found = checked(hushtune, path, "--delta", 1e-3)
    assert found["near duplicates"][0]["text"].startswith("60 of 120 rows")
    (leak,) = found["leakage"]
    tested = round(0.2 * 120)
    assert int(leak["text"].split()[0]) > 0.5 * tested
    assert f"of {tested} test rows" in leak["text"]


def test_patients_of_whom_some_rows_train_and_some_test(hushtune: Any, tmp_path: Path) -> None:
    rows = [(*row, f"p{i // 6}") for i, row in enumerate(many(120))]
    path = written(tmp_path, "north.csv", rows, "text,label,patient")
    found = checked(hushtune, path, "--delta", 1e-3)
    (leak,) = found["leakage"]
    assert "'patient'" in leak["text"]
    assert 'data.split_by = "patient"' in leak["remedy"]
    config = tmp_path / "run.toml"
    config.write_text(
        '[data]\nfiles = {north = "north.csv"}\nsplit_by = "patient"\n[privacy]\ndelta = 1e-3\n'
        '[model]\nname = "someone/something"\n'
    )
    found = checked(hushtune, "--config", config)
    assert [f["level"] for f in found["leakage"]] == ["note"]
    # A model that is not here is no reason to stop.
    assert found["length"][0]["level"] == "note"


def test_labels_at_one_site_and_missing_ones(hushtune: Any, tmp_path: Path) -> None:
    rows = [*many(60), *((sentence(900 + i), "maybe") for i in range(3))]
    north, south = written(tmp_path, "n.csv", rows), written(tmp_path, "s.csv", many(60, 60))
    lone = [(sentence(500 + i), "yes") for i in range(60)]
    west = written(tmp_path, "w.csv", lone)
    found = checked(hushtune, north, south, west, "--delta", 1e-3, status=2)
    assert "'maybe' at n" in found["labels at one site"][0]["text"]
    assert found["labels at one site"][0]["places"] == ["n.csv:62", "n.csv:63", "n.csv:64"]
    assert "'no' at w" in found["missing labels"][0]["text"]
    assert found["run"][0]["text"].startswith("HT205")


def test_rare_classes_and_weights_from_public_numbers(hushtune: Any, tmp_path: Path) -> None:
    rows = [*many(200), *((sentence(900 + i), "rare") for i in range(4))]
    path = written(tmp_path, "north.csv", rows)
    (found,) = checked(hushtune, path, "--delta", 1e-3)["imbalance"]
    assert found["level"] == "warning"
    assert "'rare', has 4 of 204 rows" in found["text"]
    assert "cannot be drawn more often" in found["remedy"]
    shares = [f"--public-share={text}" for text in ("rare=0.1", "yes=0.45", "no=0.45")]
    first, second = checked(hushtune, path, "--delta", 1e-3, *shares)["imbalance"]
    weights = next(f["remedy"] for f in (first, second) if "data.class_weights =" in f["remedy"])
    # Of public numbers alone: 1 / (3 * 0.1), whatever the rows say.
    assert '"rare" = 3.33' in weights
    wrong = hushtune("data", "check", path, "--public-share=rare=0.1")
    assert wrong.status == 2
    assert "'yes'" in wrong.err


def test_a_site_that_is_too_small(hushtune: Any, tmp_path: Path) -> None:
    path = written(tmp_path, "north.csv", many(60))
    found = checked(hushtune, path, "--delta", 1e-3)
    (small,) = found["size"]
    assert small["level"] == "warning"
    assert re.search(r"north has 4\d training rows: an expected batch of \d", small["text"])
    assert "too small for epsilon 3" in small["text"]
    refused = checked(hushtune, path, "--delta", 0.5, status=2)["size"]
    assert refused[0]["level"] == "problem"


def test_lengths_by_a_tokenizer(hushtune: Any, tiny_bert: Path, tmp_path: Path) -> None:
    rows = [*many(50), *((sentence(100 + i, 300), "yes") for i in range(10))]
    path = written(tmp_path, "north.csv", rows)
    (found,) = checked(hushtune, path, "--delta", 1e-3, "--model", tiny_bert)["length"]
    assert found["level"] == "warning"
    assert found["text"].startswith("10 of 60 rows have more than")
    assert found["places"] == ["north.csv:52", "north.csv:53", "north.csv:54"]
    (note,) = checked(hushtune, path, "--delta", 1e-3)["length"]
    assert note["level"] == "note"


def test_missing_values_and_broken_files_do_not_hide_each_other(
    hushtune: Any, tmp_path: Path
) -> None:
    north = written(tmp_path, "north.csv", [*many(60), ("", "yes"), ("words", "")])
    south = written(tmp_path, "south.csv", [*many(60, 60), ("a", "b", "c")])
    found = checked(hushtune, north, south, tmp_path / "west.csv", status=2)
    assert [f["text"].split(":")[0] for f in found["file"]] == ["HT207", "HT201"]
    assert found["file"][0]["places"] == ["south.csv:62"]
    assert {place for f in found["missing values"] for place in f["places"]} == {
        "north.csv:62",
        "north.csv:63",
    }


def test_every_target_that_a_run_refuses_is_found(hushtune: Any, tmp_path: Path) -> None:
    """All of them in one look, the first twenty with where they stand."""
    rows = [(sentence(i), str(i % 11)) for i in range(40)]
    rows += [(sentence(100 + i), str(20 + i)) for i in range(26)]
    north = written(tmp_path, "north.csv", rows)
    south = written(tmp_path, "south.csv", [*rows[:40], (sentence(300), "lots"), ("", "3")])
    options = ("--kind", "text-regression", "--range", "0,10", "--delta", "1e-3")
    first, second = checked(hushtune, north, south, *options, status=2)["targets"]
    assert first["text"].startswith("in 'label', 26 of 66 rows (39.4%): HT207")
    assert first["places"] == [*(f"north.csv:{42 + i}" for i in range(20)), "and 6 more"]
    assert second["places"] == ["south.csv:42"]
    assert "lots" not in second["text"]
    assert first["remedy"]


def test_rows_that_a_run_stops_at_for_what_they_lack_are_all_found(
    hushtune: Any, tmp_path: Path
) -> None:
    rows = [(sentence(i), str(i % 2), ("north", "south")[i % 2]) for i in range(80)]
    rows += [(sentence(100 + i), "1", "") for i in range(3)] + [(sentence(200), "NaN", "north")]
    path = written(tmp_path, "all.csv", rows, "text,label,site")
    found = checked(hushtune, path, "--site", "site", "--delta", "1e-3", status=2)
    lacks = {f["text"].split(":")[2]: f["places"] for f in found["missing values"]}
    assert lacks[" a row names no site; expected"] == ["all.csv:82", "all.csv:83", "all.csv:84"]
    assert lacks[" NaN stands among numbers; expected"] == ["all.csv:85"]


@pytest.mark.parametrize("one_table", [False, True])
def test_a_site_of_which_nothing_is_left_is_not_passed_over(
    hushtune: Any, tmp_path: Path, one_table: bool
) -> None:
    whole, broken = many(60), [("", "yes"), (sentence(900), "")]
    if one_table:
        rows = [(*row, "north") for row in whole] + [(*row, "south") for row in broken]
        options = (written(tmp_path, "all.csv", rows, "text,label,ward"), "--site", "ward")
    else:
        written(tmp_path, "north.csv", whole)
        options = (tmp_path / "north.csv", written(tmp_path, "south.csv", broken))
    answer = hushtune("data", "check", *options, "--delta", "1e-3", "--json")
    assert answer.status == 2
    report = json.loads(answer.out.splitlines()[-1])
    assert report["sites"] == {"north": {"rows": 60, "read": 60}, "south": {"rows": 0, "read": 2}}
    (problem,) = (f for f in report["findings"] if f["level"] == "problem")
    assert "site 'south' has no rows left" in problem["text"]
    assert "south: 0 rows (2 more lack a value)" in answer.err
    # As the run, which does not begin without it.
    files = {name: tmp_path / f"{name}.csv" for name in ("north", "south")}
    data = (
        DataConfig(file=tmp_path / "all.csv", site="ward") if one_table else DataConfig(files=files)
    )
    with pytest.raises(EmptyDataError, match="site 'south' has no rows left"):
        load_data(data, seed=0)


SECRET = "Xyzzy Quux"


def test_no_text_is_shown(hushtune: Any, tmp_path: Path) -> None:
    """Not even of the row that an error is about."""
    mail = [(f"{SECRET} {i} write to a.b{i}@example.org or 030 1234 5678", "yes") for i in range(9)]
    rows = [*many(60), *mail, *mail]
    page = tmp_path / "page.html"
    north = written(tmp_path, "north.csv", rows)
    south = tmp_path / "south.jsonl"
    south.write_text('{"text": "fine", "label": "no"}\n{"text": "' + SECRET + '", "lab')
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"text": ["' + SECRET + '"], "label": "no"}')
    answer = hushtune("data", "check", north, south, odd, "--html", page)
    assert answer.status == 2
    for shown in (answer.out, answer.err, page.read_text(encoding="utf-8")):
        assert "Xyzzy" not in shown
        assert "example.org" not in shown
        assert "1234" not in shown
    assert "e-mail addresses" in answer.out
    found = checked(hushtune, north, "--delta", 1e-3)["personal data"]
    assert [f["text"].split(" hold")[0] for f in found] == ["in 'text', 18 of 78 rows (23.1%)"] * 2
    assert not any(f["places"] for f in found)


def test_the_page_holds_everything_and_fetches_nothing(hushtune: Any, tmp_path: Path) -> None:
    rows = [*many(60), *((sentence(900 + i), "<b>&") for i in range(2))]
    page = tmp_path / "page.html"
    hushtune("data", "check", written(tmp_path, "north.csv", rows), "--html", page)
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    # A head stands where its column does.
    heads = re.findall(r'<th scope="col"( class="n")?>(\w+)', text)
    assert [name for right, name in heads if right] == ["Rows", "Read"]
    assert "th.n, td.n { text-align: right; }" in text
    assert "default-src 'none'" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "<b>&" not in text
    assert "&lt;b&gt;&amp;" in text


@pytest.mark.parametrize(
    ("kind", "content", "options"),
    [
        ("multi-label", "text,label\n" + "".join(f"t{i},a|b\nu{i},a\n" for i in range(20)), ()),
        (
            "text-regression",
            "text,label\n" + "".join(f"t{i},{i}\n" for i in range(40)),
            ("--range", "0,40"),
        ),
        ("token-classification", "text,label\n" + "".join(f"t{i} x,A B\n" for i in range(40)), ()),
        ("causal-lm", "question,answer\n" + "".join(f"t{i},a{i}\n" for i in range(40)), ()),
        (
            "tabular-classification",
            "a,b,label\n" + "".join(f"{i},1,{'xy'[i % 2]}\n" for i in range(40)),
            ("--columns", "a,b"),
        ),
    ],
)
def test_other_kinds(
    hushtune: Any,
    tiny_bert: Path,
    tmp_path: Path,
    kind: str,
    content: str,
    options: tuple[str, ...],
) -> None:
    path = tmp_path / "north.csv"
    path.write_text(content, encoding="utf-8")
    options = (*options, "--kind", kind, "--model", str(tiny_bert), "--delta", "1e-3")
    found = checked(hushtune, path, *options)
    assert {"size", "length"} <= set(found)


def test_what_is_asked_wrongly(hushtune: Any, tmp_path: Path) -> None:
    path = written(tmp_path, "north.csv", many(9))
    assert hushtune("data", "check").status == 2
    for arguments, said in (
        ((path, path, "--site", "x"), "several files are one site each"),
        ((path, "--kind", "nothing"), "task.kind"),
        ((path, "--public-share", "yes"), "--public-share"),
    ):
        answer = hushtune("data", "check", *arguments)
        assert answer.status == 2
        assert said in answer.err


# ---------------------------------------------------------------------------- near texts ----


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12), max_size=30))
def test_pairs_are_as_alike_as_is_said(texts: list[list[str]]) -> None:
    joined = [" ".join(words) for words in texts]
    for later, before in near_pairs(joined):
        assert before < later
        assert resemblance(shingles(joined[later]), shingles(joined[before])) >= ALIKE


def test_nearly_all_near_texts_are_found() -> None:
    """One word of thirty changed at the end: 27 of 29 sequences are the same."""
    texts = [sentence(i, 30) for i in range(300)]
    changed = [" ".join([*text.split()[:-1], "otherwise"]) for text in texts]
    found = {later - 300 for later, _ in near_pairs([*texts, *changed])}
    assert len(found) >= 295
    assert not list(near_pairs(texts))


def test_samples_are_spread_and_bounded() -> None:
    assert sampled(7, 10) == list(range(7))
    assert len(set(sampled(1_000_003, 500))) == 500
    assert max(sampled(1_000_003, 500)) > 990_000
