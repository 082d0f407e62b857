"""ReVISE's published data: tiny files in the original formats, in a mirror."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from mirror_files import write, write_parquet
from revise_mirror import (
    N_GSM_TEST,
    N_GSM_TRAIN,
    N_MATH_TEST,
    N_ORIGINALS,
    PER_ORIGINAL,
    gsm8k_rows,
    math_500_rows,
    meta_math_rows,
    tokenizer,
    write_data,
    write_gsm8k,
    write_math_500,
    write_meta_math,
)

from baselines.post_training.answers import last_boxed, last_number
from rematch.errors import RematchError
from rematch.hub import Hub
from workflows.revise.hub_questions import (
    GSM8K,
    MATH_500,
    META_MATH,
    META_MATH_FILE,
    SOURCES,
    HubQuestions,
    Row,
    _restated,
    evaluation_questions,
    hub_questions,
)
from workflows.revise.questions import Question
from workflows.revise.text_task import TextTask

SIZES = {"n_train": 20, "n_validation": 8, "n_test": 5}
RELATED = "train: of the same original as a question of validation"


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return tmp_path


def load(mirror: Path, source: str, seed: int = 0, **sizes: Any) -> HubQuestions:
    return hub_questions(source, Hub(mirror), seed, **(sizes or SIZES))


def original(question: Question) -> str:
    """What a row of MetaMath was made of."""
    return meta_math_rows()[int(question.name.rpartition("/")[2])]["original_question"]


# -- what is read -----------------------------------------------------------------------------------------------------


def test_gsm8k_as_the_official_code_reads_it(mirror: Path) -> None:
    found = load(mirror, "gsm8k", n_test=2)
    assert found.answer == "number"
    assert found.test == [
        Question(
            "gsm8k/test/0",
            "Ann has 2 boxes of 7 pens. She loses 1 pen. How many pens has she got?",
            "The boxes hold 2*7 = 14 pens.\nOne is lost: 14-1 = 13.\nThe answer is: 13",
        ),
        Question(
            "gsm8k/test/1",
            "Ann has 3 boxes of 7 red pens. She loses 1 pen. How many pens has she got?",
            "The boxes hold 3*7 = 21 pens.\nOne is lost: 21-1 = 20.\nThe answer is: 20",
        ),
    ]
    # A tenth is held out.
    assert (len(found.train), len(found.validation)) == (N_GSM_TRAIN - 4, 4)
    rows = {row["question"] for row in gsm8k_rows("train", N_GSM_TRAIN)}
    assert {question.question for question in (*found.train, *found.validation)} == rows
    assert not found.n_left_out


def test_math_is_metamaths_part_of_it_and_math_500(mirror: Path) -> None:
    found = load(mirror, "math")
    assert found.answer == "boxed"
    rows = meta_math_rows()
    for question in (*found.train, *found.validation):
        row = rows[int(question.name.rpartition("/")[2])]
        assert row["type"].startswith("MATH_")
        assert question.question == row["query"]
        answer = row["response"].rpartition(": ")[2]
        if row["type"] == "MATH_SV":  # had no box
            assert question.solution == row["response"].removesuffix(answer) + rf"$\boxed{{{answer}}}$"
        else:
            assert question.solution == row["response"]
    test = math_500_rows()
    assert found.test == [Question(f"math/test/{i}", test[i]["problem"], test[i]["solution"]) for i in range(5)]


def test_gsm240k_is_metamaths_other_part_and_gsm8ks_test_part(mirror: Path) -> None:
    found = load(mirror, "gsm240k")
    assert found.answer == "number"
    rows = meta_math_rows()
    for question in (*found.train, *found.validation):
        row = rows[int(question.name.rpartition("/")[2])]
        assert row["type"].startswith("GSM_")
        assert (question.question, question.solution) == (row["query"], row["response"])
    assert found.test == load(mirror, "gsm8k").test


def test_a_test_part_alone(mirror: Path) -> None:
    for source in SOURCES:
        questions, left_out = evaluation_questions(source, Hub(mirror))
        assert len(questions) == (N_MATH_TEST if source == "math" else N_GSM_TEST)
        assert questions[:5] == load(mirror, source).test
        assert not left_out
        assert evaluation_questions(source, Hub(mirror), 2)[0] == questions[:2]


@pytest.mark.parametrize("source", list(SOURCES))
def test_every_question_is_a_problem(mirror: Path, source: str) -> None:
    found = load(mirror, source)
    task = TextTask(tokenizer(), found.answer)
    for question in (*found.train, *found.validation, *found.test):
        problem = task.problem(question)
        assert task.status(problem.solution, problem.prompt) == "ok"
        if "answer is: " in question.solution and found.answer == "number":
            assert problem.answer == Decimal(question.solution.rpartition(": ")[2])


# -- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", list(SOURCES))
def test_splits_are_drawn_by_the_seed_and_share_nothing(mirror: Path, source: str) -> None:
    found = load(mirror, source)
    assert (len(found.train), len(found.validation), len(found.test)) == (20, 8, 5)
    names = [question.name for part in (found.train, found.validation, found.test) for question in part]
    assert len(set(names)) == len(names)
    assert load(mirror, source) == found
    other = load(mirror, source, seed=1)
    assert other.test == found.test
    assert {q.name for q in other.validation} != {q.name for q in found.validation}
    assert [q.name for q in other.train] != [q.name for q in found.train]
    places = [int(q.name.rpartition("/")[2]) for q in found.train]
    assert places != sorted(places)
    # Fewer are the first of more.
    fewer = load(mirror, source, n_train=7, n_validation=8, n_test=3)
    assert fewer.train == found.train[:7]
    assert fewer.validation == found.validation
    assert fewer.test == found.test[:3]


@pytest.mark.parametrize("source", ["math", "gsm240k"])
@pytest.mark.parametrize("seed", range(3))
def test_no_rephrasing_of_a_validation_question_is_trained_on(mirror: Path, source: str, seed: int) -> None:
    n = (N_ORIGINALS - 2) * PER_ORIGINAL  # all but the two originals of validation
    found = load(mirror, source, seed, n_train=n, n_validation=8)
    trained, held_out = ({original(q) for q in part} for part in (found.train, found.validation))
    assert not trained & held_out
    assert (len(trained), len(held_out)) == (N_ORIGINALS - 2, 2)
    assert found.n_left_out == {RELATED: 2 * PER_ORIGINAL - 8}


def test_white_space_makes_no_other_original(mirror: Path) -> None:
    rows = meta_math_rows()
    for row in rows[::2]:
        row["original_question"] = f" {row['original_question']}\n".replace(" ", "  ")
    write_meta_math(mirror, rows)
    assert len({original(q) for q in load(mirror, "math", n_validation=8, n_train=48).train}) == N_ORIGINALS - 2


def test_no_test_question_is_trained_on(mirror: Path) -> None:
    test = gsm8k_rows("test", 3)
    rows = [*gsm8k_rows("train", 10), {**test[1], "question": f"\n{test[1]['question']}".replace(" ", "  ")}]
    write_gsm8k(mirror, rows, test)
    found = load(mirror, "gsm8k", n_validation=2)
    assert (len(found.train), len(found.validation)) == (8, 2)
    assert found.n_left_out == {"train: of a question of the test part": 1}
    rows = meta_math_rows()
    rows[2]["original_question"] = rows[7]["query"] = math_500_rows()[0]["problem"]
    write_meta_math(mirror, [row for row in rows if row["type"].startswith("MATH_")] + rows[7:8])
    write_math_500(mirror, math_500_rows())
    assert load(mirror, "math").n_left_out["train: of a question of the test part"] == 1


# -- rows that cannot be used -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": " \n"}, "no question"),
        ({"answer": "It is 13."}, "no number as final answer"),  # no mark of it
        ({"answer": "It is 13.\n#### thirteen"}, "no number as final answer"),
        ({"answer": "It is 13.\n#### 1.2.3"}, "no number as final answer"),
        ({"answer": "It is 13.\n#### "}, "no number as final answer"),
        ({"answer": "#### 13 or 14"}, "several numbers as final answer"),
        ({"answer": "#### 1/2"}, "several numbers as final answer"),
    ],
)
def test_rows_of_gsm8k_that_are_left_out_are_counted(mirror: Path, change: dict[str, str], reason: str) -> None:
    rows = gsm8k_rows("train", 10)
    rows[3] |= change
    test = gsm8k_rows("test", 4)
    test[1] |= change
    write_gsm8k(mirror, rows, test)
    found = load(mirror, "gsm8k", n_validation=2)
    assert found.n_left_out == {f"train: {reason}": 1, f"test: {reason}": 1}
    assert len(found.train) == 7
    assert [q.name for q in found.test] == ["gsm8k/test/0", "gsm8k/test/2", "gsm8k/test/3"]  # as lm-eval counts
    assert "gsm8k/train/3" not in {q.name for q in (*found.train, *found.validation)}


@pytest.mark.parametrize("answer", ["#### 1,234", "#### $5.", "#### -3", "#### 7 pens", "#### 40%"])
def test_numbers_in_other_forms(mirror: Path, answer: str) -> None:
    write_gsm8k(mirror, gsm8k_rows("train", 10), [{"question": "How many?", "answer": answer}])
    assert len(load(mirror, "gsm8k", n_validation=2).test) == 1


@pytest.mark.parametrize(
    ("response", "solution"),
    [
        ("So 5.\nThe answer is: 5", "So 5.\nThe answer is: $\\boxed{5}$"),
        ("So 5.\nThe answer is: $\\frac{1}{2}$.", "So 5.\nThe answer is: $\\boxed{\\frac{1}{2}}$"),
        ("The answer is: no.\nThe answer is: 6", "The answer is: no.\nThe answer is: $\\boxed{6}$"),
        ("So \\boxed{5}.", "So \\boxed{5}."),
        ("So \\boxed{5", None),
        ("So \\boxed{}.\nThe answer is: ", None),
        ("So 5.", None),
        ("So 5.\nThe answer is: {5", None),
        ("", None),
    ],
)
def test_answers_of_math_are_in_boxes(mirror: Path, response: str, solution: str | None) -> None:
    rows = [row for row in meta_math_rows() if row["type"] == "MATH_AnsAug"]
    rows[1]["response"] = response
    write_meta_math(mirror, rows)
    found = load(mirror, "math", n_train=14, n_validation=2)
    kept = {q.name.rpartition("/")[2]: q.solution for q in (*found.train, *found.validation)}
    unreadable = found.n_left_out["train: no final answer"]
    assert unreadable == (solution is None)
    if "1" in kept:
        assert kept["1"] == solution


def test_math_500_states_its_answers_apart(mirror: Path) -> None:
    rows = math_500_rows(3)
    rows[1] |= {"solution": "We get 4.", "answer": "4"}
    rows[2] |= {"solution": "We get nothing.", "answer": ""}
    write_math_500(mirror, rows)
    questions, left_out = evaluation_questions("math", Hub(mirror))
    assert [q.solution for q in questions] == [rows[0]["solution"], "We get 4.\nThe answer is: $\\boxed{4}$"]
    assert left_out == {"test: no final answer": 1}


# -- bad files and options --------------------------------------------------------------------------------------------


def _meta(**change: Any) -> Callable[[Path], Any]:
    return lambda mirror: write_meta_math(mirror, [meta_math_rows()[0] | change])


def _without(key: str) -> Callable[[Path], Any]:
    rows = [{k: v for k, v in meta_math_rows()[0].items() if k != key}]
    return lambda mirror: write_meta_math(mirror, rows)


@pytest.mark.parametrize(
    ("source", "spoil", "message"),
    [
        ("math", _meta(type="MATH_Other"), r"MetaMathQA-395K\.json, row 1: unknown type 'MATH_Other'; allowed: GSM_AnsAug"),
        ("gsm240k", _meta(type="MATH_Other"), r"MetaMathQA-395K\.json, row 1: unknown type 'MATH_Other'"),
        ("math", _meta(response=5), r"MetaMathQA-395K\.json, row 1: 'response' must be a text, is int"),
        ("math", _meta(query=None), r"MetaMathQA-395K\.json, row 1: 'query' must be a text, is NoneType"),
        ("math", _without("original_question"), r"row 1: no key 'original_question'; a row needs query, response, type"),
        ("math", lambda mirror: write_meta_math(mirror, {"rows": []}), r"must hold a list of objects, holds dict"),
        ("math", lambda mirror: write(mirror / "datasets" / META_MATH / META_MATH_FILE, "[{"), r"395K\.json: not a JSON file"),
        ("math", lambda mirror: write(mirror / "datasets" / MATH_500 / "test.jsonl", "{}\n"), r"test\.jsonl, line 1: no key 'problem'"),
        ("gsm8k", lambda mirror: write(mirror / "datasets" / GSM8K / "main/test-00000-of-00001.parquet", "no"), "cannot be read as Parquet"),
        ("gsm8k", lambda mirror: write_parquet(mirror / "datasets" / GSM8K / "main/train-00000-of-00001.parquet", [{"question": "a"}]), r"train-.*parquet: no column 'answer'"),
        ("gsm8k", lambda mirror: write_gsm8k(mirror, gsm8k_rows("train", 9), [{"question": "a", "answer": "b"}]), "n_test: None; gsm8k has 0 test questions"),
        ("math", lambda mirror: (mirror / "datasets" / MATH_500 / "test.jsonl").unlink(), r"no file test\.jsonl in .*rematch mirror .*--dataset HuggingFaceH4/MATH-500"),
        ("gsm8k", lambda mirror: (mirror / "datasets" / GSM8K / "main/test-00000-of-00001.parquet").unlink(), r"no file main/test-\*\.parquet .*Licence: MIT"),
        ("gsm240k", lambda mirror: (mirror / "datasets" / META_MATH / META_MATH_FILE).unlink(), r"no file MetaMathQA-395K\.json .*Licence: MIT"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named(mirror: Path, source: str, spoil: Callable[[Path], Any], message: str) -> None:
    spoil(mirror)
    with pytest.raises(RematchError, match=message):
        load(mirror, source, n_train=1, n_validation=1)


@pytest.mark.parametrize(
    ("source", "sizes", "message"),
    [
        ("math", {"n_test": 5}, r"math: n_validation: 3000; there are 60 such questions among 60"),  # the paper's
        ("math", {"n_validation": 6}, r"math: n_train: 50000; there are 54"),
        ("gsm8k", {"n_train": 37}, r"gsm8k: n_train: 37; there are 36 such questions among 40"),
        ("gsm8k", {"n_validation": 40}, r"gsm8k: n_train: 1; there are 0"),
        ("gsm8k", {"n_test": 13}, r"n_test: 13; gsm8k has 12 test questions"),
        ("gsm8k", {"n_train": 0}, r"gsm8k: n_train: 0; allowed: whole numbers from 1"),
        ("gsm8k", {"n_validation": -1}, r"gsm8k: n_validation: -1; allowed: whole numbers from 1"),
        ("gsm8", {"n_train": 1}, r"unknown source 'gsm8'; allowed: gsm8k, math, gsm240k"),
    ],
)
def test_bad_options(mirror: Path, source: str, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(RematchError, match=message):
        load(mirror, source, **sizes)


def test_answers_are_restated_for_models_of_another_source(mirror: Path) -> None:
    plain, _ = evaluation_questions("gsm8k", Hub(mirror))
    boxed, left_out = evaluation_questions("gsm8k", Hub(mirror), answer="boxed")
    assert not left_out["test: no plain number"]
    assert [question.name for question in boxed] == [question.name for question in plain]
    for before, after in zip(plain, boxed, strict=True):
        assert last_boxed(after.solution) == str(last_number(before.solution))


def test_only_plain_numbers_are_restated_as_numbers() -> None:
    finals = ["12", "-3", "1,234.5", r"\frac{1}{2}", "x+1", "12", ""]
    rows = [Row(i, "how many?", rf"so \boxed{{{final}}}", "how many?", "") for i, final in enumerate(finals)]
    left_out: Counter[str] = Counter()
    found = list(_restated(rows, "boxed", "number", left_out))
    assert [row.solution for row in found] == [f"The answer is: {final}" for final in ("12", "-3", "1,234.5", "12")]
    assert left_out == {"test: no plain number": 3}
