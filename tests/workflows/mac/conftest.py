"""MAC's room at sizes of the tests' own: bases are built once and shared by all tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rooms import Room, load_card

from rematch.arena import BaseJob, Task
from rematch.cards import Card

N_STREAM = 12
MAC_SIZES = {
    "n_tokens": 2, "n_blocks": 2, "n_heads": 2, "head_dim": 8, "expansion_width": 16,
}  # fmt: skip
ENCODER = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
RECIPE = {"steps": 3, "documents": 4, "learning_rate": 0.01}
WEIGHTS = {"n_layers": 1, "steps": 2, "batch_size": 2, "recipe": {"accumulation": 1, "learning_rate": 0.01}}
SIZES: dict[str, dict[str, Any]] = {
    "corpus": {"n_names": 60, "n_documents": 96, "n_validation": 32},
    "lm": {"steps": 40, "batch_size": 32, "n_layers": 2, "hidden_size": 16, "n_heads": 2, "learning_rate": 0.01},
    "qa_lm": {"max_steps": 2, "validate_every": 1, "learning_rate": 0.001},
    "reader_lm": {"max_steps": 1, "validate_every": 1},
    "streams": {"n_train": 64, "n_validation": 6, "n_stream": N_STREAM},
    "memory_start": {
        "n_documents": 32, "sizes": MAC_SIZES, "encoder_sizes": ENCODER, "recipe": RECIPE | {"banks": 2},
        "stages": [{"of": "sentences", "steps": 2, "documents": 2, "banks": 2, "learning_rate": 0.01}],
    },
    "memory": {"n_documents": 64, "recipe": RECIPE, "step_shares": [0, 0.5, 0.75]},
    "memory_fewer": {"n_documents": 32, "recipe": RECIPE | {"steps": 2}},
    "memory_none": {
        "n_documents": 64, "sizes": MAC_SIZES | {"aggregate": "none"}, "encoder_sizes": ENCODER, "recipe": RECIPE,
    },
    "memory_text": {
        "n_documents": 64, "sizes": MAC_SIZES,
        "encoder_sizes": ENCODER, "recipe": RECIPE, "base_lm": "plain", "query": "beginning",
    },
    "weights": WEIGHTS | {"n_documents": 64},
    "weights_fewer": WEIGHTS | {"n_documents": 32, "steps": 1},
}  # fmt: skip
ARENA = {"n_first": 4, "probes": [0, 4], "n_timed": 4}


@pytest.fixture(scope="session")
def card() -> Card:
    return load_card("mac")


@pytest.fixture(scope="session")
def room(card: Card, tmp_path_factory: pytest.TempPathFactory) -> Room:
    return Room(card, "smoke", tmp_path_factory.mktemp("bases"), base_options=SIZES, arena_options=ARENA)


@pytest.fixture(scope="session")
def streams(room: Room) -> Path:
    return room.build("streams")[0]


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., BaseJob]:
    """The job of a base that is built alone."""

    def made(
        needs: Mapping[str, Path] | None = None, name: str = "some", seed: int | None = 0,
        arena: Mapping[str, Any] | None = None, **more: Any,
    ) -> BaseJob:  # fmt: skip
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}-{name}"
        out.mkdir()
        return BaseJob("mac", "smoke", name, seed, None, needs or {}, arena or {}, out, **more)

    return made


@pytest.fixture
def task(room: Room) -> Callable[..., Task]:
    """A match of a contender of the card, on the ablation axis and the whole stream where nothing else is said."""

    def made(
        contender: str, axis: str = "ablation", level: Any = N_STREAM, options: Mapping[str, Any] | None = None, **more: Any
    ) -> Task:  # fmt: skip
        found = room.task(axis, contender, level, metrics=more.pop("metrics", ("f1",)))
        changed = dataclasses.replace(found.contender, **(options or {}))
        return dataclasses.replace(found, contender=changed, **more)

    return made
