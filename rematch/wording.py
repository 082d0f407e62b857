"""The sentence behind a verdict, with its numbers: what a reader sees as ``why``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rematch.statistics import Description, sign_flip_floor

if TYPE_CHECKING:
    from rematch.card_models import Metric
    from rematch.verdicts import PairResult

_HUGE = 1e4  # percent; beyond it a log ratio says only that one side diverged
LARGEST_EXPONENT = 700.0  # exp overflows just above
_MINUS = "\u2212"


@dataclass(frozen=True)
class Terms:
    """What was compared, in the reader's words. ``against`` is empty for a comparison with ``target``."""

    contender: str
    against: str
    metric: Metric
    slice: str
    kind: str
    margin: float
    target: float
    confidence: float
    tier: str
    sized: bool
    reported: float | None

    @property
    def what(self) -> str:
        return f"{self.metric.label} ({self.slice})" if self.slice else self.metric.label

    @property
    def unit(self) -> str:
        unit = "%" if self.metric.scale == "log" else self.metric.unit
        return f" {unit}" if unit else ""

    def number(self, difference: float) -> str:
        """A difference without its unit; a log ratio in percent."""
        if self.metric.scale == "linear":
            return f"{difference:.3g}".replace("-", _MINUS)
        percent = 100 * math.expm1(min(difference, LARGEST_EXPONENT))
        if percent >= _HUGE:
            return f"over {_HUGE:,.0f}"
        text = f"{percent:.1f}" if abs(percent) >= 0.1 else f"{percent:.1g}"
        return text.replace("-", _MINUS)

    def amount(self, difference: float) -> str:
        return self.number(difference) + self.unit

    def span(self, low: float, high: float) -> str:
        return f"{self.number(low)} to {self.amount(high)}"

    def value(self, deviation: float) -> str:
        """The metric's own value, that far from the target."""
        if self.metric.scale == "log":
            return f"{self.target * math.exp(min(deviation, LARGEST_EXPONENT)):.4g}"
        return f"{self.target + deviation:.4g}".replace("-", _MINUS)

    def value_span(self, low: float, high: float) -> str:
        return f"{self.value(low)} to {self.value(high)}"


def explain(
    terms: Terms,
    pair: PairResult,
    absent: Counter[tuple[str, str, str]],
    n_dropped: int = 0,
    description: Description | None = None,
) -> str:
    """Plain sentences on one pair: what was measured, why the verdict follows, and what is missing.

    Args:
        pair: with its verdict.
        absent: planned pairs without usable records, by (label, reason, level).
        n_dropped: usable pairs left out because their seed is not in every cell.
    """
    if not pair.n_seeds:
        versus = f" against {terms.against}" if terms.against else ""
        return f"No usable records of {terms.contender}{versus}: {listed(absent) or 'nothing was planned'}."
    sentences = [f"{_measured(terms, pair)} ({_evidence(terms, pair)}){_because(terms, pair)}."]
    if absent:
        sentences.append(f"Left out: {listed(absent)}.")
    if n_dropped:
        sentences.append(f"{_count(n_dropped, 'pair')} dropped: their seeds or levels are not complete.")
    if math.isfinite(pair.pessimistic):
        sentences.append(f"With its failures counted as the worst result seen: {terms.amount(pair.pessimistic)}.")
    if description:
        sentences.append(
            f"Interquartile mean {terms.amount(description.interquartile_mean)}, "
            f"probability of improvement {description.probability_of_improvement:.2f}."
        )
    return " ".join(sentences)


def listed(absent: Mapping[tuple[str, str, str], int]) -> str:
    """``Simba failed at 0.4 (2 matches); Dense Mamba unmatched at 0.4, 0.7 (10 matches)``."""
    groups: dict[tuple[str, str], dict[str, int]] = {}
    for (who, reason, level), count in absent.items():
        groups.setdefault((who, reason), {})[level] = count
    return "; ".join(
        f"{who} {reason} at {', '.join(levels)} ({_count(sum(levels.values()), 'match', 'matches')})"
        for (who, reason), levels in groups.items()
    )


def _measured(terms: Terms, pair: PairResult) -> str:
    if not terms.against:
        goal = terms.value(0.0) + (f" {terms.metric.unit}" if terms.metric.unit else "")
        return f"{terms.what} of {terms.contender} was {terms.value(pair.estimate)} against a target of {goal}"
    if pair.estimate == 0:
        return f"{terms.contender} and {terms.against} were level in {terms.what}"
    ahead = pair.estimate > 0
    verb = ("beat" if ahead else "lost to") if _clear(pair) else ("was ahead of" if ahead else "was behind")
    size = terms.amount(pair.estimate).removeprefix(_MINUS)
    return f"{terms.contender} {verb} {terms.against} by {size} in {terms.what}"


def _evidence(terms: Terms, pair: PairResult) -> str:
    parts = []
    if math.isfinite(pair.low) and not (pair.deterministic and pair.low == pair.high):
        span = terms.span if terms.against else terms.value_span
        over_items = (pair.low, pair.high) != (pair.t_low, pair.t_high)
        over = "interval over test items" if over_items else "interval"
        parts.append(f"{100 * terms.confidence:g} % {over} {span(pair.low, pair.high)}")
    seeds = _count(pair.n_seeds, "seed")
    certain = "counted, without chance" if pair.low == pair.high else "without any difference between them"
    parts.append(f"{seeds} {certain}" if pair.deterministic else seeds)
    won = "won" if terms.against else "within the margin"
    parts.append(f"{pair.cells_won} of {_count(pair.n_cells, 'level')} {won}")
    return ", ".join(parts)


def _because(terms: Terms, pair: PairResult) -> str:
    """Why the verdict follows from the interval."""
    margin = f"±{terms.amount(terms.margin)}"
    if pair.verdict == "no effect":
        clear = "; the sign is clear, the size does not matter" if _clear(pair) else ""
        return f": the whole interval lies within {margin}{clear}"
    if pair.verdict == "reproduced":
        return f": the reported size is {terms.amount(terms.reported)} {margin}" if terms.reported is not None else ""
    if pair.verdict == "direction only":
        held = _threshold(terms, "above", within=f"within {margin}")
        if not terms.sized:
            return f"{held}; sizes cannot be compared at tier {terms.tier}"
        if terms.reported is None:
            return f"{held}; no reported size to compare with"
        return f"{held}, but off the reported {terms.amount(terms.reported)} {margin}"
    if pair.verdict == "contradicted":
        return _threshold(terms, "below", within=f"outside {margin}")
    if not math.isfinite(pair.low):
        if pair.deterministic:
            return ": neither seeds nor test items vary, so there is no interval"
        return ": an interval needs two seeds that every level has"
    floor = f"; a sign-flip test of so few seeds could not go below p = {sign_flip_floor(pair.n_seeds):.2g}"
    edge = f"the edge of {margin}" if terms.kind == "within" else "0" if terms.kind == "better" else _minus(terms)
    return f": the interval includes {edge}{floor if pair.n_seeds < 6 else ''}"


def _threshold(terms: Terms, side: str, within: str) -> str:
    if terms.kind == "within":
        return f": the deviation lies {within}"
    return "" if terms.kind == "better" else f": the interval lies {side} {_minus(terms)}, the largest loss allowed"


def _minus(terms: Terms) -> str:
    return terms.amount(-terms.margin)


def _clear(pair: PairResult) -> bool:
    return pair.low > 0 or pair.high < 0


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
