"""What takes part: something that is told documents, one after another, and is then asked questions about them.

A contender of the card is a few options; for a match it becomes a player. Here is what all players share, those that learn
nothing, and what makes a player of a contender that is none (``Reader``); ``finetuning``, ``memory_player`` and ``retrieval``
have the others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from baselines.decoding import GREEDY, Beams
from baselines.online.memory import PeakBytes, SavedBytes
from baselines.qa import MAX_ANSWER, MAX_LENGTH, QAPair, em_strict, generate_answers, is_scorable
from rematch.arena import Task
from rematch.flops import count_flops
from rematch.play import Skip
from workflows.mac.language_models import load_lm, max_length
from workflows.mac.streams import Document
from workflows.mac.world import question_key


@dataclass(frozen=True)
class Asking:
    """How questions are put.

    Attributes:
        max_new_tokens, beams, batch_size: see ``baselines.qa.generate_answers``.
        max_length, max_answer: likewise.
        max_document: tokens read of a document.
    """

    max_new_tokens: int = 16
    beams: Beams = GREEDY
    batch_size: int = 64
    max_length: int = MAX_LENGTH
    max_answer: int = MAX_ANSWER
    max_document: int = 512


@dataclass
class Costs:
    """What one document or one question takes.

    Attributes:
        peak: bytes alive at once, above the networks, with all that was kept of what was read.
        saved: bytes kept for the backward pass.
        kept: bytes that stay for good.
    """

    peak: int = 0
    saved: int = 0
    kept: int = 0


class Player:
    """The language model as it is: it is told nothing. The base of all players.

    Attributes:
        meta_flops: spent on training before the stream, on top of the language model's own.
        meta_texts: read in that training.
        adapt_flops, answer_flops: spent on documents and on questions so far, where ``counting``.
    """

    meta_flops = 0.0
    meta_texts = 0

    def __init__(self, task: Task, asking: Asking, counting: bool = False) -> None:
        self.task, self.asking, self.counting = task, asking, counting
        self.adapt_flops = self.answer_flops = 0.0
        self.n_seen = 0

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return load_lm(self.task.bases["qa_lm"], self.task.hub)

    @property
    def lm(self) -> Any:
        """The language model that answers."""
        return self._loaded[0]

    @property
    def tokenizer(self) -> Any:
        return self._loaded[1]

    def adapt(self, documents: Sequence[Document]) -> None:
        """Read documents, in order, once."""
        self.n_seen += len(documents)

    def adapt_within(self, documents: Sequence[Document], flops: float) -> None:
        """Read the stream, again and again where that is of use, until so many FLOPs are spent; once at least."""
        self.adapt(documents)

    def answer(self, questions: Sequence[str], gold: Sequence[int]) -> list[str]:
        """Answers to questions.

        Args:
            gold: the documents that they are about, counted from the first that was read; for oracles only.
        """
        if not self.counting:
            return self._answer(questions, gold)
        found: list[str] = []
        self.answer_flops += count_flops(lambda: found.extend(self._answer(questions, gold))).forward
        return found

    def _answer(self, questions: Sequence[str], gold: Sequence[int]) -> list[str]:
        return self._generate(questions, self.asking.max_length)

    def right_in_groups(self, documents: Sequence[Document], size: int) -> list[float]:
        """Strict exact match of every question that has a score, where all that it can look at is its document's group.

        Args:
            documents: the first that were read; as many as ``size`` after one another are a group, and all are full.
        """
        raise Skip("what it read cannot be divided into groups")

    def _generate(self, prompts: Sequence[str], max_length: int) -> list[str]:
        """The language model's answers to what it reads, cut on the left to ``max_length`` tokens with the answer."""
        ask = self.asking
        return generate_answers(
            self.lm,
            self.tokenizer,
            prompts,
            ask.max_new_tokens,
            beams=ask.beams,
            batch_size=ask.batch_size,
            max_length=max_length,
            max_answer=ask.max_answer,
        )

    def networks(self) -> Sequence[Tensor]:
        """The weights that it needs beside those of the language model."""
        return []

    def document_costs(self, document: Document) -> Costs:
        """What reading one more document takes, after what was read so far."""
        return Costs()

    def question_costs(self, question: str) -> Costs:
        """What answering one question takes, after what was read so far."""
        with PeakBytes() as memory:
            self._answer([question], [0])
        return Costs(peak=memory.peak)

    def own_flops(self, questions: Sequence[str], gold: Sequence[int]) -> float:
        """Spent on the stream so far, where ``counting``, and on looking up what questions need.

        What the language model spends on reading questions and answering is not among it.
        """
        return self.adapt_flops

    @property
    def notes(self) -> dict[str, Any]:
        """What meta-training left to be known."""
        return {}

    def attention_mass(self, questions: Sequence[str], gold: Sequence[int]) -> Tensor:
        """How much of its attention each question gives to the document that it is about, (N, blocks)."""
        raise Skip("its questions do not attend to documents")


