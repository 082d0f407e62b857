"""MAC in the arena: documents into the bank, questions to the bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from pydantic import PositiveInt
from torch import Tensor

from baselines.online import BM25
from baselines.online.memory import PeakBytes
from baselines.qa import em_strict
from methods.mac.bank import Policy
from rematch.arena import Task
from rematch.errors import RematchError, unknown
from rematch.flops import count_flops
from rematch.play import Skip
from workflows.mac.memory import load_memory, look_up_flops, read_notes
from workflows.mac.players import Asking, Costs, Player, asked_of, texts
from workflows.mac.streams import Document

Sees = Literal["all", "retrieved", "gold"]


class MemoryPlayer(Player):
    """A frozen language model with a memory bank."""

    def __init__(self, task: Task, asking: Asking, counting: bool, contender: MemoryOfContexts) -> None:
        super().__init__(task, asking, counting)
        self.options = contender
        bases = task.bases
        folders = {read_notes(path)["n_documents"]: name for name, path in bases.items() if name.startswith("memory")}
        wanted = int(task.level) if task.axis == "data_efficiency" else max(folders)
        if wanted not in folders:
            known = ", ".join(map(str, sorted(folders)))
            raise RematchError(f"no MAC was meta-trained on {wanted} documents; there are: {known}")
        self.base = folders[wanted]
        self.mac = load_memory(bases[self.base], bases, task.hub)
        self.reads = int(read_notes(bases[self.base])["reads"])
        info = task.base_info[self.base]
        self.meta_flops, self.meta_texts = info.train_flops, info.samples_seen
        self.texts: list[str] = []
        self._generator = torch.Generator().manual_seed(task.seed)

    @property
    def lm(self) -> object:
        return self.mac.lm

    def adapt(self, documents: Sequence[Document]) -> None:
        def read() -> None:
            self.mac.adapt(
                texts(documents), limit=self.options.limit, policy=self.options.policy, generator=self._generator
            )

        if self.counting:
            self.adapt_flops += count_flops(read).forward
        else:
            read()
        self.texts += texts(documents)
        self.n_seen += len(documents)

    def _answer(self, questions: Sequence[str], gold: Sequence[int]) -> list[str]:
        return self._answer_from(questions, self._visible(questions, gold), self.options.group_size)

    def _answer_from(self, questions: Sequence[str], select: Tensor | None, group_size: int | None) -> list[str]:
        ask = self.asking
        return self.mac.answer(
            questions,
            group_size=group_size,
            select=select,
            max_new_tokens=ask.max_new_tokens,
            beams=ask.beams,
            batch_size=ask.batch_size,
            prompts=BM25(self.texts).prepended(questions, self.reads) if self.reads else None,
        )

    def _visible(self, questions: Sequence[str], gold: Sequence[int]) -> Tensor | None:
        """The entries that each question may look at; None for all."""
        if self.options.sees == "gold" or self.mac.aggregator is None:
            return torch.tensor(gold)[:, None]
        if self.options.sees == "retrieved":
            return torch.from_numpy(BM25(self.texts).search(questions, self.options.top_k))
        return None

    def right_in_groups(self, documents: Sequence[Document], size: int) -> list[float]:
        """Entries do not depend on each other: a bank of some documents is their rows of the bank of all."""
        if not self._looks_at_all:
            return super().right_in_groups(documents, size)
        asked = asked_of(documents)
        rows = torch.tensor([[place // size * size + k for k in range(size)] for place, _ in asked])
        answers = self._answer_from([pair.question for _, pair in asked], rows, None)
        return [em_strict(answer, pair.answer) for answer, (_, pair) in zip(answers, asked, strict=True)]

    def own_flops(self, questions: Sequence[str], gold: Sequence[int]) -> float:
        select = self._visible(questions, gold)
        return self.adapt_flops + look_up_flops(
            self.mac, questions, self.asking.batch_size, self.options.group_size, select
        )

    def networks(self) -> Sequence[Tensor]:
        parts = [*self.mac.named_parameters(), *self.mac.named_buffers()]
        return [tensor for name, tensor in parts if not name.startswith("lm.")]

    @property
    def _looks_at_all(self) -> bool:
        """Whether a question looks at the entries of all documents at once."""
        options = self.options
        whole = options.limit is None and options.group_size is None and options.sees == "all"
        return whole and self.mac.aggregator is not None

    @property
    def notes(self) -> dict[str, Any]:
        return read_notes(self.task.bases[self.base])

    def attention_mass(self, questions: Sequence[str], gold: Sequence[int]) -> Tensor:
        if not self._looks_at_all:
            raise Skip("its questions do not look at the whole bank at once")
        return self.mac.attention_mass(questions)[torch.arange(len(questions)), :, torch.tensor(gold)]

    def document_costs(self, document: Document) -> Costs:
        """Of amortizing it beside the bank; its entry stays."""
        with PeakBytes() as memory, torch.no_grad():
            entry = self.mac.amortize([document.text])
        return Costs(peak=memory.peak + self.mac.bank.tensor.nbytes, kept=entry.nbytes)

    def question_costs(self, question: str) -> Costs:
        """Of aggregating over the bank for one question, the bank itself left out."""
        with PeakBytes() as memory, torch.no_grad():
            self.mac.aggregate([question], group_size=self.options.group_size, select=self._visible([question], [0]))
        return Costs(peak=memory.peak, kept=self.mac.bank.tensor.nbytes)


@dataclass
class MemoryOfContexts:
    """MAC.

    Attributes:
        group_size: documents that are aggregated at once, hierarchically; None for the whole bank.
        limit: entries that the bank may hold; None for all.
        policy: how it is kept to that; see ``MemoryBank.limit``.
        sees: the entries that a question may look at: ``all``, the ``top_k`` documents ``retrieved`` by BM25 (ours), or the
            ``gold`` document's alone, an oracle.
        top_k: documents retrieved.
    """

    group_size: PositiveInt | None = None
    limit: PositiveInt | None = None
    policy: Policy = "nearest_average"
    sees: Sees = "all"
    top_k: PositiveInt = 5

    def player(self, task: Task, asking: Asking, counting: bool) -> Player:
        if self.sees not in get_args(Sees):
            raise unknown("sees", self.sees, get_args(Sees), "mac")
        return MemoryPlayer(task, asking, counting, self)
