"""The recipe of pretraining: schedule, order of the data, cost, resuming, determinism."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from baselines.mamba import install
from baselines.next_token import Recipe, evaluate, next_token_loss, read_only, train, window_order
from rematch.errors import RematchError
from rematch.flops import count_flops

VOCABULARY, LENGTH = 24, 16
RECIPE = Recipe(steps=12, batch_size=2, learning_rate=1e-2)


def mamba() -> Any:
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=VOCABULARY, hidden_size=8, state_size=4, num_hidden_layers=2, tie_word_embeddings=True
    )
    return install(MambaForCausalLM(config))


def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
        )
    )


@pytest.fixture
def windows() -> np.ndarray:
    """Counting up from a random start: learnable."""
    starts = np.random.default_rng(0).integers(VOCABULARY, size=(40, 1))
    return ((starts + np.arange(LENGTH)) % VOCABULARY).astype(np.uint16)


def weights(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("make", [mamba, llama])
def test_it_learns(make: Callable[[], Any], windows: np.ndarray) -> None:
    model = make()
    before = evaluate(model.eval(), windows)
    train(model, windows, replace(RECIPE, steps=60), seed=0)
    assert before == pytest.approx(math.log(VOCABULARY), rel=0.2)
    assert evaluate(model, windows) < 0.6 * before
    assert not model.training


@pytest.mark.parametrize("make", [mamba, llama])
def test_bit_identical_for_a_seed_and_only_for_it(make: Callable[[], Any], windows: np.ndarray) -> None:
    trained = []
    for seed in (0, 0, 1):
        model = make()
        torch.rand(seed + 3)  # the global generator must not matter
        train(model, windows, RECIPE, seed)
        trained.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(trained[0], trained[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(trained[0], trained[2], strict=True))


def test_learning_rate() -> None:
    recipe = Recipe(steps=100, batch_size=1, learning_rate=1.0, warmup=0.1, final_ratio=0.1)
    rates = [recipe.learning_rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_every_epoch_reads_every_window_once() -> None:
    order = window_order(7, 17, seed=3)
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))
    assert not np.array_equal(order[:7], order[7:14])
    np.testing.assert_array_equal(order, window_order(7, 17, seed=3))
    np.testing.assert_array_equal(order[:5], window_order(7, 5, seed=3))


def test_all_models_of_a_seed_read_the_same(windows: np.ndarray) -> None:
    seen: list[list[torch.Tensor]] = []
    for make in (mamba, llama):
        model, read = make(), []
        inner = next_token_loss(model)

        def loss(ids: torch.Tensor, inner: Any = inner, read: Any = read) -> torch.Tensor:
            read.append(ids.clone())
            return inner(ids)

        train(model, windows, RECIPE, seed=5, loss=loss)
        seen.append(read)
    assert len(seen[0]) == len(seen[1]) == RECIPE.steps + 1  # one more, to count its FLOPs
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_cost(windows: np.ndarray) -> None:
    model = mamba()
    ids = torch.from_numpy(windows[:2].astype(np.int64))
    step = count_flops(next_token_loss(model), ids, backward=True)
    run = train(model, windows, RECIPE, seed=0)
    assert run.flops == 12 * step.total
    assert step.backward > 1.5 * step.forward > 0
    assert (run.windows, run.tokens) == (24, 24 * LENGTH)
    assert 0 < run.final_loss < math.log(VOCABULARY) * 1.2


@pytest.mark.parametrize("make", [mamba, llama])
def test_an_interrupted_run_ends_the_same(make: Callable[[], Any], windows: np.ndarray, tmp_path: Path) -> None:
    whole = make()
    train(whole, windows, RECIPE, seed=0)
    recipe = replace(RECIPE, checkpoint_every=5)

    model = make()
    inner, calls = next_token_loss(model), 0

    def interrupted(ids: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return inner(ids)

    with pytest.raises(KeyboardInterrupt):
        train(model, windows, recipe, 0, interrupted, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]

    resumed, steps = make(), 0
    inner = next_token_loss(resumed)

    def counting(ids: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return inner(ids)

    run = train(resumed, windows, recipe, 0, counting, tmp_path)
    assert steps == 1 + 12 - 5
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))
    assert (run.windows, run.tokens) == (24, 24 * LENGTH)
    with pytest.raises(RematchError, match="is the checkpoint of another run"):
        train(make(), windows, recipe, 1, checkpoint=tmp_path)


def test_the_gradient_is_clipped(windows: np.ndarray) -> None:
    """With a loss that is a thousand times as steep the first step is the same: its gradient was clipped."""
    trained = []
    for scale in (1e3, 1e6):
        model = mamba()
        inner = next_token_loss(model)
        train(model, windows, replace(RECIPE, steps=1), 0, lambda ids, s=scale, f=inner: s * f(ids))
        trained.append(weights(model))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*trained, strict=True))


def test_evaluate_is_the_mean_over_windows(windows: np.ndarray) -> None:
    model = mamba().eval()
    single = [evaluate(model, windows[i : i + 1]) for i in range(5)]
    assert evaluate(model, windows[:5], batch_size=2) == pytest.approx(np.mean(single), rel=1e-5)


def test_tokens_that_are_only_read_carry_no_loss(windows: np.ndarray) -> None:
    model = mamba().eval()
    ids = torch.from_numpy(windows[:3].astype(np.int64))
    scored = np.random.default_rng(1).random(ids.shape) < 0.4
    scored[:, 1] = True  # something is to be predicted in every row
    marked = torch.from_numpy(read_only(ids.numpy(), scored))
    with torch.no_grad():
        log_p = torch.log_softmax(model(ids).logits, -1)
    rows = [-np.mean([float(log_p[b, t - 1, ids[b, t]]) for t in range(1, LENGTH) if scored[b, t]]) for b in range(3)]
    assert next_token_loss(model)(marked).item() == pytest.approx(np.mean(rows), rel=1e-5)
    assert next_token_loss(model)(ids).item() == pytest.approx(evaluate(model, windows[:3]), rel=1e-5)


def test_a_given_order_is_read(windows: np.ndarray) -> None:
    model, read = mamba(), []
    inner = next_token_loss(model)

    def loss(ids: torch.Tensor) -> torch.Tensor:
        read.append(ids.clone())
        return inner(ids)

    order = np.arange(24)[::-1]
    train(model, windows, RECIPE, seed=0, loss=loss, order=order)
    np.testing.assert_array_equal(torch.cat(read[1:]).numpy(), windows[order])
