"""FLOPs, counted by running: torch's counter, under conditions in which it sees everything that it should.

In: matrix products, convolutions, attention (causal attention as the full square), and every custom operator for which
``torch.utils.flop_counter.register_flop_formula`` was given a formula. A multiplication and an addition are 2 FLOPs.
Out, by the field's convention: embeddings, norms, activations, softmax, other elementwise work, and optimizer steps.

Left alone the counter misses CPU attention, fused encoder layers and fused LSTMs, so these are switched off while it
counts: attention runs as plain matrix products (the MATH kernel), the others take their slow path. What still has work
but no formula stops the count with an error. Work outside torch's dispatcher (NumPy, a bare Triton kernel) and a
recurrence written out in elementwise operations cannot be seen: make those custom operators with a formula.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rematch.errors import RematchError

_aten = torch.ops.aten


@dataclass(frozen=True)
class FlopCount:
    """Floating-point operations of one call."""

    forward: int
    backward: int = 0

    @property
    def total(self) -> int:
        """Forward and backward together."""
        return self.forward + self.backward


def count_flops(fn: Callable[..., Any], *args: Any, backward: bool = False) -> FlopCount:
    """Count the FLOPs of ``fn(*args)``, and where asked those of differentiating what it returns.

    Nothing is left behind: no gradient is accumulated and the random state is put back. (A module in training mode
    still updates its running statistics, if it keeps any.) Counting is slow, several times the call itself for small
    models: count one call a shape and multiply.

    Args:
        fn: called once, in the caller's gradient mode; with ``backward`` in one that records. What it does itself,
            differentiating included, counts as forward.
        backward: also count the gradients of the returned tensor (of its sum, if it is no scalar) with respect to
            every leaf that it was computed from.

    Raises:
        RematchError: an operator did work that nothing counts, or there is nothing to differentiate.
    """
    with _countable(), torch.enable_grad() if backward else contextlib.nullcontext():
        result, forward = _counted(lambda: fn(*args))
        if not backward:
            return FlopCount(forward)
        if not (isinstance(result, Tensor) and result.requires_grad):
            raise RematchError("count_flops(backward=True): the function must return a tensor that requires grad")
        leaves = _leaves(result)
        # Not `backward()`, which would add to the caller's gradients.
        _, spent = _counted(lambda: torch.autograd.grad(result.sum(), leaves, allow_unused=True))
        return FlopCount(forward, spent)


@contextlib.contextmanager
def _countable() -> Iterator[None]:
    """Fused paths off, the random state put back."""
    onednn: Any = torch.backends.mkldnn
    before = torch.backends.mha.get_fastpath_enabled(), onednn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    onednn.enabled = False
    try:
        with (
            torch.random.fork_rng(devices=range(torch.cuda.device_count())),
            torch.backends.cudnn.flags(enabled=False),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before[0])
        onednn.enabled = before[1]


def _counted(run: Callable[[], Any]) -> tuple[Any, int]:
    counter = FlopCounterMode(display=False, custom_mapping=_EXTRA_FORMULAS)
    with _Watch(counter), counter:
        result = run()
    return result, counter.get_total_flops()


def _leaves(result: Tensor) -> list[Tensor]:
    """The tensors at the ends of a graph, those that ``backward()`` would give a gradient."""
    leaves: list[Tensor] = []
    start = torch.autograd.graph.get_gradient_edge(result).node
    seen, queue = {start}, [start]
    while queue:
        node = queue.pop()
        variable = getattr(node, "variable", None)  # only the nodes that accumulate into a leaf have one
        if variable is not None:
            leaves.append(variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)
    return leaves


class _Watch(TorchDispatchMode):
    """Stops at an operator that does countable work and has no formula. Outside the counter: sees what that executes."""

    supports_higher_order_operators = True

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = getattr(func, "_overloadpacket", func)
        if packet not in self.counter.flop_registry and _does_work(func):
            raise RematchError(
                f"FLOPs of '{func}' cannot be counted: it has no formula; register one with "
                "torch.utils.flop_counter.register_flop_formula, or use the operators that it is made of"
            )
        return func(*args, **(kwargs or {}))


def _does_work(func: Any) -> bool:
    if not isinstance(func, torch._ops.OpOverload):
        return False
    if func.namespace == "aten":
        return func._overloadpacket.__name__ in _UNCOUNTED
    return func.namespace not in _BOOKKEEPING


def _convolution_backward(grad_out: Any, x: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    """As much as the forward pass for each gradient that is wanted; torch's formula forgets the groups of the weight's."""
    transposed, wanted = args[4], args[7]
    batch, _, *positions = x if transposed else grad_out
    return 2 * batch * math.prod(positions) * math.prod(weight) * (int(wanted[0]) + int(wanted[1]))


# What torch's registry lacks (products of a matrix or vector with a vector) or gets wrong.
_EXTRA_FORMULAS: dict[Any, Callable[..., int]] = {
    _aten.mv: lambda a, b, *args, **kwargs: 2 * a[0] * a[1],
    _aten.addmv: lambda bias, a, b, *args, **kwargs: 2 * a[0] * a[1],
    _aten.dot: lambda a, b, *args, **kwargs: 2 * a[0],
    _aten.vdot: lambda a, b, *args, **kwargs: 2 * a[0],
    _aten.convolution_backward: _convolution_backward,
    _aten.addbmm: lambda bias, a, b, *args, **kwargs: 2 * a[0] * a[1] * a[2] * b[2],
}

# Operators of torch itself that do more than elementwise work and that neither registry knows.
_UNCOUNTED = frozenset(
    {
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
        "_scaled_dot_product_fused_attention_overrideable",
        "_native_multi_head_attention",
        "_transformer_encoder_layer_fwd",
        "_cudnn_rnn",
        "_cudnn_rnn_backward",
        "mkldnn_rnn_layer",
        "mkldnn_rnn_layer_backward",
        "_fft_c2c",
        "_fft_c2r",
        "_fft_r2c",
        "_linalg_det",
        "_linalg_eigh",
        "_linalg_slogdet",
        "_linalg_solve_ex",
        "_linalg_svd",
        "cholesky_solve",
        "linalg_cholesky_ex",
        "linalg_eig",
        "linalg_inv_ex",
        "linalg_lstsq",
        "linalg_lu_factor_ex",
        "linalg_qr",
        "linalg_solve_triangular",
    }
)

# Namespaces whose operators move, trace or describe tensors; any other namespace is somebody's custom operator.
_BOOKKEEPING = frozenset(
    {"prim", "prims", "profiler", "c10d", "_c10d_functional", "inductor", "rngprims", "debugprims"}
)
