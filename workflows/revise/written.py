"""What a model writes to the test questions: trajectories, sampled once, which every rule reads its answers off."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import NonNegativeInt, PositiveInt

from baselines.sampling import Sampling, context_length
from methods.revise.inference import TEST_SAMPLING, solve, why_unread
from methods.revise.trajectories import Attempt, Belief, RefineMode, Trajectory
from rematch.arena import BaseInfo, BaseJob
from rematch.errors import RematchError, unknown
from rematch.options import made
from rematch.records import write_text
from workflows.revise.data import ID, problems_of, read_test, sets_of
from workflows.revise.models import STAGE_1, load_model, read_notes
from workflows.revise.tasks import load_task

META = "written.json"
FIELDS = tuple(each.name for each in dataclasses.fields(Attempt))


class Cost(NamedTuple):
    """What trajectories to a test set cost.

    Attributes:
        n_questions: of the set.
        tokens: generated for the first trajectory of all questions, for the second ones and so on, each by the number of the attempt.
        flops: of the greedy trajectories and of one sampled one a question, of the whole set, likewise.
    """

    n_questions: int
    tokens: list[list[int]]
    flops: tuple[list[float], list[float]]

    def of(self, n: int, tries: int) -> tuple[float, float]:
        """Tokens and FLOPs a question, the mean, of n trajectories of as many tries at most."""
        count = max(1, self.n_questions)
        greedy, sampled = self.flops
        flops = sum(greedy[:tries]) + (n - 1) * sum(sampled[:tries])
        return sum(sum(each[:tries]) for each in self.tokens[:n]) / count, flops / count


class Written(NamedTuple):
    """Trajectories to a test set.

    Attributes:
        trajectories: of every question; the first is the greedy one. None for a prompt that the model cannot read.
        statuses: why not, ``empty_prompt`` or ``too_long``; empty for the others.
    """

    trajectories: list[list[Trajectory]]
    statuses: list[str]


@dataclass
class Writer:
    """Lets a model write to the test questions. Needs ``questions`` and one model.

    Attributes:
        n: trajectories a question, the first of them greedy; of the questions of the trained kind.
        n_ood: of the others; none are written where 0.
        tries: attempts of a trajectory at most.
        refine_mode: see ``methods.revise.trajectories.write_trajectories``.
        sampling: ``temperature``, ``top_p``, ``max_new_tokens`` of an attempt.
        stage: 1 for the model after the first stage of ReVISE.
        batch_size: trajectories at once.
    """

    n: PositiveInt = 8
    n_ood: NonNegativeInt = 0
    tries: PositiveInt = 3
    refine_mode: RefineMode = "refine"
    sampling: Annotated[dict[str, Any], Sampling] = field(default_factory=dict)
    stage: Literal[1] | None = None
    batch_size: PositiveInt = 256

    def build(self, job: BaseJob) -> BaseInfo:
        """Write a file for each test set."""
        where = f"bases.{job.name}"
        how: Sampling = made(Sampling, {**dataclasses.asdict(TEST_SAMPLING), **self.sampling}, f"{where}: sampling")
        (source,) = (path for name, path in job.needs.items() if name != "questions")
        if self.stage not in (None, 1):
            raise RematchError(f"{where}: stage: {self.stage}; allowed: 1, the model after the first stage, or none")
        model, tokenizer, tokens = load_model(source / STAGE_1 if self.stage else source)
        model.requires_grad_(False)  # so that no backward pass is counted
        task, limit = load_task(job.needs["questions"], tokenizer), context_length(model)
        meta: dict[str, Any] = {}
        total, n_tokens, n_written = 0.0, 0, 0
        for name in sets_of(job.needs["questions"]):
            n = self.n if name == ID else self.n_ood
            if not n:
                continue
            problems = problems_of(read_test(job.needs["questions"], name), task)
            statuses = [why_unread(problem.prompt, limit) or "" for problem in problems]
            asked = [i for i, status in enumerate(statuses) if not status]
            written, spent = solve(
                model, [problems[i].prompt for i in asked], tokens, n, self.tries, self.refine_mode, how,
                seed=job.seed or 0, names=asked, batch_size=self.batch_size,
            )  # fmt: skip
            found: list[list[Trajectory]] = [[] for _ in problems]
            for i, trajectories in zip(asked, written, strict=True):
                found[i] = trajectories
            flops = [spent.greedy, [each / max(1, n - 1) for each in spent.sampled]]
            tokens_of = _tokens(found, n, self.tries)
            total += spent.total
            n_tokens += sum(map(sum, tokens_of))
            n_written += n * len(asked)
            meta[name] = {"flops": flops, "statuses": statuses, "tokens": tokens_of}
            _write(job.out / f"{name}.jsonl", found)
        (job.out / META).write_text(json.dumps(meta), encoding="utf-8")
        learned = read_notes(source)
        counts = learned.get("counts", {})
        counts = dict(list(counts.items())[: self.stage])
        return BaseInfo(
            float(learned["train_flops"]), n_written, n_tokens,
            notes={"sampling_flops": total, "post_flops": learned.get("post_flops", 0.0),
                   "generations": learned.get("generations", 0), "n_questions": learned.get("n_questions"),
                   "counts": counts},
        )  # fmt: skip


def read_cost(folder: Path, name: str) -> Cost:
    """What the trajectories of a base to a test set cost.

    Raises:
        RematchError: it wrote none to that set.
    """
    of_set = _meta(folder, name)
    return Cost(len(of_set["statuses"]), of_set["tokens"], (of_set["flops"][0], of_set["flops"][1]))


def read_written(folder: Path, name: str) -> Written:
    """The trajectories of a base to a test set.

    Raises:
        RematchError: it wrote none to that set.
    """
    statuses = _meta(folder, name)["statuses"]
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return Written([[Trajectory(tuple(map(_attempt, each))) for each in json.loads(line)] for line in lines], statuses)


def _meta(folder: Path, name: str) -> dict[str, Any]:
    sets = json.loads((folder / META).read_text(encoding="utf-8"))
    if name not in sets:
        raise unknown("test set", name, sets, f"what {folder.parent.parent.name} has written to")
    return dict(sets[name])


def _tokens(found: Sequence[Sequence[Trajectory]], n: int, tries: int) -> list[list[int]]:
    """As of ``Cost``."""
    total = [[0] * tries for _ in range(n)]
    for some in found:
        for row, trajectory in zip(total, some, strict=False):
            for place, attempt in enumerate(trajectory.attempts):
                row[place] += attempt.n_tokens
    return total


def _write(path: Path, found: Sequence[Sequence[Trajectory]]) -> None:
    rows = ([[_row(attempt) for attempt in each.attempts] for each in some] for some in found)
    write_text("".join(json.dumps(row) + "\n" for row in rows), path)


def _row(attempt: Attempt) -> tuple[Any, ...]:
    return tuple(getattr(attempt, name) for name in FIELDS)  # dataclasses.astuple copies deeply, which takes seconds


def _attempt(values: Sequence[Any]) -> Attempt:
    ids, ended, refine, log_prob, in_trajectory, standalone, n_tokens = values
    return Attempt(tuple(ids), ended, refine, log_prob, Belief(*in_trajectory), Belief(*standalone), n_tokens)
