"""What a rule calls: build one base, or play one contender at one level for a range of seeds.

Each seed runs in a process of its own (``rematch.supervise``) and leaves a part file the moment it is finished, so a crash
loses nothing: the next attempt plays only the seeds that are missing. A failure becomes a status row, never an exception
that would sink the rest of the run.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import math
import os
import shutil
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rematch.arena import BaseInfo, BaseJob, Measurement, Outcome, Task
from rematch.card_models import AxisSpec, Metric
from rematch.cards import level_text
from rematch.errors import RematchError
from rematch.hub import Hub
from rematch.plan import BaseRun, MatchRun, Plan
from rematch.records import Played, to_table, write_text
from rematch.schema import COLUMNS, ITEM_COLUMNS, SCHEMA_VERSION
from rematch.supervise import supervise

REASON_LENGTH = 300
FINISHED = ("ok", "unmatched", "skipped")
Row = dict[str, Any]


class Skip(Exception):
    """Raised by an arena or contender that cannot compete here; the message is the reason in the status row."""


# -- bases ----------------------------------------------------------------------------------------------------------


def build_base(plan: Plan, base: BaseRun, run: str) -> None:
    """Build one base and put it in place in one step. A failure leaves a ``base.json`` that says so."""
    work_dir = plan.results / f"{base.name}.building-{plan.base_digest(base.paper, base.base)}"
    final, log = plan.results / base.name, plan.results / "logs" / f"{base.name}.log"
    for stale in work_dir.parent.glob(f"{work_dir.name.partition('.building-')[0]}.building-*"):
        if stale != work_dir:
            shutil.rmtree(stale)
    work_dir.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    limit = plan.base_limit(base.paper)
    started = _clock()
    end = supervise(partial(_build, plan, base, work_dir, run, log), limit, log)
    result = work_dir / "base.json"
    if end.kind != "ok":
        status = "timeout" if end.kind == "timeout" else "failed"
        document = _base_document(plan, base, run, log, status=status, reason=end.detail)
        write_text(json.dumps(document, indent=1) + "\n", final / "base.json")
        if end.kind == "error":
            shutil.rmtree(work_dir)  # a killed or timed-out attempt may be resumed, a wrong one may not
    else:
        if final.exists():
            shutil.rmtree(final)
        os.replace(work_dir, final)
        result = final / "base.json"
        end = dataclasses.replace(end, detail=json.loads(result.read_text(encoding="utf-8"))["status"])
    _write_job(plan, base.name, "base", run, started, end.cpu_s)


def _build(plan: Plan, base: BaseRun, out: Path, run: str, log: Path) -> None:
    """In the worker: build into ``out`` and describe it there."""
    card = plan.cards[base.paper]
    needs = {need.base: plan.results / need.name for need in plan.needs_of(base)}
    infos = {need.base: read_base(plan, need) for need in plan.needs_of(base)}
    for name, document in infos.items():
        if document["status"] != "ok":
            raise RematchError(f"base '{name}' {document['status']}: {document['reason']}")
    spec = card.spec.bases[base.base]
    builder = load(spec.use)(**card.options("bases", base.base, plan.tier_name))
    job = BaseJob(
        paper=base.paper, tier=plan.tier_name, name=base.base, seed=base.seed, share=base.share, needs=needs,
        arena=card.at(plan.tier_name).arena, out=out, hub=_hub(plan),
    )  # fmt: skip
    meter = Meter()
    info: BaseInfo = builder.build(job)
    document = _base_document(plan, base, run, log, status="ok", reason="")
    document |= {"info": dataclasses.asdict(info), **meter.read()}
    write_text(json.dumps(document, indent=1, default=float) + "\n", out / "base.json")


def _base_document(plan: Plan, base: BaseRun, run: str, log: Path, *, status: str, reason: str) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run,
        "status": status,
        "reason": _one_line(reason),
        "digest": plan.base_digest(base.paper, base.base),
        "log": str(log.relative_to(plan.results)),
    }


def read_base(plan: Plan, base: BaseRun) -> dict[str, Any]:
    """The description of a finished base.

    Raises:
        RematchError: it has not been built.
    """
    path = plan.results / base.path
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RematchError(f"{path}: not built yet; run: snakemake --cores 1 {path}") from None
    except json.JSONDecodeError as error:
        raise RematchError(f"{path}: not valid JSON; delete it and run again") from error


# -- matches --------------------------------------------------------------------------------------------------------


def play_match(plan: Plan, match: MatchRun, run: str) -> None:
    """Play one contender at one level for its seeds and write its records."""
    digest = plan.match_digest(match.paper, match.axis, match.contender)
    log = plan.results / "logs" / f"{match.name}.log"
    log.unlink(missing_ok=True)
    started, cpu = _clock(), 0.0
    scratch = part_of(plan, match, match.seeds[0]).parent / f"scratch-{digest}"
    try:
        preload(plan.cards[match.paper].arena_module)
    except Exception:  # whatever a module raises while it is imported: the worker meets it again, and reports it
        traceback.print_exc()
    finished = _finished_seeds(plan, match, digest)
    for seed in match.seeds:
        if seed in finished:
            continue
        part = part_of(plan, match, seed)
        work = partial(_play_seed, plan, match, seed, run, part, scratch)
        end = supervise(work, plan.match_limit(match.paper), log)
        cpu += end.cpu_s
        if end.kind != "ok":
            status = "timeout" if end.kind == "timeout" else "failed"
            row = _status_row(_common(plan, match, seed, run), status, end.detail)
            write_part(part, [row | {"seconds": end.wall_s, "cpu_seconds": end.cpu_s}], [], [])
        finished[seed] = Played.read(part)
    Played.concat([finished[seed] for seed in match.seeds]).write(plan.results / match.path)
    shutil.rmtree(scratch, ignore_errors=True)
    _write_job(plan, match.name, "match", run, started, cpu)


@functools.cache
def preload(arena_module: str) -> None:
    """Import a paper's arena and let it load what every match needs, once, before workers are forked from this process.

    An arena module may offer ``preload()`` for that: compile kernels, take first steps that are slow.
    """
    importlib.import_module(
        "pandas"
    )  # pyarrow imports it with the first table that it makes, otherwise in every worker
    module = importlib.import_module(arena_module)
    if hasattr(module, "preload"):
        module.preload()


def load(use: str) -> Callable[..., Any]:
    """Import ``module:Class``."""
    module, _, name = use.partition(":")
    return getattr(importlib.import_module(module), name)


def write_part(part: Path, rows: list[Row], items: list[Row], exhibits: list[Row]) -> None:
    """Write the records of one seed, with its items and exhibits."""
    Played(to_table(rows, COLUMNS), to_table(items, ITEM_COLUMNS), exhibits).write(part)


def _play_seed(plan: Plan, match: MatchRun, seed: int, run: str, part: Path, scratch: Path) -> None:
    """In the worker: play one seed, and leave its part file, whatever happens."""
    common = _common(plan, match, seed, run)
    meter = Meter()
    exhibits: list[Row] = []
    try:
        outcome = _outcome(plan, match, seed, scratch)
        rows, items = _rows(plan, match, common, outcome)
        if rows[0]["status"] in FINISHED:
            exhibits = _exhibits(common, outcome)
    except Skip as reason:
        rows, items = [_status_row(common, "skipped", str(reason))], []
    except Exception as error:
        traceback.print_exc()
        text = str(error) if isinstance(error, RematchError) else f"{type(error).__name__}: {error}"
        rows, items = [_status_row(common, "failed", text)], []
    cost = meter.read()
    write_part(part, [row | cost for row in rows], items, exhibits)


def _outcome(plan: Plan, match: MatchRun, seed: int, scratch: Path) -> Outcome:
    card, axis = plan.cards[match.paper], plan.axes(match.paper)[match.axis]
    spec, share = card.spec.contenders[match.contender], plan.share(match)
    names = dict.fromkeys([*spec.bases, *([axis.budget.reference] if axis.budget else [])])
    runs = {name: plan.base_for(match.paper, name, share, seed) for name in names}
    documents = {name: read_base(plan, base) for name, base in runs.items()}
    for name, document in documents.items():
        if document["status"] != "ok":
            raise RematchError(f"base '{name}' {document['status']}: {document['reason']}")
    arena = load(f"{card.arena_module}:{card.ARENA_CLASS}")(**card.at(plan.tier_name).arena)
    task = Task(
        paper=match.paper, tier=plan.tier_name, axis=match.axis, name=match.contender,
        contender=load(spec.use)(**card.options("contenders", match.contender, plan.tier_name)),
        level=match.level, seed=seed, share=None if _is_fixed(axis, match) else share,
        metrics=tuple(card.metrics_of(axis, match.contender)),
        bases={name: plan.results / runs[name].name for name in spec.bases},
        base_info={name: BaseInfo(**documents[name]["info"]) for name in spec.bases},
        reference=plan.results / runs[axis.budget.reference].name if axis.budget else None,
        scratch=scratch, hub=_hub(plan),
    )  # fmt: skip
    scratch.mkdir(parents=True, exist_ok=True)
    return arena.play(task)


def _rows(plan: Plan, match: MatchRun, common: Row, outcome: Outcome) -> tuple[list[Row], list[Row]]:
    """An outcome as records and items, checked against what the axis asked for."""
    axis, card = plan.axes(match.paper)[match.axis], plan.cards[match.paper]
    metrics, asked = card.spec.metrics, card.metrics_of(axis, match.contender)
    measured = {m.metric for m in outcome.measurements}
    if missing := [name for name in asked if name not in measured and name not in outcome.undefined]:
        return [_status_row(common, "failed", f"the arena did not measure {', '.join(missing)}")], []
    for m in outcome.measurements:
        if m.metric not in asked:
            return [
                _status_row(common, "failed", f"the arena measured '{m.metric}', which the axis does not ask for")
            ], []
        if problem := _problem(m, metrics[m.metric]):
            return [_status_row(common, "failed", problem)], []
    status, reason, ratio = "ok", "", float("nan")
    if axis.budget is not None and not _is_fixed(axis, match):
        if not outcome.flops_target or not math.isfinite(outcome.flops):
            return [_status_row(common, "failed", "the axis sets a FLOPs budget and the arena measured no FLOPs")], []
        ratio = outcome.flops / outcome.flops_target
        if abs(ratio - 1) > axis.budget.tolerance:
            status = "unmatched"
            reason = f"FLOPs {100 * (ratio - 1):+.1f} % off the target (tolerance {100 * axis.budget.tolerance:g} %)"
    common = common | {
        "status": status,
        "reason": reason,
        "flops": outcome.flops,
        "flops_target": float("nan") if outcome.flops_target is None else outcome.flops_target,
        "flops_ratio": ratio,
        "train_flops": outcome.train_flops,
        "samples_seen": outcome.samples_seen,
        "tokens_seen": outcome.tokens_seen,
        "data_hash": outcome.data_hash,
        "notes": json.dumps(
            dict(outcome.notes)
            | ({"undefined": dict(outcome.undefined)} if outcome.undefined else {})
            | ({"remarks": dict(outcome.remarks)} if outcome.remarks else {}),
            sort_keys=True,
            default=float,
        ),
    }
    rows, items = [], []
    for m in outcome.measurements:
        spec = metrics[m.metric]
        scores = [] if m.items is None else [float(score) for score in m.items]
        rows.append(
            common
            | {"metric": m.metric, "slice": m.slice, "value": float(m.value), "n_items": len(scores)}
            | {"direction": spec.better, "scale": spec.scale, "unit": spec.unit, "measured": spec.measured}
        )
        where = _where(common) | {"metric": m.metric, "slice": m.slice}
        items += [where | {"item": index, "score": score} for index, score in enumerate(scores)]
    return rows, items


def _exhibits(common: Row, outcome: Outcome) -> list[Row]:
    """An outcome's exhibits; of a text that UTF-8 cannot hold (a lone surrogate), what it can."""

    def clean(text: str) -> str:
        return text.encode("utf-8", "replace").decode("utf-8")

    return [
        _where(common)
        | {"title": clean(exhibit.title), "fields": [[clean(name), clean(text)] for name, text in exhibit.fields]}
        for exhibit in outcome.exhibits
    ]


