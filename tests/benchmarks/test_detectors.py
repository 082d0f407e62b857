"""How fast zero-shot detection is: ``pytest tests/benchmarks/test_detectors.py -m benchmark``.

Texts per second of all statistics together, which share one pass of each model and the perturbed texts, against each on
its own by the least work that gives it; and of batches against one text at a time. One thread, texts of 40 words, a
vocabulary of 3,000: trigram models, and a GPT-2 of 2 layers and width 64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from baselines.detectors.language_models import CausalLM, LanguageModel
from baselines.detectors.resampling import NGramFiller, perturbed_statistics, regenerated_statistics
from baselines.detectors.statistics import (
    GLTR,
    PERTURBED,
    STATISTICS,
    Resampled,
    TokenStatistics,
    ZeroShot,
    mean_log_p_and_log_rank,
    token_statistics,
)
from baselines.ngram import NGram

pytestmark = pytest.mark.benchmark
N_WORDS, LENGTH = 3000, 40
N_PERTURBED, N_REGENERATED = 10, 5
N_TEXTS = {"n-gram": 400, "GPT-2": 64}
VOCABULARY = ["<unk>", *(f"w{i}" for i in range(N_WORDS - 1))]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def ngram(seed: int) -> NGram:
    """Fitted to 400,000 words of Zipf's law, of which every second depends on the one before."""
    rng = np.random.default_rng(seed)
    ranks = np.minimum(rng.zipf(1.3, (10_000, LENGTH)), N_WORDS - 1)
    ranks[:, 1::2] = (ranks[:, 1::2] % 40 * 71 + ranks[:, ::2]) % (N_WORDS - 1) + 1
    return NGram.fit([[VOCABULARY[i] for i in row] for row in ranks.tolist()], vocabulary=VOCABULARY)


@cache
def gpt2(seed: int) -> CausalLM:
    torch.manual_seed(seed)
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    sizes: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=N_WORDS, eos_token_id=0, bos_token_id=0, **sizes))
    return CausalLM(model, PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"), batch_size=64)


MODELS: dict[str, Callable[[int], LanguageModel]] = {"n-gram": ngram, "GPT-2": gpt2}


@cache
def texts(n: int) -> list[str]:
    return ngram(0).decode(ngram(0).sample([np.zeros(0, np.int64)] * n, LENGTH, np.random.default_rng(9)))


def resampled(model: str, kind: str) -> Resampled:
    scoring, rng = MODELS[model](0), np.random.default_rng(0)
    if kind == PERTURBED:
        return perturbed_statistics(scoring, texts(N_TEXTS[model]), NGramFiller(ngram(1)), N_PERTURBED, rng)
    return regenerated_statistics(scoring, texts(N_TEXTS[model]), scoring, N_REGENERATED, rng)


def everything(model: str) -> None:
    stats = token_statistics(MODELS[model](0), texts(N_TEXTS[model]), MODELS[model](1))
    versions = {kind: resampled(model, kind) for kind in (PERTURBED, "regenerated")}
    for name in STATISTICS:
        statistic = ZeroShot(name)
        statistic.score(stats, versions[statistic.resampling] if statistic.resampling else None)
    GLTR().features(stats)


def on_its_own(model: str, name: str) -> None:
    scoring, statistic = MODELS[model](0), ZeroShot(name)
    if statistic.resampling or name in ("log_likelihood", "log_rank", "lrr"):
        log_p, log_rank = mean_log_p_and_log_rank(scoring, texts(N_TEXTS[model]))
        # One position a text that has the means: all that these statistics read.
        stats = TokenStatistics(log_p[:, None], np.exp(log_rank[:, None]), log_p[:, None])
    else:
        reference = MODELS[model](1) if statistic.needs_reference else None
        stats = token_statistics(scoring, texts(N_TEXTS[model]), reference)
    statistic.score(stats, resampled(model, statistic.resampling) if statistic.resampling else None)


def measure(benchmark: Any, work: Callable[[], Any], n_texts: int) -> None:
    benchmark.pedantic(work, rounds=3, warmup_rounds=1)
    benchmark.extra_info["texts per second"] = round(n_texts / benchmark.stats["median"], 1)


@pytest.mark.parametrize("model", MODELS)
def test_all_statistics_together(benchmark: Any, model: str) -> None:
    measure(benchmark, lambda: everything(model), N_TEXTS[model])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_each_statistic_on_its_own(benchmark: Any, statistic: str, model: str) -> None:
    measure(benchmark, lambda: on_its_own(model, statistic), N_TEXTS[model])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch_size", [1, 8, 32])
def test_batches(benchmark: Any, batch_size: int, model: str) -> None:
    """All statistics that need no other versions of the texts, from one pass of the scoring and the reference model."""
    scoring, reference = (MODELS[model](seed) for seed in range(2))
    batch = texts(N_TEXTS[model])
    measure(benchmark, lambda: token_statistics(scoring, batch, reference, batch_size), len(batch))


@pytest.mark.parametrize("n", [1, 1000])
def test_sampling_from_an_ngram_model(benchmark: Any, n: int) -> None:
    """n continuations of 32 words."""
    prefixes = ngram(0).encode(texts(n))
    benchmark.pedantic(lambda: ngram(0).sample(prefixes, 32, np.random.default_rng(0)), rounds=5, warmup_rounds=1)
    benchmark.extra_info["microseconds per word"] = round(benchmark.stats["median"] / n / 32 * 1e6, 2)
