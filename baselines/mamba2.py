"""The Mamba-2 block (Dao and Gu 2024, arXiv 2405.21060) on the weights of transformers' ``Mamba2Mixer``.

H heads of P channels each (E = H P), G groups that share B and C, N the state size. A is one number a head. The scan is
transformers' chunked one, which is made of matrix products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.mamba.conv import causal_conv1d
from baselines.mamba.mixer import MixerOutput, Trace


def mixer_forward(
    mixer: Any,
    hidden_states: Tensor,
    mask: Tensor | None = None,
    conv_state: Tensor | None = None,
    ssm_state: Tensor | None = None,
) -> MixerOutput:
    """One Mamba-2 block without its norm and residual, as ``baselines.mamba.mixer_forward`` is for Mamba.

    Returns:
        The same fields. The trace differs in shape: x and z (batch, length, E), dt (batch, length, H), A (H,), B and C
        (batch, length, G, N). States are (batch, E + 2 G N, K) of the convolution, (batch, H, P, N) of the recurrence.
    """
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    batch, length, _ = hidden_states.shape
    keep = None if mask is None else mask[:, :, None].to(hidden_states.dtype)
    if keep is not None:
        hidden_states = hidden_states * keep
    z, x, dt = mixer.in_proj(hidden_states).split([mixer.intermediate_size, mixer.conv_dim, mixer.num_heads], dim=-1)
    if keep is not None and mixer.in_proj.bias is not None:
        x = x * keep

    kernel = mixer.conv_kernel_size
    x = F.pad(x, (0, 0, kernel, 0)) if conv_state is None else torch.cat([conv_state.mT.to(x.dtype), x], dim=1)
    conv_state = x[:, -kernel:].mT
    x = causal_conv1d(x[:, 1:], mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias, mixer.activation)
    if keep is not None:
        x = x * keep

    groups = (mixer.n_groups, mixer.ssm_state_size)
    x, B, C = x.split([mixer.intermediate_size, groups[0] * groups[1], groups[0] * groups[1]], dim=-1)
    B, C = B.unflatten(-1, groups), C.unflatten(-1, groups)
    dt = F.softplus(dt.float() + mixer.dt_bias.float()).clamp(*mixer.time_step_limit)
    if keep is not None:
        dt = dt * keep
    A = -torch.exp(mixer.A_log.float())
    # The scan pads to whole chunks; equal ones leave almost nothing to pad, so that cost follows the length.
    n_chunks = -(-length // mixer.chunk_size)
    y, ssm_state = mamba2_chunk_scan(
        x.unflatten(-1, (mixer.num_heads, mixer.head_dim)),
        dt,
        A,
        B,
        C,
        chunk_size=-(-length // n_chunks),
        D=mixer.D,
        initial_states=ssm_state,
        return_final_states=True,
    )
    out = mixer.out_proj(mixer.norm(y.reshape(batch, length, -1), z).to(hidden_states.dtype))
    return MixerOutput(out, conv_state, ssm_state, Trace(x, dt, A, B, C, z))
