"""A made-up paper in the shape of Simba's: a card, records of every status, verdicts of every word, manifests and costs.

The numbers are drawn around smooth curves from a fixed seed, so that tables and plots look like real ones.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from rematch.cards import Card, level_text
from rematch.report import PaperResults
from rematch.schema import COLUMNS, SCHEMA_VERSION
from rematch.verdicts import ClaimResult, PairResult

PAPER, TIER, SEEDS = "simba", "mini", 5
RUN = "20260131T120000-1f2e3d4c"
DATA_HASH = "5c1d9a07e4b2f683"
FAILED = ("flops_matched", "merge", 0.7, 3)
UNMATCHED = ("flops_matched", "depth_pruning", 0.4)
EXHIBIT_TEXT = "  </dd><script>alert(1)</script> {{ card }} &amp;\n\tso 19\x1b[0m\r\n" + 400 * "tokens"
TIMED_OUT = ("ood", "transformer", 2048)

CARD = """
paper: simba
title: "Simba: sparsified state-space models are efficient highway networks"
citation: "A. Author, B. Author. TMLR 2025, arXiv 2505.20698"
version: 1
summary: >
  Simba prunes tokens from a pretrained Mamba as the sequence climbs the layers, few below and most above. Upper layers
  become highways on which the state crosses the whole context in a few steps.
metrics:
  perplexity: {label: Perplexity, better: lower, scale: log}
  accuracy: {label: Zero-shot accuracy, better: higher}
  influence: {label: Relative influence, better: higher, slice_label: distance in tokens}
  keep_ratio: {label: Tokens kept, better: neither, slice_label: layer}
  seconds_per_sequence: {label: Time, better: lower, scale: log, unit: s, measured: clock}
bases:
  parent: {use: "workflows.simba.arena:Parent"}
contenders:
  simba: {label: Simba, kind: method, use: "workflows.simba.arena:Entrant"}
  dense: {label: Dense Mamba, kind: baseline, use: "workflows.simba.arena:Entrant"}
  merge: {label: Token merging & pruning, kind: baseline, use: "workflows.simba.arena:Entrant"}
  depth_pruning: {label: Depth pruning, kind: baseline, use: "workflows.simba.arena:Entrant"}
  transformer: {label: Transformer, kind: baseline, use: "workflows.simba.arena:Entrant"}
  parent: {label: Dense parent, kind: reference, use: "workflows.simba.arena:Entrant"}
  uniform: {label: Uniform schedule, kind: ablation, use: "workflows.simba.arena:Entrant"}
  random: {label: Random criterion, kind: ablation, use: "workflows.simba.arena:Entrant"}
axes:
  flops_matched:
    label: Equal inference FLOPs
    level_label: Share of the parent's FLOPs
    levels: [0.4, 0.55, 0.7]
    contenders: [simba, dense, merge, depth_pruning, transformer, uniform, random]
    metrics: [perplexity, accuracy, keep_ratio]
    budget: {reference: parent, share: level}
  ood:
    label: Longer contexts than trained on
    level_label: Context length in tokens
    levels: [512, 1024, 2048]
    contenders: [simba, dense, transformer, parent, uniform]
    metrics: [perplexity]
  memory_time:
    label: How far information flows, and what it costs
    level_label: Context length in tokens
    levels: [1024]
    contenders: [simba, parent]
    metrics: [influence, seconds_per_sequence]
claims:
  C1: &claim
    statement: At equal inference FLOPs Simba beats a dense, smaller Mamba in zero-shot accuracy.
    source: Figure 3
    axis: flops_matched
    metric: accuracy
    contender: simba
    against: [dense]
    margin: 0.01
    reported_text: better along the whole FLOPs-accuracy curve
  C2: {<<: *claim, statement: "Perplexity is lower at equal FLOPs, over context lengths.", axis: ood, metric: perplexity, margin: 0.02}
  C3: {<<: *claim, statement: "Small models can beat their own unpruned parent.", axis: ood, metric: perplexity, against: [parent]}
  C4: {<<: *claim, statement: "A linear hierarchy beats uniform pruning.", against: [uniform], metric: perplexity, margin: 0.02}
  C5: {<<: *claim, statement: "The global-impact criterion beats a random one.", against: [random], metric: perplexity, margin: 0.02}
  C6: {<<: *claim, statement: "Information flows further in the sparse layers.", axis: memory_time, metric: influence, slice: distance=256, against: [parent]}
  C7: {<<: *claim, statement: "A short fine-tuning of the sparse model helps further.", not_at: {mini: needs a pretrained 370m model}}
  C8:
    <<: *claim
    statement: Wall-clock time follows FLOPs.
    axis: memory_time
    metric: seconds_per_sequence
    against: [parent]
    kind: not_worse
    margin: 0.15
    reported_text: ""
    ours: true
