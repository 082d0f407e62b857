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
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, StrictFloat, StrictInt, StrictStr, ValidationError

from rematch.errors import RematchError, unknown
from rematch.source import Fields, class_fields, class_literal

TIERS = ("smoke", "mini", "real", "paper")
AXES = ("flops_matched", "data_efficiency", "ood", "test_time_compute", "memory_time", "ablation")
KINDS = ("method", "baseline", "ablation", "reference")
REPORTED_COLUMNS = (
    "paper", "table", "axis", "dataset", "setting", "contender", "metric", "value", "unit", "higher_is_better", "source",
)  # fmt: skip

AxisName = Literal["flops_matched", "data_efficiency", "ood", "test_time_compute", "memory_time", "ablation"]
TierName = Literal["smoke", "mini", "real", "paper"]
LevelValue = StrictFloat | StrictInt | StrictStr
Options = dict[str, Any]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Strict(BaseModel):
    """A model in which a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(Strict):
    """A metric that the paper's arena measures."""

    label: str
    better: Literal["higher", "lower", "neither"]
    scale: Literal["linear", "log"] = "linear"
    """``log``: compared as log ratios (perplexities, seconds); items then hold the logarithm of the value."""
    unit: str = ""
    describe: str = ""
    measured: Literal["exact", "clock"] = "exact"
    """``clock``: depends on the machine (seconds, memory), so two runs of one seed may differ."""
    slice_label: str = ""
    """What the number in a slice name counts, for the x axis of plots: ``distance in tokens``."""


class BaseSpec(Strict):
    """A shared artefact that matches start from: a corpus, a tokenizer, a pretrained model."""

    use: str
    """``module:Class`` of the builder."""
    needs: list[Name] = []
    seeded: bool = True
    """False: one copy serves every seed (a corpus)."""
    per_share: bool = False
    """True: one copy for every share of the budget (a dense model sized to the FLOPs of that level)."""
    options: Options = {}


class ContenderSpec(Strict):
    """Something that competes."""

    label: str
    kind: Literal["method", "baseline", "ablation", "reference"]
    use: str
    """``module:Class`` of the contender."""
    bases: list[Name] = []
    """What it starts from; the first is the one that it competes with."""
    options: Options = {}
    describe: str = ""


class Budget(Strict):
    """Whose FLOPs are 100 %, and what share of them a contender may spend."""

    reference: Name
    """A base; the arena measures its FLOPs."""
    share: PositiveFloat | Literal["level"]
    tolerance: PositiveFloat = 0.02


class AxisSpec(Strict):
    """What is varied: one axis with its levels and who meets on it."""

    label: str
    level_label: str
    level_type: Literal["number", "integer", "name"] = "number"
    """What the arena is handed: ``"0.5"`` in quotes is a name, and a mistake where a number is meant."""
    levels: Annotated[list[LevelValue], Field(min_length=1)]
    contenders: Annotated[list[Name], Field(min_length=1)]
    metrics: Annotated[list[Name], Field(min_length=1)]
    budget: Budget | None = None
    required: bool = True
    """A required match that failed makes the whole run end non-zero."""


class ReportedGap(Strict):
    """Where the reported size of a claim stands in ``reported.csv``: value of the contender, value of the opponent."""

    contender: str
    against: str
    metric: str
    dataset: str | None = None
    setting: str | None = None
    table: str | None = None


class Claim(Strict):
    """A statement of the paper that the records can support or contradict."""

    statement: str
    source: str
    axis: AxisName
    metric: Name
    slice: str = ""
    contender: Name
    against: list[Name] = []
    """Every opponent must be beaten: the claim's verdict is that of the opponent where it does worst."""
    levels: list[LevelValue] | None = None
    """None: all levels of the axis at the tier."""
    kind: Literal["better", "not_worse", "within"] = "better"
    """``within``: the metric of the contender itself lies within ``margin`` of ``target``."""
    target: float = 0.0
    margin: PositiveFloat
    """Smallest difference that matters, on the scale of the metric (a log ratio for a log metric)."""
    reported: ReportedGap | None = None
    reported_text: str = ""
    """What the paper reported in words, where no number is to be had."""
    not_at: dict[TierName, str] = {}
    """Tiers at which the claim cannot be tested, each with the reason."""
    ours: bool = False
    """True for a claim that the harness adds and the paper does not make."""


class Plot(Strict):
    """A figure of the paper's page."""

    title: str
    axis: AxisName
    metric: Name
    x: Literal["flops", "level", "slice"]
    contenders: list[Name] | None = None
    levels: list[LevelValue] | None = None
    slice: str | None = None
    """With ``x: slice``, the family of slices: ``distance`` takes ``distance=64``, ``distance=128``, ..."""
    log_x: bool = False
    caption: str = ""


class Table(Strict):
    """A table of the paper's page: contenders down, levels (or slices) across, for one metric."""

    title: str
    axis: AxisName
    metric: Name
    across: Literal["level", "slice"] = "level"
    slice: str | None = None
    levels: list[LevelValue] | None = None
    caption: str = ""


