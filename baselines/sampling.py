"""Batched sampling from a causal language model with a key/value cache and one random stream a row.

What a row becomes is a function of its tokens, the settings and its own stream: the first of k samples are the same whatever
k is, and batches may be as large as memory allows. (Up to rounding: logits of a batch of another size may differ in their
last bits, which moves a token where its draw falls on the border between two.) ``generate`` of transformers has one stream
for all rows, and tells neither what it cost nor how probable a token was.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor
from transformers import DynamicCache

from baselines.decoding import Stepper, positions
from baselines.qa import full_precision
from baselines.transformer_flops import transformer_flops
from rematch.errors import RematchError

Stream = tuple[int, ...]
"""What a row's random numbers are drawn with, besides the seed; not negative."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: that logits are divided by; 0: greedy, ties to the first token.
        top_p: tokens are drawn from the smallest set of most probable ones that has this probability.
        max_new_tokens: at most, the stop token included.
    """

    temperature: NonNegativeFloat = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: PositiveInt = 1024

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_new_tokens < 1:
            raise RematchError(
                "Sampling: temperature must not be negative, top_p must lie in (0, 1], max_new_tokens must be at least 1; got "
                f"{self.temperature}, {self.top_p}, {self.max_new_tokens}"
            )


@dataclass(frozen=True)
class Sample:
    """The continuation of one row.

    Attributes:
        ids: without the token that stopped it.
        stop: that token; None for a continuation that was cut, by ``max_new_tokens`` or by the end of the model's context.
        log_prob: of ``ids``, summed over them, at temperature 1 over the full vocabulary.
        watched: probabilities, at temperature 1 over the full vocabulary, of the watched tokens in the place of ``stop``;
            of a cut continuation in the place of its last token.
    """

    ids: tuple[int, ...]
    stop: int | None
    log_prob: float
    watched: tuple[float, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens generated, the stop token included."""
        return len(self.ids) + (self.stop is not None)


