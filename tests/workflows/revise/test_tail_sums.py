"""ReVISE's sums of what still follows: what is asked, what is right, what is read off an answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoTokenizer

from methods.revise.tokens import find_tokens
from rematch.errors import RematchError
from workflows.revise.questions import PARTS, Question
from workflows.revise.tail_sums import IDS, SPLITS, TailSums
from workflows.revise.words import END, REFINE

TASK = TailSums()
SMALL = TailSums(columns=3, most=1)


def digits(text: str) -> list[int]:
    return [int(word) for word in text.split() if word != "?"]


@pytest.mark.parametrize("split", SPLITS)
def test_each_number_is_the_sum_of_what_still_follows(split: str) -> None:
    for question in TASK.questions(200, split):  # type: ignore[arg-type]
        asked, sums = digits(question.question), digits(question.solution)
        assert sums == [sum(asked[i:]) % 3 for i in range(7)]
        assert (sum(digit % 3 > 0 for digit in asked) > 4) == (split == "ood_dense")


def test_checking_is_local_and_a_wrong_start_is_off_by_the_same_everywhere() -> None:
    for question in TASK.questions(50):
        asked, sums = np.array(digits(question.question)), np.array(digits(question.solution))
        assert sums[-1] == asked[-1] % 3
        assert ((sums[:-1] - sums[1:] - asked[:-1]) % 3 == 0).all()
        wrong = (sums + 1) % 3  # consistent but for its last number
        assert ((wrong[:-1] - wrong[1:] - asked[:-1]) % 3 == 0).all()


def test_least_first_needs_no_looking_ahead() -> None:
    task = replace(TASK, least_first=True)
    for question, same in zip(task.questions(20), TASK.questions(20), strict=True):
        asked = digits(question.question)
        assert digits(question.solution) == [sum(asked[: i + 1]) % 3 for i in range(7)]
        assert question.question == same.question


def test_questions_differ_and_no_two_parts_share_what_solutions_depend_on() -> None:
    def residues(question: Question) -> tuple[int, ...]:
        return tuple(digit % TASK.modulus for digit in digits(question.question))

    asked = {part: [q for seed in (0, 1, 2) for q in TASK.questions(300, "id", part, seed)] for part in PARTS}
    for part, found in asked.items():
        assert all(len({q.question for q in found[i : i + 300]}) == 300 for i in (0, 300, 600))
        others = {residues(q) for name, those in asked.items() if name != part for q in those}
        assert not others & {residues(q) for q in found}


def test_a_seed_gives_a_prefix_and_another_seed_other_questions() -> None:
    assert TASK.questions(10) == TASK.questions(700)[:10]
    assert TASK.questions(10, seed=1) != TASK.questions(10)
    assert [q.name for q in TASK.questions(2, "ood_dense", "test")] == ["ood_dense/test/0", "ood_dense/test/1"]


def test_easy_digits_come_as_often_as_said() -> None:
    asked = np.array([digits(question.question) for question in TASK.questions(2000)])
    assert (asked % 3 == 0).mean() == pytest.approx(0.7, abs=0.03)
    assert {int(digit) for digit in asked.flatten()} == set(range(10))


@pytest.mark.parametrize(
    ("solution", "status"),
    [
        ("2 1 0", "ok"),
        ("", "empty"),
        ("2 1", "too_short"),
        ("2 1 0 0", "too_long"),
        ("2 ? 0", "garbled"),
        ("0 0 0", "ok"),
    ],
)
def test_what_can_be_read_off_a_solution(solution: str, status: str) -> None:
    problem = SMALL.problem(Question("x", "1 1 3 ?", "2 1 0"))
    ids = tuple(IDS[word] for word in solution.split())
    assert SMALL.status(ids, problem.prompt) == status
    assert problem.final_answer(ids) == (solution if status == "ok" else None)
    assert problem.is_right(ids) == (solution == "2 1 0")


def test_a_hint_gives_the_answer_away_before_the_question_mark() -> None:
    problem = SMALL.problem(Question("x", "1 1 3 ?", "2 1 0"))
    assert SMALL.text(SMALL.hint(problem)) == "<bos> 1 1 3 2 1 0 ?"
    assert SMALL.text(problem.prompt) == "<bos> 1 1 3 ?"


@pytest.mark.parametrize(
    ("question", "solution"), [("1 1 ?", "2 1"), ("1 1 3", "2 1 0"), ("1 1 ? ?", "2 1 0"), ("1 1 3 ?", "2 1")]
)
def test_what_is_no_question(question: str, solution: str) -> None:
    with pytest.raises(RematchError, match=r"q: .* is no question of this task; a question is 3 digits and \?"):
        SMALL.problem(Question("q", question, solution))


def test_words_that_there_are_not() -> None:
    with pytest.raises(RematchError, match="unknown word 'x'; a question is 3 digits"):
        SMALL.problem(Question("q", "1 x 3 ?", "2 1 0"))


def test_the_tokenizer_knows_the_words_and_both_ends(tmp_path: object) -> None:
    tokenizer = TASK.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    for used in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        (question,) = TASK.questions(1)
        assert tuple(used(question.question)["input_ids"]) == TASK.problem(question).prompt
        tokens = find_tokens(used)
        assert (tokens.end, tokens.refine) == (IDS[END], IDS[REFINE])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neutral": 1.0}, "neutral is a probability between 0 and 1, not 1.0"),
        ({"modulus": 11}, "modulus must be 2 to 10"),
        ({"most": 7}, "most must be at least 1 and below columns"),
    ],
)
def test_bad_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(RematchError, match=message):
        TailSums(**options)  # type: ignore[arg-type]


def test_bad_asking() -> None:
    with pytest.raises(RematchError, match=r"no more than \d+ questions in part 'validation' of split 'id'"):
        SMALL.questions(10_000, "id", "validation")
    with pytest.raises(RematchError, match="unknown split 'ood_long'; allowed: id, ood_dense"):
        SMALL.questions(1, "ood_long")  # type: ignore[arg-type]
    with pytest.raises(RematchError, match="unknown part 'tset'; allowed: train, validation, test"):
        SMALL.questions(1, "id", "tset")  # type: ignore[arg-type]
