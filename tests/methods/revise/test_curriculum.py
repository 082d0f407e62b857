"""Stages in order, from fresh samples, with the right reference; what they cost; a toy that can be learned and one that cannot."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_revise import END, REFINE, WORDS, digit, last_digit, llama, problems, same_weights

import methods.revise.curriculum as curriculum
import methods.revise.training as training
from baselines.checkpoints import weights_digest
from baselines.post_training.batches import Ids
from baselines.post_training.imitation import sft
from baselines.post_training.objectives import reference_margins
from baselines.post_training.problems import Completion, Pool, Problem, sample_pool
from baselines.post_training.training import Recipe
from baselines.sampling import Sampling
from methods.revise.attempts import Row, shuffle_labels
from methods.revise.curriculum import ReviseConfig, Stage, fit
from methods.revise.loss import SFT_ONLY, TEXT
from methods.revise.preferences import preference_pairs
from methods.revise.tokens import Tokens
from methods.revise.training import train_stage
from methods.revise.trajectories import write_trajectories
from methods.revise.verification import auroc, verification_score
from rematch.errors import RematchError

TOKENS = Tokens(END, REFINE)
PROBLEMS = problems(16)
CONFIG: dict[str, Any] = {
    "k": 2, "sampling": Sampling(1.0, 0.95, 8), "recipe": Recipe(learning_rate=3e-3, batch_size=8, epochs=1),
}  # fmt: skip


@pytest.fixture(scope="module")
def m0() -> dict[str, torch.Tensor]:
    """A model that gets some sums right and some wrong, and ends what it writes."""
    model = llama()
    sft(model, [p.truth(END) for p in problems(64)], 0, Recipe(1e-2, 16, epochs=10))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def plain(m0: dict[str, torch.Tensor]) -> tuple[Any, list[Stage]]:
    return fitted(m0)


def start(m0: dict[str, torch.Tensor]) -> Any:
    model = llama()
    model.load_state_dict(m0)
    return model


def fitted(m0: dict[str, torch.Tensor], seed: int = 0, **options: Any) -> tuple[Any, list[Stage]]:
    model = start(m0)
    return model, fit(model, PROBLEMS, TOKENS, ReviseConfig(**(CONFIG | options)), seed)


def test_the_defaults_are_the_official_ones() -> None:
    """But for two, which go together: rows end at an R, and what was written before an unfinished attempt is used."""
    config = ReviseConfig()
    assert (config.k, config.sampling) == (10, Sampling(0.7, 0.9, 1024))
    assert config.stages == ("verify", "correct")
    assert (config.recipe.learning_rate, config.recipe.batch_size, config.recipe.epochs) == (1e-5, 64, 1)
    assert (config.weights.preference, config.weights.sft, config.beta) == (1.0, 0.1, 0.1)
    assert (config.curriculum, config.reference, config.cycles) == ("two_stage", "stage_start", 0)
    assert (config.use_gt, config.shuffled, config.rows, config.max_length) == (False, False, None, 1024)
    official = {"drop_unfinished": True, "eos_after_refine": True}
    assert {name: getattr(config, name) for name in official} == dict.fromkeys(official, False)
    assert all(f"``{name}``" in (ReviseConfig.__doc__ or "").partition("Attributes:")[0] for name in official)
    assert ReviseConfig(cycles=2).stages == ("verify", "correct", "correct", "correct")
    assert ReviseConfig(curriculum="one_stage").stages == ("correct",)
    assert ReviseConfig(curriculum="stage1_only").stages == ("verify",)


def test_the_order_of_stages(m0: dict[str, torch.Tensor], tmp_path: Path) -> None:
    model = start(m0)
    after: list[str] = []
    config = ReviseConfig(**CONFIG, cycles=1)
    stages = fit(
        model,
        PROBLEMS,
        TOKENS,
        config,
        0,
        folder=tmp_path,
        after_stage=lambda stage: after.append(weights_digest(model)),
    )
    assert [stage.name for stage in stages] == ["verify", "correct", "correct"]
    assert stages[0].start == weights_digest(start(m0))
    for before, stage in itertools.pairwise(stages):
        assert stage.start == before.end
    assert len({stages[0].start, *(stage.end for stage in stages)}) == 4
    assert after == [stage.end for stage in stages]
    for stage in stages:
        assert stage.samples == stage.start  # fresh samples of the model that the stage starts from
        assert stage.reference == stage.start
        assert 0 < stage.n_right < stage.n_rows
        assert stage.training.rows == stage.n_rows
        assert stage.flops == stage.sampling_flops + stage.reference_flops + stage.training.flops
        assert min(stage.sampling_flops, stage.reference_flops, stage.training.flops) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1_verify", "2_correct", "3_correct"]
    for stage, folder in zip(stages, sorted(tmp_path.iterdir()), strict=True):
        rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
        assert len(rows) == stage.n_rows
        assert {row["weights"] for row in rows} == {stage.start}
        assert sum(row["right"] for row in rows) == stage.n_right
    # Called again, nothing is trained again, and the result is the same.
    again = start(m0)
    assert fit(again, PROBLEMS, TOKENS, config, 0, folder=tmp_path) == stages
    assert same_weights(model, again)


def test_m0_as_the_reference_of_all_stages(m0: dict[str, torch.Tensor], plain: Any) -> None:
    model, stages = fitted(m0, reference="m0")
    assert [stage.reference for stage in stages] == [stages[0].start] * 2  # whatever the stages did to the model
    assert len({stages[0].start, *(stage.end for stage in stages)}) == 3
    other, official = plain
    assert stages[0].training == official[0].training  # the first stage knows no difference
    assert stages[1].training.losses[0] != pytest.approx(official[1].training.losses[0], abs=1e-6)
    assert not same_weights(model, other)


def test_the_start_of_a_stage_is_its_reference(m0: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read once, whole, before the model takes its first step."""
    read: list[tuple[str, int]] = []

    def margins(model: Any, pairs: Any) -> Any:
        read.append((weights_digest(model), len(pairs)))
        return reference_margins(model, pairs)

    monkeypatch.setattr(training, "reference_margins", margins)
    _, stages = fitted(m0)
    assert read == [(stage.reference, stage.n_rows) for stage in stages] == [(s.start, s.n_rows) for s in stages]


