"""ReMoDetect: reward models recognise aligned LLMs' generations (NeurIPS 2024, arXiv 2405.17382).

Aligned LLMs are trained to please a reward model, so their texts get a higher reward than human ones do. The reward of a
text is the detector's score; fine-tuning on triplets (LLM text, human text rephrased in part, human text) widens the
gap, and a replay penalty keeps the reward model what it was::

    detector = ReMoDetector.from_pretrained("OpenAssistant/reward-model-deberta-v3-large-v2")
    detector.fit(triplets, replay).score(texts)

``loss`` holds the objective and its two presets, ``mixing`` makes the middle texts, ``cleaning`` the spacing of all
training texts; ``python -m methods.remodetect`` scores a file.
"""

from methods.remodetect.detector import ReMoDetector
from methods.remodetect.loss import OFFICIAL, PAPER, LossWeights, remodetect_loss

__all__ = ["OFFICIAL", "PAPER", "LossWeights", "ReMoDetector", "remodetect_loss"]
