"""lm-eval on a contender gives what a loop by hand gives, padded or not, pruned or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.dense import Dense
from methods.simba import sparsify
from rematch.errors import RematchError
from rematch.hub import Hub
from workflows.simba.corpus import load_tokenizer
from workflows.simba.zero_shot import ContenderLM, evaluate_tasks, task_configs


@pytest.fixture
def tokenizer(corpus: Path) -> Any:
    return load_tokenizer(corpus)


@pytest.fixture(params=["dense", "simba"])
def contender(request: pytest.FixtureRequest, parent: Callable[[], Any]) -> Any:
    if request.param == "simba":
        return sparsify(parent(), r_last=0.2)
    dense = Dense()
    dense.prepare(parent())
    return dense


def by_hand(contender: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """One row, no padding: sum of log p, and whether the continuation is the likeliest at every step."""
    ids = torch.tensor([context + continuation])
    with torch.no_grad():
        log_p = torch.log_softmax(contender.logits(ids, len(continuation))[0], -1)
    total = sum(float(log_p[i, token]) for i, token in enumerate(continuation))
    return total, log_p.argmax(-1).tolist() == continuation


def items(corpus: Path, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (corpus / file).read_text(encoding="utf-8").splitlines()]


def test_choice_is_the_loop_by_hand(contender: Any, tokenizer: Any, corpus: Path) -> None:
    (score,) = evaluate_tasks(contender, tokenizer, task_configs(["corpus_choice"], corpus, Hub()), None)
    expected = []
    for item in items(corpus, "choice.jsonl"):
        context = tokenizer.encode(item["context"])
        ends = [tokenizer.encode(item["context"] + choice)[len(context) :] for choice in item["choices"]]
        totals = [by_hand(contender, context, end)[0] for end in ends]
        expected.append(float(totals.index(max(totals)) == item["label"]))
    assert score.items == expected
    assert len(expected) >= 2


def test_cloze_is_the_loop_by_hand(contender: Any, tokenizer: Any, corpus: Path) -> None:
    (score,) = evaluate_tasks(contender, tokenizer, task_configs(["corpus_cloze"], corpus, Hub()), None)
    expected = []
    for item in items(corpus, "cloze.jsonl"):
        context = tokenizer.encode(item["context"])
        answer = tokenizer.encode(item["context"] + item["answer"])[len(context) :]
        expected.append(float(by_hand(contender, context, answer)[1]))
    assert score.items == expected


def test_unequal_lengths_are_padded_and_change_nothing(contender: Any, tokenizer: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [(5, 1), (17, 3), (9, 3), (30, 3), (12, 1), (2, 4), (17, 3)]
    pairs = [
        [torch.randint(1, 300, (n,), generator=generator).tolist() for n in (n_context, n_continuation)]
        for n_context, n_continuation in lengths
    ]
    requests: list[Any] = [(("", ""), context, continuation) for context, continuation in pairs]
    found = ContenderLM(contender, tokenizer)._loglikelihood_tokens(requests)
    for (total, greedy), (context, continuation) in zip(found, pairs, strict=True):
        expected = by_hand(contender, context, continuation)
        assert total == pytest.approx(expected[0], abs=1e-4)
        assert greedy == expected[1]


def test_greedy_is_recognised(contender: Any, tokenizer: Any) -> None:
    context = [5, 9, 17, 33, 2, 8]
    with torch.no_grad():
        likeliest = contender.logits(torch.tensor([[*context, 0]]), 1)[0, 0].argmax().item()
    requests: list[Any] = [(("", ""), context, [likeliest]), (("", ""), context, [(likeliest + 1) % 300])]
    found = ContenderLM(contender, tokenizer)._loglikelihood_tokens(requests)
    assert [greedy for _, greedy in found] == [True, False]


def test_the_continuation_does_not_decide_what_is_kept(parent: Callable[[], Any]) -> None:
    simba = sparsify(parent(), r_last=0.2)
    ids = torch.randint(1, 300, (2, 40), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, -8:] = (other[:, -8:] + 7) % 300
    for rows, changed in zip(simba.kept(ids, 8), simba.kept(other, 8), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(rows, changed, strict=True))


def test_limit(contender: Any, tokenizer: Any, corpus: Path) -> None:
    (score,) = evaluate_tasks(contender, tokenizer, task_configs(["corpus_cloze"], corpus, Hub()), 2)
    assert len(score.items) == 2


def test_tasks_that_cannot_be_scored_say_so(contender: Any, tokenizer: Any) -> None:
    lm = ContenderLM(contender, tokenizer)
    for refused in (lm.generate_until, lm.loglikelihood_rolling):
        with pytest.raises(RematchError, match="lm-eval task"):
            refused([])
