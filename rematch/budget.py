"""Meeting a budget: turn a contender's knob until its measured FLOPs are the target's.

Measuring is the source of truth and costs something, so every value is measured once and the search interpolates: cost
is nearly linear in most knobs. It knows nothing of what it turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from rematch.errors import RematchError

MAX_EVALUATIONS = 12
"""Measurements for a continuous knob, both ends of its range included."""


@dataclass(frozen=True)
class Knob:
    """A knob as turned: its value, the FLOPs measured there, and these over the target."""

    value: float
    flops: float
    ratio: float


def solve_knob(
    measure: Callable[[float], float],
    target: float,
    low: float,
    high: float,
    *,
    tolerance: float = 0.02,
    integer: bool = False,
    increasing: bool = True,
) -> Knob:
    """Find the value in [low, high] whose measured FLOPs are nearest to the target, for a monotone cost.

    A continuous knob is searched to a tenth of the tolerance. Where cost moves in steps (a keep ratio that is rounded
    to tokens) no value may be that near: then the nearest measured one is returned, as an integer knob's nearest value
    always is. The caller judges ``ratio``; the engine marks a match off its tolerance as unmatched.

    Args:
        measure: FLOPs at a value; called at most ``MAX_EVALUATIONS`` times, or for an integer knob about twice the
            base-2 logarithm of its range.
        target: the FLOPs to meet.
        low, high: the range; both ends are measured.
        tolerance: relative; a target this near beyond an end of the range is met by that end.
        integer: only whole numbers are tried.
        increasing: whether a larger value costs more.

    Raises:
        RematchError: the target is not a positive number, the range is empty, or the target lies outside what it
            reaches.
    """
    if not (math.isfinite(target) and target > 0):
        raise RematchError(f"solve_knob: the target must be a positive number of FLOPs, not {target!r}")
    if low > high or (integer and not (float(low).is_integer() and float(high).is_integer())):
        raise RematchError(f"solve_knob: the range must be low <= high, whole for an integer knob, not [{low}, {high}]")
    if integer:
        low, high = int(low), int(high)

    measured: dict[float, float] = {}

    def miss(value: float) -> float:
        """How far the cost lies above the target, as a share of it."""
        if value not in measured:
            measured[value] = float(measure(value))
        return measured[value] / target - 1

    under, over = (low, high) if increasing else (high, low)
    miss(under)
    miss(over)
    if miss(under) > tolerance or miss(over) < -tolerance:
        raise RematchError(
            f"the budget of {target:.6g} FLOPs cannot be met: a knob in [{low}, {high}] reaches "
            f"{measured[under]:.6g} to {measured[over]:.6g} FLOPs; choose a level in between or a wider knob"
        )

    near_enough = tolerance / 10
    halve = False
    while miss(under) < 0 < miss(over) and min(map(abs, map(miss, measured))) > near_enough:
        if (abs(over - under) <= 1) if integer else (len(measured) >= MAX_EVALUATIONS):
            break
        width = abs(over - under)
        share = 0.5 if halve else -miss(under) / (miss(over) - miss(under))
        value = under + share * (over - under)
        if integer:
            value = min(max(round(value), min(under, over) + 1), max(under, over) - 1)
        if value in measured:
            break  # the range is as narrow as floating point has it
        if miss(value) > 0:
            over = value
        else:
            under = value
        halve = abs(over - under) > width / 2  # interpolation alone creeps along where the cost bends

    best = min(measured, key=lambda value: abs(miss(value)))
    return Knob(best, measured[best], measured[best] / target)
