"""Documents with their questions, and the files in which a base keeps them: JSON Lines, a row a document or a pair."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baselines.qa import QAPair
from rematch.errors import RematchError
from rematch.reading import Strict, validate
from rematch.records import write_text


@dataclass(frozen=True)
class Document:
    """A document of a stream.

    Attributes:
        name: whom or what it is about: a person of the generated world, a title, the id of a published document.
        text: as the models read it.
        pairs: questions that it answers.
        salient: spans of characters (start, end) that hold what matters; empty where nobody has looked for them.
    """

    name: str
    text: str
    pairs: tuple[QAPair, ...]
    salient: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Splits:
    """What one data set gives.

    Attributes:
        qa_train, qa_validation: pairs without documents, to tune a language model for question answering.
        train, validation, test: documents. No row of the data set is in two of the five parts.
        released: the documents of the evaluation stream that MAC's authors published, in its order, rows of the test part;
            empty where the mirror has not got it.
        dropped: rows left out, by part and reason.
    """

    qa_train: tuple[QAPair, ...]
    qa_validation: tuple[QAPair, ...]
    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    test: tuple[Document, ...]
    released: tuple[Document, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)


def write_documents(path: Path, documents: Sequence[Document]) -> None:
    """Write documents, a row each, whole or not at all."""
    _write(path, ({**vars(row), "pairs": [pair._asdict() for pair in row.pairs]} for row in documents))


def read_documents(path: Path) -> list[Document]:
    """The documents of a file that ``write_documents`` wrote.

    Raises:
        RematchError: there is no such file, or a row of it is no document.
    """
    read = (validate(_DocumentRow, row, place) for row, place in _rows(path))
    return [Document(row.name, row.text, tuple(map(_pair, row.pairs)), row.salient) for row in read]


def write_pairs(path: Path, pairs: Sequence[QAPair]) -> None:
    """Write questions with their answers, a row each, whole or not at all."""
    _write(path, (pair._asdict() for pair in pairs))


def read_pairs(path: Path) -> list[QAPair]:
    """The pairs of a file that ``write_pairs`` wrote.

    Raises:
        RematchError: there is no such file, or a row of it is no pair.
    """
    return [_pair(validate(_PairRow, row, place)) for row, place in _rows(path)]


class _PairRow(Strict):
    question: str
    answer: str


class _DocumentRow(Strict):
    name: str
    text: str
    pairs: tuple[_PairRow, ...]
    salient: tuple[tuple[int, int], ...]


def _pair(row: _PairRow) -> QAPair:
    return QAPair(row.question, row.answer)


def _write(path: Path, rows: Iterable[Any]) -> None:
    write_text("".join(json.dumps(row) + "\n" for row in rows), path)


def _rows(path: Path) -> Iterator[tuple[Any, str]]:
    """What the lines of a file hold, with the place of each."""
    number = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                yield json.loads(line), f"{path}, line {number}"
    except FileNotFoundError as error:
        raise RematchError(f"{path}: no such file; the base that writes it has not been built here") from error
    except (ValueError, OSError) as error:  # not JSON, not UTF-8
        raise RematchError(f"{path}, line {number}: cannot be read as JSON Lines ({error})") from error
