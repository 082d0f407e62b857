"""Runs that are killed, interrupted or run beside each other: nothing is lost, nothing is played twice, nothing stays."""

from __future__ import annotations

import os
import signal

import pyarrow.parquet as pq
import pytest
from processes import process_state

from rematch.schema import VOLATILE


def hold(repository):
    """No match gets beyond its first seed."""
    (repository.path / "held").touch()


def release(repository):
    (repository.path / "held").unlink()


@pytest.fixture
def running(toy, started, wait_until):
    """The toy repository with a run that is held in its middle: some seeds are finished, no job of a contender is."""
    hold(toy)
    process = started()
    wait_until(lambda: len(parts(toy)) >= 2)
    assert not list((toy.path / "results/mini/records").rglob("*.parquet"))
    return toy, process


def parts(repository):
    """The finished seeds of unfinished jobs, by path."""
    found = (repository.path / "results/mini/parts").rglob("*.parquet")
    return sorted(path for path in found if ".items." not in path.name and not path.name.startswith("."))


def runs(repository):
    return sorted(path.name for path in (repository.path / "results/mini/runs").iterdir())


def assert_same(repository, other):
    """Every column that no clock decides is the same, bit for bit, and so are the items."""
    for column, values in repository.records().items():
        if column not in VOLATILE:
            assert values.equals(other.records()[column]), column
    assert repository.items().equals(other.items())


def assert_finished_seeds_were_kept(repository, kept):
    """The seeds that an earlier run had finished still carry its id; the others that of the later run."""
    first, second = runs(repository)
    records = repository.records()
    for contender, level, seed, run in records[["contender", "level", "seed", "run"]].itertuples(index=False):
        assert run == (first if (contender, level, seed) in kept else second), (contender, level, seed)


def seeds_of(paths):
    tables = [pq.read_table(path, partitioning=None).to_pylist()[0] for path in paths]
    return {(row["contender"], row["level"], row["seed"]) for row in tables}


@pytest.mark.slow
def test_the_number_of_cores_changes_no_record(played_once, toy):
    assert toy.snakemake(cores=1).code == 0
    assert_same(toy, played_once)


@pytest.mark.slow
def test_kill_9_of_everything_and_the_same_command_again(running, played_once, wait_until):
    repository, process = running
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not repository.processes())
    kept = seeds_of(parts(repository))
    assert kept

    release(repository)
    done = repository.snakemake()
    assert done.code == 0, done.text
    assert_same(repository, played_once)
    assert_finished_seeds_were_kept(repository, kept)
    assert not repository.processes()
    assert not parts(repository), "parts are cleared away when every record was accepted"
    assert "Nothing to be done" in repository.snakemake().text


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT], ids=["kill -9 of Snakemake alone", "Ctrl-C"])
def test_jobs_end_with_their_snakemake(running, played_once, wait_until, signum):
    repository, process = running
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)  # a terminal sends it to the whole group
    else:
        os.kill(process.pid, signum)
    process.wait()
    wait_until(lambda: not repository.processes())
    kept = seeds_of(parts(repository))
    assert kept

    release(repository)
    done = repository.snakemake()
    assert done.code == 0, done.text
    assert_same(repository, played_once)
    assert_finished_seeds_were_kept(repository, kept)
    assert "Traceback" not in (repository.path / "run.log").read_text()


@pytest.mark.slow
def test_the_death_of_the_warm_server_breaks_nothing(running, played_once, wait_until):
    repository, process = running
    (server,) = [
        pid
        for pid, command in repository.processes().items()
        if "rematch.warm" in command and (state := process_state(pid)) and state.parent == process.pid
    ]
    os.kill(server, signal.SIGKILL)
    release(repository)
    assert process.wait(timeout=300) == 0, (repository.path / "run.log").read_text()
    assert_same(repository, played_once)
    assert len(runs(repository)) == 1
    wait_until(lambda: not repository.processes())


@pytest.mark.slow
def test_two_runs_in_one_folder_exclude_each_other(toy, started, wait_until):
    hold(toy)
    process = started()
    wait_until(lambda: parts(toy))
    locks = sorted((toy.path / ".snakemake/locks").glob("*"))
    assert toy.snakemake("--dry-run", "toy_flops_matched").code == 0, "looking is allowed"
    assert sorted((toy.path / ".snakemake/locks").glob("*")) == locks
    second = toy.snakemake()
    assert process.poll() is None, "the first run must still be playing for this test to mean anything"
    assert second.code != 0
    assert "cannot be locked" in second.text
    assert second.jobs() == []
    release(toy)
    assert process.wait(timeout=300) == 0, (toy.path / "run.log").read_text()
    assert set(toy.records()["status"]) == {"ok"}
    assert len(runs(toy)) == 1
