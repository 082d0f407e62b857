"""Language models and tokenizers by their id or folder."""

from __future__ import annotations

from typing import Any, Literal, cast

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rematch.errors import RematchError


def load_lm(source: str, quantize: Literal["nf4"] | None = None, dtype: Any = None) -> PreTrainedModel:
    """A causal language model by its id or folder.

    Raises:
        RematchError: it cannot be loaded.
    """
    try:
        return cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, dtype=dtype))
    except (OSError, ValueError) as error:
        raise RematchError(f"no language model can be loaded from '{source}': {error}") from error


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """A tokenizer by its id or folder.

    Raises:
        RematchError: it cannot be loaded.
    """
    try:
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(source))
    except (OSError, ValueError) as error:
        raise RematchError(f"no tokenizer can be loaded from '{source}': {error}") from error