def _where(common: Row) -> Row:
    """Which match and seed it is."""
    return {name: common[name] for name in ("tier", "paper", "axis", "contender", "level", "seed")}


def _is_fixed(axis: AxisSpec, match: MatchRun) -> bool:
    """Whether the axis has a budget that does not bind the contender."""
    return axis.budget is not None and match.contender in axis.budget.fixed


def _problem(m: Measurement, metric: Metric) -> str | None:
    """What is wrong with a measurement, if anything."""
    name = f"{m.metric} {m.slice}".strip()
    if not math.isfinite(m.value):
        return f"{name} is {m.value}"
    if metric.scale == "log" and m.value <= 0:
        return f"{name} is {m.value:g}; a metric on a log scale is positive"
    if m.items is not None:
        if not len(m.items):
            return f"{name} has no items"
        mean = math.fsum(m.items) / len(m.items)
        expected = math.log(m.value) if metric.scale == "log" else m.value
        if not math.isclose(mean, expected, rel_tol=1e-4, abs_tol=1e-4):
            return f"{name}: the items' mean {mean:g} is not the value ({expected:g} on the scale of the analysis)"
    return None


def _common(plan: Plan, match: MatchRun, seed: int, run: str) -> Row:
    nan = float("nan")
    return {
        "schema_version": SCHEMA_VERSION, "run": run, "tier": plan.tier_name, "paper": match.paper, "axis": match.axis,
        "contender": match.contender, "level": level_text(match.level), "seed": seed, "status": "ok", "reason": "",
        "metric": "", "slice": "", "value": nan, "n_items": 0, "direction": "neither", "scale": "linear", "unit": "", "measured": "exact",
        "flops": nan, "flops_target": nan, "flops_ratio": nan, "train_flops": nan, "samples_seen": 0, "tokens_seen": 0,
        "seconds": nan, "cpu_seconds": nan, "peak_memory_mb": nan, "data_hash": "",
        "digest": plan.match_digest(match.paper, match.axis, match.contender), "notes": "{}",
        "log": f"logs/{match.name}.log",
    }  # fmt: skip


