"""Scores of a contender on the items of the corpus: perplexity, recall, influence over distance, and time."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

TOKENS_PER_BATCH = 4096
"""Items are batched up to this many tokens: enough to be fast, little enough for a long context."""


@torch.no_grad()
def window_losses(contender: Any, windows: np.ndarray, n_scored: int) -> list[float]:
    """Mean negative log-likelihood in nats of the last ``n_scored`` tokens of each window (n, length)."""
    losses: list[float] = []
    for ids in _batches(windows, contender):
        log_likelihoods = _target_log_likelihoods(contender.logits(ids, n_scored), ids)
        losses += (-log_likelihoods.mean(1)).tolist()
    return losses


@torch.no_grad()
def recall_hits(contender: Any, windows: np.ndarray, value_length: int) -> list[float]:
    """1.0 for each window (n, length) whose last ``value_length`` tokens are all predicted as the likeliest, else 0.0."""
    hits: list[float] = []
    for ids in _batches(windows, contender):
        predicted = contender.logits(ids, value_length).argmax(-1)
        hits += (predicted == ids[:, -value_length:]).all(1).double().tolist()
    return hits


def influences(contender: Any, windows: np.ndarray, edges: list[int]) -> np.ndarray:
    """How much a token at a distance moves the prediction after the last context token T (claim C6).

    It is the norm of the gradient of log p(next token) with respect to the input embedding, through the path that the
    contender itself takes: what it prunes has an influence only by way of the layers that read it.

    Args:
        windows: (n, length); T is the last token but one.
        edges: ascending distances; bin k holds distances from edges[k] to below edges[k + 1].

    Returns:
        natural logarithms of the mean norm in each bin, (n, len(edges) - 1).
    """
    rows: list[np.ndarray] = []
    captured: list[Tensor] = []

    def capture(module: Any, args: Any, output: Tensor) -> Tensor:
        captured.append(output.detach().requires_grad_())
        return captured[-1]

    hook = contender.model.get_input_embeddings().register_forward_hook(capture)
    try:
        for ids in _batches(windows, contender):
            captured.clear()
            with torch.enable_grad():
                score = _target_log_likelihoods(contender.logits(ids, 1), ids).sum()
            (gradient,) = torch.autograd.grad(score, captured)
            # Column length - 2 is T, at distance 0.
            by_distance = gradient[:, : ids.shape[1] - 1].double().norm(dim=-1).flip(1).cpu().numpy()
            bins = [by_distance[:, low:high].mean(1) for low, high in itertools.pairwise(edges)]
            rows.append(np.stack(bins, axis=1))
    finally:
        hook.remove()
    # A gradient may underflow to 0 over a long way; the smallest normal number stands for it.
    return np.log(np.maximum(np.concatenate(rows), np.finfo(np.float32).tiny))


def decay_exponents(log_influences: np.ndarray, edges: list[int]) -> list[float]:
    """Halvings of the influence per doubling of the distance, for each window: minus the slope on logarithmic axes.

    Args:
        log_influences: of ``influences``, (n, bins).
    """
    centres = np.log([np.sqrt(low * (high - 1)) for low, high in itertools.pairwise(edges)])
    centred = centres - centres.mean()
    return (-(log_influences @ centred) / (centred @ centred)).tolist()


@torch.no_grad()
def seconds_per_item(contenders: list[Any], windows: np.ndarray, n_scored: int, repeats: int) -> list[float]:
    """Median seconds of each contender for one window, batch of one, the contenders taking turns.

    They take turns so that a slow moment of the machine meets all of them.
    """
    ids = _to_ids(windows[:1], contenders[0])
    found: list[list[float]] = [[] for _ in contenders]
    for _ in range(repeats + 1):
        for contender, seconds in zip(contenders, found, strict=True):
            _synchronize(ids)
            started = time.perf_counter()
            contender.logits(ids, n_scored)
            _synchronize(ids)
            seconds.append(time.perf_counter() - started)
    return [statistics.median(seconds[1:]) for seconds in found]  # the first warms up


def _target_log_likelihoods(logits: Tensor, ids: Tensor) -> Tensor:
    """log p of the last n of (batch, length) tokens under predictions (batch, n, vocabulary): (batch, n)."""
    targets = ids[:, -logits.shape[1] :, None]
    return F.log_softmax(logits.float(), dim=-1).gather(-1, targets).squeeze(-1)


def _batches(windows: np.ndarray, contender: Any) -> Iterator[Tensor]:
    size = max(1, TOKENS_PER_BATCH // windows.shape[1])
    for start in range(0, len(windows), size):
        yield _to_ids(windows[start : start + size], contender)


def _to_ids(windows: np.ndarray, contender: Any) -> Tensor:
    return torch.from_numpy(windows.astype(np.int64)).to(next(contender.model.parameters()).device)


def _synchronize(ids: Tensor) -> None:
    if ids.device.type == "cuda":
        torch.cuda.synchronize(ids.device)
