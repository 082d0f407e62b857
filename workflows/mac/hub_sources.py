"""What the files of MAC's and CaMeLS's three data sets hold: StreamingQA, SQuAD-Seq, ArchivalQA-Seq.

Nothing of it is part of this project. Where things lie in a mirror, below ``datasets``:

=====================  ===========================================================================================
``rajpurkar/squad``    the hub's SQuAD v1.1: ``plain_text/train-*.parquet`` and ``plain_text/validation-*.parquet``
``nathanhu0/CaMeLS``   ``StreamingQA/*.csv``, from the folder that its README links to; ``ArchivalQA/*.csv``, which
                       its notebook writes from the questions and the NYT corpus
``jihoontack/MAC``     optional, in any folder of it: ``squad_test.csv``, ``streaming_test.csv`` and
                       ``archival_test.csv``, the evaluation streams of the released code (its ``conf/dataset``; the
                       last one is not published)
=====================  ===========================================================================================

Known from the released code of both: the names of files and columns, the bounds of SQuAD's parts, the backslash between
StreamingQA's answers, ``answers`` of ``squad_test.csv`` as the text of a Python dict, and ArchivalQA's parts, which are
years. The notebook's own output counts 12,378, 5,121, 21,716, 5,285 and 8,743 rows in the order of ``PARTS``.

Inferred: that StreamingQA's files for QA tuning are called ``qa_train.csv`` and ``qa_val.csv``, as MAC's configuration has
them (CaMeLS's has ``train.csv`` and ``val.csv`` in another folder); that ``archival_test.csv`` has the columns of
ArchivalQA's other files; that the rows of the hub's Parquet files are in SQuAD's own order, on which the bounds rest.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from rematch.errors import RematchError
from rematch.hub import Hub
from rematch.hub_files import Origin, find_file, find_files, find_in_mirror, parquet_rows, read_csv

Dataset = Literal["streamingqa", "squad", "archivalqa"]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)
QA_PARTS = ("qa_train", "qa_validation")
PARTS = (*QA_PARTS, "train", "validation", "test")
SQUAD_BOUNDS = (0, 40006, 42118, 82011, 87599)
"""Where the first four parts begin and end among the rows of SQuAD's training split (released code)."""
FIRST_PARQUET = ("*00000-of-*.parquet", "0000.parquet")
"""The first of a data set's Parquet files, as uploaded and as converted by the hub."""
SQUAD, CAMELS, MAC = "rajpurkar/squad", "nathanhu0/CaMeLS", "jihoontack/MAC"


class Row(NamedTuple):
    """A question as its file has it, with all its answers.

    ``name`` is what the rows of a group share: a title, an article's id. ``text`` is None for QA tuning, which has none.
    """

    name: str
    text: str | None
    question: str
    answers: Sequence[str]


def part_rows(hub: Hub, dataset: str, scale: float = 1.0) -> dict[str, list[Row]]:
    """The rows of each of ``PARTS``, in the order of the files.

    Args:
        scale: of ``SQUAD_BOUNDS``, for files with fewer rows than SQuAD has; 1 is the paper's split.

    Raises:
        RematchError: files are missing or bad, or there is no row for one of SQuAD's parts.
    """
    if dataset == "squad":
        return _squad(hub, scale)
    if scale != 1:
        raise RematchError(f"{dataset}: scale is of SQuAD's bounds only; take limits for less of another data set")
    tables = _TABLES[dataset]
    paths = [find_file(hub, CAMELS, name, tables.origin) for name in tables.files]
    return {part: list(tables.read(path, part not in QA_PARTS)) for part, path in zip(PARTS, paths, strict=True)}


def anchor_texts(hub: Hub, dataset: str) -> list[str]:
    """The texts of a data set of the hub, of the first of its Parquet files (column ``text``); those of a word are left out.

    Raises:
        RematchError: it is missing or bad, or has no text.
    """
    origin = Origin(f"{' or '.join(FIRST_PARQUET)}, with a column 'text'", "the hub", "see the data set's card")
    path = find_files(hub, dataset, FIRST_PARQUET, origin)[0]
    texts = [row["text"] for row in parquet_rows(path, ("text",)) if len(row["text"].split(maxsplit=1)) == 2]
    if not texts:
        raise RematchError(f"{path}: no text of two words or more")
    return texts


def released_rows(hub: Hub, dataset: str) -> list[Row]:
    """MAC's own evaluation stream, in its order; none where the mirror has not got it."""
    name, read = _RELEASED[dataset]
    path = find_in_mirror(hub, MAC, name)
    return [] if path is None else list(read(path, True))


# -- SQuAD ------------------------------------------------------------------------------------------------------------

SQUAD_ORIGIN = Origin("plain_text/train-*.parquet and plain_text/validation-*.parquet", "the hub", "CC BY-SA 4.0")


def _squad(hub: Hub, scale: float) -> dict[str, list[Row]]:
    """The training split in four parts by ``SQUAD_BOUNDS``; the whole validation split is the test part."""
    bounds = [round(scale * bound) for bound in SQUAD_BOUNDS] if 0 < scale <= 1 else []
    if len(set(bounds)) < len(SQUAD_BOUNDS):
        raise RematchError(f"squad: scale: {scale}; allowed: at most 1, and large enough for a row in each part")
    train, test = (_squad_rows(hub, split) for split in ("train", "validation"))
    # At full scale more rows are an error too: they are those of another version of SQuAD.
    if len(train) < bounds[-1] or (scale == 1 and len(train) > bounds[-1]):
        whole = SQUAD_BOUNDS[-1]
        raise RematchError(
            f"squad: the training split of {SQUAD} has {len(train)} rows, the parts need {bounds[-1]} at scale {scale}. "
            f"SQuAD v1.1 has {whole}, which is scale 1; a smaller file needs a scale of its number of rows / {whole}"
        )
    parts = {part: train[a:b] for part, (a, b) in zip(PARTS, pairwise(bounds), strict=False)} | {"test": test}
    return parts | {part: [row._replace(text=None) for row in parts[part]] for part in QA_PARTS}


