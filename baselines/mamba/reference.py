"""The selective scan as a sequential loop in plain torch: any device, any dtype, obviously right, slow.

Per batch row and channel e, with state h of size N (Mamba, Gu and Dao 2023, equation 2 with the discretisation that its
code uses: zero-order hold for A, Euler for B)::

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t
    y_t = <h_t, C_t> + D x_t,   times silu(z_t) where there is a gate

Shapes throughout this package: x, dt, z (batch, length, E); A (E, N); B, C (batch, length, N); D (E,); states
(batch, E, N). ``forward`` and ``backward`` share their signature with the compiled kernels in ``scan_cpu`` and
``scan_triton``; they compute in the dtype of their inputs, which the caller has made the same.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu


def selective_scan_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The scan as autograd differentiates it, twice where wanted. Returns y (batch, length, E) and the last state."""
    state = x.new_zeros(x.shape[0], *A.shape) if initial_state is None else initial_state
    outputs = []
    # unbind, because the gradient of indexing fills a tensor of full length at every step.
    for x_t, dt_t, B_t, C_t in zip(x.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        step = dt_t[:, :, None]
        state = torch.exp(step * A) * state + step * B_t[:, None, :] * x_t[:, :, None]
        outputs.append((state * C_t[:, None, :]).sum(-1))
    y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(x)
    if D is not None:
        y = y + D * x
    if z is not None:
        y = y * silu(z)
    return y, state


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
    """y, the last state, and where ``save`` the states before steps 0, every, 2 every, ...: (batch, chunks, N, E)."""
    state = x.new_zeros(x.shape[0], *A.shape) if initial_state is None else initial_state.clone()
    y, saved = [x[:, :0]], [A.new_empty(x.shape[0], 0, *A.T.shape)]
    for start in range(0, x.shape[1], every):
        if save:
            saved.append(state.mT.unsqueeze(1))
        part = slice(start, start + every)
        gate = None if z is None else z[:, part]
        outputs, state = selective_scan_reference(x[:, part], dt[:, part], A, B[:, part], C[:, part], D, gate, state)
        y.append(outputs)
    return torch.cat(y, dim=1), state, torch.cat(saved, dim=1)


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
    """Gradients of x, dt, A, B, C, D, z and the initial state; those of an absent D or z are empty tensors."""
    batch, length, channels = x.shape
    grad_x, grad_dt = torch.empty_like(x), torch.empty_like(x)
    grad_A, grad_B, grad_C = torch.zeros_like(A), torch.empty_like(B), torch.empty_like(C)
    grad_D = x.new_zeros(channels if D is not None else 0)
    grad_z = torch.empty_like(x) if z is not None else x.new_empty(0)
    grad_state = x.new_zeros(batch, *A.shape) if grad_last is None else grad_last.clone()

    for chunk in range(checkpoints.shape[1] - 1, -1, -1):
        steps = range(chunk * every, min((chunk + 1) * every, length))
        states = [checkpoints[:, chunk].mT]
        for t in steps:
            step = dt[:, t, :, None]
            states.append(torch.exp(step * A) * states[-1] + step * B[:, t, None, :] * x[:, t, :, None])
        for t in reversed(steps):
            before, state = states[t - steps.start], states[t - steps.start + 1]
            xt, step, Bt, Ct = x[:, t], dt[:, t], B[:, t, None, :], C[:, t, None, :]
            grad_out = grad_y[:, t]
            if z is not None:
                gate = torch.sigmoid(z[:, t])
                out = (state * Ct).sum(-1) + (0 if D is None else D * xt)
                grad_z[:, t] = grad_out * out * gate * (1 + z[:, t] * (1 - gate))
                grad_out = grad_out * z[:, t] * gate
            grad_state = grad_state + grad_out[..., None] * Ct
            decay = torch.exp(step[..., None] * A)
            grad_decay = grad_state * before * decay
            grad_input = (grad_state * Bt).sum(-1)
            grad_x[:, t] = grad_input * step
            grad_dt[:, t] = grad_input * xt + (grad_decay * A).sum(-1)
            grad_A += (grad_decay * step[..., None]).sum(0)
            grad_B[:, t] = (grad_state * (step * xt)[..., None]).sum(1)
            grad_C[:, t] = (grad_out[..., None] * state).sum(1)
            if D is not None:
                grad_x[:, t] += grad_out * D
                grad_D += (grad_out * xt).sum(0)
            grad_state = grad_state * decay
    return grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_z, grad_state
