"""MAC's room: a language model that has to keep up with a stream of documents, and is asked about them afterwards.

Documents come one after another, without questions; then all questions about them are put at once. Who reads what and what
it changes is the player's affair (``players``). The language model was tuned on other questions, and is the same for all.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt

from baselines import qa
from baselines.decoding import GREEDY, OFFICIAL_BEAMS
from rematch.arena import Measurement, Outcome, Task, Undefined, measure
from rematch.errors import RematchError, unknown
from workflows.mac.corpus import MAIN, VALIDATION, read_stream, stream_path
from workflows.mac.lengths import MAX_ANSWER, MAX_DOCUMENT, MAX_LENGTH
from workflows.mac.players import Asking, Player, asked_of, player_of
from workflows.mac.streams import Document

SCORES = {"em_prefix": qa.em_prefix, "em_strict": qa.em_strict, "f1": qa.f1}
BEAMS = {"greedy": GREEDY, "official": OFFICIAL_BEAMS}


LANGUAGE_MODELS = ("lm", "qa_lm", "reader_lm")
"""The bases whose training is that of the language model that answers."""


@dataclass
class Arena:
    """Lets one player read a stream and scores its answers.

    What the level is depends on the axis: ``flops_matched`` a share of what MAC's networks spend on the stream,
    ``data_efficiency`` the documents that MAC and CaMeLS had at hand to be meta-trained on, ``ood`` a stream, ``memory_time`` and
    ``ablation`` how many documents of the main stream are read.

    Attributes:
        n_first: documents whose questions are put again and again, to see what is retained.
        probes: after how many further documents, 0 for right after them; those beyond the stream are at its end,
            where they are put in any case.
        n_timed: documents and questions that are timed.
        small_memories: documents of the groups that the stream is divided into for the sanity gates; see ``em_small``.
        max_new_tokens, batch_size, max_length, max_answer, max_document: see ``players.Asking``.
        beams: ``greedy``, or ``official``: the diverse beam search of the released evaluation.
        stream: ``main``; ``validation`` for choosing learning rates, never for what is reported.
    """

    METRICS: ClassVar[tuple[str, ...]] = (
        "em_prefix", "em_strict", "f1", "first_f1", "first_em", "f1_retention", "attention_mass", "learning_curve",
        "em_small", "meta_flops", "meta_texts", "train_bytes", "bytes_per_document", "network_bytes", "bytes_in_all", "saved_bytes",
        "kept_bytes", "bytes_per_question", "seconds_per_document", "seconds_per_question", "stream_flops",
    )  # fmt: skip

    n_first: PositiveInt = 16
    probes: list[NonNegativeInt] = field(default_factory=lambda: [0, 16, 48, 112])
    n_timed: PositiveInt = 32
    small_memories: list[PositiveInt] = field(default_factory=lambda: [4, 16])
    max_new_tokens: PositiveInt = 3
    batch_size: PositiveInt = 64
    max_length: int = MAX_LENGTH
    max_answer: int = MAX_ANSWER
    max_document: int = MAX_DOCUMENT
    beams: Literal["greedy", "official"] = "greedy"
    stream: Literal["main", "validation"] = "main"

    def play(self, task: Task) -> Outcome:
        """Play one match for one seed.

        The FLOPs of the outcome are those of reading the stream, and for MAC of looking up; what the language model spends on
        reading questions and answering is the same for all and left out.
        """
        match = _Match(self, task)
        measurements, undefined = measure(match, task.metrics)
        player = match.player
        return Outcome(
            measurements=measurements,
            flops=match.own_flops if task.axis == "flops_matched" else float("nan"),
            flops_target=match.target,
            train_flops=player.meta_flops
            + sum(info.train_flops for name, info in task.base_info.items() if name in LANGUAGE_MODELS),
            undefined=undefined,
            samples_seen=player.n_seen,
            data_hash=match.data_hash,
            notes={"questions": len(match.pairs), "unscorable": match.n_unscorable, "meta_flops": player.meta_flops},
        )


class _Match:
    """One player, one stream, and one method for each metric."""

    def __init__(self, arena: Arena, task: Task) -> None:
        self.arena, self.task = arena, task
        for name, value, allowed in (
            ("beams", arena.beams, tuple(BEAMS)),
            ("stream", arena.stream, (MAIN, VALIDATION)),
        ):
            if value not in allowed:
                raise unknown(name, value, allowed, "mac: arena")
        self.counting = task.axis == "flops_matched" or "stream_flops" in task.metrics
        self.asking = Asking(
            arena.max_new_tokens,
            BEAMS[arena.beams],
            arena.batch_size,
            arena.max_length,
            arena.max_answer,
            arena.max_document,
        )
        self.player: Player = player_of(task, self.asking, self.counting)
        self.target: float | None = None
        self.documents = self._documents()
        kept = asked_of(self.documents)
        self.n_unscorable = sum(len(document.pairs) for document in self.documents) - len(kept)
        self.gold = [place for place, _ in kept]
        self.pairs = [pair for _, pair in kept]

    @cached_property
    def _name(self) -> str:
        return str(self.task.level) if self.task.axis == "ood" else self.arena.stream

    def _documents(self) -> list[Document]:
        documents = read_stream(self.task.bases["streams"], self._name)
        if self.task.axis not in ("memory_time", "ablation"):
            return documents
        n = int(self.task.level)
        if n > len(documents):
            raise RematchError(
                f"{self.task.axis}: level {n}, and the stream '{self._name}' has {len(documents)} documents"
            )
        return documents[:n]

    @cached_property
    def data_hash(self) -> str:
        """Hash of the stream."""
        return hashlib.sha256(stream_path(self.task.bases["streams"], self._name).read_bytes()).hexdigest()[:16]

    # -- the stream ---------------------------------------------------------------------------------------------------

    @cached_property
    def answers(self) -> list[str]:
        """The stream read, and all questions answered."""
        if self.task.share is None:
            self._read()
        else:
            self._read_within()
        self.player.counting = "stream_flops" in self.task.metrics
        answers = self.player.answer([pair.question for pair in self.pairs], self.gold)
        self.player.counting = False  # what is asked from now on is no part of the stream, and counting is slow
        return answers

    @cached_property
    def first_answers(self) -> dict[int, list[str]]:
        """The answers to the questions on the first documents, by how many were read after these."""
        self.answers  # noqa: B018 - reads the stream
        return self._first

    def _read(self) -> None:
        n_first, documents = min(self.arena.n_first, len(self.documents)), self.documents
        asks_first = any(name.startswith("first") or name == "f1_retention" for name in self.task.metrics)
        self._first: dict[int, list[str]] = {}
        after = [*self.arena.probes, len(documents)]  # the end is always one
        stops = {min(n_first + each, len(documents)) for each in after} if asks_first else set()
        read = 0
        for stop in sorted(stops | {len(documents)}):
            self.player.adapt(documents[read:stop])
            read = stop
            if stop in stops:
                mine = [(pair, place) for pair, place in zip(self.pairs, self.gold, strict=True) if place < n_first]
                self._first[stop - n_first] = self.player.answer(
                    [pair.question for pair, _ in mine], [g for _, g in mine]
                )

    def _read_within(self) -> None:
        """Within a share of what MAC's networks spend on the stream."""
        assert self.task.share is not None
        assert self.task.reference is not None  # the engine gives one wherever it gives a share
        spent = json.loads((self.task.reference / "memory.json").read_text(encoding="utf-8"))["stream_flops"]
        self.target = self.task.share * sum(spent.values())
        self.player.adapt_within(self.documents, self.target)

    @property
    def own_flops(self) -> float:
        """What the player spent on the stream, and on looking up what all questions need."""
        self.answers  # noqa: B018 - reads the stream
        return self.player.own_flops([pair.question for pair in self.pairs], self.gold)

    # -- metrics: answers ---------------------------------------------------------------------------------------------

    def _scored(self, metric: str) -> Iterator[Measurement]:
        items = [SCORES[metric](answer, pair.answer) for answer, pair in zip(self.answers, self.pairs, strict=True)]
        yield Measurement(metric, float(np.mean(items)), items=items)

    def em_prefix(self) -> Iterator[Measurement]:
        yield from self._scored("em_prefix")

    def em_strict(self) -> Iterator[Measurement]:
        yield from self._scored("em_strict")

    def f1(self) -> Iterator[Measurement]:
        yield from self._scored("f1")

    def _first_scored(self, score: str) -> dict[int, list[float]]:
        truths = [pair.answer for pair in self.pairs]
        return {
            after: [SCORES[score](answer, truth) for answer, truth in zip(answers, truths, strict=False)]
            for after, answers in self.first_answers.items()
        }

    def _first_metric(self, metric: str, score: str) -> Iterator[Measurement]:
        scores = self._first_scored(score)
        for after, items in scores.items():
            yield Measurement(metric, float(np.mean(items)), f"after={after}", items)
        last = scores[max(scores)]
        yield Measurement(metric, float(np.mean(last)), items=last)

    def first_f1(self) -> Iterator[Measurement]:
        """F1 of the first documents' questions after each probe; the whole value is at the end of the stream."""
        yield from self._first_metric("first_f1", "f1")

    def first_em(self) -> Iterator[Measurement]:
        """The same in strict exact match."""
        yield from self._first_metric("first_em", "em_strict")

    def f1_retention(self) -> Iterator[Measurement]:
        """F1 on the first documents' questions at the end of the stream over that right after them.

        Raises:
            Undefined: it was 0 right after them.
        """
        scores = {after: float(np.mean(items)) for after, items in self._first_scored("f1").items()}
        if min(scores) > 0:
            raise RematchError("f1_retention needs a probe right after the first documents: probes must hold 0")
        if not scores[0]:
            raise Undefined("no question on the first documents was answered right after them: retention is undefined")
        for after, value in scores.items():
            yield Measurement("f1_retention", value / scores[0], f"after={after}")
        yield Measurement("f1_retention", scores[max(scores)] / scores[0])

    def attention_mass(self) -> Iterator[Measurement]:
        """The share of its attention that a question gives to the document it is about, by block; the mean over blocks."""
        self.answers  # noqa: B018 - reads the stream
        mass = self.player.attention_mass([pair.question for pair in self.pairs], self.gold)
        for block in range(mass.shape[1]):
            yield Measurement("attention_mass", float(mass[:, block].mean()), f"block={block + 1}")
        items = mass.mean(1).tolist()
        yield Measurement("attention_mass", float(np.mean(items)), items=items)

    def em_small(self) -> Iterator[Measurement]:
        """Strict exact match where a question looks at the ``memory=K`` documents of its group only; the whole value is
        that of the largest groups. Documents that make no full group are left out.

        Raises:
            Undefined: the stream is shorter than the smallest group.
        """
        sizes = [size for size in sorted(self.arena.small_memories) if size <= len(self.documents)]
        if not sizes:
            raise Undefined(f"no group of {self.arena.small_memories} documents in a stream of {len(self.documents)}")
        self.answers  # noqa: B018 - reads the stream
        items: list[float] = []
        for size in sizes:
            items = self.player.right_in_groups(self.documents[: len(self.documents) // size * size], size)
            yield Measurement("em_small", float(np.mean(items)), f"memory={size}", items)
        yield Measurement("em_small", float(np.mean(items)), items=items)

    def learning_curve(self) -> Iterator[Measurement]:
        """Meta-training loss in nats a token by step; the whole value is the last."""
        curve = self.player.notes["curve"]
        for step, loss in curve:
            yield Measurement("learning_curve", loss, f"step={step}")
        yield Measurement("learning_curve", curve[-1][1])

    # -- metrics: cost ------------------------------------------------------------------------------------------------

    def meta_flops(self) -> Iterator[Measurement]:
        """FLOPs of training before the stream, the language model's left out."""
        yield Measurement("meta_flops", self.player.meta_flops)

    def meta_texts(self) -> Iterator[Measurement]:
        """Texts read in that training, a text as often as it was read."""
        yield Measurement("meta_texts", float(self.player.meta_texts))

    def train_bytes(self) -> Iterator[Measurement]:
        """Bytes that a batch of meta-training keeps for the backward pass; the slices are those of ``memory.step_bytes``."""
        for name, value in self.player.notes["train_bytes"].items():
            yield Measurement("train_bytes", float(value), name)

    def stream_flops(self) -> Iterator[Measurement]:
        """FLOPs of reading the stream and answering all of its questions."""
        self.answers  # noqa: B018 - reads the stream
        yield Measurement("stream_flops", self.player.adapt_flops + self.player.answer_flops)

    @cached_property
    def _document_costs(self) -> Any:
        self.answers  # noqa: B018 - reads the stream
        return self.player.document_costs(self.documents[0])

    def bytes_per_document(self) -> Iterator[Measurement]:
        """With everything read."""
        yield Measurement("bytes_per_document", float(self._document_costs.peak))

    @cached_property
    def _network_bytes(self) -> float:
        return float(sum(tensor.nbytes for tensor in self.player.networks()))

    def network_bytes(self) -> Iterator[Measurement]:
        """Of what the player needs beside the language model."""
        yield Measurement("network_bytes", self._network_bytes)

    def bytes_in_all(self) -> Iterator[Measurement]:
        """Those of a document and those networks."""
        yield Measurement("bytes_in_all", self._document_costs.peak + self._network_bytes)

    def saved_bytes(self) -> Iterator[Measurement]:
        yield Measurement("saved_bytes", float(self._document_costs.saved))

    def kept_bytes(self) -> Iterator[Measurement]:
        """Bytes that a document leaves behind."""
        yield Measurement("kept_bytes", float(self._document_costs.kept))

    def bytes_per_question(self) -> Iterator[Measurement]:
        """With everything read."""
        self.answers  # noqa: B018 - reads the stream
        yield Measurement("bytes_per_question", float(self.player.question_costs(self.pairs[0].question).peak))

    def seconds_per_document(self) -> Iterator[Measurement]:
        """Of documents that come one at a time, by a player that has read them: fine-tuning counts the FLOPs of every
        length of a document when it first comes, which is no part of its work."""
        fresh: Any = player_of(self.task, self.asking, False)
        some = self.documents[: self.arena.n_timed]
        fresh.adapt(some)
        yield Measurement("seconds_per_document", _seconds(lambda: [fresh.adapt([each]) for each in some]) / len(some))

    def seconds_per_question(self) -> Iterator[Measurement]:
        """In batches, aggregation included."""
        self.answers  # noqa: B018 - reads the stream
        some = [pair.question for pair in self.pairs[: self.arena.n_timed]]
        yield Measurement(
            "seconds_per_question", _seconds(lambda: self.player.answer(some, self.gold[: len(some)])) / len(some)
        )


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@torch.no_grad()
def preload() -> None:
    """Import what matches need.

    MAC by name: an import would make every match, those of baselines too, depend on its source.
    """
    for module in (
        "methods.mac",
        "bm25s",
        "transformers.models.t5.modeling_t5",
        "transformers.models.gpt2.modeling_gpt2",
    ):
        importlib.import_module(module)
