"""A paper's room without the engine around it: bases are built and matches played in the process of the test."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rematch.arena import BaseInfo, BaseJob, Outcome, Task
from rematch.cards import Card
from rematch.hub import Hub
from rematch.play import load

ROOT = Path(__file__).resolve().parents[2]


def load_card(paper: str) -> Card:
    return Card(ROOT / "workflows" / paper, ROOT)


@dataclass
class Room:
    """Builds bases and plays matches as the engine does, in this process."""

    card: Card
    tier: str
    folder: Path
    mirror: Path | None = None
    base_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    arena_options: dict[str, Any] = field(default_factory=dict)
    scratch: Path | None = None
    built: dict[tuple[str, float | None, int | None], tuple[Path, BaseInfo]] = field(default_factory=dict)

    @property
    def paper(self) -> str:
        return self.card.spec.paper

    @property
    def hub(self) -> Hub:
        return Hub(self.mirror)

    def build(self, name: str, share: float | None = None, seed: int = 0) -> tuple[Path, BaseInfo]:
        spec = self.card.spec.bases[name]
        key = (name, share if spec.per_share else None, seed if spec.seeded else None)
        if key not in self.built:
            self.built[key] = self.build_anew(name, share, seed)
        return self.built[key]

    def build_anew(self, name: str, share: float | None, seed: int) -> tuple[Path, BaseInfo]:
        spec = self.card.spec.bases[name]
        needs = {need: self.build(need, share, seed)[0] for need in spec.needs}
        out = self.folder / f"{len(list(self.folder.iterdir()))}-{name}"
        out.mkdir()
        options = self.card.options("bases", name, self.tier) | self.base_options.get(name, {})
        job = BaseJob(
            paper=self.paper,
            tier=self.tier,
            name=name,
            seed=seed if spec.seeded else None,
            share=share if spec.per_share else None,
            needs=needs,
            arena=self.card.at(self.tier).arena | self.arena_options,
            out=out,
            hub=self.hub,
        )
        return out, load(spec.use)(**options).build(job)

    def task(
        self, axis: str, contender: str, level: Any, seed: int = 0, metrics: tuple[str, ...] | None = None
    ) -> Task:
        whole = self.card.spec.axes[axis]  # type: ignore[index]
        budget = whole.budget
        share = None if budget is None else float(level if budget.share == "level" else budget.share)
        spec = self.card.spec.contenders[contender]
        bases = {name: self.build(name, share, seed) for name in spec.bases}
        return Task(
            paper=self.paper,
            tier=self.tier,
            axis=axis,
            name=contender,
            contender=load(spec.use)(**self.card.options("contenders", contender, self.tier)),
            level=level,
            seed=seed,
            share=None if budget is not None and contender in budget.fixed else share,
            metrics=metrics or tuple(self.card.metrics_of(whole, contender)),
            bases={name: folder for name, (folder, _) in bases.items()},
            base_info={name: info for name, (_, info) in bases.items()},
            reference=None if budget is None else self.build(budget.reference, share, seed)[0],
            hub=self.hub,
            scratch=self.scratch,
        )

    def arena(self, **options: Any) -> Any:
        arena = load(f"workflows.{self.paper}.arena:Arena")
        return arena(**self.card.at(self.tier).arena | self.arena_options | options)

    def play(self, axis: str, contender: str, level: Any, seed: int = 0, **arena: Any) -> Outcome:
        return self.arena(**arena).play(self.task(axis, contender, level, seed))
