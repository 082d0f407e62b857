"""The commands for people, on the toy paper."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rematch.cli import app
from rematch.jobs import JOBS
from tests.conftest import Repository

COMMANDS = ("doctor", "plan", "status", "claims", "audit", "retry-failed", "new", "compare", "mirror", "schemas")


def told(repository: Repository, *arguments: str, code: int = 0, **environment: str) -> str:
    done = repository.run("rematch", *arguments, **environment)
    assert done.code == code, done.text
    return done.text


def as_json(repository: Repository, *arguments: str, code: int = 0) -> dict[str, Any]:
    return json.loads(told(repository, *arguments, "--json", code=code))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    text = CliRunner().invoke(app, [command, "--help"]).output
    assert "Usage" in text
    assert len(text) > 200


def test_help_lists_every_command(toy: Repository) -> None:
    text = told(toy, "--help")
    assert all(command in text for command in (*COMMANDS, *JOBS))


def test_what_rules_call_explains_itself(toy: Repository) -> None:
    assert "one seed (3) or a range (0-4)" in told(toy, "play", "--help")


def test_doctor_names_the_tiers(toy: Repository) -> None:
    found = as_json(toy, "doctor")
    assert {"smoke", "mini"} <= set(found["tiers"])
    assert {"cores", "memory", "GPU", "triton", "hub_mirror"} <= {row["what"] for row in found["rows"]}


def test_plan_before_and_after(toy: Repository, played_once: Repository) -> None:
    before, after = as_json(toy, "plan"), as_json(played_once, "plan")
    assert before["jobs"] == 5 + 4  # a ground for each seed, two contenders at two levels
    assert after["jobs"] == 0
    assert {row["from"] for row in after["rows"]} == {"measured"}


def test_plan_takes_unmeasured_costs_from_the_card(toy: Repository) -> None:
    toy.card(lambda card: card["tiers"]["mini"].update(cost_hint_s={"good": 2.0, "plain": 1.0, "ground": 0.5}))
    plan = as_json(toy, "plan")
    assert plan["core_seconds"] == pytest.approx(5 * 0.5 + 2 * 5 * (2.0 + 1.0))


def test_plan_sees_what_a_change_makes_due(played: Repository) -> None:
    played.edit("methods/good.py", "gain: float = 0.1", "gain: float = 0.2")
    due = {row["name"]: row["to run"] for row in as_json(played, "plan")["rows"]}
    assert due == {"ground": 0, "flops_matched/good": 2, "flops_matched/plain": 0}


def test_status(played_once: Repository) -> None:
    status = as_json(played_once, "status")
    (row,) = status["rows"]
    assert (row["matches"], row["ok"], row["bases"]) == (20, 20, "5/5")
    assert status["cpu_s"] == pytest.approx(status["work_cpu_s"] + status["overhead_cpu_s"])
    assert 0 < status["work_cpu_s"] < status["cpu_s"]


def test_audit_leads_to_the_match(played_once: Repository) -> None:
    audit = as_json(played_once, "audit", "toy/flops_matched/good/0.5")
    assert [row["seed"] for row in audit["rows"]] == [0, 1, 2, 3, 4]
    row = audit["rows"][0]
    assert row["data"] == "d" * 16
    assert row["FLOPs"] == 500
    assert row["values"]["accuracy"] > 0.6
    assert (played_once.path / "results" / "mini" / row["log"]).is_file()
    assert (played_once.path / "results" / "mini" / "runs" / row["run"] / "provenance.json").is_file()


def test_audit_of_a_part_shows_everything_below(played_once: Repository) -> None:
    assert len(as_json(played_once, "audit", "toy/flops_matched")["rows"]) == 20


def test_audit_suggests_the_nearest_cell(played_once: Repository) -> None:
    text = told(played_once, "audit", "toy/flops_matched/god", code=1)
    assert "Did you mean 'toy/flops_matched/good'?" in text


@pytest.mark.slow
def test_retry_failed_plays_just_the_failures_again(played: Repository) -> None:
    played.add_trouble("raise")
    assert played.snakemake().code != 0
    dry = as_json(played, "retry-failed", "--dry-run")
    assert {row["what"].split("/")[2] for row in dry["rows"]} == {"bad_raise"}
    assert len(dry["rows"]) == 10
    assert len(as_json(played, "retry-failed")["rows"]) == 10
    (played.path / "calm").touch()
    again = played.snakemake()
    assert again.code == 0, again.text
    assert again.played() == {"bad_raise"}
    assert not as_json(played, "retry-failed")["rows"]


@pytest.mark.slow
def test_retry_failed_keeps_the_seeds_that_ended_well(toy: Repository) -> None:
    """One seed of a job failed: only that one is played again, the others keep the run that measured them."""
    toy.edit(
        "workflows/toy/arena.py",
        "        while task.seed and HELD.exists():\n            time.sleep(0.02)",
        '        if task.name == "good" and task.seed == 3 and not __import__("os").path.exists("calm"):\n'
        '            raise ValueError("only seed 3")',
    )
    assert toy.snakemake().code != 0
    assert {(r["what"], r["seed"]) for r in as_json(toy, "retry-failed")["rows"]} == {
        ("toy/flops_matched/good/0.5", "3"), ("toy/flops_matched/good/1.0", "3"),
    }  # fmt: skip
    (toy.path / "calm").touch()
    again = toy.snakemake()
    assert again.code == 0, again.text
    records = toy.records()
    runs = records[records["contender"] == "good"].groupby("seed")["run"].unique()
    assert runs[3] != runs[0]
    assert all(list(runs[seed]) == list(runs[0]) for seed in (1, 2, 4))


@pytest.mark.slow
def test_retry_failed_builds_failed_bases_again(toy: Repository) -> None:
    toy.card(lambda card: card["bases"]["ground"].update(options={"fail": True}))
    assert toy.snakemake().code != 0
    rows = as_json(toy, "retry-failed")["rows"]
    assert sum(row["what"].startswith("bases/") for row in rows) == 5
    toy.card(lambda card: card["bases"]["ground"].update(options={"fail": False}))
    assert toy.snakemake().code == 0


def test_compare(played_once: Repository, played: Repository) -> None:
    same = as_json(played, "compare", "results/mini", str(played_once.path / "results" / "mini"))
    assert not same["rows"]
    played.edit("methods/good.py", "gain: float = 0.1", "gain: float = 0.2")
    assert played.snakemake().code == 0
    moved = as_json(played, "compare", str(played_once.path / "results" / "mini"), "results/mini", code=1)
    assert {row["cell"].split("/")[2] for row in moved["rows"]} == {"good"}
    accuracy = [row["b - a"] for row in moved["rows"] if row["metric"] == "accuracy"]
    assert accuracy == pytest.approx([0.1] * 10)


def test_compare_of_nothing_says_so(toy: Repository) -> None:
    assert "give a tier's results folder" in told(toy, "compare", "results/mini", "results/mini", code=1)


@pytest.mark.slow
def test_a_new_paper_plays_as_it_is_and_passes_its_own_tests(toy: Repository) -> None:
    told(toy, "new", "paper", "tails")
    entry = told(toy, "new", "method", "median", "--paper", "tails")
    assert 'use: "methods.median:Median"' in entry
    path = toy.path / "workflows" / "tails" / "card.yaml"
    card = yaml.safe_load(path.read_text(encoding="utf-8"))
    block = entry.split("card.yaml:\n\n")[1].split("\n\n2.")[0]
    card["contenders"] |= yaml.safe_load(block)
    card["axes"]["data_efficiency"]["contenders"].append("median")
    path.write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")
    done = toy.snakemake("tails_data_efficiency")
    assert done.code == 0, done.text
    assert done.played() == {"tails", "plain", "median"}
    tests = toy.run("python", "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider",
                    "tests/workflows/test_tails.py", "tests/methods/test_median.py", PYTHONPATH=".")  # fmt: skip
    assert tests.code == 0, tests.text


def test_scaffolds_never_overwrite(toy: Repository) -> None:
    told(toy, "new", "paper", "tails")
    assert "there is a paper 'tails' already" in told(toy, "new", "paper", "tails", code=1)
    assert "exists already" in told(toy, "new", "method", "tails", "--paper", "tails", code=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("new", "method", "Bad-Name", "--paper", "toy"), "lower case letters"),
        (("new", "method", "fine"), "--paper is needed"),
        (("new", "method", "fine", "--paper", "nobody"), "unknown paper 'nobody'; allowed: toy"),
        (("new", "method", "fine", "--paper", "toy"), "offers no scaffold"),
        (("plan", "--tier", "mni"), "Did you mean 'mini'?"),
        (("plan", "--paper", "toi"), "Did you mean 'toy'?"),
        (
            ("play", "toy", "flops_matched", "good", "0.7", "0-4", "--tier", "mini"),
            "unknown level '0.7'; allowed: 0.5, 1.0",
        ),
        (
            ("play", "toy", "flops_matched", "good", "0.5", "4-0", "--tier", "mini"),
            "must be one seed (3) or a range (0-4)",
        ),
    ],
)
def test_mistakes_are_one_line(toy: Repository, arguments: tuple[str, ...], message: str) -> None:
    text = told(toy, *arguments, code=1)
    assert message in text
    assert "Traceback" not in text
    assert len(text.strip().splitlines()) == 1
