"""``hushtune data preview``: rows as they are read, and which tokens carry loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hushtune.common import presets
from hushtune.common.config import ModelConfig
from hushtune.common.presets import DEFAULT_MODEL, PRESETS, model_for
from hushtune.common.tasks.kinds.causal_lm import encode
from hushtune.common.tasks.tokenizer import load_tokenizer

from ..client.words import make_words


def shown(hushtune: Any, *arguments: object) -> list[dict[str, Any]]:
    answer = hushtune("data", "preview", *arguments, "--json")
    assert answer.status == 0, answer.err
    return json.loads(answer.out.splitlines()[-1])["rows"]


def learnt(row: dict[str, Any]) -> list[str]:
    return [t for t, mark in zip(row["tokens"], row["learnt"], strict=True) if mark]


def chat(folder: Path) -> Path:
    path = folder / "chat.jsonl"
    turns = [("user", "this door"), ("assistant", "was kind"), ("user", "so")]
    said = {"messages": [{"role": role, "content": text} for role, text in turns]}
    path.write_text(json.dumps(said) + "\n" + json.dumps({"messages": []}), encoding="utf-8")
    return path


def test_of_an_answer_its_own_tokens_carry_loss(
    hushtune: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    path = chat(tmp_path)
    first, second = shown(hushtune, path, "--kind", "causal-lm", "--model", tiny_bert)
    assert learnt(first) == ["was", "kind"]
    assert first["label"] == "was kind"
    assert len(first["learnt"]) == len(first["tokens"])
    assert second["note"] == "left out: no text and no answer"
    # The marks are those of what a run trains on.
    tokenizer = load_tokenizer(str(tiny_bert))
    example = encode(tokenizer, json.loads(first["text"]), "was kind", max_tokens=128)
    assert sum(first["learnt"]) == len(example.answer)
    text = hushtune("data", "preview", path, "--kind", "causal-lm", "--model", tiny_bert).out
    assert "«was» «kind»" in text
    assert "2 of them carry loss" in text


@pytest.mark.parametrize("kind", ["causal-lm", "seq2seq"])
def test_without_a_model_the_kind_s_preset_says_which(
    hushtune: Any, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """An encoder's tokenizer would show tokens that no language model reads."""
    assert ModelConfig().name == DEFAULT_MODEL
    assert PRESETS[kind]["model"]["name"] == model_for(kind) == "smollm2"
    llama = make_words(tmp_path / "llama", "llama")
    monkeypatch.setattr(presets, "PRESETS", {kind: {"model": {"name": str(llama)}}})
    path = tmp_path / "asked.csv"
    path.write_text("prompt,completion\nwhich road,the moon\n", encoding="utf-8")
    config = tmp_path / "run.toml"
    of_run = f'task.kind = "{kind}"\n[data]\nfiles = {{north = "asked.csv"}}\n'
    config.write_text(of_run, encoding="utf-8")
    for named in ((path, "--kind", kind), ("--config", config)):
        (row,) = shown(hushtune, *named)
        assert row["tokens"][:2] == ["<|start|>", "user"]
        assert learnt(row) == ["the", "moon", "<|end|>"]
        out = hushtune("data", "preview", *named).out
        assert f"tokens as {llama} reads them" in out
    # What the settings name is taken before it, and what the option names before both.
    config.write_text(f'{of_run}[model]\nname = "{tiny_bert}"\n', encoding="utf-8")
    (row,) = shown(hushtune, "--config", config)
    assert learnt(row)[-1] != "<|end|>"
    (row,) = shown(hushtune, "--config", config, "--model", llama)
    assert learnt(row)[-1] == "<|end|>"


