"""MAC as it is meta-trained for the arena, and how a match gets it back."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, get_args

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from transformers import AutoModel, T5Config

from baselines.online import BM25
from baselines.online.memory import SavedBytes
from baselines.qa import QAPair, prefix_pair
from methods.mac.config import MACConfig
from methods.mac.dropout import BackpropDropout, GradientMask
from methods.mac.model import MAC
from methods.mac.training import Example, Recipe, Training, train
from rematch.arena import BaseInfo, BaseJob
from rematch.errors import RematchError, unknown
from rematch.flops import count_flops
from rematch.hub import Hub
from rematch.hub_models import check_model
from rematch.options import known, made
from workflows.mac.corpus import MAIN, read_documents, read_stream
from workflows.mac.language_models import load_lm
from workflows.mac.lengths import lengths_of
from workflows.mac.streams import Document
from workflows.mac.world import question_key

NOTES = "memory.json"
BATCH = 64
"""Questions at once, as of the arena."""
Of = Literal["documents", "sentences"]
"""What a stage of training reads."""
Query = Literal["question", "beginning"]
CURVE_POINTS = 15
"""Of a stage's learning curve."""
LMS = {"tuned": "qa_lm", "plain": "lm", "reader": "reader_lm"}
"""The base that each ``base_lm`` is."""


class Stage(TypedDict):
    """What a stage of training has beside the fields of its ``Recipe``."""

    of: Of


