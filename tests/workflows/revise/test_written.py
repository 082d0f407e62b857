"""What models write to the test questions: kept as it was, with what it cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from baselines.sampling import Sampling
from methods.revise.inference import solve
from rematch.arena import BaseJob
from rematch.errors import RematchError
from workflows.revise import written as module
from workflows.revise.data import problems_of, read_test
from workflows.revise.models import load_model
from workflows.revise.tasks import load_task
from workflows.revise.written import Writer, read_cost, read_written

FEW = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def needs(room: Any) -> dict[str, Path]:
    return {name: room.build(name)[0] for name in ("revise", "questions")}


@pytest.fixture
def write(needs: dict[str, Path], job: Callable[..., BaseJob]) -> Callable[..., Path]:
    def written(**options: Any) -> Path:
        made = job(needs)
        Writer(**{"n": 3, "sampling": FEW, **options}).build(made)
        return made.out

    return written


def test_it_is_what_the_method_alone_writes(needs: dict[str, Path], write: Callable[..., Path]) -> None:
    folder = write()
    found, cost = read_written(folder, "id"), read_cost(folder, "id")
    model, _, tokens = load_model(needs["revise"])
    model.requires_grad_(False)  # torch rounds otherwise for weights that take no gradient
    task = load_task(needs["questions"])
    prompts = [problem.prompt for problem in problems_of(read_test(needs["questions"], "id"), task)]
    alone, flops = solve(model, prompts, tokens, 3, 3, sampling=Sampling(0.7, 1.0, 6), batch_size=256)
    assert found.trajectories == alone
    assert len(prompts) * cost.of(3, 3)[1] == pytest.approx(flops.total)


def test_costs_add_up_by_trajectories_and_tries(write: Callable[..., Path]) -> None:
    folder = write()
    found, cost = read_written(folder, "id"), read_cost(folder, "id")
    count = len(found.trajectories)
    for n in (1, 2, 3):
        for tries in (1, 2, 3):
            tokens = sum(each.n_tokens(tries) for some in found.trajectories for each in some[:n])
            assert cost.of(n, tries)[0] == pytest.approx(tokens / count)
    (one, two, three), first = [cost.of(n, 1)[1] for n in (1, 2, 3)], cost.of(1, 3)[1]
    assert one < two < three
    assert three - two == pytest.approx(two - one)
    assert first >= one


def test_fewer_trajectories_and_tries_are_the_beginnings(write: Callable[..., Path]) -> None:
    whole, fewer = read_written(write(), "id"), read_written(write(n=2, tries=1), "id")
    for some, few in zip(whole.trajectories, fewer.trajectories, strict=True):
        assert [each.attempts[0].ids for each in some[:2]] == [each.attempts[0].ids for each in few]
        assert all(len(each.attempts) == 1 for each in few)


def test_other_sets_are_written_to_where_asked(write: Callable[..., Path]) -> None:
    assert len(read_written(write(n_ood=1), "ood_dense").trajectories) == 10
    with pytest.raises(RematchError, match="unknown test set 'ood_dense'; allowed: id"):
        read_written(write(), "ood_dense")


def test_the_first_stage_writes_otherwise(write: Callable[..., Path]) -> None:
    both = [read_written(write(stage=stage), "id") for stage in (None, 1)]
    assert both[0].trajectories != both[1].trajectories


def test_retrying_keeps_first_attempts(write: Callable[..., Path]) -> None:
    refined, retried = read_written(write(n=1), "id"), read_written(write(n=1, refine_mode="retry"), "id")
    for (some,), (other,) in zip(refined.trajectories, retried.trajectories, strict=True):
        assert some.attempts[0] == other.attempts[0]


def test_prompts_that_cannot_be_read_stay_in_the_set(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.problems_of

    def problems(*args: Any) -> Any:
        made = real(*args)
        object.__setattr__(made[1], "prompt", made[1].prompt * 20)
        return made

    monkeypatch.setattr(module, "problems_of", problems)
    found = read_written(write(), "id")
    assert found.statuses[:3] == ["", "too_long", ""]
    assert [len(some) for some in found.trajectories[:3]] == [3, 0, 3]
    assert len(found.trajectories) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": 2}, r"bases\.some: stage: 2; allowed: 1"),
        ({"sampling": {"n": 2}}, r"bases\.some: sampling: unknown key 'n'"),
        ({"refine_mode": "again"}, "unknown refine_mode 'again'; allowed: refine, first, retry"),
    ],
)
def test_mistakes(write: Callable[..., Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(RematchError, match=message):
        write(**options)
