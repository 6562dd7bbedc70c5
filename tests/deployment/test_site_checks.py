"""What is wrong with a site is found before it joins, and named one by one."""

from __future__ import annotations

import json
import socket
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)

from hushtune.client.deployment.check_kinds import Check, Verdict
from hushtune.client.deployment.check_network import check_server
from hushtune.client.deployment.checks import Report, check_site
from hushtune.client.deployment.site_file import SiteFile
from hushtune.common.config import RunConfig
from hushtune.common.config_io import loads_config
from hushtune.common.deployment import SiteCard
from hushtune.common.privacy.ledger import Ledger, Limit
from hushtune.common.privacy.plan import DpSgdEvent, Relation
from hushtune.common.signing import public_text
from hushtune.common.tasks.data import load_data
from hushtune.simulations.site_foresight import foresee

from ..conftest import write_csv
from .coordinator import Authority, Behaviour, made_site, serving

STEPS = ["DNS", "connection", "TLS", "certificate", "clock", "enrolment"]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def site(tmp_path: Path, authority: Authority, tiny_bert: Path) -> Path:
    """A site that nobody serves, with the tiny model."""
    return made_site(tmp_path, authority=authority, port=1, model=tiny_bert)


def by_name(checks: list[Check] | Report) -> dict[str, Check]:
    listed = checks.checks if isinstance(checks, Report) else checks
    return {check.what: check for check in listed}


def node_pem(site: SiteFile) -> bytes:
    key: Any = load_ssh_private_key(site.node_key.read_bytes(), None)
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


# ------------------------------------------------------------------------------- the server ----


def looked(
    tmp_path: Path,
    authority: Authority,
    behaviour: Behaviour,
    *,
    enrolled: bool = True,
    trusts: Authority | None = None,
    **certificate: Any,
) -> dict[str, Check]:
    """What a site sees of a server."""
    with serving(authority.server(tmp_path, **certificate), behaviour) as port:
        folder = made_site(tmp_path / "at", authority=trusts or authority, port=port)
        site = SiteFile.read(folder)
        if enrolled:
            behaviour.known.add(node_pem(site))
        return by_name(check_server(site))


@pytest.mark.parametrize("as_text", [False, True])
def test_all_is_well(tmp_path: Path, authority: Authority, as_text: bool) -> None:
    behaviour = Behaviour(as_text=as_text)
    found = looked(tmp_path, authority, behaviour)
    assert list(found) == STEPS
    assert {check.verdict for check in found.values()} == {Verdict.OK}, found
    assert behaviour.asked == ["/v1/fleet/hushtune/time", "/v1/fleet/pull-messages"]


@pytest.mark.parametrize(
    ("certificate", "words", "verdict"),
    [
        ({"host": "other.example"}, "another host name", Verdict.FAILED),
        ({"days": -1}, "expired", Verdict.FAILED),
        ({"days": 20.5}, "20 days from now", Verdict.WARNING),
    ],
)
def test_what_is_wrong_with_a_certificate_is_named(
    tmp_path: Path, authority: Authority, certificate: Any, words: str, verdict: Verdict
) -> None:
    found = looked(tmp_path, authority, Behaviour(), **certificate)
    assert found["certificate"].verdict is verdict
    assert words in found["certificate"].given
    assert found["certificate"].do
    after = Verdict.WARNING if verdict is Verdict.FAILED else Verdict.OK
    assert found["enrolment"].verdict is after


def test_another_authority_s_server_is_not_spoken_to(tmp_path: Path, authority: Authority) -> None:
    """Whoever sits in between must see neither the site's key nor its name."""
    behaviour = Behaviour()
    found = looked(tmp_path, authority, behaviour, trusts=Authority())
    assert found["certificate"].verdict is Verdict.FAILED
    assert "authority in ca.pem" in found["certificate"].expected
    assert behaviour.asked == []


def test_a_site_that_is_not_enrolled_is_told_what_to_do(
    tmp_path: Path, authority: Authority
) -> None:
    found = looked(tmp_path, authority, Behaviour(), enrolled=False)
    assert found["enrolment"].verdict is Verdict.FAILED
    assert "not enrolled" in found["enrolment"].given
    assert "north.pub" in found["enrolment"].do


