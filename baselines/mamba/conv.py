"""The causal depthwise convolution of the Mamba block with its activation.

On CPU and in float32 the pair is one operator, ``rematch::causal_conv1d_silu``, with its gradient, meta kernel and FLOP
formula: torch's own convolution wants time last, and what it saves it spends on transposing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "silu") -> Tensor:
    """Depthwise convolution over time without padding: (batch, length + K - 1, E) to (batch, length, E).

    Args:
        x: inputs, the K - 1 before the first output included.
        weight: (E, K); the last column meets the newest input.
        bias: (E,) or None.
        activation: applied to the result, by transformers' name.
    """
    if activation == "silu" and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32:
        return _conv_silu(x, weight, bias)
    from transformers.activations import ACT2FN

    out = F.conv1d(x.mT, weight.unsqueeze(1), bias, groups=weight.shape[0]).mT
    return ACT2FN[activation](out)


@torch.library.custom_op("rematch::causal_conv1d_silu", mutates_args=(), device_types="cpu")
def _conv_silu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    from baselines.mamba import conv_cpu

    y = x.new_empty(x.shape[0], x.shape[1] - weight.shape[1] + 1, x.shape[2])
    conv_cpu.forward(*_arrays(x, weight.T, _or_zeros(bias, weight), y))
    return y


@torch.library.custom_op("rematch::causal_conv1d_silu_backward", mutates_args=(), device_types="cpu")
def _conv_silu_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    from baselines.mamba import conv_cpu

    grad_x = x.new_zeros(x.shape)
    grad_taps = x.new_zeros(x.shape[0], weight.shape[1], weight.shape[0])
    grad_bias = x.new_zeros(x.shape[0], weight.shape[0])
    inputs = _arrays(grad_y, x, weight.T, _or_zeros(bias, weight))
    conv_cpu.backward(*inputs, *_arrays(grad_x, grad_taps, grad_bias))
    return grad_x, grad_taps.sum(0).T.contiguous(), grad_bias.sum(0)


@_conv_silu.register_fake
def _(x, weight, bias):
    return x.new_empty(x.shape[0], x.shape[1] - weight.shape[1] + 1, x.shape[2])


@_conv_silu_backward.register_fake
def _(grad_y, x, weight, bias):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    grad_x, grad_weight, grad_bias = _conv_silu_backward(grad_y, *ctx.saved_tensors)
    return grad_x, grad_weight, None if ctx.saved_tensors[2] is None else grad_bias


_conv_silu.register_autograd(_differentiate, setup_context=_setup_context)


def _or_zeros(bias: Tensor | None, weight: Tensor) -> Tensor:
    return weight.new_zeros(weight.shape[0]) if bias is None else bias


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


# 2 K operations an output, as torch's counter has for a convolution; its backward computes two of the same size.
@register_flop_formula(torch.ops.rematch.causal_conv1d_silu)
def _forward_flops(x: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    batch, length, channels = x
    kernel = weight[1]
    return 2 * batch * (length - kernel + 1) * channels * kernel


@register_flop_formula(torch.ops.rematch.causal_conv1d_silu_backward)
def _backward_flops(grad_y: Any, x: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * _forward_flops(x, weight)
