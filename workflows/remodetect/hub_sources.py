"""What the papers' data sets hold, read from their original files: pairs to train on, replay texts, pairs to score.

Nothing of it is part of this project. Every function takes ``dropped``, a counter by data set, and adds to it the rows of
which a text is empty or one word, which are left out.
"""

from __future__ import annotations

import heapq
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from zlib import crc32

import numpy as np

from methods.remodetect.cleaning import clean_spacing
from rematch.errors import RematchError
from rematch.hub import Hub
from rematch.hub_files import Origin, find_files, json_rows, need_texts, parquet_rows, read_csv, read_json
from workflows.remodetect.texts import Cell

HC3 = "Hello-SimpleAI/HC3"
HH_RLHF = "Anthropic/hh-rlhf"
SYNTHETIC_INSTRUCT = "Dahoas/synthetic-instruct-gptj-pairwise"
FAST_DETECT_GPT = "baoguangsheng/fast-detect-gpt"
MGTBENCH = "xinleihe/MGTBench"

DOMAINS = ("pubmed", "xsum", "writing")
"""Fast-DetectGPT's: answers of PubMedQA, news of XSum, stories of Reddit WritingPrompts."""
MGTBENCH_FILES = ("Essay", "Reuters", "WP")
MGTBENCH_SOURCES = {
    "ChatGPT-turbo": "gpt-3.5-turbo",
    "ChatGPT": "chatgpt",
    "Claude": "claude",
    "ChatGLM": "chatglm",
    "Dolly": "dolly",
    "GPT4All": "gpt4all",
    "StableLM": "stablelm",
}
"""The columns of the released files, and the sources under the names of the reported tables."""
FILE_NAMES = {
    "gpt4turbo": "gpt-4-turbo",
    "llama": "llama3-70b-instruct",
    "claude": "claude3-opus",
    "claude_sonnet": "claude3-sonnet",
    "claude_haiku": "claude3-haiku",
    "gemini": "gemini-pro",
}
"""Names in the file names of the official code's evaluation data, and the models that it called for them."""
UNALIGNED = ("davinci", "davinci-002", "gpt2", "gpt2-*", "gpt-neo-*", "gpt-neox-*", "gpt-j-*", "opt-*", "bloom", "bloom-*", "pythia-*")  # fmt: skip
"""Sources that are language models only, neither instruction-tuned nor aligned (``*`` is anything)."""

_Row = TypeVar("_Row")
_UNALIGNED = re.compile("|".join(re.escape(name).replace(r"\*", ".*") for name in UNALIGNED))
_RAW_DATA = ".raw_data.json"
_TRAIN_SHARE = 0.8
_SYNTHETIC_SHARE = 0.9


@dataclass(frozen=True)
class Answers:
    """One question with a human's and ChatGPT's answer."""

    question: str
    human: str
    llm: str


HC3_ORIGIN = Origin(
    files="all.jsonl of the hub's data set, or en_train_cleaned.csv (unfilter_full, cleaned)",
    place="the hub (Hello-SimpleAI/HC3), or the README of github.com/YuchuanTian/AIGC_text_detector",
    licence="HC3 is CC BY-SA 4.0, or stricter where its sources are",
)
HH_ORIGIN = Origin("*/train.jsonl.gz and */test.jsonl.gz", "the hub", "MIT")
SYNTHETIC_ORIGIN = Origin("*.parquet", "the hub", "none is stated")
FAST_DETECT_GPT_ORIGIN = Origin(
    files="{domain}_{model}" + _RAW_DATA,
    place="exp_gpt3to4/data and exp_main/data of github.com/baoguangsheng/fast-detect-gpt",
    licence="MIT for the compilation; the texts of XSum, WritingPrompts and PubMedQA keep their own terms",
    on_hub=False,
)
MGTBENCH_ORIGIN = Origin(
    files=", ".join(f"{name}_LLMs.csv" for name in MGTBENCH_FILES),
    place="the data folder that the README of github.com/xinleihe/MGTBench links to",
    licence="MIT for the code; the essays, Reuters news and WritingPrompts stories keep their own terms",
    on_hub=False,
)


def hc3_answers(hub: Hub, repo_id: str = HC3) -> list[Answers]:
    """HC3 in the order of its file: every ChatGPT answer with every human answer to the same question.

    Two forms are read. JSON Lines (the hub's): ``question``, ``human_answers``, ``chatgpt_answers``. CSV (cleaned,
    full-text English): ``id``, ``question``, ``answer``, ``label`` (0 human, 1 ChatGPT), ``source``, joined on id,
    question and source as in the official code. Spacing is cleaned in both, so that it tells nothing.
    """
    found = find_files(hub, repo_id, ["all.jsonl", "en_train*.csv"], HC3_ORIGIN)
    if len(found) > 1:
        raise RematchError(f"{repo_id}: {', '.join(str(path) for path in found)}: keep one of them")
    rows = _hc3_json(found[0]) if found[0].suffix == ".jsonl" else _hc3_csv(found[0])
    return [Answers(row.question, clean_spacing(row.human), clean_spacing(row.llm)) for row in rows]


