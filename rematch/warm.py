"""A warm process that jobs are forked from, so that importing torch is paid once a run and not once a job.

A job of a few CPU seconds would otherwise spend five more on imports. Snakemake's ``onstart`` starts the server, every
rule's ``python3 -m rematch play ...`` hands its arguments over a local socket, and the server forks a child that does what
the command itself would have done. Where no server answers (a cluster node, a command typed by hand, a server that died),
the command does its work in its own process: same code, same records.

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
from collections.abc import Callable, Iterable
from pathlib import Path

from rematch.jobs import thread_limits

ADDRESS = "REMATCH_WARM"
Job = Callable[[list[str]], int]


class Server:
    """The server as its starter sees it."""

    def __init__(self, root: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rematch-")
        address = os.path.join(self._folder.name, "socket")
        # Listening begins here, before the server has started: a job that comes early waits, and no client has to guess
        # whether a server is still on its way.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(128)
            handle = listener.fileno()
            command = [sys.executable, "-m", "rematch.warm", str(handle), str(os.getpid())]
            # One thread: what a forked child needs of a thread pool is not there any more, and it would wait for ever.
            environment = os.environ | thread_limits(1)
            self._process = subprocess.Popen(
                command, cwd=root, env=environment, stdin=subprocess.DEVNULL, pass_fds=[handle]
            )
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
    """Have the warm server run a command; its exit code, or None where no server answers or it died over the job.

    The connection ends only when every process that worked on the job has ended, so after None the job can be run again.
    """
    address = os.environ.get(ADDRESS)
    if not address:
        return None
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches every job: they end without a traceback each
    answer = b""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            connection.sendall(json.dumps(arguments).encode() + b"\n")
            while chunk := connection.recv(65536):
                answer += chunk
    except OSError:
        return None
    code, _, text = answer.decode().partition("\n")
    sys.stderr.write(text)
    return int(code) if code else None


def serve(listener: socket.socket, parent: int, run: Job) -> None:
    """Accept commands until SIGTERM or the death of ``parent``, each run by ``run(arguments)`` in a forked child."""
    from rematch.supervise import die_with_parent, kill_group

    # SIGTERM is a line to read, not an exception: the kernel sends one for every thread of a parent that dies, and an
    # exception could come anywhere, in the clearing up too.
    ended, end = socket.socketpair()
    end.setblocking(False)
    signal.set_wakeup_fd(end.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is Snakemake's to answer; jobs end with their clients
    die_with_parent(parent, signal.SIGTERM)
    selector = selectors.DefaultSelector()
    selector.register(ended, selectors.EVENT_READ)
    selector.register(listener, selectors.EVENT_READ)
    jobs: dict[int, tuple[int, socket.socket]] = {}  # pid: (pidfd, connection)
    try:
        while True:
            for key, _ in selector.select():
                if key.fileobj is ended:
                    return
                if key.fileobj is listener:
                    connection = listener.accept()[0]
                    pid = _start(connection, [listener, *(other for _, other in jobs.values())], run)
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
        signal.set_wakeup_fd(-1)  # it is closed with this function, and another SIGTERM may come
        for pid, (_, connection) in jobs.items():
            kill_group(pid)
            os.waitpid(pid, 0)
            with contextlib.suppress(OSError):  # an answer, so that the client does not run the job itself
                connection.sendall(b"1\nrematch: the run was ended\n")


def _start(connection: socket.socket, others: Iterable[socket.socket], run: Job) -> int:
    """Fork the child that runs one command.

    Args:
        others: sockets that the child has no business with. The connections of other jobs above all: as long as it held
            one, that job's client would wait for it too.
    """
    with connection.makefile("r", encoding="utf-8") as lines:
        arguments = json.loads(lines.readline() or "[]")
    _preload(arguments)
    server = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    from rematch.supervise import die_with_parent

    code, text = 1, ""
    try:
        os.setpgid(0, 0)
        die_with_parent(server)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        for other in others:
            other.close()
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


if __name__ == "__main__":
    from rematch.jobs import run_job

    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), run_job)
