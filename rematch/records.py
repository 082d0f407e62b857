"""Records: what was measured, as tidy Parquet, one row per metric of a match and seed.

``results/<tier>/records/<paper>/<axis>/<contender>/<level>/<seeds>.parquet`` holds the records of one job, and
``<seeds>.items.parquet`` beside it the per-item scores that paired statistics need. Where the match brought something to
read, ``<seeds>.exhibits.json`` holds it. ``SCHEMA.md`` in the results folder documents every column; it is written from
``rematch.schema``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rematch.errors import RematchError
from rematch.schema import COLUMNS, EXHIBIT_KEYS, ITEM_COLUMNS, SCHEMA_VERSION, VOLATILE

if TYPE_CHECKING:
    import pandas as pd

_TYPES = {"int16": pa.int16(), "int32": pa.int32(), "int64": pa.int64(), "float64": pa.float64(), "string": pa.string()}


def schema(columns: dict[str, tuple[str, str]]) -> pa.Schema:
    """The Arrow schema of records or items."""
    return pa.schema([(name, _TYPES[kind]) for name, (kind, _) in columns.items()])


def to_table(rows: list[dict[str, Any]], columns: dict[str, tuple[str, str]]) -> pa.Table:
    """Rows as an Arrow table with the given columns."""
    return pa.Table.from_pylist(rows, schema=schema(columns))


def write_table(rows: list[dict[str, Any]], columns: dict[str, tuple[str, str]], path: Path) -> None:
    """Write rows as Parquet, whole or not at all.

    Raises:
        RematchError: the disk is full or the folder cannot be written.
    """
    write_arrow(to_table(rows, columns), path)


def write_arrow(table: pa.Table, path: Path) -> None:
    """Write an Arrow table, whole or not at all (see ``write_table``)."""

    def fill(temporary: Path) -> None:
        pq.write_table(table, temporary, compression="zstd")

    write_atomic(path, fill)


def write_text(text: str, path: Path) -> None:
    """Write text, whole or not at all."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_atomic(path: Path, fill: Callable[[Path], Any]) -> None:
    """Let ``fill`` write a temporary neighbour of ``path``, then put it in place in one step.

    Raises:
        RematchError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fill(temporary)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RematchError(
                f"{path}: the disk is full; free some space and run again: what is finished is kept"
            ) from error
        raise RematchError(f"{path}: cannot be written: {error.strerror or error}") from error


def read_arrow(path: Path) -> pa.Table:
    """Read a Parquet file.

    Raises:
        RematchError: it is corrupt, or of another schema version.
    """
    try:
        with pq.ParquetFile(path) as file:  # pq.read_table would import pandas, which planning can do without
            table = file.read()
    except (OSError, pa.ArrowInvalid) as error:
        raise RematchError(
            f"{path}: not readable as Parquet; delete it and run again, only it is played again"
        ) from error
    if "schema_version" in table.column_names:
        versions = set(table.column("schema_version").to_pylist())
        if versions - {SCHEMA_VERSION}:
            raise RematchError(
                f"{path}: schema version {sorted(versions)}, this is {SCHEMA_VERSION}; delete it and run again"
            )
    return table


def read_frame(paths: Iterable[Path], columns: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """Records or items of many files as one pandas frame, in the order of the paths."""
    tables = [read_arrow(path).select(list(columns)) for path in paths]
    return pa.concat_tables(tables or [schema(columns).empty_table()]).to_pandas()


def items_path(records: Path) -> Path:
    """Where the per-item scores of a records file lie."""
    return records.with_suffix(".items.parquet")


def exhibits_path(records: Path) -> Path:
    """Where what there is to read of a records file lies, if anything."""
    return records.with_suffix(".exhibits.json")


def write_exhibits(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write exhibits (``EXHIBIT_KEYS``) as JSON, whole or not at all."""
    write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", path)


def read_exhibits(path: Path) -> list[dict[str, Any]]:
    """Read exhibits; empty where there is no such file.

    Raises:
        RematchError: it does not hold exhibits.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError:  # no JSON, or no UTF-8
        rows = None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and row.keys() == EXHIBIT_KEYS.keys() for row in rows
    ):
        raise RematchError(
            f"{path}: does not hold exhibits (SCHEMA.md); delete it with the records beside it and run again"
        )
    return rows


class Played(NamedTuple):
    """A file of records with what lies beside it."""

    records: pa.Table
    items: pa.Table
    exhibits: list[dict[str, Any]]

    def of_seed(self, seed: int) -> Played:
        """What is of one seed."""
        import pyarrow.compute as pc  # slow to import, and planning can do without

        exhibits = [row for row in self.exhibits if row["seed"] == seed]
        records, items = (table.filter(pc.equal(table["seed"], seed)) for table in self[:2])
        return Played(records, items, exhibits)

    @classmethod
    def concat(cls, parts: Sequence[Played]) -> Played:
        """All of them, one after the other."""
        records, items = (pa.concat_tables([part[i] for part in parts]) for i in range(2))
        return cls(records, items, [row for part in parts for row in part.exhibits])

    @classmethod
    def read(cls, path: Path) -> Played:
        """Read a file of records and its neighbours (see ``read_arrow``)."""
        return cls(read_arrow(path), read_arrow(items_path(path)), read_exhibits(exhibits_path(path)))

    def write(self, path: Path) -> None:
        """Write all of it, in place of what was there. The records come last: where they are, the rest is whole."""
        if self.exhibits:
            write_exhibits(self.exhibits, exhibits_path(path))
        else:
            exhibits_path(path).unlink(missing_ok=True)
        write_arrow(self.items, items_path(path))
        write_arrow(self.records, path)


def remove_records(path: Path) -> None:
    """Remove a file of records and what lies beside it."""
    for each in (path, items_path(path), exhibits_path(path)):
        each.unlink(missing_ok=True)


def looks_whole(path: Path) -> bool:
    """Whether a file begins and ends like Parquet (cheap: 8 bytes are read)."""
    if path.stat().st_size < 12:  # the two marks and the length of the footer
        return False
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            return False
        file.seek(-4, os.SEEK_END)
        return file.read(4) == b"PAR1"


def schema_document() -> str:
    """The documentation of the schema, as it lies in the results folder."""
    lines = [f"# Records, schema version {SCHEMA_VERSION}", "", "One row per metric of a match and seed."]
    lines += ["Columns that a clock or a machine decides: " + ", ".join(VOLATILE) + "; the others are bit-identical."]
    for title, head, columns in (
        ("Records: `<seeds>.parquet`", "column", COLUMNS),
        ("Items: `<seeds>.items.parquet`", "column", ITEM_COLUMNS),
        ("Exhibits: `<seeds>.exhibits.json`, a list, where a match brought something to read", "key", EXHIBIT_KEYS),
    ):
        lines += ["", f"## {title}", "", f"| {head} | type | what it holds |", "| --- | --- | --- |"]
        lines += [f"| {name} | {kind} | {text} |" for name, (kind, text) in columns.items()]
    return "\n".join(lines) + "\n"
