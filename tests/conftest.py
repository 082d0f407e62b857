"""A small repository of its own for every test that plays: the engine's files around the toy paper of ``tests/toy``."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: as jobs have it, and no sum depends on the cores

REPOSITORY = Path(__file__).resolve().parent.parent
ENGINE_FILES = ("Snakefile", "profiles", "config", "pyproject.toml", "reports/templates", "workflows/common.smk")
TARGET = "toy_flops_matched"
"""Plays every match of the toy paper and checks them; renders nothing."""

# Files of few tests that take long, which are run first: at the end of a run one of them would keep one of two workers busy
# and leave the other idle. The first one compiles the kernels that the copies of the repository in ``dag`` take along.
LONG_FILES = (
    "workflows/simba/test_hub.py", "engine/test_crashes.py", "dag/test_smoke.py", "dag/test_readme.py",
    "engine/test_reruns.py", "workflows/revise/test_hub.py", "engine/test_house.py", "engine/test_targets.py",
    "engine/test_failures.py", "workflows/mac/test_gates.py",
)  # fmt: skip

# Where a network namespace is not permitted: nothing but local sockets may be connected.
NO_SOCKETS = """
import socket

def refuse(self, address):
    raise OSError("this test runs without a network")

class LocalOnly(socket.socket):
    def connect(self, address):
        return super().connect(address) if self.family == socket.AF_UNIX else refuse(self, address)

    def connect_ex(self, address):
        return super().connect_ex(address) if self.family == socket.AF_UNIX else refuse(self, address)

