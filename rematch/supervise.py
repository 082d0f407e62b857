"""A worker process under a hard time limit, and what it cost.

Snakemake's local executor enforces no time limit, so the harness does: every seed is played in a forked process of its
own, in its own process group, which is killed when its time is up. A worker that dies takes nothing else with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Exit:
    """How a worker ended. ``detail`` is one line for the status row."""

    kind: Literal["ok", "error", "killed", "timeout"]
    detail: str
    wall_s: float
    cpu_s: float


def supervise(work: Callable[[], None], limit_s: float, log: Path) -> Exit:
    """Run ``work`` in a forked process; its output goes to the end of ``log``.

    Args:
        work: what to do; it leaves its result in a file.
        limit_s: wall seconds after which the process and everything it started are killed.
        log: appended to.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _worker(work, log, parent)
    end, timed_out = started + limit_s, False
    while not timed_out and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(min(0.02, limit_s / 10))
        timed_out = time.monotonic() > end
    kill_group(pid)  # what a worker left running ends with it; until it is waited for, the number is surely its own
    _, status, usage = os.wait4(pid, 0)
    wall, cpu = time.monotonic() - started, usage.ru_utime + usage.ru_stime
    if timed_out:
        return Exit("timeout", f"over its limit of {limit_s:g} s", wall, cpu)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return Exit("killed", f"the worker was killed by {name}{hint}", wall, cpu)
    if os.WEXITSTATUS(status):
        return Exit("error", _last_line(log), wall, cpu)
    return Exit("ok", "", wall, cpu)


def kill_group(pid: int) -> None:
    """Kill a process and everything in its group."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def die_with_parent(parent: int, signum: int = signal.SIGKILL) -> None:
    """Have the kernel send ``signum`` when the process ``parent`` dies, or now if it is dead (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signum)
        if os.getppid() != parent:
            os.kill(os.getpid(), signum)


def _worker(work: Callable[[], None], log: Path, parent: int) -> None:
    """The child's life; never returns, not even when its log cannot be written."""
    code = 1
    try:
        os.setpgid(0, 0)
        die_with_parent(parent)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _last_line(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "the worker ended without a word"
