"""A dense model's predictions are transformers' own, whatever the architecture and the padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from baselines.dense import Dense
from rematch.flops import count_flops

VOCABULARY = 31


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


def mamba() -> MambaForCausalLM:
    return MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=2))


def mamba2() -> Mamba2ForCausalLM:
    config = Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        state_size=4,
        num_heads=4,
        head_dim=8,
        n_groups=2,
        chunk_size=8,
        num_hidden_layers=2,
    )
    return Mamba2ForCausalLM(config)


@pytest.fixture(scope="module", params=[llama, mamba, mamba2])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return request.param().eval()


def ids(length: int = 21) -> Tensor:
    return torch.randint(1, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_it_predicts_as_transformers_does(model: Any) -> None:
    dense = Dense()
    dense.prepare(model)
    expected = model(ids(), use_cache=False).logits[:, -7:-1]
    actual = dense.logits(ids(), 6)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    assert dense.keep_counts(15) == [15, 15]


@torch.no_grad()
def test_padding_changes_nothing(model: Any) -> None:
    dense = Dense()
    dense.prepare(model)
    short = ids()[:, 8:]
    padded = torch.cat([torch.zeros(2, 8, dtype=torch.long), short], dim=1)
    mask = (torch.arange(21) >= 8).long().expand(2, -1)
    torch.testing.assert_close(dense.logits(padded, 6, mask), dense.logits(short, 6), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_head_is_computed_for_the_predictions_only(model: Any) -> None:
    dense = Dense()
    dense.prepare(model)

    def flops(n_continuation: int) -> int:
        return count_flops(lambda: dense.logits(ids(), n_continuation)).total

    assert flops(7) - flops(3) == 2 * 4 * 2 * 16 * VOCABULARY


def test_the_loss_is_the_mean_cross_entropy(model: Any) -> None:
    dense = Dense()
    dense.prepare(model)
    loss = dense.loss(ids(), 6)
    assert loss.requires_grad
    log = dense.logits(ids(), 6).log_softmax(-1)
    torch.testing.assert_close(loss, -log.gather(-1, ids()[:, -6:, None]).mean())
