"""What planning costs: run with ``pytest tests/benchmarks -m benchmark``.

The goals of the design: nothing to do within 3 seconds, 5,000 matches planned within 10.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rematch import plan as plan_module
from rematch import source
from rematch.config import load_settings
from rematch.plan import Plan

pytestmark = pytest.mark.benchmark

REPOSITORY = Path(__file__).resolve().parents[2]
LEVELS = [round(0.001 * n, 3) for n in range(1, 501)]  # for two contenders and five seeds: 5,000 matches


@pytest.fixture
def large(toy):
    """A card that asks for 5,000 matches, which are 1,000 jobs at the mini tier."""
    toy.card(lambda card: card["axes"]["flops_matched"].update(levels=LEVELS))
    return toy


@pytest.fixture
def large_paper(large):
    """The same at the paper tier, where every match is a job of its own: 5,000 jobs."""
    large.card(lambda card: card["tiers"].update(paper={"axes": {"flops_matched": None}, "seeds": 5}))
    return large


def test_nothing_to_do(benchmark, played_once):
    done = benchmark.pedantic(played_once.snakemake, rounds=5, iterations=1)
    assert "Nothing to be done" in done.text


DRY_RUN = ("--dry-run", "--quiet", "all", "--config")


def test_plan_of_5000_matches_through_snakemake(benchmark, large):
    done = benchmark.pedantic(large.snakemake, (*DRY_RUN, "tier=mini", "--", "toy_flops_matched"), rounds=3)
    assert done.code == 0, done.text


def test_plan_of_5000_jobs_through_snakemake(benchmark, large_paper):
    done = benchmark.pedantic(large_paper.snakemake, (*DRY_RUN, "tier=paper", "--", "toy_flops_matched"), rounds=3)
    assert done.code == 0, done.text


def test_plan_of_5000_matches(benchmark, large):
    def plan():
        found = Plan(load_settings(large.path))
        found.compute_digests()
        return sum(len(match.seeds) for match in found.matches())

    assert benchmark(plan) == 5000


@pytest.mark.parametrize("kept", [False, True], ids=["from source", "kept"])
def test_digests_of_all_papers(benchmark, kept):
    """Of this repository's own papers at the smoke tier, by a process that has read no source yet."""

    def start():
        source._facts.cache_clear()
        plan_module._cached_source.cache_clear()
        if not kept:
            source._parse.cache_clear()
            shutil.rmtree(REPOSITORY / source.FACTS, ignore_errors=True)
        return (Plan(load_settings(REPOSITORY, {"tier": "smoke"})),), {}

    benchmark.pedantic(Plan.compute_digests, setup=start, rounds=3)


def test_start_of_a_command(benchmark, toy):
    """What every rule's command costs before it reaches the warm server, were there one."""
    done = benchmark.pedantic(toy.run, ("python3", "-m", "rematch", "play", "--tier", "mini"), rounds=5)
    assert "usage" in done.text
