"""A small room: sums of four digits, a Llama of two layers, a few steps of everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rooms import Room, load_card

from rematch.arena import BaseJob, Task
from rematch.cards import Card

FEW = {"max_new_tokens": 6}
RECIPE = {"learning_rate": 0.002, "batch_size": 16, "steps": 4}
WRITER = {"n": 3, "n_ood": 2, "sampling": FEW}
RIVAL = WRITER | {"n": 6}  # as many tokens as ReVISE's two attempts at most
SIZES: dict[str, dict[str, Any]] = {
    "questions": {"n_train": 64, "n_validation": 12, "n_test": 20, "n_ood": 10, "task": {"columns": 4, "most": 2, "modulus": 2}},
    "m0": {"recipe": {"steps": 60, "batch_size": 32, "learning_rate": 0.02, "warmup": 0.1}, "max_new_tokens": 6},
    "samples": {"k": 3, "sampling": FEW},
    "revise": {"k": 3, "sampling": FEW, "recipe": RECIPE},
    "revise_cycle": {"k": 3, "sampling": FEW, "recipe": RECIPE},
    "rft": {"recipe": RECIPE},
    "rft_continued": {"recipe": {"learning_rate": 0.002, "batch_size": 4}},
    "star": {"k": 2, "loops": 2, "sampling": FEW, "recipe": RECIPE},
    "dpo": {"recipe": RECIPE, "per_question": 1},
    "verifier": {"recipe": RECIPE, "per_question": 1},
    "revise_written": WRITER,
} | dict.fromkeys(("m0_written", "rft_written", "sft_continued_written"), RIVAL)  # fmt: skip


@pytest.fixture(scope="session")
def card() -> Card:
    return load_card("revise")


@pytest.fixture(scope="session")
def room(card: Card, tmp_path_factory: pytest.TempPathFactory) -> Room:
    return Room(card, "smoke", tmp_path_factory.mktemp("bases"), base_options=SIZES)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., BaseJob]:
    """The job of a base that is built alone."""

    def made(needs: Mapping[str, Path] | None = None, name: str = "some", seed: int | None = 0, **more: Any) -> BaseJob:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}-{name}"
        out.mkdir()
        return BaseJob("revise", "smoke", name, seed, None, needs or {}, {}, out, **more)

    return made


@pytest.fixture
def play(room: Room) -> Callable[..., dict[str, Any]]:
    """A match's measurements by metric and slice; the outcome itself under ``outcome``."""

    def played(
        axis: str, contender: str, level: Any, *metrics: str, options: Mapping[str, Any] | None = None, **arena: Any
    ) -> dict[str, Any]:
        task: Task = room.task(axis, contender, level, metrics=metrics or None)
        task = dataclasses.replace(task, contender=dataclasses.replace(task.contender, **(options or {})))
        outcome = room.arena(**arena).play(task)
        found: dict[str, Any] = {"outcome": outcome}
        for m in outcome.measurements:
            found[f"{m.metric} {m.slice}".strip()] = m.value
        return found

    return played
