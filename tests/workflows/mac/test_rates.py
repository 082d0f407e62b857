"""The search for learning rates, at smoke sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rematch.config import load_settings
from rematch.errors import RematchError
from rematch.plan import Plan
from workflows.mac import arena, rates

ROOT = Path(__file__).resolve().parents[3]
FINETUNERS = ["uniform", "salient_spans", "camels"]
"""Those of smoke."""


def test_seeds() -> None:
    assert list(rates.seeds_of("10-12")) == [10, 11, 12]
    assert list(rates.seeds_of("3")) == [3]
    for text in ("", "a", "3-", "-3", "4-2", "1,2"):
        with pytest.raises(RematchError, match=r"--seeds: .*; give FIRST-LAST"):
            rates.seeds_of(text)


def test_who_has_a_rate() -> None:
    plans = {tier: Plan(load_settings(ROOT, {"papers": "mac", "tier": tier})) for tier in ("smoke", "mini", "paper")}
    for tier, expected in (
        ("smoke", FINETUNERS),
        ("mini", FINETUNERS),
        ("paper", ["uniform", "salient_spans", "tf_idf", "camels"]),
    ):
        plan = plans[tier]
        assert rates.fine_tuners(plan, plan.axes("mac")["data_efficiency"].contenders) == expected
    with pytest.raises(RematchError, match="--contender: unknown contender 'mac'; allowed: uniform, salient_spans"):
        rates.search(plans["mini"], [10], [0.1], ["mac"])


def test_every_fine_tuner_of_mini_has_a_rate_of_the_grid() -> None:
    plan = Plan(load_settings(ROOT, {"papers": "mac", "tier": "mini"}))
    for name in rates.fine_tuners(plan, plan.axes("mac")["data_efficiency"].contenders):
        assert plan.cards["mac"].options("contenders", name, "mini")["learning_rate"] in rates.GRID


def test_the_best_is_the_first_of_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(load_settings(ROOT, {"papers": "mac", "tier": "mini"}))
    f1 = {(0.1, 0): 0.25, (0.1, 1): 0.75, (0.2, 0): 0.5, (0.2, 1): 0.5, (0.3, 0): 0.875, (0.3, 1): 0.0}
    monkeypatch.setattr(rates, "play", lambda plan, name, seed, rate: f1[rate, seed])
    shown = rates.search(plan, [0, 1], [0.3, 0.1, 0.2], ["uniform"])
    assert shown.rows == [{"contender": "uniform", "0.1": 0.5, "0.2": 0.5, "0.3": 0.4375, "best": "0.1"}]


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, str]] = []

    class Watched(arena.Arena):
        def play(self, task: Any) -> Any:
            read.append((self.stream, f"{task.axis} {task.seed}"))
            return super().play(task)

    monkeypatch.setattr(rates, "Arena", Watched)
    monkeypatch.chdir(ROOT)
    command = ["--tier", "smoke", "--seeds", "10", "--rate", "0.01", "--rate", "0.0001", "--results", str(tmp_path)]
    done = CliRunner().invoke(rates.app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [row["contender"] for row in found["rows"]] == FINETUNERS
    assert all(0 <= row[rate] <= 1 for row in found["rows"] for rate in ("0.0001", "0.01"))
    assert {stream for stream, _ in read} == {"validation"}
    assert {where for _, where in read} == {"data_efficiency 10"}
    assert "uniform, seed 10, rate 0.0001: F1 " in done.stderr
    bases = tmp_path / "smoke" / "bases" / "mac"
    before = {path: path.stat().st_mtime_ns for path in bases.rglob("base.json")}
    assert {path.parent.name for path in before} == {"shared", "10"}
    again = CliRunner().invoke(rates.app, [*command, "--contender", "uniform"])
    assert again.exit_code == 0
    assert "The mean over the validation streams of seeds 10, tier smoke." in again.stdout
    assert {path: path.stat().st_mtime_ns for path in bases.rglob("base.json")} == before  # what is there is used
    wrong = CliRunner().invoke(rates.app, ["--seeds", "x"])
    assert (wrong.exit_code, wrong.stderr[:17]) == (1, "error: --seeds: '")
