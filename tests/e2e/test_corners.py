"""Runs that are allowed and rare: whole, or refused with a reason."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file

from hushtune.client.site import ledger_path
from hushtune.common.errors import ConfigError, DataError, HushtuneError, OutputExistsError
from hushtune.common.run_context import read_run_config, run_config
from hushtune.common.tasks.tokenizer import load_tokenizer
from hushtune.common.tasks.workspace import resolve
from hushtune.server import app as server_app
from hushtune.simulations import run, saved

from ..conftest import made_up_rows, write_csv
from ..warm import Warm

DECODERS = {
    "gpt2": lambda words: tf.GPT2ForSequenceClassification(
        tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=words, bos_token_id=2)
    ),
    "llama": lambda words: tf.LlamaForSequenceClassification(
        tf.LlamaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            vocab_size=words,
        )
    ),
}


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_without_a_padding_token_trains_its_own_head(
    settings: Any, tiny_bert: Path, tmp_path: Path, family: str
) -> None:
    """Neither tokenizer nor configuration names one, as GPT-2 and Llama come."""
    folder = tmp_path / family
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DECODERS[family](len(load_tokenizer(str(tiny_bert))))
    model.config.pad_token_id = None
    model.save_pretrained(folder)
    for path in tiny_bert.glob("tokenizer*"):
        shutil.copy(path, folder / path.name)
    named = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    named.pop("pad_token")
    named["eos_token"] = "[SEP]"
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    config = settings.config(model__name=str(folder), model__head="own")
    out = tmp_path / "out"
    run(config, out)
    assert 0 <= json.loads((out / "summary.json").read_text(encoding="utf-8"))["value"] <= 1
    predictor = saved.load(out)
    alone = torch.cat([predictor.logits([text]) for text in ("a fine day", "a song")])
    together = predictor.logits(["a fine day", "a song"])  # of two lengths, so one is padded
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", ["mean", "own"])
def test_a_head_on_an_inner_layer_trains_saves_and_merges(
    settings: Any, tmp_path: Path, head: str
) -> None:
    out = tmp_path / "out"
    run(settings.config(model__layer=1, model__head=head), out)
    names = load_file(out / "adapter" / "adapter_model.safetensors")
    assert any("layer.0." in name for name in names)
    assert not any("layer.1." in name for name in names)
    card = (out / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "its first 1 blocks alone" in card
    assert ("num_hidden_layers=1" in card) == (head == "own")
    merged = saved.export(out, tmp_path / "merged", merged=True)
    config = json.loads((merged / "config.json").read_text(encoding="utf-8"))
    assert config["num_hidden_layers"] == 1
    if head == "own":
        model = tf.AutoModelForSequenceClassification.from_pretrained(merged).eval()
        rows = tf.AutoTokenizer.from_pretrained(merged)(["a fine day"], return_tensors="pt")
        with torch.no_grad():
            found = model(rows["input_ids"], rows["attention_mask"]).logits
        torch.testing.assert_close(found, saved.load(out).logits(["a fine day"]), atol=1e-5, rtol=0)


def test_dropout_is_the_seed_s_own_and_resumes_bit_for_bit(settings: Any, tmp_path: Path) -> None:
    from hushtune.simulations.observer import Silent

    class Stop(Silent):
        def round_done(self, row: Any) -> None:
            if row["round"] == 2:
                raise KeyboardInterrupt

    config = settings.config(adapter__dropout=0.3, train__rounds=3)
    whole = run(config, tmp_path / "whole")
    assert (
        run(settings.config(train__rounds=3), tmp_path / "dry")["adapter_digest"]
        != (whole["adapter_digest"])
    )
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "out", observer=Stop())
    torch.manual_seed(99)  # nothing global may matter
    assert run(config, tmp_path / "out", resume=True)["adapter_digest"] == whole["adapter_digest"]


def test_declared_sizes_are_what_is_public(settings: Any, tmp_path: Path) -> None:
    """Batches and denominators follow from the declared numbers, whatever the files hold."""
    sizes = {"east": 50, "north": 50, "south": 50}
    config = settings.config(privacy__trust="site", data__public_sizes=sizes)
    run(config, tmp_path / "out")
    privacy = json.loads((tmp_path / "out" / "privacy.json").read_text(encoding="utf-8"))
    for row in privacy["sites"].values():
        assert row["public_size"] == 50
        assert row["denominator"] == pytest.approx(15)


@pytest.mark.parametrize("sizes", [{"east": 50, "north": 50}, {"east": 1, "mars": 2}])
def test_declared_sizes_name_every_site_and_no_other(
    settings: Any, tmp_path: Path, sizes: dict[str, int]
) -> None:
    with pytest.raises(ConfigError, match="public_sizes"):
        run(settings.config(data__public_sizes=sizes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_site_cannot_be_called_as_the_pooled_baseline_is(settings: Any, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", made_up_rows({"pooled": 60, "north": 60}))
    with pytest.raises(DataError, match="pooled"):
        run(settings.config(data__file=str(path)), tmp_path / "out")


def test_odd_names_of_sites_are_names_and_nothing_else(
    settings: Any, hushtune: Any, tmp_path: Path
) -> None:
    odd = {"../a/b": 60, "[red]ward": 60, "café 7": 60}
    path = write_csv(tmp_path / "rows.csv", made_up_rows(odd))
    toml = settings.file(tmp_path, data__file=str(path), privacy__trust="site")
    answer = hushtune("simulate", "--config", toml, "--out", tmp_path / "out")
    assert answer.status == 0, answer.err
    for name in odd:
        assert name in answer.out
        found = ledger_path(tmp_path / "out", name)
        assert found.is_file()
        assert found.parent == tmp_path / "out" / "ledger"


def test_a_line_of_metrics_that_was_torn_is_mended(settings: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(settings.config(), out)
    whole = (out / "metrics.jsonl").read_text(encoding="utf-8")
    (out / "metrics.jsonl").write_text(whole[: len(whole) // 2], encoding="utf-8")
    run(settings.config(), out, resume=True)
    rows = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["round"] for row in rows] == [1, 2, 3]


def test_a_file_that_changed_is_read_again(settings: Any, tmp_path: Path) -> None:
    """Two runs in one process share what they may; never rows of an older file."""
    path = write_csv(tmp_path / "rows.csv", made_up_rows({"a": 60, "b": 60}))
    config = settings.config(data__file=str(path))
    first = run(config, tmp_path / "first")
    write_csv(path, made_up_rows({"a": 60, "b": 80}))
    second = run(config, tmp_path / "second")
    assert first["sites"]["b"]["train_rows"] < second["sites"]["b"]["train_rows"]


def test_a_weight_for_a_label_that_is_not_there(settings: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="class_weights") as caught:
        run(settings.config(data__class_weights={"god": 2.0}), tmp_path / "out")
    assert "bad, good" in str(caught.value)


def test_without_privacy_the_pooled_run_is_made_once(settings: Any, tmp_path: Path) -> None:
    heard: list[str] = []

    class Count:
        def comparing(self, name: str, done: int, total: int) -> None:
            heard.append(name)

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    summary = run(
        settings.config(simulation__baselines=True),
        tmp_path / "out",
        observer=Count(),  # pyright: ignore[reportArgumentType]
    )
    kept = json.loads((tmp_path / "out" / "checkpoint" / "baselines.json").read_text())
    assert "pooled" not in kept
    assert summary["baselines"]["pooled"] == summary["baselines"]["pooled_private"]


def test_without_baselines_their_keys_are_there_and_empty(settings: Any, tmp_path: Path) -> None:
    baselines = run(settings.config(), tmp_path / "out")["baselines"]
    assert {name for name, value in baselines.items() if value is not None} == {"majority"}
    assert {
        "untrained",
        "head_private",
        "alone_private",
        "pooled_private",
        "pooled",
    } <= baselines.keys()


def test_flower_never_writes_into_a_used_folder(settings: Any, tmp_path: Path) -> None:
    """What `flwr run .` does when it is called a second time with the same `out`."""

    class Nobody:
        run_config = run_config(resolve(settings.config()), tmp_path / "out")

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.md").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputExistsError, match="not empty"):
        server_app.main(None, Nobody())  # pyright: ignore
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.md"]


def test_a_data_set_of_the_datasets_library(settings: Any, tmp_path: Path) -> None:
    import datasets

    rows = [dict(zip(("site", "text", "label"), row, strict=True)) for row in ROWS]
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "set")
    summary = run(
        settings.config(data__file=None, data__dataset=str(tmp_path / "set")), tmp_path / "out"
    )
    assert summary["sites"].keys() == {"east", "north"}


ROWS = made_up_rows({"east": 60, "north": 60})


@pytest.mark.parametrize("text", ["", "x = ", "[data]\nsource = 3\n", "\x00"])
def test_a_flower_run_configuration_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    raw = {"toml": text or "[data]", "out": str(tmp_path / "out")}
    with pytest.raises(HushtuneError):
        read_run_config(raw)
    assert not (tmp_path / "out").exists()


def test_a_delta_that_is_fine_for_each_site_is_fine_for_the_baselines(
    settings: Any, tmp_path: Path
) -> None:
    """Below 1/n at every site, and above it for all rows together."""
    config = settings.config(
        privacy__trust="site", privacy__delta=0.012, simulation__baselines=True, train__rounds=1
    )
    summary = run(config, tmp_path / "out")
    assert summary["baselines"]["pooled_private"] is not None
    assert all(row["delta"] == 0.012 for row in summary["sites"].values())


def test_what_flower_cannot_run_leaves_nothing(settings: Any, tmp_path: Path) -> None:
    config = settings.config(adapter__targets=["attention.self.valu"])

    class Nobody:
        run_config = run_config(resolve(config), tmp_path / "out")

    with pytest.raises(HushtuneError, match="no module"):
        server_app.main(None, Nobody())  # pyright: ignore
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def bare() -> Iterator[Warm]:
    """A process without Flower and without what keeps it quiet."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "RAY_", "HF_"))}
    with Warm("torch", "transformers", "peft", "opacus", "sklearn.metrics", env=env) as made:
        yield made


@pytest.mark.parametrize("where", ["hushtune.simulations.engine", "hushtune.client.app"])
def test_no_library_calls_home_whoever_imports_this(where: str, bare: Warm, tmp_path: Path) -> None:
    """Flower reads its switch once, at import: it must be set before."""
    code = (
        "import sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "assert 'flwr' not in sys.modules\n"
        f"import {where}\n"
        "from flwr.supercore import telemetry\n"
        "print(telemetry.FLWR_TELEMETRY_ENABLED)"
    )
    assert bare.lines_of(code, at=tmp_path)[-1] == "0"
