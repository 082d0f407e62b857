"""MAC as it is meta-trained for the arena: stages, going on from another, what it cost, and what is refused."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from methods.mac.dropout import BackpropDropout
from methods.mac.model import WEIGHTS
from methods.mac.training import Recipe, train
from rematch.arena import BaseJob
from rematch.errors import RematchError
from rematch.flops import count_flops
from workflows.mac import memory as module
from workflows.mac.corpus import MAIN, read_documents, read_stream
from workflows.mac.memory import Memory, alike, load_memory, read_notes, sentences, step_bytes
from workflows.mac.players import Asking
from workflows.mac.world import World, question_key


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="session")
def needs(room: Any) -> dict[str, Path]:
    return {name: room.build(name)[0] for name in ("lm", "qa_lm", "streams")}


def options(room: Any, base: str = "memory_start") -> dict[str, Any]:
    return room.card.options("bases", base, room.tier) | room.base_options[base]


# -- stages -----------------------------------------------------------------------------------------------------------


def test_it_goes_on_from_where_another_ended(room: Any, needs: dict[str, Path]) -> None:
    (start, first), (folder, info) = room.build("memory_start"), room.build("memory")
    mac = load_memory(start, needs, None)
    documents = read_documents(needs["streams"] / "train.jsonl")
    recipe = Recipe(**room.base_options["memory"]["recipe"])
    run = train(mac, [(each.text, each.pairs) for each in documents], recipe, 0)
    assert same({name: p.detach() for name, p in mac.networks()}, weights(folder))
    assert not same(weights(start), weights(folder))
    assert info.train_flops == first.train_flops + run.flops
    assert info.samples_seen == first.samples_seen + run.documents
    assert info.tokens_seen == first.tokens_seen + run.tokens
    before, after = read_notes(start), read_notes(folder)
    assert (before["steps"], after["steps"]) == (2 + 3, 2 + 3 + 3)
    assert after["curve"][: len(before["curve"])] == before["curve"]
    assert [step for step, _ in after["curve"]] == list(range(1, 9))
    assert [loss for _, loss in after["curve"][-3:]] == pytest.approx(run.losses)


def test_every_stage_trains_and_counts(
    room: Any, needs: dict[str, Path], job: Callable[..., BaseJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[Recipe, Any]] = []
    real = module.train

    def spy(mac: Any, examples: Any, recipe: Recipe, *rest: Any, **more: Any) -> Any:
        runs.append((recipe, real(mac, examples, recipe, *rest, **more)))
        return runs[-1][1]

    monkeypatch.setattr(module, "train", spy)
    info = Memory(**options(room)).build(job(needs))
    assert [(recipe.documents, recipe.banks, recipe.steps) for recipe, _ in runs] == [(2, 2, 2), (4, 2, 3)]
    assert info.train_flops == sum(run.flops for _, run in runs)
    assert info.samples_seen == 2 * 4 + 3 * 8
    assert runs[0][1].questions == runs[0][1].documents
    assert runs[1][1].questions == 3 * runs[1][1].documents


def test_a_killed_build_goes_on_bit_for_bit(
    room: Any, needs: dict[str, Path], job: Callable[..., BaseJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options(room)
    chosen["stages"] = [chosen["stages"][0] | {"steps": 3, "checkpoint_every": 2}]
    chosen["recipe"] = chosen["recipe"] | {"steps": 4, "checkpoint_every": 3}
    whole, killed = job(needs), job(needs)
    info = Memory(**chosen).build(whole)

    class Killed(Exception):
        pass

    def kill(*args: Any, **more: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module.MAC, "save_pretrained", kill)
        with pytest.raises(Killed):
            Memory(**chosen).build(killed)
    assert sorted(path.name for path in killed.out.iterdir()) == ["checkpoint-0", "checkpoint-1"]
    again = Memory(**chosen).build(killed)
    assert same(weights(whole.out), weights(killed.out))
    assert (again.train_flops, again.samples_seen, again.tokens_seen) == (
        info.train_flops, info.samples_seen, info.tokens_seen,
    )  # fmt: skip


def test_seeds_and_encoders(room: Any) -> None:
    one, other = weights(room.build("memory_fewer")[0]), weights(room.build("memory_fewer", seed=1)[0])
    assert not same(one, other)
    assert same(one, weights(room.build_anew("memory_fewer", None, 0)[0]))
    assert read_notes(room.build("memory_fewer")[0])["n_documents"] == 32
    assert not any(name.startswith("question_encoder") for name in weights(room.build("memory_none")[0]))


# -- sentences --------------------------------------------------------------------------------------------------------


def test_a_sentence_answers_its_question() -> None:
    world = World(60)
    for document in world.documents("train", 50, np.random.default_rng(0)):
        found = sentences(document)
        assert [pair for _, pair in found] == list(document.pairs)
        assert all(text in document.text and text.endswith(" .") for text, _ in found)
        for text, pair in found:
            assert text.split().count(document.name) == 1
            assert f" {pair.answer} " in f" {text} "


def test_only_one_relation_is_in_a_memory() -> None:
    keys = [key for key, n in (("a", 50), ("b", 10), ("c", 4)) for _ in range(n)]
    recipe = Recipe(steps=200, documents=((0, 2), (100, 4)), learning_rate=1.0, banks=3, accumulation=2)
    order = alike(keys, recipe, np.random.default_rng(0))
    assert len(order) == recipe.n_documents()
    place, drawn = 0, Counter[str]()
    for step in range(recipe.steps):
        for _ in range(6):
            memory = order[place : place + recipe.documents_at(step)]
            place += len(memory)
            assert len({keys[i] for i in memory}) == 1
            assert len(set(memory)) == len(memory)
            drawn[keys[memory[0]]] += 1
    assert drawn["a"] / 1200 == pytest.approx(50 / 64, abs=0.05)
    assert drawn["c"] / 1200 == pytest.approx(4 / 64, abs=0.03)
    with pytest.raises(RematchError, match="a memory of 2 facts of one relation, of which there are 1"):
        alike(["a"], Recipe(steps=1, documents=2, learning_rate=1.0), np.random.default_rng(0))


def test_memories_of_sentences_differ_by_names_only(
    room: Any, needs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[tuple[str, Any]]] = []

    def spy(mac: Any, examples: Any, recipe: Recipe, *rest: Any, order: Any) -> None:
        read.append([examples[i] for i in order])

    monkeypatch.setattr(module, "train", spy)
    documents = read_documents(needs["streams"] / "train.jsonl")
    owners = {fact: each.name for each in documents for fact in sentences(each)}
    recipe = Recipe(steps=20, documents=2, learning_rate=1.0, banks=2)
    module.train_on_sentences(None, documents, recipe, 0, None)  # type: ignore[arg-type]
    asked = [question_key(pair.question, owners[text, pair]) for text, (pair,) in read[0]]
    assert asked[::2] == asked[1::2]
    assert len(set(asked)) == 6


# -- costs ------------------------------------------------------------------------------------------------------------


def test_the_streams_share_of_the_networks_is_what_a_player_spends(room: Any, needs: dict[str, Path]) -> None:
    folder, _ = room.build("memory")
    spent = read_notes(folder)["stream_flops"]
    task = room.task("memory_time", "mac", 8, metrics=("stream_flops",))
    stream = read_stream(needs["streams"], MAIN)
    player = task.contender.player(task, Asking(max_new_tokens=3), True)
    player.adapt(stream)
    assert player.adapt_flops == spent["adapting"] > 0
    questions = [pair.question for document in stream for pair in document.pairs]
    with torch.no_grad():
        looked_up = count_flops(lambda: player.mac.modulation(player.mac.aggregate(questions))).forward
    assert looked_up == spent["looking_up"] > 0
    player.answer(questions, [0] * len(questions))
    assert player.answer_flops > spent["looking_up"]
    assert player.own_flops == spent["adapting"] + spent["looking_up"]


def test_dropout_keeps_fewer_bytes(room: Any, needs: dict[str, Path]) -> None:
    mac = load_memory(room.build("memory")[0], needs, None)
    documents = [(d.text, d.pairs) for d in read_documents(needs["streams"] / "train.jsonl")]
    recipe = Recipe(steps=1, documents=8, learning_rate=1.0)
    whole = step_bytes(mac, documents, recipe, 0)
    dropped = step_bytes(mac, documents, dataclasses.replace(recipe, dropout=BackpropDropout(0.75)), 0)
    assert dropped < 0.5 * whole
    assert whole < step_bytes(mac, documents, dataclasses.replace(recipe, banks=2), 0) < 2.5 * whole
    assert whole == step_bytes(mac, documents, recipe, 0)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": {"stesp": 3}}, r"bases\.some: recipe: unknown key 'stesp'; allowed: .*Did you mean 'steps'"),
        ({"recipe": {"steps": 3}}, r"bases\.some: recipe: .*documents.*learning_rate"),
        ({"recipe": {"dropout": {"p": 0.5}}}, r"bases\.some: recipe: dropout: .*dropout stands beside it"),
        ({"recipe": {"of": "sentences"}}, r"bases\.some: recipe: of: the recipe is of documents"),
        ({"sizes": {"n_token": 3}}, r"bases\.some: sizes: unknown key 'n_token'; allowed: .*Did you mean 'n_tokens'"),
        ({"encoder_sizes": {"num_layrs": 1}}, r"bases\.some: encoder_sizes: unknown key 'num_layrs'; .*Did you mean 'num_layers'"),
        ({"dropout": {"q": 0.5}}, r"bases\.some: dropout: unknown key 'q'; allowed: p, mode, rescale"),
        ({"stages": [{"of": "sentence", "steps": 1}]}, r"bases\.some: stages: unknown of 'sentence'; allowed: documents, sentences"),
        ({"stages": [{"of": "documents", "step": 1}]}, r"bases\.some: stages: unknown key 'step'"),
        ({"stages": [{"steps": 1}]}, r"bases\.some: stages: unknown of"),
        ({"base_lm": "tuend"}, r"bases\.some: unknown base_lm 'tuend'; allowed: tuned, plain, reader"),
        ({"n_documents": 65}, r"bases\.some: n_documents: 65; the base 'streams' holds 64 to train on"),
    ],
)  # fmt: skip
def test_mistakes_name_the_base_and_the_key(
    room: Any, needs: dict[str, Path], job: Callable[..., BaseJob], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RematchError, match=message):
        Memory(**(options(room) | change)).build(job(needs))


def test_what_is_gone_on_from_read_no_more(room: Any, needs: dict[str, Path], job: Callable[..., BaseJob]) -> None:
    needs = needs | {"memory_start": room.build("memory_start")[0]}
    with pytest.raises(RematchError, match=r"bases\.some: n_documents: 16; it goes on from one that read 32"):
        Memory(n_documents=16, recipe={"steps": 1, "documents": 4, "learning_rate": 0.01}).build(job(needs))


def test_a_stage_may_drop_gradients_too(room: Any, needs: dict[str, Path], job: Callable[..., BaseJob]) -> None:
    stage = {"of": "documents", "steps": 1, "documents": 4, "learning_rate": 0.01, "dropout": {"p": 0.5}}
    plain = Memory(**(options(room) | {"stages": [stage | {"dropout": {}}]})).build(job(needs))
    dropped = Memory(**(options(room) | {"stages": [stage]})).build(job(needs))
    assert dropped.train_flops < plain.train_flops
