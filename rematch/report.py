"""The report: a front page over all papers, and one page per paper with its tables, plots, costs and provenance.

Pages are static HTML with everything inlined: no script, no request. The same inputs give the same bytes.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rematch.cards import Card, level_text
from rematch.costs import cost_tables, harness_table, paper_costs
from rematch.records import write_text
from rematch.scoreboard import claim_table, pair_table
from rematch.summary import Cells, Match, anchor, fold, metric_tables
from rematch.tables import Cell, Row, Table, number, percent, si, slug

if TYPE_CHECKING:
    import pandas as pd
    from jinja2 import Environment

    from rematch.card_models import AxisSpec, LevelValue
    from rematch.verdicts import ClaimResult

TEMPLATES = Path(__file__).resolve().parent.parent / "reports" / "templates"
# The order in which a tally is read, and the sign that stands before the word on the board.
VERDICTS = {
    "reproduced": "●", "direction only": "◐", "no effect": "○", "contradicted": "✕", "inconclusive": "?", "not run": "–",
}  # fmt: skip
EXHIBITS_SHOWN = 12
"""Exhibits that a page shows of one contender."""
TEXT_SHOWN = 4000
"""Characters that a page shows of one text of an exhibit."""
FORMATS = ("csv", "md", "tex")
# CSS variable: (light, dark); text reaches 4.5:1 on ``--paper`` and ``--wash``. The others are those of the plots.
PAGE_COLOURS = {
    "--paper": ("#fbf9f4", "#161513"),
    "--wash": ("#f0ebdf", "#25231f"),
    "--line": ("#d9d2c3", "#3a3731"),
    "--link": ("#8a2a0c", "#ff9d7a"),
    "--good": ("#1c6138", "#7dd19b"),
    "--partly": ("#14606b", "#79cbd6"),
    "--bad": ("#a1200f", "#ff8d7a"),
    "--open": ("#735300", "#dcbb57"),
}


@dataclass(frozen=True)
class PaperResults:
    """Everything that a paper's page shows.

    Attributes:
        records: columns of ``rematch.schema.COLUMNS``, all statuses.
        claims: the verdicts, in the card's order; empty where nothing was judged.
        provenance: manifests of the runs that the records come from (``rematch.provenance``).
        job_costs: columns kind, name, run, wall_s, work_cpu_s, overhead_cpu_s; may be empty.
        confidence: of the intervals in tables and plots.
        exhibits: what matches left to read, all seeds (``rematch.schema.EXHIBIT_KEYS``).
    """

    card: Card
    tier: str
    records: pd.DataFrame
    claims: Sequence[ClaimResult]
    provenance: Sequence[dict[str, Any]]
    job_costs: pd.DataFrame
    confidence: float = 0.95
    exhibits: Sequence[Mapping[str, Any]] = ()


def render(results: Sequence[PaperResults], out: Path, *, tier: str) -> list[Path]:
    """Write the front page and every paper's page; the paths of all files written.

    Args:
        out: the tier's folder, ``reports/<tier>``.

    Raises:
        RematchError: the folder cannot be written.
    """
    written = [path for paper in results for path in render_paper(paper, out)]
    return [*render_index(results, out, tier=tier), *written]


def render_paper(results: PaperResults, out: Path) -> list[Path]:
    """Write ``<paper>.html``, ``tables/<paper>/`` and ``plots/<paper>/``; see ``render``."""
    from rematch.plots import draw_all  # charts take half a second to import

    card, paper, cells = results.card, results.card.paper, fold(results.records)
    figures = draw_all(card, results.tier, cells, results.confidence)
    metrics = metric_tables(card, results.tier, cells, results.confidence)
    costs = cost_tables(card, results.tier, cells)
    jobs = harness_table(results.job_costs)
    pairs = pair_table(card, results.claims)
    all_tables = [claim_table(card, results.claims), pairs, *metrics, *costs, *([jobs] if jobs else [])]
    files = {f"tables/{paper}/{t.name}.{kind}": text for t in all_tables for kind, text in _formats(t).items()}
    files |= {f"plots/{paper}/{f.name}.svg": f.file for f in figures if f.file}
    files |= {f"tables/{paper}/{f.table.name}.csv": f.table.csv() for f in figures if f.file}
    files[f"{paper}.html"] = _environment().get_template("paper.html.j2").render(
        **_common(results.tier, results.confidence),
        card=card.spec,
        board=Board.of(results),
        pairs=pairs,
        metrics=metrics,
        figures=figures,
        costs=[*costs, *([jobs] if jobs else [])],
        trouble=trouble_table(card, cells),
        exhibits=contender_exhibits(results, cells),
        exhibits_shown=EXHIBITS_SHOWN,
        matches=match_groups(results, cells),
        unplayed=_unplayed(card, results.tier),
        runs=results.provenance,
        data_hashes=_data_hashes(card, cells),
    )  # fmt: skip
    return _write(files, out)


def render_index(results: Sequence[PaperResults], out: Path, *, tier: str) -> list[Path]:
    """Write ``index.html`` over all papers; see ``render``."""
    boards = [Board.of(paper) for paper in results]
    runs = {run["run"]: run for paper in results for run in paper.provenance}
    page = _environment().get_template("index.html.j2").render(
        **_common(tier, results[0].confidence if results else 0.95),
        boards=boards,
        tally=_tally(claim.verdict for paper in results for claim in paper.claims),
        costs=paper_costs([(paper.card, fold(paper.records), paper.job_costs) for paper in results]),
        runs=[runs[key] for key in sorted(runs)],
    )  # fmt: skip
    return _write({"index.html": page}, out)


# -- the board ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forest:
    """A claim's interval drawn on a line, in pixels: zero, the margin around it, the interval, the reported size."""

    WIDTH, HEIGHT = 148, 22
    zero: float
    band: tuple[float, float]
    interval: tuple[float, float] | None
    estimate: float
    reported: float | None
    text: str

    @classmethod
    def of(cls, claim: ClaimResult, margin: float) -> Forest | None:
        """The drawing of a claim, or None where nothing was measured."""
        pair = claim.worst
        if pair is None or not math.isfinite(pair.estimate):
            return None
        marks = [pair.estimate, pair.low, pair.high, 1.6 * margin, claim.reported_difference or 0.0]
        reach = 1.08 * max(abs(mark) for mark in marks if math.isfinite(mark))

        def x(value: float) -> float:
            return round(cls.WIDTH * (0.5 + 0.5 * value / reach), 1)

        has_interval = math.isfinite(pair.low) and math.isfinite(pair.high)
        ends = f", interval {pair.low:.3g} to {pair.high:.3g}" if has_interval else ", no interval"
        reported = claim.reported_difference
        more = "" if reported is None else f", reported {reported:.3g}"
        return cls(
            zero=x(0.0),
            band=(x(-margin), x(margin)),
            interval=(x(pair.low), x(pair.high)) if has_interval else None,
            estimate=x(pair.estimate),
            reported=None if reported is None else x(reported),
            text=f"Estimate {pair.estimate:.3g}{ends}, margin ±{margin:.3g}{more}".replace("-", "−"),
        )


