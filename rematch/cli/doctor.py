"""What this machine can run."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import psutil

from rematch.cli.show import Shown
from rematch.config import load_settings
from rematch.provenance import cpu_name, gpu_names

OPTIONAL = {
    "triton": "GPU kernels (and their tests, in interpreter mode)",
    "mamba_ssm": "the reference CUDA scan, to compare with",
    "causal_conv1d": "the reference CUDA convolution",
    "snakemake_executor_plugin_slurm": "SLURM (profiles/slurm)",
    "snakemake_executor_plugin_kubernetes": "Kubernetes (profiles/kubernetes)",
}
HUB = ("huggingface.co", 443)


def examine(root: Path) -> Shown:
    """Look at cores, memory, disk, GPU, optional packages, browser, hub and mirror."""
    settings = load_settings(root)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory()
    free = shutil.disk_usage(root).free
    gpus = gpu_names()
    mirror = settings.config.hub_mirror
    online = _reachable(HUB)
    rows: list[dict[str, Any]] = [
        _row("cores", True, f"{cores}, {cpu_name()}"),
        _row(
            "memory",
            memory.available > 4 * 2**30,
            f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free",
        ),
        _row("disk", free > 5 * 2**30, f"{free / 2**30:.1f} GiB free at {root}"),
        _row("GPU", bool(gpus), ", ".join(gpus) or "none: smoke, mini and small real matches run without"),
    ]
    for module, what in OPTIONAL.items():
        there = importlib.util.find_spec(module) is not None
        rows.append(_row(module, there, f"{what}: {'installed' if there else 'not installed (optional)'}"))
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    rows += [
        _row("browser", bool(browser), browser or "no Chromium: the report's browser test is skipped"),
        _row(
            "hub",
            online,
            f"{HUB[0]} is {'reachable' if online else 'not reachable: tiers real and paper need a mirror'}",
        ),
        _row("hub_mirror", bool(mirror), mirror or "none configured"),
    ]
    tiers = (
        ["smoke", "mini"] + (["real"] if online or mirror else []) + (["paper"] if (online or mirror) and gpus else [])
    )
    return Shown("This machine", rows, [f"Tiers that can run here: {', '.join(tiers)}."], {"tiers": tiers})


def _row(what: str, good: bool, finding: str) -> dict[str, Any]:
    return {"what": what, "there": good, "finding": finding}


def _reachable(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=2):
            return True
    except OSError:
        return False
