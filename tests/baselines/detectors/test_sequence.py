"""Trained detectors on tiny random models: padding, bad rows, orientation, calibration, order, schedule, cost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from tiny_classifiers import INNER, LAYERS, NO_DROPOUT, WIDTH, bert, deberta, llama, tokenizer, words
from torch import nn

from baselines.detectors.sequence import (
    BCEDetector,
    HubClassifier,
    Passes,
    SequenceDetector,
    item_order,
    parameter_groups,
)
from rematch.errors import RematchError
from rematch.flops import count_flops

TRUNKS = pytest.mark.parametrize("trunk", [bert, deberta])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Spy:
    """A tokenizer that remembers the longest text that it was given."""

    def __init__(self) -> None:
        self.inner, self.longest = tokenizer(), 0

    def __call__(self, texts: list[str], **options: Any) -> Any:
        self.longest = max(self.longest, *map(len, texts))
        return self.inner(texts, **options)


# -- scores ---------------------------------------------------------------------------------------------------------------


@TRUNKS
def test_padding_changes_no_score(trunk):
    texts = [words(n) for n in (2, 5, 11, 30)]
    detector = SequenceDetector(inference_batch_size=4).attach(trunk(), tokenizer())
    alone = [detector.decision_function([text])[0] for text in texts]
    np.testing.assert_allclose(detector.decision_function(texts), alone, atol=1e-5)
    assert np.std(alone) > 1e-3
    assert detector.score(texts).tolist() == detector.decision_function(texts[::-1])[::-1].tolist()


@TRUNKS
def test_all_passes_of_a_step_in_one_call_give_the_gradients_of_one_call_each(trunk):
    groups = [[words(3)], [words(9), words(4)], [], [words(20)]]
    detector = BCEDetector().attach(trunk(**NO_DROPOUT), tokenizer())
    detector.model.train()

    def gradients(rewards: list[torch.Tensor]) -> list[torch.Tensor]:
        found = torch.cat([(index + 1) * reward for index, reward in enumerate(rewards) if len(reward)]).sum()
        parameters = list(detector.model.parameters())
        return [g for g in torch.autograd.grad(found, parameters, allow_unused=True) if g is not None]

    passes = Passes(detector)
    together = gradients(passes.trained(*groups))
    apart = gradients(
        [torch.cat([Passes(detector).trained([t])[0] for t in group]) if group else torch.empty(0) for group in groups]
    )
    assert passes.texts == 4
    assert passes.tokens == 3 + 9 + 4 + 20 + 4 * 2
    for first, second in zip(together, apart, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


@TRUNKS
def test_bad_rows_get_a_status_and_the_others_their_score(trunk):
    good = "a b a w1"
    rows = [
        good,
        "",
        "  ",
        "a",
        None,
        b"\xff\xfe a b",
        "a b " * 50_000,
        "a\x00 \x07b",
        "שלום עולם",
        good,
        7,
        "\ud800 a b",
    ]
    detector = SequenceDetector(max_length=16, inference_batch_size=3).attach(trunk(), tokenizer())
    values, statuses = detector.score_texts(rows)
    assert statuses == [
        "ok", "empty", "empty", "one word", "not text", "not text", "truncated", "ok", "ok", "ok", "not text", "not text",
    ]  # fmt: skip
    assert values.dtype == np.float64
    assert np.isnan(values).tolist() == [status not in ("ok", "truncated") for status in statuses]
    assert values[0] == values[9]  # duplicates, to the last bit
    assert values[0] == pytest.approx(detector.decision_function([good])[0], abs=1e-6)


def test_a_batch_without_any_text():
    detector = SequenceDetector().attach(bert(), tokenizer())
    assert detector.decision_function([]).shape == (0,)
    assert np.isnan(detector.decision_function(["", None])).all()


def test_a_long_text_is_not_tokenised_whole_and_scored_like_its_beginning():
    spy = Spy()
    detector = SequenceDetector(max_length=12).attach(bert(), spy)
    long = "w1 w2 w3 " * 40_000
    values, statuses = detector.score_texts([long])
    assert spy.longest < 1000
    assert statuses == ["truncated"]
    whole = SequenceDetector(max_length=12).attach(bert(), tokenizer())
    assert values[0] == pytest.approx(whole.decision_function(["w1 w2 w3 " * 3 + "w1 w2"])[0], abs=1e-6)


def test_a_text_of_few_long_words_is_read_to_the_end():
    detector = SequenceDetector(max_length=4).attach(bert(), tokenizer())  # 2 words and 2 special tokens
    first, other = "x" * 5000 + " w1", "x" * 5000 + " w2"
    assert detector.score_texts([first, other]).statuses == ["ok", "ok"]
    assert len(set(detector.decision_function([first, other]))) == 2
    assert detector.score_texts([first + " w1"]).statuses == ["truncated"]


def test_a_text_that_just_fits_is_whole():
    detector = SequenceDetector(max_length=12).attach(bert(), tokenizer())
    assert detector.score_texts([words(10), words(11), words(9)]).statuses == ["ok", "truncated", "ok"]
    limited = SequenceDetector(max_length=512).attach(bert(), tokenizer(model_max_length=12))
    assert limited.score_texts([words(10), words(11)]).statuses == ["ok", "truncated"]


def test_a_broken_model_is_an_error_and_no_score():
    model = bert()
    with torch.no_grad():
        model.classifier.bias.fill_(math.nan)
    with pytest.raises(RematchError, match="not finite"):
        SequenceDetector().attach(model, tokenizer()).score(["a b"])


def test_a_detector_without_a_model_says_what_to_do():
    with pytest.raises(RematchError, match="from_pretrained"):
        BCEDetector().decision_function(["a b"])


def test_two_logits_are_not_a_reward():
    with pytest.raises(RematchError, match=r"\(batch, 1\)"):
        SequenceDetector().attach(bert(num_labels=2), tokenizer()).score(["a b"])


# -- estimator ------------------------------------------------------------------------------------------------------------


def test_parameters_are_scikit_learns():
    detector = BCEDetector(learning_rate=1e-3, epochs=2.5).attach(bert(), tokenizer())
    copy = clone(detector)
    assert copy.get_params() == detector.get_params()
    assert copy.model is None
    assert copy.set_params(batch_size=4).batch_size == 4
    assert set(detector.get_params()) >= {"max_length", "finetune", "seed", "warmup", "weight_decay"}
    with pytest.raises(ValueError, match="batch_size"):
        copy.set_params(batch_size=0)
    for wrong in ({"epochs": 0}, {"max_length": 0}, {"warmup": 2}, {"learning_rate": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            BCEDetector(**wrong)


class Fixed(SequenceDetector):
    """A detector whose texts are their scores."""

    def decision_function(self, texts):
        return np.array([float(text) for text in texts])


def test_platt_scaling_by_hand():
    """One text of either class: targets 2/3 and 1/3, which a line through (1, ln 2) and (-1, -ln 2) meets."""
    detector = Fixed().calibrate(["1", "-1"], [1, 0])
    assert detector.calibration_ == pytest.approx((math.log(2), 0.0), abs=1e-5)
    np.testing.assert_allclose(detector.predict_proba(["1", "3", "nan"])[:, 1], [2 / 3, 8 / 9, math.nan], atol=1e-5)
    np.testing.assert_allclose(detector.predict_proba(["1", "0"]).sum(1), 1)
    assert detector.predict(["1", "-2", "nan", "1000", "-1000"]).tolist() == [1, 0, -1, 1, 0]


def test_calibration_keeps_the_order_and_never_flips():
    detector = Fixed()
    with pytest.warns(UserWarning, match="higher score means human"):
        detector.calibrate(["1", "2", "-1", "-2"], [0, 0, 1, 1])
    assert detector.decision_function(["1"])[0] == 1
    assert detector.predict(["5"]).tolist() == [0]


def test_calibration_needs_both_classes_and_comes_first():
    with pytest.raises(NotFittedError, match="calibrate"):
        Fixed().predict_proba(["1"])
    with pytest.raises(RematchError, match="both classes"):
        Fixed().calibrate(["1", "2", "nan"], [1, 1, 0])
    with pytest.raises(RematchError, match="1 for generated"):
        Fixed().calibrate(["1", "2"], ["llm", "human"])


@TRUNKS
def test_a_saved_detector_comes_back_with_its_calibration(trunk, tmp_path):
    detector = SequenceDetector(max_length=20).attach(trunk(), tokenizer())
    texts = [words(n, seed) for n in (4, 8) for seed in range(5)]
    detector.calibrate(texts, detector.decision_function(texts) > np.median(detector.decision_function(texts)))
    detector.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    again = SequenceDetector.from_pretrained(tmp_path, inference_batch_size=4)
    assert (again.max_length, again.inference_batch_size) == (20, 4)
    np.testing.assert_allclose(again.predict_proba(texts), detector.predict_proba(texts), atol=1e-6)
    assert SequenceDetector.from_pretrained(tmp_path, max_length=9).max_length == 9
    with pytest.raises(RematchError, match="HubClassifier needs 2"):
        HubClassifier.from_pretrained(tmp_path, positive_class=1)
    with pytest.raises(RematchError, match="no sequence classifier"):
        SequenceDetector.from_pretrained(tmp_path / "elsewhere")


def test_a_decoder_without_a_padding_token_scores_batches_like_single_texts(tmp_path):
    llama().save_pretrained(tmp_path)
    tokenizer(pad_token=None, eos_token="[SEP]").save_pretrained(tmp_path)
    detector = BCEDetector.from_pretrained(tmp_path, learning_rate=3e-3, batch_size=2)
    texts = [words(n) for n in (2, 5, 11, 30)]
    alone = [detector.decision_function([text])[0] for text in texts]
    np.testing.assert_allclose(detector.decision_function(texts), alone, atol=1e-5)
    low, high = detector.fit(*toy_pairs(20)).decision_function(["b b b", "a a a"])
    assert low < high


# -- hub classifiers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positive", [0, 1])
def test_a_hub_classifier_is_oriented_by_its_training_label(positive):
    model = bert(num_labels=2)
    with torch.no_grad():  # the class of generated texts is always the likelier one
        model.classifier.weight.zero_()
        model.classifier.bias[:] = torch.tensor([2.0, -1.0]) if positive == 0 else torch.tensor([-1.0, 2.0])
    detector = HubClassifier(positive_class=positive).attach(model, tokenizer())
    assert detector.decision_function(["a b"])[0] == pytest.approx(3.0)
    assert HubClassifier(positive_class=1 - positive).attach(model, tokenizer()).score(["a b"])[0] == pytest.approx(
        -3.0
    )
    assert clone(detector).positive_class == positive
    assert not hasattr(detector, "fit")


@pytest.mark.parametrize(("labels", "positive"), [({0: "Human", 1: "ChatGPT"}, 1), ({0: "Fake", 1: "Real"}, 0)])
def test_the_label_trap_is_closed(labels, positive, tmp_path):
    model = bert(num_labels=2, id2label=labels)
    HubClassifier(positive_class=positive).attach(model, tokenizer()).save_pretrained(tmp_path)
    assert HubClassifier.from_pretrained(tmp_path, positive_class=positive).score(["a b"]).shape == (1,)
    with pytest.raises(RematchError, match=f"take {positive}"):
        HubClassifier.from_pretrained(tmp_path, positive_class=1 - positive)
    with pytest.raises(ValueError, match="0 or 1"):
        HubClassifier(positive_class=2)


# -- training -------------------------------------------------------------------------------------------------------------


def test_the_order_is_a_function_of_seed_and_sizes():
    order = item_order(10, 10, 25, seed=3, stream=0)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert len(set(order[20:])) == 5
    assert order[:10].tolist() != order[10:20].tolist()
    assert order.tolist() == item_order(10, 10, 25, seed=3, stream=0).tolist()
    assert order.tolist()[:12] == item_order(10, 10, 12, seed=3, stream=0).tolist()
    assert order.tolist() != item_order(10, 10, 25, seed=4, stream=0).tolist()
    assert order.tolist() != item_order(10, 10, 25, seed=3, stream=1).tolist()
    shorter = item_order(10, 4, 8, seed=3, stream=0)  # the other stream ends after 4
    assert shorter[:4].tolist() == order[:4].tolist()
    assert shorter[4:].tolist() == order[10:14].tolist()


def test_schedule():
    """Linear warm-up from zero over 5 of 50 updates, half a cosine to zero (official code)."""
    detector = BCEDetector().attach(bert(), tokenizer())
    optimizer, schedule = detector._optimizer(50)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:6] == pytest.approx([0, 4e-6, 8e-6, 1.2e-5, 1.6e-5, 2e-5])
    assert rates[49] == pytest.approx(2.436e-8, rel=1e-3)
    assert sorted(rates[5:], reverse=True) == rates[5:]
    assert optimizer.param_groups[0]["weight_decay"] == 0.01
    assert optimizer.param_groups[1]["weight_decay"] == 0.0


@TRUNKS
def test_biases_and_norms_do_not_decay(trunk):
    model = trunk()
    model.classifier.weight.requires_grad_(False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = ([names[id(p)] for p in group["params"]] for group in parameter_groups(model, 0.01))
    assert all(("LayerNorm" in name) or name.endswith(".bias") for name in spared)
    assert all(name.endswith(".weight") and "LayerNorm" not in name for name in decayed)
    assert {*decayed, *spared} == {*names.values()} - {"classifier.weight"}
    assert len(decayed) + len(spared) == len(names) - 1


def test_norms_are_told_by_class_not_by_name():
    class RMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    model = nn.ModuleDict(
        {"first": RMSNorm(), "LayerNorm_like": nn.Linear(3, 3), "attention": nn.MultiheadAttention(3, 1)}
    )
    decayed, spared = (group["params"] for group in parameter_groups(model, 0.01))
    assert len(decayed) == 3  # the linear layer's weight and the two of attention
    assert len(spared) == 4


def toy_pairs(n: int) -> tuple[list[str], list[str]]:
    return ["a a a"] * n, ["b b b"] * n


@TRUNKS
def test_orientation(trunk):
    detector = BCEDetector(learning_rate=3e-3, batch_size=2).attach(trunk(), tokenizer())
    detector.fit(*toy_pairs(30))
    scores = detector.decision_function(["a a a", "a a", "b b b", "b b"])
    assert roc_auc_score([1, 1, 0, 0], scores) == 1
    assert not detector.model.training
    assert detector.losses_[-1] < 0.5 * detector.losses_[0]
    assert all(parameter.grad is None for parameter in detector.model.parameters())


def test_the_same_seed_gives_the_same_scores_and_leaves_the_generator_alone():
    texts = [words(5, seed) for seed in range(8)]

    def scores(seed: int) -> list[float]:
        detector = BCEDetector(learning_rate=1e-3, seed=seed, batch_size=3).attach(bert(), tokenizer())
        torch.manual_seed(int(torch.randint(1000, ())))  # what ran before must not matter
        state = torch.random.get_rng_state()
        detector.fit(texts[:4], texts[4:])
        assert torch.equal(state, torch.random.get_rng_state())
        return detector.score(texts).tolist()

    assert scores(1) == scores(1)
    assert scores(1) != scores(2)


def test_the_first_update_changes_nothing_but_the_second_does():
    def trained(epochs: float) -> torch.Tensor:
        detector = BCEDetector(learning_rate=1e-2, weight_decay=0.5, epochs=epochs, warmup=1.0).attach(
            bert(), tokenizer()
        )
        return detector.fit(*toy_pairs(20)).model.classifier.weight

    assert torch.equal(trained(0.05), bert().classifier.weight)
    assert not torch.equal(trained(0.1), bert().classifier.weight)


def test_epochs_may_be_a_fraction():
    detector = BCEDetector(epochs=2.17, batch_size=4).attach(bert(), tokenizer()).fit(*toy_pairs(10))
    assert detector.steps_ == len(detector.losses_) == 6  # 22 pairs, four at a time
    assert detector.texts_seen_ == 44
    assert detector.tokens_seen_ == 44 * 5


def test_without_finetuning_nothing_changes_and_nothing_is_spent():
    detector = BCEDetector(finetune=False).attach(bert(), tokenizer())
    before = {name: tensor.clone() for name, tensor in detector.model.state_dict().items()}
    detector.fit(*toy_pairs(10))
    assert all(torch.equal(before[name], tensor) for name, tensor in detector.model.state_dict().items())
    assert (detector.training_flops_, detector.steps_, detector.texts_seen_, detector.losses_) == (0, 0, 0, [])


def test_pairs_that_cannot_be_scored_are_left_out():
    detector = BCEDetector().attach(bert(), tokenizer())
    detector.fit(["a a", "", "a a", "a a"], ["b b", "b b", "b", None])  # type: ignore[list-item]
    assert (detector.n_dropped_, detector.steps_) == (3, 1)
    with pytest.raises(RematchError, match="nothing to train on"):
        detector.fit(["a"], ["b b"])
    with pytest.raises(RematchError, match="pairs are needed"):
        detector.fit(["a a"], [])


def test_the_loss_is_the_mean_logistic_loss():
    model = bert(**NO_DROPOUT)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.fill_(1.0)  # -ln sigma(1) = 0.313262 and -ln sigma(-1) = 1.313262
    detector = BCEDetector(batch_size=2).attach(model, tokenizer()).fit(*toy_pairs(2))
    assert detector.losses_ == pytest.approx([0.813262])


def forward_flops(length: int) -> int:
    """Of one text by ``bert``: four projections, scores and mixing, two layers of the MLP; pooler and classifier."""
    layer = 4 * 2 * length * WIDTH**2 + 2 * 2 * length**2 * WIDTH + 2 * 2 * length * WIDTH * INNER
    return LAYERS * layer + 2 * WIDTH**2 + 2 * WIDTH


def test_flops_by_hand():
    """A pair costs 2 trained passes of 3 F: the gradient flows to the embeddings, so no layer's backward is cheaper."""
    detector = BCEDetector().attach(bert(), tokenizer())
    batch = detector.encode(["a a a a"])
    assert count_flops(lambda: detector.model(**batch).logits).forward == forward_flops(6)
    detector.fit(["a a a a"] * 3 + ["a a"], ["b b b b"] * 3 + ["b b b b b b"])
    assert detector.training_flops_ == 6 * (3 * forward_flops(6) + forward_flops(8))
