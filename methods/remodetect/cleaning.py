"""The spacing of training texts: what a corpus's tokenisation left behind is put right (official code).

Human texts of many corpora come with spaces around punctuation and LLM texts do not, so that a detector would learn
spacing. All texts of a triplet and the replay texts are cleaned alike; texts to be scored are not.
"""

from __future__ import annotations

import functools

REPLACEMENTS: tuple[tuple[str, str], ...] = (
    *((f" {mark}", mark) for mark in (",", ".", "?", "!", ";", "'")),
    (" ’ ", "'"),
    (" :", ":"),
    ("<newline>", "\n"),
    ("`` ", '"'),
    (" ''", '"'),
    ("''", '"'),
    (".. ", "... "),  # of two dots or of the last two of three: "so... it" gets a fourth dot
    (" )", ")"),
    ("( ", "("),
    (" n't", "n't"),
    (" i ", " I "),
    (" i'", " I'"),
    ("\\'", "'"),
    ("\n ", "\n"),
)
"""What is replaced by what, in this order: later ones see the work of earlier ones."""


def clean_spacing(text: str) -> str:
    """A text without the spaces of its tokenisation, its quotes plain, a lone "i" a capital; stripped."""
    return functools.reduce(lambda cleaned, pair: cleaned.replace(*pair), REPLACEMENTS, text).strip()
