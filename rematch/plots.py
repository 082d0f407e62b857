"""Plots: quality against FLOPs, levels or slices, drawn by Altair and rendered to SVG by vl-convert, with no JavaScript.

Colours in an inline SVG are CSS variables, so one drawing serves light, dark and print; the page defines them from
``PALETTE``. Each plot is drawn twice, for wide and for narrow screens. A series is told apart by colour, by the shape of
its points and by its line: the method thick, baselines plain, ablations thin and dashed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from rematch.card_models import LevelValue
from rematch.cards import Card, level_text
from rematch.summary import Cells, Match, finite_mean, levels_of, ok_values, slice_number, slices_of
from rematch.tables import Cell, Mean, Row, Table, decimals, mean_interval, number, percent, short, slug, unique

if TYPE_CHECKING:
    from rematch.card_models import Plot as PlotSpec

# CSS variable: (light, dark). Hues after Okabe and Ito, darkened or lightened to 3:1 and more against the page.
PALETTE = {
    "--ink": ("#1f1c17", "#ece6da"),
    "--soft": ("#5d574d", "#aaa294"),
    "--rule": ("#d9d2c3", "#3a3731"),
    "--method": ("#b5330e", "#ff8f66"),
    "--baseline-1": ("#005f9e", "#6cb8f0"),
    "--baseline-2": ("#00715a", "#3fc8a4"),
    "--baseline-3": ("#8d3f74", "#e09bc8"),
    "--baseline-4": ("#7d6200", "#dfbf4a"),
    "--ablation-1": ("#6a6f78", "#a4abb6"),
    "--ablation-2": ("#857256", "#bfa988"),
    "--ablation-3": ("#6d6a91", "#aba8d4"),
    "--ablation-4": ("#58766b", "#93b5a9"),
    "--reference": ("#1f1c17", "#ece6da"),
}
SHAPES = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "triangle-right", "triangle-left")
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"


@dataclass(frozen=True)
class Line:
    """How the series of a kind of contender are drawn; ``colours`` are taken in turn."""

    colours: tuple[str, ...]
    width: float
    dash: tuple[int, ...]
    size: int


LINES = {
    "method": Line(("--method",), 3.2, (1, 0), 90),
    "baseline": Line(tuple(f"--baseline-{i}" for i in range(1, 5)), 1.8, (1, 0), 60),
    "reference": Line(("--reference",), 1.4, (1, 3), 50),
    "ablation": Line(tuple(f"--ablation-{i}" for i in range(1, 5)), 1.1, (5, 3), 40),
}


@dataclass(frozen=True)
class Point:
    """One mark: where it stands on the x axis, and the mean over seeds with its interval."""

    contender: str
    x: float | str
    mean: Mean
    family: str = ""
    """The family of slices, where a plot shows several: then these are its series."""


def series_of(point: Point) -> str:
    """What a point is joined with by a line: its family of slices, or its contender."""
    return point.family or point.contender


@dataclass(frozen=True)
class Figure:
    """A drawn plot.

    Attributes:
        wide, narrow: inline SVG with colours as CSS variables; empty where nothing was measured.
        file: the wide drawing on its own, light, for use elsewhere.
        alt: what it shows, in words.
        table: the numbers that are drawn.
    """

    name: str
    title: str
    caption: str
    wide: str
    narrow: str
    file: str
    alt: str
    table: Table


def draw_all(card: Card, tier: str, cells: Cells, confidence: float = 0.95) -> list[Figure]:
    """The plots that the card asks for, on the axes that the tier plays."""
    wanted: list[tuple[PlotSpec, list[LevelValue], str]] = []
    for spec in card.spec.plots:
        if spec.axis not in card.at(tier).axes:
            continue
        played = card.axis(spec.axis, tier).contenders
        levels = levels_of(card, tier, spec.axis, spec.levels)
        # What varies within a plot leaves no room for the rest: slices for levels, families of slices for contenders.
        parts = [(spec, "")]
        if isinstance(spec.slice, list):
            chosen = [name for name in played if spec.contenders is None or name in spec.contenders]
            parts = [
                (spec.model_copy(update={"contenders": [name]}), card.spec.contenders[name].label) for name in chosen
            ]
        for part, whose in parts:
            if spec.x == "slice" and len(levels) > 1:
                label = card.axis(spec.axis, tier).level_label
                wanted += [(part, [x], ", ".join(filter(None, [whose, f"{label}: {level_text(x)}"]))) for x in levels]
            else:
                wanted.append((part, levels, whose))
    names = unique([slug(spec.title, which) for spec, _, which in wanted])
    return [
        _draw(card, tier, cells, spec, levels, which, name, confidence)
        for (spec, levels, which), name in zip(wanted, names, strict=True)
    ]


def _draw(
    card: Card, tier: str, cells: Cells, spec: PlotSpec, levels: list[LevelValue], which: str, name: str,
    confidence: float,
) -> Figure:  # fmt: skip
    axis, metric = card.axis(spec.axis, tier), card.spec.metrics[spec.metric]
    points = _points(card, tier, cells, spec, levels, confidence)
    along = card.spec.metrics[spec.x_metric] if spec.x_metric else metric
    x_title = {
        "flops": axis.flops_label,
        "level": axis.level_label,
        "slice": metric.slice_label or str(spec.slice),
        "metric": f"{along.label}{', ' + along.unit if along.unit else ''}",
    }[spec.x]
    direction = "" if metric.better == "neither" else f" ({metric.better} is better)"
    y_title = f"{metric.label}{', ' + metric.unit if metric.unit else ''}{direction}"
    title = spec.title + (f" ({which})" if which else "")
    wide = narrow = ""
    if points:
        drawing = Drawing(card, points, str(x_title), y_title, log_x=spec.log_x, flops=spec.x == "flops")
        wide = drawing.svg(WIDE)
        narrow = drawing.svg(NARROW)
    return Figure(
        name=name,
        title=title,
        caption=f"{spec.caption} Bars: {percent(confidence)} t intervals over seeds.".strip(),
        wide=wide,
        narrow=narrow,
        file=re.sub(r"var\((--[a-z0-9-]+)\)", lambda found: PALETTE[found[1]][0], wide),
        alt=_in_words(card, points, title, str(x_title), y_title),
        table=_table(card, points, name, title, str(x_title), metric.label),
    )


def _points(
    card: Card, tier: str, cells: Cells, spec: PlotSpec, levels: list[LevelValue], confidence: float
) -> list[Point]:
    """The points of every contender that has a number, in the card's order."""
    played = card.axis(spec.axis, tier).contenders
    several = spec.slice if isinstance(spec.slice, list) else []
    points = []
    for contender in [name for name in played if spec.contenders is None or name in spec.contenders]:
        for level in levels:
            matches = cells.get((spec.axis, contender, level_text(level)), [])
            for part, family in _parts(cells, spec):
                mean = mean_interval(ok_values(matches, spec.metric, part), confidence)
                x = _x(spec, level, part, matches)
                if mean.n and not (isinstance(x, float) and math.isnan(x)):
                    points.append(Point(contender, x, mean, family if several else ""))
    return sorted(points, key=lambda point: several.index(point.family)) if several else points


