"""Tables: one object per table, rendered as Markdown, CSV, LaTeX and (in the page's templates) HTML.

A table is a grid of cells that know what is printed and, for the CSV, what was measured in full precision. The only
statistics computed here are a cell's mean over seeds and its Student t interval; differences and verdicts come from
``rematch.verdicts``.
"""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAN = float("nan")
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "±": r"$\pm$", "×": r"$\times$",
    "−": "$-$", "–": "--", "…": r"\ldots{}", "\u00a0": "~", "≥": r"$\geq$", "≤": r"$\leq$",
}  # fmt: skip


# -- what a table is made of ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One cell: what is printed, and what a reader must know to trust it.

    Attributes:
        text: the number as printed, or the status where there is none.
        detail: a second, smaller line: realised FLOPs, seeds that are missing.
        reason: why there is no number.
        href: where the matches behind the cell are listed.
    """

    text: str
    detail: str = ""
    status: str = "ok"
    reason: str = ""
    best: bool = False
    href: str = ""


@dataclass(frozen=True)
class Row:
    """One row: its header, what kind of contender it is (or empty), and its cells."""

    label: str
    cells: tuple[Cell, ...]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table, ready for any format.

    Attributes:
        name: the stem of its files, unique within a paper.
        stub: header of the column of row headers.
        span: header above the value columns, or empty.
        spanned: how many columns ``span`` stands above; the others follow them.
        data: tidy rows in full precision, for the CSV.
    """

    name: str
    title: str
    stub: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    data: tuple[Mapping[str, Any], ...] = ()
    caption: str = ""
    notes: tuple[str, ...] = ()
    span: str = ""
    spanned: int = 0

    def markdown(self) -> str:
        """GitHub's Markdown: title, table, caption and notes."""
        from tabulate import tabulate

        rows = [[_md(row.label), *(_md_cell(cell) for cell in row.cells)] for row in self.rows]
        headers = [_md(text) for text in (self.stub, *self.columns)]
        grid = tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)
        across = f"Across: {self.span}." if self.span else ""
        parts = [f"# {self.title}", grid, *filter(None, [self.caption, across]), *self.notes]
        return "\n\n".join(parts) + "\n"

    def csv(self) -> str:
        """Tidy CSV, one row a value, floats in full precision; the grid as printed where a table has no data."""
        rows = self.data or [
            {self.stub: row.label, **dict(zip(self.columns, (cell.text for cell in row.cells), strict=True))}
            for row in self.rows
        ]
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]) if rows else [self.stub, *self.columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if _is_nan(value) else value for key, value in row.items()} for row in rows)
        return out.getvalue()

    def latex(self) -> str:
        r"""A floating ``table`` with booktabs rules; needs ``\usepackage{booktabs}`` and nothing else."""
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{tex(self.title)}}}", rf"\label{{tab:{self.name}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * len(self.columns)}}}", r"\toprule"]
        if self.span and self.spanned:
            tail = " &" * (len(self.columns) - self.spanned)
            lines += [rf" & \multicolumn{{{self.spanned}}}{{c}}{{{tex(self.span)}}}{tail} \\"]
            lines += [rf"\cmidrule(lr){{2-{1 + self.spanned}}}"]
        lines += [_tex_row([self.stub, *self.columns]), r"\midrule"]
        for row in self.rows:
            lines.append(" & ".join([tex(row.label), *(_tex_cell(cell) for cell in row.cells)]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\smallskip\footnotesize {tex(note)}" for note in filter(None, [self.caption, *self.notes])]
        return "\n".join([*lines, r"\end{table}"]) + "\n"


# -- numbers --------------------------------------------------------------------------------------------------------


PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
LARGE = 1e5
"""From here on numbers are printed with an SI prefix."""


@dataclass(frozen=True)
class Mean:
    """A mean with the half-width of its Student t interval; the half-width of a single value is NaN."""

    value: float = NAN
    half_width: float = NAN
    n: int = 0

    @property
    def low(self) -> float:
        return self.value - self.half_width

    @property
    def high(self) -> float:
        return self.value + self.half_width


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Mean:
    """Mean and two-sided Student t interval over seeds; with one value there is no interval, with none no mean."""
    n = len(values)
    if n < 2:
        return Mean(values[0] if n else NAN, NAN, n)
    from scipy.special import stdtrit  # a tenth of the import time of scipy.stats

    quantile = float(stdtrit(n - 1, (1 + confidence) / 2))
    return Mean(statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(n), n)


def decimals(value: float, half_width: float = NAN) -> int:
    """Decimals to print: two significant digits of the half-width, or four of the value where there is none."""
    if math.isfinite(half_width) and half_width > 0:
        return min(6, max(0, 1 - math.floor(math.log10(half_width))))
    if math.isfinite(value) and value:
        return min(6, max(0, 3 - math.floor(math.log10(abs(value)))))
    return 1


def number(value: float, places: int, *, sign: bool = False) -> str:
    """A number with a true minus sign; tiny ones in scientific notation; a dash for NaN."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    tiny = value != 0 and abs(value) < 0.5 * 10**-places
    text = f"{value:{'+' if sign else ''}{'.2e' if tiny else f'.{places}f'}}"
    return text.replace("-", "−")


def percent(share: float) -> str:
    """``95 %``, on one line."""
    return f"{100 * share:g}\u00a0%"


def si(value: float, half_width: float = NAN) -> str:
    """Three significant digits with an SI prefix, ``1.23 G``; with a half-width as many as it decides, ``1.234 ± 0.015 G``."""
    if not math.isfinite(value):
        return "–"
    factor, prefix = next(((f, f" {p}") for f, p in PREFIXES if abs(value) >= 0.9995 * f), (1.0, ""))
    if math.isfinite(half_width):
        places = decimals(value / factor, half_width / factor)
        return f"{number(value / factor, places)} ± {number(half_width / factor, places)}{prefix}"
    return f"{value / factor:#.3g}".rstrip(".") + prefix if prefix else f"{value:.3g}"


def short(value: float) -> str:
    """As it is, ``0.55``; a large number with an SI prefix, ``5.13 G``."""
    return si(value) if abs(value) >= LARGE else f"{value:g}"


def span_of(values: Iterable[float], show: Callable[[float], str] = si) -> str:
    """The range of values as printed: one number where both ends read the same, a dash where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "–"
    ends = list(dict.fromkeys([show(min(finite)), show(max(finite))]))
    return " to ".join(ends)


# -- names ----------------------------------------------------------------------------------------------------------


def slug(*parts: str) -> str:
    """A name for files and anchors."""
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(parts).lower()).strip("-.")


def unique(names: Sequence[str]) -> list[str]:
    """The same names, repeated ones numbered: ``a``, ``a-2``."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return found


# -- text formats ---------------------------------------------------------------------------------------------------


def tex(text: str) -> str:
    """Text with everything that LaTeX would read as a command escaped."""
    return "".join(_TEX.get(letter, letter) for letter in text)


def _tex_cell(cell: Cell) -> str:
    text = rf"\textbf{{{tex(cell.text)}}}" if cell.best else tex(cell.text)
    return text + (rf" {{\scriptsize ({tex(cell.detail)})}}" if cell.detail else "")


def _tex_row(texts: Sequence[str]) -> str:
    return " & ".join(tex(text) for text in texts) + r" \\"


def _md(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _md_cell(cell: Cell) -> str:
    text = f"**{_md(cell.text)}** (best)" if cell.best else _md(cell.text)
    return text + (f" <br>{_md(cell.detail)}" if cell.detail else "")


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
