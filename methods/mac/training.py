"""Meta-training: a step's documents are its memory, and the answers' likelihood is the only loss.

Every question is answered from all documents of its memory, so that each document is a distractor for the others' questions (the paper's objective; optimisation after the official code).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn

from baselines.checkpoints import resume, save
from baselines.next_token import window_order
from baselines.qa import QAPair
from methods.mac.batches import Batch
from methods.mac.config import at_least
from methods.mac.dropout import BackpropDropout, GradientMask
from rematch.errors import RematchError
from rematch.flops import count_flops

if TYPE_CHECKING:
    from methods.mac.model import MAC

Example = tuple[str, Sequence[QAPair]] | tuple[str, Sequence[QAPair], Sequence[str]]
"""A document and the questions that it answers, at least one; also, where the language model reads something else in place
of the questions, that (the prompts of ``MAC.encode``)."""


@dataclass(frozen=True)
class Recipe:
    """How MAC is meta-trained: Adam without weight decay, warm-up, then a constant rate (official code).

    A RematchError says what is out of bounds.

    Attributes:
        steps: optimizer steps; 0 for none.
        documents: K, documents of a memory, distractors of back-propagation dropout included; or ((from step, K), ...) to
            let it grow, which the paper does not.
        banks: memories of K documents in a step, computed side by side, as on several GPUs in the official code.
        learning_rate: 1e-5 in the paper, 1e-4 for DistilGPT2.
        encoder_rate: the rate of the two encoders, as a share of that of what is trained from scratch; 1 in the paper, 0 to
            leave them as they are.
        warmup: share of the steps over which the rate rises linearly from 0.
        clip: largest norm of the gradient.
        accumulation: batches of K documents in a step.
        dropout: back-propagation dropout.
        hierarchy_aware: probability that a batch's modulations are aggregated a second time, as if they were the memory
            (official code only).
        checkpoint_every: steps between checkpoints, 0 for none.
    """

    steps: NonNegativeInt
    documents: PositiveInt | Sequence[tuple[NonNegativeInt, PositiveInt]]
    learning_rate: PositiveFloat
    banks: PositiveInt = 1
    encoder_rate: NonNegativeFloat = 1.0
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.01
    clip: PositiveFloat = 100.0
    accumulation: PositiveInt = 1
    dropout: BackpropDropout = field(default_factory=BackpropDropout)
    hierarchy_aware: Annotated[float, Field(ge=0, le=1)] = 0.0
    checkpoint_every: NonNegativeInt = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("banks", 1), ("accumulation", 1), ("checkpoint_every", 0)):
            at_least(least, "Recipe", name, getattr(self, name))
        growing = self.documents if isinstance(self.documents, Sequence) else ((0, self.documents),)
        for _, k in growing:
            at_least(1, "Recipe", "documents", k)
        for name, value in (("learning_rate", self.learning_rate), ("clip", self.clip)):
            if not value > 0:
                raise RematchError(f"Recipe: {name}: {value}; allowed: more than 0")
        if not self.encoder_rate >= 0:
            raise RematchError(f"Recipe: encoder_rate: {self.encoder_rate}; allowed: 0 or more")
        if not 0 <= self.warmup <= 1:
            raise RematchError(f"Recipe: warmup: {self.warmup}; allowed: 0 to 1, a share of the steps")
        if 0 not in dict(growing):
            raise RematchError(
                "Recipe: documents that grow are ((0, K), (step, K), ...): say how many there are at step 0"
            )
        if not 0 <= self.hierarchy_aware <= 1:
            raise RematchError(f"Recipe: hierarchy_aware is a probability, not {self.hierarchy_aware}")
        if self.banks > 1 and (self.dropout.p or self.hierarchy_aware):
            raise RematchError("Recipe: bp_dropout and hierarchy_aware are of one memory a step: banks = 1")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.learning_rate * min(1.0, (step + 1) / max(1, round(self.warmup * self.steps)))

    def documents_at(self, step: int) -> int:
        """K of a step, counted from 0."""
        if isinstance(self.documents, int):
            return self.documents
        return [k for start, k in sorted(self.documents) if start <= step][-1]

    def n_documents(self, until: int | None = None) -> int:
        """Documents of the first ``until`` steps, of all where None."""
        return (
            sum(self.documents_at(step) for step in range(self.steps if until is None else until))
            * self.accumulation
            * self.banks
        )


@dataclass
class Training:
    """What a training run cost and how it went.

    Attributes:
        flops: counted floating-point operations, forward and backward.
        documents, questions: read, repeats included.
        tokens: of these documents, and of these questions with their answers.
        losses: of each step, those before an interruption included, in nats a token.
    """

    flops: float = 0.0
    documents: int = 0
    questions: int = 0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)

    @property
    def final_loss(self) -> float:
        """The mean over the last tenth of the steps."""
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(tail) / len(tail) if tail else math.nan


def train(
    mac: MAC,
    examples: Sequence[Example],
    recipe: Recipe,
    seed: int,
    checkpoint: Path | None = None,
    after_step: Callable[[int, float], None] | None = None,
    order: Sequence[int] | None = None,
) -> Training:
    """Train in place; the model is left in eval mode and its language model as it was.

    Args:
        seed: of the order of the examples (every pass over them is a new permutation) and of all draws. Dropout, if any,
            draws from torch's own generator, which is seeded with it.
        checkpoint: a folder from which an interrupted run is resumed, and into which checkpoints are written.
        after_step: called with the number of steps done and the loss of the last one.
        order: the examples that are read, ``recipe.n_documents()`` of them, where it is not for the seed to say.
    """
    read = window_order(len(examples), recipe.n_documents(), seed) if order is None else np.asarray(order)
    if len(read) != recipe.n_documents():
        raise RematchError(f"order: {len(read)} examples, and the recipe reads {recipe.n_documents()}")
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    networks = dict(mac.networks())
    shares = {name: recipe.encoder_rate if ".backbone." in name else 1.0 for name in networks}
    groups = [
        {"params": [networks[name] for name in networks if shares[name] == share], "share": share}
        for share in sorted(set(shares.values()))
    ]
    optimizer = torch.optim.Adam(groups, lr=recipe.learning_rate, fused=True)
    digest = hashlib.sha256(repr((list(examples), read.tolist())).encode("utf-8", "surrogatepass")).hexdigest()
    run = json.dumps({"recipe": asdict(recipe), "seed": seed, "examples": digest}, sort_keys=True)
    before = resume(checkpoint, run, networks, optimizer, {"draws": generator}) if checkpoint else None
    done = Training(**before or {})
    first = len(done.losses)
    drawn = recipe.n_documents(first)
    known: dict[tuple[int, ...], int] = {}
    began = time.perf_counter()
    mac.train()

    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step) * group["share"]
        k, total = recipe.documents_at(step) * recipe.banks, 0.0
        for _ in range(recipe.accumulation):
            chosen = [examples[i] for i in read[drawn : drawn + k]]
            drawn += k
            batch = mac.encode([each[0] for each in chosen], [each[1] for each in chosen], _prompts(chosen))
            mask = recipe.dropout.draw(k, generator)
            twice = recipe.hierarchy_aware > 0 and torch.rand((), generator=generator).item() < recipe.hierarchy_aware
            asked = batch if mask is None or mask.asks is None else batch.asking_about(mask.asks.to(batch.gold.device))
            done.flops += _flops(mac, asked, mask, twice, recipe.banks, known)
            done.documents, done.questions = done.documents + k, done.questions + len(asked.gold)
            done.tokens += asked.n_tokens
            loss = mac(batch, mask, twice, recipe.banks) / recipe.accumulation
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(networks.values(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        done.losses.append(total)
        n_done = step + 1
        if n_done % max(1, recipe.steps // 10) == 0:
            recent = done.losses[-max(1, recipe.steps // 10) :]
            pace = (time.perf_counter() - began) / (n_done - first)
            print(
                f"step {n_done}/{recipe.steps}: loss {sum(recent) / len(recent):.4f}, {1e3 * pace:.0f} ms a step",
                flush=True,
            )
        if checkpoint and recipe.checkpoint_every and n_done % recipe.checkpoint_every == 0 and n_done < recipe.steps:
            save(checkpoint, run, networks, optimizer, asdict(done), {"draws": generator})
        if after_step:
            training = mac.training
            after_step(n_done, total)
            mac.train(training)
    mac.eval()
    return done


def _prompts(examples: Sequence[Example]) -> list[str]:
    """What the language model reads for each question of the examples."""
    prompts: list[str] = []
    for _, pairs, *others in examples:
        own = list(others[0]) if others else [pair.question for pair in pairs]
        if len(own) != len(pairs):
            raise RematchError(f"an example has {len(pairs)} questions and {len(own)} prompts: each needs one")
        prompts += own
    return prompts


def _flops(
    mac: MAC, batch: Batch, mask: GradientMask | None, twice: bool, n_banks: int, known: dict[tuple[int, ...], int]
) -> int:
    """FLOPs of a step, counted once a shape."""
    most = int((batch.gold // (len(batch.documents) // n_banks)).bincount().max())
    n_graded = len(batch.documents) if mask is None else int(mask.carries.sum())
    key = (*batch.documents.shape, *batch.questions.shape, *batch.qa.input_ids.shape, n_graded, int(twice), most)
    if key not in known:
        known[key] = count_flops(mac, batch, mask, twice, n_banks, backward=True).total
    return known[key]
