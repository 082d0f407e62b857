"""ReMoDetect's room: detectors of generated text, on the same pairs of human and generated text.

A contender is an estimator of ``baselines.detectors`` or ReMoDetect itself; ``entries`` says how each kind is prepared and
scored. It sees the triplets of the seen domain and source; everything it is scored on is held out, and most of it is
unlike what it saw: other sources, other domains, attacked or cut texts.
"""

from __future__ import annotations

import hashlib
import importlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import PositiveInt
from transformers.utils.logging import disable_progress_bar

from baselines.detectors.sequence import TrainedDetector
from baselines.ngram import NGram
from rematch.arena import Measurement, Outcome, Task
from rematch.errors import RematchError
from rematch.play import Skip
from workflows.remodetect import evaluation
from workflows.remodetect.entries import entry_for, reference_flops
from workflows.remodetect.reward_model import load_detector
from workflows.remodetect.texts import Cell, read_cells, read_rows
from workflows.remodetect.trunk import load_trunk, new_trunk


@dataclass
class Arena:
    """Scores one detector on what an axis asks for.

    What the level is depends on the axis: ``ood`` a domain, ``data_efficiency`` triplets to train on, ``flops_matched``
    a share of what ReMoDetect's training on ``n_triplets`` costs, ``test_time_compute`` versions of a text that DetectGPT
    and its like make, ``memory_time`` words of a text, ``ablation`` triplets.

    Attributes:
        n_triplets: to train on, where the level does not say.
        resamples: versions of a text, where the level does not say.
        n_timed: texts that are timed.
        n_order: held-out triplets whose order is looked at.
    """

    METRICS: ClassVar[tuple[str, ...]] = (
        "auroc", "aupr", "tpr_at_1fpr", "roc", "control_auroc", "attacked_auroc", "attack_drop", "seen_auroc",
        "unseen_auroc", "auroc_drop", "dose_auroc", "dose_gain", "win_rate", "preference_accuracy", "order_accuracy",
        "spread_ratio", "density", "seconds_per_text", "passes_per_text", "flops_with_reward_model",
    )  # fmt: skip

    n_triplets: PositiveInt = 500
    resamples: PositiveInt = 10
    n_timed: PositiveInt = 64
    n_order: PositiveInt = 200

    def play(self, task: Task) -> Outcome:
        """Play one match for one seed. The FLOPs of the outcome are those of training, counted."""
        match = _Match(self, task)
        measurements = [found for metric in task.metrics for found in getattr(match, metric)()]
        return Outcome(
            measurements=measurements,
            flops=match.entry.train_flops,
            flops_target=match.budget,
            train_flops=match.entry.train_flops + sum(info.train_flops for info in task.base_info.values()),
            samples_seen=match.entry.samples_seen,
            tokens_seen=match.entry.tokens_seen,
            data_hash=match.data_hash,
            notes=match.entry.notes | {"pairs_without_score": sum(match.unscored.values())},
        )


