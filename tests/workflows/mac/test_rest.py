"""Language modelling: the beginning of a document asks for the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from baselines.qa import encode_pairs, prefix_pair
from methods.mac.model import SETTINGS
from rematch.arena import BaseJob, Outcome, Task
from rematch.cards import Card
from rematch.errors import RematchError
from rematch.summary import metric_tables
from workflows.mac import memory
from workflows.mac.corpus import MAIN, VALIDATION, read_documents, read_stream
from workflows.mac.lengths import lengths_of, rest_lengths
from workflows.mac.memory import Memory, load_memory
from workflows.mac.players import Asking

ASKING = Asking(max_document=64)
METRICS = ("f1", "rest_perplexity", "unseen_perplexity")
Make = Callable[..., Task]


def outcome(room: Any, task: Task) -> Outcome:
    played: Outcome = room.arena().play(task)
    return played


def values(played: Outcome) -> dict[str, float]:
    return {m.metric: m.value for m in played.measurements}


def test_the_likelihood_of_the_rest(task: Make, streams: Path) -> None:
    found = task("text_none", metrics=METRICS)
    player = found.contender.player(found, ASKING, False)
    documents = read_stream(streams, MAIN)
    nlls = player.rest_nll(documents)
    assert len(nlls) == len(documents) > 8  # more than one batch
    for document, nll in zip(documents, nlls, strict=True):
        pair = prefix_pair(player.tokenizer, document.text)
        begun, ids = (player.tokenizer(text)["input_ids"] for text in (pair.question, document.text))
        assert len(begun) == len(ids) // 10
        with torch.no_grad():
            scores = player.lm(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = [-scores[place - 1, ids[place]].item() for place in range(len(begun), len(ids))]
        assert nll == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_tier_that_plays_none_of_it_has_no_table(card: Card) -> None:
    titles = {tier: [table.title for table in metric_tables(card, tier, {})] for tier in ("mini", "paper")}
    asked = [spec.title for spec in card.spec.tables if spec.metric.endswith("_perplexity")]
    assert len(asked) == 2
    assert [title for title in titles["paper"] if title in asked] == asked
    assert not set(asked) & set(titles["mini"])


def test_a_memory_for_it_reads_as_much_as_is_scored(room: Any) -> None:
    assert rest_lengths(512) == (512, 461)
    assert lengths_of({}, of_rest=True) == {"max_document": 64, "max_length": 64, "max_answer": 58, "max_question": 6}
    config = json.loads((room.build("memory_text")[0] / SETTINGS).read_text(encoding="utf-8"))["config"]
    assert {name: config[name] for name in lengths_of({})} == lengths_of({}, of_rest=True)


@pytest.mark.parametrize("name", ["text_none", "text_uniform", "text_mac"])
def test_a_match_asks_no_questions(room: Any, task: Make, name: str) -> None:
    rate = {"learning_rate": 0.01} if name == "text_uniform" else {}
    played = outcome(room, task(name, metrics=METRICS, options=rate))
    assert set(values(played)) == {"rest_perplexity", "unseen_perplexity"}
    assert played.undefined == {"f1": "it is asked for the rest of documents, and no questions"}
    for m in played.measurements:
        assert m.items is not None
        assert m.value == pytest.approx(np.exp(np.mean(m.items)))
    items = {m.metric: len(m.items or ()) for m in played.measurements}
    streams = task(name).bases["streams"]
    assert items == {
        "rest_perplexity": len(read_stream(streams, MAIN)),
        "unseen_perplexity": len(read_stream(streams, VALIDATION)),
    }


def test_reading_changes_who_reads(room: Any, task: Make) -> None:
    none, uniform = (
        values(outcome(room, task(name, metrics=METRICS, options=options)))
        for name, options in (("text_none", {}), ("text_uniform", {"learning_rate": 0.003}))
    )
    assert uniform["rest_perplexity"] < none["rest_perplexity"]


def test_mac_looks_at_its_bank_with_the_beginning(task: Make, streams: Path) -> None:
    found = task("text_mac", metrics=METRICS)
    player: Any = found.contender.player(found, ASKING, False)
    documents = read_stream(streams, MAIN)
    player.adapt(documents[:6])
    some = player.rest_nll(documents[:3])
    pairs = [prefix_pair(player.tokenizer, document.text) for document in documents[:3]]
    batch = encode_pairs(player.tokenizer, pairs, 64, 58, end=False)
    with torch.no_grad():
        nll, n = player.mac.answer_nll(player.mac.aggregate([pair.question for pair in pairs]), batch)
    assert some == pytest.approx((nll / n).tolist())
    player.adapt(documents[6:])
    assert player.rest_nll(documents[:3]) != some


def test_meta_training_asks_by_beginnings(
    room: Any, job: Callable[..., BaseJob], streams: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []

    def train(mac: Any, examples: Any, *args: Any, **options: Any) -> Any:
        read.append((mac, examples))
        raise InterruptedError

    needs = {name: room.build(name)[0] for name in ("lm", "qa_lm", "streams")}
    built = [room.build(name)[0] for name in ("memory_text", "memory_start")]
    monkeypatch.setattr(memory, "train", train)
    with pytest.raises(InterruptedError):
        Memory(**room.base_options["memory_text"]).build(job(needs))
    mac, examples = read[0]
    documents = read_documents(streams / "train.jsonl")[:64]
    assert examples == [(each.text, [prefix_pair(mac.tokenizer, each.text)]) for each in documents]
    batch = mac.encode([examples[0][0]], [examples[0][1]])
    assert batch.qa.input_ids[0].tolist() == mac.tokenizer(documents[0].text)["input_ids"]  # without an end
    assert [load_memory(folder, needs, None).config.ends for folder in built] == [False, True]


def test_what_asks_is_one_of_two_and_stays_it(room: Any, job: Callable[..., BaseJob]) -> None:
    needs = {name: room.build(name)[0] for name in ("lm", "qa_lm", "streams", "memory_start")}
    recipe = {"steps": 1, "documents": 2, "learning_rate": 0.01}
    with pytest.raises(
        RematchError,
        match=r"bases\.some: unknown query 'begin'; allowed: question, beginning",
    ):
        Memory(query="begin", n_documents=64, recipe=recipe).build(job(needs))  # type: ignore[arg-type]
    with pytest.raises(RematchError, match=r"bases\.some: query: 'beginning'; it goes on from one with 'question'"):
        Memory(query="beginning", n_documents=64, recipe=recipe).build(job(needs))
