"""The selective scan on CUDA: Triton kernels, float32.

One program runs one batch row and one block of channels through the whole length, with the state in registers. The backward
pass walks the chunks backwards: it recomputes a chunk's states from the checkpoint before it into a scratch buffer,
then reads them in reverse. Sums across programs go through partial results and not through atomics, so that results
repeat bit for bit. With ``TRITON_INTERPRET=1`` set before this import the kernels run on CPU tensors, for tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 32
"""Channels a program."""


@triton.jit
def _forward(
    x, dt, A, B, C, D, z, initial, y, last, checkpoints, length, channels, entries, chunks,
    EVERY: tl.constexpr, GATED: tl.constexpr, SAVE: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    e_in = e < channels
    n_in = n < entries
    both_in = e_in[:, None] & n_in[None, :]
    cell = e[:, None] * entries + n[None, :]

    a = tl.load(A + cell, both_in, other=0.0)
    d = tl.load(D + e, e_in, other=0.0)
    h = tl.load(initial + b * channels * entries + cell, both_in, other=0.0)
    for chunk in range(chunks):
        if SAVE:
            offset = ((b * chunks + chunk) * entries + n[None, :]) * channels + e[:, None]
            tl.store(checkpoints + offset, h, both_in)
        for t in range(chunk * EVERY, tl.minimum((chunk + 1) * EVERY, length)):
            row = b * length + t
            x_t = tl.load(x + row * channels + e, e_in, other=0.0)
            dt_t = tl.load(dt + row * channels + e, e_in, other=0.0)
            b_t = tl.load(B + row * entries + n, n_in, other=0.0)
            c_t = tl.load(C + row * entries + n, n_in, other=0.0)
            h = tl.exp(dt_t[:, None] * a) * h + (dt_t * x_t)[:, None] * b_t[None, :]
            out = tl.sum(h * c_t[None, :], 1) + d * x_t
            if GATED:
                z_t = tl.load(z + row * channels + e, e_in, other=0.0)
                out = out * z_t * tl.sigmoid(z_t)
            tl.store(y + row * channels + e, out, e_in)
    tl.store(last + b * channels * entries + cell, h, both_in)


@triton.jit
def _backward(
    grad_y, grad_last, x, dt, A, B, C, D, z, checkpoints, scratch,
    grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_z, grad_initial, length, channels, entries, chunks,
    EVERY: tl.constexpr, GATED: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    e = block * BLOCK_E + tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    e_in = e < channels
    n_in = n < entries
    both_in = e_in[:, None] & n_in[None, :]
    cell = e[:, None] * entries + n[None, :]

    a = tl.load(A + cell, both_in, other=0.0)
    d = tl.load(D + e, e_in, other=0.0)
    grad_h = tl.load(grad_last + b * channels * entries + cell, both_in, other=0.0)
    grad_a = tl.zeros((BLOCK_E, BLOCK_N), tl.float32)
    grad_d = tl.zeros((BLOCK_E,), tl.float32)
    for back in range(chunks):
        chunk = chunks - 1 - back
        start = chunk * EVERY
        steps = tl.minimum(EVERY, length - start)

        offset = ((b * chunks + chunk) * entries + n[None, :]) * channels + e[:, None]
        h = tl.load(checkpoints + offset, both_in, other=0.0)
        for k in range(steps):
            tl.store(scratch + (b * EVERY + k) * channels * entries + cell, h, both_in)
            row = b * length + start + k
            x_t = tl.load(x + row * channels + e, e_in, other=0.0)
            dt_t = tl.load(dt + row * channels + e, e_in, other=0.0)
            b_t = tl.load(B + row * entries + n, n_in, other=0.0)
            h = tl.exp(dt_t[:, None] * a) * h + (dt_t * x_t)[:, None] * b_t[None, :]
        tl.debug_barrier()

        for k_back in range(steps):
            k = steps - 1 - k_back
            row = b * length + start + k
            x_t = tl.load(x + row * channels + e, e_in, other=0.0)
            dt_t = tl.load(dt + row * channels + e, e_in, other=0.0)
            b_t = tl.load(B + row * entries + n, n_in, other=0.0)
            c_t = tl.load(C + row * entries + n, n_in, other=0.0)
            grad_out = tl.load(grad_y + row * channels + e, e_in, other=0.0)
            before = tl.load(scratch + (b * EVERY + k) * channels * entries + cell, both_in, other=0.0)
            decay = tl.exp(dt_t[:, None] * a)
            scaled = dt_t * x_t
            after = decay * before + scaled[:, None] * b_t[None, :]
            if GATED:
                z_t = tl.load(z + row * channels + e, e_in, other=0.0)
                gate = tl.sigmoid(z_t)
                out = tl.sum(after * c_t[None, :], 1) + d * x_t
                tl.store(grad_z + row * channels + e, grad_out * out * gate * (1 + z_t * (1 - gate)), e_in)
                grad_out = grad_out * z_t * gate
            grad_h += grad_out[:, None] * c_t[None, :]
            partial = (block * tl.num_programs(0) + b) * length + start + k
            tl.store(grad_B + partial * entries + n, tl.sum(grad_h * scaled[:, None], 0), n_in)
            tl.store(grad_C + partial * entries + n, tl.sum(grad_out[:, None] * after, 0), n_in)
            grad_scaled = tl.sum(grad_h * b_t[None, :], 1)
            grad_h = grad_h * decay
            grad_exponent = grad_h * before
            grad_a += grad_exponent * dt_t[:, None]
            grad_d += grad_out * x_t
            tl.store(grad_x + row * channels + e, grad_scaled * dt_t + grad_out * d, e_in)
            tl.store(grad_dt + row * channels + e, grad_scaled * x_t + tl.sum(grad_exponent * a, 1), e_in)
        tl.debug_barrier()
    tl.store(grad_A + b * channels * entries + cell, grad_a, both_in)
    tl.store(grad_D + b * channels + e, grad_d, e_in)
    tl.store(grad_initial + b * channels * entries + cell, grad_h, both_in)


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
    """As ``reference.forward``, for contiguous float32 tensors."""
    batch, length, channels = x.shape
    entries = A.shape[1]
    chunks = triton.cdiv(length, every)
    initial = x.new_zeros(batch, channels, entries) if initial_state is None else initial_state
    skip = x.new_zeros(channels) if D is None else D
    y, last = torch.empty_like(x), torch.empty_like(initial)
    checkpoints = x.new_empty(batch, chunks if save else 0, entries, channels)
    with torch.cuda.device_of(x):
        _forward[(batch, triton.cdiv(channels, BLOCK))](
            x, dt, A, B, C, skip, z if z is not None else x, initial, y, last, checkpoints,
            length, channels, entries, chunks,
            EVERY=every, GATED=z is not None, SAVE=save, BLOCK_E=BLOCK, BLOCK_N=triton.next_power_of_2(entries),
        )  # fmt: skip
    return y, last, checkpoints


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
    """As ``reference.backward``, for contiguous float32 tensors."""
    batch, length, channels = x.shape
    entries = A.shape[1]
    blocks = triton.cdiv(channels, BLOCK)
    skip = x.new_zeros(channels) if D is None else D
    grad_last = x.new_zeros(batch, channels, entries) if grad_last is None else grad_last
    scratch = x.new_empty(batch, every, channels, entries)
    grad_x, grad_dt, grad_z = torch.empty_like(x), torch.empty_like(x), x.new_empty(0 if z is None else x.shape)
    grad_A, grad_D = x.new_empty(batch, channels, entries), x.new_empty(batch, channels)
    grad_B, grad_C = x.new_empty(2, blocks, batch, length, entries)
    grad_initial = torch.empty_like(grad_last)
    with torch.cuda.device_of(x):
        _backward[(batch, blocks)](
            grad_y, grad_last, x, dt, A, B, C, skip, z if z is not None else x, checkpoints, scratch,
            grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_z, grad_initial,
            length, channels, entries, triton.cdiv(length, every),
            EVERY=every, GATED=z is not None, BLOCK_E=BLOCK, BLOCK_N=triton.next_power_of_2(entries),
        )  # fmt: skip
    grad_skip = x.new_empty(0) if D is None else grad_D.sum(0)
    return grad_x, grad_dt, grad_A.sum(0), grad_B.sum(0), grad_C.sum(0), grad_skip, grad_z, grad_initial
