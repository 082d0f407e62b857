"""A bank's checkpoint while a stream is read: how far it came, and of which documents, networks and limit it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch

from methods.mac.bank import MemoryBank, read_notes
from rematch.errors import RematchError


class StreamCheckpoint:
    """The file of a bank that a stream fills, written every now and then; without a path it does nothing.

    Beside the bank (``MemoryBank.save``) the notes hold ``documents``, the number of those that were read, ``digest``, the SHA-256
    of their texts, ``generator``, the state of what draws, in hexadecimal, and what the run is.

    Attributes:
        n_read: documents of the stream so far.
    """

    def __init__(self, path: str | Path | None, run: Mapping[str, str], draws: torch.Generator | None) -> None:
        """
        Args:
            run: what the bank depends on besides the documents, by name.
            draws: what the bank's limit draws from; None where it draws nothing.
        """
        self.path, self.run, self.draws = None if path is None else Path(path), dict(run), draws
        self.n_read = 0
        self._digest = hashlib.sha256()

    def resume(self, stream: Iterator[str], device: torch.device) -> MemoryBank | None:
        """The bank of before, with the stream advanced to what it has not read; None where there is no file.

        Raises:
            RematchError: the file is of another run or other documents, or is none of a stream.
        """
        if self.path is None or not self.path.exists():
            return None
        notes = read_notes(self.path)
        if not {"documents", "digest"} <= set(notes):
            raise RematchError(
                f"'{self.path}' is a bank that says nothing of a stream; load it with MemoryBank.load, or give another file"
            )
        for name, value in self.run.items():
            if (before := notes.get(name, "not said")) != value:
                raise RematchError(
                    f"'{self.path}' is the bank of another run, with {name}: {before}, and not {value}; remove it to start anew"
                )
        self.read(list(islice(stream, int(notes["documents"]))))
        if self._digest.hexdigest() != notes["digest"]:
            raise RematchError(f"'{self.path}' is the bank of other documents; remove it to start anew")
        if self.draws is not None and "generator" in notes:
            self.draws.set_state(torch.tensor(list(bytes.fromhex(notes["generator"])), dtype=torch.uint8))
        return MemoryBank.load(self.path, device)

    def read(self, texts: Sequence[str]) -> None:
        """Documents that are in the bank."""
        self.n_read += len(texts)
        if self.path is not None:
            for text in texts:
                data = text.encode("utf-8", "surrogatepass")
                self._digest.update(len(data).to_bytes(8, "little") + data)

    def save(self, bank: MemoryBank) -> None:
        """Write the bank."""
        if self.path is None:
            return
        notes = {**self.run, "documents": str(self.n_read), "digest": self._digest.hexdigest()}
        if self.draws is not None:
            notes["generator"] = bytes(self.draws.get_state().tolist()).hex()
        bank.save(self.path, notes)
