"""Final answers read off text, and votes."""

from __future__ import annotations

import itertools
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from tiny_revise import WORDS, tokenizer

from baselines.post_training.answers import last_boxed, last_number, majority_vote, on_ids, pass_at_n, weighted_vote
from rematch.errors import RematchError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is: 7", "7"),
        ("3 + 4 = 7.0", "7"),
        ("so it costs $1,234.50.", "1234.5"),
        ("from 5 to -3", "-3"),
        ("-$12", "-12"),
        ("$-12", "-12"),
        (".5 of it", "0.5"),
        ("7. The answer is: 8.", "8"),
        ("1 and then 1.2.3", None),
        ("no number", None),
        ("$ , .", None),
        ("", None),
        ("1" * 60, "1" * 60),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


def test_equal_numbers_are_one_answer() -> None:
    assert len({last_number("7"), last_number("7.0"), last_number("$7."), last_number("07")}) == 1
    assert last_number("7") == 7 == Fraction(7)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} and \boxed{ \frac{1}{2} }", r"\frac{1}{2}"),
        (r"\boxed{{a}}.", "{a}"),
        (r"\boxed{1", None),
        (r"\boxed{}", None),
        (r"\boxed{1} but \boxed{2", None),
        ("nothing", None),
    ],
)
def test_last_boxed(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


def test_readers_of_text_read_ids() -> None:
    read = on_ids(tokenizer(), last_number)
    assert read((WORDS.index("3"), WORDS.index("is"), WORDS.index("11"), WORDS.index("<eos>"))) == 11
    assert read((WORDS.index("is"),)) is None


def test_votes_by_hand() -> None:
    assert weighted_vote([7, 7, 12], [0.30, 0.25, 0.60]) == 12
    assert majority_vote([7, 7, 12]) == 7
    assert weighted_vote([3, 5], [0.2, 0.9]) == 5
    assert majority_vote([3, 5]) == 3
    assert majority_vote([5, 3, 3, 5]) == 5  # ties: first seen
    assert weighted_vote([None, 3], [1.0, 1e-9]) == 3
    assert weighted_vote([None, 3], [1.0, 0.0]) == 3
    assert weighted_vote([None, None], [1.0, 1.0]) is None
    assert weighted_vote([], []) is None


def test_equal_weights_are_a_majority_and_scale_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    for answers in itertools.product([None, 1, 2, 3], repeat=4):
        assert weighted_vote(answers, [0.1] * 4) == majority_vote(answers)
        weights = rng.random(4)
        assert weighted_vote(answers, weights.tolist()) == weighted_vote(answers, (7 * weights).tolist())
    # Sums that are equal but for the order of their rounding are ties.
    assert weighted_vote([1, 2, 1, 2, 1, 2], [0.1, 0.3, 0.2, 0.2, 0.3, 0.1]) == 1
    assert weighted_vote([2, 1, 1, 1, 2, 2], [0.1, 0.3, 0.2, 0.1, 0.2, 0.3]) == 2


@pytest.mark.parametrize("weights", [[1.0], [1.0, -0.1], [1.0, float("nan")]])
def test_impossible_weights(weights: list[float]) -> None:
    with pytest.raises(RematchError, match="a vote needs a weight"):
        weighted_vote([1, 2], weights)


def test_the_oracle() -> None:
    assert pass_at_n([None, 3, 4], 4)
    assert not pass_at_n([None, 3], 4)
    assert not pass_at_n([], 4)