class AxisAtTier(Strict):
    """What a tier narrows on an axis."""

    levels: list[LevelValue] | None = None
    contenders: list[Name] | None = None
    metrics: list[Name] | None = None
    tolerance: PositiveFloat | None = None
    share: PositiveFloat | None = None
    """Replaces the budget's share, where that is a number and not the level."""


class PaperAtTier(Strict):
    """What a tier sets for the paper. An axis that is not named is not played at the tier."""

    axes: dict[AxisName, AxisAtTier | None]
    seeds: Annotated[int, Field(ge=1)] | None = None
    arena: Options = {}
    bases: dict[Name, Options] = {}
    contenders: dict[Name, Options] = {}
    match_limit_s: PositiveFloat | None = None
    base_limit_s: PositiveFloat | None = None
    cost_hint_s: dict[str, PositiveFloat] = {}
    """Core-seconds of one base build or one match and seed, by name; what ``plan`` shows before anything was measured."""


class CardFile(Strict):
    """The whole of ``card.yaml``."""

    paper: Name
    title: str
    citation: str
    version: Annotated[int, Field(ge=1)]
    """Raised when a number would change; with a line in ``changelog``."""
    changelog: dict[int, str] = {}
    summary: str
    metrics: dict[Name, Metric]
    bases: dict[Name, BaseSpec] = {}
    contenders: dict[Name, ContenderSpec]
    axes: dict[AxisName, AxisSpec]
    claims: dict[str, Claim]
    plots: list[Plot] = []
    tables: list[Table] = []
    deviations: list[str] = []
    tiers: dict[TierName, PaperAtTier]


class Card:
    """A validated card, with what lies beside it.

    Args:
        folder: ``workflows/<paper>``.
        root: the repository, against which ``module:Class`` names are looked up.

    Attributes:
        spec: the content of the card.
        reported: the rows of ``reported.csv``: what the paper reported.
    """

    ARENA_CLASS: ClassVar[str] = "Arena"

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        self.path = folder / "card.yaml"
        self.spec = _parse(self.path, CardFile)
        self.reported = _read_reported(folder / "reported.csv", root)
        self._check()

    @property
    def paper(self) -> str:
        return self.spec.paper

    @property
    def arena_module(self) -> str:
        return f"workflows.{self.paper}.arena"

    @property
    def where(self) -> str:
        return _relative(self.path, self.root)

    def reported_gap(self, claim_id: str) -> tuple[float, float] | None:
        """The reported values (contender, opponent) of a claim, or None where the card gives words only."""
        gap = self.spec.claims[claim_id].reported
        if gap is None:
            return None
        return self._reported_value(claim_id, gap, gap.contender), self._reported_value(claim_id, gap, gap.against)

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

    # -- checks ---------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        spec = self.spec
        if spec.paper != self.folder.name:
            raise RematchError(f"{self.where}: paper: '{spec.paper}' must be the folder's name, '{self.folder.name}'")
        arena = self._fields(f"{self.arena_module}:{self.ARENA_CLASS}", "arena")
        produced = class_literal(self.root, self.arena_module, self.ARENA_CLASS, "METRICS")
        for name in spec.metrics:
            if name not in produced:
                raise unknown("metric (no arena produces it)", name, produced, f"{self.where}: metrics")
        for name, base in spec.bases.items():
            where = f"{self.where}: bases.{name}"
            self._options(base.use, base.options, where)
            _known("base", base.needs, spec.bases, f"{where}.needs")
            if not base.seeded and (base.per_share or any(spec.bases[n].seeded for n in base.needs)):
                raise RematchError(f"{where}.seeded: a base without seed can need only bases without seed, at no share")
        self._check_cycles()
        for name, contender in spec.contenders.items():
            where = f"{self.where}: contenders.{name}"
            self._options(contender.use, contender.options, where)
            _known("base", contender.bases, spec.bases, f"{where}.bases")
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
        for tier, entry in spec.tiers.items():
            self._check_tier(tier, entry, arena)

    def _check_axis(self, where: str, axis: AxisSpec) -> None:
        _known("contender", axis.contenders, self.spec.contenders, f"{where}.contenders")
        _known("metric", axis.metrics, self.spec.metrics, f"{where}.metrics")
        _of_type(axis.level_type, axis.levels, f"{where}.levels")
        if axis.budget is not None:
            _known("base", [axis.budget.reference], self.spec.bases, f"{where}.budget.reference")
            if axis.budget.share == "level" and not all(_positive(level) for level in axis.levels):
                raise RematchError(f"{where}.levels: with budget.share 'level' every level is a positive number")
        else:
            for name in axis.contenders:
                for base in self.spec.contenders[name].bases:
                    if self.spec.bases[base].per_share:
                        raise RematchError(f"{where}: '{name}' starts from '{base}', sized per share; set a budget")

    def _check_claim(self, key: str, claim: Claim) -> None:
        where = f"{self.where}: claims.{key}"
        _known("axis", [claim.axis], self.spec.axes, f"{where}.axis")
        axis = self.spec.axes[claim.axis]
        _known("metric (the axis does not measure it)", [claim.metric], axis.metrics, f"{where}.metric")
        _known("contender", [claim.contender, *claim.against], axis.contenders, f"{where}.contender/against")
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
            for name, options in getattr(entry, what).items():
                _known(what[:-1], [name], table, f"{where}.{what}")
                self._options(table[name].use, options, f"{where}.{what}.{name}")
            for name, spec in table.items():
                fields = self._fields(spec.use, f"{self.where}: {what}.{name}.use")
                fields.check_complete(self.options(what, name, tier), f"{where}.{what}.{name}")
        for name, narrow in entry.axes.items():
            _known("axis", [name], self.spec.axes, f"{where}.axes")
            if narrow is None:
                continue
            whole = self.spec.axes[name]
            _known("contender", narrow.contenders or [], whole.contenders, f"{where}.axes.{name}.contenders")
            _known("metric", narrow.metrics or [], whole.metrics, f"{where}.axes.{name}.metrics")
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

    def _fields(self, use: str, where: str) -> Fields:
        return class_fields(self.root, use, f"{self.where}: {where}" if ":" not in where else where)

    def _options(self, use: str, options: Options, where: str) -> None:
        self._fields(use, f"{where}.use").check(options, f"{where}.options")

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


