"""A mixture's privacy loss is the library's own, to the bit."""

from __future__ import annotations

import pytest
from dp_accounting.pld.privacy_loss_distribution import from_mixture_gaussian_mechanism
from numpy.testing import assert_array_equal
from scipy.stats import binom

from hushtune.common.privacy.mixtures import mixture_distribution


@pytest.mark.parametrize(
    ("records", "rate", "sigma"),
    [(1, 0.5, 1.0), (2, 0.06, 1.2), (3, 1e-3, 2.0), (4, 0.3, 0.9), (6, 0.9, 4.0), (8, 0.05, 3.0)],
)
@pytest.mark.parametrize("interval", [5e-3, 2e-2])
def test_it_is_the_library_s_to_the_bit(
    records: int, rate: float, sigma: float, interval: float
) -> None:
    counts = [float(count) for count in range(records + 1)]
    chances = [float(binom.pmf(count, records, rate)) for count in counts]
    found = mixture_distribution(
        sigma=sigma, sensitivities=counts, chances=chances, interval=interval
    )
    expected = from_mixture_gaussian_mechanism(
        sigma, counts, chances, value_discretization_interval=interval
    )
    for name in ("_pmf_remove", "_pmf_add"):
        ours, theirs = (getattr(one, name).to_dense_pmf() for one in (found, expected))
        assert_array_equal(ours._probs, theirs._probs)
    for delta in (1e-3, 1e-8):
        assert found.get_epsilon_for_delta(delta) == expected.get_epsilon_for_delta(delta)


def test_what_the_library_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match="Standard deviation"):
        mixture_distribution(sigma=0.0, sensitivities=[1.0], chances=[1.0], interval=0.01)
