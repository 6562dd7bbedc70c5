"""Whole runs at tiny size: every preset, every file, every key that others build on."""

from __future__ import annotations

import json
import math
import random
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hushtune.common.config_io import config_hash, load_config
from hushtune.common.presets import PRESETS
from hushtune.common.privacy import figures
from hushtune.simulations import run
from hushtune.simulations.saved import load

# The contract, in words of its own: a key that is lost here breaks whoever builds on a run.
FILES = {
    "config.toml",
    "summary.json",
    "metrics.jsonl",
    "adapter",
    "privacy.json",
    "privacy.md",
    "privacy.html",
    "checkpoint",
    "ledger",
    "curve.png",
    "sites.png",
}
SUMMARY = {"metric", "value", "sites", "baselines", "rounds", "seconds"}
SUMMARY_SITE = {"value", "alone_private", "epsilon", "delta"}
BASELINES = {
    "majority",
    "untrained",
    "head_private",
    "head_best",
    "alone_private",
    "pooled_private",
    "pooled",
}
OF_TABLES = {"columns", "columns_private"}
SECONDS = {"total", "training", "evaluation", "orchestration"}
PRIVACY = {"trust", "unit", "relation", "accountant", "sites"}
PRIVACY_SITE = {
    "epsilon",
    "delta",
    "sampling_probability",
    "noise_multiplier",
    "steps",
    "clip_norm",
    "denominator",
}
ADAPTER = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "head.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
QUICK = (
    "data.max_rows_per_site=60",
    "model.precision=float32",
    "privacy.delta=0.001",
    "train.rounds=3",
    "train.warmup_rounds=1",
    "train.local_steps=1",
)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lines(out: Path) -> list[dict[str, Any]]:
    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def check_contract(out: Path, returned: Mapping[str, Any], sites: set[str]) -> None:
    """All that is promised of any run's folder, private or not."""
    assert {path.name for path in out.iterdir()} >= FILES - ({"ledger"} if not sites else set())
    summary = read(out / "summary.json")
    assert summary == json.loads(json.dumps(returned))
    assert summary.keys() >= SUMMARY
    assert summary["metric"] == "accuracy"
    assert summary["sites"].keys() == sites
    assert all(row.keys() >= SUMMARY_SITE for row in summary["sites"].values())
    assert summary["seconds"].keys() >= SECONDS
    assert all(value >= 0 for value in summary["seconds"].values())
    rows = summary["sites"].values()
    weighted = sum(row["value"] * row["test_rows"] for row in rows)
    assert summary["value"] == pytest.approx(weighted / sum(row["test_rows"] for row in rows))
    privacy = read(out / "privacy.json")
    assert privacy.keys() >= PRIVACY
    assert privacy["sites"].keys() == sites
    assert all(row.keys() >= PRIVACY_SITE for row in privacy["sites"].values())
    assert {path.name for path in (out / "adapter").iterdir()} >= ADAPTER
    check_metrics(lines(out), summary, sites)
    check_png(out / "curve.png")


def check_metrics(rows: list[dict[str, Any]], summary: Any, sites: set[str]) -> None:
    assert [row["round"] for row in rows] == list(range(1, summary["rounds"] + 1))
    for row in rows:
        assert row["sites"].keys() == sites
        assert {"loss", "accuracy", "epsilon", "accepted", "rejected", "phase"} <= row.keys()
        assert all(0 <= site["accuracy"] <= 1 for site in row["sites"].values())


def check_png(path: Path) -> None:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert 800 <= width <= 4000
    assert 300 <= height <= 3000
    assert 10_000 < len(data) < 2_000_000


def loud(text: str) -> bool:
    return "no privacy" in text.casefold()


# ------------------------------------------------------------------------------ presets ----


# The preset clients is in test_server_trust, those of other kinds in test_kind_presets.
@pytest.fixture(scope="module", params=("demo", "tiny"))
def preset_run(
    request: pytest.FixtureRequest, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path, dict[str, Any]]:
    """A preset on a few rows and a random model: configuration, folder, summary."""
    overrides = [*QUICK, f"model.name={tiny_bert}"]
    config = load_config(preset=request.param, presets=PRESETS, overrides=overrides)
    out = tmp_path_factory.mktemp(f"preset-{request.param}") / "out"
    return config, out, run(config, out)


def test_a_preset_runs_end_to_end(preset_run: tuple[Any, Path, dict[str, Any]]) -> None:
    _, out, summary = preset_run
    check_contract(out, summary, {"amazon", "movie", "nyt", "tweets"})
    assert summary["rounds"] == 3
    assert summary["baselines"].keys() == BASELINES | OF_TABLES
    assert all(0 <= summary["baselines"][name] <= 1 for name in BASELINES)
    assert all(summary["baselines"][name] is None for name in OF_TABLES)
    means = [summary["table"][f"alone_private/{s}"]["pooled"] for s in summary["sites"]]
    assert summary["baselines"]["alone_private"] == pytest.approx(sum(means) / 4)


