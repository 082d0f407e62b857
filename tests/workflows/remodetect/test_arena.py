"""The arena by hand: a contender's scores are looked up, so that every number is known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rematch.arena import Outcome, Task
from rematch.errors import RematchError
from rematch.play import Skip
from rematch.source import imported_modules
from workflows.remodetect.arena import Arena
from workflows.remodetect.evaluation import DENSITY_EDGES, FALSE_POSITIVE_RATES, average_precision
from workflows.remodetect.texts import write_rows

Value = dict[tuple[str, str], float]
nan = float("nan")
ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Known:
    """A contender whose scores are looked up."""

    scores: dict[str, float]
    asked: list[str] = field(default_factory=list)

    def score(self, texts: Sequence[str]) -> np.ndarray:
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
    board.cell([1, 3], [4, 2])
    board.cell([1], [5], "lm_b")
    board.cell([1, 1], [0, 0], "raft")
    board.cell([1], [9], "bon64", n=64, dose_only=True)
    board.cell([1], [0], "bon1", aligned=False, n=1)
    board.cell([1], [0], attack="swap")
    board.cell([1], [0], words=8)
    found = board.play("auroc")
    assert values(found) == pytest.approx({
        ("auroc", ""): 1.75 / 3, ("auroc", "source=bon16"): 0.75, ("auroc", "source=lm_b"): 1,
        ("auroc", "source=raft"): 0,
    })  # fmt: skip
    # The first pair: 4 is above both human texts, 1 below both generated ones; the second: half, half.
    assert items(found, "auroc", "source=bon16") == [1.25, 0.25]
    assert items(found, "auroc") is None  # there are not as many items in each


def test_items_of_the_mean_are_those_of_its_prompts(board: Board) -> None:
    board.cell([1, 3], [4, 2])
    board.cell([1, 3], [2, 0], "raft")
    assert items(board.play("auroc"), "auroc") == [1.0, 0.0]


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
    board.cell([1, 3], [4, 2], "raft")
    board.cell([1, 3], [4, 2], "raft", domain="std")
    board.cell([1, 3], [0, 0])
    assert items(board.play("unseen_auroc"), "unseen_auroc") is None
    found = board.play("unseen_auroc", axis="ood", level="std")
    assert items(found, "unseen_auroc") == [1.25, 0.25]


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
    assert items(found, "dose_gain") == [0.75, 0.75]
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
def test_texts_without_a_dose_are_skipped_with_a_reason(metric: str, board: Board) -> None:
    """As those of the paper's sources."""
    board.cell([1, 3], [2, 4])
    with pytest.raises(Skip):
        board.play(metric)


@pytest.mark.parametrize("metric", ["win_rate", "preference_accuracy"])
def test_wins_leave_out_texts_without_a_score(metric: str, board: Board) -> None:
    board.cell([1, 3], [0, nan], "bon1", n=1, aligned=False)
    board.cell([1, 3], [4, 4], n=16)
    board.rows("preferences", {"chosen": 2, "rejected": 1}, {"chosen": nan, "rejected": 1})
    assert values(board.play(metric))[metric, ""] == 1


def test_items_keep_their_numbers_where_a_pair_is_dropped(board: Board) -> None:
    """A contender that scores all pairs has item 2 for the third; so must one that lacks the second, or none at all."""
    board.cell([1, 1, 1], [2, nan, 0])
    found = items(board.play("seen_auroc"), "seen_auroc")
    assert found is None or len(found) == 3


def test_no_items_where_cells_lack_different_pairs(board: Board) -> None:
    board.cell([1, 1, 1], [2, nan, 0])
    board.cell([1, 1, 1], [nan, 2, 0], "raft")
    assert items(board.play("auroc"), "auroc") is None


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


def test_each_distinct_text_is_scored_once(board: Board) -> None:
    board.cell([1, 3], [2, 4])
    board.cells.append(board.cells[0] | {"attack": "swap"})
    known = Known(board.scores)
    board.play("seen_auroc", "attacked_auroc", "density", contender=known)
    assert sorted(known.asked) == sorted(board.scores)


@pytest.mark.parametrize(
    "module", ["workflows.remodetect.arena", "workflows.remodetect.writing", "workflows.remodetect.supervised"]
)
def test_no_match_but_remodetects_depends_on_its_loss(module: str) -> None:
    """Or editing it would play every baseline again."""
    found = imported_modules(ROOT, (module,))
    assert not {name for name in found if name.startswith(("methods.remodetect.loss", "methods.remodetect.detector"))}
    assert "methods.remodetect.loss" in imported_modules(ROOT, ("workflows.remodetect.trained",))
