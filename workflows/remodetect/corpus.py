"""Human prose: windows of words from docstrings, by domain, split so that no near-duplicate crosses from one use to another.

A window is ``window_words`` words of one docstring, lower-cased, words and marks separated by single spaces. Human and
generated text pass the same tokeniser, have the same number of words and the same closed vocabulary, so that little
but the choice of words tells them apart.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

from pydantic import NonNegativeInt, PositiveInt

from rematch.arena import BaseInfo, BaseJob
from rematch.corpora import SKIPPED, Document, corpus_hash, near_duplicate_groups

DOMAINS = ("sci", "std", "topics", "data")
"""scipy and scikit-learn; the standard library; the language reference in pydoc; numpy and pandas. The first is the one
that detectors are trained on."""
PACKAGES = {"sci": ("scipy", "sklearn"), "data": ("numpy", "pandas")}
PARTS = ("lm_a", "lm_b", "train", "validation", "test", "preferences")
"""What windows are for: to fit language models on, to train detectors, to choose, to score, to begin preference pairs."""
UNKNOWN = "<unk>"
RUN, SHARED = 8, 0.1
"""A window of which more than a tenth of the 8-word runs stand in another part is left out."""

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+(?:\.\d+)?|[^\w\s]")
_UNDERLINE = re.compile(r"^\s*(([-=~^*`+])\2{2,}\s*)+$", re.MULTILINE)
_PROSE = re.compile(r"[A-Za-z][a-z']*[.,;:)]?")


class Windows(TypedDict):
    """Of each of ``PARTS``."""

    lm_a: PositiveInt
    lm_b: PositiveInt
    train: PositiveInt
    validation: PositiveInt
    test: PositiveInt
    preferences: PositiveInt


@dataclass
class Corpus:
    """Windows of human prose, by domain and by what they are for.

    Attributes:
        window_words: words of a window.
        vocab_size: the most frequent words of the language models' parts; any other word is ``<unk>``.
        max_unknown: a window with more unknown words is left out, so that human and generated texts differ little in their
            number.
        windows: of each part in the domain that detectors are trained on; the other domains only fit language models,
            begin preference pairs and are scored.
        other_lm_windows: of each language model's part in every other domain, at most.
        max_files: of each package, None for all.
        built_in: False where the texts are the paper's and the language models the hub's: then nothing is read.
    """

    window_words: PositiveInt = 40
    vocab_size: PositiveInt = 3000
    max_unknown: NonNegativeInt = 4
    windows: Annotated[dict[str, int], Windows] = field(
        default_factory=lambda: {
            "lm_a": 5000, "lm_b": 5000, "train": 1300, "validation": 250, "test": 250, "preferences": 1400,
        }
    )  # fmt: skip
    other_lm_windows: PositiveInt = 2000
    max_files: PositiveInt | None = None
    built_in: bool = True

    def build(self, job: BaseJob) -> BaseInfo:
        """Write ``<domain>.json`` ({part: [[word, ...], ...]}) and ``vocabulary.json``."""
        if not self.built_in:
            return BaseInfo(notes={"built_in": False})
        documents = {domain: list(_documents(domain, self.max_files)) for domain in DOMAINS}
        windows = self._split(documents)
        counts = Counter(
            word for parts in windows.values() for part in ("lm_a", "lm_b") for window in parts[part] for word in window
        )
        frequent = sorted(counts, key=lambda word: (-counts[word], word))[: self.vocab_size - 1]
        vocabulary = [UNKNOWN, *frequent]
        known = set(vocabulary)
        for domain, parts in windows.items():
            for part, mine in parts.items():
                closed = ([word if word in known else UNKNOWN for word in window] for window in mine)
                parts[part] = [window for window in closed if window.count(UNKNOWN) <= self.max_unknown]
            _write(job.out / f"{domain}.json", parts)
        _write(job.out / "vocabulary.json", vocabulary)
        everything = [document for domain in DOMAINS for document in documents[domain]]
        sizes = {f"{domain}_{part}": len(mine) for domain, parts in windows.items() for part, mine in parts.items()}
        covered = sum(counts[word] for word in frequent) / max(1, sum(counts.values()))
        return BaseInfo(
            data_hash=corpus_hash(everything),
            notes={"documents": len(everything), "known_words": covered, **sizes},
        )

    def _split(self, documents: dict[str, list[Document]]) -> dict[str, dict[str, list[list[str]]]]:
        """Windows by domain and part. A group of near-duplicates, across all domains, goes to one part as a whole."""
        everything = [(domain, document) for domain in DOMAINS for document in documents[domain]]
        groups = near_duplicate_groups([document for _, document in everything])
        found: dict[str, dict[str, list[list[str]]]] = {d: {part: [] for part in PARTS} for d in DOMAINS}
        owners: dict[tuple[str, ...], str] = {}
        room = {domain: self._room(domain, documents[domain]) for domain in DOMAINS}
        for group in sorted(groups, key=lambda g: _hash(everything[g[0]][1].path)):
            domain = everything[group[0]][0]
            # Into the part that is emptiest, relative to what it wants.
            wanting = [part for part in PARTS if room[domain][part]]
            part = min(wanting, key=lambda p: len(found[domain][p]) / room[domain][p])
            # A twentieth of a part at most is one group, or a few long texts would be all of it: the rest is left out.
            left = max(1, room[domain][part] // 20)
            for index in group:
                where, document = everything[index]
                cut = [window for window in self._cut(document)[:left] if _is_new(window, part, owners)]
                left -= len(cut)
                if room[where][part]:
                    found[where][part] += cut
        return {d: {p: mine[: room[d][p]] for p, mine in parts.items()} for d, parts in found.items()}

    def _cut(self, document: Document) -> list[list[str]]:
        """The windows of a text, without overlap."""
        words, n = document.text.split(" "), self.window_words
        return [words[start : start + n] for start in range(0, len(words) - n + 1, n)]

    def _room(self, domain: str, documents: list[Document]) -> dict[str, int]:
        """How many windows each part of a domain wants."""
        if domain == DOMAINS[0]:
            return self.windows
        preferences = self.windows["preferences"] // len(DOMAINS)
        spare = sum(len(self._cut(document)) for document in documents) - self.windows["test"] - preferences
        lm = max(1, min(self.other_lm_windows, spare // 2))
        return {**self.windows, "lm_a": lm, "lm_b": lm, "train": 0, "validation": 0, "preferences": preferences}


def _is_new(window: list[str], part: str, owners: dict[tuple[str, ...], str]) -> bool:
    """Whether a window shares few runs of words with windows of other parts; then its runs belong to its part.

    Documents that are unlike as wholes may still have a paragraph in common.
    """
    runs = [tuple(window[start : start + RUN]) for start in range(len(window) - RUN + 1)]
    if sum(owners.get(run, part) != part for run in runs) > SHARED * len(runs):
        return False
    for run in runs:
        owners.setdefault(run, part)
    return True


def load_part(corpus: Path, domain: str, part: str) -> list[list[str]]:
    """The windows of a domain that are for ``part``, each a list of words."""
    return json.loads((corpus / f"{domain}.json").read_text(encoding="utf-8"))[part]


def load_vocabulary(corpus: Path) -> list[str]:
    """The closed vocabulary, ``<unk>`` first, then by frequency."""
    return json.loads((corpus / "vocabulary.json").read_text(encoding="utf-8"))


def _documents(domain: str, max_files: int | None) -> Iterator[Document]:
    """One document a docstring: its prose, as words separated by spaces. A paragraph is taken where it first stands."""
    seen: set[str] = set()
    for path, docstrings in _docstrings(domain, max_files):
        for index, docstring in enumerate(docstrings):
            words = [word for paragraph in _prose(docstring, seen) for word in _WORD.findall(paragraph.lower())]
            if words:
                yield Document("docstrings", f"{domain}/{path}/{index}", " ".join(words))


def _docstrings(domain: str, max_files: int | None) -> Iterator[tuple[str, list[str]]]:
    if domain == "topics":
        topics = importlib.import_module("pydoc_data.topics").topics
        yield from ((name, [text]) for name, text in sorted(topics.items()))
        return
    roots = (
        [_root(name) for name in PACKAGES[domain]] if domain in PACKAGES else [Path(sysconfig.get_paths()["stdlib"])]
    )
    for root in roots:
        paths = [path for path in root.rglob("*.py") if not set(SKIPPED) & set(path.relative_to(root).parts)]
        named = sorted((f"{root.name}/{path.relative_to(root).as_posix()}", path) for path in paths)
        for name, path in sorted(named, key=lambda pair: _hash(pair[0]))[:max_files]:
            yield name if domain in PACKAGES else name.partition("/")[2], _docstrings_of(path)


def _root(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None  # a dependency of the project
    return Path(spec.origin).parent


def _docstrings_of(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node))]


def _prose(docstring: str, seen: set[str]) -> Iterator[str]:
    """The paragraphs that are prose and have not been seen: no sessions, 8 words or more, three quarters of them plain."""
    for paragraph in re.split(r"\n\s*\n", _UNDERLINE.sub("", docstring)):
        words = paragraph.split()
        text = " ".join(words)
        if ">>>" in paragraph or len(words) < 8 or text in seen:
            continue
        if sum(bool(_PROSE.fullmatch(word)) for word in words) >= 0.75 * len(words):
            seen.add(text)
            yield text


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")
