"""Chain of thought without training, and the harness's own score of any model: lm-eval's tasks on its own model class.

Models answer greedily. Where a model's tokenizer has a chat template the examples and the question stand in it.
"""

from __future__ import annotations

import copy
import logging
from bisect import bisect_left
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lm_eval.tasks
from datasets.exceptions import DatasetsError
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from torch import Tensor

from baselines.post_training.answers import last_boxed, last_number
from baselines.transformer_flops import TransformerFlops, transformer_flops
from rematch.errors import RematchError, unknown
from rematch.hub import Hub

Status = Literal["ok", "unparsable", "cut", "too_long"]


@dataclass(frozen=True)
class Benchmark:
    """A data set as lm-eval has it.

    Attributes:
        file: the task with worked examples, below ``lm_eval/tasks``. By its path: to look it up by name lm-eval reads all of
            its 14,000 tasks, for 12 seconds.
        zero_shot_file: the task without.
        n_shots: worked examples, those that the field always takes.
        filter: of the answers; the metric that is read after it.
        final_answer: tells whether there is an answer at all.
    """

    file: str
    zero_shot_file: str
    n_shots: int
    filter: str
    metric: str
    final_answer: Callable[[str], Hashable | None]


_MINERVA = "minerva_math/minerva_math500.yaml"
BENCHMARKS = {
    # The last number, as everywhere here; lm-eval's other filter wants the examples' very phrase.
    "gsm8k": Benchmark(
        "gsm8k/gsm8k-cot.yaml", "gsm8k/gsm8k-cot-zeroshot.yaml", 8, "flexible-extract", "exact_match", last_number
    ),
    # Equality as mathematics, which reads boxes; lm-eval's other metric wants the examples' very phrase.
    "math": Benchmark(_MINERVA, _MINERVA, 4, "none", "math_verify", last_boxed),
}


class Written(NamedTuple):
    """Tokens that a prompt was continued by, those of the stop sequence included, and whether one came."""

    n_tokens: int
    ended: bool


@dataclass(frozen=True)
class HarnessScores:
    """What lm-eval found, item by item in the order of the file.

    Attributes:
        scores: 1 or 0.
        texts: what the model wrote, up to the first stop sequence.
        statuses: ``ok``; ``unparsable``, no answer can be read; ``cut`` before a stop sequence came, though lm-eval reads
            an answer even so; ``too_long``, the prompt and what may be generated do not fit into the model's context, so that
            nothing was generated, which is wrong.
        n_tokens: written until a stop sequence; what a batch goes on to write for its other rows is not counted.
        flops: of reading the prompts and writing these tokens, unpadded, by formula.
    """

    scores: list[float]
    texts: list[str]
    statuses: list[Status]
    n_tokens: int
    flops: int


