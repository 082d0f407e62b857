"""BM25, and documents before questions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from baselines.online.retrieval import BM25, prepend, with_documents
from baselines.qa import QAPair
from rematch.errors import RematchError

pytest.importorskip("bm25s")
DOCUMENTS = ["Anna lives in Paris.", "Ben lives, lives in Rome", "a cook works now and then and again"]


def test_scores_by_the_formula() -> None:
    """ln(1 + (K - df + 1/2) / (df + 1/2)) * tf / (tf + k1 (1 - b + b * length / mean length)) for every word."""
    k1, b = 1.2, 0.5
    index = BM25(DOCUMENTS, k1=k1, b=b)
    lengths = [4, 5, 8]
    mean = sum(lengths) / 3

    def part(df: int, tf: int, length: int) -> float:
        return math.log(1 + (3 - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * length / mean))

    expected = [part(1, 1, 4) + part(2, 1, 4), part(2, 2, 5), 0.0]
    assert index.scores("Where LIVES Anna?") == pytest.approx(expected, rel=1e-5)
    assert index.scores("lives lives")[1] == pytest.approx(2 * part(2, 2, 5), rel=1e-5)


def test_search() -> None:
    index = BM25([*DOCUMENTS, DOCUMENTS[0]])
    found = index.search(["who lives in rome", "anna", "cook", "nobody", "?!", ""], 3)
    assert found.dtype == np.int64
    assert found[:, 0].tolist() == [1, 0, 2, 0, 0, 0]
    assert found[1].tolist() == [0, 3, 1]  # ties: the earlier document first
    assert found[3].tolist() == found[4].tolist() == found[5].tolist() == [0, 1, 2]
    many = BM25(DOCUMENTS[:2] * 40)
    assert many.search(["anna"], 80).tolist() == [[*range(0, 80, 2), *range(1, 80, 2)]]
    assert index.search(["anna"], 99).shape == (1, 4)
    assert index.search([], 2).shape == (0, 2)


def test_documents_that_cannot_be_searched() -> None:
    for documents in ([], ["", "?!"]):
        with pytest.raises(RematchError, match="at least one document"):
            BM25(documents)


def test_documents_stand_before_the_question_the_best_next_to_it() -> None:
    assert prepend(["best", "second"], "question ?") == "second best question ?"
    assert prepend([], "question ?") == "question ?"
    pairs = with_documents(BM25(DOCUMENTS), [QAPair("where lives anna ?", "paris")], 2)
    assert pairs == [QAPair(f"{DOCUMENTS[1]} {DOCUMENTS[0]} where lives anna ?", "paris")]
