"""Online fine-tuning: one step of Adam on every document of a stream, on a weighted next-token loss.

What differs between the baselines is the weighting: ``uniform``, ``salient`` (Guu et al., 2020), ``given`` (TF-IDF), or a
``WeightNet`` (CaMeLS).
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.online.documents import Document
from baselines.online.memory import SavedBytes
from baselines.qa import full_precision
from rematch.errors import RematchError
from rematch.flops import count_flops

WeightsFn = Callable[[Document], Tensor]
"""The weight of every token of a document, (n,); the first one's is not used, since nothing predicts it."""


def uniform(document: Document) -> Tensor:
    """Weight 1 for every token."""
    return torch.ones(document.input_ids.shape, device=document.input_ids.device)


def salient(document: Document) -> Tensor:
    """Weight 1 for the tokens of salient spans, 0 for the others.

    Raises:
        RematchError: spans were not looked for.
    """
    if document.salient is None:
        raise RematchError("Salient Spans needs documents whose spans are known: give encode_documents a spans_fn")
    return document.salient.float()


def given(document: Document) -> Tensor:
    """The weights that the document has.

    Raises:
        RematchError: it was not weighed.
    """
    if document.weights is None:
        raise RematchError("this weighting needs documents that were weighed: give encode_documents a weigh_fn")
    return document.weights


