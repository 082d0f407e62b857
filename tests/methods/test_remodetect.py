"""ReMoDetect's invariants: the loss by hand, and what training reads, changes, leaves alone and costs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from tiny_classifiers import NO_DROPOUT, bert, deberta, tokenizer, words
from torch import Tensor, nn

from baselines.detectors.sequence import BCEDetector
from methods.remodetect import OFFICIAL, PAPER, LossWeights, ReMoDetector, remodetect_loss
from methods.remodetect.loss import bradley_terry
from rematch.errors import RematchError
from rematch.flops import count_flops


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


# -- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("difference", "value"), [(0, 0.693147), (1, 0.313262), (2, 0.126928), (-1, 1.313262)])
def test_bradley_terry_by_hand(difference, value):
    winner, loser = vector(0.5 + difference), vector(0.5)
    loss = bradley_terry(winner, loser).sum()
    assert loss.item() == pytest.approx(value, abs=1e-6)
    loss.backward()
    assert winner.grad is not None
    assert loser.grad is not None
    assert winner.grad.item() == pytest.approx(-1 / (1 + math.exp(difference)))
    assert winner.grad.item() == -loser.grad.item()
    assert bradley_terry(vector(-1e4), vector(1e4)).item() == 2e4


WORKED = (vector(2.0), vector(0.0), vector(1.0), vector(0.5), vector(0.0))


@pytest.mark.parametrize(
    ("weights", "value"),
    [
        (PAPER, 0.317385),
        (LossWeights(0.3, 0.3, 0.01, 0.01, "mean3", "sum"), 0.117128),
        (LossWeights(0.3, 0.3, 0.0, 0.01, "mean3", "sum"), 0.114628),
        # 0.126928 + 0.01 * 4 / 2, and 0.35 * (0.338262 + 0.318262), divided by 3; then 0.01 * 0.25
        (OFFICIAL, (0.146928 + 0.35 * 0.656524) / 3 + 0.0025),
    ],
)
def test_the_worked_total(weights, value):
    assert remodetect_loss(*WORKED, weights=weights).item() == pytest.approx(value, abs=1e-6)


def test_the_presets_are_the_papers_and_the_official_codes():
    assert LossWeights(0.3, 0.3, 0.01, 0.0, "sum", "mean") == PAPER
    assert LossWeights(0.35, 0.35, 0.01, 0.01, "mean3", "sum") == OFFICIAL


def test_beta1_weighs_mixed_over_human_and_beta2_llm_over_mixed():
    only = {"lam": 0.0, "score_penalty": 0.0}
    llm, human, mixed = vector(2.0), vector(0.0), vector(1.5)
    base = bradley_terry(llm, human).item()
    first = remodetect_loss(llm, human, mixed, weights=LossWeights(beta1=1, beta2=0, **only)).item()
    second = remodetect_loss(llm, human, mixed, weights=LossWeights(beta1=0, beta2=1, **only)).item()
    assert first - base == pytest.approx(math.log1p(math.exp(-1.5)))
    assert second - base == pytest.approx(math.log1p(math.exp(-0.5)))


@pytest.mark.parametrize("penalty", [0.0, 0.01])
def test_a_shift_of_all_rewards_changes_the_penalty_only(penalty):
    weights = LossWeights(lam=0.0, score_penalty=penalty)
    rewards = vector(2.0, -1.0), vector(0.3, 0.2), vector(1.0, 0.1)
    shifted = [reward + 7 for reward in rewards]
    first, second = remodetect_loss(*rewards, weights=weights).item(), remodetect_loss(*shifted, weights=weights).item()
    assert (first == pytest.approx(second, abs=1e-9)) == (penalty == 0)


def test_weights_of_zero_make_the_loss_independent_of_mixed_texts_and_replay():
    rewards = {name: vector(*values) for name, values in {
        "r_llm": (2.0, 1.0), "r_human": (0.1, 0.2), "r_mixed": (1.0, 5.0), "r_replay": (3.0, 4.0), "teacher_replay": (0.0, 9.0),
    }.items()}  # fmt: skip
    loss = remodetect_loss(**rewards, weights=LossWeights(beta1=0, beta2=0, lam=0, score_penalty=0.1))
    loss.backward()
    assert [name for name, reward in rewards.items() if reward.grad is not None] == ["r_llm", "r_human"]
    pair = {name: rewards[name] for name in ("r_llm", "r_human")}
    assert remodetect_loss(**pair, weights=LossWeights(0, 0, 0, 0.1)).item() == loss.item()
    for wrong in (LossWeights(0.3, 0, 0), LossWeights(0, 0.3, 0), LossWeights(0, 0, 0.01)):
        with pytest.raises(ValueError, match="needed unless"):
            remodetect_loss(**pair, weights=wrong)


def test_the_replay_term_vanishes_with_its_gradient_where_student_and_teacher_agree():
    weights = LossWeights(lam=1e6, replay_reduction="sum")
    replay = vector(0.3, -2.0)
    loss = remodetect_loss(vector(2.0), vector(0.0), vector(1.0), replay, replay.detach().clone(), weights=weights)
    assert loss.item() == remodetect_loss(vector(2.0), vector(0.0), vector(1.0), weights=LossWeights(lam=0)).item()
    loss.backward()
    assert replay.grad is not None
    assert replay.grad.tolist() == [0, 0]


def test_the_replay_is_averaged_in_the_paper_and_added_up_in_the_code():
    def replay(weights: LossWeights) -> float:
        rewards = vector(2.0, 2.0), vector(0.0, 0.0), vector(1.0, 1.0)
        without = remodetect_loss(*rewards, vector(0, 0), vector(0, 0), weights=weights)
        return (remodetect_loss(*rewards, vector(1, 3), vector(0, 0), weights=weights) - without).item()

    assert replay(PAPER) == pytest.approx(0.01 * 5)
    assert replay(OFFICIAL) == pytest.approx(0.01 * 10)


@pytest.mark.parametrize("weights", [LossWeights(lam=0), LossWeights(0.35, 0.35, 0.0, 0.01, "mean3", "sum")])
def test_a_batchs_loss_is_the_mean_of_its_triplets_losses_with_or_without_mixed_texts(weights):
    llm, human, mixed = vector(2.0, 1.0, -1.0), vector(0.0, 0.5, 0.2), vector(1.0, 0.3)
    batch = remodetect_loss(llm, human, mixed, mixed_rows=torch.tensor([0, 2]), weights=weights)
    one_by_one = [
        remodetect_loss(llm[:1], human[:1], mixed[:1], weights=weights),
        remodetect_loss(
            llm[1:2], human[1:2], mixed[:0], mixed_rows=torch.tensor([], dtype=torch.long), weights=weights
        ),
        remodetect_loss(llm[2:], human[2:], mixed[1:], weights=weights),
    ]
    assert batch.item() == pytest.approx(torch.stack(one_by_one).mean().item())
    with pytest.raises(ValueError, match="give mixed_rows"):
        remodetect_loss(llm, human, mixed, weights=weights)


@pytest.mark.parametrize(
    "wrong", [{"beta1": -1}, {"lam": math.nan}, {"normalise": "mean"}, {"replay_reduction": "max"}]
)
def test_wrong_weights_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LossWeights(**wrong)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ReMoDetector(**wrong)


# -- training ---------------------------------------------------------------------------------------------------------

TRIPLETS: list[tuple[str, str | None, str]] = [("a a a", "b b a", "b b b")] * 8
REPLAY = [words(3, seed) for seed in range(8)]


class Reads:
    """A tokenizer that remembers all texts."""

    def __init__(self) -> None:
        self.inner, self.calls = tokenizer(), []

    def __call__(self, texts: list[str], **options: Any) -> Any:
        self.calls.append(list(texts))
        return self.inner(texts, **options)

    def texts(self) -> set[str]:
        return {text for call in self.calls for text in call}


def detector(trunk: Any = bert, **options: Any) -> ReMoDetector:
    return ReMoDetector(**{"learning_rate": 3e-3, **options}).attach(trunk(), tokenizer())


@pytest.mark.parametrize("trunk", [bert, deberta])
def test_orientation(trunk):
    trained = detector(trunk, batch_size=2).fit(TRIPLETS * 5, REPLAY * 5)
    scores = trained.decision_function(["a a a", "a a", "b b b", "b b"])
    assert roc_auc_score([1, 1, 0, 0], scores) == 1
    llm, mixed, human = trained.decision_function(["a a a", "b b a", "b b b"])
    assert llm > mixed > human


def test_the_preset_is_one_switch_and_single_weights_win():
    assert ReMoDetector().weights == PAPER
    assert ReMoDetector(preset="official").weights == OFFICIAL
    assert ReMoDetector(preset="official", lam=0, beta1=0.1).weights == LossWeights(0.1, 0.35, 0, 0.01, "mean3", "sum")
    assert clone(ReMoDetector(preset="official", lam=0.1)).weights.lam == 0.1
    with pytest.raises(ValueError, match="preset must be one of paper, official"):
        ReMoDetector(preset="code")  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_the_first_loss_is_that_of_the_initial_rewards(preset):
    trained = ReMoDetector(preset=preset, batch_size=2).attach(bert(**NO_DROPOUT), tokenizer())
    llm, mixed, human = trained.decision_function(TRIPLETS[0])
    expected = remodetect_loss(
        *(torch.tensor([reward] * 2) for reward in (llm, human, mixed)),
        torch.zeros(2),
        torch.zeros(2),
        weights=trained.weights,
    )
    trained.fit(TRIPLETS, REPLAY)
    assert trained.losses_[0] == pytest.approx(expected.item(), abs=1e-6)
    assert trained.steps_ == 4


def test_the_teacher_is_frozen_and_the_student_is_not(monkeypatch):
    made: list[nn.Module] = []
    original = ReMoDetector._frozen_copy
    modes = set()

    def watched(self: ReMoDetector) -> nn.Module:
        made.append(original(self))
        made[0].register_forward_hook(lambda module, *_: modes.add((module.training, torch.is_grad_enabled())))
        self.model.register_forward_hook(lambda module, *_: modes.add((module.training, torch.is_grad_enabled())))
        return made[0]

    monkeypatch.setattr(ReMoDetector, "_frozen_copy", watched)
    trained = detector().fit(TRIPLETS, REPLAY)
    (teacher,) = made
    initial = bert().state_dict()
    assert all(torch.equal(tensor, initial[name]) for name, tensor in teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert any(not torch.equal(tensor, initial[name]) for name, tensor in trained.model.state_dict().items())
    assert modes == {(True, True), (False, False)}
    assert not trained.model.training
    assert not teacher.training


@pytest.mark.parametrize("lam", [0.0, 1e6])
def test_much_replay_holds_the_scores_on_the_buffer(lam):
    """Over 50 updates at the paper's rate: within 1e-2 for lambda = 1e6, far beyond without."""
    trained = ReMoDetector(lam=lam, epochs=50 / 8).attach(bert(**NO_DROPOUT), tokenizer())
    before = trained.decision_function(REPLAY)
    trained.fit(TRIPLETS, REPLAY)
    assert trained.steps_ == 50
    moved = np.abs(trained.decision_function(REPLAY) - before).max()
    assert moved < 1e-2 if lam else moved > 0.03


