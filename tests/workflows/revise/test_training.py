"""The bases of post-training: each starts from M0, counts what it costs, and is refused what cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.checkpoints import weights_digest
from rematch.arena import BaseJob
from rematch.errors import RematchError
from rematch.source import imported_modules
from workflows.revise import models, post_training, rivals
from workflows.revise.curriculum import Cycle, Revise
from workflows.revise.models import FineTuned, Pretrained, load_model, read_notes
from workflows.revise.post_training import Samples, read_pool
from workflows.revise.rivals import RFT, Continued, Star

ROOT = Path(__file__).resolve().parents[3]
TRAINED = ("rft", "star", "dpo", "verifier", "revise", "sft_continued")


def digest(folder: Path) -> str:
    return weights_digest(load_model(folder)[0])


@pytest.fixture(scope="module")
def needs(room: Any) -> dict[str, Path]:
    return {name: room.build(name)[0] for name in ("m0", "questions", "samples")}


def test_m0_keeps_its_curve_and_its_last_weights(room: Any) -> None:
    folder, info = room.build("m0")
    notes = read_notes(folder)
    assert [step for step, _ in notes["curve"]] == [30, 60]
    assert all(0 <= accuracy <= 1 for _, accuracy in notes["curve"])
    assert info.train_flops == notes["train_flops"] > 0
    model, tokenizer, tokens = load_model(folder)
    assert not model.training
    assert tokenizer.decode([tokens.end, tokens.refine]) == "<end> <|refine|>"
    assert not list(folder.glob("checkpoint*"))
    assert digest(room.build_anew("m0", None, 0)[0]) == digest(folder) != digest(room.build_anew("m0", None, 1)[0])


def test_measuring_the_curve_changes_nothing(room: Any, job: Callable[..., BaseJob]) -> None:
    options = room.card.options("bases", "m0", "smoke") | room.base_options["m0"] | {"curve_points": 0}
    made = job({"questions": room.build("questions")[0]})
    FineTuned(**options).build(made)
    assert read_notes(made.out)["curve"] == []
    assert digest(made.out) == digest(room.build("m0")[0])


def test_the_pool_is_of_m0_and_comes_back(room: Any) -> None:
    folder, info = room.build("samples")
    pool, k, n_questions = read_pool(folder)
    assert (k, n_questions) == (3, 64)
    assert pool.weights == digest(room.build("m0")[0])
    assert len(pool.completions) + pool.n_unfinished + pool.n_empty == info.samples_seen == 3 * 64
    assert info.train_flops == pool.flops
    assert 0 < info.notes["right"] < 1


@pytest.mark.parametrize("name", TRAINED)
def test_every_training_starts_from_m0_and_adds_up(room: Any, name: str) -> None:
    folder, info = room.build(name)
    notes, start = read_notes(folder), room.build("m0")
    assert info.train_flops == pytest.approx(notes["post_flops"] + start[1].train_flops)
    assert notes["m0_flops"] == start[1].train_flops
    assert digest(folder) != digest(start[0])
    assert digest(folder) == digest(room.build_anew(name, None, 0)[0])


def test_sampling_is_part_of_the_cost(room: Any) -> None:
    pool = read_pool(room.build("samples")[0])[0]
    for name in ("rft", "dpo", "verifier", "revise"):
        assert read_notes(room.build(name)[0])["post_flops"] > pool.flops
    assert read_notes(room.build("rft")[0])["generations"] == 3 * 64
    assert read_notes(room.build("revise")[0])["generations"] == 2 * 3 * 64
    assert read_notes(room.build("sft_continued")[0])["generations"] == 0


def test_stages_follow_each_other(room: Any) -> None:
    """Stage 2 starts from M1, on samples of M1; the reference is the stage's start."""
    folder, _ = room.build("revise")
    first, second = read_notes(folder)["stages"]
    assert first["start"] == first["samples"] == digest(room.build("m0")[0])
    assert second["start"] == second["samples"] == first["end"] == digest(folder / "stage1")
    assert second["end"] == digest(folder)
    assert (first["reference"], second["reference"]) == (first["start"], second["start"])
    assert read_notes(folder)["post_flops"] == first["flops"] + second["flops"]


