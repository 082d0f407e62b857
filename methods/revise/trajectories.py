"""Attempts at test time: write one, and as long as the model asks for it, and tries are left, another (section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from baselines.post_training.batches import Ids
from baselines.sampling import Sample, Sampling, Stream, check_prompts, context_length, sample
from methods.revise.tokens import Tokens
from rematch.errors import RematchError, unknown

RefineMode = Literal["refine", "first", "retry"]
REFINE_MODES: tuple[RefineMode, ...] = ("refine", "first", "retry")
ConfidenceContext = Literal["standalone", "in_trajectory"]
CONFIDENCE_CONTEXTS: tuple[ConfidenceContext, ...] = ("standalone", "in_trajectory")

GREEDY = Sampling(temperature=0.0)
RETRY_TEMPERATURE = 0.7


class Belief(NamedTuple):
    """M(E) and M(R) after an attempt: softmax over the full vocabulary, at temperature 1."""

    end: float
    refine: float


NO_BELIEF = Belief(0.0, 0.0)


@dataclass(frozen=True)
class Attempt:
    """One attempt at a question.

    Attributes:
        ids: without the token that ended it.
        ended: whether E or R did; if not, it was cut and has no answer.
        refine: whether the model asks for another one.
        log_prob: of ``ids`` in the trajectory, at temperature 1.
        in_trajectory: the belief where the attempt stands, after the ones before it.
        standalone: the belief after x ⊕ attempt alone, as in training.
        n_tokens: generated for it, E or R included.
    """

    ids: Ids
    ended: bool
    refine: bool
    log_prob: float
    in_trajectory: Belief
    standalone: Belief
    n_tokens: int

    def confidence(self, context: ConfidenceContext = "standalone") -> float:
        """c = M(E | attempt, x)."""
        if context not in CONFIDENCE_CONTEXTS:
            raise unknown("conf_context", context, CONFIDENCE_CONTEXTS, "confidence")
        return (self.standalone if context == "standalone" else self.in_trajectory).end

    def answer(self, final_answer: Callable[[Ids], Hashable | None]) -> Hashable | None:
        """The final answer; None for an attempt that was cut."""
        return final_answer(self.ids) if self.ended else None


@dataclass(frozen=True)
class Trajectory:
    """The attempts at a question, in order, at least one."""

    attempts: tuple[Attempt, ...]

    def last(self, tries: int | None = None) -> Attempt:
        """The attempt that the answer is read off when no more than ``tries`` are allowed."""
        return self.attempts[-1 if tries is None else min(tries, len(self.attempts)) - 1]

    def n_tokens(self, tries: int | None = None) -> int:
        """Tokens generated for as many tries."""
        return sum(attempt.n_tokens for attempt in self.attempts[:tries])


def write_trajectories(
    model: Any,
    prompts: Sequence[Ids],
    tokens: Tokens,
    sampling: Sampling = GREEDY,
    tries: int = 2,
    refine_mode: RefineMode = "refine",
    seed: int = 0,
    streams: Sequence[Stream] | None = None,
    batch_size: int = 128,
    progress: str = "",
) -> tuple[list[Trajectory], list[int]]:
    """A trajectory for every prompt, and the FLOPs of every round of attempts; fewer tries are the beginnings of both.

    The first attempt follows x, the second x ⊕ first ⊕ R. From then on an attempt is put after x as if it were the first:
    the model asks for another one if R follows x ⊕ attempt. Greedy: if M(R) > M(E) there, whatever else is probable.

    Args:
        sampling: temperature 0 is greedy. ``max_new_tokens`` are an attempt's.
        tries: attempts at most; the paper's are 2.
        refine_mode: ``refine``; ``first``, one attempt only; ``retry``, where R asks for another attempt it is a new sample
            from x at temperature 0.7.
        streams: as of ``baselines.sampling.sample``.
        batch_size, progress: as of ``baselines.sampling.sample``.

    Raises:
        RematchError: an empty prompt, or one that is longer than the model's context.
    """
    if refine_mode not in REFINE_MODES:
        raise unknown("refine_mode", refine_mode, REFINE_MODES, "write_trajectories")
    if tries < 1:
        raise RematchError(f"write_trajectories: tries must be at least 1, not {tries}")
    check_prompts(prompts, context_length(model))
    streams = [(i,) for i in range(len(prompts))] if streams is None else streams
    writer = _Writer(model, tokens, seed, batch_size, progress)
    attempts: list[list[Attempt]] = [[] for _ in prompts]
    going, flops = list(range(len(prompts))), [0] * (1 if refine_mode == "first" else tries)
    for number in range(len(flops)):
        again = number > 0 and refine_mode == "refine"
        contexts = [prompts[i] + attempts[i][-1].ids + (tokens.refine,) if again else prompts[i] for i in going]
        how = replace(sampling, temperature=RETRY_TEMPERATURE, top_p=1.0) if number and not again else sampling
        written = writer.write(contexts, how, [(*streams[i], number) for i in going])
        if again:
            written = writer.judge(
                [prompts[i] for i in going], written, sampling, [(*streams[i], number, 1) for i in going]
            )
        for i, attempt in zip(going, written, strict=True):
            attempts[i].append(attempt)
        flops[number] = writer.flops - sum(flops)
        going = [i for i in going if attempts[i][-1].refine]
        if not going:
            break
    return [Trajectory(tuple(found)) for found in attempts], flops


class _Writer:
    """Samples attempts and beliefs, and adds up what they cost."""

    def __init__(self, model: Any, tokens: Tokens, seed: int, batch_size: int, progress: str) -> None:
        self.model, self.tokens, self.seed, self.batch_size, self.progress = model, tokens, seed, batch_size, progress
        self.limit, self.flops = context_length(model), 0

    def write(self, contexts: Sequence[Ids], sampling: Sampling, streams: Sequence[Stream]) -> list[Attempt]:
        """An attempt after each context, until E or R; a context without room for one is followed by nothing."""
        fits = [i for i, ids in enumerate(contexts) if self.limit is None or len(ids) <= self.limit]
        samples = self._sample([contexts[i] for i in fits], sampling, [streams[i] for i in fits])
        attempts = [Attempt((), False, False, 0.0, NO_BELIEF, NO_BELIEF, 0)] * len(contexts)
        for i, found in zip(fits, samples, strict=True):
            belief = NO_BELIEF if found.stop is None else Belief(*found.watched)
            attempts[i] = Attempt(
                ids=found.ids,
                ended=found.stop is not None,
                refine=found.stop is not None and self._asks(found, sampling),
                log_prob=found.log_prob,
                in_trajectory=belief,
                standalone=belief,
                n_tokens=found.n_tokens,
            )
        return attempts

    def judge(
        self, prompts: Sequence[Ids], attempts: Sequence[Attempt], sampling: Sampling, streams: Sequence[Stream]
    ) -> list[Attempt]:
        """The attempts with what the model says of each after x ⊕ attempt."""
        ended = [i for i, attempt in enumerate(attempts) if attempt.ended]
        contexts = [prompts[i] + attempts[i].ids for i in ended]
        samples = self._sample(contexts, replace(sampling, max_new_tokens=1), [streams[i] for i in ended])
        judged = list(attempts)
        for i, found in zip(ended, samples, strict=True):
            refine = self._asks(found, sampling)
            judged[i] = replace(attempts[i], refine=refine, standalone=Belief(*found.watched))
        return judged

    def _asks(self, found: Sample, sampling: Sampling) -> bool:
        """Whether R follows."""
        return found.stop == self.tokens.refine if sampling.temperature else found.watched[1] > found.watched[0]

    def _sample(self, prompts: Sequence[Ids], sampling: Sampling, streams: Sequence[Stream]) -> list[Sample]:
        stop = (self.tokens.end, self.tokens.refine)
        samples, flops = sample(
            self.model, prompts, sampling, stop, self.seed, streams, stop, self.batch_size, self.progress
        )
        self.flops += flops
        return samples
