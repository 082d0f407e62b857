"""How every model is post-trained: AdamW, warm-up, linear or cosine decay, clipped gradients, counted FLOPs.

Either by the loop of this module, which runs no token twice, or by TRL's trainers (``trl_training``), on one GPU or several.
Both take the same rows in the same steps, so that they end in the same weights up to rounding.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn

from baselines.checkpoints import resume, save
from baselines.post_training.batches import Batch, collate, shape_of
from baselines.post_training.objectives import Objective, Totals, check_lengths
from baselines.post_training.trl_steps import parts_of, trl_flops
from baselines.transformer_flops import TransformerFlops, transformer_flops
from rematch.errors import RematchError, unknown

SCHEDULES = ("linear", "cosine")
TRAINERS = ("own", "trl")


@dataclass(frozen=True)
class Recipe:
    """How a model is post-trained; the defaults are those of one ReVISE stage (official code).

    Attributes:
        learning_rate: its peak.
        batch_size: rows in a step.
        epochs: passes over the rows, each in a new order.
        steps: optimizer steps instead, over as many passes as they take.
        warmup: share of the steps over which the rate rises linearly from 0.
        schedule: how it falls to 0 afterwards: ``linear`` or ``cosine``.
        clip: largest norm of the gradient.
        weight_decay: AdamW's.
        micro_batch_size: rows in a forward pass, for less memory; the whole step's where None. Changes no gradient.
        checkpoint_every: steps between checkpoints, 0 for none but the last.
        trainer: ``own``, or ``trl``: its SFTTrainer or DPOTrainer, which runs two sequences a pair and every sequence whole.
        processes: of accelerate, which share each step's rows, each on a GPU of its own where there are some; ``trl`` only.
    """

    learning_rate: PositiveFloat = 1e-5
    batch_size: PositiveInt = 64
    epochs: NonNegativeInt = 1
    steps: NonNegativeInt | None = None
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    schedule: Literal["linear", "cosine"] = "linear"
    clip: PositiveFloat = 1.0
    weight_decay: NonNegativeFloat = 0.0
    micro_batch_size: PositiveInt | None = None
    checkpoint_every: NonNegativeInt = 0
    trainer: Literal["own", "trl"] = "own"
    processes: PositiveInt = 1

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES, "Recipe")
        if self.trainer not in TRAINERS:
            raise unknown("trainer", self.trainer, TRAINERS, "Recipe")
        positive = ("learning_rate", "batch_size", "clip", "micro_batch_size", "processes")
        for name, value in asdict(self).items():
            if name in positive and value is not None and value <= 0:
                raise RematchError(f"Recipe: {name} must be positive, not {value}")
        if self.epochs < 0 or (self.steps is not None and self.steps < 0) or not 0 <= self.warmup <= 1:
            raise RematchError("Recipe: epochs and steps must not be negative, and warmup is a share of the steps")
        if self.processes > 1 and self.trainer != "trl":
            raise RematchError(
                f"Recipe: processes: {self.processes}; the own loop runs in one: give trainer: trl too, or leave processes out"
            )

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, of ``steps``."""
        n_warmup = round(self.warmup * steps)
        if step < n_warmup:
            return self.learning_rate * (step + 1) / n_warmup
        progress = (step - n_warmup) / max(1, steps - n_warmup)
        share = 1 - progress if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * share


@dataclass
class Training:
    """What a training run cost and how it went, the part before an interruption included.

    Attributes:
        flops: floating-point operations, forward and backward.
        rows: read, repeats included.
        tokens: of their sequences, padding left out.
        losses: of each step.
    """

    flops: int = 0
    rows: int = 0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return len(self.losses)

    @property
    def final_loss(self) -> float:
        """The mean over the last tenth of the steps."""
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(tail) / len(tail) if tail else math.nan


