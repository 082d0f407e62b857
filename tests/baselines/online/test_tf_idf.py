"""TF-IDF as the weight of tokens."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from baselines.online import OnlineFinetuner, TfIdf, encode_documents, given, uniform
from rematch.errors import RematchError

DOCUMENTS = ["Anna lives in Paris .", "ben lives in rome .", "ben lives in rome .", "anna works"]


def idf(df: int, n: int = 3) -> float:
    """Of three distinct documents."""
    return math.log((1 + n) / (1 + df)) + 1


def test_weights_by_the_formula() -> None:
    text = "ANNA lives, ben lives x nowhere"
    weights = TfIdf(DOCUMENTS)(text)
    products = {"anna": idf(2), "lives": 2 * idf(2), "ben": idf(1)}
    norm = math.sqrt(sum(value**2 for value in products.values()))
    expected = np.zeros(len(text))
    for word, start in (("anna", 0), ("lives", 5), ("ben", 12), ("lives", 16)):
        expected[start : start + len(word)] = products[word] / norm
    assert weights == pytest.approx(expected)  # nothing for a single letter, an unknown word, or what is between words
    assert TfIdf(DOCUMENTS)("?!").tolist() == [0.0, 0.0]


def test_documents_without_a_word() -> None:
    for documents in ([], ["a ?", "."]):
        with pytest.raises(RematchError, match="at least one document with a word"):
            TfIdf(documents)


def test_a_token_has_the_largest_weight_of_its_characters(tokenizer: Any) -> None:
    text = "anna lives in paris ."
    read: list[str] = []

    def weigh(text: str) -> np.ndarray:
        read.append(text)
        return np.arange(len(text), dtype=float)

    (whole,), (cut,) = (encode_documents(tokenizer, [text], n, weigh_fn=weigh) for n in (9, 3))
    assert whole.weights is not None
    assert whole.weights.tolist() == [3.0, 9.0, 12.0, 18.0, 20.0]
    assert cut.weights is not None
    assert cut.weights.tolist() == [3.0, 9.0, 12.0]
    assert read == [text, "anna lives in"]  # what is not read does not count
    assert encode_documents(tokenizer, [text], 9)[0].weights is None


def test_fine_tuning_by_given_weights(tokenizer: Any, make_lm: Any) -> None:
    def learn(weights_fn: Any, documents: Any) -> torch.Tensor:
        model = make_lm["gpt2"]()
        OnlineFinetuner(model, weights_fn, 0.01).adapt(documents)
        return model.lm_head.weight.detach()

    documents = encode_documents(tokenizer, DOCUMENTS, 9, weigh_fn=TfIdf(DOCUMENTS))
    ones = [dataclasses.replace(each, weights=torch.ones(len(each.input_ids))) for each in documents]
    assert torch.equal(learn(given, ones), learn(uniform, documents))
    assert not torch.equal(learn(given, documents), learn(uniform, documents))
    with pytest.raises(RematchError, match="needs documents that were weighed"):
        learn(given, encode_documents(tokenizer, DOCUMENTS, 9))
