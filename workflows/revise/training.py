"""Post-training as bases: each starts from M0 and the same questions, and leaves a model behind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from baselines.post_training.dpo import dpo, solution_pairs
from baselines.post_training.imitation import rft, right_examples, sft_for_flops, star
from baselines.post_training.problems import POOL_SAMPLING, Completion, Pool, Problem, sample_pool
from baselines.post_training.training import Recipe
from baselines.sampling import Sampling
from methods.revise.curriculum import ReviseConfig, Stage, fit
from methods.revise.loss import LossWeights
from methods.revise.tokens import Tokens
from rematch.arena import BaseInfo, BaseJob
from rematch.errors import RematchError
from rematch.options import made
from workflows.revise.data import TRAIN, read_problems
from workflows.revise.models import load_model, read_notes, save_model
from workflows.revise.tasks import AnswerTask, load_task

START = "m0"
SAMPLES = "samples"
"""What the names of bases of M0's samples begin with."""

POOL = "pool.json"
STAGE_1 = "stage1"
Curriculum = Literal["two_stage", "one_stage", "stage1_only", "correct_only"]


@dataclass
class Samples:
    """Completions that M0 writes, which all who learn from M0's samples share. Needs ``m0`` and ``questions``.

    Attributes:
        k: a question.
        n_questions: the first of the seed's; all where None.
        sampling: ``temperature``, ``top_p``, ``max_new_tokens``.
        batch_size: completions at once.
    """

    k: int = 10
    n_questions: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 256

    def build(self, job: BaseJob) -> BaseInfo:
        """Write the pool."""
        where = f"bases.{job.name}"
        how = sampling_of(self.sampling, f"{where}: sampling")
        model, tokenizer, tokens = load_model(job.needs[START])
        task = load_task(job.needs["questions"], tokenizer)
        problems = read_problems(job.needs["questions"] / TRAIN, task, self.n_questions, f"{where}: n_questions")
        pool = sample_pool(model, problems, self.k, tokens.end, job.seed or 0, how, batch_size=self.batch_size)
        kept = dataclasses.asdict(pool) | {"k": self.k, "n_questions": len(problems)}
        (job.out / POOL).write_text(json.dumps(kept), encoding="utf-8")
        right = sum(problems[each.question].is_right(each.ids) for each in pool.completions)
        return BaseInfo(
            pool.flops, len(problems) * self.k, pool.n_tokens,
            notes={"right": right / max(1, len(pool.completions)), "unfinished": pool.n_unfinished, "empty": pool.n_empty},
        )  # fmt: skip


def read_pool(folder: Path) -> tuple[Pool, int, int]:
    """The pool of a base, its completions a question, and its questions."""
    kept = json.loads((folder / POOL).read_text(encoding="utf-8"))
    k, n_questions = kept.pop("k"), kept.pop("n_questions")
    completions = [Completion(each["question"], tuple(each["ids"])) for each in kept.pop("completions")]
    return Pool(completions=completions, **kept), k, n_questions


@dataclass
class Learned:
    """What one way of post-training cost.

    Attributes:
        flops: sampling and reference models included, the part of ``before`` too.
        generations: completions sampled for it.
        notes: how it went.
    """

    flops: float
    generations: int = 0
    rows: int = 0
    tokens: int = 0
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass
class PostTraining:
    """A model that is trained on from M0. Needs ``m0`` and ``questions``, and where it learns from M0's samples ``samples``.

    Attributes:
        recipe: of training.
        n_questions: that it learns from, the first of the seed's; all where None. M0 has seen all.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    n_questions: int | None = None

    start: ClassVar[str] = START

    def build(self, job: BaseJob) -> BaseInfo:
        """Write the model with its tokenizer, and what post-training cost and how it went."""
        where = f"bases.{job.name}"
        recipe = made(Recipe, self.recipe, f"{where}: recipe")
        model, tokenizer, tokens = load_model(job.needs[self.start])
        task = load_task(job.needs["questions"], tokenizer)
        problems = read_problems(job.needs["questions"] / TRAIN, task, self.n_questions, f"{where}: n_questions")
        learned = self.learn(Job(job, where, task, tokens, tokenizer), model, problems, recipe)
        notes = {
            "post_flops": learned.flops, "generations": learned.generations, "n_questions": len(problems),
            "m0_flops": self._before(job), **learned.notes,
        }  # fmt: skip
        return save_model(
            model, tokenizer, job.out, learned.flops + self._before(job), learned.rows, learned.tokens, notes
        )

    def _before(self, job: BaseJob) -> float:
        return float(read_notes(job.needs[START])["train_flops"])

    def learn(self, job: Job, model: Any, problems: Sequence[Problem], recipe: Recipe) -> Learned:
        """Train the model in place."""
        raise NotImplementedError


@dataclass
class Job:
    """A base job with what its task needs."""

    base: BaseJob
    where: str
    task: AnswerTask
    tokens: Tokens
    tokenizer: Any

    @property
    def seed(self) -> int:
        return self.base.seed or 0

    @property
    def checkpoint(self) -> Path:
        return self.base.out / "checkpoint"

    def pool(self, problems: Sequence[Problem]) -> tuple[Pool, int]:
        """The samples of M0 on these questions, and completions a question.

        Raises:
            RematchError: they are of other questions.
        """
        (folder,) = (path for name, path in self.base.needs.items() if name.startswith(SAMPLES))
        pool, k, n_questions = read_pool(folder)
        if n_questions != len(problems):
            raise RematchError(
                f"{self.where}: n_questions: {len(problems)}; the base 'samples' is of {n_questions} questions"
            )
        return pool, k


@dataclass
class Continued(PostTraining):
    """SFT goes on from M0, in as many steps as come nearest to what ``like`` spent on post-training.

    Needs ``like`` too, a base that another way of post-training made.

    Attributes:
        share: of that.
        own_samples: also on M0's distinct right samples (RFT at equal FLOPs; needs ``samples``, whose cost counts).
    """

    share: float = 1.0
    own_samples: bool = False

    def learn(self, job: Job, model: Any, problems: Sequence[Problem], recipe: Recipe) -> Learned:
        (like,) = (path for name, path in job.base.needs.items() if name not in (START, "questions", SAMPLES))
        examples, spent, generations = [problem.truth(job.tokens.end) for problem in problems], 0, 0
        if self.own_samples:
            pool, k = job.pool(problems)
            examples += right_examples(pool, problems, job.tokens.end)
            spent, generations = pool.flops, k * len(problems)
        target = self.share * read_notes(like)["post_flops"] - spent
        done = sft_for_flops(model, examples, target, job.seed, recipe, job.checkpoint)
        return Learned(done.flops + spent, generations, done.rows, done.tokens, {"steps": done.steps})


@dataclass
class RFT(PostTraining):
    """Rejection-sampling fine-tuning on the ground truths and M0's distinct right samples."""

    def learn(self, job: Job, model: Any, problems: Sequence[Problem], recipe: Recipe) -> Learned:
        pool, k = job.pool(problems)
        done = rft(model, problems, pool, job.tokens.end, job.seed, recipe, job.checkpoint)
        kept = len(right_examples(pool, problems, job.tokens.end))
        return Learned(
            done.flops + pool.flops, k * len(problems), done.rows, done.tokens, {"steps": done.steps, "n_kept": kept}
        )


