"""ReVISE as a base: its curriculum from M0, and its second stage repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import PositiveFloat, PositiveInt

from baselines.post_training.problems import SAMPLES_AT_ONCE, Pool, Problem
from baselines.post_training.training import Recipe
from baselines.sampling import Sampling
from methods.revise.curriculum import ReviseConfig, Stage, fit
from methods.revise.loss import LossWeights
from rematch.arena import BaseJob
from rematch.errors import RematchError
from rematch.options import made
from workflows.revise.models import STAGE_1, read_notes
from workflows.revise.post_training import START, Job, Learned, PostTraining, sampling_of

Curriculum = Literal["two_stage", "one_stage", "stage1_only", "correct_only"]


@dataclass
class Revise(PostTraining):
    """ReVISE: its curriculum from M0, on M0's samples first and on its own later. Needs ``samples``.

    The model after the first stage is kept too, in ``stage1``.

    Attributes:
        curriculum, rows, reference, beta, use_gt, drop_unfinished, eos_after_refine, shuffled, max_length: see
            ``methods.revise.curriculum.ReviseConfig``.
        weights: ``preference`` and ``sft``, of the loss.
        k, sampling, batch_size: of the later pools, as of ``Samples``; the first is ``samples``.
    """

    curriculum: Curriculum = "two_stage"
    weights: Annotated[dict[str, Any], LossWeights] = field(default_factory=dict)
    rows: PositiveInt | None = None
    beta: PositiveFloat = 0.1
    reference: Literal["stage_start", "m0"] = "stage_start"
    use_gt: bool = False
    drop_unfinished: bool = False
    eos_after_refine: bool = False
    shuffled: bool = False
    max_length: PositiveInt = 1024
    k: PositiveInt = 10
    sampling: Annotated[dict[str, Any], Sampling] = field(default_factory=dict)
    batch_size: PositiveInt = SAMPLES_AT_ONCE

    def learn(self, job: Job, model: Any, problems: Sequence[Problem], recipe: Recipe) -> Learned:
        pool, k = job.pool(problems)
        if k != self.k:
            raise RematchError(f"{job.where}: k: {self.k}; the base 'samples' has {k} completions a question")
        return self._fit(job, model, problems, recipe, pool, {})

    def _fit(
        self,
        job: Job,
        model: Any,
        problems: Sequence[Problem],
        recipe: Recipe,
        pool: Pool | None,
        before: dict[str, Any],
    ) -> Learned:
        """Train, after what the notes ``before`` are of, if anything."""
        names = [each.name for each in dataclasses.fields(ReviseConfig)]
        options = {name: getattr(self, name) for name in names if hasattr(self, name)}
        config = ReviseConfig(
            **options | {
                "recipe": recipe,
                "weights": made(LossWeights, self.weights, f"{job.where}: weights"),
                "sampling": sampling_of(self.sampling, f"{job.where}: sampling"),
            }
        )  # fmt: skip
        found: list[Stage] = []

        def after(stage: Stage) -> None:
            found.append(stage)
            if stage.name == "verify" and config.stages[1:]:
                model.save_pretrained(job.base.out / STAGE_1)
                job.tokenizer.save_pretrained(job.base.out / STAGE_1)

        fit(model, problems, job.tokens, config, job.seed, pool, job.checkpoint, after)
        n_sampled, counts = self.k * len(problems), before.get("counts", {})
        return Learned(
            flops=sum(stage.flops for stage in found) + before.get("post_flops", 0.0),
            generations=n_sampled * len(found) + before.get("generations", 0),
            rows=sum(stage.training.rows for stage in found),
            tokens=sum(stage.training.tokens for stage in found),
            counts=counts
            | {
                f"{number} {stage.name}": _counts(stage, n_sampled)
                for number, stage in enumerate(found, start=len(counts) + 1)
            },
            notes={
                "stages": [
                    {key: value for key, value in dataclasses.asdict(stage).items() if key != "training"}
                    | {"final_loss": stage.training.final_loss, "steps": stage.training.steps, "flops": stage.flops}
                    for stage in found
                ]
            },
        )


@dataclass
class Cycle(Revise):
    """The second stage once more, from a model that ReVISE or another cycle made, on fresh samples of it.

    Needs that model, ``m0`` and ``questions``.
    """

    curriculum: Curriculum = "correct_only"

    def start(self, job: BaseJob) -> Path:
        (folder,) = (path for name, path in job.needs.items() if name not in (START, "questions"))
        return folder

    def learn(self, job: Job, model: Any, problems: Sequence[Problem], recipe: Recipe) -> Learned:
        return self._fit(job, model, problems, recipe, None, read_notes(self.start(job.base)))


def _counts(stage: Stage, n_sampled: int) -> dict[str, int]:
    """What became of a stage's completions: those not used, those kept in part, attempts trained on and right ones among them."""
    return {
        "sampled": n_sampled, "unfinished": stage.n_unfinished, "empty": stage.n_empty, "blank": stage.n_blank,
        "too_long": stage.n_too_long, "cut": stage.n_cut, "rows": stage.n_rows, "right": stage.n_right,
    }  # fmt: skip
