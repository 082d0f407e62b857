"""Mixed texts: which sentences change, what a rephrasing model is asked and how its answer is read; and the clean-up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from methods.remodetect.cleaning import clean_spacing
from methods.remodetect.mixing import (
    mix,
    n_rephrased,
    parse_rephrased,
    rephrasing_prompt,
    split_sentences,
    split_spans,
)

SENTENCES = [f"Sentence number {number}." for number in range(9)]


def shout(units: Sequence[str], indices: Sequence[int]) -> list[str]:
    return [units[i].upper() for i in indices]


def changed(mixed: str | None) -> list[int]:
    assert mixed is not None
    return [i for i, sentence in enumerate(SENTENCES) if sentence.upper() in mixed]


@pytest.mark.parametrize(("ratio", "n"), [(0.25, 2), (0.5, 4), (0.75, 6), (1.0, 9)])
def test_exactly_floor_of_the_share_differs_and_the_rest_is_verbatim_and_in_order(ratio, n):
    mixed = mix(SENTENCES, shout, np.random.default_rng(0), ratio)
    indices = changed(mixed)
    assert len(indices) == n
    assert mixed == " ".join(s.upper() if i in indices else s for i, s in enumerate(SENTENCES))


def test_the_subset_is_random_and_a_function_of_the_generator():
    def subsets(seed: int) -> list[list[int]]:
        rng = np.random.default_rng(seed)
        return [changed(mix(SENTENCES, shout, rng)) for _ in range(50)]

    assert subsets(0) == subsets(0)
    assert subsets(0) != subsets(1)
    assert {i for subset in subsets(0) for i in subset} == set(range(9))


def test_rephrase_sees_all_sentences_and_sorted_indices():
    seen = []

    def rephrase(units, indices):
        seen.append((list(units), list(indices)))
        return shout(units, indices)

    mix(SENTENCES, rephrase, np.random.default_rng(3))
    ((units, indices),) = seen
    assert units == SENTENCES
    assert indices == sorted(indices)


def test_where_nothing_was_rephrased_there_is_no_mixed_text():
    rng = np.random.default_rng(0)
    assert mix(["Only one."], lambda *_: pytest.fail("nothing to ask"), rng) is None
    assert mix([], shout, rng) is None
    assert mix(SENTENCES[:3], shout, rng, ratio=0.25) is None
    assert mix(SENTENCES, lambda *_: None, rng) is None
    assert mix(SENTENCES, lambda units, indices: [units[i] for i in indices], rng) is None
    assert mix(SENTENCES, lambda units, indices: [" "] * len(indices), rng) is None
    with pytest.raises(ValueError, match="gave 1 units for 4"):
        mix(SENTENCES, lambda *_: ["x"], rng)
    with pytest.raises(ValueError, match="ratio"):
        mix(SENTENCES, shout, rng, ratio=1.5)


def test_floor_is_not_fooled_by_binary_fractions():
    assert [n_rephrased(n, 0.5) for n in (1, 2, 3, 5)] == [0, 1, 1, 2]
    assert n_rephrased(100, 0.29) == 29


def test_spans_of_words_with_a_joiner_of_the_callers():
    words = [str(i) for i in range(32)]
    spans = split_spans(" ".join(words))
    assert [len(span.split()) for span in spans] == [8] * 4
    mixed = mix(
        spans, lambda units, indices: ["x " * 7 + "x"] * 2, np.random.default_rng(0), join=lambda u: "|".join(u)
    )
    assert mixed is not None
    assert mixed.count("x") == 16
    assert mixed.count("|") == 3
    assert split_spans("a b c", 2) == ["a b", "c"]


def test_sentences():
    text = 'Dr. Smith met J. K. Rowling, e.g. in the U.S. on Jan. 5. "Why?" she asked!\n\nIt cost 3.5 dollars... or so.'
    assert split_sentences(text) == [
        "Dr. Smith met J. K. Rowling, e.g. in the U.S. on Jan. 5.", '"Why?"', "she asked!", "It cost 3.5 dollars... or so.",
    ]  # fmt: skip
    assert split_sentences("  \n ") == []


# -- the rephrasing model's answer ------------------------------------------------------------------------------------


def test_the_prompt_lists_all_sentences_and_names_those_wanted():
    prompt = rephrasing_prompt(["First\none.", "Second one.", "Third one."], [0, 2])
    assert "\n1. First one.\n2. Second one.\n3. Third one.\n" in prompt
    assert "1, 3" in prompt
    assert parse_rephrased(prompt, [0, 1, 2], 3) == ["First one.", "Second one.", "Third one."]


@pytest.mark.parametrize(
    "answer",
    [
        "2. New second.\n4. New fourth.",  # the last one counts too, and so does the first
        "4. New fourth.\n2. New second.",
        "Sure, here you go:\n\n2. New second.\n\n4. New fourth.\n\nI hope this helps!",
        "2) New second.\n(4) New fourth.",
        "[2] New second.\n[4]: New fourth.",
        "**2.** New second.\n- 4. **New fourth.**",
        "Sentence 2: New\n   second.\nsentence 4:\nNew fourth.",
        "1. Not asked for.\n2. New second.\n3. Not asked for.\n4. New fourth.\n5. Nor this.",
        "2. New second.\r\n4. New fourth.\r\n2. New second.",
    ],
)
def test_numbers_decide_not_positions(answer):
    assert parse_rephrased(answer, [1, 3], 5) == ["New second.", "New fourth."]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I cannot do that.",
        "2. New second.",
        "2. One.\n2. Another.\n4. New fourth.",
        "2.\n4. New fourth.",
        "2 x\n4 y",
        "\0" * 99,
    ],
)
def test_an_answer_that_is_not_clear_gives_nothing(answer):
    assert parse_rephrased(answer, [1, 3], 5) is None


def test_numbers_inside_a_paraphrase_are_text():
    answer = "2. It happened in\n1998. That is 3.5 years\n3.5 of them before.\n4. x: 1) y"
    assert parse_rephrased(answer, [1, 3], 5) == [
        "It happened in 1998. That is 3.5 years 3.5 of them before.",
        "x: 1) y",
    ]


def test_code_in_an_answer_is_text():
    assert parse_rephrased("1. __import__('os').getcwd()", [0], 2) == ["__import__('os').getcwd()"]


def test_a_hostile_answer_is_read_in_linear_time():
    for line in (" " * 100_000, "*" * 100_000 + "2.x", "2" + ":" * 100_000, "9" * 100_000):
        assert parse_rephrased(line, [1], 5) is None


def test_a_failed_answer_shifts_no_other_row():
    answers = iter(["1. A!\n2. B!", "no", "1. E!\n2. F!"])

    def rephrase(units: Sequence[str], indices: Sequence[int]) -> list[str] | None:
        return parse_rephrased(next(answers), indices, len(units))

    rng = np.random.default_rng(0)
    texts = [mix(units, rephrase, rng, ratio=1.0) for units in (["a.", "b."], ["c.", "d."], ["e.", "f."])]
    assert texts == ["A! B!", None, "E! F!"]


# -- clean-up ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (" A word , another . And ? Yes ! So ; it : is ( so ) .", "A word, another. And? Yes! So; it: is (so)."),
        ("he said `` do n't '' and left", 'he said "don\'t" and left'),
        ("it 's what i think , i 'm sure", "it's what I think, I'm sure"),
        ("one <newline> two", "one \ntwo"),
        ("Already clean, isn't it? (Yes.)", "Already clean, isn't it? (Yes.)"),
        ("they ’ re", "they're"),
        ("so.. it", "so... it"),
        (r"a \'b", "a 'b"),
        ("  ", ""),
    ],
)
def test_spacing(before, after):
    assert clean_spacing(before) == after
