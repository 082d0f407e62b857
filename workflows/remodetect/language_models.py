"""The language models: n-gram models that write the texts and score them, or models of the hub that score."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import torch
from pydantic import PositiveInt
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from baselines.detectors.language_models import CausalLM, LanguageModel
from baselines.detectors.resampling import Filler, NGramFiller, T5Filler
from baselines.ngram import NGram
from rematch.arena import BaseInfo, BaseJob
from rematch.hub import Hub
from rematch.hub_models import check_model
from workflows.remodetect.corpus import DOMAINS, load_part, load_vocabulary

POINTER = "hub.json"
WRITERS = ("a", "b", "bigram")
"""Two trigram models fitted on different halves of a domain's documents, and a bigram model on the first half."""


class HubIds(TypedDict):
    """Models of the hub."""

    scoring: str
    reference: str
    filler: str


@dataclass
class LanguageModels:
    """The writers of each domain and the two models that detectors score with.

    The domain that detectors are trained on has writers of its own; the others share theirs, fitted on all of them.

    Attributes:
        order: words in the longest n-gram of the trigram models.
        discount: of the interpolated absolute discounting.
        hub_ids: instead of fitting: ``scoring`` and ``reference``, causal language models with one tokeniser, and
            ``filler``, a T5, by their ids on the hub.
        max_length: tokens of a text that a model of the hub reads.
        dtype: of the models of the hub: ``float16`` on a GPU.
    """

    order: PositiveInt = 3
    discount: float = 0.75
    hub_ids: Annotated[dict[str, str], HubIds] = field(default_factory=dict)
    max_length: PositiveInt = 512
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def build(self, job: BaseJob) -> BaseInfo:
        """Write a folder for each model, or a pointer to the hub."""
        if self.hub_ids:
            for model in dict.fromkeys(self.hub_ids.values()):
                check_model(job.hub, model)
            pointer = {"ids": self.hub_ids, "max_length": self.max_length, "dtype": self.dtype}
            (job.out / POINTER).write_text(json.dumps(pointer), encoding="utf-8")
            return BaseInfo(notes=self.hub_ids)
        corpus = job.needs["corpus"]
        vocabulary = load_vocabulary(corpus)
        tokens = 0
        for world, domains in (("seen", DOMAINS[:1]), ("unseen", DOMAINS[1:])):
            half = {part: [w for d in domains for w in load_part(corpus, d, f"lm_{part}")] for part in ("a", "b")}
            tokens += sum(len(window) for windows in half.values() for window in windows)
            for writer in WRITERS:
                order = 2 if writer == "bigram" else self.order
                windows = half["b" if writer == "b" else "a"]
                ngram = NGram.fit(windows, order=order, discount=self.discount, vocabulary=vocabulary)
                ngram.save(job.out / f"{world}_{writer}")
        return BaseInfo(tokens_seen=tokens)


def load_writers(folder: Path, domain: str) -> dict[str, NGram]:
    """The n-gram models that write in a domain, by name."""
    world = "seen" if domain == DOMAINS[0] else "unseen"
    return {writer: NGram.load(folder / f"{world}_{writer}") for writer in WRITERS}


def load_scoring(folder: Path, hub: Hub | None) -> LanguageModel:
    """The model whose likelihoods detectors use: the second half's, which wrote none of the texts seen in training."""
    return _load(folder, hub, "scoring", "seen_b")


def load_both(folder: Path, hub: Hub | None) -> tuple[LanguageModel, LanguageModel]:
    """The scoring and the reference model; one object where both are the same model."""
    ids = _pointer(folder).get("ids", {})
    scoring = load_scoring(folder, hub)
    same = bool(ids) and ids["scoring"] == ids["reference"]
    return scoring, scoring if same else load_reference(folder, hub)


def load_reference(folder: Path, hub: Hub | None) -> LanguageModel:
    """The model that Fast-DetectGPT samples from in thought."""
    return _load(folder, hub, "reference", "seen_a")


def load_filler(folder: Path, hub: Hub | None) -> Filler:
    """What fills the spans that DetectGPT and NPR mask."""
    pointer = _pointer(folder)
    if pointer:
        path = _path(hub, pointer["ids"]["filler"])
        model = AutoModelForSeq2SeqLM.from_pretrained(path, dtype=pointer["dtype"]).to(device())
        return T5Filler(model, AutoTokenizer.from_pretrained(path))
    return NGramFiller(NGram.load(folder / "seen_a"))


def device() -> str:
    """Where models of the hub run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _load(folder: Path, hub: Hub | None, role: str, ours: str) -> LanguageModel:
    pointer = _pointer(folder)
    if pointer:
        path = _path(hub, pointer["ids"][role])
        dtype = getattr(torch, pointer["dtype"])
        return CausalLM.from_pretrained(path, dtype=dtype, device=device(), max_length=pointer["max_length"])
    return NGram.load(folder / ours)


def _pointer(folder: Path) -> dict[str, Any]:
    path = folder / POINTER
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _path(hub: Hub | None, model: str) -> str:
    return hub.model_path(model) if hub else model