def test_lengths_are_checked_by_the_model_of_the_kind_s_preset(
    hushtune: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its chat template puts eight tokens around what is asked; the answer has two."""
    llama = make_words(tmp_path / "llama", "llama")
    monkeypatch.setattr(presets, "PRESETS", {"causal-lm": {"model": {"name": str(llama)}}})
    words = "\n".join(f"moon {'sun ' * i},sea" for i in range(40))
    (tmp_path / "asked.csv").write_text(f"prompt,completion\n{words}\n", encoding="utf-8")
    config = tmp_path / "run.toml"
    config.write_text(
        'task.kind = "causal-lm"\n[data]\nfiles = {north = "asked.csv"}\n'
        "[privacy]\ndelta = 1e-3\n[model]\nmax_tokens = 32\n",
        encoding="utf-8",
    )
    answer = hushtune("data", "check", "--config", config, "--json")
    report = json.loads(answer.out.splitlines()[-1])
    (told,) = (f for f in report["findings"] if f["what"] == "length")
    count = sum(8 + (1 + i) + 2 > 32 for i in range(40))
    assert told["text"].startswith(f"{count} of 40 rows have more than 32 tokens")


def test_of_a_target_text_its_own_tokens_carry_loss(
    hushtune: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,completion\nthis door,was kind\n", encoding="utf-8")
    (row,) = shown(hushtune, path, "--kind", "seq2seq", "--model", tiny_bert)
    assert learnt(row) == ["was", "kind"]
    assert (row["text"], row["label"]) == ("this door", "was kind")


def test_of_a_model_of_two_parts_all_of_the_target_carries_loss(
    hushtune: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    import shutil

    model = shutil.copytree(tiny_bert, tmp_path / "two-parts")
    told = json.loads((model / "config.json").read_text()) | {"is_encoder_decoder": True}
    (model / "config.json").write_text(json.dumps(told))
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,completion\nthis door,was kind\n", encoding="utf-8")
    (row,) = shown(hushtune, path, "--kind", "seq2seq", "--model", model)
    assert row["tokens"] == ["[CLS]", "this", "door", "[SEP]", "[CLS]", "was", "kind", "[SEP]"]
    assert row["learnt"] == [0] * 4 + [1] * 4


def test_of_words_the_first_token_of_each_carries_loss(
    hushtune: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tags.conll"
    path.write_text("this\tO\nbx\tB\n\nriver\tO\n", encoding="utf-8")
    first, second = shown(hushtune, path, "--kind", "token-classification", "--model", tiny_bert)
    assert first["tokens"] == ["[CLS]", "this", "b", "##x", "[SEP]"]
    assert first["learnt"] == [0, 1, 1, 0, 0]
    assert learnt(second) == ["river"]


def test_numbers_as_they_are_learnt(hushtune: Any, tiny_bert: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("text,label\nfine,7.5\ndull,none\n", encoding="utf-8")
    options = ("--kind", "text-regression", "--range", "0,10", "--model", tiny_bert)
    first, second = shown(hushtune, path, *options)
    assert first["scaled"] == pytest.approx(0.5)
    assert first["learnt"] is None
    assert second["scaled"] is None
    assert "learnt as 0.5" in hushtune("data", "preview", path, *options).out


def test_a_configuration_cuts_as_its_run_does(
    hushtune: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.toml"
    chat(tmp_path)
    config.write_text(
        'task.kind = "causal-lm"\n[data]\nfiles = {north = "chat.jsonl"}\n[model]\n'
        f'name = "{tiny_bert}"\nmax_tokens = 4\n',
        encoding="utf-8",
    )
    first, _ = shown(hushtune, "--config", config)
    assert (first["site"], len(first["tokens"])) == ("north", 4)
    assert learnt(first) == ["was", "kind"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--kind", "casual-lm"), "did you mean causal-lm"),
        (("--form", "aplaca"), "did you mean alpaca"),
        (("--range", "5,1"), "--range is no range"),
    ],
)
def test_options_that_mean_nothing(
    hushtune: Any, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    answer = hushtune("data", "preview", chat(tmp_path), *arguments)
    assert answer.status == 2
    assert said in answer.err
    assert hushtune("data", "preview").status == 2


def test_a_form_that_is_not_known_speaks_of_options(
    hushtune: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    answer = hushtune("data", "preview", path, "--kind", "causal-lm", "--model", tiny_bert)
    assert answer.status == 2
    assert answer.err.startswith("HT203 ")
    assert "set --text and --label" in answer.err
