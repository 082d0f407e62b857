"""The README's "add a method in ten minutes", executed: its commands and its card entry, word for word."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from .conftest import ROOT, copy_repository, run

pytestmark = pytest.mark.slow


def section(title: str) -> str:
    """The text of a README section."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_add_a_method(tmp_path: Path) -> None:
    steps = section("Add a method in ten minutes")
    (scaffold, play), (entry,) = blocks(steps, "sh"), blocks(steps, "yaml")
    root = copy_repository(tmp_path / "repo")

    def shell(block: str) -> str:
        said = ""
        for line in block.splitlines():
            done = run(root, *shlex.split(line.partition("#")[0]))
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            said += done.stdout + done.stderr
        return said

    printed = shell(scaffold)
    assert " ".join(entry.split()) in " ".join(printed.split()), "the scaffold prints the entry that the README shows"

    path = root / "workflows" / "simba" / "card.yaml"
    card = yaml.safe_load(path.read_text(encoding="utf-8"))
    new = yaml.safe_load(entry)
    (name,) = new
    card["contenders"] |= new
    card["axes"]["flops_matched"]["contenders"].append(name)
    # Only the new contender and what it meets, so that the test stays short.
    card["tiers"]["smoke"]["axes"] = {"flops_matched": {"contenders": [name, "simba"], "levels": [0.64]}}
    path.write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")

    said = shell(play)
    assert f"flops_matched/{name}" in said
    page = (root / "reports" / "smoke" / "simba.html").read_text(encoding="utf-8")
    assert new[name]["label"] in page, "the new row stands in the table"

    test = run(root, "python", "-m", "pytest", "-q", "--import-mode=importlib", f"tests/baselines/test_{name}.py")
    assert test.returncode == 0, test.stdout[-2000:]
