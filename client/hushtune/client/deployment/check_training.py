"""One training step on the site's own rows with the real model, and what a run would ask of it."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import tomli_w

from hushtune.client.charging import unexpected
from hushtune.client.deployment.check_kinds import Check, failed, of_error, ok, warning
from hushtune.client.deployment.site_file import SiteFile, with_own_rows
from hushtune.client.signed_run import SignedRun
from hushtune.client.site import OwnTerms, agreed_terms
from hushtune.client.terms import Terms
from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.config_io import loads_config
from hushtune.common.errors import HushtuneError
from hushtune.common.lora_rules import RULES
from hushtune.common.planning import site_rank
from hushtune.common.privacy.figures import upwards
from hushtune.common.privacy.ledger_record import read_ledger
from hushtune.common.tasks.assets import resolve_model
from hushtune.common.tasks.data import LabelledRows

if TYPE_CHECKING:
    from hushtune.client.policy import SitePolicy
    from hushtune.common.messages import RoundOrder
    from hushtune.common.privacy.ledger import Limit
    from hushtune.common.privacy.ledger_entry import LedgerEntry
    from hushtune.common.tasks.workspace import Workspace

_MOST_TENSORS = 4


@dataclass(frozen=True, kw_only=True)
class Refused:
    """What a site would refuse, from which round on, and why."""

    what: str
    round: int
    code: str
    reason: str
    do: str = ""


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """What a run would ask of a site: its last order, bytes of a round, and what it would refuse.

    ``num_bytes``: of a round, both ways.
    """

    order: RoundOrder
    num_bytes: int
    refusals: tuple[Refused, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Agreed:
    """What a site agrees to in a run, its limit, and what its ledger holds."""

    policy: SitePolicy
    limit: Limit
    spent: tuple[LedgerEntry, ...]


Foresee = Callable[[RunConfig, str, AdapterState, Agreed | None], Foreseen]
"""The coordinator's part: which orders a site would get, and what it would refuse of them, where
it is told what the site agrees to. It is handed in, as a site's own code knows no server."""


def default_run(site: SiteFile, terms: Terms | None, rows: LabelledRows) -> RunConfig:
    """A run with the default settings over a site's rows, by which a step is tried."""
    units = len(rows.units(rows.sites[site.name].train))
    group = None if terms is None else terms.group
    data = {
        "source": "sites",
        "labels": list(rows.label_names),
        "public_sizes": {site.name: units},
        **({} if group is None else {"group": group}),
    }
    privacy = {"delta": 0.1 / units, "unit": "example" if group is None else "group"}
    task = {"kind": rows.kind.name}
    return loads_config(tomli_w.dumps({"task": task, "data": data, "privacy": privacy}))


def check_training(
    site: SiteFile,
    config: RunConfig,
    terms: Terms | None,
    foresee: Foresee,
    *,
    of_run: bool,
) -> list[Check]:
    """Load the model, take a step, and say what would leave.

    ``of_run``: that the settings are a run's, whose orders the policy is asked about. Nothing is
    charged, written or kept.
    """
    begun = time.monotonic()
    model = str(site.configured(config).model.name)
    try:
        place = resolve_model(model)
    except HushtuneError as error:
        return [of_error("model", error)]
    from hushtune.common.tasks.workspace import open_workspace, resolve

    try:
        config = resolve(config)
        workspace = open_workspace(with_own_rows(site.configured(config), site.name))
    except HushtuneError as error:
        return [of_error("model", error)]
    base = workspace.initial_state.spec.base
    found = [_model(f"{model}, at {place}; sha256 of its weights {base}", base, terms)]
    try:
        agreed = None if terms is None or not of_run else _agreed(site, config, workspace)
        foreseen = foresee(config, site.name, workspace.initial_state, agreed)
    except HushtuneError as error:
        return [*found, of_error("run", error)]
    try:
        found.append(_dry_step(foreseen.order, workspace, site.name, begun=begun))
    except (HushtuneError, MemoryError, RuntimeError) as error:
        known = error if isinstance(error, HushtuneError) else unexpected(error)
        found.append(of_error("training step", known))
    if of_run:
        found.append(_leaves(config, foreseen))
        found += [_refusal(one) for one in foreseen.refusals]
        if agreed is not None and not foreseen.refusals:
            found.append(ok("the run's orders", "the policy refuses none of them"))
    return found


