"""MAC: a frozen language model with a memory of amortized contexts.

Documents are read once, in one forward pass each, into the memory bank; a question gathers what it needs from the bank,
and the result steers the frozen model while it answers. Nothing is fine-tuned when documents come in.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from baselines.checkpoints import weights_digest
from baselines.decoding import GREEDY, Beams
from baselines.loading import Quantization, load_lm, load_tokenizer, quantization
from baselines.qa import QABatch, QAPair, answer_nll, encode_pairs, generate_answers, qa_loss
from methods.mac.aggregator import Aggregator
from methods.mac.amortizer import Amortizer, Architecture, BackboneSource, copy_embeddings, load_backbone
from methods.mac.bank import MemoryBank, Policy
from methods.mac.batches import Batch, encode_texts
from methods.mac.checkpoints import StreamCheckpoint
from methods.mac.config import MACConfig
from methods.mac.dropout import GradientMask, amortize_in_parts
from methods.mac.modulation import LoRAModulation, PrefixModulation
from methods.mac.progress import progress_bar
from rematch.errors import RematchError, unknown

SETTINGS, WEIGHTS = "mac.json", "mac.safetensors"


class MAC(nn.Module):
    """A frozen causal language model, two encoders, an aggregator, and a memory bank.

    Make one with ``from_lm`` or ``from_pretrained``. The language model is frozen in place (its parameters no longer
    require grad) and is no part of what is trained or saved.

    Attributes:
        bank: what ``adapt`` fills and ``answer`` reads.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        encoder: PreTrainedModel,
        question_encoder: PreTrainedModel | None,
        encoder_tokenizer: PreTrainedTokenizerBase,
        question_tokenizer: PreTrainedTokenizerBase,
        config: MACConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.lm: Any = lm.requires_grad_(False)
        self.tokenizer, self.encoder_tokenizer = tokenizer, encoder_tokenizer
        self.question_tokenizer = question_tokenizer
        width = int(lm.config.hidden_size)
        self.amortizer = Amortizer(encoder, config.amortizer, config.n_tokens, width)
        self.question_encoder: Amortizer | None = None
        self.aggregator: Aggregator | None = None
        if config.aggregate == "attention":
            self.question_encoder = Amortizer(
                cast(PreTrainedModel, question_encoder), config.amortizer, config.n_tokens, width
            )
            self.aggregator = Aggregator(
                width, config.n_blocks, config.n_heads, config.head_dim, config.equal_query_key
            )
        self.modulation: PrefixModulation | LoRAModulation
        if config.modulation == "prefix":
            self.modulation = PrefixModulation(lm.config, config.n_tokens, config.n_prefix, config.expansion_width)
        else:
            self.modulation = LoRAModulation(lm.config, config.n_tokens, config.lora_rank, config.expansion_width)
        self.eval().to(lm.device)
        self.bank = self.new_bank()

    @classmethod
    def from_lm(
        cls,
        lm: PreTrainedModel | str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        encoder: BackboneSource,
        question_encoder: BackboneSource | None = None,
        encoder_tokenizer: PreTrainedTokenizerBase | None = None,
        question_tokenizer: PreTrainedTokenizerBase | None = None,
        embeddings: Literal["own", "lm"] = "own",
        quantize: Quantization | None = None,
        quantize_encoders: Quantization | None = None,
        dtype: torch.dtype | None = None,
        **config: Any,
    ) -> Self:
        """An untrained MAC around a language model.

        Args:
            lm: a causal language model of transformers, or its id or folder.
            tokenizer: the language model's; loaded where ``lm`` is an id.
            encoder: of documents: a configuration (random weights, drawn from torch's generator), a model (copied), or an
                id or folder (loaded).
            question_encoder: likewise, of questions; a copy of its own of ``encoder`` where None.
            encoder_tokenizer, question_tokenizer: the encoders'; loaded where those are ids, else the language model's.
            embeddings: ``lm``: start the encoders' token embeddings from the language model's (``copy_embeddings``).
            quantize, dtype: of a language model that is loaded; see ``load_lm``.
            quantize_encoders: of encoders that are loaded; see ``load_backbone``. What is trained from scratch never is.
            config: the fields of ``MACConfig``.

        Raises:
            RematchError: something cannot be loaded, or does not fit together.
        """
        settings = MACConfig(**config)
        if embeddings not in ("own", "lm"):
            raise unknown("embeddings", embeddings, ("own", "lm"), "MAC")
        if not isinstance(lm, str) and (quantize, dtype) != (None, None):
            raise RematchError("MAC: quantize and dtype load a language model by its id or folder: give that as lm")
        lm, tokenizer = _lm_and_tokenizer(lm, tokenizer, quantize, dtype)
        asked = encoder if question_encoder is None else question_encoder
        backbone, question_backbone = load_backbone(encoder, settings.amortizer, quantize_encoders), None
        if settings.aggregate == "attention":
            question_backbone = load_backbone(asked, settings.amortizer, quantize_encoders)
        if embeddings == "lm":
            for each in (backbone, question_backbone):
                if each is not None:
                    copy_embeddings(each, lm)
        document_tokenizer = encoder_tokenizer or (load_tokenizer(encoder) if isinstance(encoder, str) else tokenizer)
        if question_tokenizer is None:
            question_tokenizer = load_tokenizer(asked) if isinstance(asked, str) else document_tokenizer
        return cls(lm, tokenizer, backbone, question_backbone, document_tokenizer, question_tokenizer, settings)

    def train(self, mode: bool = True) -> Self:
        """As of every module; the frozen language model follows only if ``lm_dropout``."""
        super().train(mode)
        if not self.config.lm_dropout:
            self.lm.eval()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """As of every module (``to``, ``double``, ...); a bank that is still empty follows."""
        super()._apply(fn, recurse)
        if "bank" in self.__dict__ and not len(self.bank):
            self.bank = self.new_bank()
        return self

    def networks(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of what is trained and saved, each once: all but the language model's and 4-bit ones."""
        for name, parameter in self.named_parameters():
            if not name.startswith("lm.") and parameter.is_floating_point():
                yield name, parameter

    @property
    def device(self) -> torch.device:
        """Of the networks."""
        return self.amortizer.queries.device

    def new_bank(self) -> MemoryBank:
        """An empty bank of this model's shape."""
        width = int(self.lm.config.hidden_size)
        return MemoryBank(self.config.n_tokens, width, self.amortizer.queries.dtype, self.device)

    # -- training -------------------------------------------------------------------------------------------------

    def encode(
        self,
        docs: Sequence[str],
        pairs: Sequence[QAPair | Sequence[QAPair]],
        prompts: Sequence[str] | None = None,
    ) -> Batch:
        """Tokenize K documents, each with one or more questions and answers, for a step.

        Args:
            prompts: what the language model reads in place of each question, in the order of all questions; the question
                encoder reads the questions all the same. With documents that retrieval found before the question this is
                MAC beside retrieval (table 2).
        """
        if len(docs) != len(pairs):
            raise RematchError(f"{len(docs)} documents and questions for {len(pairs)}")
        of_each = [[of] if isinstance(of, QAPair) else list(of) for of in pairs]
        flat = [pair for of in of_each for pair in of]
        documents = encode_texts(self.encoder_tokenizer, docs, self.config.max_document)
        questions = self._encode_questions([pair.question for pair in flat])
        asked = _prompts([pair.question for pair in flat], prompts)
        answered = [QAPair(prompt, pair.answer) for prompt, pair in zip(asked, flat, strict=True)]
        qa = encode_pairs(
            self.tokenizer, answered, self.config.max_length, self.config.max_answer, end=self.config.ends
        )
        gold = torch.tensor([k for k, of in enumerate(of_each) for _ in of])
        return Batch(*documents, *questions, qa, gold).to(self.device)

    def forward(self, batch: Batch, mask: GradientMask | None = None, twice: bool = False, n_banks: int = 1) -> Tensor:
        """The mean negative log-likelihood, in nats a token, of answers and their ends, given the batch's memory: a scalar.

        Args:
            mask: of back-propagation dropout. Questions of documents that it does not ask about are left out.
            twice: aggregate the modulations of the batch once more, as if they were the memory.
            n_banks: memories that the documents make, as many after one another in each; a question sees that of its own
                document. (On several GPUs each has a memory of its own, in the official code.)

        Raises:
            RematchError: the documents cannot be divided so, or ``twice`` with more than one memory.
        """
        if len(batch.documents) % n_banks or (twice and n_banks > 1):
            raise RematchError(
                f"{len(batch.documents)} documents do not make {n_banks} memories"
                + (" whose modulations are aggregated twice" if twice else "")
            )
        if mask is not None and mask.asks is not None:
            batch = batch.asking_about(mask.asks.to(batch.gold.device))
            if not len(batch.gold):
                raise RematchError("bp_dropout: none of the documents that carry a gradient has a question")
        bank = amortize_in_parts(self.amortizer, batch, mask)
        if self.aggregator is None or self.question_encoder is None:
            if twice:
                raise RematchError("MAC with aggregate='none' aggregates nothing, let alone twice: hierarchy_aware = 0")
            phi = bank[batch.gold]
        else:
            z = self.question_encoder(batch.questions, batch.questions_mask)
            if n_banks == 1:
                phi = self.aggregator(z, bank)
            else:
                size = len(bank) // n_banks
                phi = self.aggregator.side_by_side(z, bank.unflatten(0, (n_banks, size)), batch.gold // size)
            if twice:
                phi = self.aggregator(z, phi)
        return self.qa_loss(phi, batch.qa)

    def qa_loss(self, phi: Tensor, qa: QABatch) -> Tensor:
        """The loss of answers under modulations (N, T, d)."""
        with self.modulation.steer(self.lm, phi) as cache:
            return qa_loss(self.lm, qa, cache)

    def answer_nll(self, phi: Tensor, qa: QABatch) -> tuple[Tensor, Tensor]:
        """``baselines.qa.answer_nll`` under modulations (N, T, d)."""
        with self.modulation.steer(self.lm, phi) as cache:
            return answer_nll(self.lm, qa, cache)

    def loss(
        self,
        docs: Sequence[str],
        pairs: Sequence[QAPair | Sequence[QAPair]],
        mask: GradientMask | None = None,
        twice: bool = False,
        prompts: Sequence[str] | None = None,
    ) -> Tensor:
        """``forward`` of texts: the loss of a training step on K documents with their questions."""
        return cast(Tensor, self(self.encode(docs, pairs, prompts), mask, twice))

    # -- documents ------------------------------------------------------------------------------------------------

    def amortize(self, texts: Sequence[str]) -> Tensor:
        """Memory entries (K, T, d) of K documents, in one batch."""
        ids, mask = encode_texts(self.encoder_tokenizer, texts, self.config.max_document)
        return self.amortizer(ids.to(self.device), mask.to(self.device))

    def adapt(
        self,
        docs: Iterable[str],
        *,
        ids: Sequence[str] | None = None,
        batch_size: int = 16,
        limit: int | None = None,
        policy: Policy = "nearest_average",
        generator: torch.Generator | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 1024,
        progress: bool = False,
    ) -> MemoryBank:
        """Add documents to the bank, in order, without gradients; entries that are there do not change.

        When interrupted, the bank holds whole batches: with a ``checkpoint`` the same call goes on from there and ends
        with the same bank, without one ``adapt(docs[bank.n_added:])`` does (if the bank was empty at first).

        Args:
            docs: a stream is read batch by batch.
            ids: of the documents; their running numbers where None.
            limit, policy, generator: shrink the bank after every document; see ``MemoryBank.limit``.
            checkpoint: a file for the bank, written every ``checkpoint_every`` documents and at the end. If it is there
                the bank is read from it, and as many documents are skipped as it says. The state of the generator, torch's
                own where None, is then what it was.
            progress: show a bar on standard error.

        Raises:
            RematchError: the checkpoint is of other documents, of another amortizer or of another limit, or a document has
                no tokens.
        """
        stream, total = iter(docs), len(docs) if isinstance(docs, Sequence) else None
        run = {} if checkpoint is None else self._adaptation(limit, policy)
        draws = None if limit is None or policy == "nearest_average" else generator or torch.default_generator
        file = StreamCheckpoint(checkpoint, run, draws)
        if (before := file.resume(stream, self.device)) is not None:
            self.bank = before
        n_saved = file.n_read
        with progress_bar(progress, total, n_saved) as advance, self._inference():
            while texts := list(islice(stream, batch_size)):
                names = None if ids is None else ids[file.n_read : file.n_read + len(texts)]
                entries = self.amortize(texts)
                if limit is None:
                    self.bank.add(entries, names)
                else:
                    for row in range(len(texts)):
                        self.bank.add(entries[row : row + 1], names and names[row : row + 1])
                        self.bank.limit(limit, policy, generator)
                file.read(texts)
                if file.n_read - n_saved >= checkpoint_every:
                    file.save(self.bank)
                    n_saved = file.n_read
                advance(len(texts))
        file.save(self.bank)
        return self.bank

    def _adaptation(self, limit: int | None, policy: Policy) -> dict[str, str]:
        """What a bank depends on besides the documents."""
        return {
            "amortizer": weights_digest(self.amortizer)[:16],
            "entries": f"{self.config.n_tokens} x {int(self.lm.config.hidden_size)}",
            "max_document": str(self.config.max_document),
            "limit": str(limit),
            "policy": "none" if limit is None else policy,
        }

    # -- questions ------------------------------------------------------------------------------------------------

    def _encode_questions(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        length = self.config.max_question or self.config.max_length - self.config.max_answer
        return encode_texts(self.question_tokenizer, questions, length)

    def ask(self, questions: Sequence[str]) -> Tensor:
        """The vectors with which questions look at the bank, (N, T, d)."""
        if self.question_encoder is None:
            raise RematchError("MAC with aggregate='none' does not look at its bank: name an entry for each question")
        ids, mask = self._encode_questions(questions)
        return self.question_encoder(ids.to(self.device), mask.to(self.device))

    def aggregate(
        self,
        questions: Sequence[str],
        bank: MemoryBank | Tensor | None = None,
        *,
        group_size: int | None = None,
        select: Tensor | None = None,
    ) -> Tensor:
        """Modulations (N, T, d): what questions find in a bank.

        Args:
            bank: entries (K, T, d); the model's own where None.
            group_size: M, aggregate hierarchically in groups of M documents; see ``Aggregator.hierarchical``.
            select: (N, k) int64, the only rows of the bank that each question may see. With ``aggregate='none'`` it is
                needed, k is 1, and that entry is the modulation.

        Raises:
            RematchError: an empty bank, or options that exclude each other.
        """
        entries = self._entries(bank)
        if self.aggregator is None:
            if select is None or select.shape != (len(questions), 1):
                raise RematchError("MAC with aggregate='none' needs select (N, 1): the bank's row for each question")
            return entries[select[:, 0].to(entries.device)]
        z = self.ask(questions)
        if select is not None:
            if group_size is not None:
                raise RematchError("aggregate: group_size and select exclude each other")
            return self.aggregator(z, entries[select.to(entries.device)])
        return (
            self.aggregator(z, entries) if group_size is None else self.aggregator.hierarchical(z, entries, group_size)
        )

    def _entries(self, bank: MemoryBank | Tensor | None) -> Tensor:
        bank = self.bank if bank is None else bank
        entries = bank.tensor if isinstance(bank, MemoryBank) else bank
        if not len(entries):
            raise RematchError("the memory bank is empty: adapt(documents) first")
        return entries

    def attention_mass(
        self,
        questions: Sequence[str],
        bank: MemoryBank | Tensor | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """How much each question's attention goes to each entry of a bank, (N, blocks, K): rows sum to 1.

        The mean over heads and over the question's T vectors, of the sum over the entry's T vectors (figure 6).
        """
        entries, found = self._entries(bank), []
        with self._inference():
            for first in range(0, len(questions), batch_size):
                weights: list[Tensor] = []
                z = self.ask(questions[first : first + batch_size])
                cast(Aggregator, self.aggregator)(z, entries, weights)
                found.append(
                    torch.stack([w.unflatten(-1, (len(entries), -1)).sum(-1).mean((1, 2)) for w in weights], 1)
                )
        return torch.cat(found)

    def prefixes(self, phi: Tensor) -> DynamicCache:
        """Modulations (N, T, d) as keys and values (N, kv_heads, P, head_dim) a layer, for any causal language model.

        Raises:
            RematchError: LoRA modulations, which are no prefixes.
        """
        if not isinstance(self.modulation, PrefixModulation):
            raise RematchError("LoRA modulations have no prefixes: use modulation.steer")
        return self.modulation.cache(phi, self.lm.dtype)

    def answer(
        self,
        questions: Sequence[str],
        bank: MemoryBank | Tensor | None = None,
        *,
        group_size: int | None = None,
        select: Tensor | None = None,
        max_new_tokens: int = 16,
        beams: Beams = GREEDY,
        batch_size: int = 64,
        prompts: Sequence[str] | None = None,
    ) -> list[str]:
        """The frozen model's answers, steered by what the questions find in the bank.

        Args:
            bank, group_size, select: see ``aggregate``.
            prompts: what the language model reads in place of each question, as of ``encode``.
            max_new_tokens, beams: see ``baselines.qa.generate_answers``.
            batch_size: questions at once.
        """
        answers: list[str] = []
        asked = _prompts(questions, prompts)
        with self._inference():
            for first in range(0, len(questions), batch_size):
                part = slice(first, first + batch_size)
                chosen = None if select is None else select[part]
                phi = self.aggregate(questions[part], bank, group_size=group_size, select=chosen)
                with self.modulation.steer(self.lm, phi) as cache:
                    answers += generate_answers(
                        self.lm,
                        self.tokenizer,
                        asked[part],
                        max_new_tokens,
                        cache,
                        beams,
                        batch_size,
                        self.config.max_length,
                        self.config.max_answer,
                    )
        return answers

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """Eval mode and no gradients; the mode is put back."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)

    # -- files ----------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the networks (safetensors), their configuration, and the encoders' tokenizers.

        The language model is not copied: its id or path is kept, as transformers knows it; of a 4-bit encoder likewise, with
        what was trained of it. The bank is saved apart, with ``bank.save``.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach().contiguous() for name, p in self.networks()}, folder / WEIGHTS)
        question = self.question_encoder
        settings = {
            "config": asdict(self.config),
            "lm": self.lm.config._name_or_path,
            "quantize": quantization(self.lm.config),
            "encoder": self.amortizer.backbone.config.to_dict(),
            "question_encoder": None if question is None else question.backbone.config.to_dict(),
        }
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        self.encoder_tokenizer.save_pretrained(folder / "encoder_tokenizer")
        self.question_tokenizer.save_pretrained(folder / "question_tokenizer")

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        lm: PreTrainedModel | str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Self:
        """Read what ``save_pretrained`` wrote.

        Args:
            lm: the language model, or where it is; where it was saved from, if None. It is loaded in 4 bits if it was then.
            tokenizer: the language model's; read from where the language model is, if None.

        Raises:
            RematchError: a file or the language model is missing, or does not fit.
        """
        folder = Path(folder)
        try:
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            weights = load_file(folder / WEIGHTS)
        except (OSError, ValueError, SafetensorError) as error:
            raise RematchError(f"no MAC can be read from '{folder}': {error}") from error
        lm = lm or settings["lm"]
        if not lm:
            raise RematchError(f"'{folder}' does not say where its language model is: pass lm=...")
        lm, tokenizer = _lm_and_tokenizer(lm, tokenizer, settings.get("quantize"))
        config = MACConfig(**settings["config"])
        question = settings["question_encoder"]
        mac = cls(
            lm,
            tokenizer,
            _saved_backbone(settings["encoder"], config.amortizer),
            None if question is None else _saved_backbone(question, config.amortizer),
            load_tokenizer(str(folder / "encoder_tokenizer")),
            load_tokenizer(str(folder / "question_tokenizer")),
            config,
        )
        for name, parameter in mac.networks():
            if name not in weights or weights[name].shape != parameter.shape:
                raise RematchError(f"'{folder}' has no fitting weights for {name}: is this the right language model?")
            parameter.data = weights[name].to(parameter.device)
        mac.bank = mac.new_bank()
        return mac


def _lm_and_tokenizer(
    lm: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase | None,
    quantize: Quantization | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if isinstance(lm, str):
        return load_lm(lm, quantize, dtype), tokenizer or load_tokenizer(lm)
    if tokenizer is None:
        raise RematchError("MAC: give the language model's tokenizer with the language model")
    return lm, tokenizer


def _saved_backbone(settings: dict[str, Any], architecture: Architecture) -> PreTrainedModel:
    """An encoder whose weights were saved, or, where they are in 4 bits, are where they came from."""
    config: Any = AutoConfig.for_model(**settings)
    quantize = quantization(config)
    return load_backbone(config if quantize is None else settings["_name_or_path"], architecture, quantize)


def _prompts(questions: Sequence[str], prompts: Sequence[str] | None) -> Sequence[str]:
    """What the language model reads for each question."""
    if prompts is not None and len(prompts) != len(questions):
        raise RematchError(f"{len(questions)} questions and {len(prompts)} prompts: the language model needs one each")
    return questions if prompts is None else prompts
