"""Exponentials for numba kernels that the compiler turns into vector instructions, which calls of libm are not.

numba's cache on disk does not follow a change made here into the kernels that call it: edit those files as well.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

ONE = np.float32(1.0)
LOG2_E = np.float32(1.4426950408889634)

# 1.5 * 2^23: adding it to a small float rounds that to an integer, held in the low bits of the sum.
_ROUND = np.float32(12582912.0)
_LOWEST = np.float32(-126.0)
_HIGHEST = np.float32(127.0)
# 2^r for |r| <= 1/2, least squares for the relative error (2e-9) with 2^0 exactly 1: a step of size 0 keeps the state.
_P1, _P2, _P3 = np.float32(0.693147206), np.float32(0.240226485), np.float32(0.0555032904)
_P4, _P5, _P6 = np.float32(0.00961837325), np.float32(0.00133998483), np.float32(0.000153707048)

# Contraction only: with reassociation the compiler would cancel the rounding by a large constant.
_jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})


def _bitcast(source: Any, target: Any, llvm_target: ir.Type) -> Any:
    def typed(typing_context: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], llvm_target)

        return target(source), codegen

    return intrinsic(typed)


_float_as_int = _bitcast(numba.types.float32, numba.types.int32, ir.IntType(32))
_int_as_float = _bitcast(numba.types.int32, numba.types.float32, ir.FloatType())


@_jit
def exp2(x: np.float32) -> np.float32:
    """2^x within 1e-7 for x from -126 to 127, beyond which it stays at the values there; branch-free."""
    clipped = np.float32(min(max(x, _LOWEST), _HIGHEST))
    shifted = clipped + _ROUND
    r = clipped - (shifted - _ROUND)
    power = ONE + r * (_P1 + r * (_P2 + r * (_P3 + r * (_P4 + r * (_P5 + r * _P6)))))
    return _int_as_float(_float_as_int(power) + (_float_as_int(shifted) << np.int32(23)))


@_jit
def sigmoid(x: np.float32) -> np.float32:
    """1 / (1 + e^-x) within 3e-7, relative where x is positive or moderate."""
    return ONE / (ONE + exp2(-x * LOG2_E))