def test_every_completion_is_accounted_for(room: Any) -> None:
    """In the notes that records and tables are made of, not only in a file of the base."""
    for name in ("revise", "rft", "star", "dpo"):
        counts = room.build(name)[1].notes["counts"]
        assert counts == read_notes(room.build(name)[0])["counts"]
        assert sum(part["sampled"] for part in counts.values()) == read_notes(room.build(name)[0])["generations"]
        for part in counts.values():
            lost = sum(part.get(reason, 0) for reason in ("unfinished", "empty", "blank"))
            assert 0 <= lost <= lost + part.get("cut", 0) <= part["sampled"]
    folder, info = room.build("revise")
    stages = read_notes(folder)["stages"]
    assert list(info.notes["counts"]) == ["1 verify", "2 correct"]
    for part, stage in zip(info.notes["counts"].values(), stages, strict=True):
        names = ("unfinished", "empty", "blank", "too_long", "cut", "rows", "right")
        assert [part[name] for name in names] == [stage[f"n_{name}"] for name in names]
    (pool,) = room.build("rft")[1].notes["counts"].values()
    assert pool["unfinished"] == room.build("samples")[1].notes["unfinished"]
    assert [part["kept"] for part in room.build("star")[1].notes["counts"].values()] == read_notes(
        room.build("star")[0]
    )["n_right"]
    # What a model writes is known by what it was trained on; of two stages the first alone where that one writes.
    assert room.build("revise_written")[1].notes["counts"] == info.notes["counts"]
    assert list(room.build("revise_stage1_written")[1].notes["counts"]) == ["1 verify"]
    assert room.build("m0_written")[1].notes["counts"] == {}


def test_few_shot_prompting_is_in_the_precision_of_all_others() -> None:
    assert Pretrained().dtype == FineTuned().dtype


def test_a_cycle_goes_on_from_revise(room: Any) -> None:
    folder, _ = room.build("revise_cycle")
    before = room.build("revise")[0]
    (stage,) = read_notes(folder)["stages"]
    assert (stage["name"], stage["start"]) == ("correct", digest(before))
    assert stage["samples"] == stage["start"]
    assert read_notes(folder)["post_flops"] == read_notes(before)["post_flops"] + stage["flops"]
    assert read_notes(folder)["generations"] == 3 * 3 * 64


def test_a_cycle_may_follow_a_cycle(room: Any, job: Callable[..., BaseJob]) -> None:
    before = room.build("revise_cycle")[0]
    made = job({"revise_cycle": before, **{name: room.build(name)[0] for name in ("m0", "questions")}})
    info = Cycle(**room.base_options["revise_cycle"]).build(made)
    (stage,) = read_notes(made.out)["stages"]
    assert stage["start"] == stage["samples"] == digest(before)
    assert read_notes(made.out)["post_flops"] == read_notes(before)["post_flops"] + stage["flops"]
    assert info.notes["generations"] == 4 * 3 * 64
    assert list(info.notes["counts"]) == ["1 verify", "2 correct", "3 correct", "4 correct"]


@pytest.mark.parametrize("name", ["sft_continued", "rft_continued"])
def test_going_on_costs_what_revise_did(room: Any, name: str) -> None:
    spent = read_notes(room.build(name)[0])["post_flops"]
    assert spent == pytest.approx(read_notes(room.build("revise")[0])["post_flops"], rel=0.02)


