"""Whole runs of language models: under each trust and rule, told, saved, asked, and exported."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSeq2SeqLM

from hushtune.common.config import RunConfig
from hushtune.common.errors import UnsupportedModelError
from hushtune.common.lora_rules import RULES
from hushtune.common.planning import POOLED
from hushtune.common.presets import PRESETS
from hushtune.common.tasks import partition
from hushtune.server import checkpoint
from hushtune.simulations import plots, run
from hushtune.simulations.edge import export_edge
from hushtune.simulations.estimate import estimate
from hushtune.simulations.saved import export, load
from hushtune.simulations.written import written

from ..client.words import make_words, write_conversations
from ..conftest import Settings

SIZES = {"east": 40, "north": 50, "south": 45}
ASKED = "which colour has the moon e"


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn in one test below."""
    if request.node.get_closest_marker("pictures"):
        return
    monkeypatch.setattr(plots, "plot_run", lambda *_: None)
    monkeypatch.setattr(partition, "plot", lambda *_: None)


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("asked") / "all.csv", SIZES)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_words(tmp_path_factory.mktemp("words") / "llama", "llama")


def config_of(model: Path, rows: Path, **changes: Any) -> Any:
    usual = {
        "task__kind": "causal-lm",
        "train__warmup_rounds": None,
        "train__rounds": 2,
        "train__learning_rate": 0.02,
        "adapter__layers": 2,
    }
    return Settings(model, rows).config(**{**usual, **changes})


# ------------------------------------------------------------------------- rules and trust ----


# One whose change lies in the base, one of gradients, one that keeps a factor at the sites, and
# the default. By day test_rules.py has all rules, of a model with a head.
BY_DAY = ("ffa", "fedsa", "fedsgd", "flora")


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    [pytest.param(rule, marks=[] if rule in BY_DAY else pytest.mark.nightly) for rule in RULES],
)
def test_every_rule_trains_without_a_head(
    llama: Path, asked: Path, tmp_path: Path, rule: str
) -> None:
    config = config_of(llama, asked, aggregation__rule=rule, train__rounds=3)
    summary = run(config, tmp_path / "run")
    state = checkpoint.load(tmp_path / "run" / "checkpoint").state
    assert not any(key.startswith("head.") for key in state.keys)
    assert (summary["refusals"], summary["rejected"]) == ({}, {})
    before, after = (summary["table"][name][POOLED] for name in ("untrained", "federated"))
    assert after < 0.95 * before  # perplexity
    assert load(tmp_path / "run").predict([ASKED])[0]["text"] == ASKED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trust", "more"),
    [
        ("site", {}),
        ("distributed", {}),
        ("server", {"privacy__unit": "client", "privacy__delta": 1e-2}),
        ("off", {}),
    ],
)
def test_every_trust_model_compares_what_can_be_trained_without_a_head(
    llama: Path, asked: Path, tmp_path: Path, trust: str, more: dict[str, Any]
) -> None:
    config = config_of(
        llama, asked, privacy__trust=trust, simulation__baselines=True, train__rounds=1, **more
    )
    summary = run(config, tmp_path / "run")
    assert summary["rounds"] == 1
    assert summary["higher_is_better"] is False
    assert "head_private" not in summary["table"]
    assert summary["baselines"]["head_private"] is None
    assert {"majority", "untrained", "pooled", "federated"} <= summary["table"].keys()
    private = [row["epsilon"] for row in summary["sites"].values()]
    assert private == [None] * 3 if trust == "off" else all(e <= 3.0 for e in private)
    statement = (tmp_path / "run" / "privacy.md").read_text(encoding="utf-8")
    assert ("NO PRIVACY" in statement.upper()) == (trust == "off")
    foreseen = estimate(config)
    assert foreseen["bytes_per_warmup_round"] == 0 or trust == "distributed"
    assert foreseen["bytes_total"] > 0
    assert foreseen["trains_a_head"] is False


@pytest.mark.pictures
def test_the_preset_trains_under_its_budget(llama: Path, asked: Path, tmp_path: Path) -> None:
    """Fewer rounds, on made-up rows and a tiny model."""
    tree = {key: dict(section) for key, section in PRESETS["causal-lm"].items()}
    tree["task"] = {"kind": "causal-lm"}
    tree["data"] = {"file": asked, "site": "site"}
    tree["model"] |= {"name": str(llama), "precision": "float32"}
    tree["train"] |= {"rounds": 4}
    config = RunConfig.model_validate(tree)
    assert (config.train.warmup_rounds, config.train.microbatch) == (0, 4)
    summary = run(config, tmp_path / "run")
    assert all(0 < row["epsilon"] <= 3.0 for row in summary["sites"].values())
    assert len(summary["samples"]) == 3
    assert (tmp_path / "run" / "curve.png").stat().st_size > 10_000


# ---------------------------------------------------------------------- told, saved, asked ----


@dataclass(frozen=True)
class Trained:
    """A finished run and how it was made."""

    out: Path
    config: Any
    summary: dict[str, Any]


CASES = {
    "llama with a template": ("llama", "causal-lm", {"template": True}),
    "gpt2 without one": ("gpt2", "causal-lm", {"template": False, "begins": True}),
    "qwen2, source and target": ("qwen2", "seq2seq", {"template": True}),
    "t5": ("t5", "seq2seq", {"template": False}),
    "bart": ("bart", "seq2seq", {"template": False, "begins": True}),
}


