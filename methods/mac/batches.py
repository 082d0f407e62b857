"""Texts as batches of token ids: documents, and the questions about them with their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from baselines.qa import QABatch
from rematch.errors import RematchError

PADDED_TO = 8
"""Texts are padded to a multiple of this: few shapes, so few FLOP counts."""


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (n, length) int64, padded on the right; a text is read up to ``max_length`` tokens.

    Raises:
        RematchError: no text, or one without tokens.
    """
    if not texts:
        raise RematchError("there are no texts to encode")
    rows = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    for text, row in zip(texts, rows, strict=True):
        if not row:
            raise RematchError(f"a text has no tokens: {text!r}")
    longest = -(-max(map(len, rows)) // PADDED_TO) * PADDED_TO
    padding = tokenizer.pad_token_id or 0  # masked wherever it stands
    ids = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(longest) < lengths[:, None]).long()


@dataclass(frozen=True)
class Batch:
    """The documents and questions of one step.

    Attributes:
        documents, documents_mask: (K, length), of the amortizer's tokenizer.
        questions, questions_mask: (N, length), of the question encoder's tokenizer.
        qa: the same N questions with their answers, of the language model's tokenizer.
        gold: (N,), which document each question is about.
    """

    documents: Tensor
    documents_mask: Tensor
    questions: Tensor
    questions_mask: Tensor
    qa: QABatch
    gold: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device."""
        return Batch(**{each.name: getattr(self, each.name).to(device) for each in fields(self)})

    @property
    def n_tokens(self) -> int:
        """Tokens of documents and of questions with answers, without padding."""
        return int(self.documents_mask.sum() + self.qa.attention_mask.sum())

    def asking_about(self, documents: Tensor) -> Batch:
        """The same documents with only those questions that are about ``documents`` (K,) bool."""
        rows = documents[self.gold]
        qa = QABatch(self.qa.input_ids[rows], self.qa.attention_mask[rows], self.qa.labels_mask[rows])
        questions = self.questions[rows], self.questions_mask[rows]
        return Batch(self.documents, self.documents_mask, *questions, qa, self.gold[rows])
