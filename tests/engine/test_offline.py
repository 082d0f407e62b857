"""The toy paper plays where there is no network."""

from __future__ import annotations

import socket
import sys

import pytest

PROBE = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), timeout=5)"
LOCAL = "import socket; a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1)"


def test_the_helper_takes_the_network_away_and_leaves_local_sockets(toy, no_network):
    with socket.create_server(("127.0.0.1", 0)) as server:
        probe = [sys.executable, "-c", PROBE, str(server.getsockname()[1])]
        assert toy.run(*probe).code == 0
        command, more = no_network(probe)
        assert toy.run(*command, **more).code == 1
    command, more = no_network([sys.executable, "-c", LOCAL])
    assert toy.run(*command, **more).code == 0


@pytest.mark.slow
def test_a_run_needs_no_network(toy, no_network):
    command, more = no_network(["snakemake", "--cores", "2", "toy_flops_matched"])
    done = toy.run(*command, **more)
    assert done.code == 0, done.text
    assert set(toy.records()["status"]) == {"ok"}
