"""Matches of contenders that are no models with a rule: a verifier, and few-shot prompting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from baselines.post_training.dpo import solution_scores
from baselines.post_training.problems import Problem
from methods.revise.trajectories import Attempt
from rematch.arena import Exhibit, Measurement, Task, Undefined
from rematch.play import Skip
from workflows.revise.match import Match, by_lm_eval
from workflows.revise.models import load_model, load_pretrained

if TYPE_CHECKING:
    from workflows.revise.arena import Arena


class VerifierMatch(Match):
    """A model that only scores solutions: those of ReVISE's first attempts, the greedy ones, and all within a question."""

    def __init__(self, arena: Arena, task: Task) -> None:
        super().__init__(arena, task)
        self._flops, self._n_scored = 0, 0
        for metric in arena.METRICS:
            if metric not in ("auroc", "auroc_within", "unused"):
                setattr(self, metric, _undefined("a verifier answers no question"))

    def _scores(self, attempts: Sequence[tuple[Problem, Attempt]]) -> list[float]:
        model, _, tokens = load_model(self.task.bases["verifier"])
        scores, flops = solution_scores(
            model, [problem.prompt for problem, _ in attempts], [attempt.ids for _, attempt in attempts], tokens.end
        )
        self._flops, self._n_scored = self._flops + flops, self._n_scored + len(attempts)
        return [float(score) for score in scores]

    @property
    def train_flops(self) -> float:
        return float(self.task.base_info["verifier"].train_flops)

    @property
    def own_flops(self) -> float:
        """Of judging an attempt."""
        return self._flops / max(1, self._n_scored)

    @property
    def _counts(self) -> dict[str, dict[str, int]]:
        return dict(self.task.base_info["verifier"].notes["counts"])

    def exhibits(self) -> list[Exhibit]:
        return []


class FewShotMatch:
    """A model as it was pretrained, with worked examples before the question, by lm-eval."""

    def __init__(self, arena: Arena, task: Task) -> None:
        if not arena.lm_eval_task:
            raise Skip("few-shot prompting needs a pretrained model and lm_eval_task")
        self.arena, self.task = arena, task
        self.train_flops, self.target, self.own_flops = 0.0, None, float("nan")
        self.notes: dict[str, Any] = {"lm_eval_task": arena.lm_eval_task}
        self.remarks: dict[str, str] = {}
        self.data_hash = ""

    def accuracy(self) -> Iterator[Measurement]:
        """Of greedy answers."""
        from workflows.revise.few_shot import few_shot_scores

        model, tokenizer = load_pretrained(self.task.bases["pretrained"], self.task.hub)
        found = by_lm_eval(few_shot_scores, self.arena, model, tokenizer, self.task.hub)
        self.notes |= {"statuses": dict(Counter(found.statuses)), "tokens": found.n_tokens / max(1, len(found.scores))}
        self.own_flops = found.flops / max(1, len(found.scores))
        yield Measurement("accuracy", float(np.mean(found.scores)), items=found.scores)

    def exhibits(self) -> list[Exhibit]:
        return []

    def __getattr__(self, metric: str) -> Any:
        if metric not in self.arena.METRICS:
            raise AttributeError(metric)
        return _undefined("lm-eval gives no such number")


def _undefined(reason: str) -> Callable[[], list[Measurement]]:
    """A metric that has no value."""

    def measured() -> list[Measurement]:
        raise Undefined(reason)

    return measured
