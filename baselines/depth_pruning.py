"""Depth pruning: drop a Mamba's upper layers, what a practitioner would try first to save FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from baselines import stack
from rematch.budget import solve_knob


@dataclass
class DepthPruned:
    """The lowest layers of a Mamba, then its final norm and head, on every token.

    Attributes:
        n_layers: layers that stay, counted from below; None for all. The knob that meets a FLOPs target; being whole,
            it takes the nearest depth.
    """

    n_layers: int | None = None
    model: Any = field(default=None, init=False, repr=False)

    def prepare(
        self, model: Any, target: float | None = None, measure: Callable[[DepthPruned], float] | None = None
    ) -> None:
        """Adopt a ``MambaForCausalLM`` or ``Mamba2ForCausalLM`` and choose the depth nearest to the target.

        Raises:
            ValueError: another model, more layers than it has, or a target without a measure.
            RematchError: the target is out of reach.
        """
        self.model = stack.adopt(model)
        depth = len(model.backbone.layers)
        if self.n_layers is not None and not 1 <= self.n_layers <= depth:
            raise ValueError(f"n_layers must be 1 to {depth}, not {self.n_layers}")
        if target is None:
            return
        if measure is None:
            raise ValueError("a target needs a measure")

        def flops(n_layers: float) -> float:
            self.n_layers = int(n_layers)
            return measure(self)

        self.n_layers = int(solve_knob(flops, target, 1, depth, integer=True).value)

    def logits(self, input_ids: Tensor, n_continuation: int, attention_mask: Tensor | None = None) -> Tensor:
        """As ``Dense.logits``, by the layers that stay."""
        return stack.dense_logits(self.model, input_ids, n_continuation, attention_mask, self.n_layers)

    def notes(self) -> dict[str, float | str]:
        """The knob, as turned."""
        return {"n_layers": self._kept()}

    def keep_counts(self, n_context: int) -> list[int]:
        """Context tokens that each layer reads: all, or none where it was dropped."""
        dropped = len(self.model.backbone.layers) - self._kept()
        return [n_context] * self._kept() + [0] * dropped

    def _kept(self) -> int:
        return len(self.model.backbone.layers[: self.n_layers])