@pytest.fixture(scope="module", params=CASES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    family, kind, tokenizer = CASES[request.param]
    folder = tmp_path_factory.mktemp("trained")
    model = make_words(folder / "model", family, **tokenizer)
    rows = write_conversations(folder / "all.csv", SIZES, plain=kind == "seq2seq")
    config = config_of(
        model,
        rows,
        task__kind=kind,
        train__rounds=6,
        train__local_steps=4,
        model__max_tokens=64,  # Qwen's own tokenizer knows letters alone
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "plot_run", lambda *_: None)
        patch.setattr(partition, "plot", lambda *_: None)
        summary = run(config, folder / "out")
    return Trained(folder / "out", config, summary)


def test_training_lowers_the_perplexity(trained: Trained) -> None:
    table = trained.summary["table"]
    assert trained.summary["metric"] == "perplexity"
    assert table["federated"][POOLED] < 0.7 * table["untrained"][POOLED]
    assert trained.summary["metrics"]["token_accuracy"] > 0.2


def test_samples_quote_test_rows_for_the_researcher_alone(trained: Trained) -> None:
    samples = trained.summary["samples"]
    assert len(samples) == 3
    assert len({sample["site"] for sample in samples}) == 3
    page = (trained.out / "samples.md").read_text(encoding="utf-8")
    assert "For the researcher" in page
    answer = load(trained.out).predict
    for sample in samples:
        assert sample["prompt"] in page
        assert sample["reference"] in page
        assert sample["reference"].startswith("it is ")
        assert answer([sample["prompt"]])[0]["answer"] == sample["trained"]
        for told in ("adapter/README.md", "privacy.md", "privacy.json", "privacy.html"):
            text = (trained.out / told).read_text(encoding="utf-8")
            assert sample["prompt"] not in text
    kept = json.loads((trained.out / "summary.json").read_text(encoding="utf-8"))
    assert kept["samples"] == samples
    assert kept["written"] == written(samples)
    assert "On these 3 rows: F1 of the words" in page
    assert {"samples", "written"} <= set(kept["seen_by"])
    finished = run(trained.config, trained.out, resume=True)
    assert finished["samples"] == samples


def test_no_samples_where_none_are_wanted(llama: Path, asked: Path, tmp_path: Path) -> None:
    summary = run(config_of(llama, asked, simulation__samples=0, train__rounds=1), tmp_path / "run")
    assert (summary["samples"], summary["written"]) == ([], None)
    assert not (tmp_path / "run" / "samples.md").exists()


def greedy(model: Any, tokenizer: Any, text: str, kind: str) -> str:
    """The plain libraries' own greedy answer."""
    apart = model.config.is_encoder_decoder
    if apart:
        rows = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    elif tokenizer.chat_template is not None:
        rows = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
    else:
        prompt = f"user: {text}\nassistant: "
        rows = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        ids = model.eval().generate(
            input_ids=rows["input_ids"],
            attention_mask=rows["attention_mask"],
            do_sample=False,
            max_new_tokens=64,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    shown = 0 if apart else rows["input_ids"].shape[1]
    return str(tokenizer.decode(ids[0, shown:], skip_special_tokens=True)).strip()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_adapter_and_merged_model_answer_alike_without_hushtune(
    trained: Trained, tmp_path: Path
) -> None:
    apart = load(trained.out).model.reads_and_writes
    # What so small a model writes depends on its run's folder; it may be nothing.
    expected = [row["answer"] for row in load(trained.out).predict([ASKED, "tell me of the sea"])]
    peft: Any = AutoPeftModelForSeq2SeqLM if apart else AutoPeftModelForCausalLM
    auto: Any = tf.AutoModelForSeq2SeqLM if apart else tf.AutoModelForCausalLM
    for merged in (False, True):
        folder = export(trained.out, tmp_path / f"merged-{merged}", merged=merged)
        tokenizer = tf.AutoTokenizer.from_pretrained(folder)
        model = auto.from_pretrained(folder) if merged else peft.from_pretrained(folder)
        kind = trained.config.task.kind
        found = [greedy(model, tokenizer, t, kind) for t in (ASKED, "tell me of the sea")]
        assert found == expected
        if merged:
            base = tf.AutoConfig.from_pretrained(trained.config.model.name)
            assert model.config.tie_word_embeddings == base.tie_word_embeddings
            card = (folder / "README.md").read_text(encoding="utf-8")
            assert "library_name: transformers" in card
            assert "generate(" in card


def test_the_code_on_a_merged_model_s_card_runs(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export(trained.out, tmp_path / "merged", merged=True)
    card = (folder / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
    exec(code.replace("a question", ASKED).replace("a source text", ASKED), {})
    (answer,) = load(trained.out).predict([ASKED])
    written = capsys.readouterr().out.strip().splitlines()
    assert (written[-1].strip() if answer["answer"] else "") == answer["answer"]


def test_predict_answers_on_the_command_line(trained: Trained, hushtune: Any) -> None:
    (answer,) = load(trained.out).predict([ASKED])
    told = hushtune("predict", trained.out, ASKED, "--json")
    assert told.status == 0, told.err
    assert answer["answer"] in told.out
    assert hushtune("predict", trained.out, ASKED).status == 0


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_model_of_two_parts_is_not_written_for_devices(
    asked: Path, tmp_path: Path, family: str
) -> None:
    """Alone, BART would make up what it has answered so far out of what it was asked."""
    pytest.importorskip("onnx")
    model = make_words(tmp_path / family, family)
    run(config_of(model, asked, task__kind="seq2seq", train__rounds=1), tmp_path / "run")
    with pytest.raises(UnsupportedModelError, match="an encoder and a decoder"):
        export_edge(tmp_path / "run", tmp_path / "device", int8=False)
    assert not (tmp_path / "device").exists()


def test_a_model_of_two_parts_is_for_sources_and_targets(asked: Path, tmp_path: Path) -> None:
    model = make_words(tmp_path / "t5", "t5")
    with pytest.raises(Exception, match="encoder and a decoder does not go on"):
        run(config_of(model, asked), tmp_path / "run")
