"""Contenders that go wrong, one way each."""

import os
import time
from dataclasses import dataclass
from typing import Literal

from baselines.plain import Plain


@dataclass
class Trouble(Plain):
    """Raises, hangs, dies, returns NaN, spends too much or stays away, if the file named by TOY_CALM is not there."""

    how: Literal["raise", "hang", "die", "nan", "overspend", "skip"] = "raise"

    def __post_init__(self):
        self.calm = os.path.exists(os.environ.get("TOY_CALM", "calm"))
        self.overspend = 1.1 if self.how == "overspend" else 1.0
        self.skip = self.how == "skip"

    def mean(self, level):
        if not self.calm and self.how == "raise":
            raise ValueError("trouble, as expected")
        if not self.calm and self.how == "hang":
            time.sleep(3600)
        if not self.calm and self.how == "die":
            os.kill(os.getpid(), 9)
        return float("nan") if self.how == "nan" and not self.calm else super().mean(level)
