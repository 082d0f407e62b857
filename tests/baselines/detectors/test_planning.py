"""Planned FLOPs of training are those that training then counts, whatever the lengths of the texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_classifiers import bert, deberta, tokenizer, words

from baselines.detectors.sequence import BCEDetector
from methods.remodetect import ReMoDetector

RNG = np.random.default_rng(0)
TEXTS = [words(int(n), seed) for seed, n in enumerate(RNG.integers(3, 40, size=24))]
TRIPLETS = [(TEXTS[i], TEXTS[i + 6], TEXTS[i + 12]) for i in range(6)]


@pytest.mark.parametrize("model", [bert, deberta])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_plan_of_remodetect_is_what_it_then_costs(model, batch_size) -> None:
    detector = ReMoDetector(batch_size=batch_size, epochs=1.5).attach(model(), tokenizer())
    planner = detector.planner(detector.pass_cost(TEXTS))
    planner.fit(TRIPLETS, TEXTS)
    detector.fit(TRIPLETS, TEXTS)
    assert planner.training_flops_ == pytest.approx(detector.training_flops_, rel=1e-6)


@pytest.mark.parametrize("model", [bert, deberta])
def test_a_plan_of_a_classifier_is_what_it_then_costs(model) -> None:
    detector = BCEDetector(epochs=2.17).attach(model(), tokenizer())
    planner = detector.planner(detector.pass_cost(TEXTS))
    planner.fit(TEXTS[:6], TEXTS[6:12])
    detector.fit(TEXTS[:6], TEXTS[6:12])
    assert planner.training_flops_ == pytest.approx(detector.training_flops_, rel=1e-6)


def test_planning_changes_nothing() -> None:
    detector = ReMoDetector().attach(bert(), tokenizer())
    before = {name: value.clone() for name, value in detector.model.state_dict().items()}
    detector.planner(detector.pass_cost(TEXTS)).fit(TRIPLETS, TEXTS)
    assert all(torch.equal(value, before[name]) for name, value in detector.model.state_dict().items())
    assert all(parameter.grad is None for parameter in detector.model.parameters())
    assert (detector.training_flops_, detector.steps_) == (0.0, 0)
