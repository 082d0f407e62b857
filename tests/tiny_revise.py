"""Tiny language models, a word-level tokenizer with a refine token, and sums to solve, for the tests of ReVISE and its rivals."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<pad>", "<eos>", "<refine>", "<unk>", "?", "+", "=", "is", *(str(i) for i in range(12))]
VOCAB_SIZE = len(WORDS)
END, REFINE = 1, 2
FIRST_DIGIT = WORDS.index("0")
N_POSITIONS = 48


def tokenizer(refine: str | None = "<refine>", words: list[str] | None = None) -> PreTrainedTokenizerFast:
    """One token a word."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words or WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"additional_special_tokens": [refine]} if refine else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", **special
    )


def llama(seed: int = 0, double: bool = False, **options: Any) -> LlamaForCausalLM:
    """Two layers of width 16, grouped-query attention, large random weights; in evaluation mode."""
    torch.manual_seed(seed)
    given = {
        "vocab_size": VOCAB_SIZE, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": N_POSITIONS,
        "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": END, "pad_token_id": 0,
    } | options  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**given)).eval()
    return model.double() if double else model


def gpt2(seed: int = 0, double: bool = False, **options: Any) -> GPT2LMHeadModel:
    """Two layers of width 16, learned positions, large random weights, no dropout; in evaluation mode."""
    torch.manual_seed(seed)
    given = {
        "vocab_size": VOCAB_SIZE, "n_positions": N_POSITIONS, "n_embd": 16, "n_layer": 2, "n_head": 2,
        "initializer_range": 0.3, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None,
        "eos_token_id": END, "pad_token_id": 0,
    } | options  # fmt: skip
    model = GPT2LMHeadModel(GPT2Config(**given)).eval()
    return model.double() if double else model


MAKERS = {"llama": llama, "gpt2": gpt2}
