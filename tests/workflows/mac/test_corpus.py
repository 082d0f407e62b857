"""What is in the corpus and the streams: who is spoken of, how, and that no stream gives away another."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rematch.arena import BaseJob
from rematch.cards import Card
from rematch.errors import RematchError
from workflows.mac import corpus
from workflows.mac.corpus import (
    STREAMS,
    VALIDATION,
    Corpus,
    Streams,
    check_arena,
    read_documents,
    read_pairs,
    read_stream,
)
from workflows.mac.streams import Document
from workflows.mac.world import RELATIONS, World, question_key

N = 12


@pytest.fixture(scope="module")
def world() -> World:
    return World(60)


def names(documents: list[Document]) -> set[str]:
    return {document.name for document in documents}


def relations(document: Document) -> set[str]:
    return {question_key(pair.question, document.name) for pair in document.pairs}


def sentences(document: Document, held_out: bool) -> int:
    """Facts of the document that are told by a held-out template, or by another one."""
    found = 0
    for pair in document.pairs:
        templates = RELATIONS[question_key(pair.question, document.name)].templates
        chosen = templates[-1:] if held_out else templates[:-1]
        found += any(each.format(name=document.name, value=pair.answer) in document.text for each in chosen)
    return found


def test_the_names_of_a_test_are_never_met_in_meta_training(streams: Path, world: World) -> None:
    train, validation = read_documents(streams / "train.jsonl"), read_stream(streams, VALIDATION)
    assert names(train) == set(world.names["train"])
    assert names(validation) == set(world.names["validation"])
    for name in STREAMS:
        assert names(read_stream(streams, name)) == set(world.names["test"])
    assert not names(train) & names(validation)
    assert not (names(train) | names(validation)) & set(world.names["test"])


def test_a_question_has_one_answer_in_a_stream(streams: Path) -> None:
    for name in (*STREAMS, VALIDATION):
        asked = Counter(pair.question for document in read_stream(streams, name) for pair in document.pairs)
        assert max(asked.values()) == 1


def test_the_long_stream_speaks_of_other_relations_the_second_time(streams: Path) -> None:
    documents = read_stream(streams, "long")
    assert len(documents) == 2 * N
    first = {document.name: relations(document) for document in documents[:N]}
    second = {document.name: relations(document) for document in documents[N:]}
    assert first.keys() == second.keys()
    assert all(len(second[name]) == 3 and not first[name] & second[name] for name in first)


def test_templates_are_held_out(streams: Path) -> None:
    for name in (*STREAMS, VALIDATION):
        for document in read_stream(streams, name):
            assert sentences(document, held_out=True) == (3 if name == "templates" else 0)
            assert sentences(document, held_out=False) == (0 if name == "templates" else len(document.pairs))
    assert not any(sentences(document, held_out=True) for document in read_documents(streams / "train.jsonl"))
    assert {len(document.pairs) for document in read_stream(streams, "dense")} == {5}


def test_what_is_told_is_new(streams: Path, world: World) -> None:
    old = set(world.old_pairs())
    for documents in (read_documents(streams / "train.jsonl"), *(read_stream(streams, name) for name in STREAMS)):
        assert not old & {pair for document in documents for pair in document.pairs}


def test_the_corpus_is_of_the_old_world(room: Any, world: World) -> None:
    folder, info = room.build("corpus")
    old = set(world.old_pairs())
    train, validation = set(read_pairs(folder / "qa_train.jsonl")), set(read_pairs(folder / "qa_validation.jsonl"))
    assert len(validation) == 32
    assert not train & validation
    assert train | validation == old
    documents = read_documents(folder / "documents.jsonl")
    assert len(documents) == info.samples_seen == 96
    assert {pair for document in documents for pair in document.pairs} <= old


def test_a_seed_decides_everything(room: Any, streams: Path) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.jsonl"))}

    again, info = room.build_anew("streams", None, 0)
    assert files(streams) == files(again)
    assert len(files(again)) == 2 + len(STREAMS)
    assert info.data_hash == hashlib.sha256((again / "streams" / "main.jsonl").read_bytes()).hexdigest()[:16]
    assert info.data_hash == room.build("streams")[1].data_hash
    other, others_info = room.build("streams", seed=1)
    assert others_info.data_hash != info.data_hash
    assert all(files(other)[name] != files(again)[name] for name in files(again))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_stream": 13, "n_validation": 6}, "n_stream: 13; the world has 12 names for test"),
        ({"n_stream": 12, "n_validation": 7}, "n_validation: 7; the world has 6 names for validation"),
        (
            {"n_stream": 12, "n_validation": 0},
            "n_validation: 0; the world has 6 names for validation, and one is needed",
        ),
        ({"n_stream": 0}, "n_stream: 0; the world has 12 names for test"),
    ],
)
def test_more_documents_than_names(
    room: Any, job: Callable[..., BaseJob], options: dict[str, int], message: str
) -> None:
    with pytest.raises(RematchError, match=message):
        Streams(**options).build(job({"corpus": room.build("corpus")[0]}))


@pytest.mark.parametrize("base", [Streams(dataset="squad", options={"limt": {}}), Corpus(dataset="squad", options={"limt": {}})])  # fmt: skip
def test_an_unknown_option_of_a_data_set(job: Callable[..., BaseJob], base: Any) -> None:
    with pytest.raises(RematchError, match=r"bases\.some: options: unknown option 'limt'; allowed: limits, .*'limits'"):
        base.build(job())


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (Corpus(n_validation=0), r"bases\.some: n_validation: 0; allowed: 1 to 3839"),
        (Corpus(n_validation=4000), r"bases\.some: n_validation: 4000; allowed: 1 to 3839"),
    ],
)
def test_a_corpus_out_of_bounds(job: Callable[..., BaseJob], base: Any, message: str) -> None:
    with pytest.raises(RematchError, match=message):
        base.build(job())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"probes": [16, 48]}, r"arena: probes: \[16, 48\]; 0 must be one"),
        ({"probes": []}, r"arena: probes: \[\]; 0 must be one"),
        ({"max_length": 8, "max_answer": 8}, "arena: max_length: 8; no room for a question beside the 8 of max_answer"),
    ],
)
def test_what_matches_would_find_wrong_is_found_first(
    job: Callable[..., BaseJob], sizes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RematchError, match=message):
        Corpus().build(dataclasses.replace(job(), arena=sizes))


@pytest.mark.parametrize("tier", ["smoke", "mini", "real", "paper"])
def test_the_cards_arenas_pass(card: Card, tier: str) -> None:
    check_arena(card.at(tier).arena)


def test_the_pipeline_of_salient_spans_is_looked_for_first(
    job: Callable[..., BaseJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_for: list[str] = []

    class Found(Exception):
        pass

    def stop(*args: Any, **options: Any) -> None:
        raise Found

    monkeypatch.setattr(corpus, "EntitySpans", looked_for.append)
    monkeypatch.setattr(corpus, "load_splits", stop)
    with pytest.raises(Found):
        Corpus(dataset="squad").build(job())
    assert looked_for == ["en_core_web_sm"]
    monkeypatch.undo()
    pytest.importorskip("spacy")
    with pytest.raises(RematchError, match="there is no spaCy pipeline 'none_such'"):
        Corpus(dataset="squad", later_pipelines=["none_such"]).build(job())


def test_an_unknown_stream(streams: Path) -> None:
    with pytest.raises(RematchError, match=r"unknown stream 'mian'; allowed: dense, long, main, .*'main'"):
        read_stream(streams, "mian")
