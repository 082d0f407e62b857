"""The arena: by hand on scores that are looked up, and with real detectors on the room's own texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from baselines.detectors.sequence import TrainedDetector
from baselines.detectors.statistics import GLTR, TokenStatistics
from baselines.ngram import NGram
from methods.remodetect import ReMoDetector
from rematch.arena import BaseJob, Measurement, Outcome, Task
from rematch.errors import RematchError
from rematch.play import Skip
from workflows.remodetect.arena import Arena
from workflows.remodetect.entries import text_flops
from workflows.remodetect.evaluation import DENSITY_EDGES, FALSE_POSITIVE_RATES, average_precision
from workflows.remodetect.likelihoods import TokenPasses
from workflows.remodetect.reward_model import RewardModel, load_detector
from workflows.remodetect.supervised import Supervised, triplet_flops
from workflows.remodetect.texts import read_cells, read_rows, write_rows
from workflows.remodetect.trained import ReMoDetect

N_TRIPLETS = 40
TRAINED = ("remodetect", "bce", "bce_pairs", "bce_random", "bt_only", "no_mixed", "no_replay", "random_init", "official",
           "mix_25", "mix_75")  # fmt: skip
Value = dict[tuple[str, str], float]
nan = float("nan")


@dataclass
class Known:
    """A contender whose scores are looked up."""

    scores: dict[str, float]
    asked: list[str] = field(default_factory=list)

    def score(self, texts: Sequence[str], folder: Path) -> np.ndarray:
        self.asked += texts
        return np.array([self.scores[text] for text in texts])


def values(outcome: Outcome) -> Value:
    found = {(m.metric, m.slice): m.value for m in outcome.measurements}
    assert len(found) == len(outcome.measurements)
    return found


def items(outcome: Outcome, metric: str, slice: str = "") -> list[float] | None:
    (found,) = [m for m in outcome.measurements if (m.metric, m.slice) == (metric, slice)]
    return None if found.items is None else list(found.items)


class Board:
    """A base ``texts`` of cells whose texts are named by their scores."""

    def __init__(self, folder: Path, task_on: Callable[..., Task]) -> None:
        self.folder, self.task_on = folder, task_on
        self.scores: dict[str, float] = {}
        self.cells: list[dict[str, Any]] = []

    def texts(self, some: Sequence[float]) -> list[str]:
        names = [f"{name} x x" for name in range(len(self.scores), len(self.scores) + len(some))]
        self.scores.update(zip(names, some, strict=True))
        return names

    def cell(self, human: Sequence[float], llm: Sequence[float], source: str = "bon16", **more: Any) -> None:
        row = {"domain": "sci", "source": source, "seen": source == "bon16", "aligned": True, "attack": "none",
               "n": None, "words": None}  # fmt: skip
        self.cells.append(row | more | {"human": self.texts(human), "llm": self.texts(llm)})

    def rows(self, name: str, *rows: dict[str, Any]) -> None:
        """Scores in place of texts."""
        write_rows(
            self.folder, name,
            ({k: dict(zip(v, self.texts(list(v.values())), strict=True)) if isinstance(v, dict) else self.texts([v])[0]
              for k, v in row.items()} for row in rows),
        )  # fmt: skip

    def play(self, *metrics: str, contender: Any = None, **changes: Any) -> Outcome:
        write_rows(self.folder, "cells", self.cells)
        contender = Known(self.scores) if contender is None else contender
        return Arena(n_triplets=4).play(self.task_on(contender, {"texts": self.folder}, metrics, **changes))


@pytest.fixture
def board(tmp_path: Path, task_on: Callable[..., Task]) -> Board:
    return Board(tmp_path, task_on)


# -- numbers by hand --------------------------------------------------------------------------------------------------


def test_auroc_is_the_plain_mean_of_its_cells(board: Board) -> None:
    """0.75, 1 and 0, although they hold two, one and two pairs: cells weigh the same. The others do not count."""
    board.cell([1, 3], [2, 4])
    board.cell([1], [5], "lm_b")
    board.cell([1, 1], [0, 0], "raft")
    board.cell([1], [0], "bon1", aligned=False, n=1)
    board.cell([1], [0], attack="swap")
    board.cell([1], [0], words=8)
    found = board.play("auroc")
    assert values(found) == pytest.approx({
        ("auroc", ""): 1.75 / 3, ("auroc", "source=bon16"): 0.75, ("auroc", "source=lm_b"): 1,
        ("auroc", "source=raft"): 0,
    })  # fmt: skip
    assert items(found, "auroc", "source=bon16") == [0.5, 1]
    assert items(found, "auroc") is None  # there are not as many items in each


def test_items_of_the_mean_are_those_of_its_prompts(board: Board) -> None:
    board.cell([1, 3], [2, 4])
    board.cell([1, 3], [0, 2], "raft")
    assert items(board.play("auroc"), "auroc") == [0.25, 0.75]


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


def test_seen_unseen_and_the_drop(board: Board) -> None:
    board.cell([1, 3], [2, 4])
    board.cell([1], [5], "lm_b")
    board.cell([1, 1], [0, 0], "bon16", domain="std", seen=False)
    board.cell([1], [0], "bon1", aligned=False)
    board.cell([1], [0], attack="swap")
    found = board.play("seen_auroc", "unseen_auroc", "auroc_drop", "control_auroc")
    expected = {"seen_auroc": 0.75, "unseen_auroc": 0.5, "auroc_drop": 0.25, "control_auroc": 0}
    assert values(found) == pytest.approx({(name, ""): value for name, value in expected.items()})
    assert items(found, "unseen_auroc") is None


def test_domains_do_not_share_prompts(board: Board) -> None:
    board.cell([1, 3], [2, 4], "raft")
    board.cell([1, 3], [2, 4], "raft", domain="std")
    board.cell([1, 3], [0, 0])
    assert items(board.play("unseen_auroc"), "unseen_auroc") is None
    found = board.play("unseen_auroc", axis="ood", level="std")
    assert items(found, "unseen_auroc") == [0.5, 1]


def test_an_attacks_drop_is_from_the_same_source_before_it(board: Board) -> None:
    board.cell([1, 3], [2, 4])
    board.cell([9, 9], [0, 0], "lm_b")
    board.cell([1, 3], [0, 2], attack="swap")
    board.cell([1, 3], [4, 4], attack="rephrase")
    found = values(board.play("attacked_auroc", "attack_drop"))
    assert found == pytest.approx({
        ("attacked_auroc", "attack=swap"): 0.25, ("attacked_auroc", "attack=rephrase"): 1, ("attacked_auroc", ""): 0.625,
        ("attack_drop", "attack=swap"): 0.5, ("attack_drop", "attack=rephrase"): -0.25, ("attack_drop", ""): 0.125,
    })  # fmt: skip


def test_dose_and_wins(board: Board) -> None:
    """Wins are pair by pair over the fresh text of the same prompt; AUROC is against all human texts."""
    board.cell([1, 3], [0, 2], "bon1", n=1, aligned=False)
    board.cell([1, 3], [0, 4], "bon4", n=4)
    board.cell([1, 3], [4, 4], "bon16", n=16)
    board.cell([1, 3], [9, 9], "bon4", n=4, domain="std")
    board.cell([1, 3], [9, 9], "raft")
    found = board.play("dose_auroc", "dose_gain", "win_rate")
    assert values(found) == pytest.approx({
        ("dose_auroc", "n=1"): 0.25, ("dose_auroc", "n=4"): 0.5, ("dose_auroc", "n=16"): 1, ("dose_auroc", ""): 1.75 / 3,
        ("dose_gain", ""): 0.75, ("win_rate", "n=4"): 0.75, ("win_rate", "n=16"): 1, ("win_rate", ""): 0.875,
    })  # fmt: skip
    assert items(found, "dose_gain") == [1, 0.5]
    assert items(found, "win_rate", "n=4") == [0.5, 1]


def test_preferences_order_spread_and_density(board: Board) -> None:
    board.cell([0, 2], [5, 1])
    board.rows("preferences", {"chosen": 2, "rejected": 1}, {"chosen": 1, "rejected": 1}, {"chosen": 0, "rejected": 1})
    board.rows(
        "validation",
        {"llm": 3, "human": 1, "mixed": {"0.5": 2}}, {"llm": 3, "human": 2, "mixed": {"0.5": 1}},
        {"llm": 3, "human": 2, "mixed": {"0.25": 1}},
    )  # fmt: skip
    found = values(board.play("preference_accuracy", "order_accuracy", "spread_ratio", "density"))
    assert found["preference_accuracy", ""] == 0.5
    assert found["order_accuracy", ""] == 0.5  # the third triplet has no text of this ratio
    assert found["spread_ratio", ""] == 2
    assert found["density", ""] == 2  # means 3 and 1, human deviation 1
    for kind in ("human", "generated"):
        shares = [value for (metric, name), value in found.items() if name.startswith(f"{kind}=")]
        assert len(shares) == len(DENSITY_EDGES) - 1
        assert sum(shares) == pytest.approx(1)
    assert found["density", "generated=4.25"] == 0.5


def test_curve_is_the_mean_over_sources(board: Board) -> None:
    human = list(range(100))
    board.cell(human, [98.5] * 100)
    board.cell(human, [0.5] * 100, "raft")
    found = values(board.play("roc", "tpr_at_1fpr", "aupr"))
    assert found["tpr_at_1fpr", ""] == found["roc", "fpr=0.01"] == 0.5
    assert found["roc", "fpr=0.9"] == 0.5
    assert found["roc", "fpr=1"] == 1
    curve = [found["roc", f"fpr={rate:g}"] for rate in FALSE_POSITIVE_RATES]
    assert found["roc", ""] == pytest.approx(np.mean(curve))
    both = [average_precision(np.array(human), np.full(100, score)) for score in (98.5, 0.5)]
    assert found["aupr", ""] == pytest.approx(np.mean(both))


def test_a_cut_to_the_levels_words_is_scored(board: Board) -> None:
    """The texts have three words: that level and any above are the whole ones."""
    board.cell([1, 3], [2, 4])
    board.cell([1, 3], [0, 2], words=1)
    board.cell([1, 3], [0, 0], attack="swap")
    board.cell([1, 3], [0, 0], "raft")
    for level, value in ((1, 0.25), (3, 0.75), (9, 0.75)):
        assert values(board.play("auroc", axis="memory_time", level=level)) == {("auroc", ""): value}
    with pytest.raises(RematchError, match="no texts were cut to 2 words"):
        board.play("auroc", axis="memory_time", level=2)


def test_a_domain_is_scored_on_its_own_cells(board: Board) -> None:
    board.cell([1, 3], [2, 4])
    board.cell([1, 3], [4, 4], domain="std")
    assert values(board.play("auroc", axis="ood", level="std"))["auroc", ""] == 1
    with pytest.raises(RematchError, match="no texts of the domain 'sea'; there are: sci, std"):
        board.play("auroc", axis="ood", level="sea")


# -- texts without a score --------------------------------------------------------------------------------------------


def test_a_pair_without_a_score_is_dropped_and_counted(board: Board) -> None:
    """Either text may lack it; the three pairs that are left are scored among themselves."""
    board.cell([1, nan, 3, 9, 2], [2, 5, nan, 4, 0])
    found = board.play("seen_auroc")
    human, llm = [1, 9, 2], [2, 4, 0]
    assert values(found)["seen_auroc", ""] == pytest.approx(roc_auc_score([0] * 3 + [1] * 3, human + llm))
    assert found.notes["pairs_without_score"] == 2


@pytest.mark.xfail(strict=True, reason="counted anew by every metric that looks at the cell")
def test_a_dropped_pair_is_counted_once(board: Board) -> None:
    board.cell([1, nan, 3], [2, 5, 0])
    assert board.play("auroc", "aupr", "roc").notes["pairs_without_score"] == 1


@pytest.mark.parametrize("metric", ["auroc", "seen_auroc", "aupr", "tpr_at_1fpr", "roc", "spread_ratio", "density"])
def test_where_no_pair_is_left_the_match_is_skipped_with_a_reason(metric: str, board: Board) -> None:
    board.cell([nan, 1, 2], [1, nan, nan])
    with pytest.raises(Skip, match="none of the 3 pairs of sci bon16 has a score for both texts"):
        board.play(metric)


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ("control_auroc", "no cell that control_auroc"),
        ("unseen_auroc", "no cell that unseen_auroc"),
        ("attacked_auroc", "no texts were attacked"),
        ("attack_drop", "no texts were attacked"),
        ("preference_accuracy", "no held-out preference pairs"),
        ("order_accuracy", "no held-out triplet has a mixed text"),
    ],
)
def test_what_the_texts_do_not_have_is_skipped_with_a_reason(metric: str, reason: str, board: Board) -> None:
    board.cell([1, 3], [2, 4])
    with pytest.raises(Skip, match=reason):
        board.play(metric)


@pytest.mark.parametrize("metric", ["dose_auroc", "dose_gain", "win_rate"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.xfail(strict=True, reason="a KeyError or a value that is not finite instead")
def test_texts_without_a_dose_are_skipped_with_a_reason(metric: str, board: Board) -> None:
    """As those of the paper's sources."""
    board.cell([1, 3], [2, 4])
    with pytest.raises(Skip):
        board.play(metric)