def few_shot_scores(
    model: Any,
    tokenizer: Any,
    task: str,
    hub: Hub,
    limit: int | None = None,
    batch_size: int = 128,
    max_new_tokens: int = 1024,
    n_shots: int | None = None,
) -> HarnessScores:
    """Greedy answers to a benchmark's test questions after worked examples.

    Args:
        model, tokenizer: of transformers; neither is changed.
        task: ``gsm8k`` or ``math`` (MATH-500).
        limit: the first so many questions; all where None.
        batch_size: questions at once; results may depend on it in their last bits, and so may greedy answers.
        max_new_tokens: of an answer; lm-eval's own habit is 256, of what is sampled elsewhere here 1,024.
        n_shots: worked examples, 0 for lm-eval's zero-shot chain of thought; the usual number where None.

    Raises:
        RematchError: no such task, its data set cannot be read, or what lm-eval needs to judge mathematics is not installed.
    """
    if task not in BENCHMARKS:
        raise unknown("task", task, BENCHMARKS, "few_shot_scores")
    if limit is not None and limit < 1:
        raise RematchError(f"few_shot_scores: limit: {limit}; allowed: whole numbers from 1, or None for all")
    benchmark = BENCHMARKS[task]
    shots = benchmark.n_shots if n_shots is None else n_shots
    if not 0 <= shots <= benchmark.n_shots:
        raise RematchError(f"few_shot_scores: n_shots: {shots}; {task} has 0 to {benchmark.n_shots} worked examples")
    loaded = _load_task(benchmark, hub, shots, max_new_tokens)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    was_training = model.training
    lm = _Harness(max_new_tokens, pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
    results = evaluate(
        lm=lm, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=True,
        apply_chat_template=bool(tokenizer.chat_template),
    )  # fmt: skip
    model.train(was_training)
    assert results is not None  # of rank 0, and there is one rank
    (samples,) = results["samples"].values()
    samples = sorted((s for s in samples if s["filter"] == benchmark.filter), key=lambda sample: sample["doc_id"])
    return _scores(samples, lm, benchmark, transformer_flops(model))


def standard_scores(
    model: Any,
    tokenizer: Any,
    task: str,
    hub: Hub,
    limit: int | None = None,
    batch_size: int = 128,
    max_new_tokens: int = 1024,
) -> HarnessScores:
    """The harness's zero-shot score: of a model that has been trained, or of an instruction-tuned one as it is."""
    return few_shot_scores(model, tokenizer, task, hub, limit, batch_size, max_new_tokens, n_shots=0)


class _Harness(HFLM):
    """lm-eval's own model, which also keeps what it read and wrote.

    Prompts that leave no room for an answer are not run: it would cut them on the left and say nothing.
    """

    def __init__(self, max_new_tokens: int, **options: Any) -> None:
        super().__init__(**options)
        self.max_new_tokens = max_new_tokens
        self._written: dict[tuple[int, ...], Written] = {}

    def written(self, prompt: str) -> Written | None:
        """What became of a prompt; None of one that is too long."""
        return self._written.get(tuple(self.tok_encode(prompt)))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        fits = [len(self.tok_encode(r.args[0])) + self.max_new_tokens <= self.max_length for r in requests]
        asked = [request for request, fit in zip(requests, fits, strict=True) if fit]
        texts = iter(super().generate_until(asked, disable_tqdm) if asked else ())
        return [next(texts) if fit else "" for fit in fits]

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        found = super()._model_generate(context, max_length, stop, **options)
        kept = options["attention_mask"].bool()
        for prompt, mask, row in zip(context, kept, found[:, context.shape[1] :].tolist(), strict=True):
            self._written[tuple(prompt[mask].tolist())] = self._until(row, stop)
        return found

    def _until(self, ids: list[int], stop: list[str]) -> Written:
        """How far a row was written until it said a stop sequence, of which the end token is one."""

        def stopped(n: int) -> bool:
            text = self.tok_decode(ids[:n], skip_special_tokens=False)
            return any(sequence in text for sequence in stop)

        if not stopped(len(ids)):
            return Written(len(ids), False)
        return Written(bisect_left(range(len(ids)), True, key=lambda n: stopped(n)), True)


def _load_task(benchmark: Benchmark, hub: Hub, n_shots: int, max_new_tokens: int) -> Any:
    path = Path(lm_eval.tasks.__file__).parent / (benchmark.file if n_shots else benchmark.zero_shot_file)
    try:
        config = load_yaml(path)
    except (ModuleNotFoundError, AssertionError) as error:  # what lm-eval makes of packages that are missing or too new
        raise RematchError(
            f"lm-eval's task {path.stem} needs packages to judge mathematics by: pip install 'rematch[math]'"
        ) from error
    where = config["dataset_path"] = hub.dataset_path(config["dataset_path"])
    config["num_fewshot"] = n_shots
    config["generation_kwargs"] = config["generation_kwargs"] | {"max_gen_toks": max_new_tokens}
    try:
        return TaskManager(include_defaults=False).load([config])
    except (DatasetsError, OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise RematchError(f"lm-eval's task {path.stem} cannot read its data set from {where}: {reason}") from error


def _scores(
    samples: list[dict[str, Any]], lm: _Harness, benchmark: Benchmark, costs: TransformerFlops
) -> HarnessScores:
    scores = [float(sample[benchmark.metric]) for sample in samples]
    texts = [str(sample["resps"][0][0]) for sample in samples]
    statuses: list[Status] = []
    n_tokens = flops = 0
    for sample, text, score in zip(samples, texts, scores, strict=True):
        prompt = sample["arguments"][0][0]
        written = lm.written(prompt)
        if written is None:
            statuses.append("too_long")
            continue
        readable = bool(score) or benchmark.final_answer(text) is not None
        statuses.append("cut" if not written.ended else "ok" if readable else "unparsable")
        n_read = len(lm.tok_encode(prompt))
        n_tokens += written.n_tokens
        # Every token that was written, but for the last, was read as well.
        flops += costs.forward(1, n_read, None, 1)
        flops += sum(costs.forward(1, 1, n_read + i, 1) for i in range(1, written.n_tokens))
    return HarnessScores(scores, texts, statuses, n_tokens, flops)
