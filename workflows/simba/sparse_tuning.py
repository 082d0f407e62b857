"""The sparse model of claim C7. In a module of its own: only what starts from it depends on Simba's source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from methods.simba import Simba
from rematch.arena import BaseJob
from rematch.errors import RematchError
from workflows.simba.models import Tuned, dense
from workflows.simba.shapes import Shapes, total_flops


@dataclass
class SparseTuned(Tuned):
    """A model after a short fine-tuning in which its context is pruned by Simba, at its share of the parent's FLOPs."""

    def contender(self, model: Any, job: BaseJob, shapes: Shapes) -> Any:
        """Simba on the model, at the share of the FLOPs of one window.

        Raises:
            RematchError: the base is not sized per share.
        """
        if job.share is None:
            raise RematchError(f"base '{job.name}': a sparse model is tuned at a share of the FLOPs; set per_share")
        window = shapes.shape("window")
        simba = Simba()
        target = job.share * total_flops(dense(model), [window])
        simba.prepare(model, target, lambda contender: total_flops(contender, [window]))
        return simba