@dataclass(frozen=True)
class Entry:
    """One claim on the board; ``cells`` are those of the claims table."""

    claim: ClaimResult
    cells: tuple[Cell, ...]
    forest: Forest | None
    sign: str
    margin: float


@dataclass(frozen=True)
class Board:
    """A paper's claims board."""

    paper: str
    title: str
    citation: str
    table: Table
    entries: tuple[Entry, ...]
    tally: tuple[tuple[str, str, int], ...]

    @classmethod
    def of(cls, results: PaperResults) -> Board:
        card, table = results.card, claim_table(results.card, results.claims)
        entries = []
        for claim, row in zip(results.claims, table.rows, strict=True):
            margin = card.spec.claims[claim.claim_id].margin
            entries.append(Entry(claim, row.cells, Forest.of(claim, margin), VERDICTS[claim.verdict], margin))
        tally = _tally(claim.verdict for claim in results.claims)
        return cls(card.paper, card.spec.title, card.spec.citation, table, tuple(entries), tally)


def _tally(verdicts: Iterable[str]) -> tuple[tuple[str, str, int], ...]:
    """(word, sign, count) for every verdict word, in their order."""
    counts = Counter(verdicts)
    return tuple((word, sign, counts[word]) for word, sign in VERDICTS.items())


# -- exhibits -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CellExhibits:
    """What the first seed of a table cell that brought any exhibits left to read."""

    title: str
    anchor: str
    exhibits: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class ContenderExhibits:
    """What a page shows of a contender's exhibits: cells in the card's order; ``total`` counts those left out too."""

    label: str
    total: int
    cells: tuple[CellExhibits, ...]

    @property
    def shown(self) -> int:
        return sum(len(cell.exhibits) for cell in self.cells)