@pytest.mark.parametrize("metric", ["win_rate", "preference_accuracy"])
@pytest.mark.xfail(strict=True, reason="NaN wins nothing: the mean is NaN and the engine fails the whole match")
def test_wins_leave_out_texts_without_a_score(metric: str, board: Board) -> None:
    board.cell([1, 3], [0, nan], "bon1", n=1, aligned=False)
    board.cell([1, 3], [4, 4], n=16)
    board.rows("preferences", {"chosen": 2, "rejected": 1}, {"chosen": nan, "rejected": 1})
    assert values(board.play(metric))[metric, ""] == 1


@pytest.mark.xfail(
    strict=True, reason="what is left moves up: items of other numbers than other contenders' are paired"
)
def test_items_keep_their_numbers_where_a_pair_is_dropped(board: Board) -> None:
    """A contender that scores all pairs has item 2 for the third; so must one that lacks the second, or none at all."""
    board.cell([1, 1, 1], [2, nan, 0])
    found = items(board.play("seen_auroc"), "seen_auroc")
    assert found is None or len(found) == 3


@pytest.mark.xfail(strict=True, reason="different pairs are dropped, as many in each: means over different prompts")
def test_no_items_where_cells_lack_different_pairs(board: Board) -> None:
    board.cell([1, 1, 1], [2, nan, 0])
    board.cell([1, 1, 1], [nan, 2, 0], "raft")
    assert items(board.play("auroc"), "auroc") is None


