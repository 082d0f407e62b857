"""The arena by hand: a player's answers are looked up, so that every number is known beforehand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.qa import QAPair
from rematch.arena import BaseInfo, Outcome, Task
from rematch.errors import RematchError
from workflows.mac.arena import Arena
from workflows.mac.players import Asking, Costs, Player
from workflows.mac.streams import Document, write_documents

SMALL = {"n_first": 2, "probes": [0, 1, 99], "n_timed": 2, "max_new_tokens": 3, "max_length": 32, "max_answer": 8}


class Known(Player):
    """Answers that are looked up, by question and by how many documents were read."""

    def __init__(self, task: Task, asking: Asking, counting: bool, contender: Script) -> None:
        super().__init__(task, asking, counting)
        self.script = contender
        contender.players.append(self)

    def adapt(self, documents: Sequence[Document]) -> None:
        super().adapt(documents)
        self.script.read.append([document.name for document in documents])
        self.adapt_flops += 10.0 * len(documents) if self.counting else 0.0

    def _answer(self, questions: Sequence[str], gold: Sequence[int]) -> list[str]:
        self.script.asked.append((self.n_seen, self.counting, list(zip(questions, gold, strict=True))))
        torch.ones(4, 4) @ torch.ones(4, 4)  # 128 FLOPs
        return [self.script.answers.get((q, self.n_seen), self.script.answers.get((q, None), "")) for q in questions]

    def document_costs(self, document: Document) -> Costs:
        return Costs(peak=7 + 10 * self.n_seen, saved=5, kept=3)

    def networks(self) -> Sequence[Tensor]:
        return [torch.zeros(5), torch.zeros(2, dtype=torch.float64)]

    def own_flops(self, questions: Sequence[str], gold: Sequence[int]) -> float:
        return self.adapt_flops + len(questions)

    def right_in_groups(self, documents: Sequence[Document], size: int) -> list[float]:
        assert self.n_seen == 4
        return [float(size == 2)] * len(documents)

    def attention_mass(self, questions: Sequence[str], gold: Sequence[int]) -> Tensor:
        return torch.tensor([[0.25, 0.75]]).repeat(len(questions), 1)

    @property
    def notes(self) -> dict[str, Any]:
        return {"curve": [[5, 2.0], [10, 1.5]], "train_bytes": {"": 99, "dropped=0.5": 60, "unasked=0.5": 70}}


@dataclass
class Script:
    answers: dict[tuple[str, int | None], str] = field(default_factory=dict)
    read: list[list[str]] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    players: list[Known] = field(default_factory=list)

    def player(self, task: Task, asking: Asking, counting: bool) -> Player:
        return Known(task, asking, counting, self)


DOCUMENTS = [
    Document("a", "a text", (QAPair("qa1", "Paris"), QAPair("qa2", "red car"))),
    Document("b", "b text", (QAPair("qb", "the"),)),  # normalises to nothing
    Document("c", "c text", (QAPair("qc", "Rome"),)),
    Document("d", "d text", (QAPair("qd", "Oslo"),)),
]


@pytest.fixture
def board(tmp_path: Path) -> Any:
    write_documents(tmp_path / "streams" / "main.jsonl", DOCUMENTS)
    write_documents(tmp_path / "streams" / "validation.jsonl", DOCUMENTS[2:])
    write_documents(tmp_path / "streams" / "long.jsonl", DOCUMENTS[::-1])

    def play(*metrics: str, script: Any = None, arena: dict[str, Any] | None = None, **changes: Any) -> Outcome:
        task = Task(
            paper="mac", tier="smoke", axis="data_efficiency", name="some", contender=script or Script(), level=64, seed=0,
            share=None, metrics=metrics, bases={"streams": tmp_path},
            base_info={"streams": BaseInfo(), "memory": BaseInfo(train_flops=7.0), "qa_lm": BaseInfo(train_flops=5.0)}, reference=None,
        )  # fmt: skip
        return Arena(**SMALL | (arena or {})).play(dataclasses.replace(task, **changes))

    return play


def values(outcome: Outcome) -> dict[tuple[str, str], float]:
    found = {(m.metric, m.slice): m.value for m in outcome.measurements}
    assert len(found) == len(outcome.measurements)
    return found


def test_scores_by_hand(board: Any) -> None:
    script = Script({("qa1", None): "Paris region", ("qa2", None): "car", ("qc", None): "rome", ("qd", None): "Bergen"})
    outcome = board("em_prefix", "em_strict", "f1", script=script)
    items = {m.metric: m.items for m in outcome.measurements}
    assert items["em_prefix"] == [1, 0, 1, 0]
    assert items["em_strict"] == [0, 0, 1, 0]
    assert items["f1"] == pytest.approx([2 / 3, 2 / 3, 1, 0])
    assert {name: value for (name, _), value in values(outcome).items()} == pytest.approx(
        {"em_prefix": 0.5, "em_strict": 0.25, "f1": (4 / 3 + 1) / 4}
    )
    assert outcome.samples_seen == 4
    assert outcome.train_flops == 5
    assert outcome.data_hash


def test_the_order_is_the_streams_and_what_cannot_be_scored_is_counted(board: Any) -> None:
    script = Script()
    outcome = board("f1", script=script)
    assert script.read == [["a", "b", "c", "d"]]
    assert script.asked == [(4, False, [("qa1", 0), ("qa2", 0), ("qc", 2), ("qd", 3)])]
    assert (outcome.notes["questions"], outcome.notes["unscorable"]) == (4, 1)
    assert outcome.flops != outcome.flops  # not counted where nobody asks


def test_first_documents_are_asked_again(board: Any) -> None:
    script = Script({("qa1", 2): "Paris", ("qa2", 2): "red car", ("qa1", 3): "Paris", ("qa2", 4): "red bus"})
    found = values(board("first_f1", "first_em", "f1_retention", script=script))
    assert script.read == [["a", "b"], ["c"], ["d"]]
    assert [(n, [q for q, _ in some]) for n, _, some in script.asked[:3]] == [(n, ["qa1", "qa2"]) for n in (2, 3, 4)]
    assert len(script.asked[3][2]) == 4
    expected = {"after=0": 1.0, "after=1": 0.5, "after=2": 0.25, "": 0.25}
    assert {slice: value for (metric, slice), value in found.items() if metric == "first_f1"} == expected
    assert {slice: value for (metric, slice), value in found.items() if metric == "f1_retention"} == expected
    assert found["first_em", ""] == 0
    assert found["first_em", "after=0"] == 1


def test_the_end_of_the_stream_is_always_a_probe(board: Any) -> None:
    script = Script({("qa1", None): "Paris", ("qa1", 4): ""})
    found = values(board("f1_retention", script=script, arena={"probes": [0]}))
    assert found == {("f1_retention", "after=0"): 1.0, ("f1_retention", "after=2"): 0.0, ("f1_retention", ""): 0.0}


def test_retention_that_is_undefined(board: Any) -> None:
    outcome = board("f1_retention", "f1")
    assert {found.metric for found in outcome.measurements} == {"f1"}
    assert "retention is undefined" in outcome.undefined["f1_retention"]
    with pytest.raises(RematchError, match="probes must hold 0"):
        board("f1_retention", script=Script({("qa1", None): "Paris"}), arena={"probes": [1]})


@pytest.mark.parametrize("metrics", [("seconds_per_question", "stream_flops"), ("stream_flops", "seconds_per_question")])  # fmt: skip
def test_the_streams_flops_are_the_streams_alone_and_times_are_not_counted(
    board: Any, metrics: tuple[str, ...]
) -> None:
    script = Script()
    outcome = board(*metrics, script=script)
    assert values(outcome)["stream_flops", ""] == 4 * 10 + 128
    assert [counting for _, counting, _ in script.asked] == [True, False]
    assert len(script.asked[1][2]) == 2


def test_time_to_read_is_that_of_documents_that_were_seen_before(board: Any) -> None:
    """Fine-tuning counts the FLOPs of a length when it first comes, which takes longer than the step."""
    script = Script()
    assert values(board("seconds_per_document", script=script))["seconds_per_document", ""] > 0
    assert script.read == [["a", "b"], ["a"], ["b"]]
    assert not any(player.counting for player in script.players)


def test_other_quantities(board: Any) -> None:
    metrics = (
        "attention_mass",
        "learning_curve",
        "train_bytes",
        "bytes_per_document",
        "network_bytes",
        "bytes_in_all",
        "saved_bytes",
        "kept_bytes",
        "meta_flops",
        "meta_texts",
    )
    found = values(board(*metrics))
    assert found["attention_mass", "block=1"] == 0.25
    assert found["attention_mass", "block=2"] == 0.75
    assert found["attention_mass", ""] == 0.5
    assert (found["learning_curve", "step=5"], found["learning_curve", "step=10"], found["learning_curve", ""]) == (2, 1.5, 1.5)  # fmt: skip
    # With the four documents of the stream read, and five numbers of 4 bytes and two of 8 in networks.
    assert [found[name, ""] for name in metrics[2:]] == [99, 47, 36, 83, 5, 3, 0, 0]
    assert (found["train_bytes", "dropped=0.5"], found["train_bytes", "unasked=0.5"]) == (60, 70)


def test_small_memories(board: Any) -> None:
    """Groups are as many as are full; sizes beyond the stream are left out."""
    found = {m.slice: m for m in board("em_small", arena={"small_memories": [5, 3, 2]}).measurements}
    assert {name: (m.value, len(m.items)) for name, m in found.items()} == {
        "memory=2": (1, 4), "memory=3": (0, 3), "": (0, 3),
    }  # fmt: skip
    outcome = board("em_small", "f1", arena={"small_memories": [5]})
    assert [m.metric for m in outcome.measurements] == ["f1"]
    assert outcome.undefined["em_small"] == "no group of [5] documents in a stream of 4"


@pytest.mark.parametrize("axis", ["memory_time", "ablation"])
def test_levels_that_are_lengths(board: Any, axis: str) -> None:
    script = Script()
    assert board("f1", script=script, axis=axis, level=3).samples_seen == 3
    assert script.read == [["a", "b", "c"]]
    with pytest.raises(RematchError, match=f"{axis}: level 5, and the stream 'main' has 4 documents"):
        board("f1", axis=axis, level=5)


def test_levels_that_are_streams(board: Any) -> None:
    script = Script()
    long = board("f1", script=script, axis="ood", level="long")
    assert script.read == [["d", "c", "b", "a"]]
    assert long.data_hash != board("f1", axis="ood", level="main").data_hash
    with pytest.raises(RematchError, match="unknown stream 'lomg'; allowed: long, main, validation"):
        board("f1", axis="ood", level="lomg")


def test_the_validation_stream_is_asked_for_by_name_and_never_by_the_card(board: Any, card: Any) -> None:
    script = Script()
    board("f1", script=script, arena={"stream": "validation"})
    assert script.read == [["c", "d"]]
    for tier, entry in card.spec.tiers.items():
        assert entry.arena.get("stream", "main") == "main", tier
    assert "validation" not in card.spec.axes["ood"].levels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": "wide"}, "mac: arena: unknown beams 'wide'; allowed: greedy, official"),
        ({"stream": "long"}, "mac: arena: unknown stream 'long'; allowed: main, validation"),
    ],
)
def test_mistakes(board: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RematchError, match=message):
        board("f1", arena=options)


# -- with models ------------------------------------------------------------------------------------------------------


def test_budgets(room: Any) -> None:
    """A fine-tuner meets a share of what MAC's networks spend, but for a step; MAC is as it is."""
    task = room.task("flops_matched", "uniform", 3.0, metrics=("f1",))
    outcome = room.arena().play(task)
    spent = json.loads((task.reference / "memory.json").read_text())["stream_flops"]
    assert outcome.flops_target == 3 * sum(spent.values())
    assert outcome.flops > outcome.samples_seen > 0
    fixed = dataclasses.replace(room.task("flops_matched", "mac", 3.0, metrics=("f1",)), share=None)
    outcome = room.arena().play(fixed)
    assert outcome.flops_target is None
    assert outcome.flops == sum(spent.values())
    grouped = dataclasses.replace(fixed, contender=dataclasses.replace(fixed.contender, group_size=4))
    assert room.arena().play(grouped).flops > 1.1 * outcome.flops  # counted with the contender's own options


def test_all_answer_the_same_questions(room: Any) -> None:
    found = [room.arena().play(room.task("ablation", name, 12, metrics=("f1",))) for name in ("mac", "mac_gold")]
    assert len({outcome.data_hash for outcome in found}) == 1
    assert {len(outcome.measurements[0].items) for outcome in found} == {36}
    even = room.arena().play(room.task("ablation", "even_attention", 8, metrics=("attention_mass",)))
    assert values(even)["attention_mass", ""] == pytest.approx(1 / 8)
