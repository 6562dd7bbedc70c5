"""What a site takes in at the end of a run, what it refuses, and what comes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from safetensors.torch import load_file

from hushtune.client.memory import Purpose, SiteMemory
from hushtune.common.adapter import AdapterState, b_key
from hushtune.common.config import RunConfig
from hushtune.common.config_io import config_hash
from hushtune.common.handover_messages import (
    RECEIPT,
    RECORD,
    Receipt,
    RunRecord,
    decode_handover,
    decode_receipt,
    encode_handover,
    encode_receipt,
)
from hushtune.common.planning import site_plans
from hushtune.common.privacy import accountant
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.signed_files import Signed, sha256_of
from hushtune.common.signing import load_signing_key, make_signing_key
from hushtune.server.deployment import receipts
from hushtune.simulations.saved import load

from ..conftest import Settings
from .finished import Place, institutions, run_there
from .institutions import LABELS, SIZES, OwnSites


def own_rows(settings: Any, **changes: Any) -> RunConfig:
    """Settings of a run of the made-up institutions."""
    usual = {
        "data": {"source": "sites", "labels": LABELS, "public_sizes": dict(SIZES)},
        "privacy": {"trust": "site", "epsilon": 8.0, "delta": 1e-3},
    }
    return settings.config(**{**usual, **changes})


@pytest.fixture(scope="module")
def kept(tiny_bert: Path, three_sites: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run that is over, not handed over yet."""
    root = tmp_path_factory.mktemp("deployment")
    institutions(root)
    return run_there(root, own_rows(Settings(tiny_bert, three_sites)))


@pytest.fixture
def place(kept: Place, tmp_path: Path) -> Place:
    return kept.copied(tmp_path / "all")


Change = Callable[[RecordDict], RecordDict]


class Between:
    """A grid on which somebody changes what goes to one site, or what comes back."""

    def __init__(
        self, grid: OwnSites, site: str, *, down: Change | None = None, up: Change | None = None
    ) -> None:
        self._grid, self._node, self._down, self._up = grid, grid.nodes[site], down, up
        self.nodes = grid.nodes

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        sent = list(messages)
        for message in sent:
            if message.metadata.dst_node_id == self._node and self._down is not None:
                message.content = self._down(message.content)
        for reply in self._grid.send_and_receive(sent, timeout=timeout):
            if reply.metadata.src_node_id == self._node and self._up is not None:
                reply.content = self._up(reply.content)
            yield reply


def key_of(place: Place, name: str) -> Any:
    folder = place.home if name == "coordinator" else place.site(name)
    return load_signing_key(
        folder / "keys" / ("signing.key" if name == "coordinator" else "site.key")
    )


def test_a_run_is_handed_over(place: Place) -> None:
    told = place.handed_over()
    assert told["guarantee"]
    assert told["without_receipt"] == []
    model = place.out / "model.safetensors"
    assert sha256_of(model) == told["model"] == place.result.state.digest()
    for name in SIZES:
        folder, site = place.results(name), told["sites"][name]
        privacy = json.loads((folder / "privacy.json").read_text())
        assert list(privacy["sites"]) == [name]
        entries = Ledger(place.site(name) / "policy.sqlite").entries()
        plan = site_plans(place.config)[name]
        spent = accountant.epsilon(
            [entry.event for entry in entries], delta=plan.delta, relation=plan.relation
        )
        assert privacy["sites"][name]["epsilon"] == site["epsilon"] == spent
        assert site["receipt"]["ledger_head"] == entries[-1].hash
        assert site["receipt"]["statement"] == sha256_of(folder / "privacy.json")
        assert site["rounds"] == [1, 2, 3]
        assert (folder / "model.safetensors").read_bytes() == model.read_bytes()
        assert folder.stat().st_mode & 0o077 == 0
        assert "remark" not in (place.out / "receipts" / f"{name}.json").read_text()
    assert told["epsilon"] == max(site["epsilon"] for site in told["sites"].values())
    answers = load(place.results("north")).predict(["a lovely door", "a grim door"])
    assert {answer["label"] for answer in answers} <= set(LABELS)
    page = (place.out / "statement.html").read_text()
    for words in ("north", told["model"], told["config"], "signed by the site"):
        assert words in page
        assert words in (place.out / "statement.md").read_text()
    assert "<script" not in page


