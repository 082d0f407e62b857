"""Retrieval: documents found by BM25 or by encoders, and prepended to the question."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, DPRContextEncoder, DPRQuestionEncoder, PreTrainedTokenizerBase

from baselines.loading import load_tokenizer
from baselines.qa import QAPair
from rematch.errors import RematchError

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text in lower case, for BM25."""
    return _WORD.findall(text.lower())


class Index(ABC):
    """Documents that questions find by a score.

    Attributes:
        documents: as given.
    """

    documents: list[str]

    @abstractmethod
    def scores(self, question: str) -> np.ndarray:
        """The score of every document, (K,) float32; larger is better."""

    def search(self, questions: Sequence[str], k: int) -> np.ndarray:
        """The k best documents of each question, best first: places (N, min(k, K)) int64. Ties go to the earlier one."""
        k = min(k, len(self.documents))
        found = [np.argsort(-self.scores(question), kind="stable")[:k] for question in questions]
        return np.stack(found) if found else np.zeros((0, k), np.int64)

    def prepended(self, questions: Sequence[str], k: int) -> list[str]:
        """Each question behind its k best documents, the best of them last."""
        places = self.search(questions, k)
        return [
            prepend([self.documents[i] for i in row], question) for row, question in zip(places, questions, strict=True)
        ]


class BM25(Index):
    """An index of documents by their words (Robertson's BM25, in Lucene's variant)."""

    def __init__(self, documents: Sequence[str], k1: float = 1.5, b: float = 0.75) -> None:
        """
        Args:
            k1: how slowly repetitions of a word stop to count.
            b: how much the length of a document counts, 0 to 1.

        Raises:
            RematchError: no document has a word.
        """
        self.documents = list(documents)
        tokens = [words(document) for document in documents]
        if not any(tokens):
            raise RematchError("BM25 needs at least one document with a word")
        import bm25s  # here, because it takes longer to import than most streams to search

        self._index = bm25s.BM25(k1=k1, b=b, auto_compile=False)
        self._index.index(tokens, show_progress=False)

    def scores(self, question: str) -> np.ndarray:
        """The score of every document, (K,) float32; all 0 where no word is known."""
        # A word that occurs twice counts twice, as in the formula.
        query = words(question)
        return self._index.get_scores(query) if query else np.zeros(len(self.documents), np.float32)


@dataclass(frozen=True)
class TextEncoder:
    """Vectors of texts by a BERT.

    Attributes:
        model: in evaluation mode; on its device texts are encoded.
        pooling: ``mean`` of the last states of all tokens, or ``pooler``: what the model itself makes of them.
        max_length: tokens read of a text.
        batch_size: texts at once.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    pooling: Literal["mean", "pooler"]
    max_length: int = 512
    batch_size: int = 64

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """The vectors (N, d) of texts, on the CPU."""
        found = []
        for first in range(0, len(texts), self.batch_size):
            batch = self.tokenizer(
                list(texts[first : first + self.batch_size]),
                truncation=True, max_length=self.max_length, padding=True, return_tensors="pt",
            ).to(self.model.device)  # fmt: skip
            out = self.model(**batch)
            if self.pooling == "pooler":
                found.append(out.pooler_output)
            else:
                mask = batch["attention_mask"][..., None].to(out.last_hidden_state.dtype)
                found.append((out.last_hidden_state * mask).sum(1) / mask.sum(1))
        return torch.cat(found).float().cpu()


@dataclass(frozen=True)
class Retriever:
    """Encoders whose vectors of a question and of a document that answers it have a large inner product.

    Attributes:
        questions, documents: the encoders of both.
    """

    questions: TextEncoder
    documents: TextEncoder

    @classmethod
    def contriever(cls, source: str) -> Self:
        """Contriever (Izacard et al., 2022), by its id or folder: one encoder for both, the mean of its states.

        Raises:
            RematchError: it cannot be loaded.
        """
        both = TextEncoder(_load(AutoModel, source), load_tokenizer(source), "mean")
        return cls(both, both)

    @classmethod
    def dpr(cls, question_source: str, document_source: str) -> Self:
        """Dense passage retrieval (Karpukhin et al., 2020), by the ids or folders of its two encoders.

        A document is its text: of titles, which DPR was trained with, nothing is known here.

        Raises:
            RematchError: one cannot be loaded.
        """
        return cls(
            TextEncoder(_load(DPRQuestionEncoder, question_source), load_tokenizer(question_source), "pooler"),
            TextEncoder(_load(DPRContextEncoder, document_source), load_tokenizer(document_source), "pooler"),
        )

    def index(self, documents: Sequence[str]) -> DenseIndex:
        """An index of documents.

        Raises:
            RematchError: there is no document.
        """
        return DenseIndex(documents, self)


def _load(model_class: Any, source: str) -> Any:
    try:
        model = model_class.from_pretrained(source, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise RematchError(f"no retriever can be loaded from '{source}': {error}") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


class DenseIndex(Index):
    """An index of documents by their vectors; scores are inner products."""

    def __init__(self, documents: Sequence[str], retriever: Retriever) -> None:
        """
        Raises:
            RematchError: there is no document.
        """
        if not len(documents):
            raise RematchError("an index needs at least one document")
        self.documents = list(documents)
        self._retriever = retriever
        self._vectors = retriever.documents(documents)

    def scores(self, question: str) -> np.ndarray:
        return (self._vectors @ self._retriever.questions([question])[0]).numpy()


def prepend(documents: Sequence[str], question: str) -> str:
    """The question behind the documents, best last, so that a cut on the left takes the least relevant words."""
    return " ".join([*reversed(documents), question])


def with_documents(index: Index, pairs: Sequence[QAPair], k: int) -> list[QAPair]:
    """Each question with its k best documents before it: what the language model is tuned and asked on."""
    prompts = index.prepended([pair.question for pair in pairs], k)
    return [QAPair(prompt, pair.answer) for prompt, pair in zip(prompts, pairs, strict=True)]
