"""The two tokens that may end an attempt: end ("I am done") and refine ("that was wrong").

Llama 3 has a reserved special token for the latter, so that no embedding is added (official code); other models are given one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rematch.errors import RematchError

LLAMA3_REFINE = "<|reserved_special_token_0|>"
ADDED_REFINE = "<|refine|>"
WHITESPACE = frozenset(" \t\r\nĠĊĉč▁")
"""Spaces, tabs and line ends, and how byte-level BPE and SentencePiece write them."""


@dataclass(frozen=True)
class Tokens:
    """E and R.

    Attributes:
        end: E, id of the end-of-text token.
        refine: R, id of the refine token.
        blank: ids of tokens that are whitespace only, which attempts are stripped of.
    """

    end: int
    refine: int
    blank: Collection[int] = frozenset()

    def __post_init__(self) -> None:
        if self.end == self.refine or min(self.end, self.refine) < 0:
            raise RematchError(
                f"ReVISE needs two different tokens to end and to refine, not {self.end} and {self.refine}"
            )


def find_tokens(tokenizer: Any, model: Any = None, refine: str | None = None) -> Tokens:
    """The tokens of a tokenizer that has both.

    Args:
        model: whose embeddings must cover them.
        refine: the refine token; Llama 3's reserved token number 0 where None, else the one that ``add_tokens`` adds.

    Raises:
        RematchError: the tokenizer lacks one of them, or the model has no embedding of it.
    """
    if tokenizer.eos_token_id is None:
        raise RematchError("ReVISE needs a tokenizer with an end-of-text token; set its eos_token")
    vocabulary = tokenizer.get_vocab()
    names = (LLAMA3_REFINE, ADDED_REFINE) if refine is None else (refine,)
    name = next((name for name in names if name in vocabulary), None)
    if name is None:
        raise RematchError(
            f"the tokenizer has no refine token ({' or '.join(names)}); add one to tokenizer and model with "
            "methods.revise.tokens.add_tokens, before the model is fine-tuned on solutions"
        )
    tokens = Tokens(int(tokenizer.eos_token_id), int(vocabulary[name]), _blank(tokenizer, vocabulary))
    if model is not None:
        check_tokens(tokens, model)
    return tokens


def check_tokens(tokens: Tokens, model: Any) -> None:
    """Raise RematchError where the model has no embedding of a token."""
    size = int(model.get_input_embeddings().num_embeddings)
    if max(tokens.end, tokens.refine) >= size:
        raise RematchError(
            f"the model knows the token ids 0 to {size - 1}, not {max(tokens.end, tokens.refine)}: resize its embeddings "
            "(methods.revise.tokens.add_tokens does) before it is fine-tuned on solutions"
        )


def check_ids(prompts: Sequence[Sequence[int]], model: Any) -> None:
    """Raise RematchError where a prompt holds a token id of which the model has no embedding."""
    size = int(model.get_input_embeddings().num_embeddings)
    for i, prompt in enumerate(prompts):
        unknown_id = next((token for token in prompt if not 0 <= token < size), None)
        if unknown_id is not None:
            raise RematchError(f"prompt {i} holds the token id {unknown_id}; the model knows 0 to {size - 1}")


def add_tokens(tokenizer: Any, model: Any, refine: str | None = None) -> Tokens:
    """``find_tokens``, after tokenizer and model have been given what they lack, in place.

    A new embedding is drawn around the mean of the others, the same for every call. Do so before the model is fine-tuned on
    solutions: a fresh token that the reference model finds probable shifts what the preference loss asks for.
    """
    vocabulary = tokenizer.get_vocab()
    if not any(name in vocabulary for name in ((LLAMA3_REFINE, ADDED_REFINE) if refine is None else (refine,))):
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [refine or ADDED_REFINE]}, replace_extra_special_tokens=False
        )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.resize_token_embeddings(len(tokenizer))
    return find_tokens(tokenizer, model, refine)


def strip(ids: Sequence[int], blank: Collection[int]) -> tuple[int, ...]:
    """Token ids without blank ones at either end."""
    kept = [i for i, token in enumerate(ids) if token not in blank]
    return tuple(ids[kept[0] : kept[-1] + 1]) if kept else ()


def _blank(tokenizer: Any, vocabulary: dict[str, int]) -> frozenset[int]:
    candidates = [i for token, i in vocabulary.items() if token and WHITESPACE.issuperset(token)]
    return frozenset(i for i in candidates if not tokenizer.decode([i]).strip())
