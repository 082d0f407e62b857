"""One stage of ReVISE, trained by the project's own exact loop or by TRL's trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines.post_training.batches import Pair
from baselines.post_training.dpo import PreferenceTraining
from baselines.post_training.objectives import reference_margins
from baselines.post_training.training import Recipe, train
from methods.revise.loss import BETA, OFFICIAL, LossWeights, ReviseObjective
from methods.revise.tokens import Tokens, check_tokens
from rematch.errors import RematchError

if TYPE_CHECKING:
    from baselines.post_training.trl_training import PairTrainer

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


def stage_trainer(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    output_dir: str,
    weights: LossWeights = OFFICIAL,
    beta: float = BETA,
    reference: Any = None,
    **options: Any,
) -> PairTrainer:
    """TRL's trainer of the same loss, which runs two sequences a pair; ``.train()`` it.

    ``options`` go to ``trl.DPOConfig``; without any, the optimisation is that of ``STAGE_RECIPE`` in batches of one device,
    its length limit and gradient checkpointing aside. Wrong attempts stand in the context, so that TRL's likelihood term,
    which takes all tokens of the chosen continuation, is L_SFT.
    """
    from baselines.post_training.trl_training import pair_trainer

    given: dict[str, Any] = {
        "learning_rate": STAGE_RECIPE.learning_rate, "per_device_train_batch_size": STAGE_RECIPE.batch_size,
        "num_train_epochs": STAGE_RECIPE.epochs, "warmup_steps": STAGE_RECIPE.warmup, "lr_scheduler_type": "linear", **options,
    }  # fmt: skip
    return pair_trainer(
        model, tokenizer, pairs, output_dir, (weights.preference, weights.sft), beta, reference, **given
    )
