"""ReMoDetect's loss: Bradley-Terry terms that order LLM over mixed over human text, and a replay penalty.

The paper (its equations for L_RM, L_cont and the total) and its official code differ in the weights, in a score-size
penalty, in dividing by the three pairs, and in how the replay is reduced. Both are presets of one function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LossWeights:
    """The terms of the loss and their weights.

    Attributes:
        beta1: of the pair mixed over human.
        beta2: of the pair LLM over mixed. The pair LLM over human has weight 1.
        lam: of the replay penalty, the squared distance from the frozen model's scores.
        score_penalty: of (r_w^2 + r_l^2) / 2 in every pair (official code only).
        normalise: ``sum`` adds the three pairs; ``mean3`` divides their sum, not the replay, by 3 (official code).
        replay_reduction: over the batch: ``mean`` or ``sum`` (official code); alike for one text a step.
    """

    beta1: float = 0.3
    beta2: float = 0.3
    lam: float = 0.01
    score_penalty: float = 0.0
    normalise: Literal["sum", "mean3"] = "sum"
    replay_reduction: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2", "lam", "score_penalty"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must not be negative, not {value!r}")
        if self.normalise not in ("sum", "mean3"):
            raise ValueError(f"normalise must be one of sum, mean3, not {self.normalise!r}")
        if self.replay_reduction not in ("mean", "sum"):
            raise ValueError(f"replay_reduction must be one of mean, sum, not {self.replay_reduction!r}")

    @property
    def reads_mixed(self) -> bool:
        """Whether the loss depends on mixed texts."""
        return self.beta1 > 0 or self.beta2 > 0

    @property
    def reads_replay(self) -> bool:
        """Whether the loss depends on replay texts and on the frozen model."""
        return self.lam > 0


PAPER = LossWeights()
"""The paper's text, its "l2 distance" read as the squared difference."""

OFFICIAL = LossWeights(beta1=0.35, beta2=0.35, lam=0.01, score_penalty=0.01, normalise="mean3", replay_reduction="sum")
"""The official code with the weights of its launch script. Relative to the pairs its replay weighs 3 times the paper's."""


def bradley_terry(r_winner: Tensor, r_loser: Tensor) -> Tensor:
    """-ln sigma(r_winner - r_loser), elementwise: ln 2 for equal rewards. Finite for any finite rewards."""
    return F.softplus(r_loser - r_winner)


def remodetect_loss(
    r_llm: Tensor,
    r_human: Tensor,
    r_mixed: Tensor | None = None,
    r_replay: Tensor | None = None,
    teacher_replay: Tensor | None = None,
    *,
    mixed_rows: Tensor | None = None,
    weights: LossWeights = PAPER,
) -> Tensor:
    """The training loss of a batch of B triplets and R replay texts, a scalar.

    A triplet without a mixed text (one-sentence human texts have none) keeps its LLM/human term and lacks the two
    others. Every pair's mean is taken over all B triplets, a lacking term counting 0: a batch's loss is the mean of
    what its triplets' losses are one by one, whichever of them share a batch. ``mean3`` divides by 3 in any case.

    Args:
        r_llm, r_human: rewards (B,).
        r_mixed: rewards (M,) of the mixed texts there are, M <= B; not read, and not needed, where beta1 = beta2 = 0.
        r_replay: rewards (R,) of the replay texts; neither read nor needed where lam = 0, like the next.
        teacher_replay: the frozen initial model's rewards (R,) of the same texts.
        mixed_rows: (M,) which triplets the mixed texts belong to; all of them, in order, where None.
    """
    n = len(r_llm)

    def pair(r_winner: Tensor, r_loser: Tensor) -> Tensor:
        terms = bradley_terry(r_winner, r_loser)
        if weights.score_penalty:
            terms = terms + weights.score_penalty * 0.5 * (r_winner**2 + r_loser**2)
        return terms.sum() / n

    loss = pair(r_llm, r_human)
    if weights.reads_mixed:
        if r_mixed is None:
            raise ValueError("r_mixed is needed unless beta1 = beta2 = 0")
        rows = torch.arange(n, device=r_llm.device) if mixed_rows is None else mixed_rows
        if len(rows) != len(r_mixed):
            raise ValueError(f"{len(r_mixed)} mixed rewards for {len(rows)} triplets: give mixed_rows")
        if len(rows):
            loss = loss + weights.beta1 * pair(r_mixed, r_human[rows]) + weights.beta2 * pair(r_llm[rows], r_mixed)
    if weights.normalise == "mean3":
        loss = loss / 3
    if weights.reads_replay:
        if r_replay is None or teacher_replay is None:
            raise ValueError("r_replay and teacher_replay are needed unless lam = 0")
        distance = (r_replay - teacher_replay) ** 2
        loss = loss + weights.lam * (distance.mean() if weights.replay_reduction == "mean" else distance.sum())
    return loss
