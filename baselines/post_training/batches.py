"""Token ids whose log-probabilities a loss wants, encoded so that no token is run twice.

A language model's post-training sees a context followed by one continuation to imitate (``Example``) or by two, of which
the first is preferred (``Pair``). Where two continuations begin alike the common beginning cancels in every difference of
their log-probabilities; where one of them ends with the first token that differs, its log-probability is read off the pass
over the other one. Such a pair takes one sequence, any other pair two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.qa import full_precision
from rematch.errors import RematchError

Ids = tuple[int, ...]


class Example(NamedTuple):
    """Token ids, and those to imitate after them. An empty context: all tokens but the first are imitated."""

    context: Ids
    target: Ids


class Pair(NamedTuple):
    """Token ids, and two continuations of which the first is preferred."""

    context: Ids
    chosen: Ids
    rejected: Ids

    @property
    def fork(self) -> int:
        """How many tokens the two continuations share at their beginning."""
        shortest = min(len(self.chosen), len(self.rejected))
        return next((i for i in range(shortest) if self.chosen[i] != self.rejected[i]), shortest)

    @property
    def takes_one_pass(self) -> bool:
        """Whether one sequence holds the log-probabilities of both continuations."""
        return min(len(self.chosen), len(self.rejected)) == self.fork + 1


@dataclass(frozen=True)
class Encoded:
    """An example or a pair as sequences to run and log-probabilities to read.

    Attributes:
        sequences: one or two, without the last token, which nothing follows.
        reads: (T, 5) int64, a log-probability each: its sequence, the position whose logits predict it, the token, +1 where
            it adds to the margin of chosen over rejected, -1 where it takes from it, 0 else; 1 where its likelihood counts.
    """

    sequences: tuple[Ids, ...]
    reads: np.ndarray

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return max(map(len, self.sequences))


def encode_example(example: Example) -> Encoded:
    """All tokens of the target count."""
    if len(example.context) + len(example.target) < 2 or not example.target:
        raise RematchError(
            f"an example needs a target, and a token before what is predicted, not {len(example.context)} tokens of context and "
            f"{len(example.target)} of target"
        )
    skipped = 0 if example.context else 1
    reads = [
        (0, place, token, 0, 1)
        for place, token in enumerate(example.target[skipped:], len(example.context) + skipped - 1)
    ]
    return Encoded(((*example.context, *example.target)[:-1],), np.array(reads, np.int64))


def encode_pair(pair: Pair, counted: Callable[[Ids], Sequence[bool]] | None = None) -> Encoded:
    """What differs between the continuations makes the margin.

    Args:
        counted: which tokens of the chosen continuation count as imitated; none where None.

    Raises:
        RematchError: an empty context, or a continuation that is no more than the beginning of the other one.
    """
    fork, context = pair.fork, pair.context
    if not context or min(len(pair.chosen), len(pair.rejected)) == fork:
        raise RematchError(
            "a pair needs a context and two continuations of which none is the beginning of the other; got "
            f"{len(context)} tokens of context, chosen {pair.chosen}, rejected {pair.rejected}"
        )
    likelihood = [False] * len(pair.chosen) if counted is None else counted(pair.chosen)
    one_pass = pair.takes_one_pass
    trunk = max(pair.chosen, pair.rejected, key=len) if one_pass else pair.chosen
    sequences = [(*context, *trunk)[:-1]]
    if not one_pass:
        sequences.append((*context, *pair.rejected)[:-1])
    before = len(context) - 1
    reads = [
        (0, before + i, token, int(i >= fork), int(counts))
        for i, (token, counts) in enumerate(zip(pair.chosen, likelihood, strict=True))
        if counts or i >= fork
    ]
    # In one pass the rejected tokens are the trunk's own, or the one that its chosen token stands in the place of.
    reads += [(len(sequences) - 1, before + i, pair.rejected[i], -1, 0) for i in range(fork, len(pair.rejected))]
    return Encoded(tuple(sequences), np.array(reads, np.int64))


@dataclass(frozen=True)
class Batch:
    """Some encoded rows, padded on the right, where causal attention never looks, so that nothing need be masked.

    Attributes:
        input_ids: (S, n) int64.
        n_tokens: of the sequences, padding left out.
        n_logits: positions counted from the end, padding included, that hold all that is read.
        row: (T,) the row that a log-probability belongs to, 0 to ``n_rows`` - 1.
        sequence, place, token: (T,) what is read.
        sign: (T,) float64, of ``Encoded.reads``.
        counted: (T,) bool.
    """

    input_ids: Tensor
    n_tokens: int
    n_logits: int
    n_rows: int
    row: Tensor
    sequence: Tensor
    place: Tensor
    token: Tensor
    sign: Tensor
    counted: Tensor

    @property
    def n_counted(self) -> int:
        """Tokens whose likelihood counts."""
        return int(self.counted.sum())

    def log_probs(self, model: Any) -> Tensor:
        """log M(token | what stands before it) of all that is read, (T,), in at least 32 bits."""
        # All ones, padding included: some models warn where there is no mask.
        mask = torch.ones_like(self.input_ids)
        logits = model(
            input_ids=self.input_ids, attention_mask=mask, use_cache=False, logits_to_keep=self.n_logits
        ).logits
        first = self.input_ids.shape[1] - self.n_logits
        return -F.cross_entropy(full_precision(logits[self.sequence, self.place - first]), self.token, reduction="none")

    def margins(self, log_probs: Tensor) -> Tensor:
        """log M(chosen | context) - log M(rejected | context) of every row, (n_rows,), from ``log_probs`` (T,)."""
        return log_probs.new_zeros(self.n_rows).index_add(0, self.row, log_probs * self.sign.to(log_probs.dtype))

    def likelihoods(self, log_probs: Tensor) -> Tensor:
        """The sum of a row's counted log-probabilities, (n_rows,), from ``log_probs`` (T,)."""
        return log_probs.new_zeros(self.n_rows).index_add(0, self.row, log_probs * self.counted)


def shape_of(rows: Sequence[Encoded]) -> tuple[int, int, int]:
    """Sequences, their padded length, and positions with logits of a batch of rows, as ``TransformerFlops.step`` takes them."""
    length = max(row.length for row in rows)
    return sum(len(row.sequences) for row in rows), length, length - min(int(row.reads[:, 1].min()) for row in rows)


def collate(rows: Sequence[Encoded], device: torch.device | str = "cpu") -> Batch:
    """One batch of encoded rows, on a device."""
    n_sequences, length, n_logits = shape_of(rows)
    ids = np.array([(*ids, *(0,) * (length - len(ids))) for row in rows for ids in row.sequences], np.int64)
    first = np.cumsum([0, *(len(row.sequences) for row in rows)])[:-1]
    n_reads = [len(row.reads) for row in rows]
    reads = torch.from_numpy(np.concatenate([row.reads for row in rows])).to(device)
    return Batch(
        input_ids=torch.from_numpy(ids.reshape(n_sequences, length)).to(device),
        n_tokens=sum(len(ids) for row in rows for ids in row.sequences),
        n_logits=n_logits,
        n_rows=len(rows),
        row=torch.from_numpy(np.repeat(np.arange(len(rows)), n_reads)).to(device),
        sequence=reads[:, 0] + torch.from_numpy(np.repeat(first, n_reads)).to(device),
        place=reads[:, 1],
        token=reads[:, 2],
        sign=reads[:, 3].double(),
        counted=reads[:, 4].bool(),
    )
