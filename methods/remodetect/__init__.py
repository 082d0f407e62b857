"""ReMoDetect: reward models recognise aligned LLMs' generations (NeurIPS 2024, arXiv 2405.17382).

Aligned LLMs are trained to please a reward model, so their texts get a higher reward than human ones do. The reward of a
text is the detector's score; fine-tuning on triplets (LLM text, human text rephrased in part, human text) widens the
gap, and a replay penalty keeps the reward model what it was::

    detector = ReMoDetector.from_pretrained("OpenAssistant/reward-model-deberta-v3-large-v2")
    detector.fit(triplets, replay).score(texts)

``loss`` holds the objective and its two presets, ``mixing`` makes the middle texts, ``cleaning`` the spacing of all
training texts; ``python -m methods.remodetect`` scores a file.
"""

import importlib
from typing import Any

_HOMES = {
    "ReMoDetector": "detector",
    "OFFICIAL": "loss",
    "PAPER": "loss",
    "LossWeights": "loss",
    "remodetect_loss": "loss",
}

__all__ = ["OFFICIAL", "PAPER", "LossWeights", "ReMoDetector", "remodetect_loss"]


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: whoever needs the cleaning alone does not depend on the loss."""
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
