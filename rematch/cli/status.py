"""How far a tier has come, and what it has cost."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rematch.cli.show import Shown, seconds
from rematch.plan import Plan
from rematch.provenance import read_accounts
from rematch.records import read_arrow
from rematch.results import job_costs


def progress(plan: Plan) -> Shown:
    """One row a paper with its matches by status; then the cost of the last run that has an account."""
    rows: list[dict[str, Any]] = []
    for paper in plan.cards:
        matches = plan.matches(paper)
        states: Counter[str] = Counter()
        for match in matches:
            path = plan.results / match.path
            if not path.is_file():
                states["to play"] += len(match.seeds)
                continue
            table = read_arrow(path).select(["seed", "status"]).to_pylist()
            states.update({row["seed"]: row["status"] for row in table}.values())
        built = sum((plan.results / base.path).is_file() for base in plan.bases(paper))
        rows.append(
            {"paper": paper, "bases": f"{built}/{len(plan.bases(paper))}", "matches": sum(states.values())}
            | {name: states[name] for name in ("ok", "unmatched", "skipped", "failed", "timeout", "to play")}
        )
    lines, extra = [], {}
    accounts = read_accounts(plan.results)
    costs = [job_costs(plan, paper) for paper in plan.cards]
    if accounts:
        run, account = list(accounts.items())[-1]
        work = sum(float(frame.loc[frame["run"] == run, "work_cpu_s"].sum()) for frame in costs)
        total = account["cpu_s"]
        overhead = total - work
        extra = {
            "run": run,
            "cpu_s": total,
            "work_cpu_s": work,
            "overhead_cpu_s": overhead,
            "wall_s": account["wall_s"],
        }
        lines.append(
            f"Last run {run}: {seconds(total)} of CPU in {seconds(account['wall_s'])}; the harness itself (start, import, "
            f"hashing, rendering) took {seconds(overhead)}, {100 * overhead / total:.1f} %."
        )
    everything = sum(float(frame["work_cpu_s"].sum() + frame["overhead_cpu_s"].sum()) for frame in costs)
    lines.append(f"All jobs behind the present results together: {seconds(everything)} of CPU.")
    lines.append(f"Report: {plan.reports / 'index.html'}")
    return Shown(f"Tier {plan.tier_name}", rows, lines, extra | {"all_jobs_cpu_s": everything})
