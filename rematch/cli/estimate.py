"""What would run, and what it is estimated to cost."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from rematch.cli.show import Shown, seconds
from rematch.errors import unknown
from rematch.plan import BaseRun, MatchRun, Plan


def estimate(plan: Plan, paper: str | None) -> Shown:
    """One row a base or contender: how many jobs are there, how many would run, and their core-seconds.

    A cost comes from the last time that the same thing ran, else from another job of the same base or contender, else
    from the card's ``cost_hint_s``.
    """
    if paper is not None and paper not in plan.cards:
        raise unknown("paper", paper, plan.cards, f"tier {plan.tier_name}")
    jobs: list[tuple[str, str, BaseRun | MatchRun]] = [("base", b.base, b) for b in plan.bases(paper)]
    jobs += [("match", f"{m.axis}/{m.contender}", m) for m in plan.matches(paper)]
    stale: set[BaseRun] = set()
    groups: dict[tuple[str, str, str], list[tuple[float | None, bool, int]]] = defaultdict(list)
    for kind, name, job in _in_order(plan, jobs):
        due = is_due(plan, job, stale)
        if due and isinstance(job, BaseRun):
            stale.add(job)
        seeds = 1 if isinstance(job, BaseRun) else len(job.seeds)
        groups[(kind, job.paper, name)].append((_last_cost(plan, job), due, seeds))
    rows: list[dict[str, Any]] = []
    total, unknown_cost = 0.0, 0
    for (kind, slug, name), entries in groups.items():
        known = [cost for cost, _, _ in entries if cost is not None]
        hints = plan.cards[slug].at(plan.tier_name).cost_hint_s
        hint = hints.get(name.rpartition("/")[2])
        typical = sum(known) / len(known) if known else None
        due_seeds = [(cost, seeds) for cost, due, seeds in entries if due]
        costs = [c if c is not None else typical if typical is not None else hint and hint * s for c, s in due_seeds]
        unknown_cost += sum(cost is None for cost in costs)
        due_cost = sum(cost or 0.0 for cost in costs)
        total += due_cost
        source = "measured" if known else "card" if hint else "unknown"
        rows.append(
            {
                "kind": kind, "paper": slug, "name": name, "jobs": len(entries), "to run": len(due_seeds),
                "core-seconds": round(due_cost, 1), "from": source,
            }
        )  # fmt: skip
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    due_jobs = sum(row["to run"] for row in rows)
    lines = [f"{due_jobs} jobs to run, about {seconds(total)} of one core, {seconds(total / cores)} on {cores} cores."]
    if unknown_cost:
        lines.append(f"{unknown_cost} of them have no estimate yet.")
    return Shown(f"Plan of tier {plan.tier_name}", rows, lines, {"jobs": due_jobs, "core_seconds": total})


def is_due(plan: Plan, job: BaseRun | MatchRun, stale_bases: set[BaseRun]) -> bool:
    """Whether a job is missing, or was made under another digest, or starts from a base that is."""
    if isinstance(job, BaseRun):
        needs, digest = plan.needs_of(job), plan.base_digest(job.paper, job.base)
    else:
        needs, digest = plan.bases_of(job), plan.match_digest(job.paper, job.axis, job.contender)
    return bool(stale_bases.intersection(needs)) or _digest_of(plan.results / job.path) != digest


def _in_order(plan: Plan, jobs: list[tuple[str, str, BaseRun | MatchRun]]) -> list[tuple[str, str, BaseRun | MatchRun]]:
    """Bases after what they are built from, then matches."""
    depth: dict[BaseRun, int] = {}

    def depth_of(base: BaseRun) -> int:
        if base not in depth:
            depth[base] = 1 + max((depth_of(need) for need in plan.needs_of(base)), default=0)
        return depth[base]

    return sorted(jobs, key=lambda j: depth_of(j[2]) if isinstance(j[2], BaseRun) else 10**6)


def _digest_of(path: Path) -> str | None:
    """The digest that a finished base or match was made under."""
    if not path.is_file():
        return None
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8")).get("digest")
    import pyarrow.parquet as pq

    column = pq.read_table(path, columns=["digest"], partitioning=None)["digest"]
    return column[0].as_py() if len(column) else None


def _last_cost(plan: Plan, job: BaseRun | MatchRun) -> float | None:
    """Core-seconds of the job's last run, the harness around it included."""
    path = plan.results / "logs" / f"{job.name}.job.json"
    if not path.is_file():
        return None
    document = json.loads(path.read_text(encoding="utf-8"))
    return document["work_cpu_s"] + document["overhead_cpu_s"]
