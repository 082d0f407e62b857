"""Before matching names: what an entry holds of its document can be answered from, at a scale for tests.

A few people, a recipe of its own and a threshold that fits them: it is the path from an entry to an answer that is tested. The
sheet's gates, names matched in memories of 4 and of 16 documents, are played at every tier (metric ``em_small`` of the card).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from baselines.qa import em_strict
from rematch.cards import Card
from workflows.mac.corpus import MAIN, read_stream
from workflows.mac.memory import load_memory
from workflows.mac.players import Asking

STEPS = 220


@pytest.fixture(scope="module")
def gate(card: Card, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from rooms import Room

    small = card.options("bases", "memory_start", "mini")
    rate = {"learning_rate": 0.004, "encoder_rate": 0.5, "clip": 1.0}
    options = {
        "corpus": {"n_names": 40, "n_documents": 1024, "n_validation": 64},
        "lm": {"steps": 120},
        "qa_lm": {"max_steps": 1, "validate_every": 1},
        "streams": {"n_train": 2048, "n_validation": 4, "n_stream": 8},
        "memory_none": {
            "n_documents": 2048, "sizes": small["sizes"] | {"aggregate": "none"},
            "encoder_sizes": small["encoder_sizes"], "recipe": {"steps": STEPS, "documents": 16, **rate},
        },
    }  # fmt: skip
    return Room(card, "mini", tmp_path_factory.mktemp("gate"), base_options=options)


@pytest.mark.slow
def test_an_entry_that_is_given_holds_the_answers_for_names_that_are_new(gate: Any) -> None:
    bases: dict[str, Path] = {name: gate.build(name)[0] for name in ("lm", "qa_lm", "streams", "memory_none")}
    mac = load_memory(bases["memory_none"], bases, None)
    documents = read_stream(bases["streams"], MAIN)  # of names that meta-training never met
    pairs = [(place, pair) for place, document in enumerate(documents) for pair in document.pairs]
    rows, ask = torch.tensor([[place] for place, _ in pairs]), Asking(max_new_tokens=3)

    def right(bank_of: list[str], select: torch.Tensor) -> float:
        mac.bank = mac.new_bank()
        mac.adapt(bank_of)
        answers = mac.answer([pair.question for _, pair in pairs], select=select, max_new_tokens=ask.max_new_tokens)
        return float(np.mean([em_strict(found, pair.answer) for found, (_, pair) in zip(answers, pairs, strict=True)]))

    texts = [document.text for document in documents]
    gold, wrong = right(texts, rows), right(texts, (rows + 1) % len(texts))
    print(f"gold {gold:.2f}, another document {wrong:.2f}")
    assert gold > 0.25
    assert gold > 3 * wrong
