"""Problems written as text, as token ids: the prompt that ReVISE trains and tests with (official code)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from baselines.post_training.answers import on_ids
from baselines.post_training.batches import Ids
from baselines.post_training.problems import Problem

INSTRUCTION = 'Think step by step, and put the final answer at the end, after "The answer is:".'


def encode_prompt(tokenizer: Any, question: str, instruction: str = INSTRUCTION) -> Ids:
    """A question with an instruction, in the tokenizer's chat template, or between plain markers where it has none."""
    asked = f"{question}\n{instruction}"
    if tokenizer.chat_template:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True
        )
        return tuple(tokenizer(chat, add_special_tokens=False)["input_ids"])
    return tuple(tokenizer(f"User: {asked}\nAssistant:")["input_ids"])


def encode_problem(
    tokenizer: Any,
    question: str,
    solution: str,
    final_answer: Callable[[str], Hashable | None],
    instruction: str = INSTRUCTION,
) -> Problem:
    """A problem in token ids. The solution is tokenized apart, so that its tokens are known.

    Args:
        solution: the ground truth, which ends in its final answer.
        final_answer: of a solution's text, None where there is none: ``last_number`` or ``last_boxed`` of
            ``baselines.post_training.answers``.
    """
    prompt = encode_prompt(tokenizer, question, instruction)
    # The space is what stands between prompt and solution where there is no template.
    ids = tokenizer(solution if tokenizer.chat_template else f" {solution}", add_special_tokens=False)["input_ids"]
    return Problem(prompt, tuple(ids), on_ids(tokenizer, final_answer))