def test_what_has_no_weight_is_not_read(monkeypatch):
    def texts_read(**options: Any) -> set[str]:
        reads = Reads()
        ReMoDetector(**options).attach(bert(), reads).fit(TRIPLETS, REPLAY)
        return reads.texts()

    everything = {"a a a", "b b a", "b b b", *REPLAY}
    assert texts_read() == texts_read(beta1=0) == texts_read(beta2=0) == everything
    assert texts_read(beta1=0, beta2=0) == everything - {"b b a"}
    monkeypatch.setattr(ReMoDetector, "_frozen_copy", lambda self: pytest.fail("a teacher without replay"))
    assert texts_read(lam=0) == {"a a a", "b b a", "b b b"}
    assert texts_read(lam=0, beta1=0, beta2=0) == {"a a a", "b b b"}


def test_an_epoch_ends_with_the_shorter_stream_and_both_are_shuffled_anew():
    def replayed(epochs: float) -> list[str]:
        reads = Reads()
        trained = ReMoDetector(epochs=epochs).attach(bert(), reads).fit(TRIPLETS, REPLAY[:4])
        assert trained.steps_ == int(4 * epochs)
        return [call[-1] for call in reads.calls if len(call) == 4]

    assert sorted(replayed(1)) == sorted(REPLAY[:4])
    twice = replayed(2.5)
    assert sorted(twice[:4]) == sorted(twice[4:8]) == sorted(REPLAY[:4])
    assert twice[:4] != twice[4:8]
    assert detector(lam=0).fit(TRIPLETS).steps_ == 8
    with pytest.raises(RematchError, match="replay texts are needed unless lam = 0"):
        detector().fit(TRIPLETS, ["", "word"])


