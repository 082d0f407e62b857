"""Matches of real detectors on the room's own texts: what they are told, what they spend, and what a seed decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baselines.detectors.sequence import TrainedDetector
from baselines.detectors.statistics import GLTR, STATISTICS, TokenStatistics, ZeroShot
from baselines.ngram import NGram
from methods.remodetect import ReMoDetector
from rematch.arena import BaseJob, Measurement, Outcome, Task
from rematch.errors import RematchError
from workflows.remodetect.arena import Arena
from workflows.remodetect.entries import reference_flops
from workflows.remodetect.likelihoods import Resampling, TokenPasses
from workflows.remodetect.reward_model import RewardModel, load_detector
from workflows.remodetect.supervised import Supervised
from workflows.remodetect.texts import read_cells, read_rows, write_rows
from workflows.remodetect.trained import ReMoDetect

N_TRIPLETS = 40
SHARED = ("token_passes", "perturbed", "regenerated")
TRAINED = ("remodetect", "bce", "bce_pairs", "bce_random", "bt_only", "no_mixed", "no_replay", "random_init", "official",
           "mix_25", "mix_75")  # fmt: skip


def values(outcome: Outcome) -> dict[tuple[str, str], float]:
    return {(m.metric, m.slice): m.value for m in outcome.measurements}


# -- nothing is given away --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_detectors_are_not_told_which_texts_are_generated(room: Any, texts: Path, tmp_path: Path) -> None:
    """The same with trained ones, GLTR and a statistic: the test cells' sides exchanged, and nothing else."""
    turned = tmp_path / "texts"
    turned.mkdir()
    for name in ("triplets", "validation", "replay", "preferences"):
        write_rows(turned, name, read_rows(texts, name))
    rows = read_rows(texts, "cells")
    write_rows(turned, "cells", (row | {"human": row["llm"], "llm": row["human"]} for row in rows))
    for name in ("remodetect", "bce", "gltr", "fast_detectgpt"):
        task = room.task("ood", name, "sci", metrics=("auroc",))
        before = values(room.arena().play(task))
        # Shared passes lie where the cells' texts do, so they are made anew.
        bases = dict(task.bases) | {"texts": turned}
        if "token_passes" in bases:
            bases["token_passes"] = tmp_path / f"passes {name}"
            bases["token_passes"].mkdir()
            needs = {"texts": turned, "language_models": bases["language_models"]}
            job = BaseJob("remodetect", "smoke", "token_passes", 0, None, needs, {}, bases["token_passes"])
            TokenPasses(n_triplets=N_TRIPLETS).build(job)
        contender = room.task("ood", name, "sci").contender
        after = values(room.arena().play(dataclasses.replace(task, bases=bases, contender=contender)))
        assert after == pytest.approx({key: 1 - value for key, value in before.items()}, abs=1e-9), name