@dataclass
class Memory:
    """MAC, meta-trained. Needs ``streams`` and the language model that ``base_lm`` names.

    Where it needs ``memory_start``, it goes on from that one's networks and has no sizes and encoders of its own; what training
    the start cost is part of its cost. Texts are read as far as the arena's ``max_document``, ``max_length`` and ``max_answer``
    say.

    Attributes:
        sizes: fields of ``MACConfig`` other than lengths; ``max_length`` where documents stand before a question.
        encoder: of documents: the id of a T5 on the hub; a T5 of ``encoder_sizes`` with weights of the seed where there is
            none, with the language model's token embeddings. Questions' has the same weights at first.
        question_encoder: another id for the encoder of questions.
        encoder_sizes: fields of ``T5Config``.
        base_lm: the language model that is frozen: ``tuned`` on questions, as all baselines have it, ``plain``, or the ``reader``,
            which was tuned on questions behind retrieved documents.
        reads: documents that BM25 finds, which the language model reads before a question in training too.
        query: what meta-training asks a document: its ``question``, or for the rest of it by its ``beginning`` (table 6); answers
            have no end then.
        quantize: ``nf4``: language model and encoders in 4 bits, where there is a GPU.
        n_documents: to meta-train on; the first of the seed's.
        recipe: fields of ``Recipe``; of 0 steps for networks that others start from as they are.
        dropout: fields of ``BackpropDropout``.
        step_shares: shares of the documents of a step: what it keeps for the backward pass is counted with so many dropped too.
        stages: of training before that, each the fields of a ``Recipe`` and what it is ``of``: ``documents``, or
            ``sentences``: the facts of the same documents one by one. Sentences that share a memory are of one relation, so
            that only names tell them apart. None in the paper.
    """

    sizes: Annotated[dict[str, Any], MACConfig] = field(default_factory=dict)
    encoder: str = ""
    question_encoder: str = ""
    encoder_sizes: dict[str, Any] = field(default_factory=dict)
    base_lm: Literal["tuned", "plain", "reader"] = "tuned"
    reads: NonNegativeInt = 0
    query: Query = "question"
    quantize: Literal["", "nf4"] = ""
    n_documents: PositiveInt = 8192
    recipe: Annotated[dict[str, Any], Recipe] = field(default_factory=dict)
    dropout: Annotated[dict[str, Any], BackpropDropout] = field(default_factory=dict)
    step_shares: list[Annotated[float, Field(ge=0, lt=1)]] = field(default_factory=list)
    stages: list[Annotated[dict[str, Any], Recipe, Stage]] = field(default_factory=list)

    def build(self, job: BaseJob) -> BaseInfo:
        """Write MAC's networks, and what meta-training cost and how it went.

        Raises:
            RematchError: an option is unknown or of no effect, or there are fewer documents than ``n_documents``.
        """
        where = f"bases.{job.name}"
        if self.base_lm not in LMS:
            raise unknown("base_lm", self.base_lm, LMS, where)
        if self.query not in get_args(Query):
            raise unknown("query", self.query, get_args(Query), where)
        recipes = [_recipe(stage, f"{where}: stages") for stage in self.stages]
        if misplaced := {"of", "dropout"} & set(self.recipe):
            raise RematchError(
                f"{where}: recipe: {min(misplaced)}: the recipe is of documents, and dropout stands beside it"
            )
        of, recipe = _recipe({"of": "documents", **self.recipe}, f"{where}: recipe")
        dropout = made(BackpropDropout, self.dropout, f"{where}: dropout")
        recipes.append((of, dataclasses.replace(recipe, dropout=dropout)))
        documents = read_documents(job.needs["streams"] / "train.jsonl")[: self.n_documents]
        if len(documents) < self.n_documents:
            raise RematchError(
                f"{where}: n_documents: {self.n_documents}; the base 'streams' holds {len(documents)} to train on"
            )
        seed = job.seed or 0
        start = job.needs.get("memory_start")
        before = {} if start is None else read_notes(start)
        for key in ("base_lm", "quantize", "reads", "query"):
            if before and before[key] != getattr(self, key):
                raise RematchError(f"{where}: {key}: {getattr(self, key)!r}; it goes on from one with {before[key]!r}")
        if before and before["n_documents"] > self.n_documents:
            raise RematchError(
                f"{where}: n_documents: {self.n_documents}; it goes on from one that read {before['n_documents']}"
            )
        if start is not None:
            for key in ("sizes", "encoder", "question_encoder", "encoder_sizes"):
                if getattr(self, key):
                    raise RematchError(f"{where}: {key}: it goes on from 'memory_start', and has the networks of that")
        mac = self._new(job, seed) if start is None else load_memory(start, job.needs, job.hub)
        examples = (
            _beginnings(documents, mac.tokenizer) if self.query == "beginning" else _examples(documents, self.reads)
        )
        runs: list[Training] = []
        for number, (of, recipe) in enumerate(recipes):
            checkpoint = job.out / f"checkpoint-{number}"
            if of == "sentences":
                runs.append(train_on_sentences(mac, documents, recipe, seed, checkpoint))
            else:
                order = None if recipe.steps else ()
                runs.append(train(mac, examples, recipe, seed + 1000 * number, checkpoint, order=order))
        mac.save_pretrained(job.out)
        for checkpoint in job.out.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        stream = read_stream(job.needs["streams"], MAIN)
        cost = {
            "train_flops": sum(run.flops for run in runs) + before.get("train_flops", 0.0),
            "samples_seen": sum(run.documents for run in runs) + before.get("samples_seen", 0),
            "tokens_seen": sum(run.tokens for run in runs) + before.get("tokens_seen", 0),
        }
        notes = {
            "base_lm": self.base_lm,
            "quantize": self.quantize,
            "reads": self.reads,
            "query": self.query,
            "n_documents": self.n_documents,
            # The same networks on the same stream: what was counted for the start holds.
            "stream_flops": before.get("stream_flops") or stream_flops(mac, stream),
            "train_bytes": step_bytes(mac, examples, recipes[-1][1], seed, self.step_shares),
            "curve": [*before.get("curve", []), *_curve(runs, before.get("steps", 0))],
            "steps": before.get("steps", 0) + sum(recipe.steps for _, recipe in recipes),
            **cost,
        }
        (job.out / NOTES).write_text(json.dumps(notes), encoding="utf-8")
        return BaseInfo(**cost, notes={"final_loss": runs[-1].final_loss, "n_documents": self.n_documents})

    def _new(self, job: BaseJob, seed: int) -> MAC:
        lm, tokenizer = load_lm(job.needs[LMS[self.base_lm]], job.hub, self.quantize or None)
        sizes = self._sizes(job)
        torch.manual_seed(seed)
        if self.encoder:
            both = (self.encoder, self.question_encoder or self.encoder)
            paths = [check_model(job.hub, each) for each in both]
            return MAC.from_lm(
                lm,
                tokenizer,
                encoder=paths[0],
                question_encoder=paths[1],
                quantize_encoders=self.quantize or None,
                **sizes,
            )
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        options: dict[str, Any] = {
            "vocab_size": len(tokenizer),
            "decoder_start_token_id": tokenizer.pad_token_id,
            **ids,
        }
        known(T5Config, self.encoder_sizes, f"bases.{job.name}: encoder_sizes")
        config = T5Config(**{"dropout_rate": 0.0, **options, **self.encoder_sizes})
        return MAC.from_lm(lm, tokenizer, encoder=AutoModel.from_config(config), embeddings="lm", **sizes)

    def _sizes(self, job: BaseJob) -> dict[str, Any]:
        """The fields of ``MACConfig``: lengths are the arena's, as for all that take part."""
        where, lengths = f"bases.{job.name}: sizes", lengths_of(job.arena, self.query == "beginning")
        known(MACConfig, self.sizes, where)
        for key in self.sizes:
            if key in lengths and not (key == "max_length" and self.reads):
                raise RematchError(f"{where}: {key}: lengths are those of the arena: set them there")
        return {**lengths, "ends": self.query == "question", **self.sizes}