def parse_yaml(path: Path, root: Path | None = None) -> Any:
    """Read YAML; a mistake names file and line."""
    where = _relative(path, root) if root else str(path)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise RematchError(f"{where}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RematchError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except yaml.YAMLError as error:
        raise RematchError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error


def validate(model: type[BaseModel], data: Any, where: str) -> Any:
    """Validate plain data against a model; the first mistake becomes one line with the key and what is allowed."""
    try:
        return model.model_validate(data)
    except ValidationError as caught:
        errors = caught.errors()
    # A misspelt key usually comes with a missing one; the misspelt one is what the reader can act on.
    first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    location = _place(first, data)
    if first["type"] == "extra_forbidden":
        raise unknown("key", location[-1], _allowed_keys(model, first["loc"][:-1]), _join(where, location[:-1]))
    # Every alternative of a union complains for itself.
    alternatives = dict.fromkeys(error["msg"] for error in errors if _place(error, data) == location)
    wanted = " or ".join(text.removeprefix("Input should be ") if n else text for n, text in enumerate(alternatives))
    others = len({tuple(_place(error, data)) for error in errors}) - 1
    more = f" (and {others} more)" if others else ""
    got = "" if first["type"] == "missing" else f", not {first['input']!r}"[:80]
    raise RematchError(f"{_join(where, location)}: {wanted}{got}{more}")


def _place(error: Any, data: Any) -> list[str]:
    """The keys that lead to a mistake, as they stand in the file: pydantic adds names of types to them."""
    found: list[str] = []
    for part in error["loc"]:
        keys = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
        if part not in keys:
            return [*found, str(part)] if error["type"] == "missing" else found
        data = data[part]
        found.append(str(part))
    return found


class _UniqueKeys(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """A key that is given twice is a mistake, not an override."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor`: what it brings in may be overridden
                continue
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, Hashable):
                raise yaml.YAMLError(f"a key must be a name, line {key_node.start_mark.line + 1}")
            if key in seen:
                raise yaml.YAMLError(f"key '{key}' is given twice, line {key_node.start_mark.line + 1}")
            seen.add(key)
        return dict(super().construct_mapping(node, deep))


def _parse(path: Path, model: type[BaseModel]) -> Any:
    root = path.parent.parent.parent
    data = parse_yaml(path, root)
    where = _relative(path, root)
    if not isinstance(data, dict):
        raise RematchError(f"{where}: must be a mapping with the keys {', '.join(model.model_fields)}")
    return validate(model, data, where)


def _read_reported(path: Path, root: Path) -> list[dict[str, str]]:
    where = _relative(path, root)
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


def _allowed_keys(model: Any, loc: tuple[Any, ...]) -> list[str]:
    """The keys that the model at a location of an error allows."""
    import typing

    for part in loc:
        annotation: Any = None
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
        elif isinstance(model, type) and issubclass(model, BaseModel):
            continue
        else:
            annotation = model
        while True:  # unwrap Optional, list and dict until a model is left
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                break
            args = [a for a in typing.get_args(annotation) if a is not type(None)]
            models = [a for a in args if isinstance(a, type) and issubclass(a, BaseModel)]
            if models:
                annotation = models[0]
            elif args:
                annotation = args[-1]
            else:
                break
        model = annotation
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _join(where: str, location: list[str]) -> str:
    return f"{where}: {'.'.join(location)}" if location else where


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


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
