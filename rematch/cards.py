"""Cards: what competes, on which axes and levels, at which tier, and what the paper claims.

A card is ``workflows/<paper>/card.yaml``. It is read once and checked whole, before any job starts; every mistake is one
line that names the file, the key and what is allowed. Options of contenders, bases and arenas are checked against the
fields of the dataclasses that they go to, which are read from the source without importing it (no torch here).
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from rematch.card_models import (
    AxisSpec,
    BaseSpec,
    CardFile,
    Claim,
    ContenderSpec,
    LevelValue,
    Options,
    PaperAtTier,
    Plot,
    ReportedGap,
)
from rematch.errors import RematchError, unknown
from rematch.fields import Classes, Fields
from rematch.reading import parse_yaml, relative, validate
from rematch.source import class_literal

REPORTED_COLUMNS = (
    "paper", "table", "axis", "dataset", "setting", "contender", "metric", "value", "unit", "higher_is_better", "source",
)  # fmt: skip


class Card:
    """A validated card, with what lies beside it.

    Args:
        folder: ``workflows/<paper>``.
        root: the repository, against which ``module:Class`` names are looked up.

    Attributes:
        spec: the content of the card.
        reported: the rows of ``reported.csv``: what the paper reported, under the card's names and in its units.
    """

    ARENA_CLASS: ClassVar[str] = "Arena"

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        self._classes = Classes(root)
        self.path = folder / "card.yaml"
        self.spec = _parse(self.path, CardFile)
        self.reported = self._in_our_terms(_read_reported(folder / "reported.csv", root))
        self._check()

    @property
    def paper(self) -> str:
        return self.spec.paper

    @property
    def arena_module(self) -> str:
        return f"workflows.{self.paper}.arena"

    @property
    def where(self) -> str:
        return relative(self.path, self.root)

    def reported_gap(self, claim_id: str) -> tuple[float, float] | None:
        """The reported values (contender, opponent) of a claim, or None where the card gives words only."""
        gap = self.spec.claims[claim_id].reported
        if gap is None:
            return None
        return self._reported_value(claim_id, gap, gap.contender), self._reported_value(claim_id, gap, gap.against)

    def _in_our_terms(self, rows: list[dict[str, str]]) -> list[dict[str, str]]:
        """Reported rows under the card's names (``reported_as``), percentages as shares where the metric is a share."""
        contenders = {spec.reported_as: name for name, spec in self.spec.contenders.items() if spec.reported_as}
        metrics = {spec.reported_as: name for name, spec in self.spec.metrics.items() if spec.reported_as}
        found = []
        for row in rows:
            metric = metrics.get(row["metric"], row["metric"])
            names = {"axis": row["axis"].replace("-", "_"), "metric": metric}
            names["contender"] = contenders.get(row["contender"], row["contender"])
            if row["unit"] == "%" and metric in self.spec.metrics and self.spec.metrics[metric].unit != "%":
                names |= {"value": f"{float(row['value']) / 100:.6g}", "unit": ""}
            found.append(row | names)
        return found

    def at(self, tier: str) -> PaperAtTier:
        """What the tier sets for this paper.

        Raises:
            RematchError: the card does not play at that tier.
        """
        found = self.spec.tiers.get(tier)
        if found is None:
            raise RematchError(f"{self.where}: tiers: no entry for '{tier}'; the card has {', '.join(self.spec.tiers)}")
        return found

    def axis(self, axis: str, tier: str) -> AxisSpec:
        """An axis as the tier plays it."""
        whole: AxisSpec = self.spec.axes[axis]
        narrow = self.at(tier).axes[axis]  # type: ignore[index]
        if narrow is None:
            return whole
        change: dict[str, Any] = {
            key: value
            for key in ("levels", "contenders", "metrics")
            if (value := getattr(narrow, key)) is not None
        }  # fmt: skip
        if whole.budget is not None:
            tighter = {key: value for key in ("tolerance", "share") if (value := getattr(narrow, key)) is not None}
            change["budget"] = whole.budget.model_copy(update=tighter)
        return whole.model_copy(update=change)

    def options(self, what: Literal["bases", "contenders"], name: str, tier: str) -> Options:
        """Options of a base or contender at a tier: the card's, with the tier's on top."""
        spec: BaseSpec | ContenderSpec = getattr(self.spec, what)[name]
        over: Options = getattr(self.at(tier), what).get(name, {})
        return {**spec.options, **over}

    def metrics_of(self, axis: AxisSpec, contender: str) -> list[str]:
        """The metrics of an axis that a contender has."""
        known = self.spec.metrics
        return [name for name in axis.metrics if known[name].of is None or contender in (known[name].of or [])]

    # -- checks ---------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        spec = self.spec
        if spec.paper != self.folder.name:
            raise RematchError(f"{self.where}: paper: '{spec.paper}' must be the folder's name, '{self.folder.name}'")
        arena = self._classes.fields(f"{self.arena_module}:{self.ARENA_CLASS}", f"{self.where}: arena")
        produced = class_literal(self.root, self.arena_module, self.ARENA_CLASS, "METRICS")
        for name in spec.metrics:
            if name not in produced:
                raise unknown("metric (no arena produces it)", name, produced, f"{self.where}: metrics")
        for name, base in spec.bases.items():
            where = f"{self.where}: bases.{name}"
            self._classes.fields(base.use, f"{where}.use").check(base.options, f"{where}.options")
            _known("base", base.needs, spec.bases, f"{where}.needs")
            if not base.seeded and (base.per_share or any(spec.bases[n].seeded for n in base.needs)):
                raise RematchError(f"{where}.seeded: a base without seed can need only bases without seed, at no share")
        self._check_cycles()
        for name, contender in spec.contenders.items():
            where = f"{self.where}: contenders.{name}"
            self._classes.fields(contender.use, f"{where}.use").check(contender.options, f"{where}.options")
            _known("base", contender.bases, spec.bases, f"{where}.bases")
        for name, metric in spec.metrics.items():
            _known("contender", metric.of or [], spec.contenders, f"{self.where}: metrics.{name}.of")
        for name, axis in spec.axes.items():
            self._check_axis(f"{self.where}: axes.{name}", axis)
        for key, claim in spec.claims.items():
            self._check_claim(key, claim)
        for index, view in enumerate([*spec.plots, *spec.tables]):
            kind, at = ("plots", index) if index < len(spec.plots) else ("tables", index - len(spec.plots))
            where = f"{self.where}: {kind}[{at}]"
            _known("axis", [view.axis], spec.axes, f"{where}.axis")
            _known("metric", [view.metric], spec.axes[view.axis].metrics, f"{where}.metric")
            _known("level", view.levels or [], spec.axes[view.axis].levels, f"{where}.levels")
            if isinstance(view, Plot):
                _known("contender", view.contenders or [], spec.axes[view.axis].contenders, f"{where}.contenders")
                self._check_plot(view, where)
        for index, caveat in enumerate(spec.caveats):
            where = f"{self.where}: caveats[{index}]"
            _known("contender", [caveat.contender], spec.contenders, f"{where}.contender")
            tables = {row["table"] for row in self.reported if row["contender"] == caveat.contender}
            _known("table (reported.csv has no such row of it)", caveat.tables, tables, f"{where}.tables")
        for tier, entry in spec.tiers.items():
            self._check_tier(tier, entry, arena)

    def _check_plot(self, plot: Plot, where: str) -> None:
        if (plot.x == "metric") != (plot.x_metric is not None):
            raise RematchError(f"{where}.x_metric: needed with 'x: metric', and with nothing else")
        if plot.x_metric is not None:
            _known("metric", [plot.x_metric], self.spec.axes[plot.axis].metrics, f"{where}.x_metric")
        if isinstance(plot.slice, list) and plot.x != "slice":
            raise RematchError(f"{where}.slice: several families only with 'x: slice'")

    def _check_axis(self, where: str, axis: AxisSpec) -> None:
        _known("level", axis.reported_levels.values(), axis.levels, f"{where}.reported_levels")
        _known("contender", axis.contenders, self.spec.contenders, f"{where}.contenders")
        _known("metric", axis.metrics, self.spec.metrics, f"{where}.metrics")
        self._check_measured(where, axis)
        _of_type(axis.level_type, axis.levels, f"{where}.levels")
        if axis.budget is not None:
            _known("base", [axis.budget.reference], self.spec.bases, f"{where}.budget.reference")
            _known("contender", axis.budget.fixed, axis.contenders, f"{where}.budget.fixed")
            if axis.budget.share == "level" and not all(_positive(level) for level in axis.levels):
                raise RematchError(f"{where}.levels: with budget.share 'level' every level is a positive number")
        else:
            for name in axis.contenders:
                for base in self.spec.contenders[name].bases:
                    if self.spec.bases[base].per_share:
                        raise RematchError(f"{where}: '{name}' starts from '{base}', sized per share; set a budget")

    def _check_measured(self, where: str, axis: AxisSpec) -> None:
        for name in axis.contenders:
            if not self.metrics_of(axis, name):
                raise RematchError(f"{where}.contenders: '{name}' has none of the axis's metrics (see their 'of')")

    def _check_claim(self, key: str, claim: Claim) -> None:
        where = f"{self.where}: claims.{key}"
        if not claim.source and not claim.ours:
            raise RematchError(
                f"{where}.source: missing: where does the paper make this claim? One of the harness has ours: true"
            )
        _known("axis", [claim.axis], self.spec.axes, f"{where}.axis")
        axis = self.spec.axes[claim.axis]
        _known("metric (the axis does not measure it)", [claim.metric], axis.metrics, f"{where}.metric")
        _known("contender", [claim.contender, *claim.against], axis.contenders, f"{where}.contender/against")
        of = self.spec.metrics[claim.metric].of
        if of is not None:
            _known(f"contender (not one that has '{claim.metric}')", [claim.contender, *claim.against], of, where)
        _known("level", claim.levels or [], axis.levels, f"{where}.levels")
        if (claim.kind == "within") == bool(claim.against):
            raise RematchError(f"{where}.against: needed for 'better' and 'not_worse', absent for 'within'")
        if claim.kind != "within" and self.spec.metrics[claim.metric].better == "neither":
            raise RematchError(f"{where}.metric: '{claim.metric}' has no better direction; allowed kind: within")
        self.reported_gap(key)

    def _check_tier(self, tier: str, entry: PaperAtTier, arena: Fields) -> None:
        where = f"{self.where}: tiers.{tier}"
        arena.check(entry.arena, f"{where}.arena")
        arena.check_complete(entry.arena, f"{where}.arena")
        for what in ("bases", "contenders"):
            table = getattr(self.spec, what)
            given = getattr(entry, what)
            _known(what[:-1], given, table, f"{where}.{what}")
            for name, spec in table.items():
                fields = self._classes.fields(spec.use, f"{self.where}: {what}.{name}.use")
                fields.check(given.get(name, {}), f"{where}.{what}.{name}")
                fields.check_complete(self.options(what, name, tier), f"{where}.{what}.{name}")
        for name, narrow in entry.axes.items():
            _known("axis", [name], self.spec.axes, f"{where}.axes")
            if narrow is None:
                continue
            whole = self.spec.axes[name]
            _known("contender", narrow.contenders or [], whole.contenders, f"{where}.axes.{name}.contenders")
            _known("metric", narrow.metrics or [], whole.metrics, f"{where}.axes.{name}.metrics")
            self._check_measured(f"{where}.axes.{name}", self.axis(name, tier))
            if narrow.share is not None and (whole.budget is None or whole.budget.share == "level"):
                raise RematchError(f"{where}.axes.{name}.share: the axis has no share of its own that it could replace")
            if narrow.levels is not None:
                _of_type(whole.level_type, narrow.levels, f"{where}.axes.{name}.levels")
        _known(
            "base or contender", entry.cost_hint_s, [*self.spec.bases, *self.spec.contenders], f"{where}.cost_hint_s"
        )

    def _check_cycles(self) -> None:
        state: dict[str, int] = {}

        def visit(name: str, path: tuple[str, ...]) -> None:
            if state.get(name) == 1:
                raise RematchError(f"{self.where}: bases.{name}.needs: a cycle, {' -> '.join((*path, name))}")
            if name not in state:
                state[name] = 1
                for need in self.spec.bases[name].needs:
                    visit(need, (*path, name))
                state[name] = 2

        for name in self.spec.bases:
            visit(name, ())

    def _reported_value(self, claim_id: str, gap: ReportedGap, contender: str) -> float:
        wanted = {"contender": contender, "metric": gap.metric}
        wanted |= {k: v for k in ("dataset", "setting", "table") if (v := getattr(gap, k)) is not None}
        rows = [row for row in self.reported if all(row[key] == value for key, value in wanted.items())]
        if len(rows) != 1:
            raise RematchError(
                f"{self.where}: claims.{claim_id}.reported: {len(rows)} rows of reported.csv match "
                f"{json.dumps(wanted)}; exactly one is needed"
            )
        return float(rows[0]["value"])


