"""Forgetting failures, so that the next run plays just those again."""

from __future__ import annotations

import json
from typing import Any

from rematch.cli.show import Shown
from rematch.errors import unknown
from rematch.plan import Plan
from rematch.play import part_of
from rematch.records import Played, read_arrow, remove_records

FAILED = ("failed", "timeout")


def forget_failures(plan: Plan, paper: str | None, *, dry_run: bool = False) -> Shown:
    """Remove failed bases and the records of failed matches; the seeds that ended well are kept for the next run."""
    if paper is not None and paper not in plan.cards:
        raise unknown("paper", paper, plan.cards, f"tier {plan.tier_name}")
    rows: list[dict[str, Any]] = []
    for base in plan.bases(paper):
        path = plan.results / base.path
        if path.is_file() and (document := json.loads(path.read_text(encoding="utf-8")))["status"] != "ok":
            rows.append({"what": base.name, "seed": base.seed_text, "status": document["status"]} | _why(document))
            if not dry_run:
                path.unlink()
    for match in plan.matches(paper):
        path = plan.results / match.path
        if not path.is_file():
            continue
        records = read_arrow(path)
        bad = {row["seed"]: row for row in records.to_pylist() if row["status"] in FAILED}
        if not bad:
            continue
        rows += [{"what": match.cell, "seed": str(s), "status": row["status"]} | _why(row) for s, row in bad.items()]
        if dry_run:
            continue
        played = Played.read(path)
        for seed in set(match.seeds) - set(bad):  # what ended well waits as a part of the next attempt
            played.of_seed(seed).write(part_of(plan, match, seed))
        remove_records(path)
    verb = "would be played again" if dry_run else "will be played again by the next run"
    lines = [f"{len(rows)} {verb}: snakemake --cores 8 --config tier={plan.tier_name} -- all"] if rows else []
    return Shown(f"Failures of tier {plan.tier_name}", rows, lines)


def _why(document: dict[str, Any]) -> dict[str, str]:
    return {"reason": document["reason"], "log": document["log"]}
