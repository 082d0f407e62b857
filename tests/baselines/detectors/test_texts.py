"""What counts as a text, and where a long one is cut."""

from __future__ import annotations

import pytest

from baselines.detectors import texts


@pytest.mark.parametrize(
    ("row", "status"),
    [
        ("two words", "ok"),
        (b"two words", "ok"),
        ("", "empty"),
        (" \n\t\u2003", "empty"),
        ("word", "one word"),
        (" word. ", "one word"),
        (None, "not text"),
        (3.5, "not text"),
        (float("nan"), "not text"),
        (["two words"], "not text"),
        (b"caf\xe9 noir", "not text"),
        (b"caf\xe9 noir".decode("utf-8", "surrogateescape"), "not text"),
        ("nul \x00 and bell \x07 and escape \x1b[31m", "ok"),
        ("שלום עולם", "ok"),
        ("مرحبا \u202e بالعالم", "ok"),
        ("这是一个没有空格的句子", "ok"),
        ("字", "one word"),
        ("a" * 100_000, "one word"),
    ],
)
def test_status(row, status):
    text, found = texts.read(row)
    assert found == status
    assert bool(text) == (status in texts.SCORED)


def test_one_text_in_place_of_several_is_refused():
    with pytest.raises(TypeError, match="a sequence of texts"):
        texts.read_all("two words")


def test_the_head_of_a_long_text_ends_between_words():
    assert texts.head("one two three four five", 13) == "one two three"
    assert texts.head("one two three four five", 12) == "one two"
    assert texts.head("one two", 7) == "one two"
    assert texts.head("x" * 50 + " y", 10) == "x" * 10
