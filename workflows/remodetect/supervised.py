"""The supervised baseline as the arena trains it: on the LLM and human texts of the triplets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from baselines.detectors.sequence import BCEDetector
from workflows.remodetect.texts import Row


@dataclass(eq=False)
class Supervised(BCEDetector):
    """BCEDetector on the arena's rows.

    Attributes:
        spends: what a budget buys beyond the texts that ReMoDetect reads for it: more ``epochs`` over the same pairs, or
            more ``pairs`` in one epoch.
    """

    spends: Literal["epochs", "pairs"] = "epochs"

    def train_on(self, rows: Sequence[Row], replay: Sequence[str]) -> None:
        """Train on pairs; there is nothing that replay could serve."""
        self.fit([row["llm"] for row in rows], [row["human"] for row in rows])
