"""How the memory bank of MAC scales: ``pytest tests/benchmarks/test_mac.py -m benchmark``.

Time to aggregate against the size of the bank (1e2 to 1e5 documents), full and in groups of 16; it must grow no faster than
the bank. Memory beside the bank, counted operator by operator, which must stay where it is. One thread, the mini sizes:
d = 64, T = 4, 2 blocks of 4 heads x 96.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch

from baselines.online.memory import PeakBytes
from methods.mac import MemoryBank
from methods.mac.aggregator import Aggregator

pytestmark = pytest.mark.benchmark
SIZES = (100, 1_000, 10_000, 100_000)
N_QUESTIONS, GROUP_SIZE = 16, 16


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def bank(n_documents: int) -> MemoryBank:
    made = MemoryBank(4, 64)
    part = torch.randn(100, 4, 64, generator=torch.Generator().manual_seed(0))
    for _ in range(n_documents // 100):
        made.add(part)
    return made


@cache
def aggregator() -> Aggregator:
    torch.manual_seed(0)
    return Aggregator(64, n_blocks=2, n_heads=4, head_dim=96).eval()


@torch.no_grad()
def full(n_documents: int) -> None:
    aggregator()(torch.ones(N_QUESTIONS, 4, 64), bank(n_documents).tensor)


@torch.no_grad()
def hierarchical(n_documents: int) -> None:
    aggregator().hierarchical(torch.ones(N_QUESTIONS, 4, 64), bank(n_documents).tensor, GROUP_SIZE)


@pytest.mark.parametrize("n_documents", SIZES)
@pytest.mark.parametrize("aggregate", [full, hierarchical])
def test_aggregation(benchmark: Any, aggregate: Callable[[int], None], n_documents: int) -> None:
    aggregate(n_documents)
    benchmark.pedantic(aggregate, (n_documents,), rounds=3)
    benchmark.extra_info["documents"] = n_documents


@pytest.mark.parametrize("aggregate", [full, hierarchical])
def test_time_grows_no_faster_than_the_bank(aggregate: Callable[[int], None]) -> None:
    def seconds(n_documents: int) -> float:
        spans = []
        for _ in range(3):
            began = time.perf_counter()
            aggregate(n_documents)
            spans.append(time.perf_counter() - began)
        return min(spans)

    aggregate(10_000)
    assert seconds(100_000) < 1.5 * 10 * seconds(10_000)  # half as much again, for a machine that does other things too


def peak(aggregate: Callable[[int], object], n_documents: int) -> int:
    """The most bytes alive at once beside the bank."""
    bank(n_documents)
    with PeakBytes() as memory:
        aggregate(n_documents)
    return memory.peak


@pytest.mark.parametrize("aggregate", [full, hierarchical])
def test_memory_beside_the_bank_stays_where_it_is(aggregate: Callable[[int], None]) -> None:
    large = peak(aggregate, 100_000)
    assert large < 1.5 * peak(aggregate, 10_000)
    assert large < bank(100_000).n_bytes / 4


def test_a_copy_of_the_bank_would_be_seen() -> None:
    assert peak(lambda n: (bank(n).tensor.clone(), full(n)), 10_000) > bank(10_000).n_bytes
