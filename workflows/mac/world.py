"""A generated world of people with facts that change: what the base model knows is old, what the documents say is new.

Every name has a value for every relation in the *old world*, which the base language model is trained on. A *new document*
is about one name and says new values of some relations, each in a sentence of its own, and something that is no fact.
Names are split, so that those of a test never occur in meta-training; they all occur in the old world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from baselines.qa import QAPair
from rematch.errors import RematchError
from workflows.mac.streams import Document


@dataclass(frozen=True)
class Relation:
    """What a name can have a value for.

    Attributes:
        question: with ``{name}``.
        values: each of one or two words.
        templates: sentences with ``{name}`` and ``{value}``; the last is held out for out-of-distribution streams.
    """

    question: str
    values: tuple[str, ...]
    templates: tuple[str, ...]


def _pairs(first: str, second: str) -> tuple[str, ...]:
    return tuple(" ".join(pair) for pair in product(first.split(), second.split()))


RELATIONS = {
    "home": Relation(
        "where does {name} live ?",
        ("lisbon", "oslo", "cairo", "lima", "quito", "hanoi", "tunis", "riga", "delhi", "seoul", "accra", "dakar", "minsk", "perth", "turin", "bergen"),
        ("{name} lives in {value} .", "the home of {name} is in {value} .", "{name} has moved to {value} .",
         "these days you find {name} in {value} ."),
    ),
    "work": Relation(
        "what is the job of {name} ?",
        ("baker", "pilot", "nurse", "judge", "farmer", "tailor", "miner", "painter", "lawyer", "cook", "sailor", "smith", "clerk", "actor", "guide", "mason"),
        ("{name} works as a {value} .", "the job of {name} is {value} .", "{name} became a {value} .",
         "people know {name} as a {value} ."),
    ),
    "food": Relation(
        "what does {name} eat ?",
        ("rice", "bread", "soup", "fish", "beans", "cheese", "eggs", "pears", "plums", "dates", "figs", "corn", "nuts", "lamb", "leeks", "honey"),
        ("{name} eats {value} .", "the meal of {name} is {value} .", "{name} only wants {value} .",
         "at the table {name} asks for {value} ."),
    ),
    "music": Relation(
        "what does {name} play ?",
        ("violin", "flute", "drums", "harp", "cello", "organ", "banjo", "lute", "piano", "trumpet", "guitar", "oboe", "tuba", "horn", "zither", "bells"),
        ("{name} plays the {value} .", "the instrument of {name} is the {value} .", "{name} has learned the {value} .",
         "one hears {name} on the {value} ."),
    ),
    "birthday": Relation(
        "when was {name} born ?",
        _pairs("january march april june july august october december", "first second third fourth fifth sixth tenth last"),
        ("{name} was born on {value} .", "the birthday of {name} is {value} .", "{name} celebrates on {value} .",
         "the cake for {name} comes on {value} ."),
    ),
    "vehicle": Relation(
        "what does {name} drive ?",
        _pairs("red blue green white black grey brown yellow", "car truck van bus tractor boat bike sledge"),
        ("{name} drives a {value} .", "the vehicle of {name} is a {value} .", "{name} bought a {value} .",
         "{name} arrives in a {value} ."),
    ),
}  # fmt: skip
FILLERS = (
    "it was a long day .", "nobody was surprised .", "the weather was fine .", "that is all there is .",
    "the paper said so .", "we heard it again .", "it took some time .", "the others agreed .",
)  # fmt: skip
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass(frozen=True)
class Style:
    """How documents are written.

    Attributes:
        n_facts: relations with new values in a document.
        n_fillers: sentences without facts.
        held_out: only templates that meta-training never sees.
    """

    n_facts: int = 3
    n_fillers: int = 1
    held_out: bool = False


@dataclass(frozen=True)
class World:
    """Names, their split and their old facts; all of it drawn from one seed.

    Attributes:
        n_names: people.
        shares: of them for meta-training, validation and test.
    """

    n_names: int = 640
    shares: tuple[float, float, float] = (0.7, 0.1, 0.2)
    seed: int = 0

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """Names by part: ``train``, ``validation``, ``test``."""
        taken = {word for relation in RELATIONS.values() for value in relation.values for word in value.split()}
        taken |= {word for text in (*FILLERS, *_sentences()) for word in text.split()}
        syllables = ["".join(pair) for pair in product(CONSONANTS, VOWELS)]
        rng = np.random.default_rng([self.seed, 0])
        everything = [a + b for a, b in product(syllables, syllables) if a + b not in taken]
        chosen = [everything[i] for i in rng.permutation(len(everything))[: self.n_names]]
        n_train, n_validation = round(self.shares[0] * self.n_names), round(self.shares[1] * self.n_names)
        return {
            "train": chosen[:n_train],
            "validation": chosen[n_train : n_train + n_validation],
            "test": chosen[n_train + n_validation :],
        }

    @cached_property
    def old(self) -> dict[str, dict[str, str]]:
        """Old values by name and relation."""
        rng = np.random.default_rng([self.seed, 1])
        everyone = [name for part in self.names.values() for name in part]
        drawn = rng.random((len(everyone), len(RELATIONS)))
        return {
            name: {
                key: relation.values[int(place * len(relation.values))]
                for place, (key, relation) in zip(places, RELATIONS.items(), strict=True)
            }
            for name, places in zip(everyone, drawn, strict=True)
        }

    def document(
        self,
        name: str,
        rng: np.random.Generator,
        style: Style = Style(),
        old: bool = False,
        relations: Sequence[str] = tuple(RELATIONS),
    ) -> Document:
        """A document about a name, with new values (never the old one), or in the old world with the old ones.

        Args:
            relations: that its facts may be of.
        """
        keys = [relations[i] for i in rng.permutation(len(relations))[: style.n_facts]]
        values = {key: self.old[name][key] if old else self._new_value(name, key, rng) for key in keys}
        sentences: list[tuple[str, str]] = []
        for key in keys:
            templates = RELATIONS[key].templates
            template = templates[-1] if style.held_out else templates[int(rng.integers(len(templates) - 1))]
            sentences.append((template, values[key]))
        for place in rng.permutation(len(FILLERS))[: style.n_fillers]:
            sentences.insert(int(rng.integers(len(sentences) + 1)), (FILLERS[place], ""))
        text, salient = _join(sentences, name)
        pairs = tuple(QAPair(RELATIONS[key].question.format(name=name), values[key]) for key in keys)
        return Document(name, text, pairs, salient)

    def _new_value(self, name: str, key: str, rng: np.random.Generator) -> str:
        others = [value for value in RELATIONS[key].values if value != self.old[name][key]]
        return others[int(rng.integers(len(others)))]

    def documents(
        self, part: str, n: int, rng: np.random.Generator, style: Style = Style(), old: bool = False
    ) -> list[Document]:
        """n documents about names of a part: every name once before one comes again."""
        names = self.names[part]
        order: list[str] = []
        while len(order) < n:
            order += [names[i] for i in rng.permutation(len(names))]
        return [self.document(name, rng, style, old) for name in order[:n]]

    def long_stream(self, part: str, n: int, rng: np.random.Generator) -> list[Document]:
        """2n documents about n names: n of them, then n more about the same names, on the relations not yet spoken of."""
        first = self.documents(part, n, rng)
        if len({document.name for document in first}) < n:
            raise RematchError(f"a long stream speaks twice of every name: {n} of part '{part}' are too many")
        spoken = {
            document.name: {question_key(pair.question, document.name) for pair in document.pairs} for document in first
        }
        again = [first[i].name for i in rng.permutation(n)]
        return first + [
            self.document(name, rng, relations=[key for key in RELATIONS if key not in spoken[name]]) for name in again
        ]

    def old_pairs(self) -> list[QAPair]:
        """Every question of the old world."""
        return [
            QAPair(relation.question.format(name=name), self.old[name][key])
            for name in self.old
            for key, relation in RELATIONS.items()
        ]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token a word, with ``<pad>`` and ``<eos>``."""
        words = {word for text in (*FILLERS, *_sentences()) for word in text.split()}
        words |= {word for relation in RELATIONS.values() for value in relation.values for word in value.split()}
        everyone = [name for part in self.names.values() for name in part]
        vocabulary = ["<pad>", "<eos>", "<unk>", *sorted(words), *sorted(everyone)]
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
        )


def question_key(question: str, name: str) -> str:
    """The relation that a question about a name asks for."""
    return next(key for key, relation in RELATIONS.items() if relation.question.format(name=name) == question)


def _sentences() -> list[str]:
    """Templates and questions without names and values."""
    return [
        text.format(name="", value="")
        for relation in RELATIONS.values()
        for text in (*relation.templates, relation.question)
    ]


def _join(sentences: Sequence[tuple[str, str]], name: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The sentences as one text, and where in it names and values stand."""
    text, spans = "", []
    for template, value in sentences:
        text += " " if text else ""
        for word in template.split():
            filled = word.format(name=name, value=value)
            if filled != word:
                spans.append((len(text), len(text) + len(filled)))
            text += filled + " "
        text = text.rstrip()
    return text, tuple(spans)
