"""Closed-book question answering with a causal language model: text format, loss, answers, tuning, scores.

The text is the question, directly followed by a space, the answer and the end-of-text token; there is no template (official
code of CaMeLS and MAC).
"""

from __future__ import annotations

import copy
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedTokenizerBase

from baselines.decoding import GREEDY, Beams, copy_cache, decode
from rematch.errors import RematchError
from rematch.flops import count_flops

_SPACE = re.compile(r"\s+")

MAX_LENGTH, MAX_ANSWER = 128, 24
"""Tokens of question, answer and end, and those among them that belong to the answer and its end (official code)."""


class QAPair(NamedTuple):
    """A question and its answer, without spaces around them."""

    question: str
    answer: str


@dataclass(frozen=True)
class QABatch:
    """Questions with their answers, padded on the right.

    Attributes:
        input_ids: (N, n) int64.
        attention_mask: (N, n) int64, 1 for tokens, 0 for padding.
        labels_mask: (N, n) bool, True for the tokens of the answer and the end of the text.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels_mask: Tensor

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device: torch.device | str) -> QABatch:
        """The batch on a device."""
        return QABatch(self.input_ids.to(device), self.attention_mask.to(device), self.labels_mask.to(device))


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[QAPair],
    max_length: int = MAX_LENGTH,
    max_answer: int = MAX_ANSWER,
    end: bool = True,
    multiple: int = 1,
) -> QABatch:
    """Tokenize for the loss. Question and answer are tokenized apart, so that the answer's tokens are known.

    Args:
        max_length: tokens of a row. A question keeps its last ``max_length - max_answer`` ones, here and in
            ``encode_questions`` (the official code cuts a long row on the left in training, a question on the right in
            evaluation).
        max_answer: tokens of the answer and its end.
        end: whether the end-of-text token follows the answer, however it was cut; not so for the rest of a document, which
            is scored as far as it was read.
        multiple: rows are padded to a multiple of this many tokens: few shapes then have their FLOPs counted.

    Raises:
        RematchError: without an end-of-text token, or for a question that has no tokens.
    """
    questions = _question_ids(tokenizer, [pair.question for pair in pairs], max_length - max_answer)
    eos = end_of_text(tokenizer)
    answers = [
        [*ids[: max_answer - 1], eos] if end else ids[:max_answer]
        for ids in _ids(tokenizer, [" " + pair.answer for pair in pairs], add_special_tokens=False)
    ]
    rows = [question + answer for question, answer in zip(questions, answers, strict=True)]
    longest = -(-max(map(len, rows)) // multiple) * multiple
    padding = _padding(tokenizer)
    ids = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
    places = torch.arange(longest)
    real = places < torch.tensor(list(map(len, rows)))[:, None]
    labels = real & (places >= torch.tensor(list(map(len, questions)))[:, None])
    return QABatch(ids, real.long(), labels)


def prefix_pair(tokenizer: PreTrainedTokenizerBase, text: str, share: float = 0.1) -> QAPair:
    """Language modelling as question answering: the beginning of a document asks for the rest (the paper's table 6 of MAC).

    The cut falls between words, so that the pair's text is the document's.

    Args:
        tokenizer: one that knows where in the text its tokens are (a fast one).
        share: of the document's tokens that are the question, at least one of them; the word that is begun belongs to it.

    Raises:
        RematchError: a share outside (0, 1), a slow tokenizer, or a document without a word behind its beginning.
    """
    if not 0 < share < 1:
        raise RematchError(f"prefix_pair: share must lie between 0 and 1, not {share}")
    if not tokenizer.is_fast:
        raise RematchError(f"prefix_pair needs a fast tokenizer, and {type(tokenizer).__name__} is a slow one")
    text = text.strip()
    ends = [end for _, end in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]]
    space = _SPACE.search(text, ends[max(1, int(share * len(ends))) - 1]) if ends else None
    if space is None:
        raise RematchError(f"nothing is left of a document after its first {share:.0%}: {text[:60]!r}")
    return QAPair(text[: space.start()], text[space.end() :])


def encode_questions(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    max_length: int = MAX_LENGTH,
    max_answer: int = MAX_ANSWER,
) -> tuple[Tensor, Tensor]:
    """Tokenize for generation: ids and attention mask, (N, n) int64, padded on the left. Cut as ``encode_pairs`` does.

    ``baselines.decoding.positions`` gives the position ids of such rows.
    """
    rows = _question_ids(tokenizer, questions, max_length - max_answer)
    longest = max(map(len, rows))
    padding = _padding(tokenizer)
    ids = torch.tensor([[padding] * (longest - len(row)) + row for row in rows])
    attention = torch.arange(longest) >= longest - torch.tensor(list(map(len, rows)))[:, None]
    return ids, attention.long()


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the token that ends an answer.

    Raises:
        RematchError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise RematchError("question answering needs a tokenizer with an end-of-text token; set its eos_token")
    return int(tokenizer.eos_token_id)


def _padding(tokenizer: PreTrainedTokenizerBase) -> int:
    return end_of_text(tokenizer) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], **options: Any) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(texts, **options)["input_ids"]] if texts else []


def _question_ids(tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], room: int) -> list[list[int]]:
    if room < 1:
        raise RematchError(f"max_length must exceed max_answer, to leave room for the question (by {room} tokens now)")
    rows = [ids[-room:] for ids in _ids(tokenizer, list(questions))]
    if not rows:
        raise RematchError("there are no questions")
    for question, ids in zip(questions, rows, strict=True):
        if not ids:
            raise RematchError(f"the question {question!r} has no tokens")
    return rows


# -- loss and answers -------------------------------------------------------------------------------------------------


def qa_loss(model: Any, batch: QABatch, past_key_values: DynamicCache | None = None) -> Tensor:
    """The mean negative log-likelihood, in nats a token, of the answers and their ends: a scalar.

    Args:
        model: a transformers causal LM, in the mode (training or evaluation) and on the device that are wanted.
        past_key_values: a prefix of keys and values (N, kv_heads, P, head_dim) a layer, to which every token attends; token
            positions start at P. The model appends to it: hand over a new one (``copy_cache``) every time.
    """
    return F.cross_entropy(*_scored(model, batch, past_key_values))


def answer_nll(model: Any, batch: QABatch, past_key_values: DynamicCache | None = None) -> tuple[Tensor, Tensor]:
    """What ``qa_loss`` is the mean of, row by row: the exponential of its ratio is the answers' perplexity.

    Returns:
        The negative log-likelihood of each answer with its end, in nats, and how many tokens these are; both (N,).
    """
    losses = F.cross_entropy(*_scored(model, batch, past_key_values), reduction="none")
    labels = batch.labels_mask[:, 1:]
    return losses.new_zeros(labels.shape).masked_scatter(labels, losses).sum(1), labels.sum(1)


def _scored(model: Any, batch: QABatch, past_key_values: DynamicCache | None) -> tuple[Tensor, Tensor]:
    """The logits (n, vocabulary) of all labelled tokens, row after row, and these tokens (n,)."""
    attention = batch.attention_mask
    if past_key_values is not None:
        ones = attention.new_ones(len(batch), past_key_values.get_seq_length())
        attention = torch.cat([ones, attention], 1)
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=attention,
        past_key_values=past_key_values,
        use_cache=past_key_values is not None,
    ).logits
    scored = batch.labels_mask[:, 1:]
    # Rows without a label are left out before the softmax, which costs most at large vocabularies.
    return full_precision(logits[:, :-1][scored]), batch.input_ids[:, 1:][scored]


def full_precision(logits: Tensor) -> Tensor:
    """Logits in at least 32 bits, as a softmax over a vocabulary needs them."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@torch.no_grad()
def generate_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    max_new_tokens: int = 16,
    prefixes: DynamicCache | None = None,
    beams: Beams = GREEDY,
    batch_size: int = 64,
    max_length: int = MAX_LENGTH,
    max_answer: int = MAX_ANSWER,
) -> list[str]:
    """The model's answer to each question, by cached generation in evaluation mode.

    Args:
        max_new_tokens: the end of the text counts as one.
        prefixes: as of ``qa_loss``, one row a question; left as it is.
        beams: how to search; ``baselines.decoding.OFFICIAL_BEAMS`` for the papers' evaluation.
        batch_size: questions at once.
        max_length, max_answer: how long questions are cut; see ``encode_questions``.
    """
    if not len(questions):
        return []
    eos = end_of_text(tokenizer)
    was_training = model.training
    model.eval()
    answers: list[str] = []
    for first in range(0, len(questions), batch_size):
        place = slice(first, first + batch_size)
        ids, attention = encode_questions(tokenizer, questions[place], max_length, max_answer)
        rows = decode(
            model,
            ids.to(model.device),
            attention.to(model.device),
            max_new_tokens,
            eos,
            None if prefixes is None else copy_cache(prefixes, place),
            beams,
        )
        answers += [str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in rows]
    model.train(was_training)
    return answers


