"""Tables of metrics: contenders down, levels or slices across, a mean with its interval in each cell."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rematch.card_models import LevelValue
from rematch.cards import Card, level_text
from rematch.tables import (
    LARGE,
    NAN,
    Cell,
    Mean,
    Row,
    Table,
    decimals,
    mean_interval,
    number,
    percent,
    short,
    si,
    slug,
    unique,
)

if TYPE_CHECKING:
    import pandas as pd

    from rematch.card_models import Table as TableSpec

NO_NUMBERS = "No reported numbers to be had for this table: direction only."
FEW = 3
"""Reported numbers that a table cell lists one by one."""
_SEVERITY = ("failed", "timeout", "unmatched", "skipped")


# -- matches --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """One match, folded from its records: ``values`` by (metric, slice), all else as in the first record."""

    record: Mapping[str, Any]
    values: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def status(self) -> str:
        return str(self.record["status"])

    @property
    def seed(self) -> int:
        return int(self.record["seed"])


Cells = dict[tuple[str, str, str], list[Match]]


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as plain dicts."""
    names = [str(name) for name in frame.columns]
    return [dict(zip(names, row, strict=True)) for row in frame.itertuples(index=False, name=None)]


def fold(records: pd.DataFrame) -> Cells:
    """Matches by (axis, contender, level), seeds in order."""
    found: dict[tuple[str, str, str, int], Match] = {}
    for row in rows_of(records):
        key = (row["axis"], row["contender"], row["level"], row["seed"])
        match = found.setdefault(key, Match(row))
        if row["metric"]:
            match.values[row["metric"], row["slice"]] = row["value"]
    cells: Cells = {}
    for key in sorted(found):
        cells.setdefault(key[:3], []).append(found[key])
    return cells


def ok_values(matches: Sequence[Match], metric: str, slice_: str) -> list[float]:
    """A metric's values over the seeds whose match ended ok."""
    return [m.values[metric, slice_] for m in matches if m.status == "ok" and (metric, slice_) in m.values]


def slices_of(cells: Cells, axis: str, family: str | None) -> list[str]:
    """The slices of a family that an axis measured: by their number where they have one, else by name."""
    names = {s for key, ms in cells.items() if key[0] == axis for m in ms for _, s in m.values}
    return sorted((s for s in names if s.partition("=")[0] == family and "=" in s), key=_slice_order)


def slice_number(name: str) -> float | None:
    """The number in a slice name: 64 for ``distance=64``."""
    try:
        return float(name.partition("=")[2])
    except ValueError:
        return None


def levels_of(card: Card, tier: str, axis: str, wanted: Sequence[LevelValue] | None) -> list[LevelValue]:
    """The levels that the tier plays on an axis, narrowed to those that a view asks for."""
    return [level for level in card.axis(axis, tier).levels if wanted is None or level in wanted]


def anchor(axis: str, contender: str, level: LevelValue) -> str:
    """The anchor at which a page lists the matches of a cell."""
    return "m-" + slug(axis, contender, level_text(level))


# -- tables of metrics ----------------------------------------------------------------------------------------------


def metric_tables(card: Card, tier: str, cells: Cells, confidence: float = 0.95) -> list[Table]:
    """The tables that the card asks for, on the axes that the tier plays, of metrics that one of its contenders has."""
    tables = []
    for spec in card.spec.tables:
        if spec.axis not in card.at(tier).axes:
            continue
        levels = levels_of(card, tier, spec.axis, spec.levels)
        if spec.across == "level":
            columns = [(level, spec.slice or "") for level in levels]
            tables.append(_metric_table(card, tier, cells, spec, columns, "", confidence))
        else:  # a slice varies, so a level stays: one table each
            for level in levels:
                columns = [(level, name) for name in slices_of(cells, spec.axis, spec.slice)]
                which = level_text(level) if len(levels) > 1 else ""
                tables.append(_metric_table(card, tier, cells, spec, columns, which, confidence))
    tables = [table for table in tables if table.rows]
    names = unique([table.name for table in tables])
    return [replace(table, name=name) for table, name in zip(tables, names, strict=True)]


