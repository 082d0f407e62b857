"""Mamba (Gu and Dao 2023, arXiv 2312.00752) on the transformers classes, with a selective scan that trains fast on CPU.

``install(model)`` swaps the fast mixer into a model; ``mixer_forward`` is the same block as a function, and
``selective_scan`` the recurrence alone.
"""

from baselines.mamba.compile import compile_kernels
from baselines.mamba.mixer import MixerOutput, Trace, install, mixer_forward, uninstall
from baselines.mamba.scan import scan_flops, selective_scan

__all__ = [
    "MixerOutput",
    "Trace",
    "compile_kernels",
    "install",
    "mixer_forward",
    "scan_flops",
    "selective_scan",
    "uninstall",
]
