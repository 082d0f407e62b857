"""An n-gram language model: interpolated absolute discounting, down to the uniform distribution over the vocabulary.

With c(hw) the count of word w after the context h, N(h) their sum, T(h) how many different words follow h, D the discount
and h' the context without its first word:

    P(w | h) = max(c(hw) - D, 0) / N(h) + D T(h) / N(h) P(w | h')        P(w | h) = P(w | h') where N(h) = 0

and below the empty context stands 1 / V, so no word has probability 0. Contexts never cross the border of a text: its
first word is predicted from the empty context, its second from one word. (Ney, Essen and Kneser 1994, interpolated.)

The n-grams are kept as a trie in flat arrays, breadth first, so that a node's children are neighbours in the order of
their words. A dense row costs one addition a word, because without seen n-grams ln P is ln of the unigram plus a constant;
logarithms are taken only of the words seen after the context. A word is drawn without the dense row: first the level of
backing off, then the word by its cumulative count.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numba
import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from rematch.errors import RematchError

UNKNOWN = "<unk>"

Rows = Sequence[np.ndarray] | np.ndarray
"""Arrays of any lengths, or one array of rows of one length, as ``NGram.sample`` gives it."""

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


def frequent_words(sequences: Sequence[Sequence[str]], size: int | None = None) -> list[str]:
    """A vocabulary: ``<unk>`` and the most frequent words, at most ``size`` in all; ties in alphabetical order."""
    counts = Counter(word for sequence in sequences for word in sequence)
    del counts[UNKNOWN]
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return [UNKNOWN, *(ordered if size is None else ordered[: max(0, size - 1)])]


@dataclass(frozen=True, eq=False)
class NGram:
    """A fitted model; made by ``fit`` or ``load``.

    Attributes:
        vocabulary: the words, ``<unk>`` among them; a word's id is its place.
        order: words in the longest n-gram; 1 is a unigram model.
        discount: D, strictly between 0 and 1.
        words: (nodes,) int32, the last word of every node's n-gram, breadth first; the children of a node ascend.
        counts: (nodes,) int64, how often the n-gram occurred; the root's is 0.
        first_child: (nodes above the last level + 1,) int64; the children of node i are first_child[i] .. first_child[i + 1] - 1.
    """

    vocabulary: list[str]
    order: int
    discount: float
    words: np.ndarray
    counts: np.ndarray
    first_child: np.ndarray

    @classmethod
    def fit(
        cls,
        sequences: Sequence[Sequence[str]],
        order: int = 3,
        discount: float = 0.75,
        vocabulary: Sequence[str] | None = None,
    ) -> NGram:
        """Count the n-grams of texts, each given as the list of its words.

        ``vocabulary`` is by default every word of the texts; ``<unk>``, which stands for all words outside, is put first
        where it is missing. Models that are to be compared token by token must be given the same one.

        Raises:
            RematchError: for an order below 1, a discount outside (0, 1) or a repeated word.
        """
        if order < 1:
            raise RematchError(f"an n-gram model's order is at least 1, not {order}")
        if not 0 < discount < 1:
            raise RematchError(f"an n-gram model's discount is strictly between 0 and 1, not {discount}")
        vocabulary = frequent_words(sequences) if vocabulary is None else list(vocabulary)
        if UNKNOWN not in vocabulary:
            vocabulary = [UNKNOWN, *vocabulary]
        if len(set(vocabulary)) < len(vocabulary):
            repeated = next(word for word, count in Counter(vocabulary).items() if count > 1)
            raise RematchError(f"the vocabulary holds {repeated!r} more than once")
        indices = {word: index for index, word in enumerate(vocabulary)}
        unknown = indices[UNKNOWN]
        ids, starts = _flat([[indices.get(word, unknown) for word in sequence] for sequence in sequences])
        return cls(vocabulary, order, discount, *_count(ids, starts, order, len(vocabulary)))

    @property
    def vocab_size(self) -> int:
        """Words in the vocabulary, ``<unk>`` included."""
        return len(self.vocabulary)

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.vocabulary)}

    @cached_property
    def _trie(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Words, counts summed over all nodes before (nodes + 1,), and first children."""
        return self.words, np.concatenate([[0], np.cumsum(self.counts)]), self.first_child

    @cached_property
    def _unigram(self) -> np.ndarray:
        """P(w) after the empty context, (V,) float64."""
        first, last = self.first_child[0], self.first_child[1]
        counts = self.counts[first:last]
        total = counts.sum()
        backed_off = self.discount * len(counts) / total if total else 1.0
        probabilities = np.full(self.vocab_size, backed_off / self.vocab_size)
        if total:
            probabilities[self.words[first:last]] += (counts - self.discount) / total
        return probabilities

    @cached_property
    def _log_unigram(self) -> np.ndarray:
        return np.log(self._unigram)

    @cached_property
    def _sorted_unigram(self) -> np.ndarray:
        return np.sort(self._unigram)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text's words, which stand between white space: int64 arrays."""
        indices, unknown = self._indices, self._indices[UNKNOWN]
        return [np.array([indices.get(word, unknown) for word in text.split()], np.int64) for text in texts]

    def decode(self, ids_batch: Rows) -> list[str]:
        """The words of each text, joined by one space."""
        vocabulary = self.vocabulary
        return [" ".join([vocabulary[index] for index in ids.tolist()]) for ids in ids_batch]

    def log_probs(self, ids_batch: Rows) -> Tensor:
        """ln P of every word at tokens 2 .. n given all that stands before in the text.

        Args:
            ids_batch: texts of any lengths, as ``encode`` gives them.

        Returns:
            (texts, longest - 1, V) float32; rows sum to 1 up to 1e-6 as probabilities; uniform beyond a text's end.
        """
        ids, starts = self._flat(ids_batch)
        positions = max(0, int(np.diff(starts).max(initial=0)) - 1)
        out = torch.empty(len(ids_batch), positions, self.vocab_size)
        _fill(ids, starts, *self._trie, self.order, self.discount, self._unigram, self._log_unigram, out.numpy())
        return out

    def token_log_probs(self, ids_batch: Rows) -> np.ndarray:
        """ln P of tokens 2 .. n, (texts, longest - 1) float64, NaN beyond a text's end; no dense row is made."""
        ids, starts = self._flat(ids_batch)
        out = np.full((len(ids_batch), max(0, int(np.diff(starts).max(initial=0)) - 1)), np.nan)
        _score(ids, starts, *self._trie, self.order, self.discount, self._unigram, out)
        return out

    def ranked_tokens(self, ids_batch: Rows) -> tuple[np.ndarray, np.ndarray]:
        """ln P and rank of tokens 2 .. n, both (texts, longest - 1) float64, NaN beyond a text's end; no dense row is made.

        A rank is 1 + the number of words that are strictly more probable.
        """
        ids, starts = self._flat(ids_batch)
        shape = len(ids_batch), max(0, int(np.diff(starts).max(initial=0)) - 1)
        log_p, rank = np.full(shape, np.nan), np.full(shape, np.nan)
        unigrams = self._unigram, self._sorted_unigram
        _rank(ids, starts, *self._trie, self.order, self.discount, *unigrams, log_p, rank)
        return log_p, rank

    def sample(self, prefixes: Rows, length: int, rng: np.random.Generator, temperature: float = 1.0) -> np.ndarray:
        """Continue every prefix (an empty one too) by ``length`` words: the new words alone, (prefixes, length) int64.

        A function of the prefixes and of one uniform number a word, drawn row by row: the same generator gives the same
        words, and more prefixes behind change nothing in front. A temperature other than 1 needs the dense row.

        Raises:
            RematchError: for a temperature that is not positive.
        """
        room = np.zeros(length, np.int64)
        ids, starts = self._flat([np.concatenate([prefix, room]) for prefix in prefixes])
        drawn = np.zeros(len(ids), np.bool_)
        columns = starts[1:, None] - np.arange(length, 0, -1)
        drawn[columns] = True
        self._draw(ids, starts, drawn, rng, temperature)
        return ids[columns]

    def infill(
        self,
        ids_batch: Rows,
        masks: Rows,
        rng: np.random.Generator,
        temperature: float = 1.0,
    ) -> list[np.ndarray]:
        """Draw the masked words of each text anew, left to right, given the text (as filled so far) to their left.

        Args:
            ids_batch: texts of any lengths, as ``encode`` gives them; left as they are.
            masks: for each text a boolean for each word, True where it is drawn.

        Raises:
            RematchError: for a temperature that is not positive, or masks that are not as long as their texts.
        """
        ids, starts = self._flat(ids_batch)
        drawn, mask_starts = _flat(masks)
        if not np.array_equal(starts, mask_starts):
            raise RematchError("infilling needs one mask a text, as long as the text")
        self._draw(ids, starts, drawn.astype(np.bool_), rng, temperature)
        return np.split(ids, starts[1:-1]) if len(ids_batch) else []

    def _flat(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        ids, starts = _flat(rows)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise RematchError(
                f"ids of {ids.min()} to {ids.max()}, but the vocabulary has {self.vocab_size} words: encode with this model"
            )
        return ids, starts

    def _draw(
        self, ids: np.ndarray, starts: np.ndarray, drawn: np.ndarray, rng: np.random.Generator, temperature: float
    ) -> None:
        if not temperature > 0:
            raise RematchError(f"a sampling temperature is positive, not {temperature}")
        uniforms = rng.random(int(drawn.sum()))
        unigrams = self._unigram, self._log_unigram
        _sample(ids, starts, drawn, uniforms, *self._trie, self.order, self.discount, *unigrams, 1.0 / temperature)

    def save(self, folder: Path) -> None:
        """Write ``ngram.safetensors`` and ``ngram.json`` (vocabulary, order, discount) to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {"words": self.words, "counts": self.counts, "first_child": self.first_child}
        save_file(arrays, folder / "ngram.safetensors")
        settings = {"order": self.order, "discount": self.discount, "vocabulary": self.vocabulary}
        (folder / "ngram.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> NGram:
        """Read what ``save`` wrote.

        Raises:
            RematchError: where the folder holds no n-gram model.
        """
        if not (folder / "ngram.json").is_file():
            raise RematchError(f"{folder} holds no n-gram model: no ngram.json")
        settings = json.loads((folder / "ngram.json").read_text(encoding="utf-8"))
        arrays = load_file(folder / "ngram.safetensors")
        return cls(words=arrays["words"], counts=arrays["counts"], first_child=arrays["first_child"], **settings)


def _flat(rows: Sequence[Sequence[int]] | Rows) -> tuple[np.ndarray, np.ndarray]:
    """Rows one after the other as int64 (a copy), and where each starts, (rows + 1,)."""
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=starts[1:])
    return np.concatenate([np.zeros(0, np.int64), *(np.asarray(row, np.int64) for row in rows)]), starts


def _count(
    ids: np.ndarray, starts: np.ndarray, order: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays ``words``, ``counts`` and ``first_child`` of the n-grams of texts laid one after the other."""
    ends = np.repeat(starts[1:], np.diff(starts))
    begin = np.arange(len(ids))
    node = np.zeros(len(ids), np.int64)  # of the n-gram that begins there, counted within its level
    words, counts, first_child = [np.zeros(1, np.int32)], [np.zeros(1, np.int64)], []
    n_parents, n_nodes = 1, 1
    for level in range(1, order + 1):
        inside = begin + level <= ends[begin]
        begin, node = begin[inside], node[inside]
        keys, node, count = np.unique(
            node * vocab_size + ids[begin + level - 1], return_inverse=True, return_counts=True
        )
        parents, last = np.divmod(keys, vocab_size)
        first_child.append(n_nodes + np.searchsorted(parents, np.arange(n_parents)))
        words.append(last.astype(np.int32))
        counts.append(count.astype(np.int64))
        n_parents = len(keys)
        n_nodes += len(keys)
    first_child.append(np.array([n_nodes]))
    return np.concatenate(words), np.concatenate(counts), np.concatenate(first_child).astype(np.int64)


@_jit
def _contexts(
    ids: np.ndarray,
    start: int,
    position: int,
    words: np.ndarray,
    running: np.ndarray,
    first_child: np.ndarray,
    order: int,
    nodes: np.ndarray,
) -> int:
    """Write to ``nodes`` the nodes of the contexts of 0, 1, ... words before a position that have followers; how many.

    Where a context has no follower no longer one has: so the search ends there.
    """
    nodes[0] = 0
    if running[first_child[1]] == running[first_child[0]]:
        return 0
    for n_words in range(1, min(order - 1, position - start) + 1):
        node = 0
        for at in range(position - n_words, position):
            low, end = first_child[node], first_child[node + 1]
            high = end
            while low < high:
                middle = (low + high) // 2
                if words[middle] < ids[at]:
                    low = middle + 1
                else:
                    high = middle
            if low == end or words[low] != ids[at]:
                return n_words
            node = low
        if first_child[node] == first_child[node + 1]:
            return n_words
        nodes[n_words] = node
    return min(order - 1, position - start) + 1


@_jit
def _seen(
    nodes: np.ndarray,
    n_nodes: int,
    words: np.ndarray,
    running: np.ndarray,
    first_child: np.ndarray,
    discount: float,
    extra: np.ndarray,
) -> float:
    """Add to ``extra`` (V,) what the words seen after the contexts gain, so that P = extra + scale * unigram; the scale."""
    scale = 1.0
    for level in range(n_nodes - 1, 0, -1):
        low, high = first_child[nodes[level]], first_child[nodes[level] + 1]
        total = running[high] - running[low]
        for child in range(low, high):
            extra[words[child]] += scale * ((running[child + 1] - running[child]) - discount) / total
        scale *= discount * (high - low) / total
    return scale


@_jit
def _row(
    nodes: np.ndarray,
    n_nodes: int,
    words: np.ndarray,
    running: np.ndarray,
    first_child: np.ndarray,
    discount: float,
    unigram: np.ndarray,
    log_unigram: np.ndarray,
    extra: np.ndarray,
    out: np.ndarray,
) -> None:
    """Fill ``out`` (V,) with ln P after the contexts ``nodes``; ``extra`` (V,) comes in and leaves as zeros."""
    scale = _seen(nodes, n_nodes, words, running, first_child, discount, extra)
    shift = np.log(scale)
    for word in range(len(out)):
        out[word] = log_unigram[word] + shift
    if n_nodes > 1:
        # Whatever follows a longer context follows its last word too, so these are all that are seen.
        for child in range(first_child[nodes[1]], first_child[nodes[1] + 1]):
            word = words[child]
            out[word] = np.log(extra[word] + scale * unigram[word])
            extra[word] = 0.0


@_jit
def _fill(
    ids: np.ndarray,
    starts: np.ndarray,
    words: np.ndarray,
    running: np.ndarray,
    first_child: np.ndarray,
    order: int,
    discount: float,
    unigram: np.ndarray,
    log_unigram: np.ndarray,
    out: np.ndarray,
) -> None:
    nodes = np.zeros(order, np.int64)
    extra = np.zeros(len(unigram))
    for text in range(len(starts) - 1):
        start, n_tokens = starts[text], starts[text + 1] - starts[text]
        for place in range(out.shape[1]):
            if place + 1 < n_tokens:
                n_nodes = _contexts(ids, start, start + place + 1, words, running, first_child, order, nodes)
                _row(
                    nodes,
                    n_nodes,
                    words,
                    running,
                    first_child,
                    discount,
                    unigram,
                    log_unigram,
                    extra,
                    out[text, place],
                )
            else:
                out[text, place] = -np.log(len(unigram))


@_jit
def _score(
    ids: np.ndarray,
    starts: np.ndarray,
    words: np.ndarray,
    running: np.ndarray,
    first_child: np.ndarray,
    order: int,
    discount: float,
    unigram: np.ndarray,
    out: np.ndarray,
) -> None:
    nodes = np.zeros(order, np.int64)
    for text in range(len(starts) - 1):
        for position in range(starts[text] + 1, starts[text + 1]):
            n_nodes = _contexts(ids, starts[text], position, words, running, first_child, order, nodes)
            probability = unigram[ids[position]]
            for level in range(1, n_nodes):
                low, high = first_child[nodes[level]], first_child[nodes[level] + 1]
                total = running[high] - running[low]
                probability *= discount * (high - low) / total
                child = low + np.searchsorted(words[low:high], ids[position])
                if child < high and words[child] == ids[position]:
                    probability += ((running[child + 1] - running[child]) - discount) / total
            out[text, position - starts[text] - 1] = np.log(probability)


@_jit
def _rank(
    ids: np.ndarray,
    starts: np.ndarray,
    words: np.ndarray,
    running: np.ndarray,
    first_child: np.ndarray,
    order: int,
    discount: float,
    unigram: np.ndarray,
    sorted_unigram: np.ndarray,
    log_p: np.ndarray,
    rank: np.ndarray,
) -> None:
    vocab_size = len(unigram)
    nodes = np.zeros(order, np.int64)
    extra = np.zeros(vocab_size)
    for text in range(len(starts) - 1):
        for position in range(starts[text] + 1, starts[text + 1]):
            n_nodes = _contexts(ids, starts[text], position, words, running, first_child, order, nodes)
            scale = _seen(nodes, n_nodes, words, running, first_child, discount, extra)
            own = extra[ids[position]] + scale * unigram[ids[position]]
            # All words as if none was seen after the contexts, by bisection; then those that were are set right.
            low, high = 0, vocab_size
            while low < high:
                middle = (low + high) // 2
                if scale * sorted_unigram[middle] > own:
                    high = middle
                else:
                    low = middle + 1
            above = vocab_size - low
            if n_nodes > 1:
                for child in range(first_child[nodes[1]], first_child[nodes[1] + 1]):
                    word = words[child]
                    unseen = scale * unigram[word]
                    above += int(extra[word] + unseen > own) - int(unseen > own)
                    extra[word] = 0.0
            log_p[text, position - starts[text] - 1] = np.log(own)
            rank[text, position - starts[text] - 1] = 1.0 + above


@_jit
def _sample(
    ids: np.ndarray,
    starts: np.ndarray,
    drawn: np.ndarray,
    uniforms: np.ndarray,
    words: np.ndarray,
    running: np.ndarray,
    first_child: np.ndarray,
    order: int,
    discount: float,
    unigram: np.ndarray,
    log_unigram: np.ndarray,
    power: float,
) -> None:
    """Replace in place the ids that are ``drawn``, from P to the ``power``, by one uniform number each."""
    nodes = np.zeros(order, np.int64)
    extra, row = np.zeros(len(unigram)), np.empty(len(unigram))
    n_drawn = 0
    for text in range(len(starts) - 1):
        for position in range(starts[text], starts[text + 1]):
            if not drawn[position]:
                continue
            uniform = uniforms[n_drawn]
            n_drawn += 1
            n_nodes = _contexts(ids, starts[text], position, words, running, first_child, order, nodes)
            if power == 1.0:
                ids[position] = _word(uniform, nodes, n_nodes, words, running, first_child, discount, len(unigram))
            else:
                _row(nodes, n_nodes, words, running, first_child, discount, unigram, log_unigram, extra, row)
                ids[position] = _tempered_word(uniform, row, power)


@_jit
def _word(
    uniform: float,
    nodes: np.ndarray,
    n_nodes: int,
    words: np.ndarray,
    running: np.ndarray,
    first_child: np.ndarray,
    discount: float,
    vocab_size: int,
) -> int:
    """The word at a uniform number: what is left of the number after a level's discounted counts serves the level below."""
    for level in range(n_nodes - 1, -1, -1):
        first, end = first_child[nodes[level]], first_child[nodes[level] + 1]
        total = float(running[end] - running[first])
        kept = total - discount * (end - first)
        mass = uniform * total
        if mass < kept:
            low, high = first, end - 1
            while low < high:
                middle = (low + high) // 2
                if (running[middle + 1] - running[first]) - discount * (middle + 1 - first) > mass:
                    high = middle
                else:
                    low = middle + 1
            return words[low]
        uniform = (mass - kept) / (total - kept)
    return min(int(uniform * vocab_size), vocab_size - 1)


@_jit
def _tempered_word(uniform: float, row: np.ndarray, power: float) -> int:
    highest = row.max()
    total = 0.0
    for word in range(len(row)):
        total += np.exp(power * (row[word] - highest))
        row[word] = total
    return min(int(np.searchsorted(row, uniform * total, side="right")), len(row) - 1)