# -- tuning -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QATuning:
    """What a tuning run cost and how it went.

    Attributes:
        flops: forward and backward of training and forward of validation.
        steps: optimizer steps done.
        best_step: the step whose weights the model now has.
        validation_losses: (step, mean loss in nats) at every validation.
    """

    flops: float
    steps: int
    best_step: int
    validation_losses: list[tuple[int, float]]


def qa_tune(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[QAPair],
    validation: Sequence[QAPair],
    seed: int,
    *,
    max_steps: int,
    learning_rate: float = 2.5e-5,
    batch_size: int = 32,
    accumulation: int = 2,
    validate_every: int = 100,
    patience: int = 1,
    max_length: int = MAX_LENGTH,
    max_answer: int = MAX_ANSWER,
) -> QATuning:
    """Teach a language model the format on questions and answers, without documents; it is changed in place.

    Adam at a constant rate, stopped when ``patience`` validations in a row bring no lower loss; the best weights are put
    back. The model is left in evaluation mode. Every fine-tuning baseline starts from such a model (CaMeLS, official code).

    Args:
        seed: of the order; every pass over the pairs is a new permutation.
        max_steps: optimizer steps at most, of ``accumulation`` batches of ``batch_size`` pairs each; 0 only validates.

    Raises:
        RematchError: there are no pairs to learn or to validate on, or a number is out of bounds.
    """
    if not len(pairs) or not len(validation):
        raise RematchError(
            f"QA tuning needs pairs of both kinds: {len(pairs)} to learn, {len(validation)} for validation"
        )
    for name, value, least in (
        ("max_steps", max_steps, 0), ("batch_size", batch_size, 1), ("accumulation", accumulation, 1),
        ("validate_every", validate_every, 1), ("patience", patience, 1),
    ):  # fmt: skip
        if value < least:
            raise RematchError(f"QA tuning: {name}: {value}; allowed: whole numbers from {least}")
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    rng = np.random.default_rng([seed, 1])
    counted = _Counted(model)
    queue: list[int] = []
    losses: list[tuple[int, float]] = []
    best: dict[str, Tensor] = {}
    best_step = step = 0

    def encode(chosen: Sequence[QAPair]) -> QABatch:
        return encode_pairs(tokenizer, chosen, max_length, max_answer).to(model.device)

    while True:
        if step % validate_every == 0 or step == max_steps:
            model.eval()
            total, n_tokens = 0.0, 0
            for first in range(0, len(validation), batch_size):
                batch = encode(validation[first : first + batch_size])
                n = int(batch.labels_mask.sum())
                with torch.no_grad():
                    total += counted(batch, backward=False).item() * n
                n_tokens += n
            losses.append((step, total / n_tokens))
            if losses[-1][1] <= min(loss for _, loss in losses):
                best, best_step = copy.deepcopy(model.state_dict()), step
            elif sum(s > best_step for s, _ in losses) >= patience:
                break
        if step == max_steps:
            break
        model.train()
        optimizer.zero_grad()
        for _ in range(accumulation):
            while len(queue) < batch_size:
                queue += rng.permutation(len(pairs)).tolist()
            batch = encode([pairs[i] for i in queue[:batch_size]])
            del queue[:batch_size]
            (counted(batch, backward=True) / accumulation).backward()
        optimizer.step()
        step += 1
    model.load_state_dict(best)
    model.eval()
    return QATuning(counted.flops, step, best_step, losses)


