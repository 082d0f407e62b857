"""MAC's sizes and switches."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

from baselines.qa import MAX_ANSWER, MAX_LENGTH
from methods.mac.amortizer import Architecture
from rematch.errors import RematchError, unknown


@dataclass(frozen=True)
class MACConfig:
    """Sizes and switches; the defaults are the paper's.

    A RematchError says which of them is out of bounds.

    Attributes:
        n_tokens: T, vectors of a document (24; 12 for DistilGPT2); no more than the modulation is made of, which depends on
            the language model: see ``Expansion``.
        n_blocks, n_heads, head_dim: of the aggregator.
        n_prefix: P, prefix positions in every layer (modulation ``prefix``).
        lora_rank: of the changes of queries and values (modulation ``lora``).
        expansion_width: hidden width of the MLPs that make prefixes or LoRA factors.
        amortizer: architecture of both encoders; ``encoder`` and ``decoder`` are table 7's.
        aggregate: ``none`` takes one entry of the bank as it is, which the caller names: an oracle.
        modulation: what the aggregated memory becomes; ``lora`` is table 4's.
        equal_query_key: see ``Aggregator``.
        lm_dropout: whether the frozen language model's own dropout is on in training (official code).
        max_document: tokens read of a document.
        max_length, max_answer: of what the language model reads and answers, and of the answer alone with its end; see
            ``baselines.qa``.
        max_question: tokens that the question encoder reads; None: ``max_length - max_answer``. Less than that where the
            language model's prompts are longer than the questions.
        ends: whether the end of the text follows an answer; not so where the beginning of a document asks for the rest (table 6).
    """

    n_tokens: int = 24
    n_blocks: int = 4
    n_heads: int = 8
    head_dim: int = 96
    n_prefix: int = 2
    lora_rank: int = 4
    expansion_width: int = 768
    amortizer: Architecture = "encdec"
    aggregate: Literal["attention", "none"] = "attention"
    modulation: Literal["prefix", "lora"] = "prefix"
    equal_query_key: bool = False
    lm_dropout: bool = True
    max_document: int = 512
    max_length: int = MAX_LENGTH
    max_answer: int = MAX_ANSWER
    max_question: int | None = None
    ends: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (
            ("amortizer", get_args(Architecture)),
            ("aggregate", ("attention", "none")),
            ("modulation", ("prefix", "lora")),
        ):
            if getattr(self, name) not in allowed:
                raise unknown(name, getattr(self, name), allowed, "MAC")
        for name in (
            "n_tokens", "n_blocks", "n_heads", "head_dim", "n_prefix", "lora_rank", "expansion_width", "max_document",
        ):  # fmt: skip
            at_least(1, "MAC", name, getattr(self, name))
        at_least(2, "MAC", "max_answer", self.max_answer)
        at_least(self.max_answer + 1, "MAC", "max_length", self.max_length)
        if self.max_question is not None:
            at_least(1, "MAC", "max_question", self.max_question)


def at_least(least: int, where: str, name: str, value: object) -> None:
    """Raise RematchError for what is no whole number from ``least`` on."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise RematchError(f"{where}: {name}: {value}; allowed: whole numbers from {least}")
