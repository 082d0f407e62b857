"""TRL's trainers against the own loop: the same rows, losses, gradients and weights, in one process or two; their cost; kills."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_revise import MAKERS, gpt2, llama, same_weights

import rematch.flops
from baselines.post_training import trl_training
from baselines.post_training.batches import Example, Ids, Pair, collate
from baselines.post_training.objectives import (
    DPOObjective,
    Objective,
    Preferences,
    SFTObjective,
    Totals,
    reference_margins,
)
from baselines.post_training.training import Recipe, batch_loss, steps_for_flops, train, with_steps
from baselines.post_training.trl_steps import Part, parts_of, passes_of, trl_flops
from baselines.post_training.trl_training import make_trainer
from baselines.transformer_flops import transformer_flops
from methods.revise.loss import ReviseObjective
from rematch.errors import RematchError
from rematch.flops import count_flops

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(0)


def ids(fewest: int, most: int) -> Ids:
    return tuple(RNG.integers(0, 20, RNG.integers(fewest, most + 1)).tolist())


# Contexts of unequal length, empty ones too; token 0, which pads; continuations that part at once or late.
EXAMPLES = [Example(ids(0, 5), ids(2, 6)) for _ in range(21)]
PAIRS = [Pair(ids(1, 5), (3, *ids(1, 6)), (4, *ids(0, 3))) for _ in range(17)]
PAIRS += [Pair((4, 5, 6, 7), (8, 1), (8, 2)), Pair((4,), (2,), (1,)), Pair((4, 0), (0, 5, 1), (1,)), PAIRS[0]]
RECIPE = Recipe(3e-3, 8, epochs=2, weight_decay=0.1, clip=0.5, schedule="cosine", micro_batch_size=3)
TRL = replace(RECIPE, trainer="trl")


def objective(name: str) -> Objective:
    if name == "sft":
        return SFTObjective(EXAMPLES)
    margins, _ = reference_margins(llama(1), PAIRS)
    if name == "dpo":
        return DPOObjective(PAIRS, margins, 0.2)
    return ReviseObjective(PAIRS, margins, refine=99, beta=0.2)  # a tenth of the likelihood too


def furthest(first: torch.nn.Module, second: torch.nn.Module) -> float:
    return max((a - b).abs().max().item() for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("name", ["sft", "dpo", "revise"])
def test_loss_and_gradients(name: str, maker: str, tmp_path: Path) -> None:
    model, whole = MAKERS[maker](), objective(name)
    trainer = make_trainer(model, whole.data, Recipe(batch_size=21, steps=1, trainer="trl"), 0, tmp_path)
    ((part, weights),) = trainer.parts
    assert sorted(part.indices) == list(range(21))
    found = trainer.compute_loss(trainer.model, trainer.collated(part, weights))
    batch = collate(whole.rows)
    expected = batch_loss(model, whole, batch, range(21), Totals(21, batch.n_counted))
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(expected, parameters)
    for one, other in zip(torch.autograd.grad(found, parameters), ours, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["sft", "dpo", "revise"])
def test_both_loops_end_in_the_same_weights(name: str) -> None:
    """Small last batches, steps in parts, decayed weights, clipped gradients, a rate that rises and falls."""
    own, trl, start = llama(), llama(), llama()
    for model in (own, trl, start):
        model.model.layers[0].requires_grad_(False)
        model.config._name_or_path = "nobody/such-a-model"
    ours = train(own, objective(name), RECIPE, 3)
    seen: list[tuple[int, float]] = []
    state = torch.get_rng_state()
    theirs = train(trl, objective(name), TRL, 3, after_step=lambda step, loss: seen.append((step, loss)))
    assert torch.equal(torch.get_rng_state(), state)
    assert theirs.losses == pytest.approx(ours.losses, abs=1e-5)
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert [loss for _, loss in seen] == theirs.losses
    # The first steps of Adam divide gradients by themselves, rounding errors of vanishing ones too.
    assert furthest(own, trl) < 1e-4 < 1e-2 < furthest(start, trl)
    assert same_weights(start.model.layers[0], trl.model.layers[0])
    assert theirs.rows == ours.rows == 42
    # Nothing but the weights is touched: no config, no other forward pass, no mode.
    assert trl.config.to_dict() == start.config.to_dict()
    assert trl.generation_config.to_dict() == start.generation_config.to_dict()
    assert vars(trl).keys() == vars(start).keys()
    assert not trl.training


def test_a_step_in_parts_is_the_same_step() -> None:
    whole, parts = llama(), llama()
    one = train(whole, objective("revise"), replace(TRL, micro_batch_size=None, steps=2), 0)
    other = train(parts, objective("revise"), replace(TRL, micro_batch_size=2, steps=2), 0)
    assert one.losses == pytest.approx(other.losses, abs=1e-5)
    assert furthest(whole, parts) < 1e-4


def test_bfloat16_stays() -> None:
    own, trl = llama().bfloat16(), llama().bfloat16()
    ours, theirs = (train(m, objective("revise"), replace(r, steps=2), 0) for m, r in ((own, RECIPE), (trl, TRL)))
    assert {p.dtype for p in trl.parameters()} == {torch.bfloat16}
    assert theirs.losses == pytest.approx(ours.losses, rel=0.05)


def test_no_steps() -> None:
    model = llama()
    assert train(model, objective("sft"), replace(TRL, steps=0), 0).losses == []
    assert same_weights(model, llama())


# -- how rows are dealt out, and what it costs ------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "micro", "processes"), [(8, 3, 2), (5, 3, 2), (1, 1, 3), (7, None, 2), (8, 8, 1)])
def test_parts(n: int, micro: int | None, processes: int) -> None:
    recipe = Recipe(batch_size=8, micro_batch_size=micro, trainer="trl", processes=processes)
    parts = parts_of(range(10, 10 + n), recipe)
    assert len(parts) == passes_of(recipe) * processes
    assert sorted(i for part in parts for i in part.indices[: part.n_counted]) == list(range(10, 10 + n))
    sizes = [len(part.indices) for part in parts]
    assert 1 <= min(sizes) <= max(sizes) <= (micro or -(-8 // processes))
    for first in range(0, len(parts), processes):
        assert len(set(sizes[first : first + processes])) == 1


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["sft", "revise"])
def test_what_a_pass_costs(name: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted while TRL runs, on a GPU's way of choosing positions too."""
    monkeypatch.setattr("trl.trainer.utils._use_triton", lambda _: device == "cuda")
    # torch's registry has no formula for products that are added in place.
    addmm = {torch.ops.aten.addmm_: lambda c, a, b, *args, **kwargs: 2 * a[0] * a[1] * b[1]}
    monkeypatch.setattr(rematch.flops, "_EXTRA_FORMULAS", rematch.flops._EXTRA_FORMULAS | addmm)
    model, whole = llama(), objective(name)
    trainer = make_trainer(model, whole.data, TRL, 0, tmp_path)
    for part in (Part([3, 5, 7, 9], 4), Part([4, 6, 8], 1)):
        batch = trainer.collated(part, [1.0, 1.0])
        counted = count_flops(lambda b=batch: trainer.compute_loss(trainer.model, dict(b)), backward=True)
        assert counted.total == trl_flops(transformer_flops(model), whole.data, part, device)


