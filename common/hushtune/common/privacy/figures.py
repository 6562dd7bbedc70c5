"""Figures of a privacy statement: rounded so that no promise gets stronger, and put in plain words.

What (epsilon, delta) means for somebody who tests whether a record was used follows from its
definition alone: a test that wrongly says "used" with chance f says so rightly with chance at most
``exp(epsilon) f + delta``, and ``1 - f <= exp(epsilon) (1 - t) + delta`` bounds the same chance t
from the other side. Wasserman and Zhou, JASA 105 (2010), theorem 2.4; Kairouz, Oh and Viswanath,
ICML 2015 (1311.0776), theorem 2.1.
"""

import math
from collections.abc import Iterable
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal


def upwards(value: float, *, places: int = 4) -> str:
    """Rounded up to `places` decimals: a rounded promise must not be stronger than the true one.

    What would keep fewer than two digits so has two significant ones, still rounded up.

    >>> upwards(2.99991), upwards(3.0), upwards(0.000312), upwards(1e-9)
    ('3.0000', '3.0000', '0.00032', '1e-09')
    """
    if 0 < value < 10.0 ** (1 - places):
        return _digits(value, ROUND_CEILING, num_digits=2)
    return _decimals(value, places)


def bounded(epsilon: float) -> float | None:
    """The same, or None for no bound: JSON has no infinity."""
    return epsilon if epsilon < math.inf else None


def epsilon_text(epsilon: float | None) -> str:
    """Rounded up, or "no bound".

    >>> epsilon_text(bounded(2.99991)), epsilon_text(bounded(math.inf))
    ('3.0000', 'no bound')
    """
    return "no bound" if epsilon is None else upwards(epsilon)


def at_most(value: float) -> str:
    """At most six significant digits, rounded up: for delta and the sampling probability.

    >>> at_most(1e-5), at_most(1.23456789e-4)
    ('1e-05', '0.000123457')
    """
    return _digits(value, ROUND_CEILING)


def at_least(value: float) -> str:
    """At most six significant digits, rounded down: for the noise multiplier.

    >>> at_least(1.1017236303778701)
    '1.10172'
    """
    return _digits(value, ROUND_FLOOR)


def percent(share: float) -> str:
    """A share of one as a percentage with one decimal, rounded up.

    >>> percent(0.20086), percent(1.0)
    ('20.1', '100.0')
    """
    return _decimals(float(Decimal(repr(float(share))).scaleb(2)), 1)


def number_text(value: float) -> str:
    """A number that promises nothing, without the dust of its floating-point arithmetic.

    >>> number_text(46.199999999999996), number_text(100000000), number_text(1.0)
    ('46.2', '100000000', '1')
    """
    return f"{value:.10g}"


def spans(rounds: Iterable[int]) -> str:
    """Round numbers with runs of them joined; "none" of none.

    >>> spans([1, 2, 3, 7, 9, 10])
    '1 to 3, 7, 9 to 10'
    """
    found: list[list[int]] = []
    for number in sorted(rounds):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in found) or "none"


def rounds_text(first: int, last: int) -> str:
    """From one round to another, in words.

    >>> rounds_text(1, 3), rounds_text(2, 2)
    ('rounds 1 to 3', 'round 2')
    """
    return f"round{'' if first == last else 's'} {spans(range(first, last + 1))}"


def most_true_positives(epsilon: float, delta: float, *, false_positives: float) -> float:
    """The largest share of used records that any test recognises, at a share of false alarms.

    >>> round(most_true_positives(3.0, 1e-5, false_positives=0.01), 4)
    0.2009
    """
    growth = math.exp(min(epsilon, _LARGEST_EPSILON))
    from_above = growth * false_positives + delta
    from_below = 1 - (1 - false_positives - delta) / growth
    return min(1.0, from_above, from_below)


def most_advantage(epsilon: float, delta: float) -> float:
    """The largest difference between true and false alarms of any test, at any rate of either.

    The total variation distance of Kairouz, Oh and Viswanath (1311.0776), remark to theorem 2.1:
    ``1 - 2 (1 - delta) / (1 + exp(epsilon))``.

    >>> round(most_advantage(1.0, 0.0), 4), round(most_advantage(0.0, 0.01), 4)
    (0.4621, 0.01)
    """
    return 1 - 2 * (1 - delta) / (1 + math.exp(min(epsilon, _LARGEST_EPSILON)))


_WIDE = Context(prec=400)
_LARGEST_EPSILON = 700.0  # beyond, exp overflows; every bound above is 1 long before


def _decimals(value: float, places: int) -> str:
    # repr names the float exactly, where a product with 10^4 could itself round down.
    exact = Decimal(repr(float(value)))
    return f"{exact.quantize(Decimal(1).scaleb(-places), ROUND_CEILING, _WIDE):f}"


def _digits(value: float, rounding: str, *, num_digits: int = 6) -> str:
    rounded = Context(prec=num_digits, rounding=rounding).create_decimal(repr(float(value)))
    return f"{float(rounded):g}"
