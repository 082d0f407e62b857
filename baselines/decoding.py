"""Greedy and diverse beam search with a causal language model that starts from a filled key/value cache.

``generate`` of transformers expects the ids of every cached position, which a prefix of learned keys and values has not,
and no longer ships diverse beam search, with which the question-answering benchmarks of CaMeLS and MAC are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from rematch.errors import RematchError


@dataclass(frozen=True)
class Beams:
    """How answers are searched for; the default is greedy decoding.

    Attributes:
        n_beams: hypotheses kept, of all groups together; 1: greedy.
        n_groups: groups that search one after the other, each pushed away from the tokens that the earlier groups took at
            the same step (Vijayakumar et al., 2018); 1: plain beam search.
        diversity: what a token loses for each earlier beam that took it.

    A finished hypothesis is scored by its mean log-probability a token, and a group ends as soon as it has as many of them as
    beams.
    """

    n_beams: int = 1
    n_groups: int = 1
    diversity: float = 0.0

    def __post_init__(self) -> None:
        if self.n_groups < 1 or self.n_beams < 1 or self.n_beams % self.n_groups:
            raise RematchError(
                f"beam search: {self.n_beams} beams do not make {self.n_groups} equal groups of at least one"
            )
        if self.diversity < 0 or (self.diversity and self.n_groups == 1):
            raise RematchError("beam search: a diversity penalty is not negative, and needs more than one group")


GREEDY = Beams()
OFFICIAL_BEAMS = Beams(n_beams=12, n_groups=4, diversity=10.0)
"""The evaluation of CaMeLS and MAC (official code)."""


def copy_cache(cache: DynamicCache, rows: Tensor | slice = slice(None)) -> DynamicCache:
    """The rows of a cache as a new one, which a model may extend while the first stays as it is.

    Args:
        cache: per layer keys and values (N, kv_heads, P, head_dim).
        rows: which of the N, repeated as often as named.
    """
    layers: list[Any] = cache.layers
    return DynamicCache([(layer.keys[rows], layer.values[rows]) for layer in layers])


@torch.no_grad()
def decode(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    eos_token_id: int,
    prefixes: DynamicCache | None = None,
    beams: Beams = GREEDY,
) -> list[list[int]]:
    """The tokens that follow each row, without the end-of-text token.

    Args:
        model: a transformers causal LM.
        input_ids: (N, n), padded on the left.
        attention_mask: (N, n), 1 for tokens, 0 for padding.
        max_new_tokens: the end-of-text token counts as one.
        prefixes: keys and values (N, kv_heads, P, head_dim) a layer that all tokens attend to; the positions of the tokens
            then start at P. Left as it is.
        beams: how to search.
    """
    if max_new_tokens < 1 or not len(input_ids):
        return [[] for _ in input_ids]
    n_prefix = 0 if prefixes is None else prefixes.get_seq_length()
    mask = torch.cat([attention_mask.new_ones(len(input_ids), n_prefix), attention_mask], 1)
    cache = DynamicCache(config=model.config) if prefixes is None else copy_cache(prefixes)
    logits = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=positions(attention_mask, n_prefix),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    search = _greedy if beams.n_beams == 1 else _Search(beams)
    return search(Stepper(model, cache, mask), logits, max_new_tokens, eos_token_id)


def positions(attention_mask: Tensor, n_prefix: int = 0) -> Tensor:
    """Position ids (N, n) of rows padded on either side: tokens count on from ``n_prefix``, padding has some valid position."""
    return n_prefix + (attention_mask.long().cumsum(1) - 1).clamp_min(0)


class Stepper:
    """A model in the middle of its rows, one token a row further with every call."""

    def __init__(self, model: Any, cache: DynamicCache, mask: Tensor) -> None:
        self.model, self.cache, self.mask = model, cache, mask
        self.position = mask.sum(1, keepdim=True)

    @property
    def length(self) -> int:
        """Tokens of a row, padding included."""
        return self.mask.shape[1]

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, (any number,)."""
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]

    def __call__(self, tokens: Tensor) -> Tensor:
        """Append tokens (rows,); the logits of what follows, (rows, V)."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        logits = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        self.position = self.position + 1
        return logits


def _greedy(step: Stepper, logits: Tensor, max_new_tokens: int, eos: int) -> list[list[int]]:
    tokens = [logits.argmax(-1)]
    going = tokens[0] != eos
    while len(tokens) < max_new_tokens and going.any():
        tokens.append(step(tokens[-1]).argmax(-1))
        going = going & (tokens[-1] != eos)
    return [row[: row.index(eos)] if eos in row else row for row in torch.stack(tokens, 1).tolist()]


@dataclass
class _Group:
    """The hypotheses of one group of one row: score and tokens."""

    size: int
    finished: list[tuple[float, list[int]]] = field(default_factory=list)

    def add(self, log_prob: float, n_tokens: int, tokens: list[int]) -> None:
        """Keep a hypothesis of ``n_tokens`` (its end included) if it is among the best."""
        self.finished.append((log_prob / n_tokens, tokens))
        self.finished = sorted(self.finished, key=lambda found: -found[0])[: self.size]

    @property
    def done(self) -> bool:
        return len(self.finished) >= self.size


class _Search:
    """Diverse beam search."""

    def __init__(self, beams: Beams) -> None:
        self.beams, self.size = beams, beams.n_beams // beams.n_groups

    def __call__(self, step: Stepper, logits: Tensor, max_new_tokens: int, eos: int) -> list[list[int]]:
        n, n_beams, size = len(logits), self.beams.n_beams, self.size
        step.select(torch.arange(n, device=logits.device).repeat_interleave(n_beams))
        logits = logits.repeat_interleave(n_beams, 0)
        # At first all beams of a group are the same: only one of them may be continued.
        scores = logits.new_full((n, n_beams), -1e9, dtype=torch.float32)
        scores[:, ::size] = 0
        groups = [[_Group(size) for _ in range(self.beams.n_groups)] for _ in range(n)]
        texts: list[list[list[int]]] = [[[] for _ in range(n_beams)] for _ in range(n)]
        for length in range(1, max_new_tokens + 1):
            log_probs = torch.log_softmax(logits.float(), -1).view(n, n_beams, -1)
            tokens, parents = self._advance(log_probs, scores, groups, texts, length, eos)
            if all(group.done for row in groups for group in row) or length == max_new_tokens:
                break
            step.select((parents + n_beams * torch.arange(n, device=parents.device)[:, None]).flatten())
            logits = step(tokens.flatten())
        return [
            self._best(row, row_scores, row_texts)
            for row, row_scores, row_texts in zip(groups, scores.tolist(), texts, strict=True)
        ]

    def _advance(
        self,
        log_probs: Tensor,
        scores: Tensor,
        groups: list[list[_Group]],
        texts: list[list[list[int]]],
        length: int,
        eos: int,
    ) -> tuple[Tensor, Tensor]:
        """Choose a token for every beam; changes scores, groups and texts. Tokens and the beams that they continue, (n, n_beams)."""
        n, n_beams, vocabulary = log_probs.shape
        tokens, parents = torch.zeros(n, n_beams, dtype=torch.long), torch.zeros(n, n_beams, dtype=torch.long)
        taken = log_probs.new_zeros(n, vocabulary)
        for index in range(self.beams.n_groups):
            place = slice(index * self.size, (index + 1) * self.size)
            penalised = log_probs[:, place] - self.beams.diversity * taken[:, None]
            found = (penalised + scores[:, place, None]).flatten(1).topk(min(2 * self.size, self.size * vocabulary))
            # Twice as many as beams: at most one continuation of every beam ends the text.
            for row, (values, flat) in enumerate(zip(found.values.tolist(), found.indices.tolist(), strict=True)):
                kept = self._sort(values, flat, vocabulary, groups[row][index], texts[row][place], length, eos)
                chosen = []
                for beam, (value, parent, token) in enumerate(kept, start=place.start):
                    scores[row, beam] = value
                    tokens[row, beam], parents[row, beam] = token, place.start + parent
                    chosen.append([*texts[row][place.start + parent], token])
                texts[row][place] = chosen
            taken.scatter_add_(1, tokens[:, place].to(taken.device), taken.new_ones(n, self.size))
        return tokens.to(log_probs.device), parents.to(log_probs.device)

    def _sort(
        self,
        values: Sequence[float],
        flat: Sequence[int],
        vocabulary: int,
        group: _Group,
        texts: list[list[int]],
        length: int,
        eos: int,
    ) -> list[tuple[float, int, int]]:
        """Candidates, best first: ended texts into the group, the others back, as many as beams: (score, beam, token)."""
        if group.done:
            # It goes on with ends of text, from which later groups are pushed away, as in the official evaluation.
            return [(0.0, beam, eos) for beam in range(self.size)]
        kept: list[tuple[float, int, int]] = []
        for rank, (value, index) in enumerate(zip(values, flat, strict=True)):
            parent, token = divmod(index, vocabulary)
            if token != eos:
                kept.append((value, parent, token))
            elif rank < self.size:
                group.add(value, length, texts[parent])
            if len(kept) == self.size:
                break
        return kept

    def _best(self, groups: list[_Group], scores: list[float], texts: list[list[int]]) -> list[int]:
        """The best hypothesis of a row; those of a group that is not done count as they are."""
        found = []
        for index, group in enumerate(groups):
            if not group.done:
                for beam in range(index * self.size, (index + 1) * self.size):
                    group.add(scores[beam], len(texts[beam]), texts[beam])
            found += group.finished
        return max(found, key=lambda hypothesis: hypothesis[0])[1]