def test_a_preset_spends_its_budget_and_never_more(
    preset_run: tuple[Any, Path, dict[str, Any]],
) -> None:
    config, out, summary = preset_run
    privacy = read(out / "privacy.json")
    assert privacy["trust"] == "site"
    assert privacy["unit"] == "example"
    assert privacy["relation"] == "add_or_remove_one"
    assert "PLD" in privacy["accountant"]
    spent: dict[str, list[float]] = {}
    for row in lines(out):
        for site, value in row["epsilon"].items():
            spent.setdefault(site, []).append(value)
    for site, row in privacy["sites"].items():
        assert 0.9 * config.privacy.epsilon < row["epsilon"] <= config.privacy.epsilon
        assert row["delta"] == config.privacy.delta == summary["sites"][site]["delta"]
        assert summary["sites"][site]["epsilon"] == row["epsilon"]
        assert row["steps"] == config.train.rounds * config.train.local_steps
        assert row["noise_multiplier"] > 0.3
        assert row["clip_norm"] == config.privacy.clip_norm
        size = summary["sites"][site]["train_rows"]
        assert row["denominator"] == pytest.approx(row["sampling_probability"] * size)
        assert spent[site] == sorted(spent[site])
        assert spent[site][-1] == pytest.approx(row["epsilon"])
    for name in ("privacy.md", "privacy.html"):
        page = (out / name).read_text(encoding="utf-8")
        assert not loud(page)
        assert all(alike["sentence"] in page for alike in privacy["sentences"])


def test_the_statement_tells_what_crossed_a_site_s_border(
    preset_run: tuple[Any, Path, dict[str, Any]],
) -> None:
    config, out, _ = preset_run
    sites = read(out / "privacy.json")["sites"]
    tensors = load_file(out / "adapter" / "adapter_model.safetensors")
    for row in lines(out):
        sent = {name: updates_of(site, row["round"]) for name, site in sites.items()}
        assert all(len(updates) == 1 for updates in sent.values())
        up = sum(update["num_bytes"] for (update,) in sent.values())
        down = sum(site["received"][0]["num_bytes"] for site in sites.values())
        assert up < row["bytes_up"] < up + 1500 * len(sites)  # and some text
        assert down < row["bytes_down"] < down + 1500 * len(sites)
        for (update,) in sent.values():
            heads = {"head.bias", "head.weight"}
            assert (set(update["tensors"]) == heads) is (row["phase"] == "warmup")
    for site in sites.values():
        assert site["received"][0]["rounds"] == list(range(1, config.train.rounds + 1))
        assert len(site["received"][0]["tensors"]) == len(tensors) + 2
        assert site["lifetime"]["limit_epsilon"] is None  # no policy: nothing limits later runs
        assert site["num_aborted"] == 0


def updates_of(site: Mapping[str, Any], round: int) -> list[Any]:
    return [moved for moved in site["released"]["updates"] if round in moved["rounds"]]


def test_each_site_has_a_ledger_that_only_its_owner_reads(
    preset_run: tuple[Any, Path, dict[str, Any]],
) -> None:
    _, out, summary = preset_run
    found = sorted(path for path in (out / "ledger").iterdir() if path.suffix == ".sqlite")
    assert [path.stem for path in found] == sorted(summary["sites"])
    for path in (out / "ledger").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_the_model_card_says_what_it_is_and_what_it_promises(
    preset_run: tuple[Any, Path, dict[str, Any]],
) -> None:
    config, out, summary = preset_run
    card = (out / "adapter" / "README.md").read_text(encoding="utf-8")
    epsilon = next(iter(summary["sites"].values()))["epsilon"]
    most = max(site["epsilon"] for site in summary["sites"].values())
    for wanted in (
        f"Base model: {config.model.name}",
        "epsilon",
        figures.upwards(epsilon, places=2),
        f"{config.privacy.delta:g}",
        "Unit: one example",
        f"At every site (epsilon, delta) is at most ({figures.upwards(most, places=2)}, ",
        f"{config.train.rounds} rounds: {config.train.warmup_rounds} of warm-up of the head alone, "
        f"then {config.train.rounds - config.train.warmup_rounds} of LoRA",
        "Trust model: `site`",
        f"{summary['value']:.3f}",
        "negative, positive",
    ):
        assert wanted in card, wanted
    assert not loud(card.replace("| pooled, no privacy |", ""))
    assert card.startswith("---\n")


