"""What the engine reads off a class without importing it: its fields, and what a card may give for each, however deep."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from rematch.cards import Card
from rematch.errors import RematchError
from rematch.fields import Classes

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "methods/__init__.py": "",
    "methods/good.py": "from baselines.plain import Plain\nimport numpy as np\n\nclass Good(Plain):\n    gain: float = 0.1\n",
    "methods/packed/__init__.py": "from .core import Core as Renamed\n",
    "methods/packed/core.py": "from ..values import VALUE\n\nclass Core:\n    size: int = VALUE\n",
    "methods/values.py": "from typing import Literal\n\nVALUE = 1\nPolicy = Literal['oldest', 'nearest']\nAlso = Policy | None\n",
    "methods/recipe.py": """
from dataclasses import dataclass, field
from typing import Annotated, Literal
from pydantic import Field, PositiveFloat, PositiveInt

@dataclass(frozen=True)
class Dropout:
    p: Annotated[float, Field(ge=0, lt=1)] = 0.0

@dataclass(frozen=True)
class Recipe:
    steps: PositiveInt
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal['linear', 'cosine'] = 'linear'
    dropout: Dropout = field(default_factory=Dropout)

def draw(folder, n: int = 1, *, seed: int, shares: tuple[float, ...] = ()) -> None: ...
""",
    "baselines/__init__.py": "",
    "baselines/plain.py": "class Plain:\n    slope: float = 0.1\n",
    "workflows/__init__.py": "",
    "workflows/room.py": """
from __future__ import annotations
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict
from methods.recipe import Recipe, draw
from methods.values import Also, Policy
if TYPE_CHECKING:
    from methods.packed import Renamed

Sees = Literal['all', 'gold']

class Stage(TypedDict):
    of: Literal['texts', 'sentences']

class Sizes(TypedDict, total=False):
    width: int
    depth: int

@dataclass
class Base:
    recipe: Annotated[dict[str, Any], Recipe] = field(default_factory=dict)
    stages: list[Annotated[dict[str, Any], Recipe, Stage]] = field(default_factory=list)
    sizes: Annotated[dict[str, Any], Sizes] | None = None
    drawing: Annotated[dict[str, Any], draw] = field(default_factory=dict)
    core: Annotated[dict[str, Any], Renamed] = field(default_factory=dict)
    policy: Policy = 'oldest'
    also: Also = None
    sees: Sees = 'all'
    quoted: 'Sees' = 'all'
    share: Annotated[float | None, Field(le=1)] = None
    limits: dict[Sees, int] = field(default_factory=dict)
    pairs: list[tuple[int, float]] = field(default_factory=list)
    other: Any = None
