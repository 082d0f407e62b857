"""Mixed texts: a human text of which an LLM has rephrased a random part of the sentences (section 4.2 of the paper).

They stand between LLM and human texts and show the detector the border. Cut, choose, rephrase, join: what is cut out of
a text (sentences, spans of words) and who rephrases it are the caller's. For an LLM that answers in prose there are the
prompt and a parser of its answer; what does not parse gives no mixed text, never a wrong one or one in the wrong row.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RATIO = 0.5
"""The share of the sentences that the paper rephrases."""

Rephrase = Callable[[Sequence[str], Sequence[int]], Sequence[str] | None]
"""Given all units and the (sorted, 0-based) indices of those to rephrase: as many new units, or None for a failure."""

# English abbreviations that end in a dot and rarely a sentence, in Punkt's form: lower case, without the last dot.
_LISTED = """
    a.m al approx apr aug ave capt cf co corp dec dept dr e.g est etc feb fig figs gen gov i.e inc jan jr lt ltd mr mrs
    ms mt nov oct op p.m pp ph.d prof rep rev sen sept sgt sr st u.k u.n u.s u.s.a vol vs
"""
ABBREVIATIONS = frozenset(_LISTED.split())


@functools.cache
def _sentence_tokenizer() -> Any:
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    parameters.abbrev_types = set(ABBREVIATIONS)
    return PunktSentenceTokenizer(parameters)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, stripped.

    By nltk's Punkt tokenizer with a short list of English abbreviations instead of the trained parameters that the
    paper's code downloads: nothing to download, and the same result on every machine. It differs from the trained one
    mostly after rare abbreviations.
    """
    return [sentence.strip() for sentence in _sentence_tokenizer().tokenize(text) if sentence.strip()]


def split_spans(text: str, size: int = 8) -> list[str]:
    """Spans of ``size`` words each, the last one perhaps shorter: for texts that are too short for sentences."""
    words = text.split()
    return [" ".join(words[start : start + size]) for start in range(0, len(words), size)]


def n_rephrased(n_units: int, ratio: float) -> int:
    """How many of ``n_units`` are rephrased: floor(ratio * n_units)."""
    return math.floor(ratio * n_units + 1e-9)  # 0.29 * 100 is 28.999999999999996


def mix(
    units: Sequence[str],
    rephrase: Rephrase,
    rng: np.random.Generator,
    ratio: float = RATIO,
    join: Callable[[Sequence[str]], str] = " ".join,
) -> str | None:
    """A text of which a random subset of floor(ratio * n) units is rephrased; the others stay verbatim and in order.

    Args:
        units: of a human text, in order.
        rephrase: called once, unless there is nothing to rephrase.
        rng: of the subset, which is a function of it and of the number of units alone.
        ratio: share of the units, in [0, 1].
        join: makes a text of the units.

    Returns:
        None where nothing was rephrased: too few units (a single sentence at ratio 1/2), a failure (None, an empty
        unit), or units that all came back as they were.

    Raises:
        ValueError: a ratio outside [0, 1], or ``rephrase`` gave another number of units than it was asked for.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must lie in [0, 1], not {ratio!r}")
    # Drawn even where it is empty: a text's subset does not depend on what the texts before it were made of.
    indices = sorted(rng.permutation(len(units))[: n_rephrased(len(units), ratio)].tolist())
    if not indices:
        return None
    new = rephrase(units, indices)
    if new is None:
        return None
    if len(new) != len(indices):
        raise ValueError(f"rephrase gave {len(new)} units for {len(indices)}")
    new = [unit.strip() for unit in new]
    if not all(new) or all(unit == units[i] for i, unit in zip(indices, new, strict=True)):
        return None
    mixed = list(units)
    for i, unit in zip(indices, new, strict=True):
        mixed[i] = unit
    return join(mixed)


def rephrasing_prompt(sentences: Sequence[str], indices: Sequence[int]) -> str:
    """What to ask an LLM: all sentences with their numbers, counted from 1, and which of them to paraphrase."""
    listed = "\n".join(f"{number}. {' '.join(sentence.split())}" for number, sentence in enumerate(sentences, 1))
    wanted = ", ".join(str(i + 1) for i in indices)
    return (
        f"Here is a text, one numbered sentence per line:\n\n{listed}\n\n"
        f"Paraphrase these sentences, and no others: {wanted}. Keep the meaning of each and let it still fit between its neighbours. "
        "Answer with one line for each paraphrased sentence: its number, a full stop, a space, the paraphrase. Write nothing else."
    )


# answer  := other* (item | other)*      item := number text (line of text)*, up to a blank line or the next item
# number  := ("*" | "-" | "#" | ">")* "Sentence"? ("(" | "[")? digits (")" | "]" | "." | ":")+ "*"*   , then a space
_ITEM = re.compile(r"[*\-#>\s]*(?:sentence\s+)?[(\[]?(\d{1,5})[)\].:]{1,3}\**[)\].:]{0,2}(?:\s+(.*))?$", re.IGNORECASE)


def parse_rephrased(answer: str, indices: Sequence[int], n_sentences: int) -> list[str] | None:
    """The paraphrases of an LLM's numbered answer, (len(indices),), in the order of ``indices`` (0-based).

    Numbers decide, not positions: a preamble, a closing remark after a blank line, sentences nobody asked for and any
    order do no harm. A paraphrase may run over several lines; a line that starts with a number beyond the text's
    sentences ("1998. ...") belongs to the paraphrase above it.

    Returns:
        None where a wanted sentence is missing, is empty, or has two different paraphrases.
    """
    items: list[tuple[int, list[str]]] = []
    inside = False
    for line in answer.splitlines():
        match = _ITEM.match(line)
        if match and 1 <= int(match[1]) <= n_sentences:
            items.append((int(match[1]) - 1, [match[2] or ""]))
            inside = True
        elif not line.strip():
            inside = False
        elif inside:
            items[-1][1].append(line)
    versions: dict[int, set[str]] = {}
    for index, lines in items:
        versions.setdefault(index, set()).add(_plain(" ".join(lines)))
    paraphrases = [text for i in indices for text in versions.get(i, ())]
    clear = all(len(versions.get(i, ())) == 1 for i in indices) and all(paraphrases)
    return paraphrases if clear else None


def _plain(text: str) -> str:
    """One line, single spaces, without the asterisks of a bold or italic whole."""
    text = " ".join(text.split())
    match = re.fullmatch(r"(\*{1,3})(.*?)\1", text)
    return match[2].strip() if match else text
