"""Other versions of a text, to compare its probability with: perturbed (DetectGPT, NPR) or regenerated (DNA-GPT).

Perturbing masks spans of words and has a filler write them anew. Both DetectGPT and NPR read the same perturbed texts,
and every perturbation starts from the original text.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from baselines.detectors.language_models import LanguageModel
from baselines.detectors.statistics import Resampled, mean_log_p_and_log_rank
from baselines.detectors.texts import read_all
from baselines.ngram import NGram
from rematch.errors import RematchError

BUFFER = 1
"""Words left free on each side of a masked span."""


@dataclass(frozen=True)
class Masked:
    """A text with masked spans of words.

    Attributes:
        words: the words of the text, which stand between white space.
        spaces: the white space before, between and after them, one more than words.
        starts: ascending places of the first words of the spans, at least one free word apart.
        span: words in a span.
    """

    words: list[str]
    spaces: list[str]
    starts: list[int]
    span: int

    @classmethod
    def of(cls, text: str, starts: Sequence[int], span: int) -> Masked:
        """Mask spans of a text."""
        return cls(text.split(), re.split(r"\S+", text), list(starts), span)

    def original(self, index: int) -> str:
        """The words of a span, as they stand in the text."""
        start = self.starts[index]
        inner = zip(self.spaces[start + 1 : start + self.span], self.words[start + 1 : start + self.span], strict=True)
        return self.words[start] + "".join(space + word for space, word in inner)

    def filled(self, fills: Sequence[str]) -> str:
        """The text with its spans replaced; everything else, white space too, stays as it is."""
        parts, position = [self.spaces[0]], 0
        for start, fill in zip(self.starts, fills, strict=True):
            parts += [self.words[at] + self.spaces[at + 1] for at in range(position, start)]
            position = start + self.span
            parts += [fill, self.spaces[position]]
        parts += [self.words[at] + self.spaces[at + 1] for at in range(position, len(self.words))]
        return "".join(parts)


class Filler(Protocol):
    """What writes masked spans anew."""

    def fill(self, texts: Sequence[Masked], rng: np.random.Generator) -> list[str]:
        """Each text with its spans replaced."""
        ...


def n_masked_spans(n_words: int, pct: float = 0.3, span: int = 2) -> int:
    """Spans masked in a text: int(pct n_words / (span + 2)), the 2 being a free word on each side (official code)."""
    return int(pct * n_words / (span + 2 * BUFFER))


def masked_spans(n_words: int, k: int, rng: np.random.Generator, pct: float = 0.3, span: int = 2) -> np.ndarray:
    """First words of the masked spans of k independent maskings, ascending, (k, spans).

    Drawn uniformly from all arrangements with a free word before, between and after the spans. (The official code rejects
    spans that come too close, one after the other; it leaves no word free at the borders of the text.)
    """
    n_spans = n_masked_spans(n_words, pct, span)
    # Shrunk to one place each, with its free word, the spans are any choice of the places that are left.
    places = n_words - BUFFER - n_spans * (span - 1 + BUFFER)
    chosen = np.sort(np.argsort(rng.random((k, max(0, places))), axis=1)[:, :n_spans], axis=1)
    return chosen + BUFFER + np.arange(n_spans) * (span - 1 + BUFFER)


def perturb(
    texts: Sequence[str],
    filler: Filler,
    k: int,
    rng: np.random.Generator,
    pct: float = 0.3,
    span: int = 2,
) -> list[list[str]]:
    """k perturbed versions of each text; a text too short for a span comes back as it is (below 14 words by default).

    Args:
        pct: bounds the share of masked words, span / (span + 2) of it: see ``n_masked_spans``.
        span: words in a span.

    Raises:
        RematchError: for k or span below 1 or pct outside [0, 1].
    """
    if k < 1 or span < 1 or not 0 <= pct <= 1:
        raise RematchError(f"a perturbation needs k >= 1, span >= 1 and pct in [0, 1], not {k}, {span} and {pct}")
    masked = []
    for text in texts:
        whole = Masked.of(text, [], span)
        starts = masked_spans(len(whole.words), k, rng, pct, span).tolist()
        masked += [Masked(whole.words, whole.spaces, row, span) for row in starts]
    filled = filler.fill(masked, rng)
    return [filled[first : first + k] for first in range(0, len(filled), k)]


def perturbed_statistics(
    scoring: LanguageModel,
    texts: Sequence[object],
    filler: Filler,
    k: int,
    rng: np.random.Generator,
    pct: float = 0.3,
    span: int = 2,
    batch_size: int = 8,
) -> Resampled:
    """What the scoring model says of k perturbed versions of each text, as DetectGPT and NPR need it.

    Of a text longer than the scoring model reads no more is perturbed than it can read. What is no text of two words
    (``baselines.detectors.texts``) is a row of NaN.
    """
    limit = getattr(scoring, "max_length", None)
    readable = [text if limit is None else _first_words(text, limit) for text in read_all(texts)[0]]
    return _scored(scoring, perturb(readable, filler, k, rng, pct, span), k, batch_size)


def regenerate(
    texts: Sequence[str], generator: LanguageModel, k: int, rng: np.random.Generator, kept: float = 0.5
) -> list[list[str]]:
    """k versions of each text: its first half of the words, and a continuation by the generator at temperature 1.

    As many tokens are drawn as the text's other half has, and at most as many words kept as the text has, joined by single
    spaces. A text comes back as it is where its first half has no word, or where its version would be a single word.

    Args:
        kept: share of the words that is kept, rounded down (0.5: DNA-GPT).

    Raises:
        RematchError: for k below 1 or kept outside (0, 1).
    """
    if k < 1 or not 0 < kept < 1:
        raise RematchError(f"regenerating needs k >= 1 and a share of kept words in (0, 1), not {k} and {kept}")
    words = [text.split() for text in texts]
    prefixes = generator.encode([" ".join(row[: int(kept * len(row))]) for row in words])
    whole = generator.encode([" ".join(row) for row in words])
    n_new = [len(ids) - len(prefix) if len(prefix) else 0 for ids, prefix in zip(whole, prefixes, strict=True)]
    versions = [[text] * k for text in texts]
    # Continuations of like lengths together: those that are asked for together are all drawn as long as the longest.
    groups = defaultdict(list)
    for row, n in enumerate(n_new):
        if n > 0:
            groups[n.bit_length()].append(row)
    for _, rows in sorted(groups.items()):
        owners = [row for row in rows for _ in range(k)]
        drawn = generator.sample([prefixes[row] for row in owners], max(n_new[row] for row in rows), rng)
        pairs = zip(owners, drawn, strict=True)
        decoded = generator.decode([np.concatenate([prefixes[row], new[: n_new[row]]]) for row, new in pairs])
        for number, (row, text) in enumerate(zip(owners, decoded, strict=True)):
            new_words = text.split()[: len(words[row])]
            if len(new_words) > 1:
                versions[row][number % k] = " ".join(new_words)
    return versions


def regenerated_statistics(
    scoring: LanguageModel,
    texts: Sequence[object],
    generator: LanguageModel,
    k: int,
    rng: np.random.Generator,
    kept: float = 0.5,
    batch_size: int = 8,
) -> Resampled:
    """What the scoring model says of k regenerated versions of each text, as DNA-GPT needs it; see ``regenerate``."""
    limit = getattr(scoring, "max_length", None)
    readable = [text if limit is None else _first_words(text, limit) for text in read_all(texts)[0]]
    return _scored(scoring, regenerate(readable, generator, k, rng, kept), k, batch_size)


@dataclass
class NGramFiller:
    """Fills spans word for word from an n-gram model, left to right, given the text to the left."""

    model: NGram

    def fill(self, texts: Sequence[Masked], rng: np.random.Generator) -> list[str]:
        """See ``Filler``."""
        masks, offsets = [], np.arange(texts[0].span if texts else 1)
        for text in texts:
            mask = np.zeros(len(text.words), np.bool_)
            mask[np.add.outer(np.array(text.starts, np.int64), offsets)] = True
            masks.append(mask)
        ids_batch = self.model.infill(self.model.encode([" ".join(text.words) for text in texts]), masks, rng)
        vocabulary = self.model.vocabulary
        filled = []
        for text, ids in zip(texts, ids_batch, strict=True):
            new = ids.tolist()
            fills = [" ".join([vocabulary[i] for i in new[start : start + text.span]]) for start in text.starts]
            filled.append(text.filled(fills))
        return filled


@dataclass(eq=False)
class T5Filler:
    """Fills spans by a transformers T5, which writes ``<extra_id_0> fill <extra_id_1> fill ...`` for numbered gaps.

    An answer that lacks a gap is drawn again; of the last try the fills that are there are used, and where one is missing
    the original words stay and are counted. Long texts are filled in pieces.

    Attributes:
        batch_size: pieces of text answered at once.
        max_tries: answers drawn for a piece.
        top_p: nucleus of the sampling; 1.0 samples from the whole distribution.
        n_spans_: spans that ``fill`` was asked for so far.
        n_kept_: those of them that kept their original words.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 16
    max_tries: int = 10
    top_p: float = 1.0
    n_spans_: int = field(default=0, init=False)
    n_kept_: int = field(default=0, init=False)

    SPANS_IN_A_PIECE = 25
    """Some 330 words at 0.3 and spans of 2: T5 was trained on 512 tokens and knows 100 gaps."""

    def __post_init__(self) -> None:
        self.model.eval()

    def fill(self, texts: Sequence[Masked], rng: np.random.Generator) -> list[str]:
        """See ``Filler``; torch's own random numbers are left alone."""
        device = self.model.device
        answers: list[list[str | None]] = [[None] * len(text.starts) for text in texts]
        size = self.SPANS_IN_A_PIECE
        waiting = [(row, first) for row, text in enumerate(texts) for first in range(0, len(text.starts), size)]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(rng.integers(2**63)))
            for _ in range(self.max_tries):
                failed = []
                for first in range(0, len(waiting), self.batch_size):
                    batch = waiting[first : first + self.batch_size]
                    fills_batch = self._answer([_with_gaps(texts[row], start, size) for row, start in batch])
                    for (row, start), fills in zip(batch, fills_batch, strict=True):
                        n = len(answers[row][start : start + size])
                        answers[row][start : start + size] = [fills.get(gap) for gap in range(n)]
                        if any(gap not in fills for gap in range(n)):
                            failed.append((row, start))
                waiting = failed
        self.n_spans_ += sum(len(row) for row in answers)
        self.n_kept_ += sum(fill is None for row in answers for fill in row)
        return [
            text.filled([text.original(gap) if fill is None else fill for gap, fill in enumerate(row)])
            for text, row in zip(texts, answers, strict=True)
        ]

    @torch.inference_mode()
    def _answer(self, texts: list[str]) -> list[dict[int, str]]:
        model: Any = self.model
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True)
        n_gaps = max(text.count("<extra_id_") for text in texts)
        out = model.generate(
            input_ids=inputs["input_ids"].to(model.device),
            attention_mask=inputs["attention_mask"].to(model.device),
            do_sample=True,
            top_p=self.top_p,
            top_k=0,
            max_new_tokens=max(150, 8 * n_gaps),
            # Nothing that comes after the gap that is one too many is read.
            eos_token_id=[model.config.eos_token_id, self.tokenizer.convert_tokens_to_ids(f"<extra_id_{n_gaps}>")],
        )
        return [fills_of(str(self.tokenizer.decode(row))) for row in out]


