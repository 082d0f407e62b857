"""Models of the hub, looked at before anything long begins: a wrong id costs seconds and not days."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rematch.errors import RematchError
from rematch.hub import Hub


def check_model(hub: Hub, model_id: str, weights: bool = True) -> str:
    """The mirror's folder of a model, or its id, once its config and its tokenizer could be read.

    Args:
        weights: whether the mirror's copy must hold weights too; of the hub's that shows when they are loaded.

    Raises:
        RematchError: no such model, one that may not be read, or one without its files.
    """
    path = hub.model_path(model_id)
    load_config(path)
    load_tokenizer(path)
    folder = Path(path)
    if weights and hub.mirror is not None and not any(folder.glob("*.safetensors")):
        raise RematchError(
            f"{folder}: no weights as safetensors, and no others are read. Where the hub has them in a conversion's pull "
            f"request only: rematch mirror {hub.mirror} --model {model_id}@refs/pr/N"
        )
    return path


def load_config(path: str, **changes: Any) -> Any:
    """A model's config, with other values for some of its keys."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, **changes)
    except (OSError, ValueError) as error:
        raise RematchError(f"no model can be read from '{path}': {_first_line(error)}") from error


def load_tokenizer(path: str) -> Any:
    """A model's tokenizer. Where its files are missing transformers may make one without words: that is refused."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        known = set(tokenizer("a text of some words", add_special_tokens=False)["input_ids"])
    except Exception as error:  # whatever the backends make of a missing or broken file
        raise RematchError(f"no tokenizer can be read from '{path}': {_first_line(error)}") from error
    if not known - {tokenizer.unk_token_id}:
        raise RematchError(
            f"no tokenizer can be read from '{path}': it knows no word, so that its files seem to be missing"
        )
    return tokenizer


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
