"""Retrieval in the arena: the best documents stand before the question, and a language model tuned to that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import PositiveInt

from baselines.online import Index
from rematch.arena import Task
from workflows.mac.language_models import load_lm, max_length
from workflows.mac.players import Asking, Player, texts
from workflows.mac.retrievers import RetrieverName, load_retriever
from workflows.mac.streams import Document


class RetrievalPlayer(Player):
    """Keeps the documents as they are and looks them up."""

    def __init__(self, task: Task, asking: Asking, counting: bool, top_k: int, retriever: str) -> None:
        super().__init__(task, asking, counting)
        self.top_k = top_k
        self.texts: list[str] = []
        self._indexed = load_retriever(retriever, task.hub)
        self._index: Index | None = None

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        reader = next(name for name in self.task.bases if name.startswith("reader"))
        return load_lm(self.task.bases[reader], self.task.hub)

    @property
    def index(self) -> Index:
        """Of the documents read so far."""
        if self._index is None:
            self._index = self._indexed(self.texts)
        return self._index

    def adapt(self, documents: Sequence[Document]) -> None:
        self.texts += texts(documents)
        self._index = None
        self.n_seen += len(documents)

    def _answer(self, questions: Sequence[str], gold: Sequence[int]) -> list[str]:
        return self._generate(self.index.prepended(questions, self.top_k), max_length(self.lm))


@dataclass
class Retrieval:
    """A retriever and a reader: the language model of the contender's base whose name begins so.

    Attributes:
        top_k: documents before a question.
        retriever: what finds them.
    """

    top_k: PositiveInt = 5
    retriever: RetrieverName = "bm25"

    def player(self, task: Task, asking: Asking, counting: bool) -> Player:
        return RetrievalPlayer(task, asking, counting, self.top_k, self.retriever)
