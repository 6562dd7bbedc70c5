"""A run that was stopped goes on as if it had not been, and pays for no round twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from hushtune.client.app import app as client_app
from hushtune.client.site import ledger_path
from hushtune.common.errors import CheckpointError, ConfigError, OutputExistsError
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.run_context import run_config
from hushtune.common.tasks.workspace import resolve
from hushtune.server import checkpoint
from hushtune.server.app import app as server_app
from hushtune.simulations import run
from hushtune.simulations.engine import InProcessGrid
from hushtune.simulations.observer import Silent

SITES = ("east", "north", "south")


class StopAt(Silent):
    """Presses Ctrl-C when a round is over, before its checkpoint is written."""

    def __init__(self, number: int) -> None:
        self._number = number

    def round_done(self, row: Mapping[str, Any]) -> None:
        """See Observer."""
        if row["round"] == self._number:
            raise KeyboardInterrupt


class StopComparing(Silent):
    """Presses Ctrl-C when a baseline begins."""

    def __init__(self, place: int) -> None:
        self._place = place

    def comparing(self, name: str, done: int, total: int) -> None:
        """See Observer."""
        if done == self._place:
            raise KeyboardInterrupt


def rounds_told(out: Path) -> list[int]:
    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["round"] for line in text.splitlines()]


def reached(out: Path) -> int:
    return checkpoint.load(out / "checkpoint").round


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("stopped_after", [1, 2, 4])
def test_a_resumed_run_is_the_run_bit_for_bit(
    settings: Any, tmp_path: Path, stopped_after: int
) -> None:
    config = settings.config(train__rounds=4, train__warmup_rounds=2, aggregation__optimizer="adam")
    whole = run(config, tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(config, out, observer=StopAt(stopped_after))
    assert reached(out) == stopped_after - 1
    assert not (out / "summary.json").exists()
    summary = run(config, out, resume=True)
    assert summary["adapter_digest"] == whole["adapter_digest"]
    assert summary["value"] == whole["value"]
    assert rounds_told(out) == [1, 2, 3, 4]
    for name in ("adapter_model.safetensors", "head.safetensors"):
        assert (out / "adapter" / name).read_bytes() == (
            tmp_path / "whole" / "adapter" / name
        ).read_bytes()


def test_a_robust_run_that_averages_is_compared_saved_and_resumed(
    settings: Any, tmp_path: Path
) -> None:
    config = settings.config(
        train__rounds=4,
        train__warmup_rounds=1,
        aggregation__estimate="krum",
        aggregation__faulty_sites=0,
        aggregation__optimizer="yogi",
        aggregation__learning_rate=0.1,
        aggregation__average=0.8,
        simulation__baselines=True,
    )
    whole = run(config, tmp_path / "whole")  # baselines are of one site, where Krum has no choice
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(config, out, observer=StopAt(4))
    summary = run(config, out, resume=True)
    assert summary["adapter_digest"] == whole["adapter_digest"]
    kept = checkpoint.load(out / "checkpoint")
    assert kept.agg.averaged == 3
    assert kept.shown.digest() == summary["adapter_digest"] != kept.state.digest()
    before = tree(out)
    assert run(config, out, resume=True) == summary
    assert tree(out) == before


def test_a_run_can_be_stopped_again_and_again(settings: Any, tmp_path: Path) -> None:
    config = settings.config(train__rounds=4, train__warmup_rounds=1, simulation__sites_per_round=2)
    whole = run(config, tmp_path / "whole")
    for number in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "out", resume=number > 1, observer=StopAt(number))
    summary = run(config, tmp_path / "out", resume=True)
    assert summary["adapter_digest"] == whole["adapter_digest"]
    told = [(tmp_path / x / "metrics.jsonl").read_text().splitlines() for x in ("whole", "out")]
    asked = [[json.loads(line)["accepted"] for line in rows] for rows in told]
    assert asked[0] == asked[1]
    # The time of rounds before an interruption counts too.
    training = sum(json.loads(line)["seconds"]["training"] for line in told[1])
    assert summary["seconds"]["training"] == pytest.approx(training)
    assert summary["seconds"]["total"] > training


def test_no_round_is_charged_twice(settings: Any, tmp_path: Path) -> None:
    """Stopped between the sites' charges and the checkpoint: the kept answers are sent again."""
    config, out = settings.config(privacy__trust="site"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(config, out, observer=StopAt(2))
    assert reached(out) == 1
    before = {site: Ledger(ledger_path(out, site)).entries() for site in SITES}
    assert [len(entries) for entries in before.values()] == [2, 2, 2]
    summary = run(config, out, resume=True)
    for site in SITES:
        entries = Ledger(ledger_path(out, site)).entries()
        assert [entry.round for entry in entries] == [1, 2, 3]
        assert entries[:2] == before[site]
        assert summary["sites"][site]["epsilon"] <= config.privacy.epsilon
    privacy = json.loads((out / "privacy.json").read_text(encoding="utf-8"))
    steps = {row["steps"] for row in privacy["sites"].values()}
    assert steps == {config.train.rounds * config.train.local_steps}
    assert checkpoint.load(out / "checkpoint").charges.keys() == set(SITES)


def test_a_run_that_was_stopped_while_comparing_keeps_what_it_compared(
    settings: Any, tmp_path: Path
) -> None:
    config, out = settings.config(simulation__baselines=True), tmp_path / "out"
    whole = run(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, out, observer=StopComparing(3))
    kept = json.loads((out / "checkpoint" / "baselines.json").read_text(encoding="utf-8"))
    # A head is kept with its figures as that of the last layer.
    assert len([name for name in kept if not name.startswith("head_layer/")]) == 3
    summary = run(config, out, resume=True)
    assert summary["table"] == whole["table"]
    assert summary["baselines"] == whole["baselines"]


def test_resuming_a_finished_run_changes_nothing(settings: Any, tmp_path: Path) -> None:
    config, out = settings.config(privacy__trust="site"), tmp_path / "out"
    first = run(config, out)
    before = tree(out)
    told: list[str] = []

    class Listens(Silent):
        def nothing_left(self) -> None:
            """See Observer."""
            told.append("nothing left")

    again = run(config, out, resume=True, observer=Listens())
    assert again == first  # its seconds too
    assert told == ["nothing left"]
    assert rounds_told(out) == [1, 2, 3]
    assert tree(out) == before


def test_a_run_of_flower_s_app_gets_its_statement(settings: Any, tmp_path: Path) -> None:
    """``flwr run`` leaves adapter, ledgers and checkpoint; nothing is charged again for it."""
    config, out = resolve(settings.config(privacy__trust="site")), tmp_path / "out"
    context = run_config(config, out)
    grid = InProcessGrid(client_app, num_sites=3, run_config=context)
    nobody = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=context)
    server_app(grid, nobody)
    assert not (out / "privacy.json").exists()
    ledgers = tree(out / "ledger")
    summary = run(config, out, resume=True)
    assert tree(out / "ledger") == ledgers
    assert checkpoint.load(out / "checkpoint").state.digest() == summary["adapter_digest"]
    assert rounds_told(out) == [1, 2, 3]
    privacy = json.loads((out / "privacy.json").read_text(encoding="utf-8"))
    assert all(2.9 < site["epsilon"] <= 3.0 for site in privacy["sites"].values())
    assert (out / "privacy.html").is_file()


