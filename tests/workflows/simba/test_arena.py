"""The contract of Simba's room, for every axis and contender of the card, at smoke sizes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rematch.cards import Card

ROOT = Path(__file__).resolve().parents[3]
CARD = Card(ROOT / "workflows" / "simba", ROOT)
SHARE = 0.77
"""What three of the smoke parent's four layers cost, so that depth pruning can meet it."""
LEVELS = {"flops_matched": SHARE, "ablation": SHARE, "ood": 96, "memory_time": 64}
MATCHES = [(axis, contender) for axis, spec in CARD.spec.axes.items() for contender in spec.contenders]


def play(room: Any, axis: str, contender: str, seed: int = 0, **arena: Any) -> Any:
    return room.play(axis, contender, LEVELS[axis], seed, **arena)


@pytest.fixture(autouse=True)
def shares_that_smoke_can_meet(monkeypatch: pytest.MonkeyPatch, room: Any) -> None:
    """The card's shares are those of eight layers."""
    budget = room.card.spec.axes["ood"].budget.model_copy(update={"share": SHARE})
    monkeypatch.setitem(room.card.spec.axes, "ood", room.card.spec.axes["ood"].model_copy(update={"budget": budget}))


@pytest.mark.parametrize(("axis", "contender"), MATCHES)
def test_every_match(room: Any, axis: str, contender: str) -> None:
    """All metrics of the axis, finite, items that average to the value, and the FLOPs of the budget."""
    outcome = play(room, axis, contender)
    assert {m.metric for m in outcome.measurements} == set(CARD.spec.axes[axis].metrics)
    seen = [(m.metric, m.slice) for m in outcome.measurements]
    assert len(seen) == len(set(seen))
    for m in outcome.measurements:
        log = CARD.spec.metrics[m.metric].scale == "log"
        assert math.isfinite(m.value)
        assert m.value > 0 or not log
        if m.items is not None:
            assert np.mean(m.items) == pytest.approx(math.log(m.value) if log else m.value, abs=1e-6)
    assert outcome.flops > 0
    assert outcome.train_flops > 0
    assert len(outcome.data_hash) == 16
    if CARD.spec.axes[axis].budget is None:
        assert outcome.flops_target is None
    else:
        # At these sizes one token of the context is 1 % of the FLOPs, and half of that is rounding.
        assert outcome.flops == pytest.approx(outcome.flops_target, rel=0.03)


@pytest.mark.parametrize("contender", ["simba", "random", "dense", "token_reduction"])
def test_bit_identical(room: Any, contender: str) -> None:
    alone = dataclasses.replace(room, scratch=None)  # no FLOPs that the first match counted are read by the second
    first, second = (play(alone, "flops_matched", contender) for _ in range(2))
    assert first.measurements == second.measurements
    assert first == second


def test_seeds_differ(room: Any) -> None:
    assert (
        play(room, "flops_matched", "simba").measurements != play(room, "flops_matched", "simba", seed=1).measurements
    )


def test_bases_are_bit_identical(room: Any) -> None:
    for name, share in (("corpus", None), ("parent", None), ("dense", SHARE), ("simba_tuned", SHARE)):
        folder, info = room.build(name, share)
        again, info_again = room.build_anew(name, share, 0)
        assert info == info_again
        files = {path.name for path in folder.iterdir()}
        assert files == {path.name for path in again.iterdir()}
        assert all((folder / file).read_bytes() == (again / file).read_bytes() for file in files)


def test_models_of_a_seed_share_data_but_not_size(room: Any) -> None:
    parent, dense = room.build("parent")[1], room.build("dense", SHARE)[1]
    assert (parent.samples_seen, parent.tokens_seen) == (dense.samples_seen, dense.tokens_seen)
    assert parent.tokens_seen == room.card.options("bases", "parent", "smoke")["tokens"]
    assert 0.6 < dense.train_flops / parent.train_flops < 0.95


@pytest.mark.parametrize("base", ["dense", "transformer"])
@pytest.mark.parametrize("share", CARD.axis("flops_matched", "mini").levels)
def test_partners_of_the_mini_tier_meet_their_flops(base: str, share: float) -> None:
    """Sized as at mini, untrained: counted FLOPs on the standard items within 2 %, together and on each axis."""
    from baselines.dense import Dense
    from workflows.simba.models import Pretrained
    from workflows.simba.shapes import STANDARD, Shapes, item_flops, total_flops

    shapes = Shapes.of(CARD.at("mini").arena)
    parent = Pretrained(**CARD.options("bases", "parent", "mini"))
    partner = Pretrained(**CARD.options("bases", base, "mini"))
    kinds = [shapes.shape(kind) for kind in STANDARD]
    reference, dense = Dense(), Dense()
    reference.prepare(parent.model(1024))
    dense.prepare(partner.model(1024, share * total_flops(reference, kinds), kinds))
    assert total_flops(dense, kinds) / total_flops(reference, kinds) == pytest.approx(share, rel=0.02)
    ood = CARD.axis("ood", "mini")
    if base == "dense" and ood.budget is not None and share == ood.budget.share:
        for context in ood.levels:
            window = shapes.shape("window", context)
            assert item_flops(dense, window) / item_flops(reference, window) == pytest.approx(share, rel=0.02)


def test_sizing_does_not_move_the_initial_weights() -> None:
    """A partner starts from the weights that a model of its size starts from when nobody searched for it."""
    import torch

    from workflows.simba.models import Pretrained
    from workflows.simba.shapes import ItemShape

    builder = Pretrained(hidden_size=16, n_layers=2, state_size=4)
    torch.manual_seed(0)
    sized = builder.model(64, 1e6, [ItemShape(48, 16)])
    torch.manual_seed(0)
    plain = type(sized)(sized.config)
    assert all(torch.equal(a, b) for a, b in zip(sized.parameters(), plain.parameters(), strict=True))


def test_the_same_tokens_are_scored_at_every_length(room: Any) -> None:
    """With an unpruned model that has forgotten nothing the windows differ in their context only."""
    from workflows.simba.corpus import load_windows

    windows = load_windows(room.build("corpus")[0], "test")
    assert windows.shape[1] == 96
    short, long = (room.task("ood", "dense", level) for level in (64, 96))
    losses = [room.arena().play(task).measurements[0].items for task in (short, long)]
    assert len(losses[0]) == len(losses[1]) == len(windows)
    assert np.corrcoef(*losses)[0, 1] > 0.9


def test_a_sparser_simba_reads_less(room: Any) -> None:
    """The whole of the FLOPs buys what the parent does: with share 1 Simba is its parent."""
    whole = room.arena().play(room.task("ablation", "simba", 1.0, metrics=("perplexity",)))
    parent = room.arena().play(room.task("memory_time", "parent", 64, metrics=("perplexity",)))
    assert whole.measurements[0].value == pytest.approx(parent.measurements[0].value, rel=2e-3)
    assert whole.notes["keep_ratio"] > 0.97


def test_tuning_costs_and_changes(room: Any) -> None:
    dense, tuned = (play(room, "ablation", name) for name in ("dense_tuned", "simba_tuned"))
    plain = play(room, "ablation", "simba")
    assert tuned.tokens_seen == plain.tokens_seen + 512
    assert tuned.train_flops > plain.train_flops
    assert dense.tokens_seen == tuned.tokens_seen
    assert tuned.measurements[0].value != plain.measurements[0].value
