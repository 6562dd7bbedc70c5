"""What a run would ask of one site, for the site's own check: the coordinator's code, run there."""

from __future__ import annotations

from hushtune.client.deployment.check_training import Agreed, Foreseen, Refused
from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.errors import BudgetExceededError, SiteError
from hushtune.common.planning import site_plans
from hushtune.server.orders import make_orders
from hushtune.simulations.agreement import OpenedSite, rounds_of, site_refusals
from hushtune.simulations.estimate_bytes import round_bytes
from hushtune.simulations.foreseen_charges import DRY_RUN, TRAINING


def foresee(config: RunConfig, site: str, state: AdapterState, agreed: Agreed | None) -> Foreseen:
    """See ``check_training.Foresee``; ``state``: the complete initial adapter."""
    plans, sizes = site_plans(config), config.data.public_sizes
    rounds = rounds_of(config, plans, site)
    if not rounds:
        raise SiteError(
            "the run draws this site in none of its rounds",
            given=f"simulation.sites_per_round = {config.simulation.sites_per_round}",
            remedy="the coordinator: let every site take part",
        )
    orders = make_orders(
        state, run=DRY_RUN, round=rounds[-1], config=config, plans=plans, sizes=sizes
    )
    sent = round_bytes(config, state)
    refused = ()
    if agreed is not None:
        opened = OpenedSite(agreed.policy, agreed.limit, agreed.spent)
        rows = site_refusals(config, plans, state, opened, site=site, rounds=rounds)
        whole = _unpaid_whole(agreed)
        refused = tuple(
            Refused(
                what=row["what"],
                round=row["round"],
                code=row["code"],
                reason=row["reason"],
                do=row["remedy"] or "",
            )
            for row in rows
            if whole is None or row["code"] != whole.code
        )
        refused = refused if whole is None else (whole, *refused)
    return Foreseen(
        order=orders[site],
        num_bytes=sent.adapter if rounds[-1] > config.train.warmup_rounds else sent.warmup,
        refusals=refused,
    )


def _unpaid_whole(agreed: Agreed) -> Refused | None:
    """What the site says to the first order of a run that its budget cannot pay whole.

    The data set is taken to be the ledger's last: which one a name stands for, its key alone tells.
    """
    signed, spent = agreed.policy.signed, agreed.spent
    if signed is None or not agreed.policy.trust.charges_sites:
        return None
    try:
        dataset = spent[-1].dataset if spent else ""
        agreed.limit.check_whole(signed.events(), spent, dataset=dataset)
    except BudgetExceededError as error:
        return Refused(
            what=TRAINING,
            round=1,
            code=error.code,
            reason=f"{error.message} (given: {error.given}); expected: {error.expected}",
            do=error.remedy or "",
        )
    return None
