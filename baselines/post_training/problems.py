"""Problems with solutions, and the models' own attempts at them, which every rival of ReVISE trains on as well."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from baselines.checkpoints import weights_digest
from baselines.post_training.batches import Example, Ids
from baselines.sampling import Sampling, sample
from rematch.errors import RematchError

FinalAnswer = Callable[[Ids], Hashable | None]
"""The final answer that stands in the token ids of a solution; None where none can be read, which is wrong."""

POOL_SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=1024)
"""How training samples are drawn (official code)."""

SAMPLES_AT_ONCE = 256
"""Completions in a batch; small models and short ones take less time with more."""


@dataclass(frozen=True)
class Problem:
    """A question with its solution, as token ids.

    Attributes:
        prompt: x.
        solution: y, the ground truth, without the end token.
        final_answer: reads an answer off a solution of this problem.
        answer: of the ground truth.
    """

    prompt: Ids
    solution: Ids
    final_answer: FinalAnswer = field(compare=False, repr=False)
    answer: Hashable = field(init=False)

    def __post_init__(self) -> None:
        answer = self.final_answer(self.solution)
        if not self.prompt or answer is None:
            raise RematchError(
                f"a problem needs a prompt and a solution that ends in a final answer; prompt {self.prompt}, solution "
                f"{self.solution}, answer {answer}"
            )
        object.__setattr__(self, "answer", answer)

    def is_right(self, solution: Ids) -> bool:
        """Whether a solution ends in the right final answer."""
        return self.final_answer(solution) == self.answer

    def truth(self, end: int) -> Example:
        """The example that SFT learns from."""
        return Example(self.prompt, (*self.solution, end))


@dataclass(frozen=True)
class Completion:
    """What a model wrote to a prompt until the end token, which is left out.

    Attributes:
        question: index of the problem.
        ids: at least one.
    """

    question: int
    ids: Ids


@dataclass(frozen=True)
class Pool:
    """A model's own completions, by question.

    Attributes:
        completions: those that stopped by themselves, or were cut to what did, and are not empty.
        n_unfinished, n_empty: those that were dropped.
        n_cut: kept in part.
        n_tokens: generated, those of dropped completions included.
        flops: that sampling took.
        weights: digest of the model that wrote them.
    """

    completions: list[Completion]
    n_unfinished: int
    n_empty: int
    n_cut: int
    n_tokens: int
    flops: int
    weights: str


def sample_pool(
    model: Any,
    problems: Sequence[Problem],
    k: int,
    end: int,
    seed: int,
    sampling: Sampling = POOL_SAMPLING,
    prompts: Sequence[Ids] | None = None,
    cut_after: int | None = None,
    batch_size: int = SAMPLES_AT_ONCE,
    progress: str = "",
) -> Pool:
    """k completions a question. With the same seed the first k1 of k2 are the same.

    Args:
        k: 10 for GSM8K, 4 for MATH, 1 for GSM240K (official code).
        prompts: instead of the problems' own.
        cut_after: a token that ends an attempt as ``end`` does: a completion that did not stop by itself is cut after its
            last one. Completions without one are dropped, all that did not stop are where None.
        progress: what a progress bar is called; none where empty.
    """
    if k < 1:
        raise RematchError(f"sample_pool: k is the number of completions a question, at least 1, not {k}")
    given = [problem.prompt for problem in problems] if prompts is None else prompts
    streams = [(question, i) for question in range(len(problems)) for i in range(k)]
    samples, flops = sample(
        model, [given[question] for question, _ in streams], sampling, [end], seed, streams, batch_size=batch_size,
        progress=progress,
    )  # fmt: skip
    completions: list[Completion] = []
    n_unfinished = n_cut = 0
    for (question, _), found in zip(streams, samples, strict=True):
        ids = found.ids
        if found.stop is None:
            if cut_after is None or cut_after not in ids:
                n_unfinished += 1
                continue
            ids, n_cut = ids[: len(ids) - ids[::-1].index(cut_after)], n_cut + 1
        completions += [Completion(question, ids)] if ids else []
    return Pool(
        completions=completions,
        n_unfinished=n_unfinished,
        n_empty=len(samples) - n_unfinished - len(completions),
        n_cut=n_cut,
        n_tokens=sum(found.n_tokens for found in samples),
        flops=flops,
        weights=weights_digest(model),
    )


def sort_completions(
    completions: Sequence[Completion], problems: Sequence[Problem]
) -> tuple[list[list[Ids]], list[list[Ids]]]:
    """The distinct right and the distinct wrong completions of every problem, first seen first."""
    right: list[dict[Ids, None]] = [{} for _ in problems]
    wrong: list[dict[Ids, None]] = [{} for _ in problems]
    for completion in completions:
        place = right if problems[completion.question].is_right(completion.ids) else wrong
        place[completion.question][completion.ids] = None
    return [list(ids) for ids in right], [list(ids) for ids in wrong]
