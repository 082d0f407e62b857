"""Sums of what still follows, written from the left: easy to check, hard to write.

A question reads ``4 7 3 6 ?``, its solution ``2 1 0 0``: behind each digit the sum of it and of all digits after it, modulo 3.
The first one takes all digits at once; a model that cannot do that guesses it, and what it writes then follows from the guess.
Checking is local: the last number must be the last digit's, any other one its digit more than the next. And a wrong
solution tells how to mend it, for all its numbers are off by the same. Nothing in the data marks what is right or wrong.

A solution depends on the digits modulo 3 alone. Questions that have these in common go into the same part, so that none of a
test was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt
from transformers import PreTrainedTokenizerFast

from baselines.post_training.batches import Ids
from baselines.post_training.problems import Problem
from rematch.errors import RematchError, unknown
from workflows.revise.questions import PARTS, Part, Question, is_of_part
from workflows.revise.words import ASK, BOS, DIGITS, SPECIAL, encode_words, numbered, word_tokenizer

WORDS = (*SPECIAL, *DIGITS)
IDS = numbered(WORDS)
_DIGIT_IDS = frozenset(IDS[digit] for digit in DIGITS)

Split = Literal["id", "ood_dense"]
SPLITS: tuple[Split, ...] = ("id", "ood_dense")

Status = Literal["ok", "empty", "garbled", "too_short", "too_long"]
_BLOCK, _TRIES = 512, 200  # questions drawn at once, which is part of what a seed means; blocks without a new one


@dataclass(frozen=True)
class TailSums:
    """The task.

    Attributes:
        columns: digits of a question.
        modulus: of the sums, 2 to 10.
        neutral: probability that a digit is a multiple of the modulus, which changes no sum: questions with few others are
            easy.
        most: other digits in ``id`` at most; ``ood_dense`` has more of them.
        least_first: sums of what came before instead, which need no looking ahead: a control, where there is nothing to gain.
    """

    columns: PositiveInt = 7
    modulus: Annotated[int, Field(ge=2, le=10)] = 3
    neutral: Annotated[float, Field(gt=0, lt=1)] = 0.7
    most: PositiveInt = 4
    least_first: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.neutral < 1:
            raise RematchError(f"TailSums: neutral is a probability between 0 and 1, not {self.neutral}")
        if not 2 <= self.modulus <= 10:
            raise RematchError(f"TailSums: modulus must be 2 to 10, so that sums are digits, not {self.modulus}")
        if not 0 < self.most < self.columns:
            raise RematchError(
                f"TailSums: most must be at least 1 and below columns, so that there are denser questions; got {self.most} of "
                f"{self.columns}"
            )

    @property
    def splits(self) -> tuple[Split, ...]:
        """The test sets that there are."""
        return SPLITS

    def questions(self, n: int, split: Split = "id", part: Part = "train", seed: int = 0) -> list[Question]:
        """n different questions; with the same seed the first n1 of n2 are the same.

        Raises:
            RematchError: a split or part that there is not, or more questions than a part has.
        """
        if split not in SPLITS:
            raise unknown("split", split, SPLITS, "TailSums")
        if part not in PARTS:
            raise unknown("part", part, PARTS, "TailSums")
        rng = np.random.default_rng([seed, *f"{split}/{part}".encode()])
        multiples = np.arange(0, 10, self.modulus)
        others = np.setdiff1d(np.arange(10), multiples)
        found: dict[bytes, Question] = {}
        idle = 0
        while len(found) < n:
            before = len(found)
            shape = (_BLOCK, self.columns)
            digits = np.where(rng.random(shape) < self.neutral, rng.choice(multiples, shape), rng.choice(others, shape))
            dense = (digits % self.modulus > 0).sum(1) > self.most
            for row in digits[dense == (split == "ood_dense")].tolist():
                key = bytes(row)
                if key not in found and is_of_part(bytes(digit % self.modulus for digit in row), part):
                    found[key] = self._question(f"{split}/{part}/{len(found)}", row)
            idle = 0 if len(found) > before else idle + 1
            if idle == _TRIES:
                raise RematchError(
                    f"TailSums: there are no more than {len(found)} questions in part '{part}' of split '{split}'; ask for fewer, "
                    "or give them more columns"
                )
        return list(found.values())[:n]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A tokenizer of the words, which puts ``<bos>`` before a text."""
        return word_tokenizer(IDS)

    def problem(self, question: Question) -> Problem:
        """A question in token ids.

        Raises:
            RematchError: it is no question of this task, or its solution is none of it.
        """
        form = f"a question is {self.columns} digits and {ASK}, a solution {self.columns} digits"
        prompt = encode_words(f"{BOS} {question.question}", IDS, form)
        solution = encode_words(question.solution, IDS, form)
        asked = prompt[1:-1]
        well_formed = len(asked) == self.columns and _DIGIT_IDS.issuperset(asked) and prompt[-1] == IDS[ASK]
        if not well_formed or self.status(solution, prompt) != "ok":
            raise RematchError(
                f"{question.name}: '{question.question}' with the solution '{question.solution}' is no question of this task; {form}"
            )
        return Problem(prompt, solution, partial(self._answer, prompt))

    def hint(self, problem: Problem) -> Ids:
        """The prompt with the sums before the question mark."""
        return (*problem.prompt[:-1], *problem.solution, problem.prompt[-1])

    def status(self, solution: Ids, prompt: Ids) -> Status:
        """Whether an answer can be read off a solution without its end token.

        ``ok``; ``empty``; ``garbled``, other words than digits; ``too_short`` or ``too_long``.
        """
        n = len(prompt) - 2
        if not solution:
            return "empty"
        if not _DIGIT_IDS.issuperset(solution):
            return "garbled"
        return "ok" if len(solution) == n else "too_short" if len(solution) < n else "too_long"

    def text(self, ids: Ids) -> str:
        """Token ids as a person reads them."""
        return " ".join(WORDS[i] for i in ids)

    def _answer(self, prompt: Ids, solution: Ids) -> str | None:
        return self.text(solution) if self.status(solution, prompt) == "ok" else None

    def _question(self, name: str, digits: list[int]) -> Question:
        sums = np.cumsum(digits if self.least_first else digits[::-1]) % self.modulus
        ordered = sums.tolist() if self.least_first else sums[::-1].tolist()
        return Question(name, f"{' '.join(map(str, digits))} {ASK}", " ".join(map(str, ordered)))
