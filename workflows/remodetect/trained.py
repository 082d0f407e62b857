"""ReMoDetect as the arena trains it: on rows of the base ``texts``, within a number of triplets or of FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from methods.remodetect.detector import ReMoDetector
from rematch.errors import RematchError
from workflows.remodetect.texts import Row


@dataclass(eq=False)
class ReMoDetect(ReMoDetector):
    """ReMoDetector on the arena's rows.

    Attributes:
        mix_ratio: share of a human text that is rephrased in the mixed texts it trains on.
    """

    mix_ratio: float = 0.5

    spends: ClassVar[str] = "pairs"
    """What a budget buys: more triplets, each read once."""

    def train_on(self, rows: Sequence[Row], replay: Sequence[str]) -> None:
        """Train on the rows, in their order of the seed; ``replay`` is shortened to as many texts, as the stream does."""
        mixed = self.weights.reads_mixed
        key = f"{self.mix_ratio:g}"
        if mixed and (lacking := [row for row in rows if key not in row["mixed"]]):
            raise RematchError(
                f"{len(lacking)} of {len(rows)} triplets have no text with a share of {key} rephrased: see 'n_mixed' and the "
                "ratios of the base 'texts', or train without mixed texts (beta1 = beta2 = 0)"
            )
        triplets = [(row["llm"], row["mixed"][key] if mixed else None, row["human"]) for row in rows]
        self.fit(triplets, replay)
