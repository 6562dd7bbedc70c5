"""What spares tests of whole runs a slow search finds what the library itself finds."""

from __future__ import annotations

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from scipy.stats import binom

from ...mixtures import NAME, inverse


@pytest.mark.parametrize("records", [2, 4, 8])
@pytest.mark.parametrize(("rate", "sigma"), [(0.3, 0.9), (0.05, 3.0)])
def test_a_mixture_s_losses_are_those_of_the_library_to_the_bit(
    records: int, rate: float, sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses() -> list[np.ndarray]:
        counts = range(records + 1)
        made = privacy_loss_distribution.from_mixture_gaussian_mechanism(
            standard_deviation=sigma,
            sensitivities=[float(count) for count in counts],
            sampling_probs=[float(binom.pmf(count, records, rate)) for count in counts],
            value_discretization_interval=1e-2,
        )
        return [pmf.to_dense_pmf()._probs for pmf in (made._pmf_remove, made._pmf_add)]

    expected = losses()
    monkeypatch.setattr(NAME, inverse)
    for found, wanted in zip(losses(), expected, strict=True):
        assert len(wanted) > 100
        np.testing.assert_array_equal(found, wanted)
