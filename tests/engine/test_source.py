"""What the engine reads off source files without importing them: imports, digests and literals."""

from __future__ import annotations

import shutil

import pytest

from rematch import source
from rematch.errors import RematchError
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


def digest_of_a_new_process(root):
    source._facts.cache_clear()
    source._parse.cache_clear()
    return source_digest(root, "methods.packed")


def test_a_file_is_parsed_once_until_it_changes(root, monkeypatch):
    before = source_digest(root, "methods.packed")
    parsed = []
    parse = source._parse
    monkeypatch.setattr(source, "_parse", lambda path, *stamp: (parsed.append(path.name), parse(path, *stamp))[1])
    source._facts.cache_clear()
    assert source_digest(root, "methods.packed") == before
    assert parsed == []

    (root / "methods/helper.py").write_text("VALUE = 2\n", encoding="utf-8")
    source._facts.cache_clear()
    assert source_digest(root, "methods.packed") != before
    assert parsed == ["helper.py"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"digest": "0"}', "null"])
def test_facts_that_are_spoilt_are_read_off_the_source_again(root, text):
    before = digest_of_a_new_process(root)
    kept = list((root / source.FACTS).iterdir())
    assert len(kept) == 5  # methods, packed, core, parts, helper
    for path in kept:
        path.write_text(text, encoding="utf-8")
    assert digest_of_a_new_process(root) == before
    assert "digest" in kept[0].read_text(encoding="utf-8")


def test_facts_need_no_folder(root):
    before = digest_of_a_new_process(root)
    shutil.rmtree(root / ".snakemake")
    (root / ".snakemake").write_text("in the way", encoding="utf-8")
    assert digest_of_a_new_process(root) == before


def test_the_same_text_in_another_place_is_another_module(root):
    (root / "baselines/packed.py").write_text(FILES["methods/packed/__init__.py"], encoding="utf-8")
    digest_of_a_new_process(root)
    assert imported_modules(root, ("baselines.packed",)) == ["baselines", "baselines.packed"]


def test_a_body_of_nothing_but_words_stays_a_body(root):
    (root / "baselines/plain.py").write_text('class Plain:\n    """Only words."""\n', encoding="utf-8")
    before = source_digest(root, "baselines.plain")
    (root / "baselines/plain.py").write_text('class Plain:\n    """Quite other words."""\n', encoding="utf-8")
    assert source_digest(root, "baselines.plain") == before


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
