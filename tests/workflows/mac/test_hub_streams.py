"""MAC's published data: tiny files in the original formats, in a mirror."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mac_files import (
    BOUNDS,
    N_TEST,
    N_TRAIN,
    PER_TITLE,
    SCALE,
    archivalqa_table,
    squad_row,
    squad_rows,
    streamingqa_table,
    write_camels,
    write_squad,
)
from mirror_files import csv, write, write_parquet

from baselines.qa import QAPair
from rematch.errors import RematchError
from rematch.hub import Hub
from workflows.mac import hub_sources as sources
from workflows.mac.hub_streams import PARTS, distinct, evaluation_stream, load_splits, stream
from workflows.mac.streams import Document


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    write_squad(folder, squad_rows(N_TRAIN), squad_rows(N_TEST, "test"))
    write_camels(folder, sources.STREAMINGQA_FILES, streamingqa_table)
    write_camels(folder, sources.ARCHIVALQA_FILES, archivalqa_table)
    return folder


@pytest.fixture
def hub(mirror: Path) -> Hub:
    return Hub(mirror)


def scale_of(dataset: str) -> float:
    return SCALE if dataset == "squad" else 1.0


# The five parts


def test_squad_is_cut_where_the_paper_cuts_it(hub: Hub) -> None:
    splits = load_splits(hub, "squad", seed=0, scale=SCALE)
    numbers = [[int(d.pairs[0].question.rstrip("?").split()[-1]) for d in part] for part in (splits.train, splits.validation, splits.test)]  # fmt: skip
    assert numbers == [[*range(48, 94)], [*range(94, 100)], [*range(N_TEST)]]
    assert splits.qa_train == tuple(QAPair(f"What is train {i}?", f"Answer {i}") for i in range(46))
    assert splits.qa_validation == tuple(QAPair(f"What is train {i}?", f"Answer {i}") for i in range(46, 48))
    assert splits.train[0] == Document("train title 8", "The train text 24 is here.", (QAPair("What is train 48?", "Answer 48"),))  # fmt: skip
    assert (splits.released, splits.dropped) == ((), {})


def test_the_bounds_are_the_papers() -> None:
    sizes = [b - a for a, b in zip(sources.SQUAD_BOUNDS, sources.SQUAD_BOUNDS[1:], strict=False)]
    assert sizes == [40006, 2112, 39893, 5588]  # "39.9k / 5.6k"
    assert [round(SCALE * bound) for bound in sources.SQUAD_BOUNDS] == BOUNDS


def test_a_smaller_scale_takes_the_first_rows(hub: Hub) -> None:
    splits = load_splits(hub, "squad", seed=0, scale=SCALE / 2)
    assert [len(part) for part in (splits.qa_train, splits.qa_validation, splits.train, splits.validation)] == [
        23,
        1,
        23,
        3,
    ]
    assert splits.validation[-1].pairs[0].question == "What is train 49?"
    assert len(splits.test) == N_TEST


def test_squad_in_several_files(hub: Hub, mirror: Path, tmp_path: Path) -> None:
    write_squad(tmp_path, squad_rows(70), squad_rows(N_TEST, "test"))
    folder = tmp_path / "datasets" / sources.SQUAD / "plain_text"
    write_parquet(folder / "train-00001-of-00002.parquet", squad_rows(N_TRAIN)[70:])
    write_parquet(tmp_path / "datasets" / sources.SQUAD / "other" / "train-00000-of-00001.parquet", squad_rows(3))
    assert load_splits(Hub(tmp_path), "squad", seed=0, scale=SCALE) == load_splits(hub, "squad", seed=0, scale=SCALE)


def test_streamingqa(hub: Hub) -> None:
    splits = load_splits(hub, "streamingqa", seed=0)
    assert splits.qa_train == tuple(QAPair(f"What is qa_train {i} ?", f"name {i}") for i in range(5))
    assert splits.qa_validation[0] == QAPair("What is qa_val 0 ?", "name 0")
    for part, name in ((splits.train, "train"), (splits.validation, "val"), (splits.test, "test")):
        assert len(part) == 8
        assert part[3] == Document("row 4", f"News 1\nof {name}.", (QAPair(f"What is {name} 3 ?", "name 3"),))


def test_archivalqa_paragraphs_in_the_order_of_their_articles(hub: Hub) -> None:
    splits = load_splits(hub, "archivalqa", seed=0)
    assert splits.qa_train == tuple(QAPair(f"What is qa_lt {i}?", f"Answer {i}") for i in range(6))
    assert splits.qa_validation[0] == QAPair("What is qa_lt_val 0?", "Answer 0")
    assert [(d.name, d.text, d.pairs[0].question) for d in splits.test] == [
        ("20", "Paragraph 9 of 20.", "What is test 2?"),
        ("20", "Paragraph 9 of 20.", "What is test 4?"),
        ("20", "Paragraph 11 of 20.", "What is test 0?"),
        ("10", "Paragraph 1 of 10.", "What is test 3?"),
        ("10", "Paragraph 2 of 10.", "What is test 1?"),
        ("30", "Paragraph 0 of 30.", "What is test 5?"),
    ]


@pytest.mark.parametrize("dataset", sources.DATASETS)
def test_no_question_is_in_two_parts(hub: Hub, dataset: str) -> None:
    splits = load_splits(hub, dataset, seed=0, scale=scale_of(dataset))
    parts = [splits.qa_train, splits.qa_validation, *([p for d in part for p in d.pairs] for part in (splits.train, splits.validation, splits.test))]  # fmt: skip
    questions = [pair.question for part in parts for pair in part]
    assert len(set(questions)) == len(questions)


# Answers, and rows that are left out


@pytest.mark.parametrize(
    ("answers", "answer"),
    [
        (["in the year 1999", "1999", "9999"], "1999"),
        (["  ", "", "  École  "], "École"),
        (["élan vital", "élan"], "Élan"),
        (["iPhone"], "IPhone"),
    ],
)
def test_the_shortest_answer_counts_with_a_capital(tmp_path: Path, answers: list[str], answer: str) -> None:
    rows = squad_rows(N_TRAIN)
    rows[50]["answers"] = {"text": answers, "answer_start": [0] * len(answers)}
    write_squad(tmp_path, rows, squad_rows(3, "test"))
    assert load_splits(Hub(tmp_path), "squad", seed=0, scale=SCALE).train[2].pairs[0].answer == answer


def test_streamingqa_answers_keep_their_case(tmp_path: Path) -> None:
    write_camels(tmp_path, sources.STREAMINGQA_FILES, lambda part: [["question", "answers", "text"], ["q", "the eU\\ eU \\\\", "some text"]])  # fmt: skip
    assert load_splits(Hub(tmp_path), "streamingqa", seed=0).test[0].pairs[0].answer == "eU"


def test_useless_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = squad_rows(N_TRAIN)
    rows[0]["answers"] = {"text": ["The", "The Who"], "answer_start": [0, 0]}  # the shortest normalises to nothing
    rows[1]["context"] = ""  # needs no text
    rows[48]["answers"] = {"text": ["..."], "answer_start": [0]}
    rows[49]["context"] = " word "
    rows[50]["question"] = "  "
    rows[51]["answers"] = {"text": [], "answer_start": []}
    rows[52]["answers"] = {"text": [" "], "answer_start": [0]}
    write_squad(tmp_path, rows, squad_rows(3, "test"))
    splits = load_splits(Hub(tmp_path), "squad", seed=0, scale=SCALE)
    assert splits.dropped == {
        "qa_train: answer normalises to nothing": 1,
        "train: answer normalises to nothing": 1,
        "train: no text": 1,
        "train: no question": 1,
        "train: no answer": 2,
    }
    # What is left out shifts no bound.
    assert (splits.train[0].pairs[0].question, len(splits.qa_train)) == ("What is train 53?", 45)
    assert splits.validation[0].pairs[0].question == "What is train 94?"


def test_texts_that_stand_for_missing_numbers_are_texts(tmp_path: Path) -> None:
    write_camels(tmp_path, sources.STREAMINGQA_FILES, lambda part: [["question", "answers", "text"], ["NA", "None", "nan null"]])  # fmt: skip
    assert load_splits(Hub(tmp_path), "streamingqa", seed=0).test == (Document("row 1", "nan null", (QAPair("NA", "None"),)),)  # fmt: skip


# Limits, streams, distinct texts


@pytest.mark.parametrize("dataset", sources.DATASETS)
def test_limits_are_drawn_by_the_seed(hub: Hub, dataset: str) -> None:
    scale = scale_of(dataset)
    limits = {"qa_train": 3, "qa_validation": 1, "train": 4, "test": 5}
    whole, first, again, other = (
        load_splits(hub, dataset, seed=seed, limits=some, scale=scale)
        for seed, some in ((0, {}), (0, limits), (0, limits), (1, limits))
    )
    assert first == again
    for part in PARTS:
        found = getattr(first, part)
        assert len(found) == limits.get(part, len(getattr(whole, part)))
        assert set(found) <= set(getattr(whole, part))
    assert first.validation == whole.validation
    assert any(getattr(first, part) != getattr(other, part) for part in limits)
    assert load_splits(hub, dataset, seed=0, limits=dict.fromkeys(PARTS, 1000), scale=scale) == whole


def test_limited_pairs_are_of_many_titles(hub: Hub) -> None:
    first, other = (load_splits(hub, "squad", seed=s, scale=SCALE, limits={"qa_train": 6}).qa_train for s in (0, 1))
    assert set(first) != set(other)
    numbers = [int(pair.answer.split()[-1]) for pair in first]
    assert len({number // PER_TITLE for number in numbers}) > 2


def test_a_stream_keeps_groups_together_and_in_order(hub: Hub) -> None:
    documents = load_splits(hub, "squad", seed=0, scale=SCALE).test
    orders = set()
    for seed in range(20):
        drawn = stream(documents, len(documents), seed)
        assert Counter(drawn) == Counter(documents)
        names = [document.name for document in drawn]
        orders.add(tuple(dict.fromkeys(names)))
        for k in range(0, len(drawn), PER_TITLE):
            group = drawn[k : k + PER_TITLE]
            assert group == [document for document in documents if document.name == group[0].name]
        assert stream(documents, 10, seed) == drawn[:10]
        assert stream(documents, 10, seed) == list(load_splits(hub, "squad", seed=seed, scale=SCALE, limits={"test": 10}).test)  # fmt: skip
    assert len(orders) > 10  # of 24


def test_rows_of_one_name_that_lie_apart_come_together() -> None:
    documents = [Document(name, f"{name} {i}", ()) for i, name in enumerate("abcabc")]
    assert {"".join(d.name for d in stream(documents, 6, seed)) for seed in range(50)} == {"aabbcc", "aaccbb", "bbaacc", "bbccaa", "ccaabb", "ccbbaa"}  # fmt: skip
    assert [d.text for d in stream(documents, 6, 0) if d.name == "a"] == ["a 0", "a 3"]


def test_a_stream_longer_than_its_documents(hub: Hub) -> None:
    for n in (9, 0):
        with pytest.raises(RematchError, match=f"a stream of {n} documents cannot be drawn from 8"):
            stream(load_splits(hub, "streamingqa", seed=0).test, n, 0)


def test_distinct_texts_have_all_their_pairs() -> None:
    pairs = [QAPair(f"q{i}", "a") for i in range(4)]
    documents = [
        Document("x", "one", (pairs[0],), ((0, 3),)),
        Document("y", "two", (pairs[1],)),
        Document("y", "one", (pairs[2], pairs[3])),
    ]
    assert distinct(documents) == [
        Document("x", "one", (pairs[0], pairs[2], pairs[3]), ((0, 3),)),
        Document("y", "two", (pairs[1],)),
    ]


@pytest.mark.parametrize("dataset", sources.DATASETS)
def test_deduplicated_parts(hub: Hub, dataset: str) -> None:
    scale = scale_of(dataset)
    rows, texts = (load_splits(hub, dataset, seed=0, scale=scale, deduplicate=flag) for flag in (False, True))
    assert (rows.qa_train, rows.qa_validation) == (texts.qa_train, texts.qa_validation)
    for part in ("train", "validation", "test"):
        assert list(getattr(texts, part)) == distinct(getattr(rows, part))
        assert len({d.text for d in getattr(texts, part)}) == len(getattr(texts, part)) < len(getattr(rows, part))
        assert Counter(p for d in getattr(texts, part) for p in d.pairs) == Counter(p for d in getattr(rows, part) for p in d.pairs)  # fmt: skip
    # A limit counts texts then, all of whose questions are there.
    assert {len(d.pairs) for d in load_splits(hub, "squad", seed=3, scale=SCALE, deduplicate=True, limits={"test": 5}).test} == {2}  # fmt: skip


# MAC's own streams


def released_squad(title: bool = True, answers: str = "{'text': ['in 1999', 'of it'], 'answer_start': [3, 3]}") -> str:
    head = ["id", *(["title"] if title else []), "context", "question", "answers"]
    rows = [["i", *(["A title"] if title else []), f"Text {i // 2} of it.", f" q{i} ", answers] for i in range(6)]
    return csv([head, *rows])


def linked(mirror: Path, folder: Path, *left_out: str) -> Path:
    """A mirror with links to all files of another one's data sets but some."""
    for path in (mirror / "datasets").rglob("*"):
        if path.is_file() and not any(str(path).endswith(name) for name in left_out):
            link = folder / path.relative_to(mirror)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return folder


