"""Files of published data sets: which ones are taken, and what of Parquet files is read.

The rest of it (JSON Lines, CSV, what is said when files are missing) is tested where data sets are read: ReMoDetect's texts,
MAC's streams.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mirror_files import write, write_parquet

from rematch.errors import RematchError
from rematch.hub import Hub
from rematch.hub_files import Origin, find_file, find_in_mirror, json_items, parquet_rows

ORIGIN = Origin("a/some.csv", "some place", "some terms", on_hub=False)


def test_the_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "datasets" / "org" / "name"
    write(folder / ".cache" / "a" / "some.csv", "")  # what a download keeps for itself
    write(folder / "b" / "some.csv", "")
    hub = Hub(tmp_path)
    with pytest.raises(RematchError, match=r"no file a/some\.csv in .*needed: a/some\.csv; from: some place"):
        find_file(hub, "org/name", "a/some.csv", ORIGIN)
    assert find_in_mirror(hub, "org/name", "a/some.csv") is None
    path = write(folder / "x" / "a" / "some.csv", "")
    assert find_file(hub, "org/name", "a/some.csv", ORIGIN) == path
    assert find_in_mirror(hub, "org/name", "a/some.csv") == path
    for find in (lambda: find_file(hub, "org/name", "some.csv", ORIGIN), lambda: find_in_mirror(hub, "org/name", "some.csv")):  # fmt: skip
        with pytest.raises(RematchError, match=r"b/some\.csv, .*x/a/some\.csv: keep one of them"):
            find()


def test_what_nobody_must_have_is_looked_for_in_a_mirror_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "datasets" / "org" / "name" / "some.csv", "")
    monkeypatch.chdir(tmp_path)
    assert find_in_mirror(Hub(None), "org/name", "some.csv") is None
    assert find_in_mirror(Hub(tmp_path), "org/other", "some.csv") is None
    with pytest.raises(RematchError, match=r"org/name is not on the hub.*DIR/datasets/org/name, and set hub_mirror"):
        find_file(Hub(None), "org/name", "some.csv", ORIGIN)


ROW = {"id": 7, "title": "t", "answers": {"text": ["a", "b"], "answer_start": [1, 2]}}


def test_columns_of_texts_and_lists_in_records(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [ROW, ROW | {"answers": {"text": [], "answer_start": []}}])
    assert parquet_rows(path, ["title"], ["answers.text"]) == [
        {"title": "t", "answers.text": ["a", "b"]},
        {"title": "t", "answers.text": []},
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"title": "t", "answers": {"answer_start": [1]}}, r"no column 'answers\.text'.*has title, answers\.answer_start"),
        ({"title": "t", "answers": "a"}, r"no column 'answers\.text'; the file needs title, answers\.text, has title, answers$"),
        ({"answers": {"text": ["a"]}}, "no column 'title'"),
        (ROW | {"answers": {"text": "a"}}, r"row 1: 'answers\.text' must be a list of texts, is str"),
        (ROW | {"answers": {"text": [1]}}, r"row 1: 'answers\.text' must be a list of texts"),
        (ROW | {"title": 3}, "row 1: 'title' must be a text, is int"),
    ],
)  # fmt: skip
def test_other_columns(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", [row])
    with pytest.raises(RematchError, match=message) as caught:
        parquet_rows(path, ["title"], ["answers.text"])
    assert str(path) in str(caught.value)


def test_a_list_of_objects(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[{"a": "x", "b": 1}, {"a": ""}]')
    assert json_items(path, ["a"]) == [{"a": "x"}, {"a": ""}]
    for content, message in (
        ('{"a": "x"}', r"a\.json: must hold a list of objects, holds dict"),
        ('[{"a": "x"}, {"b": "x"}]', r"a\.json, row 2: no key 'a'"),
        ('[{"a": 1}]', r"a\.json, row 1: 'a' must be a text, is int"),
        ('[["a"]]', r"a\.json, row 1: not an object but list"),
        ('[{"a": "x"}', r"a\.json: not a JSON file"),
    ):
        with pytest.raises(RematchError, match=message):
            json_items(write(path, content), ["a"])
