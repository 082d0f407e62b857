"""Synthetic recall documents: something is to be remembered, code follows, and it is asked for again and again.

What sets them apart from natural text is that only the definition, however far back, tells the answer. A value is two
words of a closed list that the tokenizer holds as tokens of their own; the values of test documents occur in no training
document, though each of their words does.

A document holds one definition and no key, and training predicts its answers alone. With keys, or with a loss on the code
between the answers, nothing was recalled within 400,000 training tokens of a model of 100,000 parameters; like this recall
appears suddenly, in some seeds after 150,000 tokens of such documents and in others not before 350,000.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from baselines.next_token import read_only

DEFINE, ASK = "remember", "recall"
FIRST = ("amber", "azure", "crimson", "ebony", "indigo", "ivory", "ochre", "teal")
SECOND = ("anvil", "bassoon", "chalice", "dagger", "easel", "hammock", "lantern", "sextant")
WORDS = (DEFINE, ASK, *FIRST, *SECOND)

N_TEST_VALUES = 16
_PARTITION_SEED = 20250520

Encode = Callable[[str], list[int]]
Value = tuple[str, str]


def partition() -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """Values for training and values for test: none is in both."""
    pairs = [(a, b) for a in FIRST for b in SECOND]
    order = np.random.default_rng(_PARTITION_SEED).permutation(len(pairs))
    values = [pairs[i] for i in order]
    return tuple(values[N_TEST_VALUES:]), tuple(values[:N_TEST_VALUES])


def definition(value: Value) -> str:
    """The line that gives the value."""
    return f"{DEFINE} {value[0]} {value[1]}\n"


def query(value: Value) -> str:
    """The line that asks for it, answer included."""
    return f"{ASK} {value[0]} {value[1]}\n"


def training_window(
    rng: np.random.Generator, filler: np.ndarray, encode: Encode, length: int, n_queries: int
) -> np.ndarray:
    """A window (length,) that begins with the definition and asks for it again and again between stretches of code.

    Only the answers are predicted in training (``baselines.next_token.read_only``).

    Args:
        filler: token ids of the training code, (n,), longer than a window.
        encode: text to ids.
    """
    training, _ = partition()
    value = training[rng.integers(len(training))]
    defined, asked = _unscored(encode(definition(value))), _answer_scored(value, encode)
    n_queries = min(n_queries, (length - len(defined)) // len(asked))
    room = length - len(defined) - n_queries * len(asked)
    gaps = rng.multinomial(room, np.full(n_queries + 1, 1 / (n_queries + 1)))
    pieces = [defined]
    for gap in gaps[:-1]:
        pieces += [_unscored(_stretch(rng, filler, gap)), asked]
    return np.concatenate([*pieces, _unscored(_stretch(rng, filler, gaps[-1]))])


def scored_window(
    rng: np.random.Generator, filler: np.ndarray, encode: Encode, length: int, distance: int
) -> np.ndarray:
    """A window (length,) that ends in one query, whose definition ends ``distance`` tokens before the answer begins.

    What lies before and between is held-out code. The last tokens are the value: cut ``len(value)`` off and nothing after
    the definition tells it.

    Raises:
        ValueError: definition, distance and query do not fit into the length.
    """
    _, held_out = partition()
    value = held_out[rng.integers(len(held_out))]
    defined, question = encode(definition(value)), encode(query(value).rstrip("\n"))
    n_value = len(encode(" ".join(value)))
    gap = distance - (len(question) - n_value)
    before = length - distance - n_value - len(defined)
    if gap < 0 or before < 0:
        raise ValueError(f"a definition at distance {distance} does not fit into {length} tokens")
    pieces: list[Any] = [_stretch(rng, filler, before), defined, _stretch(rng, filler, gap), question]
    return np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces])


def _unscored(ids: Any) -> np.ndarray:
    return read_only(np.asarray(ids, dtype=np.int64), np.zeros(len(ids), dtype=bool))


def _answer_scored(value: Value, encode: Encode) -> np.ndarray:
    """A query of which the value alone is scored."""
    ids = np.asarray(encode(query(value)), dtype=np.int64)
    end = len(ids) - len(encode("\n"))
    place = np.arange(len(ids))
    return read_only(ids, (place >= end - len(encode(" ".join(value)))) & (place < end))


def _stretch(rng: np.random.Generator, filler: np.ndarray, length: int) -> np.ndarray:
    start = int(rng.integers(len(filler) - length + 1))
    return filler[start : start + length]