class _Counted:
    """The loss of a model, with its FLOPs counted once a shape and added up."""

    def __init__(self, model: Any) -> None:
        self.model, self.flops = model, 0.0
        self._known: dict[tuple[int, int, bool], int] = {}

    def __call__(self, batch: QABatch, backward: bool) -> Tensor:
        shape = (*batch.input_ids.shape, backward)
        if shape not in self._known:
            self._known[shape] = count_flops(qa_loss, self.model, batch, backward=backward).total
        self.flops += self._known[shape]
        return qa_loss(self.model, batch)


# -- scores -----------------------------------------------------------------------------------------------------------

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and surplus spaces (SQuAD's normalisation)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def is_scorable(truth: str) -> bool:
    """Whether something is left of an answer after normalisation; if not, every prediction equals it under ``em_prefix``."""
    return bool(normalise(truth))


def em_prefix(prediction: str, truth: str) -> float:
    """1 if the prediction begins with the truth, both normalised: what the papers call exact match (official code)."""
    return float(normalise(prediction).startswith(normalise(truth)))


def em_strict(prediction: str, truth: str) -> float:
    """1 if prediction and truth are the same after normalisation."""
    return float(normalise(prediction) == normalise(truth))


def f1(prediction: str, truth: str) -> float:
    """The harmonic mean of precision and recall of the normalised words, 0 where none is shared."""
    predicted, true = normalise(prediction).split(), normalise(truth).split()
    shared = sum((Counter(predicted) & Counter(true)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(true)
    return 2 * precision * recall / (precision + recall)
