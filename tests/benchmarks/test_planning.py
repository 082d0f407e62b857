"""What planning costs: run with ``pytest tests/benchmarks -m benchmark``.

The goals of the design: nothing to do within 3 seconds, 5,000 matches planned within 10.
"""

from __future__ import annotations

import pytest

from rematch.config import load_settings
from rematch.plan import Plan

pytestmark = pytest.mark.benchmark

LEVELS = [round(0.001 * n, 3) for n in range(1, 2501)]


@pytest.fixture
def large(toy):
    """A card that asks for 5,000 match jobs: two contenders at 2,500 levels."""
    toy.card(lambda card: card["axes"]["flops_matched"].update(levels=LEVELS))
    return toy


def test_nothing_to_do(benchmark, played_once):
    done = benchmark.pedantic(played_once.snakemake, rounds=5, iterations=1)
    assert "Nothing to be done" in done.text


def test_plan_of_5000_matches_through_snakemake(benchmark, large):
    done = benchmark.pedantic(large.snakemake, ("--dry-run", "--quiet", "all", "--", "toy_flops_matched"), rounds=3)
    assert done.code == 0, done.text


def test_plan_of_5000_matches(benchmark, large):
    def plan():
        found = Plan(load_settings(large.path))
        found.compute_digests()
        return found.matches()

    assert len(benchmark(plan)) == 5000


def test_start_of_a_command(benchmark, toy):
    """What every rule's command costs before it reaches the warm server, were there one."""
    done = benchmark.pedantic(toy.run, ("python3", "-m", "rematch", "play", "--tier", "mini"), rounds=5)
    assert "usage" in done.text
