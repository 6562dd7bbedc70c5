"""Plans: calibrated from public numbers only, checked in every field, and the same as JSON."""

import inspect
import json
import math
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune.common.errors import PlanError, TooFewRowsError
from hushtune.common.privacy import accountant
from hushtune.common.privacy.delta import LEAST_DELTA
from hushtune.common.privacy.plan import (
    DpSgdEvent,
    PrivacyPlan,
    Relation,
    Trust,
    Unit,
    make_plan,
)

ARGUMENTS: dict[str, Any] = {
    "epsilon": 3.0,
    "delta": 1e-5,
    "public_size": 4000,
    "batch_size": None,
    "sampling_probability": 0.13,
    "steps": 36,
    "clip_norm": 1.0,
    "unit": Unit.EXAMPLE,
    "relation": Relation.ADD_OR_REMOVE_ONE,
    "trust": Trust.SITE,
}


def plan(**changes: Any) -> PrivacyPlan:
    return make_plan(**(ARGUMENTS | changes))


@pytest.mark.parametrize("clip_norm", [1e-30, 9e-7, 1.1e6])
def test_a_clip_norm_near_the_ends_of_float32_is_refused(clip_norm: float) -> None:
    """Off the wire too: below, a hostile server's noise would be smaller than what is rounded."""
    with pytest.raises(PlanError, match="clip_norm"):
        plan(clip_norm=clip_norm)
    with pytest.raises(PlanError, match="clip_norm"):
        PrivacyPlan.from_dict({**plan().to_dict(), "clip_norm": clip_norm})


def test_a_plan_keeps_its_epsilon() -> None:
    made = plan()
    spent = accountant.epsilon([made.event(36)], delta=made.delta, relation=made.relation)
    assert 0.99 * made.epsilon <= spent <= made.epsilon
    assert made.denominator == pytest.approx(0.13 * 4000)


def test_a_batch_size_gives_its_rate_and_an_exact_denominator() -> None:
    made = plan(sampling_probability=None, batch_size=500)
    assert made.sampling_probability == 500 / 4000
    assert made.denominator == 500.0


def test_replacing_costs_more_noise_than_adding_or_removing() -> None:
    assert plan(relation=Relation.REPLACE_ONE).noise_multiplier > 1.4 * plan().noise_multiplier


def test_make_plan_can_see_no_data() -> None:
    scalars = {int, float, str, type(None), Unit, Relation, Trust, DpSgdEvent}
    for name, kind in get_type_hints(make_plan).items():
        if name != "return":
            assert set(get_args(kind) or (kind,)) <= scalars, name
    assert not any(
        parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        for parameter in inspect.signature(make_plan).parameters.values()
    )


@pytest.mark.parametrize("rows", [75, 77, 91, 93, 99])
def test_n_and_n_plus_1_records_give_one_plan(rows: int) -> None:
    # A plan sees declared sizes only. Were the true ones declared, the counts would still not
    # follow them: a step counter of int(1 / q) or a batch of int(n * q) does, and differs between
    # many n and n + 1.
    by_rate = [plan(public_size=n, delta=1e-3) for n in (rows, rows + 1)]
    for name in ("sampling_probability", "noise_multiplier", "steps", "clip_norm", "epsilon"):
        assert getattr(by_rate[0], name) == getattr(by_rate[1], name), name
    assert by_rate[0].denominator == pytest.approx(0.13 * rows, rel=1e-12)
    fixed = {"batch_size": 10, "sampling_probability": None, "delta": 1e-3}
    by_batch = [plan(public_size=n, **fixed) for n in (rows, rows + 1)]
    assert by_batch[0].denominator == by_batch[1].denominator == 10.0
    assert by_batch[0].sampling_probability == 10 / rows


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"epsilon": math.inf}, "epsilon"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1 / 4000}, "delta"),
        ({"delta": 0.5}, "delta"),
        ({"delta": 0.99e-12}, "too small to account for"),
        ({"delta": 1e-300}, "too small to account for"),
        ({"steps": 0}, "steps"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"public_size": 0}, "public_size"),
        ({"sampling_probability": 0.0}, "sampling_probability"),
        ({"sampling_probability": 1.5}, "sampling_probability"),
        ({"batch_size": 100}, "batch"),
        ({"sampling_probability": None}, "batch"),
        ({"batch_size": 0, "sampling_probability": None}, "batch_size"),
        ({"epsilon": 1e-9, "delta": 1e-12}, "epsilon"),
    ],
)
def test_bad_numbers_are_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(PlanError, match=named):
        plan(**change)


