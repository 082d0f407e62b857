"""The schema of records: what every column holds. ``SCHEMA.md`` in the results folder is written from it."""

from __future__ import annotations

SCHEMA_VERSION = 1

# name: (type, what it holds). Types are Arrow's names.
COLUMNS: dict[str, tuple[str, str]] = {
    "schema_version": ("int16", "version of this schema"),
    "run": ("string", "id of the run that measured it: runs/<run>/provenance.json"),
    "tier": ("string", "smoke, mini, real or paper"),
    "paper": ("string", "slug of the paper"),
    "axis": ("string", "what was varied"),
    "contender": ("string", "name in the card"),
    "level": ("string", "point on the axis, as text"),
    "seed": ("int32", "seed of data order, initialisation and sampling"),
    "status": ("string", "ok, failed, timeout, unmatched (off its budget) or skipped"),
    "reason": ("string", "why the status is not ok; empty otherwise"),
    "metric": ("string", "name in the card; empty in a row that is only a status"),
    "slice": ("string", "part of the items that the value is about (distance=64); empty for all"),
    "value": ("float64", "the measured value"),
    "n_items": ("int32", "items behind the value; 0 where there are none"),
    "direction": ("string", "higher, lower or neither is better"),
    "scale": ("string", "linear, or log (compared as a log ratio)"),
    "unit": ("string", "unit of the value"),
    "measured": (
        "string",
        "exact; clock: read off the machine (seconds, memory), different in every run; counted: free of chance",
    ),
    "flops": ("float64", "measured FLOPs of what the axis budgets, per item"),
    "flops_target": ("float64", "FLOPs that the budget allowed; NaN where the axis sets none"),
    "flops_ratio": ("float64", "flops / flops_target"),
    "train_flops": ("float64", "FLOPs spent on training what was played, bases included"),
    "samples_seen": ("int64", "training samples seen"),
    "tokens_seen": ("int64", "training tokens seen (pixels or rows where a paper has no tokens)"),
    "seconds": ("float64", "wall seconds of the match, this seed"),
    "cpu_seconds": ("float64", "CPU seconds of the match, this seed"),
    "peak_memory_mb": ("float64", "peak resident memory above the start of the match, MiB"),
    "data_hash": ("string", "hash of the data that the match was scored on"),
    "digest": ("string", "hash of the source and card entries that the match depends on"),
    "notes": ("string", "JSON of what the contender or arena wants to keep (knobs it turned)"),
    "log": ("string", "path of the log, relative to the results folder"),
}

# Columns that a clock or a machine decides; all others are bit-identical from run to run, but for the values of metrics
# that are `measured` by a clock.
VOLATILE = ("run", "seconds", "cpu_seconds", "peak_memory_mb")

ITEM_COLUMNS: dict[str, tuple[str, str]] = {
    "tier": ("string", "as in the records"),
    "paper": ("string", "as in the records"),
    "axis": ("string", "as in the records"),
    "contender": ("string", "as in the records"),
    "level": ("string", "as in the records"),
    "seed": ("int32", "as in the records"),
    "metric": ("string", "as in the records"),
    "slice": ("string", "as in the records"),
    "item": ("int32", "position of the item: the same item for every contender of a level"),
    "score": ("float64", "score of the item; the mean is the value (linear) or its logarithm (log)"),
}

# What a match left to read. A list of objects with these keys, seeds in order, exhibits in the order of the arena.
EXHIBIT_KEYS: dict[str, tuple[str, str]] = {
    "tier": ("string", "as in the records"),
    "paper": ("string", "as in the records"),
    "axis": ("string", "as in the records"),
    "contender": ("string", "as in the records"),
    "level": ("string", "as in the records"),
    "seed": ("int", "as in the records"),
    "title": ("string", "what is to be read"),
    "fields": ("list of [name, text]", "the pieces of plain text, in the order of reading"),
}
STATUSES = ("ok", "failed", "timeout", "unmatched", "skipped")
