"""Human windows: alike in everything but their words, and never near each other across parts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rematch.arena import BaseInfo, BaseJob
from rematch.corpora import Document
from workflows.remodetect import corpus as module
from workflows.remodetect.corpus import DOMAINS, PARTS, Corpus, load_part, load_vocabulary

WORDS = 40
SIZES = {"lm_a": 60, "lm_b": 60, "train": 60, "validation": 60, "test": 60, "preferences": 240}
Build = Callable[..., tuple[Path, BaseInfo]]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds a corpus of given documents, by domain."""

    def made(documents: dict[str, list[str]], **options: Any) -> tuple[Path, BaseInfo]:
        def given(domain: str, max_files: int | None) -> Iterator[Document]:
            for index, text in enumerate(documents.get(domain, [])):
                yield Document("docstrings", f"{domain}/{index}", text)

        monkeypatch.setattr(module, "_documents", given)
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        out.mkdir()
        corpus = Corpus(**{"vocab_size": 5000, "max_unknown": 40, "windows": SIZES} | options)
        return out, corpus.build(BaseJob("remodetect", "smoke", "corpus", None, None, {}, {}, out))

    return made


def words(n: int, seed: int) -> list[str]:
    """Random words of two letters, of 64: few enough for all of them to be known."""
    letters = list("abcdefgh")
    drawn = np.random.default_rng([n, seed]).choice(letters, (n, 2))
    return ["".join(pair) for pair in drawn]


def many(n: int, n_words: int = WORDS, seed: int = 0) -> list[str]:
    return [" ".join(words(n_words, 1000 * seed + index)) for index in range(n)]


def holders(folder: Path) -> dict[tuple[str, ...], set[tuple[str, str]]]:
    """The (domain, part) of every window."""
    found: dict[tuple[str, ...], set[tuple[str, str]]] = {}
    for domain in DOMAINS:
        for part in PARTS:
            for window in load_part(folder, domain, part):
                found.setdefault(tuple(window), set()).add((domain, part))
    return found


# -- the real one -----------------------------------------------------------------------------------------------------


def test_every_window_has_the_same_length_and_words_of_the_vocabulary(corpus: Path) -> None:
    known = set(load_vocabulary(corpus))
    assert len(known) == 1000
    for window in holders(corpus):
        assert len(window) == WORDS
        assert known.issuperset(window)
        assert not any(word != word.lower() or " " in word or not word for word in window)


def test_vocabulary_is_what_the_language_models_read_most_often(corpus: Path) -> None:
    """Other parts have no say: what is frequent in test windows alone stays unknown."""
    vocabulary = load_vocabulary(corpus)
    assert vocabulary[0] == "<unk>"
    counts = Counter(w for d in DOMAINS for p in ("lm_a", "lm_b") for window in load_part(corpus, d, p) for w in window)
    numbers = [counts[word] for word in vocabulary[1:]]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[-1] > 0
    elsewhere = {w for d in DOMAINS for window in load_part(corpus, d, "test") for w in window}
    assert elsewhere <= set(vocabulary)


def test_no_window_stands_in_two_parts(corpus: Path) -> None:
    across = [where for where in holders(corpus).values() if len({part for _, part in where}) > 1]
    assert not across


def shared_runs(folder: Path) -> np.ndarray:
    """Of each window the share of its runs of eight words that stand in another part too, (windows,)."""
    found = holders(folder)

    def runs(window: tuple[str, ...]) -> set[tuple[str, ...]]:
        return {window[start : start + 8] for start in range(WORDS - 7)}

    where: dict[tuple[str, ...], set[str]] = {}
    for window, places in found.items():
        for run in runs(window):
            where.setdefault(run, set()).update(part for _, part in places)
    return np.array([np.mean([len(where[run]) > 1 for run in runs(window)]) for window in found])


def test_parts_share_few_runs_of_eight_words(corpus: Path) -> None:
    """Counted on what was written, not by the function that split it."""
    shared = shared_runs(corpus)
    assert np.mean(shared) < 0.05
    assert np.mean(shared > 0.5) < 0.02


def test_no_window_has_a_near_duplicate_in_another_part(corpus: Path) -> None:
    assert np.max(shared_runs(corpus)) <= 0.5


def test_only_the_first_domain_is_trained_on(corpus: Path) -> None:
    for domain in DOMAINS:
        sizes = {part: len(load_part(corpus, domain, part)) for part in PARTS}
        assert all(sizes[part] for part in ("lm_a", "lm_b", "test", "preferences"))
        assert (sizes["train"] > 0) == (sizes["validation"] > 0) == (domain == DOMAINS[0])
        assert abs(sizes["lm_a"] - sizes["lm_b"]) < 10


# -- how texts are split ----------------------------------------------------------------------------------------------


def test_same_documents_same_bytes(build: Build) -> None:
    documents = {"sci": many(80), "std": many(40, seed=1)}
    (first, info), (second, again) = build(documents), build(documents)
    for name in ("vocabulary.json", *(f"{domain}.json" for domain in DOMAINS)):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert info == again
    _, other = build({"sci": many(80), "std": many(41, seed=1)})
    assert other.data_hash != info.data_hash


