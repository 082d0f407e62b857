"""Small causal language models and a word-level tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [
    "<pad>",
    "<eos>",
    "<unk>",
    "who",
    "lives",
    "where",
    "in",
    "paris",
    "rome",
    "anna",
    "ben",
    "now",
    ".",
    "?",
    "works",
    "as",
    "cook",
    "smith",
]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def gpt2(seed: int = 0, **options: Any) -> GPT2LMHeadModel:
    """Two layers of width 16, large weights so that its answers differ; in evaluation mode."""
    torch.manual_seed(seed)
    given = {"vocab_size": len(WORDS), "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2} | options
    config = GPT2Config(**given, initializer_range=0.5, eos_token_id=1, bos_token_id=1, pad_token_id=0)
    return GPT2LMHeadModel(config).eval()


def llama(seed: int = 0) -> LlamaForCausalLM:
    """Two layers of width 16, 4 heads that share 2 keys and values; in evaluation mode."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.5, eos_token_id=1, bos_token_id=1, pad_token_id=0,
        )
    ).eval()  # fmt: skip


@pytest.fixture
def make_lm() -> Iterator[dict[str, Callable[..., Any]]]:
    """Makers of language models, which run on one thread while the test lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {"gpt2": gpt2, "llama": llama}
    torch.set_num_threads(before)