def test_triplets_without_a_mixed_text_are_counted_and_keep_their_other_pair():
    reads = Reads()
    mixed = [("a a a", None, "b b b"), ("a a a", "b b b", "b b b"), ("a a a", "", "b b b"), TRIPLETS[0]]
    trained = ReMoDetector(lam=0, batch_size=4).attach(bert(**NO_DROPOUT), reads)
    initial = trained.decision_function(["a a a", "b b b", "b b a"])
    reads.calls.clear()
    trained.fit(mixed)
    assert trained.n_without_mixed_ == 3
    assert trained.texts_seen_ == 9
    assert sum(text == "b b a" for call in reads.calls for text in call) == 1
    llm, human, middle = (vector(value) for value in initial)
    whole = remodetect_loss(llm, human, middle, weights=trained.weights).item()
    pair = bradley_terry(llm, human).item()
    assert trained.losses_ == pytest.approx([(whole + 3 * pair) / 4], abs=1e-6)


def test_texts_that_no_detector_scores_are_left_out():
    trained = detector(lam=0).fit([("a a", None, "b b"), ("a", "b b", "b b"), ("a a", "b a", ""), ("a a", None, "b b")])
    assert (trained.n_dropped_, trained.n_without_mixed_, trained.steps_) == (2, 2, 2)
    with pytest.raises(RematchError, match="nothing to train on"):
        detector(lam=0).fit([])


