"""Errors for the person who reads them: what was wrong, where, what is allowed, what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RematchError(Exception):
    """A mistake of the user's that one line explains. Printed without a traceback."""


def unknown(what: str, name: object, allowed: Iterable[object], where: str) -> RematchError:
    """The error for a name that is none of the allowed ones, with the nearest match suggested."""
    names = [str(a) for a in allowed]
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return RematchError(f"{where}: unknown {what} '{name}'; allowed: {', '.join(names) or '(none)'}.{hint}")
