"""Every mistake of a user's is one line that names the file, the key and what is allowed, before any job starts."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from rematch import config as config_module
from rematch.errors import RematchError
from rematch.workflow import Workflow

CARD = "workflows/toy/card.yaml"
REPORTED = "workflows/toy/reported.csv"
HEADER = "paper,table,axis,dataset,setting,contender,metric,value,unit,higher_is_better,source\n"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Planning tells jobs its configuration through the environment; no other test is to see it."""
    for name in ("REMATCH_CONFIG", "PATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


def plan(repository, **config):
    workflow = Workflow(repository.path, config)
    workflow.check_records(workflow.tier)
    return workflow


def complaint(repository, **config):
    """The one line that planning ends with."""
    with pytest.raises(RematchError) as caught:
        plan(repository, **config)
    text = str(caught.value)
    assert text.strip()
    assert "\n" not in text
    return text


def put(*keys, value):
    """A change of the card: the value at a path of keys."""

    def change(card):
        for key in keys[:-1]:
            card = card[key]
        card[keys[-1]] = value

    return change


def rename(*keys, to):
    """A change of the card: a key under another name."""

    def change(card):
        for key in keys[:-1]:
            card = card[key]
        card[to] = card.pop(keys[-1])

    return change


def needs_circle(card):
    card["bases"]["water"] = {"use": "workflows.toy.arena:Ground", "needs": ["ground"]}
    card["bases"]["ground"]["needs"] = ["water"]


def claim_of_an_unmeasured_metric(card):
    card["axes"]["flops_matched"]["metrics"] = ["perplexity"]
    card["plots"] = card["tables"] = []


def two_sizes_without_a_budget(card):
    card["bases"]["ground"]["per_share"] = True
    card["axes"]["flops_matched"]["budget"] = None


def only_one_is_measured(card):
    card["claims"] = {}
    for metric in card["metrics"].values():
        metric["of"] = ["good"]


def only_one_is_measured_at_a_tier(card):
    card["claims"] = {}
    card["metrics"]["accuracy"]["of"] = ["good"]
    card["tiers"]["mini"]["axes"]["flops_matched"] = {"metrics": ["accuracy"]}


AXIS = ("axes", "flops_matched")
MISTAKES = {
    "unknown contender in an axis": (
        put(*AXIS, "contenders", value=["good", "plane"]),
        f"{CARD}: axes.flops_matched.contenders: unknown contender 'plane'; allowed: good, plain. Did you mean 'plain'?",
    ),
    "unknown axis": (
        rename(*AXIS, to="flops_machted"),
        f"{CARD}: axes.flops_machted: Input should be 'flops_matched', 'data_efficiency', 'ood', ",
    ),
    "misspelt key at the top": (
        rename("claims", to="clams"),
        f"{CARD}: unknown key 'clams'; allowed: paper, title, citation, version, changelog, summary, metrics, bases, ",
    ),
    "misspelt key of a contender": (
        put("contenders", "good", "optoins", value={}),
        f"{CARD}: contenders.good: unknown key 'optoins'; allowed: label, kind, use, bases, options, describe, ",
    ),
    "misspelt key of an axis": (
        rename(*AXIS, "level_label", to="level_lable"),
        f"{CARD}: axes.flops_matched: unknown key 'level_lable'; allowed: label, level_label, level_type, levels, ",
    ),
    "misspelt key of a budget": (
        rename(*AXIS, "budget", "share", to="shares"),
        f"{CARD}: axes.flops_matched.budget: unknown key 'shares'; allowed: reference, share, tolerance, fixed.",
    ),
    "misspelt key of a claim": (
        rename("claims", "C1", "margin", to="margn"),
        f"{CARD}: claims.C1: unknown key 'margn'; allowed: statement, source, axis, metric, slice, contender, against, ",
    ),
    "misspelt key of a tier": (
        put("tiers", "mini", "seed", value=3),
        f"{CARD}: tiers.mini: unknown key 'seed'; allowed: axes, seeds, arena, bases, contenders, match_limit_s, ",
    ),
    "misspelt key of an axis at a tier": (
        put("tiers", "mini", "axes", "flops_matched", value={"level": [0.5]}),
        f"{CARD}: tiers.mini.axes.flops_matched: unknown key 'level'; allowed: levels, contenders, metrics, tolerance, share.",
    ),
    "misspelt key of a plot": (
        put("plots", 0, "logx", value=True),
        f"{CARD}: plots.0: unknown key 'logx'; allowed: title, axis, metric, x, x_metric, contenders, levels, slice, ",
    ),
    "unknown tier in a card": (
        put("tiers", "maxi", value={"axes": {}}),
        f"{CARD}: tiers.maxi: Input should be 'smoke', 'mini', 'real' or 'paper', not 'maxi'",
    ),
    "a level as text": (
        put(*AXIS, "levels", value=["0.5", 1.0]),
        f"{CARD}: axes.flops_matched.levels: '0.5' is not a number; the axis says level_type: number",
    ),
    "a name where a number is meant": (
        put("tiers", "mini", "axes", "flops_matched", value={"levels": ["low"]}),
        f"{CARD}: tiers.mini.axes.flops_matched.levels: 'low' is not a number; the axis says level_type: number",
    ),
    "a number where an integer is meant": (
        put(*AXIS, "level_type", value="integer"),
        f"{CARD}: axes.flops_matched.levels: 0.5 is not an integer; the axis says level_type: integer",
    ),
    "a level as a truth value": (
        put(*AXIS, "levels", value=[True]),
        f"{CARD}: axes.flops_matched.levels.0: Input should be a valid number or a valid integer or a valid string, not True",
    ),
    "a level of zero": (
        put(*AXIS, "levels", value=[0, 1]),
        f"{CARD}: axes.flops_matched.levels: with budget.share 'level' every level is a positive number",
    ),
    "a level twice": (
        put(*AXIS, "levels", value=[0.5, 0.5]),
        f"{CARD}: axes.flops_matched.levels: a level is given twice",
    ),
    "no level": (put(*AXIS, "levels", value=[]), f"{CARD}: axes.flops_matched.levels: List should have at least 1 item"),
    "unknown option": (
        put("contenders", "good", "options", value={"gian": 0.2}),
        f"{CARD}: contenders.good.options: unknown option of methods.good:Good 'gian'; allowed: gain, mode, slope. "
        "Did you mean 'gain'?",
    ),
    "option of the wrong type": (
        put("contenders", "good", "options", value={"gain": "much"}),
        f"{CARD}: contenders.good.options.gain: must be a number, not 'much' (methods.good:Good)",
    ),
    "option outside its choices": (
        put("tiers", "mini", "contenders", value={"plain": {"mode": "fsat"}}),
        f"{CARD}: tiers.mini.contenders.plain.mode: must be one of fast, slow, not 'fsat' (baselines.plain:Plain)",
    ),
    "option of the arena of the wrong type": (
        put("tiers", "mini", "arena", value={"n_items": 2.5}),
        f"{CARD}: tiers.mini.arena.n_items: must be a whole number, not 2.5 (workflows.toy.arena:Arena)",
    ),
    "option for an unknown contender": (
        put("tiers", "mini", "contenders", value={"goood": {}}),
        f"{CARD}: tiers.mini.contenders: unknown contender 'goood'; allowed: good, plain. Did you mean 'good'?",
    ),
    "unknown class": (
        put("contenders", "good", "use", value="methods.good:Goood"),
        f"{CARD}: contenders.good.use: unknown class 'methods.good:Goood'; allowed: methods.good:Good.",
    ),
    "unknown module": (
        put("contenders", "good", "use", value="methods.godo:Good"),
        f"{CARD}: contenders.good.use: no module 'methods.godo' (looked for methods/godo.py)",
    ),
    "no class": (
        put("contenders", "good", "use", value="methods.good"),
        f"{CARD}: contenders.good.use: 'methods.good' must be 'module:Class', for example methods.simba:Simba",
    ),
    "unknown base": (
        put("contenders", "good", "bases", value=["grund"]),
        f"{CARD}: contenders.good.bases: unknown base 'grund'; allowed: ground. Did you mean 'ground'?",
    ),
    "unknown reference": (
        put(*AXIS, "budget", "reference", value="grund"),
        f"{CARD}: axes.flops_matched.budget.reference: unknown base 'grund'; allowed: ground.",
    ),
    "a budget that leaves an unknown contender as it is": (
        put(*AXIS, "budget", "fixed", value=["godo"]),
        f"{CARD}: axes.flops_matched.budget.fixed: unknown contender 'godo'; allowed: good, plain. Did you mean 'good'?",
    ),
    "a metric of an unknown contender": (
        put("metrics", "accuracy", "of", value=["god"]),
        f"{CARD}: metrics.accuracy.of: unknown contender 'god'; allowed: good, plain. Did you mean 'good'?",
    ),
    "a claim of a metric that the opponent lacks": (
        put("metrics", "accuracy", "of", value=["good"]),
        f"{CARD}: claims.C1: unknown contender (not one that has 'accuracy') 'plain'; allowed: good.",
    ),
    "a contender without a metric on an axis": (
        only_one_is_measured,
        f"{CARD}: axes.flops_matched.contenders: 'plain' has none of the axis's metrics (see their 'of')",
    ),
    "a contender without a metric at a tier": (
        only_one_is_measured_at_a_tier,
        f"{CARD}: tiers.mini.axes.flops_matched.contenders: 'plain' has none of the axis's metrics (see their 'of')",
    ),
    "bases that need each other": (needs_circle, f"{CARD}: bases.ground.needs: a cycle, ground -> water -> ground"),
    "a size without a budget": (
        two_sizes_without_a_budget,
        f"{CARD}: axes.flops_matched: 'good' starts from 'ground', sized per share; set a budget",
    ),
    "a base without seed that needs one with": (
        put("bases", "corpus", value={"use": "workflows.toy.arena:Ground", "seeded": False, "needs": ["ground"]}),
        f"{CARD}: bases.corpus.seeded: a base without seed can need only bases without seed, at no share",
    ),
    "a metric that no arena produces": (
        put("metrics", "f1", value={"label": "F1", "better": "higher"}),
        f"{CARD}: metrics: unknown metric (no arena produces it) 'f1'; allowed: accuracy, perplexity, seconds_per_item.",
    ),
    "a claim of a metric that the axis does not measure": (
        claim_of_an_unmeasured_metric,
        f"{CARD}: claims.C1.metric: unknown metric (the axis does not measure it) 'accuracy'; allowed: perplexity.",
    ),
    "a claim about an unknown opponent": (
        put("claims", "C1", "against", value=["plane"]),
        f"{CARD}: claims.C1.contender/against: unknown contender 'plane'; allowed: good, plain. Did you mean 'plain'?",
    ),
    "a claim without opponent": (
        put("claims", "C1", "against", value=[]),
        f"{CARD}: claims.C1.against: needed for 'better' and 'not_worse', absent for 'within'",
    ),
    "a claim that nobody makes": (
        put("claims", "C1", "source", value=""),
        f"{CARD}: claims.C1.source: missing: where does the paper make this claim? One of the harness has ours: true",
    ),
    "a claim at a level that the axis lacks": (
        put("claims", "C1", "levels", value=[0.7]),
        f"{CARD}: claims.C1.levels: unknown level '0.7'; allowed: 0.5, 1.0.",
    ),
    "a negative margin": (
        put("claims", "C1", "margin", value=-0.1),
        f"{CARD}: claims.C1.margin: Input should be greater than 0, not -0.1",
    ),
    "a reported value that is not there": (
        put("claims", "C1", "reported", value={"contender": "Good", "against": "Plain", "metric": "accuracy"}),
        f'{CARD}: claims.C1.reported: 0 rows of reported.csv match {{"contender": "Good", "metric": "accuracy"}}; '
        "exactly one is needed",
    ),
    "zero seeds": (
        put("tiers", "mini", "seeds", value=0),
        f"{CARD}: tiers.mini.seeds: Input should be greater than or equal to 1, not 0",
    ),
    "a negative number of seeds": (
        put("tiers", "mini", "seeds", value=-3),
        f"{CARD}: tiers.mini.seeds: Input should be greater than or equal to 1, not -3",
    ),
    "seeds as text": (put("tiers", "mini", "seeds", value="many"), f"{CARD}: tiers.mini.seeds: Input should be a valid "),
    "no time": (
        put("tiers", "mini", "match_limit_s", value=0),
        f"{CARD}: tiers.mini.match_limit_s: Input should be greater than 0, not 0",
    ),
    "another paper's name": (
        put("paper", value="tyo"),
        f"{CARD}: paper: 'tyo' must be the folder's name, 'toy'",
    ),
    "a plot of an unknown metric": (
        put("plots", 0, "metric", value="acuracy"),
        f"{CARD}: plots[0].metric: unknown metric 'acuracy'; allowed: accuracy, perplexity. Did you mean 'accuracy'?",
    ),
    "a table of an axis that is not there": (
        put("tables", 0, "axis", value="ood"),
        f"{CARD}: tables[0].axis: unknown axis 'ood'; allowed: flops_matched.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_card(toy, name):
    change, expected = MISTAKES[name]
    toy.card(change)
    assert complaint(toy).startswith(expected)


def test_the_untouched_card_is_fine(toy):
    assert plan(toy).papers == ["toy"]


def test_an_option_without_default_must_be_given(toy):
    toy.edit("methods/good.py", "    gain: float = 0.1", "    gain: float")
    toy.edit("baselines/plain.py", "from dataclasses import dataclass", "from dataclasses import dataclass, field")
    text = complaint(toy)
    assert (
        text == f"{CARD}: tiers.smoke.contenders.good: option 'gain' is needed: methods.good:Good gives it no default"
    )
    toy.card(put("contenders", "good", "options", value={"gain": 0.1}))
    plan(toy)


TEXTS = {
    "a key twice": (CARD, "version: 1\n", "version: 1\nversion: 2\n", "not valid YAML: key 'version' is given twice, line 5"),
    "a bracket too few": (CARD, "contenders: [good, plain]", "contenders: [good, plain", "not valid YAML: "),
    "a list as a key": (CARD, "version: 1", "version: 1\n? [a]\n: 1", "not valid YAML: a key must be a name, line 5"),
    "another header": (REPORTED, "paper,table,", "paper,tables,", f"the header must be {HEADER.strip()}"),
    "text for a number": (
        REPORTED, "source\n", "source\ntoy,1,flops_matched,d,s,Good,accuracy,high,,true,p. 3\n",
        "value: 'high' is not a number",
    ),
    "NaN for a number": (
        REPORTED, "source\n", "source\ntoy,1,flops_matched,d,s,Good,accuracy,nan,,true,p. 3\n",
        "value: 'nan' is not a number",
    ),
    "a column too few": (REPORTED, "source\n", "source\ntoy,1,flops_matched,d,s,Good,accuracy,0.7\n", "must have 11 columns"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_a_mistake_in_a_file(toy, name):
    file, old, new, expected = TEXTS[name]
    toy.edit(file, old, new)
    text = complaint(toy)
    assert text.startswith(file)
    assert expected in text


@pytest.mark.parametrize("file", [CARD, REPORTED, "config/config.yaml"])
def test_a_file_that_is_not_text(toy, file):
    (toy.path / file).write_bytes(b"paper: \xff\xfe\n")
    assert complaint(toy).startswith(f"{file}: not UTF-8 text")


def test_a_missing_file_of_reported_values(toy):
    (toy.path / REPORTED).unlink()
    assert complaint(toy).startswith(
        f"{REPORTED}: cannot be read (No such file or directory); a header alone is allowed"
    )


@pytest.mark.parametrize("content", ["", "just words\n", "- a\n- list\n"])
def test_a_card_that_is_no_mapping(toy, content):
    (toy.path / CARD).write_text(content, encoding="utf-8")
    assert complaint(toy).startswith(f"{CARD}: must be a mapping with the keys paper, title, ")


def test_a_source_file_that_is_not_python(toy):
    toy.edit("methods/good.py", "class Good(Plain):", "class Good(Plain)")
    assert re.search(r"methods/good\.py:9: not valid Python: ", complaint(toy))


def test_an_arena_without_metrics(toy):
    toy.edit("workflows/toy/arena.py", "METRICS: ClassVar", "MEASURES: ClassVar")
    assert complaint(toy) == "workflows/toy/arena.py: class Arena needs METRICS, a literal tuple of strings"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"tier": "maxi"}, "config/config.yaml with --config: tier: unknown tier 'maxi'; allowed: smoke, mini, real, paper."),
        ({"teir": "mini"}, "config/config.yaml with --config: unknown key 'teir'; allowed: tier, papers, results, reports, "),
        ({"papers": "tyo"}, "config: papers: unknown paper 'tyo'; allowed: toy. Did you mean 'toy'?"),
        ({"papers": ["toy", "oyt"]}, "config: papers: unknown paper 'oyt'; allowed: toy."),
        ({"papers": "toy", "tier": "paper"}, "config: papers: 'toy' has no entry for tier 'paper' in its card"),
        ({"hub_mirror": "no/such/folder"}, "config/config.yaml with --config: hub_mirror: no folder 'no/such/folder'; "),
        ({"papers": 5}, "config/config.yaml with --config: papers: Input should be 'all' or a valid list, not 5"),
        ({"confidence": 95}, "config/config.yaml with --config: confidence: Input should be less than 1, not 95"),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line(toy, config, expected):
    assert complaint(toy, **config).startswith(expected)


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("config/tiers/mini.yaml", "seeds: 5", "seeds: -1", "config/tiers/mini.yaml: seeds: Input should be greater than 0"),
        ("config/tiers/real.yaml", "match_limit_s", "match_limit", "config/tiers/real.yaml: unknown key 'match_limit'; "),
        ("config/config.yaml", "confidence:", "confident:", "config/config.yaml: unknown key 'confident'; allowed: tier, "),
    ],
)  # fmt: skip
def test_a_mistake_in_the_config(toy, file, old, new, expected):
    toy.edit(file, old, new)
    assert complaint(toy).startswith(expected)


def test_a_paper_without_card(toy):
    (toy.path / "workflows/mac").mkdir()
    assert complaint(toy, papers="mac").startswith("config: papers: unknown paper 'mac'; allowed: toy.")


@pytest.mark.parametrize("key", ["results", "reports"])
def test_a_folder_that_cannot_be_written(toy, key):
    (toy.path / "occupied").write_text("a file", encoding="utf-8")
    text = complaint(toy, **{key: "occupied"})
    assert text == f"config: {key}: '{toy.path}/occupied' is not a folder that can be written; give another one"


def test_a_disk_that_is_nearly_full(toy, monkeypatch):
    monkeypatch.setattr(config_module, "MIN_FREE_BYTES", 2**70)
    assert re.match(r"config: results: only \d+ MiB free at '.*'; at least \d+ are needed$", complaint(toy))


def test_a_truncated_record(played):
    (file, *_) = sorted(Path(played.path / "results").rglob("0-4.parquet"))
    file.write_bytes(file.read_bytes()[:-100])
    name = file.relative_to(played.path)
    assert complaint(played) == f"{name}: not a whole Parquet file; delete it and run again: only it is played again"


@pytest.mark.parametrize("content", [b"", b"PAR1"])
def test_a_record_that_is_cut_to_almost_nothing(played, content):
    (file, *_) = sorted(Path(played.path / "results").rglob("0-4.parquet"))
    file.write_bytes(content)
    assert "not a whole Parquet file" in complaint(played)


# -- no mistake at all ends in a traceback ------------------------------------------------------------------------------

STRANGE = (None, [], {}, "text", -1, 0.5, True, ["text"], {"text": 1}, [None], [[1]], {"text": {"text": None}})


def places(node, path=()):
    """Every path into the card's data."""
    if path:
        yield path
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield from places(value, (*path, key))


def refusal(repository):
    """The line that planning ends with, or None where the card is accepted."""
    try:
        plan(repository).plan("mini").compute_digests()
    except RematchError as error:
        return str(error)
    return None


def test_whatever_stands_anywhere_in_a_card_is_fine_or_one_line(toy):
    """Put every strange value in every place of the card: it is accepted, or refused in one line that names the card."""
    original = (toy.path / CARD).read_text(encoding="utf-8")
    lines = []
    for place in places(yaml.safe_load(original)):
        for value in STRANGE:
            card = yaml.load(original, Loader=yaml.CSafeLoader)
            put(*place, value=value)(card)
            (toy.path / CARD).write_text(json.dumps(card), encoding="utf-8")  # JSON is YAML, and quicker
            lines.append(refusal(toy))
    refused = [line for line in lines if line is not None]
    assert len(refused) > 500
    assert [line for line in refused if not line.startswith(CARD) or "\n" in line] == []


# -- and the same on the command line -------------------------------------------------------------------------------------


def lines_of(done):
    return [line for line in done.text.splitlines() if not line.startswith("Using workflow specific profile")]


@pytest.mark.parametrize("kind", ["card", "config", "record"])
def test_snakemake_prints_the_line_and_nothing_else(played, kind):
    arguments = ["toy_flops_matched"]
    if kind == "card":
        played.card(rename("claims", "C1", "margin", to="margn"))
    elif kind == "config":
        arguments = ["--config", "teir=mini", "--", *arguments]
    else:
        next((played.path / "results/mini/records").rglob("0-4.parquet")).write_bytes(b"PAR1")
    before = sorted((played.path / "results/mini/runs").iterdir())
    done = played.snakemake(*arguments)
    assert done.code != 0
    (line,) = lines_of(done)
    assert line.startswith("rematch: ")
    assert sorted((played.path / "results/mini/runs").iterdir()) == before, "no run has begun"
