"""What a site allows to be charged: checked before compute, and again as it is charged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hushtune.common.errors import BudgetExceededError, LedgerError
from hushtune.common.privacy import accountant
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.privacy.plan import Relation
from hushtune.common.privacy.selection import Charged, ChoiceEvent


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """The most that may ever be spent, in all runs, on one data set or on all that a ledger holds.

    `whole_ledger`: every charge in the file counts, whatever data set it names, so that no other
    choice of rows, columns or seed begins with a new budget. None: any number.
    """

    epsilon: float
    delta: float
    relation: Relation
    max_rounds: int | None = None
    max_steps: int | None = None
    whole_ledger: bool = False

    def counted(self, entries: Sequence[LedgerEntry], dataset: str) -> list[LedgerEntry]:
        """The charges that this limit is about."""
        return [entry for entry in entries if self.whole_ledger or entry.dataset == dataset]

    def check(
        self,
        event: Charged,
        entries: Sequence[LedgerEntry],
        *,
        dataset: str,
        run: str,
        unit: str,
    ) -> None:
        """Raise unless one more event may be charged after `entries`, a ledger's charges.

        BudgetExceededError beyond epsilon, rounds or steps. LedgerError for what cannot be added
        up: charges for another unit, since a record and a patient lose different things by one
        event, and another rate or noise within one run, since the accountant composes mechanisms
        that are fixed in advance and not chosen by looking at earlier releases.
        """
        before = self.counted(entries, dataset)
        _check_kind(before, event, run=run, unit=unit)
        steps = sum(entry.event.steps for entry in before) + event.steps
        rounds = len(before) + 1
        if steps > (self.max_steps or steps) or rounds > (self.max_rounds or rounds):
            raise BudgetExceededError(
                "the charge goes beyond the rounds or steps that this site grants its data",
                given=f"{rounds} rounds and {steps} steps with it",
                expected=f"{self.max_rounds or 'any number of'} rounds, "
                f"{self.max_steps or 'any number of'} steps",
            )
        spent = accountant.epsilon(
            [*(entry.event for entry in before), event], delta=self.delta, relation=self.relation
        )
        if spent > self.epsilon:
            raise BudgetExceededError(
                "the charge would exceed the site's privacy budget",
                given=f"epsilon {spent:.4g} with it, after {len(before)} charges",
                expected=f"epsilon <= {self.epsilon:g} at delta {self.delta:g}",
            )

    def check_whole(
        self, events: Sequence[Charged], entries: Sequence[LedgerEntry], *, dataset: str
    ) -> None:
        """Raise BudgetExceededError where `events`, all that a run may charge, go beyond epsilon.

        `entries`: a ledger's charges before the run.
        """
        before = self.counted(entries, dataset)
        whole = accountant.epsilon(
            [*(entry.event for entry in before), *events], delta=self.delta, relation=self.relation
        )
        if whole > self.epsilon:
            raise BudgetExceededError(
                "the whole run, by its signed settings, would exceed the site's privacy budget",
                given=f"epsilon {whole:.4g} after all of it, {len(before)} charges before it",
                expected=f"epsilon <= {self.epsilon:g} at delta {self.delta:g}",
                remedy="the coordinator: begin a run with a lower privacy.epsilon",
            )


def _check_kind(before: Sequence[LedgerEntry], event: Charged, *, run: str, unit: str) -> None:
    others = sorted({entry.unit for entry in before} - {unit})
    if others:
        raise LedgerError(
            "what was charged before was charged for another unit, so the two cannot be added up",
            given=unit,
            expected=", ".join(others),
            remedy="keep to one unit for a data set; what other rows cost needs a ledger of its "
            "own, or a data_set of its own in the policy",
        )
    kinds = {_mechanism(entry.event) for entry in before if entry.run == run}
    if kinds - {_mechanism(event)}:
        raise LedgerError(
            "rate and noise of a run cannot change while it is going on",
            given="sampling probability {:g}, noise multiplier {:g}".format(*_mechanism(event)),
            expected="those of the run's first round",
            remedy="begin a new run",
        )


def _mechanism(event: Charged) -> tuple[float, ...]:
    kinds = event.kinds if isinstance(event, ChoiceEvent) else (event,)
    return tuple(x for kind in kinds for x in (kind.sampling_probability, kind.noise_multiplier))