# peft asks for an attribute that transformers has renamed.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_adapter_loads_with_peft_alone(preset_run: tuple[Any, Path, dict[str, Any]]) -> None:
    """Base, adapter and head by hand give the logits that hushtune gives."""
    from peft import PeftModel
    from transformers import AutoModel, AutoTokenizer

    config, out, _ = preset_run
    texts = ["a lovely song", "the meal was quite grim again today"]
    base = AutoModel.from_pretrained(config.model.name, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, str(out / "adapter")).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(out / "adapter"))
    rows = tokenizer(texts, padding=True, return_tensors="pt")
    head = load_file(out / "adapter" / "head.safetensors")
    with torch.no_grad():
        states = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"])
    mask = rows["attention_mask"].unsqueeze(-1)
    mean = (states.last_hidden_state * mask).sum(1) / mask.sum(1)
    features = torch.nn.functional.normalize(mean, dim=-1) * config.model.feature_scale
    logits = features @ head["weight"].T + head["bias"]
    torch.testing.assert_close(logits, load(out).logits(texts), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.pictures
def test_the_tiny_preset_on_real_weights(tmp_path: Path) -> None:
    """The demo's own model and sentences. On all its rows the preset runs in test_readme.py."""
    few = ["simulation.baselines=false", "data.max_rows_per_site=80"]
    config = load_config(preset="tiny", presets=PRESETS, overrides=few)
    out = tmp_path / "out"
    summary = run(config, out)
    check_contract(out, summary, {"amazon", "movie", "nyt", "tweets"})
    card = (out / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "all-MiniLM-L6-v2" in card
    assert str(tmp_path) not in card
    answer = load(out).predict(["I love this wonderful film."])[0]
    assert math.isclose(sum(answer["probabilities"].values()), 1, abs_tol=1e-5)


@pytest.mark.slow
def test_the_demo_s_recipe_learns_under_privacy(tmp_path: Path) -> None:
    """The demo's own rounds, rates and privacy, on fewer rows. Without gradients, noise alone is
    left, and no such accuracy: the model guesses, at about the share of the majority."""
    few = ["simulation.baselines=false", "data.max_rows_per_site=800"]
    config = load_config(preset="demo", presets=PRESETS, overrides=few)
    summary = run(config, tmp_path / "out")
    assert summary["trust"] == "site"
    assert {figures.upwards(site["epsilon"], places=2) for site in summary["sites"].values()} == {
        "3.00"
    }
    assert len(summary["sites"]) == 4
    assert summary["refusals"] == summary["rejected"] == {}
    assert summary["value"] >= summary["baselines"]["majority"] + 0.15


# ----------------------------------------------------------- one seed, privacy off, own data ----


@pytest.mark.parametrize("head", ["mean", "own"])
@pytest.mark.parametrize("rule", ["ffa", "fedit"])
def test_every_rule_and_head(settings: Any, tmp_path: Path, rule: str, head: str) -> None:
    config = settings.config(aggregation__rule=rule, model__head=head, train__local_steps=3)
    summary = run(config, tmp_path / "out")
    assert [row["phase"] for row in lines(tmp_path / "out")] == ["warmup", "adapter", "adapter"]
    tensors = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    downs = [tensor for name, tensor in tensors.items() if "lora_A" in name]
    ups = [tensor for name, tensor in tensors.items() if "lora_B" in name]
    assert len(downs) == len(ups) == 2
    assert all(bool(tensor.any()) for tensor in ups)
    # A starts with orthonormal rows: it still has them if, and only if, it was never trained.
    offs = [float((a @ a.T - torch.eye(len(a))).abs().max()) for a in downs]
    assert (max(offs) < 1e-5) if rule == "ffa" else (min(offs) > 1e-4)
    assert 0 <= summary["value"] <= 1


def test_the_federated_model_learns(settings: Any, tmp_path: Path) -> None:
    """Every word of a text tells its label, so that even a random model's features do."""
    drawn = random.Random(5)
    words = {
        "good": ("bright", "clear", "fine", "glad", "great", "kind", "lovely", "warm"),
        "bad": ("awful", "bleak", "cruel", "dull", "grim", "harsh", "nasty", "sour"),
    }
    rows = {" ".join(drawn.choices(words[label], k=4)): label for label in ("good", "bad") * 120}
    path = tmp_path / "easy.csv"
    texts = [
        f"{('a', 'b')[i // 2 % 2]},{text},{label}" for i, (text, label) in enumerate(rows.items())
    ]
    shuffled = drawn.sample(texts, len(texts))
    path.write_text("\n".join(["site,text,label", *shuffled]) + "\n", encoding="utf-8")
    config = settings.config(
        data__file=str(path),
        train__rounds=8,
        train__warmup_rounds=6,
        train__local_steps=6,
        train__warmup_learning_rate=0.1,
    )
    summary = run(config, tmp_path / "out")
    assert summary["value"] > 0.8
    told = lines(tmp_path / "out")
    assert told[-1]["loss"] < told[0]["loss"]


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "quantity", "shards"])
def test_partitions_deal_one_file_to_sites(settings: Any, tmp_path: Path, partition: str) -> None:
    config = settings.config(
        data__site=None, data__partition=partition, data__sites=3, train__sampling_probability=0.5
    )
    summary = run(config, tmp_path / "out")
    assert summary["sites"].keys() == {"site-0", "site-1", "site-2"}
    used = [row["train_rows"] + row["test_rows"] for row in summary["sites"].values()]
    assert 150 < sum(used) <= 210
    if partition == "iid":
        assert max(used) - min(used) < 10


