"""Synthetic recall documents: a key is given a value early, code follows, and the value is asked for again later.

What sets them apart from natural text is that only the definition, however far back, tells the value. Keys and values
are single words of a closed list that the tokenizer holds as tokens of their own; a value is two of them. The keys and
the values of test documents occur in no training document.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

KEYS = (
    "aldehyde", "basilisk", "cormorant", "dulcimer", "eglantine", "falchion", "gazebo", "hollyhock", "ibex", "jonquil",
    "kestrel", "lodestone", "mandrake", "nuthatch", "obelisk", "peregrine",
)  # fmt: skip
FIRST = (
    "amber", "azure", "crimson", "ebony", "fuchsia", "indigo", "ivory", "magenta", "ochre", "scarlet", "teal", "umber",
)  # fmt: skip
SECOND = (
    "anvil", "bassoon", "chalice", "dagger", "easel", "flagon", "gondola", "hammock", "lantern", "mandolin", "pendulum",
    "sextant",
)  # fmt: skip
WORDS = (*KEYS, *FIRST, *SECOND)

N_TEST_KEYS = 4
N_TEST_VALUES = 28
_PARTITION_SEED = 20250520

Encode = Callable[[str], list[int]]
Pair = tuple[str, str]


@dataclass(frozen=True)
class Vocabulary:
    """The keys and values of one part of the corpus."""

    keys: tuple[str, ...]
    values: tuple[Pair, ...]


def vocabularies() -> tuple[Vocabulary, Vocabulary]:
    """Keys and values for training and for test: no key and no value is in both."""
    pairs = [(a, b) for a in FIRST for b in SECOND]
    order = np.random.default_rng(_PARTITION_SEED).permutation(len(pairs))
    values = [pairs[i] for i in order]
    train = Vocabulary(KEYS[N_TEST_KEYS:], tuple(values[N_TEST_VALUES:]))
    return train, Vocabulary(KEYS[:N_TEST_KEYS], tuple(values[:N_TEST_VALUES]))


def definition(key: str, value: Pair) -> str:
    """The line that gives a key its value."""
    return f"remember {key}: {value[0]} {value[1]}\n"


def query(key: str, value: Pair) -> str:
    """The line that asks for it, answer included."""
    return f"recall {key}: {value[0]} {value[1]}\n"


def training_window(
    rng: np.random.Generator, filler: np.ndarray, encode: Encode, length: int, n_definitions: int, n_queries: int
) -> np.ndarray:
    """A window (length,) that begins with definitions and asks for them again and again between stretches of code.

    Args:
        filler: token ids of the training code, (n,), longer than a window.
        encode: text to ids.
    """
    vocabulary, _ = vocabularies()
    keys = rng.choice(vocabulary.keys, n_definitions, replace=False)
    values = [vocabulary.values[i] for i in rng.choice(len(vocabulary.values), n_definitions, replace=False)]
    pieces: list[Any] = [encode(definition(key, value)) for key, value in zip(keys, values, strict=True)]
    queries = [encode(query(keys[i], values[i])) for i in rng.integers(n_definitions, size=n_queries)]
    room = length - sum(map(len, pieces)) - sum(map(len, queries))
    while room < 0:
        room += len(queries.pop())
    gaps = rng.multinomial(room, np.full(len(queries) + 1, 1 / (len(queries) + 1)))
    for gap, asked in zip(gaps, [*queries, []], strict=True):
        pieces += [_stretch(rng, filler, gap), asked]
    return np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces])


def scored_window(
    rng: np.random.Generator, filler: np.ndarray, encode: Encode, length: int, distance: int, n_definitions: int
) -> np.ndarray:
    """A window (length,) that ends in one query, whose definition ends ``distance`` tokens before the answer begins.

    The other definitions surround the one that is asked for; what lies before and between is held-out code. The last
    tokens are the value: cut ``len(value)`` off and nothing after the definition tells it.

    Raises:
        ValueError: definitions, distance and query do not fit into the length.
    """
    _, vocabulary = vocabularies()
    keys = rng.choice(vocabulary.keys, n_definitions, replace=False)
    values = [vocabulary.values[i] for i in rng.choice(len(vocabulary.values), n_definitions, replace=False)]
    asked = int(rng.integers(n_definitions))
    definitions = [encode(definition(key, value)) for key, value in zip(keys, values, strict=True)]
    question = encode(query(keys[asked], values[asked]).rstrip("\n"))
    n_value = len(encode(" ".join(values[asked])))
    after = definitions[asked + 1 :]
    gap = distance - sum(map(len, after)) - (len(question) - n_value)
    before = length - distance - n_value - sum(map(len, definitions[: asked + 1]))
    if gap < 0 or before < 0:
        raise ValueError(f"{n_definitions} definitions and distance {distance} do not fit into {length} tokens")
    pieces = [_stretch(rng, filler, before), *definitions, _stretch(rng, filler, gap), question]
    return np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces])


def _stretch(rng: np.random.Generator, filler: np.ndarray, length: int) -> np.ndarray:
    start = int(rng.integers(len(filler) - length + 1))
    return filler[start : start + length]