def test_what_a_run_costs() -> None:
    costs, sft, pairs = transformer_flops(llama()), objective("sft"), objective("dpo")
    run = train(llama(), sft, replace(TRL, steps=3), 5)
    assert steps_for_flops(llama(), sft, run.flops, TRL, 5) == 3
    assert run.flops != train(llama(), sft, replace(RECIPE, steps=3), 5).flops
    epoch = train(llama(), pairs, replace(TRL, batch_size=21, epochs=1, micro_batch_size=None), 0)
    assert epoch.flops == sum(
        trl_flops(costs, pairs.data, part, "cpu") for part in parts_of(range(21), Recipe(batch_size=21))
    )
    assert epoch.tokens == sum(2 * len(p.context) + len(p.chosen) + len(p.rejected) for p in PAIRS)


# -- kills ------------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Killed after the fourth step, before its checkpoint; and once more while a later one was written."""
    recipe = replace(with_steps(TRL, 7), checkpoint_every=2)

    def new() -> Any:
        return gpt2(attn_pdrop=0.3, resid_pdrop=0.3)

    whole = new()
    run = train(whole, objective("revise"), recipe, 3)
    steps: list[int] = []

    def kill(step: int, loss: float) -> None:
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        train(new(), objective("revise"), recipe, 3, tmp_path, kill)
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text('{"epoch"', encoding="utf-8")
    resumed = new()
    again = train(resumed, objective("revise"), recipe, 3, tmp_path, lambda step, _: steps.append(step))
    assert steps == [3, 4, 5, 6, 7]
    assert same_weights(whole, resumed)
    assert again == run
    finished = new()
    assert train(finished, objective("revise"), recipe, 3, tmp_path) == run
    assert same_weights(whole, finished)
    with pytest.raises(RematchError, match=r"checkpoint of another run.*remove it, or give another folder"):
        train(new(), objective("revise"), recipe, 4, tmp_path)


