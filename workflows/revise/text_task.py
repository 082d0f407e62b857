"""Questions and solutions as text, whose final answers are numbers (GSM8K) or stand in a box (MATH)."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

from baselines.post_training.answers import last_boxed, last_number
from baselines.post_training.batches import Ids
from baselines.post_training.problems import Problem
from methods.revise.text import INSTRUCTION, encode_problem, encode_prompt
from rematch.errors import RematchError, unknown
from workflows.revise.questions import Question

AnswerKind = Literal["number", "boxed"]
FINAL_ANSWERS: dict[AnswerKind, Callable[[str], Hashable | None]] = {"number": last_number, "boxed": last_boxed}
"""What reads the final answer off a solution's text."""

HINT = "(The final answer is {answer}.)"
_EMPTY_BOX = re.compile(r"\\boxed\{\s*\}")

Status = Literal["ok", "empty", "no_answer", "not_a_number", "empty_box", "open_box"]


@dataclass(frozen=True, eq=False)
class TextTask:
    r"""The task.

    Attributes:
        tokenizer: of the model that is to answer; its chat template is used where it has one.
        answer: ``number``, the last number of a solution: those before it are steps; ``boxed``, what stands in its last
            ``\boxed{...}``.
        instruction: below every question.
        hint_text: between question and instruction where the answer is given away; ``{answer}`` stands for it.
    """

    tokenizer: Any
    answer: AnswerKind
    instruction: str = INSTRUCTION
    hint_text: str = HINT
    _questions: dict[Ids, str] = field(default_factory=dict, init=False, repr=False)
    _special: frozenset[int] = field(default=frozenset(), init=False, repr=False)

    def __post_init__(self) -> None:
        if self.answer not in FINAL_ANSWERS:
            raise unknown("answer", self.answer, FINAL_ANSWERS, "TextTask")
        if "{answer}" not in self.hint_text:
            raise RematchError(
                f"TextTask: hint_text must say where the answer goes: {{answer}}; got '{self.hint_text}'"
            )
        special = (i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special)
        object.__setattr__(self, "_special", frozenset(special))

    def problem(self, question: Question) -> Problem:
        """A question in token ids, which ``hint`` then knows.

        Raises:
            RematchError: nothing is asked, no final answer can be read off the solution, or special tokens stand in it.
        """
        if not question.question.strip():
            raise RematchError(f"{question.name}: an empty question; leave it out")
        status = self._status(question.solution)
        if status != "ok":
            raise RematchError(
                f"{question.name}: the solution has no final answer to learn from ({status}); it must "
                + ("hold a number" if self.answer == "number" else r"hold \boxed{...}")
                + f", and ends in: {question.solution[-80:]!r}"
            )
        problem = encode_problem(
            self.tokenizer, question.question, question.solution, FINAL_ANSWERS[self.answer], self.instruction
        )
        # An end or refine token that is spelled out in a text would end the solution there.
        if not self._special.isdisjoint(problem.solution):
            (found, *_) = [self.tokenizer.decode([i]) for i in problem.solution if i in self._special]
            raise RematchError(f"{question.name}: the solution spells out the special token {found}; leave it out")
        self._questions[problem.prompt] = question.question
        return problem

    def hint(self, problem: Problem) -> Ids:
        """The prompt of the same question with its final answer given away before the instruction.

        A problem holds no text, so that its question is looked up by its prompt.

        Raises:
            RematchError: ``problem`` did not make it.
        """
        if problem.prompt not in self._questions:
            raise RematchError("TextTask: hints are for problems that the same task has made of questions")
        given = self.hint_text.replace("{answer}", str(problem.answer))
        return encode_prompt(self.tokenizer, f"{self._questions[problem.prompt]}\n{given}", self.instruction)

    def status(self, solution: Ids, prompt: Ids) -> Status:
        """What a finished solution, without its end token, comes to, whatever the prompt.

        ``ok`` exactly where a final answer can be read; ``empty``, nothing but white space; ``no_answer``, no number or no
        box; ``not_a_number``, the last number-like string is none (1.2.3); ``empty_box``; ``open_box``, not closed.
        """
        return self._status(self.text(solution))

    def text(self, ids: Ids) -> str:
        """Without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _status(self, text: str) -> Status:
        if FINAL_ANSWERS[self.answer](text) is not None:
            return "ok"
        if not text.strip():
            return "empty"
        if self.answer == "number":
            return "not_a_number" if re.search(r"\d", text) else "no_answer"
        start = text.rfind(r"\boxed{")
        if start < 0:
            return "no_answer"
        return "empty_box" if _EMPTY_BOX.match(text, start) else "open_box"
