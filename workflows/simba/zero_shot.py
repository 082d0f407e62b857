"""Zero-shot tasks through lm-eval, on a contender: the context may be pruned, the continuation is protected."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from torch.nn import functional as F

from rematch.errors import RematchError
from workflows.simba.corpus import CHOICE_FILE, CLOZE_FILE

TASKS = Path(__file__).parent / "tasks"
OWN = {"corpus_choice": CHOICE_FILE, "corpus_cloze": CLOZE_FILE}
"""Our own tasks, whose items the corpus holds."""
TOKENS_PER_BATCH = 4096


class ContenderLM(TemplateLM):
    """A contender as lm-eval sees a language model.

    Requests are scored in batches of one continuation length, contexts padded on the left; sorted by length, so that
    those of equal length, like the items of the corpus, need no padding.
    """

    def __init__(self, contender: Any, tokenizer: Any) -> None:
        super().__init__()
        self.contender, self.tokenizer = contender, tokenizer
        self._device = next(contender.model.parameters()).device

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens))

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        lengths = {i: (len(continuation), len(context)) for i, (_, context, continuation) in enumerate(requests)}
        order = sorted(lengths, key=lambda i: (*lengths[i], i))
        found: dict[int, tuple[float, bool]] = {}
        while order:
            n_continuation, _ = lengths[order[0]]
            batch: list[int] = []
            while order and lengths[order[0]][0] == n_continuation:
                if batch and (len(batch) + 1) * sum(lengths[order[0]]) > TOKENS_PER_BATCH:
                    break
                batch.append(order.pop(0))
            found |= dict(zip(batch, self._score([requests[i][1:] for i in batch]), strict=True))
        return [found[i] for i in range(len(requests))]

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is the likeliest at every step."""
        longest, n_continuation = max(len(context) for context, _ in pairs), len(pairs[0][1])
        ids = torch.full((len(pairs), longest + n_continuation), self.eot_token_id)
        mask = torch.zeros_like(ids)
        for row, (context, continuation) in enumerate(pairs):
            ids[row, longest - len(context) :] = torch.tensor(context + continuation)
            mask[row, longest - len(context) :] = 1
        ids, mask = ids.to(self._device), mask.to(self._device)
        padded = not bool(mask.all())
        log_p = F.log_softmax(self.contender.logits(ids, n_continuation, mask if padded else None).float(), dim=-1)
        targets = ids[:, longest:]
        scores = log_p.gather(-1, targets[..., None]).squeeze(-1).double().sum(1)
        greedy = (log_p.argmax(-1) == targets).all(1)
        return list(zip(scores.tolist(), greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise RematchError("lm-eval task: whole-document likelihoods have no context that could be pruned")

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        raise RematchError("lm-eval task: only multiple-choice and log-likelihood tasks are scored here")


@dataclass(frozen=True)
class TaskScore:
    """Accuracy on one lm-eval task: per item, in the order of the items."""

    task: str
    items: list[float]


def evaluate_tasks(
    contender: Any, tokenizer: Any, tasks: Sequence[dict[str, Any]], limit: int | None
) -> list[TaskScore]:
    """Score a contender on lm-eval tasks.

    Args:
        tasks: of ``task_configs``.
        limit: items of each task, or None for all.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    results = evaluate(
        lm=ContenderLM(contender, tokenizer),
        task_dict=TaskManager(include_defaults=False).load([dict(task) for task in tasks]),
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
    )
    assert results is not None  # of rank 0, and there is one rank
    scores = []
    for task in tasks:
        samples = sorted(results["samples"][task["task"]], key=lambda sample: sample["doc_id"])
        # The normalised accuracy where the task has one, as is the custom in the Mamba papers.
        key = "acc_norm" if task["task"] in NORMALISED else "acc"
        scores.append(TaskScore(task["task"], [float(sample[key]) for sample in samples]))
    return scores


NORMALISED = ("hellaswag", "arc_challenge")
"""Tasks reported by length-normalised accuracy (Mamba paper, table 3)."""


def task_configs(names: Sequence[str], corpus: Path, hub: Any) -> list[dict[str, Any]]:
    """lm-eval configurations: our own tasks on the items of the corpus, lm-eval's own on the hub's datasets or a mirror.

    Raises:
        RematchError: lm-eval has no such task.
    """
    configs: list[dict[str, Any]] = []
    known = {} if set(names) <= set(OWN) else _known_tasks()
    for name in names:
        if name in OWN:
            config = load_yaml(TASKS / f"{name}.yaml")
            # In memory: lm-eval's own way to local files leaves a copy in the cache of `datasets`.
            config["custom_dataset"] = partial(_read_items, corpus / OWN[name])
        else:
            if name not in known or known[name].yaml_path is None:
                raise RematchError(f"arena.zero_shot_tasks: lm-eval has no task '{name}'; see: lm-eval ls tasks")
            config = load_yaml(known[name].yaml_path)
            config["dataset_path"] = hub.dataset_path(config["dataset_path"])
        configs.append(config)
    return configs


@cache
def _known_tasks() -> dict[str, Any]:
    """lm-eval's own tasks by name; reading them all takes seconds."""
    return TaskManager().task_index


def _read_items(path: Path, **metadata: Any) -> DatasetDict:
    with path.open(encoding="utf-8") as file:
        return DatasetDict(test=Dataset.from_list([json.loads(line) for line in file]))