def test_a_seed_gives_the_same_run(m0: dict[str, torch.Tensor], plain: Any) -> None:
    (first, one), (second, two), (other, _) = plain, fitted(m0), fitted(m0, seed=1)
    assert one == two
    assert same_weights(first, second)
    assert not same_weights(first, other)


def test_a_first_pool_is_the_same_as_sampling_it(m0: dict[str, torch.Tensor], plain: Any) -> None:
    seed = int(np.random.SeedSequence([0, 0]).generate_state(1)[0])
    pool = sample_pool(start(m0), PROBLEMS, 2, END, seed, Sampling(1.0, 0.95, 8))
    model = start(m0)
    stages = fit(model, PROBLEMS, TOKENS, ReviseConfig(**CONFIG), 0, first_pool=pool)
    assert stages == plain[1]
    with pytest.raises(RematchError, match="written by another model"):
        fit(model, PROBLEMS, TOKENS, ReviseConfig(**CONFIG), 0, first_pool=pool)


def test_one_stage_takes_the_steps_of_two(m0: dict[str, torch.Tensor]) -> None:
    _, two = fitted(m0, rows=16)
    _, one = fitted(m0, rows=16, curriculum="one_stage")
    _, first = fitted(m0, rows=16, curriculum="stage1_only")
    assert [stage.name for stage in one] == ["correct"]
    assert one[0].training.steps == sum(stage.training.steps for stage in two) == 4
    assert first == two[:1]
    fixed = Recipe(learning_rate=3e-3, batch_size=8, steps=3)
    repeated = fitted(m0, recipe=fixed, curriculum="one_stage", cycles=1)[1]
    assert [stage.training.steps for stage in repeated] == [6, 3]


