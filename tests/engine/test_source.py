"""What the engine reads off source files without importing them: imports, digests, fields, and what an option may be."""

from __future__ import annotations

import pytest

from rematch.errors import RematchError
from rematch.fields import Classes
from rematch.source import class_literal, imported_modules, source_digest

FILES = {
    "methods/__init__.py": "",
    "methods/good.py": "from baselines.plain import Plain\nimport numpy as np\n\nclass Good(Plain):\n    gain: float = 0.1\n",
    "methods/lazy.py": "def f():\n    from methods import helper\n    return helper.VALUE\n",
    "methods/helper.py": "VALUE = 1\n",
    "methods/packed/__init__.py": "from .core import Core as Renamed\n",
    "methods/packed/core.py": "from . import parts\nfrom ..helper import VALUE\n\nclass Core:\n    size: int = VALUE\n",
    "methods/packed/parts.py": "PART = 1\n",
    "baselines/__init__.py": "",
    "baselines/plain.py": '"""Doc."""\n\nclass Plain:\n    """Doc."""\n\n    slope: float = 0.1\n',
    "methods/circle_a.py": "import methods.circle_b\n",
    "methods/circle_b.py": "import methods.circle_a\n",
}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("methods.good", {"methods", "methods.good", "baselines", "baselines.plain"}),
        ("methods.lazy", {"methods", "methods.lazy", "methods.helper"}),
        ("methods.packed", {"methods", "methods.packed", "methods.packed.core", "methods.packed.parts", "methods.helper"}),
        ("methods.circle_a", {"methods", "methods.circle_a", "methods.circle_b"}),
        ("numpy", set()),
    ],
    ids=["direct", "inside a function", "a package with relative imports", "a circle", "from elsewhere"],
)  # fmt: skip
def test_the_modules_that_a_module_imports(root, module, expected):
    assert set(imported_modules(root, (module,))) == expected


@pytest.mark.parametrize("edited", ["methods/packed/parts.py", "methods/helper.py", "methods/packed/__init__.py"])
def test_the_digest_follows_imports(root, edited):
    before, other = source_digest(root, "methods.packed"), source_digest(root, "methods.good")
    (root / edited).write_text(FILES[edited] + "MORE = 2\n", encoding="utf-8")
    assert source_digest(root, "methods.packed") != before
    assert source_digest(root, "methods.good") == other


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ('"""Another."""\n\nclass Plain:\n    """Words."""\n\n    slope: float = 0.1\n', True),
        ("class Plain:\n    slope: float = 0.1\n", True),
        ('class Plain:\n    slope: float = 0.1\n    """What it is."""\n', True),
        ("# A comment.\nclass Plain:\n\n\n    slope: float = (\n        0.1\n    )\n", True),
        ("class Plain:\n    slope: float = 0.2\n", False),
        ("class Plain:\n    slope: int = 0.1\n", False),
        ('class Plain:\n    slope: float = 0.1\n    text: str = "a"\n', False),
    ],
    ids=["other docstrings", "no docstrings", "attribute docstring", "layout", "value", "annotation", "a string that is used"],
)  # fmt: skip
def test_the_digest_sees_code_and_not_words(root, text, same):
    before = source_digest(root, "methods.good")
    (root / "baselines/plain.py").write_text(text, encoding="utf-8")
    assert (source_digest(root, "methods.good") == before) is same


def test_a_body_of_nothing_but_words_stays_a_body(root):
    (root / "baselines/plain.py").write_text('class Plain:\n    """Only words."""\n', encoding="utf-8")
    before = source_digest(root, "baselines.plain")
    (root / "baselines/plain.py").write_text('class Plain:\n    """Quite other words."""\n', encoding="utf-8")
    assert source_digest(root, "baselines.plain") == before


def test_fields_are_inherited_across_modules(root):
    assert Classes(root).fields("methods.good:Good", "here").annotations == {"slope": "float", "gain": "float"}


def test_fields_of_a_class_that_a_package_exports_under_another_name(root):
    assert Classes(root).fields("methods.packed:Renamed", "here").annotations == {"size": "int"}


def test_what_is_no_option_is_no_field(root):
    (root / "methods/odd.py").write_text(
        "from torch.nn import Module\n\nclass Odd(Module):\n    KIND: ClassVar[str] = 'x'\n    _private: int = 1\n"
        "    made: list = field(init=False, default_factory=list)\n    size: int\n    many: list = field(default_factory=list)\n",
        encoding="utf-8",
    )
    fields = Classes(root).fields("methods.odd:Odd", "here")
    assert set(fields.annotations) == {"size", "many"}
    assert fields.required == {"size"}


def test_a_literal_is_read_without_running_anything(root):
    (root / "methods/arena.py").write_text(
        "raise SystemExit\nclass Arena:\n    METRICS = ('a', 'b')\n", encoding="utf-8"
    )
    assert class_literal(root, "methods.arena", "Arena", "METRICS") == ("a", "b")
    (root / "methods/arena.py").write_text("class Arena:\n    METRICS = make_them_up()\n", encoding="utf-8")
    with pytest.raises(
        RematchError, match=r"^methods/arena\.py: class Arena needs METRICS, a literal tuple of strings$"
    ):
        class_literal(root, "methods.arena", "Arena", "METRICS")


NAN = float("nan")


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [1, 0, -3], [1.0, True, "1", None, [1]]),
        ("float", [1, 0.5], [True, "0.5", None]),
        ("bool", [True, False], [0, 1, "true"]),
        ("str", ["", "text"], [1, None]),
        ("int | None", [None, 3], [0.5, "3"]),
        ("Literal['fast', 'slow']", ["fast"], ["quick", None, 1]),
        ("Literal['all'] | int", ["all", 3], ["some", 0.5]),
        ("tuple[int, ...]", [[1, 2]], ["12", 1]),
        ("list[str] | str", ["a", ["a"]], [1]),
        ("dict[str, int]", [{"a": 1}], [[1]]),
        ("torch.dtype", ["float32"], []),
    ],
)
def test_an_option_must_fit_the_annotation(root, annotation, good, bad):
    (root / "methods/typed.py").write_text(f"class Typed:\n    x: {annotation}\n", encoding="utf-8")
    fields = Classes(root).fields("methods.typed:Typed", "here")
    for value in good:
        fields.check({"x": value}, "card")
    for value in bad:
        with pytest.raises(RematchError, match=r"^card\.x: must be .*, not .* \(methods\.typed:Typed\)$"):
            fields.check({"x": value}, "card")
