"""ReVISE's arena on the small room: scores, costs, what becomes of first attempts, and what is said where nothing can be."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baselines.post_training.dpo import solution_scores
from methods.revise.trajectories import Attempt, Belief, Trajectory
from methods.revise.verification import auroc, auroc_within
from rematch.arena import Undefined
from rematch.errors import RematchError
from rematch.play import Skip, load
from workflows.revise import written as writing
from workflows.revise.arena import Arena
from workflows.revise.contenders import FewShot, Oracle, Revise, Solver, Verifier
from workflows.revise.data import problems_of, read_test
from workflows.revise.match import Match
from workflows.revise.models import load_model, outside_band
from workflows.revise.other_matches import VerifierMatch
from workflows.revise.tasks import load_task
from workflows.revise.written import META, Writer

Play = Callable[..., dict[str, Any]]


@pytest.fixture
def scripted(room: Any, tmp_path: Path) -> Callable[..., Match]:
    """A match on trajectories that a test writes: for every question a list of lists of (right, refine, end, refine belief)."""
    questions = room.build("questions")[0]
    problems = problems_of(read_test(questions, "id"), load_task(questions))

    def made(script: list[list[list[tuple[bool, bool, float, float]]]], contender: Any = None, **task: Any) -> Match:
        folder = tmp_path / "written" / "any" / "0"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        found = []
        for problem, trajectories in zip(problems, script, strict=False):
            wrong = tuple(problem.prompt[1:2]) * len(problem.solution)
            wrong = wrong if wrong != problem.solution else (*wrong[:-1], wrong[-1] + 1)
            found.append([
                Trajectory(tuple(
                    Attempt(problem.solution if right else wrong, True, refine, -1.0, Belief(end, no), Belief(end, no), 5)
                    for right, refine, end, no in attempts
                ))
                for attempts in trajectories
            ])  # fmt: skip
        writing._write(folder / "id.jsonl", found)
        n = max(map(len, found))
        costs = {"flops": [[100.0, 50.0, 0.0], [80.0, 40.0, 0.0]], "tokens": writing._tokens(found, n, 3)}
        (folder / META).write_text(json.dumps({"id": {**costs, "statuses": [""] * len(found)}}))
        base = room.task("ablation", "revise", 1)
        bases = {"revise_written": folder, "questions": questions, "m0": base.bases["m0"]}
        given = dataclasses.replace(base, contender=contender or Revise(), bases=bases, **task)
        match = Match(Arena(n_votes=3), given)
        match.problems = problems[: len(script)]
        match.names = [f"id/test/{i}" for i in range(len(script))]
        return match

    return made


DONE, WRONG_DONE = (True, False, 0.9, 0.1), (False, False, 0.6, 0.4)
RIGHT_ASKS, WRONG_ASKS = (True, True, 0.4, 0.6), (False, True, 0.1, 0.9)
SCRIPT = [
    [[DONE]],
    [[WRONG_ASKS, DONE]],
    [[WRONG_ASKS, WRONG_DONE]],
    [[RIGHT_ASKS, WRONG_DONE]],
    [[RIGHT_ASKS, DONE]],
    [[WRONG_DONE]],
]


def values(match: Match, metric: str) -> dict[str, float]:
    return {m.slice: m.value for m in getattr(match, metric)()}


def test_what_became_of_first_attempts(scripted: Callable[..., Match]) -> None:
    match = scripted(SCRIPT)
    sixth = pytest.approx(1 / 6)
    assert values(match, "fate") == {
        "fate=right to right": sixth, "fate=right to wrong": sixth, "fate=wrong to right": sixth,
        "fate=wrong to wrong": sixth, "fate=kept right": sixth, "fate=kept wrong": sixth,
    }  # fmt: skip
    accuracy, first = values(match, "accuracy")[""], values(match, "first_accuracy")[""]
    assert (accuracy, first) == (pytest.approx(3 / 6), pytest.approx(3 / 6))
    assert values(match, "refine_rate")[""] == pytest.approx(4 / 6)
    # acc(ReVISE) = acc(First) - P(R and first right) + P(R and second right)
    assert accuracy == pytest.approx(first - 2 / 6 + 2 / 6)


def test_cut_at_the_first_attempt(scripted: Callable[..., Match]) -> None:
    match = scripted(SCRIPT, Revise(tries=1))
    assert values(match, "accuracy") == values(match, "first_accuracy")
    assert values(match, "refine_rate")[""] == 0
    assert match.cost.of(1, 1) == (5.0, pytest.approx(100 / 6))
    assert scripted(SCRIPT).cost.of(1, 2)[0] == pytest.approx((6 * 5 + 4 * 5) / 6)


def test_votes_on_the_same_trajectories(scripted: Callable[..., Match]) -> None:
    sure, unsure = (True, False, 0.9, 0.1), (False, False, 0.3, 0.7)
    script = [[[unsure], [unsure], [sure]], [[sure], [unsure], [unsure]]]
    found = {
        name: scripted(script, contender, axis="test_time_compute", level=3).right(3)
        for name, contender in (
            ("weighted", Revise()),
            ("plain", Solver()),
            ("oracle", Oracle()),
            ("likelihood", Revise(vote="answer_likelihood")),
        )
    }
    assert found == {
        "weighted": [True, True], "plain": [False, False], "oracle": [True, True], "likelihood": [False, False],
    }  # fmt: skip
    first = scripted(script, Solver(), axis="test_time_compute", level=1)
    assert first.right(1) == scripted(script, Revise(), axis="test_time_compute", level=1).right(1) == [False, True]


def test_verification_is_by_the_difference_of_beliefs(scripted: Callable[..., Match]) -> None:
    match = scripted(SCRIPT)
    # right: 0.8, -0.2, -0.2; wrong: -0.8, -0.8, 0.2
    won = 3 + 2 * 2 + 2 * 0
    assert values(match, "auroc")[""] == pytest.approx(won / 9)
    density = values(match, "score_density")
    assert sum(value for name, value in density.items() if name.startswith("right=")) == pytest.approx(1)
    assert density["right=0.7"] + density["right=0.9"] == pytest.approx(1 / 3)
    with pytest.raises(Undefined, match="all right or all wrong"):
        values(scripted([[[DONE]], [[DONE]]]), "auroc")
    with pytest.raises(Undefined, match="any one question"):
        values(match, "auroc_within")


def test_equal_tokens(scripted: Callable[..., Match]) -> None:
    """ReVISE writes two attempts of 5 tokens to each of n samples; who writes one may have two samples for each."""
    sure, other = [DONE], [WRONG_ASKS, DONE]
    script = [[other, sure, sure, sure]] * 4
    single = scripted(script, Solver(), axis="test_time_compute", level=2)
    assert single.cost.of(2, 2)[0] == single.cost.of(3, 1)[0] == 15
    (found,) = single.equal_tokens_accuracy()
    assert found.items == [1.0] * 4 == [float(each) for each in single.right(3)]
    assert not any(single.right(2))
    single.n = 4  # 25 tokens, and all four have 20
    (found,) = single.equal_tokens_accuracy()
    assert found.items == [1.0] * 4
    double = scripted([[other, other, other]] * 4, Solver(), axis="test_time_compute", level=3)
    with pytest.raises(
        RematchError, match=r"30\.0 tokens a question with 3 trajectories, and all 3 .* have 15\.0; raise its n"
    ):
        list(double.equal_tokens_accuracy())


def test_nothing_is_dropped_silently(scripted: Callable[..., Match], room: Any) -> None:
    match = scripted(SCRIPT)
    match.written.trajectories[5] = []
    match.written.statuses[5] = "too_long"
    cut = dataclasses.replace(match.written.trajectories[0][0].attempts[0], ended=False, ids=(7,))
    match.written.trajectories[0][0] = Trajectory((cut,))
    empty = dataclasses.replace(match.written.trajectories[4][0].attempts[1], ids=())
    match.written.trajectories[4][0] = Trajectory((match.written.trajectories[4][0].attempts[0], empty))
    found = values(match, "unanswered")
    assert found[""] == pytest.approx(3 / 6)
    assert {name for name in found if name} == {"reason=too_long", "reason=cut", "reason=empty"}
    assert values(match, "accuracy")[""] == pytest.approx(1 / 6)
    assert len(next(iter(match.accuracy())).items or ()) == 6


def with_notes(match: Match, base: str, **notes: Any) -> Match:
    info = dataclasses.replace(match.task.base_info[base], notes=dict(match.task.base_info[base].notes) | notes)
    match.task = dataclasses.replace(match.task, base_info={**match.task.base_info, base: info})
    return match


def test_what_training_could_not_use_is_measured(scripted: Callable[..., Match]) -> None:
    first = {"sampled": 8, "unfinished": 1, "empty": 0, "blank": 1, "too_long": 0, "cut": 0, "rows": 6, "right": 3}
    second = {"sampled": 8, "unfinished": 2, "empty": 1, "blank": 0, "too_long": 1, "cut": 2, "rows": 2, "right": 2}
    match = with_notes(scripted(SCRIPT), "revise_written", counts={"1 verify": first, "2 correct": second})
    assert values(match, "unused") == {
        "": 6 / 16, "unused=unfinished": 3 / 16, "unused=empty": 1 / 16, "unused=blank": 1 / 16, "unused=too long": 1 / 16,
        "unused=cut": 2 / 16,
    }  # fmt: skip
    assert values(match, "right_rows") == {"": 5 / 8, "stage=1 verify": 0.5, "stage=2 correct": 1.0}
    assert match.notes["counts"] == {"1 verify": first, "2 correct": second}
    rival = with_notes(match, "revise_written", counts={"samples": {"sampled": 4, "unfinished": 1, "empty": 0}})
    assert values(rival, "unused") == {"": 1 / 4, "unused=unfinished": 1 / 4, "unused=empty": 0.0}
    with pytest.raises(Undefined, match="right or wrong"):
        values(rival, "right_rows")
    with pytest.raises(Undefined, match="nothing was sampled"):
        values(with_notes(match, "revise_written", counts={}), "unused")


def test_tables_are_told_who_refines_nothing_or_everything(scripted: Callable[..., Match]) -> None:
    assert scripted(SCRIPT).remarks == {}
    assert scripted([[[DONE]], [[WRONG_DONE]]]).remarks == dict.fromkeys(("refine_rate", "accuracy"), "never refines")
    assert scripted([[[WRONG_ASKS, DONE]]] * 2).remarks["refine_rate"] == "always refines"
    assert scripted([[[DONE]]], Revise(tries=1)).remarks == {}  # is not asked to


def test_tables_are_told_where_m0_is_not_as_it_was_meant_to_be(play: Play, room: Any) -> None:
    notes = room.build("m0")[1].notes
    expected = outside_band(notes["accuracy"])
    assert notes.get("warning") == expected.get("warning")
    found = play("ablation", "sft", 1)["outcome"].remarks
    assert found == (dict.fromkeys(("accuracy", "calibration"), expected["warning"]) if expected else {})
    assert outside_band(0.35) == outside_band(0.75) == {}
    assert outside_band(1 / 3)["warning"] == "M0 ends at 0.333 on validation questions, outside 0.35 to 0.75"
    task = room.task("ablation", "sft", 1)
    match = with_notes(Match(Arena(), task), "m0", warning="M0 ends at 1.000")
    assert match.remarks == {"accuracy": "M0 ends at 1.000", "calibration": "M0 ends at 1.000"}
    assert with_notes(Match(Arena(), room.task("ablation", "rft", 1)), "m0", warning="so").remarks == {}


def test_transcripts_say_what_happened(scripted: Callable[..., Match]) -> None:
    match = scripted(SCRIPT)
    match.arena.n_transcripts = 2
    shown = match.exhibits()
    assert [each.title for each in shown] == ["id/test/0", "id/test/1"]
    assert [name for name, _ in shown[0].fields] == ["Question", "Right answer", "Attempt 1, right", "Decision"]
    assert dict(shown[0].fields)["Question"].startswith("<bos> ")
    assert dict(shown[0].fields)["Decision"] == "done: M(E) 0.900, M(R) 0.100"
    assert [name for name, _ in shown[1].fields] == [
        "Question", "Right answer", "Attempt 1, wrong", "Decision", "Attempt 2, right", "Decision",
    ]  # fmt: skip
    assert shown[1].fields[3][1] == "refine: M(E) 0.100, M(R) 0.900"
    assert scripted(SCRIPT, Revise(tries=1)).exhibits() == []


def test_all_that_plays_at_smoke_is_measured(play: Play, room: Any) -> None:
    found = play("test_time_compute", "revise", 2)
    assert {name for name in found if " " not in name} >= {"vote_accuracy", "equal_tokens_accuracy", "tokens", "flops"}
    assert found["outcome"].flops == found["flops"] > 0
    assert found["vote_accuracy"] == found["equal_tokens_accuracy"]
    one, two = play("test_time_compute", "sft", 1), play("test_time_compute", "sft", 2)
    assert two["tokens"] > one["tokens"]
    assert play("ood", "revise", "ood_dense")["outcome"].data_hash != found["outcome"].data_hash


def test_plain_votes_need_three(play: Play) -> None:
    assert play("test_time_compute", "sft", 2)["vote_accuracy"] == play("test_time_compute", "sft", 1)["vote_accuracy"]


def test_equal_flops_are_equal(play: Play) -> None:
    target = play("flops_matched", "revise", 1.0)
    other = play("flops_matched", "sft_continued", 1.0)
    assert target["outcome"].flops_target is None
    assert other["outcome"].flops_target == target["post_flops"]
    assert other["outcome"].flops == pytest.approx(other["outcome"].flops_target, rel=0.02)


def test_the_level_picks_what_was_learned_from(play: Play) -> None:
    fewer = play("data_efficiency", "rft", 32)
    assert fewer["generations"] == 64
    with pytest.raises(RematchError, match="rft: nothing learned from 33 questions; there are: 32, 64"):
        play("data_efficiency", "rft", 33)
    assert play("data_efficiency", "rft", 64)["generations"] == 3 * 64
    assert play("data_efficiency", "sft", 33)["post_flops"] == 0


def test_more_trajectories_than_there_are(play: Play) -> None:
    with pytest.raises(RematchError, match=r"test_time_compute: 9 trajectories .* the base 'm0_written' has 6"):
        play("test_time_compute", "sft", 9)


def test_the_verifier_scores_revises_first_attempts(scripted: Callable[..., Match], room: Any) -> None:
    script = [[[DONE], [WRONG_DONE]], [[WRONG_ASKS, DONE], [DONE]], [[DONE], [DONE]], [[WRONG_DONE], [WRONG_DONE]]]
    plain, (folder, info) = scripted(script, Verifier()), room.build("verifier")
    bases, infos = {**plain.task.bases, "verifier": folder}, {**plain.task.base_info, "verifier": info}
    match = VerifierMatch(Arena(n_votes=2), dataclasses.replace(plain.task, bases=bases, base_info=infos))
    match.problems = plain.problems
    model, _, tokens = load_model(folder)

    def scored(trajectories: int) -> tuple[list[float], list[bool], list[int]]:
        firsts = [
            (i, problem, found[n].attempts[0])
            for i, (problem, found) in enumerate(zip(match.problems, plain.written.trajectories, strict=True))
            for n in range(trajectories)
        ]
        scores = [solution_scores(model, [p.prompt], [a.ids], tokens.end)[0].item() for _, p, a in firsts]
        return scores, [p.is_right(a.ids) for _, p, a in firsts], [i for i, _, _ in firsts]

    scores, right, _ = scored(1)
    assert values(match, "auroc") == {"": pytest.approx(auroc(scores, right))}
    assert values(match, "auroc_within") == {"": pytest.approx(auroc_within(*scored(2)))}
    assert match.own_flops > 0
    outcome = room.play("ablation", "verifier", 1)
    assert {m.metric for m in outcome.measurements} <= {"auroc", "auroc_within", "unused"}
    assert set(outcome.undefined) >= {"accuracy", "first_accuracy", "fate", "score_density"}
    assert outcome.train_flops == info.train_flops
    assert outcome.notes["counts"] == info.notes["counts"]


def test_the_calibration_is_m0s(play: Play, room: Any) -> None:
    found = play("ablation", "sft", 1, "calibration")
    assert set(found) - {"outcome"} == {"calibration step=30", "calibration step=60", "calibration"}
    assert found["calibration"] == found["calibration step=60"]


def test_shuffled_votes_are_the_same_every_time(play: Play) -> None:
    found = [play("test_time_compute", "revise_shuffled_votes", 3)["vote_accuracy"] for _ in range(2)]
    assert found[0] == found[1]


def test_few_shot_needs_a_pretrained_model(room: Any) -> None:
    task = dataclasses.replace(room.task("ablation", "sft", 1), contender=FewShot())
    with pytest.raises(Skip, match="pretrained model"):
        Arena().play(task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vote": "most"}, "unknown vote 'most'; allowed: weighted, plain"),
        ({"conf_context": "alone"}, "unknown conf_context 'alone'"),
        ({"tries": 0}, "tries must be at least 1"),
    ],
)
def test_bad_rules(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RematchError, match=message):
        Solver(**options)


def test_nothing_measured_is_not_a_number(play: Play) -> None:
    for found in (play("ablation", "sft", 1), play("ablation", "revise", 1)):
        assert all(math.isfinite(value) for name, value in found.items() if name != "outcome")
        assert "lm_eval_accuracy" in found["outcome"].undefined
    assert np.isfinite(found["outcome"].train_flops)


# -- what the card has meet --------------------------------------------------------------------------------------------

RULES = {
    "revise", "revise_plain", "revise_likelihood", "revise_mean_likelihood", "revise_in_trajectory", "revise_shuffled_votes",
    "revise_random_votes", "oracle",
}  # fmt: skip
TRIES = {"revise_first": 1, "revise": 2, "revise_third": 3}


@pytest.mark.parametrize("tier", ["mini", "real", "paper"])
def test_all_rules_and_tries_meet_at_every_number_of_trajectories(card: Any, tier: str) -> None:
    axis = card.axis("test_time_compute", tier)
    assert {1, 2, 4, 8} <= set(axis.levels)
    assert set(axis.contenders) >= RULES | set(TRIES)
    specs = {name: card.spec.contenders[name] for name in RULES | set(TRIES)}
    assert {spec.bases[0] for spec in specs.values()} == {"revise_written"}  # the same trajectories
    for name, tries in TRIES.items():
        assert load(specs[name].use)(**card.options("contenders", name, tier)).tries == tries
    for name in axis.contenders:
        written = card.options("bases", card.spec.contenders[name].bases[0], tier)
        assert written.get("n", Writer.n) >= max(axis.levels), name


def test_the_control_of_shuffled_labels_votes_in_both_ways(card: Any) -> None:
    both = [card.spec.contenders[name] for name in ("revise_shuffled", "revise_shuffled_plain")]
    assert both[0].bases == both[1].bases
    assert [load(each.use)(**each.options).vote for each in both] == ["weighted", "plain"]
    assert {"revise_shuffled", "revise_shuffled_plain"} <= set(card.axis("test_time_compute", "mini").contenders)


def test_at_the_paper_tier_trl_trains(card: Any) -> None:
    trained = {name for name in card.spec.bases if "recipe" in card.options("bases", name, "paper")}
    assert {"m0", "revise", "revise_cycle2", "rft", "star", "dpo", "verifier", "sft_continued"} <= trained
    assert {card.options("bases", name, "paper")["recipe"]["trainer"] for name in trained} == {"trl"}
    assert not any("trainer" in card.options("bases", name, "mini").get("recipe", {}) for name in trained)
