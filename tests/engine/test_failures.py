"""Contenders and bases that go wrong, one way each, beside others that must not notice."""

from __future__ import annotations

import pytest

WAYS = ("raise", "hang", "die", "nan", "overspend", "skip")
LIMIT_S = 4.0  # long enough for the others on a machine that is busy


@pytest.fixture(scope="module")
def troubled(played_once, tmp_path_factory):
    """Everything that can go wrong, in one run: the repository and how the run ended."""
    repository = type(played_once).fresh(tmp_path_factory.mktemp("troubled") / "toy")
    repository.add_trouble(*WAYS)
    repository.card(lambda card: card["tiers"]["mini"].update(match_limit_s=LIMIT_S, seeds=1))
    return repository, repository.snakemake("--config", "confidence=0.9", "--", "toy_flops_matched")


@pytest.mark.parametrize(
    ("way", "status", "reason"),
    [
        ("raise", "failed", "ValueError: trouble, as expected"),
        ("hang", "timeout", "over its limit of 4 s"),
        ("die", "failed", "the worker was killed by SIGKILL (out of memory?)"),
        ("nan", "failed", "accuracy is nan"),
        ("overspend", "unmatched", "FLOPs +10.0 % off the target (tolerance 2 %)"),
        ("skip", "skipped", "it does not compete at this level"),
    ],
)
def test_every_way_to_fail_is_a_row_with_its_reason(troubled, way, status, reason):
    repository, _ = troubled
    assert repository.status(f"bad_{way}") == (status, reason)


def test_the_others_finish(troubled):
    repository, _ = troubled
    assert repository.status("good") == ("ok", "")
    assert repository.status("plain") == ("ok", "")


def test_an_unmatched_contender_keeps_its_numbers(troubled):
    repository, _ = troubled
    records = repository.records()
    unmatched = records[records["status"] == "unmatched"]
    assert unmatched["value"].notna().all()
    assert unmatched["flops_ratio"].round(6).eq(1.1).all()


def test_a_failure_carries_what_it_cost_and_its_log(troubled):
    repository, _ = troubled
    records = repository.records()
    hung = records[records["contender"] == "bad_hang"]
    assert (hung["seconds"] >= LIMIT_S).all()
    assert (hung["cpu_seconds"] < LIMIT_S).all(), "it slept"
    raised = records[records["contender"] == "bad_raise"]
    for log in set(raised["log"]):
        assert (repository.path / "results/mini" / log).read_text().count("ValueError: trouble, as expected") == 1
    failed = records[records["status"].isin(["failed", "timeout", "skipped"])]
    assert (failed["metric"] == "").all()
    assert failed["value"].isna().all()
    assert set(repository.items()["contender"]) == {"good", "plain", "bad_overspend"}


def test_the_run_ends_non_zero_and_says_which_required_matches_failed(troubled):
    _, done = troubled
    assert done.code != 0
    assert "toy: 8 required matches failed" in done.text, "2 levels of 4 contenders"
    for way in ("raise", "hang", "die", "nan"):
        assert f"toy/flops_matched/bad_{way}/0.5 seed 0:" in done.text
    for contender in ("good", "plain", "bad_overspend", "bad_skip"):
        assert f"toy/flops_matched/{contender}/0.5 seed" not in done.text


def test_nothing_is_left_running(troubled):
    repository, _ = troubled
    assert not repository.processes()


def test_an_axis_that_is_not_required_may_fail(toy):
    toy.add_trouble("raise")

    def change(card):
        card["axes"]["flops_matched"]["required"] = False
        card["tiers"]["mini"]["seeds"] = 1

    toy.card(change)
    done = toy.snakemake()
    assert done.code == 0, done.text
    assert toy.status("bad_raise") == ("failed", "ValueError: trouble, as expected")


@pytest.mark.slow
def test_the_report_is_rendered_whatever_failed(troubled, tmp_path):
    repository = troubled[0].copy(tmp_path / "toy")
    done = repository.snakemake("toy")
    assert done.code != 0, "required matches failed"
    page = (repository.path / "reports/mini/toy.html").read_text(encoding="utf-8")
    assert "failed" in page
    assert "timeout" in page


def test_a_failed_base_fails_its_own_seed_and_no_other(toy):
    toy.edit("workflows/toy/arena.py", "if self.fail:", "if self.fail and job.seed == 1:")

    def change(card):
        card["bases"]["ground"]["options"] = {"fail": True}
        card["tiers"]["mini"]["seeds"] = 3

    toy.card(change)
    done = toy.snakemake()
    assert done.code != 0
    records = toy.records()
    by_seed = {seed: set(zip(rows["status"], rows["reason"], strict=True)) for seed, rows in records.groupby("seed")}
    assert by_seed[0] == by_seed[2] == {("ok", "")}
    assert by_seed[1] == {("failed", "base 'ground' failed: RuntimeError: no ground to stand on")}
    assert "4 required matches failed" in done.text


@pytest.mark.slow
def test_an_arena_that_cannot_be_imported_fails_its_matches_with_the_reason(toy):
    toy.edit("workflows/toy/arena.py", "import numpy as np", "import numpy as np\nimport no_such_package")
    toy.card(lambda card: card["tiers"]["mini"].update(seeds=1))
    done = toy.snakemake()
    assert done.code != 0
    status, reason = toy.status("good")
    assert status == "failed"
    assert "No module named 'no_such_package'" in reason