def split_answers(
    rows: Sequence[Answers], n: int, seed: int, dropped: Counter[str]
) -> tuple[list[Answers], list[Answers], list[Answers]]:
    """Training, validation and held-out rows of HC3; no question is in two of them.

    The first ``n`` rows are shuffled, 80 % of them train and the rest validate (official code, which never uses the
    rest). It is questions that are shuffled, not rows, since one question can have several human answers. Held out are
    the rows behind the first ``n``, the first one of each question.

    Args:
        n: the paper's is 2201.
        dropped: texts that are empty or one word are counted here, under ``hc3``.
    """
    kept = [[row for row in part if usable(row.human, row.llm, dropped, "hc3")] for part in (rows[:n], rows[n:])]
    groups: dict[str, list[Answers]] = {}
    for row in kept[0]:
        groups.setdefault(row.question, []).append(row)
    order = list(groups)
    random.Random(seed).shuffle(order)
    train: list[Answers] = []
    validation: list[Answers] = []
    for question in order:
        part = train if len(train) < _TRAIN_SHARE * len(kept[0]) else validation
        part += groups[question]
    held_out = {row.question: row for row in reversed(kept[1]) if row.question not in groups}
    return train, validation, list(held_out.values())[::-1]


def hc3_cell(rows: Sequence[Answers]) -> Cell:
    """The one cell whose domain and source are seen in training. HC3's ChatGPT is the GPT-3.5 of January 2023."""
    pairs = [cut_pair(row.human, row.llm) for row in rows]
    return _pairs_cell("hc3", "gpt-3.5-turbo", True, pairs)


def replay_texts(
    hub: Hub,
    n: int,
    seed: int,
    dropped: Counter[str],
    *,
    hh_rlhf: str = HH_RLHF,
    synthetic_instruct: str = SYNTHETIC_INSTRUCT,
) -> list[str]:
    """``n`` random texts that reward models were trained on, cleaned (the paper's replay buffer; official code).

    The pool: chosen and rejected dialogues of hh-rlhf's training split, and prompt with chosen and prompt with rejected
    answer of 90 % of synthetic-instruct-gptj-pairwise.
    """

    def pool() -> Iterator[str]:
        for path in find_files(hub, hh_rlhf, ["*/train.jsonl.gz"], HH_ORIGIN):
            for row in json_rows(path, ("chosen", "rejected")):
                yield from (row["chosen"], row["rejected"])
        columns = ("prompt", "chosen", "rejected")
        paths = find_files(hub, synthetic_instruct, ["*.parquet"], SYNTHETIC_ORIGIN)
        rows = [row for path in paths for row in parquet_rows(path, columns)]
        for index in sorted(np.random.default_rng(seed).permutation(len(rows))[: int(_SYNTHETIC_SHARE * len(rows))]):
            row = rows[index]
            yield from (row["prompt"] + row["chosen"], row["prompt"] + row["rejected"])

    texts = (text for text in map(clean_spacing, pool()) if usable(text, text, dropped, "replay"))
    return _sample(texts, n, seed)


def preference_pairs(
    hub: Hub, n: int, seed: int, dropped: Counter[str], *, hh_rlhf: str = HH_RLHF, split: str = "test"
) -> list[dict[str, str]]:
    """``n`` random pairs of a split of hh-rlhf (``train`` or ``test``): ``chosen`` and ``rejected``, as they are."""

    def pairs() -> Iterator[dict[str, str]]:
        for path in find_files(hub, hh_rlhf, [f"*/{split}.jsonl.gz"], HH_ORIGIN):
            for row in json_rows(path, ("chosen", "rejected")):
                if usable(row["chosen"], row["rejected"], dropped, "preferences"):
                    yield {"chosen": row["chosen"], "rejected": row["rejected"]}

    return _sample(pairs(), n, seed)


def fast_detect_gpt_cells(
    hub: Hub,
    n: int,
    seed: int,
    dropped: Counter[str],
    *,
    repo_id: str = FAST_DETECT_GPT,
) -> list[Cell]:
    """A cell for each file ``{domain}_{model}.raw_data.json``: ``{"original": [...], "sampled": [...]}``.

    Args:
        n: pairs of a cell at most, the same rows for every source of a domain.
    """
    patterns = [f"{domain}_*{_RAW_DATA}" for domain in DOMAINS]
    cells: dict[tuple[str, str], tuple[Path, Cell]] = {}
    for path in find_files(hub, repo_id, patterns, FAST_DETECT_GPT_ORIGIN):
        domain, _, model = path.name.removesuffix(_RAW_DATA).partition("_")
        if ".perturbation_" in model:
            continue  # what DetectGPT's script writes beside its input
        source = FILE_NAMES.get(model, model)
        if (domain, source) in cells:
            raise RematchError(f"{path}: {domain} of {source} is in {cells[domain, source][0]} too; keep one of them")
        human, llm = _raw_data(path)
        cells[domain, source] = path, _cell(domain, source, human, llm, n, seed, dropped)
    return [cell for _, cell in cells.values()]


