"""The loss against its definition, its limits, its masks; the same loss by TRL's trainer."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_revise import END, MAKERS, REFINE, TableModel, gpt2, llama, problem
from torch import Tensor
from torch.nn import functional as F

from baselines.post_training.batches import Batch, Ids, Pair, collate
from baselines.post_training.objectives import Totals, reference_margins
from baselines.post_training.training import Recipe, batch_loss
from methods.revise.attempts import Row
from methods.revise.loss import OFFICIAL, SFT_ONLY, TEXT, LossWeights, ReviseObjective, sft_mask
from methods.revise.preferences import StageName, preference_pairs
from methods.revise.tokens import Tokens
from rematch.errors import RematchError

TOKENS = Tokens(END, REFINE)
PROBLEMS = [problem(1, 3), problem(2, 5), problem(0, 4)]
ROWS = [
    Row(0, (9, 7, 12), True), Row(1, (10, 7, 9), False), Row(2, (0, 7), False), Row(1, (10, 7, 0, 15), True),
    Row(2, (8, 8, 8, 8, 7), True),
]  # fmt: skip
CASES = list(product(("verify", "correct"), (False, True)))


def pairs_of(stage: StageName, eos_after_refine: bool = False) -> list[Pair]:
    return preference_pairs(ROWS, PROBLEMS, stage, TOKENS, eos_after_refine)


def whole_loss(model: Any, pairs: list[Pair], reference: Tensor | None, weights: LossWeights) -> Tensor:
    objective = ReviseObjective(pairs, reference, REFINE, weights)
    batch = collate(objective.rows)
    return batch_loss(model, objective, batch, range(len(pairs)), Totals(len(pairs), batch.n_counted))


def defined_loss(model: Any, reference: Any, pairs: list[Pair], weights: LossWeights, beta: float = 0.1) -> Tensor:
    """The formulas of the paper, word by word: every continuation in a pass of its own, for policy and reference."""

    def log_probs(lm: Any, context: Ids, continuation: Ids) -> Tensor:
        ids = torch.tensor([[*context, *continuation]])
        found = torch.log_softmax(lm(input_ids=ids, use_cache=False).logits[0, len(context) - 1 : -1], -1)
        return found.gather(1, ids[0, len(context) :, None])[:, 0]

    preferences, counted = [], []
    for context, chosen, rejected in pairs:
        of_chosen, of_rejected = log_probs(model, context, chosen), log_probs(model, context, rejected)
        with torch.no_grad():
            frozen_chosen = log_probs(reference, context, chosen).sum()
            frozen_rejected = log_probs(reference, context, rejected).sum()
        r_chosen = beta * (of_chosen.sum() - frozen_chosen)
        r_rejected = beta * (of_rejected.sum() - frozen_rejected)
        preferences.append(-F.logsigmoid(r_chosen - r_rejected))
        start = len(chosen) - 1 - chosen[::-1].index(REFINE) if REFINE in chosen else 0
        counted.append(of_chosen[start:])
    return weights.preference * torch.stack(preferences).mean() - weights.sft * torch.cat(counted).mean()


@pytest.mark.parametrize(("stage", "eos_after_refine"), CASES)
@pytest.mark.parametrize("weights", [OFFICIAL, TEXT])
@pytest.mark.parametrize("maker", MAKERS)
def test_one_forward_is_two_forwards(
    stage: StageName, eos_after_refine: bool, weights: LossWeights, maker: str
) -> None:
    model, reference = MAKERS[maker](double=True), MAKERS[maker](seed=1, double=True)
    pairs = pairs_of(stage, eos_after_refine)
    margins, _ = reference_margins(reference, pairs)
    expected, found = defined_loss(model, reference, pairs, weights), whole_loss(model, pairs, margins, weights)
    assert found.item() == pytest.approx(expected.item(), abs=1e-10)
    parameters = list(model.parameters())
    tolerance = {"gpt2": 1e-10, "llama": 1e-6}[maker]  # Llama's norms are computed in float32
    for one, other in zip(
        torch.autograd.grad(found, parameters, allow_unused=True),
        torch.autograd.grad(expected, parameters, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
    assert all(p.grad is None for p in reference.parameters())


def test_wrong_attempts_in_the_continuation_are_the_same_loss() -> None:
    """The official code's form of a row: mask and cancellation leave nothing of the wrong attempt."""
    model, reference = gpt2(double=True), gpt2(seed=1, double=True)
    pairs = pairs_of("correct")
    moved = [
        pair if row.right else Pair(PROBLEMS[row.question].prompt, row.ids + pair.chosen, row.ids + pair.rejected)
        for row, pair in zip(ROWS, pairs, strict=True)
    ]
    losses = [whole_loss(model, p, reference_margins(reference, p)[0], OFFICIAL).item() for p in (pairs, moved)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)


