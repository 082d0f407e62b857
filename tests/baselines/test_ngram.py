"""The n-gram language model: probabilities by hand, rows that sum to 1, a sampler that follows them, borders, files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from baselines.ngram import NGram, frequent_words
from rematch.errors import RematchError

TEXTS = ["a b a b c", "a b c", "b"]


def fitted(order: int = 3, texts: list[str] = TEXTS, **options: object) -> NGram:
    return NGram.fit([text.split() for text in texts], order=order, **options)  # type: ignore[arg-type]


def random_model(order: int, vocab_size: int = 7, n_texts: int = 60, seed: int = 0) -> NGram:
    """Skewed counts, so that contexts of all lengths are seen and unseen."""
    rng = np.random.default_rng(seed)
    words = [f"w{index}" for index in range(vocab_size)]
    weights = 1.0 / np.arange(1, vocab_size + 1) ** 1.5
    texts = [list(rng.choice(words, rng.integers(1, 9), p=weights / weights.sum())) for _ in range(n_texts)]
    return NGram.fit(texts, order=order, vocabulary=words)


def naive(model: NGram, texts: list[list[int]], context: list[int]) -> np.ndarray:
    """The docstring's recursion over lists, for a context of at most order - 1 words."""
    shorter = naive(model, texts, context[1:]) if context else np.full(model.vocab_size, 1 / model.vocab_size)
    n = len(context)
    followers = [t[i + n] for t in texts for i in range(len(t) - n) if t[i : i + n] == context]
    if not followers:
        return shorter
    counts = np.bincount(followers, minlength=model.vocab_size)
    backed_off = model.discount * (counts > 0).sum() / len(followers)
    return np.maximum(counts - model.discount, 0) / len(followers) + backed_off * shorter


