"""ReVISE's rivals as bases: SFT continued, RFT, STaR+, DPO, and the verifier that DPO makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import PositiveFloat, PositiveInt

from baselines.post_training.dpo import dpo, solution_pairs
from baselines.post_training.imitation import StarLoop, rft, right_examples, sft_for_flops, star
from baselines.post_training.problems import SAMPLES_AT_ONCE, Problem
from baselines.post_training.training import Recipe
from baselines.sampling import Sampling
from rematch.errors import RematchError
from workflows.revise.data import TRAIN, read_problems
from workflows.revise.models import read_notes
from workflows.revise.post_training import SAMPLES, START, Job, Learned, PostTraining, counts_of, sampling_of


@dataclass
class Imitation(PostTraining):
    """SFT on ground truths and on more.

    Attributes:
        n_truths: ground truths, the first of the seed's, ``n_questions`` of them at least; all where None.
    """

    n_truths: PositiveInt | None = None

    def truths(self, job: Job, problems: Sequence[Problem]) -> list[Problem]:
        """The questions whose ground truths are imitated; ``problems`` come first."""
        path = job.base.needs["questions"] / TRAIN
        found = read_problems(path, job.task, self.n_truths, f"{job.where}: n_truths")
        if len(found) < len(problems):
            raise RematchError(
                f"{job.where}: n_truths: {self.n_truths}; n_questions are {len(problems)}, and truths at least as many"
            )
        return found


@dataclass
class Continued(Imitation):
    """SFT goes on from M0, in as many steps as come nearest to what ``like`` spent on post-training.

    Needs ``like`` too, a base that another way of post-training made.

    Attributes:
        own_samples: also on M0's distinct right samples (RFT at equal FLOPs; needs ``samples``, whose cost counts).
    """

    own_samples: bool = False

    def learn(self, job: Job, model: Any, problems: Sequence[Problem], recipe: Recipe) -> Learned:
        (like,) = (path for name, path in job.base.needs.items() if name not in (START, "questions", SAMPLES))
        truths, spent, generations = self.truths(job, problems), 0, 0
        counts: dict[str, dict[str, int]] = {}
        examples = [problem.truth(job.tokens.end) for problem in truths]
        if self.own_samples:
            pool, k = job.pool(problems)
            examples += right_examples(pool, problems, job.tokens.end)
            spent, generations = pool.flops, k * len(problems)
            counts = {"samples": counts_of(generations, pool)}
        target = read_notes(like)["post_flops"] - spent
        done = sft_for_flops(model, examples, target, job.seed, recipe, job.checkpoint)
        return Learned(done.flops + spent, generations, done.rows, done.tokens, counts, {"steps": done.steps})


@dataclass
class RFT(Imitation):
    """Rejection-sampling fine-tuning on the ground truths and M0's distinct right samples."""

    def learn(self, job: Job, model: Any, problems: Sequence[Problem], recipe: Recipe) -> Learned:
        pool, k = job.pool(problems)
        # The pool's questions are the first ones of all whose ground truths are imitated.
        done = rft(model, self.truths(job, problems), pool, job.tokens.end, job.seed, recipe, job.checkpoint)
        kept = len(right_examples(pool, problems, job.tokens.end))
        sampled = k * len(problems)
        return Learned(
            done.flops + pool.flops, sampled, done.rows, done.tokens, {"samples": counts_of(sampled, pool)},
            {"steps": done.steps, "n_kept": kept},
        )  # fmt: skip


@dataclass
class Star(Imitation):
    """STaR+: loops of sampling, rationalising what was not solved, and training M0 anew.

    Attributes:
        k, loops: completions a question in each loop, and loops.
        sampling, batch_size: as of ``Samples``.
    """

    k: PositiveInt = 10
    loops: PositiveInt = 3
    sampling: Annotated[dict[str, Any], Sampling] = field(default_factory=dict)
    batch_size: PositiveInt = SAMPLES_AT_ONCE

    def learn(self, job: Job, model: Any, problems: Sequence[Problem], recipe: Recipe) -> Learned:
        how = sampling_of(self.sampling, f"{job.where}: sampling")
        found = star(
            model, problems, job.task.hint, job.tokens.end, job.seed, self.k, self.loops, recipe, how,
            checkpoint=job.checkpoint, others=self.truths(job, problems)[len(problems) :], batch_size=self.batch_size,
        )  # fmt: skip
        return Learned(
            flops=sum(loop.flops for loop in found),
            generations=sum(self._sampled(loop, problems) for loop in found),
            rows=sum(loop.training.rows for loop in found),
            tokens=sum(loop.training.tokens for loop in found),
            counts={
                f"loop {number}": counts_of(self._sampled(loop, problems), *filter(None, (loop.pool, loop.hinted)))
                | {"kept": loop.n_right, "rationalised": loop.n_rationalised}
                for number, loop in enumerate(found, start=1)
            },
            notes={
                "n_right": [loop.n_right for loop in found],
                "n_rationalised": [loop.n_rationalised for loop in found],
            },
        )

    def _sampled(self, loop: StarLoop, problems: Sequence[Problem]) -> int:
        hinted = loop.hinted
        n_hinted = len(hinted.completions) + hinted.n_unfinished + hinted.n_empty if hinted else 0
        return self.k * len(problems) + n_hinted


@dataclass
class DPO(PostTraining):
    """DPO from M0 between a question's better and wrong solutions.

    Attributes:
        chosen: ``truth`` (the baseline of Table 5), or ``right`` samples (V-STaR's verifier).
        per_question: pairs of a question at most.
        beta: of the loss.
    """

    chosen: Literal["truth", "right"] = "truth"
    per_question: PositiveInt | None = None
    beta: PositiveFloat = 0.1

    def learn(self, job: Job, model: Any, problems: Sequence[Problem], recipe: Recipe) -> Learned:
        pool, k = job.pool(problems)
        pairs = solution_pairs(pool, problems, job.tokens.end, job.seed, self.chosen, self.per_question)
        done = dpo(model, pairs, recipe, job.seed, self.beta, checkpoint=job.checkpoint)
        return Learned(
            done.flops + pool.flops, k * len(problems), done.training.rows, done.training.tokens,
            {"samples": counts_of(k * len(problems), pool)}, {"steps": done.training.steps, "n_pairs": len(pairs)},
        )  # fmt: skip
