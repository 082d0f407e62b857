"""Statistics: answers known by hand, coverage known by simulation, and what must never enter a comparison."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from fakes import duel, frame, item_frame, item_rows, row

from rematch import statistics as st

ACCURACY = ("accuracy", "", "champion", "rival")
PERPLEXITY = ("perplexity", "", "champion", "rival")


def differences(cells: dict[str, dict[int, float]]) -> pd.DataFrame:
    rows = [(level, seed, value) for level, seeds in cells.items() for seed, value in seeds.items()]
    return pd.DataFrame(rows, columns=["level", "seed", "difference"])


def grid(values: np.ndarray, *, shared: bool = True) -> pd.DataFrame:
    """Differences of shape (seeds, cells); not shared: each cell has seeds of its own."""
    n_seeds, n_cells = values.shape
    seed, cell = np.divmod(np.arange(values.size), n_cells)
    return pd.DataFrame(
        {"level": cell.astype(str), "seed": seed if shared else seed + n_seeds * cell, "difference": values.ravel()}
    )


# -- pairing --------------------------------------------------------------------------------------------------------


def test_higher_is_better_and_the_difference_is_plain():
    pairs = st.paired_differences(frame(duel({1: [0.1, 0.2]})), *ACCURACY, ["1"])
    assert pairs["seed"].tolist() == [0, 1]
    np.testing.assert_allclose(pairs["difference"], [0.1, 0.2])


def test_lower_is_better_on_a_log_scale():
    records = frame([row("champion", 1, 0, 10.0, metric="perplexity"), row("rival", 1, 0, 12.0, metric="perplexity")])
    pairs = st.paired_differences(records, *PERPLEXITY, ["1"])
    assert pairs["difference"].item() == pytest.approx(math.log(12 / 10))
    swapped = st.paired_differences(records, "perplexity", "", "rival", "champion", ["1"])
    assert swapped["difference"].item() == pytest.approx(-math.log(12 / 10))


def test_lower_is_better_on_a_linear_scale():
    change = {"direction": "lower"}
    records = frame([row("champion", 1, 0, 0.3, **change), row("rival", 1, 0, 0.5, **change)])
    assert st.paired_differences(records, *ACCURACY, ["1"])["difference"].item() == pytest.approx(0.2)


@pytest.mark.parametrize("status", ["failed", "timeout", "unmatched", "skipped"])
@pytest.mark.parametrize("arm", ["champion", "rival"])
def test_only_matches_that_ended_well_on_both_sides_enter(status, arm):
    rows = duel({1: [0.1, 0.2, 0.3]})
    rows = [r if (r["contender"], r["seed"]) != (arm, 1) else row(arm, 1, 1, 0.9, status=status) for r in rows]
    assert st.paired_differences(frame(rows), *ACCURACY, ["1"])["seed"].tolist() == [0, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_takes_no_part(value):
    rows = [*duel({1: [0.1, 0.2]}), row("champion", 1, 2, value), row("rival", 1, 2, 0.5)]
    assert st.paired_differences(frame(rows), *ACCURACY, ["1"])["seed"].tolist() == [0, 1]


def test_a_zero_on_a_log_scale_takes_no_part():
    rows = [row(name, 1, 0, value, metric="perplexity") for name, value in (("champion", 0.0), ("rival", 2.0))]
    assert not len(st.paired_differences(frame(rows), *PERPLEXITY, ["1"]))


def test_pairs_have_the_same_data_level_seed_and_slice():
    rows = [
        *duel({1: [0.1]}),
        *[row("champion", 1, 1, 0.9, data_hash="a"), row("rival", 1, 1, 0.5, data_hash="b")],
        *[row("champion", 1, 2, 0.9), row("rival", 2, 2, 0.5)],
        *[row("champion", 1, 3, 0.9), row("rival", 1, 4, 0.5)],
        *[row("champion", 1, 5, 0.9, slice="x=1"), row("rival", 1, 5, 0.5, slice="x=2")],
    ]
    pairs = st.paired_differences(frame(rows), *ACCURACY, ["1", "2"])
    assert pairs[["level", "seed"]].to_numpy().tolist() == [["1", 0]]


def test_only_the_levels_asked_for_enter_in_their_order():
    records = frame(duel({1: [0.1], 2: [0.2], 10: [0.3]}))
    assert st.paired_differences(records, *ACCURACY, ["10", "1"])["level"].tolist() == ["10", "1"]


def test_flops_ratios_are_realised_ones():
    rows = [row("champion", 1, 0, 1.0, flops=110.0, train_flops=3.0), row("rival", 1, 0, 1.0, flops=100.0)]
    pairs = st.paired_differences(frame(rows), *ACCURACY, ["1"])
    assert pairs["flops_ratio"].item() == pytest.approx(1.1)
    assert pairs["train_flops_ratio"].item() == pytest.approx(3 / 7)


def test_a_metric_that_stands_twice_or_has_no_direction_is_an_error():
    rows = duel({1: [0.1]})
    with pytest.raises(ValueError, match="several values"):
        st.paired_differences(frame([*rows, rows[0]]), *ACCURACY, ["1"])
    neither = [row(name, 1, 0, 1.0, metric="gain") for name in ("champion", "rival")]
    with pytest.raises(ValueError, match="one direction"):
        st.paired_differences(frame(neither), "gain", "", "champion", "rival", ["1"])
    mixed = [row("champion", 1, 0, 1.0), row("rival", 1, 0, 1.0, direction="lower")]
    with pytest.raises(ValueError, match="one direction"):
        st.paired_differences(frame(mixed), *ACCURACY, ["1"])


def test_deviations_from_a_target_know_no_direction():
    records = frame([row("champion", 1, 0, 10.0, metric="perplexity"), row("champion", 1, 0, 0.7)])
    of = st.deviations(records, "perplexity", "", "champion", ["1"], 8.0)
    assert of["difference"].item() == pytest.approx(math.log(10 / 8))
    assert st.deviations(records, "accuracy", "", "champion", ["1"], 1.0)["difference"].item() == pytest.approx(-0.3)
    with pytest.raises(ValueError, match="positive"):
        st.deviations(records, "perplexity", "", "champion", ["1"], 0.0)


def test_the_pessimistic_estimate_counts_failures_as_the_worst_value_seen():
    rows = [*duel({1: [0.2, 0.2]}), row("rival", 1, 2, 0.6), row("champion", 1, 2, 0.0, status="failed")]
    rows.append(row("third", 1, 0, 0.1))  # the worst of the cell: 0.1 - 0.6 = -0.5
    assert st.pessimistic_estimate(frame(rows), *ACCURACY, ["1"]) == pytest.approx((0.2 + 0.2 - 0.5) / 3)


def test_without_failures_of_its_own_a_contender_has_no_pessimistic_estimate():
    rows = [*duel({1: [0.2, 0.2]}), row("champion", 1, 2, 0.6), row("rival", 1, 2, 0.0, status="failed")]
    rows += [row("rival", 1, 3, 0.6), row("champion", 1, 3, 0.9, status="unmatched")]
    assert st.pessimistic_estimate(frame(rows), *ACCURACY, ["1"]) is None


# -- Student's t over seeds -----------------------------------------------------------------------------------------


def test_one_cell_by_hand():
    interval = st.t_interval(differences({"a": {0: 1.0, 1: 2.0, 2: 3.0}}))
    half = 4.302652729696142 / math.sqrt(3)  # t(0.975, 2), sd 1
    assert (interval.estimate, interval.df, interval.n_seeds, interval.n_cells) == (2.0, 2, 3, 1)
    assert (interval.low, interval.high) == (pytest.approx(2 - half), pytest.approx(2 + half))


def test_cells_that_share_seeds_are_averaged_by_seed():
    interval = st.t_interval(differences({"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: 3.0, 1: 4.0, 2: 5.0}}))
    assert (interval.estimate, interval.df, interval.n_seeds, interval.n_cells) == (3.0, 2, 3, 2)
    assert interval.standard_error == pytest.approx(1 / math.sqrt(3))  # seed means 2, 3, 4


def test_cells_with_seeds_of_their_own_are_pooled():
    interval = st.t_interval(differences({"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {3: 4.0, 4: 8.0}}))
    pooled = (2 + 8) / 3  # squares about the cell means, df 5 - 2
    assert (interval.estimate, interval.df, interval.n_seeds) == (4.0, 3, 5)
    assert interval.standard_error == pytest.approx(math.sqrt(pooled * (1 / 3 + 1 / 2)) / 2)


def test_seeds_that_are_not_in_every_cell_are_dropped_and_counted():
    cells = {"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: 1.0, 1: 2.0, 2: 3.0, 3: 100.0}, "c": {5: 50.0}}
    interval = st.t_interval(differences(cells))
    assert (interval.estimate, interval.n_seeds, interval.n_cells, interval.n_dropped) == (2.0, 3, 2, 2)


def test_without_a_common_seed_there_is_an_estimate_and_no_interval():
    cells = {"a": {0: 1.0, 1: 1.0}, "b": {1: 3.0, 2: 3.0}, "c": {2: 5.0, 3: 5.0}}
    interval = st.t_interval(differences(cells))
    assert (interval.estimate, interval.df, interval.low, interval.high) == (3.0, 0, -math.inf, math.inf)


def test_one_seed_has_no_interval():
    interval = st.t_interval(differences({"a": {0: 1.0}, "b": {0: 2.0}}))
    assert (interval.estimate, interval.low, interval.high, interval.df) == (1.5, -math.inf, math.inf, 0)
    assert interval.p_against(0.0) == 1.0
    assert not interval.deterministic


def test_zero_variance_is_flagged():
    interval = st.t_interval(differences({"a": {0: 0.1, 1: 0.1, 2: 0.1}}))
    assert interval.deterministic
    assert interval.low == interval.high == interval.estimate == pytest.approx(0.1)


@pytest.mark.parametrize("bad", [[], [1.0, math.nan]])
def test_no_pairs_or_nan_is_an_error(bad):
    with pytest.raises(ValueError, match="at least one pair"):
        st.t_interval(differences({"a": dict(enumerate(bad))}))


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_p_value_and_the_interval_say_the_same(confidence):
    interval = st.t_interval(differences({"a": {0: 1.0, 1: 2.0, 2: 2.5}}), confidence)
    assert interval.p_against(interval.low) == pytest.approx(1 - confidence)
    assert interval.p_against(interval.high) == pytest.approx(1 - confidence)


def test_permuting_rows_changes_no_bit():
    rng = np.random.default_rng(0)
    records = frame(duel({level: rng.normal(size=5).tolist() for level in (1, 2, 3)}))
    levels = ["1", "2", "3"]
    reference = st.t_interval(st.paired_differences(records, *ACCURACY, levels))
    for seed in range(3):
        shuffled = records.sample(frac=1, random_state=seed)
        assert st.t_interval(st.paired_differences(shuffled, *ACCURACY, levels)) == reference


# -- coverage, simulated --------------------------------------------------------------------------------------------

RUNS = 300


def coverage(n_seeds: int, n_cells: int = 1, rho: float = 0.0, *, shared: bool = True) -> float:
    """How often t_interval holds the true value, 0; rho: correlation between the cells of one seed."""
    rng = np.random.default_rng([n_seeds, n_cells, int(100 * rho)])
    own, common = rng.normal(size=(RUNS, n_seeds, n_cells)), rng.normal(size=(RUNS, n_seeds, 1))
    draws = math.sqrt(rho) * common + math.sqrt(1 - rho) * own
    intervals = [st.t_interval(grid(values, shared=shared)) for values in draws]
    return float(np.mean([interval.low <= 0 <= interval.high for interval in intervals]))


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_t_covers_what_it_says(n_seeds):
    assert coverage(n_seeds) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(("n_seeds", "covers"), [(3, 0.75), (5, 0.836)])
def test_a_bootstrap_over_seeds_would_not(n_seeds, covers):
    """With three seeds exactly 3/4: it misses when all three fall on one side."""
    rng = np.random.default_rng(n_seeds)
    seeds = rng.normal(size=(2000, n_seeds))
    picks = rng.integers(n_seeds, size=(2000, 1000, n_seeds))
    means = np.take_along_axis(seeds[:, None, :], picks, axis=2).mean(axis=2)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(covers, abs=0.025)


@pytest.mark.parametrize(
    ("rho", "shared", "covers"),
    [(0.5, True, 0.95), (0.9, True, 0.95), (0.0, False, 0.95), (0.5, False, 0.79), (0.9, False, 0.68)],
)
def test_correlated_cells_need_the_seed_means(rho, shared, covers):
    """The table in the docstring of t_interval: pooling (seeds declared different) takes correlated cells for independent."""
    assert coverage(5, 4, rho, shared=shared) == pytest.approx(covers, abs=0.03 if covers > 0.9 else 0.06)


def test_the_item_bootstrap_covers_another_test_set():
    rng = np.random.default_rng(1)
    held = []
    for run in range(300):
        difficulty = rng.normal(
            size=(60, 1)
        )  # shared by the seeds: a bootstrap that broke them apart would be too narrow
        scores = difficulty + 0.3 * rng.normal(size=(60, 3))
        interval = st.item_bootstrap(item_columns(scores), f"run {run}", draws=400)
        held.append(interval.low <= 0 <= interval.high)
    assert np.mean(held) == pytest.approx(0.94, abs=0.035)


# -- test items -----------------------------------------------------------------------------------------------------


def item_columns(scores: np.ndarray, level: str = "1") -> pd.DataFrame:
    columns = pd.MultiIndex.from_tuples([(level, seed) for seed in range(scores.shape[1])], names=["level", "seed"])
    return pd.DataFrame(scores, columns=columns)


def bout(n_items: int = 50, seeds: int = 3, gap: float = 0.1) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(seeds):
        hard = rng.normal(size=n_items)  # what both arms share
        rows += item_rows("champion", 1, seed, (hard + gap + 0.01 * rng.normal(size=n_items)).tolist())
        rows += item_rows("rival", 1, seed, hard.tolist())
    return item_frame(rows)


PAIRS = pd.DataFrame({"level": ["1"] * 3, "seed": [0, 1, 2]})


def test_items_are_paired():
    """Items vary with sd 1, their differences with 0.01: only a paired interval is this narrow."""
    interval = st.item_bootstrap(st.item_differences(bout(), PAIRS, *ACCURACY), "k")
    assert interval.estimate == pytest.approx(0.1, abs=0.003)
    assert interval.width == pytest.approx(2 * 1.96 * 0.01 / math.sqrt(150), rel=0.2)
    assert interval.n_items == 50


def test_lower_scores_are_better_where_the_metric_says_so():
    lower = st.item_differences(bout(), PAIRS, *ACCURACY, direction="lower")
    assert st.item_bootstrap(lower, "k").estimate == pytest.approx(-0.1, abs=0.003)


def test_items_against_a_target():
    alone = st.item_differences(bout(), PAIRS, "accuracy", "", "champion", None, direction="lower", target=0.5)
    mine = bout().query("contender == 'champion'")["score"].mean()
    assert st.item_bootstrap(alone, "k").estimate == pytest.approx(mine - 0.5)


def test_the_bootstrap_is_bit_identical_and_belongs_to_its_key():
    scores = st.item_differences(bout(), PAIRS, *ACCURACY)
    first, second, other = (st.item_bootstrap(scores, key) for key in ("k", "k", "l"))
    assert (first.low, first.high) == (second.low, second.high)
    assert (first.low, first.high) != (other.low, other.high)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    st.item_bootstrap(scores, "k")
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_permuting_item_rows_changes_no_bit():
    reference = st.item_bootstrap(st.item_differences(bout(), PAIRS, *ACCURACY), "k")
    shuffled = bout().sample(frac=1, random_state=0)
    interval = st.item_bootstrap(st.item_differences(shuffled, PAIRS, *ACCURACY), "k")
    assert (interval.estimate, interval.low, interval.high) == (reference.estimate, reference.low, reference.high)


def test_memory_bounds_change_no_result_but_the_draws(monkeypatch):
    scores = st.item_differences(bout(), PAIRS, *ACCURACY)
    whole = st.item_bootstrap(scores, "k")
    monkeypatch.setattr(st, "_CHUNK", 1000)
    pieces = st.item_bootstrap(scores, "k")
    assert (whole.low, whole.high) == (pieces.low, pieces.high)


def test_pairs_with_other_items_are_drawn_apart_and_weigh_the_same():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(400, 2))
    scores[100:, 1] = np.nan
    interval = st.item_bootstrap(item_columns(scores), "k", draws=8000)
    assert interval.estimate == pytest.approx((scores[:, 0].mean() + scores[:100, 1].mean()) / 2)
    error = math.sqrt(scores[:, 0].var() / 400 + scores[:100, 1].var() / 100) / 2
    assert interval.width == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_cells_weigh_the_same_whatever_their_seeds():
    columns = pd.MultiIndex.from_tuples([("1", 0), ("1", 1), ("2", 5)], names=["level", "seed"])
    scores = pd.DataFrame(np.tile([1.0, 1.0, 4.0], (30, 1)), columns=columns)
    assert st.item_bootstrap(scores, "k").estimate == pytest.approx(2.5)


def test_items_that_are_missing_or_few_give_no_interval():
    four = pd.DataFrame({"level": ["1"] * 4, "seed": [0, 1, 2, 3]})
    assert st.item_differences(bout(), four, *ACCURACY) is None
    assert st.item_differences(item_frame(), PAIRS, *ACCURACY) is None
    assert st.item_bootstrap(item_columns(np.ones((st.MIN_ITEMS - 1, 3))), "k") is None
    assert st.item_bootstrap(item_columns(np.ones((st.MIN_ITEMS, 3))), "k") is not None


def test_an_item_that_stands_twice_is_an_error():
    with pytest.raises(ValueError, match="duplicate"):
        st.item_differences(pd.concat([bout(), bout()]), PAIRS, *ACCURACY)


def test_the_p_value_of_the_bootstrap_agrees_with_its_interval():
    interval = st.item_bootstrap(st.item_differences(bout(), PAIRS, *ACCURACY), "k")
    assert interval.p_against(interval.low) == pytest.approx(0.05, abs=0.002)
    assert interval.p_against(interval.high) == pytest.approx(0.05, abs=0.002)
    assert interval.p_against(-1.0) == pytest.approx(2 / (st.DRAWS + 1))  # what was never drawn is not impossible


# -- the wider interval, many claims, descriptions ------------------------------------------------------------------


def items_interval(low: float, high: float) -> st.ItemInterval:
    return st.ItemInterval((low + high) / 2, low, high, draws=np.array([low, high]), n_items=50)


def test_the_wider_interval_is_used():
    seeds = st.t_interval(differences({"a": {0: 1.0, 1: 2.0, 2: 3.0}}))
    narrow, wide = items_interval(1.9, 2.1), items_interval(-9.0, 9.0)
    assert st.wider(seeds, narrow) is seeds
    assert st.wider(seeds, wide) is wide
    assert st.wider(seeds, None) is seeds


def test_without_variance_over_seeds_only_items_speak():
    seeds = st.t_interval(differences({"a": {0: 1.0, 1: 1.0}}))
    items = items_interval(0.9, 1.1)
    assert st.wider(seeds, items) is items
    assert st.wider(seeds, None).width == math.inf


def test_what_is_counted_needs_no_interval():
    facts = st.t_interval(differences({"a": {0: 2.0, 1: 2.0}}))
    assert (st.wider(facts, None, counted=True).low, st.wider(facts, None, counted=True).high) == (2.0, 2.0)
    varying = st.t_interval(differences({"a": {0: 1.0, 1: 2.0}}))
    assert st.wider(varying, None, counted=True).width == varying.width > 0
    lone = st.t_interval(differences({"a": {0: 2.0}}))
    assert st.wider(lone, None, counted=True).width == math.inf


def test_one_seed_has_no_interval_whatever_the_items_say():
    seeds = st.t_interval(differences({"a": {0: 1.0}}))
    assert st.wider(seeds, items_interval(0.9, 1.1)).width == math.inf


def test_holm_by_hand():
    assert st.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert st.holm([0.4, 0.9, 0.01, 0.02]) == pytest.approx([0.8, 0.9, 0.04, 0.06])
    assert st.holm([0.02]) == [0.02]
    assert st.holm([]) == []
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        st.holm([math.nan])


def test_holm_keeps_order_and_lies_between_raw_and_bonferroni():
    rng = np.random.default_rng(0)
    for _ in range(50):
        raw = rng.uniform(size=6)
        adjusted = np.array(st.holm(raw.tolist()))
        assert (adjusted >= raw).all()
        assert (adjusted <= np.minimum(1, 6 * raw) + 1e-15).all()
        assert (np.diff(adjusted[np.argsort(raw)]) >= 0).all()


def test_the_floor_of_a_sign_flip_test():
    assert [st.sign_flip_floor(n) for n in (1, 3, 5)] == [1.0, 0.25, 0.0625]
    assert st.sign_flip_floor(5) > 0.05 > st.sign_flip_floor(6)


def test_descriptions_need_many_cells():
    cells = {str(level): {0: float(level), 1: float(level)} for level in range(-1, 7)}  # 8 cells: -1 .. 6
    described = st.describe(differences(cells))
    assert described.interquartile_mean == pytest.approx(2.5)
    assert described.probability_of_improvement == pytest.approx((6 + 0.5) / 8)
    assert st.describe(differences(dict(list(cells.items())[:7]))) is None
