"""ReVISE's room: language models post-trained in different ways answer the same questions, once or by a vote.

What a model writes is sampled once (``written``); here answers are read off it by the contender's rule and scored.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt

from rematch.arena import Outcome, Task, measure
from workflows.revise.contenders import FewShot, Verifier
from workflows.revise.match import Match
from workflows.revise.other_matches import FewShotMatch, VerifierMatch

_KINDS: dict[type, Any] = {FewShot: FewShotMatch, Verifier: VerifierMatch}
"""What plays contenders that are no models with a rule."""


@dataclass
class Arena:
    """Scores one contender's answers.

    What the level is depends on the axis: ``test_time_compute`` trajectories a question; ``ood`` a test set;
    ``data_efficiency`` the questions that post-training learned from; ``flops_matched`` a share of what ReVISE's
    post-training spends; ``ablation`` trajectories a question.

    Attributes:
        n_votes: trajectories a question in ``vote_accuracy``, where the level does not say.
        n_bins: of the histograms of verification scores.
        n_transcripts: questions whose transcripts are shown, the first ones of the first seed.
        lm_eval_task, lm_eval_limit: of ``FewShot``, and of ``lm_eval_accuracy``: ``gsm8k`` or ``math``, and how many of its
            questions; all where None.
        lm_eval_tokens: of an answer there, at most.
    """

    METRICS: ClassVar[tuple[str, ...]] = (
        "accuracy", "vote_accuracy", "equal_tokens_accuracy", "tokens", "flops", "post_flops", "generations",
        "first_accuracy", "refine_rate", "fate", "auroc", "auroc_end", "auroc_within", "score_density", "unanswered",
        "calibration", "lm_eval_accuracy", "unused", "right_rows",
    )  # fmt: skip

    n_votes: PositiveInt = 8
    n_bins: PositiveInt = 10
    n_transcripts: NonNegativeInt = 6
    lm_eval_task: Literal["", "gsm8k", "math"] = ""
    lm_eval_limit: PositiveInt | None = None
    lm_eval_tokens: PositiveInt = 1024

    def play(self, task: Task) -> Outcome:
        """Play one match for one seed.

        The FLOPs of the outcome are those of post-training on ``flops_matched``, else those of answering a question.
        """
        match = _KINDS.get(type(task.contender), Match)(self, task)
        measurements, undefined = measure(match, task.metrics)
        return Outcome(
            measurements=measurements,
            flops=match.own_flops,
            flops_target=match.target,
            train_flops=match.train_flops,
            data_hash=match.data_hash,
            notes=match.notes,
            remarks=match.remarks,
            undefined=undefined,
            exhibits=match.exhibits() if task.seed == 0 else (),
        )


@torch.no_grad()
def preload() -> None:
    """Import what matches need, and take transformers' first steps.

    Methods by name: an import would make every match, those of baselines too, depend on their source.
    """
    for module in ("methods.revise.curriculum", "baselines.post_training.imitation", "baselines.post_training.dpo"):
        importlib.import_module(module)
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    LlamaForCausalLM(config)(torch.zeros(1, 2, dtype=torch.long))
