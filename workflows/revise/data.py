"""The questions of a tier: generated sums, or a published data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import PositiveInt

from baselines.post_training.problems import Problem
from rematch.arena import BaseInfo, BaseJob
from rematch.errors import RematchError, unknown
from workflows.revise.addition import Addition
from workflows.revise.hub_questions import SOURCES, evaluation_questions, hub_questions
from workflows.revise.questions import Question, read_questions, write_questions
from workflows.revise.tail_sums import TailSums
from workflows.revise.tasks import GENERATED, TEXT, AnswerTask, generated, write_task

TRAIN, VALIDATION = "train.jsonl", "validation.jsonl"
ID = "id"
"""The test questions of the kind that is trained on; the others' names are those of their shifts."""


@dataclass
class Questions:
    """Questions to train on, to choose settings on, and to be tested on.

    Attributes:
        source: a generated task, ``tail_sums`` or ``addition``; or a data set, ``gsm8k``, ``math`` or ``gsm240k``.
        n_train, n_validation, n_test: how many; all that a data set has where None.
        n_ood: of each other test set.
        others: further data sets, whose test questions are a shift by the data set's name.
        task: options of the generated task.
    """

    source: Literal["tail_sums", "addition", "gsm8k", "math", "gsm240k"] = "tail_sums"
    n_train: PositiveInt | None = None
    n_validation: PositiveInt | None = None
    n_test: PositiveInt | None = None
    n_ood: PositiveInt | None = None
    others: list[Literal["gsm8k", "math", "gsm240k"]] = field(default_factory=list)
    task: Annotated[dict[str, Any], TailSums, Addition] = field(default_factory=dict)

    def build(self, job: BaseJob) -> BaseInfo:
        """Write the questions, and which task they are of.

        Raises:
            RematchError: an option is unknown, or a data set is missing, bad or too small.
        """
        seed, where = job.seed or 0, f"bases.{job.name}"
        notes: dict[str, Any] = {}
        if self.source in GENERATED:
            if self.others:
                raise RematchError(
                    f"{where}: others: data sets, and the source is '{self.source}', which has its own shifts"
                )
            task = generated(self.source, self.task, f"{where}: task")
            train = task.questions(_given(self.n_train, f"{where}: n_train"), ID, "train", seed)
            validation = task.questions(_given(self.n_validation, f"{where}: n_validation"), ID, "validation", seed)
            tests = {ID: task.questions(_given(self.n_test, f"{where}: n_test"), ID, "test", seed)}
            for split in task.splits[1:]:
                tests[split] = task.questions(_given(self.n_ood, f"{where}: n_ood"), split, "test", seed)
            write_task(job.out, self.source, task)
        elif self.source not in SOURCES:
            raise unknown("source", self.source, (*GENERATED, *SOURCES), where)
        else:
            if self.task:
                raise RematchError(
                    f"{where}: task: options of {', '.join(GENERATED)}, and the source is '{self.source}'"
                )
            sizes = self.n_train, self.n_validation, self.n_test
            found = hub_questions(self.source, job.hub, seed, *sizes)
            notes[self.source] = dict(found.n_left_out)
            train, validation, tests = found.train, found.validation, {ID: found.test}
            for other in self.others:
                tests[other], left_out = evaluation_questions(other, job.hub, self.n_ood, found.answer)
                notes[other] = dict(left_out)
            write_task(job.out, TEXT, {"answer": found.answer})
        write_questions(job.out / TRAIN, train)
        write_questions(job.out / VALIDATION, validation)
        for name, questions in tests.items():
            write_questions(set_path(job.out, name), questions)
        return BaseInfo(samples_seen=len(train), data_hash=hash_of(job.out, ID), notes=notes)


def set_path(folder: Path, name: str) -> Path:
    """The file of a test set, in the folder of the base ``questions``."""
    return folder / "test" / f"{name}.jsonl"


def sets_of(folder: Path) -> list[str]:
    """The names of the test sets, the one of the kind that is trained on first."""
    return sorted((path.stem for path in (folder / "test").glob("*.jsonl")), key=lambda name: (name != ID, name))


def read_test(folder: Path, name: str) -> list[Question]:
    """The questions of a test set.

    Raises:
        RematchError: there is no such set.
    """
    if name not in sets_of(folder):
        raise unknown("test set", name, sets_of(folder), "revise")
    return read_questions(set_path(folder, name))


def read_problems(path: Path, task: AnswerTask, n: int | None = None, where: str = "") -> list[Problem]:
    """The first n questions of a file in token ids, all where None.

    Raises:
        RematchError: it has fewer.
    """
    return problems_of(read_questions(path), task, n, where)


def problems_of(
    questions: Sequence[Question], task: AnswerTask, n: int | None = None, where: str = ""
) -> list[Problem]:
    """The first n questions in token ids, all where None."""
    if n is not None and not 0 < n <= len(questions):
        raise RematchError(f"{where}: {n}; allowed: 1 to {len(questions)}, the questions that there are")
    return [task.problem(question) for question in questions[:n]]


def hash_of(folder: Path, name: str) -> str:
    """Hash of a test set."""
    return hashlib.sha256(set_path(folder, name).read_bytes()).hexdigest()[:16]


def _given(n: int | None, where: str) -> int:
    if n is None:
        raise RematchError(f"{where}: how many questions to generate must be given")
    return n
