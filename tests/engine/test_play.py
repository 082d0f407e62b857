"""One job: what the engine accepts from an arena, and what it keeps when something gives way half-way."""

from __future__ import annotations

import json
import math
import shutil
import sys

import pyarrow.parquet as pq
import pytest

from rematch.arena import Measurement, Outcome
from rematch.card_models import Metric
from rematch.config import load_settings
from rematch.plan import Plan
from rematch.play import _common, _one_line, _problem, _rows

PLAY = ("python3", "-m", "rematch", "play", "--tier", "mini", "toy", "flops_matched", "good", "0.5", "0-4")
RECORDS = "results/mini/records/toy/flops_matched/good/0.5/0-4.parquet"
LINEAR = Metric(label="Accuracy", better="higher")
LOG = Metric(label="Perplexity", better="lower", scale="log")


@pytest.fixture
def grounded(played_once, tmp_path):
    """Bases are built, nothing is played."""
    repository = played_once.copy(tmp_path / "toy")
    shutil.rmtree(repository.path / "results/mini/records")
    return repository


# -- what comes back from an arena ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measurement", "metric", "problem"),
    [
        (Measurement("m", 0.5, items=[0.25, 0.75]), LINEAR, None),
        (Measurement("m", 0.5), LINEAR, None),
        (Measurement("m", math.exp(2.0), items=[1.0, 3.0]), LOG, None),
        (Measurement("m", math.nan), LINEAR, "m is nan"),
        (Measurement("m", math.inf, "half=1"), LINEAR, "m half=1 is inf"),
        (Measurement("m", 0.0), LOG, "m is 0; a metric on a log scale is positive"),
        (Measurement("m", 0.5, items=[]), LINEAR, "m has no items"),
        (
            Measurement("m", 0.5, items=[0.25, 0.76]), LINEAR,
            "m: the items' mean 0.505 is not the value (0.5 on the scale of the analysis)",
        ),
        (
            Measurement("m", 2.0, items=[2.0]), LOG,
            "m: the items' mean 2 is not the value (0.693147 on the scale of the analysis)",
        ),
    ],
)  # fmt: skip
def test_a_measurement_that_contradicts_itself(measurement, metric, problem):
    assert _problem(measurement, metric) == problem


def outcome(*measurements, **values):
    return Outcome(measurements, **({"flops": 500.0, "flops_target": 500.0} | values))


ACCURACY, PERPLEXITY = Measurement("accuracy", 0.5), Measurement("perplexity", 2.0)


@pytest.mark.parametrize(
    ("found", "status", "reason"),
    [
        (outcome(ACCURACY, PERPLEXITY), "ok", ""),
        (outcome(ACCURACY), "failed", "the arena did not measure perplexity"),
        (
            outcome(ACCURACY, PERPLEXITY, Measurement("f1", 1.0)), "failed",
            "the arena measured 'f1', which the axis does not ask for",
        ),
        (outcome(ACCURACY, PERPLEXITY, flops=511.0), "unmatched", "FLOPs +2.2 % off the target (tolerance 2 %)"),
        (outcome(ACCURACY, PERPLEXITY, flops=489.0), "unmatched", "FLOPs -2.2 % off the target (tolerance 2 %)"),
        (outcome(ACCURACY, PERPLEXITY, flops=509.0), "ok", ""),
        (
            outcome(ACCURACY, PERPLEXITY, flops=math.nan), "failed",
            "the axis sets a FLOPs budget and the arena measured no FLOPs",
        ),
        (
            outcome(ACCURACY, PERPLEXITY, flops_target=None), "failed",
            "the axis sets a FLOPs budget and the arena measured no FLOPs",
        ),
    ],
)  # fmt: skip
def test_an_outcome_is_checked_against_what_the_axis_asked_for(toy, found, status, reason):
    plan = Plan(load_settings(toy.path))
    match = plan.matches()[0]
    rows, items = _rows(plan, match, _common(plan, match, 0, "a-run"), found)
    assert {(row["status"], row["reason"]) for row in rows} == {(status, reason)}
    assert items == []
    if status != "failed":
        assert [row["metric"] for row in rows] == ["accuracy", "perplexity"]
        assert rows[0]["flops_ratio"] == found.flops / 500