socket.socket = LocalOnly
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order of the files, for ``--dist loadfile``: the long ones, then those of many tests before those of few."""
    names = [item.path.relative_to(REPOSITORY / "tests").as_posix() for item in items]
    counts = Counter(names)
    order = sorted(counts, key=lambda name: (*(name != long for long in LONG_FILES), -counts[name]))
    place = {name: number for number, name in enumerate(order)}
    items[:] = [item for _, item in sorted(zip(names, items, strict=True), key=lambda pair: place[pair[0]])]


@dataclass(frozen=True)
class Done:
    """How a command ended; ``text`` holds its standard output and standard error together."""

    code: int
    text: str

    def jobs(self) -> list[str]:
        """The jobs that Snakemake ran (or, in a dry run, would run): ``play good 0.5 0-4``, ``base ground any 3``."""
        found = []
        for block in re.split(r"\n(?=(?:local)?rule )", self.text):
            rule = re.match(r"(?:local)?rule (\w+):", block)
            wildcards = re.search(r"wildcards: (.+)", block)
            if rule and wildcards:
                values = dict(pair.split("=", 1) for pair in wildcards[1].split(", "))
                names = ("contender", "level", "seeds", "base", "share", "seed", "scope")
                found.append(" ".join([rule[1], *[values[name] for name in names if name in values]]))
        return sorted(found)

    def played(self) -> set[str]:
        """The contenders that played."""
        return {job.split()[1] for job in self.jobs() if job.startswith("play ")}


class Repository:
    """A repository with nothing but the toy paper in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def fresh(cls, path: Path) -> Repository:
        shutil.copytree(REPOSITORY / "tests" / "toy", path, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ENGINE_FILES:
            source, target = REPOSITORY / name, path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            elif source.exists():
                shutil.copy2(source, target)
        return cls(path)

    def copy(self, path: Path) -> Repository:
        """The same state elsewhere, times included: what Snakemake has recorded holds there too."""
        shutil.copytree(self.path, path, symlinks=True)
        return Repository(path)

    # -- editing --------------------------------------------------------------------------------------------------

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace text that occurs exactly once in a file."""
        file = self.path / name
        text = file.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} holds {old!r} {text.count(old)} times"
        file.write_text(text.replace(old, new), encoding="utf-8")

    def card(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the card's data in place."""
        file = self.path / "workflows" / "toy" / "card.yaml"
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
        change(data)
        file.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")

    def add_trouble(self, *ways: str, axis: str = "flops_matched") -> None:
        """Enter contenders of ``baselines.trouble`` that go wrong in the given ways."""

        def change(card: dict[str, Any]) -> None:
            for way in ways:
                card["contenders"][f"bad_{way}"] = {
                    "label": f"Bad: {way}", "kind": "baseline", "use": "baselines.trouble:Trouble", "bases": ["ground"],
                    "options": {"how": way},
                }  # fmt: skip
                card["axes"][axis]["contenders"].append(f"bad_{way}")

        self.card(change)

    # -- running --------------------------------------------------------------------------------------------------

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("REMATCH_")}
        path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
        return kept | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"} | more

    def run(self, *command: str, **environment: str) -> Done:
        """Run a command in the repository and wait."""
        done = subprocess.run(
            command, cwd=self.path, env=self.environment(**environment), text=True, timeout=300, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return Done(done.returncode, done.stdout)

    def snakemake(self, *arguments: str, cores: int = 2, **environment: str) -> Done:
        """Run Snakemake and wait."""
        return self.run("snakemake", "--cores", str(cores), *(arguments or (TARGET,)), **environment)

    def start(self, *arguments: str, cores: int = 2) -> subprocess.Popen[str]:
        """Start Snakemake in a process group of its own, to be interfered with; its output goes to ``run.log``."""
        with (self.path / "run.log").open("w", encoding="utf-8") as log:
            return subprocess.Popen(
                ["snakemake", "--cores", str(cores), *(arguments or (TARGET,))], cwd=self.path, env=self.environment(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, text=True,
            )  # fmt: skip

    def processes(self) -> dict[int, str]:
        """Every process that works in this repository: pid to command line."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                here = Path(os.readlink(folder / "cwd")) == self.path
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if here and state != "Z" and int(folder.name) != os.getpid():
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except (OSError, ProcessLookupError):
                continue  # it ended while we looked
        return found

    # -- what was measured ----------------------------------------------------------------------------------------

    def records(self, tier: str = "mini") -> Any:
        """Every record on disk as a pandas frame, in a fixed order."""
        return self._frame(tier, lambda path: ".items." not in path.name)

    def items(self, tier: str = "mini") -> Any:
        """Every per-item score on disk as a pandas frame, in a fixed order."""
        return self._frame(tier, lambda path: ".items." in path.name)

    def _frame(self, tier: str, wanted: Callable[[Path], bool]) -> Any:
        import pandas as pd

        from rematch.records import read_arrow

        paths = sorted(p for p in (self.path / "results" / tier / "records").rglob("*.parquet") if wanted(p))
        return pd.concat([read_arrow(path).to_pandas() for path in paths], ignore_index=True)

    def status(self, contender: str) -> tuple[str, str]:
        """Status and reason of a contender, which must be the same for all its seeds and levels."""
        records = self.records()
        mine = records[records["contender"] == contender]
        (found,) = set(zip(mine["status"], mine["reason"], strict=True))
        return found


@pytest.fixture
def toy(tmp_path: Path) -> Repository:
    """A fresh toy repository in which nothing has been played."""
    return Repository.fresh(tmp_path / "toy")


@pytest.fixture(scope="session")
def played_once(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A toy repository in which everything was played, on two cores. Shared: look, do not touch."""
    repository = Repository.fresh(tmp_path_factory.mktemp("shared") / "toy")
    done = repository.snakemake()
    assert done.code == 0, done.text
    return repository


@pytest.fixture
def played(played_once: Repository, tmp_path: Path) -> Repository:
    """A copy of the played toy repository, to be changed."""
    return played_once.copy(tmp_path / "toy")


@pytest.fixture
def no_network(tmp_path: Path) -> Callable[[list[str]], tuple[list[str], dict[str, str]]]:
    """Turns a command into one that has no network: (command, environment variables to add).

    It runs in a network namespace without interfaces where that is permitted; elsewhere Python itself refuses to connect.
    """

    def wrap(command: list[str]) -> tuple[list[str], dict[str, str]]:
        unshare = shutil.which("unshare")
        if unshare and subprocess.run([unshare, "-n", "true"], capture_output=True, check=False).returncode == 0:
            return [unshare, "-n", *command], {}
        folder = tmp_path / "no_network"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(NO_SOCKETS, encoding="utf-8")
        return command, {"PYTHONPATH": str(folder)}

    return wrap


@pytest.fixture
def started(toy: Repository) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts Snakemake in the background of the ``toy`` repository and sees to it that nothing outlives the test."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str, cores: int = 2) -> subprocess.Popen[str]:
        running.append(toy.start(*arguments, cores=cores))
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Waits for a condition; fails after a generous while."""

    def wait(condition: Callable[[], object], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.02)

    return wait
