"""The tiers of the papers' models and data, end to end on tiny random models of the same classes, from a mirror."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import revise_mirror
from rooms import Room, load_card

from baselines.checkpoints import weights_digest
from baselines.loading import load_lm
from methods.revise.tokens import ADDED_REFINE, LLAMA3_REFINE
from rematch.errors import RematchError
from rematch.play import Skip
from workflows.revise.data import ID, read_test
from workflows.revise.models import load_model, read_notes

CARD = load_card("revise")
TIERS = ("real", "paper")
N_TRAIN, N_FEWER, N_TEST = 8, 4, 4
FEW = {"max_new_tokens": 60}
"""Enough for most samples to end: a few steps teach the tiny models how often each token comes, and no more."""
pytestmark = pytest.mark.slow


def options_at(tier: str) -> dict[str, dict[str, Any]]:
    """The options that the tier gives to every base that is built at it."""
    found: set[str] = set()
    todo = {base for axis in CARD.at(tier).axes for name in CARD.axis(axis, tier).contenders for base in CARD.spec.contenders[name].bases}  # fmt: skip
    while todo:
        found |= todo
        todo = {need for name in todo for need in CARD.spec.bases[name].needs} - found
    return {name: CARD.options("bases", name, tier) for name in sorted(found)}


def class_of(base: str) -> str:
    return CARD.spec.bases[base].use.rpartition(":")[2]


def sizes_of(tier: str) -> dict[str, dict[str, Any]]:
    """Each base's options with smaller sizes; all else is the tier's."""
    small: dict[str, dict[str, Any]] = {
        "questions": {"n_train": N_TRAIN, "n_validation": 4, "n_test": N_TEST, "n_ood": 2 if tier == "paper" else None}
    }
    for name, options in options_at(tier).items():
        n = {"n_questions": N_FEWER if name.endswith("_fewer") else None}
        recipe = {"recipe": options.get("recipe", {}) | {"steps": 2, "batch_size": 4, "micro_batch_size": 2}}
        match class_of(name):
            case "Samples":
                small[name] = n | {"k": 2, "sampling": FEW}
            case "FineTuned":
                steps = 30 if tier == "real" else 15
                small[name] = {
                    "recipe": recipe["recipe"] | {"steps": steps, "learning_rate": 0.05},
                    "max_new_tokens": 60,
                }
            case "Writer":
                small[name] = {"n": min(2, options.get("n", 8)), "sampling": FEW}
            case "Revise" | "Star" | "Cycle":
                small[name] = n | recipe | {"k": 2, "sampling": FEW}
            case "RFT" | "DPO" | "Continued":
                small[name] = n | recipe
    return small


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    revise_mirror.write_data(folder)
    revise_mirror.write_models(folder)
    return folder


@pytest.fixture(scope="module")
def rooms(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Room]:
    return {
        tier: Room(
            CARD, tier, tmp_path_factory.mktemp(tier), mirror, sizes_of(tier),
            {"n_votes": 2, **({"lm_eval_limit": 2, "lm_eval_tokens": 8} if tier == "paper" else {})},
        )
        for tier in TIERS
    }  # fmt: skip


@pytest.mark.parametrize("tier", TIERS)
def test_every_model_has_the_tiers_refine_token(rooms: dict[str, Room], tier: str) -> None:
    """Llama 3's own is used, so that no embedding is added; other families are given one before they are fine-tuned."""
    model, tokenizer, tokens = load_model(rooms[tier].build("m0")[0])
    name = tokenizer.convert_ids_to_tokens(tokens.refine)
    assert name == (LLAMA3_REFINE if tier == "paper" else ADDED_REFINE)
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer)


@pytest.mark.parametrize("tier", TIERS)
def test_all_matches_of_the_tier_play(rooms: dict[str, Room], tier: str) -> None:
    room = rooms[tier]
    for axis in CARD.at(tier).axes:
        spec = CARD.axis(axis, tier)
        levels = {"data_efficiency": [N_FEWER, N_TRAIN], "test_time_compute": [1, 2]}.get(axis, spec.levels)
        for name in spec.contenders:
            for level in levels:
                metrics = tuple(CARD.metrics_of(spec, name))
                if name == "verifier":  # which learns from right samples, and tiny models write none
                    with pytest.raises(RematchError, match="there are no pairs"):
                        room.build("verifier")
                    continue
                outcome = room.arena().play(room.task(axis, name, level, metrics=metrics))
                measured = {m.metric for m in outcome.measurements}
                assert measured | set(outcome.undefined) == set(metrics)
                assert all(math.isfinite(m.value) for m in outcome.measurements)


def test_the_shift_is_the_other_data_set(rooms: dict[str, Room]) -> None:
    questions = rooms["paper"].build("questions")[0]
    assert [question.name for question in read_test(questions, ID)] == [f"gsm8k/test/{i}" for i in range(N_TEST)]
    assert [question.name.partition("/")[0] for question in read_test(questions, "math")] == ["math", "math"]


def test_few_shot_is_of_the_pretrained_model(rooms: dict[str, Room]) -> None:
    found = rooms["paper"].play("ablation", "few_shot", 1)
    (measured,) = found.measurements
    assert (measured.metric, len(measured.items or ())) == ("accuracy", 2)
    assert "first_accuracy" in found.undefined
    with pytest.raises(Skip, match="pretrained model"):
        rooms["paper"].arena(lm_eval_task="").play(rooms["paper"].task("ablation", "few_shot", 1))


def test_an_instruct_model_is_taken_as_it_is(rooms: dict[str, Room], mirror: Path, tmp_path: Path) -> None:
    sizes = sizes_of("paper")
    sizes["m0"] = {"hub_id": revise_mirror.LLAMA_INSTRUCT, "recipe": {"steps": 0}, "max_new_tokens": 60}
    room = Room(CARD, "paper", tmp_path, mirror, sizes, {"n_votes": 2})
    folder, info = room.build("m0")
    assert info.train_flops == 0
    assert read_notes(folder)["steps"] == 0
    model, tokenizer, tokens = load_model(folder)
    assert tokenizer.chat_template
    assert tokenizer.convert_ids_to_tokens(tokens.end) == revise_mirror.END_OF_TURN
    assert weights_digest(model) == weights_digest(load_lm(str(mirror / "models" / revise_mirror.LLAMA_INSTRUCT)))


def test_a_model_that_is_not_in_the_mirror(rooms: dict[str, Room], mirror: Path, tmp_path: Path) -> None:
    room = Room(CARD, "paper", tmp_path, mirror, {**sizes_of("paper"), "m0": {"hub_id": "some/model"}})
    with pytest.raises(RematchError, match="some/model"):
        room.build("m0")
