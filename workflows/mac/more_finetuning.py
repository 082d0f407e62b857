"""Online fine-tuning as CaMeLS has it and MAC's tables have not: weighted by TF-IDF, and tuned on questions afterwards."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from baselines.online import Document as Tokens
from baselines.online import TfIdf, encode_documents, given
from baselines.online.finetuning import WeightsFn
from baselines.qa import qa_tune
from workflows.mac.corpus import read_documents, read_pairs
from workflows.mac.finetuning import FinetuningPlayer, Uniform
from workflows.mac.players import texts
from workflows.mac.streams import Document


class TfIdfPlayer(FinetuningPlayer):
    """Weighs tokens by how rare their word is, counted in all documents of the seed; as released, the stream's too."""

    def weights(self) -> WeightsFn:
        return given

    @cached_property
    def _tf_idf(self) -> TfIdf:
        folder = self.task.bases["streams"]
        files = [folder / "train.jsonl", *sorted((folder / "streams").glob("*.jsonl"))]
        return TfIdf([document.text for file in files for document in read_documents(file)])

    def encode(self, documents: Sequence[Document]) -> list[Tokens]:
        return encode_documents(self.tokenizer, texts(documents), self.asking.max_document, weigh_fn=self._tf_idf)


class RetunedPlayer(FinetuningPlayer):
    """Before it is asked, a copy is tuned on questions again, as the language model was before the stream.

    What that costs counts as answering.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._tuned: tuple[int, Any] = (-1, None)
        """After how many steps on documents a copy was tuned, and the copy."""

    def _tune(self) -> Any:
        if self._tuned[0] != self.finetuner.cost.steps:
            corpus, options, model = self.task.bases["corpus"], self.task.contender, copy.deepcopy(self.lm)
            pairs, validation = (read_pairs(corpus / f"qa_{part}.jsonl") for part in ("train", "validation"))
            tuning = qa_tune(
                model, self.tokenizer, pairs, validation, self.task.seed, max_steps=options.max_steps,
                learning_rate=options.tuning_rate, validate_every=options.validate_every,
            )  # fmt: skip
            self._tuned = (self.finetuner.cost.steps, model)
            if self.counting:
                self.answer_flops += tuning.flops
        return self._tuned[1]

    def answer(self, questions: Sequence[str], gold: Sequence[int]) -> list[str]:
        self._tune()  # counts for itself
        return super().answer(questions, gold)

    def _answer(self, questions: Sequence[str], gold: Sequence[int]) -> list[str]:
        return self._generate(questions, self.asking.max_length, self._tune())


@dataclass
class TfIdfWeighted(Uniform):
    """Online fine-tuning with TF-IDF as weights."""

    plays: ClassVar[type[FinetuningPlayer]] = TfIdfPlayer


@dataclass
class UniformRetuned(Uniform):
    """Online fine-tuning on every token alike, then tuning on questions (CaMeLS: Uniform + QA-tune).

    Attributes:
        max_steps, tuning_rate, validate_every: of tuning; see ``language_models.TunedLM``.
    """

    max_steps: PositiveInt = 2000
    tuning_rate: PositiveFloat = 2.5e-5
    validate_every: PositiveInt = 100
    plays: ClassVar[type[FinetuningPlayer]] = RetunedPlayer