class _Match:
    """One detector, prepared, and one method for each metric."""

    def __init__(self, arena: Arena, task: Task) -> None:
        self.arena, self.task = arena, task
        self.unscored: dict[tuple[Any, ...], int] = {}
        self._known: dict[str, float] = {}
        level = task.level
        resamples = int(level) if task.axis == "test_time_compute" else arena.resamples
        self.n_triplets = int(level) if task.axis in ("data_efficiency", "ablation") else arena.n_triplets
        if task.share is not None:
            self.n_triplets = max(1, round(task.share * arena.n_triplets))
        self.entry = entry_for(task, resamples)
        self.entry.prepare(self.n_triplets, self.budget)

    @cached_property
    def budget(self) -> float | None:
        """Training FLOPs that may be spent: what ReMoDetect needs for that share of ``n_triplets``, on the reference."""
        if self.task.share is None:
            return None
        assert self.task.reference is not None  # the engine gives one wherever it gives a share
        detector = load_detector(TrainedDetector(seed=self.task.seed), self.task.reference, self.task.hub)
        texts = self.task.bases["texts"]
        rows = read_rows(texts, "triplets")[: self.n_triplets]
        replay = [row["text"] for row in read_rows(texts, "replay")]
        if len(replay) < len(rows):
            raise RematchError(
                f"a budget of {len(rows)} triplets needs as many replay texts, and there are {len(replay)}"
            )
        return reference_flops(detector, rows, replay)

    # -- cells --------------------------------------------------------------------------------------------------------

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells of the level: one domain on ``ood``, else all."""
        everything = read_cells(self.task.bases["texts"])
        if self.task.axis != "ood":
            return everything
        found = [cell for cell in everything if cell.domain == self.task.level]
        if not found:
            known = ", ".join(dict.fromkeys(cell.domain for cell in everything))
            raise RematchError(f"no texts of the domain '{self.task.level}'; there are: {known}")
        return found

    @cached_property
    def main(self) -> list[Cell]:
        """What averages are over: aligned sources, neither attacked nor cut."""
        found = [cell for cell in self.cells if cell.aligned and cell.whole and not cell.dose_only]
        if not found:
            raise Skip("there is no text of an aligned source")
        return found

    @cached_property
    def seen(self) -> Cell:
        """The cell whose domain and source were trained on."""
        found = [cell for cell in self.cells if cell.seen and cell.whole]
        if not found:
            raise Skip("none of the cells was trained on")
        return found[0]

    @cached_property
    def data_hash(self) -> str:
        """Hash of every text that may be scored."""
        return hashlib.sha256((self.task.bases["texts"] / "cells.jsonl").read_bytes()).hexdigest()[:16]

    # -- scores -------------------------------------------------------------------------------------------------------

    def scores(self, texts: Iterable[str]) -> np.ndarray:
        """Scores of texts; each distinct text is scored once."""
        texts = list(texts)
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self.entry.scores(new).tolist(), strict=True))
        return np.array([self._known[text] for text in texts])

    def _score_all(self, cells: list[Cell]) -> None:
        """Score the texts of many cells in one go."""
        self.scores(text for cell in cells for text in (*cell.human, *cell.llm))

    def pair(self, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
        """Scores of human and generated texts, of the pairs in which both have one."""
        human, llm = self.scores(cell.human), self.scores(cell.llm)
        scored = np.isfinite(human) & np.isfinite(llm)
        self.unscored[cell.domain, cell.source, cell.attack, cell.words] = int((~scored).sum())
        if not scored.any():
            raise Skip(f"none of the {len(scored)} pairs of {cell.domain} {cell.source} has a score for both texts")
        return human[scored], llm[scored]

    def _items(self, cell: Cell, items: np.ndarray) -> list[float] | None:
        """Per-item scores, or None where a pair was dropped: what is left would be paired with others' other prompts."""
        return items.tolist() if len(items) == len(cell.llm) else None

    def placed(self, cell: Cell) -> np.ndarray:
        """The per-item scores behind the AUROC of a cell."""
        return evaluation.auroc_items(*self.pair(cell))

    def _mean_over(self, metric: str, cells: list[Cell]) -> Measurement:
        """The mean of the AUROCs of cells, each with the same weight.

        Items exist where all cells are of the same prompts: then it is their mean over the cells, prompt by prompt.
        """
        if not cells:
            raise Skip(f"there is no cell that {metric} could be measured on")
        self._score_all(cells)
        placed = [self.placed(cell) for cell in cells]
        value = float(np.mean([np.mean(part) for part in placed]))
        complete = all(len(part) == len(cell.llm) for cell, part in zip(cells, placed, strict=True))
        same = complete and len({(cell.domain, len(cell.llm)) for cell in cells}) == 1
        return Measurement(metric, value, items=np.mean(placed, axis=0).tolist() if same else None)

    # -- metrics: one domain ------------------------------------------------------------------------------------------

    def auroc(self) -> Iterator[Measurement]:
        """Over the aligned sources; on ``memory_time`` over the cells that are cut, at the level's words."""
        if self.task.axis == "memory_time":
            yield self._mean_over("auroc", self.cut)
            return
        self._score_all(self.main)
        yield self._mean_over("auroc", self.main)
        for cell in self.main:
            items = self.placed(cell)
            yield Measurement("auroc", float(np.mean(items)), f"source={cell.source}", self._items(cell, items))

    @cached_property
    def cut(self) -> list[Cell]:
        """The cells cut to the level's words; the level of all words is the same cells uncut."""
        words = int(self.task.level)
        found = [cell for cell in self.cells if cell.words == words]
        names = {(cell.domain, cell.source) for cell in self.cells if cell.words}
        whole = [cell for cell in self.cells if cell.whole and (cell.domain, cell.source) in names]
        if not found and all(len(text.split()) <= words for cell in whole for text in cell.llm):
            found = whole
        if not found:
            raise RematchError(f"no texts were cut to {words} words: see 'lengths' of the base 'texts'")
        return found

    def aupr(self) -> Iterator[Measurement]:
        yield Measurement("aupr", float(np.mean([evaluation.average_precision(*self.pair(c)) for c in self.main])))

    def tpr_at_1fpr(self) -> Iterator[Measurement]:
        rates = [evaluation.true_positive_rate(*self.pair(cell), 0.01) for cell in self.main]
        yield Measurement("tpr_at_1fpr", float(np.mean(rates)))

    def roc(self) -> Iterator[Measurement]:
        """The ROC curve, averaged over sources at each false positive rate; the whole value is the mean over these."""
        rates = evaluation.FALSE_POSITIVE_RATES
        curve = np.mean([evaluation.roc_at(*self.pair(cell), rates) for cell in self.main], axis=0)
        for rate, value in zip(rates, curve.tolist(), strict=True):
            yield Measurement("roc", value, f"fpr={rate:g}")
        yield Measurement("roc", float(np.mean(curve)))

    def control_auroc(self) -> Iterator[Measurement]:
        """On unaligned samples, which a detector of alignment should not tell from human text."""
        yield self._mean_over("control_auroc", [cell for cell in self.cells if not cell.aligned and cell.whole])

    def attacked_auroc(self) -> Iterator[Measurement]:
        for attack, cells in self._attacked().items():
            found = self._mean_over("attacked_auroc", cells)
            yield Measurement("attacked_auroc", found.value, f"attack={attack}", found.items)
        yield self._mean_over("attacked_auroc", [cell for cells in self._attacked().values() for cell in cells])

    def attack_drop(self) -> Iterator[Measurement]:
        """AUROC of the same texts before the attack, minus after it."""
        drops = []
        for attack, cells in self._attacked().items():
            names = {(cell.domain, cell.source) for cell in cells}
            before = [cell for cell in self.main if (cell.domain, cell.source) in names]
            drops.append(self._mean_over("auroc", before).value - self._mean_over("auroc", cells).value)
            yield Measurement("attack_drop", drops[-1], f"attack={attack}")
        yield Measurement("attack_drop", float(np.mean(drops)))

    def _attacked(self) -> dict[str, list[Cell]]:
        attacks = dict.fromkeys(cell.attack for cell in self.cells if cell.attack != "none")
        if not attacks:
            raise Skip("no texts were attacked")
        return {attack: [cell for cell in self.cells if cell.attack == attack] for attack in attacks}

    # -- metrics: all domains -----------------------------------------------------------------------------------------

    def seen_auroc(self) -> Iterator[Measurement]:
        yield self._mean_over("seen_auroc", [self.seen])

    def unseen_auroc(self) -> Iterator[Measurement]:
        yield self._mean_over("unseen_auroc", [cell for cell in self.main if not cell.seen])

    def auroc_drop(self) -> Iterator[Measurement]:
        """Seen minus unseen: what is lost where nothing was trained on."""
        seen, unseen = next(self.seen_auroc()), next(self.unseen_auroc())
        yield Measurement("auroc_drop", seen.value - unseen.value)

    # -- metrics: dose ------------------------------------------------------------------------------------------------

    @cached_property
    def _doses(self) -> dict[int, Cell]:
        """The cells of best-of-n in the seen domain, by n; 1 is the unaligned control."""
        mine = [cell for cell in self.cells if cell.domain == self.seen.domain and cell.whole]
        found = {cell.n: cell for cell in mine if cell.n is not None}
        if 1 not in found or len(found) < 2:
            raise Skip("the texts have no dose: best-of-n for several n, 1 among them")
        return found

    def dose_auroc(self) -> Iterator[Measurement]:
        values = []
        for n, cell in self._doses.items():
            items = self.placed(cell)
            values.append(float(np.mean(items)))
            yield Measurement("dose_auroc", values[-1], f"n={n}", self._items(cell, items))
        yield Measurement("dose_auroc", float(np.mean(values)))

    def dose_gain(self) -> Iterator[Measurement]:
        """AUROC at the largest n minus that of unaligned samples."""
        most, none = (self._mean_over("dose_gain", [self._doses[n]]) for n in (max(self._doses), 1))
        items = None
        if most.items is not None and none.items is not None:
            items = np.subtract(most.items, none.items).tolist()
        yield Measurement("dose_gain", most.value - none.value, items=items)

    def win_rate(self) -> Iterator[Measurement]:
        """Best-of-n against a fresh sample of the same prompt; nothing can expect more than n / (n + 1)."""
        fresh = self.scores(self._doses[1].llm)
        values = []
        for n, cell in self._doses.items():
            if n > 1:
                found = self._wins("win_rate", self.scores(cell.llm), fresh, f"n={n}")
                values.append(found.value)
                yield found
        yield Measurement("win_rate", float(np.mean(values)))

    # -- metrics: rewards ---------------------------------------------------------------------------------------------

    def preference_accuracy(self) -> Iterator[Measurement]:
        """On held-out preference pairs: what replay should keep."""
        rows = read_rows(self.task.bases["texts"], "preferences")
        if not rows:
            raise Skip("there are no held-out preference pairs")
        chosen, rejected = (self.scores(row[side] for row in rows) for side in ("chosen", "rejected"))
        yield self._wins("preference_accuracy", chosen, rejected)

    def _wins(self, metric: str, first: np.ndarray, second: np.ndarray, part: str = "") -> Measurement:
        """Share of pairs in which the first has the higher score, of the pairs in which both have one."""
        scored = np.isfinite(first) & np.isfinite(second)
        self.unscored[metric, part] = int((~scored).sum())
        if not scored.any():
            raise Skip(f"{metric}: none of the {len(scored)} pairs has a score for both texts")
        items = evaluation.wins(first[scored], second[scored])
        return Measurement(metric, float(np.mean(items)), part, items.tolist() if scored.all() else None)

    def order_accuracy(self) -> Iterator[Measurement]:
        """Share of held-out triplets with LLM over mixed over human."""
        rows = read_rows(self.task.bases["texts"], "validation")[: self.arena.n_order]
        rows = [row for row in rows if row["mixed"].get("0.5")]
        if not rows:
            raise Skip("no held-out triplet has a mixed text")
        texts = ([row["llm"] for row in rows], [row["mixed"]["0.5"] for row in rows], [row["human"] for row in rows])
        items = evaluation.ordered([self.scores(part) for part in texts])
        yield Measurement("order_accuracy", float(np.mean(items)), items=items.tolist())

    def spread_ratio(self) -> Iterator[Measurement]:
        """Standard deviation of the generated texts' scores over that of the human ones', on the seen cell."""
        human, llm = (float(np.std(scores)) for scores in self.pair(self.seen))
        if not human and llm:
            raise Skip("all human texts have the same score, and the generated ones have not")
        yield Measurement("spread_ratio", llm / human if human else 1.0)  # of no spread at all both have the same

    def density(self) -> Iterator[Measurement]:
        """Histograms of the scores on the seen cell, in standard deviations of the human ones."""
        human, llm = self.pair(self.seen)
        for name, scores in (("human", human), ("generated", llm)):
            for middle, share in evaluation.density(scores, human):
                yield Measurement("density", share, f"{name}={middle:g}")

    # -- metrics: cost ------------------------------------------------------------------------------------------------

    def seconds_per_text(self) -> Iterator[Measurement]:
        cell = self.cut[0] if self.task.axis == "memory_time" else self.seen
        texts = (cell.llm + cell.human)[: self.arena.n_timed]
        yield Measurement("seconds_per_text", self.entry.seconds(texts) / len(texts))

    def passes_per_text(self) -> Iterator[Measurement]:
        yield Measurement("passes_per_text", self.entry.passes())

    def flops_with_reward_model(self) -> Iterator[Measurement]:
        """Training FLOPs, the training of what it started from included."""
        bases = sum(info.train_flops for info in self.task.base_info.values())
        yield Measurement("flops_with_reward_model", self.entry.train_flops + bases)


@torch.no_grad()
def preload() -> None:
    """Import what matches need, load kernels, and take the first, slow steps of transformers, on models of no use.

    ReMoDetect by name: an import would make every match, those of baselines too, depend on its source.
    """
    for module in ("methods.remodetect", "sklearn.linear_model", "transformers.optimization"):
        importlib.import_module(module)
    words = NGram.fit([["a", "b", "a"]])
    ids = words.encode(["a b a"])
    words.log_probs(ids)
    words.ranked_tokens(ids)
    words.infill(ids, [np.array([False, True, False])], np.random.default_rng(0))
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = new_trunk("hashed", [], n_buckets=8, hidden_size=2, mlp_size=2)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        load_trunk(folder)[0](**tokenizer(["a b"]))