def _metric_table(
    card: Card, tier: str, cells: Cells, spec: TableSpec, columns: list[tuple[LevelValue, str]], which: str,
    confidence: float,
) -> Table:  # fmt: skip
    axis, metric = card.axis(spec.axis, tier), card.spec.metrics[spec.metric]
    across_slices = spec.across == "slice"
    names = [name for name in axis.contenders if metric.of is None or name in metric.of]
    found = {
        (name, column): cells.get((spec.axis, name, level_text(column[0])), []) for name in names for column in columns
    }
    means = {
        key: mean_interval(ok_values(matches, spec.metric, key[1][1]), confidence) for key, matches in found.items()
    }
    places = {c: _column_places([means[name, c] for name in names]) for c in columns}
    best = {c: _best({n: means[n, c] for n in names}, card, metric.better) for c in columns}
    reported = {name: reported_text(card, spec.axis, name, spec.metric) for name in names}
    rows, data = [], []
    for name in names:
        contender, row = card.spec.contenders[name], []
        for column in columns:
            mean, matches = means[name, column], found[name, column]
            href = f"#{anchor(spec.axis, name, column[0])}"
            bound = axis.budget is not None and name not in axis.budget.fixed
            cell = _metric_cell(mean, matches, places[column], budgeted=bound)
            if metric.measured == "counted" and mean.n and not mean.half_width:
                cell = replace(cell, text=short(mean.value))
            if theirs := reported_at(card, spec.axis, name, spec.metric, *column):
                cell = replace(cell, detail=", ".join(filter(None, [cell.detail, f"reported {theirs}"])))
            row.append(replace(cell, best=name in best[column], href=href if matches else ""))
            data.append(
                {"paper": card.paper, "tier": tier, "axis": spec.axis, "contender": name}
                | {"level": level_text(column[0]), "metric": spec.metric, "slice": column[1], "mean": mean.value}
                | {"low": mean.low, "high": mean.high, "confidence": confidence, "n_seeds": mean.n}
                | {"flops_ratio": _mean_of(matches, "flops_ratio"), "status": cell.status, "reason": cell.reason}
                | {"reported": reported_at(card, spec.axis, name, spec.metric, *column) or reported[name]}
            )
        if any(reported.values()):
            row.append(Cell(reported[name] or "–"))
        rows.append(Row(contender.label, tuple(row), contender.kind))
    caveats = dict.fromkeys(
        note
        for row in card.reported
        if row["axis"] == spec.axis and row["metric"] == spec.metric and row["contender"] in names
        for note in _caveats_of(card, row)
    )
    direction = "" if metric.better == "neither" else f" ({metric.better} is better)"
    unit = f", in {metric.unit}" if metric.unit else ""
    caption = f"{metric.label}{unit}{direction}: mean ± half-width of the {percent(confidence)} t interval over seeds."
    if axis.budget is not None:
        caption += " Below it: realised FLOPs over the budget."
    return Table(
        name=slug(spec.title, which),
        title=spec.title + (f" ({axis.level_label}: {which})" if which else ""),
        stub="Contender",
        columns=tuple([_column(column, across_slices) for column in columns])
        + (("Reported",) if any(reported.values()) else ()),
        rows=tuple(rows),
        data=tuple(data),
        caption=caption,
        notes=tuple(
            filter(
                None,
                [
                    spec.caption,
                    "" if any(reported.values()) else NO_NUMBERS,
                    *(f"† {note}" for note in caveats),
                    *_remarks(card, spec.metric, found),
                ],
            )
        ),
        span=(metric.slice_label or spec.slice or "slice") if across_slices else axis.level_label,
        spanned=len(columns),
    )


def _remarks(card: Card, metric: str, found: Mapping[tuple[str, tuple[LevelValue, str]], Sequence[Match]]) -> list[str]:
    """What matches say of a metric, the same of several seeds once: ``Ours, at 0.5: never refines (seed 0, 2)``."""
    several = len({level for _, (level, _) in found}) > 1
    said: dict[tuple[str, str], dict[str, None]] = {}
    for (name, (level, _)), matches in found.items():
        who = card.spec.contenders[name].label + (f", at {level_text(level)}" if several else "")
        for match in matches:
            remarks = json.loads(str(match.record.get("notes") or "{}")).get("remarks", {})
            if metric in remarks:
                said.setdefault((who, remarks[metric]), {})[str(match.seed)] = None
    return [f"{who}: {remark} (seed {', '.join(seeds)})." for (who, remark), seeds in said.items()]


def _column(column: tuple[LevelValue, str], across_slices: bool) -> str:
    return column[1].partition("=")[2] if across_slices else level_text(column[0])


