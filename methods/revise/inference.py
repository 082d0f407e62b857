"""Answers at test time: one greedy trajectory, or a vote between several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from operator import index
from typing import Any, Literal, NamedTuple

import numpy as np

from baselines.post_training.answers import last_number, on_ids
from baselines.post_training.batches import Ids
from baselines.sampling import Sampling, context_length
from methods.revise.tokens import Tokens, check_ids, check_tokens, find_tokens
from methods.revise.trajectories import (
    CONFIDENCE_CONTEXTS,
    REFINE_MODES,
    ConfidenceContext,
    RefineMode,
    Trajectory,
    write_trajectories,
)
from methods.revise.voting import VOTES, Vote, voted_answer
from rematch.errors import RematchError, unknown

Status = Literal["ok", "unparsable", "cut", "empty_prompt", "too_long"]
TEST_SAMPLING = Sampling(temperature=0.7, top_p=1.0, max_new_tokens=1024)
"""The paper's temperature elsewhere; it names none for voting."""


@dataclass(frozen=True)
class Answer:
    """What became of one prompt.

    Attributes:
        answer: None unless ``ok``; such answers count as wrong.
        status: ``ok``; ``unparsable``, no trajectory has a final answer; ``cut``, none came to an end; ``empty_prompt`` and
            ``too_long``, a prompt that the model cannot read, for which nothing was generated.
        text: the attempt that the answer was read off: the first with the answer that won, or the first of all.
        confidence: M(E) after it.
        trajectories: all, the greedy one first where there is one.
    """

    answer: Hashable | None
    status: Status
    text: str = ""
    confidence: float = 0.0
    trajectories: list[Trajectory] = field(default_factory=list)


@dataclass(frozen=True)
class Generation:
    """Answers, one a prompt, and what they cost.

    Attributes:
        flops: of all passes; NaN for a model of which they cannot be counted.
        n_tokens: generated.
    """

    answers: list[Answer]
    flops: int
    n_tokens: int

    @property
    def statuses(self) -> Counter[str]:
        """How many prompts ended in which way."""
        return Counter(answer.status for answer in self.answers)


class Spent(NamedTuple):
    """FLOPs of greedy and of sampled trajectories, each by the number of the attempt."""

    greedy: list[int]
    sampled: list[int]

    @property
    def total(self) -> int:
        """Of all."""
        return sum(self.greedy) + sum(self.sampled)


def solve(
    model: Any,
    prompts: Sequence[Ids],
    tokens: Tokens,
    n: int = 1,
    tries: int = 2,
    refine_mode: RefineMode = "refine",
    sampling: Sampling = TEST_SAMPLING,
    first_greedy: bool = True,
    seed: int = 0,
    names: Sequence[int] | None = None,
    batch_size: int = 128,
    progress: bool = False,
) -> tuple[list[list[Trajectory]], Spent]:
    """n trajectories for every prompt, and what they cost. With the same seed the first n1 of n2 are the same.

    Args:
        first_greedy: the first is the greedy one, as where the paper's plain vote of two equals that of one; else all n are
            sampled.
        sampling: of the others; its ``max_new_tokens`` are those of all.
        names: a number for every prompt, by which its random numbers are drawn; its place where None.
    """
    _check("solve", refine_mode, n=n, tries=tries, batch_size=batch_size)
    check_tokens(tokens, model)
    check_ids(prompts, model)
    found: list[list[Trajectory]] = [[] for _ in prompts]
    n_greedy, spent = int(first_greedy), Spent([], [])
    for how, numbers, total, shown in (
        (replace(sampling, temperature=0.0), range(n_greedy), spent.greedy, "greedy attempts"),
        (sampling, range(n_greedy, n), spent.sampled, "sampled attempts"),
    ):
        asked = [(i, number) for i in range(len(prompts)) for number in numbers]
        if not asked:
            continue
        streams = [(i if names is None else names[i], number) for i, number in asked]
        trajectories, flops = write_trajectories(
            model, [prompts[i] for i, _ in asked], tokens, how, tries, refine_mode, seed, streams, batch_size,
            shown if progress else "",
        )  # fmt: skip
        total.extend(flops)
        for (i, _), trajectory in zip(asked, trajectories, strict=True):
            found[i].append(trajectory)
    return found, spent


def _check(where: str, refine_mode: str, **counts: int) -> None:
    """Raise RematchError for what would be wrong whatever the prompts are."""
    if refine_mode not in REFINE_MODES:
        raise unknown("refine_mode", refine_mode, REFINE_MODES, where)
    for name, value in counts.items():
        if not isinstance(value, Integral) or int(value) < 1:
            raise RematchError(f"{where}: {name} must be a whole number, at least 1, not {value}")


