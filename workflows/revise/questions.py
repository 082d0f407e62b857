"""Questions with their solutions as text, and the files in which a base keeps them: JSON Lines, a row a question."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rematch.errors import RematchError
from rematch.hub_files import json_rows
from rematch.records import write_text

Part = Literal["train", "validation", "test"]
PARTS: dict[Part, range] = {"train": range(7), "validation": range(7, 8), "test": range(8, 10)}
"""Tenths of all generated questions: none that is trained on with one seed is a test item of another."""


def is_of_part(digits: bytes, part: Part) -> bool:
    """Whether a generated question belongs to a part, by the digits that its solution depends on."""
    return zlib.crc32(digits) % 10 in PARTS[part]


@dataclass(frozen=True)
class Question:
    """A question of a data set.

    Attributes:
        name: which one of which part: ``id/test/17``. Per-item scores are kept by it.
        question: as the model reads it, without instruction or template.
        solution: the ground truth, which ends in its final answer.
    """

    name: str
    question: str
    solution: str


def write_questions(path: Path, questions: Sequence[Question]) -> None:
    """Write questions, a row each, whole or not at all."""
    write_text("".join(json.dumps(asdict(question)) + "\n" for question in questions), path)


def read_questions(path: Path) -> list[Question]:
    """The questions of a file that ``write_questions`` wrote.

    Raises:
        RematchError: there is no such file, a row of it is no question, or two have one name.
    """
    if not path.exists():
        raise RematchError(f"{path}: no such file; the base that writes it has not been built here")
    keys = ("name", "question", "solution")
    questions = [Question(*(row[key] for key in keys)) for row in json_rows(path, keys)]
    names: set[str] = set()
    for question in questions:
        if question.name in names:
            raise RematchError(f"{path}: two questions are called '{question.name}'; items are paired by their names")
        names.add(question.name)
    return questions
