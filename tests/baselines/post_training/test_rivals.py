"""SFT, RFT, STaR+, DPO and the verifier: what they train on, from where, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_revise import END, REFINE, WORDS, digit, last_digit, llama, problem, problems, same_weights

from baselines.checkpoints import weights_digest
from baselines.post_training import imitation
from baselines.post_training.batches import Example, Ids
from baselines.post_training.dpo import dpo, solution_pairs, solution_scores
from baselines.post_training.imitation import rft, right_examples, sft, sft_for_flops, star
from baselines.post_training.objectives import SFTObjective, reference_margins
from baselines.post_training.problems import Completion, Pool, Problem, sample_pool, sort_completions
from baselines.post_training.training import Recipe, train
from baselines.sampling import Sampling
from rematch.errors import RematchError

IS = WORDS.index("is")
PROBLEMS = [problem(1, 2), problem(3, 4), problem(2, 2)]
RECIPE = Recipe(learning_rate=3e-3, batch_size=8, epochs=1)
SHORT = Sampling(temperature=1.2, top_p=0.98, max_new_tokens=5)


def solution(value: int, *, first: int = 1) -> Ids:
    return (digit(first), IS, digit(value))


COMPLETIONS = [
    Completion(0, solution(3)), Completion(0, solution(5)), Completion(0, solution(3)), Completion(0, solution(3, first=2)),
    Completion(1, solution(8)), Completion(1, (IS,)), Completion(1, solution(8)), Completion(2, solution(4)),
]  # fmt: skip
POOL = Pool(COMPLETIONS, 0, 0, 0, 0, 0, "")


@pytest.fixture(scope="module")
def m0() -> Any:
    """A model that gets some sums right and some wrong, and ends what it writes."""
    torch.manual_seed(0)
    model = llama()
    sft(model, [p.truth(END) for p in problems(64)], 0, Recipe(1e-2, 16, epochs=10))
    return model


def copy_of(model: Any) -> Any:
    new = llama()
    new.load_state_dict(model.state_dict())
    return new


def test_a_problem_is_right_where_the_answers_are_equal() -> None:
    assert PROBLEMS[0].answer == 3
    assert PROBLEMS[0].is_right(solution(3, first=9))
    assert not PROBLEMS[0].is_right(solution(4))
    assert not PROBLEMS[0].is_right((IS,))  # no answer is wrong
    assert PROBLEMS[0].truth(END) == Example(PROBLEMS[0].prompt, (*solution(3), END))
    for prompt, ids in (((), solution(1)), ((4,), (IS,))):
        with pytest.raises(RematchError, match="a problem needs"):
            Problem(prompt, ids, last_digit)


def test_right_and_wrong_ones_once_each() -> None:
    right, wrong = sort_completions(COMPLETIONS, PROBLEMS)
    assert right == [[solution(3), solution(3, first=2)], [], [solution(4)]]
    assert wrong == [[solution(5)], [solution(8), (IS,)], []]
    assert right_examples(POOL, PROBLEMS, END) == [
        Example(PROBLEMS[0].prompt, (*solution(3), END)),
        Example(PROBLEMS[0].prompt, (*solution(3, first=2), END)),
        Example(PROBLEMS[2].prompt, (*solution(4), END)),
    ]


def test_a_pool(m0: Any) -> None:
    asked = problems(10, seed=1)
    pool = sample_pool(m0, asked, 4, END, 0, SHORT)
    assert pool.weights == weights_digest(m0)
    assert len(pool.completions) + pool.n_unfinished + pool.n_empty == 40
    assert pool.n_unfinished > 0  # a cut one is dropped, and counted
    assert pool.n_tokens >= 5 * pool.n_unfinished + sum(len(c.ids) + 1 for c in pool.completions)
    assert all(c.ids and END not in c.ids for c in pool.completions)
    assert pool.completions == sample_pool(m0, asked, 4, END, 0, SHORT, batch_size=7).completions
    assert pool.completions != sample_pool(m0, asked, 4, END, 1, SHORT).completions
    fewer = sample_pool(m0, asked, 2, END, 0, SHORT)

    def of(found: Pool, question: int) -> list[Ids]:
        return [c.ids for c in found.completions if c.question == question]

    assert all(of(pool, q)[: len(of(fewer, q))] == of(fewer, q) for q in range(10))
    with pytest.raises(RematchError, match="at least 1, not 0"):
        sample_pool(m0, asked, 0, END, 0)


def test_the_refine_token_is_one_like_any_other() -> None:
    """It neither ends a completion nor is left out of one."""
    asked, how = problems(20), Sampling(3.0, 1.0, 10)
    whole = sample_pool(llama(seed=1), asked, 4, END, 0, how)
    assert any(REFINE in c.ids[:-1] for c in whole.completions)
    # Unless completions that do not stop by themselves are to be cut after it.
    cut = sample_pool(llama(seed=1), asked, 4, END, 0, how, cut_after=REFINE)
    longer = [c for c in cut.completions if c not in whole.completions]
    assert 0 < len(longer) <= cut.n_cut == whole.n_unfinished - cut.n_unfinished
    assert all(c.ids[-1] == REFINE for c in longer)
    assert len(cut.completions) == len(whole.completions) + cut.n_cut
    assert len(cut.completions) + cut.n_unfinished + cut.n_empty == 80
    assert (whole.n_cut, whole.flops, whole.n_tokens) == (0, cut.flops, cut.n_tokens)


def test_rft_is_sft_on_truths_and_right_samples() -> None:
    first, second = llama(), llama()
    run = rft(first, PROBLEMS, POOL, END, 7, RECIPE)
    examples = [p.truth(END) for p in PROBLEMS] + right_examples(POOL, PROBLEMS, END)
    assert run == train(second, SFTObjective(examples), RECIPE, 7)
    assert run.rows == 6
    assert same_weights(first, second)


def test_continued_sft_meets_its_budget() -> None:
    examples = [p.truth(END) for p in problems(40)]
    budget = 2.5e7
    run = sft_for_flops(llama(), examples, budget, 0, RECIPE)
    per_step = run.flops / run.steps
    assert run.steps > 5
    assert abs(run.flops - budget) <= per_step
    # Not the beginning of a longer run: the rate falls to 0 within the budget.
    whole, exact = llama(), llama()
    sft_for_flops(whole, examples, budget, 0, RECIPE)
    sft(exact, examples, 0, Recipe(3e-3, 8, steps=run.steps))
    assert same_weights(whole, exact)


def test_star_starts_from_m0_again_and_strips_the_hint(m0: Any, tmp_path: Path) -> None:
    asked = problems(24, seed=2)
    hints: list[Ids] = []

    def hint(p: Problem) -> Ids:
        assert isinstance(p.answer, int)
        hints.append((digit(p.answer), *p.prompt))
        return hints[-1]

    model = copy_of(m0)
    loops = star(model, asked, hint, END, 5, k=3, loops=2, recipe=RECIPE, sampling=SHORT, checkpoint=tmp_path)
    assert loops[0].pool.weights == weights_digest(m0)
    assert loops[0].pool == sample_pool(m0, asked, 3, END, 5, SHORT)
    assert loops[1].pool.weights not in (weights_digest(m0), weights_digest(model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loop0", "loop1"]
    solved = [bool(kept) for kept in sort_completions(loops[0].pool.completions, asked)[0]]
    assert 0 < sum(solved) < 24
    assert loops[0].hinted is not None
    assert loops[0].n_rationalised > 0
    for loop in loops:
        assert loop.hinted is not None
        assert loop.flops == loop.pool.flops + loop.hinted.flops + loop.training.flops
        assert loop.training.rows == 24 + loop.n_right + loop.n_rationalised
    # The last loop again, by hand, from M0.
    unsolved = [
        p for p, kept in zip(asked, sort_completions(loops[1].pool.completions, asked)[0], strict=True) if not kept
    ]
    assert loops[1].hinted is not None
    examples = [p.truth(END) for p in asked] + right_examples(loops[1].pool, asked, END)
    examples += right_examples(loops[1].hinted, unsolved, END)
    assert not any(example.context in hints for example in examples)
    again = copy_of(m0)
    train(again, SFTObjective(examples), RECIPE, 6)
    assert same_weights(model, again)

    with pytest.raises(RematchError, match="loops must be at least 1"):
        star(copy_of(m0), asked, hint, END, 5, loops=0)


def test_star_without_anything_to_rationalise(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool([Completion(i, p.solution) for i, p in enumerate(PROBLEMS)], 0, 0, 0, 0, 11, "")

    def hint(p: Problem) -> Ids:
        raise AssertionError("every question is solved")

    monkeypatch.setattr(imitation, "sample_pool", lambda *args, **options: pool)
    loop = star(llama(), PROBLEMS, hint, END, 0, loops=1, recipe=RECIPE)[0]
    assert (loop.hinted, loop.n_right, loop.n_rationalised) == (None, 3, 0)
    assert loop.flops == 11 + loop.training.flops


def test_pairs_of_solutions() -> None:
    truth = solution_pairs(POOL, PROBLEMS, END, 0)
    assert [(p.chosen, p.rejected) for p in truth] == [
        ((*solution(3), END), (*solution(5), END)),
        ((*solution(7, first=3), END), (*solution(8), END)),
        ((*solution(7, first=3), END), (IS, END)),
    ]
    assert [p.context for p in truth] == [PROBLEMS[0].prompt, PROBLEMS[1].prompt, PROBLEMS[1].prompt]
    right = solution_pairs(POOL, PROBLEMS, END, 0, chosen="right")
    assert [(p.chosen[:-1], p.rejected[:-1]) for p in right] == [
        (solution(3), solution(5)),
        (solution(3, first=2), solution(5)),
    ]
    capped = [solution_pairs(POOL, PROBLEMS, END, seed, per_question=1) for seed in range(6)]
    assert all(len(pairs) == 2 for pairs in capped)
    assert len({pairs[1] for pairs in capped}) == 2
    assert capped[3] == solution_pairs(POOL, PROBLEMS, END, 3, per_question=1)
    with pytest.raises(RematchError, match="unknown chosen 'gold'"):
        solution_pairs(POOL, PROBLEMS, END, 0, chosen="gold")  # type: ignore[arg-type]


def test_dpo_learns_relative_to_its_reference() -> None:
    pairs = solution_pairs(POOL, PROBLEMS, END, 0)
    model, before = llama(), llama()
    run = dpo(model, pairs, Recipe(3e-3, 8, epochs=20), 0)
    assert run.training.losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert run.training.final_loss < 0.5
    assert run.reference_flops == reference_margins(before, pairs)[1]
    assert run.flops == run.training.flops + run.reference_flops
    other = llama(seed=1)
    assert dpo(llama(), pairs, RECIPE, 0, reference=other).training.losses[0] != pytest.approx(0.693147, abs=1e-4)
    assert same_weights(other, llama(seed=1))
    assert all(p.grad is None for p in other.parameters())
    with pytest.raises(RematchError, match="there are no pairs"):
        dpo(llama(), [], RECIPE, 0)


def test_the_verifier_scores_what_it_was_taught() -> None:
    pairs = solution_pairs(POOL, PROBLEMS, END, 0, chosen="right")
    verifier = llama()
    prompts, written = [PROBLEMS[0].prompt] * 2, [solution(3), solution(5)]
    before, _ = solution_scores(verifier, prompts, written, END)
    dpo(verifier, pairs, Recipe(3e-3, 8, epochs=30), 0)
    after, flops = solution_scores(verifier, prompts, written, END)
    assert after[0] - after[1] > before[0] - before[1] + 1
    assert flops > 0
