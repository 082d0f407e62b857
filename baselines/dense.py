"""A dense causal language model as it is: dense Mamba, a method's unpruned parent, a Transformer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from baselines import stack


@dataclass
class Dense:
    """Runs a transformers causal LM on every token. It has no knob: a dense model is matched by its size.

    Mamba models run on the fast scan of ``baselines.mamba``; all others run their own forward pass.
    """

    model: Any = field(default=None, init=False, repr=False)

    def prepare(self, model: Any, target: float | None = None, measure: Callable[[Dense], float] | None = None) -> None:
        """Adopt the model in eval mode. Target and measure have nothing to turn."""
        self.model = model.eval()

    def logits(self, input_ids: Tensor, n_continuation: int, attention_mask: Tensor | None = None) -> Tensor:
        """Predictions (batch, n_continuation, vocabulary), float, of the last n_continuation of (batch, L) tokens.

        Args:
            attention_mask: (batch, L), 0 for padding, which must be on the left.

        Raises:
            ValueError: no context is left, padding is not on the left, or a row has no context token.
        """
        if stack.is_mamba(self.model):
            return stack.dense_logits(self.model, input_ids, n_continuation, attention_mask)
        ids, mask = stack.split(input_ids, n_continuation, attention_mask)
        return self.model(
            ids,
            attention_mask=None if mask is None else mask.long(),
            use_cache=False,
            logits_to_keep=n_continuation,
        ).logits.float()

    def loss(self, input_ids: Tensor, n_continuation: int, attention_mask: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats of the last n_continuation tokens, for a caller that trains ``self.model``."""
        return stack.next_token_loss(self.logits(input_ids, n_continuation, attention_mask), input_ids)

    def notes(self) -> dict[str, float | str]:
        """The size, as nothing was turned."""
        config = self.model.config
        return {"architecture": type(self.model).__name__, "hidden_size": config.hidden_size}

    def keep_counts(self, n_context: int) -> list[int]:
        """Context tokens that each layer reads: all of them."""
        return [n_context] * self.model.config.num_hidden_layers
