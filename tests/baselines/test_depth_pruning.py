"""Depth pruning: the lower layers alone, at the depth nearest to the target."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from baselines.dense import Dense
from baselines.depth_pruning import DepthPruned
from rematch.flops import count_flops


@pytest.fixture(scope="module")
def model() -> MambaForCausalLM:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=31, hidden_size=16, state_size=4, num_hidden_layers=6)
    return MambaForCausalLM(config).eval()


def ids() -> Tensor:
    return torch.randint(31, (2, 20), generator=torch.Generator().manual_seed(0))


def flops(contender: DepthPruned | Dense) -> float:
    with torch.no_grad():
        return count_flops(lambda: contender.logits(ids(), 5)).total


@torch.no_grad()
def test_it_is_the_model_that_has_only_the_lower_layers(model: MambaForCausalLM) -> None:
    config = MambaConfig(vocab_size=31, hidden_size=16, state_size=4, num_hidden_layers=2)
    shallow = MambaForCausalLM(config).eval()
    shallow.load_state_dict(model.state_dict(), strict=False)
    dense, pruned = Dense(), DepthPruned(n_layers=2)
    dense.prepare(shallow)
    pruned.prepare(model)
    assert torch.equal(pruned.logits(ids(), 5), dense.logits(ids(), 5))
    assert pruned.keep_counts(15) == [15, 15, 0, 0, 0, 0]
    assert len(model.backbone.layers) == 6


def test_all_layers_are_the_dense_model(model: MambaForCausalLM) -> None:
    dense, pruned = Dense(), DepthPruned()
    dense.prepare(model)
    pruned.prepare(model)
    with torch.no_grad():
        assert torch.equal(pruned.logits(ids(), 5), dense.logits(ids(), 5))
    assert pruned.notes() == {"n_layers": 6}


@pytest.mark.parametrize(
    ("n_layers", "off"), [(1, 1.0), (1, 1.04), (3, 0.96), (3, 1.0), (3, 1.04), (5, 0.96), (6, 0.96), (6, 1.0)]
)
def test_the_nearest_depth(model: MambaForCausalLM, n_layers: int, off: float) -> None:
    wanted = DepthPruned(n_layers=n_layers)
    wanted.prepare(model)
    pruned = DepthPruned()
    pruned.prepare(model, off * flops(wanted), flops)
    assert pruned.n_layers == n_layers


def test_what_it_refuses(model: MambaForCausalLM) -> None:
    with pytest.raises(ValueError, match="1 to 6"):
        DepthPruned(n_layers=7).prepare(model)
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=31, hidden_size=32, intermediate_size=8, num_hidden_layers=1))
    with pytest.raises(ValueError, match="MambaForCausalLM"):
        DepthPruned().prepare(llama)
