"""Trajectories, votes, answers to prompts, and what verification and refinement are worth."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny_revise import END, MAKERS, N_POSITIONS, REFINE, VOCAB_SIZE, WORDS, last_digit, llama, tokenizer
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

import baselines.sampling
from baselines.post_training.answers import last_number, on_ids
from baselines.post_training.batches import Ids
from baselines.sampling import Sampling, sample
from baselines.transformer_flops import transformer_flops
from methods.revise.inference import Generation, generate, solve
from methods.revise.tokens import Tokens
from methods.revise.trajectories import NO_BELIEF, Attempt, Belief, Trajectory, write_trajectories
from methods.revise.verification import auroc, auroc_within, cells, verification_score
from methods.revise.voting import VOTES, voted_answer
from rematch.errors import RematchError

TOKENS = Tokens(END, REFINE)
GREEDY = Sampling(0.0, 1.0, 6)
WARM = Sampling(0.8, 1.0, 6)
RNG = np.random.default_rng(0)
PROMPTS: list[Ids] = [tuple(RNG.integers(4, VOCAB_SIZE, RNG.integers(2, 6)).tolist()) for _ in range(24)]
TRUTHS = RNG.integers(0, 3, len(PROMPTS)).tolist()


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def writer(request: Any) -> Any:
    """A model of random weights that ends some attempts by E and some by R, and some not at all."""
    if request.param == "llama":
        return MAKERS["llama"](seed=11, double=True, initializer_range=0.4)
    return MAKERS["gpt2"](seed=1, double=True, initializer_range=0.5)


def probabilities(model: Any, ids: Ids) -> Tensor:
    with torch.no_grad():
        return torch.softmax(model(input_ids=torch.tensor([ids])).logits[0, -1], -1)


def written_by_hand(model: Any, context: Ids, n: int = 6) -> tuple[Ids, int | None]:
    ids: list[int] = []
    for _ in range(n):
        token = int(probabilities(model, (*context, *ids)).argmax())
        if token in (END, REFINE):
            return tuple(ids), token
        ids.append(token)
    return tuple(ids), None


# -- trajectories -----------------------------------------------------------------------------------------------------


def test_greedy_trajectories_are_what_the_paper_describes(writer: Any) -> None:
    """Step by step, with a pass for every token."""
    found, _ = write_trajectories(writer, PROMPTS, TOKENS, GREEDY, tries=3)
    assert {len(t.attempts) for t in found} >= {1, 2}
    for x, trajectory in zip(PROMPTS, found, strict=True):
        context = x
        for number, attempt in enumerate(trajectory.attempts):
            ids, stop = written_by_hand(writer, context)
            assert (attempt.ids, attempt.ended) == (ids, stop is not None)
            if not attempt.ended:
                assert not attempt.refine
                break
            inside, alone = probabilities(writer, context + ids), probabilities(writer, x + ids)
            assert attempt.in_trajectory == pytest.approx((inside[END].item(), inside[REFINE].item()), rel=1e-6)
            assert attempt.standalone == pytest.approx((alone[END].item(), alone[REFINE].item()), rel=1e-6)
            assert attempt.refine == bool(alone[REFINE] > alone[END])
            assert attempt.n_tokens == len(ids) + 1
            assert (number + 1 < len(trajectory.attempts)) == (attempt.refine and number < 2)
            # The first attempt, or any later one put in its place, then R.
            context = (*x, *ids, REFINE)


def test_first_is_the_beginning_of_refine(writer: Any) -> None:
    refined, flops = write_trajectories(writer, PROMPTS, TOKENS, GREEDY)
    first, flops_of_first = write_trajectories(writer, PROMPTS, TOKENS, GREEDY, refine_mode="first")
    once, flops_of_once = write_trajectories(writer, PROMPTS, TOKENS, GREEDY, tries=1)
    assert first == once
    assert [t.attempts for t in first] == [t.attempts[:1] for t in refined]
    assert flops_of_first == flops_of_once == flops[:1]
    assert flops[1] > 0
    # Where M(E) >= M(R) the two are the same, output, tokens and FLOPs.
    done = [i for i, t in enumerate(first) if not t.attempts[0].refine]
    assert 0 < len(done) < len(PROMPTS)
    asked = [PROMPTS[i] for i in done]
    both = [
        write_trajectories(writer, asked, TOKENS, GREEDY, refine_mode=mode, streams=[(i,) for i in done])
        for mode in ("refine", "first", "retry")
    ]
    assert [t for t, _ in both[:1]] == [t for t, _ in both[1:2]] == [t for t, _ in both[2:]]
    assert len({sum(spent) for _, spent in both}) == 1
    assert all(t.n_tokens() == t.attempts[0].n_tokens for t in both[0][0])


def test_fewer_tries_are_a_beginning(writer: Any) -> None:
    for sampling in (GREEDY, WARM):
        (three, spent), (two, spent_for_two) = (
            write_trajectories(writer, PROMPTS, TOKENS, sampling, tries) for tries in (3, 2)
        )
        assert [t.attempts for t in two] == [t.attempts[:2] for t in three]
        assert spent[:2] == spent_for_two
        assert [t.last(2) for t in three] == [t.last() for t in two]
        assert [t.last(1) for t in three] == [t.attempts[0] for t in two]
        assert [t.n_tokens(2) for t in three] == [t.n_tokens() for t in two]


def test_retry_is_a_new_sample(writer: Any) -> None:
    refined, _ = write_trajectories(writer, PROMPTS, TOKENS, GREEDY)
    retried, _ = write_trajectories(writer, PROMPTS, TOKENS, GREEDY, refine_mode="retry")
    assert [t.attempts[0] for t in refined] == [t.attempts[0] for t in retried]
    assert [len(t.attempts) for t in refined] == [len(t.attempts) for t in retried]
    sampled = {i: t.attempts[1] for i, t in enumerate(retried) if len(t.attempts) == 2}
    for i, attempt in sampled.items():
        assert attempt.standalone == attempt.in_trajectory
        (alone,), _ = sample(writer, [PROMPTS[i]], Sampling(0.7, 1.0, 6), (END, REFINE), 0, [(i, 1)])
        assert attempt.ids == alone.ids
    many = [write_trajectories(writer, PROMPTS, TOKENS, GREEDY, refine_mode="retry", seed=seed)[0] for seed in range(4)]
    last = [[t.last().ids for t in found] for found in many]
    assert any(found != last[0] for found in last)


class Scripted(torch.nn.Module):
    """A language model that continues known texts with given probabilities, and anything else with E."""

    def __init__(self, script: dict[Ids, dict[int, float]]) -> None:
        super().__init__()
        self.script = script
        self.config, self.device = llama().config, torch.device("cpu")
        self.weight = torch.nn.Parameter(torch.eye(VOCAB_SIZE, dtype=torch.float64))

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return torch.nn.Embedding(VOCAB_SIZE, 1)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, past_key_values: Any = None, use_cache: bool = False,
        logits_to_keep: int = 0, position_ids: Tensor | None = None,
    ) -> Any:  # fmt: skip
        keys = input_ids.double()[:, None, :, None]
        if past_key_values is not None:
            keys, _ = past_key_values.update(keys, keys, 0)
            past_key_values.update(keys[:, :, -input_ids.shape[1] :], keys[:, :, -input_ids.shape[1] :], 1)
        seen = keys[:, 0, :, 0].long()
        mask = torch.ones_like(seen) if attention_mask is None else attention_mask
        probs = torch.full((*input_ids.shape, VOCAB_SIZE), 1e-12, dtype=torch.float64)
        for row in range(len(seen)):
            text = tuple(seen[row][mask[row] == 1].tolist())
            for token, p in self.script.get(text, {END: 1.0}).items():
                probs[row, -1, token] = p
        logits = probs.log() @ self.weight
        return type("Output", (), {"logits": logits[:, -logits_to_keep:]})


X: Ids = (4, 8)
A, B, C = WORDS.index("1"), WORDS.index("2"), WORDS.index("3")


def test_the_third_attempt_reads_the_second_as_if_it_were_the_first() -> None:
    model = Scripted(
        {
            X: {A: 0.9},
            (*X, A): {REFINE: 0.6, END: 0.4},
            (*X, A, REFINE): {B: 0.9},
            (*X, A, REFINE, B): {END: 0.99, REFINE: 0.01},
            (*X, B): {REFINE: 0.7, END: 0.3},
            (*X, B, REFINE): {C: 0.9},
            (*X, B, REFINE, C): {END: 0.95},
            (*X, C): {END: 0.8, REFINE: 0.2},
        }
    )
    (found,), _ = write_trajectories(model, [X], TOKENS, GREEDY, tries=5)
    assert [a.ids for a in found.attempts] == [(A,), (B,), (C,)]
    assert [a.refine for a in found.attempts] == [True, True, False]
    assert found.attempts[1].in_trajectory.end == pytest.approx(0.99)
    assert found.attempts[1].standalone == pytest.approx((0.3, 0.7))
    assert found.last(2).confidence() == pytest.approx(0.3)
    assert found.last(2).confidence("in_trajectory") == pytest.approx(0.99)
    assert found.n_tokens() == 6
    with pytest.raises(RematchError, match="unknown conf_context"):
        found.last().confidence("alone")  # type: ignore[arg-type]


@pytest.mark.parametrize(("end", "refine", "asks"), [(0.5, 0.5, False), (0.4, 0.41, True), (0.41, 0.4, False)])
def test_ties_end(end: float, refine: float, asks: bool) -> None:
    """Whichever of the two tokens has the smaller id."""
    for tokens in (Tokens(END, REFINE), Tokens(REFINE, END)):
        model = Scripted({X: {A: 0.9}, (*X, A): {tokens.end: end, tokens.refine: refine}})
        (found,), _ = write_trajectories(model, [X], tokens, GREEDY)
        assert found.attempts[0].refine is asks


def test_an_attempt_that_is_cut_has_no_answer_and_is_not_refined() -> None:
    model = Scripted({X: {A: 0.9}, (*X, A): {A: 0.5, REFINE: 0.3, END: 0.1}, (*X, A, A): {REFINE: 1.0}})
    (found,), _ = write_trajectories(model, [X], TOKENS, Sampling(0.0, 1.0, 2))
    assert found.attempts == (Attempt((A, A), False, False, pytest.approx(math.log(5 / 9)), NO_BELIEF, NO_BELIEF, 2),)
    assert found.last().answer(last_digit) is None
    assert found.last().confidence() == 0


def test_a_second_attempt_without_room_is_cut() -> None:
    long = (4,) * (N_POSITIONS - 1)
    model = Scripted({long: {A: 1.0}, (*long, A): {REFINE: 1.0}})
    (found,), _ = write_trajectories(model, [long], TOKENS, GREEDY)
    assert [a.ids for a in found.attempts] == [(A,), ()]
    assert found.last().answer(last_digit) is None
    assert not found.last().ended


def test_sampled_trajectories_do_what_they_drew(writer: Any) -> None:
    found, _ = write_trajectories(writer, PROMPTS * 4, TOKENS, WARM, tries=3, seed=2)
    assert {len(t.attempts) for t in found} >= {1, 2}
    # R may be drawn where E is more probable, and the other way round.
    drawn = [(a.refine, a.standalone.refine > a.standalone.end) for t in found for a in t.attempts if a.ended]
    assert (True, False) in drawn or (False, True) in drawn


def test_bad_input_of_trajectories(writer: Any) -> None:
    with pytest.raises(RematchError, match="Did you mean 'retry'"):
        write_trajectories(writer, PROMPTS, TOKENS, refine_mode="retri")  # type: ignore[arg-type]
    with pytest.raises(RematchError, match="tries must be at least 1"):
        write_trajectories(writer, PROMPTS, TOKENS, tries=0)
    with pytest.raises(RematchError, match="prompt 1 has 0 tokens"):
        write_trajectories(writer, [X, ()], TOKENS)
    assert write_trajectories(writer, [], TOKENS, GREEDY) == ([], [0, 0])


# -- several trajectories ---------------------------------------------------------------------------------------------


def test_fewer_trajectories_are_the_first_of_more(writer: Any) -> None:
    for first_greedy in (True, False):
        eight, _ = solve(writer, PROMPTS, TOKENS, 8, sampling=WARM, first_greedy=first_greedy, batch_size=256)
        three, _ = solve(writer, PROMPTS, TOKENS, 3, sampling=WARM, first_greedy=first_greedy, batch_size=5)
        for more, fewer in zip(eight, three, strict=True):
            assert len(more) == 8
            for one, other in zip(more[:3], fewer, strict=True):
                assert [a.ids for a in one.attempts] == [a.ids for a in other.attempts]
        assert len({t.attempts[0].ids for found in eight for t in found}) > 8


def test_the_first_is_greedy_or_not(writer: Any) -> None:
    greedy, flops = write_trajectories(writer, PROMPTS, TOKENS, GREEDY)
    found, spent = solve(writer, PROMPTS, TOKENS, 1, sampling=WARM)
    assert [[t] for t in greedy] == found
    assert spent == (flops, [])
    with_greedy, _ = solve(writer, PROMPTS, TOKENS, 3, sampling=WARM)
    without, _ = solve(writer, PROMPTS, TOKENS, 3, sampling=WARM, first_greedy=False)
    assert [[t.attempts[0].ids for t in found[1:]] for found in with_greedy] == [
        [t.attempts[0].ids for t in found[1:]] for found in without
    ]
    with pytest.raises(RematchError, match="solve: n must be a whole number, at least 1, not 0"):
        solve(writer, PROMPTS, TOKENS, 0)


# -- votes ------------------------------------------------------------------------------------------------------------


def attempts_with(
    confidences: Sequence[float], log_probs: Sequence[float] | None = None, n_tokens: Sequence[int] | None = None
) -> list[Attempt]:
    return [
        Attempt((9,) * n, True, False, log_prob, Belief(1 - c, 0.0), Belief(c, 0.0), n + 1)
        for c, log_prob, n in zip(
            confidences, log_probs or [-1.0] * len(confidences), n_tokens or [2] * len(confidences), strict=True
        )
    ]


def test_votes_by_hand() -> None:
    three = attempts_with([0.30, 0.25, 0.60])
    assert voted_answer(three, [7, 7, 12]) == 12
    assert voted_answer(three, [7, 7, 12], "plain") == 7
    assert voted_answer(three, [7, 7, 12], conf_context="in_trajectory") == 7
    two = attempts_with([0.2, 0.9])
    assert voted_answer(two, [3, 5]) == 5
    assert voted_answer(two, [3, 5], "plain") == 3
    # One probable answer against two of half its probability and a little more, far below what a float holds.
    likely = attempts_with([0.5] * 3, [-2000.0, -2000.6, -2000.7])
    assert voted_answer(likely, [1, 2, 2], "answer_likelihood") == 2
    assert voted_answer(likely[:2], [1, 2], "answer_likelihood") == 1
    # What has no vote does not push the others below what a float holds.
    beside = attempts_with([0.5] * 3, [0.0, -3001.0, -3000.0])
    assert voted_answer(beside, [None, 1, 2], "answer_likelihood") == 2
    long = attempts_with([0.5, 0.5], [-4.0, -6.0], [2, 6])
    assert voted_answer(long, [1, 2], "answer_likelihood") == 1
    assert voted_answer(long, [1, 2], "mean_likelihood") == 2


@pytest.mark.parametrize("rule", VOTES)
def test_what_all_votes_share(rule: Any) -> None:
    rng = np.random.default_rng(0)
    assert voted_answer(attempts_with([0.4]), [6], rule, rng=rng) == 6
    # An unparsable answer never wins, however sure the model is and however probable the attempt.
    unsure = attempts_with([1.0, 1e-9], [0.0, -3000.0])
    assert voted_answer(unsure, [None, 6], rule, rng=rng) == 6
    assert voted_answer(unsure, [None, None], rule, rng=rng) is None
    same = attempts_with([0.3] * 4)
    if rule != "random":
        assert voted_answer(same, [5, 3, 3, 5], rule, rng=rng) == 5
        assert voted_answer(same, [5, 3, 3, 4], rule, rng=rng) == 3


def test_negative_controls() -> None:
    two = attempts_with([0.2, 0.9])
    for rule in ("random", "shuffled"):
        votes = Counter(voted_answer(two, [3, 5], rule, rng=np.random.default_rng(seed)) for seed in range(400))  # type: ignore[arg-type]
        assert votes[3] == pytest.approx(200, abs=60)
        with pytest.raises(RematchError, match=f"'{rule}' draws at random"):
            voted_answer(two, [3, 5], rule)  # type: ignore[arg-type]
    # Shuffled confidences are still these confidences: 0.9 outvotes 0.2 and 0.3 wherever it falls.
    three = attempts_with([0.2, 0.3, 0.9])
    found = {voted_answer(three, [1, 2, 3], "shuffled", rng=np.random.default_rng(seed)) for seed in range(40)}
    assert found == {1, 2, 3}
    with pytest.raises(RematchError, match=r"unknown vote 'weightd'.*Did you mean 'weighted'"):
        voted_answer(two, [3, 5], "weightd")  # type: ignore[arg-type]


# -- prompts ----------------------------------------------------------------------------------------------------------


def generated(model: Any, prompts: Sequence[Any], **options: Any) -> Generation:
    given: dict[str, Any] = {"n": 3, "sampling": WARM, "tokens": TOKENS, "progress": False} | options
    return generate(model, tokenizer(), prompts, **given)


def test_prompts_that_go_wrong_are_counted(writer: Any) -> None:
    texts = [" ".join(WORDS[token] for token in prompt) for prompt in PROMPTS]
    prompts = ["", texts[0], "  ", " ".join(["1"] * (N_POSITIONS + 1)), texts[1], PROMPTS[2]]
    found = generated(writer, prompts)
    assert len(found.answers) == 6
    assert [a.status for a in found.answers[:1] + found.answers[2:4]] == ["empty_prompt", "empty_prompt", "too_long"]
    assert [a.answer for a in found.answers[:1] + found.answers[2:4]] == [None] * 3
    assert found.statuses["empty_prompt"] == 2
    assert sum(found.statuses.values()) == 6
    # What goes wrong changes nothing of the others.
    names = [1, 4, 5]
    alone, flops = solve(writer, PROMPTS[:3], TOKENS, 3, sampling=WARM, names=names)
    assert [found.answers[i].trajectories for i in names] == alone
    assert found.flops == flops.total
    assert found.n_tokens == sum(t.n_tokens() for trajectories in alone for t in trajectories)
    assert generated(writer, ["", "  "]).statuses == {"empty_prompt": 2}
    assert generated(writer, []).answers == []


def test_statuses() -> None:
    word, one, two = "is", (7,), (10,)
    model = Scripted({one: {A: 1.0}, (*one, A): {7: 0.6, END: 0.4}, two: {7: 1.0}, (5,): {7: 1.0}, (5, 7): {7: 1.0}})
    found = generated(model, [word, "2", "+"], sampling=Sampling(0.0, 1.0, 2), n=2)
    assert [a.status for a in found.answers] == ["cut", "unparsable", "cut"]
    assert [a.text for a in found.answers] == ["1 is", "is", "is is"]
    assert [a.confidence for a in found.answers] == pytest.approx([0.0, 1.0, 0.0])
    ok = generated(Scripted({one: {A: 1.0}}), [word], n=2).answers[0]
    assert (ok.status, ok.answer, ok.text) == ("ok", 1, "1")
    assert ok.confidence == pytest.approx(1.0)


def test_the_last_attempt_is_read_and_nothing_else() -> None:
    """A second attempt without a number is wrong, whatever the first one said."""
    model = Scripted({X: {A: 1.0}, (*X, A): {REFINE: 1.0}, (*X, A, REFINE): {7: 1.0}})
    assert generated(model, [X], n=1).answers[0].status == "unparsable"
    assert generated(model, [X], n=1, refine_mode="first").answers[0].answer == 1
    assert generated(model, [X], n=1, tries=1).answers[0].answer == 1


def test_a_vote_is_a_vote(writer: Any) -> None:
    for rule in VOTES:
        found = generated(writer, PROMPTS[:10], n=5, vote=rule, tries=3, seed=4)
        if rule == "shuffled":
            assert found == generated(writer, PROMPTS[:10], n=5, vote=rule, tries=3, seed=4)
        for answer in found.answers:
            answers = [t.last().answer(on_ids(tokenizer(), last_number)) for t in answer.trajectories]
            assert (answer.answer is None) == all(a is None for a in answers)
            if rule == "weighted" and answer.answer is not None:
                sums: dict[Any, float] = {}
                for a, t in zip(answers, answer.trajectories, strict=True):
                    if a is not None:
                        sums[a] = sums.get(a, 0.0) + t.last().standalone.end
                assert sums[answer.answer] == pytest.approx(max(sums.values()))
    with pytest.raises(RematchError, match="generate: unknown vote"):
        generated(writer, PROMPTS, vote="best")
    with pytest.raises(RematchError, match="generate: unknown conf_context"):
        generated(writer, PROMPTS, conf_context="best")


def test_a_progress_bar_is_shown_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    model = Scripted({})
    generated(model, [X], progress=True)
    shown = capsys.readouterr()
    assert "greedy attempts" in shown.err
    assert "sampled attempts" in shown.err
    assert not shown.out
    generated(model, [X])
    assert not capsys.readouterr().err


def test_tokens_are_looked_for_and_checked(writer: Any) -> None:
    with pytest.raises(RematchError, match="no refine token"):
        generate(writer, tokenizer(), ["1"], progress=False)
    with pytest.raises(RematchError, match="token ids 0 to 19, not 20"):
        generated(writer, ["1"], tokens=Tokens(END, 20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": "1 is"}, r"prompts is one text; give a list of them: generate\(model, tokenizer, \[prompt\]\)"),
        ({"prompts": [4, 5]}, "prompt 0 must be a text or a sequence of token ids, not 4"),
        ({"prompts": [X, (4, 0.5)]}, "prompt 1 must be a text or a sequence of token ids"),
        ({"prompts": [X, (4, VOCAB_SIZE)]}, "prompt 1 holds the token id 20; the model knows 0 to 19"),
        ({"prompts": [(-1,)]}, "prompt 0 holds the token id -1; the model knows 0 to 19"),
        ({"batch_size": 0}, "batch_size must be a whole number, at least 1, not 0"),
        ({"batch_size": -1}, "batch_size must be a whole number, at least 1, not -1"),
        ({"n": 0}, "n must be a whole number, at least 1, not 0"),
        ({"n": 1.5}, r"n must be a whole number, at least 1, not 1\.5"),
        ({"tries": 0}, "tries must be a whole number, at least 1, not 0"),
        ({"refine_mode": "again"}, "unknown refine_mode 'again'; allowed: refine, first, retry"),
        ({"seed": -1}, "seed must not be negative, not -1"),
    ],
)
def test_mistakes_are_told_before_anything_is_read(options: dict[str, Any], message: str) -> None:
    """Whether or not any of the prompts could be."""
    for prompts in ([X], [""], []):
        with pytest.raises(RematchError, match=message):
            generated(Scripted({}), **{"prompts": prompts} | options)


@pytest.mark.parametrize("temperature", [math.nan, math.inf, -0.1])
def test_impossible_temperatures(temperature: float) -> None:
    with pytest.raises(RematchError, match="temperature must be a number and not negative"):
        Sampling(temperature)


def test_a_model_without_a_cache_of_keys_and_values_answers_too() -> None:
    """Mamba: whatever shares its batch, as by a pass for every token; what it costs is no formula, and counted all the same."""
    torch.manual_seed(3)
    config = MambaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=16, state_size=4, num_hidden_layers=2, initializer_range=0.5
    )
    model: Any = MambaForCausalLM(config).double().eval()
    with pytest.raises(RematchError, match="cannot be counted by formula"):
        transformer_flops(model)
    asked = [PROMPTS[0], PROMPTS[1], PROMPTS[0][:2], PROMPTS[2]]
    found = generated(model, [*asked, ""], n=1)
    for prompt, answer in zip(asked, found.answers, strict=False):
        attempt = answer.trajectories[0].attempts[0]
        ids, stop = written_by_hand(model, prompt)
        assert (attempt.ids, attempt.ended) == (ids, stop is not None)
    assert found.statuses["empty_prompt"] == 1
    warm = [solve(model, asked, TOKENS, 3, sampling=WARM, batch_size=size) for size in (1, 64)]
    assert [t.attempts[0].ids for each in warm[0][0] for t in each] == [
        t.attempts[0].ids for each in warm[1][0] for t in each
    ]
    assert min(spent.total for _, spent in warm) > found.flops > 0


def test_costs_that_nothing_can_count_do_not_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise RematchError("an operator without a formula")

    model = llama()
    expected = generated(model, PROMPTS[:3], n=2)
    monkeypatch.setattr(baselines.sampling, "transformer_flops", refuse)
    counted = generated(model, PROMPTS[:3], n=2)
    assert (counted.flops, counted.n_tokens) == (expected.flops, expected.n_tokens)  # pass by pass as by formula
    assert [a.text for a in counted.answers] == [a.text for a in expected.answers]
    monkeypatch.setattr(baselines.sampling, "count_flops", refuse)
    found = generated(model, PROMPTS[:3], n=2)
    assert found.answers == expected.answers
    assert math.isnan(found.flops)


# -- verification -----------------------------------------------------------------------------------------------------


def test_auroc_by_hand() -> None:
    assert auroc([0.9, 0.4, 0.5, 0.1], [True, True, False, False]) == 0.75
    assert auroc([0.5, 0.5], [True, False]) == 0.5
    assert math.isnan(auroc([0.5, 0.4], [True, True]))
    # Pooled 1 for knowing the easy question, 0.5 within: question b has its one pair in the wrong order, a in the right one.
    scores, right, questions = [0.9, 0.8, 0.2, 0.3], [True, False, True, False], ["a", "a", "b", "b"]
    assert auroc_within(scores, right, questions) == 0.5
    # Pairs weigh the same: two right ones, one wrong one (both won), against one pair lost.
    found = auroc_within([0.9, 0.8, 0.1, 0.2, 0.3], [1, 1, 0, 1, 0], [0, 0, 0, 1, 1])
    assert found == pytest.approx(2 / 3)
    easy = auroc_within([0.9, 0.8, 0.2, 0.1], [True, True, False, False], ["a", "a", "b", "b"])
    assert math.isnan(easy)  # no question has a pair
    with pytest.raises(RematchError, match="2 scores for 1"):
        auroc([0.1, 0.2], [True])
    with pytest.raises(RematchError, match="auroc_within: 1 scores"):
        auroc_within([0.1], [True], [])


def test_the_score() -> None:
    attempt = Attempt((9,), True, True, -1.0, Belief(0.9, 0.1), Belief(0.3, 0.6), 2)
    assert verification_score(attempt) == pytest.approx(-0.3)


def test_the_accounting_identity() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, refined, other = (rng.random(50) < p for p in (0.5, 0.4, 0.6))
        last = np.where(refined, other, first)
        found = cells(first.tolist(), refined.tolist(), last.tolist())
        assert found.accuracy == pytest.approx(last.mean())
        assert found.first_accuracy == pytest.approx(first.mean())
        assert found.refine_rate == pytest.approx(refined.mean())
        assert found.accuracy == pytest.approx(first.mean() - (refined & first).mean() + (refined & last).mean())
        shares = [found.right_to_right, found.right_to_wrong, found.wrong_to_right, found.wrong_to_wrong]
        assert sum(shares) + found.kept_right + found.kept_wrong == pytest.approx(1)
    found = cells([True, True, False, False, True, False], [1, 1, 1, 1, 0, 0], [True, False, True, False, True, False])  # type: ignore[list-item]
    assert {round(6 * value) for value in vars(found).values()} == {1}
    assert found.note == ""
    assert cells([True], [False], [True]).note == "never refines"
    assert cells([True], [True], [True]).note == "always refines"
    with pytest.raises(RematchError, match="cannot have changed"):
        cells([True], [False], [False])
    with pytest.raises(RematchError, match="three labels of every question"):
        cells([], [], [])


def test_the_identity_holds_for_trajectories(writer: Any) -> None:
    for mode in ("refine", "retry"):
        found, _ = write_trajectories(writer, PROMPTS, TOKENS, GREEDY, refine_mode=mode)  # type: ignore[arg-type]

        def right(attempt_of: Any, found: list[Trajectory] = found) -> list[bool]:
            return [truth == attempt_of(t).answer(last_digit) for truth, t in zip(TRUTHS, found, strict=True)]

        refined = [len(t.attempts) == 2 for t in found]
        counted = cells(right(lambda t: t.last(1)), refined, right(lambda t: t.last()))
        assert counted.accuracy == pytest.approx(np.mean(right(lambda t: t.last())))
        assert 0 < counted.refine_rate < 1
