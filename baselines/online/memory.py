"""Bytes that autograd keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


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