@pytest.mark.parametrize(
    ("ahead", "verdict"),
    [(0, Verdict.OK), (-20, Verdict.FAILED), (20, Verdict.WARNING), (400, Verdict.FAILED)],
)
@pytest.mark.parametrize("ours", [True, False])
def test_clocks_are_compared(
    tmp_path: Path, authority: Authority, ahead: float, verdict: Verdict, ours: bool
) -> None:
    """Flower takes a node that is 5 s ahead, or 300 s behind; by the header where the server does
    not say its time."""
    found = looked(tmp_path, authority, Behaviour(ahead=ahead, ours=ours))
    assert found["clock"].verdict is verdict, found["clock"]
    assert ("behind" if ahead > 0 else "ahead") in found["clock"].given or ahead == 0
    if not ours:
        assert "cannot tell" in found["enrolment"].given


def test_a_port_where_nobody_listens(site: Path) -> None:
    found = by_name(check_server(SiteFile.read(site)))
    assert list(found) == STEPS
    assert found["connection"].verdict is Verdict.FAILED
    assert "cannot tell" in found["clock"].given


def test_a_name_that_does_not_exist(tmp_path: Path, authority: Authority) -> None:
    folder = made_site(tmp_path, authority=authority)
    text = (folder / "site.toml").read_text()
    (folder / "site.toml").write_text(text.replace("localhost:9092", "nowhere.invalid:9092"))
    found = by_name(check_server(SiteFile.read(folder)))
    assert found["DNS"].verdict is Verdict.FAILED