def schedule_batches(n_rows: int, recipe: Recipe, seed: int) -> list[list[int]]:
    """The rows of every step. Each pass over the rows is a new permutation; its last batch may be smaller.

    Rows are not sorted by length, which would save padding: a pair of a wrong attempt is longer than one of a right attempt, and
    batches would hold the one or the other.
    """
    if not n_rows:
        raise RematchError("there are no rows to train on")
    rng = np.random.default_rng([seed, *b"order"])
    size = recipe.batch_size
    wanted = -(-n_rows // size) * recipe.epochs if recipe.steps is None else recipe.steps
    batches: list[list[int]] = []
    while len(batches) < wanted:
        order = rng.permutation(n_rows).tolist()
        batches += [order[i : i + size] for i in range(0, n_rows, size)]
    return batches[:wanted]


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with a number of steps instead of passes over the rows."""
    return replace(recipe, steps=steps)


def steps_for_flops(model: Any, objective: Objective, flops: float, recipe: Recipe, seed: int) -> int:
    """How many steps ``train`` takes with this recipe and seed until it is nearest to a number of FLOPs, at least one."""
    costs, spent, steps = transformer_flops(model), 0, 0
    n_rows = len(objective.rows)
    wanted = 64 * -(-n_rows // recipe.batch_size)
    while True:
        batches = schedule_batches(n_rows, with_steps(recipe, wanted), seed)
        for batch in batches[steps:]:
            cost = step_flops(costs, objective, batch, recipe, model.device.type)
            if spent + cost / 2 > flops:
                return max(1, steps)
            spent, steps = spent + cost, steps + 1
        wanted *= 2


def train(
    model: Any,
    objective: Objective,
    recipe: Recipe,
    seed: int,
    checkpoint: Path | None = None,
    after_step: Callable[[int, float], None] | None = None,
) -> Training:
    """Train a causal language model of transformers in place; it is left in evaluation mode.

    Args:
        seed: of the order of the rows, and of dropout, if any. torch's own generator is left as it was.
        checkpoint: a folder from which an interrupted run is resumed (bit by bit as if nothing had happened), and into
            which checkpoints are written. The model handed over must be the one that the run began with.
        after_step: called with the number of steps done and the loss of the last one; not with several processes.

    Raises:
        RematchError: no rows, a row longer than the model's context, a checkpoint of another run, or what only TRL's trainers
            refuse (see ``trl_training.train_by_trl``).
    """
    check_lengths(model, objective.rows)
    batches = schedule_batches(len(objective.rows), recipe, seed)
    run = json.dumps({"recipe": asdict(recipe), "seed": seed, "objective": objective.digest}, sort_keys=True)
    if recipe.trainer == "trl":
        from baselines.post_training.trl_training import train_by_trl  # takes seconds to import

        return train_by_trl(model, objective, recipe, seed, batches, run, checkpoint, after_step)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), weight_decay=recipe.weight_decay, fused=True)
    costs, began = transformer_flops(model), time.perf_counter()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        before = resume(checkpoint, run, parameters, optimizer) if checkpoint else None
        done = Training(**before or {})
        first = done.steps
        model.train()
        for step in range(first, len(batches)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(step, len(batches))
            value, n_tokens = _backward(model, objective, batches[step], recipe)
            nn.utils.clip_grad_norm_(parameters.values(), recipe.clip)
            optimizer.step()
            optimizer.zero_grad()
            done.losses.append(value)
            done.flops += step_flops(costs, objective, batches[step], recipe, model.device.type)
            done.rows, done.tokens = done.rows + len(batches[step]), done.tokens + n_tokens
            show_progress(done.losses, len(batches), done.steps - first, began)
            last = done.steps == len(batches)
            if checkpoint and (last or (recipe.checkpoint_every and done.steps % recipe.checkpoint_every == 0)):
                save(checkpoint, run, parameters, optimizer, asdict(done))
            if after_step:
                after_step(done.steps, value)
    model.eval()
    return done


def _backward(model: Any, objective: Objective, indices: Sequence[int], recipe: Recipe) -> tuple[float, int]:
    """Add up the gradients of a step; its loss, and how many tokens were read."""
    batches = [collate([objective.rows[i] for i in part], model.device) for part in _parts(indices, recipe)]
    totals = Totals(len(indices), sum(batch.n_counted for batch in batches))
    value = 0.0
    for part, batch in zip(_parts(indices, recipe), batches, strict=True):
        loss = batch_loss(model, objective, batch, part, totals)
        loss.backward()
        value += loss.item()
    return value, sum(batch.n_tokens for batch in batches)


def batch_loss(model: Any, objective: Objective, batch: Batch, indices: Sequence[int], totals: Totals) -> torch.Tensor:
    """The loss of a batch that holds the objective's rows ``indices``, a scalar."""
    return objective.loss(batch.log_probs(model), batch, torch.tensor(indices), totals)


def _parts(indices: Sequence[int], recipe: Recipe) -> list[Sequence[int]]:
    size = recipe.micro_batch_size or len(indices)
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def step_flops(
    costs: TransformerFlops, objective: Objective, indices: Sequence[int], recipe: Recipe, device: str
) -> int:
    """FLOPs of a step on the rows ``indices``; the optimizer's own work is left out, by convention."""
    if recipe.trainer == "trl":
        data = objective.data
        return sum(trl_flops(costs, data, part, device) for part in parts_of(indices, recipe))
    return sum(costs.step(*shape_of([objective.rows[i] for i in part])) for part in _parts(indices, recipe))


def show_progress(losses: Sequence[float], steps: int, n_run: int, began: float) -> None:
    """Print a line every tenth of the steps.

    Args:
        losses: of the steps so far.
        steps: in all.
        n_run: of them since ``began``, a time of ``time.perf_counter``.
    """
    tenth = max(1, steps // 10)
    if len(losses) % tenth == 0:
        recent = losses[-tenth:]
        pace = 1e3 * (time.perf_counter() - began) / n_run
        print(f"step {len(losses)}/{steps}: loss {sum(recent) / len(recent):.4f}, {pace:.0f} ms a step", flush=True)