def _status_row(common: Row, status: str, reason: str) -> Row:
    return common | {"status": status, "reason": _one_line(reason)}


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= REASON_LENGTH else line[: REASON_LENGTH - 1] + "…"


def part_of(plan: Plan, match: MatchRun, seed: int) -> Path:
    """Where a finished seed waits for the others of its job."""
    return plan.results / "parts" / match.cell / match.seeds_text / f"{seed}.parquet"


def clear_parts(plan: Plan, match: MatchRun) -> None:
    """Remove the part files of a match, once Snakemake has accepted its records.

    Not before: of a run that is killed between a job's last write and Snakemake's note of it, the next run deletes the
    records as incomplete, and finds the seeds here.
    """
    shutil.rmtree(part_of(plan, match, match.seeds[0]).parent, ignore_errors=True)


def _finished_seeds(plan: Plan, match: MatchRun, digest: str) -> dict[int, Played]:
    """Seeds that were played before under the same digest: part files of a killed attempt, and other seed ranges."""
    found: dict[int, Played] = {}
    folders = [part_of(plan, match, 0).parent, (plan.results / match.path).parent]
    for path in (p for folder in folders for p in sorted(folder.glob("*.parquet")) if ".items." not in p.name):
        try:
            played = Played.read(path)
        except (RematchError, OSError):
            continue  # a half-written neighbour is simply played again
        for seed in match.seeds:
            mine = played.of_seed(seed)
            records = mine.records
            usable = records.num_rows and set(records["digest"].to_pylist()) == {digest}
            if seed not in found and usable and set(records["status"].to_pylist()) <= set(FINISHED):
                found[seed] = mine
    return found


