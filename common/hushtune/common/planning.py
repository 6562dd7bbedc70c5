"""From a configuration to each site's privacy plan; public numbers only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from hushtune.common.config import (
    DEFAULT_SAMPLING_PROBABILITY,
    AdapterConfig,
    ModelConfig,
    RunConfig,
)
from hushtune.common.config_columns import COLUMNS, WITHOUT_FACTORS
from hushtune.common.errors import HushtuneError, PlanError
from hushtune.common.lora_rules import FEDIT, RULES
from hushtune.common.privacy.batch import check_expected
from hushtune.common.privacy.ledger_entry import unit_name
from hushtune.common.privacy.plan import (
    DpSgdEvent,
    PrivacyPlan,
    Relation,
    Trust,
    Unit,
    make_plan,
)
from hushtune.common.secagg.cohort import Cohort

POOLED = "pooled"
"""Name of the one site that holds everybody's rows, in the pooled baselines."""

KEPT_FOR_WHOLE_NUMBERS = 1e-4
"""Part of epsilon that secure sums keep back for what whole numbers cost: see
``discrete.epsilon_of_the_grid``, which the statement adds."""

_RATE_WITHOUT_NOISE = 0.1
_RATE_ON_COLUMNS, _RATE_ON_COLUMNS_WITHOUT_NOISE = 0.02, 0.005


def rate_or_default(batch_size: int | None, sampling_probability: float | None) -> float | None:
    """The sampling probability that was given, or a run's default where neither was."""
    if batch_size is None and sampling_probability is None:
        return DEFAULT_SAMPLING_PROBABILITY
    return sampling_probability


def site_plans(config: RunConfig) -> dict[str, PrivacyPlan]:
    """The plan of every site over the whole run, by name; raises PlanError where there is none.

    A site that takes part in fewer rounds than all spends less than its plan says, never more.
    Where the units of all sites are protected together, it is one plan for all.
    """
    sizes = config.data.public_sizes
    if Unit(config.privacy.unit) is Unit.CLIENT:
        for site, size in sorted(sizes.items()):  # of a client's own training no plan speaks
            expected = local_rate(config, site) * size
            check_expected(f"client {site}", expected, size, of_clients=False)
        plan = _plan(config, len(sizes), of_clients=True)
        if plan.trust is Trust.DISTRIBUTED:
            cohort_of(config).check_noise(plan.noise_multiplier)
        return dict.fromkeys(sorted(sizes), plan)
    if Trust(config.privacy.trust) is Trust.DISTRIBUTED:
        plan = _plan(config, sum(sizes.values()))
        cohort_of(config).check_noise(plan.noise_multiplier)
        return dict.fromkeys(sorted(sizes), plan)
    return {site: _own_plan(config, site) for site in sorted(sizes)}


def site_plan(config: RunConfig, site: str) -> PrivacyPlan:
    """The plan of one site, as in ``site_plans``, calibrated for it alone where it has its own."""
    privacy = config.privacy
    shared = Unit(privacy.unit) is Unit.CLIENT or Trust(privacy.trust) is Trust.DISTRIBUTED
    return site_plans(config)[site] if shared else _own_plan(config, site)


def _own_plan(config: RunConfig, site: str) -> PrivacyPlan:
    try:
        return _plan(config, config.data.public_sizes[site])
    except HushtuneError as error:
        message = f"site {site}: {error.message}"
        raise type(error)(
            message, given=error.given, expected=error.expected, remedy=error.remedy
        ) from None


def _plan(config: RunConfig, public_size: int, *, of_clients: bool = False) -> PrivacyPlan:
    """The plan over ``public_size`` units; a client's step is a round.

    Clients that take turns are protected by one event for the whole run.
    """
    train, privacy = config.train, config.privacy
    rate = rate_or_default(train.batch_size, train.sampling_probability)
    every = privacy.client_turns if of_clients else None
    if every is not None and every > public_size:
        raise PlanError(
            "there are fewer clients than rounds from one turn to the next",
            given=f"{public_size} clients, privacy.client_turns = {every}",
            expected=f"at most {public_size}",
            remedy="lower privacy.client_turns",
        )
    steps = 1 if every is not None else train.rounds
    alone = sum(steps for _, steps in personal_charges(config))
    local_steps = train.rounds * train.local_steps + alone
    distributed = Trust(privacy.trust) is Trust.DISTRIBUTED
    plan = make_plan(
        epsilon=privacy.epsilon * (1.0 - KEPT_FOR_WHOLE_NUMBERS * distributed),
        delta=privacy.delta,
        public_size=public_size,
        batch_size=None if of_clients else train.batch_size,
        sampling_probability=privacy.client_sampling_probability if of_clients else rate,
        steps=steps if of_clients else local_steps,
        clip_norm=privacy.clip_norm,
        unit=Unit(privacy.unit),
        relation=Relation(privacy.relation),
        trust=Trust(privacy.trust),
        also=metrics_events(config),
    )
    plan = replace(plan, epsilon=privacy.epsilon) if distributed else plan
    return plan if every is None else replace(plan, denominator=public_size / every)