def test_the_folders_configuration_is_the_same_run(settings: Any, tmp_path: Path) -> None:
    first = run(settings.config(), tmp_path / "a")
    stored = load_config(tmp_path / "a" / "config.toml")
    again = run(stored, tmp_path / "b")
    assert again["adapter_digest"] == first["adapter_digest"]
    assert again["config_hash"] == first["config_hash"] == config_hash(stored)
    texts = [(tmp_path / x / "config.toml").read_text(encoding="utf-8") for x in "ab"]
    assert texts[0] == texts[1]
    other = run(settings.config(seed=8), tmp_path / "c")
    assert other["adapter_digest"] != first["adapter_digest"]


def test_privacy_off_is_said_loudly(settings: Any, tmp_path: Path, hushtune: Any) -> None:
    out = tmp_path / "out"
    answer = hushtune("simulate", "--config", settings.file(tmp_path), "--out", out)
    assert answer.status == 0, answer.err
    assert "NO PRIVACY" in answer.out
    for name in ("privacy.md", "privacy.html"):
        assert "NO PRIVACY" in (out / name).read_text(encoding="utf-8")
    assert loud((out / "adapter" / "README.md").read_text(encoding="utf-8"))
    privacy = read(out / "privacy.json")
    assert privacy["trust"] == "off"
    assert privacy["guarantee"] is False
    assert {row["epsilon"] for row in privacy["sites"].values()} == {None}
    assert {row["noise_multiplier"] for row in privacy["sites"].values()} == {0}
    summary = read(out / "summary.json")
    assert {row["epsilon"] for row in summary["sites"].values()} == {None}


@pytest.mark.pictures
def test_privacy_off_still_writes_every_file(settings: Any, tmp_path: Path) -> None:
    summary = run(settings.config(), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= FILES - {"ledger"}  # nothing is charged, so there may be no ledger
    check_metrics(lines(tmp_path / "out"), summary, {"east", "north", "south"})
    for row in lines(tmp_path / "out"):
        assert row["noise"] == dict.fromkeys(row["accepted"], "none")


def test_repeatable_noise_voids_the_promise(settings: Any, tmp_path: Path) -> None:
    changes = {"privacy__trust": "site", "privacy__insecure_seeded_noise": True}
    first = run(settings.config(**changes), tmp_path / "a")
    again = run(settings.config(**changes), tmp_path / "b")
    assert first["adapter_digest"] == again["adapter_digest"]
    assert {row["epsilon"] for row in first["sites"].values()} == {None}
    for name in ("privacy.md", "privacy.html"):
        assert loud((tmp_path / "a" / name).read_text(encoding="utf-8"))


def test_real_noise_is_never_the_same_twice(settings: Any, tmp_path: Path) -> None:
    # With every row in every batch, noise is all that can differ.
    config = settings.config(privacy__trust="site", train__sampling_probability=1.0)
    first, again = (run(config, tmp_path / name) for name in "ab")
    assert first["adapter_digest"] != again["adapter_digest"]


def test_one_file_a_site_and_sites_drawn_for_each_round(settings: Any, tmp_path: Path) -> None:
    header, *rows = settings.data.read_text(encoding="utf-8").splitlines()
    files: dict[str, str] = {}
    for site in ("east", "north", "south"):
        path = tmp_path / f"{site}.csv"
        mine = [row for row in rows if row.startswith(site + ",")]
        path.write_text("\n".join([header, *mine]) + "\n", encoding="utf-8")
        files[site] = str(path)
    config = settings.config(
        data__file=None,
        data__site=None,
        data__files=files,
        simulation__sites_per_round=2,
        train__rounds=6,
        train__warmup_rounds=3,
        privacy__trust="site",
    )
    summary = run(config, tmp_path / "out")
    asked = [tuple(row["accepted"]) for row in lines(tmp_path / "out")]
    assert all(len(sites) == 2 for sites in asked)
    assert len(set(asked)) > 1
    rounds = {site: sum(site in sites for sites in asked) for site in files}
    privacy = read(tmp_path / "out" / "privacy.json")
    for site, row in privacy["sites"].items():
        assert row["steps"] == rounds[site] * config.train.local_steps
        assert row["epsilon"] <= config.privacy.epsilon
    assert summary["sites"].keys() == files.keys()
