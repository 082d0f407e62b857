"""Simba's room: pruned and dense language models on the same items, at the same counted inference FLOPs.

A contender offers ``prepare(model, target, measure)``, ``logits(input_ids, n_continuation, attention_mask)``, ``notes()``
and ``keep_counts(n_context)``. It starts from its first base, a model, and turns its knob for every kind of item, so that
windows, recall, multiple-choice and cloze items each cost the share of the reference's FLOPs that the level allows.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import PositiveInt
from transformers import MambaConfig, MambaForCausalLM

from baselines.dense import Dense
from baselines.mamba import compile_kernels
from rematch.arena import Measurement, Outcome, Task
from rematch.flops import count_flops
from workflows.simba import evaluation, zero_shot
from workflows.simba.corpus import load_tokenizer, load_windows, recall_distances
from workflows.simba.models import dense, load_model
from workflows.simba.shapes import ItemShape, Kind, Shapes, item_flops, remembered_flops

LENGTH_AXES = ("ood", "memory_time")
"""Axes whose level is the length of the window in tokens."""


@dataclass
class Arena(Shapes):
    """Scores one contender on what an axis asks for.

    Attributes:
        choice_tasks, cloze_tasks: lm-eval tasks whose mean accuracy is ``choice_accuracy`` and ``cloze_accuracy``; those
            named ``corpus_...`` are ours, any other one is lm-eval's.
        task_limit: items of each lm-eval task, None for all.
        n_influence: windows over which the influence of a token is averaged.
        timing_context: length of the window that is timed.
        timing_repeats: times that it is run.
    """

    METRICS: ClassVar[tuple[str, ...]] = (
        "perplexity",
        "recall_accuracy",
        "choice_accuracy",
        "cloze_accuracy",
        "keep_ratio",
        "influence",
        "influence_decay",
        "seconds_per_item",
        "time_over_flops",
    )

    choice_tasks: list[str] = field(default_factory=lambda: ["corpus_choice"])
    cloze_tasks: list[str] = field(default_factory=lambda: ["corpus_cloze"])
    task_limit: PositiveInt | None = None
    n_influence: PositiveInt = 16
    timing_context: PositiveInt = 1024
    timing_repeats: PositiveInt = 7

    def play(self, task: Task) -> Outcome:
        """Play one match for one seed.

        On the axes ``ood`` and ``memory_time`` the level is the length of the window. The FLOPs of the outcome are those of one item of each
        kind that was measured, together; the notes hold the ratio to the target for each kind.
        """
        torch.manual_seed(task.seed)
        match = _Match(self, task)
        measurements = [found for metric in task.metrics for found in getattr(match, metric)()]
        flops = {kind: match.flops(kind) for kind in match.kinds}
        targets = {kind: match.target(kind) for kind in match.kinds}
        notes: dict[str, Any] = dict(match.contender("window").notes())
        total = None if task.share is None else sum(target or math.nan for target in targets.values())
        notes |= {f"flops_ratio_{kind}": flops[kind] / target for kind, target in targets.items() if target}
        return Outcome(
            measurements=measurements,
            flops=sum(flops.values()),
            flops_target=total,
            train_flops=sum(info.train_flops for info in task.base_info.values()),
            samples_seen=sum(info.samples_seen for name, info in task.base_info.items() if name != "corpus"),
            tokens_seen=sum(info.tokens_seen for name, info in task.base_info.items() if name != "corpus"),
            data_hash=match.data_hash,
            notes=notes,
        )


class _Match:
    """One contender, prepared once for each kind of item, and one method for each metric."""

    def __init__(self, arena: Arena, task: Task) -> None:
        self.arena, self.task = arena, task
        self.corpus = task.bases["corpus"]
        self.model = load_model(next(iter(task.bases.values())), task.hub)
        self.length = int(task.level) if task.axis in LENGTH_AXES else arena.context
        self._prepared: dict[Kind, Any] = {}

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of items that the metrics needed."""
        return list(self._prepared)

    def shape(self, kind: Kind) -> ItemShape:
        return self.arena.shape(kind, self.length)

    def contender(self, kind: Kind) -> Any:
        """The contender with its knob turned for this kind of item."""
        if kind not in self._prepared:
            contender = copy.copy(self.task.contender)
            contender.prepare(self.model, self.target(kind), lambda c: self._remembered(c, kind))
            self._prepared[kind] = contender
        return self._prepared[kind]

    def flops(self, kind: Kind) -> float:
        """Counted FLOPs of the contender on one item; counted anew for every seed, whatever the search remembered."""
        return item_flops(self.contender(kind), self.shape(kind))

    def target(self, kind: Kind) -> float | None:
        """The FLOPs that one item may cost: the share of what the reference spends on it."""
        if self.task.share is None:
            return None
        return self.task.share * self._remembered(self.reference, kind)

    def _remembered(self, contender: Any, kind: Kind) -> float:
        return remembered_flops(contender, self.shape(kind), self.task.scratch)

    @cached_property
    def reference(self) -> Dense:
        """The model whose FLOPs are 100 %."""
        assert self.task.reference is not None  # the engine gives one wherever it gives a share
        mine = self.task.reference == next(iter(self.task.bases.values()))
        return dense(self.model if mine else load_model(self.task.reference, self.task.hub))

    @cached_property
    def windows(self) -> np.ndarray:
        """Test windows (n, length), the same scored tokens at the end whatever the length."""
        return load_windows(self.corpus, "test")[:, -self.length :]

    @cached_property
    def data_hash(self) -> str:
        """Hash of everything that the match may be scored on."""
        files = [
            self.corpus / "test.npy",
            *sorted(self.corpus.glob("recall_*.npy")),
            *sorted(self.corpus.glob("*.jsonl")),
        ]
        total = hashlib.sha256()
        for path in files:
            total.update(path.name.encode() + path.read_bytes())
        return total.hexdigest()[:16]

    # -- metrics ------------------------------------------------------------------------------------------------------

    def perplexity(self) -> Iterator[Measurement]:
        losses = evaluation.window_losses(self.contender("window"), self.windows, self.arena.n_scored)
        yield Measurement("perplexity", math.exp(np.mean(losses)), items=losses)

    def recall_accuracy(self) -> Iterator[Measurement]:
        everything: list[float] = []
        for distance in recall_distances(self.corpus):
            windows = load_windows(self.corpus, f"recall_{distance}")
            hits = evaluation.recall_hits(self.contender("recall"), windows, self.arena.value_length)
            yield Measurement("recall_accuracy", float(np.mean(hits)), f"distance={distance}", hits)
            everything += hits
        yield Measurement("recall_accuracy", float(np.mean(everything)), items=everything)

    def choice_accuracy(self) -> Iterator[Measurement]:
        return self._zero_shot("choice_accuracy", "choice", self.arena.choice_tasks)

    def cloze_accuracy(self) -> Iterator[Measurement]:
        return self._zero_shot("cloze_accuracy", "cloze", self.arena.cloze_tasks)

    def _zero_shot(self, metric: str, kind: Kind, names: list[str]) -> Iterator[Measurement]:
        """The mean over the tasks, as the paper averages them, and where there are several each of them."""
        tasks = zero_shot.task_configs(names, self.corpus, self.task.hub)
        scores = zero_shot.evaluate_tasks(
            self.contender(kind), load_tokenizer(self.corpus), tasks, self.arena.task_limit
        )
        if len(scores) == 1:
            yield Measurement(metric, float(np.mean(scores[0].items)), items=scores[0].items)
            return
        for score in scores:
            yield Measurement(metric, float(np.mean(score.items)), f"task={score.task}", score.items)
        yield Measurement(metric, float(np.mean([np.mean(score.items) for score in scores])))

    def keep_ratio(self) -> Iterator[Measurement]:
        n_context = self.shape("window").n_context
        counts = self.contender("window").keep_counts(n_context)
        for layer, count in enumerate(counts, start=1):
            yield Measurement("keep_ratio", count / n_context, f"layer={layer}")
        yield Measurement("keep_ratio", float(np.mean(counts)) / n_context)

    def influence(self) -> Iterator[Measurement]:
        edges, logs = self._influences
        for distance, column in zip(edges, logs.T, strict=False):
            yield Measurement("influence", math.exp(column.mean()), f"distance={distance}", column.tolist())

    def influence_decay(self) -> Iterator[Measurement]:
        edges, logs = self._influences
        exponents = evaluation.decay_exponents(logs, edges)
        yield Measurement("influence_decay", float(np.mean(exponents)), items=exponents)

    @cached_property
    def _influences(self) -> tuple[list[int], np.ndarray]:
        n_context = self.shape("window").n_context
        edges = [2**k for k in range(int(math.log2(n_context)) + 1)]
        contender = self.contender("window")
        return edges, evaluation.influences(contender, self.windows[: self.arena.n_influence, : n_context + 1], edges)

    def seconds_per_item(self) -> Iterator[Measurement]:
        yield Measurement("seconds_per_item", self._seconds[0])

    def time_over_flops(self) -> Iterator[Measurement]:
        """Time saved against FLOPs saved, on the timed window: 1 where wall-clock time follows FLOPs (claim C8)."""
        shape = self.arena.shape("window", self.arena.timing_context)
        seconds, parent_seconds = self._seconds
        spent = item_flops(self.contender("window"), shape) / item_flops(dense(self.model), shape)
        yield Measurement("time_over_flops", (seconds / parent_seconds) / spent)

    @cached_property
    def _seconds(self) -> list[float]:
        window = load_windows(self.corpus, "test")[:1, -self.arena.timing_context :]
        pair = [self.contender("window"), dense(self.model)]
        return evaluation.seconds_per_item(pair, window, self.arena.n_scored, self.arena.timing_repeats)


@torch.no_grad()
def preload() -> None:
    """Compile the kernels and take the first, slow steps of torch's counter and custom operators, on a model of no use."""
    compile_kernels()
    # By name: an import would make every match, the dense ones too, depend on Simba's source.
    sparsify = importlib.import_module("methods.simba").sparsify
    model = MambaForCausalLM(MambaConfig(vocab_size=8, hidden_size=8, state_size=2, num_hidden_layers=2))
    count_flops(sparsify(model).logits, torch.zeros(1, 8, dtype=torch.long), 2)