def _squad_rows(hub: Hub, split: str) -> list[Row]:
    paths = find_files(hub, SQUAD, [f"plain_text/{split}-*.parquet"], SQUAD_ORIGIN)
    rows = (row for path in paths for row in parquet_rows(path, ("title", "context", "question"), ["answers.text"]))
    return [Row(row["title"], row["context"], row["question"], row["answers.text"]) for row in rows]


def _released_squad(path: Path, _: bool) -> Iterator[Row]:
    """Columns ``context``, ``question``, ``answers`` (a Python dict of the hub's form) and ``title`` if it is there."""
    table = read_csv(path, ["context", "question", "answers"])
    titles = table.get("title", [""] * len(table["question"]))
    rows = zip(titles, table["context"], table["question"], table["answers"], strict=True)
    for number, (title, text, question, cell) in enumerate(rows, start=1):
        try:
            answers = [str(answer) for answer in ast.literal_eval(cell)["text"]]
        except (ValueError, SyntaxError, TypeError, KeyError) as error:
            wanted = "{'text': ['Paris'], 'answer_start': [7]}"
            raise RematchError(f"{path}, row {number}: 'answers' must be like {wanted}, is {cell[:80]!r}") from error
        yield Row(title, text, question, answers)


# -- StreamingQA and ArchivalQA ---------------------------------------------------------------------------------------


def _streamingqa(path: Path, with_text: bool) -> Iterator[Row]:
    """Columns ``question``, ``answers`` and ``text``. The released code shuffles rows, so each has a name of its own."""
    table = read_csv(path, ["question", "answers", *(["text"] if with_text else [])])
    texts = table["text"] if with_text else [None] * len(table["question"])
    rows = zip(texts, table["question"], table["answers"], strict=True)
    for number, (text, question, answers) in enumerate(rows, start=1):
        yield Row(f"row {number}", text, question, answers.split("\\"))


def _archivalqa(path: Path, with_text: bool) -> Iterator[Row]:
    """Columns ``question``, ``answer``, and with texts ``doc_id``, ``para_num``, ``ans_paragraph``.

    A text is the paragraph with the answer, not the article. Paragraphs stand in the article's order (released code).
    """
    if not with_text:
        table = read_csv(path, ["question", "answer"])
        pairs = zip(table["question"], table["answer"], strict=True)
        yield from (Row(f"row {number}", None, q, [a]) for number, (q, a) in enumerate(pairs, start=1))
        return
    columns = ("doc_id", "para_num", "ans_paragraph", "question", "answer")
    table = read_csv(path, columns)
    for number, place in enumerate(table["para_num"], start=1):
        if not place.isdecimal():
            raise RematchError(f"{path}, row {number}: para_num '{place}'; allowed: whole numbers, a paragraph's place")
    order = {name: number for number, name in enumerate(dict.fromkeys(table["doc_id"]))}
    rows = zip(*(table[column] for column in columns), strict=True)
    for name, _, text, question, answer in sorted(rows, key=lambda row: (order[row[0]], int(row[1]))):
        yield Row(name, text, question, [answer])


Reader = Callable[[Path, bool], Iterator[Row]]
"""The rows of a file, with texts or without."""


@dataclass(frozen=True)
class _Tables:
    """A data set of CSV files, one for each of ``PARTS``."""

    origin: Origin
    files: tuple[str, ...]
    read: Reader


def _files(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}.csv" for name in (*names, "train", "val", "test"))


STREAMINGQA_FILES = _files("StreamingQA", "qa_train", "qa_val")
STREAMINGQA_ORIGIN = Origin(
    files=", ".join(STREAMINGQA_FILES),
    place=f"the folders that the READMEs of github.com/{CAMELS} and github.com/{MAC} link to",
    licence="the files embed news of WMT, which keep their own terms",
    on_hub=False,
)
ARCHIVALQA_FILES = _files("ArchivalQA", "qa_lt", "qa_lt_val")
ARCHIVALQA_ORIGIN = Origin(
    files=", ".join(ARCHIVALQA_FILES),
    place=f"ArchivalQA_processing.ipynb of github.com/{CAMELS}, run on ArchivalQA's questions and the NYT corpus",
    licence="the NYT Annotated Corpus (LDC2008T19) has to be licensed from the Linguistic Data Consortium",
    on_hub=False,
)
_TABLES = {
    "streamingqa": _Tables(STREAMINGQA_ORIGIN, STREAMINGQA_FILES, _streamingqa),
    "archivalqa": _Tables(ARCHIVALQA_ORIGIN, ARCHIVALQA_FILES, _archivalqa),
}
_RELEASED: Mapping[str, tuple[str, Reader]] = {
    "squad": ("squad_test.csv", _released_squad),
    "streamingqa": ("streaming_test.csv", _streamingqa),
    "archivalqa": ("archival_test.csv", _archivalqa),
}