def test_triplets_are_read_in_the_order_of_bces_pairs():
    pairs = [(words(4, seed), words(5, seed)) for seed in range(6)]
    first, second = Reads(), Reads()
    ReMoDetector(lam=0, beta1=0, beta2=0, seed=5).attach(bert(), first).fit(
        [(llm, None, human) for llm, human in pairs]
    )
    BCEDetector(seed=5).attach(deberta(), second).fit(*zip(*pairs, strict=True))
    assert first.calls == second.calls


def test_the_same_seed_gives_the_same_scores():
    def scores(seed: int) -> list[float]:
        trained = detector(seed=seed, batch_size=3).fit(TRIPLETS, REPLAY)
        return trained.score(REPLAY).tolist()

    assert scores(1) == scores(1)
    assert scores(1) != scores(2)


def test_zero_shot():
    trained = detector(finetune=False).fit(TRIPLETS, REPLAY)
    initial = bert().state_dict()
    assert all(torch.equal(tensor, initial[name]) for name, tensor in trained.model.state_dict().items())
    assert (trained.training_flops_, trained.steps_) == (0, 0)


@pytest.mark.parametrize(
    ("options", "forwards"),
    [({}, 13), ({"lam": 0}, 9), ({"beta1": 0, "beta2": 0}, 10), ({"lam": 0, "beta1": 0, "beta2": 0}, 6)],
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_triplet_costs_four_trained_passes_and_one_of_the_teacher(options, forwards, batch_size):
    """13 F with a backward of 2 F, exactly: the gradient goes down to the embeddings, so no layer's backward is cheaper."""
    trained = detector(batch_size=batch_size, **options)
    batch = trained.encode(["a a a"])
    forward = count_flops(lambda: trained.model(**batch).logits).forward
    trained.fit(TRIPLETS, REPLAY)
    assert trained.training_flops_ == 8 * forwards * forward
