"""Reading the repository's own source without importing it: class fields, literals, imports and digests.

Planning must not import torch, and a match must be replayed when anything that it imports has changed. Both questions
are answered from the syntax tree.
"""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from rematch.errors import RematchError, unknown


@dataclass(frozen=True)
class Fields:
    """The fields of a dataclass: name to (annotation, has a default)."""

    use: str
    annotations: dict[str, str] = field(default_factory=dict)
    required: frozenset[str] = frozenset()

    def check(self, options: dict[str, Any], where: str) -> None:
        """Refuse options that the class has no field for, or whose value its annotation rules out."""
        for name, value in options.items():
            if name not in self.annotations:
                raise unknown(f"option of {self.use}", name, sorted(self.annotations), where)
            problem = _mismatch(self.annotations[name], value)
            if problem:
                raise RematchError(f"{where}.{name}: {problem}, not {value!r} ({self.use})")

    def check_complete(self, options: dict[str, Any], where: str) -> None:
        """Refuse options that leave out a field without a default."""
        for name in sorted(self.required - set(options)):
            raise RematchError(f"{where}: option '{name}' is needed: {self.use} gives it no default")


def module_path(root: Path, module: str) -> Path | None:
    """The file of a module of this repository, or None for anything else."""
    stem = root.joinpath(*module.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None


def class_fields(root: Path, use: str, where: str) -> Fields:
    """The dataclass fields of ``module:Class``, those of base classes in this repository included.

    Raises:
        RematchError: there is no such module or class.
    """
    module, _, name = use.partition(":")
    if not name:
        raise RematchError(f"{where}: '{use}' must be 'module:Class', for example methods.simba:Simba")
    path = module_path(root, module)
    if path is None:
        raise RematchError(f"{where}: no module '{module}' (looked for {module.replace('.', '/')}.py)")
    annotations, required = _collect(root, module, name, where, use)
    return Fields(use, annotations, frozenset(required))


def class_literal(root: Path, module: str, name: str, attribute: str) -> tuple[str, ...]:
    """A class attribute that is a literal tuple of strings, read without importing."""
    found = _class(_tree(_existing(root, module)), name)
    for node in found.body if found else ():
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
        queue += _imports(path, module)
    return sorted(seen)


def source_digest(root: Path, *modules: str) -> str:
    """A hash of everything that the modules import inside this repository.

    It is taken over the syntax trees without docstrings, so that a comment, a docstring or a line break changes nothing.
    """
    total = hashlib.sha256()
    for module in imported_modules(root, modules):
        path = module_path(root, module)
        assert path is not None
        total.update(module.encode() + b"\0" + _tree_digest(path).encode())
    return total.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """A short hash of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


# -- syntax trees ---------------------------------------------------------------------------------------------------


def _stamp(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path, status.st_mtime_ns, status.st_size


def _tree(path: Path) -> ast.Module:
    return _parse(*_stamp(path))


def _tree_digest(path: Path) -> str:
    return _digest(*_stamp(path))


def _imports(path: Path, module: str) -> list[str]:
    return _imported(*_stamp(path), module)


@cache
def _parse(path: Path, mtime: int, size: int) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise RematchError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from error


@cache
def _digest(path: Path, mtime: int, size: int) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))  # a tree of its own: the docstrings are cut out of it
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # Attribute docstrings too: an expression statement that is a bare string does nothing at run time.
            node.body = [s for s in node.body if not _bare_string(s)] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


@cache
def _imported(path: Path, mtime: int, size: int, module: str) -> list[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: list[str] = []
    for node in ast.walk(_parse(path, mtime, size)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                stem = parts[: len(parts) - node.level + 1]
                base = ".".join([*stem, *([node.module] if node.module else [])])
            found.append(base)
            found += [f"{base}.{alias.name}" for alias in node.names]  # the name may be a submodule
    return found


def _bare_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _existing(root: Path, module: str) -> Path:
    path = module_path(root, module)
    if path is None:
        raise RematchError(f"{module.replace('.', '/')}.py is missing")
    return path


def _class(tree: ast.Module, name: str) -> ast.ClassDef | None:
    return next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)


def _collect(root: Path, module: str, name: str, where: str, use: str) -> tuple[dict[str, str], set[str]]:
    path = module_path(root, module)
    tree = _tree(path) if path else None
    node = _class(tree, name) if tree else None
    if node is None or tree is None:
        for statement in tree.body if tree else ():  # re-exported: follow ``from x import Name``
            if isinstance(statement, ast.ImportFrom):
                for alias in statement.names:
                    if (alias.asname or alias.name) == name:
                        return _collect(root, _absolute(statement, module, path), alias.name, where, use)
        classes = [n.name for n in tree.body if isinstance(n, ast.ClassDef)] if tree else []
        raise unknown("class", use, [f"{module}:{c}" for c in classes], where)
    annotations: dict[str, str] = {}
    required: set[str] = set()
    for base in node.bases:
        if isinstance(base, ast.Name):
            try:
                inherited, needed = _collect(root, module, base.id, where, use)
            except RematchError:
                continue  # a base class from outside the repository adds no card options
            annotations |= inherited
            required |= needed
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            annotation = ast.unparse(statement.annotation)
            if annotation.startswith(("ClassVar", "InitVar")) or _not_an_argument(statement):
                continue
            annotations[statement.target.id] = annotation
            required.discard(statement.target.id)
            if statement.value is None:
                required.add(statement.target.id)
    return annotations, required


def _not_an_argument(statement: ast.AnnAssign) -> bool:
    """Whether it is private, or declared ``field(init=False)``."""
    assert isinstance(statement.target, ast.Name)
    keywords = statement.value.keywords if isinstance(statement.value, ast.Call) else []
    no_init = any(k.arg == "init" and isinstance(k.value, ast.Constant) and k.value.value is False for k in keywords)
    return no_init or statement.target.id.startswith("_")


def _absolute(node: ast.ImportFrom, module: str, path: Path | None) -> str:
    if not node.level:
        return node.module or ""
    package = module if path is not None and path.name == "__init__.py" else module.rpartition(".")[0]
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _mismatch(annotation: str, value: Any) -> str | None:
    """Why a value cannot be of the annotated type; None where it can, or where the annotation is beyond this check."""
    options = _union(ast.parse(annotation, mode="eval").body)
    problems = [_one(option, value) for option in options]
    if any(problem is None for problem in problems):
        return None
    return "must be " + " or ".join(str(problem) for problem in problems)


def _union(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_union(node.left), *_union(node.right)]
    return [node]


def _one(node: ast.expr, value: Any) -> str | None:
    """None if the value fits this one type, else what would fit."""
    text = ast.unparse(node)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    simple = {
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": number,
        "bool": isinstance(value, bool),
        "str": isinstance(value, str),
        "None": value is None,
    }
    if text in simple:
        return (
            None
            if simple[text]
            else {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(text, text)
        )
    if text.startswith("Literal["):
        allowed = ast.literal_eval(node.slice)  # type: ignore[attr-defined]
        allowed = allowed if isinstance(allowed, tuple) else (allowed,)
        return None if value in allowed else "one of " + ", ".join(map(str, allowed))
    if text.startswith(("tuple[", "list[", "Sequence[")):
        return None if isinstance(value, list | tuple) else "a list"
    if text.startswith(("dict[", "Mapping[")):
        return None if isinstance(value, dict) else "a mapping"
    return None
