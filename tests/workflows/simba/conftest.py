"""Simba's room at smoke sizes: bases are built once and shared by all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rooms import Room, load_card

from rematch.cards import Card


@pytest.fixture(scope="session")
def card() -> Card:
    return load_card("simba")


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
    bases, scratch = (tmp_path_factory.mktemp(name) for name in ("bases", "scratch"))
    return Room(card, "smoke", bases, base_options=overrides, scratch=scratch)


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
