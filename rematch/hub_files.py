"""Files of published data sets: found in a mirror or fetched from the hub, and read with errors that name the place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rematch.errors import RematchError
from rematch.hub import Hub


@dataclass(frozen=True)
class Origin:
    """Where the files of a data set come from, for the error that they are missing.

    Attributes:
        files: their names.
        place: where they are published.
        licence: the terms, in a few words.
        on_hub: whether the data set is one of the hub; others have to lie in a mirror.
    """

    files: str
    place: str
    licence: str
    on_hub: bool = True


def find_files(hub: Hub, repo_id: str, patterns: Sequence[str], origin: Origin) -> list[Path]:
    """The files of a data set that match one of the patterns, sorted by path: the mirror's if there is one.

    Args:
        patterns: of file names, or of the ends of paths such as ``*/train.jsonl.gz``.

    Raises:
        RematchError: the data set or the files are not there.
    """
    where = f"{hub.mirror or 'DIR'}/datasets/{repo_id}"
    if hub.mirror is not None:
        folder = hub.mirror / "datasets" / repo_id
    elif origin.on_hub:
        folder = _from_hub(repo_id, patterns, origin)
    else:
        raise _missing(f"{repo_id} is not on the hub", f"{where}, and set hub_mirror: DIR", origin)
    found = _matching(folder, patterns)
    if not found:
        fill = f" (rematch mirror {hub.mirror} --dataset {repo_id})" if origin.on_hub else ""
        raise _missing(f"no file {' or '.join(patterns)} in {folder}", where + fill, origin)
    return found


def find_file(hub: Hub, repo_id: str, pattern: str, origin: Origin) -> Path:
    """The one file of a data set that matches a pattern (see ``find_files``); an error if it lies there twice."""
    return _only(find_files(hub, repo_id, [pattern], origin))


def find_in_mirror(hub: Hub, repo_id: str, pattern: str) -> Path | None:
    """The one file of a mirror's folder that matches a pattern, for files that nobody must have."""
    found = [] if hub.mirror is None else _matching(hub.mirror / "datasets" / repo_id, [pattern])
    return _only(found) if found else None


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:  # not JSON, not UTF-8
        raise RematchError(f"{path}: not a JSON file ({error})") from error


def json_items(path: Path, texts: Sequence[str], lists: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of a JSON file that holds one list of objects.

    Args:
        texts, lists: keys that every row must have, with a text and with a list of texts.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise RematchError(f"{path}: must hold a list of objects, holds {type(content).__name__}")
    return [_checked(row, texts, lists, f"{path}, row {number}") for number, row in enumerate(content, start=1)]


def json_rows(path: Path, texts: Sequence[str], lists: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of a JSON Lines file, gzipped or not; empty lines are passed over.

    Args:
        texts, lists: keys that every row must have, with a text and with a list of texts.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _checked(json.loads(line), texts, lists, f"{path}, line {number}")
    except (ValueError, OSError, EOFError) as error:  # not JSON, not UTF-8, not gzip, cut off
        raise RematchError(f"{path}, line {number}: cannot be read as JSON Lines ({error})") from error


def read_csv(path: Path, columns: Sequence[str]) -> dict[str, list[str]]:
    """The columns of a CSV file with a header, as text; an empty cell is an empty text.

    Args:
        columns: what the file must have.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise RematchError(f"{path}: cannot be read as CSV ({error})") from error
    _need_columns(path, columns, [str(column) for column in table.columns])
    return {str(column): table[column].tolist() for column in table.columns}


def parquet_rows(path: Path, texts: Sequence[str], lists: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of a Parquet file, these columns only.

    Args:
        texts, lists: columns of texts and of lists of texts; ``a.b`` is the field ``b`` of the records in column ``a``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [*texts, *lists]
    try:
        file = pq.ParquetFile(path)
        _need_columns(path, columns, file.schema_arrow.empty_table().flatten().column_names)
        rows = file.read(columns=columns).flatten().to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise RematchError(f"{path}: cannot be read as Parquet ({error})") from error
    return [_checked(row, texts, lists, f"{path}, row {number}") for number, row in enumerate(rows, start=1)]


def need_texts(value: object, key: str, place: str) -> list[str]:
    """``value``, which must be a list of texts: else an error that names the place and the key."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        kind = "a list with other things" if isinstance(value, list) else type(value).__name__
        raise RematchError(f"{place}: '{key}' must be a list of texts, is {kind}")
    return [_unicode(text) for text in value]


def _checked(row: object, texts: Sequence[str], lists: Sequence[str], place: str) -> dict[str, Any]:
    needs = f"a row needs {', '.join([*texts, *lists])}"
    if not isinstance(row, dict):
        raise RematchError(f"{place}: not an object but {type(row).__name__}; {needs}")
    for key in (*texts, *lists):
        if key not in row:
            raise RematchError(f"{place}: no key '{key}'; {needs}, has {', '.join(row) or 'none'}")
    for key in texts:
        if not isinstance(row[key], str):
            raise RematchError(f"{place}: '{key}' must be a text, is {type(row[key]).__name__}")
    return {key: _unicode(row[key]) for key in texts} | {key: need_texts(row[key], key, place) for key in lists}


def _unicode(text: str) -> str:
    """The text with U+FFFD for half characters (lone surrogates), which JSON can hold and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _need_columns(path: Path, wanted: Sequence[str], present: Sequence[str]) -> None:
    absent = [column for column in wanted if column not in present]
    if absent:
        raise RematchError(
            f"{path}: no column '{absent[0]}'; the file needs {', '.join(wanted)}, has {', '.join(present)}"
        )


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    # A mirror's folder keeps what the download itself needs under .cache.
    paths = (path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.relative_to(folder).parts)
    return sorted(path for path in paths if any(path.match(pattern) for pattern in patterns))


def _only(found: Sequence[Path]) -> Path:
    if len(found) > 1:
        raise RematchError(f"{', '.join(map(str, found))}: keep one of them")
    return found[0]


def _from_hub(repo_id: str, patterns: Sequence[str], origin: Origin) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, repo_type="dataset", allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:  # no connection, no such data set, no valid id
        reason = str(error).strip().split("\n")[0]
        where = f"DIR/datasets/{repo_id}, and set hub_mirror: DIR"
        raise _missing(f"{repo_id} cannot be had from the hub ({reason})", where, origin) from error


def _missing(what: str, where: str, origin: Origin) -> RematchError:
    return RematchError(
        f"{what}; needed: {origin.files}; from: {origin.place}; put them into: {where}. Licence: {origin.licence}."
    )
