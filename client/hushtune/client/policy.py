"""The site's own limits, above any order from the server."""

from __future__ import annotations

from dataclasses import dataclass

from hushtune.common.adapter import AdapterSpec
from hushtune.common.errors import PolicyError
from hushtune.common.messages import RoundOrder
from hushtune.common.privacy.accountant import LEAST_NOISE_MULTIPLIER
from hushtune.common.privacy.ledger import Limit
from hushtune.common.privacy.plan import Trust, Unit

_MOST_STEPS = 10**6


@dataclass(frozen=True, kw_only=True, slots=True)
class SitePolicy:
    """What this site agrees to; whatever an order asks beyond it is refused before compute."""

    site: str
    trust: Trust
    limit: Limit
    unit: Unit
    spec: AdapterSpec

    def check(self, order: RoundOrder) -> None:
        """Raise PolicyError, with what was asked and what is allowed, unless an order is fit."""
        plan = order.plan
        self._same("site", order.site, self.site)
        self._same("trust model", plan.trust, self.trust)
        self._same("adapter", order.adapter.spec, self.spec)
        if order.local_steps < 1 or order.local_steps > plan.steps:
            raise PolicyError(
                "an order asks for more steps than its plan has",
                given=order.local_steps,
                expected=f"1 to {plan.steps}",
            )
        if not order.adapter.is_finite():
            raise PolicyError("an order carries an adapter that is not finite")
        if self.trust is Trust.OFF:
            return
        if plan.noise_multiplier < LEAST_NOISE_MULTIPLIER or plan.steps > _MOST_STEPS:
            raise PolicyError(
                "an order asks for too little noise or too many steps to account for",
                given=f"noise multiplier {plan.noise_multiplier:g}, {plan.steps} steps",
                expected=f">= {LEAST_NOISE_MULTIPLIER:g}, <= {_MOST_STEPS}",
            )
        self._same("unit of privacy", plan.unit, self.unit)
        self._same("neighbouring relation", plan.relation, self.limit.relation)
        if plan.delta > self.limit.delta:
            raise PolicyError(
                "an order asks for a larger delta",
                given=plan.delta,
                expected=f"<= {self.limit.delta}",
            )

    def _same(self, what: str, given: object, expected: object) -> None:
        if given != expected:
            raise PolicyError(
                f"an order's {what} is not this site's", given=given, expected=str(expected)
            )
