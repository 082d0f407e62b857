"""ReVISE as a base: its curriculum from M0, and its second stage repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt

from baselines.post_training.problems import Pool, Problem
from baselines.post_training.training import Recipe
from baselines.sampling import Sampling
from methods.revise.curriculum import ReviseConfig, Stage, fit
from methods.revise.loss import LossWeights
from rematch.errors import RematchError
from rematch.options import made
from workflows.revise.models import STAGE_1, read_notes
from workflows.revise.post_training import Job, Learned, PostTraining, sampling_of

Curriculum = Literal["two_stage", "one_stage", "stage1_only", "correct_only"]


@dataclass
class Revise(PostTraining):
    """ReVISE: its curriculum from M0, on M0's samples first and on its own later. Needs ``samples``.

    The model after the first stage is kept too, in ``stage1``.

    Attributes:
        curriculum, rows, reference, beta, use_gt, drop_unfinished, eos_after_refine, shuffled, max_length: see
            ``methods.revise.curriculum.ReviseConfig``.
        weights: ``preference`` and ``sft``, of the loss.
        k, sampling: of the later pools; the first is ``samples``.
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

    def learn(self, job: Job, model: Any, problems: Sequence[Problem], recipe: Recipe) -> Learned:
        pool, k = job.pool(problems)
        if k != self.k:
            raise RematchError(f"{job.where}: k: {self.k}; the base 'samples' has {k} completions a question")
        return self._fit(job, model, problems, recipe, pool)

    def _fit(
        self, job: Job, model: Any, problems: Sequence[Problem], recipe: Recipe, pool: Pool | None, before: float = 0.0
    ) -> Learned:
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
        return Learned(
            flops=sum(stage.flops for stage in found) + before,
            generations=self.k * len(problems) * len(found),
            rows=sum(stage.training.rows for stage in found),
            tokens=sum(stage.training.tokens for stage in found),
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
    """The second stage once more, from a model that ReVISE made, on fresh samples of it. Needs ``revise``."""

    curriculum: Curriculum = "correct_only"

    start: ClassVar[str] = "revise"

    def learn(self, job: Job, model: Any, problems: Sequence[Problem], recipe: Recipe) -> Learned:
        notes = read_notes(job.base.needs["revise"])
        learned = self._fit(job, model, problems, recipe, None, notes["post_flops"])
        learned.generations += notes["generations"]
        return learned
