"""One stage of ReVISE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from baselines.post_training.batches import Pair
from baselines.post_training.dpo import PreferenceTraining
from baselines.post_training.objectives import reference_margins
from baselines.post_training.training import Recipe, train
from methods.revise.loss import BETA, OFFICIAL, LossWeights, ReviseObjective
from methods.revise.tokens import Tokens, check_tokens
from rematch.errors import RematchError

STAGE_RECIPE = Recipe(learning_rate=1e-5, batch_size=64, epochs=1, warmup=0.1, schedule="linear")
"""Both stages in the official code; the paper's text has a cosine decay."""


def train_stage(
    model: Any,
    pairs: Sequence[Pair],
    tokens: Tokens,
    seed: int,
    recipe: Recipe = STAGE_RECIPE,
    weights: LossWeights = OFFICIAL,
    beta: float = BETA,
    reference: Any = None,
    checkpoint: Path | None = None,
    after_step: Callable[[int, float], None] | None = None,
) -> PreferenceTraining:
    """Minimise ReVISE's loss over the pairs, in place; FLOPs are counted, those of the reference model apart.

    Args:
        reference: a frozen model; the model as it is handed over (the stage's start, as in the official code) where None.
            It is read once, before the first step.
        checkpoint, after_step: as of ``baselines.post_training.training.train``.

    Raises:
        RematchError: no pairs, or a model without an embedding of the refine token.
    """
    check_tokens(tokens, model)
    if not pairs:
        raise RematchError("ReVISE: there are no pairs to train on; did the model's samples end in the end token?")
    margins, flops = None, 0
    if weights.preference:
        margins, flops = reference_margins(model if reference is None else reference, pairs)
    objective = ReviseObjective(pairs, margins, tokens.refine, weights, beta)
    return PreferenceTraining(train(model, objective, recipe, seed, checkpoint, after_step), flops)
