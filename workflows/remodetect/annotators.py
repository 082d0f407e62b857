"""Simulated annotators, vendors' rewards, and best-of-n: the alignment of the mini tier.

There are no people here. An annotator's taste is a latent utility of a text's surface; a pair is labelled by a noisy
comparison of two utilities; a vendor fits a linear Bradley-Terry reward to labels of its own and aligns its model by keeping the best
of n samples. The utility looks at words alone and never at where a text came from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

HELPFUL = frozenset(
    [
        "however",
        "therefore",
        "because",
        "example",
        "note",
        "thus",
        "hence",
        "since",
        "also",
        "instead",
        "first",
        "second",
        "finally",
        "otherwise",
        "moreover",
        "if",
        "then",
        "while",
        "although",
        "whether",
        "such",
        "so",
        "means",
        "ensure",
        "helpful",
        "important",
        "recommended",
        "simply",
        "easily",
    ]
)
"""Discourse words that the annotators like."""
SENTENCE_END = frozenset(".!?")
IDEAL_SENTENCE = 14
OPENING, CLOSING = "([{", ")]}"

TASTES = {"a": (1.0, 1.0, 1.0, 1.0, 1.0, 1.0), "b": (0.2, 1.6, 0.1, 1.6, 1.4, 0.2)}
"""Weights of the six features in a vendor's annotators: helpful words, sentence length, short words, distinct bigrams,
balanced brackets, commas."""
DECISIVENESS = 1.5
"""The annotators prefer y to y' with probability sigma(1.5 (u - u') / sd(u))."""


@dataclass(frozen=True)
class Surface:
    """The features of texts, computed on ids of a closed vocabulary."""

    vocabulary: tuple[str, ...]

    @cached_property
    def _tables(self) -> dict[str, np.ndarray]:
        words = self.vocabulary
        sign = [1.0 if w in OPENING else -1.0 if w in CLOSING else 0.0 for w in words]
        return {
            "helpful": np.array([float(w in HELPFUL) for w in words]),
            "end": np.array([float(w in SENTENCE_END) for w in words]),
            "letters": np.array([float(len(w)) if w.isalpha() else 0.0 for w in words]),
            "alphabetic": np.array([float(w.isalpha()) for w in words]),
            "bracket": np.array(sign),
            "comma": np.array([float(w == ",") for w in words]),
        }

    def features(self, ids: np.ndarray) -> np.ndarray:
        """The six features of each text, (n, 6), larger = liked more. ids: (n, words)."""
        t = self._tables
        n_words = ids.shape[1]
        sentences = np.maximum(1.0, t["end"][ids].sum(1))
        alphabetic = np.maximum(1.0, t["alphabetic"][ids].sum(1))
        bigrams = np.sort(ids[:, :-1].astype(np.int64) * len(self.vocabulary) + ids[:, 1:], axis=1)
        distinct = 1 + (np.diff(bigrams, axis=1) != 0).sum(1)
        depth = np.cumsum(t["bracket"][ids], axis=1)
        # What is closed without having been opened, and what is never closed.
        unopened = np.maximum(0.0, -depth.min(1))
        imbalance = 2 * unopened + depth[:, -1]
        return np.column_stack(
            [
                t["helpful"][ids].mean(1),
                -np.abs(n_words / sentences - IDEAL_SENTENCE),
                -t["letters"][ids].sum(1) / alphabetic,
                distinct / bigrams.shape[1],
                -np.abs(imbalance),
                t["comma"][ids].mean(1),
            ]
        )


@dataclass(frozen=True)
class Annotators:
    """People who label pairs for one vendor.

    Attributes:
        weights: of the standardised features, (6,).
        mean, scale: of the features over unaligned samples, (6,).
        spread: standard deviation of the utility there.
    """

    surface: Surface
    weights: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    spread: float

    @classmethod
    def of(cls, surface: Surface, taste: Sequence[float], unaligned: np.ndarray) -> Annotators:
        """Annotators with a taste; ``unaligned`` samples (n, words) set the scale of what they see."""
        found = surface.features(unaligned)
        mean, scale = found.mean(0), np.maximum(found.std(0), 1e-9)
        weights = np.asarray(taste, dtype=float)
        return cls(surface, weights, mean, scale, float(np.std((found - mean) / scale @ weights)))

    def utility(self, ids: np.ndarray) -> np.ndarray:
        """The latent utility of each text, (n,)."""
        return self.standardised(ids) @ self.weights

    def standardised(self, ids: np.ndarray) -> np.ndarray:
        """The features in units of their standard deviation over unaligned samples, (n, 6)."""
        return (self.surface.features(ids) - self.mean) / self.scale

    def prefers_first(self, first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Noisy labels of pairs, (n,) of bool: Bradley-Terry with the utilities in units of their spread."""
        margin = DECISIVENESS * (self.utility(first) - self.utility(second)) / self.spread
        return rng.random(len(first)) < 1 / (1 + np.exp(-margin))


@dataclass(frozen=True)
class VendorReward:
    """A linear Bradley-Terry reward that a vendor fitted to its annotators' labels, not their utility itself."""

    annotators: Annotators
    coefficients: np.ndarray

    @classmethod
    def fit(
        cls, annotators: Annotators, first: np.ndarray, second: np.ndarray, rng: np.random.Generator
    ) -> VendorReward:
        """Label pairs (n, words) each and fit. Bradley-Terry is logistic regression on differences, without intercept."""
        differences = annotators.standardised(first) - annotators.standardised(second)
        labels = annotators.prefers_first(first, second, rng)
        model = LogisticRegression(fit_intercept=False).fit(differences, labels)
        return cls(annotators, model.coef_[0])

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """The reward of each text, (n,)."""
        return self.annotators.standardised(ids) @ self.coefficients

    def save(self, path: Path) -> None:
        """Write it as JSON, vocabulary included."""
        people = self.annotators
        numbers = {"mean": people.mean, "scale": people.scale, "coefficients": self.coefficients}
        document = {name: array.tolist() for name, array in numbers.items()}
        path.write_text(json.dumps(document | {"vocabulary": people.surface.vocabulary}), encoding="utf-8")


@dataclass
class Selector:
    """The very reward that picked the best of n, as a detector: no other can do better on what it picked, prompt by prompt.

    Against a fresh draw of the same prompt it wins n / (n + 1) of the time, in expectation.
    """

    FILE = "selector.json"

    def read(self, folder: Path) -> None:
        """Read the reward from the base ``texts`` that it was written to."""
        self._saved = json.loads((folder / self.FILE).read_text(encoding="utf-8"))

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Rewards of texts of equal length, (n,)."""
        saved = self._saved
        indices = {word: index for index, word in enumerate(saved["vocabulary"])}
        ids = np.array([[indices[word] for word in text.split()] for text in texts])
        features = Surface(tuple(saved["vocabulary"])).features(ids)
        return (features - saved["mean"]) / saved["scale"] @ np.array(saved["coefficients"])


@dataclass
class Chance:
    """No detector at all: every text gets the same score, so that AUROC is 1/2."""

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Zeros, (n,)."""
        return np.zeros(len(texts))


def best_of(reward: VendorReward, candidates: np.ndarray, n: int) -> np.ndarray:
    """The best of the first n candidates of each prompt, (prompts, words). candidates: (prompts, n or more, words)."""
    prompts, _, words = candidates.shape
    rewards = reward(candidates[:, :n].reshape(-1, words)).reshape(prompts, n)
    return candidates[np.arange(prompts), rewards.argmax(1)]
