"""What a match brings to read: kept beside its records, carried and removed with them, gathered, shown, audited."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from rematch import results
from rematch.arena import Exhibit, Outcome
from rematch.config import load_settings
from rematch.errors import RematchError
from rematch.plan import Plan
from rematch.play import _exhibits
from rematch.records import Played, exhibits_path, items_path, read_exhibits, schema_document, write_exhibits
from rematch.schema import EXHIBIT_KEYS, VOLATILE

FOLDER = "results/mini/records/toy/flops_matched/good/0.5"
PARTS = "results/mini/parts/toy/flops_matched/good/0.5"
BRINGS = 'notes={"level": task.level},'
TEXT = """notes={"level": task.level},
            exhibits=[Exhibit(f"Question {n} <of> seed {task.seed}", [("Attempt", "6 & 7\\n"), ("Again", "")]) for n in range(2)],"""
ROW = {
    "tier": "mini", "paper": "toy", "axis": "flops_matched", "contender": "good", "level": "0.5", "seed": 0,
    "title": "Question 0 <of> seed 0", "fields": [["Attempt", "6 & 7\n"], ["Again", ""]],
}  # fmt: skip


def play(repository, seeds="0-1", run="a-run", contender="good"):
    done = repository.run("python3", "-m", "rematch", "play", "--tier", "mini", "toy", "flops_matched", contender, "0.5",
                          seeds, REMATCH_RUN=run)  # fmt: skip
    assert done.code == 0, done.text


def told(repository, seeds="0-1"):
    """(seed, title) of every exhibit of a match."""
    rows = read_exhibits(repository.path / FOLDER / f"{seeds}.exhibits.json")
    return [(row["seed"], row["title"]) for row in rows]


def both(*seeds):
    return [(seed, f"Question {n} <of> seed {seed}") for seed in seeds for n in range(2)]


@pytest.fixture(scope="module")
def telling_once(played_once, tmp_path_factory):
    """A toy whose arena brings exhibits; its bases are built, and one match is played for two seeds. Shared."""
    repository = played_once.copy(tmp_path_factory.mktemp("telling") / "toy")
    shutil.rmtree(repository.path / "results/mini/records")
    arena = "workflows/toy/arena.py"
    repository.edit(arena, BRINGS, TEXT)
    repository.edit(arena, "import BaseInfo, BaseJob, ", "import BaseInfo, BaseJob, Exhibit, ")
    play(repository, run="first")
    return repository


@pytest.fixture
def telling(telling_once, tmp_path):
    return telling_once.copy(tmp_path / "toy")


# -- on disk --------------------------------------------------------------------------------------------------------------


def test_they_lie_beside_the_records_and_change_nothing_in_them(telling_once, played_once):
    rows = read_exhibits(telling_once.path / FOLDER / "0-1.exhibits.json")
    assert rows[0] == ROW
    assert rows[0].keys() == EXHIBIT_KEYS.keys()
    assert told(telling_once) == both(0, 1)
    assert {path.name for path in (telling_once.path / FOLDER).iterdir()} == {
        "0-1.parquet", "0-1.items.parquet", "0-1.exhibits.json",
    }  # fmt: skip
    same = [*VOLATILE, "digest", "log"]  # the arena's source was edited, and the log bears the range of seeds
    records = telling_once.records().drop(columns=same)
    others = played_once.records().query("contender == 'good' and level == '0.5' and seed < 2").drop(columns=same)
    assert records.equals(others.reset_index(drop=True))


def test_without_any_there_is_no_file(played_once):
    assert not list((played_once.path / "results").rglob("*exhibits*"))


def test_the_keys_are_documented():
    for name, (kind, meaning) in EXHIBIT_KEYS.items():
        assert f"| {name} | {kind} | {meaning} |" in schema_document()


def test_they_replace_those_of_the_attempt_before(telling):
    telling.edit("workflows/toy/arena.py", "Question", "Exercise")
    play(telling)
    assert [title for _, title in told(telling)] == [t.replace("Question", "Exercise") for _, t in both(0, 1)]
    telling.edit("workflows/toy/arena.py", "for n in range(2)", "for n in range(0)")
    play(telling)
    assert not list((telling.path / "results").rglob("*.exhibits.json"))


@pytest.mark.parametrize("how", ["raises", "is not measured", "dies", "brings no text"])
def test_a_failed_match_keeps_none(telling, how):
    wrong = {
        "raises": ("ground = json", "ground = 1 / 0 + json"),
        "is not measured": ("if m.metric in task.metrics]", "if m.metric == 'accuracy']"),
        "dies": ("ground = json", "__import__('os').kill(__import__('os').getpid(), 9)\n        ground = json"),
        "brings no text": ('[("Attempt", "6 & 7\\n"), ("Again", "")]', '[("Attempt", task.seed)]'),
    }[how]
    telling.edit("workflows/toy/arena.py", *wrong)
    play(telling)
    records = telling.records()
    assert set(records["status"]) == {"failed"}
    if how == "brings no text":
        assert "must be a pair (name, text) of texts, not ('Attempt', 0)" in records["reason"][0]
    assert not list((telling.path / "results").rglob("*.exhibits.json"))


def test_seeds_that_are_kept_keep_theirs(telling):
    for path in (telling.path / FOLDER).iterdir():  # killed before its records were accepted: parts are all there is
        path.unlink()
    play(telling, "0-1", run="second")
    assert told(telling, "0-1") == both(0, 1)
    shutil.rmtree(telling.path / PARTS)  # accepted, and then more seeds are asked for
    play(telling, "0-2", run="third")
    assert told(telling, "0-2") == both(0, 1, 2)
    runs = telling.records().groupby("seed")["run"].unique()
    assert [list(runs[seed]) for seed in range(3)] == [["first"], ["first"], ["third"]]


def test_half_a_file_is_played_again(telling):
    shutil.rmtree(telling.path / PARTS)
    (telling.path / FOLDER / "0-1.exhibits.json").write_text('[{"seed": 0,')
    play(telling, "0-1", run="second")
    assert told(telling) == both(0, 1)
    assert set(telling.records()["run"]) == {"second"}


def test_retry_failed_takes_those_of_the_good_seeds_along(telling):
    telling.edit("workflows/toy/arena.py", "ground = json", "ground = 1 / task.seed and json")  # seed 0 fails
    play(telling, "0-4")
    assert told(telling, "0-4") == both(1, 2, 3, 4)
    done = telling.run("rematch", "retry-failed")
    assert done.code == 0, done.text
    assert not list((telling.path / FOLDER).glob("0-4.*"))
    parts = sorted((telling.path / PARTS / "0-4").glob("*.exhibits.json"))
    assert [path.name[0] for path in parts] == ["1", "2", "3", "4"]
    assert [(row["seed"], row["title"]) for path in parts for row in read_exhibits(path)] == both(1, 2, 3, 4)


@pytest.mark.parametrize("text", ["", "[", "{}", "[1]", '[{"seed": 0}]', "\udcff"])
def test_what_holds_no_exhibits_is_one_line(tmp_path, text):
    path = tmp_path / "0.exhibits.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RematchError, match=r"0\.exhibits\.json: does not hold exhibits .*; delete it with the records"):
        read_exhibits(path)


def test_text_survives_as_it_is(tmp_path):
    row = ROW | {"fields": [["a\u202e", "</pre>\x00\x1b[31m é\r\n\u2028 " + "😀"]]}
    write_exhibits([row], tmp_path / "0.exhibits.json")
    assert read_exhibits(tmp_path / "0.exhibits.json") == [row]
    (found,) = _exhibits(ROW, Outcome([], exhibits=[Exhibit("half \ud83d", [("\udc00", "a\ud83d")])]))
    assert (found["title"], found["fields"]) == ("half ?", [["?", "a?"]])


@pytest.mark.parametrize("fields", [["ab"], [("a",)], [("a", "b", "c")], [("a", 1)], [["a", "b"]], [(None, "b")]])
def test_an_exhibit_is_text(fields):
    with pytest.raises(TypeError, match="must be a pair"):
        Exhibit("title", fields)
    with pytest.raises(TypeError, match="the title must be text, not 3"):
        Exhibit(3, [])


def test_the_records_are_written_last(telling_once, tmp_path, monkeypatch):
    """Whoever finds records finds what belongs to them, whenever the writer was killed."""
    played, order = Played.read(telling_once.path / FOLDER / "0-1.parquet"), []
    import rematch.records as records

    whole = records.write_atomic
    monkeypatch.setattr(records, "write_atomic", lambda path, fill: (order.append(path), whole(path, fill)))
    path = tmp_path / "0-1.parquet"
    played.write(path)
    assert order == [exhibits_path(path), items_path(path), path]


# -- gathered, shown, audited ---------------------------------------------------------------------------------------------


def test_they_reach_the_page_and_leave_it(telling):
    telling.card(lambda card: card.update(exhibits_title="What they <wrote>"))
    plan = Plan(load_settings(telling.path), "mini")

    def render():
        results.judge(plan, "toy")
        results.page(plan, "toy")
        return (telling.path / "reports/mini/toy.html").read_text(encoding="utf-8")

    play(telling, "0-4")
    play(telling, "0-4", contender="plain")
    text = render()
    gathered = read_exhibits(telling.path / "results/mini/papers/toy/exhibits.json")
    assert [(row["contender"], row["seed"]) for row in gathered[::2]] == [(c, s) for c in ("good", "plain") for s in range(5)]  # fmt: skip
    assert '<h2 id="exhibits">What they &lt;wrote&gt;</h2>' in text
    assert re.findall(r"<h4>(.*?)</h4>", text) == ["Question 0 &lt;of&gt; seed 0", "Question 1 &lt;of&gt; seed 0"] * 2
    assert '<dd dir="auto">6 &amp; 7\n</dd>' in text

    telling.edit("workflows/toy/arena.py", "for n in range(2)", "for n in range(0)")
    play(telling, "0-4")
    play(telling, "0-4", contender="plain")
    assert 'id="exhibits"' not in render()
    assert json.loads((telling.path / "results/mini/papers/toy/exhibits.json").read_text()) == []


def test_audit_counts_them_and_says_where_they_lie(telling, played_once):
    cell = "toy/flops_matched/good/0.5"
    path = telling.path / FOLDER / "0-4.exhibits.json"
    play(telling, "0-4")
    done = telling.run("rematch", "audit", cell, COLUMNS="200")
    assert done.code == 0, done.text
    assert done.text.count(f"  exhibits: 2, in {path}\n") == 5
    assert "exhibits" in done.text.splitlines()[1]
    rows = json.loads(telling.run("rematch", "audit", cell, "--json").text)["rows"]
    assert [row["exhibits"] for row in rows] == [2] * 5
    assert "exhibits" not in played_once.run("rematch", "audit", cell, COLUMNS="200").text