plots:
  - {title: Perplexity against FLOPs, axis: flops_matched, metric: perplexity, x: flops, log_x: true, caption: "Equal data, equal seeds."}
  - {title: Accuracy against FLOPs, axis: flops_matched, metric: accuracy, x: flops, log_x: true}
  - {title: Perplexity against context length, axis: ood, metric: perplexity, x: level, log_x: true}
  - {title: Tokens kept by layer, axis: flops_matched, metric: keep_ratio, x: slice, slice: layer, levels: [0.55], contenders: [simba, uniform]}
  - {title: Influence by distance, axis: memory_time, metric: influence, x: slice, slice: distance, log_x: true}
tables:
  - {title: Perplexity at equal FLOPs, axis: flops_matched, metric: perplexity, caption: Lower rows are ablations.}
  - {title: Zero-shot accuracy at equal FLOPs, axis: flops_matched, metric: accuracy}
  - {title: Perplexity on longer contexts, axis: ood, metric: perplexity}
  - {title: Influence by distance, axis: memory_time, metric: influence, across: slice, slice: distance}
deviations:
  - The corpus is the standard library's source, not PG-19.
  - Pruning applies to the context only; the paper does not say which positions are protected.
tiers:
  smoke: {axes: {flops_matched: null}}
  mini: {axes: {flops_matched: null, ood: null, memory_time: null}}
"""

ARENA = '''"""Nothing is played here."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass
class Arena:
    METRICS: ClassVar[tuple[str, ...]] = ("perplexity", "accuracy", "influence", "keep_ratio", "seconds_per_sequence")


@dataclass
class Parent:
    pass


@dataclass
class Entrant:
    pass
