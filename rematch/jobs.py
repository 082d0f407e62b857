"""The commands that rules call: ``base``, ``play``, ``judge``, ``page``, ``index``, ``check``. Parsed with the standard library only.

They are separate from the command line for people (``rematch.cli``), because a rule's command must start in milliseconds
and hand over to the warm server.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rematch.plan import Plan

JOBS = ("base", "play", "judge", "page", "index", "check")
CONFIG = "REMATCH_CONFIG"
RUN = "REMATCH_RUN"


def parser() -> argparse.ArgumentParser:
    """The arguments of the commands that rules call."""
    top = argparse.ArgumentParser(prog="rematch", description="What a Snakemake rule calls.")
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, text: str, *positional: tuple[str, str]) -> None:
        sub = commands.add_parser(name, help=text, description=text)
        for argument, meaning in positional:
            sub.add_argument(argument, help=meaning)
        sub.add_argument("--tier", required=True, help="smoke, mini, real or paper")

    paper = ("paper", "slug of the paper, for example simba")
    command(
        "base", "Build one base.", paper, ("base", "name in the card"),
        ("share", "share of the reference's budget, or 'any'"), ("seed", "seed, or 'shared'"),
    )  # fmt: skip
    command(
        "play", "Play one contender at one level for a range of seeds and write its records.", paper,
        ("axis", "name in the card"), ("contender", "name in the card"), ("level", "level as in the card"),
        ("seeds", "one seed (3) or a range (0-4)"),
    )  # fmt: skip
    command("judge", "Gather a paper's records and compute its verdicts.", paper)
    command("page", "Render a paper's page, tables and plots from its judged records.", paper)
    command("index", "Render the front page over every paper that has been judged.")
    command(
        "check", "End non-zero when a required match of the paper failed.", paper, ("scope", "an axis, or 'all'")
    )  # fmt: skip
    return top


def run_job(arguments: list[str]) -> int:
    """Run one of the commands in this process; the exit code."""
    from rematch.errors import RematchError

    options = parser().parse_args(arguments)
    try:
        return _run(options)
    except RematchError as error:
        print(f"rematch: {error}", file=sys.stderr)
        return 1


def prepare(arguments: list[str]) -> None:
    """What the warm server does once for all jobs of a kind: read the plan, import what its arena imports."""
    options = parser().parse_args(arguments)
    plan = plan_of(options.tier)
    if options.command in ("base", "play"):
        from rematch.play import preload

        preload(plan.cards[options.paper].arena_module)
    else:
        importlib.import_module("rematch.results")


@cache
def plan_of(tier: str) -> Plan:
    """The plan of a tier, under the configuration that the Snakefile left in the environment."""
    from rematch.config import load_settings
    from rematch.plan import Plan

    plan = Plan(load_settings(find_root(), json.loads(os.environ.get(CONFIG, "{}"))), tier)
    plan.compute_digests()
    return plan


def thread_limits(threads: int) -> dict[str, str]:
    """The environment in which numerical libraries use so many threads; they read it when they are imported.

    One thread a job, unless the tier says otherwise: jobs run side by side, and results do not depend on the machine.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def _run(options: argparse.Namespace) -> int:
    plan = plan_of(options.tier)
    os.environ.update(thread_limits(plan.tier.threads))
    run = os.environ.get(RUN, "by-hand")
    if options.command == "base":
        from rematch.play import build_base

        build_base(plan, plan.base(options.paper, options.base, options.share, options.seed), run)
    elif options.command == "play":
        from rematch.play import play_match

        match = plan.match(options.paper, options.axis, options.contender, options.level, options.seeds)
        play_match(plan, match, run)
    else:
        from rematch import results

        if options.command == "judge":
            results.judge(plan, options.paper)
        elif options.command == "page":
            results.page(plan, options.paper)
        elif options.command == "index":
            results.index(plan)
        else:
            return results.check(plan, options.paper, options.scope)
    return 0


def find_root() -> Path:
    """The repository: the nearest folder at or above the working directory with ``config/`` and ``workflows/``."""
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parent.parent):
        if (folder / "config" / "config.yaml").is_file() and (folder / "workflows").is_dir():
            return folder
    from rematch.errors import RematchError

    raise RematchError(f"{here}: not inside a Rematch repository (no config/config.yaml with workflows/ beside it)")
