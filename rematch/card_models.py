"""The models of ``card.yaml``: what its keys are and what each may hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, StrictFloat, StrictInt, StrictStr

from rematch.reading import Strict

TIERS = ("smoke", "mini", "real", "paper")
AxisName = Literal["flops_matched", "data_efficiency", "ood", "test_time_compute", "memory_time", "ablation"]
TierName = Literal["smoke", "mini", "real", "paper"]
LevelValue = StrictFloat | StrictInt | StrictStr
Options = dict[str, Any]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Metric(Strict):
    """A metric that the paper's arena measures."""

    label: str
    better: Literal["higher", "lower", "neither"]
    scale: Literal["linear", "log"] = "linear"
    """``log``: compared as log ratios (perplexities, seconds); items then hold the logarithm of the value."""
    unit: str = ""
    describe: str = ""
    measured: Literal["exact", "clock", "counted"] = "exact"
    """``clock``: depends on the machine (seconds, memory), so two runs of one seed may differ. ``counted``: a property of
    the algorithm without any chance in it (forward passes, parameters), so a difference is a fact and needs no interval."""
    slice_label: str = ""
    """What the number in a slice name counts, for the x axis of plots: ``distance in tokens``."""
    reported_as: str = ""
    """Its name in ``reported.csv``, where that is another."""
    of: list[Name] | None = None
    """The contenders that have such a quantity (attention to documents); all where None."""


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
    reported_as: str = ""
    """Its name in ``reported.csv``, where that is another."""


class Budget(Strict):
    """Whose FLOPs are 100 %, and what share of them a contender may spend."""

    reference: Name
    """A base; the arena measures its FLOPs."""
    share: PositiveFloat | Literal["level"]
    tolerance: PositiveFloat = 0.02
    fixed: list[Name] = []
    """Contenders that cannot spend more or less: they play as they are at every level, and no target is set them."""


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
    flops_label: str = "FLOPs per item"
    """What the arena counts on the axis, for the x axis of plots: ``training FLOPs``."""
    reported_levels: dict[str, LevelValue] = {}
    """The level that a data set of ``reported.csv`` is, by the name that it has there."""
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


class Caveat(Strict):
    """Why a contender's reported numbers in a table are not to be taken as they stand; marks them wherever they show."""

    contender: Name
    tables: Annotated[list[str], Field(min_length=1)]
    note: str


class Claim(Strict):
    """A statement of the paper that the records can support or contradict."""

    statement: str
    source: str = ""
    """Where the paper makes it; why it was added, for a claim of ``ours``."""
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
    x: Literal["flops", "level", "slice", "metric"]
    x_metric: Name | None = None
    """With ``x: metric``, the metric that is drawn along the x axis: its mean over seeds."""
    contenders: list[Name] | None = None
    levels: list[LevelValue] | None = None
    slice: str | list[str] | None = None
    """With ``x: slice``, the family of slices: ``distance`` takes ``distance=64``, ``distance=128``, ... Of several
    families each is a line of its own, and the plot shows one contender: for several there are as many plots."""
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
    exhibits_title: str = "Examples"
    """The heading over what matches brought to read, where they brought any."""
    deviations: list[str] = []
    caveats: list[Caveat] = []
    tiers: dict[TierName, PaperAtTier]
