"""One suite for every engine: the same messages, the same errors, the same adapter."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from safetensors.torch import load_file

from hushtune.client.site import ledger_path
from hushtune.common.errors import LedgerError, QuorumError
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.roll_call_messages import encode_hello
from hushtune.simulations import engine, run, study
from hushtune.simulations.observer import Silent

ENGINES = ["inprocess", pytest.param("flower", marks=pytest.mark.slow)]
START = {"inprocess": engine.run_in_process, "flower": engine.run_on_flower}
NUM_SITES, BROKEN, SECRET = 3, 1, "the text of a row"


def echo_app() -> ClientApp:
    """Answers with what it was sent and what it knows; one node fails at training.

    Made here and not at the module's level, so that Ray carries the functions by value.
    """
    app = ClientApp()
    broken, secret = BROKEN, SECRET

    @app.query()
    def query(message: Message, context: Context) -> Message:
        from flwr.app import ConfigRecord, Message, RecordDict

        known = {
            "place": context.node_config["partition-id"],
            "num": context.node_config["num-partitions"],
            "node": context.node_id,
            "addressee": message.metadata.dst_node_id,
            "toml": str(context.run_config.get("toml")),
            "sent": str(message.content["question"]["text"]),
            "group": message.metadata.group_id,
            "type": message.metadata.message_type,
        }
        return Message(RecordDict({"answer": ConfigRecord(known)}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        from flwr.app import Message

        if context.node_config["partition-id"] == broken:
            raise ValueError(secret)
        return Message(message.content, reply_to=message)

    return app


@dataclass
class Seen:
    """What a server got back from the nodes of one engine."""

    nodes: list[int]
    asked: list[Message]
    answers: list[Message]
    trained: list[Message]


def ask(grid: Grid, nodes: Sequence[int], kind: str) -> tuple[list[Message], list[Message]]:
    content = {n: RecordDict({"question": ConfigRecord({"text": f"to {n}"})}) for n in nodes}
    asked = [Message(content[n], dst_node_id=n, message_type=kind, group_id="7") for n in nodes]
    return asked, list(grid.send_and_receive(asked, timeout=120))


def all_nodes(grid: Grid) -> list[int]:
    """The nodes, once they are there: an engine may take its time."""
    deadline = time.monotonic() + 60
    while len(nodes := sorted(grid.get_node_ids())) < NUM_SITES and time.monotonic() < deadline:
        time.sleep(0.2)
    return nodes


@pytest.fixture(scope="module", params=ENGINES)
def seen(request: pytest.FixtureRequest) -> Seen:
    """The exchange, once for each engine."""
    found: list[Seen] = []

    def serve(grid: Grid) -> None:
        nodes = all_nodes(grid)
        asked, answers = ask(grid, nodes, "query")
        found.append(Seen(nodes, asked, answers, ask(grid, nodes, "train")[1]))

    start: Callable[..., None] = START[request.param]
    start(serve, echo_app(), num_sites=NUM_SITES, run_config={"toml": "seed = 3"})
    return found[0]


def test_there_is_a_node_for_each_site(seen: Seen) -> None:
    assert len(set(seen.nodes)) == NUM_SITES


def test_every_node_answers_its_own_message(seen: Seen) -> None:
    assert sorted(reply.metadata.src_node_id for reply in seen.answers) == seen.nodes
    known = {r.metadata.src_node_id: dict(r.content["answer"]) for r in seen.answers}
    assert sorted(row["place"] for row in known.values()) == list(range(NUM_SITES))
    for node, row in known.items():
        assert row["node"] == row["addressee"] == node
        assert row["num"] == NUM_SITES
        assert row["sent"] == f"to {node}"
        assert (row["group"], row["type"]) == ("7", "query")


def test_replies_are_flower_messages_that_name_what_they_answer(seen: Seen) -> None:
    assert all(
        type(reply) is type(asked) for reply, asked in zip(seen.answers, seen.asked, strict=True)
    )
    wanted = {message.metadata.message_id for message in seen.asked}
    assert "" not in wanted
    assert {reply.metadata.reply_to_message_id for reply in seen.answers} == wanted


def test_the_run_configuration_reaches_every_node(seen: Seen) -> None:
    assert {str(reply.content["answer"]["toml"]) for reply in seen.answers} == {"seed = 3"}


def test_a_failing_node_gives_an_error_reply_and_the_others_answer(seen: Seen) -> None:
    assert len(seen.trained) == NUM_SITES
    failed = [reply for reply in seen.trained if reply.has_error()]
    assert len(failed) == 1
    place = {r.metadata.src_node_id: r.content["answer"]["place"] for r in seen.answers}
    assert place[failed[0].metadata.src_node_id] == BROKEN
    assert all(reply.has_content() for reply in seen.trained if not reply.has_error())


def test_an_error_in_process_says_its_kind_and_nothing_of_its_text() -> None:
    found: list[Message] = []

    def serve(grid: Grid) -> None:
        found.extend(ask(grid, sorted(grid.get_node_ids()), "train")[1])

    engine.run_in_process(serve, echo_app(), num_sites=NUM_SITES, run_config={})
    reasons = [reply.error.reason for reply in found if reply.has_error()]
    assert reasons == ["ValueError"]


@pytest.fixture(scope="module")
def kept_actors() -> Iterator[None]:
    """Runs on Ray share one pool of actors, each of which takes seconds to load what trains.

    That Flower's own starts and ends are sound is seen by ``seen``, and that new actors train alike
    by ``test_flower_app.py``.
    """
    from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend

    build, terminate = RayBackend.build, RayBackend.terminate
    first: list[RayBackend] = []

    def build_once(self: RayBackend, app_fn: Callable[[], ClientApp]) -> None:
        if not first:
            build(self, app_fn)
            first.append(self)
        self.pool, self.app_fn = first[0].pool, app_fn

    def terminate_later(self: RayBackend) -> None:
        """Others may still want its actors."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RayBackend, "build", build_once)
        patch.setattr(RayBackend, "terminate", terminate_later)
        yield
    for backend in first:
        terminate(backend)


