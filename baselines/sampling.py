"""Batched sampling from a causal language model with a key/value cache and one random stream a row.

What a row becomes is a function of its tokens, the settings and its own stream: the first of k samples are the same whatever
k is, and batches may be as large as memory allows. (Up to rounding: logits of a batch of another size may differ in their
last bits, which moves a token where its draw falls on the border between two.) ``generate`` of transformers has one stream
for all rows, and tells neither what it cost nor how probable a token was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from itertools import groupby
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor
from transformers import DynamicCache

from baselines.decoding import Stepper, positions
from baselines.qa import full_precision
from baselines.transformer_flops import TransformerFlops, transformer_flops
from rematch.errors import RematchError
from rematch.flops import FlopCount, count_flops

Stream = tuple[int, ...]
"""What a row's random numbers are drawn with, besides the seed; not negative."""

Costs = TransformerFlops | Callable[..., FlopCount] | None
"""What passes cost: a formula, or a counter that runs them, or nothing that could be told."""

_UNKNOWN: Any = math.nan


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
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1 or self.max_new_tokens < 1:
            raise RematchError(
                "Sampling: temperature must be a number and not negative, top_p must lie in (0, 1], max_new_tokens must be at "
                f"least 1; got {self.temperature}, {self.top_p}, {self.max_new_tokens}"
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

    A model without a key/value cache (Mamba) reads a row anew for every token, beside rows as long as it alone. Where its cost is
    no formula (``transformer_flops``) its passes are counted one by one; the FLOPs are NaN if that cannot be done.

    Raises:
        RematchError: an empty prompt, one that is longer than the model's context, or no room for a row in a batch.
    """
    limit = context_length(model)
    check_prompts(prompts, limit)
    if batch_size < 1:
        raise RematchError(f"sample: batch_size is the number of rows at once, at least 1, not {batch_size}")
    streams = [(i,) for i in range(len(prompts))] if streams is None else streams
    was_training = model.training
    model.eval()
    # Longest first: what does not fit into memory fails at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    found: dict[int, Sample] = {}
    flops = 0
    cached = _takes_cache(model)
    # What has no cache may know no padding either.
    together = [order] if cached else [list(group) for _, group in groupby(order, key=lambda i: len(prompts[i]))]
    parts = [some[first : first + batch_size] for some in together for first in range(0, len(some), batch_size)]
    costs = _costs(model) if parts else None
    for part in _track(parts, progress):
        batch = _Batch(model, [tuple(prompts[i]) for i in part], sampling, limit, cached, costs)
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

    def __init__(
        self,
        model: Any,
        prompts: list[tuple[int, ...]],
        sampling: Sampling,
        limit: int | None,
        cached: bool,
        costs: Costs,
    ) -> None:
        self.model, self.prompts, self.sampling, self.limit = model, prompts, sampling, limit
        self.cached, self.costs, self.flops = cached, costs, 0
        longest = sampling.max_new_tokens
        # One more than fits into the context: nothing reads the last token.
        rooms = [longest if limit is None else min(longest, limit - len(prompt) + 1) for prompt in prompts]
        self.room = max(rooms)
        self.rooms = torch.tensor(rooms, device=model.device)

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
            if self.limit is not None and isinstance(step, Stepper):
                step.position.clamp_max_(self.limit - 1)  # of rows that have come to an end
            length = step.length + 1
            shape = (1, length, 1) if self.cached else (length, length, length)
            logits = self._counted(partial(step, tokens), len(rows), *shape)
        return [_sample(*row, stop) for row in zip(ids.tolist(), scores.tolist(), watched.tolist(), strict=True)]

    def _counted(self, run: Callable[[], Tensor], *shape: int) -> Tensor:
        """What a pass of this shape gives; its FLOPs are added up."""
        if isinstance(self.costs, TransformerFlops):
            self.flops += self.costs.forward(*shape)
            return run()
        if self.costs is None:
            self.flops = _UNKNOWN
            return run()
        found: list[Tensor] = []
        self.flops += self.costs(lambda: found.append(run())).forward
        return found[0]

    def _read_prompts(self) -> tuple[Stepper | _Rereader, Tensor]:
        """Every different prompt once, then a row for each; the logits of what follows, (rows, V)."""
        unique = list(dict.fromkeys(self.prompts))
        longest = max(map(len, unique))
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in unique], device=self.model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in unique], device=self.model.device)
        step: Stepper | _Rereader
        if self.cached:
            cache = DynamicCache(config=self.model.config)
            read = partial(
                self.model, input_ids=ids, attention_mask=mask, position_ids=positions(mask), past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            logits = self._counted(lambda: read().logits[:, -1], len(unique), longest, longest, 1)
            step = Stepper(self.model, cache, mask)
        else:
            step = _Rereader(self.model, ids)
            logits = self._counted(step.read, len(unique), longest, longest, longest)
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


class _Rereader:
    """A model without a key/value cache in the middle of its rows (rows, n), which it reads from their beginning every time."""

    def __init__(self, model: Any, ids: Tensor) -> None:
        self.model, self.ids = model, ids

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.ids.shape[1]

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, (any number,)."""
        self.ids = self.ids[rows]

    def read(self) -> Tensor:
        """The logits of what follows, (rows, V)."""
        logits: Tensor = self.model(input_ids=self.ids, use_cache=False).logits[:, -1]
        return logits

    def __call__(self, tokens: Tensor) -> Tensor:
        """Append tokens (rows,), and read."""
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        return self.read()


def _takes_cache(model: Any) -> bool:
    """Whether a model keeps keys and values, of which rows can be taken; not a state, nor nothing at all."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return not getattr(inner, "_is_stateful", False) and "past_key_values" in signature(inner.forward).parameters


def _costs(model: Any) -> Costs:
    """By formula where there is one, else by running passes under a counter, if that knows all that they do."""
    try:
        return transformer_flops(model)
    except RematchError:
        pass
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    try:
        count_flops(lambda: model(input_ids=ids, use_cache=False).logits)
    except RematchError:
        return None
    return count_flops


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


def _track(batches: Sequence[list[int]], description: str) -> Any:
    if not description:
        return batches
    from rich.console import Console
    from rich.progress import track

    return track(batches, description, console=Console(stderr=True))