def test_asked_again_a_site_gives_the_same_receipt_and_writes_nothing(place: Place) -> None:
    first = place.handed_over()
    folder = place.results("north")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert place.handed_over() == first
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_folder_that_was_damaged_is_written_anew(place: Place) -> None:
    place.handed_over()
    page = place.results("north") / "privacy.html"
    page.write_text("nothing was spent")
    place.handed_over()
    assert "nothing was spent" not in page.read_text()


def other_model(content: RecordDict) -> RecordDict:
    record, adapter = decode_handover(content)
    key = min(adapter.tensors)
    tensors = {**adapter.tensors, key: adapter.tensors[key] + 1e-3}
    return encode_handover(record, AdapterState(adapter.spec, tensors))


def resigned(place: Place, signer: str, **changes: Any) -> Change:
    """The record with other fields, signed by somebody."""

    def change(content: RecordDict) -> RecordDict:
        signed, adapter = decode_handover(content)
        record = replace(RunRecord.from_dict(signed.document), **changes)
        return encode_handover(Signed.by(key_of(place, signer), record.to_dict()), adapter)

    return change


def edited(content: RecordDict) -> RecordDict:
    signed, adapter = decode_handover(content)
    document = {**signed.document, "rows": []}
    return encode_handover(Signed(document, signed.signature), adapter)


