"""Global impact: how much the output at the last context position T owes to the input of token t (Simba, section 3).

Unrolling the recurrence ``h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t``, the product of all later transitions is a single
exponential of a suffix sum, so the term of token t arrives at T as, per channel e::

    dy_T(t)[e] = sum_n C_T[n] exp(A[e,n] S_t[e]) dt_t[e] B_t[n] x_t[e],    S_t = sum_{i=t+1..T} dt_i,  S_T = 0

The skip connection D x_T is no part of it. S and the exponential are float32 or wider; the exponential of a large
negative argument goes to 0, as it should. The paper gives the idea; the formula is derived from it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from baselines.mamba import Trace
from baselines.pruning import first, readout

CHUNK = 64
"""Steps for which the reference holds a (batch, steps, E, N) tensor at a time."""


def global_impact(trace: Trace, n_context: int) -> Tensor:
    """dy_T(t) for the first n_context tokens of a trace, T = n_context - 1: (batch, n_context, E), float32 or wider.

    What the trace holds after T is not read. FLOPs: 4 per batch row, token, channel and state entry (A S, its
    exponential counted as 1, the weight C_T B_t and the sum), counted by torch's FLOP counter. The convention is that of
    ``baselines.mamba.scan_flops``: what is done once a channel or once a state entry is elementwise work and stays out.
    In Mamba-2, whose A is one number a head, the exponential leaves the sum over n and everything is of that kind.
    """
    x, dt, A, B, C, _ = trace
    if A.dim() == 2:
        return torch.ops.rematch.global_impact(x, dt, A, B, C, n_context)
    decay = torch.exp(A * suffix_sum(dt[:, :n_context].float()))
    per_channel = decay.repeat_interleave(x.shape[-1] // decay.shape[-1], dim=-1)
    context = first(trace, n_context)
    return per_channel * readout(context, C[:, n_context - 1 : n_context]) * context.x.float()


def suffix_sum(dt: Tensor) -> Tensor:
    """S_t = sum_{i=t+1..T} dt_i along time, (batch, length, ...); S_T = 0 exactly."""
    return torch.cat([dt[:, 1:].flip(1).cumsum(1).flip(1), torch.zeros_like(dt[:, :1])], dim=1)


def reference(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, n_context: int) -> Tensor:
    """The equation in plain torch: any device, any dtype."""
    x, dt = x[:, :n_context], dt[:, :n_context]
    remaining = suffix_sum(dt)
    weight = C[:, n_context - 1, None, :] * B[:, :n_context]
    totals = []
    for start in range(0, n_context, CHUNK):
        part = slice(start, min(start + CHUNK, n_context))
        totals.append((torch.exp(remaining[:, part, :, None] * A) * weight[:, part, None, :]).sum(-1))
    return torch.cat(totals, dim=1) * dt * x


@torch.library.custom_op("rematch::global_impact", mutates_args=())
def _global_impact(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, n_context: int) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, dt, A, B, C = (tensor.to(dtype).contiguous() for tensor in (x, dt, A, B, C))
    if x.device.type == "cpu" and dtype == torch.float32:
        from methods.simba import impact_cpu

        return impact_cpu.forward(x, dt, A, B, C, n_context)
    return reference(x, dt, A, B, C, n_context)


@_global_impact.register_fake
def _(x, dt, A, B, C, n_context):
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty((x.shape[0], n_context, x.shape[2]), dtype=dtype)


@register_flop_formula(torch.ops.rematch.global_impact)
def _flops(x: Any, dt: Any, A: Any, B: Any, C: Any, n_context: int, **kwargs: Any) -> int:
    batch, _, channels = x
    return 4 * batch * n_context * channels * A[1]
