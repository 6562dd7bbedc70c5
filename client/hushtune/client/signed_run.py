"""What the settings of a run that a coordinator has signed let its server order of a site.

A site's policy bounds all that it ever spends. Within one run no more is to be spent than the run's
settings say, and the site's people have read: the plan, the rounds, the steps and the tensors of
each order, and the noise of figures, are those that follow from the settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from hushtune.common.config import RunConfig
from hushtune.common.errors import PolicyError
from hushtune.common.lora_rules import RULES, all_trainable
from hushtune.common.messages import RoundOrder
from hushtune.common.metrics_messages import MetricsOrder
from hushtune.common.planning import cohort_of, metrics_rounds, personal_charges, site_plan
from hushtune.common.privacy.accountant import CALIBRATION_TOLERANCE
from hushtune.common.privacy.plan import DpSgdEvent, PrivacyPlan, Trust, Unit
from hushtune.common.run_steps import round_of_number, steps_of_round, trainable_of
from hushtune.common.secagg.cohort import Cohort
from hushtune.common.secagg.wire import KeysOrder


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedRun:
    """What a run's settings make of one site's orders.

    ``plan``: the site's. ``numbers``: orders of training are numbered from 1 to this, each of
    ``steps`` charged steps; ``personal``: steps for the site alone by round. ``figures``: the
    rounds after which figures are told, with the noise ``figures_noise``, None for plain ones.
    ``cohort``: of the run's secure sums, if it has any. ``config``: the settings themselves.
    """

    plan: PrivacyPlan
    numbers: int
    steps: int
    personal: Mapping[int, int]
    figures: tuple[int, ...]
    figures_noise: float | None
    cohort: Cohort | None
    config: RunConfig

    @classmethod
    def of(cls, config: RunConfig, site: str) -> SignedRun:
        """By the functions that the server itself plans with; raises PlanError as they do."""
        client = Unit(config.privacy.unit) is Unit.CLIENT
        a_round = steps_of_round(config)
        return cls(
            plan=site_plan(config, site),
            numbers=config.train.rounds * a_round,
            steps=1 if client or a_round > 1 else config.train.local_steps,
            personal=dict(personal_charges(config)),
            figures=metrics_rounds(config),
            figures_noise=(
                config.metrics.noise_multiplier if config.metrics.release == "noised" else None
            ),
            cohort=(
                cohort_of(config) if Trust(config.privacy.trust) is Trust.DISTRIBUTED else None
            ),
            config=config,
        )

    def events(self) -> list[DpSgdEvent]:
        """All that the run may have this site's ledger charge: steps, personal steps, figures."""
        figures: list[DpSgdEvent] = []
        if self.figures_noise is not None:
            once = DpSgdEvent(
                sampling_probability=1.0, noise_multiplier=self.figures_noise, steps=1
            )
            figures = [once] * len(self.figures)
        if self.plan.trust is Trust.OFF:  # where training costs nothing that could be charged
            return figures
        steps = [self.steps] * self.numbers + list(self.personal.values())
        return [*map(self.plan.event, steps), *figures]

    def check(self, order: RoundOrder) -> None:
        """Raise PolicyError unless an order of training is the run's."""
        self.check_plan(order.plan)
        charged = 1 if order.plan.unit is Unit.CLIENT else order.local_steps
        if order.personal:
            steps, known = self.personal.get(order.round, 0), tuple(sorted(self.personal))
            steps = min(steps, 1) if order.plan.unit is Unit.CLIENT else steps
        else:
            steps = self.steps if order.round <= self.numbers else 0
            known = (1, self.numbers)
        if charged != steps:
            ends = f"{known[0]} to {known[-1]}" if known else "none"
            raise PolicyError(
                "an order is none of the run's, as its signed settings have it",
                given=f"number {order.round}, {charged} steps",
                expected=f"numbers {ends}, {steps or self.steps} steps each",
            )

        self._check_trained(order)

    def _check_trained(self, order: RoundOrder) -> None:
        """Raise PolicyError unless an order trains what its round does: what else it trained would
        be released under a plan that the site's people have read for something else."""
        spec = order.adapter.spec
        if order.personal:
            expected = tuple(sorted(all_trainable(RULES[self.config.aggregation.rule], spec)))
        else:
            number = round_of_number(self.config, order.round)
            expected = trainable_of(self.config, spec, round=number)
        if tuple(sorted(order.trainable)) != expected:
            strange = sorted(set(order.trainable) ^ set(expected))
            raise PolicyError(
                "an order trains other tensors than its round does, as the run's signed settings "
                "have it",
                given=f"number {order.round}: {len(order.trainable)} tensors, such as "
                f"{(strange or ['one of them twice'])[0][:100]}",
                expected=f"{len(expected)} tensors",
            )

    def check_session(self, order: KeysOrder) -> None:
        """Raise PolicyError unless a session of secure sums is of the run's plan and steps."""
        self.check_plan(order.plan)
        if order.cohort != self.cohort:  # of which each site's share of the noise follows
            raise PolicyError(
                "a secure sum is of other sites, or promises less, than the run's signed settings",
                given=_words(order.cohort),
                expected="no secure sum" if self.cohort is None else _words(self.cohort),
            )
        if order.steps[-1] > self.numbers:
            raise PolicyError(
                "a secure sum has steps beyond the run's, as its signed settings have it",
                given=str(order.steps[-1]),
                expected=f"1 to {self.numbers}",
            )

    def check_metrics(self, order: MetricsOrder) -> None:
        """Raise PolicyError unless figures are asked for when and as the run says."""
        given = (order.round, order.noise_multiplier)
        if order.round not in self.figures or order.noise_multiplier != self.figures_noise:
            raise PolicyError(
                "an order asks for figures that the run's signed settings do not have",
                given=f"round {given[0]}, noise multiplier {given[1]}",
                expected=f"rounds {', '.join(map(str, self.figures))[:100] or 'none'}, "
                f"noise multiplier {self.figures_noise}",
            )

    def check_plan(self, plan: PrivacyPlan) -> None:
        """Raise PolicyError for another plan.

        Calibrated noise may differ by the tolerance of its calibration, as another machine's
        arithmetic may; everything else is exact.
        """
        for field in fields(PrivacyPlan):
            given, expected = getattr(plan, field.name), getattr(self.plan, field.name)
            near = (
                field.name == "noise_multiplier"
                and self.plan.trust is not Trust.OFF
                and abs(given - expected) <= CALIBRATION_TOLERANCE * expected
            )
            if given != expected and not near:
                raise PolicyError(
                    "an order has another plan than the run's signed settings give",
                    given=f"{field.name} {given}",
                    expected=f"{field.name} {expected}",
                    remedy="the coordinator: begin a run with the settings that are meant",
                )


def _words(cohort: Cohort) -> str:
    return (
        f"{len(cohort.sites)} sites, {cohort.min_survivors} to survive, "
        f"{cohort.colluding} that may collude"
    )
