"""The selective scan on CPU: numba kernels, float32, one thread, the GIL released.

The recurrence is sequential in time and independent across channels, so the innermost loops run over contiguous channels
and compile to vector instructions, while the state (N, channels) of one block of channels stays in the cache. An
exponential that the compiler can vectorise replaces libm's, which dominates otherwise. The backward pass starts from
the states that the forward pass kept, recomputes a chunk of states, and walks it backwards. The order of every sum is
fixed, so results repeat bit for bit.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.extending import intrinsic
from torch import Tensor

BLOCK = 256
"""Channels worked on together: enough to hide the cost of a loop, few enough for a chunk of states to stay in L2."""

_LOG2_E = np.float32(1.4426950408889634)
_LN_2 = np.float32(0.6931471805599453)
_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)

# Summing over channels in vector lanes needs reassociation; the exponential must not have it (see `_exp2`).
_jit = numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})


@intrinsic
def _float_as_int(typing_context: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return numba.types.int32(numba.types.float32), codegen


@intrinsic
def _int_as_float(typing_context: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return numba.types.float32(numba.types.int32), codegen


# 1.5 * 2^23: adding it to a small float rounds that to an integer, held in the low bits of the sum.
_ROUND = np.float32(12582912.0)
_LOWEST = np.float32(-126.0)
_HIGHEST = np.float32(127.0)
# 2^r for |r| <= 1/2, least squares for the relative error (3e-9) with 2^0 exactly 1: a step of size 0 keeps the state.
_P1, _P2, _P3 = np.float32(P1), np.float32(P2), np.float32(P3)
_P4, _P5, _P6 = np.float32(P4), np.float32(P5), np.float32(P6)


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _exp2(x):
    """2^x within 1e-7 for x from -126 to 127, beyond which it stays at the values there; branch-free."""
    x = min(max(x, _LOWEST), _HIGHEST)
    shifted = x + _ROUND
    r = x - (shifted - _ROUND)
    power = _ONE + r * (_P1 + r * (_P2 + r * (_P3 + r * (_P4 + r * (_P5 + r * _P6)))))
    return _int_as_float(_float_as_int(power) + (_float_as_int(shifted) << np.int32(23)))


@_jit
def _sigmoid(x):
    return _ONE / (_ONE + _exp2(-x * _LOG2_E))