@pytest.mark.xfail(strict=True, reason="a StopIteration, which a generator turns into a RuntimeError")
def test_texts_of_which_none_were_trained_on_say_so(board: Board) -> None:
    board.cell([1, 3], [2, 4], "raft")
    with pytest.raises((Skip, RematchError)):
        board.play("seen_auroc")


# -- nothing is given away --------------------------------------------------------------------------------------------


def test_labels_turned_round_turn_the_numbers_round(board: Board, task_on: Callable[..., Task], tmp_path: Path) -> None:
    """A contender that knew which texts are generated would do as well with the sides exchanged."""
    rng = np.random.default_rng(0)
    board.cell(rng.normal(size=50), rng.normal(0.5, 1, 50))
    before = values(board.play("seen_auroc"))["seen_auroc", ""]
    (cell,) = board.cells
    cell["human"], cell["llm"] = cell["llm"], cell["human"]
    assert values(board.play("seen_auroc"))["seen_auroc", ""] == pytest.approx(1 - before)


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


def test_each_distinct_text_is_scored_once(board: Board) -> None:
    board.cell([1, 3], [2, 4])
    board.cells.append(board.cells[0] | {"attack": "swap"})
    known = Known(board.scores)
    board.play("seen_auroc", "attacked_auroc", "density", contender=known)
    assert sorted(known.asked) == sorted(board.scores)


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
    flops = text_flops(detector, [row[side] for row in rows[:8] for side in ("llm", "human")])
    assert flops.trained == 3 * flops.forward
    assert triplet_flops(flops) == 13 * flops.forward
    replay = [row["text"] for row in read_rows(texts, "replay")]
    detector.fit([(row["llm"], row["mixed"]["0.5"], row["human"]) for row in rows], replay)
    assert detector.training_flops_ == 24 * triplet_flops(flops)


