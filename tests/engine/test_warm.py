"""The warm server: runs commands in forked children, and is never missed when it is not there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from processes import is_alive

from rematch.jobs import CONFIG, RUN
from rematch.warm import ADDRESS, Server, submit
from rematch.workflow import Workflow

# Stands in for `rematch.jobs.run_job`: says what it was asked, and behaves as it was told.
JOB = """
import os, pathlib, socket, subprocess, sys, time
from rematch import warm

warm._preload = lambda arguments: None

def run(arguments):
    what, folder = arguments
    here = pathlib.Path(folder)
    (here / "pid").write_text(str(os.getpid()))
    if what == "sleep":
        process = subprocess.Popen(["sleep", "600"])
        (here / "child").write_text(str(process.pid))
        process.wait()
    if what == "wait":
        while not (here / "go").is_file():
            time.sleep(0.01)
    if what == "die":
        os.kill(os.getpid(), 9)
    if what == "exit":
        raise SystemExit(5)
    print("a word from", what, file=sys.stderr)
    return 3 if what == "fail" else 0

warm.serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), run)
"""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A running server, its address in the environment."""
    with socket.socket(socket.AF_UNIX) as listener:
        address = os.path.join(os.path.relpath(tmp_path), "socket")  # short: addresses hold 107 bytes
        listener.bind(address)
        listener.listen(8)
        arguments = [str(listener.fileno()), str(os.getpid())]
        process = subprocess.Popen([sys.executable, "-c", JOB, *arguments], pass_fds=[listener.fileno()])
    monkeypatch.setenv(ADDRESS, address)
    yield process
    process.kill()
    process.wait()


