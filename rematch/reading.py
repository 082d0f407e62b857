"""Reading files that people write: YAML into strict pydantic models, every mistake one line with file, key and what is allowed."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from rematch.errors import RematchError, unknown


class Strict(BaseModel):
    """A model in which a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def parse_yaml(path: Path, root: Path | None = None) -> Any:
    """Read YAML; a mistake names file and line."""
    where = relative(path, root) if root else str(path)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise RematchError(f"{where}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RematchError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except yaml.YAMLError as error:
        raise RematchError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error


def validate(model: type[BaseModel], data: Any, where: str) -> Any:
    """Validate plain data against a model; the first mistake becomes one line with the key and what is allowed."""
    try:
        return model.model_validate(data)
    except ValidationError as caught:
        errors = caught.errors()
    # A misspelt key usually comes with a missing one; the misspelt one is what the reader can act on.
    first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    location = _place(first, data)
    if first["type"] == "extra_forbidden":
        raise unknown("key", location[-1], _allowed_keys(model, first["loc"][:-1]), _join(where, location[:-1]))
    # Every alternative of a union complains for itself.
    alternatives = dict.fromkeys(error["msg"] for error in errors if _place(error, data) == location)
    wanted = " or ".join(text.removeprefix("Input should be ") if n else text for n, text in enumerate(alternatives))
    others = len({tuple(_place(error, data)) for error in errors}) - 1
    more = f" (and {others} more)" if others else ""
    got = "" if first["type"] == "missing" else f", not {first['input']!r}"[:80]
    raise RematchError(f"{_join(where, location)}: {wanted}{got}{more}")


def _place(error: Any, data: Any) -> list[str]:
    """The keys that lead to a mistake, as they stand in the file: pydantic adds names of types to them."""
    found: list[str] = []
    for part in error["loc"]:
        keys = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
        if part not in keys:
            return [*found, str(part)] if error["type"] == "missing" else found
        data = data[part]
        found.append(str(part))
    return found


class _UniqueKeys(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """A key that is given twice is a mistake, not an override."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor`: what it brings in may be overridden
                continue
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, Hashable):
                raise yaml.YAMLError(f"a key must be a name, line {key_node.start_mark.line + 1}")
            if key in seen:
                raise yaml.YAMLError(f"key '{key}' is given twice, line {key_node.start_mark.line + 1}")
            seen.add(key)
        return dict(super().construct_mapping(node, deep))


def _allowed_keys(model: Any, loc: tuple[Any, ...]) -> list[str]:
    """The keys that the model at a location of an error allows."""
    import typing

    for part in loc:
        annotation: Any = None
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
        elif isinstance(model, type) and issubclass(model, BaseModel):
            continue
        else:
            annotation = model
        while True:  # unwrap Optional, list and dict until a model is left
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                break
            args = [a for a in typing.get_args(annotation) if a is not type(None)]
            models = [a for a in args if isinstance(a, type) and issubclass(a, BaseModel)]
            if models:
                annotation = models[0]
            elif args:
                annotation = args[-1]
            else:
                break
        model = annotation
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _join(where: str, location: list[str]) -> str:
    return f"{where}: {'.'.join(location)}" if location else where


def relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
