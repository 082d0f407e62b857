"""Perplexity, recall, influence and time against loops by hand and models whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from baselines.dense import Dense
from methods.simba import sparsify
from workflows.simba.evaluation import decay_exponents, influences, recall_hits, seconds_per_item, window_losses

VOCABULARY = 300


@pytest.fixture
def windows() -> np.ndarray:
    return np.random.default_rng(0).integers(1, VOCABULARY, size=(7, 64))


@pytest.fixture
def dense(parent: Callable[[], Any]) -> Dense:
    made = Dense()
    made.prepare(parent())
    return made


class Powers:
    """Its prediction for the next token is a sum over embeddings weighted by a power of their distance."""

    def __init__(self, exponent: float) -> None:
        torch.manual_seed(0)
        self.exponent, self.embed, self.head = exponent, nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY)
        self.model = SimpleNamespace(
            get_input_embeddings=lambda: self.embed, parameters=lambda: self.embed.parameters()
        )

    def logits(self, ids: Tensor, n_continuation: int, attention_mask: Tensor | None = None) -> Tensor:
        embedded = self.embed(ids[:, :-1])
        distance = torch.arange(embedded.shape[1] - 1, -1, -1) + 1.0
        return self.head((embedded * distance[:, None] ** -self.exponent).sum(1, keepdim=True))


def test_window_losses_are_the_loop_by_hand(dense: Dense, windows: np.ndarray) -> None:
    losses = window_losses(dense, windows, 16)
    for row, loss in zip(windows, losses, strict=True):
        ids = torch.tensor(row[None])
        with torch.no_grad():
            log_p = torch.log_softmax(dense.model(ids).logits[0], -1)
        by_hand = -np.mean([float(log_p[t - 1, row[t]]) for t in range(48, 64)])
        assert loss == pytest.approx(by_hand, abs=1e-5)


def test_recall_needs_the_whole_value(dense: Dense, windows: np.ndarray) -> None:
    told = windows.copy()
    with torch.no_grad():
        for row in told:
            for t in (62, 63):
                row[t] = dense.logits(torch.tensor(row[None, : t + 1]), 1)[0, 0].argmax()
    assert recall_hits(dense, told, 2) == [1.0] * 7
    half = told.copy()
    half[:, 63] = half[:, 63] % (VOCABULARY - 1) + 1
    assert recall_hits(dense, half, 2) == [0.0] * 7


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_a_known_decay_is_found(exponent: float, windows: np.ndarray) -> None:
    """Weights of d^-a decay by a halvings per doubling; the distance 0 is left out, so d + 1 is close to d far away."""
    edges = [4, 8, 16, 32]
    logs = influences(Powers(exponent), windows, edges)
    assert logs.shape == (7, 3)
    assert decay_exponents(logs, edges) == pytest.approx([exponent] * 7, rel=0.12)


def test_influence_is_the_gradient_with_respect_to_the_embedding(dense: Dense, windows: np.ndarray) -> None:
    edges = [1, 2, 3]
    logs = influences(dense, windows[:1], edges)
    embedded = dense.model.get_input_embeddings()(torch.tensor(windows[:1, :-1])).detach().requires_grad_()
    score = torch.log_softmax(dense.model(inputs_embeds=embedded).logits[0, -1], -1)[windows[0, -1]]
    (gradient,) = torch.autograd.grad(score, embedded)
    expected = [gradient[0, -1 - distance].norm().log().item() for distance in (1, 2)]
    assert logs[0].tolist() == pytest.approx(expected, abs=1e-3)


def test_nothing_is_left_behind(dense: Dense, windows: np.ndarray) -> None:
    before = [parameter.clone() for parameter in dense.model.parameters()]
    influences(dense, windows, [1, 2, 4])
    assert not dense.model.get_input_embeddings()._forward_hooks
    assert all(parameter.grad is None for parameter in dense.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, dense.model.parameters(), strict=True))


def test_a_pruned_model_is_measured_on_its_own_path(parent: Callable[[], Any], windows: np.ndarray) -> None:
    edges = [1, 2, 4, 8, 16, 32]
    model = parent()
    whole, pruned = (influences(sparsify(model, r_last=r), windows, edges) for r in (1.0, 0.1))
    dense = Dense()
    dense.prepare(model)
    np.testing.assert_allclose(whole, influences(dense, windows, edges), atol=1e-4)
    assert np.abs(pruned - whole).max() > 0.01


def test_time_is_measured_in_turns() -> None:
    calls: list[str] = []

    def contender(name: str, steps: int) -> Any:
        weight = torch.randn(200, 200)

        def logits(ids: Tensor, n: int) -> Tensor:
            calls.append(name)
            for _ in range(steps):
                weight @ weight
            return weight

        return SimpleNamespace(logits=logits, model=SimpleNamespace(parameters=lambda: iter([weight])))

    seconds = seconds_per_item([contender("a", 10), contender("b", 100)], np.ones((1, 8), dtype=int), 2, repeats=5)
    assert calls == ["a", "b"] * 6
    assert seconds[1] > 2 * seconds[0] > 0