@pytest.mark.parametrize("stage", ["verify", "correct"])
def test_ln_2(stage: StageName) -> None:
    model = llama(double=True)
    pairs = pairs_of(stage)
    margins, _ = reference_margins(model, pairs)
    preference = whole_loss(model, pairs, margins, LossWeights(1.0, 0.0)).item()
    sft = whole_loss(model, pairs, margins, LossWeights(0.0, 1.0)).item()
    assert preference == pytest.approx(math.log(2), abs=1e-12)
    assert whole_loss(model, pairs, margins, OFFICIAL).item() == pytest.approx(0.693147 + 0.1 * sft, abs=1e-6)
    assert whole_loss(model, pairs, margins, TEXT).item() == pytest.approx(0.0693147 + sft, abs=1e-6)
    assert whole_loss(model, pairs, None, SFT_ONLY).item() == pytest.approx(sft, abs=1e-12)


def test_a_difference_of_four() -> None:
    objective = ReviseObjective([Pair((4,), (END,), (REFINE,))], torch.tensor([-4.0]), REFINE, LossWeights(1.0, 0.0))
    batch = collate(objective.rows)
    log_probs = torch.tensor([-0.5, -0.5])
    assert objective.loss(log_probs, batch, torch.tensor([0]), Totals(1, 1)).item() == pytest.approx(0.513015, abs=1e-6)


# -- what is looked at ------------------------------------------------------------------------------------------------


def gradient(pairs: list[Pair], weights: LossWeights) -> tuple[list[list[bool]], Batch]:
    """Which positions of a table of logits have any gradient: (sequence, position)."""
    batch = collate(ReviseObjective(pairs, torch.zeros(len(pairs)), REFINE, weights).rows)
    model = TableModel(*batch.input_ids.shape)
    whole_loss(model, pairs, torch.zeros(len(pairs)), weights).backward()
    assert model.logits.grad is not None
    return (model.logits.grad != 0).any(-1).tolist(), batch


@pytest.mark.parametrize(("stage", "eos_after_refine"), CASES)
def test_the_preference_looks_at_nothing_inside_an_attempt(stage: StageName, eos_after_refine: bool) -> None:
    pairs = pairs_of(stage, eos_after_refine)
    looked, batch = gradient(pairs, LossWeights(1.0, 0.0))
    for i, (row, pair) in enumerate(zip(ROWS, pairs, strict=True)):
        end_of_attempt = len(PROBLEMS[row.question].prompt) + len(row.ids) - 1
        last = max(len(pair.context) + len(c) - 2 for c in (pair.chosen, pair.rejected))
        expected = [end_of_attempt <= place <= last for place in range(batch.input_ids.shape[1])]
        assert looked[i] == expected


@pytest.mark.parametrize(("stage", "eos_after_refine"), CASES)
def test_nothing_is_learned_from_wrong_text(stage: StageName, eos_after_refine: bool) -> None:
    pairs = pairs_of(stage, eos_after_refine)
    looked, batch = gradient(pairs, SFT_ONLY)
    for i, (row, pair) in enumerate(zip(ROWS, pairs, strict=True)):
        start = len(pair.context) - 1
        expected = [start <= place < start + len(pair.chosen) for place in range(batch.input_ids.shape[1])]
        assert looked[i] == expected
        if not row.right:
            assert start == len(PROBLEMS[row.question].prompt) + len(row.ids) - 1


@pytest.mark.parametrize(
    ("chosen", "counted"),
    [
        ((11, 12, REFINE, 13, 14, END), (REFINE, 13, 14, END)),
        ((11, 12, END), (11, 12, END)),
        ((11, REFINE, 12, REFINE, 13, END), (REFINE, 13, END)),
        ((REFINE,), (REFINE,)),
        ((11, 0, END), (11, 0, END)),  # id 0 is a token like any other, unlike in the official code
    ],
)
def test_counted_tokens(chosen: Ids, counted: Ids) -> None:
    assert tuple(token for token, kept in zip(chosen, sft_mask(chosen, REFINE), strict=True) if kept) == counted
    longer = Pair((8,) * 9, (REFINE, 7, END), (END,))
    batch = collate(ReviseObjective([Pair((8, 8), chosen, (15,)), longer], torch.zeros(2), REFINE).rows)
    assert tuple(batch.token[batch.counted & (batch.row == 0)].tolist()) == counted  # padding is not


def test_tokens_are_averaged_not_rows() -> None:
    right, wrong = Pair((8,), (9, 7, END), (9, 7, REFINE)), Pair((8, 9), (REFINE,), (END,))
    objective = ReviseObjective([right, wrong], None, REFINE, SFT_ONLY)
    batch = collate(objective.rows)
    log_probs = torch.where(batch.row == 0, -1.0, -3.0)
    assert objective.loss(log_probs, batch, torch.tensor([0, 1]), Totals(2, batch.n_counted)).item() == 1.5


