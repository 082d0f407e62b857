"""Retrieval: documents found by BM25 and prepended to the question."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from baselines.qa import QAPair
from rematch.errors import RematchError

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text in lower case, for BM25."""
    return _WORD.findall(text.lower())


class BM25:
    """An index of documents by their words (Robertson's BM25, in Lucene's variant).

    Attributes:
        documents: as given.
    """

    def __init__(self, documents: Sequence[str], k1: float = 1.5, b: float = 0.75) -> None:
        """
        Args:
            k1: how slowly repetitions of a word stop to count.
            b: how much the length of a document counts, 0 to 1.

        Raises:
            RematchError: no document has a word.
        """
        self.documents = list(documents)
        tokens = [words(document) for document in documents]
        if not any(tokens):
            raise RematchError("BM25 needs at least one document with a word")
        import bm25s  # here, because it takes longer to import than most streams to search

        self._index = bm25s.BM25(k1=k1, b=b, auto_compile=False)
        self._index.index(tokens, show_progress=False)

    def scores(self, question: str) -> np.ndarray:
        """The score of every document, (K,) float32; all 0 where no word is known."""
        # A word that occurs twice counts twice, as in the formula.
        query = words(question)
        return self._index.get_scores(query) if query else np.zeros(len(self.documents), np.float32)

    def search(self, questions: Sequence[str], k: int) -> np.ndarray:
        """The k best documents of each question, best first: places (N, min(k, K)) int64. Ties go to the earlier one."""
        k = min(k, len(self.documents))
        found = [np.argsort(-self.scores(question), kind="stable")[:k] for question in questions]
        return np.stack(found) if found else np.zeros((0, k), np.int64)

    def prepended(self, questions: Sequence[str], k: int) -> list[str]:
        """Each question behind its k best documents, the best of them last."""
        places = self.search(questions, k)
        return [
            prepend([self.documents[i] for i in row], question) for row, question in zip(places, questions, strict=True)
        ]


def prepend(documents: Sequence[str], question: str) -> str:
    """The question behind the documents, best last, so that a cut on the left takes the least relevant words."""
    return " ".join([*reversed(documents), question])


def with_documents(index: BM25, pairs: Sequence[QAPair], k: int) -> list[QAPair]:
    """Each question with its k best documents before it: what the language model is tuned and asked on."""
    prompts = index.prepended([pair.question for pair in pairs], k)
    return [QAPair(prompt, pair.answer) for prompt, pair in zip(prompts, pairs, strict=True)]
