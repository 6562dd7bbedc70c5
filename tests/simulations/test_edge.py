"""A model for devices: its file answers as the model did, wherever and for whatever it is asked."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from hushtune.common import lora
from hushtune.common.config_task import TaskConfig
from hushtune.common.errors import ConfigError, MissingFileError, UnsupportedModelError
from hushtune.common.kinds import Targets
from hushtune.common.tasks.objectives import Classification
from hushtune.common.tasks.objectives_tokens import IGNORED, NextToken, TokenTags
from hushtune.simulations import edge, edge_inputs, edge_onnx, run, saved
from hushtune.simulations.edge_generation import greedy
from hushtune.simulations.edge_measure import (
    MOST_CHANGED,
    Form,
    FormFigures,
    compare,
    judge_of,
    report,
)
from hushtune.simulations.edge_onnx import OnnxModel, probes_of, write_onnx
from hushtune.simulations.edge_rows import rows_of_run

from ..client.families import adapted, moved, tiny_config
from .test_saved import TEXTS, Trained, lines_of, nothing_half, train

pytestmark = pytest.mark.slow

INT8, UINT8 = onnx.TensorProto.INT8, onnx.TensorProto.UINT8
SOME = [text for text in TEXTS if text]


@pytest.fixture(scope="module", params=["mean", "own"])
def trained(
    request: pytest.FixtureRequest,
    tiny_bert: Path,
    three_sites: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    folder = tmp_path_factory.mktemp(f"edge-{request.param}")
    data = Path(shutil.copy(three_sites, folder / "all.csv"))  # its own, which a test changes
    return train(folder, tiny_bert, data, head=request.param, rounds=25)  # till labels differ


# For what no head changes: to write a file takes seconds.
one_head = pytest.mark.parametrize("trained", ["mean"], indirect=True)


@pytest.fixture(scope="module")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of both forms."""
    folder = tmp_path_factory.mktemp("exported")
    for name in ("onnx", "int8"):
        edge.export_edge(trained.out, folder / name, int8=name == "int8")
    return {name: folder / name for name in ("onnx", "int8")}


# --------------------------------------------------------------------------- any model at all