def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What ``train_on`` of either trained kind is given."""
    given: list[tuple[Any, ...]] = []
    for kind in (ReMoDetect, Supervised):
        train_on = kind.train_on

        def spy(self: Any, rows: Any, replay: Any, train_on: Any = train_on) -> None:
            given.append((self, rows, replay))
            train_on(self, rows, replay)

        monkeypatch.setattr(kind, "train_on", spy)
    return given


@pytest.mark.parametrize("name", ["remodetect", "bce", "bce_random", "no_replay", "mix_25"])
def test_a_contender_trains_on_the_first_triplets_and_on_no_text_that_is_scored(
    name: str, room: Any, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = spied(monkeypatch)
    room.arena().play(room.task("ood", name, "sci", metrics=("auroc",)))
    ((_, rows, replay),) = given
    assert rows == read_rows(texts, "triplets")[:N_TRIPLETS]
    assert list(replay) == [row["text"] for row in read_rows(texts, "replay")]
    trained_on = {row[side] for row in rows for side in ("llm", "human")} | set(replay)
    trained_on |= {text for row in rows for text in row["mixed"].values() if text}
    whole = [cell for cell in read_cells(texts) if cell.words is None]
    assert trained_on.isdisjoint(text for cell in whole for text in (*cell.human, *cell.llm))


# -- what levels and budgets mean -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "level", "n"), [("data_efficiency", 12, 12), ("ablation", 9, 9), ("ood", "std", 40)])
def test_triplets_of_a_level(axis: str, level: Any, n: int, room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = spied(monkeypatch)
    metric = "auroc" if axis == "ood" else "seen_auroc"
    found = room.arena().play(room.task(axis, "remodetect", level, metrics=(metric,)))
    assert len(given[0][1]) == found.notes["triplets"] == n
    assert found.samples_seen == 4 * n  # LLM, mixed, human and replay
    assert found.flops_target is None


def test_more_triplets_than_there_are_is_said(room: Any) -> None:
    with pytest.raises(RematchError, match="101 triplets are asked for and the base 'texts' holds 100"):
        room.play("data_efficiency", "remodetect", 101)


def test_a_reward_model_as_it_is_trains_nothing(room: Any) -> None:
    found = room.play("ablation", "zero_shot_rm", N_TRIPLETS)
    assert (found.flops, found.samples_seen) == (0, 0)
    assert found.train_flops == room.build("reward_model")[1].train_flops > 0
    again = room.play("data_efficiency", "zero_shot_rm", 10)
    assert values(again)["seen_auroc", ""] == values(found)["seen_auroc", ""]


def test_the_budget_is_what_remodetect_itself_counts(room: Any, texts: Path) -> None:
    """Of each triplet four texts are read by the model in training and one by its teacher."""
    detector = load_detector(ReMoDetector(batch_size=8, learning_rate=1e-3), room.build("reward_model")[0], None)
    rows = read_rows(texts, "triplets")[:24]
    replay = [row["text"] for row in read_rows(texts, "replay")]
    budget = reference_flops(detector, rows, replay)
    assert budget == pytest.approx(24 * 13 * detector.pass_cost(replay)(1, 119, backward=False))
    detector.fit([(row["llm"], row["mixed"]["0.5"], row["human"]) for row in rows], replay)
    assert detector.training_flops_ == pytest.approx(budget, rel=1e-9)


def test_counting_leaves_no_gradient_behind(room: Any, texts: Path) -> None:
    detector = load_detector(ReMoDetector(), room.build("reward_model")[0], None)
    detector.pass_cost([row["llm"] for row in read_rows(texts, "triplets")[:4]])
    assert all(parameter.grad is None for parameter in detector.model.parameters())


@pytest.mark.parametrize(
    ("name", "share"), [*((name, 1.0) for name in TRAINED), ("remodetect", 0.5), ("bce", 0.5), ("no_mixed", 0.5)]
)
def test_flops_are_those_of_the_budget(name: str, share: float, room: Any) -> None:
    task = room.task("flops_matched", name, share, metrics=("seen_auroc",))
    found = room.arena().play(task)
    assert found.flops_target == pytest.approx(share * N_TRIPLETS * 13 * 2 * (32 * 64 + 64), rel=1e-9)
    assert abs(found.flops / found.flops_target - 1) <= 0.02
    bases = sum(info.train_flops for info in task.base_info.values())
    assert found.train_flops == found.flops + bases
    assert (bases == 0) == (name in ("bce_random", "random_init"))


def test_a_budget_buys_the_classifier_epochs_or_pairs(room: Any) -> None:
    """13 against 6 forward passes: 2.17 times as many texts."""
    epochs, pairs, own = (
        room.play("flops_matched", name, 1.0).notes for name in ("bce", "bce_pairs", "remodetect")
    )  # fmt: skip
    assert (epochs["triplets"], pairs["triplets"], own["triplets"]) == (40, 87, 40)
    assert (epochs["epochs"], pairs["epochs"], own["epochs"]) == (87 / 40, 1, 1)


def test_a_budget_beyond_the_texts_is_said(room: Any) -> None:
    with pytest.raises(RematchError, match="pays for 130 triplets and the base 'texts' holds 100"):
        room.play("flops_matched", "bce_pairs", 1.0, n_triplets=60)


def test_cost_with_the_reward_model(room: Any) -> None:
    found = room.play("flops_matched", "remodetect", 0.5)
    bases = room.build("reward_model")[1].train_flops
    assert values(found)["flops_with_reward_model", ""] == found.flops + bases == found.train_flops


def test_a_triplet_without_mixed_text_keeps_its_other_pair(room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the ratio of 0.2 no span could be written anew."""
    given = spied(monkeypatch)
    task = room.task("ablation", "mix_25", 12, metrics=("seen_auroc",))
    task.contender.set_params(mix_ratio=0.2)
    found = room.arena().play(task)
    assert given[0][0].n_without_mixed_ == 12
    assert found.samples_seen == 3 * 12


