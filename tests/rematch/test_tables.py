"""Tables: the numbers in the cells, and their Markdown, CSV and LaTeX."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import re
import statistics
from dataclasses import replace

import pandas as pd
import pytest
import synthetic

from rematch.cards import Card
from rematch.costs import cost_tables, harness_table
from rematch.scoreboard import claim_table, pair_table
from rematch.summary import fold, metric_tables
from rematch.tables import Cell, Row, Table, decimals, mean_interval, number, si, span_of, tex, unique


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Card:
    return synthetic.make_card(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def records(card: Card) -> pd.DataFrame:
    return synthetic.make_records(card)


@pytest.fixture(scope="module")
def tables(card: Card, records: pd.DataFrame) -> dict[str, Table]:
    return {table.name: table for table in metric_tables(card, synthetic.TIER, fold(records))}


def row(table: Table, label: str) -> Row:
    (found,) = [row for row in table.rows if row.label == label]
    return found


# -- numbers --------------------------------------------------------------------------------------------------------


def test_interval_is_students_t() -> None:
    # Five values with mean 3 and standard deviation sqrt(2.5); t(0.975, 4) = 2.776445 from any table.
    mean = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean.value == 3
    assert mean.half_width == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    assert mean_interval([1.0, 3.0], confidence=0.9).half_width == pytest.approx(6.313752 * 1.0, rel=1e-6)


def test_one_seed_has_no_interval_and_none_no_mean() -> None:
    one, none = mean_interval([0.5]), mean_interval([])
    assert (one.value, one.n) == (0.5, 1)
    assert math.isnan(one.half_width)
    assert math.isnan(none.value)
    assert none.n == 0


@pytest.mark.parametrize(
    ("value", "half_width", "text"),
    [(12.3456, 0.4321, "12.35"), (12.3456, 0.0432, "12.346"), (1234.5, 67.0, "1234"), (0.61803, math.nan, "0.6180")],
)
def test_the_interval_decides_the_decimals(value: float, half_width: float, text: str) -> None:
    assert number(value, decimals(value, half_width)) == text


def test_numbers_have_a_true_minus_and_never_round_to_nothing() -> None:
    assert number(-0.5, 2) == "−0.50"
    assert number(0.5, 2, sign=True) == "+0.50"
    assert number(0.00001, 2) == "1.00e−05"
    assert number(math.nan, 2) == "–"
    assert [si(x) for x in (0.0, 12.0, 999.9, 1234.0, 2.4e9, 3.1e14)] == [
        "0",
        "12",
        "1.00 k",
        "1.23 k",
        "2.40 G",
        "310 T",
    ]
    assert si(1.23456e9, 1.5e7) == "1.235 ± 0.015 G"
    assert si(83_400.0, 0.0) == "83.40 ± 0.00 k"
    assert si(2.4e9, math.nan) == "2.40 G"
    assert span_of([1e9, 1.001e9]) == "1.00 G"
    assert span_of([1e9, 2e9, math.nan]) == "1.00 G to 2.00 G"


# -- tables of metrics ----------------------------------------------------------------------------------------------


def test_cell_is_mean_and_interval_of_its_records(tables: dict[str, Table], records: pd.DataFrame) -> None:
    table = tables["perplexity-at-equal-flops"]
    mine = records.query(
        "axis == 'flops_matched' and contender == 'simba' and level == '0.55' and metric == 'perplexity'"
    )
    values = mine["value"].tolist()
    (entry,) = [d for d in table.data if d["contender"] == "simba" and d["level"] == "0.55"]
    half_width = 2.776445 * statistics.stdev(values) / math.sqrt(5)
    assert entry["mean"] == pytest.approx(statistics.fmean(values))
    assert entry["high"] - entry["mean"] == pytest.approx(half_width, rel=1e-6)
    text = row(table, "Simba").cells[table.columns.index("0.55")].text
    mean, spread = (float(part) for part in text.split(" ± "))
    assert mean == pytest.approx(entry["mean"], abs=0.006)
    assert spread == pytest.approx(half_width, abs=0.006)


def test_order_is_the_cards(card: Card, tables: dict[str, Table]) -> None:
    axis = card.spec.axes["flops_matched"]
    table = tables["perplexity-at-equal-flops"]
    assert [r.label for r in table.rows] == [card.spec.contenders[name].label for name in axis.contenders]
    assert table.columns == ("0.4", "0.55", "0.7")
    influence = tables["influence-by-distance"]
    assert influence.columns == ("8", "16", "32", "64", "128", "256", "512")
    assert influence.span == "distance in tokens"


def test_a_status_stands_where_there_is_no_number(tables: dict[str, Table]) -> None:
    unmatched = row(tables["perplexity-at-equal-flops"], "Depth pruning").cells[0]
    assert (unmatched.text, unmatched.status) == ("unmatched", "unmatched")
    assert "×1.063" in unmatched.detail
    assert "6.3 %" in unmatched.reason
    timeout = row(tables["perplexity-on-longer-contexts"], "Transformer").cells[2]
    assert (timeout.text, timeout.reason) == ("timeout", "stopped after 300 s")


def test_a_partly_failed_cell_says_how_many_seeds_are_missing(tables: dict[str, Table]) -> None:
    cell = row(tables["perplexity-at-equal-flops"], "Token merging & pruning").cells[2]
    assert cell.status == "ok"
    assert "n = 4 of 5: 1 failed" in cell.detail


def test_a_cell_that_was_never_played_says_so(card: Card, records: pd.DataFrame) -> None:
    without = records[records["contender"] != "dense"]
    (table, *_) = metric_tables(card, synthetic.TIER, fold(without))
    assert {cell.text for cell in row(table, "Dense Mamba").cells} == {"not played"}


def test_unmatched_values_take_no_part(card: Card, records: pd.DataFrame) -> None:
    changed = records.copy()
    off = (changed["contender"] == "simba") & (changed["level"] == "0.55") & (changed["seed"] == 0)
    changed.loc[off, "status"] = "unmatched"
    changed.loc[off, "value"] = 1e6
    (table, *_) = metric_tables(card, synthetic.TIER, fold(changed))
    (entry,) = [d for d in table.data if d["contender"] == "simba" and d["level"] == "0.55"]
    assert entry["mean"] < 100
    assert entry["n_seeds"] == 4


def test_best_follows_the_metrics_direction(tables: dict[str, Table]) -> None:
    for name in ("perplexity-at-equal-flops", "zero-shot-accuracy-at-equal-flops"):
        assert [r.label for r in tables[name].rows if r.cells[0].best] == ["Simba"], name
    worst = max(d["mean"] for d in tables["perplexity-at-equal-flops"].data if d["level"] == "0.4" and d["n_seeds"])
    simba = next(d for d in tables["perplexity-at-equal-flops"].data if d["contender"] == "simba")
    assert simba["mean"] < worst


def test_a_reference_does_not_compete(tables: dict[str, Table]) -> None:
    table = tables["perplexity-on-longer-contexts"]
    means = {d["contender"]: d["mean"] for d in table.data if d["level"] == "512"}
    assert min(means, key=means.__getitem__) == "parent"
    assert row(table, "Simba").cells[0].best
    assert not row(table, "Dense parent").cells[0].best


def test_reported_numbers_stand_beside_measured_ones(tables: dict[str, Table]) -> None:
    accuracy = tables["zero-shot-accuracy-at-equal-flops"]
    assert accuracy.columns[-1] == "Reported"
    assert row(accuracy, "Simba").cells[-1].text == "0.572 (LAMBADA, 370m; Table 2)"
    assert row(accuracy, "Transformer").cells[-1].text == "–"
    assert "direction only" in " ".join(tables["perplexity-at-equal-flops"].notes)
    assert "direction only" not in " ".join(accuracy.notes)


def test_tables_of_an_axis_that_the_tier_does_not_play_are_left_out(card: Card) -> None:
    names = [t.name for t in metric_tables(card, "smoke", fold(synthetic.make_records(card, "smoke", 2)))]
    assert names == ["perplexity-at-equal-flops", "zero-shot-accuracy-at-equal-flops"]


# -- formats --------------------------------------------------------------------------------------------------------


def test_large_numbers_have_a_prefix(card: Card, records: pd.DataFrame) -> None:
    changed = records.copy()
    mine = (
        (changed["axis"] == "flops_matched") & (changed["metric"] == "perplexity") & (changed["contender"] == "simba")
    )
    changed.loc[mine, "value"] *= 1e8
    (table, *_) = metric_tables(card, synthetic.TIER, fold(changed))
    assert re.fullmatch(r"[\d.]+ ± [\d.]+ [MG]", row(table, "Simba").cells[1].text)
    changed.loc[mine, "value"] = 728_031_232.0  # counted, and the same for every seed
    card, spec = copy.copy(card), card.spec
    metric = spec.metrics["perplexity"].model_copy(update={"measured": "counted"})
    card.spec = spec.model_copy(update={"metrics": spec.metrics | {"perplexity": metric}})
    (table, *_) = metric_tables(card, synthetic.TIER, fold(changed))
    assert row(table, "Simba").cells[1].text == "728 M"


def test_who_has_not_got_a_metric_is_not_in_its_table(card: Card, records: pd.DataFrame) -> None:
    card, spec = copy.copy(card), card.spec
    accuracy = spec.metrics["accuracy"].model_copy(update={"of": ["simba", "dense"]})
    card.spec = spec.model_copy(update={"metrics": spec.metrics | {"accuracy": accuracy}})
    found = {table.name: table for table in metric_tables(card, synthetic.TIER, fold(records))}
    every = card.spec.axes["flops_matched"].contenders
    assert [row.label for row in found["zero-shot-accuracy-at-equal-flops"].rows] == ["Simba", "Dense Mamba"]
    assert len(found["perplexity-at-equal-flops"].rows) == len(every)


def test_a_contender_without_a_target_shows_no_ratio_to_it(card: Card, records: pd.DataFrame) -> None:
    card, spec = copy.copy(card), card.spec
    axis = spec.axes["flops_matched"]
    axis = axis.model_copy(update={"budget": axis.budget.model_copy(update={"fixed": ["simba"]})})
    card.spec = spec.model_copy(update={"axes": spec.axes | {"flops_matched": axis}})
    records = records.copy()
    records.loc[records["contender"] == "simba", "flops_ratio"] = math.nan
    found = {table.name: table for table in metric_tables(card, synthetic.TIER, fold(records))}
    details = {
        label: row(found["perplexity-at-equal-flops"], label).cells[0].detail for label in ("Simba", "Dense Mamba")
    }
    assert "FLOPs" not in details["Simba"]
    assert "FLOPs ×1" in details["Dense Mamba"]


def test_a_match_may_say_what_a_number_would_hide(card: Card, records: pd.DataFrame) -> None:
    """Under every table of the metric, the same of several seeds once; and nowhere else."""
    frame = records.copy()
    simba = (frame["axis"] == "flops_matched") & (frame["contender"] == "simba")
    said = simba & (frame["level"] == "0.55") & frame["seed"].isin([1, 3])
    frame.loc[said, "notes"] = json.dumps({"knob": 1, "remarks": {"accuracy": "never prunes"}})
    frame.loc[simba & (frame["seed"] == 0), "notes"] = ""
    for table in metric_tables(card, synthetic.TIER, fold(frame)):
        told = [note for note in table.notes if "never prunes" in note]
        right = table.data[0]["metric"] == "accuracy" and table.data[0]["axis"] == "flops_matched"
        assert told == (["Simba, at 0.55: never prunes (seed 1, 3)."] if right else [])
        assert ("never prunes" in table.markdown()) is right


def test_csv_is_tidy_and_exact(tables: dict[str, Table]) -> None:
    table = tables["perplexity-at-equal-flops"]
    found = list(csv.DictReader(io.StringIO(table.csv())))
    assert len(found) == 7 * 3
    for entry, expected in zip(found, table.data, strict=True):
        mean = float(entry["mean"] or "nan")
        assert mean == expected["mean"] or (math.isnan(mean) and entry["status"] != "ok")


def test_markdown_keeps_its_columns() -> None:
    table = Table("t", "T", "A|B", ("x",), (Row("p|q", (Cell("1 ± 2", detail="n = 5", best=True),)),))
    lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "**1 ± 2** (best)" in lines[-1]


def test_latex_escapes_and_rules(tables: dict[str, Table]) -> None:
    text = tables["perplexity-at-equal-flops"].latex()
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\cmidrule(lr){2-4}"))
    assert r"Token merging \& pruning" in text
    assert r"$\pm$" in text
    assert "±" not in text
    assert r"\textbf{" in text
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {3}
    assert tex("50% of_x {y} \\z #1 $2 ^~") == (
        r"50\% of\_x \{y\} \textbackslash{}z \#1 \$2 \textasciicircum{}\textasciitilde{}"
    )


def test_names_are_unique() -> None:
    assert unique(["a", "b", "a", "a"]) == ["a", "b", "a-2", "a-3"]


# -- verdicts and costs ---------------------------------------------------------------------------------------------


def test_claims_table_shows_what_was_judged(card: Card) -> None:
    table = claim_table(card, synthetic.make_claims(card))
    cells = {r.label.partition(".")[0]: dict(zip(table.columns, r.cells, strict=True)) for r in table.rows}
    assert cells["C1"]["We measured"].text == "+0.024"
    assert cells["C1"]["Interval"].text == "[+0.013, +0.035]"
    assert cells["C1"]["The paper reported"].text == "better along the whole FLOPs-accuracy curve"
    assert cells["C2"]["The paper reported"].text.startswith("+0.060 log (+6.2")
    assert cells["C5"]["Verdict"].text == "contradicted"
    assert cells["C5"]["p"].text == "<0.001"
    assert cells["C5"]["Holm p"].text == "0.0032"
    assert cells["C7"]["We measured"].text == "–"
    assert cells["C8"]["The paper reported"].text == "a claim of this harness"


def test_pairs_table_lists_every_opponent(card: Card) -> None:
    claim = synthetic.make_claims(card)[0]
    lost = synthetic.make_pair("transformer", math.nan, math.nan, n_cells=0, verdict="not run", p=math.nan)
    table = pair_table(card, [replace(claim, pairs=(*claim.pairs, lost, replace(lost, against="")))])
    assert [r.label for r in table.rows] == [
        "C1: Simba vs Dense Mamba",
        "C1: Simba vs Transformer",
        "C1: Simba vs its target",
    ]
    assert table.rows[1].cells[0].text == "–"
    assert next(csv.DictReader(io.StringIO(table.csv())))["estimate"] == "0.0241"


def test_costs_count_what_was_spent(card: Card, records: pd.DataFrame) -> None:
    tables = {table.name: table for table in cost_tables(card, synthetic.TIER, fold(records))}
    assert set(tables) == {"costs-flops-matched", "costs-ood", "costs-memory-time"}
    merge = dict(
        zip(
            tables["costs-flops-matched"].columns,
            row(tables["costs-flops-matched"], "Token merging & pruning").cells,
            strict=True,
        )
    )
    assert merge["Matches ok"].text == "14 of 15"
    done = records.query("axis == 'flops_matched' and contender == 'merge' and status == 'ok' and metric == 'accuracy'")
    assert float(merge["CPU s per match"].text) == pytest.approx(done["cpu_seconds"].mean(), abs=0.005)
    assert float(merge["Peak MiB"].text) == pytest.approx(done["peak_memory_mb"].max(), abs=0.5)


def test_the_harness_share_of_the_cpu() -> None:
    columns = ["kind", "name", "run", "wall_s", "work_cpu_s", "overhead_cpu_s"]
    assert harness_table(pd.DataFrame([], columns=columns)) is None
    jobs = pd.DataFrame([("base", "a", "r", 9.0, 8.0, 2.0), ("match", "b", "r", 9.0, 28.0, 2.0)], columns=columns)
    table = harness_table(jobs)
    assert table is not None
    assert [r.cells[-1].text for r in table.rows] == ["20.0", "6.7", "10.0"]
