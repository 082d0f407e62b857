"""What training a detector will cost, known before it is trained: FLOPs of a pass as a function of the padded batch.

Texts differ in length and batches are padded, so the cost of a number of texts is not that number times one cost. It is
linear in the texts of a batch, up to a part that they share, and at most quadratic in its length; a few counts give it
exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from rematch.flops import count_flops


@dataclass(frozen=True)
class PassCost:
    """FLOPs of a pass over a batch of shape (texts, length).

    Attributes:
        each, shared: polynomials in the length (highest power first), of every text and of the batch as a whole, by
            whether the pass is differentiated.
    """

    each: dict[bool, np.ndarray]
    shared: dict[bool, np.ndarray]

    @classmethod
    def measure(cls, logits: Callable[[dict[str, Tensor]], Any], batch: dict[str, Tensor], shortest: int) -> PassCost:
        """Count on cuts of a batch of the two longest texts.

        Args:
            logits: gives the model's logits of a batch.
            shortest: length of the shortest text; where all are as long, one length is all that is counted.
        """
        longest = batch["input_ids"].shape[1]
        lengths = sorted({shortest, (shortest + longest) // 2, longest})

        def count(n_texts: int, length: int, backward: bool) -> int:
            part = {name: tensor[:n_texts, :length] for name, tensor in batch.items()}
            return count_flops(logits, part, backward=backward).total

        each, shared = {}, {}
        for backward in (False, True):
            one, two = (np.array([count(n, x, backward) for x in lengths], dtype=float) for n in (1, 2))
            each[backward] = np.polyfit(lengths, two - one, len(lengths) - 1)
            shared[backward] = np.polyfit(lengths, 2 * one - two, len(lengths) - 1)
        return cls(each, shared)

    def __call__(self, n_texts: int, length: int, backward: bool) -> float:
        """Forward FLOPs, and with ``backward`` those of the gradients too."""
        each, shared = np.polyval(self.each[backward], length), np.polyval(self.shared[backward], length)
        return float(n_texts * each + shared)
