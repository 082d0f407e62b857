"""Which tokens stay, in which order, and the criteria that look at one block or at none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from baselines import pruning
from baselines.mamba import Trace
from baselines.pruning import Tokens


def tokens(batch: int, width: int, n_protected: int = 0, padding: list[int] | None = None) -> Tokens:
    """Tokens whose stream holds their own position, so that it can be traced."""
    length = width + n_protected
    positions = torch.arange(length).expand(batch, -1)
    mask = None if padding is None else positions >= torch.tensor(padding)[:, None]
    return Tokens(positions[:, :, None].repeat(1, 1, 2).float(), positions, mask, n_protected)


def test_the_best_stay_and_the_last_always_does() -> None:
    scores = torch.tensor([[5.0, 1.0, 4.0, 3.0, 0.0], [0.0, 1.0, 2.0, 3.0, 4.0]])
    kept = pruning.keep_top(scores, [3, 2])
    assert kept.tolist() == [[True, False, True, False, True], [False, False, False, True, True]]


@pytest.mark.parametrize("width", [3, 20, 400])
def test_ties_go_to_the_earlier(width: int) -> None:
    kept = pruning.keep_top(torch.zeros(1, width), [width // 2 + 1])
    assert kept[0].nonzero().flatten().tolist() == [*range(width // 2), width - 1]


def test_infinite_and_missing_scores_displace_neither_the_last_nor_real_tokens() -> None:
    scores = torch.tensor([[torch.inf, torch.inf, -torch.inf, torch.nan, -torch.inf]])
    assert pruning.keep_top(scores, [1]).tolist() == [[False, False, False, False, True]]
    mask = torch.tensor([[False, False, True, True, True]])
    assert pruning.keep_top(scores, [3], mask).tolist() == mask.tolist()


def test_scores_are_left_alone() -> None:
    scores = torch.zeros(1, 4)
    pruning.keep_top(scores, [2])
    assert torch.all(scores == 0)


def test_kept_tokens_stay_in_order_and_before_the_protected() -> None:
    kept = torch.tensor([[True, False, True, False, True], [False, True, False, True, True]])
    after = tokens(2, 5, n_protected=2).keep(kept, [3, 3])
    assert after.positions.tolist() == [[0, 2, 4, 5, 6], [1, 3, 4, 5, 6]]
    assert torch.equal(after.hidden[:, :, 0].long(), after.positions)
    assert after.mask is None
    assert after.width == 3


def test_the_shorter_row_is_padded_on_the_left() -> None:
    kept = torch.tensor([[True, True, True, True], [False, False, True, True]])
    after = tokens(2, 4, n_protected=1, padding=[0, 2]).keep(kept, [4, 2])
    assert after.mask is not None
    assert after.mask.tolist() == [[True] * 5, [False, False, True, True, True]]
    assert after.positions[1, 2:].tolist() == [2, 3, 4]
    for row in after.positions:
        assert len(set(row.tolist())) == len(row)


@pytest.mark.parametrize("seed", range(5))
def test_putting_back_what_was_kept(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    padding = [0, 4, 2]
    before = tokens(3, 12, n_protected=2, padding=padding)
    counts = [6, 3, 5]
    kept = pruning.keep_top(torch.rand(3, 12, generator=draw), counts, before.context_mask)
    after = before.keep(kept, counts)
    changed = Tokens(after.hidden + 100, after.positions, after.mask, 2)
    result = before.put(changed).hidden[:, :, 0]
    always = torch.ones(3, 2, dtype=torch.bool)
    expected = before.hidden[:, :, 0] + 100 * torch.cat([kept, always], 1)
    torch.testing.assert_close(result, expected)


def test_merging_into_the_next_kept_neighbour() -> None:
    before = tokens(2, 5, n_protected=1, padding=[0, 1])
    kept = torch.tensor([[False, True, False, False, True], [False, False, True, False, True]])
    merged = pruning.merge_into_next(before, kept)[:, :, 0]
    assert merged[0, [1, 4, 5]].tolist() == [1 + 0, 4 + 2 + 3, 5]
    assert merged[1, [2, 4, 5]].tolist() == [2 + 1, 4 + 3, 5]  # column 0 is padding


def random_trace(batch: int = 2, length: int = 7, channels: int = 6, state: int = 3) -> Trace:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    dt = normal(batch, length, channels).exp()
    B, C = normal(batch, length, state), normal(batch, length, state)
    x, z = normal(batch, length, channels), normal(batch, length, channels)
    return Trace(x, dt, -normal(channels, state).exp(), B, C, z)


def test_local_impact_is_what_a_token_adds_to_its_own_output() -> None:
    trace = random_trace()
    local = pruning.local_impact(trace)
    for b, t, e in ((0, 0, 0), (1, 6, 5), (1, 3, 2)):
        term = float((trace.C[b, t] * trace.B[b, t]).sum() * trace.dt[b, t, e] * trace.x[b, t, e])
        assert float(local[b, t, e]) == pytest.approx(term, rel=1e-5)


def test_norms_and_steps() -> None:
    trace = random_trace()
    torch.testing.assert_close(pruning.step_size(trace), trace.dt.mean(-1))
    torch.testing.assert_close(pruning.input_norm(trace), trace.x.square().sum(-1).sqrt())


def test_a_trace_is_cut_in_time_only() -> None:
    trace = random_trace()
    cut = pruning.first(trace, 4)
    assert {tensor.shape[1] for name, tensor in cut._asdict().items() if name != "A"} == {4}
    assert cut.A is trace.A


def test_random_scores_depend_on_the_row_and_the_seed_alone() -> None:
    ids = torch.arange(24).view(2, 12)
    scores = pruning.random_scores(ids, None, seed=3)
    assert torch.equal(pruning.random_scores(ids.flip(0), None, seed=3), scores.flip(0))
    assert torch.equal(pruning.random_scores(ids[1:], None, seed=3), scores[1:])
    assert not torch.equal(scores[0], scores[1])
    assert not torch.equal(pruning.random_scores(ids, None, seed=4), scores)
    mask = torch.arange(12).expand(2, -1) >= torch.tensor([[0], [5]])
    padded = pruning.random_scores(ids, mask, seed=3)
    assert torch.equal(padded[0], scores[0])
    assert torch.equal(padded[1, 5:], pruning.random_scores(ids[1:, 5:], None, seed=3)[0])