def load_cards(root: Path, papers: list[str] | None = None) -> dict[str, Card]:
    """Every card under ``workflows/``, or those of the named papers, by slug.

    Raises:
        RematchError: a card is wrong, or a paper has none.
    """
    folders = {path.parent.name: path.parent for path in sorted((root / "workflows").glob("*/card.yaml"))}
    for paper in papers or ():
        if paper not in folders:
            raise unknown("paper", paper, folders, "config: papers")
    return {name: Card(folder, root) for name, folder in folders.items() if papers is None or name in papers}


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON schemas of the files that people write, for editors that complete and check while one types."""
    from rematch.config import Config, Tier

    models: dict[str, type[BaseModel]] = {"card": CardFile, "config": Config, "tier": Tier}
    return {f"config/schemas/{name}.schema.json": model.model_json_schema() for name, model in models.items()}


def digest_of(value: Any) -> str:
    """A short hash of plain data (JSON), the same on every machine."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def level_text(level: LevelValue) -> str:
    """A level as it stands in file names and records: ``0.64``, ``1024``, ``none``."""
    return repr(level) if isinstance(level, float) else str(level)


def _parse(path: Path, model: type[BaseModel]) -> Any:
    root = path.parent.parent.parent
    data = parse_yaml(path, root)
    where = relative(path, root)
    if not isinstance(data, dict):
        raise RematchError(f"{where}: must be a mapping with the keys {', '.join(model.model_fields)}")
    return validate(model, data, where)


