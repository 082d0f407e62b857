"""ReMoDetect: a reward model, fine-tuned to prefer aligned LLMs' texts over mixed over human ones.

A pretrained reward model separates the two already (``finetune=False``); training sharpens it and a replay penalty keeps
its scores on the texts of its own preference data where they were.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from baselines.detectors import texts as rows
from baselines.detectors.sequence import Passes, TrainedDetector
from methods.remodetect.loss import OFFICIAL, PAPER, LossWeights, remodetect_loss
from rematch.errors import RematchError

PRESETS = {"paper": PAPER, "official": OFFICIAL}

Triplet = tuple[str, str | None, str]
"""LLM text, human text partly rephrased by an LLM (None where nothing could be rephrased), human text."""


@dataclass(eq=False)
class ReMoDetector(TrainedDetector):
    """ReMoDetect on a sequence classifier with one logit; its score is the reward of the text alone, without a prompt.

    Attributes:
        preset: the weights of the loss: ``paper`` (the text) or ``official`` (the released code). Each of the next six is
            the preset's where None; see ``methods.remodetect.loss.LossWeights``.
        n_without_mixed_: triplets of the last ``fit`` that have no mixed text, or one that equals the human text; they
            train with their LLM/human term only.
    """

    preset: Literal["paper", "official"] = "paper"
    beta1: NonNegativeFloat | None = None
    beta2: NonNegativeFloat | None = None
    lam: NonNegativeFloat | None = None
    score_penalty: NonNegativeFloat | None = None
    normalise: Literal["sum", "mean3"] | None = None
    replay_reduction: Literal["mean", "sum"] | None = None

    n_without_mixed_: int = field(default=0, init=False, repr=False)

    def _check(self) -> None:
        super()._check()
        if self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {self.preset!r}")
        _ = self.weights

    @property
    def weights(self) -> LossWeights:
        """The preset with the weights that were given in its place."""
        given: dict[str, Any] = {name: getattr(self, name) for name in asdict(PAPER)}
        return replace(PRESETS[self.preset], **{name: value for name, value in given.items() if value is not None})

    def fit(self, triplets: Sequence[Triplet], replay: Sequence[object] = ()) -> Self:
        """Train the attached model in place, with a frozen copy of it as the teacher of the replay texts.

        Triplets and replay texts are shuffled and read side by side. An epoch ends with the shorter of the two; each
        epoch shuffles both anew. What has no weight is not run: with lam = 0 there is no teacher and replay texts are
        not read, with beta1 = beta2 = 0 mixed texts are not read.

        Raises:
            RematchError: no triplet that can be trained on, or no replay text and lam > 0.
        """
        weights = self.weights
        kept, self.n_dropped_ = _readable(triplets)
        self.n_without_mixed_ = sum(mixed is None for _, mixed, _ in kept)
        buffer = [text for text, status in zip(*rows.read_all(replay), strict=True) if status == rows.OK]
        sizes = [len(kept)]
        teacher: nn.Module | None = None
        if self.finetune and weights.reads_replay:
            if not buffer:
                raise RematchError("ReMoDetector.fit: replay texts are needed unless lam = 0")
            sizes.append(len(buffer))
            self._check_attached()
            teacher = self.model if self._cost is not None else self._frozen_copy()  # a planner runs neither

        def loss(passes: Passes, indices: np.ndarray, replayed: np.ndarray | None = None) -> Tensor:
            batch = [kept[i] for i in indices]
            llm, human = [triplet[0] for triplet in batch], [triplet[2] for triplet in batch]
            mixed = [triplet[1] for triplet in batch if triplet[1] is not None] if weights.reads_mixed else []
            again = [] if replayed is None else [buffer[i] for i in replayed]
            r_llm, r_human, r_mixed, r_replay = passes.trained(llm, human, mixed, again)
            with_mixed = [i for i, triplet in enumerate(batch) if triplet[1] is not None]
            return remodetect_loss(
                r_llm,
                r_human,
                r_mixed,
                r_replay,
                None if teacher is None else passes.frozen(teacher, again),
                mixed_rows=torch.tensor(with_mixed, dtype=torch.long, device=r_llm.device),
                weights=weights,
            )

        self._train(sizes, loss)
        return self

    def _frozen_copy(self) -> nn.Module:
        """The teacher: in eval mode, without gradients."""
        return copy.deepcopy(self.model).eval().requires_grad_(False)


def _readable(triplets: Sequence[Triplet]) -> tuple[list[Triplet], int]:
    """The triplets that can be trained on, and how many cannot; a mixed text that says nothing becomes None."""
    kept: list[Triplet] = []
    for llm, mixed, human in triplets:
        (llm, llm_status), (human, human_status) = rows.read(llm), rows.read(human)
        if llm_status == human_status == rows.OK:
            text, status = rows.read(mixed)
            kept.append((llm, text if status == rows.OK and text != human else None, human))
    return kept, len(triplets) - len(kept)
