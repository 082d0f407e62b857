"""A copy of the repository to play in, so that a test never touches the user's own results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "config", "profiles", "workflows", "methods", "baselines", "rematch", "reports/templates",
         "pyproject.toml", "README.md")  # fmt: skip

Runner = Callable[..., subprocess.CompletedProcess[str]]


def copy_repository(target: Path) -> Path:
    """Everything that playing needs, without results. Compiled code comes along: times are kept, so that it is not stale."""
    being_written = shutil.ignore_patterns("*.pyc.*", "*.tmp.*")  # by another worker
    for part in PARTS:
        source, copied = ROOT / part, target / part
        copied.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copied, ignore=being_written)
        else:
            shutil.copy2(source, copied)
    return target


def run(root: Path, *command: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command in the copy, with this interpreter's environment first on the path and the copy's own packages."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(root),
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run([*prefix, *command], cwd=root, env=environment, capture_output=True, text=True, timeout=900)


def rematch_json(root: Path, *arguments: str) -> dict[str, object]:
    """What a command of the CLI prints with --json."""
    done = run(root, sys.executable, "-m", "rematch", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def smoke_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in which the whole smoke tier has been played once, cut off from the network where the system lets us."""
    root = copy_repository(tmp_path_factory.mktemp("smoke") / "repo")
    done = run(root, "snakemake", "--cores", "2", "smoke", prefix=offline_prefix())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root


def offline_prefix() -> tuple[str, ...]:
    """A prefix that runs a command in a network namespace without any interface, or nothing where that is not allowed."""
    probe = shutil.which("unshare")
    if probe and subprocess.run([probe, "-n", "true"], capture_output=True).returncode == 0:
        return (probe, "-n")
    return ()