def test_star_is_given_hints_and_all_ground_truths(room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = rivals.star

    def spy(model: Any, problems: Any, hint: Any, *rest: Any, **more: Any) -> Any:
        seen.append((problems, hint, more["others"]))
        return real(model, problems, hint, *rest, **more)

    monkeypatch.setattr(rivals, "star", spy)
    monkeypatch.setitem(room.base_options, "star", room.base_options["star"] | {"n_questions": 20})
    folder, _ = room.build_anew("star", None, 0)
    problems, hint, others = seen[0]
    assert (len(problems), len(others)) == (20, 44)
    assert len(hint(problems[0])) == len(problems[0].prompt) + len(problems[0].solution)
    assert len(read_notes(folder)["n_right"]) == 2


def test_fewer_questions_are_the_first(needs: dict[str, Path], job: Callable[..., BaseJob]) -> None:
    made = job({name: needs[name] for name in ("m0", "questions")}, "samples_fewer")
    Samples(k=3, n_questions=20, sampling={"max_new_tokens": 6}).build(made)
    fewer, _, n_questions = read_pool(made.out)
    whole, _, _ = read_pool(needs["samples"])
    assert n_questions == 20
    assert fewer.completions == [each for each in whole.completions if each.question < 20]
    trained = job({"m0": needs["m0"], "questions": needs["questions"], "samples_fewer": made.out})
    RFT(n_questions=20, recipe={"steps": 1}).build(trained)
    assert read_notes(trained.out)["n_questions"] == 20


def test_all_ground_truths_are_imitated_where_nothing_is_said(
    needs: dict[str, Path], job: Callable[..., BaseJob], room: Any
) -> None:
    """M0 has seen them all, and so may who goes on from it, however many questions it samples."""
    made = job({**needs, "samples": room.build("samples_fewer")[0]})
    recipe = {"batch_size": 1, "learning_rate": 1e-5}
    info = RFT(n_questions=32, recipe=recipe).build(made)
    assert info.samples_seen == 64 + read_notes(made.out)["n_kept"]
    made = job({**needs, "samples": room.build("samples_fewer")[0]})
    info = RFT(n_questions=32, n_truths=40, recipe=recipe).build(made)
    assert info.samples_seen == 40 + read_notes(made.out)["n_kept"]
    with pytest.raises(RematchError, match=r"bases\.some: n_truths: 30; n_questions are 32"):
        RFT(n_questions=32, n_truths=30, recipe=recipe).build(made)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (RFT(recipe={"stesp": 1}), r"bases\.some: recipe: unknown key 'stesp'; allowed: .*Did you mean 'steps'"),
        (RFT(n_questions=65), r"bases\.some: n_questions: 65; allowed: 1 to 64"),
        (RFT(n_questions=20), r"bases\.some: n_questions: 20; the base 'samples' is of 64 questions"),
        (Revise(k=2), r"bases\.some: k: 2; the base 'samples' has 3 completions a question"),
        (Revise(k=3, weights={"sfft": 1.0}), r"bases\.some: weights: unknown key 'sfft'"),
        (Revise(k=3, sampling={"temp": 1.0}), r"bases\.some: sampling: unknown key 'temp'"),
        (Star(sampling={"top_k": 1}), r"bases\.some: sampling: unknown key 'top_k'"),
    ],
)  # fmt: skip
def test_mistakes_name_the_base_and_the_key(
    needs: dict[str, Path], job: Callable[..., BaseJob], base: Any, message: str
) -> None:
    with pytest.raises(RematchError, match=message):
        base.build(job(needs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": {"hidden": 3}}, r"bases\.some: sizes: unknown key 'hidden'; allowed: hidden_size"),
        ({"recipe": {"lr": 3}}, r"bases\.some: recipe: unknown key 'lr'"),
        (
            {"recipe": {"trainer": "trl", "processes": 2}, "curve_points": 2},
            r"bases\.some: curve_points: 2; with processes: 2 the model is elsewhere while it trains: give curve_points: 0",
        ),
    ],
)
def test_mistakes_of_m0(needs: dict[str, Path], job: Callable[..., BaseJob], options: Any, message: str) -> None:
    with pytest.raises(RematchError, match=message):
        FineTuned(**options).build(job({"questions": needs["questions"]}))