def test_wrong_attempts_before_an_unfinished_one_are_kept(m0: dict[str, torch.Tensor]) -> None:
    """After the first stage the model writes R, and nothing has taught it how to end what follows."""
    recipe = Recipe(learning_rate=3e-3, batch_size=16, steps=40)
    kept, dropped = (fitted(m0, recipe=recipe, drop_unfinished=drop)[1] for drop in (False, True))
    assert kept[0] == dropped[0]
    assert kept[1].start == dropped[1].start
    assert kept[1].n_cut > 0 == dropped[1].n_cut
    assert dropped[1].n_unfinished == kept[1].n_unfinished + kept[1].n_cut
    assert kept[1].n_rows - kept[1].n_right > dropped[1].n_rows - dropped[1].n_right


def test_rows_that_are_too_long_are_left_out_and_counted(m0: dict[str, torch.Tensor], plain: Any) -> None:
    stages = plain[1]
    # Prompt and solution take 4 and 3 tokens. A right attempt fits with E; a wrong one with R, the solution and E does not.
    short = fitted(m0, max_length=11)[1]
    assert stages[0].n_too_long == 0
    assert 0 < short[0].n_too_long == stages[0].n_rows - short[0].n_rows
    assert short[0].n_right <= stages[0].n_right
    exact = fitted(m0, max_length=12)[1]
    assert exact[0].n_too_long < short[0].n_too_long
    with pytest.raises(RematchError, match=r"no sample can be used: .* make rows of more than 5 tokens"):
        fitted(m0, max_length=5)


@pytest.mark.parametrize(
    "switch",
    [
        {"k": 3}, {"weights": TEXT}, {"weights": SFT_ONLY}, {"beta": 0.5}, {"use_gt": True}, {"eos_after_refine": True},
        {"rows": 10}, {"max_length": 11}, {"shuffled": True}, {"sampling": Sampling(0.5, 1.0, 8)}, {"cycles": 1},
    ],
)  # fmt: skip
def test_no_switch_is_dead(switch: dict[str, Any], m0: dict[str, torch.Tensor], plain: Any) -> None:
    assert not same_weights(plain[0], fitted(m0, **switch)[0])


def test_what_a_stage_counts(m0: dict[str, torch.Tensor]) -> None:
    _, stages = fitted(m0, weights=SFT_ONLY)
    assert stages[0].reference_flops == 0  # nobody asks the reference
    _, with_truth = fitted(m0, use_gt=True)
    assert with_truth[0].n_rows == stages[0].n_rows + 16
    assert with_truth[0].n_right == stages[0].n_right + 16
    _, short = fitted(m0, sampling=Sampling(1.0, 0.95, 4), curriculum="stage1_only")
    assert short[0].n_unfinished + short[0].n_rows <= 32
    assert short[0].n_unfinished > 0


def test_completions_without_an_attempt_are_counted(m0: dict[str, torch.Tensor]) -> None:
    """They ended, are not empty and were not cut, and still nothing can be learned from them."""
    model, blank = start(m0), WORDS.index("is")
    written: list[Ids] = [(REFINE,), (REFINE, REFINE), (blank,), PROBLEMS[3].solution]
    pool = Pool([Completion(i, ids) for i, ids in enumerate(written)], 0, 0, 0, 10, 1, weights_digest(model))
    config = ReviseConfig(**(CONFIG | {"curriculum": "stage1_only"}))
    (stage,) = fit(model, PROBLEMS, Tokens(END, REFINE, frozenset({blank})), config, 0, first_pool=pool)
    assert (stage.n_blank, stage.n_rows) == (3, 1)
    assert stage.n_unfinished == stage.n_empty == stage.n_cut == stage.n_too_long == 0
    none = Pool([Completion(0, (REFINE,))], 0, 0, 0, 1, 1, weights_digest(model))
    with pytest.raises(RematchError, match="0 are empty, 1 hold no attempt"):
        fit(model, PROBLEMS, TOKENS, config, 0, first_pool=none)


class Killed(Exception):
    pass