def personal_charges(config: RunConfig) -> list[tuple[int, int]]:
    """The rounds after which a site trains for itself alone, each with its number of steps."""
    train, personal = config.train, config.personal
    if personal.method == "ditto":
        after = range(train.warmup_rounds + 1, train.rounds + 1)
        return [(number, train.local_steps) for number in after]
    return [(train.rounds, personal.steps)] if personal.method == "finetune" else []


def site_rank(config: RunConfig, site: str) -> int:
    """The rank of a site's adapter."""
    return config.adapter.ranks.get(site, config.adapter.rank)


def global_rank(config: RunConfig) -> int:
    """The rank of the global adapter: the highest that a site has, or may have."""
    return max(config.adapter.rank, *config.adapter.ranks.values(), 1)


def local_rate(config: RunConfig, site: str) -> float:
    """A record's chance to be in a step of a client's own training, of which no plan speaks."""
    train, size = config.train, config.data.public_sizes[site]
    rate = rate_or_default(train.batch_size, train.sampling_probability)
    return min(1.0, (train.batch_size or 0) / size) if rate is None else rate


def local_batch(config: RunConfig, site: str, plan: PrivacyPlan) -> float:
    """The expected number of units in a step at a site."""
    if plan.unit is Unit.CLIENT:
        return local_rate(config, site) * config.data.public_sizes[site]
    if plan.trust is Trust.DISTRIBUTED:  # the plan, and its denominator, is of all sites together
        return plan.sampling_probability * config.data.public_sizes[site]
    return plan.denominator


def cohort_of(config: RunConfig) -> Cohort:
    """The sites of a run's secure sums; PlanError where they could protect nothing."""
    sites = tuple(sorted(config.data.public_sizes))
    least = config.privacy.min_survivors
    return Cohort(
        sites=sites,
        min_survivors=len(sites) if least is None else least,
        colluding=config.privacy.colluding_sites,
    )


def least_sites(config: RunConfig) -> tuple[int, str]:
    """How many sites must be left for a round to count, and the setting that says so."""
    if Trust(config.privacy.trust) is Trust.DISTRIBUTED:
        return cohort_of(config).min_survivors, "privacy.min_survivors"
    return config.simulation.quorum, "simulation.quorum"


def charged_unit(config: RunConfig) -> str:
    """What a run's charges are for, as ledgers call it."""
    if Unit(config.privacy.unit) is Unit.CLIENT:
        return str(Unit.CLIENT)
    return unit_name(config.data.group)


def metrics_rounds(config: RunConfig) -> tuple[int, ...]:
    """The rounds after which the sites tell how the global model does; none if nothing leaves."""
    if config.metrics.release == "none":
        return ()
    last, every = config.train.rounds, config.metrics.every
    return tuple(sorted({*range(every, last + 1, every), last}))


def metrics_events(config: RunConfig) -> list[DpSgdEvent]:
    """What a site's own figures cost over the whole run; none where they are plain or absent."""
    if config.metrics.release != "noised" or config.privacy.trust == Trust.OFF:
        return []
    noise = config.metrics.noise_multiplier
    once = DpSgdEvent(sampling_probability=1.0, noise_multiplier=noise, steps=1)
    return [once for _ in metrics_rounds(config)]


def public_held_out(config: RunConfig, site: str) -> float:
    """The number of validation units that follows from a site's public size and the fractions."""
    held_out = config.data.validation_fraction
    training = 1.0 - held_out - config.data.tested_fraction
    return max(1.0, config.data.public_sizes[site] * held_out / training)


def alone(config: RunConfig, site: str) -> RunConfig:
    """The same run with one site only."""
    return _with_sizes(config, {site: config.data.public_sizes[site]})


