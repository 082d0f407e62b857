"""The base ``corpus``: tokenizer, training windows, and everything that contenders are scored on, the same for all seeds."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from rematch.arena import BaseInfo, BaseJob
from rematch.corpora import Document, Split, corpus_hash, python_documents, split_documents
from workflows.simba import items, recall
from workflows.simba.shapes import Shapes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
SEED = 2505
CHOICE_FILE, CLOZE_FILE = "choice.jsonl", "cloze.jsonl"


@dataclass
class Corpus:
    """Documents as token windows. Built in: the Python installation's own; else a dataset of the hub.

    Attributes:
        max_bytes: size of the built-in corpus in characters.
        dataset: id of a hub dataset with ``train``, ``validation`` and ``test`` splits instead; None for the built-in one.
        dataset_revision: its revision on the hub (a mirror has one only), None for the main one.
        train_dataset: id of a hub dataset whose ``train`` and ``validation`` splits are used instead.
        text_column: the column of text.
        max_documents: documents read of each of its splits.
        tokenizer: hub id of a model whose tokenizer is used; None trains a byte-level BPE on the training documents.
        vocab_size: of that BPE, the words of the recall documents and the end-of-text token included.
        recall_share: share of the training windows that are recall documents; 0 for none, at test neither.
        recall_queries: queries in one of them, at most; at least half as many.
        recall_distances: tokens from the definition to the answer, at test.
        test_contexts: lengths of the windows on which perplexity is measured. All end at the same places, so that only
            the context differs.
        n_windows, n_recall, n_choice, n_cloze: items of each kind (recall: for each distance).
    """

    max_bytes: PositiveInt = 3_000_000
    dataset: str | None = None
    dataset_revision: str | None = None
    train_dataset: str | None = None
    text_column: str = "text"
    max_documents: PositiveInt = 1000
    tokenizer: str | None = None
    vocab_size: PositiveInt = 1024
    recall_share: Annotated[float, Field(ge=0, lt=1)] = 0.25
    recall_queries: PositiveInt = 20
    recall_distances: list[PositiveInt] = field(default_factory=lambda: [32, 64, 128, 200])
    test_contexts: list[PositiveInt] = field(default_factory=lambda: [256, 512, 1024])
    n_windows: PositiveInt = 48
    n_recall: NonNegativeInt = 12
    n_choice: NonNegativeInt = 48
    n_cloze: NonNegativeInt = 64

    def build(self, job: BaseJob) -> BaseInfo:
        """Write tokenizer, windows (.npy, ids) and items (.jsonl) into ``job.out``."""
        shapes = Shapes.of(job.arena)
        rng = np.random.default_rng(SEED)
        split = self._documents(job)
        tokenizer = self._tokenizer(split.train, job)
        tokenizer.save_pretrained(job.out)
        streams = {name: _stream(getattr(split, name), tokenizer) for name in ("train", "validation")}
        print({name: len(stream) for name, stream in streams.items()}, "tokens", flush=True)

        windows = _windows(streams["train"], shapes.context)
        n_recall = round(len(windows) * self.recall_share / (1 - self.recall_share))
        if n_recall:
            made = [self._recall_training(rng, streams["train"], tokenizer, shapes) for _ in range(n_recall)]
            windows = rng.permutation(np.concatenate([windows, np.stack(made)]))
        _save(job.out / "train.npy", windows)
        _save(job.out / "validation.npy", _windows(streams["validation"], shapes.context))

        _save(job.out / "test.npy", self._test_windows(split.test, tokenizer, shapes, rng))
        if n_recall:
            test_stream = _stream(split.test, tokenizer)
            for distance in self.recall_distances:
                rows = [
                    recall.scored_window(rng, test_stream, tokenizer.encode, shapes.context, distance)
                    for _ in range(self.n_recall)
                ]
                _save(job.out / f"recall_{distance}.npy", np.stack(rows))
        for file, make, n, length in (
            (CHOICE_FILE, items.choice_items, self.n_choice, shapes.choice_continuation),
            (CLOZE_FILE, items.cloze_items, self.n_cloze, shapes.value_length),
        ):
            if n:
                items.write_items(make(split.test, tokenizer, n, shapes.choice_context, length, SEED), job.out / file)
        everything = [*split.train, *split.validation, *split.test]
        return BaseInfo(
            samples_seen=len(everything),
            tokens_seen=int(windows.size),
            data_hash=corpus_hash(everything),
            notes={"python": sys.version.split()[0], "dataset": self.dataset or "the Python installation",
                   "train_windows": len(windows), "recall_windows": n_recall},
        )  # fmt: skip

    def _documents(self, job: BaseJob) -> Split:
        if self.dataset is None:
            return split_documents(python_documents(self.max_bytes))
        train = self.train_dataset or self.dataset
        sources = {"train": train, "validation": train, "test": self.dataset}
        return Split(**{split: self._hub_documents(source, split, job) for split, source in sources.items()})

    def _hub_documents(self, dataset: str, split: str, job: BaseJob) -> tuple[Document, ...]:
        from datasets import load_dataset

        path = job.hub.dataset_path(dataset)
        revision = self.dataset_revision if path == self.dataset else None
        rows = islice(load_dataset(path, split=split, revision=revision, streaming=True), self.max_documents)
        return tuple(Document("text", f"{split}/{i}", row[self.text_column]) for i, row in enumerate(rows))

    def _tokenizer(self, documents: Sequence[Document], job: BaseJob) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            return train_tokenizer(documents, self.vocab_size)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(job.hub.model_path(self.tokenizer))

    def _recall_training(
        self, rng: np.random.Generator, stream: np.ndarray, tokenizer: PreTrainedTokenizerBase, shapes: Shapes
    ) -> np.ndarray:
        n_queries = int(rng.integers(self.recall_queries // 2, self.recall_queries + 1))
        return recall.training_window(rng, stream, tokenizer.encode, shapes.context, n_queries)

    def _test_windows(
        self,
        documents: Sequence[Document],
        tokenizer: PreTrainedTokenizerBase,
        shapes: Shapes,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Windows (n_windows, longest context) that each lie within one document; documents take turns."""
        longest = max(self.test_contexts)
        encoded = [np.asarray(tokenizer.encode(document.text), dtype=np.int64) for document in documents]
        # The scored ends of two windows of one document must not overlap.
        ends = [list(range(longest, len(ids) + 1, shapes.n_scored)) for ids in encoded]
        chosen: list[np.ndarray] = []
        order = [int(i) for i in rng.permutation(len(encoded))]
        while len(chosen) < self.n_windows and any(ends):
            for index in order:
                if ends[index] and len(chosen) < self.n_windows:
                    end = ends[index].pop(int(rng.integers(len(ends[index]))))
                    chosen.append(encoded[index][end - longest : end])
        if len(chosen) < self.n_windows:
            raise ValueError(
                f"the test documents hold {len(chosen)} windows of {longest} tokens, {self.n_windows} are wanted"
            )
        return np.stack(chosen)


