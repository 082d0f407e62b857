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
from workflows.mac.arena import Arena
from workflows.mac.corpus import MAIN, read_documents, read_stream
from workflows.mac.memory import Memory, alike, load_memory, look_up_flops, read_notes, sentences, step_bytes
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
    gold = [0] * len(questions)
    player.answer(questions, gold)
    assert player.answer_flops > spent["looking_up"]
    assert player.own_flops(questions, gold) == spent["adapting"] + spent["looking_up"]


@pytest.mark.parametrize("group_size", [None, 4])
def test_looking_up_is_counted_once_a_shape(
    room: Any, needs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, group_size: int | None
) -> None:
    mac = load_memory(room.build("memory")[0], needs, None)
    stream = read_stream(needs["streams"], MAIN)
    mac.adapt([document.text for document in stream])
    questions = [pair.question for document in stream for pair in document.pairs]
    parts = [questions[first : first + 10] for first in range(0, len(questions), 10)]  # the last is shorter

    def look_up() -> None:
        with torch.no_grad():
            for part in parts:
                mac.modulation(mac.aggregate(part, group_size=group_size))

    counted: list[Any] = []
    monkeypatch.setattr(module, "count_flops", lambda fn: counted.append(fn) or count_flops(fn))
    assert look_up_flops(mac, questions, 10, group_size) == count_flops(look_up).forward
    assert len(counted) < len(parts)


def test_dropout_keeps_fewer_bytes(room: Any, needs: dict[str, Path]) -> None:
    mac = load_memory(room.build("memory")[0], needs, None)
    documents = [(d.text, d.pairs) for d in read_documents(needs["streams"] / "train.jsonl")]
    recipe = Recipe(steps=1, documents=8, learning_rate=1.0)
    found = step_bytes(mac, documents, recipe, 0)
    whole = found[""]
    dropped = step_bytes(mac, documents, dataclasses.replace(recipe, dropout=BackpropDropout(0.75)), 0)
    assert dropped == {"": found["dropped=0.75"]}
    assert dropped[""] < 0.5 * whole
    assert whole < step_bytes(mac, documents, dataclasses.replace(recipe, banks=2), 0)[""] < 2.5 * whole
    assert found == step_bytes(mac, documents, recipe, 0)


def test_a_step_falls_with_what_is_dropped_and_less_so_with_what_is_not_asked(
    room: Any, needs: dict[str, Path]
) -> None:
    folder, _ = room.build("memory")
    found = read_notes(folder)["train_bytes"]
    shares = ["0", "0.25", "0.5", "0.75"]  # of 4 documents the last is all but one
    assert found.keys() == {"", *(f"{how}={p}" for how in ("dropped", "unasked") for p in shares)}
    for how in ("dropped", "unasked"):
        sizes = [found[f"{how}={p}"] for p in shares]
        assert sizes[0] == found[""]
        assert sizes == sorted(set(sizes), reverse=True)
    assert all(found[f"dropped={p}"] < found[f"unasked={p}"] for p in shares[1:])
    eight = step_bytes(
        load_memory(folder, needs, None),
        [(d.text, d.pairs) for d in read_documents(needs["streams"] / "train.jsonl")],
        Recipe(steps=1, documents=8, learning_rate=1.0),
        0,
    )
    assert eight["dropped=0.875"] < eight["dropped=0.75"]


# -- lengths ----------------------------------------------------------------------------------------------------------


def test_lengths_are_the_arenas(room: Any, needs: dict[str, Path], job: Callable[..., BaseJob]) -> None:
    chosen, arena = options(room) | {"stages": []}, {"max_document": 8, "max_length": 7, "max_answer": 2}
    made = job(needs, arena=arena)
    Memory(**chosen).build(made)
    config = load_memory(made.out, needs, None).config
    assert (config.max_document, config.max_length, config.max_answer, config.max_question) == (8, 7, 2, 5)
    made = job(needs)
    Memory(**chosen).build(made)
    config, arena_of_defaults = load_memory(made.out, needs, None).config, Arena()
    for name in ("max_document", "max_length", "max_answer"):
        assert getattr(config, name) == getattr(arena_of_defaults, name)


def test_only_what_reads_documents_before_a_question_has_a_length_of_its_own(
    room: Any, needs: dict[str, Path], job: Callable[..., BaseJob]
) -> None:
    chosen = options(room) | {"stages": [], "reads": 2}
    chosen["sizes"] = chosen["sizes"] | {"max_length": 100}
    made = job(needs)
    Memory(**chosen).build(made)
    config = load_memory(made.out, needs, None).config
    assert (config.max_length, config.max_question) == (100, 24)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": {"stesp": 3}}, r"bases\.some: recipe: unknown key 'stesp'; allowed: .*Did you mean 'steps'"),
        ({"recipe": {"steps": 3}}, r"bases\.some: recipe: .*documents.*learning_rate"),
        ({"recipe": {"dropout": {"p": 0.5}}}, r"bases\.some: recipe: dropout: .*dropout stands beside it"),
        ({"recipe": {"of": "sentences"}}, r"bases\.some: recipe: of: the recipe is of documents"),
        ({"sizes": {"n_token": 3}}, r"bases\.some: sizes: unknown key 'n_token'; allowed: .*Did you mean 'n_tokens'"),
        ({"dropout": {"q": 0.5}}, r"bases\.some: dropout: unknown key 'q'; allowed: p, mode, rescale"),
        ({"stages": [{"of": "sentence", "steps": 1}]}, r"bases\.some: stages: unknown of 'sentence'; allowed: documents, sentences"),
        ({"stages": [{"of": "documents", "step": 1}]}, r"bases\.some: stages: unknown key 'step'"),
        ({"stages": [{"steps": 1}]}, r"bases\.some: stages: unknown of"),
        ({"base_lm": "tuend"}, r"bases\.some: unknown base_lm 'tuend'; allowed: tuned, plain, reader"),
        ({"sizes": {"max_document": 8}}, r"bases\.some: sizes: max_document: lengths are those of the arena"),
        ({"sizes": {"max_length": 64}}, r"bases\.some: sizes: max_length: lengths are those of the arena"),
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


@pytest.mark.parametrize("key", ["sizes", "encoder", "question_encoder", "encoder_sizes"])
def test_what_goes_on_has_no_networks_of_its_own(
    room: Any, needs: dict[str, Path], job: Callable[..., BaseJob], key: str
) -> None:
    needs = needs | {"memory_start": room.build("memory_start")[0]}
    value = {"sizes": {"n_tokens": 3}, "encoder_sizes": {"d_model": 8}}.get(key, "some/t5")
    with pytest.raises(RematchError, match=rf"bases\.some: {key}: it goes on from 'memory_start'"):
        Memory(n_documents=64, recipe={"steps": 1, "documents": 4, "learning_rate": 0.01}, **{key: value}).build(
            job(needs)
        )


def test_a_stage_may_drop_gradients_too(room: Any, needs: dict[str, Path], job: Callable[..., BaseJob]) -> None:
    stage = {"of": "documents", "steps": 1, "documents": 4, "learning_rate": 0.01, "dropout": {"p": 0.5}}
    plain = Memory(**(options(room) | {"stages": [stage | {"dropout": {}}]})).build(job(needs))
    dropped = Memory(**(options(room) | {"stages": [stage]})).build(job(needs))
    assert dropped.train_flops < plain.train_flops
