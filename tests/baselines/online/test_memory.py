"""The most bytes that are alive at once, by hand."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.online.memory import PeakBytes

N = 100
BYTES = 4 * N


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def chain(x: Tensor, length: int) -> Tensor:
    for _ in range(length):
        x = x.exp()
    return x


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_chain_of_operators(length: int) -> None:
    """Every exp keeps its result for the backward pass; without gradients only one's input and output are there."""
    x = torch.zeros(N, requires_grad=True)
    with PeakBytes() as with_gradients:
        y = chain(x, length)
    assert with_gradients.peak == with_gradients.live == length * BYTES
    with PeakBytes() as without, torch.no_grad():
        z = chain(x, length)
    assert (without.peak, without.live) == (min(length, 2) * BYTES, BYTES)
    del y, z
    assert (with_gradients.live, without.live) == (0, 0)
    assert with_gradients.peak == length * BYTES


def test_intermediates_are_given_back() -> None:
    x = torch.zeros(N)
    with PeakBytes() as memory:
        for _ in range(10):
            y = (x + 1) * 2
            assert memory.live == BYTES
            del y
        assert (memory.peak, memory.live) == (2 * BYTES, 0)
        kept = [x + i for i in range(5)]
    assert memory.peak == memory.live == len(kept) * BYTES


def test_views_and_results_in_place_count_once_and_what_was_there_never() -> None:
    x, index = torch.zeros(N, requires_grad=True), torch.tensor([3])
    with PeakBytes() as memory, torch.no_grad():
        views: list[Any] = [x.view(10, 10).t(), x[5:], x.detach(), x.add_(1), x.mul_(2)[3:], x.data]
        x.index_fill_(0, index, 0.0)
        assert (memory.peak, memory.live) == (0, 0)
        y = torch.empty(N)
        views = [y.view(10, 10).t(), y[5:], y.detach(), y.add_(1), *y.split(10), torch.add(x, x, out=y)]
        assert memory.live == BYTES
        del y
        assert memory.live == BYTES
        del views
        assert memory.live == 0
    assert memory.peak == BYTES


def test_tensors_made_of_numbers_and_tensors_that_grow() -> None:
    x = torch.zeros(N)
    with PeakBytes() as memory:
        y = torch.tensor([1.0, 2.0])
        assert memory.live == 8
        z = y.clone().resize_(N)
        assert memory.live == 8 + BYTES
        empty = torch.empty(0)
        torch.add(x, x, out=empty)
        assert memory.live == 8 + 2 * BYTES
    del y, z, empty
    assert (memory.peak, memory.live) == (8 + 2 * BYTES, 0)


def test_a_backward_pass() -> None:
    """Forward: exp(x) is kept, the sum is 4 bytes. Backward: the gradient of the sum, 4 bytes; cosine and product, then the
    product and the gradient of x, beside what is kept."""
    x = torch.zeros(N, requires_grad=True)
    with PeakBytes() as memory:
        loss = x.exp().sin().sum()
        assert (memory.peak, memory.live) == (2 * BYTES + 4, BYTES + 4)
        loss.backward()
    assert x.grad is not None
    assert (memory.peak, memory.live) == (3 * BYTES + 8, BYTES + 4)
    with PeakBytes() as second:
        x.exp().sum().backward()  # into the gradient that is there
    assert second.live == 0
    assert second.peak > 2 * BYTES
    x.grad = None
    assert memory.live == 4


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_and_the_state_of_adam(fused: bool) -> None:
    weight = nn.Parameter(torch.ones(N))
    optimizer = torch.optim.Adam([weight], fused=fused, foreach=False)
    with PeakBytes() as memory:
        for _ in range(2):
            weight.sum().backward()
            after_backward = memory.live
            optimizer.step()
            optimizer.zero_grad()
        assert memory.live == 2 * BYTES + 4  # two moments and the count of steps
    assert after_backward == 3 * BYTES + 4
    # The fused kernel makes nothing, so most is there as the gradient comes: with the loss and its own gradient, one number
    # each. Otherwise a step makes the root of the second moment, then its quotient.
    assert memory.peak == (3 * BYTES + 4 + 8 if fused else 5 * BYTES + 4)
    del optimizer
    assert memory.live == 0


def test_the_same_from_run_to_run(make_lm: Any) -> None:
    model = make_lm["gpt2"]().train()
    ids = torch.randint(0, 5, (8, 30))

    def step() -> tuple[int, int]:
        torch.manual_seed(0)
        own = copy.deepcopy(model)
        optimizer = torch.optim.Adam(own.parameters(), fused=True)
        with PeakBytes() as memory:
            own(input_ids=ids).logits.exp().mean().backward()
            optimizer.step()
        return memory.peak, memory.live

    first = step()
    parameters = sum(p.numel() for p in model.parameters())
    steps = len(list(model.parameters()))
    assert first[1] == 3 * 4 * parameters + 4 * steps  # gradients and moments; nothing else is left
    assert first[0] > first[1]
    assert [step() for _ in range(3)] == [first] * 3


def test_the_garbage_collector_has_no_say() -> None:
    with PeakBytes() as memory:
        for _ in range(3000):
            cycle: list[Any] = [torch.empty(1)]
            cycle.append(cycle)
    assert memory.peak == memory.live == 4 * 3000
    assert gc.isenabled()
    del cycle
    gc.collect()
    assert memory.live == 0
    with pytest.raises(ZeroDivisionError), memory:
        1 / 0  # noqa: B018
    assert gc.isenabled()
