"""Final answers read off text, and votes."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from tiny_revise import WORDS, tokenizer

from baselines.post_training.answers import last_boxed, last_number, on_ids, pass_at_n, weighted_vote
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


def test_numbers_are_the_runs_with_a_digit() -> None:
    """As found by asking for the digit in the pattern itself, which takes quadratic time where there is none."""
    rng = np.random.default_rng(0)
    slow = re.compile(r"-?[$\d.,]*\d[$\d.,]*")
    for _ in range(3000):
        text = "".join(rng.choice(list("-$.,17 a"), rng.integers(0, 12)))
        found = slow.findall(text)
        bare = found[-1].replace(",", "").replace("$", "").removesuffix(".") if found else ""
        expected = Decimal(bare) if re.fullmatch(r"-?(\d+\.?\d*|\.\d+)", bare) else None
        assert last_number(text) == expected, text


@pytest.mark.parametrize("text", ["." * 200_000, "$," * 100_000, "-" * 200_000, "7 " + "-." * 100_000])
def test_a_long_text_without_numbers_is_read_through_once(text: str) -> None:
    assert last_number(text) == (7 if text.startswith("7") else None)


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
    assert weighted_vote([7, 7, 12], [1.0] * 3) == 7
    assert weighted_vote([3, 5], [0.2, 0.9]) == 5
    assert weighted_vote([3, 5], [1.0] * 2) == 3
    assert weighted_vote([5, 3, 3, 5], [1.0] * 4) == 5  # ties: first seen
    assert weighted_vote([None, 3], [1.0, 1e-9]) == 3
    assert weighted_vote([None, 3], [1.0, 0.0]) == 3
    assert weighted_vote([None, None], [1.0, 1.0]) is None
    assert weighted_vote([], []) is None


def test_equal_weights_are_a_majority_and_scale_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    for answers in itertools.product([None, 1, 2, 3], repeat=4):
        counts = Counter(answer for answer in answers if answer is not None)  # the most frequent one, first seen first
        expected = counts.most_common(1)[0][0] if counts else None
        assert weighted_vote(answers, [0.1] * 4) == expected
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
