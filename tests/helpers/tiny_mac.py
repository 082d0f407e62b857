"""Tiny language models, encoders and texts for the tests of MAC and of whatever answers questions with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
)

from baselines.qa import QAPair
from methods.mac import MAC

N_WORDS = 40
VOCAB_SIZE = N_WORDS + 3


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: w0, w1, ..."""
    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(N_WORDS))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def gpt2(n_layers: int = 2, width: int = 16, n_heads: int = 2, **options: Any) -> GPT2LMHeadModel:
    """Random weights, large enough that every token matters; no dropout."""
    config = GPT2Config(
        vocab_size=VOCAB_SIZE, n_positions=64, n_embd=width, n_layer=n_layers, n_head=n_heads, initializer_range=0.3,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=1, **options,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def llama(
    n_layers: int = 2, width: int = 16, n_heads: int = 4, n_kv_heads: int = 2, **options: Any
) -> LlamaForCausalLM:
    """Grouped-query attention: fewer key/value heads than heads."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=width, intermediate_size=32, num_hidden_layers=n_layers,
        num_attention_heads=n_heads, num_key_value_heads=n_kv_heads, max_position_embeddings=64, initializer_range=0.3,
        bos_token_id=1, eos_token_id=1, pad_token_id=0, **options,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def t5(width: int = 16, dropout: float = 0.0) -> T5Config:
    """One encoder and one decoder layer."""
    return T5Config(
        vocab_size=VOCAB_SIZE, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2,
        dropout_rate=dropout, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip


def tiny_mac(lm: PreTrainedModel | None = None, seed: int = 0, double: bool = True, **options: Any) -> MAC:
    """A MAC of random weights, T = 3, on a GPT-2 where no other language model is given; float64 where asked."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "encoder": t5(), "n_tokens": 3, "n_blocks": 2, "n_heads": 2, "head_dim": 8, "expansion_width": 24, **options,
    }  # fmt: skip
    mac = MAC.from_lm(lm or gpt2(), tokenizer(), **settings)
    return mac.double() if double else mac


def texts(n: int, shortest: int = 4, longest: int = 14, seed: int = 0) -> list[str]:
    """Random words, of unequal lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest + 1, n)
    return [" ".join(f"w{i}" for i in rng.integers(0, N_WORDS, length)) for length in lengths]


def examples(n: int, n_pairs: int = 2, seed: int = 0, uniform: bool = False) -> list[tuple[str, list[QAPair]]]:
    """Documents with questions whose answers are one or two words; ``uniform``: documents and questions of one length."""
    questions = texts(n * n_pairs, 4 if uniform else 3, 4 if uniform else 5, seed + 1)
    answers = texts(n * n_pairs, 2 if uniform else 1, 2, seed + 2)
    pairs = [QAPair(*both) for both in zip(questions, answers, strict=True)]
    documents = texts(n, 8 if uniform else 4, 8 if uniform else 14, seed)
    return [(text, pairs[i * n_pairs : (i + 1) * n_pairs]) for i, text in enumerate(documents)]
