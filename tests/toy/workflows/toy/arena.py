"""A room without any model: contenders draw scores around a mean, and spend FLOPs that they declare."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from rematch.arena import BaseInfo, BaseJob, Measurement, Outcome, Task
from rematch.play import Skip

HELD = Path("held")
"""As long as there is such a file in the repository, no seed but the first of a match is played."""


@dataclass
class Ground:
    """A base: one number per seed, which every contender of the seed starts from."""

    scale: float = 1.0
    fail: bool = False

    def build(self, job: BaseJob) -> BaseInfo:
        if self.fail:
            raise RuntimeError("no ground to stand on")
        value = float(np.random.default_rng(job.seed or 0).normal(scale=self.scale))
        (job.out / "ground.json").write_text(json.dumps(value))
        return BaseInfo(train_flops=100.0, samples_seen=1, data_hash="0" * 16)


@dataclass
class Arena:
    METRICS: ClassVar[tuple[str, ...]] = ("accuracy", "perplexity", "seconds_per_item")

    n_items: int = 20
    flops: float = 1000.0

    def play(self, task: Task) -> Outcome:
        while task.seed and HELD.exists():
            time.sleep(0.02)
        ground = json.loads((task.bases["ground"] / "ground.json").read_text())
        contender = task.contender
        if getattr(contender, "skip", False):
            raise Skip("it does not compete at this level")
        rng = np.random.default_rng([task.seed, 7])
        noise = rng.normal(scale=0.01, size=self.n_items)
        scores = contender.mean(task.level) + 0.01 * ground + noise
        target = None if task.share is None else task.share * self.flops
        found = [
            Measurement("accuracy", float(scores.mean()), items=scores.tolist()),
            Measurement("perplexity", float(np.exp(2 - scores.mean())), items=(2 - scores).tolist()),
            Measurement("seconds_per_item", 0.001, "half=0"),
        ]
        return Outcome(
            measurements=[m for m in found if m.metric in task.metrics],
            flops=(target or self.flops) * getattr(contender, "overspend", 1.0),
            flops_target=target,
            train_flops=task.base_info["ground"].train_flops,
            data_hash="d" * 16,
            notes={"level": task.level},
        )
