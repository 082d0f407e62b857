"""MAC's data from the hub: documents and questions of a published data set in five parts, and streams of them.

Which files, where they come from and where they have to lie: ``workflows.mac.hub_sources``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pydantic import PositiveInt

from baselines.online import stream_order
from baselines.qa import QAPair, is_scorable
from rematch.errors import RematchError, unknown
from rematch.hub import Hub
from workflows.mac.hub_sources import DATASETS, PARTS, Row, part_rows, released_rows
from workflows.mac.streams import Document, Splits

STREAM_LENGTH = 1665
"""Documents of the paper's evaluation stream."""


def load_splits(
    hub: Hub,
    dataset: str,
    *,
    seed: int,
    limits: Mapping[str, PositiveInt] = {},
    deduplicate: bool = False,
    scale: float = 1.0,
) -> Splits:
    """The five parts of a data set in the order of its files, and MAC's own evaluation stream where the mirror has it.

    A question has one answer, as in the released code: the shortest, in SQuAD and ArchivalQA with a capital. Left out and
    counted are rows without a question or an answer, or without a text of two words, which is the least that a language
    model can learn from, and answers of which normalisation leaves nothing, since every prediction would equal them.

    Args:
        dataset: ``streamingqa``, ``squad`` or ``archivalqa``.
        seed: of what is drawn for a part that is limited.
        limits: documents or pairs at most, by part (``PARTS``). Documents are drawn as ``stream`` does it, pairs singly.
        deduplicate: one document of each distinct text, as in CaMeLS; else one of each row, as in MAC's released code, so
            that texts come again.
        scale: of the bounds of SQuAD's parts, for files with fewer rows than SQuAD has; 1 is the paper's split.

    Raises:
        RematchError: files are missing or bad, options are, or nothing is left of a part.
    """
    if dataset not in DATASETS:
        raise unknown("data set", dataset, DATASETS, "MAC")
    for part, n in limits.items():
        if part not in PARTS:
            raise unknown("part", part, PARTS, f"{dataset}: limits")
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise RematchError(f"{dataset}: limits.{part}: {n!r}; allowed: whole numbers from 1")
    rows = part_rows(hub, dataset, scale)
    dropped: Counter[str] = Counter()

    def pairs(part: str) -> tuple[QAPair, ...]:
        found = _pairs(_documents(rows[part], dataset, part, dropped))
        n = limits.get(part, len(found))
        return tuple(found if n >= len(found) else [found[i] for i in stream_order(len(found), seed)[:n]])

    def documents(part: str) -> tuple[Document, ...]:
        found = _documents(rows[part], dataset, part, dropped)
        found = distinct(found) if deduplicate else found
        n = limits.get(part, len(found))
        return tuple(found if n >= len(found) else stream(found, n, seed))

    rows["released"] = released_rows(hub, dataset)
    return Splits(
        qa_train=pairs("qa_train"),
        qa_validation=pairs("qa_validation"),
        train=documents("train"),
        validation=documents("validation"),
        test=documents("test"),
        released=documents("released") if rows["released"] else (),
        dropped=dropped,
    )


def evaluation_stream(splits: Splits, n: int, seed: int) -> list[Document]:
    """MAC's own stream, its first ``n`` documents whatever the seed, or if there is none ``n`` of the test part.

    The released code never samples, it reads the stream that its authors drew once. It may be shorter than ``n``.
    """
    return list(splits.released[:n]) if splits.released else stream(splits.test, n, seed)


def stream(documents: Sequence[Document], n: int, seed: int) -> list[Document]:
    """``n`` documents: groups of one name in random order, each in its own order, cut behind the ``n``-th (released code).

    So the questions on a title of SQuAD or an article of ArchivalQA stay together; in StreamingQA every row is a group. Of
    documents that are ``distinct``, ``n`` counts texts, as it does in CaMeLS.

    Raises:
        RematchError: there are fewer documents than that.
    """
    if not 1 <= n <= len(documents):
        raise RematchError(f"a stream of {n} documents cannot be drawn from {len(documents)}; allowed: 1 to that many")
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.name, []).append(document)
    members = list(groups.values())
    return [document for group in stream_order(len(members), seed) for document in members[group]][:n]


def distinct(documents: Iterable[Document]) -> list[Document]:
    """A document of each distinct text, in order of first appearance, with the pairs of all that have it."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.text, []).append(document)
    return [Document(same[0].name, text, tuple(_pairs(same)), same[0].salient) for text, same in groups.items()]


def _pairs(documents: Iterable[Document]) -> list[QAPair]:
    return [pair for document in documents for pair in document.pairs]


def _documents(rows: Iterable[Row], dataset: str, part: str, dropped: Counter[str]) -> list[Document]:
    """A document of each row that is of use; without text for QA tuning."""
    made = []
    for row in rows:
        answer = min(filter(None, map(str.strip, row.answers)), key=len, default="")
        if dataset != "streamingqa" and answer[:1].islower():
            answer = answer[0].upper() + answer[1:]
        pair = QAPair(row.question.strip(), answer)
        if lack := _lack(pair, row.text):
            dropped[f"{part}: {lack}"] += 1
        else:
            made.append(Document(row.name, row.text or "", (pair,)))
    if not made:
        raise RematchError(f"{dataset}: no row of part '{part}' is of use; left out: {dict(dropped)}")
    return made


def _lack(pair: QAPair, text: str | None) -> str:
    """What makes a row useless, in words."""
    if text is not None and len(text.split(maxsplit=1)) < 2:
        return "no text"
    if not pair.question:
        return "no question"
    if not pair.answer:
        return "no answer"
    return "" if is_scorable(pair.answer) else "answer normalises to nothing"
