"""What `rematch new` writes, in a copy of what it needs: made, loaded, and put to its own tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rooms import ROOT

from rematch.cli.scaffold import scaffold


def scaffolded(folder: Path, paper: str, name: str, axes: Sequence[str]) -> Path:
    """A copy of a paper's room with a new baseline in it, entered in its card and on some axes."""
    for part in (f"workflows/{paper}", "methods", "baselines"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    said = "\n".join(scaffold(folder, "baseline", name, paper))
    path = folder / "workflows" / paper / "card.yaml"
    card = yaml.safe_load(path.read_text(encoding="utf-8"))
    card["contenders"] |= yaml.safe_load(said.split("card.yaml:\n\n")[1].split("\n\n2.")[0])
    for axis in axes:
        card["axes"][axis]["contenders"].append(name)
    path.write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")
    return folder


def load_baseline(root: Path, name: str) -> Any:
    """The module of a baseline that is not in the repository."""
    spec = importlib.util.spec_from_file_location(name, root / "baselines" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run_own_tests(root: Path, name: str) -> str:
    """What pytest says of the tests that came with a baseline; they pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/baselines/test_{name}.py"]
    paths = os.pathsep.join([str(root), str(ROOT)])
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"PYTHONPATH": paths}, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
