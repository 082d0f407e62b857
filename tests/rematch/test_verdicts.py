"""Verdicts: every branch of the rules, several opponents, several claims, and what is said of what is missing."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from fakes import duel, frame, item_frame, item_rows, make_card, reported, row

from rematch import verdicts as vd
from rematch.errors import RematchError
from rematch.statistics import Interval, holm
from rematch.verdicts import ClaimResult, PairResult, judge_claims


def judge(root, claims, rows, *, tier="mini", items=(), sized=False, seeds=5, levels=(1, 2, 3)) -> list[ClaimResult]:
    card = make_card(root, claims, levels)
    records = frame([r | {"tier": tier} for r in rows])
    item_records = item_frame([r | {"tier": tier} for r in items])
    return judge_claims(card, tier, records, item_records, sized=sized, seeds_planned=seeds)


def judge_one(root, rows, *, claim=None, **more) -> ClaimResult:
    return judge(root, {"C1": claim or {}}, rows, **more)[0]


def even(center: float, spread: float = 0.001, seeds: int = 5) -> list[float]:
    """Differences with a mean and a standard deviation known by hand (per cell)."""
    offsets = np.array([-2, -1, 0, 1, 2][:seeds]) if seeds == 5 else np.array([-1, 0, 1])
    return (center + spread * offsets / offsets.std(ddof=1)).tolist()


def everywhere(differences: list[float]) -> dict[int, list[float]]:
    return dict.fromkeys((1, 2, 3), differences)


# -- the rules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "low", "high", "verdict"),
    [
        ("better", 0.02, 0.30, "direction only"),
        ("better", 0.02, 0.09, "no effect"),  # clear in sign, and too small to matter
        ("better", -0.09, 0.09, "no effect"),
        ("better", -0.09, -0.02, "no effect"),
        ("better", -0.02, 0.10, "inconclusive"),  # the margin itself is outside
        ("better", 0.00, 0.30, "inconclusive"),
        ("better", -0.30, 0.30, "inconclusive"),
        ("better", -0.30, -0.02, "contradicted"),
        ("better", -math.inf, math.inf, "inconclusive"),
        ("not_worse", -0.09, 0.30, "direction only"),
        ("not_worse", -0.09, -0.01, "direction only"),
        ("not_worse", 0.02, 0.30, "direction only"),
        ("not_worse", -0.10, 0.30, "inconclusive"),
        ("not_worse", -0.30, -0.05, "inconclusive"),
        ("not_worse", -0.30, -0.11, "contradicted"),
        ("within", -0.09, 0.09, "direction only"),
        ("within", 0.01, 0.20, "inconclusive"),
        ("within", -0.30, 0.30, "inconclusive"),
        ("within", 0.10, 0.30, "contradicted"),
        ("within", -0.30, -0.10, "contradicted"),
    ],
)
def test_the_table_of_rules(kind, low, high, verdict):
    assert vd.decide(kind, Interval((low + high) / 2, low, high), margin=0.1) == verdict


@pytest.mark.parametrize(
    ("claim", "differences", "verdict", "says"),
    [
        ({}, even(0.1), "direction only", "Champion beat Rival by 0.1 in Accuracy"),
        ({}, even(-0.1), "contradicted", "Champion lost to Rival by 0.1 in Accuracy"),
        ({"margin": 0.2}, even(0.1), "no effect", "the sign is clear"),
        ({"margin": 0.2}, even(0.0), "no effect", "the whole interval lies within ±0.2"),
        ({}, even(0.1, spread=0.3), "inconclusive", "the interval includes 0"),
        ({"kind": "not_worse"}, even(-0.005), "direction only", "above −0.01, the largest loss allowed"),
        ({"kind": "not_worse"}, even(-0.1), "contradicted", "below −0.01, the largest loss allowed"),
        ({"kind": "not_worse"}, even(-0.01), "inconclusive", "the interval includes −0.01"),
    ],
)
def test_a_claim_from_records_to_words(tmp_path, claim, differences, verdict, says):
    result = judge_one(tmp_path, duel(everywhere(differences)), claim=claim)
    assert result.verdict == verdict
    assert says in result.why
    assert "3 levels" in result.why


@pytest.mark.parametrize(
    ("target", "verdict"), [(0.5, "direction only"), (0.511, "inconclusive"), (0.6, "contradicted")]
)
def test_a_value_within_a_target(tmp_path, target, verdict):
    rows = [row("champion", level, seed, 0.5 + d) for level in (1, 2, 3) for seed, d in enumerate(even(0.0))]
    result = judge_one(tmp_path, rows, claim={"kind": "within", "target": target})
    assert result.verdict == verdict
    assert f"Accuracy of Champion was 0.5 against a target of {target}" in result.why
    assert result.worst.against == ""
    assert result.worst.estimate == pytest.approx(0.5 - target)
    assert math.isnan(result.worst.flops_ratio)


def test_a_target_on_a_log_scale_is_a_value_of_the_metric(tmp_path):
    rows = [row("champion", 1, seed, 10.0 * math.exp(d), metric="perplexity") for seed, d in enumerate(even(0.0, 0.01))]
    claim = {"kind": "within", "metric": "perplexity", "target": 10.5, "margin": 0.1}
    result = judge_one(tmp_path / "a", rows, claim=claim, levels=[1])
    assert result.verdict == "direction only"
    assert result.worst.estimate == pytest.approx(math.log(10 / 10.5))
    with pytest.raises(RematchError, match=r"claims\.C1\.target: a metric on a log scale has positive values"):
        judge_one(tmp_path / "b", rows, claim=claim | {"target": 0.0}, levels=[1])


def test_log_ratios_read_as_percent_and_stay_raw_in_fields(tmp_path):
    rows = duel(everywhere(even(math.log(1.05))), metric="perplexity")
    result = judge_one(tmp_path, rows, claim={"metric": "perplexity"})
    assert result.worst.estimate == pytest.approx(math.log(1.05))
    assert "Champion beat Rival by 5.0 % in Perplexity (95 % interval 4.9 to 5.1 %, 5 seeds, 3 of 3 levels won)" in (
        result.why
    )


def test_a_model_that_diverged_is_a_number_too(tmp_path):
    rows = duel(everywhere([600.0, 1.0, 300.0, 500.0, 700.0]), metric="perplexity", base=0.0)
    assert "over 10,000 %" in judge_one(tmp_path, rows, claim={"metric": "perplexity"}).why


# -- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "sized", "gap", "verdict", "says"),
    [
        (0.1, True, reported(), "reproduced", "the reported size is 0.1 ±0.01"),
        (0.3, True, reported(), "direction only", "but off the reported 0.1 ±0.01"),
        (0.1, True, None, "direction only", "no reported size"),
        (0.1, False, reported(), "direction only", "sizes cannot be compared at tier paper"),
        (-0.1, True, reported(), "contradicted", "lost to"),
    ],
)
def test_reproduced_needs_a_comparable_reported_size(tmp_path, difference, sized, gap, verdict, says):
    claim = {"reported": gap} if gap else {}
    result = judge_one(tmp_path, duel(everywhere(even(difference))), claim=claim, tier="paper", sized=sized)
    assert result.verdict == verdict
    assert says in result.why
    assert result.reported_difference == (pytest.approx(0.1) if gap else None)


def test_a_size_cannot_rescue_an_open_comparison(tmp_path):
    claim = {"reported": reported()}
    result = judge_one(tmp_path, duel(everywhere(even(0.1, 0.3))), claim=claim, tier="paper", sized=True)
    assert result.verdict == "inconclusive"


@pytest.mark.parametrize(("target", "verdict"), [(0.5, "reproduced"), (0.511, "inconclusive"), (0.6, "contradicted")])
def test_a_target_is_a_size(tmp_path, target, verdict):
    rows = [row("champion", 1, seed, 0.5 + d) for seed, d in enumerate(even(0.0))]
    claim = {"kind": "within", "target": target}
    assert judge_one(tmp_path, rows, claim=claim, tier="paper", sized=True, levels=[1]).verdict == verdict


def test_a_reported_perplexity_is_a_log_ratio_in_favour_of_the_claim(tmp_path):
    claim = {"metric": "perplexity", "reported": reported("perplexity")}
    rows = duel(everywhere(even(math.log(1.2))), metric="perplexity")
    result = judge_one(tmp_path, rows, claim=claim, tier="paper", sized=True)
    assert result.reported_difference == pytest.approx(math.log(12 / 10))
    assert result.verdict == "reproduced"


def test_the_reported_size_is_about_its_own_opponent(tmp_path):
    claim = {"against": ["rival", "third"], "reported": reported()}
    rows = duel(everywhere(even(0.1))) + third(everywhere(even(0.4)))
    result = judge_one(tmp_path, rows, claim=claim, tier="paper", sized=True)
    assert [pair.verdict for pair in result.pairs] == ["reproduced", "direction only"]
    assert result.verdict == "reproduced"


# -- several opponents, several claims ------------------------------------------------------------------------------


def third(differences) -> list[dict]:
    """The rows of a second opponent, over whom the champion of ``duel`` has other differences."""
    return [r for r in duel(differences, rival="third") if r["contender"] == "third"]


def against_both(root, over_rival, gap_to_third, **more) -> ClaimResult:
    """The champion beats the rival by ``over_rival``, and the third by ``over_rival + gap_to_third``."""
    rows = duel(everywhere(over_rival))
    rows += [
        r | {"contender": "third", "value": r["value"] - gap_to_third[r["seed"]]}
        for r in duel(everywhere(over_rival))
        if r["contender"] == "rival"
    ]
    return judge_one(root, rows, claim={"against": ["rival", "third"]}, **more)


def test_every_opponent_must_be_beaten(tmp_path):
    result = against_both(tmp_path, even(0.1), even(0.1, 0.03))
    assert result.verdict == "direction only"
    assert result.p_raw == max(pair.p for pair in result.pairs) == result.worst.p


def test_one_open_comparison_leaves_the_claim_open(tmp_path):
    result = against_both(tmp_path, even(0.1), even(-0.1, 0.5))
    assert [pair.verdict for pair in result.pairs] == ["direction only", "inconclusive"]
    assert (result.verdict, result.worst.against) == ("inconclusive", "third")
    assert result.p_raw == result.worst.p == max(pair.p for pair in result.pairs)


@pytest.mark.parametrize(("gap", "verdict"), [(-0.2, "contradicted"), (-0.1, "no effect")])
def test_one_loss_is_enough_and_pays_for_the_choice_of_opponent(tmp_path, gap, verdict):
    result = against_both(tmp_path, even(0.1), [gap + 0.001 * seed for seed in range(5)])
    assert (result.verdict, result.worst.against) == (verdict, "third")
    assert result.p_raw == pytest.approx(2 * result.worst.p)


def test_a_loss_outweighs_an_open_comparison(tmp_path):
    over_rival = even(0.1, 0.5)
    over_third = even(-0.1)
    gap = [third - rival for third, rival in zip(over_third, over_rival, strict=True)]
    result = against_both(tmp_path, over_rival, gap)
    assert [pair.verdict for pair in result.pairs] == ["inconclusive", "contradicted"]
    assert (result.verdict, result.worst.against) == ("contradicted", "third")


def test_an_opponent_that_never_finished_leaves_the_claim_open(tmp_path):
    rows = duel(everywhere(even(0.1)))
    rows += [row("third", level, seed, 0.0, status="failed") for level in (1, 2, 3) for seed in range(5)]
    result = judge_one(tmp_path, rows, claim={"against": ["rival", "third"]})
    assert [pair.verdict for pair in result.pairs] == ["direction only", "not run"]
    assert (result.verdict, result.p_raw) == ("inconclusive", None)
    assert "No usable records of Champion against Third: Third failed at 1, 2, 3 (15 matches)" in result.why


def two_claims() -> tuple[dict, list]:
    """Two claims whose raw p are 0.03 and 0.04 or so, each clear alone."""
    rows = duel({1: even(0.1, 0.068), 2: even(0.1, 0.073)})
    return {"C1": {"levels": [1]}, "C2": {"levels": [2]}}, rows


def test_holm_takes_back_what_is_clear_only_alone(tmp_path):
    claims, rows = two_claims()
    results = judge(tmp_path / "both", claims, rows, levels=[1, 2])
    raw = [result.p_raw for result in results]
    assert all(0.025 < p < 0.05 for p in raw)
    assert [result.p_holm for result in results] == pytest.approx(holm(raw))
    for result in results:
        assert result.verdict == "inconclusive"
        assert result.worst.verdict == "direction only"
        assert "Alone this would read 'direction only'" in result.why
        assert "after Holm's correction over 2 tested claims" in result.why
    alone = judge(tmp_path / "alone", {"C1": claims["C1"]}, rows, levels=[1, 2])[0]
    assert (alone.verdict, alone.p_holm) == ("direction only", alone.p_raw)


def test_a_loss_found_among_several_opponents_says_so(tmp_path):
    result = against_both(tmp_path, even(0.1, 0.01), even(-0.2, 0.06))
    assert 0.025 < result.worst.p < 0.05 < result.p_raw
    assert (result.worst.verdict, result.verdict) == ("contradicted", "inconclusive")
    assert "chosen among 2 opponents" in result.why


def test_claims_that_were_not_tested_cost_nothing(tmp_path):
    claims, rows = two_claims()
    claims["C2"] = {"axis": "ood"}
    result, untested = judge(tmp_path, claims, rows, levels=[1, 2])
    assert (result.verdict, result.p_holm) == ("direction only", result.p_raw)
    assert (untested.verdict, untested.p_raw, untested.p_holm) == ("not run", None, None)


@pytest.mark.parametrize("center", [-0.1, 0.0])
def test_holm_binds_every_assertion(tmp_path, center):
    """A contradiction and an absence of effect are assertions as well."""
    spread = 0.068 if center else 0.06
    claim = {"levels": [1]} | ({} if center else {"margin": 0.08})
    claims = {"C1": claim, "C2": {"levels": [2]}}
    rows = duel({1: even(center, spread), 2: even(0.0, 1.0)})
    result = judge(tmp_path, claims, rows, levels=[1, 2])[0]
    assert result.worst.verdict == ("contradicted" if center else "no effect")
    assert result.verdict == "inconclusive"


# -- not run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "tier", "says"),
    [
        ({}, "smoke", "shapes only"),
        ({"not_at": {"mini": "The models are too small."}}, "mini", "tier mini: The models are too small."),
        ({"axis": "ood"}, "mini", "axis ood is not played at tier mini"),
        ({}, "real", "Champion does not play on the axis flops_matched at tier real"),
    ],
)
def test_a_claim_that_the_tier_does_not_test(tmp_path, claim, tier, says):
    result = judge_one(tmp_path, duel(everywhere(even(0.1))), claim=claim, tier=tier)
    assert (result.verdict, result.worst, result.pairs, result.p_raw, result.p_holm) == (
        "not run",
        None,
        (),
        None,
        None,
    )
    assert says in result.why


@pytest.mark.parametrize("status", ["failed", "timeout", "unmatched", "skipped"])
def test_without_usable_records_nothing_was_run(tmp_path, status):
    rows = [r for r in duel(everywhere(even(0.1))) if r["contender"] == "champion"]
    rows += [row("rival", level, seed, 0.1, status=status) for level in (1, 2, 3) for seed in range(5)]
    result = judge_one(tmp_path, rows)
    assert (result.verdict, result.worst) == ("not run", None)
    assert f"Rival {status} at 1, 2, 3 (15 matches)" in result.why
    assert result.pairs[0].n_missing == 15


def test_no_records_at_all(tmp_path):
    result = judge_one(tmp_path, [])
    assert result.verdict == "not run"
    assert "Champion not played at 1, 2, 3 (15 matches)" in result.why


# -- few seeds, missing seeds, no variance --------------------------------------------------------------------------


def test_one_seed_has_neither_interval_nor_verdict(tmp_path):
    items = [r for name, gap in (("champion", 0.5), ("rival", 0.0)) for r in item_rows(name, 1, 0, [gap] * 50)]
    result = judge_one(tmp_path, duel({1: [0.5]}), items=items, seeds=1, levels=[1])
    assert (result.verdict, result.p_raw, result.worst.df) == ("inconclusive", None, 0)
    assert math.isnan(result.worst.low)
    assert "needs two seeds" in result.why


def test_missing_pairs_are_counted_and_named(tmp_path):
    rows = [r for r in duel(everywhere(even(0.1))) if (r["contender"], r["level"], r["seed"]) != ("champion", "2", 4)]
    rows.append(row("champion", 2, 4, 0.0, status="failed"))
    result = judge_one(tmp_path, rows)
    assert (result.worst.n_missing, result.worst.n_seeds, result.worst.df) == (1, 4, 3)
    assert "Left out: Champion failed at 2 (1 match). 2 pairs dropped" in result.why
    assert result.worst.pessimistic < result.worst.estimate
    assert "With its failures counted as the worst result seen" in result.why


def test_matches_off_their_budget_take_no_part_and_are_named(tmp_path):
    rows = [
        r | ({"status": "unmatched", "value": 9.0} if r["level"] == "3" else {}) for r in duel(everywhere(even(0.1)))
    ]
    result = judge_one(tmp_path, rows)
    assert result.worst.estimate == pytest.approx(0.1)
    assert (result.worst.n_cells, result.worst.n_missing) == (2, 5)
    assert "Champion unmatched at 3 (5 matches)" in result.why


def test_no_variance_over_seeds_leaves_the_word_to_the_items(tmp_path):
    rng = np.random.default_rng(0)
    gaps = rng.normal(0.1, 0.05, size=200)
    items = [
        r
        for seed in range(5)
        for name, scores in (("champion", gaps), ("rival", np.zeros(200)))
        for r in item_rows(name, 1, seed, scores.tolist())
    ]
    rows = [row(n, 1, seed, v) for seed in range(5) for n, v in (("champion", gaps.mean()), ("rival", 0.0))]
    result = judge_one(tmp_path / "items", rows, items=items, levels=[1])
    assert result.worst.deterministic
    assert (result.worst.low, result.worst.high) == (result.worst.item_low, result.worst.item_high)
    assert result.verdict == "direction only"
    assert "interval over test items" in result.why
    bare = judge_one(tmp_path / "bare", rows, levels=[1])
    assert (bare.verdict, bare.p_raw) == ("inconclusive", None)
    assert "neither seeds nor test items vary" in bare.why


def test_what_is_counted_is_a_fact_and_takes_no_part_in_holm(tmp_path):
    rows = [row(n, 1, s, v, metric="passes") for s in range(5) for n, v in (("champion", 1.0), ("rival", 2.0))]
    claims = {"C1": {"metric": "passes"}, "C2": {}}
    rows += [r | {"level": "1"} for r in duel({1: even(0.1)})]
    fact, tested = judge(tmp_path, claims, rows, levels=[1])
    assert (fact.verdict, fact.p_raw) == ("direction only", None)
    assert "counted, without chance" in fact.why
    assert tested.p_holm == tested.p_raw


def test_exact_ties_are_no_effect_where_items_show_it(tmp_path):
    items = [r for s in range(3) for n in ("champion", "rival") for r in item_rows(n, 1, s, [0.5] * 30)]
    result = judge_one(tmp_path, duel({1: [0.0] * 3}), items=items, seeds=3, levels=[1])
    assert result.verdict == "no effect"
    assert "were level in Accuracy" in result.why
    assert result.worst.cells_won == 0


def test_a_small_test_set_widens_the_interval(tmp_path):
    """Seeds agree to 0.001 and items scatter by 0.5: another run would win, another test set might not."""
    noise = np.random.default_rng(0).normal(0, 0.5, size=40)
    scores = 0.1 + noise - noise.mean()
    items = [
        r
        for seed in range(5)
        for name, values in (("champion", scores), ("rival", np.zeros(40)))
        for r in item_rows(name, 1, seed, values.tolist())
    ]
    result = judge_one(tmp_path, duel({1: even(0.1)}), items=items, levels=[1])
    assert result.worst.t_low > 0
    assert (result.worst.low, result.worst.high) == (result.worst.item_low, result.worst.item_high)
    assert result.verdict == "inconclusive"


# -- what the harness relies on -------------------------------------------------------------------------------------


def test_levels_are_matched_by_value(tmp_path):
    """A card may write 1 where the axis has 1.0; records hold the axis's text."""
    rows = duel({"1.0": even(0.1), "2.0": even(-0.3)})
    result = judge_one(tmp_path, rows, claim={"levels": [1]}, levels=[1.0, 2.0])
    assert result.worst.estimate == pytest.approx(0.1)


