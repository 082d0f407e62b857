"""Checkpoints of a training run, and digests by which weights are told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rematch.errors import RematchError

FILE = "checkpoint.safetensors"


@dataclass
class State:
    """How far a run has come."""

    flops: int = 0
    rows: int = 0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)


def save(
    folder: Path, run: str, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, state: State
) -> None:
    """One file, put in place in one step: a run that is killed while it saves resumes from the checkpoint before.

    Args:
        run: what tells this run from others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {f"model.{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        tensors |= {f"optimizer.{key}.{name}": value for key, value in optimizer.state[parameter].items()}
    tensors["random.cpu"] = torch.get_rng_state()
    tensors |= {f"random.cuda.{i}": torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())}
    temporary = folder / "checkpoint.tmp"
    about = {"state": json.dumps(asdict(state)), "run": run}
    save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, about)
    temporary.replace(folder / FILE)


def resume(folder: Path, run: str, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> State:
    """Load the last checkpoint, if there is one: parameters, optimizer and random state are changed in place.

    Raises:
        RematchError: the checkpoint is another run's.
    """
    path = folder / FILE
    if not path.exists():
        return State()
    with safe_open(path, "pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    if about["run"] != run or {key[6:] for key in tensors if key.startswith("model.")} != set(parameters):
        raise _anothers(path, about["run"], run)
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[f"model.{name}"])
        optimizer.state[parameter] = {
            key: tensors[f"optimizer.{key}.{name}"].to(parameter.device) for key in ("step", "exp_avg", "exp_avg_sq")
        }
    torch.set_rng_state(tensors["random.cpu"])
    for i in range(torch.cuda.device_count()):
        torch.cuda.set_rng_state(tensors[f"random.cuda.{i}"], i)
    state = State(**json.loads(about["state"]))
    print(f"resumed at step {len(state.losses)}", flush=True)
    return state


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