def _parts(cells: Cells, spec: PlotSpec) -> list[tuple[str, str]]:
    """The slices that a plot shows, each with its family."""
    if spec.x != "slice":
        return [(str(spec.slice or ""), "")]
    families = spec.slice if isinstance(spec.slice, list) else [spec.slice or ""]
    return [(part, family) for family in families for part in slices_of(cells, spec.axis, family)]


def _x(spec: PlotSpec, level: LevelValue, part: str, matches: Sequence[Match]) -> float | str:
    if spec.x == "flops":
        return finite_mean([float(m.record["flops"]) for m in matches if m.status == "ok"])
    if spec.x == "metric":
        return finite_mean(ok_values(matches, str(spec.x_metric), ""))
    if spec.x == "level":
        return level if isinstance(level, str) else float(level)
    number_in_name = slice_number(part)
    return part.partition("=")[2] if number_in_name is None else number_in_name


# -- drawing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """One of the two sizes, in pixels, and how many columns the legend has."""

    width: int
    height: int
    legend_columns: int


WIDE, NARROW = Format(544, 420, 3), Format(340, 400, 2)


@dataclass(frozen=True)
class Drawing:
    """The points of one plot, to be drawn in any format."""

    card: Card
    points: list[Point]
    x_title: str
    y_title: str
    log_x: bool
    flops: bool

    def svg(self, form: Format) -> str:
        """Draw, with the colours as CSS variables."""
        import vl_convert

        columns = {"columns": form.legend_columns, "labelLimit": form.width // form.legend_columns - 25}
        config = _CONFIG | {"legend": _CONFIG["legend"] | columns}
        return vl_convert.vegalite_to_svg(
            self._specification | {"width": form.width, "height": form.height, "config": config}
        )

    @cached_property
    def _specification(self) -> dict[str, Any]:
        """The chart in Vega-Lite's terms, without its size and theme."""
        import altair as alt

        styles = self._styles()
        labels = [self._label(name) for name in styles]
        numbers = [point.x for point in self.points if isinstance(point.x, float)]
        numeric = len(numbers) == len(self.points)
        scale: Literal["log", "linear"] = "log" if self.log_x and min(numbers, default=0.0) > 0 else "linear"
        # What comes later is drawn on top: the method last.
        order = sorted(styles, key=lambda name: list(LINES).index(self._kind(name)), reverse=True)
        ranked = sorted(self.points, key=lambda point: order.index(series_of(point)))
        data = alt.Data(values=[self._datum(point) for point in ranked])

        def by_series(channel: Any, values: list[Any], legend: Any = None) -> Any:
            return channel("series:N", scale=alt.Scale(domain=labels, range=values), legend=legend, title=None)

        x = alt.X(
            "x:Q" if numeric else "x:N",
            axis=alt.Axis(title=self.x_title, grid=False, **self._ticks(numeric)),
            scale=alt.Scale(type=scale, zero=False, nice=False, padding=14) if numeric else alt.Undefined,
            sort=None,
        )
        y_axis = alt.Axis(
            title=self.y_title, titleAngle=0, titleAlign="left", titleAnchor="end", titleX=-34, titleY=-12
        )
        y = alt.Y("y:Q", axis=y_axis, scale=alt.Scale(zero=False, nice=True))
        legend = alt.Legend(symbolOpacity=1, symbolDash=[1, 0])
        colour = by_series(alt.Color, [f"var({s[0]})" for s in styles.values()], legend)
        shape = by_series(alt.Shape, [s[1] for s in styles.values()], legend)
        lines = [LINES[self._kind(name)] for name in styles]
        base = alt.Chart(data).encode(x, color=colour)
        chart = alt.layer(
            base.mark_rule(strokeWidth=1.3, opacity=0.75).encode(y=alt.Y("low:Q"), y2="high:Q"),
            base.mark_line().encode(
                y=y,
                strokeWidth=by_series(alt.StrokeWidth, [line.width for line in lines]),
                strokeDash=by_series(alt.StrokeDash, [list(line.dash) for line in lines]),
            ),
            base.mark_point(filled=True, opacity=1).encode(
                y=y, shape=shape, size=by_series(alt.Size, [line.size for line in lines])
            ),
        )
        return chart.properties(autosize={"type": "fit", "contains": "padding"}).to_dict()

    @property
    def _families(self) -> list[str]:
        return list(dict.fromkeys(point.family for point in self.points if point.family))

    def _label(self, series: str) -> str:
        return series if series in self._families else self.card.spec.contenders[series].label

    def _kind(self, series: str) -> str:
        """Of families the last is drawn as the method is, the others as baselines."""
        if series in self._families:
            return "method" if series == self._families[-1] else "baseline"
        return self.card.spec.contenders[series].kind

    def _styles(self) -> dict[str, tuple[str, str]]:
        """Colour and shape of each series drawn, by kind: a contender looks the same in all plots of a paper."""
        names = self._families or list(self.card.spec.contenders)
        drawn = {series_of(point) for point in self.points}
        found = {}
        for index, name in enumerate(sorted(names, key=lambda name: list(LINES).index(self._kind(name)))):
            colours = LINES[self._kind(name)].colours
            rank = [other for other in names if self._kind(other) == self._kind(name)].index(name)
            if name in drawn:
                found[name] = (colours[rank % len(colours)], SHAPES[index % len(SHAPES)])
        return found

    def _datum(self, point: Point) -> dict[str, Any]:
        has_interval = math.isfinite(point.mean.half_width)
        ends = (point.mean.low, point.mean.high) if has_interval else (point.mean.value, point.mean.value)
        return {
            "series": self._label(series_of(point)),
            "x": point.x,
            "y": point.mean.value,
            "low": ends[0],
            "high": ends[1],
        }

    def _ticks(self, numeric: bool) -> dict[str, Any]:
        """Ticks at the levels or slices themselves, where those are few numbers."""
        if self.flops:
            return {"format": ".2~s", "tickCount": 5}
        xs = sorted({point.x for point in self.points if isinstance(point.x, float)})
        return (
            {"values": xs, "format": ".6~g", "labelOverlap": True} if numeric and len(xs) <= 12 else {"labelAngle": 0}
        )


_TEXT = {"labelColor": "var(--soft)", "titleColor": "var(--ink)", "labelFontSize": 12, "titleFontSize": 12.5}
_CONFIG: dict[str, Any] = {
    "aria": False,  # the figure itself has a text alternative
    "background": "transparent",
    "font": FONT,
    "padding": {"left": 4, "right": 12, "top": 22, "bottom": 4},
    "view": {"strokeWidth": 0},
    "axis": {
        **_TEXT, "titleFontWeight": "normal", "gridColor": "var(--rule)", "domainColor": "var(--soft)",
        "tickColor": "var(--soft)", "tickSize": 4, "labelPadding": 5, "titlePadding": 10,
    },
    "axisY": {"domain": False, "ticks": False, "tickCount": 5},
    "legend": {
        **_TEXT, "labelColor": "var(--ink)", "orient": "bottom", "rowPadding": 6, "columnPadding": 12,
        "symbolStrokeWidth": 0,
    },
}  # fmt: skip


# -- in words and numbers -------------------------------------------------------------------------------------------


def _in_words(card: Card, points: list[Point], title: str, x_title: str, y_title: str) -> str:
    """The text alternative of a figure: where every line begins and ends."""
    parts = [f"{title}. {y_title} against {x_title}."]
    for name in dict.fromkeys(map(series_of, points)):
        mine = [point for point in points if series_of(point) == name]
        label = name if mine[0].family else card.spec.contenders[name].label
        places = decimals(mine[0].mean.value)
        ends = [f"{number(p.mean.value, places)} at {_x_text(p.x)}" for p in (mine[0], mine[-1])]
        parts.append(f"{label}: {' to '.join(dict.fromkeys(ends))}.")
    return " ".join(parts) if points else f"{title}. Nothing was measured."


def _x_text(x: float | str) -> str:
    return x if isinstance(x, str) else short(x)


def _table(card: Card, points: list[Point], name: str, title: str, x_title: str, label: str) -> Table:
    rows, data = [], []
    for point in points:
        places = decimals(point.mean.value, point.mean.half_width)
        spread = number(point.mean.half_width, places)
        contender = card.spec.contenders[point.contender]
        texts = (_x_text(point.x), number(point.mean.value, places), spread, str(point.mean.n))
        label_of_row = f"{contender.label}, {point.family}" if point.family else contender.label
        rows.append(Row(label_of_row, tuple(Cell(text) for text in texts), contender.kind))
        data.append(
            {"contender": point.contender, "family": point.family, "x": point.x, "mean": point.mean.value}
            | {"low": point.mean.low, "high": point.mean.high, "n_seeds": point.mean.n}
        )
    columns = (x_title, label, "± interval", "n")
    return Table(f"plot-{name}", title, "Contender", columns, tuple(rows), tuple(data))
