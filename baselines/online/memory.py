"""Bytes that autograd keeps for the backward pass, and bytes that are alive at once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class SavedBytes:
    """Counts, while it is entered, the bytes that are kept for the backward pass.

    Every block of memory counts once, however many operators or views share it; blocks that are there anyway do not.

    Attributes:
        total: bytes so far.
    """

    def __init__(self, anyway: Iterable[Tensor] = ()) -> None:
        """
        Args:
            anyway: tensors that are not counted, such as a model's parameters and buffers.
        """
        self._anyway = {tensor.untyped_storage().data_ptr() for tensor in anyway}
        self._blocks: dict[int, int] = {}
        self._hooks: Any = saved_tensors_hooks(self._pack, lambda tensor: tensor)

    @property
    def total(self) -> int:
        return sum(self._blocks.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        block = tensor.untyped_storage()
        if block.data_ptr() not in self._anyway:
            self._blocks[block.data_ptr()] = block.nbytes()
        return tensor

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)


class PeakBytes(TorchDispatchMode):
    """Measures the most bytes of tensors that were alive at once, among those made while it is entered.

    That is what a step needs above what was there before it: activations, gradients, an optimizer's state. A block of memory
    counts once, however many tensors are views of it or were computed in its place, until the last of them is gone; blocks
    of before are never counted. CPU and GPU alike, forward and backward. Entered again it goes on counting.

    Not seen: what an operator allocates and frees within itself, and memory outside torch. Python's cyclic garbage collector
    rests meanwhile, so that results do not depend on when it runs: tensors in reference cycles stay alive.

    Attributes:
        peak: the most bytes so far.
        live: bytes now; it falls after the end too, as results are given up.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.live = 0
        self._sizes: dict[int, int] = {}  # of the blocks that are alive, by address
        self._collects = False

    def __enter__(self) -> Self:
        self._collects = gc.isenabled()
        gc.disable()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self._collects:
            gc.enable()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What an operator returns is new, or belongs to one of its arguments. A tensor that is made of Python or NumPy
        # numbers is an exception: this operator is the first that sees it.
        fresh = func is torch.ops.aten.lift_fresh.default
        given = set() if fresh else {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            block = tensor.untyped_storage()
            address, size = block._cdata, block.nbytes()
            if address in self._sizes:  # `resize_` and `out=` may change it
                self.live += size - self._sizes[address]
                self._sizes[address] = size
            elif address not in given:
                self.live += size
                self._sizes[address] = size
                weakref.finalize(block, self._free, address).atexit = False
        self.peak = max(self.peak, self.live)
        return result

    def _free(self, address: int) -> None:
        self.live -= self._sizes.pop(address)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
