"""Token reduction: who goes, into whom, and that the budget is met."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from baselines.dense import Dense
from baselines.pruning import Tokens
from baselines.token_reduction import TokenReduction, _match, _reduce
from rematch.flops import count_flops


@pytest.fixture(scope="module")
def model() -> MambaForCausalLM:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=31, hidden_size=16, state_size=4, num_hidden_layers=6)
    return MambaForCausalLM(config).eval()


def ids(batch: int = 3, length: int = 48) -> Tensor:
    return torch.randint(1, 31, (batch, length), generator=torch.Generator().manual_seed(length))


def flops(contender: TokenReduction | Dense) -> float:
    with torch.no_grad():
        return count_flops(lambda: contender.logits(ids(1), 6)).total


# Importance is the mean of the positive part. The less important half: columns 1, 3, 4; of the others, 0 and 2 count.
BRANCH = torch.tensor([[9.0, 0.0], [1.0, 0.1], [0.0, 8.0], [0.5, 0.5], [-50.0, 2.0], [0.0, 0.0]])


def test_the_least_important_go_to_the_most_similar() -> None:
    gone, partner = _match(BRANCH, 2)
    # Cosines with their partners: column 1 with 0 is 0.995, 3 with 0 is 0.707 (as with 2: the earlier), 4 with 2 is 0.04.
    assert dict(zip(gone.tolist(), partner.tolist(), strict=True)) == {1: 0, 3: 0}


def test_the_last_one_never_goes() -> None:
    gone, _ = _match(torch.zeros(6, 2), 3)
    assert gone.tolist() == [0, 1, 2]


def test_outputs_are_averaged_and_residuals_dropped() -> None:
    residual = torch.arange(1.0, 7.0)[None, :, None].expand(1, 6, 2) * 1000
    tokens = Tokens(residual + BRANCH, torch.arange(6)[None], None, 0)
    after = _reduce(tokens, BRANCH[None], [4])
    assert after.positions.tolist() == [[0, 2, 4, 5]]
    mean = (BRANCH[0] + BRANCH[1] + BRANCH[3]) / 3
    expected = residual[0, [0, 2, 4, 5]] + torch.stack([mean, BRANCH[2], BRANCH[4], BRANCH[5]])
    torch.testing.assert_close(after.hidden[0], expected)


@torch.no_grad()
def test_removing_nothing_is_the_dense_model(model: MambaForCausalLM) -> None:
    dense, reduced = Dense(), TokenReduction(ratio=0.0)
    dense.prepare(model)
    reduced.prepare(model)
    assert torch.equal(reduced.logits(ids(), 6), dense.logits(ids(), 6))


@torch.no_grad()
def test_padding_and_neighbours_change_nothing(model: MambaForCausalLM) -> None:
    reduced = TokenReduction(ratio=0.3)
    reduced.prepare(model)
    lengths = [48, 20, 33]
    padded = torch.zeros(3, 50, dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, length in enumerate(lengths):
        padded[row, -length:] = ids(1, length)[0]
        mask[row, -length:] = 1
    logits = reduced.logits(padded, 6, mask)
    for row, length in enumerate(lengths):
        alone = reduced.logits(ids(1, length), 6)
        torch.testing.assert_close(logits[row : row + 1], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_no_prediction_sees_what_it_predicts(model: MambaForCausalLM) -> None:
    reduced = TokenReduction(ratio=0.4)
    reduced.prepare(model)
    before = reduced.logits(ids(), 6)
    for target in range(6):
        other = ids()
        other[:, 42 + target :] = 1 + other[:, 42 + target :] % 30
        after = reduced.logits(other, 6)
        torch.testing.assert_close(after[:, : target + 1], before[:, : target + 1])


@pytest.mark.parametrize("share", [1.0, 0.8, 0.6, 0.48])
def test_a_target_is_met(model: MambaForCausalLM, share: float) -> None:
    dense, reduced = Dense(), TokenReduction(n_sites=2)
    dense.prepare(model)
    reduced.prepare(model, share * flops(dense), flops)
    assert flops(reduced) == pytest.approx(share * flops(dense), rel=0.02)
    if share < 0.55:  # two sites leave more than that
        assert reduced.n_sites > 2
    counts = reduced.keep_counts(42)
    assert counts == sorted(counts, reverse=True)


def test_options_that_make_no_sense(model: MambaForCausalLM) -> None:
    with pytest.raises(ValueError, match="ratio"):
        TokenReduction(ratio=0.6)
    with pytest.raises(ValueError, match="n_sites"):
        TokenReduction(n_sites=0)
    with pytest.raises(ValueError, match="at most 5"):
        TokenReduction(n_sites=6).prepare(model)
