"""Simulated annotators and best-of-n: features by hand, noisy choices that are calibrated, and the identity of the best."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from baselines.ngram import NGram
from workflows.remodetect.annotators import (
    DECISIVENESS,
    TASTES,
    Annotators,
    Chance,
    Selector,
    Surface,
    VendorReward,
    best_of,
)
from workflows.remodetect.evaluation import placements, wins
from workflows.remodetect.language_models import load_writers

VOCABULARY = ("<unk>", "however", "so", "cat", "a", ".", "?", ",", "(", ")", "[", "]", "{", "}", "3")
IDS = {word: index for index, word in enumerate(VOCABULARY)}


def selector(texts: Path) -> Selector:
    """The reward that picked, as it was written to a base."""
    found = Selector()
    found.read(texts)
    return found


def ids(*texts: str) -> np.ndarray:
    return np.array([[IDS[word] for word in text.split()] for text in texts])


def features(*texts: str) -> np.ndarray:
    return Surface(VOCABULARY).features(ids(*texts))


def drawn(n: int, n_words: int = 24, seed: int = 0) -> np.ndarray:
    """Texts that differ in every feature."""
    rng = np.random.default_rng([seed, n])
    chances = rng.dirichlet(np.ones(len(VOCABULARY)), size=n).cumsum(axis=1)
    chances /= chances[:, -1:]
    uniform = rng.random((n, n_words))
    return np.stack([row.searchsorted(u, side="right") for row, u in zip(chances, uniform, strict=True)])


# -- features ---------------------------------------------------------------------------------------------------------


def test_features_by_hand() -> None:
    """Two helpful words and two sentences in eight words; four letters-only words with 7, 3, 2 and 1 letters."""
    (found,) = features("however cat . so a , ? 3")
    assert found.tolist() == pytest.approx([2 / 8, -abs(8 / 2 - 14), -(7 + 3 + 2 + 1) / 4, 1.0, 0.0, 1 / 8])


def test_repeated_bigrams_count_once() -> None:
    assert features("a cat a cat a cat", "a a a a a a", "a cat so 3 , .")[:, 3].tolist() == [2 / 5, 1 / 5, 1.0]


@pytest.mark.parametrize(
    ("text", "imbalance"),
    [
        ("( a ) [ a ]", 0),
        ("( ( a ) )", 0),
        ("( ( a a )", 1),  # one is never closed
        (") a a a a", 1),  # one was never opened
        (") a a a (", 2),  # both
        (") ) ( ( a", 4),
        ("( ] { } a", 0),  # kinds of brackets are not told apart
    ],
)
def test_unbalanced_brackets(text: str, imbalance: int) -> None:
    assert features(text)[0, 4] == -imbalance


def test_text_without_sentences_or_letters_has_features() -> None:
    (found,) = features("3 3 3 3")
    assert np.isfinite(found).all()
    assert found[1] == -abs(4 - 14)
    assert found[2] == 0


# -- choices ----------------------------------------------------------------------------------------------------------


def test_utility_is_in_units_of_unaligned_samples() -> None:
    unaligned = drawn(500)
    people = Annotators.of(Surface(VOCABULARY), TASTES["a"], unaligned)
    standard = people.standardised(unaligned)
    assert standard.mean(0) == pytest.approx(np.zeros(6), abs=1e-9)
    assert standard.std(0) == pytest.approx(np.ones(6))
    assert people.utility(unaligned).std() == pytest.approx(people.spread)
    assert people.utility(unaligned) == pytest.approx(standard.sum(1))


@pytest.mark.parametrize("taste", list(TASTES))
def test_choices_follow_bradley_terry(taste: str) -> None:
    """The share of choices of the first text, by the difference of utilities, within 4 standard errors."""
    people = Annotators.of(Surface(VOCABULARY), TASTES[taste], drawn(2000))
    first, second = drawn(40_000, seed=1), drawn(40_000, seed=2)
    chosen = people.prefers_first(first, second, np.random.default_rng(0))
    margin = DECISIVENESS * (people.utility(first) - people.utility(second)) / people.spread
    expected = 1 / (1 + np.exp(-margin))
    for low, high in zip([0, 0.1, 0.3, 0.45, 0.55, 0.7, 0.9], [0.1, 0.3, 0.45, 0.55, 0.7, 0.9, 1], strict=True):
        here = (expected >= low) & (expected < high)
        error = np.sqrt((expected[here] * (1 - expected[here])).sum()) / here.sum()
        assert here.sum() > 500
        assert abs(chosen[here].mean() - expected[here].mean()) < 4 * error


def test_equal_texts_are_chosen_by_a_coin() -> None:
    people = Annotators.of(Surface(VOCABULARY), TASTES["a"], drawn(500))
    same = drawn(10_000)
    assert people.prefers_first(same, same, np.random.default_rng(0)).mean() == pytest.approx(0.5, abs=0.02)


def test_vendors_reward_is_its_annotators_taste_in_direction_and_size() -> None:
    people = Annotators.of(Surface(VOCABULARY), TASTES["b"], drawn(2000))
    reward = VendorReward.fit(people, drawn(30_000, seed=1), drawn(30_000, seed=2), np.random.default_rng(0))
    truth = DECISIVENESS * people.weights / people.spread
    assert reward.coefficients == pytest.approx(truth, abs=0.1)
    few = VendorReward.fit(people, drawn(100, seed=1), drawn(100, seed=2), np.random.default_rng(0))
    assert np.corrcoef(few(drawn(500)), people.utility(drawn(500)))[0, 1] > 0.8
    assert np.abs(few.coefficients - truth).max() > np.abs(reward.coefficients - truth).max()  # it is an estimate


def test_vendors_differ_in_taste() -> None:
    a, b = (np.array(TASTES[name]) for name in ("a", "b"))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert 0.6 < cosine < 0.9


# -- best of n --------------------------------------------------------------------------------------------------------


def vendor(n_pairs: int = 2000) -> VendorReward:
    people = Annotators.of(Surface(VOCABULARY), TASTES["a"], drawn(1000))
    return VendorReward.fit(people, drawn(n_pairs, seed=1), drawn(n_pairs, seed=2), np.random.default_rng(0))


def test_best_of_the_first_n() -> None:
    reward, candidates = vendor(), drawn(60).reshape(6, 10, -1)
    rewards = reward(candidates.reshape(60, -1)).reshape(6, 10)
    for n in (1, 4, 10):
        best = best_of(reward, candidates, n)
        assert best.shape == (6, 24)
        assert reward(best) == pytest.approx(rewards[:, :n].max(1))
    assert np.array_equal(best_of(reward, candidates, 1), candidates[:, 0])


def test_selector_gives_the_rewards_that_picked(tmp_path: Path) -> None:
    reward, some = vendor(), drawn(50)
    reward.save(tmp_path / Selector.FILE)
    texts = [" ".join(VOCABULARY[index] for index in row) for row in some]
    assert selector(tmp_path).score(texts).tolist() == pytest.approx(reward(some).tolist(), abs=1e-9)
    assert selector(tmp_path).score(texts[::-1]).tolist() == selector(tmp_path).score(texts)[::-1].tolist()


def test_selector_of_the_room_is_linear_in_the_surface_alone(
    texts: Path, ids_of: Callable[[Sequence[str]], np.ndarray]
) -> None:
    """The same words in another file would get the same score: nothing but them enters."""
    saved = json.loads((texts / Selector.FILE).read_text(encoding="utf-8"))
    assert set(saved) == {"mean", "scale", "coefficients", "vocabulary"}
    text = "the array is sorted , so it is searched ."
    known = set(saved["vocabulary"])
    words = " ".join(word if word in known else "<unk>" for word in text.split())
    surface = Surface(tuple(saved["vocabulary"])).features(ids_of([words]))
    by_hand = float(((surface - saved["mean"]) / saved["scale"] @ np.array(saved["coefficients"]))[0])
    assert selector(texts).score([words, words]).tolist() == pytest.approx([by_hand, by_hand])


def test_chance_cannot_tell_anything(tmp_path: Path) -> None:
    human, llm = Chance().score(["a"] * 7), Chance().score(["b c"] * 5)
    assert placements(human, llm).mean() == 0.5


@pytest.mark.parametrize("domain", ["sci", "std"])
def test_the_best_of_n_beats_a_fresh_draw_n_in_n_plus_one_times(
    domain: str, corpus: Path, language_models: Path, texts: Path
) -> None:
    """3,000 prompts of human windows; 17 continuations of each, the last of which is the fresh one.

    For n = 1 it is a coin; a tie counts half, which costs the best of many a little, so the bound is one of errors alone.
    """
    writer: NGram = load_writers(language_models, domain)["a"]
    rows = json.loads((corpus / f"{domain}.json").read_text(encoding="utf-8"))["lm_b"]
    prompts = [prompt[:8] for prompt in writer.encode([" ".join(row) for row in rows])]
    prompts = (prompts * 20)[:3000]
    new = writer.sample([prompt for prompt in prompts for _ in range(17)], 32, np.random.default_rng(0))
    whole = np.concatenate([np.repeat(np.stack(prompts), 17, axis=0), new], axis=1)
    rewards = selector(texts).score(writer.decode(whole)).reshape(3000, 17)
    candidates, fresh = rewards[:, :16], rewards[:, 16]
    for n in (1, 2, 4, 16):
        items = wins(candidates[:, :n].max(1), fresh)
        expected = n / (n + 1)
        assert abs(items.mean() - expected) < 3 * np.sqrt(expected * (1 - expected) / 3000)
    # Against all prompts at once a little is lost, and more samples are told better.
    pooled = [placements(fresh, candidates[:, :n].max(1)).mean() for n in (1, 4, 16)]
    assert pooled == sorted(pooled)
    assert all(0.45 < value < n / (n + 1) + 0.02 for n, value in zip((1, 4, 16), pooled, strict=True))
