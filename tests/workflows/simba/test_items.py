"""Multiple-choice and cloze items: of equal length, from other documents, and as lm-eval will cut them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rematch.corpora import Document, python_documents, split_documents
from workflows.simba.corpus import load_tokenizer
from workflows.simba.items import N_CHOICES, choice_items, cloze_items, write_items
from workflows.simba.zero_shot import ContenderLM

N_CONTEXT, N_CONTINUATION, N_ANSWER = 24, 6, 2


@pytest.fixture(scope="module")
def documents() -> tuple[Document, ...]:
    return split_documents(python_documents(400_000)).test


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> Any:
    return load_tokenizer(corpus)


@pytest.fixture(scope="module")
def choices(documents: tuple[Document, ...], tokenizer: Any) -> list[dict[str, Any]]:
    return choice_items(documents, tokenizer, 30, N_CONTEXT, N_CONTINUATION, seed=0)


def cut(tokenizer: Any, context: str, continuation: str) -> tuple[int, int]:
    """Lengths as lm-eval encodes the pair."""
    lm = ContenderLM.__new__(ContenderLM)
    lm.tokenizer = tokenizer
    return tuple(len(part) for part in lm._encode_pair(context, continuation))  # type: ignore[return-value]


def test_choices(choices: list[dict[str, Any]], documents: tuple[Document, ...], tokenizer: Any) -> None:
    assert 15 <= len(choices) <= 30
    for item in choices:
        assert len(item["choices"]) == len(set(item["choices"])) == N_CHOICES
        true = item["choices"][item["label"]]
        origin = [d for d in documents if item["context"] + true in d.text]
        assert origin
        for other in item["choices"]:
            if other != true:
                assert item["context"] + other not in origin[0].text
        assert cut(tokenizer, item["context"], true) == (N_CONTEXT, N_CONTINUATION)
        assert all(cut(tokenizer, item["context"], other)[0] == N_CONTEXT for other in item["choices"])
    assert {item["label"] for item in choices} == set(range(N_CHOICES))


def test_no_distractor_is_from_the_same_document(tokenizer: Any) -> None:
    """Each document has letters of its own, so that a continuation tells where it is from."""
    alphabets = ("abcd", "efgh", "ijkl", "mnop")
    rng = np.random.default_rng(0)
    documents = [
        Document("text", alphabet, " ".join("".join(rng.choice(list(alphabet), 4)) for _ in range(300)))
        for alphabet in alphabets
    ]
    items = choice_items(documents, tokenizer, 40, N_CONTEXT, N_CONTINUATION, seed=0)
    assert len(items) > 10
    for item in items:
        own = set(item["context"])
        shares = [bool(set(choice.strip()) & own - {" "}) for choice in item["choices"]]
        assert shares == [index == item["label"] for index in range(N_CHOICES)]


def test_cloze(documents: tuple[Document, ...], tokenizer: Any) -> None:
    items = cloze_items(documents, tokenizer, 20, N_CONTEXT, N_ANSWER, seed=0)
    assert len(items) == 20
    for item in items:
        assert item["answer"].strip() in item["context"]
        assert any(item["context"] + item["answer"] in d.text for d in documents)
        assert cut(tokenizer, item["context"], item["answer"]) == (N_CONTEXT, N_ANSWER)


def test_the_seed_decides(documents: tuple[Document, ...], tokenizer: Any, choices: list[dict[str, Any]]) -> None:
    assert choice_items(documents, tokenizer, 30, N_CONTEXT, N_CONTINUATION, seed=0) == choices
    assert choice_items(documents, tokenizer, 30, N_CONTEXT, N_CONTINUATION, seed=1) != choices


def test_written_as_json_lines(choices: list[dict[str, Any]], tmp_path: Path) -> None:
    write_items(choices, tmp_path / "items.jsonl")
    lines = (tmp_path / "items.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == choices


def test_too_few_documents(documents: tuple[Document, ...], tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="at least 4 documents"):
        choice_items(documents[:3], tokenizer, 3, N_CONTEXT, N_CONTINUATION, seed=0)
