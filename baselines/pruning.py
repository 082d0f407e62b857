"""Token pruning in a stack of blocks: which context tokens stay, and the criteria that are nobody's own.

Widths shrink on the way up: W is the current number of columns of the context. Rows of a batch may hold different
numbers of real tokens; the padding of the shorter ones stays on the left, masked.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from baselines.mamba import Trace


@dataclass(frozen=True)
class Tokens:
    """The tokens that a layer reads: a context, then ``n_protected`` tokens of the continuation.

    Attributes:
        hidden: their residual stream, (batch, W + n_protected, d_model).
        positions: the column of the input that each came from, (batch, W + n_protected).
        mask: True for real tokens, of the same shape, or None where all are.
    """

    hidden: Tensor
    positions: Tensor
    mask: Tensor | None
    n_protected: int

    @property
    def width(self) -> int:
        """Columns of the context, W."""
        return self.positions.shape[1] - self.n_protected

    @property
    def context_mask(self) -> Tensor | None:
        """The mask of the context, (batch, W), or None."""
        return None if self.mask is None else self.mask[:, : self.width]

    def put(self, tokens: Tokens) -> Tokens:
        """These tokens, where ``tokens`` are some of them with a newer residual stream."""
        hidden = tokens.hidden
        if tokens.mask is not None:
            hidden = torch.where(tokens.mask[:, :, None], hidden, _take(self.hidden, tokens.positions))
        places = tokens.positions[:, :, None].expand_as(hidden)
        return replace(self, hidden=self.hidden.scatter(1, places, hidden))

    def keep(self, kept: Tensor, counts: list[int], hidden: Tensor | None = None) -> Tokens:
        """These tokens less those context tokens that ``kept`` (batch, W) leaves out, in the original order.

        Args:
            counts: kept tokens of each row; the longest row sets the new width, the others are padded on the left.
            hidden: taken instead of ``self.hidden``.
        """
        kept = torch.cat([kept, kept.new_ones(kept.shape[0], self.n_protected)], dim=1)
        width = max(counts) + self.n_protected
        # Sorted stably, the kept columns come last and in order; before them, others stand in as padding.
        columns = kept.long().argsort(dim=1, stable=True)[:, -width:]
        hidden = self.hidden if hidden is None else hidden
        return Tokens(
            hidden=_take(hidden, columns),
            positions=self.positions.gather(1, columns),
            mask=None if min(counts) == max(counts) else kept.gather(1, columns),
            n_protected=self.n_protected,
        )


def _take(hidden: Tensor, columns: Tensor) -> Tensor:
    """The given columns (batch, n) of (batch, length, d_model). Whole rows are copied, which ``gather`` does not do."""
    batch, length, width = hidden.shape
    rows = torch.arange(batch, device=hidden.device)[:, None] * length + columns
    return hidden.reshape(-1, width).index_select(0, rows.flatten()).view(batch, -1, width)


def keep_top(scores: Tensor, counts: list[int], mask: Tensor | None = None) -> Tensor:
    """Which context tokens stay: the last one, and those of highest score; of equal ones the earlier.

    Args:
        scores: (batch, W), higher is more worth keeping.
        counts: how many tokens of each row stay, at least 1 and at most its real ones.
        mask: (batch, W), False for padding, which is never kept.

    Returns:
        (batch, W), boolean, with exactly ``counts`` True in each row.
    """
    limit = torch.finfo(torch.float32).max
    scores = scores.float().nan_to_num(nan=-limit, posinf=limit, neginf=-limit)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    scores[:, -1] = torch.inf
    order = scores.argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(scores.shape[1], device=scores.device) < torch.tensor(counts, device=scores.device)[:, None]
    return torch.zeros_like(chosen).scatter(1, order, chosen)


def merge_into_next(tokens: Tokens, kept: Tensor) -> Tensor:
    """The residual stream with that of each dropped context token added to its next kept neighbour."""
    real = torch.ones_like(kept) if tokens.context_mask is None else tokens.context_mask
    order = kept.long().cumsum(dim=1) - kept.long()  # kept tokens before this one: the rank of the next kept
    ranked = kept.long().argsort(dim=1, descending=True, stable=True)
    target = ranked.gather(1, order.clamp(max=kept.shape[1] - 1))
    context = tokens.hidden[:, : tokens.width]
    dropped = torch.where((real & ~kept)[:, :, None], context, 0)
    merged = context.scatter_add(1, target[:, :, None].expand_as(context), dropped)
    return torch.cat([merged, tokens.hidden[:, tokens.width :]], dim=1)


def random_scores(input_ids: Tensor, mask: Tensor | None, seed: int) -> Tensor:
    """Random scores (batch, W) in [0, 1), drawn for each row from the seed and its own real tokens.

    So they depend neither on the other rows of a batch nor on padding.
    """
    scores = torch.zeros(input_ids.shape)
    for row, ids in enumerate(input_ids.cpu()):
        real = ids if mask is None else ids[mask[row].cpu()]
        content = zlib.crc32(real.to(torch.int64).numpy().tobytes(), seed & 0xFFFFFFFF)
        generator = torch.Generator().manual_seed(content)
        scores[row, len(ids) - len(real) :] = torch.rand(len(real), generator=generator)
    return scores.to(input_ids.device)


def first(trace: Trace, length: int) -> Trace:
    """The trace of the first tokens only."""
    x, dt, A, B, C, z = trace
    return Trace(x[:, :length], dt[:, :length], A, B[:, :length], C[:, :length], z[:, :length])


def step_size(trace: Trace) -> Tensor:
    """Mean step size dt over channels: how much a token overwrites the state. (batch, length)."""
    return trace.dt.float().mean(-1)


def input_norm(trace: Trace) -> Tensor:
    """Euclidean norm of the recurrence's input x. (batch, length)."""
    return trace.x.float().norm(dim=-1)


def local_impact(trace: Trace) -> Tensor:
    """What a token adds to the output at its own position, per channel: <C_t, B_t> dt_t x_t. (batch, length, E)."""
    return readout(trace, trace.C) * trace.x.float()


def readout(trace: Trace, C: Tensor) -> Tensor:
    """<C, B_t> dt_t per channel, (batch, length, E), for C of the shape of B, or of length 1 to broadcast.

    For Mamba-2, B and C are those of the channel's group and dt is that of its head.
    """
    product = (C.float() * trace.B.float()).sum(-1)
    if trace.A.dim() == 2:
        return product[:, :, None] * trace.dt.float()
    heads = trace.dt.shape[-1]
    per_head = product.repeat_interleave(heads // product.shape[-1], dim=-1) * trace.dt.float()
    return per_head.repeat_interleave(trace.x.shape[-1] // heads, dim=-1)