# -- several processes ------------------------------------------------------------------------------------------------


def test_two_processes_train_as_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of 21 rows, so that in the last step of a pass over them one process has fewer; half of the weights stay."""
    own, trl = llama(), llama()
    for model in (own, trl):
        model.model.layers[0].requires_grad_(False)
    ours = train(own, objective("revise"), RECIPE, 3)
    theirs = train(trl, objective("revise"), replace(TRL, processes=2), 3, tmp_path)
    assert theirs.losses == pytest.approx(ours.losses, abs=1e-5)
    assert furthest(own, trl) < 1e-4 < 1e-2 < furthest(llama(), trl)
    assert same_weights(llama().model.layers[0], trl.model.layers[0])
    assert trl.config.to_dict() == llama().config.to_dict()
    assert "step 6/6: loss" in capfd.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-6", "run.json"]


def test_processes_that_fail_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl_training, "WORKER", "baselines.post_training.no_such_worker")
    model = llama()
    with pytest.raises(RematchError, match=r"training in 2 processes failed; (.|\n)*no_such_worker(.|\n)*exit code 1"):
        train(model, objective("sft"), replace(TRL, processes=2), 0, tmp_path)
    assert same_weights(model, llama())


def test_a_worker_leaves_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl_training, "die_with_parent", lambda pid: None)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(FileNotFoundError):
        trl_training.work(tmp_path)
    assert "FileNotFoundError: " in (tmp_path / "error1.txt").read_text(encoding="utf-8")


def test_what_is_handed_over_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, recipe and weights of the loss, through the files."""
    seen: list[Any] = []

    def spy(model: Any, data: Any, recipe: Recipe, seed: int, checkpoint: Path | None) -> list[float]:
        seen[:] = [model, data, recipe, seed, checkpoint]
        return [1.5]

    monkeypatch.setattr(trl_training, "trained_here", spy)
    monkeypatch.setattr(trl_training, "die_with_parent", lambda pid: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setenv("RANK", "0")
    recipe = replace(TRL, processes=2)
    for whole in (objective("sft"), objective("revise")):
        model = gpt2(3)
        model.lm_head.requires_grad_(False)
        monkeypatch.setattr(trl_training, "_launch", lambda folder, processes: trl_training.work(folder))
        assert trl_training.trained_in_processes(model, whole.data, recipe, 7, tmp_path) == [1.5]
        assert same_weights(seen[0], gpt2(3))
        assert [p.requires_grad for p in seen[0].parameters()] == [p.requires_grad for p in model.parameters()]
        expected = whole.data
        assert seen[1] == (expected if isinstance(expected, Preferences) else list(expected))
        assert seen[2:] == [recipe, 7, tmp_path]
        assert not (tmp_path / "processes").exists()
    assert json.loads(json.dumps(asdict(recipe))) == asdict(recipe)


# -- bad input --------------------------------------------------------------------------------------------------------


def test_bad_input() -> None:
    with pytest.raises(RematchError, match="give trainer: trl too, or leave processes out"):
        Recipe(processes=2)
    with pytest.raises(RematchError, match=r"unknown trainer 'trll'.*Did you mean 'trl'"):
        Recipe(trainer="trll")  # type: ignore[arg-type]
    with pytest.raises(RematchError, match="processes must be positive, not 0"):
        Recipe(processes=0, trainer="trl")
    with pytest.raises(RematchError, match="after_step is called between steps"):
        train(llama(), objective("sft"), replace(TRL, processes=2), 0, after_step=lambda step, loss: None)
    with pytest.raises(RematchError, match="a row has 49 tokens, and the model reads 48"):
        train(llama(), SFTObjective([Example((4,), (5,) * 49)]), TRL, 0)
