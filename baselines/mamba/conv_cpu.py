"""The causal depthwise convolution with its silu on CPU: numba kernels, float32, one thread, the GIL released.

Time comes before channels, as the block has them, so that nothing is transposed, and the innermost loops are vectors of
channels. K taps; the input holds K - 1 steps more than the output.
"""

from __future__ import annotations

import numba
import numpy as np

from baselines.mamba.vector_math import ONE, sigmoid

_jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})


@_jit
def forward(x: np.ndarray, taps: np.ndarray, bias: np.ndarray, y: np.ndarray) -> None:
    """Fill y (batch, length, E) from x (batch, length + K - 1, E), taps (K, E) and bias (E,)."""
    batch, length, channels = y.shape
    out = np.empty(channels, np.float32)
    for b in range(batch):
        for t in range(length):
            for e in range(channels):
                out[e] = bias[e]
            for k in range(taps.shape[0]):
                for e in range(channels):
                    out[e] += taps[k, e] * x[b, t + k, e]
            for e in range(channels):
                y[b, t, e] = out[e] * sigmoid(out[e])


@_jit
def backward(
    grad_y: np.ndarray,
    x: np.ndarray,
    taps: np.ndarray,
    bias: np.ndarray,
    grad_x: np.ndarray,
    grad_taps: np.ndarray,
    grad_bias: np.ndarray,
) -> None:
    """Add to grad_x, and to a row a batch row in grad_taps (batch, K, E) and grad_bias (batch, E)."""
    batch, length, channels = grad_y.shape
    out = np.empty(channels, np.float32)
    for b in range(batch):
        for t in range(length):
            for e in range(channels):
                out[e] = bias[e]
            for k in range(taps.shape[0]):
                for e in range(channels):
                    out[e] += taps[k, e] * x[b, t + k, e]
            for e in range(channels):
                gate = sigmoid(out[e])
                out[e] = grad_y[b, t, e] * gate * (ONE + out[e] * (ONE - gate))
                grad_bias[b, e] += out[e]
            for k in range(taps.shape[0]):
                for e in range(channels):
                    grad_taps[b, k, e] += out[e] * x[b, t + k, e]
                    grad_x[b, t + k, e] += out[e] * taps[k, e]
