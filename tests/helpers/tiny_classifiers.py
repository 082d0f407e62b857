"""Tiny random-weight sequence classifiers of transformers, and a tokenizer of forty words, for the tests of detectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL, "a", "b", *(f"w{i}" for i in range(40))]
WIDTH, LAYERS, INNER = 16, 2, 24


def tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **(names | options))


SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS), "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "intermediate_size": INNER, "initializer_range": 0.3,
}  # fmt: skip


def bert(**options: Any) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZES, **{"num_labels": 1} | options))


def deberta(**options: Any) -> DebertaV2ForSequenceClassification:
    """With what DeBERTa-v3 has: relative positions in buckets, shared keys, and a convolution on top."""
    torch.manual_seed(0)
    relative = {
        "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "conv_kernel_size": 3, "conv_act": "gelu",
    }  # fmt: skip
    return DebertaV2ForSequenceClassification(DebertaV2Config(**SIZES, **relative, **{"num_labels": 1} | options))


def llama(**options: Any) -> LlamaForSequenceClassification:
    """A decoder: the reward stands at the last token that is not padding."""
    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**SIZES, **{"num_labels": 1} | options))


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def words(n: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng([n, seed]).choice(WORDS[4:], n))
