"""transformers causal models as language models: batches against one text at a time, cutting, sampling, files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from baselines.detectors.language_models import CausalLM, RanksTokens
from baselines.detectors.statistics import ZeroShot, token_statistics
from baselines.ngram import NGram
from rematch.errors import RematchError

N_WORDS = 20
V = N_WORDS + 3
"""One row more than the tokenizer knows, as in padded vocabularies."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<unk>": 0, "<eos>": 1} | {f"w{i}": i + 2 for i in range(N_WORDS)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>")


def gpt_neo() -> Any:
    return GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=V,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            window_size=4,
            max_position_embeddings=32,
            eos_token_id=1,
            bos_token_id=1,
        )
    )


def gpt_j() -> Any:
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4, "n_positions": 32}
    return GPTJForCausalLM(GPTJConfig(vocab_size=V, eos_token_id=1, bos_token_id=1, **sizes))


def gpt2() -> Any:
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(vocab_size=V, eos_token_id=1, bos_token_id=1, **sizes))


def llama() -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=V, eos_token_id=1, bos_token_id=1, max_position_embeddings=32, **sizes)
    )


def adapter(make: Callable[[], Any] = gpt2, **options: Any) -> CausalLM:
    """A model of random weights that are large enough for uneven predictions."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return CausalLM(model, tokenizer(), **options)


def random_texts(n: int, longest: int = 20, shortest: int = 2) -> list[str]:
    rng = np.random.default_rng(0)
    return [
        " ".join(f"w{i}" for i in rng.integers(N_WORDS, size=rng.integers(shortest, longest + 1))) for _ in range(n)
    ]


@pytest.mark.parametrize("make", [gpt_neo, gpt_j, gpt2, llama])
def test_batches_equal_one_by_one(make: Callable[[], Any]) -> None:
    scoring = adapter(make)
    encoded = scoring.encode(random_texts(7))
    together = scoring.log_probs(encoded)
    assert together.shape == (7, max(map(len, encoded)) - 1, V)
    assert together.dtype == torch.float32
    assert together.exp().std() > 0.02
    for row, ids in enumerate(encoded):
        alone = scoring.log_probs([ids])[0]
        assert (together[row, : len(ids) - 1] - alone).abs().max() < 1e-5
        with torch.no_grad():
            logits = scoring.model(torch.from_numpy(ids)[None]).logits[0, :-1]
        assert (alone - logits.log_softmax(-1)).abs().max() < 1e-5


@pytest.mark.parametrize("make", [gpt_neo, gpt_j, gpt2, llama])
def test_statistics_of_batches_equal_one_by_one(make: Callable[[], Any]) -> None:
    scoring, reference = adapter(make), adapter(gpt2)
    texts = random_texts(9)
    together = token_statistics(scoring, texts, reference, batch_size=4)
    for row, text in enumerate(texts):
        alone = token_statistics(scoring, [text], reference)
        n = len(text.split()) - 1
        for name in ("log_p", "rank", "entropy", "mu", "var"):
            assert getattr(together, name)[row, :n] == pytest.approx(getattr(alone, name)[0], abs=1e-4), name


def test_the_loss_of_transformers_is_minus_the_log_likelihood() -> None:
    scoring = adapter(gpt_neo)
    text = random_texts(1, 20, 20)[0]
    ids = torch.from_numpy(scoring.encode([text])[0])[None]
    with torch.no_grad():
        loss = scoring.model(ids, labels=ids).loss.item()
    assert ZeroShot("log_likelihood").score(token_statistics(scoring, [text]))[0] == pytest.approx(-loss, abs=1e-5)


def test_texts_are_cut_to_the_positions_of_the_model() -> None:
    long = " ".join(f"w{i % N_WORDS}" for i in range(100_000))
    assert [len(adapter(gpt2).encode([long])[0]), len(adapter(gpt2, max_length=10).encode([long])[0])] == [32, 10]
    short = " ".join(long.split()[:10])
    scores = ZeroShot("log_rank").score(token_statistics(adapter(gpt2, max_length=10), [long, short]))
    assert scores[0] == scores[1]
    assert adapter(gpt2).encode([]) == []


def test_ids_and_texts() -> None:
    scoring = adapter()
    assert scoring.vocab_size == V
    assert [ids.tolist() for ids in scoring.encode(["w0 w3", "", "zebra"])] == [[2, 5], [], [0]]
    assert scoring.decode([np.array([2, 5]), np.array([1, 2])]) == ["w0 w3", "w0"]
    assert not isinstance(scoring, RanksTokens)
    assert isinstance(NGram.fit([["a"]]), RanksTokens)


def test_half_precision_gives_full_precision_probabilities() -> None:
    scoring = adapter()
    encoded = scoring.encode(random_texts(3))
    full = scoring.log_probs(encoded)
    scoring.model.to(torch.bfloat16)  # type: ignore[arg-type]
    half = scoring.log_probs(encoded)
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.5
    assert half.exp().sum(-1).numpy() == pytest.approx(1, abs=1e-5)


def test_from_pretrained(tmp_path: Path) -> None:
    scoring = adapter(gpt_neo)
    scoring.model.save_pretrained(tmp_path)
    scoring.tokenizer.save_pretrained(tmp_path)
    again = CausalLM.from_pretrained(tmp_path, device="cpu", max_length=16)
    encoded = again.encode(random_texts(3, 16))
    assert torch.equal(again.log_probs(encoded), scoring.log_probs(encoded))
    assert again.max_length == 16
    assert not again.model.training
    assert CausalLM.from_pretrained(tmp_path, dtype=torch.float16).model.dtype == torch.float16


def test_samples_are_a_function_of_the_generator_alone() -> None:
    scoring = adapter(batch_size=2)
    prefixes = scoring.encode(random_texts(5))
    torch.manual_seed(1)
    one = scoring.sample(prefixes, 6, np.random.default_rng(0))
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == after
    torch.manual_seed(2)
    again = scoring.sample(prefixes, 6, np.random.default_rng(0))
    other = scoring.sample(prefixes, 6, np.random.default_rng(1))
    assert one.tolist() == again.tolist() != other.tolist()
    assert one.shape == (5, 6)
    assert 1 not in one


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_sampler_follows_the_probabilities(temperature: float) -> None:
    """First new token of 4,000 draws, prefixes of two lengths in every batch; all tokens but the end of text."""
    scoring = adapter(batch_size=1000)
    prefixes = scoring.encode(["w1 w2 w3", "w4"])
    n = 2000
    drawn = scoring.sample(prefixes * n, 1, np.random.default_rng(0), temperature)
    for which, prefix in enumerate(prefixes):
        row = scoring.log_probs([np.append(prefix, 0)])[0, -1].double() / temperature
        row[1] = -torch.inf
        expected = n * row.softmax(-1).numpy()
        observed = np.bincount(drawn[which::2, 0], minlength=V)
        rare = expected < 5
        expected, observed = (
            np.append(expected[~rare], expected[rare].sum()),
            np.append(observed[~rare], observed[rare].sum()),
        )
        statistic = ((observed - expected) ** 2 / np.maximum(expected, 1)).sum()
        assert statistic < chi2.ppf(0.9999, len(expected) - 1)


def test_sampling_that_cannot_be_is_refused() -> None:
    scoring = adapter()
    rng = np.random.default_rng(0)
    with pytest.raises(RematchError, match="empty prefix"):
        scoring.sample([np.array([], np.int64)], 3, rng)
    with pytest.raises(RematchError, match="reads 32 tokens: no room for 32"):
        scoring.sample([np.array([2])], 32, rng)
    for temperature in (0.0, math.nan):
        with pytest.raises(RematchError, match="temperature"):
            scoring.sample([np.array([2])], 3, rng, temperature)
    assert scoring.sample([np.array([2])], 0, rng).shape == (1, 0)
    assert scoring.sample([], 3, rng).shape == (0, 3)
    assert scoring.sample([np.arange(2, 22).repeat(2)[:32]], 20, rng).shape == (1, 20)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda() -> None:
    scoring, texts = adapter(gpt_neo), random_texts(9)
    before = token_statistics(scoring, texts, scoring)
    scoring.model.to("cuda")  # type: ignore[arg-type]
    after = token_statistics(scoring, texts, scoring)
    for name in ("log_p", "entropy", "mu", "var"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), nan_ok=True, abs=1e-3)
    one, again = (scoring.sample(scoring.encode(texts), 5, np.random.default_rng(0)) for _ in range(2))
    assert one.tolist() == again.tolist()
