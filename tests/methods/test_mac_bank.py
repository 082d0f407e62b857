"""The memory bank: growing, shrinking, files."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from baselines.online.memory import PeakBytes
from methods.mac import MemoryBank
from methods.mac.aggregator import Aggregator
from methods.mac.bank import read_notes
from rematch.errors import RematchError

T, D = 2, 3


def entries(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, T, D, generator=torch.Generator().manual_seed(seed))


def filled(n: int, seed: int = 0) -> MemoryBank:
    return MemoryBank(T, D).add(entries(n, seed))


def of(*values: Any) -> Tensor:
    """Entries of which only the first two numbers are not 0."""
    rows = torch.zeros(len(values), T, D)
    rows[:, 0, :2] = torch.tensor(values, dtype=torch.float32)
    return rows


# -- growing ----------------------------------------------------------------------------------------------------------


def test_adding_in_parts_equals_adding_at_once() -> None:
    rows, bank = entries(50), MemoryBank(T, D)
    assert len(bank) == 0
    assert bank.tensor.shape == (0, T, D)
    for start in (0, 1, 2, 17, 30):
        bank.add(rows[start : {0: 1, 1: 2, 2: 17, 17: 30, 30: 50}[start]])
        assert torch.equal(bank.tensor, rows[: len(bank)])
    assert bank.ids == [(str(i),) for i in range(50)]
    assert bank.n_added == len(bank) == 50
    assert bank.n_bytes == 50 * T * D * 4


def test_stored_entries_carry_no_gradient_and_do_not_follow_their_source() -> None:
    source = entries(3).requires_grad_()
    bank = MemoryBank(T, D).add(source * 1)
    assert not bank.tensor.requires_grad
    with torch.no_grad():
        kept = source.clone()
        source.zero_()
    assert torch.equal(bank.tensor, kept)


def test_reading_copies_nothing_and_adding_rarely() -> None:
    bank = filled(16)
    assert bank.tensor.data_ptr() == bank.tensor.data_ptr() == bank._buffer.data_ptr()
    addresses = set()
    for row in entries(2000):
        bank.add(row[None])
        addresses.add(bank.tensor.data_ptr())
    assert len(addresses) <= 8  # 16 -> 2,016 entries in 7 doublings
    assert len(bank._buffer) < 2 * len(bank)


def test_ids() -> None:
    bank = MemoryBank(T, D).add(entries(2), ["a", "b"]).add(entries(1))
    assert bank.ids == [("a",), ("b",), ("2",)]
    with pytest.raises(RematchError, match="3 entries and 2 ids"):
        bank.add(entries(3), ["x", "y"])
    with pytest.raises(RematchError, match=r"\(2, 3\), not \(3, 3\)"):
        bank.add(torch.zeros(1, 3, 3))
    assert len(bank) == 3


def test_merging_appends() -> None:
    first, second = filled(3), MemoryBank(T, D).add(entries(2, 1), ["a", "b"])
    second.limit(1, "random_average")
    first.merge(second)
    assert torch.equal(first.tensor[3:], second.tensor)
    assert first.ids == [("0",), ("1",), ("2",), ("a", "b")]
    assert (first.n_added, second.n_added, len(second)) == (5, 2, 1)
    with pytest.raises(RematchError, match="entries of a bank"):
        first.merge(MemoryBank(T, D + 1).add(torch.zeros(1, T, D + 1)))


def test_moving_and_converting() -> None:
    bank = filled(4)
    assert bank.to(dtype=torch.bfloat16) is bank
    assert (bank.dtype, bank.tensor.dtype) == (torch.bfloat16, torch.bfloat16)
    bank.add(entries(1))
    assert torch.equal(bank.tensor, torch.cat([entries(4), entries(1)]).bfloat16())
    assert bank.to("cpu").device == torch.device("cpu")
    assert "5 entries of 2 x 3, torch.bfloat16" in repr(bank)


# -- shrinking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["random_prune", "random_average", "nearest_average"])
def test_limits(policy: Any) -> None:
    bank = filled(20)
    assert torch.equal(bank.limit(20, policy).tensor, entries(20))
    generator = torch.Generator().manual_seed(3)
    bank.limit(7, policy, generator)
    assert len(bank) == len(bank.tensor) == 7
    assert bank.n_added == 20
    documents = [int(i) for group in bank.ids for i in group]
    if policy == "random_prune":
        assert documents == sorted(set(documents))  # in their order
        assert torch.equal(bank.tensor, entries(20)[documents])
    else:
        assert sorted(documents) == list(range(20))  # every document is in some average
        assert [int(group[0]) for group in bank.ids] == sorted(int(group[0]) for group in bank.ids)
        for row, group in zip(bank.tensor, bank.ids, strict=True):
            if len(group) == 1:
                assert torch.equal(row, entries(20)[int(group[0])])
    again = filled(20).limit(7, policy, torch.Generator().manual_seed(3))
    assert torch.equal(again.tensor, bank.tensor)
    if policy != "nearest_average":
        assert filled(20).limit(7, policy, torch.Generator().manual_seed(4)).ids != bank.ids


def test_the_two_nearest_by_cosine_are_averaged() -> None:
    # Angles 0, 90, 10 and 200 degrees at very unequal lengths: the first and third are nearest by cosine, though far apart.
    rows = of((1.0, 0.0), (0.0, 1.0), (98.48, 17.36), (-0.94, -0.342))
    bank = MemoryBank(T, D).add(rows).limit(3, "nearest_average")
    assert bank.ids == [("0", "2"), ("1",), ("3",)]
    torch.testing.assert_close(bank.tensor, torch.stack([(rows[0] + rows[2]) / 2, rows[1], rows[3]]))
    bank.limit(2, "nearest_average")  # the average stands at 9.9 degrees: 80 from the second, 170 from the last
    assert bank.ids == [("0", "2", "1"), ("3",)]
    torch.testing.assert_close(bank.tensor[0], ((rows[0] + rows[2]) / 2 + rows[1]) / 2)


def reference_nearest(rows: Tensor, n: int) -> list[list[int]]:
    """All pairs compared anew for every average."""
    alive: list[tuple[list[int], Tensor]] = [([i], row.double().flatten()) for i, row in enumerate(rows)]
    while len(alive) > n:
        pairs = [(a, b) for a in range(len(alive)) for b in range(a + 1, len(alive))]
        a, b = max(pairs, key=lambda ab: torch.cosine_similarity(alive[ab[0]][1], alive[ab[1]][1], dim=0).item())
        alive[a] = (alive[a][0] + alive[b][0], (alive[a][1] + alive[b][1]) / 2)
        del alive[b]
    return [documents for documents, _ in alive]


@pytest.mark.parametrize("seed", range(5))
def test_nearest_pairs_are_found_without_comparing_all_of_them(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = entries(30, seed)
    bank = MemoryBank(T, D).add(rows).limit(12, "nearest_average")
    assert [[int(i) for i in group] for group in bank.ids] == reference_nearest(rows, 12)
    monkeypatch.setattr("methods.mac.bank._COMPARED_AT_ONCE", 64)  # a few rows at a time
    parts = MemoryBank(T, D).add(rows).limit(12, "nearest_average")
    assert parts.ids == bank.ids


def test_a_stream_under_a_limit_keeps_its_neighbours_up_to_date() -> None:
    rows, bank = entries(40, 9), MemoryBank(T, D)
    merged: list[tuple[list[int], Tensor]] = []
    for i, row in enumerate(rows):
        bank.add(row[None]).limit(8, "nearest_average")
        merged.append(([i], row))
        if len(merged) > 8:
            stacked = torch.stack([entry for _, entry in merged])
            kept = reference_nearest(stacked, 8)
            merged = [
                (
                    [j for k in group for j in merged[k][0]],
                    merged[group[0]][1] if len(group) == 1 else (merged[group[0]][1] + merged[group[1]][1]) / 2,
                )
                for group in kept
            ]
        assert [[int(j) for j in group] for group in bank.ids] == [documents for documents, _ in merged]
    torch.testing.assert_close(bank.tensor, torch.stack([entry for _, entry in merged]))


def test_neighbours_are_found_anew_where_the_bank_was_changed_otherwise() -> None:
    bank = filled(10).limit(8, "nearest_average").limit(6, "random_prune", torch.Generator().manual_seed(0))
    fresh = MemoryBank(T, D).add(bank.tensor.clone(), bank.ids)
    assert bank.limit(3, "nearest_average").ids == fresh.limit(3, "nearest_average").ids


def test_random_averages_are_of_two() -> None:
    rows = entries(2)
    bank = MemoryBank(T, D).add(rows).limit(1, "random_average")
    torch.testing.assert_close(bank.tensor[0], rows.mean(0))
    assert bank.ids == [("0", "1")]


def test_unknown_limits() -> None:
    with pytest.raises(RematchError, match="Did you mean 'nearest_average'"):
        filled(2).limit(1, "nearest_averages")
    with pytest.raises(RematchError, match="at least 1 entry"):
        filled(2).limit(0, "random_prune")


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_saved_bank_comes_back(tmp_path: Path) -> None:
    bank = MemoryBank(T, D).add(entries(3), ["a", 'b, \n"é', "c"]).limit(2, "nearest_average")
    bank.to(dtype=torch.bfloat16).save(tmp_path / "new" / "bank.safetensors", {"made": "today"})
    loaded = MemoryBank.load(tmp_path / "new" / "bank.safetensors")
    assert torch.equal(loaded.tensor, bank.tensor)
    assert (loaded.ids, loaded.n_added, loaded.dtype) == (bank.ids, 3, torch.bfloat16)
    assert read_notes(tmp_path / "new" / "bank.safetensors") == {"made": "today"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["bank.safetensors"]
    loaded.add(entries(2))
    assert loaded.ids[2:] == [("3",), ("4",)]


@pytest.mark.parametrize("stop", range(9, 40, 5))
def test_a_bank_that_was_saved_averages_the_pairs_that_it_would_have(stop: int, tmp_path: Path) -> None:
    """Entries that recur are nearest to each other, all of them equally but for rounding."""
    for seed in range(10):
        kinds = entries(5, seed)
        rows = kinds[torch.randint(5, (40,), generator=torch.Generator().manual_seed(seed))]
        whole, resumed = MemoryBank(T, D), MemoryBank(T, D)
        for i, row in enumerate(rows):
            whole.add(row[None]).limit(8, "nearest_average")
            resumed.add(row[None]).limit(8, "nearest_average")
            if i == stop:
                resumed.save(tmp_path / "bank")
                resumed = MemoryBank.load(tmp_path / "bank")
        assert resumed.ids == whole.ids
        assert torch.equal(resumed.tensor, whole.tensor)


def test_a_file_is_little_more_than_its_entries(tmp_path: Path) -> None:
    bank = MemoryBank(4, 64).add(torch.randn(300, 4, 64)).limit(256, "nearest_average")
    bank.save(tmp_path / "bank")
    assert (tmp_path / "bank").stat().st_size < 1.05 * bank.n_bytes
    with safe_open(tmp_path / "bank", "pt") as file:
        shapes = {name: tuple(file.get_tensor(name).shape) for name in sorted(file.keys())}
    nearest = {f"nearest.{name}": (256,) for name in ("index", "norm", "value")}
    assert shapes == {"entries": (256, 4, 64), "ids": shapes["ids"], **nearest}
    filled(3).save(tmp_path / "all")
    with safe_open(tmp_path / "all", "pt") as file:
        assert set(file.keys()) == {"entries", "ids"}


def test_an_empty_bank_can_be_saved(tmp_path: Path) -> None:
    MemoryBank(T, D).save(tmp_path / "bank")
    loaded = MemoryBank.load(tmp_path / "bank")
    assert (len(loaded), loaded.tensor.shape) == (0, (0, T, D))


def test_what_is_no_bank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RematchError, match="no memory bank can be read"):
        MemoryBank.load(tmp_path / "nothing")
    (tmp_path / "text").write_text(json.dumps({"entries": []}))
    with pytest.raises(RematchError, match="no memory bank can be read"):
        MemoryBank.load(tmp_path / "text")
    save_file({"entries": entries(1)}, tmp_path / "other")
    with pytest.raises(RematchError, match="holds no memory bank"):
        MemoryBank.load(tmp_path / "other")


@pytest.mark.slow
def test_a_hundred_thousand_documents_are_added_and_asked_without_copies_of_the_bank() -> None:
    bank, part, peaks = MemoryBank(4, 64), torch.randn(1000, 4, 64), []
    for _ in range(100):
        with PeakBytes() as memory:
            bank.add(part)
        peaks.append(memory.peak)
    assert sum(peak > 0 for peak in peaks) == 8  # 1,000 to 128,000 entries in doublings
    assert len(bank) == 100_000
    assert bank.tensor.data_ptr() == bank._buffer.data_ptr()
    assert bank.n_bytes == 100_000 * 4 * 64 * 4
    assert torch.equal(bank.tensor[-1000:], part)
    aggregator, z = Aggregator(64, n_blocks=1, n_heads=1, head_dim=8), torch.randn(1, 4, 64)
    for aggregate in (aggregator, functools.partial(aggregator.hierarchical, group_size=128)):
        with PeakBytes() as memory, torch.no_grad():
            aggregate(z, bank.tensor)
        assert memory.peak < bank.n_bytes / 8
