"""Settings of [privacy] that do not go together are refused, and each refusal says what to do."""

from __future__ import annotations

import pytest

from hushtune.common.config import PrivacyConfig
from hushtune.common.config_io import load_config, template
from hushtune.common.errors import ConfigError
from hushtune.common.planning import alone, cohort_of, pooled

DEMO = 'data.source="demo"'
SERVER = ("privacy.trust=server", "privacy.unit=client", "privacy.delta=0.01")
SECURE = ("privacy.trust=distributed",)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("privacy.min_survivors=3",), "min_survivors"),
        (("privacy.colluding_sites=2",), "colluding_sites"),
        ((*SERVER, "privacy.min_survivors=3"), "min_survivors"),
        ((*SERVER, "privacy.colluding_sites=0"), "colluding_sites"),
        (("privacy.client_turns=3",), "client_turns"),
        ((*SECURE, "privacy.adaptive_clipping=true"), "adaptive_clipping"),
        ((*SERVER, "privacy.clipping_rate=0.3"), "clipping_rate"),
        (("privacy.clipping_quantile=0.3",), "clipping_quantile"),
        (("privacy.unit=client",), "unit"),
        (("privacy.trust=server",), "unit"),
        ((*SERVER, "privacy.client_turns=30"), "client_turns"),
        ((*SERVER, "metrics.release=noised"), "release"),
        (("privacy.unit=group",), "unit"),
        (
            (*SERVER, "privacy.client_turns=3", "privacy.client_sampling_probability=0.5"),
            "client_turns",
        ),
        (
            (*SERVER, "privacy.client_turns=3", "privacy.adaptive_clipping=true"),
            "adaptive_clipping",
        ),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(
    overrides: tuple[str, ...], key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides=(DEMO, *overrides))
    error = caught.value
    assert key in error.message
    assert error.expected
    assert error.remedy
    for python in ("True", "False", "None", "'"):
        assert python not in (error.given or ""), error.given


def test_a_key_at_its_default_is_not_refused() -> None:
    """A dumped configuration names every key: it must load again."""
    told = ("privacy.colluding_sites=1", "privacy.clipping_rate=0.2", "privacy.trust=site")
    assert load_config(None, overrides=(DEMO, *told)).privacy == PrivacyConfig()


def test_the_comparisons_of_a_run_of_secure_sums_can_be_loaded() -> None:
    """Their settings are written and read again where Flower runs them."""
    sizes = [f"data.public_sizes.s{place}=900" for place in range(9)]
    chosen = ("privacy.min_survivors=7", "privacy.colluding_sites=2", "privacy.delta=1e-4")
    config = load_config(None, overrides=(DEMO, *sizes, *SECURE, *chosen))
    assert cohort_of(config).noise_shares == 5
    for other in (alone(config, "s1"), pooled(config)):
        assert PrivacyConfig.model_validate(other.privacy.model_dump()) == other.privacy


def test_the_permitted_range_of_survivors_is_documented() -> None:
    assert "2 m > n + colluding_sites + 1" in " ".join(template().replace("#", "").split())
