"""Compiling the CPU kernels ahead of their first use, for a process that workers are forked from."""

from __future__ import annotations

import torch

from baselines.mamba.conv import _conv_silu, _conv_silu_backward
from baselines.mamba.scan import _scan, _scan_backward


@torch.no_grad()
def compile_kernels() -> None:
    """Compile (or load from numba's cache) the kernels of the scan and the convolution, forward and backward.

    Called without autograd: its engine starts threads that do not survive a fork, and a worker would wait for them.
    """
    x = torch.zeros(1, 4, 8)
    A, weights, D = torch.zeros(8, 2), torch.zeros(1, 4, 2), torch.zeros(8)
    _, _, checkpoints = _scan(x, x, A, weights, weights, D, x, None, True)
    _scan_backward(x, None, x, x, A, weights, weights, D, x, checkpoints)
    taps, bias = torch.zeros(8, 2), torch.zeros(8)
    y = _conv_silu(x, taps, bias)
    _conv_silu_backward(y, x, taps, bias)
