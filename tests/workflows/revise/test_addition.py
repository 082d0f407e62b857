"""ReVISE's sums in columns: what is asked, what is right, what is read off an answer."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from methods.revise.inference import generate
from methods.revise.tokens import find_tokens
from rematch.errors import RematchError
from workflows.revise.addition import (
    IDS,
    LABELS,
    SPLITS,
    WORDS,
    Addition,
    Split,
    decode,
    encode,
    longest_run,
)
from workflows.revise.questions import Part, Question, read_questions, write_questions
from workflows.revise.words import END, REFINE

TASK = Addition()
LABEL_FREE = Addition(lengths=(6,), long=(), carry=(6,), labelled=False)
LEAST_FIRST = Addition(least_first=True)
SMOKE = Addition(lengths=(3,), max_run=1, long=(4,), carry=(3,))
TASKS = {"default": TASK, "label_free": LABEL_FREE, "least_first": LEAST_FIRST, "smoke": SMOKE}


def columns(question: Question, task: Addition) -> tuple[list[int], list[int], list[str]]:
    """Both numbers, most significant digit first, and the labels in the order of the question."""
    words = question.question.split()
    assert words.pop() == "?"
    pairs = [word.split("+") for word in (words[::2] if task.labelled else words)]
    if task.least_first:
        pairs.reverse()
    return [int(a) for a, _ in pairs], [int(b) for _, b in pairs], words[1::2] if task.labelled else []


def value(digits: list[int]) -> int:
    return sum(digit * 10**place for place, digit in enumerate(reversed(digits)))


def run_of_nines(a: list[int], b: list[int]) -> int:
    marks = "".join("x" if x + y == 9 else " " for x, y in zip(a, b, strict=True))
    return max(map(len, marks.split()), default=0)


@pytest.mark.parametrize("name", TASKS)
def test_solutions_are_the_sums(name: str) -> None:
    task = TASKS[name]
    carries = set()
    for question in task.questions(300):
        a, b, labels = columns(question, task)
        words = question.solution.split()
        digits = [int(word) for word in (words[1::2] if task.labelled else words)]
        assert (words[::2] if task.labelled else []) == labels
        expected = [(value(a) + value(b)) // 10**place % 10 for place in range(len(a))]  # least significant first
        assert digits == (expected if task.least_first else expected[::-1])
        assert task.problem(question).answer == "".join(map(str, reversed(expected)))
        carries.add(value(a) + value(b) >= 10 ** len(a))
    assert carries == {True, False}  # what is carried out of the first column is dropped


def test_sizes_are_those_of_the_sheet() -> None:
    assert len(WORDS) == len(set(WORDS)) == 127
    problem = next(p for p in map(TASK.problem, TASK.questions(50)) if len(p.answer) == 6)
    assert len(problem.prompt) == 14
    assert len(problem.solution) == 12
    free = LABEL_FREE.problem(LABEL_FREE.questions(1)[0])
    assert len(free.prompt) + len(free.solution) + 1 == 15


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("split", "lengths", "runs"),
    [("id", {5, 6, 7}, {0, 1, 2, 3}), ("ood_long", {8, 9, 10}, {1, 2, 3}), ("ood_carry", {6, 7}, {4, 5, 6, 7})],
)
def test_splits_differ_in_length_and_runs(split: Split, part: Part, lengths: set[int], runs: set[int]) -> None:
    seen = [columns(question, TASK)[:2] for question in TASK.questions(400, split, part)]
    assert {len(a) for a, _ in seen} == lengths
    found = {run_of_nines(a, b) for a, b in seen}
    assert found <= runs | {0}
    assert max(found) == max(runs)
    assert min(found) >= min(runs)
    share = Counter(len(a) for a, _ in seen)
    assert min(share.values()) > 0.8 * 400 / len(lengths)


def test_columns_propagate_as_often_as_asked_and_are_uniform_else() -> None:
    for propagate in (0.4, 0.7):
        task = Addition(propagate, lengths=(6,), max_run=6, carry=(7,))
        sums = [columns(question, task)[:2] for question in task.questions(2000)]
        a, b = (np.array([pair[side] for pair in sums]) for side in (0, 1))
        nines = a + b == 9
        assert nines.mean() == pytest.approx(propagate, abs=4 * math.sqrt(0.25 / nines.size))
        shares = np.bincount(((a + b - 9) % 10)[~nines], minlength=10)[1:] / (~nines).sum()
        assert shares == pytest.approx(1 / 9, abs=4 * math.sqrt(1 / 9 / (~nines).sum()))
        for rows in (nines, ~nines):
            assert np.bincount(a[rows], minlength=10) / rows.sum() == pytest.approx(
                0.1, abs=4 * math.sqrt(0.1 / rows.sum())
            )


def test_labels_are_consecutive_ones_of_a_ring_that_begins_anywhere() -> None:
    starts = Counter()
    for question in TASK.questions(1200):
        labels = [LABELS.index(label) for label in columns(question, TASK)[2]]
        starts[labels[0]] += 1
        assert labels == [(labels[0] + i) % 12 for i in range(len(labels))]
    assert len(starts) == 12
    assert min(starts.values()) > 60


@pytest.mark.parametrize("task", [TASK, SMOKE], ids=["default", "smoke"])
def test_no_sum_is_in_two_parts_of_any_seed(task: Addition) -> None:
    def sums(part: Part, seed: int, split: Split = "id") -> set[str]:
        found = [str(columns(question, task)[:2]) for question in task.questions(400, split, part, seed)]
        assert len(set(found)) == len(found)
        return set(found)

    train = [sums("train", seed) for seed in (0, 1)]
    validation, test = sums("validation", 1), sums("test", 0)
    assert train[0] != train[1]
    assert (train[0] | train[1]).isdisjoint(validation | test)
    assert validation.isdisjoint(test)
    assert sums("test", 0, "ood_carry").isdisjoint(test)


@pytest.mark.parametrize("split", SPLITS)
def test_fewer_questions_are_the_beginning_of_more(split: Split) -> None:
    many = TASK.questions(600, split, "test", 3)
    assert TASK.questions(600, split, "test", 3) == many
    assert TASK.questions(7, split, "test", 3) == many[:7]
    assert len({question.name for question in many}) == 600
    assert many[5].name == f"{split}/test/5"
    assert TASK.questions(7, split, "test", 4) != many[:7]
    assert TASK.questions(7, split, "validation", 3) != many[:7]


QUESTION = Question("id/test/0", "6+3 k 8+3 l 7+2 a ?", "k 0 l 1 a 9")


@pytest.mark.parametrize(
    ("solution", "answer", "status"),
    [
        ("k 0 l 1 a 9", "019", "ok"),
        ("k 4 l 4 a 4", "444", "ok"),
        ("", None, "empty"),
        ("k 0 l 1 a", None, "garbled"),
        ("0 k 1 l 9 a", None, "garbled"),
        ("k 0 l ? a 9", None, "garbled"),
        ("k 0 l <|refine|> a 9", None, "garbled"),
        ("k 0 9 1 a 9", None, "garbled"),
        ("k 0 l 6+3 a 9", None, "garbled"),
        ("k 0 l 1", None, "too_short"),
        ("k 0 l 1 a 9 b 9", None, "too_long"),
        ("l 0 a 1 b 9", None, "wrong_labels"),
        ("k 0 k 1 a 9", None, "wrong_labels"),
        ("k 0 a 9", None, "wrong_labels"),
        ("k 0 l 1 b 9 c 1", None, "wrong_labels"),
    ],
)
def test_what_is_read_off_a_solution(solution: str, answer: str | None, status: str) -> None:
    problem = TASK.problem(QUESTION)
    assert TASK.read(encode(solution), problem.prompt) == (answer, status)
    assert problem.final_answer(encode(solution)) == answer
    assert problem.is_right(encode(solution)) == (answer == "019")


def test_without_labels_digits_are_counted() -> None:
    question = Question("q", "6+3 8+3 7+2 ?", "0 1 9")
    problem = LABEL_FREE.problem(question)
    readings = [LABEL_FREE.read(encode(text), problem.prompt) for text in ("0 1 9", "0 1", "0 1 9 9", "k 0", "")]
    assert readings == [("019", "ok"), (None, "too_short"), (None, "too_long"), (None, "garbled"), (None, "empty")]
    with pytest.raises(RematchError, match=r"no question of this task; they read '3\+6 d"):
        TASK.problem(question)
    with pytest.raises(RematchError, match=r"no question of this task; they read '3\+6 4\+5"):
        LABEL_FREE.problem(QUESTION)


def test_from_the_right_the_answer_reads_as_the_number_all_the_same() -> None:
    question = Question("q", "7+2 k 8+3 l 6+3 a ?", "k 9 l 1 a 0")
    problem = LEAST_FIRST.problem(question)
    assert problem.answer == "019"
    assert decode(LEAST_FIRST.hint(problem)) == "<bos> 7+2 k 8+3 l 6+3 a 9 1 0 ?"


def test_a_hint_gives_the_digits_away() -> None:
    assert decode(TASK.hint(TASK.problem(QUESTION))) == "<bos> 6+3 k 8+3 l 7+2 a 0 1 9 ?"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"propagate": 0.0}, "propagate is a probability"),
        ({"propagate": 1.0}, "propagate is a probability"),
        ({"lengths": ()}, "one length at least"),
        ({"long": (13,)}, "1 to 12 columns"),
        ({"max_run": 0}, "max_run must be at least 1"),
        ({"carry": (3,)}, "the lengths of carry above it"),
        ({"labelled": False}, "the same number of columns"),
    ],
)
def test_a_bad_task_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(RematchError, match=message):
        replace(TASK, **changes)


@pytest.mark.parametrize(
    ("question", "solution", "message"),
    [
        ("6+3 k 8+3 l", "k 0 l 1", "no question of this task"),
        ("6+3 k 8+3 l a", "k 0 l 1", "no question of this task"),
        ("6+3 k 8 l ?", "k 0 l 1", "no question of this task"),
        ("6+3 k 8+3 9 ?", "k 0 9 1", "no question of this task"),
        ("6+3 k 8+3 ?", "k 0 l 1", "no question of this task"),
        ("k 6+3 l 8+3 ?", "k 0 l 1", "no question of this task"),
        ("?", "", "no question of this task"),
        ("", "", "no question of this task"),
        ("6+3 k 8+3 l ?", "k 0 a 1", "no question of this task"),
        ("6+3 k 8+13 l ?", "k 0 l 1", r"unknown word '8\+13'; a sum is written in"),
        ("6+3 K 8+3 l ?", "k 0 l 1", "unknown word 'K'"),
    ],
)
def test_a_bad_question_is_refused(question: str, solution: str, message: str) -> None:
    with pytest.raises(RematchError, match=message):
        TASK.problem(Question("q", question, solution))


def test_unknown_splits_and_parts_and_too_many_questions_are_refused() -> None:
    with pytest.raises(RematchError, match=r"unknown split 'ood-long'.*Did you mean 'ood_long'"):
        TASK.questions(1, "ood-long")  # type: ignore[arg-type]
    with pytest.raises(RematchError, match="unknown part 'dev'"):
        TASK.questions(1, "id", "dev")  # type: ignore[arg-type]
    with pytest.raises(RematchError, match="no split 'ood_long' without lengths"):
        LABEL_FREE.questions(1, "ood_long")
    with pytest.raises(RematchError, match=r"there are no more than \d+ sums of 1 columns in part 'validation'"):
        Addition(lengths=(1,)).questions(50, part="validation")


def test_longest_run() -> None:
    marked = np.array([[0, 0, 0, 0], [1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1], [1, 0, 1, 1]], bool)
    assert longest_run(marked).tolist() == [0, 2, 3, 4, 2]


def test_questions_survive_their_file(tmp_path: Path) -> None:
    questions = TASK.questions(20, "ood_carry", "test")
    write_questions(tmp_path / "test.jsonl", questions)
    assert read_questions(tmp_path / "test.jsonl") == questions


def test_the_tokenizer_reads_as_the_task_does(tmp_path: Path) -> None:
    tokenizer = TASK.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    for used in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(used) == 127
        assert used.convert_ids_to_tokens(range(127)) == list(WORDS)
        for question in TASK.questions(20, "ood_long"):
            problem = TASK.problem(question)
            assert tuple(used(question.question)["input_ids"]) == problem.prompt
            assert tuple(used(question.solution, add_special_tokens=False)["input_ids"]) == problem.solution
            assert used.decode(problem.solution) == question.solution == decode(problem.solution)
        tokens = find_tokens(used)
        assert (tokens.end, tokens.refine) == (IDS[END], IDS[REFINE])
        with pytest.raises(Exception, match="UNK"):  # not read as some other word
            used("6+3 K ?")


def test_a_llama_answers_questions_written_as_text() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=IDS["<bos>"], eos_token_id=IDS[END],
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    prompts = [question.question for question in TASK.questions(4, part="test")]
    found = generate(model, TASK.tokenizer(), prompts, str, n=2, progress=False)
    assert len(found.answers) == 4
    assert not {"empty_prompt", "too_long"} & set(found.statuses)
