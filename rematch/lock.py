"""Telling the lock of a killed Snakemake from that of a living one.

Snakemake marks a folder as locked with files, which outlive a killed process: a plain rerun would stop and ask for
``--unlock``. So every run also holds a lock of the operating system (``flock``), which ends with the process however it
ends. A run that finds itself alone removes the files that others left; while another run lives, they stay, and Snakemake
refuses to make the same files twice.
"""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import IO


def join_runs(state: Path) -> IO[str] | None:
    """Count this process among the living runs of a folder, and remove stale locks if it is the only one.

    Args:
        state: Snakemake's own folder, ``.snakemake`` in the working directory.

    Returns:
        The lock, held for as long as the file is open; None where the file system has no such locks (then a stale lock
        is left for ``snakemake --unlock``).
    """
    state.mkdir(exist_ok=True)
    held = (state / "rematch.lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass  # others live
    except OSError:
        held.close()
        return None
    else:
        shutil.rmtree(state / "locks", ignore_errors=True)
    # Shared from here on. Giving up the exclusive lock for a moment harms nobody: this run has not locked any file yet.
    fcntl.flock(held, fcntl.LOCK_SH)
    return held
