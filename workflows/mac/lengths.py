"""How many tokens are read: the arena's sizes, and so of all that is trained for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_DOCUMENT, MAX_LENGTH, MAX_ANSWER = 64, 32, 8
"""Of a document; of a question with its answer, and of the answer in it: where the card sets nothing."""


def lengths_of(arena: Mapping[str, Any]) -> dict[str, int]:
    """The lengths of an arena by its options, under the names that ``MACConfig`` has for them."""
    defaults = {"max_document": MAX_DOCUMENT, "max_length": MAX_LENGTH, "max_answer": MAX_ANSWER}
    found = {name: int(arena.get(name, default)) for name, default in defaults.items()}
    return {**found, "max_question": found["max_length"] - found["max_answer"]}
