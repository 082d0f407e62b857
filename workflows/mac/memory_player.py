"""MAC in the arena: documents into the bank, questions to the bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from baselines.online import BM25
from baselines.online.memory import PeakBytes
from baselines.qa import QABatch
from methods.mac.bank import Policy
from rematch.arena import Task
from rematch.errors import RematchError, unknown
from rematch.flops import count_flops
from rematch.play import Skip
from workflows.mac.memory import load_memory, read_notes
from workflows.mac.players import Asking, Costs, Player, texts
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
        self.meta_flops = task.base_info[self.base].train_flops
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
        ask = self.asking
        return self.mac.answer(
            questions,
            group_size=self.options.group_size,
            select=self._visible(questions, gold),
            max_new_tokens=ask.max_new_tokens,
            beams=ask.beams,
            batch_size=ask.batch_size,
            prompts=BM25(self.texts).prepended(questions, self.reads) if self.reads else None,
        )

    def _nll(self, beginnings: Sequence[str], batch: QABatch) -> tuple[Tensor, Tensor]:
        return self.mac.answer_nll(self.mac.aggregate(beginnings, group_size=self.options.group_size), batch)

    def _visible(self, questions: Sequence[str], gold: Sequence[int]) -> Tensor | None:
        """The entries that each question may look at; None for all."""
        if self.options.sees == "gold" or self.mac.aggregator is None:
            return torch.tensor(gold)[:, None]
        if self.options.sees == "retrieved":
            return torch.from_numpy(BM25(self.texts).search(questions, self.options.top_k))
        return None

    @property
    def own_flops(self) -> float:
        return float(sum(self.notes["stream_flops"].values()))

    @property
    def notes(self) -> dict[str, Any]:
        return read_notes(self.task.bases[self.base])

    def attention_mass(self, questions: Sequence[str], gold: Sequence[int]) -> Tensor:
        options = self.options
        if (
            options.limit is not None
            or options.group_size is not None
            or options.sees != "all"
            or not self.mac.aggregator
        ):
            raise Skip("its questions do not look at the whole bank at once")
        return self.mac.attention_mass(questions)[torch.arange(len(questions)), :, torch.tensor(gold)]

    def document_costs(self, document: Document) -> Costs:
        """Of amortizing it; its entry stays."""
        with PeakBytes() as memory, torch.no_grad():
            entry = self.mac.amortize([document.text])
        return Costs(peak=memory.peak, kept=entry.nbytes)

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

    group_size: int | None = None
    limit: int | None = None
    policy: Policy = "nearest_average"
    sees: Sees = "all"
    top_k: int = 5

    def player(self, task: Task, asking: Asking, counting: bool) -> Player:
        if self.sees not in get_args(Sees):
            raise unknown("sees", self.sees, get_args(Sees), "mac")
        return MemoryPlayer(task, asking, counting, self)
