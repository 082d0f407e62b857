"""Run the Triton kernels in Triton's interpreter against the float64 reference; print the largest relative error.

A program of its own, because Triton decides at its first import whether it interprets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baselines.mamba import reference, scan_triton
from baselines.mamba.scan import CHECKPOINT_EVERY


def largest_error(batch: int, length: int, channels: int, state: int, optional: bool) -> float:
    """Over both passes, all outputs and all gradients, each in units of its largest entry."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, gate, grad_y = normal(3, batch, length, channels)
    dt = torch.rand(batch, length, channels, generator=generator) * 0.5
    A = -torch.rand(channels, state, generator=generator) * 4
    B, C = normal(2, batch, length, state)
    initial, grad_last = normal(2, batch, channels, state)
    rest = (normal(channels), gate) if optional else (None, None)
    forward = [x, dt, A, B, C, *rest, initial if optional else None]
    backward = [grad_y, grad_last if optional else None, *forward[:7]]

    outputs = []
    for kernels, dtype in ((scan_triton, torch.float32), (reference, torch.float64)):
        y, last, saved = kernels.forward(*_to(dtype, forward), CHECKPOINT_EVERY, True)
        outputs.append([y, last, *kernels.backward(*_to(dtype, backward), saved, CHECKPOINT_EVERY)])
    errors = []
    for got, expected in zip(*outputs, strict=True):
        if got.shape != expected.shape:
            raise AssertionError(f"{tuple(got.shape)} in place of {tuple(expected.shape)}")
        if expected.numel() and expected.any():
            errors.append(float((got.double() - expected).abs().max() / expected.abs().max()))
    return max(errors, default=0.0)


def _to(dtype: torch.dtype, tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


if __name__ == "__main__":
    shapes = [(2, 17, 40, 5, True), (1, 16, 32, 16, False), (2, 1, 3, 1, True), (2, 0, 3, 1, True)]
    print(max(largest_error(*shape) for shape in shapes))
