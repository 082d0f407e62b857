"""BM25, and documents before questions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, DPRConfig, DPRContextEncoder, DPRQuestionEncoder

from baselines.online.retrieval import BM25, Retriever, TextEncoder, prepend, with_documents
from baselines.qa import QAPair
from rematch.errors import RematchError

pytest.importorskip("bm25s")
DOCUMENTS = ["Anna lives in Paris.", "Ben lives, lives in Rome", "a cook works now and then and again"]


def test_scores_by_the_formula() -> None:
    """ln(1 + (K - df + 1/2) / (df + 1/2)) * tf / (tf + k1 (1 - b + b * length / mean length)) for every word."""
    k1, b = 1.2, 0.5
    index = BM25(DOCUMENTS, k1=k1, b=b)
    lengths = [4, 5, 8]
    mean = sum(lengths) / 3

    def part(df: int, tf: int, length: int) -> float:
        return math.log(1 + (3 - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * length / mean))

    expected = [part(1, 1, 4) + part(2, 1, 4), part(2, 2, 5), 0.0]
    assert index.scores("Where LIVES Anna?") == pytest.approx(expected, rel=1e-5)
    assert index.scores("lives lives")[1] == pytest.approx(2 * part(2, 2, 5), rel=1e-5)


def test_search() -> None:
    index = BM25([*DOCUMENTS, DOCUMENTS[0]])
    found = index.search(["who lives in rome", "anna", "cook", "nobody", "?!", ""], 3)
    assert found.dtype == np.int64
    assert found[:, 0].tolist() == [1, 0, 2, 0, 0, 0]
    assert found[1].tolist() == [0, 3, 1]  # ties: the earlier document first
    assert found[3].tolist() == found[4].tolist() == found[5].tolist() == [0, 1, 2]
    many = BM25(DOCUMENTS[:2] * 40)
    assert many.search(["anna"], 80).tolist() == [[*range(0, 80, 2), *range(1, 80, 2)]]
    assert index.search(["anna"], 99).shape == (1, 4)
    assert index.search([], 2).shape == (0, 2)


def test_documents_that_cannot_be_searched() -> None:
    for documents in ([], ["", "?!"]):
        with pytest.raises(RematchError, match="at least one document"):
            BM25(documents)


def test_documents_stand_before_the_question_the_best_next_to_it() -> None:
    assert prepend(["best", "second"], "question ?") == "second best question ?"
    assert prepend([], "question ?") == "question ?"
    pairs = with_documents(BM25(DOCUMENTS), [QAPair("where lives anna ?", "paris")], 2)
    assert pairs == [QAPair(f"{DOCUMENTS[1]} {DOCUMENTS[0]} where lives anna ?", "paris")]


# -- encoders ---------------------------------------------------------------------------------------------------------

SIZES = {
    "vocab_size": 18, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "initializer_range": 0.5,
}  # fmt: skip
TEXTS = ["anna lives in paris .", "ben works as cook", "smith lives in rome now ."]


@pytest.fixture
def encoders(tmp_path: Path, tokenizer: Any) -> dict[str, Any]:
    """Encoders of random weights, saved in folders of their names."""
    torch.manual_seed(0)
    made = {"bert": BertModel(BertConfig(**SIZES))}
    made |= {"questions": DPRQuestionEncoder(DPRConfig(**SIZES)), "documents": DPRContextEncoder(DPRConfig(**SIZES))}
    for name, model in made.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return {name: model.eval() for name, model in made.items()}


def alone(model: Any, tokenizer: Any, text: str, pooling: str) -> torch.Tensor:
    with torch.no_grad():
        out = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))
    return out.pooler_output[0] if pooling == "pooler" else out.last_hidden_state[0].mean(0)


def test_contriever_is_the_mean_of_states(tmp_path: Path, tokenizer: Any, encoders: dict[str, Any]) -> None:
    retriever = Retriever.contriever(str(tmp_path / "bert"))
    expected = torch.stack([alone(encoders["bert"], tokenizer, text, "mean") for text in TEXTS])
    vectors = retriever.documents(TEXTS)  # padded
    torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-6)
    index = retriever.index(TEXTS)
    question = "where lives anna ?"
    products = expected @ alone(encoders["bert"], tokenizer, question, "mean")
    np.testing.assert_allclose(index.scores(question), products.numpy(), rtol=1e-4, atol=1e-5)
    assert index.search([question, TEXTS[1]], 2).tolist()[0] == products.argsort(descending=True)[:2].tolist()
    assert index.prepended([question], 1) == [f"{TEXTS[int(products.argmax())]} {question}"]


def test_dpr_has_an_encoder_for_each(tmp_path: Path, tokenizer: Any, encoders: dict[str, Any]) -> None:
    index = Retriever.dpr(str(tmp_path / "questions"), str(tmp_path / "documents")).index(TEXTS)
    documents = torch.stack([alone(encoders["documents"], tokenizer, text, "pooler") for text in TEXTS])
    question = alone(encoders["questions"], tokenizer, "where lives anna ?", "pooler")
    np.testing.assert_allclose(index.scores("where lives anna ?"), (documents @ question).numpy(), rtol=1e-4, atol=1e-5)


def test_long_texts_are_cut_and_many_come_in_batches(tokenizer: Any, encoders: dict[str, Any]) -> None:
    encode = TextEncoder(encoders["bert"], tokenizer, "mean", max_length=3, batch_size=2)
    torch.testing.assert_close(encode(TEXTS)[0], alone(encoders["bert"], tokenizer, "anna lives in", "mean"))
    assert encode(TEXTS).shape == (3, 16)


def test_what_cannot_be_encoded(tmp_path: Path, encoders: dict[str, Any]) -> None:
    with pytest.raises(RematchError, match=r"no retriever can be loaded from '.*nowhere'"):
        Retriever.contriever(str(tmp_path / "nowhere"))
    with pytest.raises(RematchError, match="at least one document"):
        Retriever.contriever(str(tmp_path / "bert")).index([])
