"""Documents of the Python installation itself, split so that no near-duplicate crosses from training to test.

The standard library's source code and the language reference that ``pydoc`` carries are a real corpus that is always at
hand. It depends on the Python version, so ``corpus_hash`` belongs into the records.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import re
import sysconfig
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal
from zlib import crc32

import numpy as np

Kind = Literal["code", "reference", "docstrings", "text"]
"""What a document is; ``text`` is one that came from elsewhere than the Python installation."""

SKIPPED = (
    "site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "pydoc_data", "encodings", "ensurepip",
    "__phello__", "turtledemo", "__pycache__",
)  # fmt: skip
"""Folders that are left out: tests, vendored and generated code, tables of characters."""

BUILTIN_MODULES = (
    "builtins",
    "itertools",
    "math",
    "time",
    "_collections",
    "_functools",
    "_operator",
    "_thread",
    "_codecs",
)
"""Modules written in C whose docstrings stand in no source file."""

SHINGLE_WORDS = 8
SAMPLED = 4
"""One shingle in this many is looked at, chosen by its hash: the same ones in every document."""
BOILERPLATE = 12
"""A shingle in more documents than this is a licence header or the like, and says nothing about two of them."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Document:
    """One document: ``path`` names it (relative to the standard library, or ``topics/for``, ``docstrings/math``)."""

    kind: Kind
    path: str
    text: str


@dataclass(frozen=True)
class Split:
    """Documents for training, for choices such as a learning rate, and for scoring."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    test: tuple[Document, ...]


def python_documents(max_bytes: int | None = None) -> list[Document]:
    """The standard library's source files, pydoc's reference topics and the docstrings of built-in modules, by path.

    Args:
        max_bytes: stop before more characters than this are collected, taking documents in the order of a hash of their
            path, so that a smaller corpus is a sample of the larger one; None for everything (about 10 MB).
    """
    chosen: list[Document] = []
    size = 0
    for document in sorted(_all_documents(), key=lambda d: (_hash(d.path), d.path)):
        if max_bytes is not None and size + len(document.text) > max_bytes:
            continue
        chosen.append(document)
        size += len(document.text)
    return sorted(chosen, key=lambda d: d.path)


def split_documents(
    documents: Sequence[Document], *, validation: float = 0.1, test: float = 0.1, overlap: float = 0.2
) -> Split:
    """Split documents by file, near-duplicates together, deterministically.

    Two documents are near-duplicates when they share at least ``overlap`` of the distinct 8-word shingles of the shorter
    one; groups of them are assigned as a whole, in the order of a hash of their paths.

    Args:
        documents: with distinct paths.
        validation: share of the characters that goes to validation.
        test: share of the characters that goes to test.
        overlap: share of common shingles from which on two documents are near-duplicates.
    """
    documents = sorted(documents, key=lambda d: d.path)
    total = sum(len(d.text) for d in documents)
    room = {"test": test * total, "validation": validation * total}
    parts: dict[str, list[Document]] = {"train": [], "validation": [], "test": []}
    groups = near_duplicate_groups(documents, overlap)
    for group in sorted(groups, key=lambda g: _hash("split:" + documents[g[0]].path)):
        size = sum(len(documents[i].text) for i in group)
        # A quarter of a part at most is one group, or a few large files would be all of it.
        part = next(
            (name for name, left in room.items() if left > 0 and size <= max(left, 0.25 * total * test)), "train"
        )
        if part in room:
            room[part] -= size
        parts[part] += [documents[i] for i in group]
    return Split(*(tuple(sorted(parts[p], key=lambda d: d.path)) for p in ("train", "validation", "test")))


def near_duplicate_groups(documents: Sequence[Document], overlap: float = 0.2) -> list[list[int]]:
    """Indices of documents, near-duplicates (see ``split_documents``) in one group, each group sorted."""
    shingles = [sampled_shingles(document.text) for document in documents]
    holders: dict[int, list[int]] = defaultdict(list)
    for index, found in enumerate(shingles):
        for shingle in found.tolist():
            holders[shingle].append(index)
    common: dict[tuple[int, int], int] = defaultdict(int)
    for indices in holders.values():
        if 2 <= len(indices) <= BOILERPLATE:
            for pair in combinations(indices, 2):
                common[pair] += 1
    parent = list(range(len(documents)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for (first, second), count in common.items():
        if count >= overlap * min(len(shingles[first]), len(shingles[second])):
            low, high = sorted((root(first), root(second)))
            parent[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(documents)):
        groups[root(index)].append(index)
    return list(groups.values())


def sampled_shingles(text: str, keep_one_in: int = SAMPLED) -> np.ndarray:
    """Hashes of the distinct 8-word shingles of a text, sorted; of these, those that are 0 modulo ``keep_one_in``."""
    words = np.fromiter((crc32(word.encode()) for word in _WORD.findall(text)), dtype=np.uint64)
    if len(words) < SHINGLE_WORDS:
        return np.empty(0, dtype=np.uint64)
    n = len(words) - SHINGLE_WORDS + 1
    rolled = np.zeros(n, dtype=np.uint64)
    for offset in range(SHINGLE_WORDS):
        rolled = rolled * _MULTIPLIER + words[offset : offset + n]
    rolled ^= rolled >> np.uint64(29)
    return np.unique(rolled[rolled % np.uint64(keep_one_in) == 0])


def corpus_hash(documents: Sequence[Document]) -> str:
    """A short hash of all paths and texts, in order."""
    total = hashlib.sha256()
    for document in documents:
        total.update(f"{document.kind}\0{document.path}\0{document.text}\0".encode("utf-8", "surrogatepass"))
    return total.hexdigest()[:16]


def _all_documents() -> Iterator[Document]:
    yield from _source_files()
    topics = importlib.import_module("pydoc_data.topics").topics
    for name, text in topics.items():
        yield Document("reference", f"topics/{name}", text.strip() + "\n")
    for name in BUILTIN_MODULES:
        yield Document("docstrings", f"docstrings/{name}", _docstrings(importlib.import_module(name)))


def _source_files() -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(_modules(root)):
        relative = path.relative_to(root)
        if relative.name.startswith("_sysconfigdata"):
            continue  # where this interpreter was compiled: differs between machines
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a source file in another encoding
        if text.strip():
            yield Document("code", relative.as_posix(), text)


def _modules(root: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in SKIPPED and not name.startswith("config-")]
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def _docstrings(module: object) -> str:
    """The docstrings of a module, its public members and the public methods of its classes."""
    parts = [inspect.getdoc(module) or ""]
    for name, member in sorted(vars(module).items()):
        if name.startswith("_"):
            continue
        if isinstance(member, type) or callable(member):
            parts.append(f"{name}\n{inspect.getdoc(member) or ''}")
        if isinstance(member, type):
            parts += [
                f"{name}.{key}\n{inspect.getdoc(value) or ''}"
                for key, value in sorted(vars(member).items())
                if not key.startswith("_") and callable(value)
            ]
    return "\n\n".join(dict.fromkeys(part.strip() for part in parts if part.strip())) + "\n"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
