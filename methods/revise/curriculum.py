"""ReVISE's curriculum: learn to verify, then to correct, each from fresh samples of the model that the stage starts from."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from baselines.checkpoints import weights_digest
from baselines.post_training.problems import POOL_SAMPLING, SAMPLES_AT_ONCE, Pool, Problem, sample_pool
from baselines.post_training.training import Recipe, Training
from baselines.sampling import Sampling, context_length
from methods.revise.attempts import Row, attempt_rows, draw_rows, shuffle_labels, split_attempts
from methods.revise.loss import BETA, OFFICIAL, LossWeights
from methods.revise.preferences import StageName, preference_pairs
from methods.revise.tokens import Tokens, check_tokens
from methods.revise.training import STAGE_RECIPE, train_stage
from rematch.errors import RematchError, unknown

CURRICULA: dict[str, tuple[StageName, ...]] = {
    "two_stage": ("verify", "correct"),
    "one_stage": ("correct",),
    "stage1_only": ("verify",),
    "correct_only": ("correct",),
}


@dataclass(frozen=True)
class ReviseConfig:
    """How ReVISE is trained; the defaults are the official code's for GSM8K, but for two that belong together.

    ``eos_after_refine`` and ``drop_unfinished`` are on in the official code. The former teaches to stop after R, which the second
    stage must undo; without it much of what follows an R does not stop, and the latter would drop the wrong attempts before it.

    Attributes:
        k: completions sampled a question, before each stage.
        sampling: how.
        batch_size: completions at once.
        recipe: of each stage.
        curriculum: ``two_stage``; ``one_stage``, the second stage at once, on samples of the model as it is handed over, in
            twice the steps; ``stage1_only``, after which the first attempt is the answer; ``correct_only``, the second stage of
            a model that has had the first.
        cycles: how often the second stage is repeated, each time on new samples.
        reference: of the loss: ``stage_start``, the model that the stage starts from (official code), or ``m0``, the model as
            it is handed over (the paper's text). The first stage knows no difference.
        weights, beta: of the loss.
        use_gt: the ground truths are right attempts too.
        drop_unfinished: leave out a whole completion that does not stop by itself (official code), not only its last attempt.
        eos_after_refine: E also after an R that ends a continuation (official code).
        rows: drawn at most for each stage; all where None.
        max_length: tokens of a row at most, and never more than the model reads; longer rows are left out and counted.
        shuffled: the first stage's labels are dealt out anew: a negative control.
    """

    k: int = 10
    sampling: Sampling = POOL_SAMPLING
    batch_size: int = SAMPLES_AT_ONCE
    recipe: Recipe = STAGE_RECIPE
    curriculum: Literal["two_stage", "one_stage", "stage1_only", "correct_only"] = "two_stage"
    cycles: int = 0
    reference: Literal["stage_start", "m0"] = "stage_start"
    weights: LossWeights = OFFICIAL
    beta: float = BETA
    use_gt: bool = False
    drop_unfinished: bool = False
    eos_after_refine: bool = False
    rows: int | None = None
    max_length: int = 1024
    shuffled: bool = False

    def __post_init__(self) -> None:
        if self.curriculum not in CURRICULA:
            raise unknown("curriculum", self.curriculum, CURRICULA, "ReviseConfig")
        if self.reference not in ("stage_start", "m0"):
            raise unknown("reference", self.reference, ("stage_start", "m0"), "ReviseConfig")
        if self.cycles < 0 or (self.cycles and self.curriculum == "stage1_only"):
            raise RematchError("ReviseConfig: cycles repeat the second stage, 0 times or more; stage1_only has none")
        if self.rows is not None and self.rows < 1:
            raise RematchError(f"ReviseConfig: rows must be at least 1, or None for all, not {self.rows}")
        if self.shuffled and "verify" not in CURRICULA[self.curriculum]:
            raise RematchError(
                f"ReviseConfig: shuffled is of the first stage's labels; {self.curriculum} has no first stage"
            )

    @property
    def stages(self) -> tuple[StageName, ...]:
        """What is learned, in order."""
        repeated: list[StageName] = ["correct"] * self.cycles
        return (*CURRICULA[self.curriculum], *repeated)


@dataclass(frozen=True)
class Stage:
    """What one stage did and cost.

    Attributes:
        name: ``verify`` or ``correct``.
        start, end: digests of the model's weights before and after.
        samples: digest of the model that wrote the samples.
        reference: digest of the reference model after the stage; where that is the stage's start, which is read once before the
            first step, that of the start.
        n_rows, n_right: attempts trained on, and those labelled right among them. Nothing balances them.
        n_unfinished, n_empty, n_cut, n_sampled_tokens: of the pool.
        n_blank: completions of refine tokens and white space alone, which hold no attempt.
        n_too_long: attempts left out for ``max_length``.
        sampling_flops, reference_flops: of sampling, and of the reference model's pass.
        training: of the policy.
    """

    name: StageName
    start: str
    end: str
    samples: str
    reference: str
    n_rows: int
    n_right: int
    n_unfinished: int
    n_empty: int
    n_cut: int
    n_blank: int
    n_too_long: int
    n_sampled_tokens: int
    sampling_flops: int
    reference_flops: int
    training: Training

    @property
    def flops(self) -> int:
        """Of everything."""
        return self.sampling_flops + self.reference_flops + self.training.flops


def fit(
    model: Any,
    problems: Sequence[Problem],
    tokens: Tokens,
    config: ReviseConfig,
    seed: int,
    first_pool: Pool | None = None,
    folder: Path | None = None,
    after_stage: Callable[[Stage], None] | None = None,
    progress: bool = False,
) -> list[Stage]:
    """Train a model that has been fine-tuned on solutions (M0), in place.

    Args:
        first_pool: samples of the model as it is handed over, where there are some already; their cost counts all the same.
        folder: rows (JSON lines) and checkpoints of every stage go there, and an interrupted run is resumed from there when
            it is called again with the same model, problems and seed. Samples are drawn again.
        after_stage: called after each stage, when the model has that stage's weights.
        progress: show a bar while sampling.

    Raises:
        RematchError: no problems, no usable samples, or a first pool of another model.
    """
    check_tokens(tokens, model)
    if not problems:
        raise RematchError("ReVISE: there are no problems to train on")
    limit = min(config.max_length, context_length(model) or config.max_length)
    m0 = copy.deepcopy(model).requires_grad_(False) if config.reference == "m0" else None
    stages: list[Stage] = []
    for number, name in enumerate(config.stages):
        stage_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        start = weights_digest(model)
        pool = first_pool if number == 0 else None
        if pool and pool.weights != start:
            raise RematchError("ReVISE: the first pool was written by another model than the one handed over")
        if pool is None:
            shown = f"samples for stage {number + 1}" if progress else ""
            pool = sample_pool(
                model, problems, config.k, tokens.end, stage_seed, config.sampling,
                cut_after=None if config.drop_unfinished else tokens.refine, batch_size=config.batch_size, progress=shown,
            )  # fmt: skip
        attempts = attempt_rows(pool.completions, problems, tokens, config.use_gt)
        n_blank = sum(not split_attempts(completion.ids, tokens) for completion in pool.completions)
        usable = _that_fit(attempts, problems, limit)
        rows = draw_rows(usable, config.rows, stage_seed)
        if not rows:
            raise RematchError(
                f"ReVISE: no sample can be used: {pool.n_unfinished} did not end, {pool.n_empty} are empty, {n_blank} hold "
                f"no attempt, {len(attempts)} make rows of more than {limit} tokens; fine-tune the model on solutions first, or "
                "raise max_new_tokens or max_length"
            )
        if config.shuffled and name == "verify":
            rows = shuffle_labels(rows, stage_seed)
        work = folder / f"{number + 1}_{name}" if folder else None
        if work:
            write_rows(work / "rows.jsonl", rows, pool.weights)
        pairs = preference_pairs(rows, problems, name, tokens, config.eos_after_refine)
        recipe = _recipe(config, number, len(rows))
        learned = train_stage(model, pairs, tokens, stage_seed, recipe, config.weights, config.beta, m0, work)
        stages.append(
            Stage(
                name=name,
                start=start,
                end=weights_digest(model),
                samples=pool.weights,
                reference=start if m0 is None else weights_digest(m0),
                n_rows=len(rows),
                n_right=sum(row.right for row in rows),
                n_unfinished=pool.n_unfinished,
                n_empty=pool.n_empty,
                n_cut=pool.n_cut,
                n_blank=n_blank,
                n_too_long=len(attempts) - len(usable),
                n_sampled_tokens=pool.n_tokens,
                sampling_flops=pool.flops,
                reference_flops=learned.reference_flops,
                training=learned.training,
            )
        )
        if after_stage:
            after_stage(stages[-1])
    return stages


def write_rows(path: Path, rows: Sequence[Row], weights: str) -> None:
    """Rows as JSON lines, each with the digest of the model that wrote it; put in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({**row._asdict(), "weights": weights}) + "\n")
    temporary.replace(path)


def _recipe(config: ReviseConfig, number: int, n_rows: int) -> Recipe:
    """The recipe of a stage; where one stands for two it takes the steps of both."""
    if config.curriculum != "one_stage" or number:
        return config.recipe
    steps = config.recipe.steps
    if steps is None:
        steps = config.recipe.epochs * -(-n_rows // config.recipe.batch_size)
    return replace(config.recipe, steps=2 * steps)


def _that_fit(rows: Sequence[Row], problems: Sequence[Problem], limit: int) -> list[Row]:
    """The rows that are not longer than ``limit`` tokens in either stage: a wrong attempt has a solution after it."""

    def length(row: Row) -> int:
        problem = problems[row.question]
        return len(problem.prompt) + len(row.ids) + (1 if row.right else 2 + len(problem.solution))

    return [row for row in rows if length(row) <= limit]