def test_near_duplicates_stay_together_also_across_domains(build: Build) -> None:
    """Twenty texts, each with two copies that differ in a word or two; one copy is in another domain."""
    originals = [words(WORDS, seed) for seed in range(20)]

    def changed(text: list[str], *places: int) -> str:
        return " ".join("aa" if place in places else word for place, word in enumerate(text))

    sci = [" ".join(text) for text in originals] + [changed(text, 1, 38) for text in originals] + many(60, seed=1)
    std = [changed(text, 5) for text in originals] + many(60, seed=2)
    folder, _ = build({"sci": sci, "std": std})
    found = holders(folder)
    for text in originals:
        copies = [text, changed(text, 1, 38).split(), changed(text, 5).split()]
        parts = [{part for _, part in found.get(tuple(copy), ())} for copy in copies]
        # The copy in the other domain is nowhere, where its group went to a part that this domain has not.
        assert len(parts[0]) == 1
        assert parts[0] == parts[1]
        assert parts[2] <= parts[0]


def test_windows_of_one_text_stay_together_and_do_not_overlap(build: Build) -> None:
    texts = [words(WORDS * 3 + 7, seed) for seed in range(60)]
    folder, info = build({"sci": [" ".join(text) for text in texts]})
    found = holders(folder)
    for text in texts:
        windows = [tuple(text[start : start + WORDS]) for start in (0, WORDS, 2 * WORDS)]
        # A small part may have been full before the text's last window.
        placed = [found[window] for window in windows if window in found]
        assert len({part for where in placed for _, part in where}) == 1
    assert len(found) == sum(info.notes[f"sci_{part}"] for part in PARTS) <= 3 * len(texts)
    assert all(info.notes[f"sci_{part}"] <= SIZES[part] for part in PARTS)


def test_one_long_text_is_a_twentieth_of_a_part_at_most(build: Build) -> None:
    long = words(WORDS * 50, 0)
    windows = {tuple(long[start : start + WORDS]) for start in range(0, len(long), WORDS)}
    folder, _ = build({"sci": [" ".join(long), *many(200, seed=3)]})
    (part,) = {part for window in windows for _, part in holders(folder).get(window, ())}
    assert sum(window in windows for window in holders(folder)) == SIZES[part] // 20


def test_rare_words_become_unknown_and_nothing_else_does(build: Build) -> None:
    folder, info = build({"sci": many(80)}, vocab_size=30)
    vocabulary = load_vocabulary(folder)
    assert len(vocabulary) == 30
    windows = [tuple(text.split()) for text in many(80)]
    closed = {tuple(w if w in vocabulary else "<unk>" for w in window) for window in windows}
    assert closed.issuperset(holders(folder))
    share = np.mean([w in vocabulary[1:] for p in ("lm_a", "lm_b") for x in load_part(folder, "sci", p) for w in x])
    assert info.notes["known_words"] == pytest.approx(share)


def test_nothing_is_read_where_the_texts_come_from_elsewhere(build: Build) -> None:
    folder, _ = build({"sci": many(5)}, built_in=False)
    assert not list(folder.iterdir())


def test_a_window_that_long_texts_share_does_not_cross(build: Build) -> None:
    """Ten windows, each in two texts of ten windows that are otherwise unlike: a tenth of either."""
    shared = [words(WORDS, seed) for seed in range(10)]
    texts = [" ".join(shared[i % 10] + words(9 * WORDS, 100 + i)) for i in range(20)]
    sizes = dict.fromkeys(PARTS, 200) | {"preferences": 800}
    folder, _ = build({"sci": [*texts, *many(40, seed=3)]}, windows=sizes)
    assert all(len({part for _, part in where}) == 1 for where in holders(folder).values())


# -- prose ------------------------------------------------------------------------------------------------------------


def prose(monkeypatch: pytest.MonkeyPatch, *docstrings: str) -> list[str]:
    monkeypatch.setattr(module, "_docstrings", lambda domain, max_files: iter([("file", list(docstrings))]))
    return [document.text for document in module._documents("sci", None)]


SENTENCE = "The quick brown fox jumps over the lazy dog, again."


def test_words_and_marks_are_parted_and_lower_case(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = prose(
        monkeypatch, "The value doesn't change where x = 3.5 (the default) is returned and Nothing is given; does it?"
    )
    assert found == (
        "the value doesn't change where x = 3.5 ( the default ) is returned and nothing is given ; does it ?"
    )


@pytest.mark.parametrize(
    "other",
    [
        ">>> the quick brown fox jumps over the lazy dog",  # a session
        "seven words are not enough of text",
        "x = f(a[0], b_1) + g(c, d=3); y = 2 ** x for all a",  # code
        SENTENCE.replace(" ", "\n    "),  # seen, however it is broken into lines
    ],
)
def test_what_is_no_prose_is_left_out(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    alone = prose(monkeypatch, SENTENCE)
    assert len(alone) == 1
    assert prose(monkeypatch, f"{SENTENCE}\n\n{other}") == alone
    assert prose(monkeypatch, SENTENCE, other) == alone
    assert len(prose(monkeypatch, f"{SENTENCE}\n\n{SENTENCE.replace('quick', 'slow')}")[0]) == 2 * len(alone[0])


def test_lines_drawn_under_headings_are_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = prose(monkeypatch, f"{SENTENCE}\n-------\nand then more words follow here, as many as needed")
    assert "-" not in found
    assert found.endswith("and then more words follow here , as many as needed")


def test_documents_are_named_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [document.path for domain in ("topics", "data") for document in module._documents(domain, 3)]
    assert len(set(names)) == len(names) > 50


def test_files_are_plain_json(corpus: Path) -> None:
    assert set(json.loads((corpus / "sci.json").read_text(encoding="utf-8"))) == set(PARTS)
