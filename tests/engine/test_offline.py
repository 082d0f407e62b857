"""The toy paper plays where there is no network."""

from __future__ import annotations

import sys

import pytest

PROBE = """
import socket
try:
    socket.create_connection(("127.0.0.1", 9), timeout=2)
except OSError as error:
    raise SystemExit(0)
raise SystemExit(1)
"""


def test_the_helper_takes_the_network_away(toy, no_network):
    command, more = no_network([sys.executable, "-c", PROBE])
    assert toy.run(*command, **more).code == 0
    local, more = no_network(
        [sys.executable, "-c", "import socket; a, b = socket.socketpair(); a.send(b'x'); b.recv(1)"]
    )
    assert toy.run(*local, **more).code == 0


@pytest.mark.slow
def test_a_run_needs_no_network(toy, no_network):
    command, more = no_network(["snakemake", "--cores", "2", "toy_flops_matched"])
    done = toy.run(*command, **more)
    assert done.code == 0, done.text
    assert set(toy.records()["status"]) == {"ok"}