def test_an_interrupted_run_goes_on(
    m0: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(learning_rate=3e-3, batch_size=8, epochs=1, checkpoint_every=1)
    model, stages = fitted(m0, recipe=recipe)
    config = ReviseConfig(**(CONFIG | {"recipe": recipe}))

    def killed(*args: Any, **options: Any) -> Any:
        def after_step(n: int, loss: float) -> None:
            if n == 2 and args[-1] == tmp_path / "2_correct":
                raise Killed

        return train_stage(*args, **options, after_step=after_step)

    monkeypatch.setattr(curriculum, "train_stage", killed)
    with pytest.raises(Killed):
        fit(start(m0), PROBLEMS, TOKENS, config, 0, folder=tmp_path)
    monkeypatch.undo()
    resumed = start(m0)
    assert fit(resumed, PROBLEMS, TOKENS, config, 0, folder=tmp_path) == stages
    assert same_weights(model, resumed)
    for other in ({"weights": TEXT}, {"beta": 0.5}, {"shuffled": True}):
        with pytest.raises(RematchError, match=r"1_verify.* of another run"):
            fit(start(m0), PROBLEMS, TOKENS, replace(config, **other), 0, folder=tmp_path)


def test_bad_input(m0: dict[str, torch.Tensor]) -> None:
    with pytest.raises(RematchError, match="Did you mean 'two_stage'"):
        ReviseConfig(curriculum="two_stages")  # type: ignore[arg-type]
    with pytest.raises(RematchError, match="unknown reference 'm1'; allowed: stage_start, m0"):
        ReviseConfig(reference="m1")  # type: ignore[arg-type]
    with pytest.raises(RematchError, match="stage1_only has none"):
        ReviseConfig(curriculum="stage1_only", cycles=1)
    with pytest.raises(RematchError, match="rows must be at least 1"):
        ReviseConfig(rows=0)
    with pytest.raises(RematchError, match="one_stage has no first stage"):
        ReviseConfig(shuffled=True, curriculum="one_stage")
    with pytest.raises(RematchError, match="no problems"):
        fit(start(m0), [], TOKENS, ReviseConfig(**CONFIG), 0)
    with pytest.raises(RematchError, match="token ids 0 to 19, not 20"):
        fit(start(m0), PROBLEMS, Tokens(END, 20), ReviseConfig(**CONFIG), 0)
    with pytest.raises(RematchError, match=r"no sample can be used: \d+ did not end"):
        fit(llama(), PROBLEMS, TOKENS, ReviseConfig(**(CONFIG | {"sampling": Sampling(0.0, 1.0, 1)})), 0)
    with pytest.raises(RematchError, match="no pairs"):
        train_stage(start(m0), [], TOKENS, 0)


# -- a toy ------------------------------------------------------------------------------------------------------------


def toy_rows(n: int, seed: int) -> tuple[list[Problem], list[Row]]:
    """Attempts whose last token, one of two, marks them right or wrong."""
    rng = np.random.default_rng(seed)
    problems, rows = [], []
    for i in range(n):
        right = bool(rng.random() < 0.5)
        ids: Ids = (*(digit(int(d)) for d in rng.integers(0, 10, 3)), digit(10 if right else 11))
        problems.append(Problem((4, digit(int(rng.integers(0, 10)))), (digit(10),), last_digit))
        rows.append(Row(i, ids, right))
    return problems, rows


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_separable_toy(shuffled: bool) -> None:
    """Judged by true labels: by AUROC where something was learned, as it ranks by differences of any size, accidents too."""
    asked, rows = toy_rows(2000, 0)
    model = llama(initializer_range=0.02)
    pairs = preference_pairs(shuffle_labels(rows, 0) if shuffled else rows, asked, "verify", TOKENS)
    train_stage(model, pairs, TOKENS, 0, Recipe(learning_rate=3e-3, batch_size=32, steps=200))
    asked, rows = toy_rows(1000, 1)
    # Everything is written already: only what follows the attempt is asked for.
    prompts = [problem.prompt + row.ids for problem, row in zip(asked, rows, strict=True)]
    trajectories, _ = write_trajectories(model, prompts, TOKENS, Sampling(0.0, 1.0, 1), tries=1)
    assert all(trajectory.last().ended for trajectory in trajectories)
    scores = np.array([verification_score(trajectory.last()) for trajectory in trajectories])
    right = np.array([row.right for row in rows])
    gap = scores[right].mean() - scores[~right].mean()
    if shuffled:
        assert abs(gap) < 0.05
    else:
        assert gap > 1.5
        assert auroc(scores.tolist(), right.tolist()) > 0.99
