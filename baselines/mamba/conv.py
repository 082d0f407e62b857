"""The causal depthwise convolution of the Mamba block with its activation."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "silu") -> Tensor:
    """Depthwise convolution over time without padding: (batch, length + K - 1, E) to (batch, length, E).

    Args:
        x: inputs, the K - 1 before the first output included.
        weight: (E, K); the last column meets the newest input.
        bias: (E,) or None.
        activation: a name that transformers knows.
    """
    from transformers.activations import ACT2FN
    out = F.conv1d(x.mT, weight.unsqueeze(1), bias, groups=weight.shape[0]).mT
    return ACT2FN[activation](out)