RELEASED = {
    "squad": ("squad_test.csv", released_squad(), Document("A title", "Text 0 of it.", (QAPair("q0", "Of it"),))),
    "streamingqa": ("streaming_test.csv", csv(streamingqa_table("released")), Document("row 1", "News 0\nof released.", (QAPair("What is released 0 ?", "name 0"),))),
    "archivalqa": ("archival_test.csv", csv(archivalqa_table("released")), Document("20", "Paragraph 9 of 20.", (QAPair("What is released 2?", "Answer 2"),))),
}  # fmt: skip


@pytest.mark.parametrize("dataset", sources.DATASETS)
@pytest.mark.parametrize("under", ["conf/dataset/", ""])
def test_the_released_stream_is_used_if_it_is_there(mirror: Path, tmp_path: Path, dataset: str, under: str) -> None:
    name, content, first = RELEASED[dataset]
    scale = scale_of(dataset)
    without = load_splits(Hub(mirror), dataset, seed=0, scale=scale)
    write(linked(mirror, tmp_path) / "datasets" / sources.MAC / f"{under}{name}", content)
    splits = load_splits(Hub(tmp_path), dataset, seed=0, scale=scale)
    assert replace(splits, released=()) == without
    assert splits.released[0] == first
    texts = load_splits(Hub(tmp_path), dataset, seed=0, scale=scale, deduplicate=True)
    assert list(texts.released) == distinct(splits.released)
    assert len(texts.released) < len(splits.released)
    for seed in (0, 1):
        assert evaluation_stream(splits, 2, seed) == list(splits.released[:2])
        assert evaluation_stream(splits, 1665, seed) == list(splits.released)
        assert evaluation_stream(without, 5, seed) == stream(without.test, 5, seed)


