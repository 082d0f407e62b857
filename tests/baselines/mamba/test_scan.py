"""The selective scan: invariant 9 of Simba's spec, and what an operator of torch must keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from baselines.mamba.reference import selective_scan_reference
from baselines.mamba.scan import CHECKPOINT_EVERY, scan_flops, selective_scan

NAMES = ("x", "dt", "A", "B", "C", "D", "z", "initial_state")
LENGTHS = (0, 1, 2, CHECKPOINT_EVERY - 1, CHECKPOINT_EVERY, CHECKPOINT_EVERY + 1, 100)


def inputs(
    batch: int = 2, length: int = 17, channels: int = 6, state: int = 5, optional: bool = True, seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    made = {
        "x": normal(batch, length, channels),
        "dt": torch.rand(batch, length, channels, generator=generator) * 0.5,
        "A": -torch.rand(channels, state, generator=generator) * 4,
        "B": normal(batch, length, state),
        "C": normal(batch, length, state),
    }
    if optional:
        made |= {
            "D": normal(channels),
            "z": 2 * normal(batch, length, channels),
            "initial_state": normal(batch, channels, state),
        }
    return made


def as_leaves(tensors: dict[str, Tensor], dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    return {name: tensor.detach().to(device, dtype).requires_grad_() for name, tensor in tensors.items()}


def run(scan, tensors: dict[str, Tensor], use_last: bool = True) -> dict[str, Tensor]:
    """Both outputs, and the gradients of a fixed random function of them."""
    y, last_state = scan(**tensors)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=generator).to(out) for out in (y, last_state)]
    loss = (y * weights[0]).sum() + ((last_state * weights[1]).sum() if use_last else 0)
    loss = loss + 0 * sum(tensor.sum() for tensor in tensors.values())  # an empty sequence may leave no graph
    grads = torch.autograd.grad(loss, list(tensors.values()))
    return {"y": y.detach(), "last_state": last_state.detach()} | {
        f"grad_{name}": grad for name, grad in zip(tensors, grads, strict=True)
    }


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest deviation in units of the largest entry."""
    assert got.shape == expected.shape
    if expected.numel() == 0 or not expected.any():
        return float(got.double().abs().sum())
    return float((got.cpu().double() - expected).abs().max() / expected.abs().max())


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    errors = {name: relative_error(got[name], expected[name]) for name in expected}
    assert max(errors.values()) <= tolerance, errors


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_float64_reference_with_all_gradients(length: int, optional: bool) -> None:
    made = inputs(length=length, optional=optional)
    got = run(selective_scan, as_leaves(made, torch.float32))
    assert_close(got, run(selective_scan_reference, as_leaves(made, torch.float64)), 1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optional", [True, False])
def test_cuda_equals_the_float64_reference_with_all_gradients(optional: bool) -> None:
    made = inputs(length=100, channels=40, optional=optional)
    got = run(selective_scan, as_leaves(made, torch.float32, "cuda"))
    assert_close(got, run(selective_scan_reference, as_leaves(made, torch.float64)), 1e-5)


@pytest.mark.parametrize(("channels", "state", "length"), [(600, 3, 40), (20, 16, 300), (1, 1, 50)])
def test_equals_the_reference_at_any_width_and_over_long_sequences(channels: int, state: int, length: int) -> None:
    made = inputs(batch=1, length=length, channels=channels, state=state)
    got = run(selective_scan, as_leaves(made, torch.float32))
    assert_close(got, run(selective_scan_reference, as_leaves(made, torch.float64)), 1e-5)


def test_gradients_do_not_need_the_last_state() -> None:
    got = run(selective_scan, as_leaves(inputs(), torch.float32), use_last=False)
    assert_close(got, run(selective_scan_reference, as_leaves(inputs(), torch.float64), use_last=False), 1e-5)


def test_worked_example() -> None:
    """exp(dt A) = 1/2 at every step: the state halves and takes dt * B * x on top."""
    ones = torch.ones(1, 3, 1)
    x = torch.tensor([4.0, 2.0, 0.0]).reshape(1, 3, 1)
    y, last_state = selective_scan(x, ones, torch.full((1, 1), -np.log(2)), ones, ones, D=torch.full((1,), 10.0))
    torch.testing.assert_close(y.flatten(), torch.tensor([4.0 + 40, 4.0 + 20, 2.0]))
    torch.testing.assert_close(last_state.flatten(), torch.tensor([2.0]))


def test_a_sequence_may_be_cut_anywhere() -> None:
    made = inputs(length=40)
    y, last_state = selective_scan(**made)
    per_step = ("x", "dt", "B", "C", "z")
    head = made | {name: made[name][:, :23] for name in per_step}
    y_head, middle = selective_scan(**head)
    tail = made | {name: made[name][:, 23:] for name in per_step} | {"initial_state": middle}
    y_tail, last_of_tail = selective_scan(**tail)
    torch.testing.assert_close(torch.cat([y_head, y_tail], dim=1), y, rtol=0, atol=0)
    torch.testing.assert_close(last_of_tail, last_state, rtol=0, atol=0)


def test_steps_of_size_zero_keep_the_state_exactly() -> None:
    made = inputs(length=3000)
    made["dt"] = torch.zeros_like(made["dt"])
    _, last_state = selective_scan(**made)
    assert torch.equal(last_state, made["initial_state"])


def test_a_transition_that_underflows_forgets_the_past() -> None:
    made = inputs(optional=False)
    made["A"] = torch.full_like(made["A"], -1e6)
    made["dt"] = made["dt"] + 0.1
    y, _ = selective_scan(**made)
    only_now = (made["dt"] * made["x"]) * (made["B"] * made["C"]).sum(-1, keepdim=True)
    torch.testing.assert_close(y, only_now)


def test_rows_of_a_batch_are_independent_bit_for_bit() -> None:
    made = inputs(batch=4)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = {name: tensor if name in ("A", "D") else tensor[order] for name, tensor in made.items()}
    assert torch.equal(selective_scan(**shuffled)[0], selective_scan(**made)[0][order])


def test_results_repeat_bit_for_bit() -> None:
    made = inputs(length=100, channels=300)
    first, second = (run(selective_scan, as_leaves(made, torch.float32)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_views_of_larger_tensors_are_accepted() -> None:
    made = inputs()
    wide = torch.cat([made["x"], made["z"]], dim=-1)
    x, z = wide.chunk(2, dim=-1)
    views = made | {"x": x, "z": z, "A": made["A"].T.contiguous().T}
    assert torch.equal(selective_scan(**views)[0], selective_scan(**made)[0])


def test_float64_takes_the_reference_path() -> None:
    made = {name: tensor.double() for name, tensor in inputs().items()}
    y, last_state = selective_scan(**made)
    expected_y, expected_last = selective_scan_reference(**made)
    assert y.dtype == last_state.dtype == torch.float64
    assert torch.equal(y, expected_y)
    assert torch.equal(last_state, expected_last)


@pytest.mark.parametrize("optional", [True, False])
def test_gradcheck(optional: bool) -> None:
    leaves = as_leaves(
        inputs(batch=1, length=CHECKPOINT_EVERY + 2, channels=2, state=2, optional=optional), torch.float64
    )

    def scan(*values: Tensor) -> tuple[Tensor, Tensor]:
        return selective_scan(**dict(zip(leaves, values, strict=True)))

    assert torch.autograd.gradcheck(scan, tuple(leaves.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("optional", [True, False])
def test_opcheck(optional: bool, dtype: torch.dtype) -> None:
    leaves = as_leaves(inputs(optional=optional), dtype)
    torch.library.opcheck(torch.ops.rematch.selective_scan, (*(leaves.get(name) for name in NAMES), True))


def test_bfloat16_accumulates_in_float32() -> None:
    made = {name: tensor.bfloat16() for name, tensor in inputs(length=100).items()}
    got = run(selective_scan, as_leaves(made, torch.bfloat16))
    assert got["last_state"].dtype == torch.float32
    assert all(tensor.dtype == torch.bfloat16 for name, tensor in got.items() if name != "last_state")
    expected = run(selective_scan_reference, as_leaves(made, torch.float64))
    assert relative_error(got.pop("last_state"), expected.pop("last_state")) <= 1e-5
    assert_close(got, expected, 2**-8)


@pytest.mark.parametrize("optional", [True, False])
def test_counted_flops_equal_the_formula(optional: bool) -> None:
    leaves = as_leaves(inputs(batch=3, length=20, channels=7, state=4, optional=optional), torch.float32)
    forward = scan_flops(3, 20, 7, 4)
    assert forward == 9 * 3 * 20 * 7 * 4
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        selective_scan(**leaves)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        selective_scan(**leaves)[0].sum().backward()
    assert counter.get_total_flops() == 3 * forward


def test_meta_tensors_have_the_right_shapes() -> None:
    made = {name: tensor.to("meta") for name, tensor in inputs(batch=3, length=9, channels=4, state=2).items()}
    y, last_state = selective_scan(**made)
    assert (y.shape, last_state.shape, y.device.type) == ((3, 9, 4), (3, 4, 2), "meta")


@pytest.mark.parametrize("name", ["dt", "A", "B", "C", "D", "z", "initial_state"])
def test_wrong_shapes_are_refused_by_name(name: str) -> None:
    made = inputs()
    made[name] = made[name][..., :1]
    with pytest.raises(ValueError, match=r"B must be|C must be|" + name):
        selective_scan(**made)


def test_exponential_is_exact_at_zero_and_within_two_units_in_the_last_place() -> None:
    from baselines.mamba.vector_math import exp2

    exponents = np.linspace(-126, 127, 50_001, dtype=np.float32)
    got = np.array([exp2(x) for x in exponents], dtype=np.float64)
    assert np.abs(got / np.exp2(exponents.astype(np.float64)) - 1).max() <= 2 * np.finfo(np.float32).eps
    assert exp2(np.float32(0)) == 1
    assert exp2(np.float32(-1e30)) <= 2.0**-126