def _metric_cell(mean: Mean, matches: Sequence[Match], places: int, *, budgeted: bool) -> Cell:
    if not mean.n:
        return _status_cell(matches)
    if abs(mean.value) >= LARGE:
        text = si(mean.value, mean.half_width)
    else:
        text = number(mean.value, places) + (f" ± {number(mean.half_width, places)}" if mean.n > 1 else "")
    details = []
    if budgeted:
        details.append(f"FLOPs ×{number(_mean_of([m for m in matches if m.status == 'ok'], 'flops_ratio'), 3)}")
    details.append(f"n = {mean.n}" + (f" of {len(matches)}: {missing(matches)}" if mean.n < len(matches) else ""))
    return Cell(text, detail=", ".join(details))


def missing(matches: Sequence[Match]) -> str:
    """How many seeds did not end ok, and how: ``1 failed, 2 unmatched``."""
    counts = Counter(m.status for m in matches if m.status != "ok")
    return ", ".join(f"{counts[status]} {status}" for status in _SEVERITY if counts[status]) or "not measured"


def _status_cell(matches: Sequence[Match]) -> Cell:
    for status in _SEVERITY:
        for match in matches:
            if match.status == status:
                detail = f"n = 0 of {len(matches)}: {missing(matches)}"
                if status == "unmatched":
                    detail += f", FLOPs ×{number(_mean_of(matches, 'flops_ratio'), 3)}"
                return Cell(status, detail=detail, status=status, reason=str(match.record["reason"]))
    text = "not measured" if matches else "not played"
    return Cell(text, status=text, reason="no value for this column" if matches else "no record for this cell")


def _column_places(means: Sequence[Mean]) -> int:
    places = [decimals(m.value, m.half_width) for m in means if m.n]
    return statistics.median_high(places) if places else 1


def _best(means: Mapping[str, Mean], card: Card, better: str) -> set[str]:
    """Those with the best mean; a reference (the unpruned parent, say) spends another budget and does not compete."""
    values = {n: m.value for n, m in means.items() if m.n and card.spec.contenders[n].kind != "reference"}
    if better == "neither" or len(values) < 2:
        return set()
    top = max(values.values()) if better == "higher" else min(values.values())
    return {name for name, value in values.items() if value == top}


def reported_text(card: Card, axis: str, contender: str, metric: str) -> str:
    """What ``reported.csv`` holds for a contender and metric on an axis: ``71.2 (hellaswag, 370m; Table 2)``.

    Of more rows than can be read at a glance, their mean and range. A dagger marks what the card has a caveat for.
    """
    rows = [row for row in card.reported if _is_of(row, axis, contender, metric)]
    # An average over other rows would count twice.
    rows = [row for row in rows if row["dataset"] != "average"] or rows
    mark = " †" if any(_caveats_of(card, row) for row in rows) else ""
    if len(rows) > FEW:
        values = [float(row["value"]) for row in rows]
        low, high = min(values), max(values)
        unit = rows[0]["unit"] and " " + rows[0]["unit"]
        return f"mean {statistics.fmean(values):.3g}{unit} of {len(rows)} ({low:g} to {high:g}){mark}"
    found = []
    for row in rows:
        where = ", ".join(filter(None, [row["dataset"], row["setting"]]))
        inside = "; ".join(filter(None, [where, row["table"]]))
        found.append(f"{row['value']}{row['unit'] and ' ' + row['unit']}" + (f" ({inside})" if inside else ""))
    return "; ".join(found) + mark


def reported_at(card: Card, axis: str, contender: str, metric: str, level: LevelValue, part: str) -> str:
    """The reported number of one cell: the data set that the level is, and the slice named in the setting."""
    levels = card.spec.axes[axis].reported_levels
    for row in card.reported:
        here = part in row["setting"].split("; ") if part else not row["setting"]
        if here and _is_of(row, axis, contender, metric) and levels.get(row["dataset"]) == level:
            return f"{row['value']}{row['unit'] and ' ' + row['unit']}" + (" †" if _caveats_of(card, row) else "")
    return ""


def _is_of(row: Mapping[str, str], axis: str, contender: str, metric: str) -> bool:
    return (row["axis"], row["contender"], row["metric"]) == (axis, contender, metric)


def _caveats_of(card: Card, row: Mapping[str, str]) -> list[str]:
    return [c.note for c in card.spec.caveats if c.contender == row["contender"] and row["table"] in c.tables]


def _mean_of(matches: Sequence[Match], column: str) -> float:
    return finite_mean([float(m.record[column]) for m in matches])


def _slice_order(name: str) -> tuple[float, str]:
    found = slice_number(name)
    return (math.inf if found is None else found, name)


def finite_mean(values: Sequence[float]) -> float:
    """The mean of the values that are numbers; NaN where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else NAN
