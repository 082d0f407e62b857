"""Sequence classifiers to start from: a reward model trained on preference pairs, a random one, or one of the hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.detectors.sequence import SequenceDetector, parameter_groups
from baselines.ngram import frequent_words
from rematch.arena import BaseInfo, BaseJob
from rematch.flops import count_flops
from rematch.hub import Hub
from workflows.remodetect.language_models import device
from workflows.remodetect.texts import Row, read_rows
from workflows.remodetect.trunk import Architecture, load_trunk, new_trunk

POINTER = "hub.json"


@dataclass
class RewardModel:
    """A text classifier with one logit. Needs ``texts``.

    Trained by the Bradley-Terry loss on preference pairs of unaligned samples, which say nothing of human and machine;
    after every epoch it is judged on a tenth of the pairs, and the best epoch's weights are kept.

    Attributes:
        architecture: a bag of hashed features, or a small transformer.
        sizes: what its config takes.
        vocab_size: words of the pairs that the transformer knows.
        epochs: over the pairs; 0 leaves the weights random.
        patience: epochs without improvement after which training ends.
        learning_rate: of AdamW, constant.
        batch_size: pairs in a step.
        hub_id: a classifier of the hub instead.
    """

    architecture: Architecture = "hashed"
    sizes: dict[str, Any] = field(default_factory=dict)
    vocab_size: int = 3000
    epochs: int = 20
    patience: int = 4
    learning_rate: float = 1e-3
    batch_size: int = 32
    hub_id: str | None = None

    def build(self, job: BaseJob) -> BaseInfo:
        """Write the model and its tokenizer, or a pointer to the hub."""
        if self.hub_id:
            job.hub.model_path(self.hub_id)  # a mirror that lacks it says so now
            (job.out / POINTER).write_text(json.dumps({"id": self.hub_id}), encoding="utf-8")
            return BaseInfo(notes={"hub_id": self.hub_id})
        torch.manual_seed(job.seed or 0)
        rows = read_rows(job.needs["texts"], "rewards")
        words = [row[side].lower().split() for row in rows for side in ("chosen", "rejected")]
        model, tokenizer = new_trunk(self.architecture, frequent_words(words, self.vocab_size), **self.sizes)
        info = self._train(model, tokenizer, rows, job.seed or 0) if self.epochs else BaseInfo()
        model.save_pretrained(job.out)
        tokenizer.save_pretrained(job.out)
        return info

    def _train(self, model: Any, tokenizer: Any, rows: Sequence[Row], seed: int) -> BaseInfo:
        n_held_out = max(1, len(rows) // 10)
        held_out, training = rows[:n_held_out], rows[n_held_out:]
        optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=self.learning_rate)
        rng = np.random.default_rng([seed, *b"reward model"])
        encoded = [_encode(tokenizer, training, side) for side in ("chosen", "rejected")]

        def loss(indices: np.ndarray) -> Tensor:
            chosen, rejected = (
                model(**{name: tensor[torch.from_numpy(indices)] for name, tensor in side.items()}).logits[:, 0]
                for side in encoded
            )
            return F.softplus(rejected - chosen).mean()

        first = np.arange(min(self.batch_size, len(training)))
        model.train()
        pair_flops = count_flops(loss, first, backward=True).total / len(first)
        best, state, epochs_since, epochs = -1.0, {}, 0, 0
        while epochs < self.epochs and epochs_since < self.patience:
            model.train()
            order = rng.permutation(len(training))
            for start in range(0, len(order), self.batch_size):
                loss(order[start : start + self.batch_size]).backward()
                optimizer.step()
                optimizer.zero_grad()
            epochs += 1
            accuracy = pair_accuracy(model, tokenizer, held_out)
            epochs_since = 0 if accuracy > best else epochs_since + 1
            if accuracy > best:
                best, state = accuracy, {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(state)
        read = epochs * len(training)
        return BaseInfo(
            train_flops=pair_flops * read,
            samples_seen=2 * read,
            tokens_seen=epochs * int(sum(side["attention_mask"].sum() for side in encoded)),
            notes={"held_out_accuracy": best, "epochs": epochs},
        )


@torch.no_grad()
def pair_accuracy(model: Any, tokenizer: Any, rows: Sequence[Row]) -> float:
    """Share of preference pairs whose chosen text gets the higher reward."""
    model.eval()
    chosen, rejected = (
        model(**_encode(tokenizer, rows, side)).logits[:, 0] for side in ("chosen", "rejected")
    )
    return float((chosen > rejected).double().mean())


def load_detector(detector: SequenceDetector, folder: Path, hub: Hub | None) -> SequenceDetector:
    """A detector with the options of the one given, on the model of a base."""
    pointer = folder / POINTER
    if not pointer.is_file():
        return detector.attach(*load_trunk(folder))
    model_id = json.loads(pointer.read_text(encoding="utf-8"))["id"]
    path = hub.model_path(model_id) if hub else model_id
    return type(detector).from_pretrained(path, **detector.get_params()).to(device())


def _encode(tokenizer: Any, rows: Sequence[Row], side: str) -> dict[str, Tensor]:
    texts = [row[side] for row in rows]
    return dict(tokenizer(texts, truncation=True, max_length=512, padding=True, return_tensors="pt").items())
