"""The Mamba-2 block against transformers' own, in one piece and in segments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from baselines.mamba2 import mixer_forward


@pytest.fixture(params=[False, True], ids=["no bias", "bias"])
def mixer(request: pytest.FixtureRequest) -> Mamba2Mixer:
    torch.manual_seed(0)
    config = Mamba2Config(
        hidden_size=16, state_size=4, num_heads=4, head_dim=8, n_groups=2, chunk_size=8, use_bias=request.param
    )
    made = Mamba2Mixer(config, 0).eval()
    for bias in (made.conv1d.bias, made.in_proj.bias, made.out_proj.bias):
        if bias is not None:
            torch.nn.init.normal_(bias)
    return made


def hidden(length: int) -> Tensor:
    return torch.randn(2, length, 16, generator=torch.Generator().manual_seed(length))


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 8, 21])
def test_it_is_transformers_block(mixer: Mamba2Mixer, length: int) -> None:
    result = mixer_forward(mixer, hidden(length))
    torch.testing.assert_close(result.out, mixer(hidden(length)), atol=1e-5, rtol=1e-4)
    assert result.trace.x.shape == (2, length, 32)
    assert result.trace.dt.shape == (2, length, 4)
    assert result.trace.B.shape == result.trace.C.shape == (2, length, 2, 4)


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 2, 13, 20])
def test_segments_continue_each_other(mixer: Mamba2Mixer, cut: int) -> None:
    whole = mixer_forward(mixer, hidden(21))
    head = mixer_forward(mixer, hidden(21)[:, :cut])
    tail = mixer_forward(mixer, hidden(21)[:, cut:], None, head.conv_state, head.ssm_state)
    torch.testing.assert_close(torch.cat([head.out, tail.out], 1), whole.out, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tail.ssm_state, whole.ssm_state, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tail.conv_state, whole.conv_state)


@torch.no_grad()
def test_padding_on_the_left_influences_nothing(mixer: Mamba2Mixer) -> None:
    padded = torch.cat([torch.full((2, 5, 16), 3.0), hidden(12)], dim=1)
    mask = (torch.arange(17) >= 5).expand(2, -1)
    result, alone = mixer_forward(mixer, padded, mask), mixer_forward(mixer, hidden(12))
    torch.testing.assert_close(result.out[:, 5:], alone.out, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(result.ssm_state, alone.ssm_state, atol=1e-5, rtol=1e-4)
    for tensor in (result.trace.x, result.trace.dt, result.trace.B, result.trace.C):
        assert torch.all(tensor[:, :5] == 0)