FAULTS: dict[str, tuple[Callable[[Place], Change], str]] = {
    "another model": (lambda place: other_model, "HT802 the model that was sent"),
    "another signer": (lambda place: resigned(place, "south"), "HT802 the run record"),
    "an edited record": (lambda place: edited, "HT802 the run record"),
    "another site's": (
        lambda place: resigned(place, "coordinator", site="south"),
        "HT503 a run's record is of another site",
    ),
    "another federation's": (
        lambda place: resigned(place, "coordinator", federation="others"),
        "HT503 a run's record is of another federation",
    ),
    "other settings'": (
        lambda place: resigned(place, "coordinator", config="0" * 64),
        "HT503 a run's record is of another settings",
    ),
    "a run that is a path": (
        lambda place: resigned(place, "coordinator", run="../../x"),
        "HT503 a run's name cannot be that of a folder",
    ),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_site_takes_nothing_that_the_coordinator_has_not_signed_for_it(
    place: Place, fault: str
) -> None:
    make, words = FAULTS[fault]
    told = place.handed_over(Between(place.grid(), "north", down=make(place)))
    assert told["without_receipt"] == ["north"]
    assert words in told["sites"]["north"]["missing"]
    assert not (place.site("north") / "runs" / place.result.run).exists()
    assert told["sites"]["south"]["receipt"] is not None


def test_another_model_of_the_same_run_does_not_replace_what_was_kept(place: Place) -> None:
    place.handed_over()
    before = sha256_of(place.results("north") / "model.safetensors")
    shutil.rmtree(place.out / "receipts")
    other = replace(place.result, state=1.5 * place.result.state)
    told = place.handed_over(result=other)
    assert "HT601" in told["sites"]["north"]["missing"]
    assert sha256_of(place.results("north") / "model.safetensors") == before


def test_a_folder_of_something_else_is_left_alone(place: Place) -> None:
    folder = place.results("north")
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    told = place.handed_over()
    assert "HT601" in told["sites"]["north"]["missing"]
    assert (folder / "thesis.txt").read_text() == "mine"


def untrue(place: Place, signer: Any = None, **changes: Any) -> Change:
    """The receipt with other fields, signed by north itself or by another key."""

    def change(content: RecordDict) -> RecordDict:
        receipt = Receipt.from_dict(decode_receipt(content).document)
        told = replace(receipt, **changes).to_dict()
        return encode_receipt(Signed.by(signer or key_of(place, "north"), told))

    return change


UNTRUE: dict[str, tuple[dict[str, Any], str]] = {
    "less than its charges": ({"epsilon": 0.01}, "tells an epsilon of 0.01"),
    "another delta": ({"delta": 1e-9}, "at delta 1e-09"),
    "a shorter ledger": ({"num_charges": 1}, "its ledger holds 1 charges, and charge 3 was shown"),
    "another head": ({"ledger_head": "1" * 64}, "is not the one that was shown"),
    "fewer charges of the run": ({"charges_of_run": 2}, "2 charges, and 3 were shown"),
    "another run": ({"run": "other"}, "of another run"),
    "another model": ({"adapter": "2" * 64}, "of another model"),
}


@pytest.mark.parametrize("fault", list(UNTRUE))
def test_a_receipt_that_the_shown_charges_contradict_is_not_taken(place: Place, fault: str) -> None:
    changes, words = UNTRUE[fault]
    told = place.handed_over(Between(place.grid(), "north", up=untrue(place, **changes)))
    site = told["sites"]["north"]
    assert words in site["missing"]
    assert site["source"] == "charges shown to the server"
    assert not (place.out / "receipts" / "north.json").exists()


def test_a_receipt_of_another_key_is_not_taken(place: Place, tmp_path: Path) -> None:
    other = make_signing_key(tmp_path / "other.key")
    told = place.handed_over(Between(place.grid(), "north", up=untrue(place, other)))
    assert "is not signed by" in told["sites"]["north"]["missing"]


def test_a_site_that_is_gone_is_named_with_what_it_has_shown(place: Place) -> None:
    grid = place.grid()
    del grid.contexts[grid.nodes["west"]]
    told = place.handed_over(grid)
    assert told["without_receipt"] == ["west"]
    site = told["sites"]["west"]
    assert (site["missing"], site["source"]) == ("not connected", "charges shown to the server")
    plan = site_plans(place.config)["west"]
    events = [entry.event for entry in Ledger(place.site("west") / "policy.sqlite").entries()]
    shown = accountant.epsilon(events, delta=plan.delta, relation=plan.relation)
    assert site["epsilon"] == shown
    for page in ("statement.md", "statement.html"):
        text = (place.out / page).read_text()
        assert "Of west there is no receipt" in text
    again = place.handed_over()  # back, and asked again
    assert again["without_receipt"] == []


class Coming:
    """A grid to which one site is connected from the ``looks``-th look on.

    With ``held`` it is taken for connected all the while: the first question to it is lost, and the
    second comes back as Flower's word that the node is gone.
    """

    def __init__(self, grid: OwnSites, site: str, *, looks: int = 1, held: bool = False) -> None:
        self._grid, self._node, self._looks, self._held = grid, grid.nodes[site], looks, held
        self.nodes, self.asked = grid.nodes, 0

    def get_node_ids(self) -> Iterable[int]:
        self._looks -= 1
        gone = self._looks > 0 and not self._held
        return [node for node in self._grid.get_node_ids() if node != self._node or not gone]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        for message in messages:
            if message.metadata.dst_node_id != self._node:
                yield from self._grid.send_and_receive([message], timeout=timeout)
                continue
            self.asked += 1
            if not self._held or self.asked > 2:
                yield from self._grid.send_and_receive([message], timeout=timeout)
            elif self.asked == 2:
                message.metadata.__dict__["_message_id"] = "lost"
                error = Error(ErrorCode.NODE_UNAVAILABLE, "Node unavailable")
                yield Message(error, reply_to=message)


@pytest.mark.parametrize("how", [{"looks": 4}, {"held": True}])
def test_a_site_that_is_away_is_waited_for_and_asked_when_it_is_back(
    place: Place, how: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "_POLL_SECONDS", 0.01)
    grid, told = Coming(place.grid(), "west", **how), []
    statement = place.handed_over(grid, patience=60.0, waiting=told.append)
    assert statement["without_receipt"] == []
    assert told == [["west"]]
    (place.results("west") / "manifest.json").read_text()
    place.handed_over(Coming(place.grid(), "west", looks=10**9), patience=60.0)  # kept: no wait
    statement = json.loads((place.out / "statement.json").read_text())["document"]
    assert statement["without_receipt"] == []


def test_the_wait_is_bounded_and_who_has_refused_is_not_asked_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "_POLL_SECONDS", 0.01)
    asked: list[RecordDict] = []

    def refused(content: RecordDict) -> RecordDict:
        asked.append(content)
        return other_model(content)

    grid = place.grid()
    del grid.contexts[grid.nodes["west"]]
    told = place.handed_over(Between(grid, "north", down=refused), patience=0.3)
    assert told["without_receipt"] == ["north", "west"]
    assert told["sites"]["west"]["missing"] == "not connected"
    assert len(asked) == 1


