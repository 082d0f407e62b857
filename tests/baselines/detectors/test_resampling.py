"""Perturbed and regenerated texts: what is masked, what stays, how fills are read, and what the scores make of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration, T5Tokenizer

from baselines.detectors.language_models import CausalLM
from baselines.detectors.resampling import (
    Masked,
    NGramFiller,
    T5Filler,
    fills_of,
    masked_spans,
    n_masked_spans,
    perturb,
    perturbed_statistics,
    regenerate,
    regenerated_statistics,
)
from baselines.detectors.statistics import ZeroShot, token_statistics
from baselines.ngram import NGram
from rematch.errors import RematchError

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Shout:
    """A filler that shows what was masked."""

    def fill(self, texts: Sequence[Masked], rng: np.random.Generator) -> list[str]:
        return [text.filled([text.original(i).upper() for i in range(len(text.starts))]) for text in texts]


def words(n: int) -> str:
    return " ".join(f"w{i}" for i in range(n))


def chain(order: int = 2, seed: int = 0) -> NGram:
    """Letters that mostly follow the alphabet."""
    rng = np.random.default_rng(seed)
    texts = [
        [LETTERS[(start + i * (rng.random() < 0.9)) % 26] for i in range(20)] for start in rng.integers(26, size=60)
    ]
    return NGram.fit(texts, order=order, vocabulary=list(LETTERS))


def letters(n_texts: int, n: int, seed: int = 1) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(LETTERS[(start + i) % 26] for i in range(n)) for start in rng.integers(26, size=n_texts)]


@pytest.mark.parametrize(("n", "spans"), [(0, 0), (10, 0), (13, 0), (14, 1), (20, 1), (54, 4), (100, 7), (150, 11)])
def test_number_of_masked_spans(n: int, spans: int) -> None:
    assert n_masked_spans(n) == spans
    assert masked_spans(n, 3, np.random.default_rng(0)).shape == (3, spans)
    [versions] = perturb([words(n)], Shout(), 4, np.random.default_rng(0))
    for version in versions:
        assert sum(word.isupper() for word in version.split()) == 2 * spans
        assert version.lower() == words(n)
        assert len(re.findall(r"W\d+ W\d+", version)) == spans


@pytest.mark.parametrize(("pct", "span"), [(0.3, 2), (1.0, 2), (1.0, 1), (0.9, 5)])
def test_spans_leave_a_word_free_on_each_side(pct: float, span: int) -> None:
    rng = np.random.default_rng(0)
    for n in range(4, 60):
        for starts in masked_spans(n, 20, rng, pct, span):
            edges = np.concatenate([[0], np.stack([starts, starts + span], 1).ravel(), [n]])
            assert (edges[1::2] - edges[::2] >= 1).all()


def test_spans_are_uniform_over_all_arrangements() -> None:
    """Ten words and two spans of two: with a free word before, between and after there are 10 arrangements."""
    drawn = masked_spans(10, 20_000, np.random.default_rng(0), pct=0.9, span=2)
    arrangements, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(arrangements) == 10
    assert counts / 20_000 == pytest.approx(np.full(10, 0.1), abs=0.01)


def test_white_space_outside_the_spans_stays() -> None:
    text = "  one\n\ntwo  three\tfour five "
    masked = Masked.of(text, [1, 4], 1)
    assert masked.filled([masked.original(0), masked.original(1)]) == text
    assert Masked.of(text, [1], 2).original(0) == "two  three"
    assert Masked.of(text, [1], 2).filled(["X"]) == "  one\n\nX\tfour five "
    assert Masked.of("", [], 2).filled([]) == ""
    assert perturb([" a\n b "], Shout(), 2, np.random.default_rng(0)) == [[" a\n b "] * 2]


def test_every_perturbation_starts_from_the_original() -> None:
    [versions] = perturb([words(100)], Shout(), 30, np.random.default_rng(0))
    assert len(set(versions)) > 25
    assert {version.lower() for version in versions} == {words(100)}
    assert perturb([words(100)], Shout(), 30, np.random.default_rng(0)) == [versions]


def test_what_cannot_be_is_refused() -> None:
    rng = np.random.default_rng(0)
    for options in ({"k": 0}, {"k": 1, "span": 0}, {"k": 1, "pct": 1.5}):
        with pytest.raises(RematchError, match="a perturbation needs"):
            perturb(["a"], Shout(), rng=rng, **options)
    for options in ({"k": 0}, {"k": 1, "kept": 1.0}, {"k": 1, "kept": 0.0}):
        with pytest.raises(RematchError, match="regenerating needs"):
            regenerate(["a"], chain(), rng=rng, **options)


def test_the_ngram_filler_fills_from_the_left_context() -> None:
    """A model that knows one continuation writes it nearly always, whatever stood there."""
    texts = [" ".join("z" if i % 5 in (2, 3) else LETTERS[i] for i in range(26))]
    masked = [Masked.of(text, range(2, 24, 5), 2) for text in texts]
    model = NGram.fit([list(LETTERS)] * 500, order=2, vocabulary=list(LETTERS))
    assert NGramFiller(model).fill(masked, np.random.default_rng(0)) == [" ".join(LETTERS)]
    assert NGramFiller(model).fill([], np.random.default_rng(0)) == []


def test_perturbing_lowers_the_probability_of_a_likely_text() -> None:
    model, flat = chain(), NGram.fit([[]], vocabulary=list(LETTERS))
    likely = letters(10, 40)
    stats = token_statistics(model, likely)
    resampled = perturbed_statistics(model, likely, NGramFiller(flat), 8, np.random.default_rng(0))
    assert resampled.log_p.shape == resampled.log_rank.shape == (10, 8)
    assert (ZeroShot("detectgpt").score(stats, resampled) > 1).all()
    assert (ZeroShot("npr").score(stats, resampled) > 1).all()
    regenerated = regenerated_statistics(model, likely, flat, 8, np.random.default_rng(0))
    assert (ZeroShot("dna_gpt").score(stats, regenerated) > 0.5).all()


def test_resampled_statistics_are_those_of_the_texts() -> None:
    model = chain()
    texts: list[object] = ["", None, *letters(3, 40), "a", *letters(1, 5)]
    resampled = perturbed_statistics(model, texts, NGramFiller(model), 4, np.random.default_rng(3))
    plain = [text if isinstance(text, str) and len(text) > 1 else "" for text in texts]
    versions = perturb(plain, NGramFiller(model), 4, np.random.default_rng(3))
    for row, of_text in enumerate(versions):
        stats = token_statistics(model, of_text)
        assert np.array_equal(resampled.log_p[row], ZeroShot("log_likelihood").score(stats), equal_nan=True)
        assert np.array_equal(-resampled.log_rank[row], ZeroShot("log_rank").score(stats), equal_nan=True)
    assert np.isnan(resampled.log_p).all(1).tolist() == [True, True, False, False, False, True, False]
    stats = token_statistics(model, texts)
    for name in ("detectgpt", "dna_gpt"):
        assert ZeroShot(name).score(stats, resampled)[-1] == 0, "a text too short to be perturbed"
    again = regenerated_statistics(model, texts, model, 4, np.random.default_rng(3))
    assert np.isnan(again.log_p).all(1).tolist() == [True, True, False, False, False, True, False]


def test_regenerating_keeps_the_first_half() -> None:
    model = chain()
    texts = [*letters(2, 40), *letters(1, 21), "a b", "a", ""]
    versions = regenerate(texts, model, 5, np.random.default_rng(0))
    for text, of_text in zip(texts, versions, strict=True):
        n = len(text.split())
        assert len(of_text) == 5
        for version in of_text:
            assert len(version.split()) == n
            assert version.split()[: n // 2] == text.split()[: n // 2]
    assert len(set(versions[0])) > 1
    assert versions[4] == ["a"] * 5
    assert versions == regenerate(texts, model, 5, np.random.default_rng(0))


def test_a_transformers_model_regenerates_and_scores() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    tokenizer = t5_tokenizer()
    model = CausalLM(
        GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), eos_token_id=1, bos_token_id=1, **sizes)), tokenizer
    )
    texts = ["the cat sat on a mat and ran", "the cat"]
    versions = regenerate(texts, model, 3, np.random.default_rng(0))
    assert all(version.startswith("the cat sat on") for version in versions[0])
    assert all(len(version.split()) <= 8 for version in versions[0])
    resampled = regenerated_statistics(model, [*texts, words(100_000)], model, 3, np.random.default_rng(0))
    assert np.isfinite(resampled.log_p).all()


def t5_tokenizer() -> T5Tokenizer:
    plain = "the cat sat on a mat and ran".split()  # noqa: SIM905
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((f"\u2581{word}", -2.0) for word in plain),
        ("\u2581", -3.0),
    ]
    return T5Tokenizer(vocab=[*pieces, *((letter, -4.0) for letter in LETTERS)], extra_ids=30)


def t5_filler(**options: object) -> T5Filler:
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=len(tokenizer), **sizes)
    config.decoder_start_token_id = 0
    return T5Filler(T5ForConditionalGeneration(config), tokenizer, **options)  # type: ignore[arg-type]


def test_fills_are_read_by_number() -> None:
    answer = "<pad> <extra_id_0> the cat<extra_id_1> sat  on <extra_id_2></s><pad><pad>"
    assert fills_of(answer) == {0: "the cat", 1: "sat on", 2: ""}
    assert fills_of("<pad> mat <extra_id_1>a<extra_id_1>b") == {1: "a"}
    assert fills_of("") == {}
    assert fills_of("mat <extra_id_x> <extra_id_3") == {}


def test_a_t5_that_writes_garbage_keeps_the_words_and_counts_them() -> None:
    filler = t5_filler(max_tries=2, batch_size=4)
    texts = [" ".join(["the cat sat on a mat"] * 5), "the cat sat", ""]
    torch.manual_seed(7)
    versions = perturb(texts, filler, 3, np.random.default_rng(0))
    assert torch.initial_seed() == 7
    assert filler.n_spans_ == 3 * 2
    assert 0 < filler.n_kept_ <= 6
    assert versions[1] == ["the cat sat"] * 3
    assert versions[2] == [""] * 3
    again = t5_filler(max_tries=2, batch_size=4)
    torch.manual_seed(8)
    assert perturb(texts, again, 3, np.random.default_rng(0)) == versions
    assert again.n_kept_ == filler.n_kept_


class ScriptedT5(T5Filler):
    """Answers every gap but the last of a text; that one only from the third try on."""

    tries = 0

    def _answer(self, texts: list[str]) -> list[dict[int, str]]:
        self.tries += 1
        self.seen = texts
        gaps = [[int(gap) for gap in re.findall(r"<extra_id_(\d+)>", text)] for text in texts]
        return [{gap: f"new{gap}" for gap in row[: None if self.tries >= 3 else -1]} for row in gaps]


@pytest.mark.parametrize(("max_tries", "kept"), [(2, 1), (3, 0), (10, 0)])
def test_failed_fills_are_tried_again_a_bounded_number_of_times(max_tries: int, kept: int) -> None:
    base = t5_filler()
    filler = ScriptedT5(base.model, base.tokenizer, max_tries=max_tries)
    text = Masked.of(words(12), [1, 5, 9], 2)
    [filled] = filler.fill([text], np.random.default_rng(0))
    last = "w9 w10" if kept else "new2"
    assert filled == f"w0 new0 w3 w4 new1 w7 w8 {last} w11"
    assert filler.seen == ["w0 <extra_id_0> w3 w4 <extra_id_1> w7 w8 <extra_id_2> w11"]
    assert (filler.n_spans_, filler.n_kept_, filler.tries) == (3, kept, min(max_tries, 3))


def test_long_texts_are_filled_in_pieces() -> None:
    base = t5_filler()
    filler = ScriptedT5(base.model, base.tokenizer)
    filler.tries = 2
    starts = list(range(1, 4 * 60, 4))
    text = Masked.of(words(4 * 60), starts, 2)
    [filled] = filler.fill([text], np.random.default_rng(0))
    assert [piece.count("<extra_id_") for piece in filler.seen] == [25, 25, 10]
    assert filler.seen[1].startswith("w99 w100 <extra_id_0> w103")
    assert filler.seen[0].endswith("<extra_id_24> w99 w100")
    expected = text.filled([f"new{i % 25}" for i in range(60)])
    assert filled == expected
