"""``python -m methods.remodetect FILE --model ID``: one score for every line of a file or of standard input."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from enum import StrEnum
from itertools import islice
from typing import Annotated, Any, BinaryIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rematch.errors import RematchError

BATCHES_AT_ONCE = 16
"""How many batches are read ahead: texts of like length are put in one batch, and duplicates are scored once."""


class Format(StrEnum):
    """How a line holds a text."""

    LINES = "lines"
    JSONL = "jsonl"


class Output(StrEnum):
    """How a score is written."""

    JSONL = "jsonl"
    TSV = "tsv"


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command()
def score(
    file: Annotated[str, typer.Argument(help="The texts, one a line; - for standard input.", metavar="FILE")],
    model: Annotated[str, typer.Option(help="A sequence classifier with one logit: an id of the hub, or a folder.")],
    input_format: Annotated[
        Format, typer.Option("--format", help="A line is a text, or a JSON object that holds one.")
    ] = Format.LINES,
    field: Annotated[str, typer.Option(help="Where a JSON object holds its text.")] = "text",
    batch_size: Annotated[int, typer.Option(min=1, help="Texts in one forward pass.")] = 32,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens read of a text; 512 where the model does not say.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU where there is one.")] = None,
    output: Annotated[Output, typer.Option(help="One JSON object a row, or tab-separated columns.")] = Output.JSONL,
) -> None:
    """Score texts with a reward model: higher means more likely written by an aligned language model.

    Every row of the input gives one row of the output, in the same order: its index from 0, its score, and its status:
    ok, truncated (its beginning was scored), empty, one word, or not text (bytes that are no UTF-8, JSON that holds no
    text). The last three have no score and stop nothing. A calibrated detector also gives the probability of "generated".
    """
    try:
        _score(file, model, input_format, field, batch_size, max_length, device, output)
    except RematchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


def _score(
    file: str,
    model: str,
    input_format: Format,
    field: str,
    batch_size: int,
    max_length: int | None,
    device: str | None,
    output: Output,
) -> None:
    import torch

    from methods.remodetect.detector import ReMoDetector

    with ExitStack() as stack:
        if file == "-":
            source, total = sys.stdin.buffer, None
        else:
            try:
                source = stack.enter_context(open(file, "rb"))
                total = _count_lines(source)
            except OSError as error:
                raise RematchError(f"'{file}' cannot be read: {error.strerror}") from error
        given: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
        detector = ReMoDetector.from_pretrained(model, inference_batch_size=batch_size, **given)
        try:
            detector.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except (RuntimeError, AssertionError) as error:
            raise RematchError(f"device '{device}' cannot be used: {error}") from error

        calibrated = detector.calibration_ is not None
        if output is Output.TSV:
            print("\t".join(["index", "score", "status", *(["probability"] if calibrated else [])]))
        columns = TextColumn("texts"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        # Left alone rich would send what we print to standard error too. A terminal that shows the rows needs no bar.
        bar = Progress(*columns, console=Console(stderr=True), redirect_stdout=False, disable=sys.stdout.isatty())
        progress = stack.enter_context(bar)
        task, index = progress.add_task("texts", total=total), 0
        rows = _rows(source, input_format, field)
        while chunk := list(islice(rows, batch_size * BATCHES_AT_ONCE)):
            scores = detector.score_texts(chunk)
            generated = detector.probabilities(scores.values)[:, 1] if calibrated else None
            for i, (value, status) in enumerate(zip(scores.values.tolist(), scores.statuses, strict=True)):
                row: dict[str, Any] = {"index": index + i, "score": _number(value), "status": status}
                if generated is not None:
                    row["probability"] = _number(float(generated[i]))
                if output is Output.JSONL:
                    print(json.dumps(row))
                else:
                    print("\t".join("" if value is None else str(value) for value in row.values()))
            sys.stdout.flush()
            index += len(chunk)
            progress.update(task, completed=index)


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else value


def _count_lines(source: BinaryIO) -> int | None:
    """Lines of an open file, which is put back to its beginning; None for a pipe."""
    if not source.seekable():
        return None
    n = sum(1 for _ in source)
    source.seek(0)
    return n


def _rows(source: BinaryIO, input_format: Format, field: str) -> Iterator[object]:
    """What every line holds: bytes of a text, or what stands in the JSON object's field; None for what is neither.

    Only line feeds (and carriage returns before them) end a line: other separators of Unicode belong to the text.
    """
    for number, line in enumerate(source):
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if number == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")  # a byte-order mark
        if input_format is Format.LINES:
            yield line
        else:
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError):
                row = None
            yield row.get(field) if isinstance(row, dict) else None


if __name__ == "__main__":
    app()