def test_a_simulated_site_refuses(place: Place) -> None:
    grid = place.grid()
    context = grid.contexts[grid.nodes["north"]]
    context.node_config = {"partition-id": 0, "num-partitions": 3}
    told = place.handed_over(grid)
    assert "HT504 a simulated site keeps no results" in told["sites"]["north"]["missing"]


@pytest.mark.parametrize("trust", ["distributed", "server"])
def test_other_trust_models_are_handed_over(
    settings: Any, tmp_path: Path, trust: str, hushtune: Any
) -> None:
    terms: dict[str, Any] = {"trust": [trust], "min_noise_multiplier": 0.05}
    privacy: dict[str, Any] = {"trust": trust, "epsilon": 8.0, "delta": 1e-3}
    if trust == "server":
        terms |= {"unit": "client", "max_epsilon": 1000.0, "max_delta": 0.5}
        privacy |= {"unit": "client", "delta": 1e-2}
    institutions(tmp_path, terms)
    place = run_there(tmp_path, own_rows(settings, privacy=privacy, train__rounds=2))
    told = place.handed_over()
    assert told["without_receipt"] == [], told
    assert told["guarantee"]
    assert [site["rounds"] for site in told["sites"].values()] == [[1, 2]] * 3
    assert (place.out / "privacy.html").exists() is (trust == "server")
    for folder in (place.out, *(place.results(name) for name in SIZES)):
        found = hushtune("verify", folder)
        assert found.status == 0, found.out


def test_a_site_gets_its_own_factors_with_the_shared_ones(settings: Any, tmp_path: Path) -> None:
    """FedSA (2410.01463): each site's B is its own and never leaves it."""
    institutions(tmp_path)
    place = run_there(tmp_path, own_rows(settings, aggregation__rule="fedsa"))
    assert place.handed_over()["without_receipt"] == []
    key = b_key(place.result.state.spec.targets[0])
    found: dict[str, Any] = {}
    for name in SIZES:
        folder = place.site(name) / "runs" / config_hash(place.config)[:12] / "own"
        own = SiteMemory(folder, name).newest(Purpose.FACTORS, run=place.result.run)
        assert own is not None
        saved = load_file(place.results(name) / "adapter" / "adapter_model.safetensors")
        (written,) = (tensor for stored, tensor in saved.items() if key in stored)
        assert written.equal(own.tensors[key])
        found[name] = written
    assert not found["north"].equal(found["south"])
    assert not place.result.state.tensors[key].any()


def test_documents_of_one_kind_are_not_taken_for_another(place: Place) -> None:
    place.handed_over()
    receipt = Signed.read(place.out / "receipts" / "north.json")
    key = place.cards()["north"].sign_key
    receipt.checked(key, kind=RECEIPT)
    with pytest.raises(Exception, match="another kind"):
        receipt.checked(key, kind=RECORD)