def test_the_released_stream_keeps_its_order(mirror: Path, tmp_path: Path) -> None:
    write(linked(mirror, tmp_path) / "datasets" / sources.MAC / "squad_test.csv", released_squad(title=False))
    splits = load_splits(Hub(tmp_path), "squad", seed=5, scale=SCALE)
    assert [(d.name, d.pairs[0].question) for d in splits.released] == [("", f"q{i}") for i in range(6)]


@pytest.mark.parametrize("answers", ["Paris", "['Paris']", "{'answer_start': [1]}", "{'text': None}", "__import__('os')", "{'text': array(['a'])}", ""])  # fmt: skip
def test_released_answers_that_are_no_dict(mirror: Path, tmp_path: Path, answers: str) -> None:
    path = write(
        linked(mirror, tmp_path) / "datasets" / sources.MAC / "squad_test.csv", released_squad(answers=answers)
    )
    with pytest.raises(RematchError, match=r"row 1: 'answers' must be like \{'text'") as caught:
        load_splits(Hub(tmp_path), "squad", seed=0, scale=SCALE)
    assert str(path) in str(caught.value)


# Options and files that are wrong


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("squadd", {}, "unknown data set 'squadd'; allowed: streamingqa, squad, archivalqa.*Did you mean 'squad'"),
        ("squad", {"limits": {"valid": 3}}, "squad: limits: unknown part 'valid'; allowed: qa_train, qa_validation, train, validation, test"),
        ("squad", {"limits": {"train": 0}}, r"squad: limits\.train: 0; allowed: whole numbers from 1"),
        ("squad", {"limits": {"test": 2.0}}, r"squad: limits\.test: 2\.0; allowed"),
        ("squad", {"limits": {"test": True}}, r"squad: limits\.test: True; allowed"),
        ("squad", {"scale": 0}, "squad: scale: 0; allowed: at most 1"),
        ("squad", {"scale": 1.5}, r"squad: scale: 1\.5; allowed"),
        ("squad", {"scale": float("nan")}, "squad: scale: nan; allowed"),
        ("squad", {"scale": 1e-4}, "squad: scale: 0.0001; allowed: .* a row in each part"),
        ("streamingqa", {"scale": 0.5}, "streamingqa: scale is of SQuAD's bounds only; take limits"),
        ("squad", {}, r"squad: the training split of rajpurkar/squad has 100 rows, the parts need 87599 at scale 1\.0.*rows / 87599"),
        ("squad", {"scale": 101 / 87599}, "has 100 rows, the parts need 101"),
    ],
)  # fmt: skip
def test_options_are_checked(hub: Hub, dataset: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RematchError, match=message):
        load_splits(hub, dataset, seed=0, **options)


