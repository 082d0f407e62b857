"""ReVISE's loss: a preference between ending and refining, and the likelihood of the preferred continuation (section 3.3).

L_SFT  = - mean over the counted tokens of a batch of log M(token)
r(c)   = beta * (log M(c | context) - log M_ref(c | context))
L_pref = - mean over rows of log sigmoid(r(chosen) - r(rejected))
L      = w_pref * L_pref + w_sft * L_SFT

What chosen and rejected share cancels in r(chosen) - r(rejected), and in every pair of the method one of them ends with the first
token that differs: one forward pass a row, which is exact (``baselines.post_training.batches``). Of the reference model all
that matters is log M_ref(chosen) - log M_ref(rejected), a number a row, computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pydantic import NonNegativeFloat
from torch import Tensor

from baselines.post_training.batches import Batch, Encoded, Ids, Pair, encode_pair
from baselines.post_training.objectives import Data, Preferences, Totals, digest_of, dpo_loss, sft_loss
from rematch.errors import RematchError

BETA = 0.1
"""TRL's default, which the official code leaves alone; the paper gives none."""


@dataclass(frozen=True)
class LossWeights:
    """w_pref and w_sft."""

    preference: NonNegativeFloat = 1.0
    sft: NonNegativeFloat = 0.1

    def __post_init__(self) -> None:
        if not all(math.isfinite(w) and w >= 0 for w in (self.preference, self.sft)) or not self.preference + self.sft:
            raise RematchError(
                f"the weights of ReVISE's loss must not be negative, and not both 0; got {self.preference} and {self.sft}"
            )


OFFICIAL = LossWeights(1.0, 0.1)
"""The official code, and the paper's appendix."""

TEXT = LossWeights(0.1, 1.0)
"""The formula of the paper's main text, L_SFT + lambda * L_pref with lambda = 0.1."""

SFT_ONLY = LossWeights(0.0, 1.0)
"""The ablation of Figure 4: without preferences."""


def sft_mask(chosen: Ids, refine: int) -> list[bool]:
    """Which tokens of a chosen continuation L_SFT counts: from its last R on, all where it has none (official code)."""
    last = max((i for i, token in enumerate(chosen) if token == refine), default=0)
    return [i >= last for i in range(len(chosen))]


class ReviseObjective:
    """L over preference pairs.

    Args:
        reference: log M_ref(chosen | context) - log M_ref(rejected | context), (n,); may be None where w_pref = 0.
        refine: id of R.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        reference: Tensor | None,
        refine: int,
        weights: LossWeights = OFFICIAL,
        beta: float = BETA,
    ) -> None:
        if beta <= 0:
            raise RematchError(f"ReVISE: beta must be positive, not {beta}")
        if weights.preference and (reference is None or len(reference) != len(pairs)):
            raise RematchError(f"ReVISE: the preference loss needs a reference margin for each of {len(pairs)} pairs")
        self.rows: Sequence[Encoded] = [encode_pair(pair, lambda chosen: sft_mask(chosen, refine)) for pair in pairs]
        self.pairs, self.reference, self.refine = pairs, reference, refine
        self.weights, self.beta = weights, beta

    @cached_property
    def data(self) -> Data:
        """For TRL, whose likelihood takes all tokens of a chosen continuation: wrong attempts stand in the context.

        Raises:
            RematchError: L_SFT leaves out some of a chosen continuation.
        """
        for pair in self.pairs:
            if not all(sft_mask(pair.chosen, self.refine)):
                raise RematchError(
                    f"ReVISE: TRL counts all of a chosen continuation, and of {pair.chosen} only what begins with the last R "
                    "counts: put what stands before it into the context, or train with trainer: own"
                )
        reference = [0.0] * len(self.pairs) if self.reference is None else self.reference.tolist()
        return Preferences(self.pairs, reference, self.beta, (self.weights.preference, self.weights.sft))

    @cached_property
    def digest(self) -> str:
        """Of pairs, reference, weights and beta."""
        return digest_of(self.rows, self.reference, (self.weights.preference, self.weights.sft, self.beta))

    def loss(self, log_probs: Tensor, batch: Batch, indices: Tensor, totals: Totals) -> Tensor:
        """L of a batch's share in its step."""
        loss = self.weights.sft * sft_loss(log_probs, batch, totals.counted)
        if self.reference is None or not self.weights.preference:
            return loss
        reference = self.reference[indices].to(log_probs)
        return loss + self.weights.preference * dpo_loss(batch.margins(log_probs), reference, self.beta, totals.rows)
