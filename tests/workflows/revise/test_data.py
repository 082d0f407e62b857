"""The base of questions: what is written comes back, and what is wrong is said before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rematch.arena import BaseJob
from rematch.errors import RematchError
from workflows.revise.addition import Addition
from workflows.revise.data import TRAIN, VALIDATION, Questions, hash_of, read_problems, read_test, sets_of
from workflows.revise.tail_sums import TailSums
from workflows.revise.tasks import load_task

SIZES = {"n_train": 8, "n_validation": 4, "n_test": 6, "n_ood": 5}


@pytest.mark.parametrize(
    ("options", "task", "sets"),
    [
        ({"task": {"columns": 4, "most": 2}}, TailSums(4, most=2), ["id", "ood_dense"]),
        ({"source": "addition", "task": {"lengths": [3], "long": [], "carry": [4]}},
         Addition(lengths=(3,), long=(), carry=(4,)), ["id", "ood_carry"]),
        ({"source": "addition"}, Addition(), ["id", "ood_carry", "ood_long"]),
    ],
)  # fmt: skip
def test_questions_come_back(job: Callable[..., BaseJob], options: dict[str, Any], task: Any, sets: list[str]) -> None:
    made = job(seed=3)
    info = Questions(**SIZES, **options).build(made)
    assert load_task(made.out) == task
    assert sets_of(made.out) == sets
    assert read_test(made.out, "id") == task.questions(6, "id", "test", 3)
    assert read_test(made.out, sets[1]) == task.questions(5, sets[1], "test", 3)
    assert (info.samples_seen, info.data_hash) == (8, hash_of(made.out, "id"))
    whole = read_problems(made.out / TRAIN, task)
    assert [len(whole), len(read_problems(made.out / VALIDATION, task))] == [8, 4]
    assert read_problems(made.out / TRAIN, task, 3) == whole[:3]


def test_seeds_have_their_own_questions(job: Callable[..., BaseJob]) -> None:
    hashes = []
    for seed in (0, 1, 0):
        made = job(seed=seed)
        hashes.append(Questions(**SIZES).build(made).data_hash)
    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_train": None}, r"bases\.some: n_train: how many questions to generate must be given"),
        ({"task": {"column": 3}}, r"bases\.some: task: unknown key 'column'; allowed: .*Did you mean 'columns'"),
        ({"task": {"neutral": 2.0}}, "neutral is a probability"),
        (
            {"source": "gsm8"},
            r"bases\.some: unknown source 'gsm8'; allowed: tail_sums, addition, .*Did you mean 'gsm8k'",
        ),
        (
            {"source": "gsm8k", "task": {"columns": 3}},
            r"task: options of tail_sums, addition, and the source is 'gsm8k'",
        ),
        ({"others": ["gsm8k"]}, r"bases\.some: others: data sets, and the source is 'tail_sums'"),
    ],
)
def test_mistakes_name_base_and_key(job: Callable[..., BaseJob], options: dict[str, Any], message: str) -> None:
    with pytest.raises(RematchError, match=message):
        Questions(**(SIZES | options)).build(job())


def test_what_there_is_not(job: Callable[..., BaseJob], tmp_path: Path) -> None:
    made = job()
    Questions(**SIZES).build(made)
    with pytest.raises(RematchError, match="unknown test set 'ood_long'; allowed: id, ood_dense"):
        read_test(made.out, "ood_long")
    with pytest.raises(RematchError, match=r"here: 9; allowed: 1 to 8"):
        read_problems(made.out / TRAIN, TailSums(), 9, "here")
    (made.out / "task.json").write_text('{"kind": "chess", "options": {}}')
    with pytest.raises(RematchError, match="unknown 'chess'; allowed: tail_sums, addition, text"):
        load_task(made.out)
