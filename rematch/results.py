"""From records to verdicts and pages: what the rules ``judge``, ``page``, ``index`` and ``check`` do."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from rematch.plan import EVERY_AXIS, MatchRun, Plan
from rematch.play import clear_parts
from rematch.provenance import read_manifests
from rematch.records import (
    exhibits_path,
    items_path,
    read_arrow,
    read_exhibits,
    read_frame,
    write_arrow,
    write_exhibits,
    write_text,
)
from rematch.schema import COLUMNS, ITEM_COLUMNS

if TYPE_CHECKING:  # charts and statistics take a second to import, and most commands need neither
    from rematch.report import PaperResults
    from rematch.verdicts import ClaimResult


def folder_of(plan: Plan, paper: str) -> Path:
    """Where a paper's gathered records and verdicts lie."""
    return plan.results / "papers" / paper


def gather(plan: Plan, paper: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Records and items of every match that the plan holds and that was played, in the plan's order."""
    paths = _played(plan, paper)
    return read_frame(paths, COLUMNS), read_frame([items_path(path) for path in paths], ITEM_COLUMNS)


def gather_exhibits(plan: Plan, paper: str) -> list[dict[str, Any]]:
    """What there is to read of the same matches, in the same order."""
    return [row for path in _played(plan, paper) for row in read_exhibits(exhibits_path(path))]


def _played(plan: Plan, paper: str) -> list[Path]:
    return [path for match in plan.matches(paper) if (path := plan.results / match.path).is_file()]


def judge(plan: Plan, paper: str) -> None:
    """Gather a paper's records, items and exhibits, compute its verdicts, and write all four (``folder_of``)."""
    import pyarrow as pa

    from rematch.verdicts import judge_claims

    records, items = gather(plan, paper)
    verdicts = plan.tier.verdicts
    claims = judge_claims(
        plan.cards[paper],
        plan.tier_name,
        records,
        items,
        confidence=plan.settings.config.confidence,
        sized=verdicts == "size",
        seeds_planned=plan.seeds(paper),
    )
    out = folder_of(plan, paper)
    write_arrow(pa.Table.from_pandas(records, preserve_index=False), out / "records.parquet")
    write_arrow(pa.Table.from_pandas(items, preserve_index=False), out / "items.parquet")
    write_exhibits(gather_exhibits(plan, paper), out / "exhibits.json")
    write_text(json.dumps([dataclasses.asdict(claim) for claim in claims], indent=1) + "\n", out / "claims.json")


def read_claims(plan: Plan, paper: str) -> list[ClaimResult]:
    """The verdicts of a paper, as ``judge`` left them; empty before that."""
    from rematch.verdicts import ClaimResult, PairResult

    path = folder_of(plan, paper) / "claims.json"
    if not path.is_file():
        return []
    found = []
    for entry in json.loads(path.read_text(encoding="utf-8")):
        pairs = tuple(PairResult(**pair) for pair in entry.pop("pairs"))
        worst = entry.pop("worst")
        found.append(ClaimResult(**entry, pairs=pairs, worst=PairResult(**worst) if worst else None))
    return found


def paper_results(plan: Plan, paper: str) -> PaperResults:
    """Everything that a paper's page shows."""
    from rematch.report import PaperResults

    records = read_arrow(folder_of(plan, paper) / "records.parquet").to_pandas()
    manifests = read_manifests(plan.results)
    used = [manifests[run] for run in sorted(set(records["run"])) if run in manifests]
    return PaperResults(
        card=plan.cards[paper],
        tier=plan.tier_name,
        records=records,
        claims=read_claims(plan, paper),
        provenance=used,
        job_costs=job_costs(plan, paper),
        confidence=plan.settings.config.confidence,
        exhibits=read_exhibits(folder_of(plan, paper) / "exhibits.json"),
    )


def page(plan: Plan, paper: str) -> None:
    """Render a paper's page, tables and plots."""
    from rematch.report import render_paper

    render_paper(paper_results(plan, paper), plan.reports)


def index(plan: Plan) -> None:
    """Render the front page over every paper that has been judged."""
    from rematch.report import render_index

    judged = [paper for paper in plan.cards if (folder_of(plan, paper) / "claims.json").is_file()]
    render_index([paper_results(plan, paper) for paper in judged], plan.reports, tier=plan.tier_name)


def check(plan: Plan, paper: str, scope: str) -> int:
    """1 with a line on standard error for each required match that did not end well, else 0 and a mark for Snakemake."""
    for match in plan.matches(paper, None if scope == EVERY_AXIS else scope):
        clear_parts(plan, match)
    problems = []
    for match in plan.required(paper, scope):
        path = plan.results / match.path
        rows = read_arrow(path).select(["seed", "status", "reason", "log"]).to_pylist()
        bad = {row["seed"]: row for row in rows if row["status"] in ("failed", "timeout")}
        problems += [describe_failure(match, plan, row) for row in bad.values()]
    if problems:
        print("\n".join(problems), file=sys.stderr)
        print(
            f"rematch: {paper}: {len(problems)} required matches failed; the report is complete without them. "
            f"See {plan.reports / paper}.html, then: rematch retry-failed --tier {plan.tier_name}",
            file=sys.stderr,
        )
        return 1
    write_text("every required match was played\n", folder_of(plan, paper) / "checks" / scope)
    return 0


def describe_failure(match: MatchRun, plan: Plan, row: dict[str, Any]) -> str:
    """One line on a failed match."""
    return (
        f"rematch: {match.cell} seed {row['seed']}: {row['status']}: {row['reason']} (log: {plan.results / row['log']})"
    )


def job_costs(plan: Plan, paper: str) -> pd.DataFrame:
    """What every job of a paper cost, bases included: columns kind, name, run, wall_s, work_cpu_s, overhead_cpu_s."""
    planned = [base.name for base in plan.bases(paper)] + [match.name for match in plan.matches(paper)]
    found = []
    for name in planned:
        path = plan.results / "logs" / f"{name}.job.json"
        if path.is_file():
            found.append(json.loads(path.read_text(encoding="utf-8")))
    return pd.DataFrame(found, columns=["kind", "name", "run", "wall_s", "work_cpu_s", "overhead_cpu_s"])
