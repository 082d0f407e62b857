"""MAC's meta-training: back-propagation dropout's draws, the recipe, the loop, its costs, and interrupted runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_mac import examples, t5, tiny_mac
from torch import Tensor

from baselines.next_token import window_order
from methods.mac import MAC, BackpropDropout, Recipe, Training, train
from rematch.errors import RematchError
from rematch.flops import count_flops


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


EXAMPLES = examples(12, uniform=True)  # one shape, so that FLOPs are counted once


def weights(mac: MAC) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in mac.networks()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def trained(seed: int = 0, encoder_dropout: float = 0.1, **recipe: Any) -> tuple[MAC, Training]:
    """A run of 8 steps."""
    mac = tiny_mac(encoder=t5(dropout=encoder_dropout), double=False)
    settings: dict[str, Any] = {"steps": 8, "documents": 4, "learning_rate": 1e-2, **recipe}
    return mac, train(mac, EXAMPLES, Recipe(**settings), seed)


# -- back-propagation dropout -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "k", "n"), [(0.75, 16, 4), (0.5, 3, 2), (0.25, 8, 6), (1 - 1 / 16, 16, 1), (0.9, 4, 1)])
def test_prefix_mode_takes_the_first_documents(p: float, k: int, n: int) -> None:
    mask = BackpropDropout(p).draw(k)
    assert mask is not None
    assert mask.carries.tolist() == [True] * n + [False] * (k - n)
    assert mask.asks is mask.carries
    assert mask.scale == 1
    rescaled = BackpropDropout(p, rescale=True).draw(k)
    assert rescaled is not None
    assert rescaled.scale == k / n


def test_bernoulli_mode_draws_each_document() -> None:
    dropout = BackpropDropout(0.75, "bernoulli")
    mask = dropout.draw(20_000, torch.Generator().manual_seed(0))
    assert mask is not None
    assert mask.carries.float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert mask.asks is None
    assert mask.scale == 1
    again, other = (dropout.draw(20_000, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert again is not None
    assert other is not None
    assert torch.equal(mask.carries, again.carries)
    assert not torch.equal(mask.carries, other.carries)
    rescaled = BackpropDropout(0.75, "bernoulli", rescale=True).draw(4)
    assert rescaled is not None
    assert rescaled.scale == 4


def test_without_dropout_there_is_no_mask() -> None:
    assert BackpropDropout().draw(4) is None
    assert BackpropDropout(0.0, "bernoulli", True).draw(4) is None
    plain, zero = trained()[0], trained(dropout=BackpropDropout(0.0, "bernoulli", rescale=True))[0]
    assert same(weights(plain), weights(zero))


@pytest.mark.parametrize(
    ("p", "mode", "message"),
    [(1.0, "prefix", "must lie in"), (-0.1, "prefix", "must lie in"), (0.5, "prefixes", "Did you mean 'prefix'")],
)
def test_impossible_dropout(p: float, mode: Any, message: str) -> None:
    with pytest.raises(RematchError, match=message):
        BackpropDropout(p, mode)


# -- the recipe -------------------------------------------------------------------------------------------------------


def test_the_rate_rises_and_stays() -> None:
    recipe = Recipe(steps=1000, documents=4, learning_rate=1e-3)
    assert [recipe.learning_rate_at(step) for step in (0, 4, 9, 10, 999)] == pytest.approx(
        [1e-4, 5e-4, 1e-3, 1e-3, 1e-3]
    )
    assert Recipe(steps=10, documents=4, learning_rate=1.0).learning_rate_at(0) == 1.0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"steps": -3}, "steps: -3; allowed: whole numbers from 0"),
        ({"steps": 2.5}, "steps: 2.5; allowed: whole numbers from 0"),
        ({"documents": 0}, "documents: 0; allowed: whole numbers from 1"),
        ({"documents": ((0, 4), (10, 0))}, "documents: 0; allowed: whole numbers from 1"),
        ({"banks": 0}, "banks: 0; allowed: whole numbers from 1"),
        ({"accumulation": 0}, "accumulation: 0; allowed: whole numbers from 1"),
        ({"checkpoint_every": -1}, "checkpoint_every: -1; allowed: whole numbers from 0"),
        ({"learning_rate": 0.0}, "learning_rate: 0.0; allowed: more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate: nan; allowed: more than 0"),
        ({"clip": 0}, "clip: 0; allowed: more than 0"),
        ({"encoder_rate": -1}, "encoder_rate: -1; allowed: 0 or more"),
        ({"warmup": 20}, "warmup: 20; allowed: 0 to 1, a share of the steps"),
    ],
)
def test_recipes_out_of_bounds(option: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"steps": 4, "documents": 4, "learning_rate": 1e-3}
    with pytest.raises(RematchError, match=f"Recipe: {message}"):
        Recipe(**given | option)


def test_documents_may_grow() -> None:
    recipe = Recipe(steps=10, documents=((4, 8), (0, 2)), learning_rate=1.0, accumulation=3)
    assert [recipe.documents_at(step) for step in (0, 3, 4, 9)] == [2, 2, 8, 8]
    assert recipe.n_documents() == 3 * (4 * 2 + 6 * 8)
    assert recipe.n_documents(5) == 3 * (4 * 2 + 8)
    with pytest.raises(RematchError, match="at step 0"):
        Recipe(steps=10, documents=((4, 8),), learning_rate=1.0)
    with pytest.raises(RematchError, match="a probability, not 2"):
        Recipe(steps=10, documents=4, learning_rate=1.0, hierarchy_aware=2)


# -- the loop ---------------------------------------------------------------------------------------------------------


def test_training_fits() -> None:
    mac = tiny_mac(double=False)
    seen: list[tuple[int, float]] = []
    training = train(
        mac, EXAMPLES[:4], Recipe(60, 4, 1e-2, clip=1.0), seed=0, after_step=lambda n, loss: seen.append((n, loss))
    )
    assert training.final_loss < 0.5 * training.losses[0]
    assert [loss for _, loss in seen] == training.losses
    assert [n for n, _ in seen] == list(range(1, 61))
    assert not mac.training


def test_a_seed_gives_the_same_run_bit_for_bit() -> None:
    (first, run), (second, again), (other, _) = trained(0), trained(0), trained(1)
    assert same(weights(first), weights(second))
    assert run == again
    assert not same(weights(first), weights(other))


def test_a_steps_loss_and_gradient_are_the_means_over_its_batches() -> None:
    mac, run = trained(encoder_dropout=0.0, steps=1, accumulation=2, documents=2, clip=1e9)
    plain = tiny_mac(encoder=t5(), double=False)
    order = window_order(len(EXAMPLES), 4, 0)
    batches = [[EXAMPLES[i] for i in order[:2]], [EXAMPLES[i] for i in order[2:]]]
    losses = [plain.loss([text for text, _ in batch], [pairs for _, pairs in batch]) for batch in batches]
    assert run.losses == pytest.approx([(losses[0] + losses[1]).item() / 2])
    (sum(losses) / 2).backward()
    gradient = dict(plain.networks())["aggregator.blocks.0.query.weight"].grad
    assert gradient is not None
    moved = weights(mac)["aggregator.blocks.0.query.weight"] - weights(plain)["aggregator.blocks.0.query.weight"]
    torch.testing.assert_close(moved, -1e-2 * gradient / (gradient.abs() + 1e-8))  # Adam's first step


@pytest.mark.parametrize(
    "switch",
    [
        {"dropout": BackpropDropout(0.5)},
        {"dropout": BackpropDropout(0.5, "bernoulli")},
        {"dropout": BackpropDropout(0.5, "bernoulli", rescale=True)},
        {"dropout": BackpropDropout(0.5, rescale=True)},
        {"hierarchy_aware": 0.5},
        {"accumulation": 2},
        {"warmup": 0.9},
        {"clip": 1e-3},
        {"documents": ((0, 4), (2, 2))},
        {"documents": 2, "banks": 2},
        {"encoder_rate": 0.1},
    ],
)
def test_no_switch_is_dead(switch: dict[str, Any]) -> None:
    changed, plain = trained(encoder_dropout=0.0, **switch)[0], trained(encoder_dropout=0.0)[0]
    assert not same(weights(changed), weights(plain))


def test_memories_side_by_side_are_batches_of_their_own() -> None:
    """Also where they have different numbers of questions."""
    mac = tiny_mac()
    some = [(text, pairs[: 1 + i % 2]) for i, (text, pairs) in enumerate(EXAMPLES[:6])]
    some[1] = some[1][0], [*EXAMPLES[7][1], *EXAMPLES[8][1]]
    batch = mac.encode(*zip(*some, strict=True))
    parts = [mac.encode(*zip(*some[first : first + 2], strict=True)) for first in (0, 2, 4)]
    n_labels = [int(part.qa.labels_mask.sum()) for part in parts]
    expected = sum(mac(part) * n for part, n in zip(parts, n_labels, strict=True)) / sum(n_labels)
    torch.testing.assert_close(mac(batch, n_banks=3), expected)
    assert not torch.isclose(mac(batch), expected)


def test_banks_that_cannot_be() -> None:
    mac = tiny_mac()
    batch = mac.encode(*zip(*EXAMPLES[:4], strict=True))
    with pytest.raises(RematchError, match="4 documents do not make 3 memories"):
        mac(batch, n_banks=3)
    with pytest.raises(RematchError, match="aggregated twice"):
        mac(batch, twice=True, n_banks=2)
    with pytest.raises(RematchError, match="banks = 1"):
        Recipe(steps=1, documents=2, learning_rate=1e-3, banks=2, dropout=BackpropDropout(0.5))


def test_the_order_may_be_given() -> None:
    recipe = Recipe(steps=2, documents=2, learning_rate=1e-2, banks=2)
    given, plain = tiny_mac(double=False), tiny_mac(double=False)
    order = window_order(len(EXAMPLES), 8, 0)
    train(given, EXAMPLES, recipe, 5, order=order.tolist())
    train(plain, EXAMPLES, recipe, 0)
    assert same(weights(given), weights(plain))
    with pytest.raises(RematchError, match="7 examples, and the recipe reads 8"):
        train(given, EXAMPLES, recipe, 0, order=order[:7].tolist())


def test_encoders_may_learn_more_slowly() -> None:
    start = weights(tiny_mac(encoder=t5(), double=False))
    moved = weights(trained(encoder_dropout=0.0, steps=1, encoder_rate=0.01)[0])
    for name in ("amortizer.backbone.shared.weight", "aggregator.blocks.0.query.weight"):
        most = (moved[name] - start[name]).abs().max().item()  # Adam's first step moves by the rate
        assert most == pytest.approx(1e-2 * (0.01 if ".backbone." in name else 1), rel=1e-3)


def test_what_a_run_read_and_cost() -> None:
    _, training = trained(steps=3)
    assert (training.documents, training.questions) == (12, 24)  # the twelve examples, once each
    assert training.tokens == sum(
        len(text.split()) + sum(len(pair.question.split()) + len(pair.answer.split()) + 1 for pair in pairs)
        for text, pairs in EXAMPLES
    )
    assert len(training.losses) == 3
    mac, texts, pairs = tiny_mac(double=False), [text for text, _ in EXAMPLES], [pairs for _, pairs in EXAMPLES]
    step = count_flops(mac, mac.encode(texts, pairs), backward=True).total
    _, whole = trained(steps=5, documents=12)
    assert whole.flops == 5 * step
    _, dropped = trained(steps=5, documents=12, dropout=BackpropDropout(0.75))
    assert dropped.questions == 5 * 3 * 2
    assert dropped.flops < 0.6 * whole.flops


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [4, 5])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(after: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "steps": 6, "documents": ((0, 2), (3, 3)), "learning_rate": 1e-2, "hierarchy_aware": 0.5, "checkpoint_every": 2,
        "dropout": BackpropDropout(0.5, "bernoulli"),
    }  # fmt: skip

    def new() -> MAC:
        return tiny_mac(encoder=t5(dropout=0.1), double=False)

    whole = new()
    run = train(whole, EXAMPLES, Recipe(**options), 3)

    def kill(n: int, loss: float) -> None:
        if n == after:
            raise Killed

    with pytest.raises(Killed):
        train(new(), EXAMPLES, Recipe(**options), 3, tmp_path, kill)
    resumed = new()
    again = train(resumed, EXAMPLES, Recipe(**options), 3, tmp_path)
    assert same(weights(whole), weights(resumed))
    assert again.losses == run.losses
    assert (again.flops, again.documents, again.questions, again.tokens) == (
        run.flops, run.documents, run.questions, run.tokens,
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    for other, seed in ((EXAMPLES, 4), (EXAMPLES[::-1], 3)):
        with pytest.raises(RematchError, match="is the checkpoint of another run"):
            train(new(), other, Recipe(**options), seed, tmp_path)


def test_training_reads_the_prompts_of_its_examples() -> None:
    def run(given: list[Any]) -> tuple[list[float], int, float, dict[str, Tensor]]:
        mac = tiny_mac(encoder=t5(), double=False)
        training = train(mac, given, Recipe(steps=3, documents=4, learning_rate=1e-2), 0)
        return training.losses, training.tokens, training.flops, weights(mac)

    plain = run(list(EXAMPLES))
    equal = run([(document, pairs, [pair.question for pair in pairs]) for document, pairs in EXAMPLES])
    assert plain[:3] == equal[:3]
    assert same(plain[3], equal[3])
    longer = [(document, pairs, [f"w1 w2 {pair.question}" for pair in pairs]) for document, pairs in EXAMPLES]
    mixed = run([*longer[:6], *EXAMPLES[6:]])
    assert plain[0] != mixed[0] != run(longer)[0]
    assert run(longer)[1] == plain[1] + 2 * 3 * 4 * 2  # tokens x steps x documents x questions
    assert run(longer)[2] > plain[2]
    document, pairs = EXAMPLES[0]
    with pytest.raises(RematchError, match="2 questions and 3 prompts"):
        run([(document, pairs, ["w1"] * 3)] * 4)