@pytest.fixture(autouse=True)
def interrupts():
    """``submit`` is the whole life of a process that rules start, and says how that process takes Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def client(what, folder):
    """A process that submits one command and writes down the answer."""
    code = (
        "import json, sys, pathlib\nfrom rematch.warm import submit\n"
        "code = submit(sys.argv[1:])\npathlib.Path(sys.argv[2], 'answer').write_text(json.dumps(code))\n"
    )
    return subprocess.Popen([sys.executable, "-c", code, what, str(folder)], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("what", "code"), [("work", 0), ("fail", 3)])
def test_code_and_words_of_a_command_come_back(server, tmp_path, capfd, what, code):
    assert submit([what, str(tmp_path)]) == code
    assert capfd.readouterr().err == f"a word from {what}\n"
    assert int((tmp_path / "pid").read_text()) != server.pid


def test_a_command_that_exits_is_an_error_and_not_the_end_of_the_server(server, tmp_path, capfd):
    assert submit(["exit", str(tmp_path)]) == 1
    assert capfd.readouterr().err == "rematch: SystemExit: 5\n"
    assert submit(["work", str(tmp_path)]) == 0


def test_a_job_that_dies_is_left_to_the_client(server, tmp_path):
    assert submit(["die", str(tmp_path)]) is None
    assert submit(["work", str(tmp_path)]) == 0, "the server goes on"


@pytest.mark.parametrize("address", [None, "", "no/such/socket"])
def test_without_a_server_the_client_does_its_own_work(monkeypatch, address):
    if address is None:
        monkeypatch.delenv(ADDRESS, raising=False)
    else:
        monkeypatch.setenv(ADDRESS, address)
    assert submit(["work", "."]) is None


def test_a_dead_server_is_noticed_at_once(server, tmp_path):
    server.kill()
    server.wait()
    assert submit(["work", str(tmp_path)]) is None


def test_no_client_waits_for_the_job_of_another(server, tmp_path, wait_until):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    early = client("wait", first)
    wait_until(lambda: (first / "pid").is_file())
    late = client("sleep", second)  # forked while the first has its connection open
    wait_until(lambda: (second / "child").is_file())
    (first / "go").touch()
    try:
        early.communicate(timeout=20)
        assert late.poll() is None
        assert json.loads((first / "answer").read_text()) == 0
    finally:
        for process in (early, late):
            process.kill()
            process.communicate()


def test_when_the_client_goes_the_job_goes(server, tmp_path, wait_until):
    process = client("sleep", tmp_path)
    wait_until(lambda: (tmp_path / "child").is_file() and (tmp_path / "child").read_text())
    process.kill()
    process.communicate()
    for name in ("pid", "child"):
        pid = int((tmp_path / name).read_text())
        wait_until(lambda pid=pid: not is_alive(pid))
    assert submit(["work", str(tmp_path)]) == 0


def test_when_the_server_is_killed_the_job_dies_and_the_client_takes_over(server, tmp_path, wait_until):
    process = client("sleep", tmp_path)
    wait_until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text())
    time.sleep(0.1)
    os.kill(int((tmp_path / "pid").read_text()), 0)
    server.kill()
    process.communicate(timeout=30)
    assert json.loads((tmp_path / "answer").read_text()) is None
    wait_until(lambda: not is_alive(int((tmp_path / "pid").read_text())))


def test_when_the_server_is_told_to_end_the_client_does_not_take_over(server, tmp_path, wait_until):
    process = client("sleep", tmp_path)
    wait_until(lambda: (tmp_path / "child").is_file() and (tmp_path / "child").read_text())
    server.terminate()
    _, error = process.communicate(timeout=30)
    assert json.loads((tmp_path / "answer").read_text()) == 1
    assert error == "rematch: the run was ended\n"
    wait_until(lambda: not is_alive(int((tmp_path / "child").read_text())))


def test_to_be_told_to_end_again_does_nothing(tmp_path, wait_until):
    told_again = JOB + "os.kill(os.getpid(), 15)\nprint('over')\n"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(os.path.join(os.path.relpath(tmp_path), "socket"))
        listener.listen(8)
        client.connect(listener.getsockname())
        client.sendall(json.dumps(["wait", str(tmp_path)]).encode() + b"\n")
        command = [sys.executable, "-c", told_again, str(listener.fileno()), str(os.getpid())]
        process = subprocess.Popen(
            command, pass_fds=[listener.fileno()], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        wait_until(lambda: (tmp_path / "pid").is_file())
        process.terminate()
        assert process.communicate(timeout=60) == (b"over\n", b"")


def test_ctrl_c_is_not_for_the_server(server, tmp_path):
    assert submit(["work", str(tmp_path)]) == 0  # it is up
    server.send_signal(signal.SIGINT)
    assert submit(["work", str(tmp_path)]) == 0


def test_the_server_does_not_outlive_its_starter(tmp_path, wait_until):
    code = (
        "import sys, time, pathlib\nfrom rematch.warm import Server\n"
        "server = Server(pathlib.Path(sys.argv[1]))\n"
        "pathlib.Path(sys.argv[1], 'server').write_text(str(server._process.pid))\ntime.sleep(600)\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    wait_until(lambda: (tmp_path / "server").is_file() and (tmp_path / "server").read_text())
    pid = int((tmp_path / "server").read_text())
    assert is_alive(pid)
    starter.kill()
    starter.wait()
    wait_until(lambda: not is_alive(pid))


def test_stopping_cleans_up(tmp_path, monkeypatch):
    monkeypatch.delenv(ADDRESS, raising=False)
    server = Server(tmp_path)
    address = os.environ[ADDRESS]
    assert os.path.exists(address)
    server.stop()
    assert ADDRESS not in os.environ
    assert not os.path.exists(os.path.dirname(address))


def test_no_timer_of_snakemake_outlives_the_last_job(toy, monkeypatch):
    for name, value in ((CONFIG, ""), (RUN, "some"), ("PATH", os.environ["PATH"])):
        monkeypatch.setenv(name, value)  # put back afterwards: the workflow sets them
    timer = threading.Timer(600, os.getpid)
    timer.start()
    try:
        Workflow(toy.path, {}).stop()
        timer.join(30)
        assert not timer.is_alive()
    finally:
        timer.cancel()


@pytest.mark.slow
def test_by_hand_a_rule_s_command_gives_the_same_records(toy, played_once):
    """Without Snakemake and without a server: the commands of the rules, typed one after the other."""
    rematch = ["python3", "-m", "rematch"]
    for seed in range(5):
        done = toy.run(*rematch, "base", "--tier", "mini", "toy", "ground", "any", str(seed))
        assert done.code == 0, done.text
    done = toy.run(*rematch, "play", "--tier", "mini", "toy", "flops_matched", "good", "0.5", "0-4")
    assert done.code == 0, done.text
    mine, theirs = toy.records(), played_once.records()
    theirs = theirs[(theirs["contender"] == "good") & (theirs["level"] == "0.5")].reset_index(drop=True)
    assert set(mine["run"]) == {"by-hand"}
    columns = [name for name in mine.columns if name not in ("run", "seconds", "cpu_seconds", "peak_memory_mb")]
    assert mine[columns].equals(theirs[columns])