""",
}  # fmt: skip


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


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


RECIPE = "methods.recipe:Recipe"
BASE = "workflows.room:Base"
STAGE = "methods.recipe:Recipe or workflows.room:Stage"
MISTAKES = {
    "a key": ({"recipe": {"stepz": 3}}, f"recipe: unknown option of {RECIPE} 'stepz'; allowed: dropout, learning_rate, schedule, steps. Did you mean 'steps'?"),
    "a key that is missing": ({"recipe": {"learning_rate": 0.1}}, f"recipe: option 'steps' is needed: {RECIPE} gives it no default"),
    "a number as text": ({"recipe": {"steps": 3, "learning_rate": "2e-5"}}, f"recipe.learning_rate: must be a number, above 0, not '2e-5', which YAML reads as text; write 0.00002 ({RECIPE})"),
    "text for a number": ({"recipe": {"steps": "three"}}, f"recipe.steps: must be a whole number, above 0, not 'three' ({RECIPE})"),
    "a number out of bounds": ({"recipe": {"steps": 0}}, f"recipe.steps: must be a whole number, above 0, not 0 ({RECIPE})"),
    "two bounds": ({"recipe": {"steps": 3, "dropout": {"p": 1}}}, "recipe.dropout.p: must be a number, at least 0, below 1, not 1 (methods.recipe:Dropout)"),
    "no choice": ({"recipe": {"steps": 3, "schedule": "cos"}}, f"recipe.schedule: must be one of linear, cosine, not 'cos' ({RECIPE})"),
    "a dataclass in a dataclass": ({"recipe": {"steps": 3, "dropout": 0.5}}, f"recipe.dropout: must be a mapping, not 0.5 ({RECIPE})"),
    "no mapping": ({"recipe": [3]}, f"recipe: must be a mapping, not [3] ({BASE})"),
    "in a list of mappings": ({"stages": [{"of": "texts", "steps": 3}, {"of": "texts", "steps": "3"}]}, f"stages[1].steps: must be a whole number, above 0, not '3', which YAML reads as text; write 3 ({STAGE})"),
    "a key in a list of mappings": ({"stages": [{"of": "texts", "steps": 3, "offf": 1}]}, f"stages[0]: unknown option of {STAGE} 'offf'; allowed: dropout, learning_rate, of, schedule, steps. Did you mean 'of'?"),
    "a key of the room's own": ({"stages": [{"of": "words", "steps": 3}]}, f"stages[0].of: must be one of texts, sentences, not 'words' ({STAGE})"),
    "the room's own key is missing": ({"stages": [{"steps": 3}]}, f"stages[0]: option 'of' is needed: {STAGE} gives it no default"),
    "a mapping for a list": ({"stages": {"of": "texts"}}, f"stages: must be a list, not {{'of': 'texts'}} ({BASE})"),
    "a typed dictionary": ({"sizes": {"widht": 3}}, "sizes: unknown option of workflows.room:Sizes 'widht'; allowed: depth, width. Did you mean 'width'?"),
    "an argument of a function": ({"drawing": {"seed": 3}}, "drawing: unknown option of methods.recipe:draw 'seed'; allowed: n, shares."),
    "an argument's type": ({"drawing": {"shares": [0.5, "0.5"]}}, "drawing.shares[1]: must be a number, not '0.5', which YAML reads as text; write 0.5 (methods.recipe:draw)"),
    "a class imported for types only": ({"core": {"sise": 3}}, "core: unknown option of methods.packed.core:Core 'sise'; allowed: size. Did you mean 'size'?"),
    "an alias of another module": ({"policy": "newest"}, f"policy: must be one of oldest, nearest, not 'newest' ({BASE})"),
    "an alias of an alias": ({"also": "newest"}, f"also: must be one of oldest, nearest or null, not 'newest' ({BASE})"),
    "an alias of the module": ({"sees": "golden"}, f"sees: must be one of all, gold, not 'golden' ({BASE})"),
    "a quoted alias": ({"quoted": "golden"}, f"quoted: must be one of all, gold, not 'golden' ({BASE})"),
    "bounds of what may be null": ({"share": 2}, f"share: must be a number, at most 1 or null, not 2 ({BASE})"),
    "a key of a plain mapping": ({"limits": {"al": 3}}, f"limits: key 'al': must be one of all, gold ({BASE})"),
    "a value of a plain mapping": ({"limits": {"all": "3"}}, f"limits.all: must be a whole number, not '3', which YAML reads as text; write 3 ({BASE})"),
    "a pair": ({"pairs": [[1, 0.5], [1]]}, f"pairs[1]: must be a list of 2, not [1] ({BASE})"),
    "inside of a pair": ({"pairs": [[1, "x"]]}, f"pairs[0][1]: must be a number, not 'x' ({BASE})"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_at_any_depth_is_named_with_its_place_and_what_is_allowed(root, options, message):
    with pytest.raises(RematchError) as caught:
        Classes(root).fields(BASE, "here").check(options, "card.yaml: bases.some")
    assert str(caught.value) == f"card.yaml: bases.some.{message}"


def test_what_fits_at_every_depth_is_accepted(root):
    options = {
        "recipe": {"steps": 3, "learning_rate": 1, "dropout": {"p": 0}},
        "stages": [{"of": "texts", "steps": 3}, {"of": "sentences", "steps": 1, "schedule": "cosine"}],
        "sizes": None,
        "drawing": {"n": 3, "shares": []},
        "core": {"size": 3},
        "policy": "nearest",
        "also": None,
        "limits": {"gold": 3},
        "pairs": [[1, 0.5]],
        "other": {"what": ["ever"]},
    }
    Classes(root).fields(BASE, "here").check(options, "card")
    Classes(root).fields(BASE, "here").check({"sizes": {}}, "card")


@pytest.mark.parametrize(
    "text",
    [
        "from methods.b import A\n\nclass Odd:\n    x: A\n",
        "A = dict[str, 'A']\n\nclass Odd:\n    x: A\n",
        "class Odd:\n    x: Annotated[int, 'two words', Field(gt=LEAST)]\n",
        "class Odd:\n    x: Callable[[int], str] | Literal[ONE]\n",
        "class Odd:\n    x: np.ndarray | 'Tensor'\n",
        "class Odd:\n    x: Annotated[dict[str], types.Len] | Annotated[int | None, types.Len]\n",
    ],
    ids=["a circle of imports", "an alias of itself", "notes", "names", "outside", "another package's notes"],
)
def test_what_cannot_be_read_off_the_source_is_accepted(root, text):
    (root / "methods/b.py").write_text("from methods.odd import A\n", encoding="utf-8")
    (root / "methods/odd.py").write_text(text, encoding="utf-8")
    Classes(root).fields("methods.odd:Odd", "here").check({"x": {"a": {}} if "dict" in text else 1}, "card")


# -- the rooms themselves ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """The repository's source with cards of their own."""
    path = tmp_path_factory.mktemp("rooms")
    for folder in ("methods", "baselines"):
        (path / folder).symlink_to(ROOT / folder)
    for room in sorted((ROOT / "workflows").glob("*/card.yaml")):
        target = path / "workflows" / room.parent.name
        target.mkdir(parents=True)
        for file in [*room.parent.glob("*.py"), room.parent / "reported.csv"]:
            (target / file.name).symlink_to(file)
    return path