def _examples(documents: Sequence[Document], reads: int) -> list[Example]:
    if not reads:
        return [(document.text, document.pairs) for document in documents]
    index = BM25([document.text for document in documents])
    return [
        (document.text, document.pairs, index.prepended([pair.question for pair in document.pairs], reads))
        for document in documents
    ]


def _beginnings(documents: Sequence[Document], tokenizer: Any) -> list[Example]:
    return [(document.text, [prefix_pair(tokenizer, document.text)]) for document in documents]


def train_on_sentences(
    mac: MAC, documents: Sequence[Document], recipe: Recipe, seed: int, checkpoint: Path | None
) -> Training:
    """Meta-train on the documents' facts, one sentence each, in memories of one relation."""
    facts = [(document.name, *fact) for document in documents for fact in sentences(document)]
    relations = [question_key(pair.question, name) for name, _, pair in facts]
    order = alike(relations, recipe, np.random.default_rng([seed, *b"sentences"]))
    return train(mac, [(text, [pair]) for _, text, pair in facts], recipe, seed, checkpoint, order=order)


def sentences(document: Document) -> list[tuple[str, QAPair]]:
    """The sentences of a generated document that say something, each with its question."""
    parts = [part.strip() + " ." for part in document.text.split(" .") if part.strip()]
    telling = [part for part in parts if document.name in part.split()]
    return list(zip(telling, document.pairs, strict=True))


