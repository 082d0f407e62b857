"""How fast ReVISE samples: ``pytest tests/benchmarks/test_revise.py -m benchmark``.

Tokens a second of batched sampling with a cache against ``generate`` of transformers, one prompt at a time, and against
``generate`` of all at once, which has one random stream for all rows. One thread, the mini sizes: 0.12 M parameters, 4
samples a question, 13 tokens a sample.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from baselines.sampling import Sampling, sample

pytestmark = pytest.mark.benchmark
N_QUESTIONS, K, N_NEW = 64, 4, 13


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=127, hidden_size=48, intermediate_size=128, num_hidden_layers=4, num_attention_heads=3,
        num_key_value_heads=3, max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@cache
def prompts() -> list[tuple[int, ...]]:
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(4, 127, 14).tolist()) for _ in range(N_QUESTIONS)]


def batched() -> int:
    asked = [prompt for prompt in prompts() for _ in range(K)]
    found, _ = sample(model(), asked, Sampling(0.7, 0.9, N_NEW), [], batch_size=256)
    return sum(s.n_tokens for s in found)


def generate(ids: torch.Tensor) -> int:
    written = model().generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=0.7, top_p=0.9, top_k=0, max_new_tokens=N_NEW,
        num_return_sequences=K,
    )  # fmt: skip
    return written[:, ids.shape[1] :].numel()


def generated_at_once() -> int:
    return generate(torch.tensor(prompts()))


def generated_one_by_one() -> int:
    return sum(generate(torch.tensor([prompt])) for prompt in prompts())


@pytest.mark.parametrize("write", [batched, generated_at_once, generated_one_by_one])
def test_tokens_a_second(benchmark: Any, write: Callable[[], int]) -> None:
    assert write() == N_QUESTIONS * K * N_NEW
    benchmark.pedantic(write, rounds=3)
    benchmark.extra_info["tokens_per_second"] = round(N_QUESTIONS * K * N_NEW / benchmark.stats.stats.min)


def test_batches_are_several_times_as_fast() -> None:
    def seconds(write: Callable[[], int]) -> float:
        began = time.perf_counter()
        write()
        return time.perf_counter() - began

    batched()
    assert min(seconds(batched) for _ in range(3)) < seconds(generated_one_by_one) / 4
