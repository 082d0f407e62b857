"""Numbers from scores: how well generated texts are told from human ones. Higher scores mean generated, always."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import auc, precision_recall_curve, roc_curve

FALSE_POSITIVE_RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Where ROC curves are read off."""
DENSITY_EDGES = np.arange(-4.0, 6.01, 0.5)
"""Edges of the histogram of scores, in standard deviations of the human scores from their mean."""


def placements(human: np.ndarray, llm: np.ndarray) -> np.ndarray:
    """For each generated text the share of human texts with a lower score, ties counting half, (llm,).

    Their mean is the AUROC exactly.
    """
    ordered = np.sort(human)
    below = np.searchsorted(ordered, llm, side="left")
    up_to = np.searchsorted(ordered, llm, side="right")
    return (below + up_to) / (2 * len(human))


def auroc_items(human: np.ndarray, llm: np.ndarray) -> np.ndarray:
    """Per-pair scores behind the AUROC, (pairs,): the placements of a pair's two texts, minus the AUROC.

    Their mean is the AUROC exactly, and drawing pairs anew moves human and generated texts alike, so that the mean's spread is
    that of the AUROC; placements of the generated texts alone would hold the human ones fixed (DeLong et al. 1988).
    """
    of_llm = placements(human, llm)
    of_human = 1.0 - placements(llm, human)
    return of_llm + of_human - np.mean(of_llm)


def average_precision(human: np.ndarray, llm: np.ndarray) -> float:
    """Area under the precision-recall curve by the trapezoid rule, as in the official evaluation."""
    labels = np.concatenate([np.zeros(len(human)), np.ones(len(llm))])
    precision, recall, _ = precision_recall_curve(labels, np.concatenate([human, llm]))
    return float(auc(recall, precision))


def true_positive_rate(human: np.ndarray, llm: np.ndarray, false_positive_rate: float) -> float:
    """Largest share of generated texts above a threshold that at most the given share of human texts lies above.

    With 200 human texts 1 % are 2 of them: that is how fine the rate can be set.
    """
    allowed = int(np.floor(false_positive_rate * len(human) + 1e-9))
    if allowed >= len(human):
        return 1.0
    threshold = np.sort(human)[::-1][allowed]
    return float(np.mean(llm > threshold))


def roc_at(human: np.ndarray, llm: np.ndarray, rates: Sequence[float]) -> np.ndarray:
    """True positive rates at false positive rates, read off the ROC curve with straight lines between its points."""
    labels = np.concatenate([np.zeros(len(human)), np.ones(len(llm))])
    false_positive, true_positive, _ = roc_curve(labels, np.concatenate([human, llm]), drop_intermediate=False)
    return np.interp(rates, false_positive, true_positive)


def wins(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pair by pair, 1 where the first has the higher score, 1/2 for a tie, (pairs,)."""
    return 0.5 * (1.0 + np.sign(first - second))


def density(scores: np.ndarray, human: np.ndarray) -> list[tuple[float, float]]:
    """A histogram of scores in standard deviations of the human ones: (middle of the bin, share of the texts).

    The outermost bins hold all that lies beyond them.
    """
    spread = float(np.std(human)) or 1.0
    standard = np.clip((scores - np.mean(human)) / spread, DENSITY_EDGES[0], DENSITY_EDGES[-1])
    counts, _ = np.histogram(standard, DENSITY_EDGES)
    middles = (DENSITY_EDGES[:-1] + DENSITY_EDGES[1:]) / 2
    return list(zip(middles.tolist(), (counts / len(scores)).tolist(), strict=True))


def ordered(rewards: Sequence[np.ndarray]) -> np.ndarray:
    """1 for each triplet (LLM, mixed, human) whose rewards descend strictly, else 0; rewards: 3 arrays (triplets,)."""
    llm, mixed, human = rewards
    return ((llm > mixed) & (mixed > human)).astype(float)
