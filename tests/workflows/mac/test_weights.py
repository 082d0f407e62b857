"""CaMeLS' weight network as it is meta-trained for the arena."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from baselines.online import MetaTraining, WeightNet
from rematch.arena import BaseJob
from rematch.cards import Card
from rematch.errors import RematchError
from workflows.mac import weights as module
from workflows.mac.corpus import read_documents
from workflows.mac.language_models import load_lm
from workflows.mac.lengths import lengths_of
from workflows.mac.weights import MULTIPLE, Weights, n_documents

UNTRAINED = float(np.log(2)) / 3


def test_a_network_is_trained_and_comes_back(room: Any, streams: Path) -> None:
    folder, info = room.build("weights")
    assert n_documents(folder) == info.notes["n_documents"] == 64
    assert n_documents(room.build("weights_fewer")[0]) == 32
    assert info.samples_seen == 2 * 1 * 2
    assert info.train_flops > 0
    net = WeightNet.from_pretrained(folder)
    ids = torch.arange(10)[None]
    weights = net(ids).flatten()
    assert (weights > 0).all()
    assert not torch.allclose(weights, torch.full_like(weights, UNTRAINED), atol=1e-6)
    again = WeightNet.from_pretrained(room.build_anew("weights", None, 0)[0])
    assert torch.equal(net(ids), again(ids))
    other = WeightNet.from_pretrained(room.build("weights", seed=1)[0])
    assert not torch.equal(net(ids), other(ids))


def test_the_language_model_stays(room: Any) -> None:
    folder = room.build("qa_lm")[0]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    room.build_anew("weights", None, 0)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_document_is_asked_a_question_of_its_own(room: Any, streams: Path) -> None:
    _, tokenizer = load_lm(room.build("qa_lm")[0], None)
    documents = read_documents(streams / "train.jsonl")
    anchors = [document.text for document in read_documents(room.build("corpus")[0] / "documents.jsonl")]
    batches = list(Weights(batch_size=4)._batches(tokenizer, documents, anchors, 0, lengths_of({}), 16))
    assert len(batches) == 16
    read = []
    for batch in batches:
        assert batch.input_ids.shape == batch.attention_mask.shape
        assert batch.input_ids.shape[1] % MULTIPLE == 0
        for ids, mask, question in zip(batch.input_ids, batch.attention_mask, batch.qa.input_ids, strict=True):
            text = tokenizer.decode(ids[mask.bool()])
            (document,) = [each for each in documents if each.text == text]
            asked = tokenizer.decode(question, skip_special_tokens=True)
            assert asked in {f"{pair.question} {pair.answer}" for pair in document.pairs}
            read.append(text)
        for ids, mask in zip(batch.anchor_ids, batch.anchor_mask, strict=True):
            assert tokenizer.decode(ids[mask.bool()]) in anchors
    assert len(set(read)) == 64  # each once before one comes again


def test_texts_are_read_as_far_as_the_arena_says(
    room: Any, streams: Path, job: Callable[..., BaseJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = {name: room.build(name)[0] for name in ("qa_lm", "streams", "corpus")}
    read: list[Any] = []

    class Enough(Exception):
        pass

    def spy(net: Any, lm: Any, batches: Any, *rest: Any) -> None:
        read.extend(batches)
        raise Enough

    monkeypatch.setattr(module, "meta_train", spy)
    base = Weights(n_documents=8, n_layers=1, steps=4, batch_size=4, recipe={"accumulation": 1})
    with pytest.raises(Enough):
        base.build(job(needs, arena={"max_document": 16, "max_length": 6, "max_answer": 2}))
    assert {(each.input_ids.shape[1], each.anchor_ids.shape[1]) for each in read} == {(16, 16)}
    assert max(int(each.qa.attention_mask.sum(1).max()) for each in read) == 6
    assert {int(n) for each in read for n in each.qa.labels_mask.sum(1)} == {2}


def test_the_inner_mean_counts_on_as_many_positions_as_it_is_told(
    room: Any, job: Callable[..., BaseJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = {name: room.build(name)[0] for name in ("qa_lm", "streams", "corpus")}
    counted: list[int | None] = []

    def train(net: Any, lm: Any, batches: Any, recipe: Any, *more: Any) -> MetaTraining:
        counted.append(recipe.n_positions)
        return MetaTraining(qa_losses=[1.0])

    monkeypatch.setattr(module, "meta_train", train)
    sizes: dict[str, Any] = {"n_documents": 8, "steps": 1}
    Weights(**sizes).build(job(needs))
    Weights(**sizes, recipe={"n_positions": 1024}).build(job(needs))
    assert counted == [None, 1024]
    with pytest.raises(RematchError, match=r"bases\.some: recipe: n_positions: 63; allowed: whole numbers from 64"):
        Weights(**sizes, recipe={"n_positions": 63}).build(job(needs))


@pytest.mark.parametrize("tier", ["real", "paper"])
@pytest.mark.parametrize("base", ["weights", "weights_fewer"])
def test_natural_documents_are_padded_as_officially(card: Card, tier: str, base: str) -> None:
    assert card.options("bases", base, tier)["recipe"]["n_positions"] == 1024


def test_too_few_documents(room: Any, streams: Path, job: Callable[..., BaseJob]) -> None:
    needs = {name: room.build(name)[0] for name in ("qa_lm", "streams", "corpus")}
    with pytest.raises(RematchError, match=r"bases\.some: n_documents: 65; the base 'streams' holds 64 to train on"):
        Weights(n_documents=65).build(job(needs))
