"""One pass where two would do: what is encoded, what cancels, and the losses against their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny_revise import MAKERS, TableModel
from torch import Tensor

from baselines.post_training.batches import Example, Pair, collate, encode_example, encode_pair, shape_of
from baselines.post_training.objectives import (
    DPOObjective,
    SFTObjective,
    Totals,
    dpo_loss,
    log_likelihoods,
    reference_margins,
)
from baselines.post_training.training import batch_loss
from baselines.transformer_flops import transformer_flops
from rematch.errors import RematchError

EXAMPLES = [Example((4, 5), (6, 7, 1)), Example((), (4, 5, 0, 1)), Example((9, 8, 7, 6), (1,))]
GRADIENT_TOLERANCE = {"gpt2": 1e-10, "llama": 1e-6}
"""Llama's norms are computed in float32 whatever its weights are."""
PAIRS = [
    Pair((4, 5), (8, 9, 1), (8, 9, 2)),  # differ in the last token: one pass
    Pair((4, 5, 8), (2, 9, 10, 1), (1,)),  # the rejected one ends where they part: one pass
    Pair((4, 5), (8, 1), (8, 2, 1)),  # the chosen one does: one pass
    Pair((4,), (8, 9, 1), (8, 10, 11, 1)),  # neither does: two passes
    Pair((4,), (8, 1), (9, 10, 1)),
]


def log_prob(model: Any, context: tuple[int, ...], target: tuple[int, ...]) -> Tensor:
    """By definition, in a pass of its own: log M(token) of all tokens of the target, or all but the first of all."""
    whole = torch.tensor([[*context, *target]])
    log_probs = torch.log_softmax(model(input_ids=whole).logits[0], -1)
    first = max(1, len(context))
    return torch.stack([log_probs[i - 1, whole[0, i]] for i in range(first, whole.shape[1])])


def test_passes() -> None:
    assert [pair.takes_one_pass for pair in PAIRS] == [True, True, True, False, False]
    assert [len(encode_pair(pair).sequences) for pair in PAIRS] == [1, 1, 1, 2, 2]
    assert encode_pair(PAIRS[1]).sequences == ((4, 5, 8, 2, 9, 10),)
    assert encode_pair(PAIRS[2]).sequences == ((4, 5, 8, 2),)


@pytest.mark.parametrize("maker", MAKERS)
def test_margins_and_likelihoods(maker: str) -> None:
    model = MAKERS[maker](double=True)
    margins, _ = reference_margins(model, PAIRS, batch_size=2)
    expected = [
        (log_prob(model, p.context, p.chosen).sum() - log_prob(model, p.context, p.rejected).sum()).item()
        for p in PAIRS
    ]
    assert margins.tolist() == pytest.approx(expected, abs=1e-10)
    likelihoods, _ = log_likelihoods(model, EXAMPLES, batch_size=2)
    assert likelihoods.tolist() == pytest.approx(
        [log_prob(model, e.context, e.target).sum().item() for e in EXAMPLES], abs=1e-10
    )


def test_the_cost_of_reading() -> None:
    model = MAKERS["llama"](double=True)
    _, flops = reference_margins(model, PAIRS[:1])
    assert flops == transformer_flops(model).forward(1, 4, None, 1)
    assert shape_of([encode_pair(PAIRS[0])]) == (1, 4, 1)  # of ŷ nothing is read: it cancels
    assert shape_of([encode_pair(PAIRS[0], lambda ids: [True] * len(ids))]) == (1, 4, 3)
    assert shape_of([encode_pair(pair) for pair in PAIRS]) == (7, 6, 6)


@pytest.mark.parametrize("maker", MAKERS)
def test_losses_are_their_definitions(maker: str) -> None:
    model, reference = MAKERS[maker](double=True), MAKERS[maker](seed=1, double=True)
    parameters = list(model.parameters())

    def gradients(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, parameters))

    sft = SFTObjective(EXAMPLES)
    tokens = torch.cat([log_prob(model, *example) for example in EXAMPLES])
    expected: Tensor = -tokens.mean()
    found = batch_loss(model, sft, collate(sft.rows), range(3), Totals(3, len(tokens)))
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    for one, other in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=GRADIENT_TOLERANCE[maker])

    dpo = DPOObjective(PAIRS, reference_margins(reference, PAIRS)[0], beta=0.3)
    rewards = [
        [
            0.3 * (log_prob(model, p.context, ids).sum() - log_prob(reference, p.context, ids).sum().detach())
            for ids in (p.chosen, p.rejected)
        ]
        for p in PAIRS
    ]
    expected = -torch.stack([torch.nn.functional.logsigmoid(chosen - rejected) for chosen, rejected in rewards]).mean()
    found = batch_loss(model, dpo, collate(dpo.rows), range(5), Totals(5, 0))
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    for one, other in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=GRADIENT_TOLERANCE[maker])


def test_what_is_shared_gets_exactly_no_gradient() -> None:
    pair = Pair((4, 5), (8, 9, 10, 1), (8, 9, 11, 2, 1))
    dpo = DPOObjective([pair], torch.zeros(1))
    model = TableModel(2, 6)
    batch_loss(model, dpo, collate(dpo.rows), [0], Totals(1, 0)).backward()
    assert model.logits.grad is not None
    touched = model.logits.grad.abs().sum(-1) > 0
    assert touched.tolist() == [[False] * 3 + [True, True, False], [False] * 3 + [True, True, True]]


def test_padding_is_not_read() -> None:
    """A token with the id of the padding counts, padding itself does not; zeros are tokens like any other."""
    batch = collate([encode_example(example) for example in EXAMPLES])
    assert batch.n_tokens == 4 + 3 + 4
    assert batch.n_counted == 3 + 3 + 1
    assert 0 in batch.token.tolist()
    single = collate([encode_example(EXAMPLES[2])])
    assert single.token.tolist() == [1]
    model = MAKERS["llama"](double=True)
    alone = [log_likelihoods(model, [example])[0].item() for example in EXAMPLES]
    assert log_likelihoods(model, EXAMPLES)[0].tolist() == pytest.approx(alone, abs=1e-10)


def test_equal_margins_are_ln_2() -> None:
    margins = torch.randn(9)
    assert dpo_loss(margins, margins, 0.1, 9).item() == pytest.approx(math.log(2))
    assert dpo_loss(torch.tensor([4.0]), torch.zeros(1), 0.1, 1).item() == pytest.approx(0.513015, abs=1e-6)
    assert np.isfinite(dpo_loss(torch.tensor([-1e6]), torch.zeros(1), 1.0, 1).item())


@pytest.mark.parametrize(
    "pair",
    [
        Pair((), (4,), (5,)),
        Pair((3,), (4,), (4,)),
        Pair((3,), (4, 5), (4,)),
        Pair((3,), (4,), (4, 5)),
        Pair((3,), (), (4,)),
    ],
)
def test_impossible_pairs(pair: Pair) -> None:
    with pytest.raises(RematchError, match="a pair needs a context and two continuations"):
        encode_pair(pair)


@pytest.mark.parametrize("example", [Example((4, 5), ()), Example((), (4,)), Example((), ())])
def test_impossible_examples(example: Example) -> None:
    with pytest.raises(RematchError, match="an example needs a target"):
        encode_example(example)


def test_beta_is_positive() -> None:
    with pytest.raises(RematchError, match="beta must be positive"):
        DPOObjective(PAIRS, torch.zeros(5), 0.0)
