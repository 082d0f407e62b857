"""The language models that answer, where they come from, and what tuning makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_mac
import torch
from transformers import LlamaConfig

from baselines.online import BM25
from rematch.arena import BaseJob
from rematch.errors import RematchError
from rematch.hub import Hub
from workflows.mac.corpus import VALIDATION, read_stream
from workflows.mac.language_models import LanguageModel, TunedLM, _retrieved, _rows, load_lm, max_length


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_it_learns_and_is_the_same_again(room: Any) -> None:
    folder, info = room.build("lm")
    model, tokenizer = load_lm(folder, None)
    assert not model.training
    assert info.samples_seen == 40 * 32
    assert info.train_flops > 0
    assert info.notes["loss"] < 0.7 * torch.tensor(float(len(tokenizer))).log()
    assert same(model, load_lm(room.build_anew("lm", None, 0)[0], None)[0])
    assert not (folder / "hub.json").exists()


def test_the_end_of_a_text_is_learned_and_its_padding_is_not() -> None:
    tokenizer = tiny_mac.tokenizer()
    # -1 is token 0, the padding, read but not predicted (``read_only``); 1 is the end.
    assert _rows(tokenizer, ["w1 w2 w3", "w4"]).tolist() == [[4, 5, 6, 1], [7, 1, -1, -1]]


def test_tuning_starts_from_it_and_stays_the_best(room: Any) -> None:
    plain, _ = load_lm(room.build("lm")[0], None)
    folder, info = room.build("qa_lm")
    tuned, _ = load_lm(folder, None)
    losses = dict(info.notes["validation_losses"])
    assert set(losses) == {0, 1, 2}
    assert losses[info.notes["best_step"]] == min(losses.values())
    assert info.notes["best_step"] > 0
    assert not same(plain, tuned)
    assert info.samples_seen == 2 * 64


def test_the_reader_is_tuned_on_documents_before_questions(room: Any, streams: Path) -> None:
    documents = read_stream(streams, VALIDATION)
    pairs = _retrieved(streams, "streams/validation", 2, BM25)
    index = BM25([document.text for document in documents])
    asked = [pair for document in documents for pair in document.pairs]
    assert [pair.answer for pair in pairs] == [pair.answer for pair in asked]
    assert [pair.question for pair in pairs] == index.prepended([pair.question for pair in asked], 2)
    assert all(pair.question.endswith(each.question) for pair, each in zip(pairs, asked, strict=True))
    assert not same(load_lm(room.build("lm")[0], None)[0], load_lm(room.build("reader_lm")[0], None)[0])


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (tiny_mac.gpt2().config, 62),
        (LlamaConfig(max_position_embeddings=4096), 1022),
        (SimpleNamespace(), 1022),
    ],
)
def test_how_much_can_be_read(config: Any, length: int) -> None:
    assert max_length(SimpleNamespace(config=config)) == length


def test_a_model_of_the_hub_is_pointed_to(tmp_path: Path, room: Any, job: Callable[..., BaseJob]) -> None:
    place = tmp_path / "mirror" / "models" / "org" / "name"
    model, tokenizer = load_lm(room.build("lm")[0], None)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    hub = Hub(tmp_path / "mirror")
    building = job(seed=None, hub=hub)
    LanguageModel(hub_id="org/name", dtype="bfloat16").build(building)
    assert [path.name for path in building.out.iterdir()] == ["hub.json"]
    assert json.loads((building.out / "hub.json").read_text()) == {"id": "org/name", "dtype": "bfloat16"}
    loaded, _ = load_lm(building.out, hub)
    assert loaded.dtype == torch.bfloat16
    assert same(loaded.float(), model.bfloat16().float())
    with pytest.raises(RematchError, match="org/none"):
        LanguageModel(hub_id="org/none").build(job(seed=None, hub=hub))


def test_without_pairs_of_its_own_nothing_is_tuned(tmp_path: Path, room: Any, job: Callable[..., BaseJob]) -> None:
    with pytest.raises(RematchError, match=r"qa_train\.jsonl: no such file; the base that writes it"):
        TunedLM().build(job({"lm": room.build("lm")[0], "corpus": tmp_path}, seed=None))
