"""Final answers in solutions written as text, and votes between them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from baselines.post_training.batches import Ids
from baselines.post_training.problems import FinalAnswer
from rematch.errors import RematchError

_NUMBER_LIKE = re.compile(r"-?[$\d.,]+")
"""What may be a number if it holds a digit. To ask for the digit here would take quadratic time on rows of dots."""

_DIGIT = re.compile(r"\d")


def last_number(text: str) -> Decimal | None:
    """The last number of a text, as GSM8K's answers are read: 7 and 7.0 are the same.

    Commas, dollar signs and one final full stop are dropped. None where there is no number, or what looks like the last one
    is none ("1.2.3").
    """
    found = [run for run in _NUMBER_LIKE.findall(text) if _DIGIT.search(run)]
    if not found:
        return None
    try:
        return Decimal(found[-1].replace(",", "").replace("$", "").removesuffix("."))
    except InvalidOperation:
        return None


def last_boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{...}`` of a text, without spaces, as MATH's answers are read.

    None where there is none, it is empty, or its braces are not closed.
    """
    start = text.rfind(r"\boxed{")
    depth = 0
    for i in range(start + len(r"\boxed"), len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if not depth:
            return re.sub(r"\s+", "", text[start + len(r"\boxed{") : i]) or None
    return None


def on_ids(tokenizer: Any, final_answer: Callable[[str], Hashable | None]) -> FinalAnswer:
    """A reader of text as a reader of token ids. Special tokens are left out."""

    def read(ids: Ids) -> Hashable | None:
        return final_answer(str(tokenizer.decode(list(ids), skip_special_tokens=True)))

    return read


def weighted_vote(answers: Sequence[Hashable | None], weights: Sequence[float]) -> Hashable | None:
    """The answer with the largest sum of weights; ties go to the one seen first. None never wins against an answer.

    Args:
        weights: one an answer, not negative.

    Raises:
        RematchError: as many weights as answers are needed, none of them negative or NaN.
    """
    if len(answers) != len(weights) or not all(weight >= 0 for weight in weights):
        raise RematchError(
            f"a vote needs a weight that is not negative for each of {len(answers)} answers, not {list(weights)}"
        )
    votes: dict[Hashable, list[float]] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(weight)
    # fsum: equal votes in another order are equal.
    return max(votes, key=lambda answer: math.fsum(votes[answer]), default=None)


def pass_at_n(answers: Sequence[Hashable | None], truth: Hashable) -> bool:
    """Whether any answer is right: what an oracle would choose."""
    return any(answer == truth for answer in answers)
