"""A warm process that jobs are forked from, so that importing torch is paid once a run and not once a job.

A job of a few CPU seconds would otherwise spend five more on imports. Snakemake's ``onstart`` starts the server, every
rule's ``python -m rematch play ...`` hands its arguments over a local socket, and the server forks a child that does what
the command itself would have done. Where no server answers (a cluster node, a command typed by hand), the command does its
work in its own process: same code, same records.

The server lives as long as the Snakemake process that started it and no longer: the kernel ends it when its parent dies,
and a job ends when the client that asked for it goes away.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ADDRESS = "REMATCH_WARM"
Job = Callable[[list[str]], int]


class Server:
    """The server as its starter sees it."""

    def __init__(self, root: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rematch-")
        address = os.path.join(self._folder.name, "socket")
        command = [sys.executable, "-m", "rematch.warm", address]
        self._process = subprocess.Popen(command, cwd=root, stdin=subprocess.DEVNULL)
        os.environ[ADDRESS] = address

    def stop(self) -> None:
        """End it and wait, so that its CPU time counts among the children of this process."""
        os.environ.pop(ADDRESS, None)
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()


def account(started: float) -> dict[str, float]:
    """What this process and everything that it waited for has cost, in seconds.

    Args:
        started: ``time.time()`` when the run began.
    """
    mine, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall_s": time.time() - started,
        "cpu_s": mine.ru_utime + mine.ru_stime + others.ru_utime + others.ru_stime,
    }


def submit(arguments: list[str]) -> int | None:
    """Have the warm server run a command; its exit code, or None where no server answers."""
    address = os.environ.get(ADDRESS)
    if not address:
        return None
    connection = socket.socket(socket.AF_UNIX)
    with connection:
        if not _connect(connection, address):
            return None
        connection.sendall(json.dumps(arguments).encode() + b"\n")
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    code, _, text = answer.decode().partition("\n")
    sys.stderr.write(text)
    return int(code) if code else 1  # the server went away with the job


def serve(address: str, run: Job) -> None:
    """Accept commands on a socket until SIGTERM, each run by ``run(arguments)`` in a forked child."""
    from rematch.supervise import die_with_parent, kill_group

    die_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(128)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    jobs: dict[int, tuple[int, socket.socket]] = {}  # pid: (pidfd, connection)
    try:
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    connection = listener.accept()[0]
                    pid = _start(connection, listener, run)
                    handle = os.pidfd_open(pid)
                    jobs[pid] = (handle, connection)
                    selector.register(handle, selectors.EVENT_READ, pid)
                    selector.register(connection, selectors.EVENT_READ, pid)
                    continue
                pid = key.data
                if pid not in jobs:
                    continue
                handle, connection = jobs.pop(pid)
                if key.fileobj is connection:  # the client went away
                    kill_group(pid)
                os.waitpid(pid, 0)
                for item in (handle, connection):
                    selector.unregister(item)
                os.close(handle)
                connection.close()
    finally:
        for pid in jobs:
            kill_group(pid)
            os.waitpid(pid, 0)


def _start(connection: socket.socket, listener: socket.socket, run: Job) -> int:
    """Fork the child that runs one command."""
    with connection.makefile("r", encoding="utf-8") as lines:
        arguments = json.loads(lines.readline() or "[]")
    _preload(arguments)
    pid = os.fork()
    if pid:
        return pid
    from rematch.supervise import die_with_parent

    code, text = 1, ""
    try:
        os.setpgid(0, 0)
        die_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        listener.close()
        with tempfile.TemporaryFile("w+", encoding="utf-8") as captured:
            with contextlib.redirect_stderr(captured):
                code = run(arguments)
            captured.seek(0)
            text = captured.read()
    except BaseException as error:
        text += f"rematch: {type(error).__name__}: {error}\n"
    finally:
        with contextlib.suppress(OSError):
            connection.sendall(f"{code}\n{text}".encode())
        os._exit(code)
    return 0


def _preload(arguments: list[str]) -> None:
    """Load what the command will need, once, in the server: later jobs find it there."""
    from rematch.jobs import prepare

    with contextlib.suppress(Exception, SystemExit):  # the job meets the mistake again and reports it
        prepare(arguments)


def _connect(connection: socket.socket, address: str) -> bool:
    """Connect, waiting a moment for a server that is still starting."""
    end = time.monotonic() + 10
    while True:
        try:
            connection.connect(address)
            return True
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > end or not os.path.isdir(os.path.dirname(address)):
                return False
            time.sleep(0.02)


if __name__ == "__main__":
    from rematch.jobs import run_job

    serve(sys.argv[1], run_job)
