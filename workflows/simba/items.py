"""Multiple-choice and cloze items cut from held-out documents, as JSON lines for lm-eval.

Every item has the same number of tokens before and after the cut, and its text encodes to just these tokens again, so
that items batch without padding and cost the same FLOPs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rematch.corpora import Document

N_CHOICES = 4
_WORD = re.compile(r"\s?[A-Za-z_]{3,}")


def choice_items(
    documents: Sequence[Document], tokenizer: Any, n_items: int, n_context: int, n_continuation: int, seed: int
) -> list[dict[str, Any]]:
    """Snippets with four continuations each: the true one, and three that continue other snippets of other documents.

    Returns:
        dicts with ``context``, ``choices`` (four texts) and ``label`` (index of the true one).
    """
    rng = np.random.default_rng([seed, 1])
    found: list[tuple[str, str, str]] = []
    for document, ids in _snippets(documents, tokenizer, rng, n_context + n_continuation):
        context, continuation = tokenizer.decode(ids[:n_context]), tokenizer.decode(ids[n_context:])
        if _cuts_at(tokenizer, context, continuation, n_context) and continuation.strip():
            found.append((document.path, context, continuation))
        if len(found) == n_items:
            break
    items = []
    for path, context, continuation in found:
        others = [other for other_path, _, other in found if other_path != path and other != continuation]
        distractors = [others[i] for i in rng.choice(len(others), N_CHOICES - 1, replace=False)]
        # A continuation is judged in its own context: where its tokens merge differently, the item has another length.
        if all(_cuts_at(tokenizer, context, other, n_context) for other in distractors):
            label = int(rng.integers(N_CHOICES))
            items.append(
                {
                    "context": context,
                    "choices": [*distractors[:label], continuation, *distractors[label:]],
                    "label": label,
                }
            )
    return items


def cloze_items(
    documents: Sequence[Document], tokenizer: Any, n_items: int, n_context: int, n_continuation: int, seed: int
) -> list[dict[str, Any]]:
    """Snippets that end before a word, which must be predicted whole (as in LAMBADA).

    Only words that occur in the snippet before are asked for, and they have ``n_continuation`` tokens.

    Returns:
        dicts with ``context`` and ``answer``.
    """
    rng = np.random.default_rng([seed, 2])
    items: list[dict[str, Any]] = []
    for _, ids in _snippets(documents, tokenizer, rng, n_context + n_continuation):
        context, answer = tokenizer.decode(ids[:n_context]), tokenizer.decode(ids[n_context:])
        whole_word = _WORD.fullmatch(answer) and not (answer[0].isalpha() and context[-1:].isalnum())
        if whole_word and answer.strip() in context and _cuts_at(tokenizer, context, answer, n_context):
            items.append({"context": context, "answer": answer})
        if len(items) == n_items:
            break
    return items


def write_items(items: Sequence[dict[str, Any]], path: Path) -> None:
    """Write items as JSON lines."""
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")


def _snippets(
    documents: Sequence[Document], tokenizer: Any, rng: np.random.Generator, length: int
) -> Iterator[tuple[Document, list[int]]]:
    """Token windows (length,) of the documents in random order, each document in turn, without end."""
    encoded = [(document, tokenizer.encode(document.text)) for document in documents]
    encoded = [(document, ids) for document, ids in encoded if len(ids) > 2 * length]
    if len(encoded) < N_CHOICES:
        raise ValueError(
            f"at least {N_CHOICES} documents of more than {2 * length} tokens are needed, not {len(encoded)}"
        )
    for _ in range(10_000):
        for index in rng.permutation(len(encoded)):
            document, ids = encoded[index]
            start = int(rng.integers(len(ids) - length + 1))
            yield document, ids[start : start + length]


def _cuts_at(tokenizer: Any, context: str, continuation: str, n_context: int) -> bool:
    """Whether lm-eval, which encodes context and continuation together and cuts at the context's length, cuts there.

    It also moves trailing spaces of the context to the continuation; such contexts are refused.
    """
    if not context.strip() or context != context.rstrip():
        return False
    alone, together = tokenizer.encode(context), tokenizer.encode(context + continuation)
    return len(alone) == n_context and together[:n_context] == alone
