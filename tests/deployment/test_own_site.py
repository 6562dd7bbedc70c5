"""A site with rows of its own: settings are the coordinator's, rows and columns the site's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hushtune.client.deployment.site_file import SiteFile
from hushtune.client.site import close_sites
from hushtune.common import lora
from hushtune.common.config import RunConfig
from hushtune.common.errors import ConfigError, DeploymentError, KeyFileError, SignatureError
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.run_context import RunContext, run_config
from hushtune.common.signing import (
    check,
    load_signing_key,
    make_signing_key,
    public_text,
    sign,
)
from hushtune.common.tasks.base_model import adapted_model
from hushtune.server.app import federate
from hushtune.server.roll_call import RollCall

from .institutions import LABELS, SIZES, OwnSites, coordinator_key, site_folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    key = coordinator_key(tmp_path / "coordinator")
    return {
        name: site_folder(tmp_path / name, name, rows=rows, sign_key=key)
        for name, rows in SIZES.items()
    }


def own_rows(settings: Any, **changes: Any) -> RunConfig:
    """Settings of a run of the made-up institutions."""
    return settings.config(
        **{
            "data": {"source": "sites", "labels": LABELS, "public_sizes": dict(SIZES)},
            "privacy": {"trust": "site", "epsilon": 8.0, "delta": 1e-3},
            **changes,
        }
    )


def federated(config: RunConfig, folders: dict[str, Path], out: Path) -> Any:
    """The run's result, over sites that are called one after the other."""
    close_sites()
    grid = OwnSites(folders, run_config=run_config(config, out))
    model = adapted_model(config, config.model.name, tuple(LABELS), pad_id=None)
    return federate(
        RunContext(config, out),
        grid,  # type: ignore[arg-type]
        initial=lora.initial_state(model, seed=config.seed),
        roll=lambda _: RollCall(grid.nodes, {}),
    )


def test_sites_train_on_rows_that_the_run_knows_nothing_of(
    settings: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    result = federated(own_rows(settings), folders, tmp_path / "out")
    assert [row["accepted"] for row in result.history] == [sorted(SIZES)] * 3
    assert result.history[-1]["update_norm"] > 0
    for folder in folders.values():
        entries = Ledger(folder / "policy.sqlite").entries()
        assert [entry.round for entry in entries] == [1, 2, 3]
        assert {entry.run for entry in entries} == {result.run}


def test_a_second_run_of_the_same_settings_is_charged_anew(
    settings: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    first = federated(own_rows(settings), folders, tmp_path / "one")
    second = federated(own_rows(settings), folders, tmp_path / "two")
    assert first.run != second.run
    assert len(Ledger(folders["north"] / "policy.sqlite").entries()) == 6


def test_a_label_that_is_not_declared_stays_unsaid_to_the_server(
    settings: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    rows = folders["north"] / "rows.csv"
    rows.write_text(rows.read_text() + "a secret remark,goood\n", encoding="utf-8")
    result = federated(own_rows(settings), folders, tmp_path / "out")
    told = result.history[0]["rejected"]["north"]
    assert "HT205" in told
    assert "goood" not in str(result.history)
    assert "secret" not in str(result.history)


@pytest.mark.parametrize(
    ("data", "lacking"),
    [
        ({"source": "sites", "public_sizes": dict(SIZES)}, "data.labels"),
        ({"source": "sites", "labels": LABELS}, "data.public_sizes"),
        ({"source": "sites", "labels": ["bad"], "public_sizes": dict(SIZES)}, "at least two"),
        (
            {"source": "sites", "labels": LABELS, "public_sizes": dict(SIZES), "partition": "iid"},
            "cannot be dealt",
        ),
    ],
)
def test_what_the_rows_would_tell_must_be_declared(
    settings: Any, data: dict[str, Any], lacking: str
) -> None:
    with pytest.raises(ConfigError, match=lacking):
        settings.config(data=data)


def test_labels_are_numbered_as_declared(settings: Any) -> None:
    config = settings.config(data__labels=["good", "bad"])
    from hushtune.common.tasks.data import load_data

    assert load_data(config.data, seed=0).label_names == ("good", "bad")

    assert load_data(settings.config().data, seed=0).label_names == ("bad", "good")


def test_a_folder_without_a_site_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match=r"no site's") as caught:
        SiteFile.read(tmp_path)
    assert "site init" in str(caught.value)


def test_paths_of_a_site_are_relative_to_its_file(folders: dict[str, Path]) -> None:
    own = SiteFile.read(folders["north"])
    assert own.table.data.file == folders["north"] / "rows.csv"
    assert own.ledger == folders["north"] / "policy.sqlite"


def test_keys_of_others_and_changed_documents_are_refused(tmp_path: Path) -> None:
    key, other = make_signing_key(tmp_path / "a.key"), make_signing_key(tmp_path / "b.key")
    document = {"b": [1, 2.5], "a": "ä"}
    signature = sign(key, document)
    check(public_text(key), {"a": "ä", "b": [1, 2.5]}, signature, what="it")
    for public, changed in ((public_text(other), document), (public_text(key), {"a": "ä"})):
        with pytest.raises(SignatureError):
            check(public, changed, signature, what="it")
    with pytest.raises(SignatureError):
        check(public_text(key), document, "", what="it")


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    made = make_signing_key(path)
    assert public_text(load_signing_key(path)) == public_text(made)
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="read by others") as caught:
        load_signing_key(path)
    assert "0640" in str(caught.value)
    assert "chmod 600" in str(caught.value)
    with pytest.raises(KeyFileError, match="there already"):
        make_signing_key(path)
