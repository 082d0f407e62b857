"""Numbers from scores: by hand, against scikit-learn, and against the slow way."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from workflows.remodetect import evaluation


def drawn(n_human: int, n_llm: int, values: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of both kinds: integers below ``values``, full of ties, or normal numbers without."""
    rng = np.random.default_rng(seed)
    if values is None:
        return rng.normal(size=n_human), rng.normal(0.7, 2.0, size=n_llm)
    return rng.integers(values, size=n_human).astype(float), rng.integers(values, size=n_llm).astype(float) + 1


def auroc(human: np.ndarray, llm: np.ndarray) -> float:
    return float(evaluation.placements(human, llm).mean())


def test_placements_by_hand() -> None:
    human, llm = np.array([1.0, 2.0, 2.0, 4.0]), np.array([0.0, 1.0, 2.0, 3.0, 9.0])
    # Below it: none; half of one; one and two halves; three; all four.
    assert evaluation.placements(human, llm).tolist() == [0, 0.125, 0.5, 0.75, 1]


def test_items_spread_as_the_auroc_does() -> None:
    """Over many samples: the spread that a bootstrap over pairs sees is that of the AUROC, human texts' share included."""
    rng = np.random.default_rng(0)
    found, seen = [], []
    for _ in range(400):
        human, llm = rng.normal(size=200), rng.normal(0.7, 2.0, size=200)
        items = evaluation.auroc_items(human, llm)
        assert items.mean() == pytest.approx(auroc(human, llm))
        found.append(items.mean())
        seen.append(items.std(ddof=1) / np.sqrt(200))
    assert np.mean(seen) == pytest.approx(np.std(found, ddof=1), rel=0.12)


@pytest.mark.parametrize("values", [None, 1, 2, 5, 40])
@pytest.mark.parametrize("sizes", [(1, 1), (7, 30), (150, 150)])
def test_mean_placement_is_sklearns_auroc(values: int | None, sizes: tuple[int, int]) -> None:
    for seed in range(5):
        human, llm = drawn(*sizes, values, seed)
        labels = [0] * len(human) + [1] * len(llm)
        assert auroc(human, llm) == pytest.approx(roc_auc_score(labels, np.concatenate([human, llm])), abs=1e-12)


@pytest.mark.parametrize("values", [None, 6])
def test_increasing_maps_change_nothing_and_decreasing_ones_turn_it_round(values: int | None) -> None:
    human, llm = drawn(60, 50, values, 1)
    before = auroc(human, llm)
    for increasing in (lambda x: 3 * x - 7, np.exp, np.arctan, lambda x: x**3):
        assert auroc(increasing(human), increasing(llm)) == before
        assert evaluation.true_positive_rate(increasing(human), increasing(llm), 0.1) == (
            evaluation.true_positive_rate(human, llm, 0.1)
        )
    assert auroc(-human, -llm) == pytest.approx(1 - before, abs=1e-12)
    assert auroc(llm, human) == pytest.approx(1 - before, abs=1e-12)


def test_orientation() -> None:
    low, high = np.array([0.0, 1.0]), np.array([2.0, 3.0])
    assert auroc(human=low, llm=high) == 1
    assert auroc(human=high, llm=low) == 0
    assert evaluation.average_precision(low, high) == 1
    assert evaluation.true_positive_rate(low, high, 0.01) == 1
    assert evaluation.true_positive_rate(high, low, 0.01) == 0


@pytest.mark.parametrize(("n_human", "allowed"), [(99, 0), (100, 1), (150, 1), (199, 1), (200, 2), (1000, 10)])
def test_one_percent_is_so_many_human_texts(n_human: int, allowed: int) -> None:
    """Human scores 1 .. n: the threshold stands on the highest that is not allowed above."""
    human = np.arange(1.0, n_human + 1)
    edge = n_human - allowed
    assert evaluation.true_positive_rate(human, np.array([edge + 0.5]), 0.01) == 1
    assert evaluation.true_positive_rate(human, np.array([float(edge)]), 0.01) == 0
    assert evaluation.true_positive_rate(human, np.array([edge, edge + 0.5, n_human + 1, 0.0]), 0.01) == 0.5


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.29, 0.5, 1.0])
@pytest.mark.parametrize("values", [None, 3, 30])
def test_rate_is_the_best_over_all_thresholds(rate: float, values: int | None) -> None:
    for seed in range(5):
        human, llm = drawn(100, 80, values, seed)
        thresholds = [-np.inf, *human, *llm]
        slow = max(np.mean(llm > t) for t in thresholds if np.sum(human > t) <= round(rate * len(human)))
        assert evaluation.true_positive_rate(human, llm, rate) == pytest.approx(slow, abs=1e-12)


def test_equal_scores_give_no_true_positives_below_a_rate_of_one() -> None:
    same = np.zeros(150)
    assert auroc(same, same) == 0.5
    assert [evaluation.true_positive_rate(same, same, rate) for rate in (0.01, 0.9, 1.0)] == [0, 0, 1]


def test_area_under_precision_and_recall_by_hand() -> None:
    """llm 3, 1; human 2: thresholds give (recall, precision) (0, 1), (1/2, 1), (1/2, 1/2), (1, 2/3), joined by straight lines."""
    found = evaluation.average_precision(np.array([2.0]), np.array([3.0, 1.0]))
    assert found == pytest.approx(0.5 * 1 + 0.5 * (1 / 2 + 2 / 3) / 2)


def test_curve_is_read_at_one_percent_first_and_ends_at_one() -> None:
    rates = evaluation.FALSE_POSITIVE_RATES
    assert rates[0] == 0.01
    assert rates[-1] == 1
    human, llm = drawn(100, 100, 12, 3)
    curve = [evaluation.true_positive_rate(human, llm, rate) for rate in rates]
    assert curve == sorted(curve)
    assert curve[-1] == 1


def test_wins() -> None:
    assert evaluation.wins(np.array([2.0, 1.0, 1.0]), np.array([1.0, 1.0, 2.0])).tolist() == [1, 0.5, 0]


def test_density_is_in_human_deviations_and_loses_nothing() -> None:
    human = np.array([-1.0, 1.0] * 50)  # mean 0, deviation 1
    found = dict(evaluation.density(np.array([-100.0, -0.2, 0.2, 0.2, 5.9, 6.0, 100.0, 0.4]), human))
    assert sum(found.values()) == pytest.approx(1)
    assert found == pytest.approx(dict.fromkeys(found, 0.0) | {-3.75: 1 / 8, -0.25: 1 / 8, 0.25: 3 / 8, 5.75: 3 / 8})
    moved = evaluation.density(3 * np.array([0.2, 5.9]) + 7, 3 * human + 7)
    assert dict(moved) == dict(evaluation.density(np.array([0.2, 5.9]), human))
    assert sum(share for _, share in evaluation.density(np.ones(3), np.ones(4))) == pytest.approx(1)  # no spread


def test_order_is_strict() -> None:
    llm, mixed, human = np.array([3.0, 3.0, 2.0, 1.0]), np.array([2.0, 3.0, 1.0, 2.0]), np.array([1.0, 1.0, 1.0, 3.0])
    assert evaluation.ordered([llm, mixed, human]).tolist() == [1, 0, 0, 0]
