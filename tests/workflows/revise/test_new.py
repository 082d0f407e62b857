"""A scaffold for ReVISE's ring: what `rematch new` writes passes its own tests and plays as it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from scaffolds import load_baseline, run_own_tests, scaffolded

from rematch.cards import Card

pytestmark = pytest.mark.slow

NAME = "likeliest"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scaffolded(tmp_path_factory.mktemp("repo"), "revise", NAME, ["test_time_compute"])


def test_the_entry_is_a_cards(root: Path) -> None:
    spec = Card(root / "workflows" / "revise", root).spec.contenders[NAME]
    assert (spec.label, spec.kind, spec.use) == ("Likeliest", "baseline", f"baselines.{NAME}:Likeliest")


def test_it_passes_its_own_tests(root: Path) -> None:
    assert "3 passed" in run_own_tests(root, NAME)


def test_it_plays(root: Path, room: Any) -> None:
    made = load_baseline(root, NAME).Likeliest()
    task = dataclasses.replace(room.task("test_time_compute", "sft", 2), contender=made, name=NAME)
    outcome = room.arena().play(task)
    assert {m.metric for m in outcome.measurements} == set(task.metrics)
