"""Back-propagation dropout: only some documents of a step carry a gradient (the paper's memory saver for training).

The others are amortized without keeping anything for the backward pass, so that a step's memory can hold more documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from methods.mac.batches import Batch
from rematch.errors import RematchError, unknown


@dataclass(frozen=True)
class GradientMask:
    """Which documents of a step carry a gradient into the amortizer.

    Attributes:
        carries: (K,) bool.
        asks: (K,) bool, the documents whose questions enter the loss; None for all.
        scale: what the gradient into the amortizer is multiplied by.
    """

    carries: Tensor
    asks: Tensor | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class BackpropDropout:
    """Amortize only some documents of a step with gradient; the others cost no memory for backward.

    Attributes:
        p: share of the documents without gradient, 0 <= p < 1. p = 1 - 1/K leaves one with gradient.
        mode: ``prefix`` (official code): the first (1 - p) K documents carry gradient, and only their questions enter the
            loss; the others are distractors. The official code makes the batch 1 / (1 - p) times as large, so that as many
            questions are asked as without: give the step as many more documents. ``bernoulli`` (text): each document is
            without gradient with probability p, independently; all questions enter the loss.
        rescale: divide the amortizer's gradient by the share with gradient. Without (paper and official code) its
            expectation is (1 - p) times the full gradient's; the other networks' gradients are exact either way.
    """

    p: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mode: Literal["prefix", "bernoulli"] = "prefix"
    rescale: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.p < 1:
            raise RematchError(f"bp_dropout: p must lie in [0, 1), not {self.p}")
        if self.mode not in ("prefix", "bernoulli"):
            raise unknown("mode", self.mode, ("prefix", "bernoulli"), "bp_dropout")

    def draw(self, n_documents: int, generator: torch.Generator | None = None) -> GradientMask | None:
        """The mask of a step with K documents; None for none (p = 0)."""
        if self.p == 0:
            return None
        if self.mode == "bernoulli":
            carries = torch.rand(n_documents, generator=generator) >= self.p
            return GradientMask(carries, scale=1 / (1 - self.p) if self.rescale else 1.0)
        n = max(1, round((1 - self.p) * n_documents))
        carries = torch.arange(n_documents) < n
        return GradientMask(carries, asks=carries, scale=n_documents / n if self.rescale else 1.0)


def amortize_in_parts(amortize: Callable[[Tensor, Tensor], Tensor], batch: Batch, mask: GradientMask | None) -> Tensor:
    """Entries (K, T, d) of a batch's documents, those outside the mask under stop-gradient."""
    if mask is None:
        return amortize(batch.documents, batch.documents_mask)
    carries = mask.carries.to(batch.documents.device)
    parts = []
    for rows, graded in ((carries.nonzero().flatten(), True), ((~carries).nonzero().flatten(), False)):
        if len(rows):
            with torch.set_grad_enabled(graded and torch.is_grad_enabled()):
                part = amortize(batch.documents[rows], batch.documents_mask[rows])
            if graded and mask.scale != 1 and part.requires_grad:
                part.register_hook(lambda gradient: gradient * mask.scale)
            parts.append((rows, part))
    order = torch.cat([rows for rows, _ in parts]).argsort()
    return torch.cat([part for _, part in parts])[order]
