"""FLOPs by formula against FLOPs by running."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_revise import MAKERS
from transformers import DynamicCache

from baselines.transformer_flops import TransformerFlops, transformer_flops
from rematch.errors import RematchError
from rematch.flops import count_flops


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(("rows", "n_tokens", "n_logits"), [(7, 11, 5), (1, 2, 2), (3, 20, 20)])
def test_a_training_step(maker: str, rows: int, n_tokens: int, n_logits: int) -> None:
    model = MAKERS[maker]()
    ids = torch.ones(rows, n_tokens, dtype=torch.long)
    counted = count_flops(lambda: model(input_ids=ids, use_cache=False, logits_to_keep=n_logits).logits, backward=True)
    formula = TransformerFlops.measure(model)
    assert formula.step(rows, n_tokens, n_logits) == counted.total
    assert formula.forward(rows, n_tokens, None, n_logits) == counted.forward


@pytest.mark.parametrize("maker", MAKERS)
def test_a_step_with_a_cache(maker: str) -> None:
    model = MAKERS[maker]()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.ones(5, 9, dtype=torch.long), past_key_values=cache, use_cache=True)

        def step() -> Any:
            ids, mask = torch.ones(5, 1, dtype=torch.long), torch.ones(5, 10, dtype=torch.long)
            return model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True).logits

        counted = count_flops(step)
    assert TransformerFlops.measure(model).forward(5, 1, 10) == counted.forward


def test_a_frozen_model_has_no_backward_pass() -> None:
    model = MAKERS["llama"]()
    whole = transformer_flops(model)
    assert transformer_flops(model) is transformer_flops(MAKERS["llama"](seed=1)) is whole
    model.requires_grad_(False)
    assert transformer_flops(model).forward(2, 3) == whole.forward(2, 3)
    with pytest.raises(RematchError, match="not measured"):
        transformer_flops(model).step(2, 3)


def test_new_embeddings_are_noticed() -> None:
    model = MAKERS["gpt2"]()
    before = transformer_flops(model).forward(1, 4)
    model.resize_token_embeddings(64)
    assert transformer_flops(model).forward(1, 4) > before


def test_a_model_that_costs_something_else_is_refused() -> None:
    class Windowed(torch.nn.Module):
        """Costs more and more with every token."""

        config, device = MAKERS["llama"]().config, torch.device("cpu")

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4, 4))

        def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
            x = torch.ones(input_ids.shape[1], 4)
            for _ in range(2 ** input_ids.shape[1]):
                x = x @ self.weight
            return type("Output", (), {"logits": x})

    with pytest.raises(RematchError, match="no sum over tokens"):
        TransformerFlops.measure(Windowed())
