"""CaMeLS' weight network as it is meta-trained for the arena."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from baselines.online import MetaBatch, MetaRecipe, WeightNet, meta_train
from baselines.qa import encode_pairs
from rematch.arena import BaseInfo, BaseJob
from rematch.errors import RematchError
from rematch.options import made
from workflows.mac.corpus import read_documents
from workflows.mac.language_models import load_lm
from workflows.mac.lengths import lengths_of
from workflows.mac.streams import Document

NOTES = "weights.json"
MULTIPLE = 16
"""Documents and questions are padded to a multiple of this many tokens, so that few shapes have their FLOPs counted."""


@dataclass
class Weights:
    """The weight network of CaMeLS, meta-trained. Needs ``qa_lm``, ``streams`` and ``corpus``.

    The language model is to stay as it is on the documents of ``corpus``; where it has none, on those to meta-train on. Texts
    are read as far as the arena's ``max_document``, ``max_length`` and ``max_answer`` say.

    Attributes:
        n_documents: to meta-train on; the first of the seed's.
        n_layers: of the language model that the network's body starts as a copy of; all where 0.
        steps: of Adam on the network.
        batch_size: documents in a batch, which the language model learns one after another.
        recipe: fields of ``MetaRecipe``.
    """

    n_documents: PositiveInt = 8192
    n_layers: NonNegativeInt = 0
    steps: PositiveInt = 100
    batch_size: PositiveInt = 6
    recipe: Annotated[dict[str, Any], MetaRecipe] = field(default_factory=dict)

    def build(self, job: BaseJob) -> BaseInfo:
        """Write the network.

        Raises:
            RematchError: there are fewer documents than ``n_documents``, or ``n_positions`` than tokens of one.
        """
        lengths = lengths_of(job.arena)
        longest = _wide(lengths["max_document"])
        recipe: MetaRecipe = made(MetaRecipe, self.recipe, f"bases.{job.name}: recipe")
        if recipe.n_positions is not None and recipe.n_positions < longest:
            raise RematchError(
                f"bases.{job.name}: recipe: n_positions: {recipe.n_positions}; allowed: whole numbers from {longest}, "
                f"the arena's max_document in multiples of {MULTIPLE}"
            )
        documents = read_documents(job.needs["streams"] / "train.jsonl")[: self.n_documents]
        if len(documents) < self.n_documents:
            raise RematchError(
                f"bases.{job.name}: n_documents: {self.n_documents}; the base 'streams' holds {len(documents)} to train on"
            )
        lm, tokenizer = load_lm(job.needs["qa_lm"], job.hub)
        seed = job.seed or 0
        torch.manual_seed(seed)
        net = WeightNet.from_lm(lm, self.n_layers or None)
        anchors = [document.text for document in read_documents(job.needs["corpus"] / "documents.jsonl")]
        anchors = anchors or [document.text for document in documents]
        batches = self._batches(tokenizer, documents, anchors, seed, lengths, self.steps * recipe.accumulation)
        checkpoint = job.out / "checkpoint"
        done = meta_train(net, lm, batches, recipe, seed, checkpoint)
        net.save_pretrained(job.out)
        shutil.rmtree(checkpoint, ignore_errors=True)
        (job.out / NOTES).write_text(json.dumps({"n_documents": self.n_documents}), encoding="utf-8")
        read = self.steps * recipe.accumulation * self.batch_size
        tail = done.qa_losses[-max(1, len(done.qa_losses) // 10) :]
        notes = {"qa_loss": float(np.mean(tail)), "first_qa_loss": done.qa_losses[0], "n_documents": self.n_documents}
        return BaseInfo(done.flops, samples_seen=read, notes=notes)

    def _batches(
        self,
        tokenizer: PreTrainedTokenizerBase,
        documents: Sequence[Document],
        anchors: Sequence[str],
        seed: int,
        lengths: Mapping[str, int],
        n: int,
    ) -> Iterator[MetaBatch]:
        """n batches in the order of the seed; a document is asked one of its questions, as released."""
        rng = np.random.default_rng([seed, *b"camels"])
        queue: list[int] = []
        longest = lengths["max_document"]
        for _ in range(n):
            while len(queue) < self.batch_size:
                queue += rng.permutation(len(documents)).tolist()
            chosen = [documents[i] for i in queue[: self.batch_size]]
            del queue[: self.batch_size]
            pairs = [document.pairs[int(rng.integers(len(document.pairs)))] for document in chosen]
            kept = [anchors[int(i)] for i in rng.integers(len(anchors), size=self.batch_size)]
            yield MetaBatch(
                *_padded(tokenizer, [document.text for document in chosen], longest),
                encode_pairs(tokenizer, pairs, lengths["max_length"], lengths["max_answer"], multiple=MULTIPLE),
                *_padded(tokenizer, kept, longest),
            )


def n_documents(folder: Path) -> int:
    """How many documents a network was meta-trained on."""
    return int(json.loads((folder / NOTES).read_text(encoding="utf-8"))["n_documents"])


def _padded(tokenizer: object, texts: Sequence[str], longest: int) -> tuple[Tensor, Tensor]:
    rows = tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]  # type: ignore[operator]
    width = _wide(max(map(len, rows)))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def _wide(length: int) -> int:
    """A length in whole multiples."""
    return -(-length // MULTIPLE) * MULTIPLE
