"""How a step's rows are dealt to TRL's forward passes, and what those cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from baselines.post_training.objectives import Data, Preferences
from baselines.transformer_flops import TransformerFlops

if TYPE_CHECKING:
    from baselines.post_training.training import Recipe


class Part(NamedTuple):
    """Rows of one forward pass of one process.

    Attributes:
        indices: as many as the other processes have in the same pass, as TRL gathers what it reports.
        n_counted: the first of them, which count; those after them run for nothing.
    """

    indices: Sequence[int]
    n_counted: int


def passes_of(recipe: Recipe) -> int:
    """Forward passes of each process in a step (gradient accumulation steps)."""
    rows = -(-recipe.batch_size // recipe.processes)
    return -(-rows // (recipe.micro_batch_size or rows))


def parts_of(indices: Sequence[int], recipe: Recipe) -> list[Part]:
    """The rows of a step, dealt out as evenly as they can be: to the first passes of the processes, to their second, ..."""
    parts: list[Part] = []
    for of_pass in np.array_split(np.asarray(indices), passes_of(recipe)):
        size = max(1, -(-len(of_pass) // recipe.processes))
        for dealt in np.array_split(of_pass, recipe.processes):
            parts.append(Part([*dealt.tolist(), *[int(indices[0])] * (size - len(dealt))], len(dealt)))
    return parts


def tokens_of(data: Data, index: int) -> list[tuple[int, int]]:
    """The sequences of a row: one of an example, two of a pair; their tokens, and how many of those are predicted."""
    if isinstance(data, Preferences):
        context, *continuations = data.pairs[index]
        return [(len(context) + len(continuation), len(continuation)) for continuation in continuations]
    context, target = data[index]
    return [(len(context) + len(target), len(target) if context else len(target) - 1)]


def trl_flops(costs: TransformerFlops, data: Data, part: Part, device: str) -> int:
    """FLOPs of a forward and a backward pass of TRL.

    Its backward pass makes the logits once more instead of keeping them. On a GPU it makes those of predicted tokens only,
    elsewhere those of all positions but each sequence's last.
    """
    sequences = [
        (length, n if i < part.n_counted else 0)
        for i, index in enumerate(part.indices)
        for length, n in tokens_of(data, index)
    ]
    longest = max(length for length, _ in sequences)
    n_logits = sum(n for _, n in sequences) if device == "cuda" else len(sequences) * (longest - 1)
    forward, backward = costs.forward_of, costs.backward_of
    body = forward(longest, longest, 0) + backward(longest, longest, 0)
    return len(sequences) * body + n_logits * (2 * forward.head + backward.head)
