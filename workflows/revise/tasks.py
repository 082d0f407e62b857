"""What a data set asks for: how its questions become token ids, and how answers are read off solutions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from baselines.post_training.batches import Ids
from baselines.post_training.problems import Problem
from rematch.errors import RematchError
from rematch.hub_files import read_json
from rematch.options import made
from rematch.records import write_text
from workflows.revise.addition import Addition
from workflows.revise.questions import Question
from workflows.revise.tail_sums import TailSums

TASK = "task.json"
GENERATED: dict[str, Any] = {"tail_sums": TailSums, "addition": Addition}
"""Tasks whose questions are generated."""

TEXT = "text"
"""The task of published data sets."""


class AnswerTask(Protocol):
    """Questions with checkable final answers."""

    def problem(self, question: Question) -> Problem:
        """A question in token ids, with what reads answers to it."""
        ...

    def hint(self, problem: Problem) -> Ids:
        """The prompt with the answer in it, for STaR+'s rationalisation."""
        ...

    def status(self, solution: Ids, prompt: Ids) -> str:
        """``ok`` where a final answer can be read off a solution that came to its end; else what is the matter with it."""
        ...

    def text(self, ids: Ids) -> str:
        """Token ids as a person reads them."""
        ...


class GeneratedTask(AnswerTask, Protocol):
    """Questions drawn from a seed."""

    @property
    def splits(self) -> Sequence[Any]:
        """The test sets that there are, that of the kind that is trained on first."""
        ...

    def questions(self, n: int, split: Any, part: Any, seed: int) -> list[Question]:
        """n different questions of a split, for training, validation or testing."""
        ...

    def tokenizer(self) -> Any:
        """Of its words."""
        ...


def generated(kind: str, options: dict[str, Any], where: str) -> GeneratedTask:
    """A task of ``GENERATED`` with its options.

    Raises:
        RematchError: an option is unknown or out of range.
    """
    fitted = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    task: GeneratedTask = made(GENERATED[kind], fitted, where)
    return task


def write_task(folder: Path, kind: str, options: Any) -> None:
    """Keep which task the questions of a folder are of, and its options: a dictionary or a dataclass."""
    given = dataclasses.asdict(options) if dataclasses.is_dataclass(options) else options  # type: ignore[arg-type]
    write_text(json.dumps({"kind": kind, "options": given}), folder / TASK)


def load_task(folder: Path, tokenizer: Any = None) -> AnswerTask:
    """The task whose questions a folder holds.

    Args:
        tokenizer: of the model that is to answer; generated tasks have their own.

    Raises:
        RematchError: the folder is not that of questions.
    """
    found = read_json(folder / TASK)
    if found["kind"] == TEXT:
        from workflows.revise.text_task import TextTask

        return TextTask(tokenizer, **found["options"])
    if found["kind"] not in GENERATED:
        raise RematchError(
            f"{folder / TASK}: kind: unknown '{found['kind']}'; allowed: {', '.join((*GENERATED, TEXT))}"
        )
    return generated(found["kind"], found["options"], str(folder / TASK))
