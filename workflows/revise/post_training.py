"""Post-training as bases: each starts from M0 and the same questions, and leaves a model behind.

Here is what all have in common, and the samples that several share; ``rivals`` and ``curriculum`` hold the ways themselves, apart,
so that a change of the method retrains no rival.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import PositiveInt

from baselines.post_training.problems import POOL_SAMPLING, SAMPLES_AT_ONCE, Completion, Pool, Problem, sample_pool
from baselines.post_training.training import Recipe
from baselines.sampling import Sampling
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


@dataclass
class Samples:
    """Completions that M0 writes, which all who learn from M0's samples share. Needs ``m0`` and ``questions``.

    Attributes:
        k: a question.
        n_questions: the first of the seed's; all where None.
        sampling: ``temperature``, ``top_p``, ``max_new_tokens``.
        batch_size: completions at once.
    """

    k: PositiveInt = 10
    n_questions: PositiveInt | None = None
    sampling: Annotated[dict[str, Any], Sampling] = field(default_factory=dict)
    batch_size: PositiveInt = SAMPLES_AT_ONCE

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
        counts: what became of the completions sampled for each of its parts, by the name of the part: ``sampled``, and of them
            ``unfinished`` and ``empty``, and more that is told of one way only.
        notes: how it went.
    """

    flops: float
    generations: int = 0
    rows: int = 0
    tokens: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass
class PostTraining:
    """A model that is trained on from M0. Needs ``m0`` and ``questions``, and where it learns from M0's samples ``samples``.

    Attributes:
        recipe: of training.
        n_questions: that it learns from, the first of the seed's; all where None. M0 has seen all.
    """

    recipe: Annotated[dict[str, Any], Recipe] = field(default_factory=dict)
    n_questions: PositiveInt | None = None

    def build(self, job: BaseJob) -> BaseInfo:
        """Write the model with its tokenizer, and what post-training cost and how it went."""
        where = f"bases.{job.name}"
        recipe = made(Recipe, self.recipe, f"{where}: recipe")
        model, tokenizer, tokens = load_model(self.start(job))
        task = load_task(job.needs["questions"], tokenizer)
        problems = read_problems(job.needs["questions"] / TRAIN, task, self.n_questions, f"{where}: n_questions")
        learned = self.learn(Job(job, where, task, tokens, tokenizer), model, problems, recipe)
        notes = {
            "post_flops": learned.flops, "generations": learned.generations, "n_questions": len(problems),
            "m0_flops": self._before(job), "counts": learned.counts, **learned.notes,
        }  # fmt: skip
        return save_model(
            model, tokenizer, job.out, learned.flops + self._before(job), learned.rows, learned.tokens, notes
        )

    def start(self, job: BaseJob) -> Path:
        """The folder of the model that is trained on."""
        return job.needs[START]

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


def counts_of(n_sampled: int, *pools: Pool) -> dict[str, int]:
    """What became of the completions of pools."""
    return {
        "sampled": n_sampled,
        "unfinished": sum(pool.n_unfinished for pool in pools),
        "empty": sum(pool.n_empty for pool in pools),
    }


def sampling_of(options: dict[str, Any], where: str) -> Sampling:
    """How training samples are drawn: the official code's way, but for the options."""
    made_of: Sampling = made(Sampling, {**dataclasses.asdict(POOL_SAMPLING), **options}, where)
    return made_of
