"""``python -m workflows.mac.rates --tier mini``: how the learning rates of online fine-tuning in the card were chosen.

F1 after one pass over validation streams, by rate; the card takes the best one. No stream that is reported is read. Bases that
are in the tier's results already are used, others are built there.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from transformers.utils.logging import disable_progress_bar

from rematch.arena import BaseInfo, Level, Task
from rematch.cli.estimate import is_due
from rematch.cli.show import Shown, emit
from rematch.config import load_settings
from rematch.errors import RematchError, unknown
from rematch.hub import Hub
from rematch.jobs import find_root
from rematch.plan import BaseRun, Plan
from rematch.play import build_base, load, read_base
from workflows.mac.arena import Arena
from workflows.mac.corpus import VALIDATION

PAPER, AXIS = "mac", "data_efficiency"
GRID = (1e-4, 3e-4, 1e-3, 3e-3)
"""The sheet's, for language models of the size of mini's."""

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command()
def main(
    tier: Annotated[str, typer.Option(help="smoke, mini, real or paper. Default: the config's.")] = "",
    seeds: Annotated[str, typer.Option(help="FIRST-LAST; seeds that no match plays leave all reported streams unseen.")] = "10-12",
    rates: Annotated[list[float] | None, typer.Option("--rate", help="Once for each rate of the grid.")] = None,
    contenders: Annotated[list[str] | None, typer.Option("--contender", help="Once for each; all fine-tuners where none.")] = None,
    results: Annotated[str, typer.Option(help="The folder of all tiers' results. Default: the config's.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:  # fmt: skip
    """F1 of the fine-tuners on validation streams, the mean over seeds, for every rate of a grid."""
    try:
        given = {"tier": tier, "results": results}
        plan = Plan(
            load_settings(find_root(), {"papers": PAPER} | {key: value for key, value in given.items() if value})
        )
        torch.set_num_threads(plan.tier.threads)
        disable_progress_bar()
        shown = search(plan, seeds_of(seeds), rates or GRID, contenders, lambda line: print(line, file=sys.stderr))
    except RematchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    emit(shown, as_json)


def seeds_of(text: str) -> range:
    """The seeds that ``FIRST-LAST`` or ``SEED`` names.

    Raises:
        RematchError: it is neither.
    """
    first, dash, last = text.partition("-")
    last = last if dash else first
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise RematchError(f"--seeds: {text!r}; give FIRST-LAST or one seed, 0 or more")
    return range(int(first), int(last) + 1)


def fine_tuners(plan: Plan, names: Sequence[str]) -> list[str]:
    """Those of some contenders that have a learning rate."""
    specs = plan.cards[PAPER].spec.contenders
    classes: dict[str, Any] = {name: load(specs[name].use) for name in names}
    return [name for name, each in classes.items() if "learning_rate" in {f.name for f in dataclasses.fields(each)}]


def search(
    plan: Plan,
    seeds: Sequence[int],
    rates: Sequence[float],
    names: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Shown:
    """A row a contender: F1 by rate, the mean over seeds, and the best rate, the smaller one of two that are equal.

    Args:
        names: contenders of the axis at any tier; all that the tier plays and that have a rate where None.
        say: is told of every match played.

    Raises:
        RematchError: a contender without a rate, or a base that cannot be built.
    """
    known = fine_tuners(plan, plan.cards[PAPER].spec.axes[AXIS].contenders)
    for name in names or ():
        if name not in known:
            raise unknown("contender", name, known, "--contender")
    rows = []
    for name in names or fine_tuners(plan, plan.axes(PAPER)[AXIS].contenders):
        found: dict[float, list[float]] = {rate: [] for rate in sorted(rates)}
        for seed in seeds:
            for rate, values in found.items():
                values.append(play(plan, name, seed, rate))
                say(f"{name}, seed {seed}, rate {rate:g}: F1 {values[-1]:.4f}")
        means = {rate: statistics.mean(values) for rate, values in found.items()}
        best = max(means, key=means.__getitem__)
        rows.append({"contender": name, **{f"{rate:g}": mean for rate, mean in means.items()}, "best": f"{best:g}"})
    lines = [f"The mean over the validation streams of seeds {', '.join(map(str, seeds))}, tier {plan.tier_name}."]
    return Shown("F1 by learning rate", rows, lines)


def play(plan: Plan, name: str, seed: int, rate: float) -> float:
    """F1 of one contender at one rate on the validation stream of a seed."""
    card, tier, mirror = plan.cards[PAPER], plan.tier_name, plan.settings.config.hub_mirror
    spec = card.spec.contenders[name]
    bases = {base: built(plan, plan.base_for(PAPER, base, None, seed)) for base in spec.bases}
    contender: Any = load(spec.use)(**card.options("contenders", name, tier) | {"learning_rate": rate})
    levels = cast(list[int], plan.axes(PAPER)[AXIS].levels)
    task = Task(
        paper=PAPER, tier=tier, axis=AXIS, name=name, contender=contender, level=cast(Level, max(levels)), seed=seed, share=None,
        metrics=("f1",), bases={base: plan.results / run.name for base, (run, _) in bases.items()},
        base_info={base: info for base, (_, info) in bases.items()}, reference=None,
        hub=Hub(Path(mirror) if mirror else None),
    )  # fmt: skip
    arena = Arena(**card.at(tier).arena | {"stream": VALIDATION})
    return arena.play(task).measurements[0].value


def built(plan: Plan, base: BaseRun) -> tuple[BaseRun, BaseInfo]:
    """A base and what it cost, built with all that it needs unless it is there as the card has it.

    Raises:
        RematchError: it could not be built.
    """
    for need in plan.needs_of(base):
        built(plan, need)
    if is_due(plan, base, set()):
        build_base(plan, base, "rates")
    document = read_base(plan, base)
    if document["status"] != "ok":
        raise RematchError(f"base '{base.base}', seed {base.seed_text}, {document['status']}: {document['reason']}")
    return base, BaseInfo(**document["info"])


if __name__ == "__main__":
    app()
