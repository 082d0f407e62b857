"""The contract between the engine and a paper's room: what is handed out, and what must come back.

An arena is a dataclass ``Arena`` in ``workflows/<paper>/arena.py``. Its fields are the sizes that a tier may set, its
class attribute ``METRICS`` (a literal tuple) names every metric it can produce, and ``play`` plays one match::

    @dataclass
    class Arena:
        METRICS: ClassVar[tuple[str, ...]] = ("accuracy",)
        n_items: int = 100

        def play(self, task: Task) -> Outcome: ...

A base (a pretrained model, a corpus) is built by any dataclass that a card names under ``use``; its fields are the
options that the card may set::

    @dataclass
    class Corpus:
        vocab_size: int = 1024

        def build(self, job: BaseJob) -> BaseInfo: ...

An arena module may also offer ``preload()``: called once in a process that workers are forked from, for what every match
needs and is slow the first time (compiled kernels). Nothing may depend on its having been called.

Contenders are dataclasses too; what they must offer is the arena's own affair, because the engine does not know what
they compete in. The arena receives them ready made, as ``task.contender``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Level = float | int | str


@dataclass(frozen=True)
class BaseJob:
    """One base to build: a shared artefact that several matches start from.

    Attributes:
        out: the folder to fill, empty but for what a killed attempt at the same base left in it (a checkpoint). It
            becomes visible to others only when ``build`` has returned.
        needs: the folders of the bases that this one is built from, by name in the card.
        seed: the seed of this copy, or None for a base that is the same for every seed.
        share: the share of the reference's budget that the base is sized for, or None (see ``BaseSpec.per_share``).
        arena: the sizes of the paper's arena at this tier (a base matched on inference FLOPs needs the test shape).
        hub: resolves model and dataset ids to local folders where a mirror is configured.
    """

    paper: str
    tier: str
    name: str
    seed: int | None
    share: float | None
    needs: Mapping[str, Path]
    arena: Mapping[str, Any]
    out: Path
    hub: Any = None


@dataclass(frozen=True)
class BaseInfo:
    """What building a base cost and what it was built from. FLOPs are floating-point operations, not MACs."""

    train_flops: float = 0.0
    samples_seen: int = 0
    tokens_seen: int = 0
    data_hash: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


class BaseBuilder(Protocol):
    """What a card's ``bases.<name>.use`` must name."""

    def build(self, job: BaseJob) -> BaseInfo:
        """Fill ``job.out`` and say what it cost."""
        ...


@dataclass(frozen=True)
class Task:
    """One match for one seed, as the arena receives it.

    Attributes:
        contender: an instance of the class that the card names, made with the card's options.
        bases: the folder of every base that the contender starts from, by the name in the card.
        base_info: what each of these bases cost (its ``BaseInfo``), by the same names.
        share: the share of the reference's FLOPs that the contender may spend, or None where the axis sets it no budget.
        reference: the folder of the base whose measured FLOPs are 100 %, or None.
        metrics: the metrics that the axis asks for; the arena measures these and no others.
        scratch: a folder that the seeds of one job share, for what is the same for all of them and slow to find (the
            FLOPs of a shape). It is gone when the job is done. None where a match is played outside a job.
    """

    paper: str
    tier: str
    axis: str
    name: str
    contender: Any
    level: Level
    seed: int
    share: float | None
    metrics: tuple[str, ...]
    bases: Mapping[str, Path]
    base_info: Mapping[str, BaseInfo]
    reference: Path | None
    scratch: Path | None = None
    hub: Any = None


@dataclass(frozen=True)
class Measurement:
    """One metric's value, whole or for one slice of the items (``"distance=64"``, ``"layer=3"``).

    ``items`` are the per-item scores behind the value, on the scale of the analysis: their mean is ``value`` for a
    linear metric and ``log(value)`` for a metric on a log scale (perplexity: the items are negative log-likelihoods).
    They have the same order for every contender, so that they can be paired. None where no items exist.
    """

    metric: str
    value: float
    slice: str = ""
    items: Sequence[float] | None = None


@dataclass(frozen=True)
class Exhibit:
    """Something to read beside the numbers: a transcript, as named pieces of plain text in the order of reading.

    It is kept and shown as it is, never interpreted as markup. Bring a handful a seed, chosen by a rule that does not look
    at the scores (the first items), and the same items for every contender. The page shows those of the first seed.

    Attributes:
        title: what is read, for a reader who sees several below each other: ``"Question 3, 12 + 7 * 2"``.
        fields: (name, text) of every piece: ``("First attempt", "...")``.

    Raises:
        TypeError: something is not text, or a field is not a pair.
    """

    title: str
    fields: Sequence[tuple[str, str]]

    def __post_init__(self) -> None:
        if not isinstance(self.title, str):
            raise TypeError(f"Exhibit: the title must be text, not {self.title!r}")
        for entry in self.fields:
            if not isinstance(entry, tuple) or len(entry) != 2 or not all(isinstance(text, str) for text in entry):
                raise TypeError(f"Exhibit '{self.title}': a field must be a pair (name, text) of texts, not {entry!r}")


@dataclass(frozen=True)
class Outcome:
    """What a match brought.

    Attributes:
        flops: measured FLOPs of what the axis budgets (inference per item, or training), counted, never assumed.
        flops_target: the FLOPs that the budget allowed, or None where the axis sets none.
        train_flops: FLOPs spent on training what was played, bases included.
        data_hash: hash of the data that the match was scored on.
        remarks: what to say under every table of a metric, by metric, where its number would be misread without (a model that
            never does what is measured).
        exhibits: what a person may read of the match; kept beside its records, and no number is computed from it.
        undefined: metrics of the axis that have no value in this match, each with the reason (a ratio to nothing); the others
            count all the same.
    """

    measurements: Sequence[Measurement]
    flops: float = float("nan")
    flops_target: float | None = None
    train_flops: float = 0.0
    samples_seen: int = 0
    tokens_seen: int = 0
    data_hash: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    undefined: Mapping[str, str] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)
    exhibits: Sequence[Exhibit] = ()


class Undefined(Exception):
    """Raised by a metric that has no value in a match; the message is the reason."""


def measure(match: Any, metrics: Sequence[str]) -> tuple[list[Measurement], dict[str, str]]:
    """What a match's methods of the metrics' names yield, and the reasons of those that have no value.

    Args:
        match: has a method for each metric, which gives its measurements or raises ``Undefined``.
    """
    measurements: list[Measurement] = []
    undefined: dict[str, str] = {}
    for metric in metrics:
        try:
            measurements += getattr(match, metric)()
        except Undefined as reason:
            undefined[metric] = str(reason)
    return measurements, undefined
