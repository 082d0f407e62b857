"""One residual MLP for every token position, all of them in two batched matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TokenMLPs(nn.Module):
    """out[i] = skip_i(x[i]) + W2_i f(W1_i LayerNorm_i(x[i]) + b1_i) + b2_i, with own parameters for every position i.

    The skip is the identity where input and output are equally wide, else an affine map (official code).

    Args:
        n_tokens: positions.
        d_in, d_hidden, d_out: widths.
        activation: f, applied elementwise.
    """

    def __init__(
        self, n_tokens: int, d_in: int, d_hidden: int, d_out: int, activation: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.activation = activation
        self.norm_weight = nn.Parameter(torch.ones(n_tokens, d_in))
        self.norm_bias = nn.Parameter(torch.zeros(n_tokens, d_in))
        self.weight1, self.bias1 = _linear(n_tokens, d_in, d_hidden)
        self.weight2, self.bias2 = _linear(n_tokens, d_hidden, d_out)
        if d_in != d_out:
            self.skip_weight, self.skip_bias = _linear(n_tokens, d_in, d_out)

    @property
    def has_skip_map(self) -> bool:
        """Whether the skip is a learned map, not the identity."""
        return "skip_weight" in self._parameters

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n_tokens, d_in) -> (batch, n_tokens, d_out)."""
        normed = F.layer_norm(x, x.shape[-1:]) * self.norm_weight + self.norm_bias
        hidden = self.activation(_apply(normed, self.weight1, self.bias1))
        skipped = _apply(x, self.skip_weight, self.skip_bias) if self.has_skip_map else x
        return skipped + _apply(hidden, self.weight2, self.bias2)


def _apply(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (batch, n, d_in) by weight (n, d_in, d_out) and bias (n, d_out), position by position."""
    return torch.baddbmm(bias.unsqueeze(1), x.transpose(0, 1), weight).transpose(0, 1)


def _linear(n_tokens: int, d_in: int, d_out: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias, drawn as torch.nn.Linear draws them."""
    bound = 1 / math.sqrt(d_in)
    weight = torch.empty(n_tokens, d_in, d_out).uniform_(-bound, bound)
    return nn.Parameter(weight), nn.Parameter(torch.empty(n_tokens, d_out).uniform_(-bound, bound))
