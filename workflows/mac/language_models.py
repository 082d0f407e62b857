"""The language models that answer: a small GPT-2 of the generated world or one of the hub, and what QA tuning makes of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from baselines.loading import Dtype, load_tokenizer
from baselines.loading import load_lm as load_causal_lm
from baselines.next_token import Recipe, read_only, train
from baselines.online import with_documents
from baselines.online.retrieval import BM25
from baselines.qa import QAPair, qa_tune
from rematch.arena import BaseInfo, BaseJob
from rematch.hub import Hub
from rematch.hub_models import check_model
from workflows.mac.corpus import TOKENIZER, read_documents, read_pairs

POINTER = "hub.json"


@dataclass
class LanguageModel:
    """A causal language model before any question answering of its own. Needs ``corpus``.

    Without ``hub_id`` it is a GPT-2 trained on documents and questions of the old world, as many of the one as of the other:
    it stands in for a public checkpoint, and so there is one for all seeds.

    Attributes:
        n_layers, hidden_size, n_heads: of the GPT-2; no dropout.
        initializer_range: of its weights. At the usual 0.02 the embeddings of words that occur in the same places stay alike,
            and a frozen model cannot be steered to one of them.
        steps, batch_size, learning_rate: of training; the rate falls to a tenth by a cosine.
        hub_id: a model of the hub instead.
        dtype: that it is loaded in.
    """

    n_layers: PositiveInt = 2
    hidden_size: PositiveInt = 64
    n_heads: PositiveInt = 4
    initializer_range: PositiveFloat = 0.1
    steps: PositiveInt = 400
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 3e-3
    hub_id: str = ""
    dtype: Dtype = "float32"

    def build(self, job: BaseJob) -> BaseInfo:
        """Write the model with its tokenizer, or a pointer to the hub."""
        if self.hub_id:
            check_model(job.hub, self.hub_id)
            pointer = {"id": self.hub_id, "dtype": self.dtype}
            (job.out / POINTER).write_text(json.dumps(pointer), encoding="utf-8")
            return BaseInfo(notes=pointer)
        corpus = job.needs["corpus"]
        tokenizer = AutoTokenizer.from_pretrained(corpus / TOKENIZER)
        texts = [document.text for document in read_documents(corpus / "documents.jsonl")]
        pairs = read_pairs(corpus / "qa_train.jsonl")
        rng = np.random.default_rng([0, *b"language model"])
        half = self.batch_size // 2
        chosen = rng.integers(len(pairs), size=self.steps * half)
        asked = [f"{pairs[i].question} {pairs[i].answer}" for i in chosen]
        told = [texts[i] for i in rng.integers(len(texts), size=self.steps * (self.batch_size - half))]
        windows = _rows(tokenizer, asked + told)
        order = np.concatenate(
            [
                np.arange(len(asked)).reshape(self.steps, -1),
                len(asked) + np.arange(len(told)).reshape(self.steps, -1),
            ],
            axis=1,
        )
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=128, n_embd=self.hidden_size, n_layer=self.n_layers, n_head=self.n_heads,
            initializer_range=self.initializer_range, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
        recipe = Recipe(
            self.steps, self.batch_size, self.learning_rate, warmup=0.05, weight_decay=0.01, checkpoint_every=200
        )
        done = train(model, windows, recipe, seed=0, order=order.ravel(), checkpoint=job.out / "checkpoint")
        _save(model, tokenizer, job.out)
        return BaseInfo(done.flops, done.windows, done.tokens, notes={"loss": done.final_loss})


@dataclass
class TunedLM:
    """The language model tuned on questions and answers without documents (CaMeLS). Needs ``lm`` and ``corpus``.

    Attributes:
        max_steps: optimizer steps of two batches of 32 pairs, at most; stopped early by the validation pairs.
        learning_rate: Adam's.
        validate_every: steps between validations.
        retrieved: documents of ``streams`` (then needed too) that stand before each question, for what reads them; BM25's best.
    """

    max_steps: PositiveInt = 2000
    learning_rate: PositiveFloat = 2.5e-5
    validate_every: PositiveInt = 100
    retrieved: NonNegativeInt = 0

    def build(self, job: BaseJob) -> BaseInfo:
        """Write the tuned model with its tokenizer."""
        model, tokenizer = load_lm(job.needs["lm"], job.hub)
        if self.retrieved:
            train_pairs, validation = (
                _retrieved(job.needs["streams"], part, self.retrieved) for part in ("train", "streams/validation")
            )
        else:
            train_pairs, validation = (
                read_pairs(job.needs["corpus"] / f"qa_{part}.jsonl") for part in ("train", "validation")
            )
        lengths = {"max_length": max_length(model)} if self.retrieved else {}
        tuning = qa_tune(
            model, tokenizer, train_pairs, validation, job.seed or 0, max_steps=self.max_steps,
            learning_rate=self.learning_rate, validate_every=self.validate_every, **lengths,
        )  # fmt: skip
        _save(model, tokenizer, job.out)
        return BaseInfo(
            tuning.flops,
            samples_seen=64 * tuning.steps,
            notes={"best_step": tuning.best_step, "validation_losses": tuning.validation_losses},
        )


def _retrieved(streams: Path, part: str, k: int) -> list[QAPair]:
    documents = read_documents(streams / f"{part}.jsonl")
    index = BM25([document.text for document in documents])
    return with_documents(index, [pair for document in documents for pair in document.pairs], k)


def max_length(model: Any) -> int:
    """Tokens that a language model can read, two prefix positions left free; 1,024 at most."""
    config = model.config
    positions = getattr(config, "n_positions", None) or getattr(config, "max_position_embeddings", None) or 1024
    return min(int(positions), 1024) - 2


def load_lm(
    folder: Path, hub: Hub | None, quantize: Literal["nf4"] | None = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model of a base, in evaluation mode and where there is a GPU on it, and its tokenizer.

    Raises:
        RematchError: its weights cannot be read, or not in 4 bits here.
    """
    source, dtype = str(folder), "float32"
    if (folder / POINTER).is_file():
        pointer = json.loads((folder / POINTER).read_text(encoding="utf-8"))
        source, dtype = hub.model_path(pointer["id"]) if hub else pointer["id"], pointer["dtype"]
    model: Any = load_causal_lm(source, quantize, getattr(torch, dtype))
    if quantize is None:
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model.eval(), load_tokenizer(source)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _rows(tokenizer: Any, texts: list[str]) -> np.ndarray:
    """Texts with their ends as rows of ids, padded; the padding is not predicted."""
    ids = [[*row, tokenizer.eos_token_id] for row in tokenizer(texts)["input_ids"]]
    longest = max(map(len, ids))
    rows = np.array([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in ids])
    real = np.arange(longest) < np.array([len(row) for row in ids])[:, None]
    return read_only(rows, real)
