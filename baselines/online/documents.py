"""A stream of documents: token ids, and which tokens belong to salient spans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rematch.errors import RematchError

SpansFn = Callable[[str], Sequence[tuple[int, int]]]
"""The salient spans of a text, each from its first character to the one behind its last."""
WeighFn = Callable[[str], np.ndarray]
"""A weight for every character of a text, (characters,)."""


@dataclass(frozen=True)
class Document:
    """One document of a stream.

    Attributes:
        input_ids: (n,) int64.
        salient: (n,) bool, the tokens that overlap a salient span; None where spans were not looked for.
        weights: (n,) float32, how much the tokens count; None where the text was not weighed.
    """

    input_ids: Tensor
    salient: Tensor | None = None
    weights: Tensor | None = None

    def to(self, device: torch.device | str) -> Document:
        """The document on a device."""
        salient, weights = (None if each is None else each.to(device) for each in (self.salient, self.weights))
        return Document(self.input_ids.to(device), salient, weights)


def encode_documents(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int,
    spans_fn: SpansFn | None = None,
    weigh_fn: WeighFn | None = None,
) -> list[Document]:
    """Tokenize texts, the first ``max_length`` tokens of each, without padding.

    Args:
        spans_fn: finds the salient spans; needs a tokenizer that knows its tokens' places ("fast").
        weigh_fn: weighs what is read of a text; a token has the largest weight of its characters (official code of CaMeLS).
            Needs such a tokenizer too.

    Raises:
        RematchError: for a text of fewer than two tokens, of which nothing can be learned, or spans or weights without places.
    """
    located = spans_fn is not None or weigh_fn is not None
    if located and not tokenizer.is_fast:
        what = "weights of characters" if spans_fn is None else "salient spans"
        raise RematchError(f"{what} need a fast tokenizer, which knows the characters of its tokens")
    documents = []
    for text in texts:
        encoded = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=located)
        ids = torch.tensor(encoded["input_ids"], dtype=torch.long)
        if len(ids) < 2:
            raise RematchError(f"a document needs at least two tokens: {text!r}")
        salient = None if spans_fn is None else _overlaps(encoded["offset_mapping"], spans_fn(text))
        weights = None if weigh_fn is None else _largest(encoded["offset_mapping"], weigh_fn, text)
        documents.append(Document(ids, salient, weights))
    return documents


def _overlaps(places: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> Tensor:
    """Which tokens share a character with a span, (n,) bool; special tokens have no characters."""
    return torch.tensor([any(max(a, start) < min(b, end) for start, end in spans) for a, b in places])


def _largest(places: Sequence[tuple[int, int]], weigh_fn: WeighFn, text: str) -> Tensor:
    """The largest weight of each token's characters, (n,), of the text as far as it was read; 0 for special tokens."""
    weights = weigh_fn(text[: max(end for _, end in places)])
    return torch.tensor([float(weights[a:b].max()) if a < b else 0.0 for a, b in places])


def stream_order(n_documents: int, seed: int) -> np.ndarray:
    """The order in which a stream brings its documents, (n_documents,): a permutation, the same for all that compete."""
    return np.random.default_rng([seed, 2]).permutation(n_documents)


NOT_SALIENT = frozenset({"TIME", "PERCENT", "MONEY", "QUANTITY", "ORDINAL", "CARDINAL"})
"""Types of entities that do not count (official code of CaMeLS)."""


PIPELINE = "en_core_web_sm"
"""spaCy's small English pipeline (official code of CaMeLS)."""


class EntitySpans:
    """The named entities of a text as its salient spans, all types but those of ``NOT_SALIENT`` (Salient Spans)."""

    def __init__(self, pipeline: Any = PIPELINE) -> None:
        """
        Args:
            pipeline: a loaded spaCy pipeline, or the name or folder of one.

        Raises:
            RematchError: spaCy or the pipeline is not installed.
        """
        if isinstance(pipeline, str):
            try:
                import spacy
            except ImportError as error:
                raise RematchError("entity spans need spaCy: install the package 'spacy'") from error
            try:
                pipeline = spacy.load(pipeline)
            except OSError as error:
                raise RematchError(
                    f"there is no spaCy pipeline '{pipeline}': install it (python -m spacy download {pipeline}) or give "
                    "the folder that it is in"
                ) from error
        self.pipeline = pipeline

    def __call__(self, text: str) -> list[tuple[int, int]]:
        """The spans, in order."""
        return [(e.start_char, e.end_char) for e in self.pipeline(text).ents if e.label_ not in NOT_SALIENT]
