"""How many bytes a round sends between server and sites, before it is run."""

from __future__ import annotations

import json
from dataclasses import dataclass

from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.encoding import encode
from hushtune.common.lora_rules import RULES, sent_keys, trainable_keys
from hushtune.common.planning import cohort_of
from hushtune.common.privacy.plan import Trust
from hushtune.common.run_steps import trainable_of
from hushtune.common.secagg.cohort import Cohort
from hushtune.server.steps import steps_of_round

_TEXT_OF_ORDER = 1024
"""About, of what a message says beside the adapter that it carries."""
_HEADER = 2048
"""What goes with an adapter: names, shapes, the plan, a charge."""
_TEXT, _CHARGE = 192, 768
"""Of a message of a secure sum without an adapter, beside what is counted; and with a charge."""
_PLAN = 512
# Hexadecimal, with the quotes and commas of JSON.
_KEYS, _SEALING_KEY = 136, 112  # a site's two keys of a step; its one of a session
_SHARES, _SEAL = 148, 40  # two shares of a step, sealed; what sealing adds
_SHARE = 40
_SIGNATURE = 136


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundBytes:
    """Of a round with one site: bytes in both directions, and messages that it is sent.

    ``adapter``: of the last round after the warm-up, whose adapters are as many as of any;
    ``total``: of all rounds.
    """

    warmup: int
    adapter: int
    exchanges: int
    total: int


def round_bytes(config: RunConfig, state: AdapterState) -> RoundBytes:
    """What one site and the server send each other in a round, in warm-up and after it.

    ``state``: the complete adapter. A little more than is sent: texts are taken at their longest.
    Figures that sites tell of the model are not counted.
    """
    rule, train = RULES[config.aggregation.rule], config.train
    # A language model has no head to send alone, and so no warm-up.
    alone = trainable_keys(rule, state.spec, turn=None) if state.spec.head else ()
    head = _bytes_of(config, state, alone)
    adapted = range(train.warmup_rounds + 1, train.rounds + 1)
    if train.unfreeze == "gradual":
        trained = [trainable_of(config, state.spec, round=number) for number in adapted]
        each = {keys: _bytes_of(config, state, keys) for keys in set(trained)}
        full, total = max(each.values()), sum(each[keys] for keys in trained)
    else:
        full = _bytes_of(config, state, trainable_keys(rule, state.spec, turn=0))
        total = len(adapted) * full
    return RoundBytes(
        warmup=head,
        adapter=full,
        exchanges=_exchanges(config),
        total=train.warmup_rounds * head + total,
    )


def _exchanges(config: RunConfig) -> int:
    """Messages of a round that one site is sent."""
    steps = steps_of_round(config)
    if config.privacy.trust != Trust.DISTRIBUTED:
        return steps
    per_step = 3 if cohort_of(config).needs_agreement else 2
    return 3 + per_step * steps


def _bytes_of(config: RunConfig, state: AdapterState, trained: tuple[str, ...]) -> int:
    """Of a round that trains some tensors, both ways."""
    rule, steps = RULES[config.aggregation.rule], steps_of_round(config)
    sent = state.select(sent_keys(rule, state.spec, trained))
    if config.privacy.trust != Trust.DISTRIBUTED:
        down = len(state.to_bytes()) + _TEXT_OF_ORDER
        return steps * (down + len(encode(sent, config.aggregation.encoding)) + _TEXT_OF_ORDER)
    cohort, down = cohort_of(config), 4 * state.num_values() + _HEADER
    session, agreed = _session(cohort, steps), _agreement(cohort)
    of_steps = steps * (down + 8 * sent.num_values() + _CHARGE + _opening(cohort) + agreed)
    return session + _sealed(cohort, steps) + agreed + of_steps


def _agreement(cohort: Cohort) -> int:
    """One exchange of who is there and who has signed it, where sites may drop out."""
    if not cohort.needs_agreement:
        return 0
    number, name = len(cohort.sites), _name(cohort)
    return round(2 * _TEXT + number * (2 * name + _SIGNATURE))


def _name(cohort: Cohort) -> float:
    """The mean length of a site's name, as JSON."""
    return sum(len(json.dumps(site)) for site in cohort.sites) / len(cohort.sites)


def _sealed(cohort: Cohort, steps: int) -> int:
    """What a site shares of its seeds for all steps of a round, sealed for each neighbour."""
    return round(cohort.degree * (steps * _SHARES + _SEAL + _name(cohort)))


def _session(cohort: Cohort, steps: int) -> int:
    """Keys and shares of a round: two exchanges."""
    number, name = len(cohort.sites), _name(cohort)
    keys = _PLAN + number * (name + 2) + 6 * steps + _TEXT + steps * _KEYS
    shares = _TEXT + number * (steps * _KEYS + _SEALING_KEY + name) + _TEXT
    return round(keys + shares) + _sealed(cohort, steps)


def _opening(cohort: Cohort) -> int:
    """The last exchange of a step: who stayed, and a share of each."""
    number, name = len(cohort.sites), _name(cohort)
    return round(_TEXT + number * (name + 2) + _TEXT + (cohort.degree + 1) * (_SHARE + name))
