"""Whether a site has enough rows for the privacy that is asked for, by the planner's figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hushtune.common.config import RunConfig
from hushtune.common.errors import HushtuneError
from hushtune.common.privacy.plan import Relation, Trust, Unit
from hushtune.simulations.datacheck.findings import Finding, Level
from hushtune.simulations.datacheck.gathered import of_error
from hushtune.simulations.planner import plan_run
from hushtune.simulations.planner_outline import Outline


def size(sizes: Mapping[str, int], config: RunConfig) -> Iterator[Finding]:
    """Of each site its expected batch, noise, and signal to noise over the run.

    ``sizes``: training rows or groups of each site.
    """
    privacy, train = config.privacy, config.train
    if privacy.trust == Trust.OFF:
        yield Finding("size", Level.NOTE, "not judged: privacy.trust = off adds no noise")
        return
    if privacy.unit == Unit.CLIENT:
        text = "not judged: with privacy.unit = client it is the number of clients that counts"
        yield Finding("size", Level.NOTE, text, "hushtune plan --clients NUMBER")
        return
    outline = Outline(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        rounds=train.rounds,
        local_steps=train.local_steps,
        batch_size=train.batch_size,
        sampling_probability=train.sampling_probability,
        clip_norm=privacy.clip_norm,
        relation=Relation(privacy.relation),
    )
    unit = "training rows" if config.data.group is None else "groups to train on"
    try:
        figures = plan_run(sizes, outline)
    except HushtuneError as error:
        yield of_error("size", error)
        return
    for name, site in figures["sites"].items():
        told = f"{name} has {site['rows']} {unit}"
        for warning in site["warnings"] if not site["takes_part"] else ():
            text = f"{told}: too small for this run. {warning['message']}"
            yield Finding("size", Level.PROBLEM, text, warning["remedy"])
        if not site["takes_part"]:
            continue
        text = (
            f"{told}: an expected batch of {site['batch']:.1f}, a noise multiplier of "
            f"{site['noise_multiplier']:.2f} for epsilon {privacy.epsilon:g}, and signal to noise "
            f"of at most {site['signal_to_noise']['run']:.2g} over the run, for "
            f"{figures['trained_values']} trained values"
        )
        faint = site["warnings"]
        yield Finding(
            "size",
            Level.WARNING if faint else Level.NOTE,
            f"{text}: too small for epsilon {privacy.epsilon:g} alone" if faint else text,
            faint[0]["remedy"] if faint else "",
        )
    federation = figures["federation"]
    if federation is not None and len(sizes) > 1:
        ratio = federation["signal_to_noise"]["run"]
        yield Finding(
            "size", Level.NOTE, f"all sites together: signal to noise of at most {ratio:.2g}"
        )
