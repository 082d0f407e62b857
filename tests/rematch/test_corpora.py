"""The documents of the Python installation, and the split that keeps near-duplicates on one side."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import pytest

from rematch.corpora import (
    Document,
    Split,
    corpus_hash,
    near_duplicate_groups,
    python_documents,
    sampled_shingles,
    split_documents,
)

MAX_BYTES = 1_500_000


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return python_documents(MAX_BYTES)


@pytest.fixture(scope="module")
def split(documents: list[Document]) -> Split:
    return split_documents(documents)


def prose(seed: int, n_words: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"w{i}" for i in rng.integers(5000, size=n_words)]


def texts(*contents: str) -> list[Document]:
    return [Document("code", f"{i}.py", content) for i, content in enumerate(contents)]


def test_the_same_documents_every_time(documents: list[Document]) -> None:
    assert python_documents(MAX_BYTES) == documents
    assert [d.path for d in documents] == sorted({d.path for d in documents})
    assert corpus_hash(documents) == corpus_hash(python_documents(MAX_BYTES))
    assert corpus_hash(documents) != corpus_hash(documents[:-1])


def test_size_and_kinds(documents: list[Document]) -> None:
    assert 0.95 * MAX_BYTES < sum(len(d.text) for d in documents) <= MAX_BYTES
    assert {d.kind for d in documents} == {"code", "reference", "docstrings"}
    assert not any("test" in d.path.split("/") or "site-packages" in d.path for d in documents)
    assert all(not d.path.startswith("/") for d in documents)


def test_a_smaller_corpus_is_mostly_part_of_the_larger(documents: list[Document]) -> None:
    smaller = {d.path for d in python_documents(MAX_BYTES // 2)}
    assert len(smaller & {d.path for d in documents}) > 0.9 * len(smaller)


def test_every_document_is_in_one_part(documents: list[Document], split: Split) -> None:
    paths = [d.path for part in (split.train, split.validation, split.test) for d in part]
    assert sorted(paths) == [d.path for d in documents]
    assert split == split_documents(documents[::-1])


def test_shares(documents: list[Document], split: Split) -> None:
    total = sum(len(d.text) for d in documents)
    for part in (split.validation, split.test):
        assert 0.08 < sum(len(d.text) for d in part) / total < 0.13


def test_no_near_duplicate_crosses_the_split(split: Split) -> None:
    """By another measure than the one that splits: all shingles instead of a sample."""
    parts = [[sampled_shingles(d.text, 1) for d in part] for part in (split.train, split.validation, split.test)]
    for i, part in enumerate(parts):
        for shingles in part:
            for other in (s for later in parts[i + 1 :] for s in later):
                smaller = min(len(shingles), len(other))
                if smaller >= 50:
                    assert len(np.intersect1d(shingles, other, assume_unique=True)) < 0.35 * smaller


@pytest.mark.parametrize("changed", [0.0, 0.02, 0.05])
def test_an_edited_copy_goes_with_its_original(changed: float) -> None:
    words = prose(0, 2000)
    edited = list(words)
    for i in np.random.default_rng(1).choice(2000, int(changed * 2000), replace=False):
        edited[i] = "edited"
    groups = near_duplicate_groups(texts(" ".join(words), " ".join(prose(2, 2000)), " ".join(edited)))
    assert groups == [[0, 2], [1]]


def test_an_excerpt_goes_with_its_source() -> None:
    words = prose(3, 3000)
    assert near_duplicate_groups(texts(" ".join(words), " ".join(words[1000:1400]))) == [[0, 1]]


def test_copies_of_copies_are_one_group() -> None:
    a, b, c = prose(4, 1000), prose(5, 1000), prose(6, 1000)
    chained = texts(" ".join(a), " ".join([*a, *b]), " ".join(b), " ".join(c))
    assert near_duplicate_groups(chained) == [[0, 1, 2], [3]]


def test_a_shared_licence_header_is_no_duplicate() -> None:
    header = " ".join(prose(7, 200))  # two fifths of every document
    many = [f"{header} {' '.join(prose(100 + i, 300))}" for i in range(20)]
    assert len(near_duplicate_groups(texts(*many))) == 20


def test_a_group_is_not_torn_apart() -> None:
    rng = np.random.default_rng(0)
    families = [prose(1000 + i, 400) for i in range(30)]
    documents = [
        Document("code", f"{rng.integers(10**9)}-{i}-{k}.py", " ".join(family + prose(10_000 + 10 * i + k, 100)))
        for i, family in enumerate(families)
        for k in range(3)
    ]
    parts: Sequence[Sequence[Document]] = (lambda s: (s.train, s.validation, s.test))(split_documents(documents))
    found = [{d.path.split("-")[1] for d in part} for part in parts]
    assert all(found)
    assert sum(map(len, found)) == 30


def test_shingles_ignore_layout_only() -> None:
    text = " ".join(prose(8, 500))
    np.testing.assert_array_equal(sampled_shingles(text), sampled_shingles(text.replace(" ", "\n   ")))
    assert len(sampled_shingles("too short")) == 0
    near = difflib.SequenceMatcher(None, sampled_shingles(text, 1).tolist(), sampled_shingles(text, 1).tolist())
    assert near.ratio() == 1.0
