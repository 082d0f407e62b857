"""What the kernel says of processes, which may end while it is asked."""

from __future__ import annotations

from typing import NamedTuple


class State(NamedTuple):
    """One letter, Z for a process that ended and was not waited for; and the process that started it."""

    letter: str
    parent: int


def process_state(pid: int) -> State | None:
    """None where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            letter, parent = file.read().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return State(letter, int(parent))


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    state = process_state(pid)
    return state is not None and state.letter != "Z"
