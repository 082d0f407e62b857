"""The ``rematch`` command. Every command has ``--json`` where it prints a table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rematch.cli.show import Shown, emit
from rematch.errors import RematchError
from rematch.jobs import JOBS, find_root, parser, run_job
from rematch.plan import Plan

app = typer.Typer(
    help="Replays the matches that papers claim to have won, on equal terms. Play with Snakemake: "
    "`snakemake --cores 8 all`; look at what came out with the commands below.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

TierOption = Annotated[str, typer.Option("--tier", help="smoke, mini, real or paper. Default: the config's.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
PaperOption = Annotated[str, typer.Option("--paper", help="Only this paper (slug).")]


def friendly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a mistake of the user's into one line on standard error and exit code 1."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except RematchError as error:
            print(f"rematch: {error}", file=sys.stderr)
            raise typer.Exit(1) from None

    return wrapped


def plan_for(tier: str) -> Plan:
    """The plan of a tier, or of the configured one."""
    from rematch.config import load_settings

    return Plan(load_settings(find_root(), {"tier": tier} if tier else {}))


@app.command()
@friendly
def doctor(json: JsonOption = False) -> None:
    """What this machine can run: cores, memory, GPU, optional packages, browser, hub and mirror."""
    from rematch.cli.doctor import examine

    emit(examine(find_root()), json)


@app.command()
@friendly
def plan(tier: TierOption = "", paper: PaperOption = "", json: JsonOption = False) -> None:
    """What would run and what it is estimated to cost, from the last records or else the card."""
    from rematch.cli.estimate import estimate

    emit(estimate(plan_for(tier), paper or None), json)


@app.command()
@friendly
def status(tier: TierOption = "", json: JsonOption = False) -> None:
    """How far a tier has come, what it has cost, and how much of that was the harness itself."""
    from rematch.cli.status import progress

    emit(progress(plan_for(tier)), json)


@app.command()
@friendly
def claims(tier: TierOption = "", paper: PaperOption = "", json: JsonOption = False) -> None:
    """The verdict board: every claim, what was measured, and what that says of it."""
    from rematch.cli.board import board

    emit(board(plan_for(tier), paper or None), json)


@app.command()
@friendly
def audit(
    cell: Annotated[
        str, typer.Argument(help="paper/axis/contender/level, as a report shows it; shorter: all below it.")
    ],
    tier: TierOption = "",
    json: JsonOption = False,
) -> None:
    """From a table cell to its matches: commit, seeds, knobs, data hashes, log, cost."""
    from rematch.cli.board import audit_cell

    emit(audit_cell(plan_for(tier), cell), json)


@app.command("retry-failed")
@friendly
def retry_failed(
    tier: TierOption = "",
    paper: PaperOption = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Say what would be removed, remove nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Remove the records of failed and timed-out matches, so that the next run plays just those again."""
    from rematch.cli.retry import forget_failures

    emit(forget_failures(plan_for(tier), paper or None, dry_run=dry_run), json)


@app.command()
@friendly
def new(
    kind: Annotated[Literal["method", "baseline", "paper"], typer.Argument(help="What to scaffold.")],
    name: Annotated[str, typer.Argument(help="Its name in the card: lower case, digits, underscores.")],
    paper: Annotated[str, typer.Option("--paper", help="The paper whose ring it enters (method and baseline).")] = "",
) -> None:
    """Scaffold a method, a baseline or a paper that runs as it is, and say what to do next."""
    from rematch.cli.scaffold import scaffold

    for line in scaffold(find_root(), kind, name, paper or None):
        print(line)


@app.command()
@friendly
def compare(
    run_a: Annotated[Path, typer.Argument(help="A results folder of one tier, for example results/mini.")],
    run_b: Annotated[Path, typer.Argument(help="Another one.")],
    json: JsonOption = False,
) -> None:
    """Compare two sets of results value by value: what is equal, what moved, what only one of them has."""
    from rematch.cli.compare import compare_runs

    emit(compare_runs(run_a, run_b), json)


@app.command()
@friendly
def mirror(
    folder: Annotated[Path, typer.Argument(help="The folder to fill; give it to the config as hub_mirror.")],
    model: Annotated[list[str], typer.Option("--model", help="Model id, or id@revision; may be repeated.")] = [],  # noqa: B006
    dataset: Annotated[list[str], typer.Option("--dataset", help="Dataset id, or id@revision; may be repeated.")] = [],  # noqa: B006
) -> None:
    """Fill a local mirror of the hub, on a machine with internet, for one that has none."""
    from rematch.hub import fill_mirror

    for path in fill_mirror(folder, model, dataset):
        print(path)


@app.command()
@friendly
def schemas() -> None:
    """Write the JSON schemas of card, config and tier files, for editors that complete and check while one types."""
    from json import dumps

    from rematch.cards import json_schemas
    from rematch.records import write_text

    for path, schema in json_schemas().items():
        write_text(dumps(schema, indent=1) + "\n", find_root() / path)
        print(path)


def _job_command(name: str) -> None:
    """Show a rule's command in ``rematch --help``, with the help of its own parser."""
    actions = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    sub = actions[name]  # type: ignore[index]

    @app.command(
        name,
        help=f"{sub.description} (What a rule calls; by hand: rematch {name} --help.)",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
        rich_help_panel="Called by rules",
    )
    def run(context: typer.Context) -> None:
        raise typer.Exit(run_job([name, *context.args]))


for job in JOBS:
    _job_command(job)

__all__ = ["Shown", "app"]