# -- the fixed point --------------------------------------------------------------------------------------------------


class TwoActions(torch.nn.Module):
    """One context, two tokens, one parameter: the log-odds of E against R."""

    def __init__(self, log_odds: float) -> None:
        super().__init__()
        self.log_odds = torch.nn.Parameter(torch.tensor(log_odds, dtype=torch.float64))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool, logits_to_keep: int) -> Any:
        logits = torch.full((*input_ids.shape, REFINE + 1), -torch.inf, dtype=torch.float64)
        logits[..., END], logits[..., REFINE] = self.log_odds, 0.0
        return type("Output", (), {"logits": logits[:, -logits_to_keep:]})


def fixed_point(n_right: int, weights: LossWeights, reference: float, rate: float, n_rows: int = 100) -> float:
    rows = [Row(0, (), i < n_right) for i in range(n_rows)]
    pairs = preference_pairs(rows, PROBLEMS, "verify", TOKENS)
    margins = torch.tensor([reference if row.right else -reference for row in rows])
    model, objective = TwoActions(reference), ReviseObjective(pairs, margins, REFINE, weights)
    batch = collate(objective.rows)
    totals = Totals(n_rows, batch.n_counted)
    for _ in range(100):
        loss = batch_loss(model, objective, batch, range(n_rows), totals)
        (slope,) = torch.autograd.grad(loss, [model.log_odds])
        model.log_odds.data -= rate * slope
    return model.log_odds.item()


def test_the_two_action_fixed_point() -> None:
    preference_only = LossWeights(1.0, 0.0)
    assert fixed_point(60, preference_only, 8.0, 300.0) == pytest.approx(12.0547, abs=1e-3)
    assert fixed_point(60, SFT_ONLY, 8.0, 3.0) == pytest.approx(0.405465, abs=1e-3)
    # The preference alone asks for R only where fewer than sigmoid(-0.8) = 0.310 are right.
    assert fixed_point(30, preference_only, 8.0, 300.0) < 0 < fixed_point(32, preference_only, 8.0, 300.0)


# -- bad input --------------------------------------------------------------------------------------------------------


def test_bad_input() -> None:
    pairs = pairs_of("verify")
    with pytest.raises(RematchError, match="a reference margin for each of 5 pairs"):
        ReviseObjective(pairs, None, REFINE)
    with pytest.raises(RematchError, match="a reference margin for each of 5 pairs"):
        ReviseObjective(pairs, torch.zeros(4), REFINE)
    with pytest.raises(RematchError, match="beta must be positive, not 0"):
        ReviseObjective(pairs, torch.zeros(5), REFINE, beta=0)
    for wrong in ((-1.0, 1.0), (0.0, 0.0), (math.nan, 1.0)):
        with pytest.raises(RematchError, match="must not be negative, and not both 0"):
            LossWeights(*wrong)


# -- TRL --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_trl_has_the_same_loss_and_gradients(tmp_path: Path) -> None:
    from baselines.post_training.trl_training import make_trainer

    model, reference = llama(), llama(seed=1)
    recipe = Recipe(batch_size=len(ROWS), steps=1, trainer="trl")
    for (stage, eos_after_refine), weights in product(CASES, (OFFICIAL, TEXT, SFT_ONLY)):
        pairs = pairs_of(stage, eos_after_refine)
        margins = reference_margins(reference, pairs)[0] if weights.preference else None
        ours = whole_loss(model, pairs, margins, weights)
        expected = torch.autograd.grad(ours, list(model.parameters()))
        trainer = make_trainer(model, ReviseObjective(pairs, margins, REFINE, weights).data, recipe, 0, tmp_path)
        rows = [trainer.train_dataset[i] for i in range(len(pairs))]
        assert [(tuple(r["prompt_ids"]), tuple(r["chosen_ids"]), tuple(r["rejected_ids"])) for r in rows] == pairs
        ((part, shares),) = trainer.parts
        theirs = trainer.compute_loss(trainer.model, trainer.collated(part, shares))
        assert theirs.item() == pytest.approx(ours.item(), abs=1e-6)
        for one, other in zip(torch.autograd.grad(theirs, list(model.parameters())), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_trl_is_refused_wrong_attempts_in_what_is_chosen() -> None:
    pair = Pair((4, 5), (9, REFINE, 10, END), (9, END))
    objective = ReviseObjective([pair], torch.zeros(1), REFINE)
    with pytest.raises(RematchError, match="put what stands before it into the context, or train with trainer: own"):
        _ = objective.data
