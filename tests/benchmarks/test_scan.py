"""How fast the selective scan and a Mamba trained with it are: ``pytest tests/benchmarks/test_scan.py -m benchmark``.

One thread, float32, d_model 128 (E 256), N 16; medians. The backward pass of transformers' fallback is quadratic in the
length, minutes where the others take milliseconds: it is measured at the lengths where it ends in seconds.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from baselines.mamba import install, selective_scan
from baselines.mamba.reference import selective_scan_reference

pytestmark = pytest.mark.benchmark
SHAPES = [(1, 512), (8, 512), (1, 2048), (8, 2048)]
CHANNELS, STATE = 256, 16
LONGEST_BACKWARD_OF_TRANSFORMERS = 128


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def transformers_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    return mamba_selective_scan(x.mT, dt.mT, A, B.mT, C.mT, D, z.mT).mT


def mamba_ssm_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(x.mT, dt.mT, A, B.mT, C.mT, D, z.mT).mT


SCANS: dict[str, Callable[..., Tensor]] = {
    "ours": lambda *inputs: selective_scan(*inputs)[0],
    "torch loop": lambda *inputs: selective_scan_reference(*inputs)[0],
    "transformers": transformers_scan,
}


def scan_inputs(batch: int, length: int, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = (batch, length)
    tensors = [
        torch.randn(*tokens, CHANNELS, generator=generator),
        torch.rand(*tokens, CHANNELS, generator=generator) * 0.1,
        -torch.arange(1.0, STATE + 1).repeat(CHANNELS, 1),
        torch.randn(*tokens, STATE, generator=generator),
        torch.randn(*tokens, STATE, generator=generator),
        torch.ones(CHANNELS),
        torch.randn(*tokens, CHANNELS, generator=generator),
    ]
    return [tensor.to(device).requires_grad_() for tensor in tensors]


def measure(benchmark: Any, scan: Callable[..., Tensor], inputs: list[Tensor], backward: bool, rounds: int) -> None:
    weights = torch.randn_like(inputs[0])
    on_cuda = inputs[0].is_cuda

    def work() -> None:
        with torch.set_grad_enabled(backward):
            y = scan(*inputs)
        if backward:
            torch.autograd.grad(y, inputs, weights)
        if on_cuda:
            torch.cuda.synchronize()

    benchmark.pedantic(work, rounds=rounds, warmup_rounds=1)
    benchmark.extra_info["tokens"] = inputs[0].shape[0] * inputs[0].shape[1]


@pytest.mark.parametrize(("batch", "length"), SHAPES)
@pytest.mark.parametrize("scan", SCANS)
def test_scan_forward(benchmark: Any, scan: str, batch: int, length: int) -> None:
    measure(benchmark, SCANS[scan], scan_inputs(batch, length), backward=False, rounds=7 if scan == "ours" else 3)


@pytest.mark.parametrize(("batch", "length"), [(8, LONGEST_BACKWARD_OF_TRANSFORMERS), *SHAPES])
@pytest.mark.parametrize("scan", SCANS)
def test_scan_forward_and_backward(benchmark: Any, scan: str, batch: int, length: int) -> None:
    if scan == "transformers" and length > LONGEST_BACKWARD_OF_TRANSFORMERS:
        pytest.skip("transformers' backward pass is quadratic in the length and takes minutes here")
    measure(benchmark, SCANS[scan], scan_inputs(batch, length), backward=True, rounds=7 if scan == "ours" else 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("batch", "length"), SHAPES)
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("package", ["triton", "mamba_ssm"])
def test_scan_on_cuda(benchmark: Any, package: str, backward: bool, batch: int, length: int) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    scan = SCANS["ours"] if package == "triton" else mamba_ssm_scan
    measure(benchmark, scan, scan_inputs(batch, length, "cuda"), backward, rounds=30)


def training_step(layers: int, width: int, state: int, vocabulary: int, length: int, fast: bool) -> Callable[[], None]:
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, state_size=state, use_cache=False
    )
    model = MambaForCausalLM(config).train()
    if fast:
        install(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(vocabulary, (8, length))

    def step() -> None:
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()

    return step


@pytest.mark.parametrize(
    ("mixer", "length"), [("ours", 512), ("ours", 128), ("ours", 64), ("transformers", 128), ("transformers", 64)]
)
def test_training_step(benchmark: Any, mixer: str, length: int) -> None:
    step = training_step(4, 128, STATE, 1024, length, fast=mixer == "ours")
    benchmark.pedantic(step, rounds=5 if mixer == "ours" else 1, warmup_rounds=1)
    benchmark.extra_info["tokens"] = 8 * length


@pytest.mark.parametrize("state", [8, 16])
@pytest.mark.parametrize("width", [64, 96])
def test_training_step_of_a_small_parent(benchmark: Any, width: int, state: int) -> None:
    benchmark.pedantic(training_step(8, width, state, 1024, 512, fast=True), rounds=5, warmup_rounds=1)
    benchmark.extra_info["tokens"] = 8 * 512
