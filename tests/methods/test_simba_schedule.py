"""Keep ratios: the paper's trapezoid, and rivals that spend the same."""

from __future__ import annotations

import pytest

from methods.simba.schedule import keep_count, keep_ratios

SCHEDULES = ["linear", "uniform", "reversed", "step"]


def test_the_papers_trapezoid() -> None:
    assert keep_ratios("linear", 4, 1.0, 0.1) == pytest.approx([1.0, 0.7, 0.4, 0.1])
    ratios = keep_ratios("linear", 64, 1.0, 0.1)
    assert sum(ratios) / 64 == pytest.approx(0.55)
    assert ratios == sorted(ratios, reverse=True)


def test_each_schedule_by_hand() -> None:
    assert keep_ratios("uniform", 4, 1.0, 0.1) == pytest.approx([1, 0.4, 0.4, 0.4])
    assert keep_ratios("reversed", 4, 1.0, 0.1) == pytest.approx([1, 0.1, 0.4, 0.7])
    assert keep_ratios("step", 4, 1.0, 0.1) == pytest.approx([1, 1, 0.1, 0.1])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("n_layers", [2, 8, 24])
def test_all_spend_what_the_linear_one_spends(schedule: str, n_layers: int) -> None:
    expected = sum(keep_ratios("linear", n_layers, 0.9, 0.2))
    assert sum(keep_ratios(schedule, n_layers, 0.9, 0.2)) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("n_layers", [1, 2, 5])
def test_the_first_layer_reads_everything_and_equal_ends_are_flat(schedule: str, n_layers: int) -> None:
    assert keep_ratios(schedule, n_layers, 0.5, 0.5) == pytest.approx([1.0] + [0.5] * (n_layers - 1))
    assert keep_ratios(schedule, n_layers, 1.0, 1.0) == [1.0] * n_layers


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_pruning_less_often_holds_the_ratio_in_between(schedule: str) -> None:
    every = keep_ratios(schedule, 7, 1.0, 0.1)
    assert keep_ratios(schedule, 7, 1.0, 0.1, prune_every=3) == [every[0]] * 3 + [every[3]] * 3 + [every[6]]


def test_at_least_one_token_stays() -> None:
    assert [keep_count(0.1, n) for n in (1, 4, 10, 16, 100)] == [1, 1, 1, 2, 10]
