"""How many tokens are read: the arena's sizes, and so of all that is trained for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_DOCUMENT, MAX_LENGTH, MAX_ANSWER = 64, 32, 8
"""Of a document; of a question with its answer, and of the answer in it: where the card sets nothing."""


def lengths_of(arena: Mapping[str, Any], of_rest: bool = False) -> dict[str, int]:
    """The lengths of an arena by its options, under the names that ``MACConfig`` has for them.

    Args:
        of_rest: where the beginning of a document asks for its rest, so that both together are the document.
    """
    defaults = {"max_document": MAX_DOCUMENT, "max_length": MAX_LENGTH, "max_answer": MAX_ANSWER}
    found = {name: int(arena.get(name, default)) for name, default in defaults.items()}
    if of_rest:
        found["max_length"], found["max_answer"] = rest_lengths(found["max_document"])
    return {**found, "max_question": found["max_length"] - found["max_answer"]}


def rest_lengths(max_document: int) -> tuple[int, int]:
    """Tokens of a document as its beginning asks for its rest, and of the rest alone: ``max_length``, ``max_answer``."""
    return max_document, max_document - max_document // 10
