"""Two sets of results, value by value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rematch.cli.show import Shown
from rematch.errors import RematchError
from rematch.records import read_frame
from rematch.schema import COLUMNS

KEY = ["paper", "axis", "contender", "level", "seed", "metric", "slice"]


def compare_runs(a: Path, b: Path) -> Shown:
    """Every value that moved or that only one side has; ends non-zero when anything differs.

    Metrics that read a clock differ between any two runs and are left out.
    """
    frames = []
    for folder in (a, b):
        paths = sorted(p for p in (folder / "records").rglob("*.parquet") if ".items." not in p.name)
        if not paths:
            raise RematchError(
                f"compare: no records under {folder / 'records'}; give a tier's results folder (results/mini)"
            )
        frame = read_frame(paths, COLUMNS)
        frames.append(frame[frame["measured"] == "exact"].drop_duplicates(KEY, keep="last"))
    both = frames[0].merge(frames[1], on=KEY, how="outer", suffixes=("_a", "_b"), indicator=True)
    one_sided = both[both["_merge"] != "both"]
    shared = both[both["_merge"] == "both"]
    equal = (shared["value_a"] == shared["value_b"]) | (shared["value_a"].isna() & shared["value_b"].isna())
    moved = shared[~equal | (shared["status_a"] != shared["status_b"])]
    rows: list[dict[str, Any]] = []
    for _, row in moved.iterrows():
        rows.append(_row(row) | {"a": row["value_a"], "b": row["value_b"], "b - a": row["value_b"] - row["value_a"]})
    for _, row in one_sided.iterrows():
        rows.append(_row(row) | {"a": row["value_a"], "b": row["value_b"], "b - a": float("nan")})
    lines = [f"{int(len(shared) - len(moved))} values equal, {len(moved)} moved, {len(one_sided)} on one side only."]
    return Shown(f"{a} against {b}", rows, lines, code=1 if rows else 0)


def _row(row: Any) -> dict[str, Any]:
    cell = "/".join(str(row[name]) for name in KEY[:4])
    return {"cell": cell, "seed": int(row["seed"]), "metric": f"{row['metric']} {row['slice']}".strip()}
