"""What a transformer's passes cost, as a formula whose coefficients are counted on the model itself.

Training and sampling meet hundreds of shapes, and counting each costs several times the pass. But a dense transformer costs,
for every row, the same for every token, for every (token, token attended to) pair, and for every position whose logits are
computed: three coefficients, read off passes of a few tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rematch.errors import RematchError
from rematch.flops import count_flops


@dataclass(frozen=True)
class Coefficients:
    """FLOPs of one row.

    Attributes:
        token: for every token read.
        pair: for every token read, times every token that it could attend to (the full square, as ``rematch.flops`` counts).
        head: for every position whose logits are computed.
    """

    token: int
    pair: int
    head: int

    def __call__(self, n_tokens: int, n_context: int, n_logits: int) -> int:
        """Of one row of ``n_tokens`` new tokens, ``n_context`` tokens with those that are cached, and ``n_logits`` positions."""
        return n_tokens * self.token + n_tokens * n_context * self.pair + n_logits * self.head


@dataclass(frozen=True)
class TransformerFlops:
    """FLOPs of a causal language model's passes, forward and backward."""

    forward_of: Coefficients
    backward_of: Coefficients

    @classmethod
    def measure(cls, model: Any, backward: bool = True) -> TransformerFlops:
        """Count a few passes of two to five tokens.

        Args:
            backward: also through the model, which needs memory for its gradients; if not, ``step`` is an error.

        Raises:
            RematchError: the model's cost is no such formula (attention windows, experts that are chosen by token).
        """

        def passes(n_tokens: int, n_logits: int) -> tuple[int, int]:
            ids = torch.zeros(1, n_tokens, dtype=torch.long, device=model.device)

            def logits() -> Tensor:
                mask = torch.ones_like(ids)
                return model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=n_logits).logits

            with torch.set_grad_enabled(backward):
                count = count_flops(logits, backward=backward)
            return count.forward, count.backward

        # Two logits at least: one row alone may take another operator, whose backward pass costs differently.
        counts = {shape: passes(*shape) for shape in ((2, 2), (3, 2), (4, 2), (3, 3), (5, 4))}
        formulas = []
        for i in range(2):
            two, three, four, more_logits, check = (count[i] for count in counts.values())
            pair = (four - 2 * three + two) // 2
            head = more_logits - three
            formula = Coefficients(three - two - 5 * pair, pair, head)
            if formula(2, 2, 2) != two or formula(5, 5, 4) != check:
                raise RematchError(
                    f"the FLOPs of {type(model).__name__} are no sum over tokens, pairs of tokens and logits, so that its training "
                    "and sampling cannot be counted by formula"
                )
            formulas.append(formula)
        return cls(*formulas)

    def forward(self, rows: int, n_tokens: int, n_context: int | None = None, n_logits: int | None = None) -> int:
        """Of a forward pass without gradients.

        Args:
            rows: sequences.
            n_tokens: new tokens of a row, padding included.
            n_context: tokens of a row with those in the cache; ``n_tokens`` where None.
            n_logits: positions of a row whose logits are computed; all where None.
        """
        context = n_tokens if n_context is None else n_context
        return rows * self.forward_of(n_tokens, context, n_tokens if n_logits is None else n_logits)

    def step(self, rows: int, n_tokens: int, n_logits: int | None = None) -> int:
        """Of a forward and a backward pass over whole sequences."""
        if not any(vars(self.backward_of).values()):
            raise RematchError("the FLOPs of a backward pass were not measured: TransformerFlops.measure(model)")
        logits = n_tokens if n_logits is None else n_logits
        return self.forward(rows, n_tokens, None, logits) + rows * self.backward_of(n_tokens, n_tokens, logits)


_known: dict[tuple[Any, ...], TransformerFlops] = {}


def transformer_flops(model: Any) -> TransformerFlops:
    """``TransformerFlops.measure``, once for all models of the same class, config and (trainable) parameters."""
    parameters = tuple((name, p.shape, p.requires_grad) for name, p in model.named_parameters())
    architecture = type(model), model.config.to_json_string(), parameters
    if architecture not in _known:
        trained = any(requires_grad for _, _, requires_grad in parameters)
        _known[architecture] = TransformerFlops.measure(model, backward=trained)
    return _known[architecture]
