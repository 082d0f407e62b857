"""Online fine-tuning in the arena: one step on every document, weighted uniformly, by salient spans or as CaMeLS learned."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from baselines.online import Document as Tokens
from baselines.online import EntitySpans, OnlineFinetuner, WeightNet, encode_documents
from baselines.online.finetuning import WeightsFn, salient, uniform
from baselines.online.memory import PeakBytes
from rematch.arena import Task
from rematch.errors import RematchError
from workflows.mac.players import Asking, Costs, Player, tensors_of
from workflows.mac.streams import Document
from workflows.mac.weights import n_documents


class FinetuningPlayer(Player):
    """A language model whose weights change with every document."""

    def __init__(
        self,
        task: Task,
        asking: Asking,
        counting: bool,
        learning_rate: float,
        clip: float,
        n_positions: int | None = None,
    ) -> None:
        super().__init__(task, asking, counting)
        self.finetuner = OnlineFinetuner(self.lm, self.weights(), learning_rate, clip, n_positions, task.seed)

    def weights(self) -> WeightsFn:
        """The weight of every token of a document."""
        return uniform

    def encode(self, documents: Sequence[Document]) -> list[Tokens]:
        """Documents as token ids."""
        return encode_documents(self.tokenizer, [document.text for document in documents], self.asking.max_document)

    def adapt(self, documents: Sequence[Document]) -> None:
        self._train(self.encode(documents))
        self.n_seen += len(documents)

    def _train(self, documents: Sequence[Tokens]) -> None:
        self.finetuner.adapt(documents)
        if self.counting:
            self.adapt_flops = self.finetuner.flops

    def adapt_within(self, documents: Sequence[Document], flops: float) -> None:
        self.adapt(documents)
        tokens, more, spent = self.encode(documents), [], self.finetuner.flops
        for document in itertools.cycle(tokens):
            step = self.finetuner.flops_of(document)
            if spent + step / 2 > flops:
                break
            more.append(document)
            spent += step
        self._train(more)

    def document_costs(self, document: Document) -> Costs:
        """Of one step, gradients and the optimizer's state included."""
        new = type(self)(self.task, self.asking, False, **self._options())
        tokens = new.encode([document])
        with PeakBytes() as memory:
            new.finetuner.adapt(tokens)
        return Costs(peak=memory.peak, saved=new.finetuner.cost.saved_bytes)

    def _options(self) -> dict[str, Any]:
        own = self.finetuner
        rate = own.optimizer.param_groups[0]["lr"]
        return {"learning_rate": rate, "clip": own.clip, "n_positions": own.n_positions}


class SalientPlayer(FinetuningPlayer):
    """Learns the tokens of salient spans only: the generator's own, or where a text has none known those that spaCy finds."""

    def weights(self) -> WeightsFn:
        return salient

    @cached_property
    def _entities(self) -> Callable[[str], Sequence[tuple[int, int]]]:
        return EntitySpans()

    def encode(self, documents: Sequence[Document]) -> list[Tokens]:
        known = {document.text: document.salient for document in documents if document.salient}
        return encode_documents(
            self.tokenizer,
            [document.text for document in documents],
            self.asking.max_document,
            lambda text: known.get(text) or self._entities(text),
        )


class CamelsPlayer(FinetuningPlayer):
    """Weighs tokens as its network learned to: the base that was meta-trained on as many documents as the level says."""

    def weights(self) -> WeightsFn:
        folders = {n_documents(path): name for name, path in self.task.bases.items() if name.startswith("weights")}
        wanted = int(self.task.level) if self.task.axis == "data_efficiency" else max(folders)
        if wanted not in folders:
            known = ", ".join(map(str, sorted(folders)))
            raise RematchError(f"no weight network was meta-trained on {wanted} documents; there are: {known}")
        info = self.task.base_info[folders[wanted]]
        self.meta_flops, self.meta_texts = info.train_flops, info.samples_seen
        self.net = WeightNet.from_pretrained(self.task.bases[folders[wanted]]).to(self.lm.device)
        return self.net.weigh

    def networks(self) -> Sequence[Tensor]:
        return tensors_of(self.net)


@dataclass
class Uniform:
    """Online fine-tuning on every token alike.

    Attributes:
        learning_rate: Adam's.
        clip: largest norm of a document's gradient.
        n_positions: tokens and padding of a document that the mean of its loss counts on; 1,024 in the official code, so that a
            long document weighs more than a short one. None: as many as it has.
    """

    learning_rate: PositiveFloat = 6.5e-6
    clip: PositiveFloat = 750.0
    n_positions: PositiveInt | None = None
    plays: ClassVar[type[FinetuningPlayer]] = FinetuningPlayer

    def player(self, task: Task, asking: Asking, counting: bool) -> Player:
        return self.plays(task, asking, counting, self.learning_rate, self.clip, self.n_positions)


@dataclass
class SalientSpans(Uniform):
    """Online fine-tuning on salient spans."""

    plays: ClassVar[type[FinetuningPlayer]] = SalientPlayer


@dataclass
class Camels(Uniform):
    """Online fine-tuning with learned weights."""

    learning_rate: PositiveFloat = 2.5e-5
    plays: ClassVar[type[FinetuningPlayer]] = CamelsPlayer
