"""A language model's run, written for devices: what its file writes is what the model wrote."""

from __future__ import annotations

import io
import json
import math
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from hushtune.common.tasks import partition
from hushtune.common.tasks.writing import ends, prompt_ids
from hushtune.simulations import edge, plots, run, saved
from hushtune.simulations.edge_generation import greedy
from hushtune.simulations.edge_onnx import OnnxModel, write_int8
from hushtune.simulations.edge_rows import rows_of_run

from ..client.words import make_words, write_conversations
from .test_language_models import ASKED, SIZES, config_of

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow

ALL_ASKED = (ASKED, "tell me of the sea", "the red bird is old", "which road")
STEPS = 24
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama whose texts begin and end": (
        "llama",
        "causal-lm",
        {"template": False, "begins": True, "ends": True},
    ),
    "llama with a template": ("llama", "causal-lm", {"template": True, "begins": True}),
    "gpt2 without one": ("gpt2", "causal-lm", {"template": False, "begins": True}),
    "qwen2, source and target": ("qwen2", "seq2seq", {"template": True}),
}
QUICK = next(iter(CASES))


@dataclass(frozen=True)
class Written:
    """A run, its model for devices, the same of 8 bits, and the model as it was trained."""

    out: Path
    device: Path
    small: Path
    trained: saved.Predictor

    def prompt(self, asked: str) -> list[int]:
        return prompt_ids(self.trained.tokenizer, asked, self.trained.task.of, max_tokens=64)

    def expected(self, asked: str, *, end: int | None) -> list[int]:
        """What transformers' own ``generate`` makes of adapter and base apart, with its cache."""
        given = torch.tensor([prompt := self.prompt(asked)])
        base: Any = self.trained.model.base
        found = base.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=STEPS,
            eos_token_id=end,
            pad_token_id=0,
        )
        return found[0, len(prompt) :].tolist()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[] if name == QUICK else pytest.mark.nightly) for name in CASES
    ],
)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    family, kind, tokenizer = CASES[request.param]
    folder = tmp_path_factory.mktemp("written")
    model = make_words(folder / "model", family, **tokenizer)
    rows = write_conversations(folder / "all.csv", SIZES, plain=kind == "seq2seq")
    config = config_of(
        model, rows, task__kind=kind, model__max_tokens=64, simulation__samples=0, adapter__rank=4
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "plot_run", lambda *_: None)
        patch.setattr(partition, "plot", lambda *_: None)
        run(config, folder / "out")
    edge.export_edge(folder / "out", folder / "device", int8=False)
    write_int8(folder / "device" / edge.MODEL, small := folder / "small.onnx")
    return Written(folder / "out", folder / "device", small, saved.load(folder / "out"))


@pytest.fixture(scope="module")
def exact(written: Written) -> OnnxModel:
    return OnnxModel(written.device / edge.MODEL)