@pytest.mark.pictures
def test_what_a_finished_run_lost_is_written_again(settings: Any, tmp_path: Path) -> None:
    """Such as its pictures, or whatever it wrote before matplotlib was installed."""
    config, out = settings.config(privacy__trust="site"), tmp_path / "out"
    first = run(config, out)
    ledgers = tree(out / "ledger")
    (out / "curve.png").unlink()
    again = run(config, out, resume=True)
    assert (out / "curve.png").is_file()
    assert again["adapter_digest"] == first["adapter_digest"]
    assert again["sites"] == first["sites"]
    assert all(again["seconds"][key] >= spent for key, spent in first["seconds"].items())
    assert tree(out / "ledger") == ledgers


def test_another_configuration_cannot_go_on_with_a_run(settings: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(settings.config(), out, observer=StopAt(2))
    before = tree(out)
    for changes, named in (
        ({"seed": 8}, "seed"),
        ({"train__rounds": 5}, "train.rounds"),
        ({"privacy__trust": "site"}, "privacy.trust"),
    ):
        with pytest.raises(CheckpointError, match=named):
            run(settings.config(**changes), out, resume=True)
        assert tree(out) == before


def test_a_checkpoint_from_elsewhere_is_refused(settings: Any, tmp_path: Path) -> None:
    """Not only config.toml is compared: the checkpoint knows its own configuration."""
    out, other = tmp_path / "out", tmp_path / "other"
    for folder, seed in ((out, 7), (other, 8)):
        with pytest.raises(KeyboardInterrupt):
            run(settings.config(seed=seed), folder, observer=StopAt(2))
    source = other / "checkpoint" / checkpoint.FILE
    (out / "checkpoint" / checkpoint.FILE).write_bytes(source.read_bytes())
    with pytest.raises(CheckpointError, match="another configuration"):
        run(settings.config(), out, resume=True)


def test_there_must_be_something_to_resume(settings: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run to resume"):
        run(settings.config(), tmp_path / "out", resume=True)
    assert not (tmp_path / "out").exists()


def test_a_run_is_never_written_over_by_accident(settings: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(settings.config(), out)
    before = tree(out)
    for config in (settings.config(), settings.config(seed=8)):
        with pytest.raises(OutputExistsError) as caught:
            run(config, out)
        assert "--overwrite" in str(caught.value)
    assert tree(out) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_run_is_left_alone(
    settings: Any, tmp_path: Path, overwrite: bool
) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(OutputExistsError):
        run(settings.config(), out, overwrite=overwrite)
    assert tree(out) == {"chapter1.txt": b"years of work"}
    with pytest.raises(OutputExistsError):
        run(settings.config(), out / "chapter1.txt", overwrite=overwrite)
    assert tree(out) == {"chapter1.txt": b"years of work"}


def test_an_empty_folder_is_taken(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run(settings.config(), tmp_path / "out")["rounds"] == 3


def test_overwrite_replaces_a_run_whole(settings: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(settings.config(privacy__trust="site"), out)
    (out / "adapter" / "left-over.txt").write_text("of the run before", encoding="utf-8")
    forgotten: dict[str, int] = {}

    class Hears(Silent):
        def forgetting(self, charges: Mapping[str, int]) -> None:
            forgotten.update(charges)

    summary = run(settings.config(), out, overwrite=True, observer=Hears())
    assert forgotten == dict.fromkeys(SITES, 3)
    assert not (out / "adapter" / "left-over.txt").exists()
    assert summary["trust"] == "off"
    assert summary["adapter_digest"] == run(settings.config(), tmp_path / "b")["adapter_digest"]


def test_overwrite_never_removes_what_is_not_a_run_s(settings: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(settings.config(), out)
    (out / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputExistsError, match="thesis"):
        run(settings.config(), out, overwrite=True)
    assert (out / "thesis.txt").read_text(encoding="utf-8") == "mine"
    assert (out / "summary.json").is_file()


def test_overwrite_replaces_the_same_private_run(settings: Any, tmp_path: Path) -> None:
    """In one process as well, where the sites of the run before are still open."""
    config, out = settings.config(privacy__trust="site"), tmp_path / "out"
    run(config, out)
    summary = run(config, out, overwrite=True)
    assert summary["refusals"] == {}
    for site in SITES:
        assert len(Ledger(ledger_path(out, site)).entries()) == 3


def test_nothing_is_replaced_before_the_new_run_is_known_to_be_sound(
    settings: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(settings.config(), out)
    before = tree(out)
    bad = settings.config(adapter__targets=["attention.no_such_module"])
    with pytest.raises(Exception, match="no_such_module"):
        run(bad, out, overwrite=True)
    assert tree(out) == before


# A runner in the background ignores SIGINT, which its children inherit.
LISTENING = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from hushtune.simulations.cli import main; main()"
)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", LISTENING, "simulate", *map(str, arguments)]


@pytest.mark.slow
def test_a_real_ctrl_c_leaves_a_run_that_can_go_on(
    settings: Any, hushtune: Any, tmp_path: Path
) -> None:
    rounds, out = 20, tmp_path / "out"
    changes = {"train__rounds": rounds, "train__warmup_rounds": 2, "train__local_steps": 4}
    toml = settings.file(tmp_path, **changes)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "said.txt").open("w", encoding="utf-8") as said:
        process = subprocess.Popen(
            command("--config", toml, "--out", out),
            stdout=said,
            stderr=said,
            env=environment,
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if (out / "metrics.jsonl").is_file() and len(rounds_told(out)) >= 3:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        status = process.wait(timeout=60)
    text = (tmp_path / "said.txt").read_text(encoding="utf-8")
    assert status == 130, text
    assert "HT604" in text
    assert "--resume" in text
    assert "Traceback" not in text
    assert 2 <= reached(out) < rounds
    assert not (out / "summary.json").exists()
    # As it says: the same command with --resume; the folder alone is enough.
    again = hushtune("simulate", "--out", out, "--resume", "--json")
    assert again.status == 0, again.err
    summary = json.loads(again.out.splitlines()[-1])
    whole = run(settings.config(**changes), tmp_path / "whole")
    assert summary["adapter_digest"] == whole["adapter_digest"]
    assert rounds_told(out) == list(range(1, rounds + 1))


@pytest.mark.parametrize("trust", ["off", "site"])
def test_a_run_never_goes_on_with_other_rows(settings: Any, tmp_path: Path, trust: str) -> None:
    """One changed word would else begin a new budget, and the run would not be the same run."""
    path = tmp_path / "rows.csv"
    path.write_bytes(settings.data.read_bytes())
    config = settings.config(data__file=str(path), privacy__trust=trust)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(config, out, observer=StopAt(2))
    lines = path.read_text(encoding="utf-8").splitlines()
    changed = lines[1].replace(",", ",a word more ", 1)
    path.write_text("\n".join([lines[0], changed, *lines[2:]]) + "\n", encoding="utf-8")
    before = tree(out)
    with pytest.raises(CheckpointError, match="rows of site"):
        run(config, out, resume=True)
    assert tree(out) == before


def test_a_run_is_not_resumed_and_replaced_at_once(settings: Any, tmp_path: Path) -> None:
    run(settings.config(), tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(ConfigError, match="either resumed or replaced"):
        run(settings.config(), tmp_path / "out", resume=True, overwrite=True)
    assert tree(tmp_path / "out") == before
