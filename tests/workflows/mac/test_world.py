"""MAC's generated world: what is old, what is new, and what a text says of it."""

from __future__ import annotations

import numpy as np
import pytest

from baselines.qa import is_scorable
from workflows.mac.world import FILLERS, RELATIONS, Style, World

WORLD = World(n_names=100, shares=(0.6, 0.2, 0.2))


PLAIN = Style()


def documents(style: Style = PLAIN, n: int = 200, part: str = "train", seed: int = 0):
    return WORLD.documents(part, n, np.random.default_rng(seed), style)


def test_names_are_split_and_are_no_other_words() -> None:
    parts = WORLD.names
    assert [len(parts[part]) for part in ("train", "validation", "test")] == [60, 20, 20]
    everyone = [name for part in parts.values() for name in part]
    assert len(set(everyone)) == 100
    assert World(n_names=100, shares=(0.6, 0.2, 0.2)).names == parts
    others = {word for text in FILLERS for word in text.split()}
    others |= {word for relation in RELATIONS.values() for value in relation.values for word in value.split()}
    assert others.isdisjoint(everyone)


@pytest.mark.parametrize("style", [Style(), Style(held_out=True), Style(n_facts=5, n_fillers=3)])
def test_a_document_says_new_values_and_asks_for_them(style: Style) -> None:
    for document in documents(style):
        assert len(document.pairs) == style.n_facts == len({pair.question for pair in document.pairs})
        assert document.text.count(" .") == style.n_facts + style.n_fillers
        for pair in document.pairs:
            assert is_scorable(pair.answer)
            assert f" {pair.answer} " in f" {document.text} "
            key = next(k for k, r in RELATIONS.items() if r.question.format(name=document.name) == pair.question)
            assert pair.answer in RELATIONS[key].values
            assert pair.answer != WORLD.old[document.name][key]


def test_held_out_templates_are_in_no_other_document() -> None:
    def openings(style: Style) -> set[str]:
        found = set()
        for document in documents(style, 400):
            text = document.text
            for pair in document.pairs:
                text = text.replace(pair.answer, "V")
            found |= {sentence.strip() for sentence in text.replace(document.name, "N").split(".")}
        return found

    fillers = {filler.removesuffix(" .") for filler in FILLERS} | {""}
    assert openings(Style()) & openings(Style(held_out=True)) <= fillers


def test_salient_words_are_the_names_and_values() -> None:
    for document in documents(Style(n_fillers=2)):
        words = {document.text[start:end] for start, end in document.salient}
        assert words == {document.name, *(pair.answer for pair in document.pairs)}


def test_old_documents_say_the_old_values() -> None:
    rng = np.random.default_rng(0)
    name = WORLD.names["test"][0]
    document = WORLD.document(name, rng, old=True)
    assert set(document.pairs) <= set(WORLD.old_pairs())


def test_every_word_is_a_token_and_every_name_comes_once_before_one_comes_again() -> None:
    tokenizer = WORLD.tokenizer
    texts = [d.text for d in documents(Style(held_out=True))] + [p.question + " " + p.answer for p in WORLD.old_pairs()]
    assert all(tokenizer.unk_token_id not in ids for ids in tokenizer(texts)["input_ids"])
    assert sorted(d.name for d in documents(n=20, part="test")) == sorted(WORLD.names["test"])


def test_a_seed_decides_everything() -> None:
    assert documents(seed=3) == documents(seed=3) != documents(seed=4)
