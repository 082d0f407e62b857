"""A ring without matches: a small card in a folder of its own, and records whose answers are known by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rematch.cards import Card
from rematch.schema import COLUMNS, ITEM_COLUMNS

PAPER = "ring"
AXIS = "flops_matched"
METRICS = {
    "accuracy": {"label": "Accuracy", "better": "higher"},
    "perplexity": {"label": "Perplexity", "better": "lower", "scale": "log"},
    "gain": {"label": "Gain", "better": "neither"},
    "passes": {"label": "Passes", "better": "lower", "measured": "counted"},
}
_MODULE = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass
class Arena:
    METRICS: ClassVar[tuple[str, ...]] = ("accuracy", "perplexity", "gain", "passes")

@dataclass
class Fighter:
    pass
"""
_REPORTED = """paper,table,axis,dataset,setting,contender,metric,value,unit,higher_is_better,source
ring,1,flops_matched,,,champion,accuracy,0.60,,true,Table 1
ring,1,flops_matched,,,rival,accuracy,0.50,,true,Table 1
ring,1,flops_matched,,,champion,perplexity,10,,false,Table 1
ring,1,flops_matched,,,rival,perplexity,12,,false,Table 1
"""


def make_card(root: Path, claims: Mapping[str, Mapping[str, Any]], levels: Sequence[Any] = (1, 2, 3)) -> Card:
    """A card with the claims given; each has defaults that make it a claim of accuracy against ``rival``."""
    folder = root / "workflows" / PAPER
    folder.mkdir(parents=True)
    (folder / "arena.py").write_text(_MODULE)
    (folder / "reported.csv").write_text(_REPORTED)
    fighter = {"use": f"workflows.{PAPER}.arena:Fighter"}
    axis = {
        "label": "Equal FLOPs",
        "level_label": "level",
        "levels": list(levels),
        "contenders": ["champion", "rival", "third"],
        "metrics": list(METRICS),
    }
    spec = {
        "paper": PAPER,
        "title": "A ring",
        "citation": "nowhere",
        "version": 1,
        "summary": "Nobody fights.",
        "metrics": METRICS,
        "contenders": {
            "champion": {"label": "Champion", "kind": "method", **fighter},
            "rival": {"label": "Rival", "kind": "baseline", **fighter},
            "third": {"label": "Third", "kind": "baseline", **fighter},
        },
        "axes": {AXIS: axis, "ood": axis},
        "claims": {name: _claim(**claim) for name, claim in claims.items()},
        "tiers": {
            "smoke": {"axes": {AXIS: None}},
            "mini": {"axes": {AXIS: None}},
            "real": {"axes": {AXIS: {"contenders": ["rival", "third"]}}},
            "paper": {"axes": {AXIS: None}},
        },
    }
    (folder / "card.yaml").write_text(yaml.safe_dump(spec))
    return Card(folder, root)


def _claim(**change: Any) -> dict[str, Any]:
    claim = {"statement": "Champion wins.", "source": "Table 1", "axis": AXIS, "metric": "accuracy", "margin": 0.01}
    claim |= {"contender": "champion", "against": ["rival"]} | change
    if claim.get("kind") == "within":
        del claim["against"]
    return claim


def reported(metric: str = "accuracy", against: str = "rival") -> dict[str, str]:
    return {"contender": "champion", "against": against, "metric": metric}


def row(contender: str, level: Any, seed: int, value: float, **change: Any) -> dict[str, Any]:
    """One record; ``status`` other than ok makes it what the engine writes for a failure."""
    metric = change.get("metric", "accuracy")
    nan = float("nan")
    record: dict[str, Any] = {
        "schema_version": 1, "run": "r", "tier": "mini", "paper": PAPER, "axis": AXIS, "contender": contender,
        "level": str(level), "seed": seed, "status": "ok", "reason": "", "metric": metric, "slice": "", "value": value,
        "n_items": 0, "direction": METRICS[metric]["better"], "scale": METRICS[metric].get("scale", "linear"),
        "unit": "", "measured": "exact", "flops": 100.0, "flops_target": 100.0, "flops_ratio": 1.0, "train_flops": 7.0,
        "samples_seen": 0, "tokens_seen": 0, "seconds": 1.0, "cpu_seconds": 1.0, "peak_memory_mb": 1.0,
        "data_hash": f"data of {level}", "digest": "d", "notes": "{}", "log": "l",
    }  # fmt: skip
    record |= change
    if record["status"] in ("failed", "timeout", "skipped"):
        record |= {"metric": "", "slice": "", "value": nan, "flops": nan, "data_hash": "", "direction": "neither"}
        record |= {"scale": "linear"}
    return record


def frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(COLUMNS))


def duel(
    differences: Mapping[Any, Sequence[float | None]], rival: str = "rival", base: float = 0.5, **change: Any
) -> list[dict[str, Any]]:
    """Rows in which the champion's scores exceed the rival's by given amounts: level to one number a seed.

    A score is the value, or minus its logarithm for perplexity, so that positive is better. None leaves the seed out.
    """
    perplexity = change.get("metric") == "perplexity"
    rows = []
    for level, per_seed in differences.items():
        for seed, difference in enumerate(per_seed):
            if difference is None:
                continue
            floor = base + 0.01 * seed  # a seed's own difficulty, which pairing takes out
            for name, score in (("champion", floor + difference), (rival, floor)):
                rows.append(row(name, level, seed, math.exp(-score) if perplexity else score, **change))
    return rows


def item_rows(contender: str, level: Any, seed: int, scores: Sequence[float], **change: Any) -> list[dict[str, Any]]:
    common = {"tier": "mini", "paper": PAPER, "axis": AXIS, "contender": contender, "level": str(level), "seed": seed}
    common |= {"metric": "accuracy", "slice": ""} | change
    return [common | {"item": index, "score": score} for index, score in enumerate(scores)]


def item_frame(rows: Sequence[Mapping[str, Any]] = ()) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(ITEM_COLUMNS))