def test_the_smallest_delta_has_a_sane_plan() -> None:
    assert plan(delta=LEAST_DELTA).noise_multiplier < 4 * plan(delta=1e-5).noise_multiplier


def test_delta_just_below_one_over_n_is_fine() -> None:
    assert plan(delta=0.99 / 4000).delta == 0.99 / 4000


def test_a_batch_larger_than_the_site_names_both_and_the_site() -> None:
    with pytest.raises(TooFewRowsError, match=r"(?s)north has 300 .*512"):
        plan(public_size=300, batch_size=512, sampling_probability=None, site="north")


def test_off_promises_nothing_and_charges_nothing() -> None:
    made = plan(trust=Trust.OFF, epsilon=0.0, delta=0.5)
    assert (made.epsilon, made.noise_multiplier, made.clip_norm) == (math.inf, 0.0, math.inf)
    assert not made.is_private
    with pytest.raises(PlanError):
        made.event(1)


def test_an_event_is_never_longer_than_its_plan() -> None:
    made = plan()
    assert made.event(3).steps == 3
    for steps in (0, -1, 37):
        with pytest.raises(PlanError):
            made.event(steps)


@pytest.mark.parametrize("trust", list(Trust))
def test_a_plan_survives_strict_json(trust: Trust) -> None:
    made = plan(trust=trust)
    text = json.dumps(made.to_dict(), allow_nan=False)
    assert PrivacyPlan.from_dict(json.loads(text)) == made


@given(rate=st.floats(1e-9, 1.0), sigma=st.floats(1e-3, 1e6), steps=st.integers(1, 10**9))
def test_an_event_survives_json(rate: float, sigma: float, steps: int) -> None:
    event = DpSgdEvent(sampling_probability=rate, noise_multiplier=sigma, steps=steps)
    assert DpSgdEvent.from_dict(json.loads(json.dumps(event.to_dict()))) == event


def test_equal_events_have_equal_json() -> None:
    whole = DpSgdEvent(sampling_probability=1, noise_multiplier=2, steps=1)
    real = DpSgdEvent(sampling_probability=1.0, noise_multiplier=2.0, steps=1)
    assert json.dumps(whole.to_dict()) == json.dumps(real.to_dict())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise_multiplier", 0.0),
        ("noise_multiplier", None),
        ("noise_multiplier", "1.0"),
        ("noise_multiplier", True),
        ("clip_norm", -1.0),
        ("clip_norm", None),
        ("denominator", 0.0),
        ("sampling_probability", 0.0),
        ("sampling_probability", 1.0001),
        ("steps", 2.0),
        ("steps", 0),
        ("delta", 1.0),
        ("epsilon", None),
        ("trust", "nobody"),
        ("unit", "patient"),
        ("relation", None),
    ],
)
def test_a_plan_off_the_wire_is_range_checked(field: str, value: object) -> None:
    with pytest.raises(PlanError):
        PrivacyPlan.from_dict(plan().to_dict() | {field: value})


def test_fields_off_the_wire_are_exactly_the_plan_s() -> None:
    fields = plan().to_dict()
    with pytest.raises(PlanError, match="noise_scale"):
        PrivacyPlan.from_dict(fields | {"noise_scale": 1.0})
    with pytest.raises(PlanError):
        PrivacyPlan.from_dict({key: fields[key] for key in fields if key != "clip_norm"})
    with pytest.raises(PlanError):
        DpSgdEvent.from_dict({"steps": 1})


def test_an_off_plan_off_the_wire_cannot_carry_a_promise() -> None:
    off = plan(trust=Trust.OFF).to_dict()
    with pytest.raises(PlanError):
        PrivacyPlan.from_dict(off | {"epsilon": 3.0})


@pytest.mark.parametrize(
    ("size", "rate", "unit"),
    [(4000, 1e-9, Unit.EXAMPLE), (4000, 2e-5, Unit.GROUP), (9, 0.01, Unit.CLIENT)],
)
@pytest.mark.parametrize("trust", [Trust.SITE, Trust.OFF])
def test_a_batch_that_would_be_empty_is_refused_with_the_least_that_will_do(
    size: int, rate: float, unit: Unit, trust: Trust
) -> None:
    with pytest.raises(PlanError, match="next to nothing") as caught:
        plan(
            public_size=size,
            sampling_probability=rate,
            unit=unit,
            trust=Trust.SERVER if unit is Unit.CLIENT and trust is Trust.SITE else trust,
        )
    assert f"{rate:g} of {size}" in str(caught.value.given)
    assert "sampling_probability" in str(caught.value.remedy)
    plan(public_size=4000, sampling_probability=0.1 / 4000, delta=1e-6)
