"""A site's folder is made from a few answers, whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from hushtune.client.deployment import setup
from hushtune.client.deployment.questions import Flags, answers
from hushtune.client.deployment.setup import default_delta, make_site
from hushtune.client.deployment.site_file import SiteFile
from hushtune.client.terms import load_terms
from hushtune.common.deployment import Invitation, SiteCard
from hushtune.common.errors import (
    ConfigError,
    DeploymentError,
)
from hushtune.common.signing import load_signing_key, public_text
from hushtune.common.tasks.guess import propose_columns

from ..conftest import write_csv
from .coordinator import Authority, invitation, rows_of


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """All flags that have no default."""
    invitation(Authority()).write(tmp_path / "federation.toml")
    data = rows_of(tmp_path)
    flags = {"name": "north", "server": tmp_path / "federation.toml", "data": data}
    flags |= {"text": "Remark", "label": "verdict"}
    return [str(part) for key, value in flags.items() for part in (f"--{key}", value)]


def test_init_makes_a_site_that_can_be_read(
    hushtune: Any, tmp_path: Path, given: list[str]
) -> None:
    folder = tmp_path / "below" / "north"
    answer = hushtune("site", "init", folder, *given, "--max-epsilon", "2", "--json")
    assert answer.status == 0, answer.err
    told = json.loads(answer.out.splitlines()[-1])
    site = SiteFile.read(folder)
    assert (site.table.data.text, site.table.data.file) == ("Remark", tmp_path / "notes.csv")
    terms = load_terms(site.table.policy)
    assert (terms.max_epsilon, terms.unit, terms.trust) == (2.0, "example", ("site",))
    assert terms.max_delta < 1 / 120
    card = SiteCard.read(folder / "north.pub")
    assert card.sign_key == public_text(load_signing_key(site.sign_key))
    key = load_ssh_private_key(site.node_key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    modes = {path.name: path.stat().st_mode & 0o777 for path in (site.node_key, site.sign_key)}
    assert set(modes.values()) == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    invited = Invitation.read(tmp_path / "federation.toml")
    assert (folder / "ca.pem").read_text() == invited.certificate
    assert told["card_fingerprint"] == card.fingerprint
    assert told["invitation_fingerprint"] == invited.fingerprint
    assert card.fingerprint in answer.err
    assert invited.fingerprint in answer.err


def test_a_fingerprint_is_of_what_is_said_and_not_of_its_layout(tmp_path: Path) -> None:
    """An invitation that was opened and saved by another editor is still the same."""
    made = invitation(Authority())
    made.write(tmp_path / "a.toml")
    text = "# received by post\n" + (tmp_path / "a.toml").read_text()
    (tmp_path / "b.toml").write_text(text)
    assert Invitation.read(tmp_path / "b.toml").fingerprint == made.fingerprint
    other = made.model_copy(update={"address": "localhost:9093"})
    assert other.fingerprint != made.fingerprint


def test_a_patient_s_column_protects_patients(
    hushtune: Any, tmp_path: Path, given: list[str]
) -> None:
    assert hushtune("site", "init", tmp_path / "n", *given, "--group", "Patient").status == 0
    terms = load_terms(tmp_path / "n" / "policy.toml")
    assert (terms.unit, terms.group) == ("group", "Patient")
    assert terms.max_delta == default_delta(30)  # of patients, of whom there are fewer than rows


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (["--text", "remrk"], "HT203", "did you mean 'Remark'"),
        (["--max-delta", "0.5"], "HT100", "promises nothing"),
        (["--max-epsilon", "0"], "HT100", "max_epsilon"),
        (["--name", "../north"], "HT100", "name"),
        (["--trust", "nobody"], "HT100", "trust"),
        (["--server", "nowhere.toml"], "HT201", "ask the coordinator for federation.toml"),
        (["--data", "nowhere.csv"], "HT201", "no such data file"),
        (["--model", "nowhere"], "HT301", "no model folder"),
    ],
)
def test_a_wrong_answer_is_explained_and_leaves_nothing(
    hushtune: Any, tmp_path: Path, given: list[str], change: list[str], code: str, words: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    answer = hushtune("site", "init", tmp_path / "a" / "n", *given, *change)
    assert answer.status == 2
    assert answer.err.split("\n")[-0].startswith(code) or f"\n{code} " in f"\n{answer.err}"
    assert words in answer.err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_missing_is_named_where_nobody_can_be_asked(
    hushtune: Any, tmp_path: Path, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    answer = hushtune("site", "init", tmp_path / "n", *given[2:])
    assert answer.status == 2
    assert "--name is missing" in answer.err


def test_keys_are_never_replaced(hushtune: Any, tmp_path: Path, given: list[str]) -> None:
    folder = tmp_path / "n"
    assert hushtune("site", "init", folder, *given).status == 0
    before = (folder / "keys" / "site.key").read_bytes()
    answer = hushtune("site", "init", folder, *given)
    assert (answer.status, answer.err[:5]) == (2, "HT601")
    assert (folder / "keys" / "site.key").read_bytes() == before


@pytest.mark.parametrize("there", [False, True])
def test_a_failure_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """As a full disk would: a folder with keys and without a policy must not be joined."""
    folder = tmp_path / "a" / "n"
    if there:
        folder.mkdir(parents=True)

    def full(path: Path, text: str) -> None:
        if path.name == "site.toml":
            raise OSError(28, "No space left on device", str(path))
        path.write_text(text)

    monkeypatch.setattr(setup, "write_text", full)
    data = rows_of(tmp_path)
    flags = Flags(name="north", data=data, text="Remark", label="verdict")
    invitation(Authority()).write(tmp_path / "federation.toml")
    flags = Flags(**{**vars(flags), "server": tmp_path / "federation.toml"})
    with pytest.raises(Exception, match="disk is full"):
        make_site(folder, answers(flags, None, lambda _: None))
    assert list(folder.rglob("*")) == []
    assert folder.exists() == there
    assert (tmp_path / "a").exists() == there


def test_questions_propose_what_the_file_suggests(tmp_path: Path) -> None:
    invitation(Authority()).write(tmp_path / "federation.toml")
    data = rows_of(tmp_path)
    asked: dict[str, str | None] = {}
    said = {"called": "north", "invitation": str(tmp_path / "federation.toml"), "rows": str(data)}

    def ask(question: str, default: str | None) -> str:
        asked[question] = default
        if default is not None:
            return default
        return next(text for word, text in said.items() if word in question)

    heard: list[str] = []
    made = answers(Flags(), ask, heard.append)
    assert (made.text, made.label, made.group) == ("Remark", "verdict", "Patient")
    assert made.terms["max_delta"] == default_delta(30)
    assert "Remark, verdict, Patient" in heard[0]
    assert [question for question in asked if "1 / 30" in question]


def test_a_column_without_a_proposal_is_no_silent_guess(tmp_path: Path) -> None:
    """With nobody to ask, a column is taken by its name alone."""
    data = write_csv(tmp_path / "a.csv", [["some words here now", "x"]] * 30, header=("a", "b"))
    invitation(Authority()).write(tmp_path / "federation.toml")
    flags = Flags(name="n", server=tmp_path / "federation.toml", data=data)
    with pytest.raises(ConfigError, match="which column has the text"):
        answers(flags, None, lambda _: None)
    found = propose_columns(data)
    assert (found.columns, found.text, found.label) == (("a", "b"), "a", None)


def test_columns_are_proposed_from_json_lines_and_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [{"body": f"a long text of many words {i}", "class": str(i % 2)} for i in range(20)]
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for path in (lines, tmp_path / "a.parquet"):
        found = propose_columns(path)
        assert (found.columns, found.text, found.label) == (("body", "class"), "body", "class")


def test_a_folder_that_is_none_is_named(hushtune: Any, tmp_path: Path) -> None:
    with pytest.raises(DeploymentError) as raised:
        SiteFile.read(tmp_path / "nowhere")
    assert raised.value.given == str(tmp_path / "nowhere")
    for command in ("check", "status", "history", "join"):
        answer = hushtune("site", command, tmp_path / "nowhere")
        assert (answer.status, answer.err[:5]) == (2, "HT800"), command


def test_init_status_and_history_need_no_torch(tmp_path: Path) -> None:
    """They are typed while somebody waits; torch alone takes seconds to import."""
    code = (
        "import sys\n"
        "from hushtune.simulations import cli, cli_site, show_site\n"
        "from hushtune.client.deployment import history, questions, service, setup, status\n"
        "assert 'torch' not in sys.modules and 'flwr' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
