"""``python -m methods.remodetect``: a row of output for every row of input, whatever stands in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_classifiers import bert, tokenizer, words
from typer.testing import CliRunner, Result

from methods.remodetect import ReMoDetector
from methods.remodetect.__main__ import app

ROOT = Path(__file__).resolve().parents[2]
LINES = [
    b"w1 w2 w3",
    b"b b a\r",
    b"",
    b"a",
    b"caf\xe9 a b",
    b"a\x00 \x1b[0m b",
    "שלום עולם".encode(),
    b"a b " * 25_000,
    b"w1 w2 w3",
]
STATUSES = ["ok", "ok", "empty", "one word", "not text", "ok", "ok", "truncated", "ok"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    ReMoDetector(max_length=32).attach(bert(), tokenizer()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    file.write_bytes(b"\n".join(LINES) + b"\n")
    return file


def run(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"], input=stdin)


def rows(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_every_line_gets_a_row(model, lines):
    found = rows(run(lines, "--model", model))
    assert [row["index"] for row in found] == list(range(len(LINES)))
    assert [row["status"] for row in found] == STATUSES
    assert [row["score"] is None for row in found] == [s not in ("ok", "truncated") for s in STATUSES]
    assert found[0]["score"] == found[8]["score"]
    detector = ReMoDetector.from_pretrained(model)
    assert found[0]["score"] == pytest.approx(detector.score(["w1 w2 w3"])[0], abs=1e-5)
    assert found[1]["score"] == pytest.approx(detector.score(["b b a"])[0], abs=1e-5)


def test_standard_input_and_small_batches_give_the_same(model, lines):
    found, again = (
        rows(run(lines, "--model", model)),
        rows(run("-", "--model", model, "--batch-size", 1, stdin=lines.read_bytes())),
    )
    assert [row["status"] for row in again] == STATUSES
    for first, second in zip(found, again, strict=True):
        assert (first["score"] is None) == (second["score"] is None)
        assert first["score"] is None or first["score"] == pytest.approx(second["score"], abs=1e-5)


def test_more_rows_than_are_read_ahead_stay_in_order(model):
    texts = [words(2 + i % 7, i) for i in range(70)]
    found = rows(run("-", "--model", model, "--batch-size", 2, stdin="\n".join(texts).encode()))
    assert [row["index"] for row in found] == list(range(70))
    expected = ReMoDetector.from_pretrained(model).score(texts)
    assert [row["score"] for row in found] == pytest.approx(expected.tolist(), abs=1e-5)


def test_jsonl(model, tmp_path):
    file = tmp_path / "rows.jsonl"
    held = [
        '{"body": "a b a"}',
        '{"text": "a b a"}',
        "no json",
        "[1]",
        '{"body": 3}',
        '{"body": "a\\u2028b c"}',
        '{"body": "\\ud800 a"}',
        "",
    ]
    file.write_bytes(b"\xef\xbb\xbf" + "\n".join(held).encode() + b"\n" + b'{"body": "\xff a"}')
    found = rows(run(file, "--model", model, "--format", "jsonl", "--field", "body"))
    assert [row["status"] for row in found] == ["ok", *["not text"] * 4, "ok", *["not text"] * 3]


def test_tab_separated_with_probabilities_of_a_calibrated_detector(model, lines, tmp_path):
    detector = ReMoDetector.from_pretrained(model)
    texts = [words(4, seed) for seed in range(6)]
    detector.calibrate(texts, detector.score(texts) > np.median(detector.score(texts)))
    detector.save_pretrained(tmp_path)
    result = run(lines, "--model", tmp_path, "--output", "tsv")
    assert result.exit_code == 0, result.output
    head, *body = [line.split("\t") for line in result.stdout.splitlines()]
    assert head == ["index", "score", "status", "probability"]
    assert [row[2] for row in body] == STATUSES
    assert float(body[0][3]) == pytest.approx(detector.predict_proba(["w1 w2 w3"])[0, 1], abs=1e-4)
    assert body[2][1] == body[2][3] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{lines}.not", "--model", "{model}"], "cannot be read"),
        (["{lines}", "--model", "{model}/elsewhere"], "no sequence classifier"),
        (["{lines}", "--model", "{model}", "--device", "abacus"], "abacus"),
    ],
)
def test_mistakes_are_one_line(model, lines, arguments, message):
    result = CliRunner().invoke(app, [argument.format(model=model, lines=lines) for argument in arguments])
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_as_a_process_rows_go_to_standard_output_and_progress_to_standard_error(model, lines):
    command = [sys.executable, "-m", "methods.remodetect", "-", "--model", model]
    done = subprocess.run(command, cwd=ROOT, input=lines.read_bytes(), capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == STATUSES
    assert b"9/" in done.stderr