def train_tokenizer(documents: Sequence[Document], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE as a transformers tokenizer; digits and the words of the recall documents are tokens of their own."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(recall.WORDS),
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    tokenizer.add_tokens([AddedToken(word, single_word=True, lstrip=True, normalized=False) for word in recall.WORDS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def load_tokenizer(corpus: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a built corpus."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(corpus)


def load_windows(corpus: Path, name: str) -> np.ndarray:
    """Token windows of a built corpus, (n, length) int64: ``train``, ``validation``, ``test`` or ``recall_<distance>``."""
    return np.load(corpus / f"{name}.npy", allow_pickle=False).astype(np.int64)


def recall_distances(corpus: Path) -> list[int]:
    """The distances for which a built corpus holds recall windows, ascending."""
    return sorted(int(path.stem.partition("_")[2]) for path in corpus.glob("recall_*.npy"))


def _stream(documents: Sequence[Document], tokenizer: Any) -> np.ndarray:
    """All documents one after the other, each ended by the end-of-text token, (n,)."""
    end = [tokenizer.eos_token_id]

    def pieces() -> Iterator[np.ndarray]:
        for document in documents:
            yield np.asarray(tokenizer.encode(document.text) + end, dtype=np.int64)

    return np.concatenate(list(pieces()))


def _windows(stream: np.ndarray, length: int) -> np.ndarray:
    return stream[: len(stream) // length * length].reshape(-1, length)


def _save(path: Path, ids: np.ndarray) -> None:
    np.save(path, ids.astype(np.int16 if ids.max() < 2**15 else np.int32))