def half_broken_app() -> ClientApp:
    """The real app, but one site fails at training."""
    app = ClientApp()
    broken, secret = BROKEN, SECRET

    @app.query()
    def query(message: Message, context: Context) -> Message:
        from hushtune.client.app import app as real

        return real(message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        from hushtune.client.app import app as real

        if context.node_config["partition-id"] == broken:
            raise ValueError(secret)
        return real(message, context)

    return app


@pytest.mark.usefixtures("kept_actors")
@pytest.mark.parametrize("name", ENGINES)
def test_a_run_goes_on_without_a_failing_site_and_says_so(
    name: str, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "client_app", half_broken_app())
    summary = run(settings.config(simulation__engine=name), tmp_path / "out")
    text = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["accepted"] for row in rows] == [["east", "south"]] * 3
    assert all(set(row["rejected"]) == {"north"} for row in rows)
    assert all(row["rejected"]["north"].startswith("failed: ") for row in rows)
    assert summary["rounds"] == 3


@pytest.mark.usefixtures("kept_actors")
@pytest.mark.parametrize("name", ENGINES)
def test_a_site_that_cannot_open_says_why_and_the_rest_go_on(
    name: str, settings: Any, tmp_path: Path
) -> None:
    """A ledger that others can read: its site stays out, and the server learns no path."""
    config = settings.config(privacy__trust="site", simulation__engine=name, train__rounds=1)
    out = tmp_path / "out"

    class Opened(Silent):
        def started(self, rounds: int, done: int) -> None:
            ledger = Ledger(ledger_path(out, "north"))
            ledger.path.chmod(0o644)

    with pytest.raises(LedgerError, match="chmod 600"):  # no statement without the ledger
        run(config, out, observer=Opened())
    row = json.loads((out / "metrics.jsonl").read_text(encoding="utf-8"))
    assert row["accepted"] == ["east", "south"]
    said = row["rejected"]["north"]
    assert "HT402 the privacy ledger can be read by others" in said
    assert str(out) not in said
    ledger_path(out, "north").chmod(0o600)
    assert run(config, out, resume=True)["sites"]["north"]["epsilon"] == 0


def test_a_failing_site_is_fatal_below_the_quorum(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "client_app", half_broken_app())
    with pytest.raises(QuorumError, match=r"north: failed: ValueError") as caught:
        run(settings.config(simulation__quorum=3), tmp_path / "out")
    assert SECRET not in str(caught.value)
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("kept_actors")
@pytest.mark.parametrize("head", ["mean", "own"])
def test_engines_give_the_same_adapter(settings: Any, tmp_path: Path, head: str) -> None:
    """One seed, privacy off: what is trained depends on nothing that an engine decides."""
    here = run(settings.config(model__head=head), tmp_path / "a")
    there = run(settings.config(model__head=head, simulation__engine="flower"), tmp_path / "b")
    same_tensors(tmp_path / "a" / "adapter", tmp_path / "b" / "adapter")
    assert here["value"] == there["value"]


