"""How well a model knows which of its attempts are right, and what refining them does (Figures 3 and 5, Table 7)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from methods.revise.trajectories import Attempt
from rematch.errors import RematchError


def verification_score(attempt: Attempt) -> float:
    """M(E) - M(R) after a first attempt. (M(E) alone is ``attempt.confidence()``.)"""
    return attempt.standalone.end - attempt.standalone.refine


def auroc(scores: Sequence[float], right: Sequence[bool]) -> float:
    """The probability that a right attempt scores higher than a wrong one, ties a half; NaN without one of each."""
    if len(scores) != len(right):
        raise RematchError(f"auroc: {len(scores)} scores for {len(right)} attempts")
    return float(roc_auc_score(right, scores)) if len(set(map(bool, right))) == 2 else math.nan


def auroc_within(scores: Sequence[float], right: Sequence[bool], questions: Sequence[Hashable]) -> float:
    """The same over pairs of attempts at one question, each pair with equal weight; NaN without such a pair.

    The pooled one can come from knowing which questions are hard, which does not help a vote.
    """
    if not len(scores) == len(right) == len(questions):
        raise RematchError(f"auroc_within: {len(scores)} scores, {len(right)} labels, {len(questions)} questions")
    groups: dict[Hashable, list[int]] = {}
    for i, question in enumerate(questions):
        groups.setdefault(question, []).append(i)
    won, pairs = 0.0, 0
    for members in groups.values():
        labels = [bool(right[i]) for i in members]
        n_pairs = sum(labels) * (len(labels) - sum(labels))
        if n_pairs:
            won += n_pairs * auroc([scores[i] for i in members], labels)
            pairs += n_pairs
    return won / pairs if pairs else math.nan


@dataclass(frozen=True)
class Cells:
    """What became of first attempts, as shares of all questions; the four refined cells and the two kept ones add up to 1."""

    right_to_right: float
    right_to_wrong: float
    wrong_to_right: float
    wrong_to_wrong: float
    kept_right: float
    kept_wrong: float

    @property
    def refine_rate(self) -> float:
        """P(R)."""
        return self.right_to_right + self.right_to_wrong + self.wrong_to_right + self.wrong_to_wrong

    @property
    def first_accuracy(self) -> float:
        """acc(First)."""
        return self.kept_right + self.right_to_right + self.right_to_wrong

    @property
    def accuracy(self) -> float:
        """acc(First) - P(R and first right) + P(R and last right)."""
        refined_right = self.right_to_right + self.wrong_to_right
        return self.first_accuracy - (self.right_to_right + self.right_to_wrong) + refined_right

    @property
    def note(self) -> str:
        """What to say beside a table where nothing, or everything, was refined; empty else."""
        return {0.0: "never refines", 1.0: "always refines"}.get(round(self.refine_rate, 12), "")


def cells(first_right: Sequence[bool], refined: Sequence[bool], last_right: Sequence[bool]) -> Cells:
    """Count questions by whether their first attempt is right, whether it was refined (or retried), and how that ended.

    Args:
        last_right: of an attempt that was not refined: as ``first_right``.
    """
    first, again, last = (np.asarray(values, bool) for values in (first_right, refined, last_right))
    if not len(first) == len(again) == len(last) or not len(first):
        raise RematchError(f"cells: needs three labels of every question, got {len(first)}, {len(again)}, {len(last)}")
    if (first != last)[~again].any():
        raise RematchError("cells: an answer that was not refined cannot have changed")

    def share(*conditions: np.ndarray) -> float:
        return float(np.logical_and.reduce(conditions).mean())

    return Cells(
        right_to_right=share(again, first, last),
        right_to_wrong=share(again, first, ~last),
        wrong_to_right=share(again, ~first, last),
        wrong_to_wrong=share(again, ~first, ~last),
        kept_right=share(~again, first),
        kept_wrong=share(~again, ~first),
    )
