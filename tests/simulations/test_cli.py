"""The command: what it prints, how fast it answers, and how it ends."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from hushtune.common import errors
from hushtune.common.config import DataConfig, RunConfig
from hushtune.common.config_io import dump_toml, load_config
from hushtune.common.presets import PRESETS
from hushtune.simulations import cli, run
from hushtune.simulations import engine as engines

DOCS = Path(__file__).resolve().parents[2] / "docs"
HEAVY = {"torch", "transformers", "flwr", "opacus", "peft", "matplotlib", "ray", "sklearn"}


def all_errors(root: type[errors.HushtuneError] = errors.HushtuneError) -> set[type]:
    return {root}.union(*(all_errors(child) for child in root.__subclasses__()))


# -------------------------------------------------------------------------------- speed ----


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["simulate", "--help"],
        ["plan", "--help"],
        ["plan", "--sites", "900", "--rounds", "1"],
        ["config", "new"],
        ["config", "show", "--preset", "demo"],
    ],
)
def test_what_needs_no_model_loads_none(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['hushtune', *{arguments!r}]\n"
        "from hushtune.simulations import cli\n"
        "try:\n"
        "    cli.main()\n"
        "finally:\n"
        f"    print('LOADED', sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "LOADED []"
    assert done.stdout


def test_help_loads_nothing_that_takes_seconds() -> None:
    code = (
        "import sys\n"
        "from hushtune.simulations import cli\n"
        "try:\n    cli.app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'flwr', 'sklearn', 'scipy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "simulate" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_it_tells_its_version(hushtune: Any) -> None:
    said = hushtune("--version").out
    assert said.startswith(f"hushtune {importlib.metadata.version('hushtune')}")
    assert len(said.splitlines()) == 1


def test_the_process_ends_without_a_look_for_garbage() -> None:
    code = (
        "import atexit, gc, sys\n"
        "from hushtune.simulations.cli import main\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 1000))\n"  # runs last
        "sys.argv = ['hushtune', '--version']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.endswith("True\n")


def test_help_names_every_command(hushtune: Any) -> None:
    said = hushtune("--help").out
    for command in ("simulate", "plan", "predict", "export", "doctor", "data", "config"):
        assert re.search(rf"\b{command}\b", said), command


def test_the_package_offers_run_and_presets_and_loads_nothing_before() -> None:
    code = (
        "import sys, hushtune.simulations as s\n"
        "from hushtune.simulations import presets\n"
        "assert 'demo' in presets.PRESETS\n"
        "assert 'torch' not in sys.modules\n"
        "sys.modules['hushtune.simulations.study'] = study = type(sys)('study')\n"
        "study.run = lambda: 7\n"  # what it loads takes seconds
        "from hushtune.simulations import run\n"
        "assert run() == 7\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert callable(run)
    assert not isinstance(run, ModuleType)


def test_the_installed_command_is_this_one() -> None:
    command = Path(sys.executable).parent / "hushtune"
    done = subprocess.run([command, "no-such-command"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no-such-command" in done.stderr
    assert "Traceback" not in done.stderr


# ----------------------------------------------------------------------------- simulate ----


def test_the_last_line_with_json_is_the_summary(
    settings: Any, hushtune: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    answer = hushtune("simulate", "--config", settings.file(tmp_path), "--out", out, "--json")
    assert answer.status == 0, answer.err
    assert len(answer.out.splitlines()) == 1  # all else goes to standard error
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert json.loads(answer.out) == summary
    for wanted in ("round   1", "round   3", "loss", "accuracy", str(out)):
        assert wanted in answer.err, wanted


def test_without_json_a_person_reads_the_result(
    settings: Any, hushtune: Any, tmp_path: Path
) -> None:
    out, toml = tmp_path / "out", settings.file(tmp_path, privacy__trust="site")
    answer = hushtune("simulate", "--config", toml, "--out", out)
    assert answer.status == 0, answer.err
    assert not answer.out.splitlines()[-1].startswith("{")
    for wanted in ("east", "north", "south", "epsilon", "0.001", "NO PRIVACY"):
        assert (wanted in answer.out) == (wanted != "NO PRIVACY"), wanted
    lines = [line.rsplit(f"{out}/", 1) for line in answer.out.splitlines()]
    listed = [line[1] for line in lines if len(line) == 2]
    written = [f"{path.name}/" if path.is_dir() else path.name for path in out.iterdir()]
    assert sorted(listed) == sorted(written)
    assert {"adapter/", "privacy.html", "curve.png", "sites.png", "ledger/"} <= set(listed)


def test_set_changes_one_setting(settings: Any, hushtune: Any, tmp_path: Path) -> None:
    toml = settings.file(tmp_path)
    answer = hushtune(
        *("simulate", "--config", toml, "--out", tmp_path / "out", "--json"),
        *("--set", "train.rounds=1", "--set", "train.warmup_rounds=0", "--set", "seed=11"),
    )
    assert answer.status == 0, answer.err
    summary = json.loads(answer.out)
    assert (summary["rounds"], summary["seed"]) == (1, 11)
    stored = load_config(tmp_path / "out" / "config.toml")
    assert (stored.train.rounds, stored.seed) == (1, 11)


def test_the_engine_may_be_named_for_itself(settings: Any, hushtune: Any, tmp_path: Path) -> None:
    toml = settings.file(tmp_path)
    command = ("simulate", "--config", toml, "--dry-run", "--set", "simulation.engine=flower")
    assert hushtune(*command, "--engine", "inprocess").status == 0
    answer = hushtune(*command, "--engine", "slow")  # it is what counts, so this is refused
    assert answer.status == 2
    assert "simulation.engine" in answer.err
    assert "'inprocess' or 'flower'" in answer.err


@pytest.mark.parametrize("trust", ["site", "off"])
def test_a_dry_run_says_what_would_happen_and_writes_nothing(
    settings: Any, hushtune: Any, tmp_path: Path, trust: str
) -> None:
    toml, out = settings.file(tmp_path, privacy__trust=trust), tmp_path / "out"
    before = sorted(tmp_path.rglob("*"))
    answer = hushtune("simulate", "--config", toml, "--out", out, "--dry-run", "--json")
    assert answer.status == 0, answer.err
    assert sorted(tmp_path.rglob("*")) == before
    figures = json.loads(answer.out.splitlines()[-1])
    assert figures["sites"].keys() == {"east", "north", "south"}
    assert [row["site"] for row in figures["who_has_what"]] == ["east", "north", "south"]
    assert all(row["train"] + row["test"] > 0 for row in figures["who_has_what"])
    assert "Who has what" in answer.err
    for key in ("bytes_total", "memory_megabytes", "minutes", "rounds"):
        assert figures[key] > 0, key
    for site in figures["sites"].values():
        assert site["steps"] == 6
        assert (site["epsilon"] is None) == (trust == "off")
        assert trust == "off" or 0 < site["epsilon"] <= 3.0
    assert ("NO PRIVACY" in answer.err) == (trust == "off")


@pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8"])
def test_a_dry_run_tells_the_bytes_that_a_run_sends(
    settings: Any, hushtune: Any, tmp_path: Path, encoding: str
) -> None:
    # Of rank 32, so that the numbers weigh more than what is said beside them.
    changes = {"aggregation__encoding": encoding, "adapter__rank": 32}
    toml, out = settings.file(tmp_path, **changes), tmp_path / "out"
    answer = hushtune("simulate", "--config", toml, "--dry-run", "--json")
    figures = json.loads(answer.out.splitlines()[-1])
    told, warmup = figures["bytes_total"], figures["warmup_rounds"]
    adapted = figures["rounds"] - warmup
    assert 0 < warmup < figures["rounds"]
    assert told == (
        warmup * figures["bytes_per_warmup_round"] + adapted * figures["bytes_per_round"]
    )
    run(settings.config(**changes), out)
    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    sent = sum(row["bytes_down"] + row["bytes_up"] for row in rows)
    messages = 2 * 3 * 3  # to and from three sites in three rounds, 1 KiB of text at most each
    assert sent <= told <= sent + 1024 * messages


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train__local_steps": 5, "data__site": None, "data__sites": 8, "data__partition": "iid"},
        {"privacy__unit": "client", "privacy__epsilon": 50.0, "privacy__delta": 0.05},
    ],
    ids=["three sites", "eight sites, five steps", "clients"],
)
def test_a_dry_run_tells_the_bytes_and_exchanges_of_secure_sums(
    settings: Any, hushtune: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    changes = {"privacy__trust": "distributed", "train__rounds": 2, **changes}
    toml = settings.file(tmp_path, **changes)
    answer = hushtune("simulate", "--config", toml, "--dry-run", "--json")
    figures = json.loads(answer.out.splitlines()[-1])
    assert "exchanges per step" in answer.err
    run(settings.config(**changes), tmp_path / "out")
    text = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    keys = ("bytes_per_warmup_round", "bytes_per_round")
    for row, told in zip(rows, (figures[key] for key in keys), strict=True):
        sent = row["bytes_down"] + row["bytes_up"]
        assert sent <= told <= 1.3 * sent
        assert row["exchanges_per_step"] == figures["exchanges_per_step"]
    assert rows[1]["bytes_per_step"] <= figures["bytes_per_step"] <= 1.3 * rows[1]["bytes_per_step"]
    assert figures["bytes_total"] == sum(figures[key] for key in keys)


@pytest.mark.parametrize("arguments", [["--dry-run"], []])
def test_an_epsilon_that_protects_nothing_is_said_to_in_one_line(
    settings: Any, hushtune: Any, tmp_path: Path, arguments: list[str]
) -> None:
    changes = {"privacy__trust": "site", "train__rounds": 1, "train__warmup_rounds": 0}
    for epsilon in (8.0, 80.0):
        toml = settings.file(tmp_path, **changes, privacy__epsilon=epsilon)
        out = ("--out", tmp_path / f"out {epsilon}") if not arguments else ()
        answer = hushtune("simulate", "--config", toml, *out, *arguments)
        assert answer.status == 0, answer.err
        said = " ".join(answer.out.split())
        assert said.count("protects next to nothing") == (epsilon > 10)


@pytest.mark.parametrize("arguments", [["--dry-run", "--json"], []])
def test_an_estimate_that_guards_against_nobody_says_so_before_a_run(
    settings: Any, hushtune: Any, tmp_path: Path, arguments: list[str]
) -> None:
    changes = {"train__rounds": 1, "train__warmup_rounds": 0, "simulation__baselines": False}
    toml = settings.file(tmp_path, **changes, aggregation__estimate="krum")
    out = ("--out", tmp_path / "out") if not arguments else ()
    answer = hushtune("simulate", "--config", toml, *out, *arguments)
    assert answer.status == 0, answer.err
    said = " ".join((answer.out + answer.err).split())
    told = "aggregation.estimate = 'krum' guards against nobody here: of 3 updates a round"
    assert told in said
    assert "do: have 5 sites or more in a round" in said
    if arguments:
        (warning,) = json.loads(answer.out.splitlines()[-1])["warnings"]
        assert told in warning["message"]


@pytest.mark.parametrize("engine", ["inprocess", "flower"])
@pytest.mark.parametrize("together", [1, 3])
def test_sites_at_once_on_flower_s_engine_are_said_to_be_trained_one_by_one(
    settings: Any,
    hushtune: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    together: int,
    engine: str,
) -> None:
    monkeypatch.setattr(engines, "run_on_flower", engines.run_in_process)  # without Ray
    toml = settings.file(
        tmp_path, train__rounds=1, simulation__baselines=False, speed__together=together
    )
    told = f"speed.together = {together} does nothing on Flower's engine"
    for arguments in (["--dry-run"], ["--out", tmp_path / "out"]):
        answer = hushtune("simulate", "--config", toml, "--engine", engine, *arguments)
        assert answer.status == 0, answer.err
        said = " ".join((answer.out + answer.err).split())
        assert (told in said) == ((engine, together) == ("flower", 3))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"adapter__dropout": 0.1}, "with dropout"),
        ({"augment__word_dropout": 0.1}, "where data are augmented"),
        ({"privacy__trust": "distributed"}, "where each step is one secure sum"),
        ({}, None),
    ],
)
def test_what_trains_sites_one_by_one_is_said_where_they_are_asked_for_at_once(
    settings: Any, hushtune: Any, tmp_path: Path, changed: dict[str, Any], why: str | None
) -> None:
    toml = settings.file(tmp_path, simulation__baselines=False, speed__together=3, **changed)
    answer = hushtune("simulate", "--config", toml, "--dry-run")
    assert answer.status == 0, answer.err
    said = " ".join((answer.out + answer.err).split())
    told = "speed.together = 3 does nothing"
    assert (f"{told} {why}" in said) if why else (told not in said)


def test_a_run_needs_a_folder(settings: Any, hushtune: Any, tmp_path: Path) -> None:
    answer = hushtune("simulate", "--config", settings.file(tmp_path))
    assert answer.status == 2
    assert "--out" in answer.err


def test_a_preset_and_a_file_exclude_each_other(
    settings: Any, hushtune: Any, tmp_path: Path
) -> None:
    toml = settings.file(tmp_path)
    answer = hushtune("simulate", "--preset", "tiny", "--config", toml, "--out", tmp_path / "out")
    assert answer.status == 2
    assert answer.err.startswith("HT100 ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["--preset", "demmo"], "HT102", "write demo"),
        (["--preset", "tiny", "--set", "train.round=3"], "HT101", "train.rounds"),
        (["--preset", "tiny", "--set", "train.rounds"], "HT100", "section.key=value"),
        (["--preset", "tiny", "--set", "privacy.epsilon=-1"], "HT100", "privacy.epsilon"),
        (["--config", "no/such/file.toml"], "HT201", "no/such/file.toml"),
        ([], "HT100", "data"),
    ],
)
def test_wrong_settings_on_the_command_line(
    hushtune: Any, tmp_path: Path, arguments: list[str], code: str, named: str
) -> None:
    answer = hushtune("simulate", *arguments, "--out", tmp_path / "out")
    assert answer.status == 2
    assert answer.err.startswith(f"{code} "), answer.err
    assert named in answer.err
    assert "Traceback" not in answer.err
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the other commands ----


def test_predict(settings: Any, hushtune: Any, tmp_path: Path) -> None:
    run(settings.config(), tmp_path / "out")
    texts = ["a lovely song", "this was [bold]awful[/bold] again"]
    answer = hushtune("predict", tmp_path / "out", *texts, "--json")
    assert answer.status == 0, answer.err
    found = json.loads(answer.out.splitlines()[-1])
    assert [row["text"] for row in found] == texts
    for row in found:
        assert row["probabilities"].keys() == {"bad", "good"}
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)
    shown = hushtune("predict", tmp_path / "out" / "adapter", *texts)
    assert texts[1] in shown.out  # as it was given, not as markup
    assert found[0]["label"] in shown.out


def test_predict_where_no_run_is(hushtune: Any, tmp_path: Path) -> None:
    answer = hushtune("predict", tmp_path, "a text")
    assert answer.status == 2
    assert answer.err.startswith("HT201 ")
    assert str(tmp_path) in answer.err


def test_export_says_where_it_wrote(settings: Any, hushtune: Any, tmp_path: Path) -> None:
    run(settings.config(), tmp_path / "out")
    to = tmp_path / "copy"
    answer = hushtune("export", tmp_path / "out", "--to", to)
    assert answer.status == 0, answer.err
    assert str(to) in answer.out.replace("\n", "")
    refusal = hushtune("export", tmp_path / "out", "--to", to, "--merged")
    assert refusal.status == 2
    assert refusal.err.startswith("HT601 ")


def test_doctor(hushtune: Any) -> None:
    answer = hushtune("doctor", "--json")
    assert answer.status == 0, answer.out + answer.err
    report = json.loads(answer.out.splitlines()[-1])
    assert report["ok"] is True
    checks = {check["what"]: check for check in report["checks"]}
    for what in ("Python", "torch", "flwr", "accelerator", "assets", "matplotlib"):
        assert checks[what]["found"], what
    assert all(check["mend"] for check in report["checks"] if not check["ok"])


def test_doctor_names_what_is_missing_and_the_remedy(
    hushtune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import PackageNotFoundError

    from hushtune.common import packages

    real = packages.version

    def without(name: str) -> str:
        if name in ("opacus", "matplotlib"):
            raise PackageNotFoundError(name)
        return "1.5.4" if name == "peft" else real(name)

    monkeypatch.setattr(packages, "version", without)
    answer = hushtune("doctor", "--json")
    assert answer.status != 0
    report = json.loads(answer.out.splitlines()[-1])
    checks = {check["what"]: check for check in report["checks"]}
    assert report["ok"] is False
    assert (checks["opacus"]["ok"], checks["opacus"]["optional"]) == (False, False)
    assert "pip install" in checks["opacus"]["mend"]
    assert (checks["peft"]["ok"], checks["peft"]["found"][:13]) == (False, "1.5.4, where ")
    assert checks["peft"]["mend"].startswith("pip install 'peft<0.22,>=0.21")
    assert checks["matplotlib"]["optional"] is True
    assert checks["matplotlib"]["mend"] == "pip install matplotlib"
    assert checks["ray"]["ok"] or "flwr[simulation]" in checks["ray"]["mend"]


def test_config_new_is_a_file_that_can_be_read(hushtune: Any, tmp_path: Path) -> None:
    text = hushtune("config", "new").out
    assert text.count("#") > 20
    tree = tomllib.loads(text)
    assert {"data", "privacy", "train"} <= tree.keys()
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    refusal = hushtune("config", "show", "--config", path)  # nobody can guess the data
    assert refusal.err.startswith("HT100 ")
    assert "exactly one source" in refusal.err
    answer = hushtune("config", "show", "--config", path, "--set", "data.source=demo")
    assert answer.status == 0, answer.err
    shown = tmp_path / "shown.toml"
    shown.write_text(answer.out, encoding="utf-8")
    assert load_config(shown) == RunConfig(data=DataConfig(source="demo"))


def test_config_schema_knows_every_section(hushtune: Any) -> None:
    schema = json.loads(hushtune("config", "schema").out)
    sections = {"data", "model", "adapter", "privacy", "train", "aggregation", "simulation", "seed"}
    assert sections <= schema["properties"].keys()
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_config_show_is_complete_and_means_the_same(
    hushtune: Any, tmp_path: Path, preset: str
) -> None:
    answer = hushtune("config", "show", "--preset", preset, "--set", "privacy.epsilon=1.5")
    path = tmp_path / "run.toml"
    path.write_text(answer.out, encoding="utf-8")
    config = load_config(path)
    assert config.privacy.epsilon == 1.5
    wanted = load_config(preset=preset, presets=PRESETS, overrides=["privacy.epsilon=1.5"])
    assert config == wanted
    assert dump_toml(config) == answer.out


def test_data_preview_shows_rows_and_tokens(
    hushtune: Any, three_sites: Path, tiny_bert: Path
) -> None:
    options = ("--site", "site", "--model", tiny_bert, "--rows", 2)
    answer = hushtune("data", "preview", three_sites, *options, "--json")
    assert answer.status == 0, answer.err
    rows = json.loads(answer.out.splitlines()[-1])["rows"]
    lines = three_sites.read_text(encoding="utf-8").splitlines()[1:3]
    assert [",".join([r["site"], r["text"], r["label"]]) for r in rows] == lines
    for row in rows:
        assert row["tokens"][0] == "[CLS]"
        assert set(row["text"].split()) <= set(row["tokens"])
    shown = hushtune("data", "preview", three_sites, *options)
    assert rows[0]["text"] in shown.out
    assert "[CLS]" in shown.out  # not taken for markup


def test_data_preview_says_which_rows_will_be_left_out(
    hushtune: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n,good\na fine day,\n", encoding="utf-8")
    shown = hushtune("data", "preview", file, "--model", tiny_bert)
    assert shown.status == 0, shown.err
    assert "left out: no text" in shown.out
    assert "left out: no label" in shown.out
    assert "None" not in shown.out


def test_data_preview_of_a_wrong_column(hushtune: Any, three_sites: Path, tiny_bert: Path) -> None:
    answer = hushtune("data", "preview", three_sites, "--text", "txt", "--model", tiny_bert)
    assert answer.status == 2
    assert answer.err.startswith("HT203 ")
    assert "'txt'" in answer.err
    assert "'text'" in answer.err


def test_a_preview_names_its_own_options_and_no_settings(
    hushtune: Any, three_sites: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    numbers = tmp_path / "rows.jsonl"
    numbers.write_text('{"text": 3.5, "label": 1}\n', encoding="utf-8")
    sheet = tmp_path / "rows.xlsx"
    sheet.write_bytes(b"PK")
    model = ("--model", tiny_bert)
    for arguments, wanted in (
        ((three_sites, "--label", "lab", *model), "set --label to a column"),
        ((three_sites, "--site", "hospital", *model), "set --site to a column"),
        ((numbers, *model), "set --text to the column with the sentences"),
        ((sheet, *model), "save the sheet as CSV"),
        ((three_sites, "--model", "someone/something"), "set --model to a folder"),
    ):
        answer = hushtune("data", "preview", *arguments)
        assert answer.status == 2
        assert wanted in answer.err
        assert "data." not in answer.err.split("more:")[0]
        assert "model.name" not in answer.err


# ------------------------------------------------------------------------------- errors ----


def test_every_error_has_a_code_of_its_own_and_a_page() -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    known = [kind for kind in all_errors() if kind.__module__.startswith("hushtune.")]
    # One that a module keeps to itself is shown as the error that it is a case of.
    mine = [k for k in known if "code" in vars(k) or k.__module__ == errors.__name__]
    codes = [kind.code for kind in mine]
    assert len(mine) > 25
    assert len(set(codes)) == len(codes)
    for kind in mine:
        section = re.search(
            rf"^## {kind.code} {kind.__name__}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL
        )
        assert section is not None, kind
        assert len(section[1].strip()) > 30, kind


def test_help_says_what_arguments_are() -> None:
    """As it did before a library below put its own help, which is none, in the place of ours."""

    def arguments(command: Any, path: str) -> Iterator[tuple[str, str | None]]:
        for name, below in getattr(command, "commands", {}).items():
            yield from arguments(below, f"{path} {name}")
        for each in command.params:
            if each.param_type_name == "argument":
                yield f"{path} {each.name}", each.help

    found = dict(arguments(typer.main.get_command(cli.app), "hushtune"))
    assert len(found) > 12
    assert [name for name, told in found.items() if not told] == []


def test_an_error_says_where_to_read_more(hushtune: Any, tmp_path: Path) -> None:
    said = hushtune("predict", tmp_path, "a text").err
    assert "docs/errors.md" in said


def test_no_telemetry_is_left_on(hushtune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command sets holds for all that it starts."""
    switches = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    switches["HF_HUB_DISABLE_TELEMETRY"] = "1"
    for name in switches:
        monkeypatch.delenv(name, raising=False)
    hushtune("config", "new")
    assert {name: os.environ.get(name) for name in switches} == switches


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sweep", "none.toml", "--out", "runs"], "none.toml"),
        (["sweep", "study.toml", "--out", "runs", "--jobs", "0"], "--jobs"),
        (["sweep", "good.toml"], "--out"),
        (["sweep", "study.toml", "--out", "runs"], "aggregation.rule"),
        (["tune", "--space", "s", "--trials", "3", "--choice", "mine"], "--choice mine"),
        (["tune", "--space", "s", "--trials", "3", "--choice", "public"], "--public"),
        (["tune", "--space", "s", "--trials", "3", "--choice", "charged"], "--out"),
        (["tune", "--space", "s", "--trials", "3", "--choice", "charged", "--dry-run"], "s"),
        (["audit", "none"], "config.toml"),
        (["audit", "--preset", "tiny", "--plant", "noise"], "half-noise"),
        (["report", "none"], "results.jsonl"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_refused_before_torch_is_loaded(
    arguments: list[str], told: str, tmp_path: Path
) -> None:
    """An answer that takes twenty seconds is no answer to a typing error."""
    study = 'preset = "tiny"\n[grid]\naggregation.rul = ["ffa"]\n'
    (tmp_path / "study.toml").write_text(study, encoding="utf-8")
    (tmp_path / "good.toml").write_text(study.replace(".rul ", ".rule "), encoding="utf-8")
    code = (
        "import sys\n"
        "from hushtune.simulations.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print('loaded', 'torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode not in (0, 1), done.stderr
    assert told in done.stdout + done.stderr
    assert "loaded False" in done.stderr
