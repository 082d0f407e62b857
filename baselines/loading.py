"""Language models and tokenizers by their id or folder, in 4 bits where asked."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal, cast, get_args

import torch
from torch.utils.flop_counter import register_flop_formula
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rematch.errors import RematchError, unknown

Dtype = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["nf4"]
"""4-bit normal floats (QLoRA's), multiplied in bfloat16, without double quantization (official code)."""


def load_lm(source: str, quantize: Quantization | None = None, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A causal language model by its id or folder.

    Args:
        quantize: load the weights of its linear maps in 4 bits, on the GPU.
        dtype: of the weights that are not; None: as they were saved, or float32 beside 4-bit ones (official code).

    Raises:
        RematchError: it cannot be loaded, or not in 4 bits here.
    """
    options = quantized(quantize) | ({} if dtype is None else {"dtype": dtype})
    try:
        return cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, **options))
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


def quantized(quantize: Quantization | None) -> dict[str, Any]:
    """What ``from_pretrained`` of transformers is given for weights in 4 bits; nothing for None.

    Raises:
        RematchError: another quantization, no bitsandbytes, or no GPU.
    """
    if quantize is None:
        return {}
    if quantize not in get_args(Quantization):
        raise unknown("quantize", quantize, get_args(Quantization), "MAC")
    if find_spec("bitsandbytes") is None:
        raise RematchError("quantize='nf4' needs bitsandbytes: install it with pip install 'rematch[gpu]'")
    if not torch.cuda.is_available():
        raise RematchError(
            "quantize='nf4' needs a GPU and a torch that sees it; without, leave the weights as they are"
        )
    _count_4bit_flops()
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=False,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": config, "dtype": torch.float32}


@functools.cache
def _count_4bit_flops() -> None:
    """Tell the FLOP counter of the operators of 4-bit weights: these are known once bitsandbytes is imported."""
    importlib.import_module("bitsandbytes")
    operators: Any = torch.ops.bitsandbytes
    register_flop_formula(operators.gemm_4bit)(product_flops)
    register_flop_formula(operators.dequantize_4bit)(lambda *args, **kwargs: 0)  # a look-up and a scale


def product_flops(x: Sequence[int], packed: Sequence[int], weight: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """FLOPs of inputs (..., in) by 4-bit weights of shape (out, in): those of the same product in full precision."""
    return 2 * math.prod(x) * math.prod(weight) // x[-1]


def quantization(config: PreTrainedConfig) -> Quantization | None:
    """How the weights of a model with this configuration were loaded."""
    asked: Any = getattr(config, "quantization_config", None) or {}
    asked = asked if isinstance(asked, dict) else asked.to_dict()
    return "nf4" if asked.get("load_in_4bit") and asked.get("bnb_4bit_quant_type") == "nf4" else None
