"""The causal depthwise convolution of the Mamba block with its silu: ``rematch::causal_conv1d_silu``.

An operator of its own for two reasons. torch's convolution wants time last, and on CPU spends more on transposing than
on convolving: there a numba kernel takes its place. And torch's FLOP counter ignores the groups in the gradient of a
convolution's weight, which counts a depthwise one E times over.
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
        activation: applied to the result, by transformers' name. Others than silu run on torch's convolution.
    """
    if activation == "silu":
        return _conv_silu(x, weight, bias)
    from transformers.activations import ACT2FN

    return ACT2FN[activation](F.conv1d(x.mT, weight.unsqueeze(1), bias, groups=weight.shape[0]).mT)


@torch.library.custom_op("rematch::causal_conv1d_silu", mutates_args=())
def _conv_silu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    inputs, taps, shift = _prepare(x, weight, bias)
    y = inputs.new_empty(x.shape[0], x.shape[1] - len(taps) + 1, x.shape[2])
    if _compiled(inputs):
        from baselines.mamba import conv_cpu

        conv_cpu.forward(inputs.numpy(), taps.numpy(), shift.numpy(), y.numpy())
    else:
        y.copy_(F.silu(_convolve(inputs, taps, shift)))
    return y.to(x.dtype)


@torch.library.custom_op("rematch::causal_conv1d_silu_backward", mutates_args=())
def _conv_silu_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    inputs, taps, shift = _prepare(x, weight, bias)
    grad = grad_y.detach().to(inputs.dtype).contiguous()
    grad_x = torch.zeros_like(inputs)
    grad_taps, grad_bias = inputs.new_zeros(len(x), *taps.shape), inputs.new_zeros(len(x), len(shift))
    if _compiled(inputs):
        from baselines.mamba import conv_cpu

        grads = (grad_x.numpy(), grad_taps.numpy(), grad_bias.numpy())
        conv_cpu.backward(grad.numpy(), inputs.numpy(), taps.numpy(), shift.numpy(), *grads)
    else:
        out = _convolve(inputs, taps, shift)
        gate = torch.sigmoid(out)
        grad = grad * gate * (1 + out * (1 - gate))
        grad_bias += grad.sum(1)
        for k, tap in enumerate(taps):
            seen = slice(k, k + grad.shape[1])
            grad_taps[:, k] = (grad * inputs[:, seen]).sum(1)
            grad_x[:, seen] += grad * tap
    grad_weight = grad_taps.sum(0).T.contiguous().to(weight.dtype)
    return grad_x.to(x.dtype), grad_weight, grad_bias.sum(0).to(weight.dtype)


@_conv_silu.register_fake
def _(x, weight, bias):
    return x.new_empty(x.shape[0], x.shape[1] - weight.shape[1] + 1, x.shape[2])


@_conv_silu_backward.register_fake
def _(grad_y, x, weight, bias):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    x, weight, bias = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = _conv_silu_backward(grad_y, x, weight, bias)
    return grad_x, grad_weight, None if bias is None else grad_bias


_conv_silu.register_autograd(_differentiate, setup_context=_setup_context)


def _prepare(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """x, the taps (K, E) and the bias (E,), contiguous and in the dtype of the arithmetic."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    shift = weight.new_zeros(len(weight)) if bias is None else bias
    inputs, taps, shift = (tensor.detach().to(dtype).contiguous() for tensor in (x, weight.T, shift))
    return inputs, taps, shift


def _compiled(inputs: Tensor) -> bool:
    return inputs.device.type == "cpu" and inputs.dtype == torch.float32


def _convolve(inputs: Tensor, taps: Tensor, shift: Tensor) -> Tensor:
    return F.conv1d(inputs.mT, taps.T.unsqueeze(1), shift, groups=taps.shape[1]).mT


# 2 K operations an output, and twice that in the backward pass; the silu is left out as every elementwise operation is.
@register_flop_formula(torch.ops.rematch.causal_conv1d_silu)
def _forward_flops(x: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    batch, length, channels = x
    kernel = weight[1]
    return 2 * batch * (length - kernel + 1) * channels * kernel


@register_flop_formula(torch.ops.rematch.causal_conv1d_silu_backward)
def _backward_flops(grad_y: Any, x: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * _forward_flops(x, weight)
