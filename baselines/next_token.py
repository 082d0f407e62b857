"""Pretraining by next-token prediction: one small deterministic recipe for every language model.

AdamW, linear warm-up, cosine decay, gradients clipped by norm. All models that are compared train on the same windows in
the same order; the FLOPs of a step are counted once and multiplied.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.checkpoints import resume, save
from rematch.flops import count_flops

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        steps: optimizer steps.
        batch_size: windows in a step.
        learning_rate: its peak.
        warmup: share of the steps over which the learning rate rises linearly from 0.
        final_ratio: share of the peak at which the cosine ends.
        weight_decay: AdamW's, on matrices only.
        clip: largest norm of the gradient.
        checkpoint_every: steps between checkpoints, 0 for none.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: float = 0.1
    final_ratio: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    checkpoint_every: int = 0

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        n_warmup = max(1, round(self.warmup * self.steps))
        if step < n_warmup:
            return self.learning_rate * (step + 1) / n_warmup
        progress = (step - n_warmup) / max(1, self.steps - n_warmup)
        return self.learning_rate * (
            self.final_ratio + (1 - self.final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
        )


@dataclass(frozen=True)
class Training:
    """What a training run cost and how it went.

    Attributes:
        flops: counted floating-point operations, forward and backward.
        tokens: tokens read.
        windows: windows read.
        final_loss: mean loss in nats over the last tenth of the steps (of those that this call ran).
    """

    flops: float
    tokens: int
    windows: int
    final_loss: float


def window_order(n_windows: int, n_drawn: int, seed: int) -> np.ndarray:
    """Which windows are read, in order, (n_drawn,): every epoch is a new permutation, the same for every model of a seed."""
    rng = np.random.default_rng([seed, 0])
    epochs = -(-n_drawn // n_windows)
    return np.concatenate([rng.permutation(n_windows) for _ in range(epochs)])[:n_drawn]


def read_only(ids: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Mark the tokens that are read but not predicted in training: id becomes -1 - id where ``scored`` is False."""
    return np.where(scored, ids, -1 - ids)


def next_token_loss(model: Any) -> Loss:
    """The mean cross-entropy in nats of a transformers causal LM over all tokens but the first of (batch, length) ids.

    Tokens that ``read_only`` marked are left out of the mean of their row; the loss is the mean over the rows.
    """

    def loss(ids: Tensor) -> Tensor:
        scored = ids[:, 1:] >= 0
        ids = torch.where(ids >= 0, ids, -1 - ids)
        logits = model(input_ids=ids, use_cache=False).logits
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
        return ((losses * scored).sum(1) / scored.sum(1)).mean()

    return loss


def train(
    model: nn.Module,
    windows: np.ndarray,
    recipe: Recipe,
    seed: int,
    loss: Loss | None = None,
    checkpoint: Path | None = None,
    order: np.ndarray | None = None,
) -> Training:
    """Train a model in place; it is left in eval mode.

    Args:
        windows: token ids, (n, length).
        seed: of the order in which windows are read. (Dropout, if any, draws from torch's own generator.)
        order: the windows that are read, (steps * batch_size,), instead of ``window_order``.
        loss: of a batch of ids (batch, length); ``next_token_loss`` where None.
        checkpoint: a folder from which an interrupted run is resumed, and into which checkpoints are written.
    """
    device = next(model.parameters()).device
    loss = next_token_loss(model) if loss is None else loss
    order = window_order(len(windows), recipe.steps * recipe.batch_size, seed) if order is None else order
    order = order.reshape(recipe.steps, -1)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=recipe.betas,
        fused=True,
    )
    weights = dict(model.named_parameters()) | dict(model.named_buffers())
    run = json.dumps({"recipe": asdict(recipe), "seed": seed, "windows": windows.shape}, sort_keys=True)
    before = resume(checkpoint, run, weights, optimizer) if checkpoint else None
    start = before["step"] if before else 0
    model.train()

    def batch(step: int) -> Tensor:
        return torch.from_numpy(windows[order[step]].astype(np.int64)).to(device)

    flops = count_flops(loss, batch(0), backward=True).total
    began, losses = time.perf_counter(), []
    for step in range(start, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        value = loss(batch(step))
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.detach())
        done = step + 1
        if done % max(1, recipe.steps // 10) == 0:
            rate = len(losses) * order.shape[1] * windows.shape[1] / (time.perf_counter() - began)
            recent = torch.stack(losses[-max(1, recipe.steps // 10) :]).mean().item()
            print(f"step {done}/{recipe.steps}: loss {recent:.4f}, {rate:,.0f} tokens/s", flush=True)
        if checkpoint and recipe.checkpoint_every and done % recipe.checkpoint_every == 0 and done < recipe.steps:
            save(checkpoint, run, weights, optimizer, {"step": done})
    model.eval()
    tail = losses[-max(1, recipe.steps // 10) :]
    return Training(
        flops=float(flops * recipe.steps),
        tokens=order.size * windows.shape[1],
        windows=order.size,
        final_loss=torch.stack(tail).mean().item() if tail else math.nan,
    )


@torch.no_grad()
def evaluate(model: nn.Module, windows: np.ndarray, batch_size: int = 8, loss: Loss | None = None) -> float:
    """Mean loss in nats over windows (n, length), for choices such as a learning rate."""
    loss = next_token_loss(model) if loss is None else loss
    device = next(model.parameters()).device
    parts = [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]
    total = sum(len(part) * loss(torch.from_numpy(part.astype(np.int64)).to(device)).item() for part in parts)
    return total / len(windows)
