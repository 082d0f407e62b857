"""What the language models are made of, and the documents and questions of a seed.

Below the paper tier both come from a generated world: its old facts are the corpus, new documents make the streams.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import PositiveInt

from rematch.arena import BaseInfo, BaseJob
from rematch.errors import RematchError, unknown
from rematch.hub_models import check_model
from workflows.mac.hub_sources import Dataset, anchor_texts
from workflows.mac.hub_streams import evaluation_stream, load_splits, stream
from workflows.mac.streams import Document, Splits, read_documents, read_pairs, write_documents, write_pairs
from workflows.mac.world import Style, World

WORLD, TOKENIZER = "world.json", "tokenizer"
MAIN, VALIDATION = "main", "validation"
"""The stream that everything but ``ood`` is played on, and that on which learning rates are chosen."""
STYLES = {"templates": Style(held_out=True), "dense": Style(n_facts=5, n_fillers=3)}
"""Streams unlike those of meta-training by how their documents are written."""
LONG = "long"
STREAMS = (MAIN, *STYLES, LONG)
"""The streams of the generated world."""


@dataclass
class Corpus:
    """What there is to train and tune a language model on; one copy for all seeds, as a public checkpoint has.

    Attributes:
        n_names: people of the generated world.
        n_documents: about them, of the old world.
        n_validation: pairs of the old world that QA tuning is stopped by.
        dataset: instead of all that: the pairs that a published data set sets apart for QA tuning.
        options: of ``load_splits``, where there is a ``dataset``: ``limits``, ``scale``.
        anchors: beside a ``dataset``: a data set of the hub with texts on which CaMeLS is to leave the language model as it
            is (OpenWebText in its code); they are the documents.
        n_anchors: of them, at most.
        later_models, later_datasets: ids of models, and names of data sets, that other bases need: one that is missing is
            named before anything is trained.
    """

    n_names: PositiveInt = 640
    n_documents: PositiveInt = 4096
    n_validation: PositiveInt = 256
    dataset: Dataset | Literal[""] = ""
    options: Annotated[dict[str, Any], load_splits] = field(default_factory=dict)
    anchors: str = ""
    n_anchors: PositiveInt = 10000
    later_models: list[str] = field(default_factory=list)
    later_datasets: list[Dataset] = field(default_factory=list)

    def build(self, job: BaseJob) -> BaseInfo:
        """Write ``documents``, ``qa_train`` and ``qa_validation``; of the generated world also its tokenizer.

        Raises:
            RematchError: a data set or model is unknown, missing or bad.
        """
        if self.dataset:
            return self._published(job)
        world = World(self.n_names)
        rng = np.random.default_rng([0, *b"corpus"])
        names = [name for part in world.names.values() for name in part]
        chosen = [names[int(i)] for i in rng.integers(len(names), size=self.n_documents)]
        write_documents(job.out / "documents.jsonl", [world.document(name, rng, old=True) for name in chosen])
        pairs = world.old_pairs()
        order = rng.permutation(len(pairs))
        write_pairs(job.out / "qa_validation.jsonl", [pairs[i] for i in order[: self.n_validation]])
        write_pairs(job.out / "qa_train.jsonl", [pairs[i] for i in order[self.n_validation :]])
        world.tokenizer.save_pretrained(job.out / TOKENIZER)
        (job.out / WORLD).write_text(json.dumps({"n_names": self.n_names}), encoding="utf-8")
        return BaseInfo(samples_seen=self.n_documents, notes={"pairs": len(pairs)})

    def _published(self, job: BaseJob) -> BaseInfo:
        for model in self.later_models:
            check_model(job.hub, model)
        for name in self.later_datasets:
            _load(job, name, self.options, seed=0)
        splits = _load(job, self.dataset, self.options, seed=0)
        anchors = anchor_texts(job.hub, self.anchors)[: self.n_anchors] if self.anchors else []
        write_pairs(job.out / "qa_train.jsonl", splits.qa_train)
        write_pairs(job.out / "qa_validation.jsonl", splits.qa_validation)
        write_documents(job.out / "documents.jsonl", [Document(self.anchors, text, ()) for text in anchors])
        return BaseInfo(samples_seen=len(splits.qa_train), notes={**splits.dropped, "anchors": len(anchors)})


@dataclass
class Streams:
    """Documents to meta-train on, and the streams that what was trained adapts to. Needs ``corpus``.

    Attributes:
        n_train: documents to meta-train on; of the generated world about the names for that.
        n_validation: names that the validation stream speaks of, of its own, twice each on different relations, so that it is as
            long as others; of a data set its documents, fewer where it has fewer.
        n_stream: documents of a stream, about the names for testing, once each; twice as many in the long one.
        dataset: instead of the world: a published data set; its evaluation stream of ``n_stream`` documents is the main one,
            and the long one is of its test part, where that has as many.
        others: further data sets, each a stream of as many documents under its name.
        options: of ``load_splits``: ``limits``, ``deduplicate``, ``scale``.
    """

    n_train: PositiveInt = 8192
    n_validation: PositiveInt = 64
    n_stream: PositiveInt = 128
    dataset: Dataset | Literal[""] = ""
    others: list[Dataset] = field(default_factory=list)
    options: Annotated[dict[str, Any], load_splits] = field(default_factory=dict)

    def build(self, job: BaseJob) -> BaseInfo:
        """Write ``train`` and a file for each stream.

        Raises:
            RematchError: the world has not enough names, or a data set is missing, bad or too small.
        """
        seed = job.seed or 0
        notes: dict[str, Any] = {}
        if self.dataset:
            splits = _load(job, self.dataset, self.options, seed)
            notes[self.dataset] = dict(splits.dropped)
            train = self._drawn(job, "n_train", self.dataset, splits.train)
            streams = {
                MAIN: self._evaluation(job, self.dataset, splits),
                VALIDATION: stream(splits.validation, min(self.n_validation, len(splits.validation)), seed),
            }
            if 2 * self.n_stream <= len(splits.test):
                streams[LONG] = stream(splits.test, 2 * self.n_stream, seed)
            for dataset in self.others:
                other = _load(job, dataset, self.options, seed)
                notes[dataset] = dict(other.dropped)
                streams[dataset] = self._evaluation(job, dataset, other)
        else:
            train, streams = self._generate(job.needs["corpus"], seed)
        write_documents(job.out / "train.jsonl", train)
        for name, documents in streams.items():
            write_documents(stream_path(job.out, name), documents)
        digest = hashlib.sha256(stream_path(job.out, MAIN).read_bytes()).hexdigest()[:16]
        return BaseInfo(samples_seen=len(train), data_hash=digest, notes=notes)

    def _evaluation(self, job: BaseJob, dataset: str, splits: Splits) -> list[Document]:
        if not splits.released:
            return self._drawn(job, "n_stream", dataset, splits.test)
        return evaluation_stream(splits, self.n_stream, job.seed or 0)

    def _drawn(self, job: BaseJob, key: str, dataset: str, documents: Sequence[Document]) -> list[Document]:
        """As many documents as the option ``key`` says."""
        n = int(getattr(self, key))
        if n > len(documents):
            raise RematchError(
                f"bases.{job.name}: {key}: {n}; allowed: 1 to {len(documents)}, what there is of {dataset}"
            )
        return stream(documents, n, job.seed or 0)

    def _generate(self, corpus: Path, seed: int) -> tuple[list[Document], dict[str, list[Document]]]:
        world = World(**json.loads((corpus / WORLD).read_text(encoding="utf-8")))

        def rng(purpose: str) -> np.random.Generator:
            return np.random.default_rng([seed, *purpose.encode()])

        # A name that came twice would have two answers to one question.
        for key, n, part in (("n_stream", self.n_stream, "test"), ("n_validation", self.n_validation, "validation")):
            if n > len(world.names[part]):
                raise RematchError(
                    f"bases.streams: {key}: {n}; the world has {len(world.names[part])} names for {part}"
                )
        streams = {
            MAIN: world.documents("test", self.n_stream, rng(MAIN)),
            VALIDATION: world.long_stream("validation", self.n_validation, rng(VALIDATION)),
            LONG: world.long_stream("test", self.n_stream, rng(LONG)),
        }
        for name, style in STYLES.items():
            streams[name] = world.documents("test", self.n_stream, rng(name), style)
        return world.documents("train", self.n_train, rng("train")), streams


def _load(job: BaseJob, dataset: str, options: dict[str, Any], seed: int) -> Any:
    for name in options:
        if name not in ("limits", "deduplicate", "scale"):
            raise unknown("option", name, ("limits", "deduplicate", "scale"), f"bases.{job.name}: options")
    return load_splits(job.hub, dataset, seed=seed, **options)


def stream_path(streams: Path, name: str) -> Path:
    """The file of a stream, in the folder of the base ``streams``."""
    return streams / "streams" / f"{name}.jsonl"


def read_stream(streams: Path, name: str) -> list[Document]:
    """The documents of a stream.

    Raises:
        RematchError: there is no such stream.
    """
    if not stream_path(streams, name).is_file():
        raise unknown("stream", name, sorted(path.stem for path in (streams / "streams").glob("*.jsonl")), "mac")
    return read_documents(stream_path(streams, name))


__all__ = ["MAIN", "STREAMS", "VALIDATION", "Corpus", "Streams", "read_documents", "read_pairs", "read_stream"]
