"""What tests share: silent libraries, a tiny random model, small made-up data, quick settings."""

from __future__ import annotations

import base64
import csv
import gc
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.environment import QUIET

os.environ.update(QUIET)
os.environ["OMP_NUM_THREADS"] = "1"  # in what tests start
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs a hub; one that asks it must fail

GOOD = ("bright", "clear", "fine", "glad", "great", "kind", "lovely", "warm", "sweet", "proud")
BAD = ("awful", "bleak", "cruel", "dull", "grim", "harsh", "nasty", "sour", "weak", "rude")
PLAIN = (
    *("the", "a", "this", "that", "one", "some", "my", "our", "door", "river", "table", "road"),
    *("story", "song", "meal", "house", "window", "garden", "letter", "coat", "was", "felt"),
    *("looked", "seemed", "today", "again", "once", "still", "quite", "rather", "very", "so"),
)
SITES = ("east", "north", "south")

Row = tuple[str, str, str]  # site, text, label


def made_up_rows(
    sizes: Mapping[str, int], *, seed: int = 0, labels: Sequence[str] = ("bad", "good")
) -> list[Row]:
    """Distinct sentences from words whose label can be read from one of them."""
    drawn = random.Random(seed)
    seen: set[str] = set()
    rows: list[Row] = []
    for site, size in sizes.items():
        for index in range(size):
            place = index % len(labels)
            pool = (BAD, GOOD, PLAIN[:10])[place]
            text = ""
            while not text or text in seen:
                words = drawn.choices(PLAIN, k=drawn.randint(4, 8))
                words.insert(drawn.randint(0, len(words)), drawn.choice(pool))
                text = " ".join(words)
            seen.add(text)
            rows.append((site, text, labels[place]))
    return rows


def write_csv(
    path: Path, rows: Sequence[Sequence[object]], header: Sequence[str] = ("site", "text", "label")
) -> Path:
    """A CSV file with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def pytest_configure(config: pytest.Config) -> None:
    """Ray leaves its servers and their outputs to themselves, which Python says when it forgets
    them, in whatever test is running by then."""
    for message in (
        r"subprocess \d+ is still running",
        r"unclosed file <_io.\w+ name=./dev/null.",
    ):
        config.addinivalue_line("filterwarnings", f"ignore:{message}:ResourceWarning")
    # pytest-xdist would begin with the files of most tests; see LONG.
    config.option.loadscopereorder = False


# The files that take longest, the longest first: begun last, one would leave other workers idle.
LONG = (
    *("faults/test_faults.py", "conformance/test_engines.py", "test_readme.py"),
    *("deployment/test_federation_faults.py", "deployment/test_federation.py"),
    *("e2e/test_kinds.py", "e2e/test_crash.py", "e2e/test_language_models.py"),
    *("client/test_dp.py", "e2e/test_presets.py", "simulations/test_edge.py"),
    *("conformance/test_flower_app.py", "e2e/test_resume.py", "e2e/test_kind_presets.py"),
    *("e2e/test_rules.py", "e2e/test_unfreezing.py", "e2e/test_rules_learn.py"),
    *("simulations/test_cli.py", "simulations/sweep/test_workers.py", "e2e/test_corners.py"),
    *("simulations/test_attacks.py", "simulations/test_audit.py", "simulations/test_saved.py"),
    *("simulations/test_agreement.py", "deployment/test_site_processes.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, and all else as it was."""
    tests = Path(__file__).parent
    place = {tests / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


def pytest_collection_finish() -> None:
    """What is loaded by now stays: to look through it would be most of what ``gc.collect`` does,
    which runs call for each workspace that they open."""
    import hypothesis  # noqa: F401  # asks who refers to what as it is loaded: before that is hidden

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread everywhere, as Ray's workers have: equal work gives equal sums, and models as
    small as these only lose by sharing their work on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def part_of(request: pytest.FixtureRequest) -> str:
    """Which folder of the tests one is in."""
    return request.path.relative_to(Path(__file__).parent).parts[0]


# The smallest PNG there is.
BLANK = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgAB5Sfe/AAAAABJRU5ErkJggg=="
)


