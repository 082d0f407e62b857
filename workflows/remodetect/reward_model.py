"""Sequence classifiers to start from: a reward model trained on preference pairs, a random one, or one of the hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from baselines.detectors.sequence import SequenceDetector, parameter_groups
from baselines.ngram import frequent_words
from rematch.arena import BaseInfo, BaseJob
from rematch.errors import RematchError
from rematch.flops import count_flops
from rematch.hub import Hub
from rematch.hub_models import check_model, load_config, load_tokenizer
from workflows.remodetect.language_models import device
from workflows.remodetect.texts import Row, read_rows
from workflows.remodetect.trunk import Architecture, HashedSizes, TransformerSizes, load_trunk, new_trunk

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
        hub_id: a model of the hub instead.
        hub_weights: what is taken of it: ``all``, of a classifier; the ``trunk``, with a head of one logit drawn from the
            seed; or ``none``: its architecture and tokenizer only, all weights drawn from the seed.
    """

    architecture: Architecture = "hashed"
    sizes: Annotated[dict[str, Any], HashedSizes, TransformerSizes] = field(default_factory=dict)
    vocab_size: PositiveInt = 3000
    epochs: NonNegativeInt = 20
    patience: PositiveInt = 4
    learning_rate: PositiveFloat = 1e-3
    batch_size: PositiveInt = 32
    hub_id: str | None = None
    hub_weights: Literal["all", "trunk", "none"] = "all"

    def build(self, job: BaseJob) -> BaseInfo:
        """Write the model and its tokenizer, or a pointer to the hub."""
        if self.hub_id:
            check_model(job.hub, self.hub_id, weights=self.hub_weights != "none")
            pointer = {"id": self.hub_id, "weights": self.hub_weights, "seed": job.seed or 0}
            (job.out / POINTER).write_text(json.dumps(pointer), encoding="utf-8")
            return BaseInfo(notes=pointer)
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
    right = 0
    for start in range(0, len(rows), 100):
        part = rows[start : start + 100]
        chosen, rejected = (model(**_encode(tokenizer, part, side)).logits[:, 0] for side in ("chosen", "rejected"))
        right += int((chosen > rejected).sum())
    return right / len(rows)


def load_detector(detector: SequenceDetector, folder: Path, hub: Hub | None) -> SequenceDetector:
    """A detector with the options of the one given, on the model of a base."""
    pointer = folder / POINTER
    if not pointer.is_file():
        return detector.attach(*load_trunk(folder)).to(device())
    found = json.loads(pointer.read_text(encoding="utf-8"))
    path = hub.model_path(found["id"]) if hub else found["id"]
    if found["weights"] == "all":
        return type(detector).from_pretrained(path, **detector.get_params()).to(device())
    return detector.attach(*_with_new_weights(path, found["weights"] == "trunk", found["seed"])).to(device())


def _with_new_weights(path: str, keep_trunk: bool, seed: int) -> tuple[Any, Any]:
    """A classifier with one logit and its tokenizer; what is not of the hub's trunk is drawn from the seed."""
    tokenizer = load_tokenizer(path)
    config = load_config(path, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    if tokenizer.pad_token is None:
        raise RematchError(f"{path}: its tokenizer has no padding token, which a new classifier of its texts needs")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not keep_trunk:
            return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32), tokenizer
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                path, config=config, dtype=torch.float32, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise RematchError(f"no trunk of a classifier can be loaded from '{path}': {error}") from error
    return model, tokenizer


def _encode(tokenizer: Any, rows: Sequence[Row], side: str) -> dict[str, Tensor]:
    texts = [row[side] for row in rows]
    return dict(tokenizer(texts, truncation=True, max_length=512, padding=True, return_tensors="pt").items())
