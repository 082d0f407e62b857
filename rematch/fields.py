"""What options a class takes, read off its source without importing it: its fields, and what may be given for each.

A field that holds the options of something else says of what: ``recipe: Annotated[dict[str, Any], Recipe]``, or
``stages: list[Annotated[dict[str, Any], Recipe, Stage]]`` where each takes the fields of both. They are checked in the same way,
as deep as they go.
"""

from __future__ import annotations

import ast
import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from rematch.errors import RematchError, unknown
from rematch.source import class_names, definition, module_path

OUTSIDE = {
    "pydantic.PositiveInt": "Annotated[int, Field(gt=0)]",
    "pydantic.NonNegativeInt": "Annotated[int, Field(ge=0)]",
    "pydantic.PositiveFloat": "Annotated[float, Field(gt=0)]",
    "pydantic.NonNegativeFloat": "Annotated[float, Field(ge=0)]",
}
"""Aliases of other packages, written out."""

BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "gt": (operator.gt, "above"),
    "ge": (operator.ge, "at least"),
    "lt": (operator.lt, "below"),
    "le": (operator.le, "at most"),
}
"""Keywords of pydantic's ``Field`` in ``Annotated[float, Field(ge=0, lt=1)]``."""


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


SIMPLE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (_is_whole, "a whole number"),
    "float": (lambda value: _is_whole(value) or isinstance(value, float), "a number"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "str": (lambda value: isinstance(value, str), "text"),
    "None": (lambda value: value is None, "null"),
}


@dataclass(frozen=True)
class Fields:
    """What a class, or a function, takes.

    Attributes:
        classes: where the classes that annotations name are looked up.
        use: ``module:Class``, of which there may be several.
        annotations: of each field, with aliases written out and what this repository defines under its full name.
        required: the fields without a default.
    """

    classes: Classes
    use: str
    annotations: dict[str, str]
    required: frozenset[str] = frozenset()

    def check(self, options: dict[str, Any], where: str) -> None:
        """Refuse options that the class has no field for, or whose value its annotation rules out."""
        for name, value in options.items():
            if name not in self.annotations:
                raise unknown(f"option of {self.use}", name, sorted(self.annotations), where)
            problem = self._problem(ast.parse(self.annotations[name], mode="eval").body, value, f"{where}.{name}")
            if problem:
                raise problem

    def check_complete(self, options: dict[str, Any], where: str) -> None:
        """Refuse options that leave out a field without a default."""
        for name in sorted(self.required - set(options)):
            raise RematchError(f"{where}: option '{name}' is needed: {self.use} gives it no default")

    def _problem(self, annotation: ast.expr, value: Any, where: str) -> RematchError | None:
        """Why a value cannot be of a type; None where it can, or where the type is beyond this check."""
        found = [self._misfit(alternative, value, where) for alternative in _union(annotation)]
        if None in found:
            return None
        inside = [each for each in found if isinstance(each, RematchError)]
        if inside:
            return inside[0]
        wanted = " or ".join(map(str, found))
        return RematchError(f"{where}: must be {wanted}, not {value!r}{_hint(value, wanted)} ({self.use})")

    def _misfit(self, node: ast.expr, value: Any, where: str) -> RematchError | str | None:
        """None if a value fits one type; else what would fit, or what is wrong inside of it."""
        if (name := ast.unparse(node)) in SIMPLE:
            fits, words = SIMPLE[name]
            return None if fits(value) else words
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            check = _GENERIC.get(node.value.id)
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return check(self, parts, value, where) if check else None
        if isinstance(node, ast.Attribute) and _is_record(self.classes.root, name):
            return self._options([name], value, where)
        return None

    def _literal(self, parts: Sequence[ast.expr], value: Any, where: str) -> str | None:
        allowed = [part.value for part in parts if isinstance(part, ast.Constant)]
        if len(allowed) < len(parts) or any(value == each and type(value) is type(each) for each in allowed):
            return None
        names = [str(each) or "''" for each in allowed]
        return f"one of {', '.join(names)}" if names[1:] else names[0]

    def _annotated(self, parts: Sequence[ast.expr], value: Any, where: str) -> RematchError | str | None:
        misfit = self._misfit(parts[0], value, where)
        if misfit is not None:
            return misfit if isinstance(misfit, RematchError) else ", ".join([misfit, *_bounds(parts[1:])])
        if SIMPLE["float"][0](value) and not all(_within(part, value) for part in parts[1:]):
            return ", ".join([SIMPLE.get(ast.unparse(parts[0]), SIMPLE["float"])[1], *_bounds(parts[1:])])
        names = [ast.unparse(part) for part in parts[1:] if isinstance(part, ast.Attribute)]
        ours = [name for name in names if module_path(self.classes.root, name.rpartition(".")[0])]
        return self._options(ours, value, where) if ours else None

    def _list(self, parts: Sequence[ast.expr], value: Any, where: str) -> RematchError | str | None:
        if not isinstance(value, list | tuple):
            return "a list"
        problems = (self._problem(parts[0], each, f"{where}[{index}]") for index, each in enumerate(value))
        return next(filter(None, problems), None)

    def _tuple(self, parts: Sequence[ast.expr], value: Any, where: str) -> RematchError | str | None:
        if len(parts) == 2 and ast.unparse(parts[1]) == "...":
            return self._list(parts, value, where)
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            return f"a list of {len(parts)}"
        each = enumerate(zip(parts, value, strict=True))
        problems = (self._problem(part, item, f"{where}[{index}]") for index, (part, item) in each)
        return next(filter(None, problems), None)

    def _mapping(self, parts: Sequence[ast.expr], value: Any, where: str) -> RematchError | str | None:
        if not isinstance(value, dict):
            return "a mapping"
        keys, values = (*parts, ast.Name("Any"))[:2]
        for key, each in value.items():
            if (misfit := self._misfit(keys, key, where)) is not None:
                return RematchError(f"{where}: key {key!r}: must be {misfit} ({self.use})")
            if problem := self._problem(values, each, f"{where}.{key}"):
                return problem
        return None

    def _options(self, names: list[str], value: Any, where: str) -> RematchError | str | None:
        """The same of a mapping of options, of the classes or functions with these full names together."""
        if not isinstance(value, dict):
            return "a mapping"
        every = [self.classes.fields(":".join(name.rsplit(".", 1)), where) for name in names]
        annotations = {key: text for each in reversed(every) for key, text in each.annotations.items()}
        required = frozenset().union(*(each.required for each in every))
        fields = Fields(self.classes, " or ".join(each.use for each in every), annotations, required)
        try:
            fields.check(value, where)
            fields.check_complete(value, where)
        except RematchError as error:
            return error
        return None