def contender_exhibits(results: PaperResults, cells: Cells) -> list[ContenderExhibits]:
    """The exhibits by contender, at most ``EXHIBITS_SHOWN`` each, spread evenly over its cells."""
    card, tier = results.card, results.tier
    by_cell: dict[tuple[str, str, str], dict[int, list[Mapping[str, Any]]]] = {}
    for row in results.exhibits:
        by_cell.setdefault((row["axis"], row["contender"], row["level"]), {}).setdefault(row["seed"], []).append(row)
    axes = {axis: card.axis(axis, tier) for axis in card.at(tier).axes}
    found = []
    for name, contender in card.spec.contenders.items():
        whole = [
            _cell_exhibits(spec, anchor(axis, name, level), level, seeds, cells[key])
            for axis, spec in axes.items()
            for level in spec.levels
            if (key := (axis, name, level_text(level))) in cells and (seeds := by_cell.get(key))
        ]
        places = sorted((place, cell) for cell, c in enumerate(whole) for place in range(len(c.exhibits)))
        kept = Counter(cell for _, cell in places[:EXHIBITS_SHOWN])
        shown = tuple(replace(whole[cell], exhibits=whole[cell].exhibits[:n]) for cell, n in sorted(kept.items()))
        if shown:
            found.append(ContenderExhibits(contender.label, len(places), shown))
    return found


def _cell_exhibits(
    spec: AxisSpec, link: str, level: LevelValue, seeds: Mapping[int, list[Mapping[str, Any]]], matches: Sequence[Match]
) -> CellExhibits:
    """Of the first seed; how its match ended is said where that is not ok."""
    first = min(seeds)
    status = next((f" ({m.status})" for m in matches if m.seed == first and m.status != "ok"), "")
    title = f"{spec.label}, {spec.level_label}: {level_text(level)}, seed {first}{status}"
    return CellExhibits(title, link, tuple(seeds[first]))


def readable(text: str) -> str:
    """A text as a page shows it: of bounded length, and control characters, which HTML has no place for, made visible."""
    if len(text) > TEXT_SHOWN:
        text = f"{text[:TEXT_SHOWN]}\n[{len(text) - TEXT_SHOWN} more characters]"
    return text.replace("\r\n", "\n").translate(_CONTROL_PICTURES)


_CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}


# -- matches --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MatchGroup:
    """The matches behind one table cell: what they share as facts, and a table with a row a seed."""

    anchor: str
    title: str
    command: str
    facts: tuple[tuple[str, str], ...]
    table: Table


def match_groups(results: PaperResults, cells: Cells) -> list[tuple[str, list[MatchGroup]]]:
    """(axis label, its groups), contenders and levels in the card's order."""
    card, tier = results.card, results.tier
    commits = {run["run"]: _commit(run) for run in results.provenance}
    groups = []
    for axis in card.at(tier).axes:
        spec = card.axis(axis, tier)
        wanted = [(name, level) for name in spec.contenders for level in spec.levels]
        found = [
            MatchGroup(
                anchor=anchor(axis, name, level),
                title=f"{card.spec.contenders[name].label}, {spec.level_label}: {level_text(level)}",
                command=f"rematch audit {card.paper}/{axis}/{name}/{level_text(level)} --tier {tier}",
                facts=_facts(matches, commits),
                table=_seeds_table(card, axis, spec.metrics, matches),
            )
            for name, level in wanted
            if (matches := cells.get((axis, name, level_text(level)), []))
        ]
        groups.append((spec.label, found))
    return groups


