"""Counted FLOPs against formulas derived by hand, forward and backward, where torch's counter alone goes blind too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from baselines.mamba import install
from rematch.errors import RematchError
from rematch.flops import count_flops

BATCH, LENGTH = 2, 24


def _llama(attention: str) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    config._attn_implementation = attention
    return LlamaForCausalLM(config).eval()


def _llama_forward_flops() -> int:
    hidden, heads, key_heads, head, inner, vocabulary = 32, 4, 2, 8, 48, 40
    projections = 2 * hidden * (2 * heads * head + 2 * key_heads * head)
    attention = 2 * 2 * LENGTH * heads * head
    layer = projections + attention + 3 * 2 * hidden * inner
    return BATCH * LENGTH * (2 * layer + 2 * hidden * vocabulary)


def _ids() -> Tensor:
    return torch.randint(40, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))


def test_mlp() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    count = count_flops(model, torch.randn(5, 8), backward=True)
    first, second = 2 * 5 * 8 * 16, 2 * 5 * 16 * 4
    assert count.forward == first + second
    assert count.backward == first + 2 * second  # the input needs no gradient
    assert count.total == count.forward + count.backward


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention(attention: str) -> None:
    model = _llama(attention)
    count = count_flops(lambda: model(_ids(), use_cache=False).logits, backward=True)
    expected = _llama_forward_flops()
    assert count.forward == pytest.approx(expected, rel=0.02)
    # The embedding is looked up, not multiplied; every product but the first layer's is differentiated twice.
    assert count.backward == pytest.approx(2 * expected, rel=0.02)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_mode_does_not_matter(mode: type) -> None:
    model = _llama("sdpa")
    with mode():
        assert count_flops(lambda: model(_ids(), use_cache=False).logits).forward == pytest.approx(
            _llama_forward_flops(), rel=0.02
        )


def test_fused_encoder_layer() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    x = torch.randn(2, 10, 16)
    expected = 2 * 10 * (2 * 16 * 4 * 16 + 2 * 2 * 10 * 16 + 2 * 2 * 16 * 32)
    with torch.no_grad():
        assert count_flops(layer.eval(), x).forward == pytest.approx(expected, rel=0.02)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("groups", [1, 3, 12])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d])
def test_convolution(kind: type[nn.Conv1d] | type[nn.ConvTranspose1d], groups: int) -> None:
    """Groups of one channel: depthwise, where torch's own backward formula counts every pair of channels."""
    conv = kind(12, 12, 4, groups=groups)
    x = torch.randn(3, 12, 23, requires_grad=True)
    count = count_flops(conv, x, backward=True)
    positions = 20 if kind is nn.Conv1d else 23
    expected = 2 * 3 * positions * 12 * (12 // groups) * 4
    assert count.forward == expected
    assert count.backward == 2 * expected


def test_gru() -> None:
    gru = nn.GRU(8, 16, batch_first=True)
    x = torch.randn(3, 7, 8)
    expected = 2 * 3 * 7 * 3 * 16 * (8 + 16)
    count = count_flops(lambda: gru(x)[0], backward=True)
    assert count.forward == expected
    weights_of_inputs, states = 2 * 3 * 7 * 3 * 16 * 8, 2 * 3 * 7 * 3 * 16 * 16
    first_state = 2 * 3 * 3 * 16 * 16  # zero, but its gradient is not needed
    assert count.backward == pytest.approx(weights_of_inputs + 2 * states - first_state, rel=0.02)


def test_mamba_with_the_fast_scan() -> None:
    config = MambaConfig(vocab_size=40, hidden_size=32, state_size=8, num_hidden_layers=2, time_step_rank=4)
    model = install(MambaForCausalLM(config))
    inner, state, kernel, rank = 64, 8, 4, 4
    dense = 2 * 32 * 2 * inner + 2 * inner * (rank + 2 * state) + 2 * rank * inner + 2 * inner * 32
    block = dense + 2 * inner * kernel + 9 * inner * state
    expected = BATCH * LENGTH * (2 * block + 2 * 32 * 40)
    count = count_flops(lambda: model(_ids(), use_cache=False).logits, backward=True)
    assert count.forward == pytest.approx(expected, rel=0.02)
    assert count.backward == pytest.approx(2 * expected, rel=0.02)


def test_products_with_a_vector() -> None:
    matrix, vector = torch.randn(4, 6), torch.randn(6)
    assert count_flops(torch.mv, matrix, vector).forward == 48
    assert count_flops(torch.dot, vector, vector).forward == 12
    assert count_flops(lambda: matrix @ vector).forward == 48
    assert count_flops(torch.addmv, torch.zeros(4), matrix, vector).forward == 48


def test_a_custom_operator_needs_a_formula() -> None:
    @torch.library.custom_op("rematch_test::cube", mutates_args=())
    def cube(x: Tensor) -> Tensor:
        return x @ x @ x

    with pytest.raises(RematchError, match=r"rematch_test\.cube"):
        count_flops(cube, torch.eye(3))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_lstm(mode: type) -> None:
    with mode():
        assert count_flops(nn.LSTM(4, 5), torch.randn(3, 2, 4)).forward == 2 * 3 * 2 * 4 * 5 * (4 + 5)


def test_work_without_a_formula_is_refused_not_counted_as_nothing() -> None:
    with pytest.raises(RematchError, match="no formula"):
        count_flops(torch.linalg.qr, torch.randn(4, 4))


def test_nothing_is_left_behind() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    before = torch.random.get_rng_state()
    count_flops(lambda: model(torch.randn(2, 4)).square().mean(), backward=True)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_shared_leaf_is_differentiated_once() -> None:
    weight = torch.randn(4, 4, requires_grad=True)
    count = count_flops(lambda: F.linear(F.linear(torch.randn(3, 4), weight), weight), backward=True)
    assert count.backward == 3 * 2 * 3 * 4 * 4


def test_nothing_to_differentiate() -> None:
    with pytest.raises(RematchError, match="requires grad"):
        count_flops(lambda: torch.ones(2), backward=True)