def _model(given: str, base: str, terms: Terms | None) -> Check:
    if terms is not None and terms.base_models and base not in terms.base_models:
        return failed(
            "model",
            given,
            expected=f"{', '.join(terms.base_models)} (base_models in policy.toml)",
            do="get the model that the policy names, or change the policy",
        )
    return ok("model", given)


def _agreed(site: SiteFile, config: RunConfig, workspace: Workspace) -> Agreed:
    spec = replace(workspace.initial_state.spec, rank=site_rank(config, site.name))
    own = OwnTerms.read(site.table.policy)
    signed = SignedRun.of(config, site.name)
    policy, limit = agreed_terms(site.configured(config), site.name, own, spec, signed=signed)
    begun = policy.trust.charges_sites and site.ledger.exists()
    return Agreed(
        policy=policy, limit=limit, spent=read_ledger(site.ledger).entries if begun else ()
    )


def _dry_step(order: RoundOrder, workspace: Workspace, name: str, *, begun: float) -> Check:
    """One step from the run's initial adapter, whose result is forgotten."""
    import numpy as np

    from hushtune.client.train import gradient_sum, train_locally
    from hushtune.common.privacy.noise import NoiseSource
    from hushtune.common.privacy.plan import Trust, Unit

    order = replace(order, local_steps=1)
    task, units = workspace.task, workspace.train_units(name)
    summed = order.plan.trust is Trust.DISTRIBUTED and order.plan.unit is not Unit.CLIENT

    def step() -> None:
        if summed or RULES[order.rule].gradient:
            gradient_sum(order, task=task, units=units, random=np.random.default_rng())
        else:
            random = np.random.default_rng()
            train_locally(order, task=task, units=units, random=random, noise=NoiseSource())

    step()  # also computes what the frozen part gives for each row, once
    prepared = time.monotonic()
    step()
    took = time.monotonic() - prepared
    return ok(
        "training step",
        f"{took:.2f} s for a step, after {prepared - begun:.0f} s of loading; at most "
        f"{peak_megabytes():.0f} MiB of memory{_on_gpu()}; nothing was charged or kept",
    )


def peak_megabytes() -> float:
    """The most memory that this process has had, in MiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def _on_gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return ""
    return f" and {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB of the GPU's"


def _leaves(config: RunConfig, foreseen: Foreseen) -> Check:
    order, plan = foreseen.order, foreseen.order.plan
    tensors = [(key, tuple(order.adapter.tensors[key].shape)) for key in order.sent]
    told = ", ".join(f"{key} {'x'.join(map(str, shape))}" for key, shape in tensors[:_MOST_TENSORS])
    more = f" and {len(tensors) - _MOST_TENSORS} more" if len(tensors) > _MOST_TENSORS else ""
    figures = "" if config.metrics.release == "none" else f"; figures, {config.metrics.release}"
    given = (
        f"in each of {config.train.rounds} rounds {len(tensors)} tensors ({told}{more}), "
        f"{foreseen.num_bytes / 1024:.0f} KiB both ways{figures}"
    )
    if not plan.is_private:
        return warning("what leaves", f"NO PRIVACY: {given}, without noise")
    return ok(
        "what leaves",
        f"{given}; the whole run costs epsilon {upwards(plan.epsilon)} at delta {plan.delta:g}, "
        f"trust {plan.trust}",
    )


def _refusal(one: Refused) -> Check:
    since = "" if one.round <= 1 else f" from round {one.round} on"
    return failed(
        "the run's orders", f"{one.what} is refused{since}: {one.code} {one.reason}", do=one.do
    )
