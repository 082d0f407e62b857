"""Tables of costs: FLOPs, time and memory of the contenders, and what the harness itself took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rematch.cards import Card, level_text
from rematch.summary import Cells, finite_mean, rows_of
from rematch.tables import NAN, Cell, Row, Table, number, slug, span_of

if TYPE_CHECKING:
    import pandas as pd


def cost_tables(card: Card, tier: str, cells: Cells) -> list[Table]:
    """One table an axis: FLOPs, time and memory of every contender, over its levels."""
    return [_cost_table(card, tier, axis, cells) for axis in card.spec.axes if axis in card.at(tier).axes]


def _cost_table(card: Card, tier: str, axis: str, cells: Cells) -> Table:
    spec, rows, data = card.axis(axis, tier), [], []
    for name in spec.contenders:
        matches = [m for level in spec.levels for m in cells.get((axis, name, level_text(level)), [])]
        done = [m for m in matches if m.status in ("ok", "unmatched")]
        column = {key: [float(m.record[key]) for m in done] for key in _COSTS}
        texts = [span_of(column["flops"]), span_of(column["train_flops"]), span_of(column["tokens_seen"])]
        texts += [number(finite_mean(column[key]), 2) for key in ("cpu_seconds", "seconds")]
        texts += [number(max(filter(math.isfinite, column["peak_memory_mb"]), default=NAN), 0)]
        texts += [f"{sum(m.status == 'ok' for m in matches)} of {len(matches)}"]
        rows.append(
            Row(card.spec.contenders[name].label, tuple(Cell(text) for text in texts), card.spec.contenders[name].kind)
        )
        data += [
            {key: m.record[key] for key in ("paper", "tier", "axis", "contender", "level", "seed", "status")}
            | {key: m.record[key] for key in (*_COSTS, "flops_ratio")}
            for m in matches
        ]
    return Table(
        name=slug("costs", axis),
        title=f"Costs: {spec.label}",
        stub="Contender",
        columns=(
            "FLOPs per item", "Training FLOPs", "Tokens seen", "CPU s per match", "Wall s per match", "Peak MiB",
            "Matches ok",
        ),
        rows=tuple(rows),
        data=tuple(data),
        caption="Ranges are over levels and seeds, seconds are means, memory is the highest peak above the start of a match.",
    )  # fmt: skip


_COSTS = ("flops", "train_flops", "samples_seen", "tokens_seen", "cpu_seconds", "seconds", "peak_memory_mb")


def harness_table(job_costs: pd.DataFrame) -> Table | None:
    """What the jobs cost, and what of it the harness itself took; None where nothing was kept."""
    if job_costs.empty:
        return None
    rows = []
    parts = [(kind, part) for kind, part in job_costs.groupby("kind", sort=True)]
    for kind, part in [*parts, ("all", job_costs)] if len(parts) > 1 else parts:
        work, overhead = float(part["work_cpu_s"].sum()), float(part["overhead_cpu_s"].sum())
        share = 100 * overhead / (work + overhead) if work + overhead else NAN
        texts = (str(len(part)), *(number(x, 1) for x in (float(part["wall_s"].sum()), work, overhead, share)))
        rows.append(Row(str(kind), tuple(Cell(text) for text in texts)))
    return Table(
        name="costs-jobs",
        title="Costs: jobs and the harness around them",
        stub="Jobs",
        columns=("Number", "Wall s", "CPU s of the work", "CPU s of the harness", "Harness, % of all"),
        rows=tuple(rows),
        data=tuple(rows_of(job_costs)),
    )


def paper_costs(papers: Sequence[tuple[Card, Cells, pd.DataFrame]]) -> Table:
    """One row a paper: its matches, and the CPU time that they, the bases and the harness took."""
    rows = []
    for card, cells, jobs in papers:
        matches = [match for group in cells.values() for match in group]
        seconds = [float(match.record["cpu_seconds"]) for match in matches]
        bases = float(jobs.loc[jobs["kind"] == "base", "work_cpu_s"].sum())
        playing, harness = math.fsum(s for s in seconds if math.isfinite(s)), float(jobs["overhead_cpu_s"].sum())
        ok = sum(match.status == "ok" for match in matches)
        texts = (f"{ok} of {len(matches)}", *(number(s / 60, 1) for s in (playing, bases, harness)))
        rows.append(Row(card.spec.title, tuple(Cell(text) for text in texts)))
    return Table(
        name="costs",
        title="Costs",
        stub="Paper",
        columns=("Matches ok", "CPU min of the matches", "CPU min of the bases", "CPU min of the harness"),
        rows=tuple(rows),
    )