def _hub(plan: Plan) -> Hub:
    mirror = plan.settings.config.hub_mirror
    return Hub(Path(mirror) if mirror else None)


# -- cost -----------------------------------------------------------------------------------------------------------


class Meter:
    """Wall seconds, CPU seconds and peak memory from its creation on, for this process."""

    def __init__(self) -> None:
        self._peak_reset = _reset_peak()
        self._rss = _memory_mb("VmRSS")
        self._wall, self._cpu = _clock()

    def read(self) -> Row:
        wall, cpu = _clock()
        peak = _memory_mb("VmHWM") - self._rss if self._peak_reset else float("nan")
        return {"seconds": wall - self._wall, "cpu_seconds": cpu - self._cpu, "peak_memory_mb": peak}


def _clock() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def _reset_peak() -> bool:
    """Start the kernel's peak-memory mark anew (Linux); a forked worker inherits its parent's otherwise."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _memory_mb(field: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), float("nan"))


def _write_job(plan: Plan, name: str, kind: str, run: str, started: tuple[float, float], work_cpu: float) -> None:
    """What a job cost: wall, the CPU of the work itself, and the CPU that the harness added around it."""
    wall, cpu = _clock()
    document = {
        "kind": kind,
        "name": name,
        "run": run,
        "wall_s": wall - started[0],
        "work_cpu_s": work_cpu,
        "overhead_cpu_s": cpu - started[1],
    }
    write_text(json.dumps(document) + "\n", plan.results / "logs" / f"{name}.job.json")
