"""SFT, SFT continued to a given cost, RFT and STaR+: baselines that imitate solutions, given or their own right ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.post_training.batches import Example, Ids
from baselines.post_training.objectives import SFTObjective
from baselines.post_training.problems import (
    POOL_SAMPLING,
    SAMPLES_AT_ONCE,
    Pool,
    Problem,
    sample_pool,
    sort_completions,
)
from baselines.post_training.training import Recipe, Training, steps_for_flops, train, with_steps
from baselines.sampling import Sampling
from rematch.errors import RematchError

SFT_RECIPE = Recipe(learning_rate=1e-4, batch_size=32, epochs=3)
"""ReVISE's stage 0 (official code)."""

POST_RECIPE = Recipe(learning_rate=1e-5, batch_size=32)
"""RFT and STaR+ as ReVISE's paper trains them."""


def sft(
    model: Any, examples: Sequence[Example], seed: int, recipe: Recipe = SFT_RECIPE, checkpoint: Path | None = None
) -> Training:
    """Supervised fine-tuning, in place: the mean negative log-likelihood of the targets' tokens."""
    return train(model, SFTObjective(examples), recipe, seed, checkpoint)


def sft_for_flops(
    model: Any,
    examples: Sequence[Example],
    flops: float,
    seed: int,
    recipe: Recipe = POST_RECIPE,
    checkpoint: Path | None = None,
) -> Training:
    """SFT, in place, in as many steps as come nearest to a number of FLOPs: what a rival's post-training cost."""
    objective = SFTObjective(examples)
    steps = steps_for_flops(model, objective, flops, recipe, seed)
    return train(model, objective, with_steps(recipe, steps), seed, checkpoint)


def right_examples(pool: Pool, problems: Sequence[Problem], end: int) -> list[Example]:
    """The pool's right completions, each once a question, as examples."""
    right, _ = sort_completions(pool.completions, problems)
    return [Example(problem.prompt, (*ids, end)) for problem, kept in zip(problems, right, strict=True) for ids in kept]


def rft(
    model: Any,
    problems: Sequence[Problem],
    pool: Pool,
    end: int,
    seed: int,
    recipe: Recipe = POST_RECIPE,
    checkpoint: Path | None = None,
) -> Training:
    """Rejection-sampling fine-tuning, in place: SFT on the ground truths and on the distinct right samples.

    ReVISE's paper does not say whether equal solutions are dropped; RFT's does drop them (Yuan et al., 2023).

    Args:
        pool: of the model's own completions, to all of the problems or to the first ones; sampling it is not counted here.
    """
    examples = [problem.truth(end) for problem in problems] + right_examples(pool, problems, end)
    return train(model, SFTObjective(examples), recipe, seed, checkpoint)


@dataclass(frozen=True)
class StarLoop:
    """One loop of STaR+.

    Attributes:
        pool, hinted: what was sampled, from the prompts and, for questions without a right sample, from the hints.
        n_right, n_rationalised: distinct samples that were kept of each.
        training: on the ground truths and what was kept.
    """

    pool: Pool
    hinted: Pool | None
    n_right: int
    n_rationalised: int
    training: Training

    @property
    def flops(self) -> int:
        """Of sampling and training."""
        return self.pool.flops + (self.hinted.flops if self.hinted else 0) + self.training.flops


def star(
    model: Any,
    problems: Sequence[Problem],
    hint: Callable[[Problem], Ids],
    end: int,
    seed: int,
    k: int = 10,
    loops: int = 3,
    recipe: Recipe = POST_RECIPE,
    sampling: Sampling = POOL_SAMPLING,
    checkpoint: Path | None = None,
    others: Sequence[Problem] = (),
    batch_size: int = SAMPLES_AT_ONCE,
) -> list[StarLoop]:
    """STaR+, in place (Zelikman et al., 2022, with the ground truths as further examples, as in ReVISE's paper).

    Every loop samples with the current model, and trains the model that STaR+ began with, not the current one. Questions
    without a right sample are asked again with a hint, which what is learned from leaves out.

    Args:
        hint: a prompt that gives the answer away.
        k: samples a question, and as many hinted ones.
        checkpoint: a folder, with one below it for each loop's training.
        others: problems whose ground truths are trained on too, and which are not sampled.
        batch_size: completions at once.
    """
    if loops < 1:
        raise RematchError(f"star: loops must be at least 1, not {loops}")
    start = copy.deepcopy(model.state_dict())
    truths = [problem.truth(end) for problem in (*problems, *others)]
    found: list[StarLoop] = []
    for loop in range(loops):
        pool = sample_pool(model, problems, k, end, seed + loop, sampling, batch_size=batch_size)
        right, _ = sort_completions(pool.completions, problems)
        unsolved = [problem for problem, kept in zip(problems, right, strict=True) if not kept]
        kept = right_examples(pool, problems, end)
        hinted: Pool | None = None
        rationalised: list[Example] = []
        if unsolved:
            prompts = [hint(problem) for problem in unsolved]
            hinted = sample_pool(model, unsolved, k, end, seed + loop, sampling, prompts, batch_size=batch_size)
            rationalised = right_examples(hinted, unsolved, end)
        model.load_state_dict(start)
        folder = checkpoint / f"loop{loop}" if checkpoint else None
        training = train(model, SFTObjective([*truths, *kept, *rationalised]), recipe, seed + loop, folder)
        found.append(StarLoop(pool, hinted, len(kept), len(rationalised), training))
    return found