@dataclass
class Star(PostTraining):
    """STaR+: loops of sampling, rationalising what was not solved, and training M0 anew.

    Attributes:
        k, loops: completions a question in each loop, and loops.
        sampling: as of ``Samples``.
    """

    k: int = 10
    loops: int = 3
    sampling: dict[str, Any] = field(default_factory=dict)

    def learn(self, job: Job, model: Any, problems: Sequence[Problem], recipe: Recipe) -> Learned:
        how = sampling_of(self.sampling, f"{job.where}: sampling")
        found = star(
            model, problems, job.task.hint, job.tokens.end, job.seed, self.k, self.loops, recipe, how,
            checkpoint=job.checkpoint,
        )  # fmt: skip
        return Learned(
            flops=sum(loop.flops for loop in found),
            generations=sum(self.k * len(problems) for _ in found) + sum(self._hinted(loop) for loop in found),
            rows=sum(loop.training.rows for loop in found),
            tokens=sum(loop.training.tokens for loop in found),
            notes={
                "n_right": [loop.n_right for loop in found],
                "n_rationalised": [loop.n_rationalised for loop in found],
            },
        )

    def _hinted(self, loop: Any) -> int:
        if loop.hinted is None:
            return 0
        return len(loop.hinted.completions) + int(loop.hinted.n_unfinished) + int(loop.hinted.n_empty)


@dataclass
class DPO(PostTraining):
    """DPO from M0 between a question's better and wrong solutions.

    Attributes:
        chosen: ``truth`` (the baseline of Table 5), or ``right`` samples (V-STaR's verifier).
        per_question: pairs of a question at most.
        beta: of the loss.
    """

    chosen: Literal["truth", "right"] = "truth"
    per_question: int | None = None
    beta: float = 0.1

    def learn(self, job: Job, model: Any, problems: Sequence[Problem], recipe: Recipe) -> Learned:
        pool, k = job.pool(problems)
        pairs = solution_pairs(pool, problems, job.tokens.end, job.seed, self.chosen, self.per_question)
        done = dpo(model, pairs, recipe, job.seed, self.beta, checkpoint=job.checkpoint)
        return Learned(
            done.flops + pool.flops, k * len(problems), done.training.rows, done.training.tokens,
            {"steps": done.training.steps, "n_pairs": len(pairs)},
        )  # fmt: skip


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
    weights: dict[str, float] = field(default_factory=dict)
    rows: int | None = None
    beta: float = 0.1
    reference: Literal["stage_start", "m0"] = "stage_start"
    use_gt: bool = False
    drop_unfinished: bool = False
    eos_after_refine: bool = False
    shuffled: bool = False
    max_length: int = 1024
    k: int = 10
    sampling: dict[str, Any] = field(default_factory=dict)

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


def sampling_of(options: dict[str, Any], where: str) -> Sampling:
    """How training samples are drawn: the official code's way, but for the options."""
    made_of: Sampling = made(Sampling, {**dataclasses.asdict(POOL_SAMPLING), **options}, where)
    return made_of
