"""Column addition written from the left, though the carry comes from the right: easy to check, hard to write.

Writing a digit takes looking ahead through the columns to its right as long as they sum to 9 (*propagate*: such a column
hands on whatever carry comes in); checking a written sum takes neighbouring columns only. That gap is what self-verification
lives on. Nothing in the data marks what is right or wrong.

A question reads ``3+6 d 4+5 e 7+7 f ?``, a solution ``d 0 e 0 f 4``: a column is a pair of digits and a label, and labels are
consecutive ones of a ring of twelve that begins anywhere, so that a column is fetched by its label and not by its place:
that works as well when a first attempt stands between the question and the second one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, PositiveInt
from transformers import PreTrainedTokenizerFast

from baselines.post_training.batches import Ids
from baselines.post_training.problems import Problem
from rematch.errors import RematchError, unknown
from workflows.revise.questions import PARTS, Part, Question, is_of_part
from workflows.revise.words import ASK, BOS, DIGITS, SPECIAL, encode_words, numbered, word_tokenizer

LABELS = tuple("abcdefghijkl")
PAIRS = tuple(f"{a}+{b}" for a, b in product(DIGITS, DIGITS))
WORDS = (*SPECIAL, *PAIRS, *DIGITS, *LABELS)
IDS = numbered(WORDS)
_LABEL_IDS = frozenset(IDS[word] for word in LABELS)
_DIGIT_IDS = frozenset(IDS[word] for word in DIGITS)
_PAIR_IDS = frozenset(IDS[word] for word in PAIRS)

Split = Literal["id", "ood_long", "ood_carry"]
SPLITS: tuple[Split, ...] = ("id", "ood_long", "ood_carry")

Status = Literal["ok", "empty", "garbled", "too_short", "too_long", "wrong_labels"]
_BLOCK = 512  # sums drawn at once; part of what a seed means


class Reading(NamedTuple):
    """What a solution says.

    Attributes:
        answer: the digits of the sum, most significant first; None unless ``ok``.
        status: ``ok``; ``empty``; ``garbled``, no columns of a label and a digit; ``too_short`` or ``too_long``, the
            question's labels but not as many; ``wrong_labels``, other ones.
    """

    answer: str | None
    status: Status


@dataclass(frozen=True)
class Addition:
    """The task.

    Attributes:
        propagate: probability that a column sums to 9, which makes long carries (pi).
        lengths: numbers of columns in ``id``, and of what is trained on.
        max_run: most columns in a row that sum to 9, in ``id`` and ``ood_long``.
        long, carry: numbers of columns in ``ood_long``, and in ``ood_carry``, where a run is longer than ``max_run``.
        labelled: without labels columns are fetched by their place: all questions are as long as each other, there is no
            ``ood_long``, and ``long`` is empty. For models that do not learn to look up a label.
        least_first: columns are given and written from the right, so that no looking ahead is needed: a control, where
            there is nothing to gain.
    """

    propagate: Annotated[float, Field(gt=0, lt=1)] = 0.6
    lengths: tuple[PositiveInt, ...] = (5, 6, 7)
    max_run: PositiveInt = 3
    long: tuple[PositiveInt, ...] = (8, 9, 10)
    carry: tuple[PositiveInt, ...] = (6, 7)
    labelled: bool = True
    least_first: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.propagate < 1:
            raise RematchError(f"Addition: propagate is a probability between 0 and 1, not {self.propagate}")
        columns = (*self.lengths, *self.long, *self.carry)
        if not self.lengths or not all(0 < n <= len(LABELS) for n in columns):
            raise RematchError(
                f"Addition: questions have 1 to {len(LABELS)} columns, one length at least; got {columns}"
            )
        if self.max_run < 1 or any(n <= self.max_run for n in self.carry):
            raise RematchError(
                f"Addition: max_run must be at least 1, and the lengths of carry above it; got {self.max_run}, {self.carry}"
            )
        if not self.labelled and len(set(columns)) > 1:
            raise RematchError(
                f"Addition: without labels all questions have the same number of columns, and long is empty; got {columns}"
            )

    def questions(self, n: int, split: Split = "id", part: Part = "train", seed: int = 0) -> list[Question]:
        """n different questions; with the same seed the first n1 of n2 are the same.

        Raises:
            RematchError: a split or part that there is not, or more questions than a part has.
        """
        if split not in SPLITS:
            raise unknown("split", split, SPLITS, "Addition")
        if part not in PARTS:
            raise unknown("part", part, PARTS, "Addition")
        lengths = {"id": self.lengths, "ood_long": self.long, "ood_carry": self.carry}[split]
        if not lengths:
            raise RematchError(f"Addition: there is no split '{split}' without lengths for it ({self})")
        key = [seed, *f"{split}/{part}".encode()]
        sums = {length: self._sums(length, split, part, np.random.default_rng([*key, length])) for length in lengths}
        drawn = np.random.default_rng(key).random((n, 2)) * (len(lengths), len(LABELS))
        return [
            self._question(f"{split}/{part}/{i}", *next(sums[lengths[which]]), start)
            for i, (which, start) in enumerate(drawn.astype(int).tolist())
        ]

    @property
    def splits(self) -> tuple[Split, ...]:
        """The test sets that there are."""
        return tuple(split for split in SPLITS if split != "ood_long" or self.long)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A tokenizer of the words, which puts ``<bos>`` before a text."""
        return word_tokenizer(IDS)

    def problem(self, question: Question) -> Problem:
        """A question in token ids.

        Raises:
            RematchError: it is no question of this task, or its solution is none of it.
        """
        prompt, solution = encode(f"{BOS} {question.question}"), encode(question.solution)
        body = prompt[1:-1]
        pairs, labels = (body[::2], body[1::2]) if self.labelled else (body, ())
        well_formed = (
            prompt[-1] == IDS[ASK] and _PAIR_IDS.issuperset(pairs) and len(labels) == len(pairs) * self.labelled
        )
        reader = partial(self._answer, n=len(pairs), labels=labels)
        if not well_formed or not pairs or reader(solution) is None:
            form = (
                "'3+6 d 4+5 e ?' with the solution 'd 9 e 9'"
                if self.labelled
                else "'3+6 4+5 ?' with the solution '9 9'"
            )
            raise RematchError(
                f"{question.name}: '{question.question}' with the solution '{question.solution}' is no question of this task; "
                f"they read {form}"
            )
        return Problem(prompt, solution, reader)

    def read(self, solution: Ids, prompt: Ids) -> Reading:
        """What a solution, without its end token, says to a prompt that ``problem`` made."""
        body = prompt[1:-1]
        return (
            self._read(solution, len(body) // 2, body[1::2]) if self.labelled else self._read(solution, len(body), ())
        )

    def status(self, solution: Ids, prompt: Ids) -> Status:
        """Whether an answer can be read off a solution; see ``Reading``."""
        return self.read(solution, prompt).status

    def text(self, ids: Ids) -> str:
        """Token ids as a person reads them."""
        return decode(ids)

    def hint(self, problem: Problem) -> Ids:
        """The prompt with the digits of the answer before the question mark, in the order in which they are written."""
        digits = str(problem.answer)[::-1] if self.least_first else str(problem.answer)
        return (*problem.prompt[:-1], *(IDS[digit] for digit in digits), problem.prompt[-1])

    def _read(self, solution: Ids, n: int, labels: Ids) -> Reading:
        written, digits = (solution[::2], solution[1::2]) if self.labelled else ((), solution)
        if not solution:
            return Reading(None, "empty")
        if (
            len(written) != len(digits) * self.labelled
            or not _LABEL_IDS.issuperset(written)
            or not _DIGIT_IDS.issuperset(digits)
        ):
            return Reading(None, "garbled")
        if written[:n] != labels[: len(written)]:
            return Reading(None, "wrong_labels")
        if len(digits) != n:
            return Reading(None, "too_short" if len(digits) < n else "too_long")
        answer = "".join(WORDS[digit] for digit in digits)
        return Reading(answer[::-1] if self.least_first else answer, "ok")

    def _answer(self, solution: Ids, n: int, labels: Ids) -> str | None:
        return self._read(solution, n, labels).answer

    def _question(self, name: str, a: np.ndarray, b: np.ndarray, start: int) -> Question:
        """A sum (n,), (n,) of digits, most significant first, as text."""
        n = len(a)
        total = (_number(a) + _number(b)) % 10**n
        columns = [(f"{x}+{y}", digit) for x, y, digit in zip(a, b, f"{total:0{n}d}", strict=True)]
        if self.least_first:
            columns.reverse()
        labels = [LABELS[(start + i) % len(LABELS)] for i in range(n)] if self.labelled else [""] * n
        question = " ".join(f"{pair} {label}".strip() for (pair, _), label in zip(columns, labels, strict=True))
        solution = " ".join(f"{label} {digit}".strip() for (_, digit), label in zip(columns, labels, strict=True))
        return Question(name, f"{question} {ASK}", solution)

    def _sums(
        self, n: int, split: Split, part: Part, rng: np.random.Generator
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Different pairs of numbers as digits (n,), (n,), without end."""
        seen: set[bytes] = set()
        while True:
            before = len(seen)
            for _ in range(200):
                a = rng.integers(0, 10, (_BLOCK, n))
                off = np.where(rng.random((_BLOCK, n)) < self.propagate, 0, rng.integers(1, 10, (_BLOCK, n)))
                b = (9 - a + off) % 10
                longer = longest_run(off == 0) > self.max_run
                fits = longer if split == "ood_carry" else ~longer
                for row in np.flatnonzero(fits):
                    key = bytes([*a[row].tolist(), *b[row].tolist()])
                    if key not in seen and is_of_part(key, part):
                        seen.add(key)
                        yield a[row], b[row]
                if len(seen) > before:
                    break
            else:
                raise RematchError(
                    f"Addition: there are no more than {before} sums of {n} columns in part '{part}' of split '{split}'; "
                    "ask for fewer questions, or give them more columns"
                )


def longest_run(marked: np.ndarray) -> np.ndarray:
    """The most marked columns in a row, (rows,), of a boolean array (rows, columns)."""
    run = longest = np.zeros(len(marked), np.int64)
    for column in marked.T:
        run = np.where(column, run + 1, 0)
        longest = np.maximum(longest, run)
    return longest


def encode(text: str) -> Ids:
    """Token ids of words with spaces between them.

    Raises:
        RematchError: a word that is not in the vocabulary.
    """
    form = f"a sum is written in pairs of digits such as 3+6, digits, labels {LABELS[0]} to {LABELS[-1]} and {ASK}"
    return encode_words(text, IDS, form)


def decode(ids: Ids) -> str:
    """The words of token ids."""
    return " ".join(WORDS[i] for i in ids)


def _number(digits: np.ndarray) -> int:
    return int("".join(map(str, digits.tolist())))