def test_a_killed_curriculum_goes_on_bit_for_bit(
    room: Any, needs: dict[str, Path], job: Callable[..., BaseJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"k": 3, "sampling": {"max_new_tokens": 6}, "recipe": {"learning_rate": 0.002, "batch_size": 16, "steps": 4, "checkpoint_every": 1}}  # fmt: skip
    whole, killed = job(needs), job(needs)
    Revise(**options).build(whole)  # type: ignore[arg-type]

    class Killed(Exception):
        pass

    def kill(*args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(post_training, "save_model", kill)
        with pytest.raises(Killed):
            Revise(**options).build(killed)  # type: ignore[arg-type]
    assert list(killed.out.glob("checkpoint/*"))
    Revise(**options).build(killed)  # type: ignore[arg-type]
    assert digest(whole.out) == digest(killed.out)
    assert json.loads((whole.out / "training.json").read_text()) == json.loads(
        (killed.out / "training.json").read_text()
    )


def test_continued_learns_from_right_samples_too(
    room: Any, needs: dict[str, Path], job: Callable[..., BaseJob]
) -> None:
    revise = room.build("revise")[0]
    recipe = {"learning_rate": 0.002, "batch_size": 4}
    alone, both = job(needs | {"revise": revise}), job(needs | {"revise": revise})
    Continued(recipe=recipe).build(alone)
    Continued(recipe=recipe, own_samples=True).build(both)
    assert digest(alone.out) != digest(both.out)
    target = read_notes(revise)["post_flops"]
    for made in (alone, both):
        assert read_notes(made.out)["post_flops"] == pytest.approx(target, rel=0.02)
    assert torch.get_num_threads() == 1


@pytest.mark.slow
def test_every_recipe_may_be_trained_by_trl(room: Any, card: Any, tmp_path: Path) -> None:
    """M0's own curve is measured while TRL trains; all that follows M0 is fed on its own samples."""
    recipe = room.base_options["m0"]["recipe"]
    after_ten = []  # steps; later on, at this rate, rounding has grown
    for trainer in ("own", "trl"):
        few = {"m0": room.base_options["m0"] | {"recipe": recipe | {"trainer": trainer, "steps": 10}}}
        (tmp_path / trainer).mkdir()
        begun = type(room)(card, "smoke", tmp_path / trainer, base_options=room.base_options | few)
        after_ten.append(read_notes(begun.build("m0")[0])["final_loss"])
    assert after_ten[1] == pytest.approx(after_ten[0], rel=1e-4)
    mine = {"m0": room.base_options["m0"] | {"recipe": recipe | {"trainer": "trl"}}}
    for name in ("revise", "rft", "dpo", "sft_continued"):
        options = room.card.options("bases", name, "smoke") | room.base_options.get(name, {})
        mine[name] = options | {"recipe": options["recipe"] | {"trainer": "trl"}}
    (tmp_path / "all").mkdir()
    trl = type(room)(card, "smoke", tmp_path / "all", base_options=room.base_options | mine)
    theirs = read_notes(trl.build("m0")[0])
    assert [step for step, _ in theirs["curve"]] == [30, 60]
    spent = {}
    for name in mine:
        folder, info = trl.build(name)
        assert name == "m0" or digest(folder) != digest(trl.build("m0")[0])
        assert not list(folder.glob("checkpoint*"))
        assert (folder / "config.json").read_text() == (room.build(name)[0] / "config.json").read_text()
        spent[name] = info.train_flops - theirs["train_flops"]
    first, second = read_notes(trl.build("revise")[0])["stages"]
    assert second["start"] == second["samples"] == first["end"] == digest(trl.build("revise")[0] / "stage1")
    assert second["end"] == digest(trl.build("revise")[0])
    assert spent["sft_continued"] == pytest.approx(spent["revise"], rel=0.02)


def test_a_change_of_the_method_retrains_no_rival() -> None:
    """What a base's digest depends on is what its module imports."""
    for module_name in ("workflows.revise.rivals", "workflows.revise.post_training", "workflows.revise.models"):
        found = imported_modules(ROOT, (module_name,))
        assert not {"methods.revise.loss", "methods.revise.curriculum", "methods.revise.training"} & set(found)
    for module_name in ("workflows.revise.written", "workflows.revise.arena"):
        found = imported_modules(ROOT, (module_name,))
        assert not {"methods.revise.loss", "methods.revise.curriculum", "baselines.post_training.imitation"} & set(
            found
        )
    assert "methods.revise.loss" in imported_modules(ROOT, ("workflows.revise.curriculum",))


def test_the_curve_outlives_a_kill(room: Any, job: Callable[..., BaseJob], monkeypatch: pytest.MonkeyPatch) -> None:
    options = room.card.options("bases", "m0", "smoke") | room.base_options["m0"]
    options["recipe"] = options["recipe"] | {"checkpoint_every": 30}
    made = job({"questions": room.build("questions")[0]})

    class Killed(Exception):
        pass

    def kill(*args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(models, "save_model", kill)
        with pytest.raises(Killed):
            FineTuned(**options).build(made)
    FineTuned(**options).build(made)
    assert read_notes(made.out)["curve"] == read_notes(room.build("m0")[0])["curve"]
    assert not list(made.out.glob("checkpoint*"))


@pytest.mark.slow
def test_without_looking_ahead_there_is_nothing_to_gain(room: Any, card: Any, tmp_path: Path) -> None:
    """M0 learns sums of what came before at mini's sizes in mini's steps."""
    options = card.options("bases", "questions", "mini")
    easy = {"questions": options | {"task": options["task"] | {"least_first": True}}, "m0": {"curve_points": 1}}
    notes = read_notes(type(room)(card, "mini", tmp_path, base_options=easy).build("m0")[0])
    assert notes["accuracy"] > 0.95
    assert "outside 0.35 to 0.75" in notes["warning"]