def pooled(config: RunConfig) -> RunConfig:
    """The same run with all rows at one place, and the sites' expected batches in one."""
    sizes = config.data.public_sizes
    total = sum(sizes.values())
    joined = _with_sizes(config, {POOLED: total})
    batch = sum(plan.denominator for plan in site_plans(not_private(_at_sites(config))).values())
    if joined.privacy.delta >= 1 / total:
        # Fine for each site, and none for so many rows at one place: a stricter one is.
        privacy = joined.privacy.model_copy(update={"delta": 0.5 / total})
        joined = joined.model_copy(update={"privacy": privacy})
    train = joined.train.model_copy(
        update={"batch_size": None, "sampling_probability": min(1.0, batch / total)}
    )
    return joined.model_copy(update={"train": train})


def not_private(config: RunConfig) -> RunConfig:
    """The same run without privacy, at a tenth of a private run's learning rates.

    Rates that suit noised gradients overshoot without noise: on the demo's data pooled training
    reaches 0.77 with them and 0.82 with a tenth.
    """
    if config.privacy.trust == Trust.OFF:
        return config
    train = config.train
    rates = {
        "learning_rate": train.learning_rate * _RATE_WITHOUT_NOISE,
        "warmup_learning_rate": train.warmup_learning_rate * _RATE_WITHOUT_NOISE,
    }
    return config.model_copy(
        update={
            "privacy": config.privacy.model_copy(update={"trust": Trust.OFF.value}),
            "train": train.model_copy(update=rates),
        }
    )


def head_only(config: RunConfig) -> RunConfig:
    """The same run with the head alone trained, on frozen features."""
    train = config.train.model_copy(update={"warmup_rounds": config.train.rounds})
    return config.model_copy(update={"train": train})


def on_columns(config: RunConfig) -> RunConfig:
    """The same run of a small network on the columns, at a learning rate of its own.

    Both rates were found on validation rows of loans and of tests for COVID-19 (docs/tasks.md).
    """
    rule = config.aggregation.rule
    noised = config.privacy.trust != Trust.OFF
    rate = _RATE_ON_COLUMNS if noised else _RATE_ON_COLUMNS_WITHOUT_NOISE
    update = {
        "model": ModelConfig(name=COLUMNS, precision="float32"),
        "adapter": AdapterConfig(),
        "aggregation": config.aggregation.model_copy(
            update={"rule": rule if rule in WITHOUT_FACTORS else FEDIT.name}
        ),
        "train": config.train.model_copy(update={"warmup_rounds": 0, "learning_rate": rate}),
    }
    return config.model_copy(update=update)


def _with_sizes(config: RunConfig, sizes: Mapping[str, int]) -> RunConfig:
    simulation = config.simulation.model_copy(update={"sites_per_round": 0, "quorum": 1})
    data = config.data.model_copy(update={"public_sizes": dict(sizes)})
    # Of one site every estimate is its update, and none could be wary of it.
    plain: dict[str, object] = {"estimate": "mean", "faulty_sites": None, "norm_bound": None}
    if RULES[config.aggregation.rule].kept:  # with nobody to share with, nothing is kept apart
        plain["rule"] = FEDIT.name
    update = {
        "data": data,
        "simulation": simulation,
        "aggregation": config.aggregation.model_copy(update=plain),
        "adapter": config.adapter.model_copy(
            update={"rank": max(_ranks(config, sizes)), "ranks": {}}
        ),
    }
    return _at_sites(config.model_copy(update=update))


def _ranks(config: RunConfig, sites: Iterable[str]) -> list[int]:
    """The ranks of sites, or of all of them together."""
    return [global_rank(config) if s == POOLED else site_rank(config, s) for s in sites]


def _at_sites(config: RunConfig) -> RunConfig:
    """The same run with the records of each place protected there, as one place alone can."""
    if config.privacy.trust in (Trust.SITE, Trust.OFF):
        return config
    unit = Unit.GROUP if config.data.group is not None else Unit.EXAMPLE
    update: dict[str, object] = {"trust": Trust.SITE.value, "unit": unit.value}
    update |= {"client_sampling_probability": 1.0, "client_turns": None, "adaptive_clipping": False}
    update |= {"clipping_quantile": 0.5, "clipping_rate": 0.2}
    update |= {"colluding_sites": 1, "min_survivors": None}
    return config.model_copy(update={"privacy": config.privacy.model_copy(update=update)})
