"""Questions as text: prompts, hints, and what makes an answer unreadable."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from revise_mirror import BEGIN, END, END_OF_TURN, LLAMA, LLAMA_INSTRUCT, REFINE, write_models

from methods.revise.text import INSTRUCTION
from methods.revise.tokens import find_tokens
from rematch.errors import RematchError
from rematch.hub import Hub
from rematch.hub_models import check_model, load_tokenizer
from workflows.revise.questions import Question
from workflows.revise.tasks import AnswerTask, load_task, write_task
from workflows.revise.text_task import TextTask

SUM = Question("a/0", "How many pens are 3 and 4?", "Take 3, add 4.\nThe answer is: 7")
BOX = Question("a/1", "What is $x$?", "We get $x = \\boxed{ \\frac{1}{2} }$.\nThe answer is: \\frac{1}{2}")


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    folder = tmp_path_factory.mktemp("mirror")
    write_models(folder)
    return Hub(folder)


@pytest.fixture(scope="module", params=[LLAMA, LLAMA_INSTRUCT])
def words(mirror: Hub, request: pytest.FixtureRequest) -> Any:
    return load_tokenizer(check_model(mirror, request.param))


def test_llama_3_has_both_tokens(mirror: Hub) -> None:
    from transformers import AutoModelForCausalLM

    for name, end in ((LLAMA, END), (LLAMA_INSTRUCT, END_OF_TURN)):
        path = mirror.model_path(name)
        words, model = load_tokenizer(path), AutoModelForCausalLM.from_pretrained(path)
        tokens = find_tokens(words, model)
        assert words.convert_ids_to_tokens([tokens.end, tokens.refine]) == [end, REFINE]
        assert words(" ", add_special_tokens=False)["input_ids"][0] in tokens.blank


def test_a_problem_reads_back_as_its_text(words: Any) -> None:
    task = TextTask(words, "number")
    problem = task.problem(SUM)
    prompt = words.decode(problem.prompt)
    assert prompt.count(BEGIN) == 1
    assert f"{SUM.question}\n{INSTRUCTION}" in prompt
    assert task.text(problem.solution).strip() == SUM.solution
    assert problem.answer == Decimal(7)
    assert TextTask(words, "boxed").problem(BOX).answer == "\\frac{1}{2}"
    assert task.text((words.eos_token_id, *problem.solution)) == task.text(problem.solution)


def test_another_instruction(words: Any) -> None:
    prompt = words.decode(TextTask(words, "number", "Be brief.").problem(SUM).prompt)
    assert f"{SUM.question}\nBe brief." in prompt
    assert INSTRUCTION not in prompt


def test_a_hint_gives_the_answer_away_before_the_instruction(words: Any) -> None:
    task = TextTask(words, "number")
    problem, other = task.problem(SUM), task.problem(Question("a/2", "And 5 and 6?", "It is 11"))
    hinted = words.decode(task.hint(problem))
    plain = words.decode(problem.prompt)
    assert hinted == plain.replace(INSTRUCTION, f"(The final answer is 7.)\n{INSTRUCTION}")
    assert "(The final answer is 11.)" in words.decode(task.hint(other))
    boxed = TextTask(words, "boxed", "Be brief.", "Hint {curly}: {answer}")
    assert "\nHint {curly}: \\frac{1}{2}\nBe brief." in words.decode(boxed.hint(boxed.problem(BOX)))
    with pytest.raises(RematchError, match="the same task has made"):
        TextTask(words, "number").hint(problem)


@pytest.mark.parametrize(
    ("answer", "text", "status"),
    [
        ("number", "3 and 4 are 7", "ok"),
        ("number", "$1,000.", "ok"),
        ("number", "The answer is: seven", "no_answer"),
        ("number", "The answer is: 1.2.3", "not_a_number"),
        ("number", "7 pens, in version 1.2.3", "not_a_number"),  # the last one counts
        ("number", " \n", "empty"),
        ("number", "", "empty"),
        ("boxed", r"$\boxed{7}$", "ok"),
        ("boxed", r"$\boxed{}$ or $\boxed{7}$", "ok"),
        ("boxed", "The answer is: 7", "no_answer"),
        ("boxed", r"\boxed 7", "no_answer"),
        ("boxed", r"\boxed{7} or \boxed{ }", "empty_box"),
        ("boxed", r"\boxed{\frac{1}{2}", "open_box"),
        ("boxed", r"\boxed{", "open_box"),
        ("boxed", "", "empty"),
    ],
)
def test_what_makes_an_answer_unreadable(words: Any, answer: Any, text: str, status: str) -> None:
    task = TextTask(words, answer)
    problem = task.problem(SUM if answer == "number" else BOX)
    ids = tuple(words(text, add_special_tokens=False)["input_ids"])
    assert task.status(ids, problem.prompt) == status
    assert (problem.final_answer(ids) is not None) == (status == "ok")


@pytest.mark.parametrize(
    ("answer", "question", "solution", "message"),
    [
        ("number", " \n", "7", r"q/3: an empty question"),
        ("number", "What?", "No idea", r"q/3: .*no final answer to learn from \(no_answer\); it must hold a number.*No idea"),
        ("number", "What?", "", r"q/3: .*\(empty\)"),
        ("boxed", "What?", "7", r"q/3: .*\(no_answer\); it must hold \\boxed"),
        ("boxed", "What?", r"\boxed{7", r"q/3: .*\(open_box\)"),
        ("number", "What?", f"One. {REFINE} 7", r"q/3: the solution spells out the special token <\|reserved_special_token_0"),
        ("number", "What?", f"7{END}", r"q/3: the solution spells out the special token <\|end_of_text"),
    ],
)  # fmt: skip
def test_a_question_that_cannot_be_used_is_named(
    words: Any, answer: Any, question: str, solution: str, message: str
) -> None:
    with pytest.raises(RematchError, match=message):
        TextTask(words, answer).problem(Question("q/3", question, solution))


def test_bad_options(words: Any) -> None:
    with pytest.raises(RematchError, match=r"unknown answer 'numbers'; allowed: number, boxed\. Did you mean 'number'"):
        TextTask(words, "numbers")  # type: ignore[arg-type]
    with pytest.raises(RematchError, match=r"where the answer goes: \{answer\}; got 'It is 7'"):
        TextTask(words, "number", hint_text="It is 7")


def test_a_folder_says_which_task_its_questions_are_of(words: Any, tmp_path: Path) -> None:
    write_task(tmp_path, "text", {"answer": "boxed", "instruction": "Be brief."})
    task: AnswerTask = load_task(tmp_path, words)
    assert isinstance(task, TextTask)
    assert (task.answer, task.instruction) == ("boxed", "Be brief.")