def test_slices_axes_papers_and_tiers_are_kept_apart(tmp_path):
    rows = duel({1: even(0.1)}, slice="x=1") + duel({1: even(-0.3)}, slice="x=2") + duel({1: even(-0.5)})
    rows += duel({1: even(-0.7)}, slice="x=1", axis="ood") + duel({1: even(-0.9)}, slice="x=1", paper="other")
    result = judge_one(tmp_path, rows, claim={"slice": "x=1"}, levels=[1])
    assert result.worst.estimate == pytest.approx(0.1)
    assert "Accuracy (x=1)" in result.why


def test_realised_flops_stand_beside_the_verdict(tmp_path):
    rows = [
        r | ({"flops": 50.0, "train_flops": 14.0} if (r["contender"], r["level"]) == ("champion", "1") else {})
        for r in duel({1: even(0.1), 2: even(0.1)})
    ]
    worst = judge_one(tmp_path, rows, levels=[1, 2]).worst
    assert worst.flops_ratio == pytest.approx((0.5 + 1.0) / 2)
    assert worst.train_flops_ratio == pytest.approx((2.0 + 1.0) / 2)


def test_cells_won(tmp_path):
    worst = judge_one(tmp_path, duel({1: even(0.1), 2: even(-0.05), 3: even(0.1)})).worst
    assert (worst.cells_won, worst.n_cells) == (2, 3)


