"""What a detector may be handed: every row gets a status, and only a text of two words or more gets a score.

One rule for all detectors, so that they are compared on the same rows and no row stops a batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

OK = "ok"
TRUNCATED = "truncated"
"""Scored on its first ``max_length`` tokens."""
EMPTY = "empty"
ONE_WORD = "one word"
NOT_TEXT = "not text"
"""Neither a string nor UTF-8 bytes."""

SCORED = frozenset({OK, TRUNCATED})
"""The statuses of rows that have a score; all other rows have NaN."""

# Scripts written without spaces between words (Thai, Lao, Burmese, Khmer, kana, Han): here two letters may be two words.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def read(row: object) -> tuple[str, str]:
    """The text of a row and its status; the text is empty where the status is none of ``SCORED``.

    Control characters and right-to-left text are text. Bytes are decoded as UTF-8; what cannot be encoded as UTF-8 (a
    lone surrogate, as ``errors="surrogateescape"`` leaves it) is no text: tokenizers refuse it. Words are separated
    by whitespace; in scripts that are written without spaces every letter counts as one.
    """
    if isinstance(row, bytes | bytearray):
        try:
            row = row.decode("utf-8")
        except UnicodeDecodeError:
            return "", NOT_TEXT
    if not isinstance(row, str):
        return "", NOT_TEXT
    try:
        row.encode("utf-8")
    except UnicodeEncodeError:
        return "", NOT_TEXT
    words = row.split(maxsplit=2)
    if not words:
        return "", EMPTY
    if len(words) == 1 and len(_UNSPACED.findall(words[0][:1000])) < 2:
        return "", ONE_WORD
    return row, OK


def read_all(rows: Iterable[object]) -> tuple[list[str], list[str]]:
    """Texts and statuses of many rows; see ``read``.

    Raises:
        TypeError: one text instead of several.
    """
    if isinstance(rows, str | bytes):
        raise TypeError("a sequence of texts is needed, not one text")
    pairs = [read(row) for row in rows]
    return [text for text, _ in pairs], [status for _, status in pairs]


def head(text: str, n_characters: int) -> str:
    """The first ``n_characters`` of a text or a little less: cut between two words, unless one word fills the half."""
    if len(text) <= n_characters:
        return text
    for end in range(n_characters, n_characters // 2, -1):
        if text[end].isspace():
            return text[:end]
    return text[:n_characters]
