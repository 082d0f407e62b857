"""TRL's trainers on token ids: the same losses and gradients as the project's own loop, and a reference of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_revise import MAKERS, llama, problems, same_weights, tokenizer

from baselines.post_training.batches import Example, Pair, collate
from baselines.post_training.objectives import DPOObjective, SFTObjective, Totals, reference_margins
from baselines.post_training.training import batch_loss
from baselines.post_training.trl_training import example_trainer, pair_trainer

pytestmark = pytest.mark.slow
CPU: dict[str, Any] = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True}
EXAMPLES = [p.truth(1) for p in problems(6)]
# Two continuations that part early, one that ends with a token that is no end token, one of unequal prompts.
PAIRS = [
    Pair((4, 5), (8, 9, 1), (9, 10, 1)), Pair((4, 5, 6, 7), (8, 1), (8, 2)), Pair((4,), (2,), (1,)), Pair((4, 0), (0, 5, 1), (1,)),
]  # fmt: skip


def same(found: Any, expected: Any, model: torch.nn.Module) -> None:
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(expected, parameters)
    for one, other in zip(torch.autograd.grad(found, parameters), ours, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("maker", MAKERS)
def test_dpo(maker: str, tmp_path: Path) -> None:
    model, reference = MAKERS[maker](), MAKERS[maker](seed=1)
    trainer = pair_trainer(model, tokenizer(), PAIRS, str(tmp_path), beta=0.2, reference=reference, **CPU)
    found = trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[i] for i in range(4)]))
    objective = DPOObjective(PAIRS, reference_margins(MAKERS[maker](seed=1), PAIRS)[0], beta=0.2)
    same(found, batch_loss(model, objective, collate(objective.rows), range(4), Totals(4, 0)), model)


@pytest.mark.parametrize("maker", MAKERS)
def test_sft(maker: str, tmp_path: Path) -> None:
    model = MAKERS[maker]()
    trainer = example_trainer(model, tokenizer(), EXAMPLES, str(tmp_path), **CPU)
    found = trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[i] for i in range(6)]))
    objective = SFTObjective(EXAMPLES)
    batch = collate(objective.rows)
    same(found, batch_loss(model, objective, batch, range(6), Totals(6, batch.n_counted)), model)


def test_the_reference_is_the_model_handed_over(tmp_path: Path) -> None:
    """Not what its config names; and training does not touch it."""
    model = llama()
    model.config._name_or_path = "nobody/such-a-model"
    trainer = pair_trainer(
        model, tokenizer(), PAIRS, str(tmp_path), (1.0, 0.1), max_steps=3, learning_rate=1e-2, logging_steps=1,
        per_device_train_batch_size=4, save_strategy="no", **CPU,
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    start = llama()
    objective = SFTObjective([Example(p.context, p.chosen) for p in PAIRS])
    batch = collate(objective.rows)
    sft = batch_loss(start, objective, batch, range(4), Totals(4, batch.n_counted)).item()
    assert losses[0] == pytest.approx(0.693147 + 0.1 * sft, abs=1e-4)
    assert losses[-1] < losses[0]
    assert same_weights(trainer.ref_model, start)
    assert not same_weights(model, start)