def test_another_version_of_squad(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SQUAD_BOUNDS", (0, 40, 50, 90, 99))
    with pytest.raises(RematchError, match="has 100 rows, the parts need 99 at scale 1"):
        load_splits(hub, "squad", seed=0)
    monkeypatch.setattr(sources, "SQUAD_BOUNDS", (0, 40, 50, 90, 100))
    assert len(load_splits(hub, "squad", seed=0).train) == 40


@pytest.mark.parametrize("dataset", ["streamingqa", "archivalqa"])
def test_every_file_is_needed(mirror: Path, tmp_path: Path, dataset: str) -> None:
    files = {"streamingqa": sources.STREAMINGQA_FILES, "archivalqa": sources.ARCHIVALQA_FILES}[dataset]
    terms = {"streamingqa": "news of WMT", "archivalqa": "LDC2008T19"}[dataset]
    for i, name in enumerate(files):
        folder = linked(mirror, tmp_path / str(i), name)
        with pytest.raises(RematchError, match=f"no file {name} in ") as caught:
            load_splits(Hub(folder), dataset, seed=0)
        for part in (*files, "github.com/nathanhu0/CaMeLS", f"{folder}/datasets/nathanhu0/CaMeLS", terms):
            assert part in str(caught.value)
    with pytest.raises(RematchError, match=f"{files[0]}.*DIR/datasets/nathanhu0/CaMeLS, and set hub_mirror: DIR.*{terms}"):  # fmt: skip
        load_splits(Hub(None), dataset, seed=0)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_squad_that_is_not_in_the_mirror(mirror: Path, tmp_path: Path, split: str) -> None:
    folder = linked(mirror, tmp_path, f"{split}-00000-of-00001.parquet")
    with pytest.raises(RematchError, match=rf"no file plain_text/{split}-\*\.parquet .*rematch mirror .* --dataset rajpurkar/squad.*CC BY-SA 4\.0"):  # fmt: skip
        load_splits(Hub(folder), "squad", seed=0, scale=SCALE)


def test_without_a_mirror_the_hub_is_asked_for_squad(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(repo_id: str, *, repo_type: str, allow_patterns: list[str]) -> str:
        asked.append((repo_id, repo_type, *allow_patterns))
        return str(mirror / "datasets" / repo_id)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert load_splits(Hub(None), "squad", seed=0, scale=SCALE) == load_splits(
        Hub(mirror), "squad", seed=0, scale=SCALE
    )
    assert asked == [("rajpurkar/squad", "dataset", f"plain_text/{split}-*.parquet") for split in ("train", "validation")]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("StreamingQA/test.csv", [["question", "answers"], ["q", "a"]], "no column 'text'; the file needs question, answers, text"),
        ("StreamingQA/qa_val.csv", [["question", "answer"], ["q", "a"]], "no column 'answers'; the file needs question, answers, has"),
        ("ArchivalQA/val.csv", [["question", "answer", "doc_id", "ans_paragraph"], ["q", "a", "1", "t"]], "no column 'para_num'"),
        ("ArchivalQA/val.csv", [["question", "answer", "doc_id", "para_num", "ans_paragraph"], ["q", "a", "1", "2", "t"], ["q", "a", "1", "2.0", "t"]], r"row 2: para_num '2\.0'; allowed: whole numbers"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named(mirror: Path, tmp_path: Path, name: str, table: list[list[str]], message: str) -> None:
    path = write(linked(mirror, tmp_path, name) / "datasets" / sources.CAMELS / name, csv(table))
    with pytest.raises(RematchError, match=message) as caught:
        load_splits(Hub(tmp_path), name.split("/")[0].lower(), seed=0)
    assert str(path) in str(caught.value)


def test_a_part_of_which_nothing_is_left(mirror: Path, tmp_path: Path) -> None:
    write_squad(tmp_path, squad_rows(N_TRAIN), [squad_row(1, answers=[]), squad_row(2) | {"context": ""}])
    with pytest.raises(RematchError, match=r"squad: no row of part 'test' is of use; left out: .*test: no answer': 1"):
        load_splits(Hub(tmp_path), "squad", seed=0, scale=SCALE)