@dataclass
class NoAdaptation:
    """The language model without the documents."""

    def player(self, task: Task, asking: Asking, counting: bool) -> Player:
        return Player(task, asking, counting)


class EvenPlayer(Player):
    """Attention spread evenly."""

    def attention_mass(self, questions: Sequence[str], gold: Sequence[int]) -> Tensor:
        return torch.full((len(questions), 1), 1 / self.n_seen)

    def right_in_groups(self, documents: Sequence[Document], size: int) -> list[float]:
        """What is expected of guessing among the group's answers to questions of the same kind."""
        asked = [(place // size, kind_of(documents[place], pair), pair.answer) for place, pair in asked_of(documents)]
        found = []
        for *where, answer in asked:
            scores = [em_strict(other, answer) for *its, other in asked if its == where]
            found.append(sum(scores) / len(scores))
        return found


def kind_of(document: Document, pair: QAPair) -> str:
    """What a question asks for of whomever it is about: a relation of the generated world, else one kind for all."""
    try:
        return question_key(pair.question, document.name)
    except StopIteration:
        return ""


@dataclass
class EvenAttention:
    """What attention that knows nothing would give: the same to every document."""

    def player(self, task: Task, asking: Asking, counting: bool) -> Player:
        return EvenPlayer(task, asking, counting)


class Reader(Protocol):
    """What a contender of ``methods`` or ``baselines`` offers that makes no player of its own."""

    def begin(self, model: Any, tokenizer: Any, seed: int) -> None:
        """Adopt the language model, which may be changed in place."""

    def read(self, documents: Sequence[str]) -> None:
        """Take in documents, in order."""

    def answer(self, questions: Sequence[str], ask: Callable[[Sequence[str]], list[str]]) -> list[str]:
        """Answers to questions; ``ask`` is what the language model answers to prompts."""


class ReaderPlayer(Player):
    """A ``Reader`` of its own copy. It reads the stream once, whatever FLOPs are left."""

    def __init__(self, task: Task, asking: Asking, counting: bool = False) -> None:
        super().__init__(task, asking, counting)
        self.reader: Reader = copy.deepcopy(task.contender)
        self.reader.begin(self.lm, self.tokenizer, task.seed)

    def adapt(self, documents: Sequence[Document]) -> None:
        def read() -> None:
            self.reader.read(texts(documents))

        if self.counting:
            self.adapt_flops += count_flops(read).total
        else:
            read()
        self.n_seen += len(documents)

    def _answer(self, questions: Sequence[str], gold: Sequence[int]) -> list[str]:
        return self.reader.answer(questions, lambda prompts: self._generate(prompts, max_length(self.lm)))

    def document_costs(self, document: Document) -> Costs:
        """Of reading one document, by a player that has read none; what it leaves behind is not known.

        Raises:
            Skip: it takes no memory of torch's.
        """
        new = ReaderPlayer(self.task, self.asking)
        with SavedBytes([*new.lm.parameters(), *new.lm.buffers()]) as saved, PeakBytes() as memory:
            new.reader.read([document.text])
        if not memory.peak:
            raise Skip("it reads a document without a tensor: there are no bytes to compare")
        return Costs(peak=memory.peak, saved=saved.total)


def player_of(task: Task, asking: Asking, counting: bool) -> Player:
    """The player of a match's contender."""
    if hasattr(task.contender, "player"):
        made: Player = task.contender.player(task, asking, counting)
        return made
    return ReaderPlayer(task, asking, counting)


def asked_of(documents: Sequence[Document]) -> list[tuple[int, QAPair]]:
    """The questions on documents that have a score, each with the place of its document."""
    return [(k, pair) for k, document in enumerate(documents) for pair in document.pairs if is_scorable(pair.answer)]


def texts(documents: Sequence[Document]) -> list[str]:
    return [document.text for document in documents]
