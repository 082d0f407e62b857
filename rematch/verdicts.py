"""From records to verdicts: what the measurements say of each claim of a paper.

The rules, in the order in which they apply to one pair (m: the claim's margin; the interval is the wider one of
``rematch.statistics``, on the scale of the analysis, positive in favour of the claim):

=============  ==========================================================================================================
``better``     ``no effect`` if the interval lies inside (-m, m), even where its sign is clear: such a difference does not
               matter; else supported if it lies above 0; else ``contradicted`` if below 0; else ``inconclusive``
``not_worse``  supported if the interval lies above -m; ``contradicted`` if below -m; else ``inconclusive``
``within``     supported if the deviation from the target lies inside (-m, m); ``contradicted`` if outside of it altogether;
               else ``inconclusive``
=============  ==========================================================================================================

*Supported* reads ``reproduced`` where sizes are comparable (``sized``), a reported size exists and the interval overlaps it
± m; else ``direction only``. Fewer than two seeds give no interval, hence at most ``inconclusive``.

A claim against several opponents is an intersection-union test (Berger 1982): it is supported if each opponent is beaten,
and its p is the largest. One loss, or one established absence of an effect, is enough against it; its p is then that
opponent's times the number of opponents (Bonferroni), because any of them could have been the one. Holm's correction runs
over the p values of the card's tested claims, each the p of the test that its verdict rests on; where the adjusted p exceeds
1 - confidence, the claim is ``inconclusive``, whatever its raw interval says. Verdicts of pairs are not adjusted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd

from rematch import statistics, wording
from rematch.card_models import Claim, Metric
from rematch.cards import Card, level_text
from rematch.errors import RematchError

if TYPE_CHECKING:
    from rematch.statistics import Interval

NAN = float("nan")
REPRODUCED, DIRECTION_ONLY, NO_EFFECT = "reproduced", "direction only", "no effect"
CONTRADICTED, INCONCLUSIVE, NOT_RUN = "contradicted", "inconclusive", "not run"
SUPPORTED = (REPRODUCED, DIRECTION_ONLY)
# From the worst for a claim to the best: the first verdict that some opponent leaves is the claim's.
SEVERITY = (CONTRADICTED, NO_EFFECT, INCONCLUSIVE, NOT_RUN, DIRECTION_ONLY, REPRODUCED)


@dataclass(frozen=True)
class PairResult:
    """One contender against one opponent, or against a target (``against`` is then empty).

    Numbers are on the scale of the analysis (log ratios for log metrics), positive where the contender is better;
    against a target they are deviations from it. Absent numbers are NaN.

    Attributes:
        low, high: the wider of the t interval and the item interval: what the verdict rests on.
        p: two-sided p of the test that the verdict rests on, not adjusted.
        n_seeds, n_cells: seeds and levels that took part.
        cells_won: levels whose mean difference is positive (against a target: within the margin).
        df: degrees of freedom of the t interval; 0 where there is none.
        flops_ratio: realised FLOPs, contender / opponent, mean over levels of the mean over seeds.
        train_flops_ratio: the same of the FLOPs spent on training.
        n_missing: planned pairs that have no usable records on both sides.
        deterministic: no variance over seeds.
        pessimistic: the estimate if each failure of the contender counted as the worst value seen in its cell.
    """

    contender: str
    against: str
    estimate: float = NAN
    low: float = NAN
    high: float = NAN
    t_low: float = NAN
    t_high: float = NAN
    item_low: float = NAN
    item_high: float = NAN
    p: float = NAN
    n_seeds: int = 0
    n_cells: int = 0
    cells_won: int = 0
    df: int = 0
    flops_ratio: float = NAN
    train_flops_ratio: float = NAN
    n_missing: int = 0
    deterministic: bool = False
    verdict: str = NOT_RUN
    why: str = ""
    pessimistic: float = NAN


@dataclass(frozen=True)
class ClaimResult:
    """What the records say of one claim.

    Attributes:
        reported_difference: the reported gap on the scale of the analysis, positive in favour of the claim, or None.
        p_raw: p of the claim (see the module's rules), or None where nothing was tested.
        p_holm: the same after Holm's correction over the card's tested claims.
        worst: the pair that decides the verdict, or None where nothing was compared.
    """

    paper: str
    claim_id: str
    statement: str
    source: str
    tier: str
    axis: str
    metric: str
    reported_difference: float | None
    reported_text: str
    verdict: str
    why: str
    p_raw: float | None
    p_holm: float | None
    worst: PairResult | None
    pairs: tuple[PairResult, ...]
    ours: bool


def judge_claims(
    card: Card,
    tier: str,
    records: pd.DataFrame,
    items: pd.DataFrame,
    *,
    confidence: float = 0.95,
    sized: bool,
    seeds_planned: int,
) -> list[ClaimResult]:
    """Judge every claim of a card, in the card's order.

    Args:
        records, items: columns of ``rematch.schema``, all statuses; rows of other papers and tiers are ignored.
        sized: whether differences at this tier can be compared in size with what the paper reported.
        seeds_planned: seeds that every match should have had.

    Raises:
        RematchError: a ``within`` claim or a reported size that has no logarithm, on a metric with a log scale.
    """
    mine = records[(records["paper"] == card.paper) & (records["tier"] == tier)]
    mine_items = items[(items["paper"] == card.paper) & (items["tier"] == tier)]
    judged = []
    for claim_id, claim in card.spec.claims.items():
        judge = _Judge(card, tier, claim_id, claim, confidence, sized, seeds_planned)
        on_axis = mine[mine["axis"] == claim.axis]
        judged.append(judge.result(on_axis, mine_items[mine_items["axis"] == claim.axis]))
    return _correct(judged, confidence)


def decide(kind: str, interval: Interval, margin: float) -> str:
    """The verdict of an interval, sizes apart: supported is ``direction only`` (the module's table of rules)."""
    low, high = interval.low, interval.high
    inside = -margin < low and high < margin
    if kind == "within":
        outside = low >= margin or high <= -margin
        return DIRECTION_ONLY if inside else CONTRADICTED if outside else INCONCLUSIVE
    threshold = 0.0 if kind == "better" else -margin
    if kind == "better" and inside:
        return NO_EFFECT
    return DIRECTION_ONLY if low > threshold else CONTRADICTED if high < threshold else INCONCLUSIVE


def p_of(kind: str, verdict: str, interval: Interval, margin: float) -> float:
    """The two-sided p of the test that a verdict rests on.

    It is the smallest alpha at which the 1 - alpha interval would still give the verdict: against 0 (``better``), against
    -margin (``not_worse``), against the nearer edge of the margin (``within`` and ``no effect``, an equivalence test).
    """
    edge = math.copysign(margin, interval.estimate)
    threshold = edge if kind == "within" or verdict == NO_EFFECT else 0.0 if kind == "better" else -margin
    return interval.p_against(threshold)


def _correct(results: list[ClaimResult], confidence: float) -> list[ClaimResult]:
    """Add Holm's p, and take back the verdicts that do not survive it."""
    tested = [index for index, result in enumerate(results) if result.p_raw is not None]
    adjusted = statistics.holm([results[index].p_raw or 0.0 for index in tested])
    corrected = list(results)
    for index, p in zip(tested, adjusted, strict=True):
        result = replace(results[index], p_holm=p)
        if p > 1 - confidence and result.verdict in (*SUPPORTED, NO_EFFECT, CONTRADICTED):
            chosen = len(result.pairs) > 1 and result.verdict in (NO_EFFECT, CONTRADICTED)
            among = f", chosen among {len(result.pairs)} opponents" if chosen else ""
            claims = f"{len(tested)} tested claim{'s' if len(tested) > 1 else ''}"
            note = f"Alone this would read '{result.verdict}', but its p ({result.p_raw:.2g}{among}) is {p:.2g} "
            note += f"after Holm's correction over {claims}."
            result = replace(result, verdict=INCONCLUSIVE, why=f"{result.why} {note}")
        corrected[index] = result
    return corrected


@dataclass(frozen=True)
class _Judge:
    """One claim at one tier."""

    card: Card
    tier: str
    claim_id: str
    claim: Claim
    confidence: float
    sized: bool
    seeds_planned: int

    @property
    def metric(self) -> Metric:
        return self.card.spec.metrics[self.claim.metric]

    @property
    def levels(self) -> list[str]:
        """The claim's levels among those that the tier plays, as records write them."""
        wanted = self.claim.levels
        played = self.card.axis(self.claim.axis, self.tier).levels
        return [level_text(level) for level in played if wanted is None or level in wanted]

    def result(self, records: pd.DataFrame, items: pd.DataFrame) -> ClaimResult:
        """The claim's result, before Holm's correction."""
        reason = self._not_run()
        if reason:
            return self._claim(NOT_RUN, reason, None, None, ())
        opponents: Sequence[str] = self.claim.against or [""]
        pairs = tuple(self._pair(records, items, against) for against in opponents)
        if all(pair.verdict == NOT_RUN for pair in pairs):
            return self._claim(NOT_RUN, pairs[0].why, None, None, pairs)
        worst = _worst(pairs)
        verdict, p = worst.verdict, worst.p
        if verdict in (CONTRADICTED, NO_EFFECT):
            p = min(1.0, p * len(pairs))
        elif verdict in SUPPORTED and any(pair.verdict == REPRODUCED for pair in pairs):
            verdict = REPRODUCED  # only the pair that the paper gives a size for can be more than its direction
        elif verdict == NOT_RUN:
            verdict = INCONCLUSIVE  # others were beaten, but the claim is about all of them
        return self._claim(verdict, _summary(worst, pairs), None if math.isnan(p) else p, worst, pairs)

    def _claim(
        self, verdict: str, why: str, p: float | None, worst: PairResult | None, pairs: tuple[PairResult, ...]
    ) -> ClaimResult:
        claim = self.claim
        return ClaimResult(
            paper=self.card.paper, claim_id=self.claim_id, statement=claim.statement, source=claim.source,
            tier=self.tier, axis=claim.axis, metric=claim.metric, reported_difference=self.reported,
            reported_text=claim.reported_text, verdict=verdict, why=why, p_raw=p, p_holm=None, worst=worst, pairs=pairs,
            ours=claim.ours,
        )  # fmt: skip

    @property
    def reported(self) -> float | None:
        """The reported gap on the scale of the analysis, positive in favour of the claim."""
        gap = self.card.reported_gap(self.claim_id)
        if gap is None:
            return None
        ours, theirs = (self._on_scale(value, "reported") for value in gap)
        return theirs - ours if self.metric.better == "lower" else ours - theirs

    def _on_scale(self, value: float, key: str) -> float:
        try:
            return statistics.on_scale(value, self.metric.scale)
        except ValueError as error:
            raise RematchError(f"{self.card.where}: claims.{self.claim_id}.{key}: {error}") from error

    def _not_run(self) -> str:
        """Why the claim cannot be tested at this tier; empty where it can."""
        claim, played = self.claim, self.card.at(self.tier).axes
        if self.tier == "smoke":
            return "The smoke tier shows shapes only: its matches are too small for a verdict."
        if self.tier in claim.not_at:
            return f"Cannot be tested at tier {self.tier}: {claim.not_at[self.tier]}"
        if claim.axis not in played:
            return f"The axis {claim.axis} is not played at tier {self.tier}."
        axis = self.card.axis(claim.axis, self.tier)
        if claim.metric not in axis.metrics:
            return f"{self.metric.label} is not measured on the axis {claim.axis} at tier {self.tier}."
        if claim.contender not in axis.contenders:
            return f"{self._label(claim.contender)} does not play on the axis {claim.axis} at tier {self.tier}."
        return "" if self.levels else f"Tier {self.tier} plays none of the claim's levels."

    # -- one pair -------------------------------------------------------------------------------------------------

    def _pair(self, records: pd.DataFrame, items: pd.DataFrame, against: str) -> PairResult:
        claim, levels = self.claim, self.levels
        where = (claim.metric, claim.slice, claim.contender)
        bound, target = None, 0.0
        if against:
            pairs = statistics.paired_differences(records, *where, against, levels)
            bound = statistics.pessimistic_estimate(records, *where, against, levels)
        else:
            target = self._on_scale(claim.target, "target")
            pairs = statistics.deviations(records, *where, levels, claim.target)
        absent = self._absent(records, pairs, against)
        result = PairResult(claim.contender, against, n_missing=absent.total(), pessimistic=_nan(bound))
        if not len(pairs):
            return self._explained(result, absent)
        balanced = statistics.balanced(pairs)
        over_seeds = statistics.t_interval(pairs, self.confidence)
        over_items = None
        if len(balanced):
            scores = statistics.item_differences(
                items, balanced, *where, against or None, direction=self.metric.better, target=target
            )
            key = "/".join((self.card.paper, claim.axis, *where, against, *levels, "test items"))
            over_items = None if scores is None else statistics.item_bootstrap(scores, key, self.confidence)
        counted = self.metric.measured == "counted"
        interval = statistics.wider(over_seeds, over_items, counted=counted)
        testable = math.isfinite(interval.width) and not (counted and over_seeds.deterministic)
        used = balanced if len(balanced) else pairs
        won = used.groupby("level")["difference"].mean()
        verdict = decide(claim.kind, interval, claim.margin)
        if verdict == DIRECTION_ONLY and self._has_reported_size(against, interval):
            verdict = REPRODUCED
        result = replace(
            result,
            estimate=over_seeds.estimate,
            low=_nan(interval.low), high=_nan(interval.high),
            t_low=_nan(over_seeds.low), t_high=_nan(over_seeds.high),
            item_low=over_items.low if over_items else NAN, item_high=over_items.high if over_items else NAN,
            p=p_of(claim.kind, verdict, interval, claim.margin) if testable else NAN,
            n_seeds=over_seeds.n_seeds, n_cells=over_seeds.n_cells, df=over_seeds.df,
            cells_won=int(((won > 0) if against else (won.abs() < claim.margin)).sum()),
            flops_ratio=_mean_ratio(used, "flops_ratio"), train_flops_ratio=_mean_ratio(used, "train_flops_ratio"),
            deterministic=over_seeds.deterministic, verdict=verdict,
        )  # fmt: skip
        description = statistics.describe(pairs) if against else None
        return self._explained(result, absent, over_seeds.n_dropped, description)

    def _has_reported_size(self, against: str, interval: Interval) -> bool:
        """Whether sizes are comparable and the interval overlaps the reported one, which is about this opponent."""
        if not self.sized or not against:
            return self.sized  # within: the interval lies at the target, which is the size
        if self.reported is None or not self._is_reported_opponent(against):
            return False
        return interval.low <= self.reported + self.claim.margin and interval.high >= self.reported - self.claim.margin

    def _is_reported_opponent(self, against: str) -> bool:
        gap = self.claim.reported
        return gap is not None and (gap.against == against or self.claim.against == [against])

    def _absent(self, records: pd.DataFrame, pairs: pd.DataFrame, against: str) -> Counter[tuple[str, str, str]]:
        """Planned pairs that are not there: how many by (label of who is missing, why, level)."""
        arms = [self.claim.contender, *([against] if against else [])]
        mine = records[records["contender"].isin(arms)]
        keys = ("contender", "level", "seed", "status")
        status = {(c, level, seed): s for c, level, seed, s in zip(*(mine[key] for key in keys), strict=True)}
        present = {*zip(pairs["level"], pairs["seed"], strict=True)}
        found: Counter[tuple[str, str, str]] = Counter()
        for level in self.levels:
            for seed in range(self.seeds_planned):
                if (level, seed) in present:
                    continue
                ended = {arm: status.get((arm, level, seed), "not played") for arm in arms}
                who = next((arm for arm in arms if ended[arm] != "ok"), arms[0])
                reason = "without a value on common data" if ended[who] == "ok" else ended[who]
                found[self._label(who), reason, level] += 1
        return found

    def _label(self, contender: str) -> str:
        return str(self.card.spec.contenders[contender].label)

    def _explained(
        self,
        pair: PairResult,
        absent: Counter[tuple[str, str, str]],
        n_dropped: int = 0,
        description: statistics.Description | None = None,
    ) -> PairResult:
        terms = wording.Terms(
            contender=self._label(pair.contender),
            against=self._label(pair.against) if pair.against else "",
            metric=self.metric,
            slice=self.claim.slice,
            kind=self.claim.kind,
            margin=self.claim.margin,
            target=self.claim.target,
            confidence=self.confidence,
            tier=self.tier,
            sized=self.sized,
            reported=self.reported if self._is_reported_opponent(pair.against) else None,
        )
        return replace(pair, why=wording.explain(terms, pair, absent, n_dropped, description))


def _worst(pairs: Sequence[PairResult]) -> PairResult:
    """The pair that decides: of the worst verdict, the clearest loss, or the weakest support."""
    verdict = min((pair.verdict for pair in pairs), key=SEVERITY.index)
    if verdict in SUPPORTED:
        return max(pairs, key=lambda pair: pair.p)
    mine = [pair for pair in pairs if pair.verdict == verdict]
    if verdict in (CONTRADICTED, NO_EFFECT):
        return min(mine, key=lambda pair: pair.p)
    return max(mine, key=lambda pair: 1.0 if math.isnan(pair.p) else pair.p)


def _summary(worst: PairResult, pairs: Sequence[PairResult]) -> str:
    return worst.why if len(pairs) == 1 else f"The worst of {len(pairs)} opponents decides. {worst.why}"


def _mean_ratio(pairs: pd.DataFrame, column: str) -> float:
    """Mean over levels of the mean over seeds; NaN where there is no ratio (a target has no FLOPs)."""
    return float(pairs.groupby("level")[column].mean().mean()) if column in pairs else NAN


def _nan(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else NAN
