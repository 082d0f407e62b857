"""Votes between a question's answers, weighted by what the model thinks of them (the paper's confidence-aware voting)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import numpy as np

from baselines.post_training.answers import weighted_vote
from methods.revise.trajectories import Attempt, ConfidenceContext
from rematch.errors import RematchError, unknown

Vote = Literal["weighted", "plain", "answer_likelihood", "mean_likelihood", "random", "shuffled"]

_WEIGHTS: dict[str, Callable[[Sequence[Attempt], ConfidenceContext, np.random.Generator], Sequence[float]]] = {
    "weighted": lambda attempts, context, rng: [a.confidence(context) for a in attempts],
    "plain": lambda attempts, context, rng: [1.0] * len(attempts),
    "answer_likelihood": lambda attempts, context, rng: _exp([a.log_prob for a in attempts]),
    "mean_likelihood": lambda attempts, context, rng: _exp([a.log_prob / max(1, len(a.ids)) for a in attempts]),
    "random": lambda attempts, context, rng: rng.random(len(attempts)).tolist(),
    "shuffled": lambda attempts, context, rng: rng.permutation([a.confidence(context) for a in attempts]).tolist(),
}
VOTES = tuple(_WEIGHTS)


def voted_answer(
    attempts: Sequence[Attempt],
    answers: Sequence[Hashable | None],
    rule: Vote = "weighted",
    conf_context: ConfidenceContext = "standalone",
    rng: np.random.Generator | None = None,
) -> Hashable | None:
    """y* = the answer with the largest sum of weights; ties go to the one seen first, unparsable answers have no vote.

    Args:
        attempts: the last attempts of a question's trajectories.
        answers: theirs, None for unparsable ones.
        rule: the weight of an answer: ``weighted`` c = M(E | attempt, x); ``plain`` 1; ``answer_likelihood`` the attempt's
            probability; ``mean_likelihood`` the same for each token. Negative controls: ``random``, and ``shuffled``, the
            confidences dealt out anew among the answers.
        conf_context: where c is read: after x ⊕ attempt alone, or in the trajectory, where a second attempt is followed by
            E nearly always.
        rng: of the negative controls, which need it.
    """
    if rule not in VOTES:
        raise unknown("vote", rule, VOTES, "voted_answer")
    if rng is None and rule in ("random", "shuffled"):
        raise RematchError(f"voted_answer: '{rule}' draws at random, so it needs an rng")
    voters = [(attempt, answer) for attempt, answer in zip(attempts, answers, strict=True) if answer is not None]
    weights = _WEIGHTS[rule]([attempt for attempt, _ in voters], conf_context, rng or np.random.default_rng(0))
    return weighted_vote([answer for _, answer in voters], weights)


def _exp(logs: Sequence[float]) -> list[float]:
    """Proportional to exp(logs): long attempts' probabilities are too small for a float."""
    return [math.exp(log - max(logs)) for log in logs]