def test_the_file_writes_what_the_trained_model_writes_and_ends_where_it_ends(
    written: Written, exact: OnnxModel
) -> None:
    seen: set[int] = set()
    for asked in ALL_ASKED:
        prompt, whole = written.prompt(asked), written.expected(asked, end=None)
        assert greedy(exact, prompt, steps=STEPS) == whole
        for end in {whole[0], whole[STEPS // 2]}:  # whatever a tiny model happens to write
            *before, last = written.expected(asked, end=end)
            assert last == end
            assert greedy(exact, prompt, steps=STEPS, ends={end}) == before
        seen.update(whole)
        own = ends(written.trained.model, written.trained.tokenizer)
        assert own == [written.trained.tokenizer.eos_token_id]
        found = greedy(exact, prompt, steps=64, ends=own)
        text = str(written.trained.tokenizer.decode(found, skip_special_tokens=True))
        assert text.strip() == written.trained.predict([asked])[0]["answer"]
    assert len(seen) > 3  # and not one token for all


def test_it_goes_on_beyond_the_lengths_that_it_was_made_from(
    written: Written, exact: OnnxModel
) -> None:
    longest = written.trained.settings.max_tokens
    prompt = (written.prompt(ASKED) * longest)[: longest - 2]
    expected = greedy(written.trained.model, prompt, steps=8)
    assert len(prompt) + len(expected) > longest
    assert greedy(exact, prompt, steps=8) == expected


def test_of_8_bits_it_writes_text_by_the_code_on_its_card(written: Written) -> None:
    """The card's prompt is the run's own, and the code stops at the end token; of a tiny random
    model 8 bits may change any answer, so the code is held to the small file itself."""
    card = (written.device / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = code.replace("a question", "{asked}").replace("FOLDER/model.onnx", str(written.small))
    code = code.replace("FOLDER", str(written.device))
    small = OnnxModel(written.small)
    vocabulary = set(range(len(written.trained.tokenizer)))
    stops = ends(written.trained.model, written.trained.tokenizer)
    for asked in ALL_ASKED:
        printed, known = io.StringIO(), dict[str, Any]()
        with redirect_stdout(printed):
            exec(compile(code.replace("{asked}", asked), "card", "exec"), known)
        prompt = written.prompt(asked)
        found = greedy(small, prompt, steps=64, ends=stops)
        assert known["ids"][: known["start"]] == prompt
        assert [token for token in known["ids"][len(prompt) :] if token not in stops] == found
        assert set(found) <= vocabulary
        text = str(written.trained.tokenizer.decode(found, skip_special_tokens=True))
        assert printed.getvalue().strip() == text.strip()


def perplexity(written: Written, file: Path) -> float:
    """Of the run's test rows by a file's logits, from tokens that are put together here."""
    config, data = rows_of_run(written.out, ()).held or pytest.fail("no test rows")
    model, tokenizer, lost, tokens = OnnxModel(file), written.trained.tokenizer, 0.0, 0
    for text, answer in zip(data.texts, data.answers, strict=True):
        size = config.model.max_tokens
        after = [*tokenizer(answer, add_special_tokens=False)["input_ids"], 3]
        ids = [*prompt_ids(tokenizer, text, config.task.of, max_tokens=size), *after]
        assert len(ids) <= size  # nothing is cut
        row = torch.tensor([ids[:-1]])  # as a run's row is: 8 bits depend on all that is read
        logits = model({"input_ids": row, "attention_mask": torch.ones_like(row)})
        chances = torch.from_numpy(logits)[0].log_softmax(-1)
        places = range(len(ids) - len(after), len(ids))
        lost -= sum(float(chances[at - 1, ids[at]]) for at in places)
        tokens += len(after)
    return math.exp(lost / tokens)


def test_its_report_has_the_run_s_perplexity_and_that_of_8_bits_beside_it(written: Written) -> None:
    summary = json.loads((written.out / "summary.json").read_text(encoding="utf-8"))
    told = json.loads((written.device / edge.REPORT).read_text(encoding="utf-8"))
    assert (told["figure"], told["higher_is_better"]) == ("perplexity", False)
    assert told["test_rows"] == sum(row["test_rows"] for row in summary["sites"].values()) > 0
    exact_file = written.device / edge.MODEL
    for form in told["forms"]:
        assert form["value"] == pytest.approx(summary["value"], rel=1e-4)
        assert form["agreement"] == 1.0
    assert told["forms"][1]["value"] == pytest.approx(perplexity(written, exact_file), rel=1e-4)
    found = edge.measure(
        written.trained,
        edge.Written(written.small, exact_file, 0.0),
        rows_of_run(written.out, ()),
        made_up={},
        int8=True,
    )
    first, _, small = found["forms"]
    assert small["value"] == pytest.approx(perplexity(written, written.small), rel=1e-4)
    assert small["value"] != pytest.approx(first["value"], rel=1e-6)
    assert 0 < small["agreement"] <= 1
    card = (written.device / "README.md").read_text(encoding="utf-8")
    assert "| | MB | perplexity, lower is better | same answers |" in card


def test_its_tokenizer_keeps_the_end_of_a_prompt_that_is_too_long(written: Written) -> None:
    tokenizer = Tokenizer.from_file(str(written.device / edge.TOKENIZER))
    text = " ".join(["moon"] * 100 + ["sea"])
    found = tokenizer.encode(text, add_special_tokens=False)
    assert len(found.ids) == written.trained.settings.max_tokens
    whole = tokenizer.encode("sea", add_special_tokens=False).ids
    assert found.ids[-len(whole) :] == whole