def alike(keys: Sequence[Hashable], recipe: Recipe, rng: np.random.Generator) -> list[int]:
    """An order of examples in which those that share a memory have the same key, keys drawn by how many have them.

    Raises:
        RematchError: fewer examples of a key than a memory holds.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    members = [np.array(group) for group in groups.values()]
    share = np.array([len(group) for group in members]) / len(keys)
    order: list[int] = []
    for step in range(recipe.steps):
        size = recipe.documents_at(step)
        for group in rng.choice(len(members), size=recipe.banks * recipe.accumulation, p=share):
            if len(members[group]) < size:
                raise RematchError(
                    f"a memory of {size} facts of one relation, of which there are {len(members[group])}"
                )
            order += rng.choice(members[group], size=size, replace=False).tolist()
    return order


@torch.no_grad()
def stream_flops(mac: MAC, stream: Sequence[Document]) -> dict[str, float]:
    """What the networks spend on a stream: amortizing its documents, and making the prefixes of its questions.

    What the language model spends on reading questions and answering is not theirs, and the same without them.
    """
    mac.bank = mac.new_bank()
    adapting = count_flops(mac.adapt, [document.text for document in stream]).forward
    questions = [pair.question for document in stream for pair in document.pairs]
    # Where nothing is aggregated a question takes an entry as it is, whichever.
    select = torch.zeros(len(questions), 1, dtype=torch.long) if mac.aggregator is None else None
    looking_up = look_up_flops(mac, questions, BATCH, select=select)
    mac.bank = mac.new_bank()
    return {"adapting": float(adapting), "looking_up": looking_up}


@torch.no_grad()
def look_up_flops(
    mac: MAC, questions: Sequence[str], batch_size: int, group_size: int | None = None, select: Tensor | None = None
) -> float:
    """What it takes to make the prefixes of questions from the bank, counted once for every shape of a batch.

    Args:
        batch_size: questions at once.
        group_size, select: see ``MAC.aggregate``.
    """
    found: dict[tuple[int, ...], int] = {}
    total = 0
    for first in range(0, len(questions), batch_size):
        part = questions[first : first + batch_size]
        chosen = None if select is None else select[first : first + batch_size]
        shape = tuple(mac._encode_questions(part)[0].shape)
        if shape not in found:
            found[shape] = count_flops(
                lambda: mac.modulation(mac.aggregate(part, group_size=group_size, select=chosen))  # noqa: B023
            ).forward
        total += found[shape]
    return float(total)


def step_bytes(
    mac: MAC, examples: Sequence[Example], recipe: Recipe, seed: int, shares: Sequence[float] = ()
) -> dict[str, int]:
    """Bytes that one batch of meta-training keeps for the backward pass, parameters left out.

    Returns:
        The recipe's own under an empty name; and for each of ``shares`` those of its batch without the recipe's own dropout, if
        that share of the documents is dropped as by ``prefix``, without gradient and without questions (``dropped=0.5``), and
        if it is only not asked about (``unasked=0.5``). One document is always left.
    """
    chosen = examples[: recipe.documents_at(recipe.steps - 1) * recipe.banks]
    prompts = [prompt for each in chosen for prompt in (each[2] if len(each) == 3 else [p.question for p in each[1]])]
    batch, n = mac.encode([each[0] for each in chosen], [each[1] for each in chosen], prompts), len(chosen)

    def saved_with(mask: GradientMask | None) -> int:
        with SavedBytes([*mac.parameters(), *mac.buffers()]) as saved:
            mac(batch, mask, n_banks=recipe.banks)
        return saved.total

    mac.train()
    found = {"": saved_with(recipe.dropout.draw(n, torch.Generator().manual_seed(seed)))}
    for share in shares:
        first = torch.arange(n) < max(1, round((1 - share) * n))
        masks = {"dropped": GradientMask(first, first), "unasked": GradientMask(torch.ones_like(first), first)}
        found |= {f"{name}={share:g}": saved_with(mask if share else None) for name, mask in masks.items()}
    mac.eval()
    return found


def load_memory(folder: Path, bases: Mapping[str, Path], hub: Hub | None) -> MAC:
    """The MAC of a base around its language model, with an empty bank.

    Args:
        bases: the folders of all bases, by name.
    """
    notes = read_notes(folder)
    model, tokenizer = load_lm(bases[LMS[notes["base_lm"]]], hub, notes["quantize"] or None)
    return MAC.from_pretrained(folder, model, tokenizer).to(model.device)


def read_notes(folder: Path) -> dict[str, Any]:
    """What a base's ``build`` left in its notes."""
    return dict(json.loads((folder / NOTES).read_text(encoding="utf-8")))


def _curve(runs: Sequence[Training], first: int) -> list[tuple[int, float]]:
    """Mean losses of stretches of steps, each with the step at its end, counted on from ``first``."""
    curve = []
    for run in runs:
        ends = np.unique(np.linspace(0, len(run.losses), CURVE_POINTS + 1).round().astype(int))
        curve += [(first + int(b), float(np.mean(run.losses[a:b]))) for a, b in itertools.pairwise(ends)]
        first += len(run.losses)
    return curve


def _recipe(stage: dict[str, Any], where: str) -> tuple[str, Recipe]:
    options = {name: value for name, value in stage.items() if name != "of"}
    if stage.get("of") not in get_args(Of):
        raise unknown("of", str(stage.get("of")), get_args(Of), where)
    options["dropout"] = made(BackpropDropout, options.get("dropout", {}), f"{where}: dropout")
    return stage["of"], made(Recipe, options, where)