_GENERIC: dict[str, Callable[[Fields, Sequence[ast.expr], Any, str], RematchError | str | None]] = {
    "Literal": Fields._literal,
    "Annotated": Fields._annotated,
    "list": Fields._list,
    "Sequence": Fields._list,
    "tuple": Fields._tuple,
    "dict": Fields._mapping,
    "Mapping": Fields._mapping,
}


class Classes:
    """The classes of a repository; what was read of one is kept, so that a source that changes takes a new object."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, Fields] = {}

    def fields(self, use: str, where: str) -> Fields:
        """The fields of ``module:Class``, a dataclass or TypedDict, those of base classes in this repository included.

        Of a function the arguments that have a default: the others are the caller's to give.

        Raises:
            RematchError: there is no such module or class.
        """
        if use not in self._known:
            self._known[use] = self._read(use, where)
        return self._known[use]

    def _read(self, use: str, where: str) -> Fields:
        module, _, name = use.partition(":")
        if not name:
            raise RematchError(f"{where}: '{use}' must be 'module:Class', for example methods.simba:Simba")
        if module_path(self.root, module) is None:
            raise RematchError(f"{where}: no module '{module}' (looked for {module.replace('.', '/')}.py)")
        found = definition(self.root, module, name)
        if isinstance(found.statement, ast.FunctionDef):
            return Fields(self, use, dict(_arguments(self.root, found.module, found.statement)))
        if not isinstance(found.statement, ast.ClassDef):
            classes = class_names(self.root, found.module)
            raise unknown("class", use, [f"{module}:{each}" for each in classes], where)
        annotations, required = _collect(self.root, found.module, found.statement)
        return Fields(self, use, annotations, frozenset(required))


def _collect(root: Path, module: str, node: ast.ClassDef) -> tuple[dict[str, str], set[str]]:
    annotations: dict[str, str] = {}
    required: set[str] = set()
    for base in node.bases:
        found = definition(root, module, ast.unparse(base))
        if isinstance(found.statement, ast.ClassDef):  # one from outside the repository adds no card options
            inherited, needed = _collect(root, found.module, found.statement)
            annotations |= inherited
            required |= needed
    partial = any(keyword.arg == "total" and ast.unparse(keyword.value) == "False" for keyword in node.keywords)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            annotation = _written_out(root, module, statement.annotation)
            if annotation.startswith(("ClassVar", "InitVar")) or _not_an_argument(statement):
                continue
            annotations[statement.target.id] = annotation
            required.discard(statement.target.id)
            if not partial and not _has_default(statement):
                required.add(statement.target.id)
    return annotations, required


def _arguments(root: Path, module: str, node: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    given = [*node.args.posonlyargs, *node.args.args]
    defaults = [*[None] * (len(given) - len(node.args.defaults)), *node.args.defaults, *node.args.kw_defaults]
    for argument, default in zip([*given, *node.args.kwonlyargs], defaults, strict=True):
        if default is not None:
            yield argument.arg, _written_out(root, module, argument.annotation or ast.Name("Any"))


def _field_keywords(statement: ast.AnnAssign) -> dict[str | None, str]:
    """Those of ``field(...)``; none where the default is something else."""
    value = statement.value
    if isinstance(value, ast.Call) and ast.unparse(value.func) in ("field", "dataclasses.field"):
        return {keyword.arg: ast.unparse(keyword.value) for keyword in value.keywords}
    return {}


def _not_an_argument(statement: ast.AnnAssign) -> bool:
    """Whether it is private, or declared ``field(init=False)``."""
    assert isinstance(statement.target, ast.Name)
    return _field_keywords(statement).get("init") == "False" or statement.target.id.startswith("_")


def _has_default(statement: ast.AnnAssign) -> bool:
    keywords = _field_keywords(statement)
    return bool({"default", "default_factory"} & set(keywords)) if keywords else statement.value is not None


class _WriteOut(ast.NodeTransformer):
    """Replaces the names in an annotation: an alias by what it stands for, a class or function by its full name."""

    def __init__(self, root: Path, module: str, aliases: frozenset[tuple[str, str]]) -> None:
        self.root, self.module, self.aliases = root, module, aliases

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        kind = ast.Name(node.value.attr) if isinstance(node.value, ast.Attribute) else self.visit(node.value)
        literal = ast.unparse(kind) == "Literal"  # whose texts are no names
        return ast.Subscript(kind, node.slice if literal else self.visit(node.slice))

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        """A forward reference."""
        try:
            return self.visit(_expression(node.value)) if isinstance(node.value, str) else node
        except SyntaxError:
            return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        module, name, statement = definition(self.root, self.module, node.id)
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            return _expression(f"{module}.{name}")
        alias = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        if isinstance(alias, ast.Subscript | ast.BinOp | ast.Name) and (module, name) not in self.aliases:
            inside = _WriteOut(self.root, module, self.aliases | {(module, name)})
            return inside.visit(copy.deepcopy(alias))
        return _expression(OUTSIDE.get(f"{module}.{name}", name))


def _written_out(root: Path, module: str, annotation: ast.expr) -> str:
    return ast.unparse(_WriteOut(root, module, frozenset()).visit(copy.deepcopy(annotation)))


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _union(node: ast.expr) -> list[ast.expr]:
    """The alternatives of ``a | b``, ``Union`` and ``Optional``, also inside of ``Annotated``."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_union(node.left), *_union(node.right)]
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("Optional", "Union"):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        none = [ast.Constant(None)] if ast.unparse(node.value) == "Optional" else []
        return [each for part in (*parts, *none) for each in _union(part)]
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple):
        first, *rest = node.slice.elts
        alternatives = _union(first)
        null = [each for each in alternatives if ast.unparse(each) == "None"]
        return [ast.Subscript(node.value, ast.Tuple([each, *rest])) for each in alternatives if each not in null] + null
    return [node]


