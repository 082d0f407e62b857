"""Options that a card gives to a dataclass inside a base or a contender, checked before anything long begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from rematch.errors import RematchError, unknown


def known(cls: Any, options: Iterable[str], where: str) -> None:
    """Raise RematchError, which names ``where``, for an option that is no field of the dataclass."""
    allowed = [each.name for each in dataclasses.fields(cls)]
    for name in options:
        if name not in allowed:
            raise unknown("key", name, allowed, where)


def made(cls: Any, options: dict[str, Any], where: str) -> Any:
    """The dataclass made of options.

    Raises:
        RematchError: an option is unknown or missing.
    """
    known(cls, options, where)
    try:
        return cls(**options)
    except TypeError as error:
        raise RematchError(f"{where}: {error}") from error
