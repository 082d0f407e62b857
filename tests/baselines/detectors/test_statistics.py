"""Zero-shot statistics: values by hand, identities, padding, cutting, files, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.detectors.statistics import (
    GLTR,
    STATISTICS,
    Passes,
    Resampled,
    TokenStatistics,
    ZeroShot,
    expected_log_p,
    log_p_and_rank,
    mean_log_p_and_log_rank,
    predictive_entropy,
    token_statistics,
)
from baselines.ngram import NGram
from rematch.errors import RematchError

NAN = math.nan
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


class Table:
    """A language model whose prediction after a token is a row of a table; it counts its passes."""

    def __init__(self, table: Tensor, words: Sequence[str] = WORDS) -> None:
        self.table, self.words, self.n_passes = table, list(words), 0

    @property
    def vocab_size(self) -> int:
        return self.table.shape[1]

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array([self.words.index(word) for word in text.split()], np.int64) for text in texts]

    def decode(self, ids_batch: Sequence[np.ndarray]) -> list[str]:
        return [" ".join(self.words[i] for i in ids) for ids in ids_batch]

    def log_probs(self, ids_batch: Sequence[np.ndarray]) -> Tensor:
        self.n_passes += len(ids_batch)
        out = torch.full((len(ids_batch), max(map(len, ids_batch)) - 1, self.vocab_size), NAN)
        for row, ids in enumerate(ids_batch):
            out[row, : len(ids) - 1] = self.table[ids[:-1]].log_softmax(-1)
        return out

    def sample(
        self, prefixes: Sequence[np.ndarray], length: int, rng: np.random.Generator, temperature: float = 1.0
    ) -> list[np.ndarray]:
        raise NotImplementedError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_table(seed: int = 0, n: int = len(WORDS), v: int = len(WORDS)) -> Table:
    return Table(2 * torch.randn(n, v, generator=torch.Generator().manual_seed(seed)))


def random_texts(n: int, seed: int = 0, longest: int = 12) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(2, longest + 1))) for _ in range(n)]


def one_position(p: Sequence[float], token: int, q: Sequence[float] | None = None) -> TokenStatistics:
    log_p, log_q = torch.tensor([p]).log(), torch.tensor([p if q is None else q]).log()
    own, rank = log_p_and_rank(log_p, torch.tensor([token]))
    mu, var = expected_log_p(log_p, log_q)
    arrays = (own, rank, predictive_entropy(log_p), mu, var)
    return TokenStatistics(*(array.double().numpy()[None] for array in arrays))


def stats_of(log_p: list[list[float]], rank: list[list[float]]) -> TokenStatistics:
    return TokenStatistics(np.array(log_p), np.array(rank), np.array(log_p) * 0)


def test_fast_detectgpt_of_one_position() -> None:
    criterion = ZeroShot("fast_detectgpt")
    assert criterion.score(one_position([0.75, 0.25], 0))[0] == pytest.approx(0.577350, abs=1e-6)
    assert criterion.score(one_position([0.75, 0.25], 1))[0] == pytest.approx(-1.732051, abs=1e-6)


def test_fast_detectgpt_has_mean_zero_and_variance_one_where_the_reference_wrote_the_text() -> None:
    rng = np.random.default_rng(0)
    q = torch.softmax(torch.randn(6, 50, generator=torch.Generator().manual_seed(1)), -1)
    n = 10_000
    tokens = np.stack([rng.choice(50, n, p=row / row.sum()) for row in q.double().numpy()], 1)
    mu, var = expected_log_p(q.log(), q.log())
    log_p = q.log().double().numpy()[np.arange(6), tokens]
    moments = (np.broadcast_to(values.double().numpy(), (n, 6)) for values in (mu, var))
    scores = ZeroShot("fast_detectgpt").score(TokenStatistics(log_p, log_p * 0 + 1, log_p * 0, *moments))
    assert abs(scores.mean()) < 0.03
    assert scores.var() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("v", [2, 50_257])
def test_uniform_predictions_have_no_variance_and_score_zero(v: int) -> None:
    log_p = torch.log_softmax(torch.zeros(3, v), -1)
    mu, var = expected_log_p(log_p, torch.log_softmax(torch.randn(3, v, generator=seeded(v)), -1))
    assert (var == 0).all()
    own, rank = log_p_and_rank(log_p, torch.tensor([0, 1, v - 1]))
    arrays = (own, rank, predictive_entropy(log_p), mu, var)
    stats = TokenStatistics(*(array.double().numpy()[None] for array in arrays))
    assert ZeroShot("fast_detectgpt").score(stats).tolist() == [0.0]
    assert stats.entropy == pytest.approx(math.log(v), rel=1e-5)
    assert rank.tolist() == [1, 1, 1]


def test_moments_equal_the_textbook_formula() -> None:
    p, q = torch.log_softmax(3 * torch.randn(2, 4, 30, dtype=torch.float64, generator=seeded(0)), -1)
    mu, var = expected_log_p(p, q)
    assert torch.allclose(mu, (q.exp() * p).sum(1))
    assert torch.allclose(var, (q.exp() * p**2).sum(1) - mu**2)


@pytest.mark.parametrize(("v", "w"), [(30, 20), (20, 30)])
def test_vocabularies_of_different_length_are_cut_before_the_softmax(v: int, w: int) -> None:
    """Against cutting the logits themselves; p is normalised over the cut in the reference, not in ours."""
    draws = seeded(v)
    p, q = (2 * torch.randn(5, n, dtype=torch.float64, generator=draws) for n in (v, w))
    tokens = torch.arange(5)
    log_p, log_q = p[:, :20].log_softmax(-1), q[:, :20].log_softmax(-1)
    mu = (log_q.exp() * log_p).sum(1)
    var = (log_q.exp() * log_p**2).sum(1) - mu**2
    expected = (log_p.gather(1, tokens[:, None])[:, 0].sum() - mu.sum()) / var.sum().sqrt()
    own, rank = log_p_and_rank(p.log_softmax(-1), tokens)
    measured = (own, rank, own, *expected_log_p(p.log_softmax(-1), q.log_softmax(-1)))
    stats = TokenStatistics(*(array.double().numpy()[None] for array in measured))
    assert ZeroShot("fast_detectgpt").score(stats)[0] == pytest.approx(expected.item(), rel=1e-10)


def test_entropy_is_unsigned() -> None:
    stats = one_position([0.75, 0.25], 0)
    assert stats.entropy[0, 0] == pytest.approx(0.562335, abs=1e-6)
    assert ZeroShot("entropy").score(stats)[0] == pytest.approx(0.562335, abs=1e-6)


def test_the_most_probable_token_has_rank_one() -> None:
    stats = one_position([0.2, 0.5, 0.3], 1)
    assert stats.rank.tolist() == [[1]]
    assert ZeroShot("rank").score(stats).tolist() == [-1]
    assert ZeroShot("log_rank").score(stats).tolist() == [0]
    assert ZeroShot("lrr").score(stats)[0] == pytest.approx(math.log(2) / 1e-8)


def test_equally_probable_tokens_share_the_best_rank() -> None:
    rows = torch.tensor([[0.1, 0.3, 0.3, 0.3]]).log().expand(4, 4)
    assert log_p_and_rank(rows, torch.arange(4))[1].tolist() == [4, 1, 1, 1]


def test_scores_by_hand() -> None:
    stats = stats_of([[-1.0, -3.0, NAN], [-2.0, -2.0, -5.0]], [[1, 7, NAN], [2, 2, 4]])
    expected = {
        "log_likelihood": [-2, -3],
        "rank": [-4, -8 / 3],
        "log_rank": [-math.log(7) / 2, -math.log(16) / 3],
        "lrr": [4 / math.log(7), 9 / math.log(16)],
    }
    for name, values in expected.items():
        assert ZeroShot(name).score(stats) == pytest.approx(values), name
    resampled = Resampled(np.array([[-3.0, -5.0], [-4.0, -4.0]]), np.array([[1.0, 2.0], [3.0, 3.0]]))
    assert ZeroShot("detectgpt").score(stats, resampled) == pytest.approx([2, 1])
    assert ZeroShot("dna_gpt").score(stats, resampled) == pytest.approx([2, 1])
    assert ZeroShot("npr").score(stats, resampled) == pytest.approx([3 / math.log(7), 9 / math.log(16)])


def test_equal_perturbed_likelihoods_have_a_deviation_of_one() -> None:
    """The mean of 100 equal numbers need not equal them in the last bit: that is no deviation."""
    values = np.full((1, 100), -0.1)
    assert 0 < values.std(1)[0] < 1e-12
    stats = stats_of([[0.9]], [[2]])
    assert ZeroShot("detectgpt").score(stats, Resampled(values, -values))[0] == pytest.approx(1.0)


def test_one_pass_of_each_model_gives_every_statistic() -> None:
    scoring, reference = random_table(0), random_table(1)
    texts = random_texts(20)
    stats = token_statistics(scoring, texts, reference)
    for name in STATISTICS[:6]:
        assert np.isfinite(ZeroShot(name).score(stats)).all(), name
    assert (scoring.n_passes, reference.n_passes) == (20, 20)
    alone = random_table(0)
    itself = token_statistics(alone, texts, alone)
    assert alone.n_passes == 20
    assert itself.mu == pytest.approx(-itself.entropy, nan_ok=True, abs=1e-5)


def test_passes() -> None:
    assert {name: ZeroShot(name).passes(10) for name in STATISTICS} == {
        **dict.fromkeys(("log_likelihood", "rank", "log_rank", "entropy", "lrr"), Passes(1, 0)),
        "fast_detectgpt": Passes(1, 1),
        **dict.fromkeys(("detectgpt", "npr", "dna_gpt"), Passes(11, 0)),
    }
    assert [ZeroShot(name).resampling for name in ("lrr", "npr", "dna_gpt")] == [None, "perturbed", "regenerated"]
    assert ZeroShot("fast_detectgpt").needs_reference
    assert not ZeroShot("detectgpt").needs_reference


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_change_nothing(batch_size: int) -> None:
    scoring, reference = random_table(0), random_table(1)
    texts = random_texts(17)
    together = token_statistics(scoring, texts, reference, batch_size=batch_size)
    for row, text in enumerate(texts):
        single = token_statistics(scoring, [text], reference)
        n = len(text.split()) - 1
        assert together.n_predicted[row] == n
        for name in ("log_p", "rank", "entropy", "mu", "var"):
            values = getattr(together, name)[row]
            assert values[:n] == pytest.approx(getattr(single, name)[0], rel=1e-6, abs=1e-6)
            assert np.isnan(values[n:]).all()
    log_p, log_rank = mean_log_p_and_log_rank(scoring, texts, batch_size)
    assert log_p == pytest.approx(ZeroShot("log_likelihood").score(together), rel=1e-6)
    assert log_rank == pytest.approx(-ZeroShot("log_rank").score(together), rel=1e-6)


def test_an_ngram_model_gives_the_same_with_and_without_its_short_cut() -> None:
    rng = np.random.default_rng(0)
    weights = 1.0 / np.arange(1, 11)
    corpus = [list(rng.choice(WORDS, 9, p=weights / weights.sum())) for _ in range(80)]
    model = NGram.fit(corpus)
    texts = random_texts(30)
    short = token_statistics(model, texts, model)
    log_probs = [model.log_probs([ids])[0] for ids in model.encode(texts)]
    for row, (ids, rows) in enumerate(zip(model.encode(texts), log_probs, strict=True)):
        log_p, rank = log_p_and_rank(rows, torch.from_numpy(ids[1:]))
        n = len(ids) - 1
        assert short.log_p[row, :n] == pytest.approx(log_p.numpy(), abs=1e-6)
        assert short.rank[row, :n].tolist() == rank.tolist()
    means = mean_log_p_and_log_rank(model, texts)
    assert np.array_equal(means[0], ZeroShot("log_likelihood").score(short))
    assert np.array_equal(means[1], -ZeroShot("log_rank").score(short))


def test_statistics_of_the_first_tokens_are_those_of_the_cut_text() -> None:
    model = random_table()
    texts = random_texts(8)
    cut = token_statistics(model, [" ".join(text.split()[:5]) for text in texts], model)
    first = token_statistics(model, texts, model).first(5)
    for name in ("log_p", "rank", "entropy", "mu", "var"):
        assert getattr(first, name) == pytest.approx(getattr(cut, name), nan_ok=True, abs=1e-6)
    whole = token_statistics(model, texts)
    assert whole.first(100).log_p.shape == whole.log_p.shape
    assert np.isnan(ZeroShot("log_likelihood").score(whole.first(1))).all()


def test_what_is_no_text_of_two_words_is_a_row_of_nan() -> None:
    model = random_table()
    rows: list[object] = ["", "alpha", "alpha beta", None, b"\xff\xfe", "  \n", "alpha beta", "\udcff alpha"]
    stats = token_statistics(model, rows, model)
    assert stats.n_predicted.tolist() == [0, 0, 1, 0, 0, 0, 1, 0]
    resampled = Resampled(stats.log_p[:, :1].repeat(3, 1), stats.rank[:, :1].repeat(3, 1))
    labelled = GLTR().fit(token_statistics(model, ["alpha beta", "beta alpha"]), [0, 1])
    scores = {name: ZeroShot(name).score(stats, resampled) for name in STATISTICS} | {"gltr": labelled.score(stats)}
    for name, values in scores.items():
        assert np.isnan(values).tolist() == [True, True, False, True, True, True, False, True], name
        assert values[2] == values[6], name
    empty = token_statistics(model, [])
    assert len(ZeroShot("lrr").score(empty)) == 0
    assert np.isnan(ZeroShot("lrr").score(token_statistics(model, ["", ""]))).all()


def test_taking_and_joining() -> None:
    model = random_table()
    texts = random_texts(9, longest=6) + random_texts(4, seed=1, longest=12)
    whole = token_statistics(model, texts, model)
    parts = [token_statistics(model, part, model) for part in (texts[:9], texts[9:])]
    joined = TokenStatistics.concatenate(parts)
    for name in ("log_p", "rank", "entropy", "mu", "var"):
        assert getattr(joined, name) == pytest.approx(getattr(whole, name), nan_ok=True)
    assert (whole.take([3, 0, 3]).n_predicted == whole.n_predicted[[3, 0, 3]]).all()
    assert len(whole.take(whole.n_predicted > 4)) == (whole.n_predicted > 4).sum()
    with pytest.raises(RematchError, match="all have or all lack"):
        TokenStatistics.concatenate([whole, token_statistics(model, texts)])
    resampled = Resampled(np.arange(6.0).reshape(2, 3), -np.arange(6.0).reshape(2, 3))
    assert resampled.first_k(2).log_p.tolist() == [[0, 1], [3, 4]]
    assert resampled.take([1]).log_rank.tolist() == [[-3, -4, -5]]
    for k in (0, 4):
        with pytest.raises(RematchError, match="there are 3"):
            resampled.first_k(k)


@pytest.mark.parametrize("with_reference", [True, False])
def test_files(tmp_path: Path, with_reference: bool) -> None:
    model = random_table()
    stats = token_statistics(model, random_texts(5), model if with_reference else None).take([2, 1])
    stats.save(tmp_path / "deep" / "stats.safetensors")
    again = TokenStatistics.load(tmp_path / "deep" / "stats.safetensors")
    assert (again.mu is not None) == with_reference
    assert np.array_equal(again.log_p, stats.log_p, equal_nan=True)
    assert np.array_equal(again.rank, stats.rank, equal_nan=True)
    resampled = Resampled(np.arange(6.0).reshape(2, 3).T, np.ones((3, 2)))
    resampled.save(tmp_path / "resampled.safetensors")
    assert (Resampled.load(tmp_path / "resampled.safetensors").log_p == resampled.log_p).all()


def test_gltr_features() -> None:
    ranks: list[list[float]] = [[1, 10, 11, 100, 101, 1000, 1001, 50_000], [1, 1, 1, 2000, NAN, NAN, NAN, NAN]]
    stats = stats_of([[-1.0] * 8, [-1.0] * 4 + [NAN] * 4], ranks)
    features = GLTR().features(stats)
    assert features.tolist() == [[0.25, 0.25, 0.25, 0.25], [0.75, 0, 0, 0.25]]


def test_gltr_learns_the_orientation_from_the_labels() -> None:
    rng = np.random.default_rng(0)
    ranks = np.where(np.arange(40)[:, None] % 2 == 1, rng.integers(1, 20, (40, 30)), rng.integers(1, 2000, (40, 30)))
    stats = TokenStatistics(-np.log(ranks), ranks.astype(float), ranks * 0.0)
    labels = np.arange(40) % 2
    scores = GLTR().fit(stats, labels).score(stats)
    assert scores[labels == 1].min() > scores[labels == 0].max()
    flipped = GLTR().fit(stats, 1 - labels).score(stats)
    assert flipped[labels == 0].min() > flipped[labels == 1].max()
    assert GLTR(C=0.01).fit(stats, labels).score(stats).std() < scores.std()


def test_what_is_missing_is_said() -> None:
    stats = stats_of([[-1.0], [-2.0]], [[1], [2]])
    resampled = Resampled(np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(RematchError, match=r"unknown statistic 'log_rnak'.*Did you mean 'log_rank'"):
        ZeroShot("log_rnak")
    with pytest.raises(RematchError, match="needs token statistics with a reference model"):
        ZeroShot("fast_detectgpt").score(stats)
    with pytest.raises(RematchError, match="npr needs perturbed versions"):
        ZeroShot("npr").score(stats)
    with pytest.raises(RematchError, match="2 texts, but regenerated versions of 3"):
        ZeroShot("dna_gpt").score(stats, resampled)
    with pytest.raises(RematchError, match="has not been fitted"):
        GLTR().score(stats)
    with pytest.raises(RematchError, match="both classes"):
        GLTR().fit(stats, [1, 1])
    with pytest.raises(RematchError, match="2 texts, but 3 labels"):
        GLTR().fit(stats, [1, 0, 1])
    with pytest.raises(RematchError, match="text 0: the scoring model's tokenizer"):
        token_statistics(random_table(), ["alpha beta"], Table(torch.zeros(10, 10), WORDS[::-1]))
