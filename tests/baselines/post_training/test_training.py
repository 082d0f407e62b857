"""The loop: recipe, order, gradients in parts, budgets, costs, interrupted runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_revise import gpt2, llama, problems, same_weights

from baselines.checkpoints import weights_digest
from baselines.post_training.batches import Example, collate, shape_of
from baselines.post_training.objectives import SFTObjective, log_likelihoods
from baselines.post_training.training import (
    Recipe,
    Training,
    schedule_batches,
    steps_for_flops,
    train,
    with_steps,
)
from rematch.errors import RematchError
from rematch.flops import count_flops

EXAMPLES = [problem.truth(1) for problem in problems(20)]
EXAMPLES += [example._replace(context=(*example.context, 4, 4, 4)) for example in EXAMPLES[:7]]


def trained(seed: int = 0, model: Any = None, **recipe: Any) -> tuple[Any, Training]:
    settings: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 8, "epochs": 2} | recipe
    model = model or llama()
    return model, train(model, SFTObjective(EXAMPLES), Recipe(**settings), seed)


def test_the_rate() -> None:
    linear = Recipe(learning_rate=1.0, warmup=0.1)
    assert [linear.learning_rate_at(step, 20) for step in (0, 1, 2, 11, 19)] == pytest.approx(
        [0.5, 1.0, 1.0, 0.5, 1 / 18]
    )
    cosine = Recipe(learning_rate=1.0, warmup=0.0, schedule="cosine")
    assert [cosine.learning_rate_at(step, 4) for step in range(4)] == pytest.approx(
        [1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]
    )


def test_every_epoch_reads_every_row_once() -> None:
    recipe = Recipe(batch_size=10, epochs=2)
    batches = schedule_batches(103, recipe, 0)
    assert len(batches) == 22
    for epoch in (batches[:11], batches[11:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(103))
    assert batches[:11] != batches[11:]
    assert batches == schedule_batches(103, recipe, 0)
    assert batches != schedule_batches(103, recipe, 1)
    assert len(schedule_batches(103, Recipe(batch_size=10, steps=25), 0)) == 25


def test_training_fits_and_leaves_evaluation_mode() -> None:
    seen: list[tuple[int, float]] = []
    model = llama()
    state = torch.get_rng_state()
    run = train(
        model, SFTObjective(EXAMPLES), Recipe(1e-2, 27, epochs=60), 0, after_step=lambda n, loss: seen.append((n, loss))
    )
    assert run.final_loss < 0.3 * run.losses[0]
    assert [loss for _, loss in seen] == run.losses
    assert (run.steps, run.rows) == (60, 60 * 27)
    assert run.tokens == 60 * sum(len(e.context) + len(e.target) - 1 for e in EXAMPLES)
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_seed_gives_the_same_run_bit_for_bit() -> None:
    (first, run), (second, again), (other, _) = trained(0), trained(0), trained(1)
    assert same_weights(first, second)
    assert run == again
    assert weights_digest(first) == weights_digest(second)
    assert not same_weights(first, other)
    assert weights_digest(first) != weights_digest(other)


def test_a_step_in_parts_is_the_same_step() -> None:
    whole, run = trained(model=llama(double=True), batch_size=27, steps=1, clip=1e9)
    parts, again = trained(model=llama(double=True), batch_size=27, steps=1, clip=1e9, micro_batch_size=5)
    assert run.losses == pytest.approx(again.losses, abs=1e-12)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)  # AdamW's first step divides by the gradient


@pytest.mark.parametrize(
    "switch",
    [
        {"warmup": 0.9}, {"schedule": "cosine"}, {"clip": 1e-3}, {"weight_decay": 0.5},
        {"steps": None, "epochs": 3}, {"steps": 3}, {"batch_size": 5}, {"learning_rate": 1e-3},
    ],
)  # fmt: skip
def test_no_switch_is_dead(switch: dict[str, Any]) -> None:
    assert not same_weights(trained(steps=4)[0], trained(**({"steps": 4} | switch))[0])


def test_what_a_run_costs() -> None:
    model = gpt2()
    objective = SFTObjective(EXAMPLES)
    recipe = Recipe(batch_size=8, epochs=1)
    run = train(model, objective, recipe, 0)
    expected = 0
    for batch in schedule_batches(len(objective.rows), recipe, 0):
        encoded = collate([objective.rows[i] for i in batch])
        count = count_flops(
            lambda ids=encoded.input_ids, n=encoded.n_logits: (
                model(input_ids=ids, use_cache=False, logits_to_keep=n).logits
            ),
            backward=True,
        )
        assert (*encoded.input_ids.shape, encoded.n_logits) == shape_of([objective.rows[i] for i in batch])
        expected += count.total
    assert run.flops == expected


def test_steps_for_a_budget() -> None:
    objective, recipe = SFTObjective(EXAMPLES), Recipe(batch_size=8)
    for wanted in (1, 3, 9):
        flops = train(llama(), objective, with_steps(recipe, wanted), 5).flops
        assert steps_for_flops(llama(), objective, flops, recipe, 5) == wanted
    assert steps_for_flops(llama(), objective, 0, recipe, 5) == 1


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [4, 5, 7])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(after: int, tmp_path: Path) -> None:
    recipe = Recipe(1e-2, 8, steps=7, checkpoint_every=2, micro_batch_size=3)

    def new() -> Any:
        return gpt2(attn_pdrop=0.3, resid_pdrop=0.3)

    whole = new()
    run = train(whole, SFTObjective(EXAMPLES), recipe, 3)

    def kill(n: int, loss: float) -> None:
        if n == after:
            raise Killed

    with pytest.raises(Killed):
        train(new(), SFTObjective(EXAMPLES), recipe, 3, tmp_path, kill)
    resumed = new()
    again = train(resumed, SFTObjective(EXAMPLES), recipe, 3, tmp_path)
    assert same_weights(whole, resumed)
    assert again == run
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    with pytest.raises(RematchError, match=r"checkpoint of another run.*remove it, or give another folder"):
        train(new(), SFTObjective(EXAMPLES), recipe, 4, tmp_path)
    with pytest.raises(RematchError, match="checkpoint of another run"):
        train(new(), SFTObjective(EXAMPLES[::-1]), recipe, 3, tmp_path)


def test_bad_input() -> None:
    for wrong in ({"learning_rate": 0.0}, {"batch_size": 0}, {"clip": -1.0}, {"micro_batch_size": 0}):
        with pytest.raises(RematchError, match=r"Recipe: .* must be positive"):
            Recipe(**wrong)
    for wrong in ({"epochs": -1}, {"steps": -1}, {"warmup": 1.5}):
        with pytest.raises(RematchError, match="must not be negative"):
            Recipe(**wrong)
    with pytest.raises(RematchError, match="Did you mean 'cosine'"):
        Recipe(schedule="cosin")  # type: ignore[arg-type]
    for model in (llama(), gpt2()):
        with pytest.raises(RematchError, match="a row has 49 tokens, and the model reads 48"):
            train(model, SFTObjective([Example((4,), (5,) * 49)]), Recipe(), 0)
        with pytest.raises(RematchError, match="a row has 49 tokens, and the model reads 48"):
            log_likelihoods(model, [Example((4,), (5,) * 49)])
        log_likelihoods(model, [Example((4,), (5,) * 48)])
    with pytest.raises(RematchError, match="no rows"):
        train(llama(), SFTObjective([]), Recipe(), 0)
