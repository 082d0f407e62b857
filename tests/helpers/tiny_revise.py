"""Tiny language models, a word-level tokenizer with a refine token, and sums to solve, for the tests of ReVISE and its rivals."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from baselines.post_training.batches import Ids
from baselines.post_training.problems import Problem

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


class TableModel(torch.nn.Module):
    """A "language model" whose logits (S, n, V) are its parameters, whatever it reads: gradients show what a loss looks at."""

    def __init__(self, n_sequences: int, length: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(n_sequences, length, VOCAB_SIZE, dtype=torch.float64, generator=generator)
        self.logits = torch.nn.Parameter(logits)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool, logits_to_keep: int
    ) -> Any:
        assert input_ids.shape == self.logits.shape[:2]
        assert attention_mask.all()
        assert not use_cache
        return type("Output", (), {"logits": self.logits[:, -logits_to_keep:]})


def digit(value: int) -> int:
    """The token of a number below 12."""
    return FIRST_DIGIT + value


def last_digit(ids: Ids) -> int | None:
    """The number that a solution ends with; None where it ends with no number."""
    return ids[-1] - FIRST_DIGIT if ids and ids[-1] >= FIRST_DIGIT else None


def problem(a: int, b: int) -> Problem:
    """? a + b, whose solution is "a is a+b"."""
    prompt = (WORDS.index("?"), digit(a), WORDS.index("+"), digit(b))
    return Problem(prompt, (digit(a), WORDS.index("is"), digit(a + b)), last_digit)


def problems(n: int, seed: int = 0) -> list[Problem]:
    """Sums of two numbers below 6."""
    rng = np.random.default_rng(seed)
    return [problem(int(a), int(b)) for a, b in rng.integers(0, 6, (n, 2))]


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