BASES, CONTENDERS = "tiers.mini.bases", "tiers.mini.contenders"
OF_THE_ROOMS = [
    ("mac", f"{BASES}.memory.recipe.stepz", 3, f"{BASES}.memory.recipe: unknown option of methods.mac.training:Recipe 'stepz'; allowed: "),
    ("mac", f"{BASES}.memory.recipe.learning_rate", "2e-3", f"{BASES}.memory.recipe.learning_rate: must be a number, above 0, not '2e-3', which YAML reads as text; write 0.002 (methods.mac.training:Recipe)"),
    ("mac", f"{BASES}.memory_start.sizes.n_tokenz", 3, f"{BASES}.memory_start.sizes: unknown option of methods.mac.config:MACConfig 'n_tokenz'; allowed: "),
    ("mac", f"{BASES}.memory_start.sizes.amortizer", "encode", f"{BASES}.memory_start.sizes.amortizer: must be one of encdec, encoder, decoder, not 'encode' ("),
    ("mac", f"{BASES}.memory_start.stages.0.of", "words", f"{BASES}.memory_start.stages[0].of: must be one of documents, sentences, not 'words' ("),
    ("mac", f"{BASES}.memory_dropout.dropout.p", 1, f"{BASES}.memory_dropout.dropout.p: must be a number, at least 0, below 1, not 1 (methods.mac.dropout:BackpropDropout)"),
    ("mac", "tiers.real.bases.streams.options.dedup", True, "tiers.real.bases.streams.options: unknown option of workflows.mac.hub_streams:load_splits 'dedup'; allowed: deduplicate, limits, scale. Did you mean 'deduplicate'?"),
    ("mac", "tiers.real.bases.corpus.dataset", "sqad", "tiers.real.bases.corpus.dataset: must be one of streamingqa, squad, archivalqa or '', not 'sqad' ("),
    ("mac", "contenders.mac_nearest.options.policy", "nearest", "contenders.mac_nearest.options.policy: must be one of random_prune, random_average, nearest_average, not 'nearest' ("),
    ("mac", "contenders.mac_gold.options.sees", "golden", "contenders.mac_gold.options.sees: must be one of all, retrieved, gold, not 'golden' ("),
    ("revise", f"{BASES}.revise_one_stage.curriculum", "one_stag", f"{BASES}.revise_one_stage.curriculum: must be one of two_stage, one_stage, stage1_only, correct_only, not 'one_stag' ("),
    ("revise", f"{BASES}.revise_text.weights.preferenc", 1, f"{BASES}.revise_text.weights: unknown option of methods.revise.loss:LossWeights 'preferenc'; allowed: preference, sft. Did you mean 'preference'?"),
    ("revise", f"{BASES}.samples.sampling.top_p", 1.5, f"{BASES}.samples.sampling.top_p: must be a number, above 0, at most 1, not 1.5 (baselines.sampling:Sampling)"),
    ("revise", f"{BASES}.questions.task.colums", 3, f"{BASES}.questions.task: unknown option of workflows.revise.tail_sums:TailSums"),
    ("revise", f"{BASES}.m0.sizes.hidden", 3, f"{BASES}.m0.sizes: unknown option of workflows.revise.models:Sizes 'hidden'; allowed: "),
    ("revise", f"{BASES}.m0.recipe.batch_size", 0, f"{BASES}.m0.recipe.batch_size: must be a whole number, above 0, not 0 (baselines.post_training.training:Recipe)"),
    ("revise", f"{BASES}.revise_retry_written.refine_mode", "again", f"{BASES}.revise_retry_written.refine_mode: must be one of refine, first, retry, not 'again' ("),
    ("remodetect", "tiers.smoke.bases.corpus.windows.trian", 3, "tiers.smoke.bases.corpus.windows: unknown option of workflows.remodetect.corpus:Windows 'trian'; allowed: "),
    ("remodetect", "tiers.smoke.bases.reward_model.sizes.n_bucketz", 3, "tiers.smoke.bases.reward_model.sizes: unknown option of workflows.remodetect.trunk:HashedSizes or "),
    ("remodetect", "tiers.real.bases.texts.papers.n_triplet", 3, "tiers.real.bases.texts.papers: unknown option of workflows.remodetect.hub_texts:write_hub_texts 'n_triplet'; allowed: "),
    ("remodetect", "tiers.real.bases.language_models.hub_ids.scorer", "a", "tiers.real.bases.language_models.hub_ids: unknown option of workflows.remodetect.language_models:HubIds 'scorer'; allowed: filler, reference, scoring."),
    ("remodetect", "contenders.lrr.options.statistic", "lr", "contenders.lrr.options.statistic: must be one of log_likelihood, rank, log_rank, entropy, lrr, "),
    ("simba", f"{BASES}.parent.learning_rate", "2e-2", f"{BASES}.parent.learning_rate: must be a number, above 0, not '2e-2', which YAML reads as text; write 0.02 (workflows.simba.models:Pretrained)"),
    ("simba", "tiers.real.bases.corpus.recall_distances.1", "x", "tiers.real.bases.corpus.recall_distances[1]: must be a whole number, above 0, not 'x' (workflows.simba.corpus:Corpus)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("paper", "place", "value", "message"), OF_THE_ROOMS, ids=[place for _, place, *_ in OF_THE_ROOMS]
)
def test_a_mistake_inside_the_options_of_a_real_card_is_found_before_any_job(rooms, paper, place, value, message):
    text = (ROOT / "workflows" / paper / "card.yaml").read_text(encoding="utf-8")
    # By way of JSON, which is YAML and has no anchors: what changes in one place is not to change in another.
    card = json.loads(json.dumps(yaml.load(text, Loader=yaml.CSafeLoader)))
    *path, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    inside = card
    for key in path:
        inside = inside[key]
    inside[last] = value
    file = rooms / "workflows" / paper / "card.yaml"
    file.write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(RematchError) as caught:
        Card(file.parent, rooms)
    assert str(caught.value).startswith(f"workflows/{paper}/card.yaml: {message}")


@pytest.mark.parametrize("paper", sorted(path.parent.name for path in (ROOT / "workflows").glob("*/card.yaml")))
def test_every_nested_option_of_a_room_says_what_it_is_made_of(paper):
    """What takes any key and value can be checked by nobody before it is built."""
    classes, card = Classes(ROOT), Card(ROOT / "workflows" / paper, ROOT)
    uses = {spec.use for table in (card.spec.bases, card.spec.contenders) for spec in table.values()}
    untold = {
        f"{use}.{name}"
        for use in uses
        for name, annotation in classes.fields(use, "here").annotations.items()
        if re.search(r"(?<!Annotated\[)dict\[str, Any\]", annotation)
    }
    assert untold <= {"workflows.mac.memory:Memory.encoder_sizes"}, (
        "T5Config is transformers', and checked when it is built"
    )
