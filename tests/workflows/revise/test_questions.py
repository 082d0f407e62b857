"""The files in which questions with solutions are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from rematch.errors import RematchError
from workflows.revise.questions import Question, read_questions, write_questions

# Line separators that are no line ends of the file, quotes, and a character of two halves.
STRANGE = 'a\u2028b\u0085c\x0c "d" \\ \n\r\n é \U0001f600'
QUESTIONS = [Question("a/0", STRANGE, "the answer is: 7"), Question("a/1", "", "")]
GOOD = '{"name": "a", "question": "q", "solution": "7"}\n'


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "base" / "test.jsonl"
    write_questions(path, QUESTIONS)
    assert read_questions(path) == QUESTIONS
    write_questions(path, [])  # in its place
    assert read_questions(path) == []
    assert [file.name for file in path.parent.iterdir()] == ["test.jsonl"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"name": "b", "question": "q"}', "line 2: .*'solution'"),
        ('{"name": "b", "question": "q", "solution": 7}', "line 2: .*'solution'"),
        ("[]", "line 2"),
        (GOOD[:-9], "line 2: cannot be read as JSON Lines"),
        ("\xff", "line 2: cannot be read as JSON Lines"),
        (GOOD, "two questions are called 'a'"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "test.jsonl"
    path.write_bytes((GOOD + row).encode("latin-1"))
    with pytest.raises(RematchError, match=message) as caught:
        read_questions(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RematchError, match=r"test\.jsonl: no such file; the base that writes it has not been built"):
        read_questions(tmp_path / "test.jsonl")
