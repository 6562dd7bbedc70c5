"""Membership inference against the trained head: whose rows were in, guessed from their losses.

The game: half of each site's training rows are in, by fair coins, and the run is trained on them
with its own noise. Two attacks on the final model, on the same rows:

- *loss*: a row that was in has a lower loss (Yeom et al. 1709.01604).
- *LiRA*, offline (Carlini et al. 2112.03570): the row's confidence, as a logit, against what it is
  under shadow models that were trained on other halves without it. With few shadows one spread
  serves all rows, as in the paper.

They show what such attacks reach, and bound nothing: a better attack may reach more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

from hushtune.client.site import Site
from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.seeds import rng
from hushtune.common.tasks.workspace import Workspace
from hushtune.simulations.audit.bounds import Scores
from hushtune.simulations.audit.federation import federated
from hushtune.simulations.audit.wrap import Plant, planted, sites_with

FALSE_ALARMS = (1e-2, 1e-3)
_LEAST_LOSS = 1e-7


@dataclass(frozen=True)
class Attack:
    """Scores of rows, higher for those that look as if they had been in, and whether they were."""

    name: str
    scores: Scores  # (n,)
    included: np.ndarray  # (n,), bool

    def curve(self) -> tuple[Scores, Scores]:
        """False and true alarm rates of all thresholds."""
        false, true, _ = roc_curve(self.included, self.scores, drop_intermediate=False)
        return false, true

    def figures(self) -> dict[str, float | None]:
        """Area under the curve, and hits at few false alarms; None where there are too few rows."""
        false, true = self.curve()
        others = int((~self.included).sum())
        found: dict[str, float | None] = {
            f"tpr_at_{rate:g}": float(true[false <= rate].max()) if others * rate >= 1 else None
            for rate in FALSE_ALARMS
        }
        return {"auc": float(roc_auc_score(self.included, self.scores)), **found}


def attacks(
    config: RunConfig, workspace: Workspace, *, shadows: int, seed: int, fault: Plant | None
) -> list[Attack]:
    """Both attacks on one run, with so many shadow models."""
    sites = sorted(config.data.public_sizes)
    pool = {site: workspace.rows(site, "train") for site in sites}
    rows = np.concatenate([pool[site] for site in sites])

    def trained(name: str) -> tuple[np.ndarray, AdapterState]:
        coins = {s: rng(seed, "membership", name, s).random(len(pool[s])) < 0.5 for s in sites}

        def half(site: Site) -> Site:
            stays = np.isin(site.units.rows, pool[site.name][coins[site.name]])
            return replace(site, units=site.units.take(np.flatnonzero(stays)))

        with planted(fault), sites_with(half):
            state = federated(config, workspace).result.state
        return np.concatenate([coins[site] for site in sites]), state

    def losses(state: AdapterState) -> Scores:
        return workspace.task.row_figures(state, rows)[1].double().numpy()

    included, target = trained("target")
    of_target = losses(target)
    found = [Attack("loss", -of_target, included)]
    if shadows:
        of_shadows = [trained(f"shadow {number}") for number in range(shadows)]
        outside = np.stack([~coins for coins, _ in of_shadows])  # (shadows, n)
        confidences = np.stack([confidence(losses(state)) for _, state in of_shadows])
        scores = likelihood_ratios(confidence(of_target), confidences, outside)
        found.append(Attack("LiRA, offline", scores, included))
    return found


def confidence(losses: Scores) -> Scores:
    """``log(p / (1 - p))`` of ``p = exp(-loss)``: close to a Gaussian over models.

    >>> confidence(np.array([np.log(2)])).round(6).tolist()
    [0.0]
    """
    bounded = np.maximum(losses, _LEAST_LOSS)
    return -bounded - np.log(-np.expm1(-bounded))


def likelihood_ratios(target: Scores, shadows: Scores, outside: np.ndarray) -> Scores:
    """How far each row's confidence ``(n,)`` lies above that of shadows ``(k, n)`` without it.

    In units of one spread for all rows; 0 for a row that every shadow had.
    """
    counts = outside.sum(0)
    means = np.where(outside, shadows, 0.0).sum(0) / np.maximum(counts, 1)
    spread = np.sqrt(np.mean(((shadows - means) ** 2)[outside])) or 1.0
    return np.where(counts > 0, (target - means) / spread, 0.0)


def told(found: list[Attack], *, shadows: int) -> Mapping[str, object]:
    """JSON-ready figures of the attacks."""
    first = found[0]
    return {
        "members": int(first.included.sum()),
        "others": int((~first.included).sum()),
        "shadows": shadows,
        "attacks": {attack.name: attack.figures() for attack in found},
    }
