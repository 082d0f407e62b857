"""MAC's published data in miniature: tiny files in the original formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mirror_files import csv, write, write_parquet

from workflows.mac import hub_sources as sources

N_TRAIN, N_TEST, PER_TEXT, PER_TITLE = 100, 24, 2, 6
SCALE = N_TRAIN / sources.SQUAD_BOUNDS[-1]
BOUNDS = [0, 46, 48, 94, 100]  # the paper's, scaled


def squad_row(
    number: int, split: str = "train", answers: Sequence[str] = ("the long answer", "answer")
) -> dict[str, Any]:
    return {
        "id": f"{number:x}",
        "title": f"{split} title {number // PER_TITLE}",
        "context": f"The {split} text {number // PER_TEXT} is here.",
        "question": f" What is {split} {number}? ",
        "answers": {"text": [f"{answer} {number}" for answer in answers], "answer_start": [4] * len(answers)},
    }


def squad_rows(n: int, split: str = "train") -> list[dict[str, Any]]:
    return [squad_row(number, split) for number in range(n)]


def write_squad(mirror: Path, train: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]]) -> None:
    folder = mirror / "datasets" / sources.SQUAD / "plain_text"
    write_parquet(folder / "train-00000-of-00001.parquet", train)
    write_parquet(folder / "validation-00000-of-00001.parquet", test)


def write_camels(mirror: Path, files: Sequence[str], table: Callable[[str], list[list[str]]]) -> None:
    for name in files:
        write(mirror / "datasets" / sources.CAMELS / name, csv(table(Path(name).stem)))


def streamingqa_table(part: str) -> list[list[str]]:
    if part.startswith("qa_"):
        return [["question", "answers"], *([f"What is {part} {i} ?", f"some name\\name {i}"] for i in range(5))]
    rows = [
        [str(i), f"What is {part} {i} ?", f"longer name {i}\\name {i}", f"News {i // 2}\nof {part}."] for i in range(8)
    ]
    return [["", "question", "answers", "text"], *rows]


def archivalqa_table(part: str) -> list[list[str]]:
    head = ["question", "answer", "para_id", "doc_id", "para_num", "ans_paragraph", "ans_text"]
    places = [("20", "11"), ("10", "2"), ("20", "9"), ("10", "1"), ("20", "9"), ("30", "0")]
    return [head, *([f"What is {part} {i}?", f"answer {i}", f"{doc}_{n}", doc, n, f"Paragraph {n} of {doc}.", "All."] for i, (doc, n) in enumerate(places))]  # fmt: skip