@pytest.fixture(autouse=True)
def quick_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs make their pictures and leave out what takes a third of a small run: to lay them out and
    to turn them into pixels. Tests that are marked with ``pictures`` get real ones, and whatever
    matplotlib warns of: of each kind of picture there is one."""
    if part_of(request) not in ("e2e", "simulations") or request.node.get_closest_marker(
        "pictures"
    ):
        return

    from matplotlib.figure import Figure

    real = Figure.savefig

    def blank(figure: Figure, to: Any, **how: Any) -> None:
        if isinstance(to, BytesIO) and how.get("format") == "png":
            to.write(BLANK)
        else:
            real(figure, to, **how)

    monkeypatch.setattr(Figure, "savefig", blank)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two blocks and width 32, and a tokenizer of the words above."""
    return make_bert(tmp_path_factory.mktemp("models") / "tiny-bert", seed=0)


def make_bert(folder: Path, *, seed: int) -> Path:
    """A folder that ``from_pretrained`` loads."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*special, *letters, *(f"##{x}" for x in letters), *GOOD, *BAD, *PLAIN, "0", "1", "2"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.2,  # large, so that different words give different features
    )
    BertModel(config).save_pretrained(str(folder))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=128,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def another_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like ``tiny_bert``, with other weights."""
    return make_bert(tmp_path_factory.mktemp("models") / "another-bert", seed=1)


@pytest.fixture(scope="session")
def three_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of three sites with 60, 80 and 70 rows in the columns site, text, label."""
    rows = made_up_rows({"east": 60, "north": 80, "south": 70})
    return write_csv(tmp_path_factory.mktemp("data") / "all.csv", rows)


def changed(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of settings with ``train__rounds`` for ``train.rounds`` set; None drops a key."""
    for dotted, value in changes.items():
        *path, key = dotted.split("__")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        if value is None:
            node.pop(key, None)
        else:
            node[key] = value
    return tree


@dataclass(frozen=True)
class Settings:
    """Makes quick configurations over the tiny model and the three sites."""

    model: Path
    data: Path

    def tree(self, **changes: Any) -> dict[str, Any]:
        """The settings as a tree; ``train__rounds=3`` changes ``train.rounds``, None drops it."""
        tree: dict[str, Any] = {
            "seed": 7,
            "data": {"file": str(self.data), "site": "site"},
            "model": {"name": str(self.model), "precision": "float32", "max_tokens": 32},
            "adapter": {"rank": 2, "layers": 1},
            "privacy": {"trust": "off", "delta": 1e-3},
            "train": {
                "rounds": 3,
                "warmup_rounds": 1,
                "local_steps": 2,
                "sampling_probability": 0.3,
                "learning_rate": 0.01,
            },
            "simulation": {"baselines": False},
        }
        return changed(tree, changes)

    def config(self, **changes: Any) -> Any:
        """The same as a RunConfig."""
        import tomli_w

        from hushtune.common.config_io import loads_config

        return loads_config(tomli_w.dumps(self.tree(**changes)))

    def file(self, folder: Path, name: str = "run.toml", **changes: Any) -> Path:
        """The same as a TOML file in ``folder``."""
        import tomli_w

        path = folder / name
        path.write_text(tomli_w.dumps(self.tree(**changes)), encoding="utf-8")
        return path


@pytest.fixture
def settings(tiny_bert: Path, three_sites: Path) -> Settings:
    """See ``Settings``; privacy is off unless a test turns it on."""
    return Settings(tiny_bert, three_sites)


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    status: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def hushtune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Calls the command line in this process: ``hushtune("simulate", "--out", folder)``."""
    from hushtune.simulations import cli

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["hushtune", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        status: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = 0 if stop.code is None else stop.code
        found = capsys.readouterr()
        assert isinstance(status, int)
        return Answer(status, found.out, found.err)

    return call
