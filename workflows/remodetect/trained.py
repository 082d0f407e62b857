"""ReMoDetect as the arena trains it: on rows of the base ``texts``, within a number of triplets or of FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from methods.remodetect import ReMoDetector
from workflows.remodetect.texts import Row


class Flops(Protocol):
    """Counted FLOPs of one text; see ``entries.TextFlops``."""

    @property
    def forward(self) -> float: ...

    @property
    def trained(self) -> float: ...


@dataclass(eq=False)
class ReMoDetect(ReMoDetector):
    """ReMoDetector on the arena's rows.

    Attributes:
        mix_ratio: share of a human text that is rephrased in the mixed texts it trains on.
    """

    mix_ratio: float = 0.5

    def train_on(self, rows: Sequence[Row], replay: Sequence[str]) -> None:
        """Train on the rows, in their order of the seed; ``replay`` is shortened to as many texts, as the stream does."""
        mixed = self.weights.reads_mixed
        key = f"{self.mix_ratio:g}"
        triplets = [(row["llm"], row["mixed"][key] if mixed else None, row["human"]) for row in rows]
        self.fit(triplets, replay)

    def affordable(self, budget: float, flops: Flops) -> tuple[int, int]:
        """Triplets that the budget pays for, one epoch: (triplets read, distinct triplets)."""
        weights = self.weights
        trained = 2 + weights.reads_mixed + weights.reads_replay
        each = trained * flops.trained + weights.reads_replay * flops.forward
        return (n := round(budget / each)), n
