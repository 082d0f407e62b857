"""MAC: online adaptation with a memory of amortized contexts (NeurIPS 2024, arXiv 2403.04317).

A frozen language model learns of new documents without any training: each is read once, into a few vectors that are kept
in a memory bank, and what a question finds there steers the model while it answers::

    mac = MAC.from_lm("distilgpt2", encoder="t5-small", n_tokens=12)
    train(mac, examples, Recipe(steps=10_000, documents=64, learning_rate=1e-4), seed=0)
    mac.adapt(documents, progress=True)
    mac.answer(["Who won the race?"])

``amortizer``, ``aggregator`` and ``modulation`` hold the networks, ``bank`` the memory, ``dropout`` and
``training`` the meta-training, ``model`` the whole.
"""

from methods.mac.bank import MemoryBank
from methods.mac.batches import Batch
from methods.mac.config import MACConfig
from methods.mac.dropout import BackpropDropout, GradientMask
from methods.mac.model import MAC
from methods.mac.training import Recipe, Training, train

__all__ = ["MAC", "BackpropDropout", "Batch", "GradientMask", "MACConfig", "MemoryBank", "Recipe", "Training", "train"]
