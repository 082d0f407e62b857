"""The selective scan on CPU: numba kernels, float32, one thread, the GIL released.

The recurrence is sequential in time and independent across channels, so the innermost loops run over contiguous channels
and compile to vector instructions, while the state (N, channels) of one block of channels stays in the cache. An
exponential that the compiler can vectorise replaces libm's, which dominates otherwise. The backward pass starts from
the states that the forward pass kept, recomputes a chunk of states, and walks it backwards. The order of every sum is
fixed, so results repeat bit for bit.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from baselines.mamba.vector_math import LOG2_E, ONE, exp2, sigmoid

BLOCK = 256
"""Channels worked on together: enough to hide the cost of a loop, few enough for a chunk of states to stay in L2."""

# Summing over channels in vector lanes needs reassociation.
_jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
_LN_2 = np.float32(0.6931471805599453)
_ZERO = np.float32(0.0)


@_jit
def _forward(
    gated: bool,
    every: int,
    x: np.ndarray,
    dt: np.ndarray,
    rate: np.ndarray,
    B: np.ndarray,
    C: np.ndarray,
    D: np.ndarray,
    z: np.ndarray,
    state: np.ndarray,
    y: np.ndarray,
    checkpoints: np.ndarray,
) -> None:
    """Fill y and the checkpoints (none where they have no room) and advance ``state`` (batch, N, E) in place.

    ``rate`` is A in units of log2, (N, E).
    """
    batch, length, channels = x.shape
    entries = rate.shape[0]
    save = checkpoints.shape[1] > 0
    h = np.empty((entries, BLOCK), np.float32)
    a = np.empty((entries, BLOCK), np.float32)
    step = np.empty(BLOCK, np.float32)
    scaled = np.empty(BLOCK, np.float32)
    out = np.empty(BLOCK, np.float32)
    for b in range(batch):
        for first in range(0, channels, BLOCK):
            width = min(BLOCK, channels - first)
            for n in range(entries):
                for e in range(width):
                    h[n, e] = state[b, n, first + e]
                    a[n, e] = rate[n, first + e]
            for t in range(length):
                if save and t % every == 0:
                    for n in range(entries):
                        for e in range(width):
                            checkpoints[b, t // every, n, first + e] = h[n, e]
                for e in range(width):
                    step[e] = dt[b, t, first + e]
                    scaled[e] = step[e] * x[b, t, first + e]
                    out[e] = D[first + e] * x[b, t, first + e]
                for n in range(entries):
                    b_n = B[b, t, n]
                    c_n = C[b, t, n]
                    for e in range(width):
                        after = exp2(step[e] * a[n, e]) * h[n, e] + scaled[e] * b_n
                        h[n, e] = after
                        out[e] += after * c_n
                if gated:
                    for e in range(width):
                        gate = z[b, t, first + e]
                        y[b, t, first + e] = out[e] * gate * sigmoid(gate)
                else:
                    for e in range(width):
                        y[b, t, first + e] = out[e]
            for n in range(entries):
                for e in range(width):
                    state[b, n, first + e] = h[n, e]


@_jit
def _backward(
    gated: bool,
    every: int,
    grad_y: np.ndarray,
    x: np.ndarray,
    dt: np.ndarray,
    rate: np.ndarray,
    B: np.ndarray,
    C: np.ndarray,
    D: np.ndarray,
    z: np.ndarray,
    checkpoints: np.ndarray,
    grad_state: np.ndarray,
    grad_x: np.ndarray,
    grad_dt: np.ndarray,
    grad_rate: np.ndarray,
    grad_B: np.ndarray,
    grad_C: np.ndarray,
    grad_D: np.ndarray,
    grad_z: np.ndarray,
) -> None:
    """Fill grad_x, grad_dt and grad_z; add to grad_rate (of A as (N, E), not of ``rate``), grad_B, grad_C and grad_D.

    ``grad_state`` (batch, N, E) comes in as the gradient of the last state and leaves as that of the initial one.
    """
    batch, length, channels = x.shape
    entries = rate.shape[0]
    a = np.empty((entries, BLOCK), np.float32)
    g = np.empty((entries, BLOCK), np.float32)
    grad_a = np.empty((entries, BLOCK), np.float32)
    h = np.empty((every + 1, entries, BLOCK), np.float32)
    decay = np.empty((every, entries, BLOCK), np.float32)
    out = np.empty((every, BLOCK), np.float32)
    step = np.empty(BLOCK, np.float32)
    scaled = np.empty(BLOCK, np.float32)
    grad_out = np.empty(BLOCK, np.float32)
    grad_scaled = np.empty(BLOCK, np.float32)
    grad_step = np.empty(BLOCK, np.float32)
    for b in range(batch):
        for first in range(0, channels, BLOCK):
            width = min(BLOCK, channels - first)
            for n in range(entries):
                for e in range(width):
                    g[n, e] = grad_state[b, n, first + e]
                    a[n, e] = rate[n, first + e]
            for chunk in range(checkpoints.shape[1] - 1, -1, -1):
                start = chunk * every
                steps = min(every, length - start)
                for n in range(entries):
                    for e in range(width):
                        h[0, n, e] = checkpoints[b, chunk, n, first + e]
                        grad_a[n, e] = _ZERO
                for k in range(steps):
                    t = start + k
                    for e in range(width):
                        step[e] = dt[b, t, first + e]
                        scaled[e] = step[e] * x[b, t, first + e]
                        out[k, e] = D[first + e] * x[b, t, first + e]
                    for n in range(entries):
                        b_n = B[b, t, n]
                        c_n = C[b, t, n]
                        for e in range(width):
                            kept = exp2(step[e] * a[n, e])
                            after = kept * h[k, n, e] + scaled[e] * b_n
                            decay[k, n, e] = kept
                            h[k + 1, n, e] = after
                            out[k, e] += after * c_n
                for k in range(steps - 1, -1, -1):
                    t = start + k
                    for e in range(width):
                        step[e] = dt[b, t, first + e]
                        scaled[e] = step[e] * x[b, t, first + e]
                        grad_out[e] = grad_y[b, t, first + e]
                        grad_scaled[e] = _ZERO
                        grad_step[e] = _ZERO
                    if gated:
                        for e in range(width):
                            gate = z[b, t, first + e]
                            open_ = sigmoid(gate)
                            grad_z[b, t, first + e] = grad_out[e] * out[k, e] * open_ * (ONE + gate * (ONE - open_))
                            grad_out[e] *= gate * open_
                    for n in range(entries):
                        b_n = B[b, t, n]
                        c_n = C[b, t, n]
                        grad_b = _ZERO
                        grad_c = _ZERO
                        for e in range(width):
                            grad_h = g[n, e] + grad_out[e] * c_n
                            grad_c += grad_out[e] * h[k + 1, n, e]
                            grad_b += grad_h * scaled[e]
                            grad_scaled[e] += grad_h * b_n
                            carried = grad_h * decay[k, n, e]
                            grad_exponent = carried * h[k, n, e]
                            grad_a[n, e] += grad_exponent * step[e]
                            grad_step[e] += grad_exponent * a[n, e]
                            g[n, e] = carried
                        grad_B[b, t, n] += grad_b
                        grad_C[b, t, n] += grad_c
                    for e in range(width):
                        grad_x[b, t, first + e] = grad_scaled[e] * step[e] + grad_out[e] * D[first + e]
                        grad_dt[b, t, first + e] = grad_scaled[e] * x[b, t, first + e] + grad_step[e] * _LN_2
                        grad_D[first + e] += grad_out[e] * x[b, t, first + e]
                for n in range(entries):
                    for e in range(width):
                        grad_rate[n, first + e] += grad_a[n, e]
            for n in range(entries):
                for e in range(width):
                    grad_state[b, n, first + e] = g[n, e]


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    every: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``reference.forward``, for contiguous float32 tensors on CPU."""
    batch, length, channels = x.shape
    entries = A.shape[1]
    state = x.new_zeros(batch, entries, channels) if initial_state is None else _transposed(initial_state)
    y = torch.empty_like(x)
    checkpoints = x.new_empty(batch, -(-length // every) if save else 0, entries, channels)
    skip = x.new_zeros(channels) if D is None else D
    gate = x.new_empty(0, 0, 0) if z is None else z
    arrays = (_array(tensor) for tensor in (x, dt, _rate(A), B, C, skip, gate, state, y, checkpoints))
    _forward(z is not None, every, *arrays)
    return y, _transposed(state), checkpoints


def backward(
    grad_y: Tensor,
    grad_last: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    checkpoints: Tensor,
    every: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As ``reference.backward``, for contiguous float32 tensors on CPU."""
    batch, _, channels = x.shape
    entries = A.shape[1]
    skip = x.new_zeros(channels) if D is None else D
    gate = x.new_empty(0, 0, 0) if z is None else z
    grad_state = x.new_zeros(batch, entries, channels) if grad_last is None else _transposed(grad_last)
    grad_x, grad_dt, grad_z = torch.empty_like(x), torch.empty_like(x), torch.empty_like(gate)
    grad_A, grad_D = x.new_zeros(entries, channels), x.new_zeros(channels)
    grad_B, grad_C = torch.zeros_like(B), torch.zeros_like(C)
    inputs = (_array(tensor) for tensor in (grad_y, x, dt, _rate(A), B, C, skip, gate, checkpoints))
    outputs = (_array(tensor) for tensor in (grad_state, grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_z))
    _backward(z is not None, every, *inputs, *outputs)
    grad_D = x.new_empty(0) if D is None else grad_D
    grad_z = x.new_empty(0) if z is None else grad_z
    return grad_x, grad_dt, _transposed(grad_A), grad_B, grad_C, grad_D, grad_z, _transposed(grad_state)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def _rate(A: Tensor) -> Tensor:
    return (A.detach() * float(LOG2_E)).T.contiguous()


def _transposed(tensor: Tensor) -> Tensor:
    """A copy with the last two axes swapped: the kernels keep states as (N, channels)."""
    return tensor.detach().mT.clone(memory_format=torch.contiguous_format)
