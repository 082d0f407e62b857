"""The verdict board, and the way from a table cell to its matches."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from rematch.cli.show import Shown, text
from rematch.errors import RematchError, unknown
from rematch.plan import Plan
from rematch.provenance import read_manifests
from rematch.records import exhibits_path, read_arrow, read_exhibits
from rematch.results import read_claims


def board(plan: Plan, paper: str | None) -> Shown:
    """Every claim of the judged papers with its verdict."""
    if paper is not None and paper not in plan.cards:
        raise unknown("paper", paper, plan.cards, f"tier {plan.tier_name}")
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    for slug in [paper] if paper else plan.cards:
        for claim in read_claims(plan, slug):
            worst = claim.worst
            rows.append(
                {
                    "claim": f"{slug} {claim.claim_id}", "statement": claim.statement, "verdict": claim.verdict,
                    "estimate": worst.estimate if worst else None, "low": worst.low if worst else None,
                    "high": worst.high if worst else None, "n": worst.n_seeds if worst else 0,
                    "p (Holm)": claim.p_holm, "FLOPs ratio": worst.flops_ratio if worst else None, "why": claim.why,
                }
            )  # fmt: skip
            lines.append(f"{slug} {claim.claim_id}: {claim.why}")
    if not rows:
        lines.append(f"Nothing judged yet: snakemake --cores 8 --config tier={plan.tier_name} -- {paper or 'all'}")
    columns = ("claim", "statement", "verdict", "estimate", "low", "high", "n", "p (Holm)", "FLOPs ratio")
    return Shown(f"Claims at tier {plan.tier_name}", rows, lines, columns=columns)


def audit_cell(plan: Plan, cell: str) -> Shown:
    """The matches behind a cell, one row a seed.

    Args:
        cell: ``paper/axis/contender/level``, or the beginning of it.
    """
    parts = cell.strip("/").split("/")
    if len(parts) > 4:
        raise RematchError(f"audit: '{cell}' must be paper/axis/contender/level, or the beginning of it")
    found = [m for m in plan.matches() if m.cell.split("/")[: len(parts)] == parts]
    if not found:
        known = sorted({"/".join(m.cell.split("/")[: len(parts)]) for m in plan.matches()})
        raise unknown("cell", cell, known, f"tier {plan.tier_name}")
    manifests = read_manifests(plan.results)
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    for match in found:
        path = plan.results / match.path
        if not path.is_file():
            rows += [_row(match.cell, seed, {"status": "to play"}, {}) for seed in match.seeds]
            continue
        records = read_arrow(path).to_pylist()
        exhibits = Counter(row["seed"] for row in read_exhibits(exhibits_path(path)))
        for seed in match.seeds:
            mine = [row for row in records if row["seed"] == seed]
            if mine:
                values = {f"{r['metric']} {r['slice']}".strip(): r["value"] for r in mine if r["metric"]}
                row = _row(match.cell, seed, mine[0], manifests.get(mine[0]["run"], {}))
                row |= {"exhibits": exhibits[seed], "values": values}
                rows.append(row)
                facts = ("reason", "knobs", "commit", "run", "digest", "data", "log")
                lines.append(f"{match.cell} seed {seed}")
                lines += [f"  {name}: {row[name]}" for name in facts if row[name]]
                lines += [f"  exhibits: {exhibits[seed]}, in {exhibits_path(path)}"] if exhibits[seed] else []
                lines += [f"  {name}: {text(value)}" for name, value in values.items()]
    lines.append(f"Records: {plan.results}/records/{'/'.join(parts)}")
    columns = ["cell", "seed", "status", "FLOPs", "FLOPs ratio", "train FLOPs", "CPU s", "peak MiB"]
    if any(row["exhibits"] for row in rows):
        columns.append("exhibits")
    return Shown(f"Matches behind {cell}", rows, lines, columns=tuple(columns))


def _row(cell: str, seed: int, record: dict[str, Any], manifest: dict[str, Any]) -> dict[str, Any]:
    nan = float("nan")
    commit = manifest.get("commit", "")[:12] + ("+changes" if manifest.get("dirty") else "")
    notes = json.loads(record.get("notes") or "{}")
    return {
        "cell": cell, "seed": seed, "status": record["status"], "reason": record.get("reason", ""), "commit": commit,
        "run": record.get("run", ""), "digest": record.get("digest", ""), "data": record.get("data_hash", ""),
        "FLOPs": record.get("flops", nan), "FLOPs ratio": record.get("flops_ratio", nan),
        "train FLOPs": record.get("train_flops", nan), "CPU s": record.get("cpu_seconds", nan),
        "peak MiB": record.get("peak_memory_mb", nan), "knobs": ", ".join(f"{k}={v}" for k, v in notes.items()),
        "log": record.get("log", ""), "exhibits": 0,
    }  # fmt: skip
