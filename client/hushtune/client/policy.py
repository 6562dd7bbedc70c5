"""The site's own limits, above any order from the server."""

from __future__ import annotations

from dataclasses import dataclass

from hushtune.client.signed_run import SignedRun
from hushtune.client.terms import Terms
from hushtune.common.adapter import AdapterSpec, AdapterState
from hushtune.common.errors import PolicyError
from hushtune.common.lora_rules import RULES, all_trainable
from hushtune.common.messages import RoundOrder
from hushtune.common.metrics_messages import MetricsOrder
from hushtune.common.privacy.plan import PrivacyPlan, Relation, Trust, Unit
from hushtune.common.secagg.wire import KeysOrder


@dataclass(frozen=True, kw_only=True, slots=True)
class SitePolicy:
    """What this site agrees to; whatever an order asks beyond it is refused before compute.

    ``public_size`` is the declared number of its units, ``spec`` describes the adapters of the
    model that it has loaded. ``run_sites``: all sites that the run declares, sorted; none where
    they are not known. ``signed``: what the settings that a coordinator has signed let be ordered;
    None where nobody has signed any.
    """

    site: str
    trust: Trust
    spec: AdapterSpec
    public_size: int
    terms: Terms
    run_sites: tuple[str, ...] = ()
    signed: SignedRun | None = None

    def check(self, order: RoundOrder) -> None:
        """Raise PolicyError, with what was asked and what is allowed, unless an order is fit."""
        self._same("site", order.site, self.site)
        self._same("trust model", order.plan.trust, self.trust)
        self._same("adapter", order.adapter.spec, self.spec)
        self._check_model(order)
        charged = 1 if order.plan.unit is Unit.CLIENT else order.local_steps
        if order.local_steps < 1 or charged > order.plan.steps:
            raise PolicyError(
                "an order asks for more steps than its plan has",
                given=order.local_steps,
                expected=f"1 to {order.plan.steps}",
            )
        if not order.adapter.is_finite():
            raise PolicyError("an order carries an adapter that is not finite")
        if self.trust is not Trust.OFF:
            self._check_plan(order.plan)
            if self.trust is Trust.SITE and order.plan.unit is Unit.CLIENT:
                raise PolicyError(
                    "a whole client cannot be protected by noise at the site",
                    given=f"unit {order.plan.unit}",
                    expected=str(self.terms.unit),
                )
        if self.signed is not None:
            self.signed.check(order)

    def check_session(self, order: KeysOrder) -> None:
        """Raise PolicyError unless this site may take part in a secure sum of these sites."""
        self._same("site", order.site, self.site)
        self._same("trust model", self.trust, Trust.DISTRIBUTED)
        self._same("trust model", order.plan.trust, Trust.DISTRIBUTED)
        self._check_plan(order.plan)
        if self.site not in order.cohort.sites:
            raise PolicyError("a secure sum is between others", given=self.site)
        if self.run_sites and order.cohort.sites != self.run_sites:
            raise PolicyError(
                "a secure sum is not between the sites of this run",
                given=", ".join(order.cohort.sites)[:200],
                expected=", ".join(self.run_sites)[:200],
            )
        strange = sorted(set(order.cohort.sites) - {self.site, *self.terms.peers})
        if self.terms.peers and strange:
            raise PolicyError(
                "a secure sum is with sites that this site does not know",
                given=strange[0][:100],
                expected=f"{', '.join(self.terms.peers)[:200]} (peers)",
            )
        order.cohort.check_noise(order.plan.noise_multiplier)
        if order.cohort.colluding < self.terms.colluding_sites:
            raise PolicyError(
                "a secure sum withstands fewer false sites than this site asks for",
                given=order.cohort.colluding,
                expected=f">= {self.terms.colluding_sites} (colluding_sites)",
            )
        if self.signed is not None:
            self.signed.check_session(order)

    def check_metrics(self, order: MetricsOrder) -> None:
        """Raise PolicyError unless this site may tell what an order asks it to tell."""
        terms, noise = self.terms, order.noise_multiplier
        self._same("site", order.site, self.site)
        self._same("adapter", order.adapter.spec, self.spec)
        self._check_base(order.adapter.spec)
        self._check_change(order.adapter)
        if not order.adapter.is_finite():
            raise PolicyError("an order carries an adapter that is not finite")
        if self.signed is not None:
            self.signed.check_metrics(order)
        if self.trust is Trust.OFF:
            return
        self._same("unit of privacy", str(order.unit), terms.unit)
        self._same("neighbouring relation", str(order.relation), terms.relation)
        allowed = {"none": (), "noised": ("noised",), "public": ("noised", "public")}
        if ("public" if noise is None else "noised") not in allowed[terms.metrics]:
            raise PolicyError(
                "an order asks for figures that this site does not release",
                given="plain figures" if noise is None else "noised figures",
                expected=f"metrics: {terms.metrics}",
            )
        if noise is not None and noise < terms.min_metrics_noise_multiplier:
            raise PolicyError(
                "an order asks for figures with too little noise",
                given=f"noise multiplier {noise:g}",
                expected=f">= {terms.min_metrics_noise_multiplier:g}",
            )

    def _check_base(self, spec: AdapterSpec) -> None:
        if self.terms.base_models and spec.base not in self.terms.base_models:
            raise PolicyError(
                "the base model is not one that this site trains on",
                given=spec.base,
                expected=", ".join(self.terms.base_models),
            )

    def _check_model(self, order: RoundOrder) -> None:
        terms, spec = self.terms, order.adapter.spec
        self._check_base(spec)
        if order.rule not in RULES or order.rule not in terms.rules:
            raise PolicyError(
                "the rule of aggregation is not one that this site takes part in",
                given=order.rule[:40],
                expected=", ".join(terms.rules),
            )
        rule = RULES[order.rule]
        beyond = set(order.trainable) - all_trainable(rule, spec)
        if beyond:
            raise PolicyError(
                f"an order trains what its rule {order.rule} does not", given=min(beyond)[:100]
            )
        if order.adapter.keys != spec.all_keys() and not rule.changes_base:
            raise PolicyError(
                f"an order changes the frozen weights, which its rule {order.rule} does not",
                given=next(key for key in order.adapter.keys if key not in spec.all_keys()),
            )
        self._check_change(order.adapter)
        secure_sum = order.plan.trust is Trust.DISTRIBUTED and order.plan.unit is not Unit.CLIENT
        if rule.kept and secure_sum:
            raise PolicyError(
                "an order's rule has each site take steps of its own, which no sum of gradients "
                "covers with noise",
                given=f"{order.rule}, unit {order.plan.unit}",
                expected="another rule, or a secure sum of whole clients",
            )
        if order.control is not None and self.trust is not Trust.OFF:
            raise PolicyError(
                "an order has a control variate, which no noise covers",
                expected="none, but where privacy is off",
            )
        ends = tuple(terms.targets)
        strange = [name for name in spec.targets if ends and not name.endswith(ends)]
        if strange or spec.rank > terms.max_rank:
            raise PolicyError(
                "an order adapts modules, or at a rank, that this site does not allow",
                given=strange[0] if strange else f"rank {spec.rank}",
                expected=", ".join(ends) if strange else f"rank <= {terms.max_rank}",
            )

    def _check_change(self, adapter: AdapterState) -> None:
        """Of the frozen weights, which costs time and memory by its rank."""
        most = self.terms.max_base_rank
        changes = {name: adapter.base_change(name) for name in adapter.spec.targets}
        ranks = {name: len(change[0]) for name, change in changes.items() if change is not None}
        widest = max(ranks, key=ranks.__getitem__, default="")
        if most and ranks and ranks[widest] > most:
            raise PolicyError(
                "an order changes the frozen weights at a rank that this site does not allow",
                given=f"rank {ranks[widest]} in {widest[:100]}",
                expected=f"rank <= {most} (max_base_rank)",
                remedy="a run of fewer rounds or sites, or another rule",
            )

    def _check_plan(self, plan: PrivacyPlan) -> None:
        terms = self.terms
        self._same("unit of privacy", str(plan.unit), terms.unit)
        self._same("neighbouring relation", str(plan.relation), terms.relation)
        if plan.delta > terms.max_delta:
            raise PolicyError(
                "an order asks for a larger delta",
                given=plan.delta,
                expected=f"<= {terms.max_delta}",
            )
        if plan.trust is Trust.SERVER:
            self._check_server_plan(plan)
        if plan.noise_multiplier < terms.min_noise_multiplier:
            raise PolicyError(
                "an order asks for too little noise",
                given=f"noise multiplier {plan.noise_multiplier:g}",
                expected=f">= {terms.min_noise_multiplier:g}",
            )
        batch = plan.sampling_probability * self.public_size
        if batch < terms.min_batch and plan.unit is not Unit.CLIENT:
            raise PolicyError(
                "an order asks for too small a batch",
                given=f"{batch:g} of {self.public_size} expected",
                expected=f">= {terms.min_batch:g}",
            )

    def _check_server_plan(self, plan: PrivacyPlan) -> None:
        """What the server says that the whole run costs; it keeps the ledger, and is believed."""
        from hushtune.common.privacy.accountant import epsilon  # takes a second to import

        terms = self.terms
        cost = epsilon(
            [plan.event(plan.steps)], delta=terms.max_delta, relation=Relation(terms.relation)
        )
        if cost > terms.max_epsilon:
            raise PolicyError(
                "an order is of a run that costs more than this site allows",
                given=f"epsilon {cost:.4g} at delta {terms.max_delta:g}",
                expected=f"<= {terms.max_epsilon:g}",
            )

    def _same(self, what: str, given: object, expected: object) -> None:
        if given != expected:
            raise PolicyError(
                f"an order's {what} is not this site's", given=given, expected=str(expected)
            )
