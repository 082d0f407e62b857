"""The items that contenders are scored on, by kind and length: what the FLOPs of an item are counted on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import PositiveInt

from rematch.flops import count_flops

Kind = Literal["window", "recall", "choice", "cloze"]


class ItemShape(NamedTuple):
    """Lengths in tokens: what may be pruned, and what is scored and therefore protected."""

    n_context: int
    n_continuation: int


@dataclass
class Shapes:
    """Sizes of the items that bases and arena agree on. A partner is sized so that it meets its FLOPs on these.

    Attributes:
        context: length of a language-modelling window, its scored end included; what models are trained on.
        n_scored: W, the tokens at its end whose predictions are scored.
        choice_context, choice_continuation: lengths of a multiple-choice item; the cloze item shares its context.
        value_length: tokens of a value that is recalled, and of a cloze answer.
    """

    context: PositiveInt = 256
    n_scored: PositiveInt = 32
    choice_context: PositiveInt = 96
    choice_continuation: PositiveInt = 16
    value_length: PositiveInt = 2

    @classmethod
    def of(cls, arena: Mapping[str, Any]) -> Self:
        """From the arena's options at a tier, of which the sizes are some."""
        return cls(**{f.name: arena[f.name] for f in fields(cls) if f.name in arena})

    def shape(self, kind: Kind, context: int | None = None) -> ItemShape:
        """The standard shape of a kind of item; ``context`` replaces the length of a window."""
        if kind == "window":
            return ItemShape((context or self.context) - self.n_scored, self.n_scored)
        if kind == "recall":
            return ItemShape(self.context - self.value_length, self.value_length)
        if kind == "choice":
            return ItemShape(self.choice_context, self.choice_continuation)
        return ItemShape(self.choice_context, self.value_length)


STANDARD: tuple[Kind, ...] = ("window", "recall")
"""The items on which a dense partner is sized: with many scored tokens and with few, between which all others lie."""


@torch.no_grad()
def item_flops(contender: Any, shape: ItemShape) -> float:
    """Counted inference FLOPs of a contender on one item of a shape."""
    device = next(contender.model.parameters()).device
    ids = torch.zeros(1, sum(shape), dtype=torch.long, device=device)
    return float(count_flops(contender.logits, ids, shape.n_continuation).forward)


def remembered_flops(contender: Any, shape: ItemShape, memory: Path | None) -> float:
    """``item_flops``, looked up where the same was counted before: a search for a knob counts the same for every seed.

    The count depends on the architecture, on the shape, and on the contender's options and knobs, all of which a dataclass
    shows in its ``repr``; not on weights.

    Args:
        memory: a folder; None to count.
    """
    if memory is None:
        return item_flops(contender, shape)
    subject = f"{type(contender).__module__} {contender!r} {contender.model.config.to_json_string()} {shape}"
    path = memory / f"{hashlib.sha256(subject.encode()).hexdigest()}.flops"
    if path.exists():
        return float(path.read_text(encoding="ascii"))
    flops = item_flops(contender, shape)
    path.write_text(repr(flops), encoding="ascii")
    return flops


def total_flops(contender: Any, shapes: Iterable[ItemShape]) -> float:
    """Counted inference FLOPs on one item of each shape, together."""
    return sum(item_flops(contender, shape) for shape in shapes)
