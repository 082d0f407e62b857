"""The convolution of the Mamba block against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from baselines.mamba.conv import causal_conv1d


def inputs(bias: bool, dtype: torch.dtype = torch.float32, kernel: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 20 + kernel - 1, 10), (10, kernel)] + [(10,)] * bias
    return [torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def expected(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.silu(F.conv1d(x.mT, weight.unsqueeze(1), bias, groups=weight.shape[0]).mT)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_equals_torch_in_float64_with_all_gradients(bias: bool, kernel: int) -> None:
    single = inputs(bias, kernel=kernel)
    double = [tensor.detach().double().requires_grad_() for tensor in single]
    got = causal_conv1d(*single, *[None] * (3 - len(single)))
    want = expected(*double)
    weights = torch.randn(want.shape, generator=torch.Generator().manual_seed(1))
    got_grads = torch.autograd.grad((got * weights).sum(), single)
    want_grads = torch.autograd.grad((want * weights).sum(), double)
    for one, other in zip((got, *got_grads), (want, *want_grads), strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(bias: bool, dtype: torch.dtype) -> None:
    tensors = inputs(bias, dtype)
    torch.library.opcheck(torch.ops.rematch.causal_conv1d_silu, (*tensors, *[None] * (3 - len(tensors))))


def test_results_repeat_bit_for_bit() -> None:
    runs = []
    for _ in range(2):
        tensors = inputs(bias=True)
        out = causal_conv1d(*tensors)
        runs.append((out, *torch.autograd.grad(out.square().sum(), tensors)))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_counted_flops_equal_the_formula_and_torchs_forward() -> None:
    forward = 2 * 4 * 3 * 20 * 10
    for convolve in (causal_conv1d, expected):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            convolve(*inputs(bias=True))
        assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        causal_conv1d(*inputs(bias=True)).sum().backward()
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize("bias", [True, False])
def test_float64_gradcheck(bias: bool) -> None:
    tensors = inputs(bias, torch.float64)
    assert torch.equal(causal_conv1d(*tensors, *[None] * (3 - len(tensors))), expected(*tensors))
    assert torch.autograd.gradcheck(lambda x, weight, bias=None: causal_conv1d(x, weight, bias), tensors)


def test_bfloat16_computes_in_float32() -> None:
    half = inputs(bias=True, dtype=torch.bfloat16)
    got = causal_conv1d(*half)
    assert torch.equal(got, causal_conv1d(*(tensor.float() for tensor in half)).bfloat16())
    assert all(grad.dtype == torch.bfloat16 for grad in torch.autograd.grad(got.sum(), half))


def test_another_activation() -> None:
    x, weight, bias = inputs(bias=True)
    want = F.conv1d(x.mT, weight.unsqueeze(1), bias, groups=10).mT.relu()
    torch.testing.assert_close(causal_conv1d(x, weight, bias, "relu"), want)
