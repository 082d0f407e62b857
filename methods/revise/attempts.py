"""A model's own completions, cut into attempts that are right or wrong (official code; section 3.2 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from baselines.post_training.batches import Ids
from baselines.post_training.problems import Completion, Problem
from methods.revise.tokens import Tokens, strip

Attempt = TypeVar("Attempt", Ids, str)


class Row(NamedTuple):
    """An attempt at a problem.

    Attributes:
        question: index of the problem.
        ids: ŷ, without the token that ended it, and without the attempts that stood before it.
        right: whether its final answer is the ground truth's.
    """

    question: int
    ids: Ids
    right: bool


def split_attempts(completion: Sequence[int], tokens: Tokens) -> list[Ids]:
    """What stands before the first E, split at every R, stripped; blanks are skipped."""
    attempts: list[list[int]] = [[]]
    for token in completion:
        if token == tokens.end:
            break
        if token == tokens.refine:
            attempts.append([])
        else:
            attempts[-1].append(token)
    return [stripped for ids in attempts if (stripped := strip(ids, tokens.blank))]


def judge(
    attempts: Sequence[Attempt], final_answer: Callable[[Attempt], Hashable | None], truth: Hashable
) -> list[tuple[Attempt, bool]]:
    """Attempts with whether they are right, up to the first wrong one: those after it are not used.

    Args:
        final_answer: of an attempt; None, where none can be read, is wrong.
        truth: the right final answer.
    """
    judged: list[tuple[Attempt, bool]] = []
    for attempt in attempts:
        answer = final_answer(attempt)
        judged.append((attempt, answer is not None and answer == truth))
        if not judged[-1][1]:
            break
    return judged


def attempt_rows(
    completions: Sequence[Completion], problems: Sequence[Problem], tokens: Tokens, use_gt: bool = False
) -> list[Row]:
    """A row for every attempt of every completion, up to its first wrong one.

    Args:
        use_gt: the ground truths are further right attempts, once a question, after all others (off in the official scripts).
    """
    rows = [
        Row(completion.question, ids, right)
        for completion in completions
        for ids, right in judge(
            split_attempts(completion.ids, tokens),
            problems[completion.question].final_answer,
            problems[completion.question].answer,
        )
    ]
    if use_gt:
        rows += [Row(question, problem.solution, True) for question, problem in enumerate(problems)]
    return rows


def draw_rows(rows: Sequence[Row], n: int | None, seed: int) -> list[Row]:
    """n of the rows in a random order; all, in order, where None or where there are no more."""
    if n is None or n >= len(rows):
        return list(rows)
    return [rows[i] for i in np.random.default_rng([seed, *b"rows"]).permutation(len(rows))[:n]]


def shuffle_labels(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows with their labels dealt out anew: a negative control, from which no verification can be learned."""
    order = np.random.default_rng([seed, *b"labels"]).permutation(len(rows))
    return [row._replace(right=rows[i].right) for row, i in zip(rows, order, strict=True)]