def fills_of(answer: str) -> dict[int, str]:
    """What a T5 wrote for each gap, by its number: the text between ``<extra_id_n>`` and the next special token.

    Of a gap that is answered more than once the first answer counts. An answer may be empty.
    """
    parts = re.split(r"<(extra_id_\d+|/s|pad)>", answer)
    fills: dict[int, str] = {}
    for token, fill in zip(parts[1::2], parts[2::2], strict=True):
        if token.startswith("extra_id_"):
            fills.setdefault(int(token.removeprefix("extra_id_")), " ".join(fill.split()))
    return fills


def _with_gaps(text: Masked, first: int, n: int) -> str:
    """The piece of a text around the spans first .. first + n - 1, which are numbered gaps from 0."""
    starts = text.starts[first : first + n]
    begin = text.starts[first - 1] + text.span if first else 0
    after = first + len(starts)
    end = text.starts[after] if after < len(text.starts) else len(text.words)
    piece, position = [], begin
    for gap, start in enumerate(starts):
        piece += [*text.words[position:start], f"<extra_id_{gap}>"]
        position = start + text.span
    return " ".join([*piece, *text.words[position:end]])


def _first_words(text: str, n: int) -> str:
    """A text cut after its first n words, which are at least n tokens."""
    for number, word in enumerate(re.finditer(r"\S+", text)):
        if number == n:
            return text[: word.start()].rstrip()
    return text


def _scored(scoring: LanguageModel, versions: Sequence[Sequence[str]], k: int, batch_size: int) -> Resampled:
    """Statistics of the versions of each text; each distinct text is read once."""
    distinct = {text: place for place, text in enumerate(dict.fromkeys(text for row in versions for text in row))}
    log_p, log_rank = mean_log_p_and_log_rank(scoring, list(distinct), batch_size)
    places = np.array([distinct[text] for row in versions for text in row], np.int64).reshape(len(versions), k)
    return Resampled(log_p[places], log_rank[places])