def mgtbench_cells(
    hub: Hub,
    n: int,
    seed: int,
    dropped: Counter[str],
    *,
    repo_id: str = MGTBENCH,
    sources: Mapping[str, str] = MGTBENCH_SOURCES,
) -> list[Cell]:
    """A cell for each domain and LLM of ``{Essay,Reuters,WP}_LLMs.csv``: a column ``human`` and one for each LLM.

    Spacing is cleaned, as MGTBench's own loader does: its human texts come with spaces before their marks.

    Args:
        n: pairs of a cell at most, the same rows for every source of a domain.
        sources: names of the LLMs by column. Those columns that a file has are read; one it must have.
    """
    patterns = [f"{name}_LLMs.csv" for name in MGTBENCH_FILES]
    cells = []
    for path in find_files(hub, repo_id, patterns, MGTBENCH_ORIGIN):
        table = read_csv(path, ["human"])
        present = [column for column in sources if column in table]
        if not present:
            raise RematchError(f"{path}: no column of an LLM; known: {', '.join(sources)}; has {', '.join(table)}")
        human = [clean_spacing(text) for text in table["human"]]
        for column in present:
            llm = [clean_spacing(text) for text in table[column]]
            domain = path.name.removesuffix("_LLMs.csv").lower()
            cells.append(_cell(domain, sources[column], human, llm, n, seed, dropped))
    return cells


def cut_pair(human: str, llm: str) -> tuple[str, str]:
    """Both texts cut to the shorter one's number of words, with single spaces (newlines too) between words."""
    words = human.split(), llm.split()
    n = min(map(len, words))
    return " ".join(words[0][:n]), " ".join(words[1][:n])


def is_aligned(source: str) -> bool:
    """False for the language models of ``UNALIGNED``, True for any other source, also one that is not known."""
    return _UNALIGNED.fullmatch(source.lower()) is None


def _hc3_json(path: Path) -> Iterator[Answers]:
    for row in json_rows(path, ["question"], ["human_answers", "chatgpt_answers"]):
        for llm in row["chatgpt_answers"]:
            for human in row["human_answers"]:
                yield Answers(row["question"], human, llm)


def _hc3_csv(path: Path) -> Iterator[Answers]:
    table = read_csv(path, ["id", "question", "answer", "label", "source"])
    humans: dict[tuple[str, str, str], list[str]] = {}
    keys = list(zip(table["id"], table["question"], table["source"], strict=True))
    rows = list(zip(keys, table["answer"], table["label"], strict=True))
    for number, (key, answer, label) in enumerate(rows, start=1):
        if label not in ("0", "1"):
            raise RematchError(f"{path}, row {number}: label '{label}'; allowed: 0 (human), 1 (ChatGPT)")
        if label == "0":
            humans.setdefault(key, []).append(answer)
    for key, llm, label in rows:
        if label == "1":
            for human in humans.get(key, ()):
                yield Answers(key[1], human, llm)


def _raw_data(path: Path) -> tuple[list[str], list[str]]:
    content = read_json(path)
    keys = ("original", "sampled")
    if not isinstance(content, dict) or any(key not in content for key in keys):
        has = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise RematchError(f"{path}: needs the keys 'original' and 'sampled'; has {has}")
    human, llm = (need_texts(content[key], key, str(path)) for key in keys)
    if len(human) != len(llm):
        raise RematchError(
            f"{path}: {len(human)} texts in 'original' but {len(llm)} in 'sampled'; every two are a pair"
        )
    return human, llm


def _cell(
    domain: str, source: str, human: Sequence[str], llm: Sequence[str], n: int, seed: int, dropped: Counter[str]
) -> Cell:
    """``n`` random pairs in the order of the file. A row's chance depends on domain and seed, not on the source."""
    chance = np.random.default_rng([seed, crc32(domain.encode())]).random(len(human))
    kept = [i for i, pair in enumerate(zip(human, llm, strict=True)) if usable(*pair, dropped, f"{domain} {source}")]
    if not kept:
        raise RematchError(f"{domain} of {source}: no pair in which both texts have two words or more")
    chosen = sorted(sorted(kept, key=lambda i: chance[i])[:n])
    return _pairs_cell(domain, source, False, [cut_pair(human[i], llm[i]) for i in chosen])


def _pairs_cell(domain: str, source: str, seen: bool, pairs: Sequence[tuple[str, str]]) -> Cell:
    human, llm = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return Cell(domain, source, seen, is_aligned(source), attack="none", n=None, words=None, human=human, llm=llm)


def usable(first: str, second: str, dropped: Counter[str], where: str) -> bool:
    """Whether both texts have two words or more; counts in ``dropped[where]`` if not."""
    fit = len(first.split(maxsplit=1)) > 1 and len(second.split(maxsplit=1)) > 1
    dropped[where] += not fit
    return fit


def _sample(rows: Iterable[_Row], n: int, seed: int) -> list[_Row]:
    """``n`` of the rows (all, if there are fewer) in random order; holds no more than ``n`` of them in memory."""
    rng = np.random.default_rng(seed)
    return [row for _, _, row in heapq.nsmallest(n, ((rng.random(), i, row) for i, row in enumerate(rows)))]
