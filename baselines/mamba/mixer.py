"""The Mamba block (Mamba paper, section 3.4) on the weights of transformers' ``MambaMixer``, around the fast scan.

E is the inner width (expand * d_model), N the state size, K the convolution's kernel size.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.mamba.conv import causal_conv1d
from baselines.mamba.scan import selective_scan

if TYPE_CHECKING:
    from transformers import Cache
    from transformers.models.mamba.modeling_mamba import MambaMixer


class Trace(NamedTuple):
    """What a block fed to its recurrence, and the gate. With a mask, x, dt, B and C are 0 at padded positions."""

    x: Tensor
    """After the convolution and its activation, (batch, length, E)."""
    dt: Tensor
    """Step sizes after the softplus, (batch, length, E), float32 or wider."""
    A: Tensor
    """Negative transition rates, (E, N), float32 or wider."""
    B: Tensor
    """Input projections, (batch, length, N)."""
    C: Tensor
    """Output projections, (batch, length, N)."""
    z: Tensor
    """Gate before its silu, (batch, length, E)."""


class MixerOutput(NamedTuple):
    """What a block returns, and what a following segment continues from."""

    out: Tensor
    """To be added to the residual stream, (batch, length, d_model)."""
    conv_state: Tensor
    """The last K inputs of the convolution, oldest first, zeros before the start, (batch, E, K): transformers' layout."""
    ssm_state: Tensor
    """State of the recurrence after the last step, (batch, E, N), float32 or wider."""
    trace: Trace


def mixer_forward(
    mixer: MambaMixer,
    hidden_states: Tensor,
    mask: Tensor | None = None,
    conv_state: Tensor | None = None,
    ssm_state: Tensor | None = None,
) -> MixerOutput:
    """One Mamba block without its norm and residual, whole or as the continuation of an earlier segment.

    Padded positions influence nothing: their x and dt are 0, so that the state passes through them unchanged. (Beside
    padding within or after the text, where transformers lets the state decay, this differs from transformers only for
    padding with ``use_bias``, where its convolution reads the bias at padded positions.)

    Args:
        mixer: a ``MambaMixer`` of transformers, or any module with its attributes.
        hidden_states: the block's input after the norm, (batch, length, d_model), any length from 1.
        mask: (batch, length), 1 for a real token and 0 for padding, or None where all are real.
        conv_state: the ``conv_state`` of the segment before, or None at the start.
        ssm_state: the ``ssm_state`` of the segment before, or None at the start.
    """
    keep = None if mask is None else mask[:, :, None].to(hidden_states.dtype)
    if keep is not None:
        hidden_states = hidden_states * keep
    x, z = mixer.in_proj(hidden_states).chunk(2, dim=-1)
    if keep is not None and mixer.in_proj.bias is not None:
        x = x * keep

    kernel = mixer.conv_kernel_size
    x = F.pad(x, (0, 0, kernel, 0)) if conv_state is None else torch.cat([conv_state.mT.to(x.dtype), x], dim=1)
    conv_state = x[:, -kernel:].mT.contiguous()
    x = causal_conv1d(x[:, 1:], mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias, mixer.activation)
    if keep is not None:
        x = x * keep

    sizes = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
    dt, B, C = mixer.x_proj(x).split(sizes, dim=-1)
    dt = _step_sizes(mixer.dt_proj, dt)
    if keep is not None:
        dt = dt * keep
    A = -torch.exp(_at_least_float32(mixer.A_log))
    y, ssm_state = selective_scan(x, dt, A, B, C, mixer.D, z, ssm_state)
    return MixerOutput(mixer.out_proj(y), conv_state, ssm_state, Trace(x, dt, A, B, C, z))


def install(model: nn.Module) -> nn.Module:
    """Let every ``MambaMixer`` in the model run ``mixer_forward``; weights and results stay. Returns the model.

    With a cache, a segment of several tokens continues the cached state (transformers restarts it from zero).

    Raises:
        ValueError: the model has no ``MambaMixer``.
    """
    mixers = _mixers(model)
    if not mixers:
        raise ValueError(f"{type(model).__name__} has no MambaMixer: only Mamba models of transformers can be sped up")
    for mixer in mixers:
        mixer.forward = MethodType(_forward, mixer)
    return model


def uninstall(model: nn.Module) -> nn.Module:
    """Give every ``MambaMixer`` its own forward back. Returns the model."""
    for mixer in _mixers(model):
        mixer.__dict__.pop("forward", None)
    return model


def _mixers(model: nn.Module) -> list[MambaMixer]:
    from transformers.models.mamba.modeling_mamba import MambaMixer

    return [module for module in model.modules() if isinstance(module, MambaMixer)]


def _forward(
    self: MambaMixer,
    hidden_states: Tensor,
    cache_params: Cache | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """``MambaMixer.forward`` with transformers' signature."""
    if cache_params is None:
        return mixer_forward(self, hidden_states, attention_mask).out
    conv_state = cache_params.get_conv_state(self.layer_idx)
    ssm_state = cache_params.get_recurrent_state(self.layer_idx)
    result = mixer_forward(self, hidden_states, attention_mask, conv_state, ssm_state)
    cache_params.update_conv_state(result.conv_state, self.layer_idx, conv_kernel_size=self.conv_kernel_size)
    cache_params.update_recurrent_state(result.ssm_state, self.layer_idx)
    return result.out


def _step_sizes(dt_proj: nn.Linear, dt: Tensor) -> Tensor:
    """softplus(dt W + b). Half precision adds the bias in float32: small steps come of large negative biases."""
    if dt.dtype in (torch.float32, torch.float64):
        return F.softplus(dt_proj(dt))
    return F.softplus(F.linear(dt, dt_proj.weight).float() + dt_proj.bias.float())


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
