"""Questions to modulations: cross-attention of each question's vectors over all vectors of the memory bank.

Nothing tells documents or positions apart but their content, so the result does not depend on the order of the bank
(the paper's aggregation network; layers after the official code).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rematch.errors import RematchError

ROWS_AT_ONCE = 2**12
"""Rows of the bank that are projected at a time where no gradient is needed: bounds memory, whatever the bank's size."""

SCORES_AT_ONCE = 2**18
"""Attention scores computed at a time in such a part: as many as stay in the cache."""


GROUP_ROWS = 64
"""Rows of the bank in the groups that are aggregated at a time, hierarchically; one group at least."""


class CrossAttentionBlock(nn.Module):
    """z + Attn(LN(z), LN(memory)), then z + FFN(LN(z)); no dropout.

    Args:
        width: d, of queries and memory.
        n_heads, head_dim: of the attention; queries, keys and values have no bias.
    """

    def __init__(self, width: int, n_heads: int, head_dim: int) -> None:
        super().__init__()
        inner = n_heads * head_dim
        self.n_heads, self.head_dim = n_heads, head_dim
        self.query_norm, self.memory_norm, self.ffn_norm = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, width)
        self.ffn = nn.Sequential(nn.Linear(width, min(width, inner)), nn.GELU(), nn.Linear(min(width, inner), width))

    def forward(self, z: Tensor, memory: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        """(batch, n, d) queries and (batch, rows, d) memory -> (batch, n, d).

        Args:
            weights: if given, the attention weights (batch, heads, n, rows) are appended to it.
        """
        query = self._heads(self.query(self.query_norm(z)))
        if weights is not None:
            key, value = self._key_value(memory, z)
            scores = query @ key.transpose(-1, -2) / math.sqrt(self.head_dim)
            weights.append(scores.softmax(-1))
            attended = weights[-1] @ value
        elif torch.is_grad_enabled() or memory.shape[1] <= ROWS_AT_ONCE:
            attended = F.scaled_dot_product_attention(query, *self._key_value(memory, z))
        else:
            attended = self._streamed(query, memory, z)
        z = z + self.out(attended.transpose(1, 2).flatten(2))
        return z + self.ffn(self.ffn_norm(z))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2)

    def _key_value(self, memory: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.memory_norm(memory.to(like))
        return self._heads(self.key(normed)), self._heads(self.value(normed))

    def _streamed(self, query: Tensor, memory: Tensor, like: Tensor) -> Tensor:
        """Attention over the memory part by part, with a running softmax: no copy or projection of the whole bank."""
        step = min(ROWS_AT_ONCE, max(64, SCORES_AT_ONCE // math.prod(query.shape[:-1])))
        top = query.new_full((*query.shape[:-1], 1), -math.inf)
        total, mixed = torch.zeros_like(top), torch.zeros_like(query)
        for start in range(0, memory.shape[1], step):
            key, value = self._key_value(memory[:, start : start + step], like)
            scores = query @ key.transpose(-1, -2) / math.sqrt(self.head_dim)
            higher = torch.maximum(top, scores.amax(-1, keepdim=True))
            shrink = (top - higher).exp()
            scores = scores.sub_(higher).exp_()
            total = total * shrink + scores.sum(-1, keepdim=True)
            mixed = mixed * shrink + scores @ value
            top = higher
        return mixed / total


class Aggregator(nn.Module):
    """Blocks of cross-attention; the memory stays as it is, only the question's vectors change.

    Args:
        width: d.
        n_blocks, n_heads, head_dim: 4, 8 and 96 in the paper, whatever the width.
        equal_query_key: start with the same map for queries and keys, so that a question attends to what resembles it
            from the first step. Not the paper's.
    """

    def __init__(
        self, width: int, n_blocks: int = 4, n_heads: int = 8, head_dim: int = 96, equal_query_key: bool = False
    ) -> None:
        super().__init__()
        blocks = [CrossAttentionBlock(width, n_heads, head_dim) for _ in range(n_blocks)]
        if equal_query_key:
            for block in blocks:
                block.key.load_state_dict(block.query.state_dict())
        self.blocks = nn.ModuleList(blocks)

    def forward(self, z: Tensor, bank: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        """Modulations (N, T, d) of questions z (N, T, d).

        Args:
            bank: (K, T', d), the same for all questions, or (N, K, T', d), one for each.
            weights: if given, each block's attention weights (N, heads, T, K * T') are appended to it.
        """
        n, t, d = z.shape
        shared = bank.dim() == 3
        # Questions that share a bank are rows of one attention: the bank is projected once, not once a question.
        found = z.reshape(1, n * t, d) if shared else z
        memory = bank.reshape(1 if shared else n, -1, d)
        kept: list[Tensor] | None = None if weights is None else []
        for block in self.blocks:
            found = block(found, memory, kept)
        if weights is not None and kept is not None:
            weights += [w.squeeze(0).unflatten(1, (n, t)).transpose(0, 1) if shared else w for w in kept]
        return found.reshape(n, t, d)

    def side_by_side(self, z: Tensor, banks: Tensor, which: Tensor) -> Tensor:
        """Modulations (N, T, d) of questions that look at one of several memories.

        Args:
            z: (N, T, d).
            banks: (G, K, T, d).
            which: (N,) int64, the memory of each question.
        """
        n_each = torch.bincount(which, minlength=len(banks))
        order = which.argsort(stable=True)
        place = torch.empty_like(which)
        place[order] = torch.arange(len(which), device=z.device) - (n_each.cumsum(0) - n_each)[which[order]]
        rows = z.new_zeros(len(banks), int(n_each.max()), *z.shape[1:]).index_put((which, place), z)
        found, memory = rows.flatten(1, 2), banks.flatten(1, 2)
        for block in self.blocks:
            found = block(found, memory)
        return found.unflatten(1, rows.shape[1:3])[which, place]

    def hierarchical(self, z: Tensor, bank: Tensor, group_size: int) -> Tensor:
        """Modulations (N, T, d) by aggregating groups of the bank's entries, then groups of the results, and so on.

        ``while len(bank) > M: bank = [aggregate(z, group) for each M of the bank]``, then once more over what is left;
        each question has results of its own. A group is M *documents* (the paper's text says tokens; the
        official code groups documents, but loops over the wrong length and so sees only the first of them). Results are
        computed depth first: besides the bank no more than M of them are held at each height.

        Args:
            z: (N, T, d).
            bank: (K, T, d).
            group_size: M >= 2. With M >= K this is full aggregation.

        Raises:
            RematchError: M < 2, with which it would never end.
        """
        if group_size < 2:
            raise RematchError(f"hierarchical aggregation needs group_size >= 2 documents, not {group_size}")
        height, n_left = 0, len(bank)
        while n_left > group_size:
            height, n_left = height + 1, -(-n_left // group_size)
        if height == 0:
            return self(z, bank)
        return self(z, self._reduced(z, bank, group_size, height))

    def _reduced(self, z: Tensor, bank: Tensor, group_size: int, height: int) -> Tensor:
        """The bank (at most M ** (height + 1) entries) after ``height`` rounds: (N, at most M, T, d)."""
        if height == 1:
            at_once = max(1, GROUP_ROWS // (group_size * bank.shape[1])) * group_size
            return torch.cat([self._grouped(z, part, group_size) for part in bank.split(at_once)], dim=1)
        parts = bank.split(group_size**height)
        return torch.stack([self(z, self._reduced(z, part, group_size, height - 1)) for part in parts], dim=1)

    def _grouped(self, z: Tensor, bank: Tensor, group_size: int) -> Tensor:
        """One round over part of a bank (K, T, d) that all questions share: (N, K / M, T, d), all whole groups at once."""
        n, t, d = z.shape
        n_whole = len(bank) // group_size
        found = []
        if n_whole:
            memory = bank[: n_whole * group_size].reshape(n_whole, -1, d)
            rows = z.reshape(1, n * t, d).expand(n_whole, -1, -1)
            for block in self.blocks:
                rows = block(rows, memory)
            found.append(rows.reshape(n_whole, n, t, d).transpose(0, 1))
        if len(bank) % group_size:
            found.append(self(z, bank[n_whole * group_size :]).unsqueeze(1))
        return torch.cat(found, dim=1)