def test_probabilities_by_hand() -> None:
    """Unigram counts a 3, b 4, c 2 of 9 over V = 4; after a only b (3 times); D = 0.75."""
    model = fitted()
    a, b, c = (model.encode([word])[0][0] for word in "abc")
    ids = np.array([a, b])
    unigram = {a: 2.25 / 9 + 0.0625, b: 3.25 / 9 + 0.0625, c: 1.25 / 9 + 0.0625, 0: 0.0625}  # 0.75 * 3 / 9 / 4 each
    expected = [unigram[word] * 0.25 + (0.75 if word == b else 0.0) for word in range(4)]
    assert model.log_probs([ids])[0, 0].exp().tolist() == pytest.approx(expected, abs=1e-6)
    assert model.token_log_probs([ids])[0, 0] == pytest.approx(math.log(0.75 + 0.25 * unigram[b]), abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_rows_equal_the_recursion_and_sum_to_one(order: int) -> None:
    rng = np.random.default_rng(1)
    texts = [list(map(int, rng.choice(5, rng.integers(1, 8)))) for _ in range(25)]
    vocabulary = ["<unk>", "b", "c", "d", "e", "never"]
    model = NGram.fit([[vocabulary[i] for i in text] for text in texts], order=order, vocabulary=vocabulary)
    batch = [rng.integers(6, size=n) for n in (6, 2, 1, 4)]
    rows = model.log_probs(batch)
    assert rows.shape == (4, 5, 6)
    assert rows.dtype == torch.float32
    assert (rows.double().exp().sum(-1) - 1).abs().max() < 1e-6
    tokens = model.token_log_probs(batch)
    for text, ids in enumerate(batch):
        for place in range(1, len(ids)):
            context = [int(i) for i in ids[max(0, place - order + 1) : place]]
            expected = naive(model, texts, context)
            assert rows[text, place - 1].exp().numpy() == pytest.approx(expected, rel=1e-5)
            assert tokens[text, place - 1] == pytest.approx(np.log(expected[ids[place]]), rel=1e-10)
        assert np.isnan(tokens[text, max(0, len(ids) - 1) :]).all()


def test_no_count_crosses_a_border() -> None:
    """Without the border, c would be followed by a and b."""
    model = fitted()
    row = model.log_probs([np.concatenate([model.encode(["c"])[0], [0]])])[0, 0]
    assert row.numpy() == pytest.approx(np.log(model._unigram), abs=1e-6)
    apart, together = fitted(texts=["a b", "a b"]), fitted(texts=["a b a b"])
    assert len(together.words) > len(apart.words)


def test_words_outside_the_vocabulary_are_unknown() -> None:
    model = fitted(vocabulary=["b", "a"])
    assert model.vocabulary == ["<unk>", "b", "a"]
    assert model.vocab_size == 3
    assert [ids.tolist() for ids in model.encode(["a zebra  b\n", ""])] == [[2, 0, 1], []]
    assert model.decode([np.array([2, 0, 1]), np.array([], int)]) == ["a <unk> b", ""]
    assert fitted(vocabulary=["b", "<unk>", "a"]).encode(["c"])[0].tolist() == [1]


def test_the_vocabulary_is_by_frequency_then_alphabet() -> None:
    sequences = [["b", "a", "c", "c", "<unk>", "<unk>", "<unk>"]]
    assert frequent_words(sequences) == ["<unk>", "c", "a", "b"]
    assert frequent_words(sequences, 3) == ["<unk>", "c", "a"]


def test_a_model_of_nothing_is_uniform() -> None:
    model = NGram.fit([[], []], vocabulary=["a", "b", "c"])
    assert model.log_probs([np.array([1, 2])]).exp().flatten().tolist() == pytest.approx([0.25] * 4)
    drawn = model.sample([np.zeros(0, int)], 4000, np.random.default_rng(0))
    assert np.bincount(drawn[0], minlength=4) / 4000 == pytest.approx([0.25] * 4, abs=0.03)
    assert model.log_probs([]).shape == (0, 0, 4)
    assert model.sample([], 3, np.random.default_rng(0)).shape == (0, 3)
    assert model.infill([], [], np.random.default_rng(0)) == []


@pytest.mark.parametrize(("order", "temperature"), [(1, 1.0), (2, 1.0), (3, 1.0), (3, 0.7), (3, 1.8)])
def test_the_sampler_follows_the_probabilities(order: int, temperature: float) -> None:
    """Pearson's statistic of 20,000 draws after each of several contexts, below the 0.9999 quantile of chi-square."""
    model = random_model(order)
    rng = np.random.default_rng(5)
    n = 20_000
    for context in ([], [1], [6], [1, 1], [1, 2], [2, 6], [0, 0, 1]):
        prefix = np.array(context, np.int64)
        if context:
            logits = model.log_probs([np.append(prefix, 0)])[0, -1].double() / temperature
        else:
            logits = torch.from_numpy(np.log(model._unigram)) / temperature
        expected = n * torch.softmax(logits, 0).numpy()
        drawn = model.sample([prefix] * n, 1, rng, temperature)
        observed = np.bincount(drawn[:, 0], minlength=model.vocab_size)
        assert ((observed - expected) ** 2 / expected).sum() < chi2.ppf(0.9999, model.vocab_size - 1), context


def test_sampled_texts_are_as_likely_as_the_model_says() -> None:
    """Each draw is conditioned on the draws before it: the joint distribution of three words after a prefix."""
    model = random_model(3, vocab_size=3)
    n = 30_000
    drawn = model.sample([np.array([1])] * n, 3, np.random.default_rng(2))
    every = np.stack(np.meshgrid(*[np.arange(model.vocab_size)] * 3, indexing="ij"), -1).reshape(-1, 3)
    expected = n * np.exp(model.token_log_probs([np.array([1, *row]) for row in every]).sum(1))
    assert expected.sum() == pytest.approx(n)
    base = model.vocab_size ** np.array([2, 1, 0])
    observed = np.bincount(drawn @ base, minlength=len(every))
    assert ((observed - expected) ** 2 / expected).sum() < chi2.ppf(0.9999, len(every) - 1)


def test_infilling_continues_the_left_context_and_keeps_the_rest() -> None:
    model = random_model(3)
    texts = [np.array([1, 2, 3, 4, 5, 6]), np.array([3]), np.array([2, 2])]
    masks = [np.array([0, 1, 1, 0, 0, 1], bool), np.array([True]), np.array([False, False])]
    before = [text.copy() for text in texts]
    filled = model.infill(texts, masks, np.random.default_rng(3))
    for text, old, new, mask in zip(texts, before, filled, masks, strict=True):
        assert (text == old).all()
        assert (new[~mask] == old[~mask]).all()
    # The same uniform numbers, drawn as continuations of what stands to the left.
    uniforms = np.random.default_rng(3)
    start = model.sample([texts[0][:1]], 2, uniforms)[0]
    assert filled[0][1:3].tolist() == start.tolist()
    end = model.sample([filled[0][:5]], 1, uniforms)[0]
    assert filled[0][5] == end[0]
    assert filled[1][0] == model.sample([np.zeros(0, int)], 1, uniforms)[0, 0]


def test_samples_are_a_function_of_the_seed() -> None:
    model = random_model(3)
    prefixes = [np.array([1]), np.array([2, 3]), np.zeros(0, np.int64)]
    one = model.sample(prefixes, 50, np.random.default_rng(0))
    assert (one == model.sample(prefixes, 50, np.random.default_rng(0))).all()
    assert (one[:2] == model.sample(prefixes[:2], 50, np.random.default_rng(0))).all()
    assert (one != model.sample(prefixes, 50, np.random.default_rng(1))).any()


def test_a_low_temperature_takes_the_likeliest_word() -> None:
    model = random_model(3)
    likeliest = int(model.log_probs([np.array([1, 2, 0])])[0, -1].argmax())
    assert (model.sample([np.array([1, 2])] * 20, 1, np.random.default_rng(0), 1e-3) == likeliest).all()


def test_a_saved_model_is_the_same(tmp_path: Path) -> None:
    model = fitted(texts=["naïve é \N{SNOWMAN} a", "a b"], discount=0.6)
    model.save(tmp_path / "deep" / "model")
    again = NGram.load(tmp_path / "deep" / "model")
    assert again.vocabulary == model.vocabulary
    assert (again.order, again.discount) == (3, 0.6)
    ids = model.encode(["a \N{SNOWMAN} b zebra"])
    assert torch.equal(again.log_probs(ids), model.log_probs(ids))
    assert json.loads((tmp_path / "deep" / "model" / "ngram.json").read_text())["order"] == 3
    with pytest.raises(RematchError, match="holds no n-gram model"):
        NGram.load(tmp_path)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(RematchError, match="order is at least 1"):
        fitted(order=0)
    for discount in (0.0, 1.0, -1.0):
        with pytest.raises(RematchError, match="discount"):
            fitted(discount=discount)
    with pytest.raises(RematchError, match="'a' more than once"):
        fitted(vocabulary=["a", "b", "a"])
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(RematchError, match="temperature"):
            fitted().sample([np.array([1])], 1, np.random.default_rng(0), temperature)
    for ids in ([4], [-1]):
        with pytest.raises(RematchError, match="the vocabulary has 4 words"):
            fitted().log_probs([np.array([1, *ids])])
    with pytest.raises(RematchError, match="one mask a text"):
        fitted().infill([np.array([1, 2])], [np.array([True])], np.random.default_rng(0))


def test_ranked_tokens_are_those_of_the_dense_row() -> None:
    model = random_model(3, vocab_size=30)
    batch = [np.random.default_rng(n).integers(model.vocab_size, size=n) for n in (12, 2, 1, 0, 30)]
    log_p, rank = model.ranked_tokens(batch)
    assert log_p.shape == rank.shape == (5, 29)
    assert log_p == pytest.approx(model.token_log_probs(batch), nan_ok=True, abs=1e-12)
    for row, ids in enumerate(batch):
        for place in range(1, len(ids)):
            dense = model.log_probs([ids])[0, place - 1]
            assert rank[row, place - 1] == 1 + (dense > dense[ids[place]]).sum()
        assert np.isnan(rank[row, max(0, len(ids) - 1) :]).all()
    assert (rank[~np.isnan(rank)] == 1).any()
