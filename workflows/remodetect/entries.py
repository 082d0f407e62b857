"""How each kind of detector enters the arena: what it is trained on, what it scores with, and what that costs.

An entry wraps a contender of the card. It is prepared once, and then gives a score for every text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from baselines.detectors.resampling import perturbed_statistics, regenerated_statistics
from baselines.detectors.sequence import Passes, SequenceDetector, TrainedDetector, item_order
from baselines.detectors.statistics import GLTR, REGENERATED, ZeroShot, token_statistics
from rematch.arena import Task
from rematch.errors import RematchError
from workflows.remodetect.language_models import load_filler, load_reference, load_scoring
from workflows.remodetect.likelihoods import Likelihoods, n_versions
from workflows.remodetect.reward_model import load_detector
from workflows.remodetect.texts import Row, read_rows


def reference_flops(detector: TrainedDetector, rows: Sequence[Row], replay: Sequence[str]) -> float:
    """What ReMoDetect's training on these triplets costs, one at a time: the measure of all budgets.

    A triplet takes four passes that are trained through (LLM, mixed, human and replay text, together) and the teacher's
    pass over the replay text.
    """
    cost = detector.pass_cost(_texts(rows) + list(replay))
    passes = Passes(detector.planner(cost))
    order = item_order(len(replay), len(rows), len(rows), detector.seed, 1)
    for row, index in zip(rows, order, strict=True):
        mixed = next((text for text in row["mixed"].values() if text), row["human"])
        passes.trained([row["llm"]], [row["human"]], [mixed], [replay[index]])
        passes.frozen(detector.model, [replay[index]])
    return passes.flops


def _texts(rows: Sequence[Row]) -> list[str]:
    return [row[side] for row in rows for side in ("llm", "human")]


class Entry:
    """A contender in a match.

    Attributes:
        train_flops: spent on training it here, bases left out.
        samples_seen, tokens_seen: read in training it here.
        notes: what else is to be known of it.
    """

    train_flops = 0.0
    samples_seen = 0
    tokens_seen = 0

    def __init__(self, task: Task, resamples: int) -> None:
        self.task, self.contender, self.resamples = task, task.contender, resamples
        self.texts = task.bases["texts"]
        self.notes: dict[str, Any] = {}

    def prepare(self, n_triplets: int, budget: float | None) -> None:
        """Train where there is something to train, on the first triplets, or for as many FLOPs as the budget says."""

    def scores(self, texts: list[str]) -> np.ndarray:
        """A score for each text, (n,), higher = more likely generated; NaN where it has none."""
        raise NotImplementedError

    def passes(self) -> float:
        """Forward passes of a model for one text, generation left out."""
        return 1.0

    def seconds(self, texts: list[str]) -> float:
        """Wall seconds for all of the texts, from text to score, models loaded."""
        self.scores(texts[:2])
        started = time.perf_counter()
        self.scores(texts)
        return time.perf_counter() - started


class ScorerEntry(Entry):
    """What scores texts by itself, such as chance; the reward that picked is read from the base ``texts`` first."""

    def prepare(self, n_triplets: int, budget: float | None) -> None:
        if hasattr(self.contender, "read"):
            self.contender.read(self.texts)

    def scores(self, texts: list[str]) -> np.ndarray:
        return self.contender.score(texts)

    def passes(self) -> float:
        return 0.0


class ClassifierEntry(Entry):
    """A sequence classifier, trained or as it is."""

    def __init__(self, task: Task, resamples: int) -> None:
        super().__init__(task, resamples)
        base = next(iter(task.bases.values()))
        self.detector: Any = load_detector(self.contender, base, task.hub)

    def prepare(self, n_triplets: int, budget: float | None) -> None:
        if not isinstance(self.detector, TrainedDetector) or not self.detector.finetune:
            return
        triplets = read_rows(self.texts, "triplets")
        replay = [row["text"] for row in read_rows(self.texts, "replay")]
        self.detector.set_params(seed=self.task.seed)
        if n_triplets > len(triplets):
            raise RematchError(f"{n_triplets} triplets are asked for and the base 'texts' holds {len(triplets)}")
        triplets = triplets[:n_triplets] if budget is None else self._within(budget, triplets, replay, n_triplets)
        self.detector.train_on(triplets, replay)
        self.train_flops = self.detector.training_flops_
        self.samples_seen, self.tokens_seen = self.detector.texts_seen_, self.detector.tokens_seen_
        self.notes |= {"steps": self.detector.steps_, "triplets": len(triplets), "epochs": self.detector.epochs}

    def _within(self, budget: float, triplets: list[Row], replay: list[str], n_like: int) -> list[Row]:
        """The triplets that the budget pays for, the first ``n_like`` where it buys more epochs over them instead.

        Training is planned, not run, until its cost meets the budget: padding makes it a little uneven.
        """
        cost, n = self.detector.pass_cost(_texts(triplets) + replay), n_like
        for _ in range(8):
            n_distinct = n_like if self.detector.spends == "epochs" else n
            if n < 1 or n_distinct > len(triplets):
                raise RematchError(
                    f"the budget of {budget:.4g} FLOPs pays for {n} triplets and the base 'texts' holds {len(triplets)}"
                )
            self.detector.set_params(epochs=n / n_distinct)
            planner = self.detector.planner(cost)
            planner.train_on(triplets[:n_distinct], replay)
            better = round(n * budget / planner.training_flops_)
            if better == n:
                break
            n = better
        return triplets[:n_distinct]

    def scores(self, texts: list[str]) -> np.ndarray:
        return self.detector.decision_function(texts)


class StatisticEntry(Entry):
    """A zero-shot statistic, read off the shared passes."""

    contender: ZeroShot

    @cached_property
    def _likelihoods(self) -> Likelihoods:
        return Likelihoods.load(self.texts, self.task.bases["token_passes"])

    @property
    def _resampling(self) -> Path | None:
        kind = self.contender.resampling
        return self.task.bases[kind] if kind else None

    @cached_property
    def _n_versions(self) -> int:
        """Versions of a text: as many as are asked for, or all that were made (DNA-GPT makes fewer than DetectGPT)."""
        return min(self.resamples, n_versions(self._resampling)) if self._resampling else 0

    def scores(self, texts: list[str]) -> np.ndarray:
        versions = None
        if self._resampling:
            versions = self._likelihoods.versions_of(texts, self._resampling).first_k(self._n_versions)
        return self.contender.score(self._likelihoods.of(texts), versions)

    def prepare(self, n_triplets: int, budget: float | None) -> None:
        if self._resampling:
            self.notes["versions"] = self._n_versions

    def passes(self) -> float:
        return float(sum(self.contender.passes(self._n_versions)))

    def seconds(self, texts: list[str]) -> float:
        """Everything anew, on its own: its passes, its resampling, its score."""
        models, hub = self.task.bases["language_models"], self.task.hub
        scoring = load_scoring(models, hub)
        reference = load_reference(models, hub) if self.contender.needs_reference else None
        filler = load_filler(models, hub) if self._resampling and self.contender.resampling != REGENERATED else None

        def run(some: list[str]) -> None:
            stats, versions = token_statistics(scoring, some, reference), None
            rng = np.random.default_rng([self.task.seed, *b"seconds"])
            if filler is not None:
                versions = perturbed_statistics(scoring, some, filler, self._n_versions, rng)
            elif self._resampling:
                versions = regenerated_statistics(scoring, some, scoring, self._n_versions, rng)
            self.contender.score(stats, versions)

        run(texts[:2])
        started = time.perf_counter()
        run(texts)
        return time.perf_counter() - started


class GLTREntry(StatisticEntry):
    """GLTR: a logistic regression on ranks, fitted on the texts of the triplets."""

    contender: Any

    def prepare(self, n_triplets: int, budget: float | None) -> None:
        triplets = read_rows(self.texts, "triplets")[:n_triplets]
        texts = [row[side] for side in ("llm", "human") for row in triplets]
        self.contender.fit(self._likelihoods.of(texts), [1] * len(triplets) + [0] * len(triplets))
        self.samples_seen = len(texts)

    def scores(self, texts: list[str]) -> np.ndarray:
        return self.contender.score(self._likelihoods.of(texts))

    def passes(self) -> float:
        return 1.0

    def seconds(self, texts: list[str]) -> float:
        scoring = load_scoring(self.task.bases["language_models"], self.task.hub)
        self.contender.score(token_statistics(scoring, texts[:2]))
        started = time.perf_counter()
        self.contender.score(token_statistics(scoring, texts))
        return time.perf_counter() - started


def entry_for(task: Task, resamples: int) -> Entry:
    """The entry that a contender's kind asks for."""
    if isinstance(task.contender, SequenceDetector):
        return ClassifierEntry(task, resamples)
    if isinstance(task.contender, GLTR):
        return GLTREntry(task, resamples)
    if isinstance(task.contender, ZeroShot):
        return StatisticEntry(task, resamples)
    return ScorerEntry(task, resamples)
