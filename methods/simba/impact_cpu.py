"""The global impact on CPU: a numba kernel, float32, one thread, the GIL released.

It walks time backwards with the suffix sum of the step sizes in a small array; the innermost loops run over contiguous
channels and compile to vector instructions, so that no tensor of the size (batch, length, E, N) ever exists.
"""

from __future__ import annotations

import numba
import numpy as np
from torch import Tensor

from baselines.mamba.vector_math import LOG2_E, exp2

BLOCK = 256
"""Channels worked on together, as in the scan's kernel."""

_ZERO = np.float32(0.0)


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _impact(x: np.ndarray, dt: np.ndarray, rate: np.ndarray, B: np.ndarray, C: np.ndarray, dy: np.ndarray) -> None:
    """Fill dy (batch, n_context, E); ``rate`` is A in units of log2, (N, E)."""
    batch, n_context, channels = dy.shape
    entries = rate.shape[0]
    remaining = np.empty(BLOCK, np.float32)
    total = np.empty(BLOCK, np.float32)
    a = np.empty((entries, BLOCK), np.float32)
    for b in range(batch):
        for first in range(0, channels, BLOCK):
            width = min(BLOCK, channels - first)
            for e in range(width):
                remaining[e] = _ZERO
            for n in range(entries):
                for e in range(width):
                    a[n, e] = rate[n, first + e]
            for t in range(n_context - 1, -1, -1):
                for e in range(width):
                    total[e] = _ZERO
                for n in range(entries):
                    weight = C[b, n_context - 1, n] * B[b, t, n]
                    for e in range(width):
                        total[e] += weight * exp2(remaining[e] * a[n, e])
                for e in range(width):
                    step = dt[b, t, first + e]
                    dy[b, t, first + e] = total[e] * step * x[b, t, first + e]
                    remaining[e] += step


def forward(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, n_context: int) -> Tensor:
    """As ``impact.reference``, for contiguous float32 tensors on CPU."""
    dy = x.new_empty(x.shape[0], n_context, x.shape[2])
    rate = (A * float(LOG2_E)).T.contiguous()
    _impact(*(tensor.detach().numpy() for tensor in (x, dt, rate, B, C, dy)))
    return dy
