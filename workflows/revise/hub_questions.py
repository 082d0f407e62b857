r"""ReVISE's data from the hub: GSM8K, MATH with MetaMath's augmentation of it, and MetaMath's augmentation of GSM8K.

Nothing of it is part of this project. Where files lie in a mirror, below ``datasets``:

============================  =============================================================================
``openai/gsm8k``              ``main/train-*.parquet`` and ``main/test-*.parquet`` (``question``, ``answer``)
``meta-math/MetaMathQA``      ``MetaMathQA-395K.json`` (``query``, ``response``, ``type``, ``original_question``)
``HuggingFaceH4/MATH-500``    ``test.jsonl`` (``problem``, ``solution``, ``answer``)
============================  =============================================================================

Solutions of GSM8K have calculator annotations in double angle brackets, which are taken out, and their answer after ``####``,
in whose place "The answer is:" is put (official code). Those of MetaMathQA end in "The answer is:" already; most of the MATH
part's have a box as well, and where one has none the final answer is put into one, since boxes are what is read. Those of
MATH-500 have a box and no such phrase.

MetaMath's questions are ones of GSM8K's and MATH's training splits, answered again, rephrased or turned round; their
``original_question`` says of which. That is what splits go by, so that no model trains on a rephrasing of what it is
validated with. (That MATH's 50,000 are drawn from all four ways in which MetaMath made them is inferred: the paper says "50k
subset" only.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from baselines.post_training.answers import last_boxed, last_number
from rematch.errors import RematchError, unknown
from rematch.hub import Hub
from rematch.hub_files import Origin, find_file, find_files, json_items, json_rows, parquet_rows
from workflows.revise.questions import Question
from workflows.revise.text_task import FINAL_ANSWERS, AnswerKind

GSM8K, META_MATH, MATH_500 = "openai/gsm8k", "meta-math/MetaMathQA", "HuggingFaceH4/MATH-500"
GSM8K_ORIGIN = Origin("main/train-*.parquet and main/test-*.parquet", "the hub", "MIT")
META_MATH_FILE = "MetaMathQA-395K.json"
META_MATH_ORIGIN = Origin(META_MATH_FILE, "the hub", "MIT; its solutions were written by GPT-3.5")
MATH_500_ORIGIN = Origin("test.jsonl", "the hub", "none stated; MATH itself is MIT")

KINDS = ("AnsAug", "Rephrased", "SV", "FOBAR")
"""How MetaMath made a question: the same with another solution, rephrased, or turned round in one of two ways."""
TYPES = tuple(f"{data}_{kind}" for data in ("GSM", "MATH") for kind in KINDS)

MARKER = "The answer is:"
VALIDATION = 0.1
"""Share of the training rows held out, where the paper names no number."""
_ANNOTATION = re.compile(r"<<[^\n]*?>>")
_NUMBER_LIKE = re.compile(r"\d[\d.,]*")
_PLAIN_NUMBER = re.compile(r"-?\d+(,\d{3})*(\.\d+)?")


class Row(NamedTuple):
    """A row of a file.

    ``place`` is its number in the file, from 0; ``original`` the question that it was made of; ``final`` the final answer as the
    file states it, with or without a unit, empty where it does not.
    """

    place: int
    question: str
    solution: str
    original: str
    final: str


@dataclass(frozen=True)
class HubQuestions:
    """The parts of a data set.

    Attributes:
        answer: how final answers are read: ``answer`` of ``TextTask``.
        n_left_out: rows that cannot be used, by part and reason. Train and validation are drawn from the same rows, ``train``.
    """

    train: list[Question]
    validation: list[Question]
    test: list[Question]
    answer: AnswerKind
    n_left_out: Counter[str]


def hub_questions(
    source: str,
    hub: Hub,
    seed: int,
    n_train: int | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
) -> HubQuestions:
    """Train and validation drawn by the seed, and the test questions.

    Validation takes whole originals, each with all that was made of it, and train none of these. With the same seed and
    validation, the first n1 of n2 training questions are the same.

    Args:
        source: ``gsm8k``; ``math``, trained on MetaMath's augmentation and tested on MATH-500; ``gsm240k``, trained on
            MetaMath's augmentation of GSM8K and tested on GSM8K.
        n_train, n_validation: the paper's where None: 50,000 and 3,000 of ``math``; of the others a tenth for validation and
            all the rest.
        n_test: the first so many; all where None. A question's name ends in its row, which is what lm-eval counts by too.

    Raises:
        RematchError: files are missing or bad, or hold fewer questions than that.
    """
    known = _source(source)
    for name, n in (("n_train", n_train), ("n_validation", n_validation), ("n_test", n_test)):
        if n is not None and n < 1:
            raise RematchError(f"{source}: {name}: {n}; allowed: whole numbers from 1")
    left_out: Counter[str] = Counter()
    test = list(_readable(known.test(hub), known.answer, "test", left_out))
    asked = {_plain(row.question) for row in test}
    rows = []
    for row in _readable(known.train(hub), known.answer, "train", left_out):
        if asked.isdisjoint((_plain(row.question), _plain(row.original))):
            rows.append(row)
        else:
            left_out["train: of a question of the test part"] += 1

    wanted = n_validation or known.n_validation or max(1, round(len(rows) * VALIDATION))
    validation, rest, n_related = _split(rows, wanted, seed)
    left_out["train: of the same original as a question of validation"] += n_related
    n = n_train or known.n_train or max(1, len(rest))
    for name, n_wanted, n_found in (("n_validation", wanted, len(validation)), ("n_train", n, len(rest))):
        if n_found < n_wanted:
            raise RematchError(
                f"{source}: {name}: {n_wanted}; there are {n_found} such questions among {len(rows)} that can be used (left out: "
                f"{dict(+left_out)}). Ask for fewer"
            )
    return HubQuestions(
        train=_questions(rest[:n], f"{source}/train"),
        validation=_questions(validation, f"{source}/validation"),
        test=_first(test, known, n_test),
        answer=known.answer,
        n_left_out=+left_out,
    )


def evaluation_questions(
    source: str, hub: Hub, n: int | None = None, answer: AnswerKind | None = None
) -> tuple[list[Question], Counter[str]]:
    """The test questions alone, and what was left out: for models that were trained on another source.

    Args:
        answer: how final answers are to be read. Where it is not the source's way, a solution is no more than its final answer
            written so; a box that holds no plain number cannot be, and its question is left out.
    """
    known = _source(source)
    left_out: Counter[str] = Counter()
    rows = list(_readable(known.test(hub), known.answer, "test", left_out))
    if answer is not None and answer != known.answer:
        rows = list(_restated(rows, known.answer, answer, left_out))
    return _first(rows, known, n), left_out


def _restated(rows: Iterable[Row], given: AnswerKind, wanted: AnswerKind, left_out: Counter[str]) -> Iterator[Row]:
    for row in rows:
        final = str(FINAL_ANSWERS[given](row.solution))
        if wanted == "boxed":
            yield row._replace(solution=f"{MARKER} $\\boxed{{{final}}}$")
        elif _PLAIN_NUMBER.fullmatch(final):
            yield row._replace(solution=f"{MARKER} {final}")
        else:
            left_out["test: no plain number"] += 1


@dataclass(frozen=True)
class Source:
    """A data set: what it is trained and tested on.

    Attributes:
        test_name: that test questions are called by; the same for the same file.
        n_train, n_validation: the paper's numbers; None for all, and a share of ``VALIDATION``.
    """

    train: Callable[[Hub], Iterator[Row]]
    test: Callable[[Hub], Iterator[Row]]
    test_name: str
    answer: AnswerKind
    n_train: int | None = None
    n_validation: int | None = None


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise unknown("source", name, SOURCES, "ReVISE's data")
    return SOURCES[name]


def _first(test: Sequence[Row], source: Source, n: int | None) -> list[Question]:
    if not test or len(test) < (n or 1):
        raise RematchError(f"n_test: {n}; {source.test_name} has {len(test)} test questions that can be used")
    return _questions(test[:n], f"{source.test_name}/test")


# -- files ------------------------------------------------------------------------------------------------------------


def _gsm8k(hub: Hub, split: str) -> Iterator[Row]:
    paths = find_files(hub, GSM8K, [f"main/{split}-*.parquet"], GSM8K_ORIGIN)
    rows = (row for path in paths for row in parquet_rows(path, ("question", "answer")))
    for place, row in enumerate(rows):
        steps, _, final = _ANNOTATION.sub("", row["answer"]).partition("####")
        yield Row(place, row["question"], f"{steps.rstrip()}\n{MARKER} {final.strip()}", row["question"], final)


def _meta_math(hub: Hub, data: str) -> Iterator[Row]:
    path = find_file(hub, META_MATH, META_MATH_FILE, META_MATH_ORIGIN)
    for place, row in enumerate(json_items(path, ("query", "response", "type", "original_question"))):
        if row["type"] not in TYPES:
            raise unknown("type", row["type"], TYPES, f"{path}, row {place + 1}")
        if row["type"].startswith(f"{data}_"):
            final = row["response"].rpartition(MARKER)[2] if MARKER in row["response"] else ""
            yield Row(place, row["query"], row["response"], row["original_question"], final)


def _math_500(hub: Hub) -> Iterator[Row]:
    path = find_file(hub, MATH_500, "test.jsonl", MATH_500_ORIGIN)
    for place, row in enumerate(json_rows(path, ("problem", "solution", "answer"))):
        yield Row(place, row["problem"], row["solution"], row["problem"], row["answer"])


SOURCES: dict[str, Source] = {
    "gsm8k": Source(
        train=lambda hub: _gsm8k(hub, "train"),
        test=lambda hub: _gsm8k(hub, "test"),
        test_name="gsm8k",
        answer="number",
    ),
    "math": Source(
        train=lambda hub: _meta_math(hub, "MATH"),
        test=_math_500,
        test_name="math",
        answer="boxed",
        n_train=50_000,
        n_validation=3_000,
    ),
    "gsm240k": Source(
        train=lambda hub: _meta_math(hub, "GSM"),
        test=lambda hub: _gsm8k(hub, "test"),
        test_name="gsm8k",
        answer="number",
    ),
}


# -- rows -------------------------------------------------------------------------------------------------------------


def _readable(rows: Iterable[Row], answer: AnswerKind, part: str, left_out: Counter[str]) -> Iterator[Row]:
    """The rows that ask something and have a final answer that can be read."""
    for row in rows:
        read = row if answer == "number" else _boxed(row)
        if not row.question.strip():
            left_out[f"{part}: no question"] += 1
        elif reason := _lack(read, answer):
            left_out[f"{part}: {reason}"] += 1
        else:
            yield read


def _boxed(row: Row) -> Row:
    """The row with its final answer in a box, if it was in none."""
    final = row.final.strip().removesuffix(".").strip("$ ")
    if last_boxed(row.solution) is not None or not final:
        return row
    steps = row.solution.rpartition(MARKER)[0] if MARKER in row.solution else f"{row.solution}\n"
    return row._replace(solution=f"{steps}{MARKER} $\\boxed{{{final}}}$")


def _lack(row: Row, answer: AnswerKind) -> str:
    """What makes a final answer useless, in words."""
    if answer == "boxed":
        return "" if last_boxed(row.solution) is not None else "no final answer"
    numbers = _NUMBER_LIKE.findall(row.final)
    if len(numbers) > 1:
        return "several numbers as final answer"
    return "" if last_number(row.final) is not None else "no number as final answer"


def _split(rows: Sequence[Row], n: int, seed: int) -> tuple[list[Row], list[Row], int]:
    """n rows of validation, the others in random order, and how many were left out as related to the first."""
    rng = np.random.default_rng([seed, *b"split"])
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_plain(row.original), []).append(row)
    held_out: set[str] = set()
    validation: list[Row] = []
    originals = list(groups)
    for i in rng.permutation(len(originals)):
        if len(validation) >= n:
            break
        held_out.add(originals[i])
        validation += groups[originals[i]]
    rest = [row for row in rows if _plain(row.original) not in held_out]
    return validation[:n], [rest[i] for i in rng.permutation(len(rest))], max(0, len(validation) - n)


def _questions(rows: Iterable[Row], name: str) -> list[Question]:
    return [Question(f"{name}/{row.place}", row.question, row.solution) for row in rows]


def _plain(text: str) -> str:
    return " ".join(text.split())
