"""Retrieval in the arena: the best documents stand before the question, and a language model tuned to that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import PositiveInt

from baselines.online import BM25
from rematch.arena import Task
from workflows.mac.language_models import load_lm, max_length
from workflows.mac.players import Asking, Player, texts
from workflows.mac.streams import Document


class RetrievalPlayer(Player):
    """Keeps the documents as they are and looks them up."""

    def __init__(self, task: Task, asking: Asking, counting: bool, top_k: int) -> None:
        super().__init__(task, asking, counting)
        self.top_k = top_k
        self.texts: list[str] = []

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return load_lm(self.task.bases["reader_lm"], self.task.hub)

    def adapt(self, documents: Sequence[Document]) -> None:
        self.texts += texts(documents)
        self.n_seen += len(documents)

    def _answer(self, questions: Sequence[str], gold: Sequence[int]) -> list[str]:
        return self._generate(BM25(self.texts).prepended(questions, self.top_k), max_length(self.lm))


@dataclass
class Retrieval:
    """BM25 and a reader.

    Attributes:
        top_k: documents before a question.
    """

    top_k: PositiveInt = 5

    def player(self, task: Task, asking: Asking, counting: bool) -> Player:
        return RetrievalPlayer(task, asking, counting, self.top_k)