def _facts(matches: Sequence[Match], commits: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """What a reader needs to play the matches again; a value that differs between seeds is listed with its seeds."""
    names = {
        "run": "Run",
        "digest": "Source and config digest",
        "data_hash": "Data hash",
        "log": "Log",
        "notes": "Notes",
    }
    facts = []
    for key, label in names.items():
        by_value: dict[str, list[str]] = {}
        for match in matches:
            text = str(match.record[key])
            if key == "run":
                text += f", commit {commits.get(text, 'not recorded')}"
            by_value.setdefault(text, []).append(str(match.seed))
        if len(by_value) == 1:
            facts.append((label, next(iter(by_value))))
        else:
            facts.append((label, "; ".join(f"seed {', '.join(seeds)}: {text}" for text, seeds in by_value.items())))
    return tuple((label, text) for label, text in facts if text not in ("", "{}"))


def _seeds_table(card: Card, axis: str, metrics: Sequence[str], matches: Sequence[Match]) -> Table:
    shown = [name for name in metrics if any((name, "") in match.values for match in matches)]
    rows = []
    for match in matches:
        record = match.record
        texts = [number(match.values.get((name, ""), math.nan), 4) for name in shown]
        texts += [si(float(record["flops"])), number(float(record["flops_ratio"]), 3), si(float(record["train_flops"]))]
        texts += [number(float(record[key]), 1) for key in ("cpu_seconds", "seconds", "peak_memory_mb")]
        status = Cell(match.status, detail=str(record["reason"]), status=match.status)
        rows.append(Row(str(match.seed), (status, *(Cell(text) for text in texts))))
    labels = [card.spec.metrics[name].label for name in shown]
    columns = ("Status", *labels, "FLOPs", "FLOPs ratio", "Training FLOPs", "CPU s", "Wall s", "Peak MiB")
    return Table(name=slug(axis), title="", stub="Seed", columns=columns, rows=tuple(rows))


def trouble_table(card: Card, cells: Cells) -> Table:
    """Every match that did not end ok, seeds with the same end together."""
    groups: dict[tuple[str, str, str, str, str], list[Match]] = {}
    for (axis, contender, level), matches in cells.items():
        for match in matches:
            if match.status != "ok":
                key = (axis, contender, level, match.status, str(match.record["reason"]))
                groups.setdefault(key, []).append(match)
    rows = []
    for (axis, contender, level, status, reason), matches in groups.items():
        seeds = ", ".join(str(match.seed) for match in matches)
        where = Cell(level, href="#m-" + slug(axis, contender, level))
        end = Cell(status, status=status)
        texts = (Cell(seeds), end, Cell(reason), Cell(str(matches[0].record["log"])))
        rows.append(Row(card.spec.contenders[contender].label, (Cell(card.spec.axes[axis].label), where, *texts)))
    columns = ("Axis", "Level", "Seeds", "Status", "Reason", "Log")
    return Table(
        name="not-ok", title="Matches that did not end ok", stub="Contender", columns=columns, rows=tuple(rows)
    )


# -- the rest of the page -------------------------------------------------------------------------------------------


def _unplayed(card: Card, tier: str) -> list[str]:
    """Titles of the tables and plots whose axis the tier does not play."""
    views = [*card.spec.tables, *card.spec.plots]
    return list(dict.fromkeys(view.title for view in views if view.axis not in card.at(tier).axes))


def _data_hashes(card: Card, cells: Cells) -> list[tuple[str, list[str]]]:
    """(axis label, the hashes of the data that its matches were scored on)."""
    found: dict[str, dict[str, None]] = {}
    for (axis, _, _), matches in cells.items():
        for match in matches:
            if match.record["data_hash"]:
                found.setdefault(axis, {})[str(match.record["data_hash"])] = None
    return [(card.spec.axes[axis].label, sorted(hashes)) for axis, hashes in found.items()]


def _commit(run: dict[str, Any]) -> str:
    commit = str(run.get("commit") or "not recorded")
    return f"{commit} with uncommitted changes" if run.get("dirty") else commit


def _formats(table: Table) -> dict[str, str]:
    return {"csv": table.csv(), "md": table.markdown(), "tex": table.latex()}


def _common(tier: str, confidence: float) -> dict[str, Any]:
    return {"tier": tier, "confidence": percent(confidence), "formats": FORMATS}


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from rematch.plots import PALETTE  # not at the top: a page's colours are those of its plots

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["colours"] = PALETTE | PAGE_COLOURS
    environment.filters |= {
        "slug": slug,
        "commit": _commit,
        "readable": readable,
        "svg": Markup,  # drawn by vl-convert, which escapes the text in it
        "pretty": lambda value: json.dumps(value, indent=1, sort_keys=True, default=str),
    }
    return environment


def _write(files: dict[str, str], out: Path) -> list[Path]:
    """Write files by their path under ``out``, each whole or not at all."""
    for name, text in files.items():
        write_text(text, out / name)
    return [out / name for name in files]
