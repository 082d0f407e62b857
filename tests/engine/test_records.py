"""Records on disk: whole or not there, of this schema, and refused with one line otherwise."""

from __future__ import annotations

import errno
import math
import os
import shutil
import subprocess

import pyarrow.parquet as pq
import pytest

from rematch.errors import RematchError
from rematch.records import (
    items_path,
    looks_whole,
    read_arrow,
    read_frame,
    schema_document,
    write_atomic,
    write_table,
    write_text,
)
from rematch.schema import COLUMNS, ITEM_COLUMNS, SCHEMA_VERSION, VOLATILE

ZERO = {"int16": 0, "int32": 0, "int64": 0, "float64": 0.0, "string": ""}
ROW = {name: ZERO[kind] for name, (kind, _) in COLUMNS.items()} | {"schema_version": SCHEMA_VERSION}


def test_what_is_written_is_read_again_bit_for_bit(tmp_path):
    path = tmp_path / "a" / "b" / "0-1.parquet"
    values = [0.1 + 0.2, math.inf, -0.0, 5e-324, math.nan]
    write_table([ROW | {"seed": n, "value": value, "notes": "ü\n"} for n, value in enumerate(values)], COLUMNS, path)
    table = read_arrow(path)
    assert table.column_names == list(COLUMNS)
    assert [v.hex() for v in table["value"].to_pylist()] == [v.hex() for v in values]
    assert table["notes"].to_pylist() == ["ü\n"] * 5
    assert [file.name for file in path.parent.iterdir()] == [path.name], "nothing else is left beside it"


def test_frames_are_read_in_the_order_of_the_paths(tmp_path):
    for seed in (2, 0, 1):
        write_table([ROW | {"seed": seed}], COLUMNS, tmp_path / f"{seed}.parquet")
    frame = read_frame([tmp_path / f"{seed}.parquet" for seed in (1, 2, 0)], COLUMNS)
    assert list(frame["seed"]) == [1, 2, 0]
    assert list(read_frame([], ITEM_COLUMNS).columns) == list(ITEM_COLUMNS)


def test_another_schema_version_is_refused(tmp_path):
    write_table([ROW | {"schema_version": SCHEMA_VERSION + 1}], COLUMNS, tmp_path / "0.parquet")
    with pytest.raises(
        RematchError, match=rf"schema version \[{SCHEMA_VERSION + 1}\], this is {SCHEMA_VERSION}; delete it"
    ):
        read_arrow(tmp_path / "0.parquet")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_half_a_file_is_refused(tmp_path, kept):
    path = tmp_path / "0.parquet"
    write_table([ROW], COLUMNS, path)
    assert looks_whole(path)
    path.write_bytes(path.read_bytes()[:kept])
    assert not looks_whole(path)
    with pytest.raises(RematchError, match="not readable as Parquet; delete it and run again"):
        read_arrow(path)


def test_a_writer_that_dies_leaves_what_was_there(tmp_path):
    path = tmp_path / "claims.json"
    write_text("old", path)

    def interrupted(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, interrupted)
    assert path.read_text() == "old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, number):
    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        RematchError, match=r"the disk is full; free some space and run again: what is finished is kept$"
    ):
        write_text("text", tmp_path / "file")
    assert not list(tmp_path.iterdir()), "the temporary file is cleared away"


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_really_is_full(tiny_disk):
    rows = [ROW | {"value": math.sqrt(n), "notes": os.urandom(20).hex()} for n in range(20_000)]
    write_table(rows[:10], COLUMNS, tiny_disk / "0.parquet")
    with pytest.raises(RematchError, match="the disk is full"):
        write_table(rows, COLUMNS, tiny_disk / "1.parquet")
    assert [file.name for file in tiny_disk.iterdir()] == ["0.parquet"]
    assert read_arrow(tiny_disk / "0.parquet").num_rows == 10


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(RematchError, match=r"cannot be written: "):
        write_text("text", tmp_path / "results" / "file")


def test_items_lie_beside_their_records(tmp_path):
    assert items_path(tmp_path / "0-4.parquet") == tmp_path / "0-4.items.parquet"


def test_the_schema_is_documented(played_once):
    text = (played_once.path / "results/mini/SCHEMA.md").read_text(encoding="utf-8")
    assert text == schema_document()
    for name, (kind, meaning) in (COLUMNS | ITEM_COLUMNS).items():
        assert f"| {name} | {kind} | {meaning} |" in text
    assert set(VOLATILE) <= set(COLUMNS)


def test_every_file_has_the_columns_of_the_schema(played_once):
    for path in (played_once.path / "results/mini/records").rglob("*.parquet"):
        columns = ITEM_COLUMNS if ".items." in path.name else COLUMNS
        assert pq.read_schema(path).names == list(columns)
