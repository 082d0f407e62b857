"""Checkpoints of training runs, which go on from them bit by bit as if nothing had happened; digests that tell weights apart."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rematch.errors import RematchError

FILE = "checkpoint.safetensors"


def save(
    folder: Path,
    run: str,
    weights: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    generators: Mapping[str, torch.Generator] | None = None,
) -> None:
    """One file, put in place in one step: a run that is killed while it saves resumes from the checkpoint before.

    Args:
        run: what tells this run from others.
        weights: parameters, and buffers that change, by name.
        state: how far the run has come, as JSON.
        generators: random numbers that it draws besides torch's own, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": tensor.detach() for name, tensor in weights.items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    tensors |= {f"random.cuda.{i}": torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())}
    tensors |= {f"drawn.{name}": generator.get_state() for name, generator in (generators or {}).items()}
    temporary = folder / "checkpoint.tmp"
    about = {"state": json.dumps(dict(state)), "run": run}
    save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, about)
    temporary.replace(folder / FILE)


@torch.no_grad()
def resume(
    folder: Path,
    run: str,
    weights: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    generators: Mapping[str, torch.Generator] | None = None,
) -> dict[str, Any] | None:
    """Load the last checkpoint and give back its ``state``; None where there is none.

    Weights, optimizer and random states are changed in place.

    Raises:
        RematchError: the checkpoint is another run's.
    """
    path = folder / FILE
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    if about["run"] != run or {key[6:] for key in tensors if key.startswith("model.")} != set(weights):
        raise _anothers(path, about["run"], run)
    for name, tensor in weights.items():
        tensor.copy_(tensors[f"model.{name}"])
    moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            moments[int(index)][name] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random.cpu"])
    for i in range(torch.cuda.device_count()):
        torch.cuda.set_rng_state(tensors[f"random.cuda.{i}"], i)
    for name, generator in (generators or {}).items():
        generator.set_state(tensors[f"drawn.{name}"])
    print(f"goes on from {path}", flush=True)
    return dict(json.loads(about["state"]))


def claim(folder: Path, run: str) -> None:
    """Make a folder for checkpoints that do not say themselves which run they are of.

    Raises:
        RematchError: there are another run's in it.
    """
    path = folder / "run.json"
    if path.exists():
        if (before := path.read_text(encoding="utf-8")) != run:
            raise _anothers(folder, before, run)
        return
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "run.tmp"
    temporary.write_text(run, encoding="utf-8")
    temporary.replace(path)


def _anothers(path: Path, other: str, run: str) -> RematchError:
    return RematchError(
        f"{path} is the checkpoint of another run ({other}), not of this one ({run}): remove it, or give another folder"
    )


def weights_digest(model: Any) -> str:
    """The SHA-256 of all parameters and buffers, by name: equal for equal weights only."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
