"""The files in which documents and questions are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from baselines.qa import QAPair
from rematch.errors import RematchError
from workflows.mac.streams import Document, read_documents, read_pairs, write_documents, write_pairs

# Line separators that are no line ends of the file, quotes, and half a character, which no UTF-8 can hold.
STRANGE = 'a\u2028b\u0085c\x0c "d" \\ \n\r\n é \U0001f600 \ud83d'
PAIRS = (QAPair(STRANGE, "é"), QAPair("q", ""))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    documents = [Document("a", STRANGE, PAIRS, ((0, 1), (3, 9))), Document("a", "", ())]
    path = tmp_path / "base" / "test.jsonl"
    write_documents(path, documents)
    assert read_documents(path) == documents
    assert all(type(pair) is QAPair for pair in read_documents(path)[0].pairs)
    write_pairs(path, PAIRS)  # in its place
    assert read_pairs(path) == list(PAIRS)
    write_pairs(path, [])
    assert read_pairs(path) == []
    assert [file.name for file in path.parent.iterdir()] == ["test.jsonl"]


GOOD = '{"name": "a", "text": "b", "pairs": [{"question": "q", "answer": "a"}], "salient": [[0, 1]]}\n'


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"name": "a", "pairs": [], "salient": []}', "line 2: text: Field required"),
        ('{"name": "a", "text": 3, "pairs": [], "salient": []}', "line 2: text: Input should be a valid string, not 3"),
        (GOOD.replace("answer", "answr"), r"line 2: pairs\.0: unknown key 'answr'; allowed: question, answer"),
        (GOOD.replace(', "answer": "a"', ""), r"line 2: pairs\.0\.answer: Field required"),
        (GOOD.replace("[0, 1]", "[0]"), r"line 2: salient\.0\.1: Field required"),
        (GOOD.replace("salient", "silent"), "line 2: unknown key 'silent'.*Did you mean 'salient'"),
        ("[]", "line 2: Input should be"),
        (GOOD[:-9], "line 2: cannot be read as JSON Lines"),
        ("\xff", "line 2: cannot be read as JSON Lines"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "test.jsonl"
    path.write_bytes((GOOD + row).encode("latin-1"))
    with pytest.raises(RematchError, match=message) as caught:
        read_documents(path)
    assert str(path) in str(caught.value)


def test_a_bad_pair_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"question": "q"}\n')
    with pytest.raises(RematchError, match=r"pairs\.jsonl, line 1: answer: Field required"):
        read_pairs(path)


@pytest.mark.parametrize("read", [read_documents, read_pairs])
def test_a_file_that_is_not_there(tmp_path: Path, read) -> None:
    with pytest.raises(RematchError, match=r"none\.jsonl: no such file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(RematchError, match="cannot be read"):
        read(tmp_path)
