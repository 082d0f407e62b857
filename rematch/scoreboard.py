"""Tables of verdicts: the claims board, and the comparisons behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rematch.cards import Card
from rematch.tables import Cell, Row, Table, decimals, number
from rematch.wording import LARGEST_EXPONENT

if TYPE_CHECKING:
    from rematch.verdicts import ClaimResult, PairResult


def claim_table(card: Card, claims: Sequence[ClaimResult]) -> Table:
    """One row a claim; the numbers are those of the opponent against which the claim does worst."""
    rows = []
    for claim in claims:
        log = card.spec.metrics[claim.metric].scale == "log"
        measured, interval, n, flops = _pair_cells(card, claim.worst, log)
        verdict = Cell(claim.verdict, reason=claim.why)
        p_raw, p_holm = Cell(p_value(claim.p_raw)), Cell(p_value(claim.p_holm))
        cells = (_reported_cell(claim, log), measured, interval, n, verdict, flops, p_raw, p_holm)
        rows.append(Row(f"{claim.claim_id}. {claim.statement}", cells))
    return Table(
        name="claims",
        title=f"Claims of {card.spec.title}",
        stub="Claim",
        columns=("The paper reported", "We measured", "Interval", "n", "Verdict", "FLOPs ratio", "p", "Holm p"),
        rows=tuple(rows),
        data=tuple(
            {name: getattr(claim, name) for name in ("paper", "claim_id", "tier", "axis", "metric")}
            | {name: getattr(claim, name) for name in ("statement", "source", "ours", "reported_difference")}
            | {name: getattr(claim, name) for name in ("reported_text", "verdict", "why", "p_raw", "p_holm")}
            | {f"worst_{name}": getattr(claim.worst, name, None) for name in _PAIR_FIELDS}
            for claim in claims
        ),
    )


def pair_table(card: Card, claims: Sequence[ClaimResult]) -> Table:
    """One row a comparison: each claim against each of its opponents."""
    rows = []
    for claim, pair in [(owner, pair) for owner in claims for pair in owner.pairs]:
        places = decimals(pair.estimate, (pair.high - pair.low) / 2)
        measured, interval, n, flops = _pair_cells(card, pair, card.spec.metrics[claim.metric].scale == "log")
        texts = (
            interval_text(pair.t_low, pair.t_high, places),
            interval_text(pair.item_low, pair.item_high, places),
            f"{pair.cells_won} of {pair.n_cells}" if pair.n_cells else "–",
            p_value(pair.p),
            number(pair.pessimistic, places, sign=True),
            number(pair.train_flops_ratio, 3),
        )
        over_seeds, over_items, won, p, pessimistic, training = (Cell(text) for text in texts)
        alone = Cell(pair.verdict, reason=pair.why)
        cells = (
            replace(measured, detail=""),
            interval,
            over_seeds,
            over_items,
            n,
            won,
            p,
            pessimistic,
            flops,
            training,
        )
        rows.append(Row(f"{claim.claim_id}: {pair_label(card, pair)}", (*cells, alone)))
    return Table(
        name="pairs",
        title="The comparisons behind the verdicts",
        stub="Comparison",
        columns=(
            "Difference", "Interval", "Over seeds", "Over items", "n", "Cells won", "p", "Failures as worst",
            "FLOPs ratio", "Training FLOPs ratio", "Verdict alone",
        ),
        rows=tuple(rows),
        data=tuple(
            {"claim_id": claim.claim_id} | {name: getattr(pair, name) for name in _PAIR_FIELDS}
            for claim in claims
            for pair in claim.pairs
        ),
        caption="A positive difference is in favour of the contender that is named first. The interval is the wider of those "
        "over seeds and over items. Failures as worst: the difference if each failure of the contender counted as the "
        "worst value seen in its cell.",
    )  # fmt: skip


_PAIR_FIELDS = (
    "contender", "against", "estimate", "low", "high", "t_low", "t_high", "item_low", "item_high", "p", "n_seeds",
    "n_cells", "cells_won", "df", "flops_ratio", "train_flops_ratio", "n_missing", "deterministic", "verdict", "why",
    "pessimistic",
)  # fmt: skip


def pair_label(card: Card, pair: PairResult) -> str:
    """Who met whom, by their labels; a claim about the contender alone is measured against its target."""
    contender = card.spec.contenders[pair.contender].label
    return f"{contender} vs {card.spec.contenders[pair.against].label if pair.against else 'its target'}"


def p_value(p: float | None) -> str:
    """A p value with two significant digits; a dash where there is none."""
    if p is None or math.isnan(p):
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def interval_text(low: float, high: float, places: int) -> str:
    """``[+0.010, +0.054]``; a dash where there is no interval."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "–"
    return f"[{number(low, places, sign=True)}, {number(high, places, sign=True)}]"


def _pair_cells(card: Card, pair: PairResult | None, log: bool) -> tuple[Cell, Cell, Cell, Cell]:
    """Difference, interval, n and FLOPs ratio of a comparison."""
    if pair is None or math.isnan(pair.estimate):
        return Cell("–"), Cell("–"), Cell("–"), Cell("–")
    places = decimals(pair.estimate, (pair.high - pair.low) / 2)
    n = Cell(str(pair.n_seeds), detail=f"seeds × {pair.n_cells} cells" if pair.n_cells > 1 else "seeds")
    if pair.n_missing:
        n = replace(n, detail=f"{n.detail}, {pair.n_missing} missing")
    measured = Cell(difference_text(pair.estimate, places, log), detail=pair_label(card, pair))
    return measured, Cell(interval_text(pair.low, pair.high, places)), n, Cell(number(pair.flops_ratio, 3))


def difference_text(value: float, places: int, log: bool) -> str:
    """A signed difference; one of logarithms with the percentage that it stands for."""
    text = number(value, places, sign=True)
    return (
        f"{text} log ({number(100 * math.expm1(min(value, LARGEST_EXPONENT)), 1, sign=True)}\u00a0%)" if log else text
    )


def _reported_cell(claim: ClaimResult, log: bool) -> Cell:
    """What the paper says of the size, in numbers where there are any."""
    value = claim.reported_difference
    if value is None or math.isnan(value):
        return Cell(claim.reported_text or ("a claim of this harness" if claim.ours else "no number to be had"))
    return Cell(difference_text(value, max(0, decimals(value) - 2), log), detail=claim.reported_text)
