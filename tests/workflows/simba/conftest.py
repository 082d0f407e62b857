"""Simba's room at smoke sizes: bases are built once and shared by all tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from rematch.arena import BaseInfo, BaseJob, Outcome, Task
from rematch.cards import Card
from rematch.hub import Hub
from rematch.play import load

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Room:
    """Builds bases and plays matches as the engine does, in this process."""

    card: Card
    tier: str
    folder: Path
    mirror: Path | None = None
    base_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    arena_options: dict[str, Any] = field(default_factory=dict)
    built: dict[tuple[str, float | None, int | None], tuple[Path, BaseInfo]] = field(default_factory=dict)

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
            paper="simba",
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
        budget = self.card.spec.axes[axis].budget  # type: ignore[index]
        share = None if budget is None else float(level if budget.share == "level" else budget.share)
        spec = self.card.spec.contenders[contender]
        bases = {name: self.build(name, share, seed) for name in spec.bases}
        return Task(
            paper="simba",
            tier=self.tier,
            axis=axis,
            name=contender,
            contender=load(spec.use)(**self.card.options("contenders", contender, self.tier)),
            level=level,
            seed=seed,
            share=share,
            metrics=metrics or tuple(self.card.spec.axes[axis].metrics),  # type: ignore[index]
            bases={name: folder for name, (folder, _) in bases.items()},
            base_info={name: info for name, (_, info) in bases.items()},
            reference=None if budget is None else self.build(budget.reference, share, seed)[0],
            hub=self.hub,
        )

    def arena(self, **options: Any) -> Any:
        return load("workflows.simba.arena:Arena")(**self.card.at(self.tier).arena | self.arena_options | options)

    def play(self, axis: str, contender: str, level: Any, seed: int = 0, **arena: Any) -> Outcome:
        return self.arena(**arena).play(self.task(axis, contender, level, seed))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def card() -> Card:
    return Card(ROOT / "workflows" / "simba", ROOT)


@pytest.fixture(scope="session")
def room(card: Card, tmp_path_factory: pytest.TempPathFactory) -> Room:
    tiny = {"tokens": 512}
    overrides = {
        "transformer": {"n_layers": 4, **tiny},
        "parent_tuned": tiny,
        "dense_tuned": tiny,
        "simba_tuned": tiny,
        "corpus": {"test_contexts": [64, 96]},
    }
    return Room(card, "smoke", tmp_path_factory.mktemp("bases"), base_options=overrides)


@pytest.fixture(scope="session")
def make_room() -> type[Room]:
    """For a room at another tier."""
    return Room


@pytest.fixture(scope="session")
def corpus(room: Room) -> Path:
    return room.build("corpus")[0]


@pytest.fixture(scope="session")
def parent(room: Room) -> Callable[[], Any]:
    """A fresh copy of the smoke parent at each call."""
    from workflows.simba.models import load_model

    folder = room.build("parent")[0]
    return lambda: load_model(folder)