RULES_APART: dict[str, dict[str, Any]] = {
    "fedex": {"aggregation__rule": "fedex"},
    "flora of mixed ranks": {
        "aggregation__rule": "flora",
        "adapter__ranks": {"east": 2, "north": 4, "south": 8},
    },
    "fedsa": {"aggregation__rule": "fedsa"},
    "fedsgd": {"aggregation__rule": "fedsgd"},
    "ditto": {"aggregation__rule": "fedit", "personal__method": "ditto"},
}


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.usefixtures("kept_actors")
@pytest.mark.parametrize("name", RULES_APART)
def test_engines_agree_under_rules_that_keep_or_add_something(
    name: str, settings: Any, tmp_path: Path
) -> None:
    """What a site keeps lies in a file, whichever of Ray's actors trains its next round."""
    changes = {"train__rounds": 4, "train__warmup_rounds": 1, **RULES_APART[name]}
    here = run(settings.config(**changes), tmp_path / "a")
    there = run(settings.config(**changes, simulation__engine="flower"), tmp_path / "b")
    assert (
        (here["refusals"], here["rejected"]) == (there["refusals"], there["rejected"]) == ({}, {})
    )
    same_tensors(tmp_path / "a" / "adapter", tmp_path / "b" / "adapter")
    own = RULES_APART[name]["aggregation__rule"] == "fedsa" or name == "ditto"
    assert (tmp_path / "a" / "own").exists() == own
    if own:
        same_tensors(tmp_path / "a" / "own", tmp_path / "b" / "own")
    assert here["value"] == there["value"]
    assert here["personal"] == there["personal"]


def same_tensors(here: Path, there: Path) -> None:
    names = sorted(path.name for path in here.glob("*.safetensors"))
    assert names == sorted(path.name for path in there.glob("*.safetensors"))
    moved = 0
    for name in names:
        left, right = load_file(here / name), load_file(there / name)
        assert left.keys() == right.keys()
        for key, tensor in left.items():
            assert (tensor - right[key]).abs().max() <= 1e-6, key
            moved += bool(tensor.any())
    assert moved > 2  # not two empty adapters


@pytest.mark.slow
@pytest.mark.usefixtures("kept_actors")
@pytest.mark.parametrize("kind", ["label_flip", "collude"])
def test_the_same_sites_attack_in_the_same_way_on_both_engines(
    kind: str, settings: Any, tmp_path: Path
) -> None:
    """One attack on the data and one on the update; ``collude`` needs to know the seed."""
    honest = run(settings.config(), tmp_path / "honest")
    changes = {"simulation__attack": kind}
    here = run(settings.config(**changes), tmp_path / "a")
    there = run(settings.config(**changes, simulation__engine="flower"), tmp_path / "b")
    assert here["attack"] == there["attack"]
    assert here["adapter_digest"] != honest["adapter_digest"]
    for path in sorted((tmp_path / "a" / "adapter").glob("*.safetensors")):
        left, right = load_file(path), load_file(tmp_path / "b" / "adapter" / path.name)
        for key, tensor in left.items():
            assert (tensor - right[key]).abs().max() <= 1e-6, key


@pytest.mark.slow
@pytest.mark.usefixtures("kept_actors")
def test_secure_sums_over_flower_s_own_simulation(settings: Any, tmp_path: Path) -> None:
    """A site's session outlives its messages, whichever actor gets them, and masks come off: of a
    sum that kept one, a step of plain SGD would be as long as the ring is wide."""
    changes = {
        "privacy__trust": "distributed",
        "train__rounds": 2,
        "train__optimizer": "sgd",
        "train__learning_rate": 0.1,
        "train__warmup_learning_rate": 0.1,
    }
    summary = run(settings.config(**changes, simulation__engine="flower"), tmp_path)
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [(row["accepted"], row["exchanges"]) for row in rows] == [
        (["east", "north", "south"], 7),
        (["east", "north", "south"], 7),
    ]
    assert all(0 < row["update_norm"] < 5 for row in rows)
    for site, row in summary["sites"].items():
        charged = Ledger(ledger_path(tmp_path, site)).entries()
        assert [(entry.round, entry.event.steps) for entry in charged] == [
            (number, 1) for number in range(1, 5)
        ]
        assert 2.9 < row["epsilon"] <= 3.0


def test_flower_still_keeps_the_task_identity_that_the_engine_sets() -> None:
    """The in-process grid sets flwr.supercore.task_identity.TaskIdentity, an internal of Flower's:
    without it no message can be made; with these three names it can."""
    code = """
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
def make():
    return Message(RecordDict(), dst_node_id=1, message_type="train")
try:
    make()
    print("made without an identity")
except RuntimeError as error:
    print("refused", "TaskIdentity" in str(error))
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 5, 6, 7
print(make().metadata.run_id, make().metadata.src_node_id)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["refused True", "5 6"], done.stdout


def test_a_hello_is_all_that_the_roll_call_sends() -> None:
    assert encode_hello().array_records == {}
