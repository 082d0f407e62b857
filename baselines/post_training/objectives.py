"""What post-training minimises: the likelihood of tokens (SFT), preferences (DPO), or both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.post_training.batches import (
    Batch,
    Encoded,
    Example,
    Pair,
    collate,
    encode_example,
    encode_pair,
    shape_of,
)
from baselines.sampling import context_length
from baselines.transformer_flops import transformer_flops
from rematch.errors import RematchError


class Totals(NamedTuple):
    """What the means of a step's loss are taken over: its rows, and its tokens whose likelihood counts."""

    rows: int
    counted: int


@dataclass(frozen=True)
class Preferences:
    """Pairs, and all that makes their loss, for trainers that make it themselves.

    w_pref * DPO + w_sft * (mean negative log-likelihood of all tokens of the chosen continuations).

    Attributes:
        reference: the reference model's margins, of ``reference_margins``, a number a pair.
        beta: of DPO.
        weights: w_pref, w_sft.
    """

    pairs: Sequence[Pair]
    reference: Sequence[float]
    beta: float
    weights: tuple[float, float] = (1.0, 0.0)


Data = Sequence[Example] | Preferences
"""What is learned from: examples to imitate, or preferences."""


class Objective(Protocol):
    """A loss over encoded rows."""

    @property
    def rows(self) -> Sequence[Encoded]:
        """All of them, in the order of the indices by which ``loss`` knows them."""
        ...

    @property
    def data(self) -> Data:
        """The same rows before they were encoded, in the same order, for TRL."""
        ...

    @property
    def digest(self) -> str:
        """Of rows and settings: what tells a run that minimises it from others (``digest_of``)."""
        ...

    def loss(self, log_probs: Tensor, batch: Batch, indices: Tensor, totals: Totals) -> Tensor:
        """The share of a batch in its step's loss, a scalar.

        Args:
            log_probs: (T,) of ``batch``.
            batch: of the rows ``indices`` (n,).
            totals: of the step, which may be taken in several batches.
        """
        ...


def digest_of(rows: Sequence[Encoded], reference: Tensor | None = None, settings: Sequence[float] = ()) -> str:
    """The SHA-256 of an objective: its rows, the reference model's margins, and numbers such as weights."""
    digest = hashlib.sha256(repr((len(rows), tuple(settings))).encode())
    for row in rows:
        digest.update(repr([len(ids) for ids in row.sequences]).encode())
        digest.update(np.concatenate([np.array(ids, np.int64) for ids in row.sequences]).tobytes())
        digest.update(row.reads.tobytes())
    if reference is not None:
        digest.update(reference.detach().double().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def sft_loss(log_probs: Tensor, batch: Batch, n_counted: int) -> Tensor:
    """L_SFT: the mean over all counted tokens, not over rows, of -log M(token)."""
    return -log_probs[batch.counted].sum() / max(1, n_counted)


def dpo_loss(margins: Tensor, reference: Tensor, beta: float, n_rows: int) -> Tensor:
    """-log sigmoid(beta * (margin - reference margin)), the mean over rows (Rafailov et al., 2023).

    Args:
        margins: log M(chosen) - log M(rejected), (n,).
        reference: the same of the reference model.
    """
    return F.softplus(-beta * (margins - reference)).sum() / n_rows


class SFTObjective:
    """Imitate the targets of examples."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.rows: Sequence[Encoded] = [encode_example(example) for example in examples]
        self.data: Data = examples

    @cached_property
    def digest(self) -> str:
        """Of the examples."""
        return digest_of(self.rows)

    def loss(self, log_probs: Tensor, batch: Batch, indices: Tensor, totals: Totals) -> Tensor:
        """L_SFT."""
        return sft_loss(log_probs, batch, totals.counted)


class DPOObjective:
    """Prefer the chosen continuations of pairs, relative to a reference model.

    Args:
        reference: the reference model's margins, (n,), of ``reference_margins``.
        beta: 0.1 is TRL's default.
    """

    def __init__(self, pairs: Sequence[Pair], reference: Tensor, beta: float = 0.1) -> None:
        if beta <= 0:
            raise RematchError(f"DPO: beta must be positive, not {beta}")
        self.rows: Sequence[Encoded] = [encode_pair(pair) for pair in pairs]
        self.reference, self.beta = reference, beta
        self.data: Data = Preferences(pairs, reference.tolist(), beta)

    @cached_property
    def digest(self) -> str:
        """Of pairs, reference and beta."""
        return digest_of(self.rows, self.reference, (self.beta,))

    def loss(self, log_probs: Tensor, batch: Batch, indices: Tensor, totals: Totals) -> Tensor:
        """The DPO loss."""
        reference = self.reference[indices].to(log_probs)
        return dpo_loss(batch.margins(log_probs), reference, self.beta, totals.rows)


def check_lengths(model: Any, rows: Sequence[Encoded]) -> None:
    """Raise RematchError where a row is longer than the model's context."""
    limit = context_length(model)
    longest = max((row.length for row in rows), default=0)
    if limit is not None and longest > limit:
        raise RematchError(f"a row has {longest} tokens, and the model reads {limit} at most: leave such rows out")


# -- without gradients ------------------------------------------------------------------------------------------------


def reference_margins(model: Any, pairs: Sequence[Pair], batch_size: int = 128) -> tuple[Tensor, int]:
    """log M(chosen | context) - log M(rejected | context) of every pair, (n,) float64, and the FLOPs that it took.

    All that a preference loss needs of its reference model.
    """
    return _read(model, [encode_pair(pair) for pair in pairs], Batch.margins, batch_size)


def log_likelihoods(model: Any, examples: Sequence[Example], batch_size: int = 128) -> tuple[Tensor, int]:
    """log M(target | context) of every example, (n,) float64, and the FLOPs that it took."""
    return _read(model, [encode_example(example) for example in examples], Batch.likelihoods, batch_size)


@torch.no_grad()
def _read(
    model: Any, rows: Sequence[Encoded], reduce: Callable[[Batch, Tensor], Tensor], batch_size: int
) -> tuple[Tensor, int]:
    """A number a row, (n,) on the CPU, in evaluation mode; the model's mode is put back."""
    check_lengths(model, rows)
    costs, flops, values = transformer_flops(model), 0, torch.zeros(len(rows), dtype=torch.float64)
    was_training = model.training
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: -rows[i].length)
    for first in range(0, len(order), batch_size):
        part = order[first : first + batch_size]
        chosen = [rows[i] for i in part]
        batch = collate(chosen, model.device)
        values[part] = reduce(batch, batch.log_probs(model)).double().cpu()
        n_sequences, length, n_logits = shape_of(chosen)
        flops += costs.forward(n_sequences, length, None, n_logits)
    model.train(was_training)
    return values, flops
