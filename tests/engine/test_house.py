"""The rules of the house, as far as tools can check them: layers, style, types, Snakemake's own linter."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rematch.cards import json_schemas

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent

# What Snakemake's linter may say, and why it is let stand: the default tiers run on the Python packages alone (pyproject.toml,
# environment.yml for conda users), so no rule sets up an environment of its own.
OPEN_LINTS = {"Specify a conda environment or container for each rule."}


def check(*command):
    done = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_linter_of_snakemake_has_only_the_objections_that_we_know(toy):
    done = toy.run("snakemake", "--lint")
    assert set(re.findall(r"^    \* (.+):$", done.text, flags=re.MULTILINE)) == OPEN_LINTS


def test_snakefiles_are_formatted():
    check("snakefmt", "--check", "Snakefile", *sorted(map(str, ROOT.glob("workflows/**/*.smk"))))


def test_layers_import_downward_only():
    check("lint-imports", "--no-cache")


def test_the_schemas_for_editors_are_those_of_the_models():
    for path, schema in json_schemas().items():
        assert json.loads((ROOT / path).read_text(encoding="utf-8")) == schema, "run: rematch schemas"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [("ruff", "check", "."), ("ruff", "format", "--check", ".")], ids=["check", "format"]
)
def test_style(command):
    check(*command)


@pytest.mark.slow
def test_types():
    check("mypy")


def test_planning_imports_nothing_heavy(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom rematch.workflow import Workflow\n"
        "w = Workflow(Path('.'), {'results': sys.argv[1], 'reports': sys.argv[1]})\nw.check_records(w.tier)\n"
        "heavy = {'torch', 'pandas', 'scipy', 'altair', 'transformers', 'sklearn', 'numba'} & set(sys.modules)\n"
        "sys.exit(' '.join(sorted(heavy)) or 0)\n"
    )
    check("python", "-c", code, str(tmp_path))


def test_every_room_is_a_package():
    """Otherwise the check of the layers does not see into it."""
    for arena in ROOT.glob("workflows/*/arena.py"):
        assert (arena.parent / "__init__.py").is_file(), arena.parent