# -- seeds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["remodetect", "bce", "official", "gltr", "detectgpt", "dna_gpt"])
def test_a_seed_gives_the_same_numbers_again(name: str, room: Any) -> None:
    def played() -> list[Measurement]:
        return list(room.arena().play(room.task("ood", name, "sci", metrics=("auroc", "aupr"))).measurements)

    assert played() == played()


def test_order_and_dropout_are_the_seeds(room: Any) -> None:
    """On the same bases, so that the seed of the training alone differs."""
    task = room.task("ood", "remodetect", "sci", metrics=("auroc",))

    def losses(seed: int, base: str = "reward_model") -> list[float]:
        detector = room.task("ood", "remodetect", "sci").contender
        bases = {"reward_model": room.build(base)[0], "texts": task.bases["texts"]}
        room.arena().play(dataclasses.replace(task, seed=seed, contender=detector, bases=bases))
        return detector.losses_

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_the_order_of_triplets_is_a_function_of_the_seed_alone(room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever model is trained, by whatever loss."""
    orders: list[list[int]] = []
    train = TrainedDetector._train

    def spy(self: Any, sizes: Sequence[int], loss: Any) -> None:
        seen: list[int] = []

        def noted(passes: Any, *indices: np.ndarray) -> Any:
            seen.extend(indices[0].tolist())
            return loss(passes, *indices)

        train(self, sizes, noted)
        orders.append(seen)

    monkeypatch.setattr(TrainedDetector, "_train", spy)
    for name in ("remodetect", "random_init", "bce", "bt_only", "mix_75"):
        room.arena().play(room.task("ablation", name, 20, metrics=("seen_auroc",)))
    assert all(order == orders[0] for order in orders)
    assert sorted(orders[0]) == list(range(20))
    room.arena().play(dataclasses.replace(room.task("ablation", "bce", 20, metrics=("seen_auroc",)), seed=1))
    assert orders[-1] != orders[0]


# -- real detectors ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base ``texts`` in which generated texts say "a" and human ones "b", and what is built from it."""
    root = tmp_path_factory.mktemp("toy")
    bases = {name: root / name for name in ("model", "texts", "language_models", *SHARED)}
    for folder in bases.values():
        folder.mkdir()
    triplets = [{"llm": "a a a", "human": "b b b", "mixed": {"0.5": "a b a"}}] * 16
    cell = {"domain": "sci", "source": "bon16", "seen": True, "aligned": True, "attack": "none", "n": 16, "words": None}
    write_rows(bases["texts"], "triplets", triplets)
    write_rows(bases["texts"], "replay", [{"text": "c d c"}, {"text": "d c d"}] * 8)
    write_rows(bases["texts"], "rewards", [{"chosen": "c d c", "rejected": "d c d"}] * 16)
    gaps = {
        "human": ["b b b", "b b b", "", "b b b"],
        "llm": ["a a a", "", "a a a", "a"],
        "source": "gaps",
        "seen": False,
    }
    write_rows(bases["texts"], "cells", [cell | {"human": ["b b b"] * 4, "llm": ["a a a"] * 4}, cell | gaps])
    needs = {"texts": bases["texts"], "language_models": bases["language_models"]}
    RewardModel(epochs=0).build(BaseJob("remodetect", "smoke", "model", 0, None, needs, {}, bases["model"]))
    # To the language models "a" is the most probable word and "b" the least, of thirty.
    words = ["a"] * 40 + [f"w{i}" for i in range(28) for _ in range(3)] + ["b"]
    for name in ("seen_a", "seen_b"):
        NGram.fit([[word] for word in words], order=1).save(bases["language_models"] / name)
    builders = {"token_passes": TokenPasses(), "perturbed": Resampling(kind="perturbed", k=2),
                "regenerated": Resampling(kind="regenerated", k=2)}  # fmt: skip
    for name, builder in builders.items():
        builder.build(BaseJob("remodetect", "smoke", name, 0, None, needs, {}, bases[name]))
    return bases


@pytest.mark.parametrize(
    "contender",
    [
        ReMoDetect(), ReMoDetect(preset="official"), ReMoDetect(lam=0.0), ReMoDetect(beta1=0.0, beta2=0.0),
        ReMoDetect(lam=0.0, beta1=0.0, beta2=0.0), Supervised(), Supervised(spends="pairs"), GLTR(),
    ],
)  # fmt: skip
def test_every_trained_detector_says_more_for_generated(
    contender: Any, toy: dict[str, Path], task_on: Callable[..., Task]
) -> None:
    """AUROC 1, not 0, where "a" is generated and "b" is human."""
    if isinstance(contender, TrainedDetector):
        contender.set_params(learning_rate=0.01, batch_size=4, epochs=8)
        names = ["model", "texts"]
    else:
        names = ["token_passes", "texts", "language_models"]
    task = task_on(contender, {name: toy[name] for name in names}, ["seen_auroc"], level=16)
    assert values(Arena(n_triplets=16).play(task)) == {("seen_auroc", ""): 1}


@pytest.mark.parametrize(
    "contender", [ReMoDetect(finetune=False), ReMoDetect(), Supervised(), GLTR(), *map(ZeroShot, STATISTICS)]
)
def test_no_detector_scores_a_text_without_words(
    contender: Any, toy: dict[str, Path], task_on: Callable[..., Task]
) -> None:
    """Two of the pairs hold an empty text and one a single word: every kind of detector drops these three, and says so."""
    trained = isinstance(contender, TrainedDetector)
    names = ["model", "texts"] if trained else ["token_passes", "texts", "language_models", *SHARED[1:]]
    task = task_on(contender, {name: toy[name] for name in names}, ["unseen_auroc"], level=16)
    found = Arena(n_triplets=16, resamples=2).play(task)
    assert found.notes["pairs_without_score"] == 3
    assert values(found)["unseen_auroc", ""] in (0, 0.5, 1)  # of the one pair that is left


def test_ranks_of_the_toy_are_as_said(toy: dict[str, Path]) -> None:
    stats = TokenStatistics.load(toy["token_passes"] / "tokens.safetensors")
    assert np.nanmax(stats.rank) > 10
    assert np.nanmin(stats.rank) == 1


@pytest.mark.parametrize("name", ["remodetect", "bce", "selector", "chance", "log_likelihood", "detectgpt"])
def test_cost_of_detection(name: str, room: Any) -> None:
    metrics = ("seconds_per_text", "passes_per_text")
    found = values(room.arena().play(room.task("ood", name, "sci", metrics=metrics)))
    expected = {"selector": 0, "chance": 0, "detectgpt": 4}.get(name, 1)
    assert found["passes_per_text", ""] == expected
    assert found["seconds_per_text", ""] > 0


def test_versions_of_a_level(room: Any) -> None:
    for level in (1, 3):
        found = values(room.play("test_time_compute", "npr", level))
        assert found["passes_per_text", ""] == 1 + level


def test_nothing_beats_the_reward_that_picked_on_its_own_picks(room: Any) -> None:
    """The mean over 4, 16 and 32 of n / (n + 1) is what it expects, and the others have less."""
    found = {name: values(room.play("ablation", name, N_TRIPLETS)) for name in ("selector", "remodetect", "chance")}
    expected = np.mean([n / (n + 1) for n in (4, 16, 32)])
    assert found["selector"]["win_rate", ""] == pytest.approx(expected, abs=0.1)  # 30 pairs
    assert found["selector"]["win_rate", ""] > found["remodetect"]["win_rate", ""]
    assert all(value == 0.5 for (metric, _), value in found["chance"].items() if metric in ("win_rate", "seen_auroc"))
    doses = [found["selector"]["dose_auroc", f"n={n}"] for n in (1, 4, 16, 32)]
    assert doses == sorted(doses)


@pytest.mark.slow
def test_every_metric_of_the_card_is_measured_on_its_axis(room: Any, card: Any) -> None:
    """By one that is trained, and by those that are not."""
    for axis, spec in card.spec.axes.items():
        level = {"ood": "sci", "memory_time": 24, "test_time_compute": 2, "flops_matched": 1.0}.get(axis, N_TRIPLETS)
        for name in {"remodetect", "log_likelihood", "zero_shot_rm", "selector"} & set(spec.contenders):
            found = room.play(axis, name, level)
            assert {m.metric for m in found.measurements} == set(spec.metrics)
            assert all(np.isfinite(m.value) for m in found.measurements)


def test_every_items_mean_is_the_value(room: Any) -> None:
    found = room.play("ablation", "selector", N_TRIPLETS)
    with_items = [m for m in found.measurements if m.items is not None]
    assert {m.metric for m in with_items} >= {
        "seen_auroc",
        "dose_auroc",
        "dose_gain",
        "win_rate",
        "preference_accuracy",
    }
    for m in with_items:
        assert np.mean(m.items) == pytest.approx(m.value, abs=1e-9), m.metric
    assert all(np.isfinite(m.value) for m in found.measurements)