def test_what_speaks_no_tls(tmp_path: Path, authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        folder = made_site(tmp_path, authority=authority, port=server.getsockname()[1])
        server.settimeout(10)

        def answer() -> None:
            link, _ = server.accept()
            link.recv(100)
            link.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            link.close()

        thread = threading.Thread(target=answer)
        thread.start()
        found = by_name(check_server(SiteFile.read(folder)))
        thread.join()
    assert found["TLS"].verdict is Verdict.FAILED


# ------------------------------------------------------------------------------- the site's ----


def test_a_site_without_faults_but_a_server(site: Path) -> None:
    report = check_site(site, foresee=foresee)
    failed = [check for check in report.checks if check.verdict is Verdict.FAILED]
    assert [check.what for check in failed] == ["connection"]
    found = by_name(report)
    assert "120 rows read" in found["data"].given
    assert "bad 60, good 60" in found["labels"].given
    assert "s for a step" in found["training step"].given
    assert "MiB" in found["training step"].given
    assert not (site / "policy.sqlite").exists()
    assert not (site / "runs").exists()
    assert "what leaves" not in found  # no run is spoken of


def _put(name: str, mode: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).chmod(mode)


def _replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")

    return change


def _spend(folder: Path) -> None:
    limit = Limit(epsilon=1e6, delta=1e-3, relation=Relation.ADD_OR_REMOVE_ONE)
    event = DpSgdEvent(sampling_probability=1.0, noise_multiplier=1.0, steps=2)
    with_rows = {"dataset": "rows", "run": "a", "unit": "example", "limit": limit}
    Ledger(folder / "policy.sqlite").charge(event, round=1, **with_rows)


def _other_card(folder: Path) -> None:
    card = SiteCard.read(folder / "north.pub")
    other = public_text(Ed25519PrivateKey.generate())
    card.model_copy(update={"sign_key": other}).write(folder / "north.pub")


@pytest.mark.parametrize(
    ("spoil", "what", "words"),
    [
        (_put("keys/node.key", 0o644), "node key", "mode 0644"),
        (_put("keys/site.key", 0o640), "site key", "mode 0640"),
        (lambda f: (f / "keys" / "node.key").unlink(), "node key", "cannot be read"),
        (lambda f: (f / "keys" / "node.key").write_text("x"), "node key", "none"),
        (_other_card, "site key", "north.pub"),
        (_replace("site.toml", "Remark", "Remarks"), "data", "did you mean 'Remark'"),
        (_replace("site.toml", "notes.csv", "note.csv"), "data", "no such data file"),
        (_replace("policy.toml", "max_delta = 0.001", "max_delta = 0.1"), "policy", "nothing"),
        (_replace("policy.toml", "max_epsilon", "max_epsilom"), "policy", "max_epsilom"),
        (_spend, "budget", "is spent of 3"),
        (lambda f: (f / "policy.sqlite").write_bytes(b"x" * 99), "budget", "HT402"),
        (
            _replace("policy.toml", "base_models = []", 'base_models = ["ab"]'),
            "model",
            "sha256 of its weights",
        ),
    ],
)
def test_each_fault_is_found_and_named(
    site: Path, spoil: Callable[[Path], Any], what: str, words: str
) -> None:
    spoil(site)
    report = check_site(site, foresee=foresee if what == "model" else None)
    wrong = {c.what: c for c in report.checks if c.verdict is Verdict.FAILED}
    assert set(wrong) == {what, "connection"}, report
    assert words in wrong[what].given + wrong[what].do, wrong[what]
    assert not report.good


def test_rows_that_are_left_out_and_rare_labels_are_told(tmp_path: Path, site: Path) -> None:
    rows = [(f"some words {i % 60}", "bad" if i % 2 else "good", "p") for i in range(100)]
    rows += [(f"others {i}", "gud", "p") for i in range(3)]
    write_csv(tmp_path / "notes.csv", rows, header=("Remark", "verdict", "Patient"))
    found = by_name(check_site(site))
    assert found["rows left out"].verdict is Verdict.WARNING
    assert "40 of 103" in found["rows left out"].given
    assert found["labels"].verdict is Verdict.WARNING
    assert "'gud'" in found["labels"].do


# --------------------------------------------------------------------------------- with a run ----


def run_of(model: Path, **changes: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "data": {
            "source": "sites",
            "labels": ["bad", "good"],
            "public_sizes": {"north": 84, "south": 90},
        },
        "model": {"name": str(model), "precision": "float32", "max_tokens": 32},
        "adapter": {"rank": 2, "layers": 1},
        "privacy": {"epsilon": 2.0, "delta": 1e-3},
        "train": {"rounds": 3, "warmup_rounds": 1, "local_steps": 2},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            tree[section][name] = value
        else:
            tree[section] = value
    return loads_config(tomli_w.dumps(tree))


def test_what_a_run_would_take_is_told(site: Path, tiny_bert: Path) -> None:
    found = by_name(check_site(site, run_of(tiny_bert), foresee=foresee))
    told = found["what leaves"]
    assert told.verdict is Verdict.OK
    assert "in each of 3 rounds" in told.given
    assert "KiB both ways" in told.given
    assert "epsilon 2.0" in told.given
    assert found["the run's orders"].verdict is Verdict.OK
    assert "84 declared by the run, 84 here" in found["declared size"].given
    assert not (site / "policy.sqlite").exists()


@pytest.mark.parametrize(
    ("changes", "what", "words"),
    [
        ({"privacy__epsilon": 4.0}, "the run's orders", "HT401"),
        ({"privacy__trust": "off"}, "what leaves", "NO PRIVACY"),
        ({"data__public_sizes": {"south": 90}}, "run", "HT504"),
        ({"data__labels": ["bad", "godd"]}, "data", "HT205"),
    ],
)
def test_what_a_site_would_refuse_of_a_run_is_told(
    site: Path, tiny_bert: Path, changes: dict[str, Any], what: str, words: str
) -> None:
    report = check_site(site, run_of(tiny_bert, **changes), foresee=foresee)
    told = [c for c in report.checks if c.what == what and c.verdict is not Verdict.OK]
    assert told, report
    assert words in told[0].given


@pytest.mark.parametrize(
    ("terms", "privacy", "words"),
    [
        ({"trust": ["distributed"]}, {"trust": "distributed"}, "trust distributed"),
        ({"unit": "group", "group": "Patient"}, {"unit": "group"}, "trust site"),
        (
            {"trust": ["server"], "unit": "client", "max_delta": 0.1},
            {"trust": "server", "unit": "client", "delta": 0.1},
            "trust server",
        ),
    ],
    ids=["secure sums", "patients", "clients"],
)
def test_a_step_is_tried_under_each_promise(
    tmp_path: Path, authority: Authority, tiny_bert: Path, terms: Any, privacy: Any, words: str
) -> None:
    least = {"min_noise_multiplier": 0.05, **terms}
    folder = made_site(tmp_path, authority=authority, port=1, model=tiny_bert, **least)
    sizes = {"north": 20 if "group" in terms else 84, "south": 90, "west": 80}
    tree = {f"privacy__{key}": value for key, value in privacy.items()}
    if "group" in terms:
        tree["data__group"] = "Patient"
    report = check_site(
        folder, run_of(tiny_bert, data__public_sizes=sizes, **tree), foresee=foresee
    )
    failed = [check for check in report.checks if check.verdict is Verdict.FAILED]
    assert [check.what for check in failed] == ["connection"], failed
    found = by_name(report)
    assert words in found["what leaves"].given
    assert "s for a step" in found["training step"].given


def other_rows(site: Path, table: str, *, name: str = "notes.csv", **data: Any) -> None:
    """Other rows for a site, with the keys of [data] that go with them."""
    path = site / "site.toml"
    told = tomllib.loads(path.read_text(encoding="utf-8"))
    old = Path(told["data"]["file"])
    new = (old if old.is_absolute() else site / old).with_name(name)
    new.write_text(table, encoding="utf-8")
    told["data"] = {"file": str(new), **data}
    path.write_text(tomli_w.dumps(told), encoding="utf-8")


def test_rows_are_read_exactly_as_the_run_reads_them(site: Path, tiny_bert: Path) -> None:
    """By its kind, form, split and entities: with any of them left out the counts are others."""
    rows = [f"ask {i} &amp; more,tell {i},q,a,d{i // 10}" for i in range(60)]
    rows += [f"ask {i} & more,tell {i},q,a,d{i // 10}" for i in range(5)]
    other_rows(site, "\n".join(["prompt,completion,question,answer,document", *rows, ""]))
    run = run_of(
        tiny_bert,
        task={"kind": "seq2seq"},
        data={
            "source": "sites",
            "public_sizes": {"north": 40, "south": 90},
            "form": "prompt",
            "split_by": "document",
            "unescape_html": True,
        },
        train={"rounds": 3},
    )
    found = by_name(check_site(site, run))
    own = SiteFile.read(site)
    data = load_data(own.configured(run).data, run.task, seed=run.seed)
    split = data.sites["north"]
    parts = [len(part) for part in (split.train, split.validation, split.test)]
    assert (sum(parts), data.report.dropped) == (60, {"repeated": 5})
    assert all(part % 10 == 0 for part in parts)
    counts = "({} to train on, {} to judge by, {} kept for a test)".format(*parts)
    assert counts in found["data"].given
    assert found["rows left out"].given.startswith("5 of 65: 5 rows left out: repeated")
    # A run that forgot the site reads no other way.
    changed = run.data.model_copy(update={"public_sizes": {"south": 90}})
    found = by_name(check_site(site, run.model_copy(update={"data": changed})))
    assert found["run"].verdict is Verdict.FAILED
    assert counts in found["data"].given


@pytest.mark.parametrize(
    ("kind", "name", "table", "data"),
    [
        ("token-classification", "n.conll", "a\tX\nb\tY\n{i}\tX\n\n", {}),
        ("causal-lm", "n.csv", "ask {i},tell {i}\n", {"header": "question,answer\n"}),
        ("causal-lm", "n.txt", "words {i}\n", {}),
        (
            "text-pair-classification",
            "n.csv",
            "a {i},b,{two}\n",
            {"header": "text,other,label\n", "second": "other"},
        ),
        (
            "tabular-classification",
            "n.csv",
            "{i},b,{two}\n",
            {"header": "age,job,label\n", "columns": ["age", "job"]},
        ),
    ],
)
def test_without_a_run_rows_are_read_as_their_kind_is_likely_to_be(
    site: Path, kind: str, name: str, table: str, data: dict[str, Any]
) -> None:
    given = dict(data)
    rows = [table.format(i=i, two="xy"[i % 2]) for i in range(40)]
    other_rows(site, given.pop("header", "") + "".join(rows), name=name, **given)
    found = by_name(check_site(site))
    assert found["data"].verdict is Verdict.OK, found["data"]
    assert f"as {kind} reads them; --config RUN.toml" in found["data"].given


def test_without_a_run_numbers_are_no_fault(site: Path, tiny_bert: Path) -> None:
    table = "".join(f"words {i},{i / 7:.3f}\n" for i in range(60))
    other_rows(site, "text,label\n" + table)
    told = by_name(check_site(site))["data"]
    assert told.verdict is Verdict.WARNING
    assert "--config RUN.toml reads them as that run does" in told.do
    run = run_of(
        tiny_bert,
        task={"kind": "text-regression", "range": [0.0, 9.0]},
        data={"source": "sites", "public_sizes": {"north": 42, "south": 90}},
    )
    assert by_name(check_site(site, run))["data"].verdict is Verdict.OK


def test_another_declared_size_is_a_warning(site: Path, tiny_bert: Path) -> None:
    run = run_of(tiny_bert, data__public_sizes={"north": 500, "south": 90})
    assert by_name(check_site(site, run))["declared size"].verdict is Verdict.WARNING


def test_the_command_says_it_all_and_fails(hushtune: Any, site: Path) -> None:
    answer = hushtune("site", "check", site, "--no-training", "--json")
    assert answer.status == 2
    told = json.loads(answer.out.splitlines()[-1])
    assert told["ok"] is False
    wrong = [check for check in told["checks"] if check["verdict"] == "failed"]
    assert [set(check) for check in wrong] == [{"what", "verdict", "given", "expected", "do"}]
    assert "not ready" in answer.err
    assert wrong[0]["do"] in " ".join(answer.err.replace("│", " ").split())
