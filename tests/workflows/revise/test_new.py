"""A scaffold for ReVISE's ring: what `rematch new` writes passes its own tests and plays as it is."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rematch.cards import Card
from rematch.cli.scaffold import scaffold

sys.path.insert(0, str(Path(__file__).parents[2]))

from rooms import ROOT

pytestmark = pytest.mark.slow

NAME = "likeliest"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a scaffold needs, with one in it."""
    folder = tmp_path_factory.mktemp("repo")
    for name in ("workflows/revise", "methods", "baselines"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    said = "\n".join(scaffold(folder, "baseline", NAME, "revise"))
    path = folder / "workflows" / "revise" / "card.yaml"
    card = yaml.safe_load(path.read_text(encoding="utf-8"))
    card["contenders"] |= yaml.safe_load(said.split("card.yaml:\n\n")[1].split("\n\n2.")[0])
    card["axes"]["test_time_compute"]["contenders"].append(NAME)
    path.write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")
    return folder


def test_the_entry_is_a_cards(root: Path) -> None:
    spec = Card(root / "workflows" / "revise", root).spec.contenders[NAME]
    assert (spec.label, spec.kind, spec.use) == ("Likeliest", "baseline", f"baselines.{NAME}:Likeliest")


def test_it_passes_its_own_tests(root: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/baselines/test_{NAME}.py"]
    paths = os.pathsep.join([str(root), str(ROOT)])
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"PYTHONPATH": paths}, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_it_plays(root: Path, room: Any) -> None:
    spec = importlib.util.spec_from_file_location(NAME, root / "baselines" / f"{NAME}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    task = dataclasses.replace(room.task("test_time_compute", "sft", 2), contender=module.Likeliest(), name=NAME)
    outcome = room.arena().play(task)
    assert {m.metric for m in outcome.measurements} == set(task.metrics)
