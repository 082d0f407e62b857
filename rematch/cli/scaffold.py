"""Scaffolds: a method, a baseline or a paper that runs as it is, to be changed into what is meant."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from rematch.cards import load_cards
from rematch.errors import RematchError, unknown
from rematch.records import write_text

PAPER_TEMPLATES = Path(__file__).parent / "templates" / "paper"
NAME = re.compile(r"^[a-z][a-z0-9_]*$")


def scaffold(root: Path, kind: str, name: str, paper: str | None) -> list[str]:
    """Write the files and return what to do next, line by line.

    A contender is made from ``workflows/<paper>/new/``, because what a contender must offer is the arena's affair.

    Raises:
        RematchError: the name is taken or no identifier, or the paper is unknown or offers no scaffold.
    """
    if not NAME.match(name):
        raise RematchError(f"new: '{name}' must be lower case letters, digits and underscores, starting with a letter")
    cards = load_cards(root)
    values = {
        "name": name,
        "Class": "".join(part.capitalize() for part in name.split("_")),
        "Label": name.replace("_", " ").capitalize(),
    }
    if kind == "paper":
        return _paper(root, name, values, list(cards))
    if paper is None:
        raise RematchError(f"new: --paper is needed: whose ring does it enter? One of: {', '.join(cards)}")
    if paper not in cards:
        raise unknown("paper", paper, cards, "new: --paper")
    folder = "methods" if kind == "method" else "baselines"
    values |= {"folder": folder, "kind": kind, "paper": paper}
    templates = root / "workflows" / paper / "new"
    if not (templates / "contender.py.txt").is_file():
        raise RematchError(f"new: workflows/{paper}/new/contender.py.txt is missing: the paper offers no scaffold")
    targets = {
        "contender.py.txt": root / folder / f"{name}.py",
        "test_contender.py.txt": root / "tests" / folder / f"test_{name}.py",
    }
    written = _write(templates, targets, values, root)
    entry = _fill(templates / "card_entry.yaml.txt", values)
    return [
        *written,
        "",
        f"1. Add this under `contenders:` in workflows/{paper}/card.yaml:",
        "",
        *entry.splitlines(),
        "",
        f"2. Add `{name}` to the `contenders:` of an axis there, and of the tiers that narrow that axis.",
        f"3. snakemake --cores 8 {paper}   (only the new matches are played)",
        f"4. pytest {targets['test_contender.py.txt'].relative_to(root)}",
    ]


def _paper(root: Path, name: str, values: dict[str, str], taken: list[str]) -> list[str]:
    if name in taken:
        raise RematchError(f"new: there is a paper '{name}' already: workflows/{name}")
    room = root / "workflows" / name
    targets = {
        "__init__.py.txt": room / "__init__.py",
        "card.yaml.txt": room / "card.yaml",
        "reported.csv.txt": room / "reported.csv",
        "arena.py.txt": room / "arena.py",
        "method.py.txt": root / "methods" / f"{name}.py",
        "baseline.py.txt": root / "baselines" / f"{name}_baseline.py",
        "test_paper.py.txt": root / "tests" / "workflows" / f"test_{name}.py",
    }
    written = _write(PAPER_TEMPLATES, targets, values, root)
    for template in ("contender.py.txt", "test_contender.py.txt", "card_entry.yaml.txt"):
        write_text((PAPER_TEMPLATES / "new" / template).read_text(encoding="utf-8"), room / "new" / template)
    return [
        *written,
        "",
        "It plays as it is: a trimmed mean against the plain mean on heavy-tailed samples.",
        f"1. snakemake --cores 8 {name}",
        f"2. Change workflows/{name}/arena.py into your experiment and workflows/{name}/card.yaml into your claims.",
        f"3. pytest tests/workflows/test_{name}.py",
    ]


def _write(templates: Path, targets: dict[str, Path], values: dict[str, str], root: Path) -> list[str]:
    if there := [path for path in targets.values() if path.exists()]:
        raise RematchError(f"new: {there[0].relative_to(root)} exists already; nothing was written")
    for template, path in targets.items():
        write_text(_fill(templates / template, values), path)
    return [f"wrote {path.relative_to(root)}" for path in targets.values()]


def _fill(template: Path, values: dict[str, str]) -> str:
    return Template(template.read_text(encoding="utf-8")).safe_substitute(values)