def context_length(model: Any) -> int | None:
    """The most tokens that the model can read; None where its config names no such number."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return None if length is None else int(length)


def check_prompts(prompts: Sequence[Sequence[int]], limit: int | None) -> None:
    """Raise RematchError for an empty prompt, or one of more than ``limit`` tokens."""
    for i, prompt in enumerate(prompts):
        if not len(prompt) or (limit is not None and len(prompt) > limit):
            raise RematchError(
                f"prompt {i} has {len(prompt)} tokens; a model continues at least 1 and at most what its context holds"
                + (f", {limit}" if limit else "")
            )


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop: Collection[int],
    seed: int = 0,
    streams: Sequence[Stream] | None = None,
    watch: Sequence[int] = (),
    batch_size: int = 128,
    progress: str = "",
) -> tuple[list[Sample], int]:
    """Continue every prompt until one of the tokens ``stop``; the samples, and the FLOPs that were run.

    Args:
        model: a transformers causal LM; evaluated, its mode is put back.
        prompts: token ids, at least one each. Equal prompts in a batch are read once.
        streams: one a prompt; its place among the prompts where None. Equal prompts with equal streams get equal samples.
        watch: token ids of ``Sample.watched``.
        batch_size: rows at once.
        progress: what a progress bar on standard error is called; no bar where empty.

    Raises:
        RematchError: an empty prompt, or one that is longer than the model's context.
    """
    limit = context_length(model)
    check_prompts(prompts, limit)
    streams = [(i,) for i in range(len(prompts))] if streams is None else streams
    was_training = model.training
    model.eval()
    # Longest first: what does not fit into memory fails at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    found: dict[int, Sample] = {}
    flops = 0
    for first in _track(range(0, len(order), batch_size), progress):
        part = order[first : first + batch_size]
        batch = _Batch(model, [tuple(prompts[i]) for i in part], sampling, limit)
        uniform = (
            _uniform(seed, [streams[i] for i in part], batch.room).to(model.device) if sampling.temperature else None
        )
        samples = batch.run(uniform, sorted(stop), list(watch))
        found |= dict(zip(part, samples, strict=True))
        flops += batch.flops
    model.train(was_training)
    return [found[i] for i in range(len(prompts))], flops


class _Batch:
    """Rows that are continued together, padded on the left."""

    def __init__(self, model: Any, prompts: list[tuple[int, ...]], sampling: Sampling, limit: int | None) -> None:
        self.model, self.prompts, self.sampling, self.limit = model, prompts, sampling, limit
        longest = sampling.max_new_tokens
        # One more than fits into the context: nothing reads the last token.
        rooms = [longest if limit is None else min(longest, limit - len(prompt) + 1) for prompt in prompts]
        self.room = max(rooms)
        self.rooms = torch.tensor(rooms, device=model.device)
        self.costs, self.flops = transformer_flops(model), 0

    def run(self, uniform: Tensor | None, stop: list[int], watch: list[int]) -> list[Sample]:
        """The continuation of every row, from uniform numbers (rows, tokens) or greedy."""
        n, device = len(self.prompts), self.model.device
        step, logits = self._read_prompts()
        stops = torch.tensor(stop, device=device)
        ids = torch.full((n, self.room), -1, device=device)
        scores = torch.zeros(n, self.room, dtype=torch.float64, device=device)
        watched = torch.zeros(n, len(watch), dtype=torch.float64, device=device)
        rows = torch.arange(n, device=device)  # that the batch still holds
        going = torch.ones(n, dtype=torch.bool, device=device)  # of these
        for place in range(self.room):
            log_probs = torch.log_softmax(full_precision(logits), -1)
            tokens = self._choose(log_probs, None if uniform is None else uniform[rows, place])
            live = rows[going]
            ids[live, place] = tokens[going]
            scores[live, place] = log_probs.gather(1, tokens[:, None])[going, 0].double()
            watched[live] = log_probs[:, watch][going].double().exp()
            going = going & ~torch.isin(tokens, stops) & (self.rooms[rows] > place + 1)
            n_going = int(going.sum())
            if not n_going:
                break
            if n_going <= len(rows) // 2:  # Copying the cache for every row that ends would cost more than it saves.
                step.select(going.nonzero()[:, 0])
                rows, tokens, going = rows[going], tokens[going], going[going]
            if self.limit is not None:
                step.position.clamp_max_(self.limit - 1)  # of rows that have come to an end
            self.flops += self.costs.forward(len(rows), 1, step.mask.shape[1] + 1)
            logits = step(tokens)
        return [_sample(*row, stop) for row in zip(ids.tolist(), scores.tolist(), watched.tolist(), strict=True)]

    def _read_prompts(self) -> tuple[Stepper, Tensor]:
        """Every different prompt once, then a row for each; the logits of what follows, (rows, V)."""
        unique = list(dict.fromkeys(self.prompts))
        longest = max(map(len, unique))
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in unique], device=self.model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in unique], device=self.model.device)
        cache = DynamicCache(config=self.model.config)
        logits = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions(mask),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self.flops += self.costs.forward(len(unique), longest, None, 1)
        step = Stepper(self.model, cache, mask)
        if len(unique) < len(self.prompts):
            place = {prompt: i for i, prompt in enumerate(unique)}
            rows = torch.tensor([place[prompt] for prompt in self.prompts], device=self.model.device)
            step.select(rows)
            logits = logits[rows]
        return step, logits

    def _choose(self, log_probs: Tensor, uniform: Tensor | None) -> Tensor:
        """A token a row: the most probable one, or by inversion of the distribution function at ``uniform`` (rows,)."""
        if uniform is None:
            return log_probs.argmax(-1)
        probs = torch.softmax(log_probs.double() / self.sampling.temperature, -1)
        if self.sampling.top_p == 1:
            return _invert(probs, uniform)
        probs, tokens = probs.sort(dim=-1, descending=True, stable=True)
        # A token stays if those before it have not got the mass yet: the first always does.
        probs = torch.where(probs.cumsum(-1) - probs < self.sampling.top_p, probs, 0.0)
        return tokens.gather(1, _invert(probs, uniform)[:, None])[:, 0]


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """The index (rows,) at which the running sum of weights (rows, V) first exceeds the share ``uniform`` of their total."""
    sums = weights.cumsum(-1)
    return torch.searchsorted(sums, uniform[:, None] * sums[:, -1:], right=True)[:, 0].clamp_max(weights.shape[1] - 1)


def _uniform(seed: int, streams: Sequence[Stream], n_tokens: int) -> Tensor:
    """Uniform numbers (rows, tokens), each row from its own stream."""
    # The length of the stream goes in first: numpy pads keys with zeros, which would make (1,) and (1, 0) the same.
    rows = [np.random.default_rng((seed, len(stream), *stream)).random(n_tokens) for stream in streams]
    return torch.from_numpy(np.stack(rows))


def _sample(ids: list[int], scores: list[float], watched: list[float], stop: list[int]) -> Sample:
    ids = ids[: ids.index(-1)] if -1 in ids else ids
    last = ids[-1] if ids[-1] in stop else None
    ids = ids if last is None else ids[:-1]
    return Sample(tuple(ids), last, math.fsum(scores[: len(ids)]), tuple(watched))


def _track(batches: Sequence[int], description: str) -> Any:
    if not description:
        return batches
    from rich.console import Console
    from rich.progress import track

    return track(batches, description, console=Console(stderr=True))
