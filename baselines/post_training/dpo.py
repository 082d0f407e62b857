"""DPO between solutions, and the verifier of V-STaR, which is a model trained so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from baselines.post_training.batches import Example, Ids, Pair
from baselines.post_training.objectives import DPOObjective, log_likelihoods, reference_margins
from baselines.post_training.problems import Pool, Problem, sort_completions
from baselines.post_training.training import Recipe, Training, train
from rematch.errors import RematchError, unknown


@dataclass(frozen=True)
class PreferenceTraining:
    """What learning from preferences cost.

    Attributes:
        training: of the policy.
        reference_flops: of the reference model's log-probabilities, computed once.
    """

    training: Training
    reference_flops: int

    @property
    def flops(self) -> int:
        """Of both."""
        return self.training.flops + self.reference_flops


def solution_pairs(
    pool: Pool,
    problems: Sequence[Problem],
    end: int,
    seed: int,
    chosen: Literal["truth", "right"] = "truth",
    per_question: int | None = None,
) -> list[Pair]:
    """Every better solution of a question paired with every distinct wrong sample, all ended.

    Args:
        chosen: the better ones: the ground ``truth`` (the DPO baseline of ReVISE's Table 5) or the distinct ``right``
            samples (V-STaR's verifier).
        per_question: pairs of a question at most, drawn with the seed; all where None.
    """
    if chosen not in ("truth", "right"):
        raise unknown("chosen", chosen, ("truth", "right"), "solution_pairs")
    rng = np.random.default_rng([seed, *b"pairs"])
    right, wrong = sort_completions(pool.completions, problems)
    pairs: list[Pair] = []
    for problem, good, bad in zip(problems, right, wrong, strict=True):
        better = [problem.solution] if chosen == "truth" else good
        found = [Pair(problem.prompt, (*g, end), (*b, end)) for g in better for b in bad]
        if per_question is not None and len(found) > per_question:
            found = [found[i] for i in sorted(rng.permutation(len(found))[:per_question])]
        pairs += found
    return pairs


def dpo(
    model: Any,
    pairs: Sequence[Pair],
    recipe: Recipe,
    seed: int,
    beta: float = 0.1,
    reference: Any = None,
    checkpoint: Path | None = None,
) -> PreferenceTraining:
    """Direct preference optimisation, in place.

    Args:
        reference: a model that stays as it is; the model as it is handed over where None.
    """
    if not pairs:
        raise RematchError("dpo: there are no pairs; a pool without wrong samples, or without right ones, makes none")
    margins, flops = reference_margins(model if reference is None else reference, pairs)
    return PreferenceTraining(train(model, DPOObjective(pairs, margins, beta), recipe, seed, checkpoint), flops)


def solution_scores(
    model: Any, prompts: Sequence[Ids], solutions: Sequence[Ids], end: int, batch_size: int = 64
) -> tuple[Tensor, int]:
    """log M(solution, end | prompt), (n,) float64, and its FLOPs: the score of V-STaR's verifier (Hosseini et al., 2024)."""
    examples = [Example(prompt, (*ids, end)) for prompt, ids in zip(prompts, solutions, strict=True)]
    return log_likelihoods(model, examples, batch_size)