def inputs_of(family: str, batch: int, length: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(batch + length)
    if family == "vit":
        return {"pixel_values": torch.randn((batch, 3, 16, 16), generator=random)}
    ids = torch.randint(3, 50, (batch, length), generator=random)
    mask = torch.ones_like(ids)
    mask[-1, max(1, length // 2) :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(("family", "head"), [("bert", "mean"), ("gpt2", "own"), ("vit", "own")])
def test_a_file_answers_as_the_adapted_model_for_sizes_that_it_was_not_made_from(
    family: str, head: str, tmp_path: Path
) -> None:
    model = adapted(family, head)
    lora.install(model, moved(model))
    model.frozen_mode()
    others = [inputs_of(family, *size) for size in ((1, 1), (1, 5), (7, 2), (2, 29))]
    with torch.no_grad():
        expected = [model(one) for one in others]
    examples = (
        edge_inputs.image_examples(3, 16)
        if family == "vit"
        else edge_inputs.text_examples(50, longest=40)
    )
    written = edge.write_model(model, examples, tmp_path, aside=None)
    found = OnnxModel(written.path)
    axes = ("batch", 3, 16, 16) if family == "vit" else ("batch", "length")
    assert set(found.inputs.values()) == {axes}
    for inputs, logits in zip(others, expected, strict=True):
        np.testing.assert_allclose(found(inputs), logits.numpy(), atol=1e-4, rtol=0)
    assert float(torch.cat(expected).std(0).max()) > 1e-3  # the answers differ


class Numbers(nn.Module):
    """A model of rows of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.layers(inputs["columns"])


def numbers() -> tuple[Numbers, list[edge_onnx.Probe]]:
    torch.manual_seed(0)
    model = Numbers()
    return model, probes_of(model, edge_inputs.number_examples(5, name="columns"))


def test_a_table_s_columns_are_a_file_s_one_input(tmp_path: Path) -> None:
    model, probes = numbers()
    assert write_onnx(model, probes, tmp_path / "a.onnx") < 1e-5
    found = OnnxModel(tmp_path / "a.onnx")
    assert found.inputs == {"columns": ("batch", 5)}
    assert found({"columns": torch.zeros(9, 5)}).shape == (9, 1)


@pytest.mark.parametrize("by", [2e-4, math.nan])
def test_a_file_that_answers_otherwise_is_not_kept(tmp_path: Path, by: float) -> None:
    """Only the last probe is off, and by little more than is allowed."""
    model, (*probes, last) = numbers()
    off = replace(last, logits=last.logits + by)
    with pytest.raises(UnsupportedModelError, match="does not answer as the model does"):
        write_onnx(model, [*probes, off], tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


class Looks(Numbers):
    """What it does depends on what it is given, which no graph can hold."""

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.layers(inputs["columns"] if inputs["columns"].sum() > 0 else -inputs["columns"])


def test_a_model_that_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    probes = probes_of(model := Looks(), edge_inputs.number_examples(5, name="columns"))
    with pytest.raises(UnsupportedModelError, match="cannot be written as an ONNX file"):
        write_onnx(model, probes, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


class Logits(nn.Module):
    """A causal language model that gives logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.model(**inputs, use_cache=False).logits


def test_greedy_text_from_a_file_is_that_of_the_model(tmp_path: Path) -> None:
    """Held to what transformers' own ``generate`` makes, with its cache."""
    torch.manual_seed(3)
    config = tiny_config("llama")
    config.initializer_range = 0.4  # large, so that tokens do not repeat at once
    llama = tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model = Logits(llama)
    probes = probes_of(model, edge_inputs.text_examples(50, longest=24))
    write_onnx(model, probes, tmp_path / "a.onnx")
    found = OnnxModel(tmp_path / "a.onnx")
    seen: set[int] = set()
    for prompt in ([7], [3, 9, 41, 5], list(range(3, 20))):
        whole = llama.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=20, eos_token_id=None
        )
        expected = whole[0, len(prompt) :].tolist()
        assert greedy(found, prompt, steps=20) == greedy(model, prompt, steps=20) == expected
        assert (
            greedy(found, prompt, steps=20, ends={expected[5]})
            == (expected[: expected.index(expected[5])])
        )
        seen.update(expected)
    assert len(seen) > 10


def test_weights_of_matrix_products_and_embeddings_are_of_8_bits(tmp_path: Path) -> None:
    model = adapted("bert", "mean")
    examples = edge_inputs.text_examples(50, longest=12)
    written = edge.write_model(model, examples, tmp_path, aside=tmp_path.parent)
    exact, small = (onnx.load(path) for path in (written.exact, written.path))
    large = [one for one in exact.graph.initializer if len(one.dims) == 2 and one.dims[0] > 3]
    of_bytes = [
        one
        for one in small.graph.initializer
        if len(one.dims) == 2 and one.data_type in (INT8, UINT8)
    ]
    floats = [
        math.prod(one.dims)
        for one in small.graph.initializer
        if one.data_type == onnx.TensorProto.FLOAT
    ]
    assert len(of_bytes) >= len(large) > 15
    assert max(floats) <= 128  # scales, biases and norms alone
    highest = max(
        int(np.abs(onnx.numpy_helper.to_array(one).astype(int)).max())
        for one in of_bytes
        if one.data_type == INT8
    )
    assert highest <= 64  # of 7 bits, whose products no CPU saturates


# ------------------------------------------------------------------------------ a run's model


@pytest.mark.parametrize("form", ["onnx", "int8"])
def test_the_card_s_ten_lines_answer_as_the_run_does_with_onnxruntime_alone(
    trained: Trained, exported: dict[str, Path], tmp_path: Path, form: str
) -> None:
    card = (exported[form] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 10
    texts, expected = clear(trained)
    code = code.replace('"FOLDER', f'"{exported[form]}').replace('["a sentence"]', repr(texts))
    code += (
        "import sys\n"
        "heavy = {'torch', 'transformers', 'hushtune', 'peft', 'onnx'}\n"
        "assert not heavy & {name.split('.')[0] for name in sys.modules}\n"
    )
    assert lines_of(code, at=tmp_path) == expected
    kind = "weights of 8 bits" if form == "int8" else "are an ONNX file:"
    assert kind in card
    assert card.index("## Use") < card.index(kind) < card.index("## Figures")
    assert "library_name: onnx" in card
    assert "No privacy is promised" in card
    assert "peft" not in card
    labels = json.loads((exported[form] / edge.LABELS).read_text(encoding="utf-8"))
    assert labels == ["bad", "good"]


def clear(trained: Trained) -> tuple[list[str], list[str]]:
    """Test rows of which the run is surest, four of each label, and these."""
    predictor = saved.load(trained.out)
    rows = predictor.predict(rows_of_run(trained.out, predictor.labels).texts)
    rows.sort(key=lambda row: row["probabilities"]["good"])
    chosen = [*rows[:4], *rows[-4:]]
    assert [row["label"] for row in chosen] == ["bad"] * 4 + ["good"] * 4
    return [row["text"] for row in chosen], [row["label"] for row in chosen]


def test_the_file_s_logits_are_the_run_s(trained: Trained, exported: dict[str, Path]) -> None:
    """Each text alone, as the file's own tokenizer reads it; 8 bits change them, but by little."""
    from tokenizers import Tokenizer

    expected = saved.load(trained.out).logits(SOME).numpy()
    differences: dict[str, float] = {}
    for form, folder in exported.items():
        tokenizer = Tokenizer.from_file(str(folder / edge.TOKENIZER))
        found = OnnxModel(folder / edge.MODEL)
        answers = [
            found(
                {
                    "input_ids": torch.tensor([row.ids]),
                    "attention_mask": torch.tensor([row.attention_mask]),
                }
            )
            for row in tokenizer.encode_batch(SOME)
        ]
        differences[form] = float(np.abs(np.concatenate(answers) - expected).max())
    assert differences["onnx"] < 1e-4 < differences["int8"] < 0.5 * float(np.ptp(expected))


def test_the_report_s_figures_are_the_run_s(trained: Trained, exported: dict[str, Path]) -> None:
    summary = json.loads((trained.out / "summary.json").read_text(encoding="utf-8"))
    rows = sum(site["test_rows"] for site in summary["sites"].values())
    for form, folder in exported.items():
        found = json.loads((folder / edge.REPORT).read_text(encoding="utf-8"))
        first, second, *third = found["forms"]
        names = ["PyTorch float32", "ONNX float32", "ONNX int8"][: 3 if form == "int8" else 2]
        assert [one["form"] for one in found["forms"]] == names
        assert found["test_rows"] == rows
        assert found["why_no_test_rows"] == ""
        assert first["value"] == second["value"] == pytest.approx(summary["value"])
        assert first["agreement"] == second["agreement"] == 1
        assert all(one["milliseconds"] > 0 for one in found["forms"])
        assert found["largest_difference"] < 1e-4
        size = (folder / edge.MODEL).stat().st_size / 1e6
        assert found["forms"][-1]["megabytes"] == pytest.approx(size, abs=1e-3)
        for one in third:
            assert one["megabytes"] < 0.8 * second["megabytes"]
            assert found["changed"] == pytest.approx(1 - one["agreement"])
            assert bool(found["warning"]) is (found["changed"] > MOST_CHANGED)


def test_a_file_names_no_folder_of_the_machine_that_made_it(exported: dict[str, Path]) -> None:
    for folder in exported.values():
        content = (folder / edge.MODEL).read_bytes()
        for trace in (b".py", b"site-packages", b"hushtune/", str(folder.parent).encode()):
            assert trace not in content
        names = {"model.onnx", "edge.json", "labels.json", "tokenizer.json", "README.md"}
        assert {path.name for path in folder.iterdir()} == names


@one_head
def test_without_a_run_or_with_other_data_no_accuracy_is_told(
    trained: Trained, tmp_path: Path
) -> None:
    labels = ("bad", "good")
    assert rows_of_run(trained.out, labels).why_none == ""
    north = rows_of_run(trained.out, labels, site="north")
    assert 0 < len(north.texts) < len(rows_of_run(trained.out, labels).texts)
    assert "labels" not in rows_of_run(trained.out, labels).why_none
    assert "no longer" in rows_of_run(trained.out, ("good", "bad")).why_none
    copy = saved.export(trained.out, tmp_path / "copy", merged=False)
    assert "knows no data" in rows_of_run(copy, labels).why_none
    found = edge.export_edge(copy, tmp_path / "edge", int8=True)
    assert found["test_rows"] == 0
    assert [one["value"] for one in found["forms"]] == [None] * 3
    assert found["changed"] is None
    assert found["warning"] == ""
    data = trained.out.parent / "all.csv"
    text = data.read_text(encoding="utf-8")
    try:
        data.write_text("\n".join(text.splitlines()[:-30]) + "\n", encoding="utf-8")
        assert "no longer" in rows_of_run(trained.out, labels).why_none
        data.unlink()
        assert "cannot be read" in rows_of_run(trained.out, labels).why_none
    finally:
        data.write_text(text, encoding="utf-8")


def test_an_export_for_devices_is_no_adapter(exported: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="a model for devices and no adapter"):
        saved.load(exported["int8"])


@pytest.mark.parametrize("what", ["write_int8", "edge_card", "compare"])
def test_an_interrupted_export_leaves_nothing_half(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def write(_model: Any, _probes: Any, path: Path) -> float:
        path.write_bytes(b"half")
        return 0.0

    monkeypatch.setattr(edge, "write_onnx", write)
    monkeypatch.setattr(edge, "OnnxModel", lambda *_, **__: type("", (), {"inputs": {}}))
    monkeypatch.setattr(edge, "write_int8", shutil.copy)
    monkeypatch.setattr(edge, "compare", lambda *_, **__: [])
    monkeypatch.setattr(edge, "report", lambda *_, **__: {"test_rows": 0})
    monkeypatch.setattr(edge, what, stop)
    with pytest.raises(KeyboardInterrupt):
        edge.export_edge(trained.out, tmp_path / "to", int8=True)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------ the comparison


def test_forms_are_asked_in_turn_row_by_row() -> None:
    """A machine that becomes slower so slows all of them."""
    asked: list[tuple[str, int]] = []

    def form(name: str, answers: list[int]) -> Form:
        def answer(inputs: Mapping[str, Tensor]) -> Any:
            asked.append((name, row := int(inputs["row"])))
            return np.eye(3, dtype=np.float32)[[answers[row]]]

        return Form(name, 1.0, answer)

    forms = [form("a", [0, 1, 2, 0]), form("b", [0, 1, 1, 0])]
    singles = [{"row": torch.tensor(row)} for row in range(4)]
    targets = torch.tensor([[0], [1], [1], [1]])
    found = compare(
        forms,
        4,
        lambda row: (singles[row], targets[row]),
        objective=Classification(torch.ones(3)),
    )
    assert [one.value for one in found] == [0.5, 0.75]
    assert [one.agreement for one in found] == [1.0, 0.75]
    assert asked[:2] == [("a", 0), ("b", 0)]  # which are not counted
    turn = [(name, row) for row in range(4) for name in "ab"]
    assert asked[2:] == turn * 8  # 30 answers at least


TAGGED = Targets.TAGS, "token-classification", "span_f1"
WROTE = Targets.ANSWER, "causal-lm", "perplexity"


@pytest.mark.parametrize(("targets_of", "kind", "metric"), [TAGGED, WROTE])
def test_words_and_answer_tokens_are_judged_one_by_one(
    targets_of: Targets, kind: str, metric: str
) -> None:
    """Two rows of three and of one that count, at the last places of what is put out; the second
    form answers one of these four otherwise, and so does one at a place that does not count."""
    task = TaskConfig.model_validate({"kind": kind, "metric": metric})
    assert task.of.targets is targets_of
    names = ("O", "B-X", "I-X")
    targets = [torch.tensor([[1, 2, 0]]), torch.tensor([[IGNORED, 0]])]
    told = {"a": [[0, 1, 2, 0], [2, 0]], "b": [[2, 1, 0, 0], [1, 0]]}

    def form(name: str) -> Form:
        return Form(name, 1.0, lambda row: 4 * np.eye(3, dtype=np.float32)[[told[name][row["n"]]]])

    tags, words = TokenTags(torch.ones(3), names), NextToken(3)
    found = compare(
        [form("a"), form("b")],
        2,
        lambda row: ({"n": cast(Any, row)}, targets[row]),
        objective=tags if targets_of is Targets.TAGS else words,
        metric=metric,
        judge=judge_of(task),
    )
    assert [one.agreement for one in found] == [1.0, 0.75]
    right, wrong = (math.log(math.exp(4) + 2) - by for by in (4, 0))
    expected = {
        "span_f1": [1.0, 0.0],  # B-X alone ends a word too early
        "perplexity": [math.exp(right), math.exp((3 * right + wrong) / 4)],
    }
    assert [one.value for one in found] == pytest.approx(expected[metric], rel=1e-5)
    told_of = report(
        found, rows=2, why_no_rows="", largest_difference=0, metric=metric, judge=judge_of(task)
    )
    assert told_of["higher_is_better"] is (metric == "span_f1")
    assert ("answer tokens" if metric == "perplexity" else "words") in told_of["warning"]


def test_more_changed_answers_than_documented_are_said_aloud() -> None:
    forms = [FormFigures("exact", 4, 1, 0.9, 1.0), FormFigures("small", 1, 1, 0.9, 0.98)]
    told = report(forms, rows=50, why_no_rows="", largest_difference=0)
    assert told["changed"] == pytest.approx(0.02)
    assert "small answers 2.0% of the test rows otherwise" in told["warning"]
    few = [forms[0], replace(forms[1], agreement=1 - MOST_CHANGED)]
    assert report(few, rows=50, why_no_rows="", largest_difference=0)["warning"] == ""


# -------------------------------------------------------------------------------- the command


@one_head
def test_the_command_writes_shows_and_tells(
    hushtune: Any, trained: Trained, tmp_path: Path
) -> None:
    to = tmp_path / "small"
    answer = hushtune("export", trained.out, "--to", to, "--format", "int8", "--json")
    assert answer.status == 0, answer.err
    told = json.loads(answer.out.splitlines()[-1])
    stored = json.loads((to / edge.REPORT).read_text(encoding="utf-8"))
    assert told == {"written": str(to), "format": "int8", **stored}
    for word in ("PyTorch float32", "ONNX int8", "same answers", "test rows"):
        assert word in answer.err
    again = hushtune("export", trained.out, "--to", to, "--format", "onnx")
    assert again.status == 2
    assert "not empty" in again.err


def test_a_format_and_its_older_name(hushtune: Any, trained: Trained, tmp_path: Path) -> None:
    for name, options in (("a", ["--merged"]), ("b", ["--format", "merged"])):
        assert hushtune("export", trained.out, "--to", tmp_path / name, *options).status == 0
    left, right = (
        {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in files(tmp_path / name)}
        for name in ("a", "b")
    )
    assert left == right
    assert (
        hushtune("export", trained.out, "--to", tmp_path / "c", "--format", "adapter").status == 0
    )
    assert (tmp_path / "c" / saved.DESCRIPTION).is_file()
    both = hushtune("export", trained.out, "--to", tmp_path / "d", "--merged", "--format", "onnx")
    assert both.status == 2
    assert "--merged --format onnx" in both.err
    assert not (tmp_path / "d").exists()


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_without_the_extra_the_error_names_the_command(
    hushtune: Any, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = edge_onnx.find_spec
    monkeypatch.setattr(edge_onnx, "find_spec", lambda n: None if n == "onnxscript" else known(n))
    answer = hushtune("export", trained.out, "--to", tmp_path / "to", "--format", "int8")
    assert answer.status == 2
    assert "no onnxscript" in answer.err
    assert "pip install 'hushtune[edge]'" in answer.err
    nothing_half(tmp_path, "to")
    with pytest.raises(ConfigError, match="not installed"):
        edge.export_edge(trained.out, tmp_path / "to", int8=False)


def test_a_site_s_own_model_is_judged_on_its_own_rows(
    hushtune: Any, settings: Any, tmp_path: Path
) -> None:
    config = settings.config(
        adapter__ranks={"east": 1, "north": 2, "south": 2}, aggregation__rule="flora"
    )
    run(config, tmp_path / "out")
    arguments = ("--to", tmp_path / "to", "--site", "east", "--format", "onnx", "--json")
    answer = hushtune("export", tmp_path / "out", *arguments)
    assert answer.status == 0, answer.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    told = json.loads(answer.out.splitlines()[-1])
    assert told["test_rows"] == summary["sites"]["east"]["test_rows"]
    assert "The model of site east alone" in (tmp_path / "to" / "README.md").read_text("utf-8")