def test_results_survive_json(tmp_path):
    claims = {"C1": {}, "C2": {"against": ["rival", "third"]}, "C3": {"axis": "ood"}}
    for result in judge(tmp_path, claims, duel(everywhere(even(0.1)))):
        entry = json.loads(json.dumps(dataclasses.asdict(result)))
        pairs = tuple(PairResult(**pair) for pair in entry.pop("pairs"))
        worst = entry.pop("worst")
        again = ClaimResult(**entry, pairs=pairs, worst=PairResult(**worst) if worst else None)
        assert repr(again) == repr(result)  # NaN is not equal to itself


def test_permuting_rows_changes_nothing(tmp_path):
    card = make_card(tmp_path, {"C1": {}, "C2": {"metric": "perplexity"}, "C3": {"kind": "within", "target": 0.5}})
    rng = np.random.default_rng(0)
    cells = {level: rng.normal(0.1, 0.02, size=5).tolist() for level in (1, 2, 3)}
    records = frame(duel(cells) + duel(cells, metric="perplexity"))
    items = item_frame(
        [
            r
            for seed in range(5)
            for level in (1, 2, 3)
            for name in ("champion", "rival")
            for r in item_rows(name, level, seed, rng.normal(size=30).tolist())
        ]
    )
    reference = judge_claims(card, "mini", records, items, sized=False, seeds_planned=5)
    shuffled = [table.sample(frac=1, random_state=1) for table in (records, items)]
    assert repr(judge_claims(card, "mini", *shuffled, sized=False, seeds_planned=5)) == repr(reference)


@pytest.mark.slow
def test_a_run_of_nothing_but_chance_seldom_claims_anything(tmp_path):
    """Four claims without any truth in them: Holm holds the rate of runs with a false verdict near 5 %."""
    card = make_card(tmp_path, {f"C{level}": {"levels": [level]} for level in (1, 2, 3, 4)}, levels=(1, 2, 3, 4))
    rng = np.random.default_rng(0)
    false = raw = 0
    for _ in range(40):
        records = frame(duel({level: rng.normal(0, 1, size=5).tolist() for level in (1, 2, 3, 4)}))
        results = judge_claims(card, "mini", records, item_frame(), sized=False, seeds_planned=5)
        false += any(result.verdict != "inconclusive" for result in results)
        raw += any(result.worst.verdict != "inconclusive" for result in results)
    assert false <= 5
    assert raw > false
