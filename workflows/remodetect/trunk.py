"""The small reward models of the tiers without a hub: a bag of hashed features, or a small BERT.

Both are transformers sequence classifiers with one logit, with a tokenizer called like any other, so that everything
written for DeBERTa runs on them unchanged.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict
from zlib import crc32

import torch
from pydantic import NonNegativeFloat, PositiveInt
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from workflows.remodetect.corpus import UNKNOWN

Architecture = Literal["hashed", "transformer"]
LONGEST_WORD = 16


class HashedSizes(TypedDict, total=False):
    """What a card can set of ``HashedConfig``."""

    n_buckets: PositiveInt
    hidden_size: PositiveInt
    mlp_size: PositiveInt
    dropout: NonNegativeFloat


class TransformerSizes(TypedDict, total=False):
    """What a card can set of ``BertConfig``."""

    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt
    max_position_embeddings: PositiveInt
    hidden_dropout_prob: NonNegativeFloat
    attention_probs_dropout_prob: NonNegativeFloat


class HashedConfig(PreTrainedConfig):
    """Sizes of ``HashedClassifier``."""

    model_type = "hashed_bag"

    def __init__(
        self, n_buckets: int = 8192, hidden_size: int = 32, mlp_size: int = 64, dropout: float = 0.1, **kwargs: Any
    ) -> None:
        self.n_buckets, self.hidden_size, self.mlp_size, self.dropout = n_buckets, hidden_size, mlp_size, dropout
        super().__init__(**{"num_labels": 1} | kwargs)


class HashedClassifier(PreTrainedModel):
    """Embeddings of hashed features, averaged over a text, and an MLP with one hidden layer and one logit."""

    config_class = HashedConfig

    def __init__(self, config: HashedConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.n_buckets + 1, config.hidden_size, padding_idx=0)
        n_labels = int(config.num_labels or 1)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, config.mlp_size), nn.ReLU(), nn.Dropout(config.dropout),
            nn.Linear(config.mlp_size, n_labels),
        )  # fmt: skip
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Embeddings of unit scale once averaged over a text's hundred features; the MLP as torch has it."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=1.0)
            with torch.no_grad():
                module.weight[0] = 0.0

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SequenceClassifierOutput:
        """input_ids, attention_mask: (batch, features) -> logits (batch, num_labels)."""
        mask = (input_ids != 0).float() if attention_mask is None else attention_mask.float()
        weights = mask / mask.sum(1, keepdim=True).clamp(min=1.0)
        pooled = nn.functional.embedding_bag(
            input_ids, self.embeddings.weight, per_sample_weights=weights, mode="sum", padding_idx=0
        )
        return SequenceClassifierOutput(logits=self.mlp(pooled))


class HashingTokenizer:
    """Ids of a text's hashed unigrams, bigrams and word lengths; bucket 0 is padding.

    Args:
        n_buckets: features share this many ids.
    """

    FILE = "hashing_tokenizer.json"

    def __init__(self, n_buckets: int = 8192) -> None:
        self.n_buckets = n_buckets

    def __call__(
        self,
        texts: Sequence[str],
        truncation: bool = True,
        max_length: int | None = None,
        padding: bool = True,
        return_tensors: str = "pt",
    ) -> BatchEncoding:
        """Encode a batch; a text is cut to the words that have ``max_length`` features (there is no form without that or padding)."""
        # n words have n unigrams, n - 1 bigrams and n lengths.
        n_words = None if max_length is None else (max_length + 1) // 3
        rows = [self._ids(text.split()[:n_words]) for text in texts]
        width = max((len(row) for row in rows), default=0)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        return BatchEncoding({"input_ids": ids, "attention_mask": (ids != 0).long()})

    def _ids(self, words: list[str]) -> list[int]:
        unigrams = [f"u {word}" for word in words]
        bigrams = [f"b {first} {second}" for first, second in itertools.pairwise(words)]
        lengths = [f"l {min(len(word), LONGEST_WORD)}" for word in words]
        return [1 + crc32(feature.encode()) % self.n_buckets for feature in (*unigrams, *bigrams, *lengths)]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write its size beside the model."""
        (Path(folder) / self.FILE).write_text(json.dumps({"n_buckets": self.n_buckets}), encoding="utf-8")


def new_trunk(architecture: Architecture, vocabulary: list[str], **sizes: Any) -> tuple[Any, Any]:
    """A randomly initialised (from torch's generator) model with one logit, and its tokenizer.

    Args:
        vocabulary: of the texts; only the transformer needs it.
        sizes: what the model's config takes.
    """
    if architecture == "hashed":
        config = HashedConfig(**sizes)
        return HashedClassifier(config), HashingTokenizer(config.n_buckets)
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = [*special.values(), *vocabulary]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=UNKNOWN, **special)
    standard: dict[str, Any] = {
        "num_labels": 1,
        "pad_token_id": 0,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
    }
    bert = BertConfig(vocab_size=len(words), **(standard | sizes))
    return BertForSequenceClassification(bert), tokenizer


def load_trunk(folder: str | Path) -> tuple[Any, Any]:
    """A saved model and its tokenizer: one of ours, or any sequence classifier of the hub (a folder or an id)."""
    ours = Path(folder) / HashingTokenizer.FILE
    if ours.is_file():
        sizes = json.loads(ours.read_text(encoding="utf-8"))
        return HashedClassifier.from_pretrained(folder), HashingTokenizer(**sizes)
    return AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
