"""What a data set asks for: how its questions become token ids, and how answers are read off solutions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from baselines.post_training.batches import Ids
from baselines.post_training.problems import Problem
from rematch.errors import RematchError
from rematch.hub_files import read_json
from rematch.records import write_text
from workflows.revise.questions import Question

TASK = "task.json"
KINDS = ("addition", "text")


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


def write_task(folder: Path, kind: str, options: dict[str, Any]) -> None:
    """Keep which task the questions of a folder are of, and its options."""
    write_text(json.dumps({"kind": kind, "options": options}), folder / TASK)


def load_task(folder: Path, tokenizer: Any) -> AnswerTask:
    """The task whose questions a folder holds.

    Args:
        tokenizer: of the model that is to answer.

    Raises:
        RematchError: the folder is not that of questions.
    """
    found = read_json(folder / TASK)
    if found["kind"] == "addition":
        from workflows.revise.addition import Addition

        return Addition(**found["options"])
    if found["kind"] == "text":
        from workflows.revise.text_task import TextTask

        return TextTask(tokenizer, **found["options"])
    raise RematchError(f"{folder / TASK}: kind: unknown '{found['kind']}'; allowed: {', '.join(KINDS)}")
