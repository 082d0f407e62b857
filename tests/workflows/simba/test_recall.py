"""Recall documents: what is held out, where the answer can be known from, what is trained on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workflows.simba import recall
from workflows.simba.corpus import load_tokenizer, load_windows, recall_distances

LENGTH = 256


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> Any:
    return load_tokenizer(corpus)


@pytest.fixture(scope="module")
def encode(tokenizer: Any) -> Callable[[str], list[int]]:
    return tokenizer.encode


@pytest.fixture(scope="module")
def filler(corpus: Path) -> np.ndarray:
    windows = load_windows(corpus, "train")
    return windows[(windows >= 0).all(1)].reshape(-1)


def test_no_value_is_in_both_parts() -> None:
    training, held_out = map(set, recall.partition())
    assert not training & held_out
    assert len(training) + len(held_out) == len(recall.FIRST) * len(recall.SECOND)
    assert {a for a, _ in held_out} <= {a for a, _ in training}
    assert {b for _, b in held_out} <= {b for _, b in training}


def test_every_word_is_one_token(encode: Callable[[str], list[int]]) -> None:
    assert all(len(encode(word)) == len(encode(f" {word}")) == 1 for word in recall.WORDS)
    assert len({encode(word)[0] for word in recall.WORDS}) == len(recall.WORDS)


def test_a_training_window_predicts_answers_only(
    encode: Callable[[str], list[int]], filler: np.ndarray, tokenizer: Any
) -> None:
    training, held_out = map(set, recall.partition())
    for seed in range(20):
        window = recall.training_window(np.random.default_rng(seed), filler, encode, LENGTH, n_queries=8)
        assert window.shape == (LENGTH,)
        scored = window[window >= 0]
        assert len(scored) == 16
        assert len({tuple(pair) for pair in scored.reshape(-1, 2)}) == 1
        read = np.where(window >= 0, window, -1 - window)
        value = tuple(tokenizer.convert_ids_to_tokens(scored[:2].tolist()))
        assert value in training - held_out
        definition = encode(recall.definition(value))
        assert read[: len(definition)].tolist() == definition


@pytest.mark.parametrize("distance", [8, 64, 240])
def test_the_definition_stands_at_its_distance(
    encode: Callable[[str], list[int]], filler: np.ndarray, distance: int
) -> None:
    held_out = {tuple(encode(" ".join(value))) for value in recall.partition()[1]}
    ask, define = encode(recall.ASK)[0], encode(recall.DEFINE)[0]
    for seed in range(20):
        window = recall.scored_window(np.random.default_rng(seed), filler, encode, LENGTH, distance)
        assert window.shape == (LENGTH,)
        value = tuple(window[-2:].tolist())
        assert value in held_out
        assert window[-3] == ask
        assert (window == define).sum() == 1
        start = int(np.flatnonzero(window == define)[0])
        n_definition = len(encode(recall.definition((recall.FIRST[0], recall.SECOND[0]))))
        assert LENGTH - 2 - (start + n_definition) == distance
        # Nowhere else is the answer to be had.
        assert sum(tuple(window[i : i + 2].tolist()) == value for i in range(LENGTH - 1)) == 2


def test_a_distance_that_does_not_fit(encode: Callable[[str], list[int]], filler: np.ndarray) -> None:
    with pytest.raises(ValueError, match="does not fit into 32 tokens"):
        recall.scored_window(np.random.default_rng(0), filler, encode, 32, 30)


def test_held_out_values_occur_nowhere_in_training(corpus: Path, encode: Callable[[str], list[int]]) -> None:
    held_out = {tuple(encode(" ".join(value))) for value in recall.partition()[1]}
    windows = load_windows(corpus, "train")
    windows = np.where(windows >= 0, windows, -1 - windows)
    pairs = {tuple(pair) for window in windows for pair in itertools.pairwise(window.tolist())}
    assert not pairs & held_out
    assert any(pair in pairs for pair in (tuple(encode(" ".join(v))) for v in recall.partition()[0]))
    for distance in recall_distances(corpus):
        assert {tuple(row[-2:]) for row in load_windows(corpus, f"recall_{distance}")} <= held_out