def _is_record(root: Path, name: str) -> bool:
    """Whether a full name is that of a dataclass or TypedDict of this repository: a card can give its fields."""
    module, _, name = name.rpartition(".")
    node = definition(root, module, name).statement
    marks = [*node.decorator_list, *node.bases] if isinstance(node, ast.ClassDef) else []
    return any(ast.unparse(mark).startswith(("dataclass", "dataclasses.dataclass", "TypedDict")) for mark in marks)


def _limits(node: ast.expr) -> dict[str, Any]:
    """The bounds that ``Field(gt=0)`` sets; those that are no literal are beyond this check."""
    keywords = node.keywords if isinstance(node, ast.Call) else []
    return {k.arg: k.value.value for k in keywords if k.arg in BOUNDS and isinstance(k.value, ast.Constant)}


def _within(node: ast.expr, value: Any) -> bool:
    return all(BOUNDS[key][0](value, bound) for key, bound in _limits(node).items())


def _bounds(nodes: Sequence[ast.expr]) -> list[str]:
    return [f"{BOUNDS[key][1]} {bound}" for node in nodes for key, bound in _limits(node).items()]


def _hint(value: Any, wanted: str) -> str:
    """What to write for a number that YAML reads as text, which is any in quotes or with an exponent and no point."""
    try:
        number = Decimal(value) if isinstance(value, str) and "number" in wanted else None
    except InvalidOperation:
        return ""
    return f", which YAML reads as text; write {number:f}" if number is not None and number.is_finite() else ""
