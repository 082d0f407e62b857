"""What is played again after an edit, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

# Fixtures of tests/conftest.py: `played` is a copy of a repository in which everything has been played once.

GOOD, PLAIN = "methods/good.py", "baselines/plain.py"


def planned(repository, *arguments):
    """What a run would do."""
    done = repository.snakemake("--dry-run", *arguments, "toy_flops_matched")
    assert done.code == 0, done.text
    return done


def test_a_second_run_has_nothing_to_do(played):
    done = played.snakemake()
    assert done.code == 0
    assert "Nothing to be done" in done.text
    assert done.jobs() == []


def test_an_edited_method_is_played_again_and_nothing_else(played, played_once):
    before = played_once.records()
    played.edit(GOOD, "+ self.gain", "+ self.gain * 1.5")
    done = played.snakemake()
    assert done.code == 0, done.text
    assert done.jobs() == ["check flops_matched", "play good 0.5 0-4", "play good 1.0 0-4"]
    after = played.records()
    plain, good = after["contender"] == "plain", after["contender"] == "good"
    assert after[plain].equals(before[plain]), "Plain's records are not even written again"
    assert not set(after[good]["run"]) & set(before["run"])
    assert not set(after[good]["digest"]) & set(before[good]["digest"])
    better = good & (after["metric"] == "accuracy")
    assert (after[better]["value"] > before[better]["value"]).all()


def test_an_edited_baseline_is_played_again_with_the_method_that_builds_on_it(played):
    played.edit(PLAIN, "return 0.5 +", "return 0.4 +")
    assert planned(played).played() == {"good", "plain"}


def test_words_and_layout_play_nothing(played):
    played.edit(GOOD, '"""Plain, and a little more."""', '"""Plain, and quite a little more."""')
    played.edit(GOOD, "        return super()", "        # A comment.\n        return super()")
    played.edit(GOOD, "gain: float = 0.1", "gain:   float   =   0.1")
    played.edit(PLAIN, "from typing import Literal", "\n\nfrom typing import Literal")
    played.edit("workflows/toy/arena.py", '"""A base: one number', '"""A base: just one number')
    assert planned(played).jobs() == []


def test_claims_and_labels_are_judged_and_rendered_again_without_playing(played):
    card = "workflows/toy/card.yaml"
    played.edit(card, "statement: Good beats Plain.", "statement: Good beats Plain by far.")
    played.edit(card, "margin: 0.01", "margin: 0.02")
    played.edit(card, "label: Good,", "label: The Good,")
    played.edit(card, "title: Accuracy at equal FLOPs", "title: Accuracy where FLOPs are equal")
    played.edit(card, "summary: Contenders draw", "summary: All contenders draw")
    assert planned(played).jobs() == ["check flops_matched"]


def test_an_arena_edit_plays_everything_again(played):
    played.edit("workflows/toy/arena.py", "scale=0.01", "scale=0.02")
    assert planned(played).played() == {"good", "plain"}


def test_an_option_of_one_contender_plays_just_that_contender(played):
    played.card(lambda card: card["contenders"]["good"].update(options={"gain": 0.3}))
    assert planned(played).jobs() == ["check flops_matched", "play good 0.5 0-4", "play good 1.0 0-4"]


def test_an_option_of_another_tier_plays_nothing(played):
    played.card(lambda card: card["tiers"]["smoke"].update(contenders={"good": {"gain": 0.3}}))
    assert planned(played).played() == set()


def test_a_base_edit_builds_it_and_plays_what_starts_from_it(played):
    played.card(lambda card: card["bases"]["ground"].update(options={"scale": 2.0}))
    done = planned(played)
    assert [job for job in done.jobs() if job.startswith("base")] == [f"base ground any {seed}" for seed in range(5)]
    assert done.played() == {"good", "plain"}


def test_a_new_contender_plays_just_its_matches(played):
    (played.path / "methods/better.py").write_text(
        "from dataclasses import dataclass\n\nfrom methods.good import Good\n\n\n@dataclass\nclass Better(Good):\n"
        "    gain: float = 0.2\n",
        encoding="utf-8",
    )

    def enter(card):
        card["contenders"]["better"] = {
            "label": "Better", "kind": "method", "use": "methods.better:Better", "bases": ["ground"],
        }  # fmt: skip
        card["axes"]["flops_matched"]["contenders"].append("better")

    played.card(enter)
    assert planned(played).jobs() == ["check flops_matched", "play better 0.5 0-4", "play better 1.0 0-4"]


def test_a_new_level_plays_just_that_level(played):
    played.card(lambda card: card["axes"]["flops_matched"]["levels"].append(2.0))
    jobs = [job for job in planned(played).jobs() if job.startswith(("play", "base"))]
    assert jobs == ["play good 2.0 0-4", "play plain 2.0 0-4"]


@pytest.mark.slow
def test_more_seeds_play_only_the_new_ones(played, played_once):
    before = played_once.records()
    played.card(lambda card: card["tiers"]["mini"].update(seeds=7))
    done = played.snakemake()
    assert done.code == 0, done.text
    assert [job for job in done.jobs() if job.startswith("base")] == ["base ground any 5", "base ground any 6"]
    after = played.records()
    after = after[~after.index.isin(after[after.duplicated(["contender", "level", "seed", "metric"])].index)]
    (old_run,) = set(before["run"])
    runs = after.groupby("seed")["run"].unique()
    assert all(list(runs[seed]) == [old_run] for seed in range(5)), "finished seeds are reused"
    assert all(old_run not in runs[seed] for seed in (5, 6)), "new seeds are new"
    files = {path.name for path in Path(played.path / "results/mini/records").rglob("0-6.parquet")}
    assert files == {"0-6.parquet"}


@pytest.mark.slow
def test_fewer_seeds_play_nothing_new(played):
    before = played.records()
    played.card(lambda card: card["tiers"]["mini"].update(seeds=3))
    assert played.snakemake().code == 0
    (old_run,) = set(before["run"])
    after = played.records()
    assert set(after["run"]) == {old_run}


def test_deleted_records_of_one_match_are_played_again(played):
    for file in (played.path / "results/mini/records/toy/flops_matched/good/0.5").iterdir():
        file.unlink()
    jobs = planned(played).jobs()
    assert jobs == ["check flops_matched", "play good 0.5 0-4"]