'''
REPORTED_HEADER = "paper,table,axis,dataset,setting,contender,metric,value,unit,higher_is_better,source\n"
REPORTED = "simba,Table 2,flops_matched,LAMBADA,370m,{contender},accuracy,{value},%,true,page 7\n"
REPORTED_ROWS = REPORTED.format(contender="simba", value=57.2) + REPORTED.format(contender="dense", value=55.1)

_EDGE = {
    "simba": 0.0, "dense": 0.05, "merge": 0.03, "depth_pruning": 0.16, "transformer": 0.09, "parent": 0.01,
    "uniform": 0.035, "random": 0.12,
}  # fmt: skip


def make_card(root: Path, reported: str = REPORTED_ROWS) -> Card:
    """The made-up paper's room under ``root``, and its validated card."""
    room = root / "workflows" / PAPER
    room.mkdir(parents=True)
    plain = yaml.safe_dump(yaml.safe_load(CARD), sort_keys=False)  # cards know no merge keys
    (room / "card.yaml").write_text(plain, encoding="utf-8")
    (room / "arena.py").write_text(ARENA, encoding="utf-8")
    (room / "reported.csv").write_text(REPORTED_HEADER + reported, encoding="utf-8")
    return Card(room, root)


def make_records(card: Card, tier: str = TIER, seeds: int = SEEDS) -> pd.DataFrame:
    """Records of every match of the tier, a failed, an unmatched and a timed-out one among them."""
    rng = np.random.default_rng(7)
    rows: list[dict[str, Any]] = []
    for axis in card.at(tier).axes:
        spec = card.axis(axis, tier)
        for contender in spec.contenders:
            for level in spec.levels:
                for seed in range(seeds):
                    rows += _match(card, tier, axis, contender, level, seed, rng)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _match(card: Card, tier: str, axis: str, contender: str, level: Any, seed: int, rng: Any) -> list[dict[str, Any]]:
    share = float(level) if axis == "flops_matched" else 0.55
    if contender == "parent":
        share = 1.0
    budgeted = card.axis(axis, tier).budget is not None
    ratio = 1 + rng.normal(0, 0.004) if contender != "parent" else 1.0
    status, reason = "ok", ""
    if (axis, contender, level) == UNMATCHED:
        ratio, status, reason = 1.063, "unmatched", "FLOPs +6.3 % off the target (tolerance 2 %)"
    flops = 2.4e9 * share * ratio
    nan = math.nan
    common = {
        "schema_version": SCHEMA_VERSION, "run": RUN, "tier": tier, "paper": card.paper, "axis": axis,
        "contender": contender, "level": level_text(level), "seed": seed, "status": status, "reason": reason,
        "metric": "", "slice": "", "value": nan, "n_items": 0, "direction": "neither", "scale": "linear", "unit": "",
        "measured": "exact", "flops": flops, "flops_target": flops / ratio if budgeted else nan,
        "flops_ratio": ratio if budgeted else nan, "train_flops": 3.1e14 * share**0.5, "samples_seen": 16384,
        "tokens_seen": 8_388_608, "seconds": 41 * share + rng.uniform(0, 3), "cpu_seconds": 40 * share + rng.uniform(0, 2),
        "peak_memory_mb": 420 + 100 * share, "data_hash": DATA_HASH, "digest": f"{contender}-9f86d081",
        "notes": json.dumps({"r_last": round(share / 2, 3)}), "log": f"logs/{card.paper}/{axis}/{contender}/{level}.log",
    }  # fmt: skip
    broken = {"value": nan, "flops": nan, "flops_target": nan, "flops_ratio": nan, "train_flops": nan}
    if (axis, contender, level, seed) == FAILED:
        return [common | broken | {"status": "failed", "reason": "ValueError: <tokens> & pairs do not match"}]
    if (axis, contender, level) == TIMED_OUT:
        return [common | broken | {"status": "timeout", "reason": "stopped after 300 s"}]
    return [
        common
        | {"metric": metric, "slice": part, "value": value, "n_items": 400, "unit": card.spec.metrics[metric].unit}
        | {"direction": card.spec.metrics[metric].better, "scale": card.spec.metrics[metric].scale}
        for metric in card.axis(axis, tier).metrics
        for part, value in _values(metric, axis, contender, level, share, rng)
    ]


def _values(metric: str, axis: str, contender: str, level: Any, share: float, rng: Any) -> list[tuple[str, float]]:
    edge = _EDGE[contender]
    if metric == "perplexity":
        length = math.log2(float(level) / 512) if axis == "ood" else 0.0
        value = 11.5 * share**-0.18 * math.exp(edge + length * (0.02 + edge) + rng.normal(0, 0.008))
        return [("", value)]
    if metric == "accuracy":
        return [("", 0.62 + 0.12 * (share - 0.55) - 0.5 * edge + rng.normal(0, 0.006))]
    if metric == "keep_ratio":
        kept = [1 - 0.9 * layer / 7 if contender == "simba" else 0.55 for layer in range(8)]
        return [(f"layer={layer}", ratio) for layer, ratio in enumerate(kept)]
    if metric == "influence":
        rate = 0.35 if contender == "simba" else 0.6
        return [(f"distance={2**k}", math.exp(-rate * (k - 2) + rng.normal(0, 0.1))) for k in range(3, 10)]
    return [("", 0.8 * share + rng.uniform(0, 0.02))]


def make_exhibits(card: Card, tier: str = TIER, seeds: int = SEEDS) -> list[dict[str, Any]]:
    """What Simba and the merging baseline left to read at equal FLOPs: eight questions a level, seed 0 of one level apart."""
    return [
        {"tier": tier, "paper": card.paper, "axis": "flops_matched", "contender": contender, "level": level_text(level)}
        | {"seed": seed, "title": f"Question {n} & its <b>answer</b>"}
        | {"fields": [["Question", f"12 + {n} = ?"], ["Attempt <1>", EXHIBIT_TEXT], ["Seed", str(seed)], ["Last", ""]]}
        for contender in ("merge", "simba")
        for level in card.axis("flops_matched", tier).levels
        for seed in range(seeds)
        if (contender, level, seed) != ("simba", 0.55, 0)
        for n in range(8)
    ]  # fmt: skip


def make_pair(against: str, estimate: float, half: float, **change: Any) -> PairResult:
    """A comparison of Simba with an opponent whose interval is ``estimate ± half``."""
    entry: dict[str, Any] = {
        "contender": "simba", "against": against, "estimate": estimate, "low": estimate - half, "high": estimate + half,
        "t_low": estimate - half, "t_high": estimate + half, "item_low": estimate - 0.8 * half,
        "item_high": estimate + 0.7 * half, "p": 0.0123, "n_seeds": 5, "n_cells": 3, "cells_won": 3 if estimate > 0 else 0,
        "df": 12, "flops_ratio": 1.0021, "train_flops_ratio": 1.31, "n_missing": 0, "deterministic": False,
        "verdict": "direction only", "why": f"The interval lies {'above' if estimate > half else 'around'} zero.",
    }  # fmt: skip
    return PairResult(**(entry | change))


def make_claims(card: Card, tier: str = TIER) -> list[ClaimResult]:
    """One claim for every verdict word."""
    found = {
        "C1": ("direction only", make_pair("dense", 0.0241, 0.011)),
        "C2": ("reproduced", make_pair("dense", 0.0572, 0.013)),
        "C3": ("inconclusive", make_pair("parent", 0.0031, 0.024, p=0.71, verdict="inconclusive")),
        "C4": ("no effect", make_pair("uniform", 0.0042, 0.009, p=0.31, verdict="no effect", n_missing=1)),
        "C5": ("contradicted", make_pair("random", -0.0413, 0.012, p=0.0004, verdict="contradicted")),
        "C6": ("direction only", make_pair("parent", 0.181, 0.05, n_cells=1, flops_ratio=math.nan)),
        "C7": ("not run", None),
        "C8": ("direction only", make_pair("parent", 0.35, 0.06, n_cells=1, flops_ratio=math.nan)),
    }
    claims = []
    for key, (verdict, worst) in found.items():
        spec = card.spec.claims[key]
        claims.append(
            ClaimResult(
                paper=card.paper, claim_id=key, statement=spec.statement, source=spec.source, tier=tier, axis=spec.axis,
                metric=spec.metric, reported_difference=0.06 if key == "C2" else None, reported_text=spec.reported_text,
                verdict=verdict, why=worst.why if worst else f"Cannot be tested at {tier}: {spec.not_at.get(tier, '')}.",
                p_raw=worst.p if worst else math.nan, p_holm=min(1.0, 8 * worst.p) if worst else math.nan, worst=worst,
                pairs=(worst,) if worst else (), ours=spec.ours,
            )
        )  # fmt: skip
    return claims


def make_results(root: Path, *, tier: str = TIER, seeds: int = SEEDS) -> PaperResults:
    """Everything that a page shows."""
    card = make_card(root)
    jobs = [("base", "bases/simba/parent/any/0", 61.0), ("match", "records/simba/flops_matched/simba/0.55/0-4", 120.0)]
    manifest = {
        "run": RUN, "started": "2026-01-31T12:00:00Z", "command": "snakemake --cores 2 simba", "config": {"tier": tier},
        "commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True, "python": "3.11.9", "platform": "Linux-x86_64",
        "cpu": "A CPU <model> 9", "cores": 2, "gpus": [], "threads_per_job": "1",
        "packages": {"torch": "2.13.0", "pandas": "3.1.1"},
    }  # fmt: skip
    costs = [
        {"kind": kind, "name": name, "run": RUN, "wall_s": work + 2, "work_cpu_s": work, "overhead_cpu_s": 1.5}
        for kind, name, work in jobs
    ]
    return PaperResults(
        card=card,
        tier=tier,
        records=make_records(card, tier, seeds),
        claims=make_claims(card, tier),
        provenance=[manifest],
        job_costs=pd.DataFrame(costs),
        exhibits=make_exhibits(card, tier, seeds),
    )