def test_a_contender_that_a_budget_leaves_as_it_is_has_no_target(toy):
    toy.card(lambda card: card["axes"]["flops_matched"]["budget"].update(fixed=["good"]))
    plan = Plan(load_settings(toy.path))
    for match in plan.matches():
        found = outcome(ACCURACY, PERPLEXITY, flops=700.0, flops_target=None)
        rows, _ = _rows(plan, match, _common(plan, match, 0, "a-run"), found)
        assert {row["status"] for row in rows} == {"ok" if match.contender == "good" else "failed"}
        if match.contender == "good":
            assert rows[0]["flops"] == 700
            assert math.isnan(rows[0]["flops_ratio"])


def test_the_arena_is_told_no_share_of_a_fixed_contender(grounded):
    grounded.card(lambda card: card["axes"]["flops_matched"]["budget"].update(fixed=["good"]))
    grounded.snakemake()
    rows = grounded.records()
    assert set(rows["status"]) == {"ok"}
    ratios = rows.groupby("contender")["flops_ratio"]
    assert ratios.count().to_dict() == {"good": 0, "plain": len(rows) // 2}
    assert set(rows[rows["contender"] == "good"]["flops"]) == {1000.0}


def test_a_metric_may_be_of_some_contenders_only(toy):
    toy.card(lambda card: card["metrics"]["perplexity"].update(of=["plain"]))
    plan = Plan(load_settings(toy.path))
    reasons = {}
    for match in plan.matches():
        for name, found in (("one", outcome(ACCURACY)), ("both", outcome(ACCURACY, PERPLEXITY))):
            rows, _ = _rows(plan, match, _common(plan, match, 0, "a-run"), found)
            reasons[match.contender, name] = rows[0]["reason"]
    assert reasons == {
        ("good", "one"): "", ("plain", "both"): "", ("plain", "one"): "the arena did not measure perplexity",
        ("good", "both"): "the arena measured 'perplexity', which the axis does not ask for",
    }  # fmt: skip


def test_items_carry_their_position(toy):
    plan = Plan(load_settings(toy.path))
    match = plan.matches()[0]
    found = outcome(Measurement("accuracy", 0.5, "half=0", items=[0.2, 0.8]), PERPLEXITY)
    _, items = _rows(plan, match, _common(plan, match, 3, "a-run"), found)
    assert [(i["seed"], i["metric"], i["slice"], i["item"], i["score"]) for i in items] == [
        (3, "accuracy", "half=0", 0, 0.2), (3, "accuracy", "half=0", 1, 0.8),
    ]  # fmt: skip


def test_a_reason_is_one_line_of_bounded_length():
    assert _one_line("two\n  lines") == "two lines"
    assert len(_one_line("x" * 1000)) == 300


# -- seeds that are kept --------------------------------------------------------------------------------------------------


def test_only_the_seeds_that_are_missing_are_played(grounded):
    assert grounded.run(*PLAY, REMATCH_RUN="first").code == 0
    (grounded.path / RECORDS).rename((grounded.path / RECORDS).with_name("0-1.parquet"))
    items = (grounded.path / RECORDS).with_suffix(".items.parquet")
    items.rename(items.with_name("0-1.items.parquet"))
    assert grounded.run(*PLAY[:-1], "0-6", REMATCH_RUN="second").code == 0
    rows = pq.read_table((grounded.path / RECORDS).with_name("0-6.parquet"), partitioning=None).to_pylist()
    assert {row["seed"]: row["run"] for row in rows if row["seed"] < 5} == dict.fromkeys(range(5), "first")


def test_half_a_part_is_played_again(grounded):
    parts = grounded.path / "results/mini/parts/toy/flops_matched/good/0.5/0-4"
    parts.mkdir(parents=True, exist_ok=True)
    (parts / "0.parquet").write_bytes(b"PAR1 and no more")
    (parts / ".1.parquet.4711.tmp").write_bytes(b"half")
    done = grounded.run(*PLAY)
    assert done.code == 0, done.text
    assert set(grounded.records()["status"]) == {"ok"}
    assert pq.read_table(parts / "0.parquet", partitioning=None).num_rows


def test_records_that_snakemake_never_accepted_lose_no_seed(grounded):
    """A run killed right after a job's last write: the next one deletes its output as incomplete, and asks again."""
    assert grounded.run(*PLAY, REMATCH_RUN="first").code == 0
    (grounded.path / RECORDS).unlink()
    (grounded.path / RECORDS).with_suffix(".items.parquet").unlink()
    assert grounded.run(*PLAY, REMATCH_RUN="second").code == 0
    assert set(grounded.records()["run"]) == {"first"}


def test_a_failure_is_not_kept_and_a_success_is(grounded, tmp_path):
    grounded.add_trouble("raise")
    command = [*PLAY[:-3], "bad_raise", "0.5", "0-1"]
    assert grounded.run(*command, REMATCH_RUN="first").code == 0
    assert grounded.status("bad_raise")[0] == "failed"
    (tmp_path / "calm").touch()
    assert grounded.run(*command, REMATCH_RUN="second", TOY_CALM=str(tmp_path / "calm")).code == 0
    assert grounded.status("bad_raise") == ("ok", "")
    assert set(grounded.records()["run"]) == {"second"}


# -- a disk that fills up while a match is played -------------------------------------------------------------------------

# Runs the command with a disk that is full from the third record of a seed on.
FULL_DISK = """
import errno, os, sys
real, written = os.replace, []

def replace(source, target):
    if target.name.endswith("parquet") and target.parent.name == "0-4" and int(target.name.split(".")[0]) >= 2:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    real(source, target)

os.replace = replace
from rematch.jobs import run_job
sys.exit(run_job(sys.argv[1:]))
"""


def test_a_disk_that_fills_up_is_one_line_and_keeps_what_is_finished(grounded):
    done = grounded.run(sys.executable, "-c", FULL_DISK, *PLAY[3:], REMATCH_RUN="first")
    assert done.code != 0
    (line,) = done.text.splitlines()
    assert line.startswith("rematch: ")
    assert line.endswith("the disk is full; free some space and run again: what is finished is kept")
    assert not (grounded.path / RECORDS).exists()

    assert grounded.run(*PLAY, REMATCH_RUN="second").code == 0
    runs = grounded.records().groupby("seed")["run"].unique()
    assert [list(runs[seed]) for seed in range(5)] == [["first"]] * 2 + [["second"]] * 3


def test_an_unbuilt_base_is_named(grounded):
    shutil.rmtree(grounded.path / "results/mini/bases")
    assert grounded.run(*PLAY).code == 0
    first = grounded.records().iloc[0]
    assert first["status"] == "failed"
    assert "bases/toy/ground/any/0/base.json: not built yet; run: " in first["reason"]


def test_a_base_is_whole_or_not_there(grounded):
    """A base that failed keeps nothing but the reason; building it again replaces it in one step."""
    folder = grounded.path / "results/mini/bases/toy/ground/any/0"
    command = ("python3", "-m", "rematch", "base", "--tier", "mini", "toy", "ground", "any", "0")
    grounded.edit("workflows/toy/arena.py", "value = float", "(job.out / 'half').touch(); value = 1 / 0 + float")
    assert grounded.run(*command).code == 0
    document = json.loads((folder / "base.json").read_text())
    assert (document["status"], document["reason"]) == ("failed", "ZeroDivisionError: division by zero")
    grounded.edit("workflows/toy/arena.py", "value = 1 / 0 + float", "value = float")
    assert grounded.run(*command).code == 0
    assert json.loads((folder / "base.json").read_text())["status"] == "ok"
    assert sorted(path.name for path in folder.iterdir()) == ["base.json", "ground.json", "half"]
    assert not list(folder.parent.glob("*.building-*"))
