"""A scaffold for MAC's ring: what `rematch new` writes passes its own tests and plays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rooms import Room
from scaffolds import load_baseline, run_own_tests, scaffolded

from rematch.arena import Task
from rematch.cards import Card
from rematch.play import Skip
from workflows.mac.players import Asking, ReaderPlayer, player_of

pytestmark = pytest.mark.slow

NAME = "last_words"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scaffolded(tmp_path_factory.mktemp("repo"), "mac", NAME, ["data_efficiency", "memory_time"])


@pytest.fixture(scope="module")
def contender(root: Path) -> Any:
    return load_baseline(root, NAME).LastWords


@pytest.fixture(scope="module")
def room(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Room:
    return Room(Card(root / "workflows" / "mac", root), "smoke", tmp_path_factory.mktemp("bases"))


def task_of(room: Room, contender: Any, axis: str, *metrics: str, level: int = 8) -> Task:
    bases = {name: room.build(name) for name in ("qa_lm", "streams")}
    return Task(
        paper="mac", tier="smoke", axis=axis, name=NAME, contender=contender, level=level, seed=0, share=None,
        metrics=metrics, bases={name: folder for name, (folder, _) in bases.items()},
        base_info={name: info for name, (_, info) in bases.items()}, reference=None,
    )  # fmt: skip


def test_the_entry_is_a_cards(room: Room) -> None:
    spec = room.card.spec.contenders[NAME]
    assert (spec.label, spec.kind, spec.use) == ("Last words", "baseline", f"baselines.{NAME}:LastWords")


def test_it_passes_its_own_tests(root: Path) -> None:
    assert "3 passed" in run_own_tests(root, NAME)


def test_it_plays(room: Room, contender: Any) -> None:
    metrics = ("f1", "em_strict", "em_prefix", "first_f1", "meta_flops", "stream_flops")
    outcome = room.arena().play(task_of(room, contender(), "data_efficiency", *metrics))
    assert {m.metric for m in outcome.measurements} == set(metrics)
    assert (outcome.samples_seen, outcome.train_flops > 0) == (8, True)


def test_a_reader_is_asked_about_what_it_read(room: Room, contender: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(ReaderPlayer, "_generate", lambda self, prompts, length: asked.extend(prompts) or list(prompts))
    made = contender(n_kept=2)
    room.arena().play(task_of(room, made, "memory_time", "f1", "seconds_per_document"))
    player = player_of(task_of(room, made, "ablation"), Asking(), False)
    assert made.kept == []  # every player reads with a copy of its own
    assert player.answer(["where ?"], [0]) == ["where ?"]
    assert all(prompt.count(" .") == 8 for prompt in asked[:-1])  # two documents of four sentences


def test_what_takes_no_tensor_has_no_bytes(room: Room, contender: Any) -> None:
    with pytest.raises(Skip, match="without a tensor"):
        room.arena().play(task_of(room, contender(), "memory_time", "bytes_per_document"))


def test_bytes_and_flops_of_a_reader_that_learns(room: Room, contender: Any) -> None:
    class Learns(contender):  # type: ignore[misc]
        def begin(self, model: Any, tokenizer: Any, seed: int) -> None:
            self.model, self.tokenizer = model, tokenizer

        def read(self, documents: Any) -> None:
            super().read(documents)
            for text in documents:
                ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
                self.model(input_ids=ids, labels=ids).loss.backward()

    metrics = ("bytes_per_document", "saved_bytes", "stream_flops")
    outcome = room.arena().play(task_of(room, Learns(), "memory_time", *metrics))
    learned = {m.metric: m.value for m in outcome.measurements}
    plain = room.arena().play(task_of(room, contender(), "memory_time", "stream_flops"))
    assert learned["bytes_per_document"] > learned["saved_bytes"] > 0
    assert learned["stream_flops"] > 1.2 * plain.measurements[0].value
