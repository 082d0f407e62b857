"""The texts of one seed: triplets and replay to train on, preference pairs, and the cells that are scored.

A base ``texts`` is a folder of JSON lines, the same whether the texts were written here by n-gram models under simulated
annotators, or come from the paper's data sets (``hub_texts``):

- ``triplets``, ``validation``: ``{"llm", "human", "mixed": {ratio: text or null}}``
- ``replay``: ``{"text"}``, the texts that the reward model was trained on
- ``rewards``, ``preferences``: ``{"chosen", "rejected"}``, pairs to train a reward model on, and held-out ones
- ``cells``: ``{"domain", "source", "seen", "aligned", "attack", "n", "words", "human": [...], "llm": [...]}``; pair i is human
  text i and generated text i, from the same prompt and with the same number of words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """Pairs of human and generated text that are scored together.

    Attributes:
        domain, source: what the texts are about, and what wrote the generated ones.
        seen: both domain and source were trained on.
        aligned: the source was optimised towards a reward, or is such a model of a vendor's.
        attack: what was done to the generated texts afterwards: none, rephrase or swap.
        n: of best-of-n, or None.
        words: both texts were cut to so many words, or None.
        dose_only: there for the dose of alignment alone, and in no average over sources.
    """

    domain: str
    source: str
    seen: bool
    aligned: bool
    attack: str
    n: int | None
    words: int | None
    human: list[str]
    llm: list[str]
    dose_only: bool = False

    @property
    def whole(self) -> bool:
        """Neither attacked nor cut: the cells that averages are over, where the source is aligned."""
        return self.attack == "none" and self.words is None


def read_rows(folder: Path, name: str) -> list[Row]:
    """The rows of one of the files, without its ``.jsonl``; none where there is no such file."""
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        return []
    # Not splitlines: a text may hold other line separators, such as U+2028.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_rows(folder: Path, name: str, rows: Iterable[Row]) -> None:
    """Write one of the files."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def read_cells(folder: Path) -> list[Cell]:
    """The cells, in the order in which they were written."""
    unset: Row = {"words": None}
    return [Cell(**(unset | row)) for row in read_rows(folder, "cells")]


def cut_cells(rows: Sequence[Row], lengths: Sequence[int], only: set[tuple[str, str]]) -> Iterator[Row]:
    """Cells cut to their first words, for every length, of the unattacked cells named by (domain, source)."""
    for row in rows:
        if row["attack"] == "none" and (row["domain"], row["source"]) in only:
            for words in lengths:
                cut = {side: [" ".join(text.split()[:words]) for text in row[side]] for side in ("human", "llm")}
                yield row | {"words": words} | cut


def distinct_texts(folder: Path, n_triplets: int | None) -> list[str]:
    """Every text that a language model is to read, once, in a fixed order: those of the cells and of the first triplets."""
    found: dict[str, None] = {}
    for cell in read_cells(folder):
        found.update(dict.fromkeys([*cell.human, *cell.llm]))
    for row in read_rows(folder, "triplets")[:n_triplets]:
        found.update(dict.fromkeys([row["llm"], row["human"]]))
    return list(found)
