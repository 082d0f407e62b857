"""Printing: one value that is a table for people and JSON for programs."""

from __future__ import annotations

import json as json_module
import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Shown:
    """A table with a title, and lines of text below it.

    Attributes:
        rows: the table, one mapping of column to value a row; values stay numbers for JSON.
        columns: the columns that a person sees, or all; JSON always holds all.
        lines: sentences that a person reads after the table.
        extra: what JSON holds beyond the rows.
        code: exit code of the command that prints it.
    """

    title: str
    rows: list[dict[str, Any]]
    lines: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    code: int = 0
    columns: tuple[str, ...] = ()


def emit(shown: Shown, as_json: bool) -> None:
    """Print it, and end with its exit code when that is not 0."""
    if as_json:
        document = {"title": shown.title, "rows": shown.rows, "lines": shown.lines, **shown.extra}
        print(json_module.dumps(_plain(document), indent=1, default=str))
    else:
        _print(shown)
    if shown.code:
        raise SystemExit(shown.code)


def _print(shown: Shown) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if shown.rows:
        table = Table(
            title=escape(shown.title), title_justify="left", title_style="bold", show_edge=False, pad_edge=False
        )
        columns = shown.columns or tuple(shown.rows[0])
        for name in columns:
            value = shown.rows[0][name]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in shown.rows:
            table.add_row(*[escape(text(row[name])) for name in columns])
        console.print(table)
    else:
        console.print(f"[bold]{escape(shown.title)}[/bold]: nothing")
    for line in shown.lines:
        console.print(escape(line), soft_wrap=True)


def text(value: Any) -> str:
    """A value as a person reads it: four significant digits, a dash for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def seconds(value: float) -> str:
    """A duration: ``41 s``, ``12.3 min``, ``2.1 h``."""
    if value < 100:
        return f"{value:.3g} s"
    return f"{value / 60:.1f} min" if value < 6000 else f"{value / 3600:.1f} h"


def _plain(value: Any) -> Any:
    """NaN has no JSON: null instead."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
