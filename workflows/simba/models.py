"""The models as bases: pretrained from scratch or taken from the hub, sized to a share of the FLOPs, or fine-tuned.

A dense partner is matched by its size. From scratch its width is solved so that its *counted* inference FLOPs, on one
item of each kind, are the wanted share of the parent's; from the hub it is the checkpoint of the family that comes nearest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from baselines.dense import Dense
from baselines.mamba import install
from baselines.next_token import Recipe, evaluate, train, window_order
from rematch.arena import BaseInfo, BaseJob
from rematch.budget import solve_knob
from rematch.errors import RematchError
from workflows.simba.corpus import load_tokenizer, load_windows
from workflows.simba.shapes import STANDARD, ItemShape, Shapes, total_flops

POINTER = "hub.json"
TUNING_STREAM = 1_000_000
"""Added to the seed, so that fine-tuning reads the windows in an order of its own."""
WIDTH_STEP = 8
"""Widths are multiples of this, so that vector instructions fit; the inner width then meets the FLOPs."""


@dataclass
class Pretrained:
    """A causal language model, trained on the corpus; one step of training is the same for all of a seed.

    Needs ``corpus``; with a share of the FLOPs also ``parent``, which it is measured against.

    Attributes:
        architecture: Mamba, or a Transformer (Llama).
        hidden_size: d, of a model without a share; with one it is solved for.
        n_layers: blocks.
        state_size: N, of Mamba.
        tokens: training tokens.
        recall_first: share of the training that reads recall documents alone, before code and recall are mixed.
        batch_size: windows in a step.
        learning_rate: its peak.
        checkpoint_every: steps between checkpoints of a long training, 0 for none.
        hub_id: a checkpoint of the hub instead of training.
        hub_family: checkpoints of which, with a share, the one nearest to its FLOPs is taken.
    """

    architecture: Literal["mamba", "transformer"] = "mamba"
    hidden_size: PositiveInt = 64
    n_layers: PositiveInt = 8
    state_size: PositiveInt = 8
    tokens: PositiveInt = 250_000
    recall_first: Annotated[float, Field(ge=0, le=1)] = 0.0
    batch_size: PositiveInt = 1
    learning_rate: PositiveFloat = 1e-2
    checkpoint_every: NonNegativeInt = 0
    hub_id: str | None = None
    hub_family: list[str] = field(default_factory=list)

    def build(self, job: BaseJob) -> BaseInfo:
        """Write the model into ``job.out``, as transformers saves it, or a pointer to it."""
        if self.hub_id or self.hub_family:
            return self._from_hub(job)
        corpus, shapes = job.needs["corpus"], Shapes.of(job.arena)
        vocab_size = len(load_tokenizer(corpus))
        torch.manual_seed(job.seed or 0)
        if job.share is None:
            model = self.model(vocab_size)
        else:
            kinds = [shapes.shape(kind) for kind in STANDARD]
            parent_flops = total_flops(dense(load_model(job.needs["parent"], job.hub)), kinds)
            model = self.model(vocab_size, job.share * parent_flops, kinds)
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
        windows = load_windows(corpus, "train")
        recipe = Recipe(
            steps=max(1, self.tokens // (self.batch_size * windows.shape[1])),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            checkpoint_every=self.checkpoint_every,
        )
        order = self._order(windows, recipe.steps * recipe.batch_size, job.seed or 0)
        run = train(model, windows, recipe, job.seed or 0, checkpoint=job.out / "checkpoint", order=order)
        validation = evaluate(model, load_windows(corpus, "validation")[:32])
        _save(model, job.out)
        return BaseInfo(
            train_flops=run.flops,
            samples_seen=run.windows,
            tokens_seen=run.tokens,
            notes=_size(model) | {"learning_rate": self.learning_rate, "validation_loss": validation},
        )

    def _order(self, windows: np.ndarray, n_drawn: int, seed: int) -> np.ndarray:
        """Recall documents first, then everything: what a curriculum of two stages reads, (n_drawn,)."""
        documents = np.flatnonzero((windows < 0).any(1))
        n_first = round(self.recall_first * n_drawn) if len(documents) else 0
        first = documents[window_order(len(documents), n_first, seed)] if n_first else documents[:0]
        return np.concatenate([first, window_order(len(windows), n_drawn - n_first, seed)])

    def model(self, vocab_size: int, target: float | None = None, shapes: Sequence[ItemShape] = ()) -> Any:
        """The untrained model; with a target as wide as its inference FLOPs on one item of each shape allow.

        The width takes the nearest of coarse steps; then the inner width meets the target.
        """
        make = _mamba if self.architecture == "mamba" else _transformer
        if target is None:
            return make(vocab_size, self.hidden_size, 2 * self.hidden_size, self.n_layers, self.state_size)

        @cache
        def flops(width: int, inner: int) -> float:
            with torch.random.fork_rng(devices=[]):  # sizing must not move the initial weights
                return total_flops(dense(make(vocab_size, width, inner, self.n_layers, self.state_size)), shapes)

        def at_width(steps: float) -> float:
            return flops(WIDTH_STEP * int(steps), 2 * WIDTH_STEP * int(steps))

        most = 1
        while at_width(most) < target:
            most *= 2
        width = WIDTH_STEP * int(solve_knob(at_width, target, max(1, most // 2), most, integer=True).value)
        while width > WIDTH_STEP and flops(width, width) > target:
            width -= WIDTH_STEP
        inner = int(solve_knob(lambda n: flops(width, int(n)), target, 1, 16 * width, integer=True).value)
        print(f"width {width}, inner width {inner} for {target:,.0f} FLOPs", flush=True)
        return make(vocab_size, width, inner, self.n_layers, self.state_size)

    def _from_hub(self, job: BaseJob) -> BaseInfo:
        hub_id = self.hub_id
        if job.share is not None and self.hub_family:
            kinds = [Shapes.of(job.arena).shape(kind) for kind in STANDARD]
            target = job.share * _checkpoint_flops(_checkpoint(job.needs["parent"], job.hub), kinds)
            found = {name: _checkpoint_flops(job.hub.model_path(name), kinds) / target for name in self.hub_family}
            hub_id = min(found, key=lambda name: abs(found[name] - 1))
            print("FLOPs over the target:", found, flush=True)
        if hub_id is None:
            raise RematchError(f"base '{job.name}': hub_family serves a base that is sized per share; else give hub_id")
        (job.out / POINTER).write_text(json.dumps({"hub_id": hub_id}) + "\n", encoding="utf-8")
        return BaseInfo(notes={"hub_id": hub_id})


@dataclass
class Tuned:
    """A model of another base after a short dense fine-tuning on the loss of the scored tokens (claim C7).

    Needs ``corpus`` and the base that it starts from. ``sparse_tuning`` has the sparse one, which reads the same windows.

    Attributes:
        tokens: training tokens.
        batch_size: windows in a step.
        learning_rate: its peak.
        checkpoint_every: steps between checkpoints, 0 for none.
    """

    tokens: PositiveInt = 40_000
    batch_size: PositiveInt = 1
    learning_rate: PositiveFloat = 1e-3
    checkpoint_every: NonNegativeInt = 0

    def build(self, job: BaseJob) -> BaseInfo:
        """Write the model into ``job.out``, as transformers saves it."""
        corpus, shapes = job.needs["corpus"], Shapes.of(job.arena)
        (origin,) = (folder for name, folder in job.needs.items() if name != "corpus")
        torch.manual_seed(job.seed or 0)
        model = load_model(origin, job.hub)
        tuned = self.contender(model, job, shapes)
        print(tuned.notes(), flush=True)
        windows = load_windows(corpus, "train")
        windows = windows[(windows >= 0).all(1)]  # no recall documents: the loss is on the end of every window
        recipe = Recipe(
            steps=max(1, self.tokens // (self.batch_size * windows.shape[1])),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            checkpoint_every=self.checkpoint_every,
        )

        def loss(ids: Tensor) -> Tensor:
            return tuned.loss(ids, shapes.n_scored)

        run = train(model, windows, recipe, TUNING_STREAM + (job.seed or 0), loss, job.out / "checkpoint")
        _save(model, job.out)
        return BaseInfo(
            train_flops=run.flops,
            samples_seen=run.windows,
            tokens_seen=run.tokens,
            notes=_size(model) | {"learning_rate": self.learning_rate, "final_loss": run.final_loss},
        )

    def contender(self, model: Any, job: BaseJob, shapes: Shapes) -> Any:
        """What is trained, by its ``loss``."""
        return dense(model)


def load_model(folder: Path, hub: Any = None) -> Any:
    """The transformers model of a base, in eval mode, on the GPU where there is one; Mamba on the fast scan."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(_checkpoint(folder, hub), dtype=torch.float32)
    model = model.to(device).eval()
    return install(model) if model.config.model_type == "mamba" else model