def test_counting_leaves_no_gradient_behind(room: Any, texts: Path) -> None:
    detector = load_detector(ReMoDetector(), room.build("reward_model")[0], None)
    text_flops(detector, [row["llm"] for row in read_rows(texts, "triplets")[:4]])
    assert all(parameter.grad is None for parameter in detector.model.parameters())


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("name", TRAINED)
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
    with pytest.raises(RematchError, match="the budget pays for 130 triplets and the base 'texts' holds 100"):
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
    bases = {name: root / name for name in ("model", "texts", "token_passes", "language_models")}
    for folder in bases.values():
        folder.mkdir()
    triplets = [{"llm": "a a a", "human": "b b b", "mixed": {"0.5": "a b a"}}] * 16
    cell = {"domain": "sci", "source": "bon16", "seen": True, "aligned": True, "attack": "none", "n": 16, "words": None}
    write_rows(bases["texts"], "triplets", triplets)
    write_rows(bases["texts"], "replay", [{"text": "c d c"}, {"text": "d c d"}] * 8)
    write_rows(bases["texts"], "rewards", [{"chosen": "c d c", "rejected": "d c d"}] * 16)
    write_rows(bases["texts"], "cells", [cell | {"human": ["b b b"] * 4, "llm": ["a a a"] * 4}])
    needs = {"texts": bases["texts"], "language_models": bases["language_models"]}
    RewardModel(epochs=0).build(BaseJob("remodetect", "smoke", "model", 0, None, needs, {}, bases["model"]))
    # To the language models "a" is the most probable word and "b" the least, of thirty.
    words = ["a"] * 40 + [f"w{i}" for i in range(28) for _ in range(3)] + ["b"]
    for name in ("seen_a", "seen_b"):
        NGram.fit([[word] for word in words], order=1).save(bases["language_models"] / name)
    passes = BaseJob("remodetect", "smoke", "token_passes", 0, None, needs, {}, bases["token_passes"])
    TokenPasses().build(passes)
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


def test_ranks_of_the_toy_are_as_said(toy: dict[str, Path]) -> None:
    stats = TokenStatistics.load(toy["token_passes"] / "tokens.safetensors")
    assert stats.rank.max() > 10
    assert stats.rank.min() == 1


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


def test_every_metric_of_the_card_is_measured_on_its_axis(room: Any, card: Any) -> None:
    """By one that is trained, and by those that are not."""
    for axis, spec in card.spec.axes.items():
        level = {"ood": "sci", "memory_time": 24, "test_time_compute": 2, "flops_matched": 1.0}.get(axis, N_TRIPLETS)
        for name in {"remodetect", "log_likelihood", "zero_shot_rm", "selector"} & set(spec.contenders):
            found = room.play(axis, name, level)
            assert {m.metric for m in found.measurements} == set(spec.metrics)
            assert all(np.isfinite(m.value) for m in found.measurements)
