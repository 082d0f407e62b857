"""TF-IDF as the weight of tokens in online fine-tuning, a baseline of CaMeLS."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from rematch.errors import RematchError


class TfIdf:
    """The weight of every character of a text: the TF-IDF of the word that it is part of, 0 between words (official code).

    A word has two letters or digits at least. Its weight is how often it occurs in the text, times ln((1 + D) / (1 + df)) + 1
    where df of D documents have it, over the norm of these products of all words of the text. Words that no document has
    weigh 0.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        """
        Args:
            documents: in which words are counted; one that comes twice counts once.

        Raises:
            RematchError: no document has a word.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer  # here, because it takes a second

        self._vectorizer = TfidfVectorizer()
        self._word = re.compile(self._vectorizer.token_pattern)
        try:
            self._vectorizer.fit(sorted(set(documents)))
        except ValueError as error:
            raise RematchError("TF-IDF needs at least one document with a word of two letters") from error

    def __call__(self, text: str) -> np.ndarray:
        """The weights of a text's characters, (len(text),) float64."""
        row, places = self._vectorizer.transform([text]), self._vectorizer.vocabulary_
        of = dict(zip(row.indices.tolist(), row.data.tolist(), strict=True))
        weights = np.zeros(len(text))
        for word in self._word.finditer(text):
            weights[word.start() : word.end()] = of.get(places.get(word.group().lower()), 0.0)
        return weights
