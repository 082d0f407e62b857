"""ReMoDetect's room at sizes of the tests' own: bases are built once and shared by all tests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rooms import Room, load_card

from rematch.arena import BaseInfo, Task
from rematch.cards import Card

N_TRIPLETS = 40
SIZES: dict[str, dict[str, Any]] = {
    "corpus": {
        "vocab_size": 1000, "max_files": 60, "other_lm_windows": 200,
        "windows": {"lm_a": 400, "lm_b": 400, "train": 110, "validation": 20, "test": 60, "preferences": 100},
    },
    # The ratio of 0.2 makes no mixed text: a fifth of four spans is none.
    "texts": {
        "n_triplets": 100, "n_mixed": 80, "mix_ratios": [0.2, 0.25, 0.5, 0.75], "n_validation": 20, "n_rewards": 1000,
        "n_preferences": 200, "n_vendor": 500, "n_pairs": 30, "best_of": 16, "doses": [1, 4, 16, 32],
        "raft_prompts": 100, "raft_best_of": 8, "lengths": [8, 24],
    },
    "reward_model": {"sizes": {}, "epochs": 3},
    "token_passes": {"n_triplets": N_TRIPLETS},
    "perturbed": {"k": 3},
    "regenerated": {"k": 3},
}  # fmt: skip
ARENA = {"n_triplets": N_TRIPLETS, "resamples": 3, "n_timed": 4}


@pytest.fixture(scope="session")
def card() -> Card:
    return load_card("remodetect")


@pytest.fixture(scope="session")
def room(card: Card, tmp_path_factory: pytest.TempPathFactory) -> Room:
    return Room(card, "smoke", tmp_path_factory.mktemp("bases"), base_options=SIZES, arena_options=ARENA)


@pytest.fixture(scope="session")
def corpus(room: Room) -> Path:
    return room.build("corpus")[0]


@pytest.fixture(scope="session")
def language_models(room: Room) -> Path:
    return room.build("language_models")[0]


@pytest.fixture(scope="session")
def texts(room: Room) -> Path:
    return room.build("texts")[0]


@pytest.fixture(scope="session")
def vocabulary(corpus: Path) -> list[str]:
    return json.loads((corpus / "vocabulary.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def ids_of(vocabulary: list[str]) -> Callable[[Sequence[str]], np.ndarray]:
    """Texts of equal length as ids of the closed vocabulary, (texts, words); fails for a word outside it."""
    indices = {word: index for index, word in enumerate(vocabulary)}
    return lambda some: np.array([[indices[word] for word in text.split(" ")] for text in some])


@pytest.fixture(scope="session")
def task_on(room: Room) -> Callable[..., Task]:
    """A match of any contender on folders of one's own; further arguments replace the task's."""

    def task(contender: Any, bases: dict[str, Path], metrics: Sequence[str], **changes: Any) -> Task:
        made = Task(
            paper="remodetect", tier="smoke", axis="ablation", name="some", contender=contender, level=N_TRIPLETS,
            seed=0, share=None, metrics=tuple(metrics), bases=bases, base_info={name: BaseInfo() for name in bases},
            reference=None,
        )  # fmt: skip
        return dataclasses.replace(made, **changes)

    return task
