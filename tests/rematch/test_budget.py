"""The search for a knob: near where it can be, nearest where it cannot, and few measurements."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from rematch.budget import MAX_EVALUATIONS, solve_knob
from rematch.errors import RematchError


class Meter:
    """A cost function that counts how often it is asked, and never twice for the same value."""

    def __init__(self, cost: Callable[[float], float]) -> None:
        self.cost = cost
        self.asked: list[float] = []

    def __call__(self, value: float) -> float:
        assert value not in self.asked
        self.asked.append(value)
        return self.cost(value)


def test_a_linear_cost_takes_three_measurements() -> None:
    meter = Meter(lambda r: 100 + 900 * r)
    knob = solve_knob(meter, 640.0, 0.02, 1.0)
    assert knob.value == pytest.approx(0.6)
    assert knob.ratio == pytest.approx(1.0)
    assert len(meter.asked) == 3


@pytest.mark.parametrize("power", [0.2, 0.5, 2, 3, 6])
def test_a_bent_cost(power: float) -> None:
    meter = Meter(lambda r: 1e9 * (0.05 + r**power))
    knob = solve_knob(meter, 5e8, 0.01, 1.0)
    assert abs(knob.ratio - 1) <= 0.002
    assert len(meter.asked) <= MAX_EVALUATIONS


def test_a_falling_cost() -> None:
    knob = solve_knob(lambda ratio: 1000 * (1 - ratio) ** 2 + 10, 500.0, 0.0, 0.9, increasing=False)
    assert knob.flops == pytest.approx(500, rel=0.002)


def test_an_integer_knob_takes_the_nearest() -> None:
    knob = solve_knob(lambda n: 100.0 * n, 544.0, 1, 8, integer=True)
    assert (knob.value, knob.flops, knob.ratio) == (5, 500.0, pytest.approx(500 / 544))
    assert isinstance(knob.value, int)
    assert solve_knob(lambda n: 100.0 * n, 556.0, 1, 8, integer=True).value == 6


@pytest.mark.parametrize("seed", range(40))
def test_random_monotone_integer_costs(seed: int) -> None:
    draw = random.Random(seed)
    costs = [float(draw.randint(1, 50))]
    for _ in range(draw.randint(1, 200)):
        costs.append(costs[-1] + draw.choice([0, 0, 1, 5, 40, 1000]) * draw.random())
    increasing = bool(draw.getrandbits(1))
    if not increasing:
        costs.reverse()
    target = draw.uniform(min(costs), max(costs))
    meter = Meter(lambda n: costs[int(n)])
    knob = solve_knob(meter, target, 0, len(costs) - 1, integer=True, increasing=increasing)
    best = min(abs(cost / target - 1) for cost in costs)
    assert abs(knob.ratio - 1) <= max(best * (1 + 1e-12), 0.002)
    assert len(meter.asked) <= 2 * len(costs).bit_length() + 2


@pytest.mark.parametrize("seed", range(40))
def test_random_steps(seed: int) -> None:
    """Plateaus: a keep ratio rounded to tokens. The result is no farther off than a step is high."""
    draw = random.Random(seed)
    tokens, fixed = draw.randint(8, 600), draw.uniform(0, 100)
    meter = Meter(lambda r: fixed + round(r * tokens))
    target = draw.uniform(fixed + 0.1 * tokens, fixed + tokens)
    knob = solve_knob(meter, target, 0.02, 1.0)
    assert abs(knob.flops - target) <= max(1.0, 0.002 * target)
    assert len(meter.asked) <= MAX_EVALUATIONS


def test_a_jump_above_the_target_at_the_end_is_no_obstacle() -> None:
    """Pruning nothing costs no scores, so that pruning a little costs more than that."""
    knob = solve_knob(lambda r: 100.0 if r == 1 else 20 + 88 * r, 64.0, 0.02, 1.0)
    assert knob.flops == pytest.approx(64, rel=0.002)
    assert solve_knob(lambda r: 100.0 if r == 1 else 20 + 88 * r, 100.0, 0.02, 1.0).value == 1


def test_an_end_of_the_range_meets_a_target_just_beyond_it() -> None:
    assert solve_knob(lambda r: 100 * r, 101.0, 0.1, 1.0).value == 1.0
    assert solve_knob(lambda r: 100 * r, 9.9, 0.1, 1.0).value == 0.1


@pytest.mark.parametrize("target", [5.0, 150.0])
def test_out_of_reach(target: float) -> None:
    with pytest.raises(RematchError, match=r"\[0.1, 1.0\] reaches 10 to 100 FLOPs"):
        solve_knob(lambda r: 100 * r, target, 0.1, 1.0)


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan"), float("inf")])
def test_a_target_is_a_positive_number(target: float) -> None:
    with pytest.raises(RematchError, match="positive number"):
        solve_knob(lambda r: 100 * r, target, 0.1, 1.0)


@pytest.mark.parametrize(("low", "high", "integer"), [(1.0, 0.5, False), (1, 2.5, True)])
def test_a_range_that_makes_no_sense(low: float, high: float, integer: bool) -> None:
    with pytest.raises(RematchError, match="range"):
        solve_knob(lambda r: 100 * r, 50.0, low, high, integer=integer)
