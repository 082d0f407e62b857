"""Simba: sparsified state-space models are efficient highway networks (TMLR 2025, arXiv 2505.20698).

A Mamba updates its state a little at every token; neighbouring tokens are redundant, the more so in upper layers, and
the long chain of updates blocks what comes from far back. Simba prunes tokens on the way up, few below and most above,
by their global impact on the last output. A pretrained Mamba needs no training for it::

    sparse = sparsify(model, r_last=0.1)
    logits = sparse.logits(input_ids, n_continuation=128)

``schedule`` says how many tokens a layer reads, ``impact`` which ones matter, ``model`` puts both to work.
"""

from methods.simba.impact import global_impact
from methods.simba.model import Simba, sparsify
from methods.simba.schedule import keep_ratios

__all__ = ["Simba", "global_impact", "keep_ratios", "sparsify"]
