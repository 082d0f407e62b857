"""The memory bank: T vectors of width d for every document, in the order in which they came."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rematch.errors import RematchError, unknown

Policy = Literal["random_prune", "random_average", "nearest_average"]
"""How a bank is kept small: drop entries at random, average two at random, or the two nearest by cosine (figure 7)."""

FORMAT = "mac memory bank"
"""What a bank's file says it is."""

_COMPARED_AT_ONCE = 2**24  # similarities


class MemoryBank:
    """A growing tensor of entries (K, T, d) and the ids of the documents that each stands for.

    Entries lie in one buffer that doubles when it is full, so that adding is cheap and reading copies nothing. They
    carry no gradient.

    Args:
        n_tokens: T.
        width: d.

    Attributes:
        ids: for each entry the ids of its documents: several where entries were averaged.
        n_added: how many entries were ever added, those since dropped or averaged included.
    """

    def __init__(
        self,
        n_tokens: int,
        width: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self._buffer = torch.empty(0, n_tokens, width, dtype=dtype, device=device)
        self._nearest: _Nearest | None = None
        self.ids: list[tuple[str, ...]] = []
        self.n_added = 0

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        _, t, d = self._buffer.shape
        return f"MemoryBank({len(self)} entries of {t} x {d}, {self.dtype}, {self.device})"

    @property
    def tensor(self) -> Tensor:
        """The entries, (K, T, d): a view, valid until the bank changes."""
        return self._buffer[: len(self)]

    @property
    def dtype(self) -> torch.dtype:
        """Of the entries."""
        return self._buffer.dtype

    @property
    def device(self) -> torch.device:
        """Where the entries are."""
        return self._buffer.device

    @property
    def n_bytes(self) -> int:
        """What the entries take, in bytes."""
        return self.tensor.numel() * self._buffer.element_size()

    # -- growing --------------------------------------------------------------------------------------------------

    def add(self, entries: Tensor, ids: Sequence[str | tuple[str, ...]] | None = None) -> Self:
        """Append entries (n, T, d); they are detached and converted.

        Args:
            ids: of their documents, (n,); their running numbers where None. Nothing asks that ids be unique.

        Raises:
            RematchError: entries of another shape, or another number of ids.
        """
        n, shape = len(entries), self._buffer.shape[1:]
        if entries.shape[1:] != shape:
            raise RematchError(f"entries of a bank are {tuple(shape)}, not {tuple(entries.shape[1:])}")
        if ids is None:
            ids = [str(self.n_added + i) for i in range(n)]
        if len(ids) != n:
            raise RematchError(f"{n} entries and {len(ids)} ids")
        needed = len(self) + n
        if needed > len(self._buffer):
            grown = self._buffer.new_empty(max(needed, 2 * len(self._buffer), 16), *shape)
            grown[: len(self)] = self.tensor
            self._buffer = grown
        self._buffer[len(self) : needed] = entries.detach()
        self.ids += [(i,) if isinstance(i, str) else tuple(i) for i in ids]
        self.n_added += n
        return self

    def merge(self, other: MemoryBank) -> Self:
        """Append another bank's entries with their ids; the other stays as it is.

        Raises:
            RematchError: a bank of another shape.
        """
        n_added = self.n_added + other.n_added
        self.add(other.tensor, list(other.ids))
        self.n_added = n_added
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move or convert the entries in place."""
        self._buffer = self._buffer.to(device=device, dtype=dtype)
        self._nearest = None
        return self

    # -- shrinking ------------------------------------------------------------------------------------------------

    def limit(self, n: int, policy: Policy, generator: torch.Generator | None = None) -> Self:
        """Shrink to at most ``n`` entries; nothing happens to a bank that is no longer.

        Averages are plain means of two entries and take the first one's place; one entry may stand for many documents.

        Args:
            generator: of the random policies; torch's own where None.

        Raises:
            RematchError: n < 1, or an unknown policy.
        """
        if policy not in get_args(Policy):
            raise unknown("policy", policy, get_args(Policy), "MemoryBank.limit")
        if n < 1:
            raise RematchError(f"a bank is limited to at least 1 entry, not {n}")
        if len(self) <= n:
            return self
        if policy == "random_prune":
            self._keep(sorted(torch.randperm(len(self), generator=generator)[:n].tolist()))
            self._nearest = None
        elif policy == "random_average":
            alive = list(range(len(self)))
            while len(alive) > n:
                i, j = sorted(torch.randperm(len(alive), generator=generator)[:2].tolist())
                self._average(alive[i], alive.pop(j))
            self._keep(alive)
            self._nearest = None
        else:
            self._nearest = self._nearest or _Nearest(self._buffer)
            self._nearest.extend(self.tensor)
            while int(self._nearest.alive.sum()) > n:
                i, j = self._nearest.pair()
                self._average(i, j)
                self._nearest.averaged(self.tensor, i, j)
            self._keep(self._nearest.alive.nonzero().flatten().tolist())
            self._nearest.compact()
        return self

    def _average(self, i: int, j: int) -> None:
        self._buffer[i] = (self._buffer[i] + self._buffer[j]) / 2
        self.ids[i] += self.ids[j]

    def _keep(self, rows: list[int]) -> None:
        first = next((k for k, row in enumerate(rows) if k != row), len(rows))  # what stays in place is not moved
        self._buffer[first : len(rows)] = self._buffer[torch.tensor(rows[first:], dtype=torch.long, device=self.device)]
        self.ids = [self.ids[row] for row in rows]

    # -- files ----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, notes: Mapping[str, str] | None = None) -> None:
        """Write the bank to a safetensors file, in one step: a killed process leaves the file before it.

        The file holds ``entries`` (K, T, d), ``ids`` (their JSON as bytes), and of a bank that ``nearest_average`` limits what
        is known of nearest pairs: ``nearest.norm``, ``nearest.value`` and ``nearest.index``, a number each for every entry.
        Found anew these would round differently, and other pairs of equal ones be averaged. In the metadata are
        ``n_added``, ``format`` and the notes.

        Args:
            notes: texts to keep with the bank; ``read_notes`` gives them back.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        ids = torch.frombuffer(bytearray(json.dumps(self.ids).encode()), dtype=torch.uint8)
        temporary = path.with_name(path.name + ".tmp")
        metadata = {**(notes or {}), "n_added": str(self.n_added), "format": FORMAT}
        tensors = {"entries": self.tensor.contiguous(), "ids": ids}
        if self._nearest is not None:
            tensors |= {f"nearest.{name}": tensor for name, tensor in self._nearest.known().items()}
        save_file(tensors, temporary, metadata)
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> MemoryBank:
        """Read a file that ``save`` wrote.

        Raises:
            RematchError: no such file, or one that holds something else.
        """
        with _opened(path, device) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
            n_added = int(file.metadata()["n_added"])
        entries = tensors["entries"]
        bank = cls(entries.shape[1], entries.shape[2], entries.dtype, device)
        bank._buffer = entries
        bank.ids = [tuple(documents) for documents in json.loads(tensors["ids"].cpu().numpy().tobytes())]
        bank.n_added = n_added
        if "nearest.index" in tensors:
            bank._nearest = _Nearest(entries, **{name: tensors[f"nearest.{name}"] for name in _Nearest.KNOWN})
        return bank


def read_notes(path: str | Path) -> dict[str, str]:
    """The texts that were saved with a bank.

    Raises:
        RematchError: no such file, or one that holds something else.
    """
    with _opened(path) as file:
        metadata = dict(file.metadata())
    return {key: value for key, value in metadata.items() if key not in ("n_added", "format")}


@contextlib.contextmanager
def _opened(path: str | Path, device: torch.device | str = "cpu") -> Iterator[Any]:
    """A bank's file, its mistakes named."""
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise RematchError(f"'{path}' holds no memory bank")
            yield file
    except (OSError, SafetensorError) as error:
        raise RematchError(f"no memory bank can be read from '{path}': {error}") from error


class _Nearest:
    """Every entry's most similar other entry, kept up to date while entries come and are averaged.

    An entry knows those that were there when it came or was last averaged; later ones know it. So the best of all is the
    nearest pair. Holds O(K) numbers, never the K x K similarities. Rows that were averaged into another are dead until
    ``compact``.
    """

    KNOWN: ClassVar[tuple[str, ...]] = ("norm", "value", "index")

    def __init__(
        self, buffer: Tensor, norm: Tensor | None = None, value: Tensor | None = None, index: Tensor | None = None
    ) -> None:
        self.norm = buffer.new_empty(0, dtype=torch.float32) if norm is None else norm
        self.value = buffer.new_empty(0, dtype=torch.float32) if value is None else value
        self.index = buffer.new_empty(0, dtype=torch.long) if index is None else index
        self.alive = torch.ones_like(self.index, dtype=torch.bool)

    def known(self) -> dict[str, Tensor]:
        """What it is made from again where no row is dead, each (K,)."""
        return {name: getattr(self, name).contiguous() for name in self.KNOWN}

    def extend(self, entries: Tensor) -> None:
        """Take in the rows of ``entries`` (K, T, d) beyond those that are known."""
        known, n = len(self.alive), len(entries)
        new = torch.arange(known, n, device=entries.device)
        self.norm = torch.cat([self.norm, entries[known:].flatten(1).float().norm(dim=1).clamp(min=1e-30)])
        self.value = torch.cat([self.value, self.value.new_full((n - known,), -math.inf)])
        self.index = torch.cat([self.index, new])
        self.alive = torch.cat([self.alive, torch.ones_like(new, dtype=torch.bool)])
        self._compare(entries, new)

    def pair(self) -> tuple[int, int]:
        """The two most similar live rows, the earlier one first."""
        i = int(self.value.argmax())
        j = int(self.index[i])
        return min(i, j), max(i, j)

    def averaged(self, entries: Tensor, i: int, j: int) -> None:
        """Row i is the mean of rows i and j now, and j is dead."""
        self.alive[j] = False
        self.value[j] = -math.inf
        self.norm[i] = entries[i].float().norm().clamp(min=1e-30)
        stale = self.alive & ((self.index == i) | (self.index == j))
        stale[i] = True
        self._compare(entries, stale.nonzero().flatten())

    def compact(self) -> None:
        """Forget dead rows."""
        renumbered = self.alive.cumsum(0) - 1
        self.norm, self.value = self.norm[self.alive], self.value[self.alive]
        self.index = renumbered[self.index[self.alive]]
        self.alive = self.alive[self.alive]

    def _compare(self, entries: Tensor, rows: Tensor) -> None:
        """Find the nearest of ``rows`` anew."""
        if not len(rows):
            return
        for part in rows.split(max(1, _COMPARED_AT_ONCE // len(entries))):
            self.value[part], self.index[part] = self._similarity(entries, part).max(dim=1)

    def _similarity(self, entries: Tensor, rows: Tensor) -> Tensor:
        """Cosines of rows with all entries, (len(rows), K); -inf with themselves and with dead ones."""
        chosen = entries[rows].flatten(1).float()
        parts = [chosen @ part.flatten(1).float().T for part in _parts(entries)]
        similarity = torch.cat(parts, dim=1) / self.norm[rows, None] / self.norm
        similarity[:, ~self.alive] = -math.inf
        similarity[torch.arange(len(rows), device=rows.device), rows] = -math.inf
        return similarity


def _parts(entries: Tensor) -> Iterator[Tensor]:
    """Pieces that are small enough to be converted one by one."""
    return iter(entries.split(max(1, _COMPARED_AT_ONCE // entries[0].numel())))
