"""The smoke tier of every paper, through the DAG, as CI and newcomers run it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from rematch.config import load_settings
from rematch.plan import Plan
from rematch.records import items_path, read_frame
from rematch.schema import COLUMNS, ITEM_COLUMNS

from .conftest import ROOT, offline_prefix, rematch_json, run

pytestmark = pytest.mark.slow

PAPERS = sorted(path.parent.name for path in (ROOT / "workflows").glob("*/card.yaml"))


@pytest.fixture(scope="module")
def plan(smoke_root: Path) -> Plan:
    return Plan(load_settings(smoke_root), "smoke")


def test_it_ran_without_a_network() -> None:
    """In CI, which runs as root, the namespace must have been there."""
    import os

    if os.environ.get("CI") and os.geteuid() == 0:
        assert offline_prefix()


@pytest.mark.parametrize("paper", PAPERS)
def test_every_match_was_played(plan: Plan, paper: str) -> None:
    for match in plan.matches(paper):
        rows = read_frame([plan.results / match.path], COLUMNS)
        assert set(rows["seed"]) == set(match.seeds)
        bad = rows[~rows["status"].isin(["ok", "unmatched"])]
        assert bad.empty, f"{match.cell}: {bad[['status', 'reason']].drop_duplicates().to_dict('records')}"
        assert rows["value"].map(math.isfinite).all()


@pytest.mark.parametrize("paper", PAPERS)
def test_contenders_of_a_cell_share_their_items(plan: Plan, paper: str) -> None:
    """Paired statistics need the same number of items, metric by metric, for every contender of a level and seed."""
    paths = [items_path(plan.results / match.path) for match in plan.matches(paper)]
    items = read_frame(paths, ITEM_COLUMNS)
    keys = ["axis", "level", "seed", "metric", "slice"]
    counts = items.groupby([*keys, "contender"]).size().groupby(keys).nunique()
    assert (counts == 1).all(), counts[counts > 1]


def test_smoke_gives_no_verdicts(smoke_root: Path) -> None:
    claims = rematch_json(smoke_root, "claims", "--tier", "smoke")["rows"]
    assert isinstance(claims, list)
    assert claims
    assert {row["verdict"] for row in claims} == {"not run"}


def test_pages_are_there(smoke_root: Path) -> None:
    for page in ("index", *PAPERS):
        assert (smoke_root / "reports" / "smoke" / f"{page}.html").stat().st_size > 1000


def test_nothing_is_left_to_do(smoke_root: Path) -> None:
    done = run(smoke_root, "snakemake", "--cores", "2", "smoke")
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr


def test_tables_again_from_records_without_playing(smoke_root: Path) -> None:
    """A page that was deleted is rendered again from the stored records, byte for byte, and no match is played."""
    page = smoke_root / "reports" / "smoke" / f"{PAPERS[0]}.html"
    before = page.read_bytes()
    page.unlink()
    done = run(smoke_root, "snakemake", "--cores", "2", str(page.relative_to(smoke_root)))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rule play" not in done.stdout + done.stderr
    assert page.read_bytes() == before


def test_status_reports_cost_and_overhead(smoke_root: Path) -> None:
    status = rematch_json(smoke_root, "status", "--tier", "smoke")
    assert float(status["all_jobs_cpu_s"]) > 0  # type: ignore[arg-type]
    assert all(row["to play"] == row["failed"] == row["timeout"] == 0 for row in status["rows"])  # type: ignore[attr-defined]


def test_editing_a_method_plays_its_matches_and_nothing_else(smoke_root: Path) -> None:
    """A dry run after a change of ``methods/simba/`` plans the matches of contenders that use it, and no others."""
    method = smoke_root / "methods" / "simba" / "model.py"
    before = method.read_text(encoding="utf-8")
    try:
        method.write_text(before + "\n\n# A remark.\n", encoding="utf-8")
        quiet = run(smoke_root, "snakemake", "--cores", "2", "-n", "--config", "tier=smoke", "--", "simba")
        assert quiet.returncode == 0, quiet.stderr[-2000:]
        assert "rule play" not in quiet.stdout + quiet.stderr
        method.write_text(before + "\n\nCHANGED = True\n", encoding="utf-8")
        done = run(smoke_root, "snakemake", "--cores", "2", "-n", "smoke")
    finally:
        method.write_text(before, encoding="utf-8")
    planned = {
        line.split("contender=")[1].split(",")[0]
        for line in (done.stdout + done.stderr).splitlines()
        if "wildcards:" in line and "contender=" in line
    }
    card = yaml.safe_load((smoke_root / "workflows" / "simba" / "card.yaml").read_text(encoding="utf-8"))
    using = {name for name, entry in card["contenders"].items() if entry["use"].startswith("methods.simba")}
    assert planned
    assert planned <= using