def hub_id_of(folder: Path) -> str | None:
    """The hub id that a base points to, or None for a model of our own."""
    pointer = folder / POINTER
    return json.loads(pointer.read_text(encoding="utf-8"))["hub_id"] if pointer.exists() else None


def _checkpoint(folder: Path, hub: Any) -> str:
    hub_id = hub_id_of(folder)
    return str(folder) if hub_id is None else hub.model_path(hub_id)


def _checkpoint_flops(checkpoint: str, shapes: Sequence[ItemShape]) -> float:
    """FLOPs of a checkpoint by its configuration alone: no weights are read."""
    with torch.device("meta"):
        return total_flops(dense(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint))), shapes)


def _mamba(vocab_size: int, width: int, inner: int, n_layers: int, state_size: int) -> Any:
    config = MambaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        state_size=state_size,
        num_hidden_layers=n_layers,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    config.intermediate_size = inner  # transformers offers whole multiples of the width only
    return install(MambaForCausalLM(config))


def _transformer(vocab_size: int, width: int, inner: int, n_layers: int, state_size: int) -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=n_layers,
            num_attention_heads=4,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def dense(model: Any) -> Dense:
    """The model as a contender."""
    contender = Dense()
    contender.prepare(model)
    return contender


def _save(model: Any, folder: Path) -> None:
    """Save the weights as safetensors; the checkpoints of the training are not needed any more."""
    model.save_pretrained(folder)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)


def _size(model: Any) -> dict[str, float]:
    config = model.config
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "n_layers": config.num_hidden_layers,
    }