def _read_reported(path: Path, root: Path) -> list[dict[str, str]]:
    where = relative(path, root)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != REPORTED_COLUMNS:
                raise RematchError(f"{where}: the header must be {','.join(REPORTED_COLUMNS)}")
            rows = list(reader)
    except OSError as error:
        raise RematchError(f"{where}: cannot be read ({error.strerror}); a header alone is allowed") from error
    except UnicodeDecodeError as error:
        raise RematchError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    for number, row in enumerate(rows, start=2):
        if tuple(row) != REPORTED_COLUMNS or None in row.values():
            raise RematchError(f"{where}:{number}: must have {len(REPORTED_COLUMNS)} columns, as the header")
        if not _finite(row["value"]):
            raise RematchError(f"{where}:{number}: value: '{row['value']}' is not a number")
    return rows


def _finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _known(what: str, names: Any, allowed: Any, where: str) -> None:
    for name in names:
        if name not in allowed:
            raise unknown(what, name, allowed, where)


def _positive(level: LevelValue) -> bool:
    return not isinstance(level, str) and level > 0


def _of_type(level_type: str, levels: list[LevelValue], where: str) -> None:
    allowed = {"number": (int, float), "integer": (int,), "name": (str,)}[level_type]
    for level in levels:
        if not isinstance(level, allowed):
            article = "an" if level_type == "integer" else "a"
            raise RematchError(
                f"{where}: {level!r} is not {article} {level_type}; the axis says level_type: {level_type}"
            )
    if len(set(map(level_text, levels))) < len(levels):
        raise RematchError(f"{where}: a level is given twice: {levels}")
