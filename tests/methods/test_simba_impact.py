"""The global impact against what it is defined by: the scan with one token's input taken away."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from baselines.mamba import Trace
from methods.simba.impact import CHUNK, global_impact, suffix_sum
from rematch.flops import count_flops


def random_trace(batch: int, length: int, channels: int, state: int, dtype: torch.dtype = torch.float64) -> Trace:
    draw = torch.Generator().manual_seed(length)
    x = torch.randn(batch, length, channels, generator=draw, dtype=dtype)
    dt = torch.rand(batch, length, channels, generator=draw, dtype=dtype) * 0.3
    A = -torch.rand(channels, state, generator=draw, dtype=dtype) * 4
    B, C = (torch.randn(batch, length, state, generator=draw, dtype=dtype) for _ in range(2))
    return Trace(x, dt, A, B, C, torch.zeros_like(x))


def last_output(trace: Trace, without: int | None = None) -> Tensor:
    """y at the last position by the sequential recurrence, one step's input term taken away: (batch, E)."""
    state = torch.zeros(trace.x.shape[0], *trace.A.shape, dtype=torch.float64)
    for t in range(trace.x.shape[1]):
        dt = trace.dt[:, t, :, None]
        state = torch.exp(dt * trace.A) * state
        if t != without:
            state = state + dt * trace.B[:, t, None] * trace.x[:, t, :, None]
    return (state * trace.C[:, -1, None]).sum(-1)


@pytest.mark.parametrize("length", [1, 2, 7, CHUNK + 3])
def test_it_is_what_the_last_output_loses_without_the_token(length: int) -> None:
    trace = random_trace(2, length, 5, 3)
    impact = global_impact(trace, length)
    whole = last_output(trace)
    for t in range(length):
        torch.testing.assert_close(impact[:, t], whole - last_output(trace, without=t), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("channels", "state"), [(5, 3), (300, 16)])
def test_the_kernel_computes_the_equation(channels: int, state: int) -> None:
    trace = random_trace(2, 90, channels, state)
    single = Trace(*(tensor.float() for tensor in trace))
    expected = global_impact(trace, 80)
    actual = global_impact(single, 80)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


def test_nothing_after_the_context_is_read() -> None:
    trace = random_trace(2, 20, 5, 3)
    cut = Trace(*(tensor if tensor is trace.A else tensor[:, :13] for tensor in trace))
    assert torch.equal(global_impact(trace, 13), global_impact(cut, 13))


def test_suffix_sum() -> None:
    dt = random_trace(2, 50, 5, 3).dt
    remaining = suffix_sum(dt)
    assert torch.all(remaining[:, -1] == 0)
    assert torch.all(remaining[:, :-1] >= remaining[:, 1:])
    torch.testing.assert_close(remaining[:, 7], dt[:, 8:].sum(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_instant_forgetting_leaves_the_last_token(dtype: torch.dtype) -> None:
    trace = random_trace(2, 30, 5, 3, dtype)._replace(A=torch.full((5, 3), -1e6, dtype=dtype))
    impact = global_impact(trace, 30)
    torch.testing.assert_close(impact[:, :-1], torch.zeros_like(impact[:, :-1]), atol=1e-30, rtol=0)
    own = (trace.C[:, -1] * trace.B[:, -1]).sum(-1, keepdim=True) * trace.dt[:, -1] * trace.x[:, -1]
    torch.testing.assert_close(impact[:, -1], own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_forgetting_weighs_by_the_input_alone(dtype: torch.dtype) -> None:
    trace = random_trace(2, 30, 5, 3, dtype)._replace(A=torch.zeros(5, 3, dtype=dtype))
    alignment = (trace.C[:, -1:] * trace.B).sum(-1, keepdim=True).abs()
    torch.testing.assert_close(global_impact(trace, 30).abs(), alignment * trace.dt * trace.x.abs())


def test_worked_example() -> None:
    """E = N = 1, A = -1, dt = 1, B = C = 1, x = (e^2, 1, 1)."""
    one = torch.ones(1, 3, 1)
    x = torch.tensor([math.e**2, 1.0, 1.0]).view(1, 3, 1)
    impact = global_impact(Trace(x, one, -torch.ones(1, 1), one, one, one), 3)
    torch.testing.assert_close(impact.flatten(), torch.tensor([1.0, 1 / math.e, 1.0]))


def test_one_rate_a_head_is_the_general_case_with_equal_rates() -> None:
    """Mamba-2's trace against Mamba's with A, dt, B and C repeated for every channel of a head; one group a call."""
    heads, per_head, state = 4, 3, 5
    trace = random_trace(2, 25, heads * per_head, state)
    A, dt = trace.A[:heads, 0], trace.dt[:, :, :heads]
    B, C = (torch.stack([tensor, 2 * tensor.flip(-1)], dim=2) for tensor in (trace.B, trace.C))
    actual = global_impact(Trace(trace.x, dt, A, B, C, trace.z), 20)
    for group in range(2):
        part = slice(group * heads * per_head // 2, (group + 1) * heads * per_head // 2)
        rates = A.repeat_interleave(per_head)[part, None].expand(-1, state)
        steps = dt.repeat_interleave(per_head, dim=-1)[:, :, part]
        general = Trace(trace.x[:, :, part], steps, rates, B[:, :, group], C[:, :, group], trace.z)
        torch.testing.assert_close(actual[:, :, part], global_impact(general, 20), atol=1e-5, rtol=1e-4)


def test_its_flops_are_counted() -> None:
    trace = random_trace(2, 90, 6, 4, torch.float32)
    assert count_flops(lambda: global_impact(trace, 80)).forward == 4 * 2 * 80 * 6 * 4


def test_the_operator_is_well_formed() -> None:
    trace = random_trace(2, 9, 6, 4, torch.float32)
    torch.library.opcheck(torch.ops.rematch.global_impact, (*trace[:5], 7))
