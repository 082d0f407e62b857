"""A worker ends when its time is up or its work is done, with everything that it started, and is accounted for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import is_alive

from rematch.play import Meter
from rematch.supervise import supervise


@pytest.fixture
def log(tmp_path):
    return tmp_path / "logs" / "worker.log"


def test_work_that_ends_well(log, tmp_path):
    end = supervise(lambda: (tmp_path / "result").write_text("done"), 10, log)
    assert (end.kind, end.detail) == ("ok", "")
    assert (tmp_path / "result").read_text() == "done"


def test_what_is_printed_goes_to_the_log(log):
    log.parent.mkdir()
    log.write_text("before\n")

    def work():
        print("from Python")
        print("an error", file=sys.stderr)
        os.system("echo from a child")

    supervise(work, 10, log)
    assert sorted(log.read_text().splitlines()) == ["an error", "before", "from Python", "from a child"]


def test_an_exception_is_the_last_line_of_the_log(log):
    def work():
        raise ValueError("no good")

    end = supervise(work, 10, log)
    assert (end.kind, end.detail) == ("error", "ValueError: no good")
    assert "Traceback" in log.read_text()


def test_an_exit_without_a_word(log):
    end = supervise(lambda: os._exit(3), 10, log)
    assert (end.kind, end.detail) == ("error", "the worker ended without a word")


@pytest.mark.parametrize(
    ("signum", "detail"),
    [
        (signal.SIGKILL, "the worker was killed by SIGKILL (out of memory?)"),
        (signal.SIGTERM, "the worker was killed by SIGTERM"),
    ],
)
def test_a_worker_that_is_killed(log, signum, detail):
    end = supervise(lambda: os.kill(os.getpid(), signum), 10, log)
    assert (end.kind, end.detail) == ("killed", detail)


def start_sleeper(pids):
    process = subprocess.Popen(["sleep", "600"])
    pids.write_text(str(process.pid))


@pytest.mark.parametrize(
    ("after", "limit", "kind"),
    [
        (lambda: time.sleep(600), 2.0, "timeout"),
        (lambda: None, 60.0, "ok"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), 60.0, "killed"),
    ],
    ids=["over its time", "done", "killed"],
)
def test_grandchildren_end_with_the_worker(log, tmp_path, wait_until, after, limit, kind):
    def work():
        start_sleeper(tmp_path / "pid")
        after()

    end = supervise(work, limit, log)
    assert end.kind == kind
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_alive(pid))


def test_the_time_limit_is_said(log):
    end = supervise(lambda: time.sleep(600), 0.2, log)
    assert (end.kind, end.detail) == ("timeout", "over its limit of 0.2 s")
    assert 0.2 <= end.wall_s < 60
    assert end.cpu_s < end.wall_s


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_cpu_time_counts_the_worker_and_its_children(log):
    command = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"]
    end = supervise(lambda: (burn(0.3), subprocess.run(command, check=True)), 60, log)
    assert end.cpu_s >= 0.6
    assert supervise(lambda: time.sleep(0.3), 60, log).cpu_s < 0.3


@pytest.mark.parametrize("kind", ["a folder where the log should be", "a full disk"])
def test_a_log_that_cannot_be_written_is_no_second_parent(tmp_path, kind):
    """The forked worker must end even where it cannot complain: it must never go on as a copy of its parent."""
    log = Path("/dev/full") if kind == "a full disk" else tmp_path
    try:
        end = supervise(lambda: print("a word"), 10, log)
    finally:
        with (tmp_path / "came back").open("a") as file:
            file.write(f"{os.getpid()}\n")
    assert (tmp_path / "came back").read_text() == f"{os.getpid()}\n"
    assert (end.kind, end.detail) == ("error", "the worker ended without a word")


def test_a_worker_dies_with_its_parent(tmp_path, wait_until):
    code = (
        "import sys, time, os, pathlib\nfrom rematch.supervise import supervise\nhere = pathlib.Path(sys.argv[1])\n"
        "supervise(lambda: ((here / 'pid').write_text(str(os.getpid())), time.sleep(600)), 600, here / 'log')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    wait_until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_alive(pid))


def test_the_meter_reads_time_and_peak_memory(log, tmp_path):
    """In a worker, as the engine uses it: memory that was freed again still counts, what was there before does not."""

    def work():
        meter = Meter()
        block = bytearray(os.urandom(1)) * (96 << 20)
        del block
        burn(0.2)
        (tmp_path / "cost").write_text(repr(meter.read()))

    ballast = bytearray(b"x") * (200 << 20)
    assert supervise(work, 60, log).kind == "ok"
    assert len(ballast)
    text = (tmp_path / "cost").read_text()
    cost = dict(part.split(": ") for part in text.strip("{}").replace("'", "").split(", "))
    assert float(cost["cpu_seconds"]) >= 0.2
    assert float(cost["seconds"]) >= 0.2
    assert 90 <= float(cost["peak_memory_mb"]) < 190