def why_unread(prompt: Ids, limit: int | None) -> Literal["empty_prompt", "too_long"] | None:
    """Why a model that reads ``limit`` tokens, None for any number, cannot read a prompt; None where it can."""
    if not prompt:
        return "empty_prompt"
    return "too_long" if limit is not None and len(prompt) > limit else None


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Sequence[int]],
    final_answer: Callable[[str], Hashable | None] = last_number,
    tries: int = 2,
    vote: Vote = "weighted",
    n: int = 8,
    refine_mode: RefineMode = "refine",
    conf_context: ConfidenceContext = "standalone",
    sampling: Sampling = TEST_SAMPLING,
    first_greedy: bool = True,
    seed: int = 0,
    batch_size: int = 128,
    tokens: Tokens | None = None,
    progress: bool = True,
) -> Generation:
    """Answer every prompt by a vote between n trajectories.

    Args:
        model: a transformers causal LM that has been trained with ReVISE; one without a key/value cache takes longer.
        tokenizer: its tokenizer, with the refine token.
        prompts: texts as the model was trained to read them, or their token ids (``methods.revise.text.encode_prompt``).
        final_answer: of an attempt's text; None where there is none. The default reads the last number.
        tries: attempts of a trajectory at most.
        vote: see ``methods.revise.voting.voted_answer``.
        n: trajectories; 1 is the paper's Maj@1, the greedy one if ``first_greedy``.
        refine_mode: see ``methods.revise.trajectories.write_trajectories``.
        conf_context: where confidences are read: ``standalone`` or ``in_trajectory``.
        sampling, first_greedy: see ``solve``.
        seed: of all draws.
        batch_size: trajectories at once.
        tokens: end and refine; ``find_tokens`` of tokenizer and model where None.
        progress: show a progress bar on standard error.

    Prompts that cannot be read and attempts that come to no answer are answers with another status than ``ok``, never
    left out.

    Raises:
        RematchError: an option has a value that it cannot have, ``prompts`` is one text, a prompt is neither text nor token ids
            that the model knows, or there is no refine token.
    """
    _check("generate", refine_mode, n=n, tries=tries, batch_size=batch_size)
    if isinstance(prompts, str):
        raise RematchError("generate: prompts is one text; give a list of them: generate(model, tokenizer, [prompt])")
    if seed < 0:
        raise RematchError(f"generate: seed must not be negative, not {seed}")
    if vote not in VOTES:
        raise unknown("vote", vote, VOTES, "generate")
    if conf_context not in CONFIDENCE_CONTEXTS:
        raise unknown("conf_context", conf_context, CONFIDENCE_CONTEXTS, "generate")
    tokens = tokens or find_tokens(tokenizer, model)
    read = on_ids(tokenizer, final_answer)
    limit = context_length(model)
    encoded = [_encode(tokenizer, prompt, i) for i, prompt in enumerate(prompts)]
    check_ids(encoded, model)
    unread = [why_unread(ids, limit) for ids in encoded]
    asked = [i for i, status in enumerate(unread) if status is None]
    found, spent = solve(
        model, [encoded[i] for i in asked], tokens, n, tries, refine_mode, sampling, first_greedy, seed, asked, batch_size,
        progress,
    )  # fmt: skip
    answers = [Answer(None, status or "unparsable") for status in unread]
    for i, trajectories in zip(asked, found, strict=True):
        rng = np.random.default_rng([seed, i, *b"vote"])
        answers[i] = _vote(trajectories, tokenizer, read, vote, conf_context, rng)
    n_tokens = sum(trajectory.n_tokens() for trajectories in found for trajectory in trajectories)
    return Generation(answers, spent.total, n_tokens)


def _vote(
    trajectories: list[Trajectory],
    tokenizer: Any,
    read: Callable[[Ids], Hashable | None],
    rule: Vote,
    conf_context: ConfidenceContext,
    rng: np.random.Generator,
) -> Answer:
    last = [trajectory.last() for trajectory in trajectories]
    answers = [attempt.answer(read) for attempt in last]
    winner = voted_answer(last, answers, rule, conf_context, rng)
    shown = last[0] if winner is None else last[answers.index(winner)]
    status: Status = "ok" if winner is not None else "unparsable" if any(a.ended for a in last) else "cut"
    text = str(tokenizer.decode(list(shown.ids), skip_special_tokens=True))
    return Answer(winner, status, text, shown.confidence(conf_context), trajectories)


def _encode(tokenizer: Any, prompt: str | Sequence[int], place: int) -> Ids:
    """Token ids; none for a text without anything to read, whatever the tokenizer puts before a text."""
    if isinstance(prompt, str):
        return tuple(tokenizer(prompt)["input_ids"]) if prompt.strip() else ()
    try:
        return tuple(map(index, prompt))
    except TypeError:
        raise RematchError(
            f"generate: prompt {place} must be a text or a sequence of token ids, not {prompt!r}; prompts is a list of them"
        ) from None