def weighted_loss(
    model: Any,
    input_ids: Tensor,
    weights: Tensor,
    attention_mask: Tensor | None = None,
    n_positions: int | None = None,
) -> Tensor:
    """The weighted cross-entropy of the next tokens in nats: a scalar (official code of CaMeLS).

    It is the mean over all positions, those of weight 0 and of padding included: padding a text makes its loss smaller.

    Args:
        model: a transformers causal LM.
        input_ids: (B, n).
        weights: (B, n), 0 for padding; the first column is not used.
        attention_mask: (B, n), 1 for tokens; None where nothing is padded.
        n_positions: the length, tokens and padding, that the mean counts on, where it is more than n: the loss is then that
            of rows padded so far, without the work.
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    batch, n = input_ids.shape
    losses = F.cross_entropy(
        full_precision(logits[:, :-1]).reshape(batch * (n - 1), -1), input_ids[:, 1:].flatten(), reduction="none"
    )
    n_positions = n if n_positions is None else n_positions
    if n_positions < n:
        raise RematchError(f"a document of {n} tokens is longer than the {n_positions} positions that count")
    return (losses.view(batch, n - 1) * weights[:, 1:]).sum() / (batch * (n_positions - 1))


@dataclass
class AdaptationCost:
    """What adapting to a stream took.

    Attributes:
        steps: documents read, those read again included.
        tokens: tokens read.
        flops: of weights, loss and gradients; ``OnlineFinetuner.flops`` counts them when it is asked, so its own cost has none.
        saved_bytes: the most that any one document kept for the backward pass.
        state_bytes: gradients and the optimizer's state.
        seconds: wall time, counting left out.
    """

    steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    saved_bytes: int = 0
    state_bytes: int = 0
    seconds: float = 0.0


class OnlineFinetuner:
    """Fine-tunes a language model on documents as they come; ``adapt(a)`` and ``adapt(b)`` are ``adapt(a + b)``.

    Attributes:
        cost: so far.
    """

    def __init__(
        self,
        model: Any,
        weights_fn: WeightsFn,
        learning_rate: float,
        clip: float = 750.0,
        n_positions: int | None = None,
        seed: int = 0,
    ) -> None:
        """
        Args:
            model: a transformers causal LM, changed in place; its dropout is on while it adapts (official code).
            weights_fn: ``uniform``, ``salient``, ``given``, ``WeightNet.weigh`` or another.
            learning_rate: Adam's.
            clip: largest norm of a document's gradient.
            n_positions: see ``weighted_loss``; None: every document's own length. The official code pads all documents to
                1,024 tokens.
            seed: of dropout.
        """
        self.model, self.weights_fn, self.clip, self.n_positions, self.seed = (
            model, weights_fn, clip, n_positions, seed,
        )  # fmt: skip
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate, fused=True)
        self.cost = AdaptationCost(state_bytes=3 * sum(p.numel() * p.element_size() for p in self.parameters))
        self._flops: dict[int, int] = {}
        self._samples: dict[int, Document] = {}  # by length
        self._read: Counter[int] = Counter()

    @property
    def flops(self) -> float:
        """Spent so far on weights, loss and gradients; counted once a length, when asked for, and multiplied."""
        return float(sum(times * self.flops_of(self._samples[n]) for n, times in self._read.items()))

    def adapt(self, documents: Sequence[Document]) -> None:
        """One step on each document, in order. The model is left in evaluation mode."""
        self.model.train()
        device = self.model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for document in documents:
                self._step(document.to(device))
        self.model.eval()

    def _step(self, document: Document) -> None:
        n = len(document.input_ids)
        new = n not in self._samples
        self._samples.setdefault(n, document)
        self._read[n] += 1
        began = time.perf_counter()
        _seed(document.input_ids.device, self.seed, self.cost.steps)
        weights = self._weights(document)
        if new:
            with SavedBytes(itertools.chain(self.model.parameters(), self.model.buffers())) as saved:
                loss = self._loss(document, weights)
            self.cost.saved_bytes = max(self.cost.saved_bytes, saved.total)
        else:
            loss = self._loss(document, weights)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.cost.seconds += time.perf_counter() - began
        self.cost.steps += 1
        self.cost.tokens += n

    def flops_of(self, document: Document) -> int:
        """What a step on a document costs.

        A transformer's cost is so much for every token and every pair of tokens: counted at four lengths, and for others read
        off the parabola through three of them, if that is right about the fourth.
        """
        n = len(document.input_ids)
        if n not in self._flops:
            lengths = list(self._flops)[:4]
            fits = len(lengths) == 4 and self._parabola(lengths[:3], lengths[3]) == self._flops[lengths[3]]
            self._flops[n] = int(self._parabola(lengths[:3], n)) if fits else self._count(document)
        return self._flops[n]

    def _count(self, document: Document) -> int:
        weighing = count_flops(self._weights, document).forward
        weights = self._weights(document)
        return weighing + count_flops(self._loss, document, weights, backward=True).total

    def _parabola(self, through: Sequence[int], n: int) -> Fraction:
        """Lagrange's polynomial through the FLOPs of three lengths, at another one."""
        value = Fraction(0)
        for a in through:
            term = Fraction(self._flops[a])
            for b in through:
                if b != a:
                    term *= Fraction(n - b, a - b)
            value += term
        return value

    @torch.no_grad()
    def _weights(self, document: Document) -> Tensor:
        return self.weights_fn(document)

    def _loss(self, document: Document, weights: Tensor) -> Tensor:
        return weighted_loss(self.model, document.input_ids[None], weights[None], n_positions=self.n_positions)


def _seed(device: torch.device, seed: int, step: int) -> None:
    """Seed the device's generator. (``torch.manual_seed`` does more: without a GPU it queues a call for every later one.)"""
    generator = torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
    generator.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))


def online_finetune(
    model: Any,
    documents: Sequence[Document],
    weights_fn: WeightsFn,
    learning_rate: float,
    epochs: int = 1,
    clip: float = 750.0,
    n_positions: int | None = None,
    seed: int = 0,
) -> AdaptationCost:
    """Fine-tune a language model in place on a stream, ``epochs`` times in the same order (the papers: once).

    The other arguments are those of ``OnlineFinetuner``, which also adapts in several parts.
    """
    finetuner = OnlineFinetuner(model, weights_fn, learning_rate, clip, n_positions, seed)
    for _ in range(epochs):
        finetuner.adapt(documents)
    return replace(finetuner.cost, flops=finetuner.flops)
