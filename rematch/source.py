"""Reading the repository's own source without importing it: definitions, literals, imports and digests.

Planning must not import torch, and a match must be replayed when anything that it imports has changed. Both questions
are answered from the syntax tree.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from rematch.errors import RematchError

FACTS = Path(".snakemake", "rematch", "source")
"""Where ``Facts`` are kept, in Snakemake's own folder: a file each, which may be deleted at any time."""


def module_path(root: Path, module: str) -> Path | None:
    """The file of a module of this repository, or None for anything else."""
    # Asked tens of thousands of times a plan, for which pathlib would take a second.
    stem = os.path.join(root, *module.split("."))
    for path in (f"{stem}.py", os.path.join(stem, "__init__.py")):
        if os.path.isfile(path):
            return Path(path)
    return None


class Definition(NamedTuple):
    """Where a name leads to.

    Attributes:
        module, name: what it is called where it is defined.
        statement: that defines it; None for a name that this repository does not define.
    """

    module: str
    name: str
    statement: ast.stmt | None


def definition(root: Path, module: str, name: str) -> Definition:
    """What a name of a module of this repository stands for, followed through ``from ... import``."""
    seen: set[tuple[str, str]] = set()
    while (module, name) not in seen and (path := module_path(root, module)) is not None:
        seen.add((module, name))
        statement = _names(*_stamp(path)).get(name)
        if not isinstance(statement, ast.ImportFrom):
            return Definition(module, name, statement)
        name = next(alias.name for alias in statement.names if (alias.asname or alias.name) == name)
        module = _absolute(statement, module, path)
    return Definition(module, name, None)


def class_names(root: Path, module: str) -> list[str]:
    """The classes that a module defines; none where there is no such module."""
    path = module_path(root, module)
    return [node.name for node in _parse(*_stamp(path)).body if isinstance(node, ast.ClassDef)] if path else []


def class_literal(root: Path, module: str, name: str, attribute: str) -> tuple[str, ...]:
    """A class attribute that is a literal tuple of strings, read without importing."""
    found = _names(*_stamp(_existing(root, module))).get(name)
    for node in found.body if isinstance(found, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign):
            target: ast.expr = node.target
        elif isinstance(node, ast.Assign):
            target = node.targets[0]
        else:
            continue
        if isinstance(target, ast.Name) and target.id == attribute and node.value is not None:
            try:
                return tuple(ast.literal_eval(node.value))
            except ValueError:
                break
    raise RematchError(f"{module.replace('.', '/')}.py: class {name} needs {attribute}, a literal tuple of strings")


def imported_modules(root: Path, modules: tuple[str, ...]) -> list[str]:
    """The modules of this repository that the given ones import, directly or not, themselves included, sorted.

    ``import a.b`` also runs ``a/__init__.py``: packages on the way count.
    """
    seen: set[str] = set()
    queue = list(modules)
    while queue:
        module = queue.pop()
        path = module_path(root, module)
        if module in seen or path is None:
            continue
        seen.add(module)
        parts = module.split(".")
        queue += [".".join(parts[:i]) for i in range(1, len(parts))]
        queue += _facts(root, module, *_stamp(path)).imports
    return sorted(seen)


def source_digest(root: Path, *modules: str) -> str:
    """A hash of everything that the modules import inside this repository.

    It is taken over the syntax trees without docstrings, so that a comment, a docstring or a line break changes nothing.
    """
    total = hashlib.sha256()
    for module in imported_modules(root, modules):
        path = module_path(root, module)
        assert path is not None
        total.update(module.encode() + b"\0" + _facts(root, module, *_stamp(path)).digest.encode())
    return total.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """A short hash of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


# -- syntax trees ---------------------------------------------------------------------------------------------------


def _stamp(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path, status.st_mtime_ns, status.st_size


@cache
def _parse(path: Path, mtime: int, size: int) -> ast.Module:
    """The tree of a file, without docstrings."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise RematchError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from error
    for node in (tree, *_statements(tree.body)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # Attribute docstrings too: an expression statement that is a bare string does nothing at run time.
            node.body = [s for s in node.body if not _bare_string(s)] or [ast.Pass()]
    return tree


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements, those inside of others included."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(node, part, ()))
        for part in ("handlers", "cases"):
            for branch in getattr(node, part, ()):
                yield from _statements(branch.body)


@cache
def _names(path: Path, mtime: int, size: int) -> dict[str, ast.stmt]:
    """What a module defines or imports by name, each with its statement; what is imported for types only too."""
    return {name: node for node in _top_level(_parse(path, mtime, size).body) for name in _named(node)}


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from _top_level(node.body)


def _named(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


class Facts(NamedTuple):
    """What planning asks of a module's source.

    Attributes:
        digest: of its tree without docstrings.
        imports: modules that it may import; some are names of other things, or lie outside this repository.
    """

    digest: str
    imports: list[str]


@cache
def _facts(root: Path, module: str, path: Path, mtime: int, size: int) -> Facts:
    """Kept from plan to plan by the file's bytes: reading all trees anew would take most of the time of a plan."""
    about = f"{_reader()} {module}\0".encode()
    kept = root / FACTS / hashlib.sha256(about + path.read_bytes()).hexdigest()
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Facts(**json.loads(kept.read_bytes()))
    from rematch.records import write_text  # imports pyarrow

    tree = _parse(path, mtime, size)
    facts = Facts(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), list(_imports(tree, module, path)))
    with contextlib.suppress(RematchError):  # a folder that may not be written to costs time, and nothing else
        write_text(json.dumps(facts._asdict()), kept)
    return facts


@cache
def _reader() -> str:
    """What facts depend on beside a file: how this module reads it, and the Python that parses it."""
    return f"{file_digest(Path(__file__))} {sys.version}"


def _imports(tree: ast.Module, module: str, path: Path) -> Iterator[str]:
    for node in _statements(tree.body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, path)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)  # the name may be a submodule


def _bare_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _existing(root: Path, module: str) -> Path:
    path = module_path(root, module)
    if path is None:
        raise RematchError(f"{module.replace('.', '/')}.py is missing")
    return path


def _absolute(node: ast.ImportFrom, module: str, path: Path) -> str:
    """The module that a statement of another one imports from."""
    if not node.level:
        return node.module or ""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
