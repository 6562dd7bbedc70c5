"""The walk fails where a site is left without the run's results."""

from __future__ import annotations

from pathlib import Path

import pytest

from hushtune.common.errors import DeploymentError
from hushtune.simulations.federation_walk import result_of


def results(site: Path, *runs: str) -> Path:
    for run in runs:
        (site / "runs" / run).mkdir(parents=True)
        (site / "runs" / run / "manifest.json").write_text("{}", encoding="utf-8")
    return site


def test_a_site_has_the_one_result_of_the_walk(tmp_path: Path) -> None:
    assert result_of(results(tmp_path / "north", "a")) == tmp_path / "north" / "runs" / "a"


@pytest.mark.parametrize("runs", [(), ("a", "b")])
def test_a_site_without_it_or_with_another_one_fails_the_walk(
    tmp_path: Path, runs: tuple[str, ...]
) -> None:
    site = results(tmp_path / "north", *runs)
    (site / "runs" / "c").mkdir(parents=True)  # begun, and not written to its end
    with pytest.raises(DeploymentError, match="was not handed") as caught:
        result_of(site)
    assert "north" in str(caught.value)
