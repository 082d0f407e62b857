"""The selective scan as one operator, ``rematch::selective_scan``, with its gradient, meta kernel and FLOP formula.

The equations and shapes are in ``reference``. The backend follows the device and is never required: numba on CPU,
Triton on CUDA where it is installed, else the sequential torch loop, which also serves float64.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from baselines.mamba import reference

CHECKPOINT_EVERY = 16
"""Steps between the states that the forward pass keeps; the backward pass recomputes those between."""


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mamba's recurrence ``h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t``, ``y_t = (<h_t, C_t> + D x_t) silu(z_t)``.

    Args:
        x: input, (batch, length, E), any length from 0.
        dt: step sizes after the softplus, (batch, length, E).
        A: negative transition rates, (E, N).
        B: input projections, (batch, length, N).
        C: output projections, (batch, length, N).
        D: skip connection, (E,), or None for none.
        z: gate before its silu, (batch, length, E), or None for none.
        initial_state: (batch, E, N), or None for zeros.

    Returns:
        y, (batch, length, E) in the dtype of x, and the last state, (batch, E, N). The arithmetic and the state are
        float32, or float64 where x is. Every input and the last state take part in differentiation, once.

    Raises:
        ValueError: shapes that do not fit together.
    """
    _check(x, dt, A, B, C, D, z, initial_state)
    inputs = (x, dt, A, B, C, D, z, initial_state)
    save = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    y, last_state, _ = _scan(x, dt, A, B, C, D, z, initial_state, save)
    return y, last_state


def scan_flops(batch: int, length: int, channels: int, state: int) -> int:
    """FLOPs of one forward scan: 9 per batch row, step, channel and state entry, the count in use for Mamba.

    In: dt A, its exponential (counted as 1), dt B, times x, the decay of the state, the sum of both, and the product with
    C and its reduction (the convention rounds these eight up to nine). Out: D x, the gate and every other elementwise
    operation, as torch's FLOP counter leaves them out everywhere. The backward pass counts twice the forward one, as
    for a matrix product; recomputing states is the kernel's choice and is not counted.
    """
    return 9 * batch * length * channels * state


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    if x.dim() != 3 or A.dim() != 2:
        raise ValueError(f"x must be (batch, length, E) and A (E, N), not {tuple(x.shape)} and {tuple(A.shape)}")
    batch, length, channels = x.shape
    state = A.shape[1]
    expected: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("dt", dt, (batch, length, channels)),
        ("A", A, (channels, state)),
        ("B", B, (batch, length, state)),
        ("C", C, (batch, length, state)),
        ("D", D, (channels,)),
        ("z", z, (batch, length, channels)),
        ("initial_state", initial_state, (batch, channels, state)),
    ]
    for name, tensor, shape in expected:
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape} for x {tuple(x.shape)}, not {tuple(tensor.shape)}")


def _backend(x: Tensor) -> ModuleType:
    """The module whose ``forward`` and ``backward`` run the scan for this tensor's device and dtype."""
    if x.dtype == torch.float64:
        return reference
    if x.device.type == "cpu":
        from baselines.mamba import scan_cpu

        return scan_cpu
    if x.device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from baselines.mamba import scan_triton

        return scan_triton
    return reference


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.to(dtype).contiguous() for tensor in tensors]


@torch.library.custom_op("rematch::selective_scan", mutates_args=())
def _scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and where ``save`` the checkpoints (batch, chunks, N, E) that the gradient starts from."""
    inputs = _cast(_compute_dtype(x), x, dt, A, B, C, D, z, initial_state)
    y, last_state, checkpoints = _backend(x).forward(*inputs, CHECKPOINT_EVERY, save)
    return y.to(x.dtype), last_state, checkpoints


@torch.library.custom_op("rematch::selective_scan_backward", mutates_args=())
def _scan_backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D, z and the initial state; empty tensors stand for an absent D or z."""
    inputs = _cast(_compute_dtype(x), grad_y, grad_last, x, dt, A, B, C, D, z)
    grads = _backend(x).backward(*inputs, checkpoints, CHECKPOINT_EVERY)
    dtypes = [(x if tensor is None else tensor).dtype for tensor in (x, dt, A, B, C, D, z)]
    gx, gdt, gA, gB, gC, gD, gz = (grad.to(dtype) for grad, dtype in zip(grads[:7], dtypes, strict=True))
    return gx, gdt, gA, gB, gC, gD, gz, grads[7]


@_scan.register_fake
def _(x, dt, A, B, C, D, z, initial_state, save):
    batch, length, channels = x.shape
    chunks = (length + CHECKPOINT_EVERY - 1) // CHECKPOINT_EVERY if save else 0
    y = x.new_empty(x.shape)
    last_state = x.new_empty((batch, channels, A.shape[1]), dtype=_compute_dtype(x))
    return y, last_state, last_state.new_empty((batch, chunks, A.shape[1], channels))


@_scan_backward.register_fake
def _(grad_y, grad_last, x, dt, A, B, C, D, z, checkpoints):
    grads = [tensor.new_empty(tensor.shape) for tensor in (x, dt, A, B, C)]
    grad_D = x.new_empty(0) if D is None else D.new_empty(D.shape)
    grad_z = x.new_empty(0) if z is None else z.new_empty(z.shape)
    grad_state = checkpoints.new_empty((x.shape[0], *A.shape))
    return *grads, grad_D, grad_z, grad_state


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, dt, A, B, C, D, z, initial_state, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, dt, A, B, C, D, z, output[2])
    ctx.state_dtype = None if initial_state is None else initial_state.dtype


def _differentiate(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    x, dt, A, B, C, D, z, checkpoints = ctx.saved_tensors
    grad_y = torch.zeros_like(x) if grad_y is None else grad_y
    *grads, gD, gz, gstate = _scan_backward(grad_y, grad_last, x, dt, A, B, C, D, z, checkpoints)
    gstate = None if ctx.state_dtype is None else gstate.to(ctx.state_dtype)
    return *grads, None if D is None else gD, None if z is None else gz, gstate, None


_scan.register_autograd(_differentiate, setup_context=_setup_context)


@register_flop_formula(torch.ops.rematch.selective_scan)
def _forward_flops(x: Any, dt: Any, A: Any, *args: Any, **kwargs: Any) -> int:
    batch, length, channels = x
    return scan_flops(batch, length, channels, A[1])


@register_flop_formula(torch.ops.rematch.selective_scan_backward)
def _backward_flops(grad_y: Any, grad_last: Any, x: Any, dt: Any, A: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * _forward_flops(x, dt, A)
