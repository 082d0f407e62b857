"""Tokens, attempts and preference pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_revise import END, REFINE, WORDS, digit, gpt2, last_digit, llama, problem, tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from baselines.post_training.answers import last_number
from baselines.post_training.batches import Ids, Pair
from baselines.post_training.problems import Completion
from methods.revise.attempts import Row, attempt_rows, draw_rows, judge, shuffle_labels, split_attempts
from methods.revise.preferences import StageName, preference_pair, preference_pairs
from methods.revise.text import INSTRUCTION, encode_problem, encode_prompt
from methods.revise.tokens import ADDED_REFINE, LLAMA3_REFINE, Tokens, add_tokens, find_tokens
from rematch.errors import RematchError

IS, UNKNOWN = WORDS.index("is"), WORDS.index("<unk>")
TOKENS = Tokens(END, REFINE)
E, R = (END,), (REFINE,)


def says(value: int) -> Ids:
    return (IS, digit(value))


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_llama_3_has_the_token_already() -> None:
    words = [*WORDS, LLAMA3_REFINE, "<|reserved_special_token_1|>"]
    found = find_tokens(tokenizer(refine=None, words=words), llama(vocab_size=len(words)))
    assert (found.end, found.refine) == (END, len(WORDS))
    assert find_tokens(tokenizer(), refine="<refine>").refine == REFINE


@pytest.mark.parametrize("maker", [llama, gpt2])
def test_other_models_are_given_one(maker: Any) -> None:
    words, model = tokenizer(), maker()
    before = model.get_input_embeddings().weight.detach().clone()
    state = torch.get_rng_state()
    added = add_tokens(words, model)
    assert added.refine == len(WORDS)
    assert model.get_input_embeddings().num_embeddings == len(WORDS) + 1 == model.config.vocab_size
    assert torch.equal(model.get_input_embeddings().weight[:-1], before)
    assert words.decode([added.refine]) == ADDED_REFINE
    assert words.decode([IS, added.refine], skip_special_tokens=True) == "is"
    assert words.decode([REFINE], skip_special_tokens=True) == ""  # special tokens that were there stay
    assert torch.equal(torch.get_rng_state(), state)
    new = model.get_input_embeddings().weight[-1].clone()
    assert add_tokens(words, model) == added  # nothing is added twice
    assert torch.equal(model.get_input_embeddings().weight[-1], new)
    again = maker()
    add_tokens(tokenizer(), again)
    assert torch.equal(again.get_input_embeddings().weight[-1], new)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(RematchError, match=r"no refine token .*reserved_special_token_0.*add_tokens"):
        find_tokens(tokenizer())
    with pytest.raises(RematchError, match=r"no refine token \(<again>\)"):
        find_tokens(tokenizer(), refine="<again>")
    words = tokenizer()
    add_tokens(words, llama())
    with pytest.raises(RematchError, match="knows the token ids 0 to 19, not 20: resize"):
        find_tokens(words, llama())
    words.eos_token = None
    with pytest.raises(RematchError, match="end-of-text"):
        find_tokens(words)
    with pytest.raises(RematchError, match="two different tokens"):
        Tokens(1, 1)


def test_blank_tokens_of_byte_level_vocabularies() -> None:
    from tokenizers.decoders import ByteLevel

    words = {"a": 0, "Ġ": 1, "Ċ": 2, "ĠĊĊ": 3, "Ġa": 4, "<e>": 5, "<r>": 6, "": 7}
    inner = Tokenizer(models.WordLevel(words, unk_token="a"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(), ByteLevel()
    found = find_tokens(PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<e>"), refine="<r>")
    assert set(found.blank) == {1, 2, 3}


# -- attempts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "truth", "expected"),
    [
        ((*says(5), REFINE, *says(4), END), 4, [(says(5), False)]),
        ((*says(4), REFINE, *says(4), END), 4, [(says(4), True), (says(4), True)]),
        ((REFINE, *says(9)), 9, [(says(9), True)]),
        ((*says(4), REFINE, *says(5), REFINE, *says(4)), 4, [(says(4), True), (says(5), False)]),
        ((*says(4), END, *says(5), REFINE, *says(4)), 4, [(says(4), True)]),  # text after E is ignored
        ((IS, REFINE, *says(4)), 4, [((IS,), False)]),  # no answer is wrong
        ((REFINE, REFINE), 4, []),
        ((), 4, []),
        (E, 4, []),
    ],
)
def test_segmentation(completion: Ids, truth: int, expected: list[tuple[Ids, bool]]) -> None:
    assert judge(split_attempts(completion, TOKENS), last_digit, truth) == expected


def test_attempts_are_stripped() -> None:
    blank = Tokens(END, REFINE, frozenset({8}))
    assert split_attempts((8, 5, 8, 6, 8, 8, REFINE, 8, REFINE, 7, END), blank) == [(5, 8, 6), (7,)]


def test_answers_are_compared_as_numbers() -> None:
    """Unlike in the official code."""
    assert judge(["x is 4.", "4.0", "none", "4"], last_number, 4) == [("x is 4.", True), ("4.0", True), ("none", False)]


def test_rows_of_a_pool() -> None:
    problems = [problem(1, 3), problem(2, 3)]
    completions = [Completion(1, (*says(5), REFINE, *says(2))), Completion(0, says(4)), Completion(0, says(4))]
    rows = attempt_rows(completions, problems, TOKENS)
    # Without the attempts before it, and equal ones as often as they were written.
    assert rows == [Row(1, says(5), True), Row(1, says(2), False), Row(0, says(4), True), Row(0, says(4), True)]
    with_truth = attempt_rows(completions, problems, TOKENS, use_gt=True)
    assert with_truth == [*rows, Row(0, problems[0].solution, True), Row(1, problems[1].solution, True)]


def test_drawn_rows_and_shuffled_labels() -> None:
    rows = [Row(i, (i,), i % 3 == 0) for i in range(300)]
    assert draw_rows(rows, None, 0) == draw_rows(rows, 300, 0) == rows
    drawn = draw_rows(rows, 100, 0)
    assert len(set(drawn)) == 100
    assert drawn == draw_rows(rows, 100, 0) != draw_rows(rows, 100, 1)
    shuffled = shuffle_labels(rows, 0)
    assert [row[:2] for row in shuffled] == [row[:2] for row in rows]
    assert sum(row.right for row in shuffled) == 100
    assert 20 < sum(a.right and b.right for a, b in zip(rows, shuffled, strict=True)) < 50


# -- pairs ------------------------------------------------------------------------------------------------------------

X = problem(1, 3)
PAIR_TABLE = {
    ("verify", True, False): Pair(X.prompt, says(4) + E, says(4) + R),
    ("verify", True, True): Pair(X.prompt, says(4) + E, says(4) + R + E),
    ("verify", False, False): Pair(X.prompt + says(5), R, E),
    ("verify", False, True): Pair(X.prompt + says(5), R + E, E),
    ("correct", True, False): Pair(X.prompt, says(4) + E, says(4) + R),
    ("correct", True, True): Pair(X.prompt, says(4) + E, says(4) + R + E),
    ("correct", False, False): Pair(X.prompt + says(5), R + X.solution + E, E),
    ("correct", False, True): Pair(X.prompt + says(5), R + X.solution + E, E),
}


@pytest.mark.parametrize(("stage", "right", "eos_after_refine"), PAIR_TABLE)
def test_the_table_of_pairs(stage: StageName, right: bool, eos_after_refine: bool) -> None:
    row = Row(0, says(4 if right else 5), right)
    pair = preference_pair(row, X, stage, TOKENS, eos_after_refine)
    assert pair == PAIR_TABLE[stage, right, eos_after_refine]
    assert pair.takes_one_pass


def test_pairs_are_their_own_problems() -> None:
    problems = [problem(0, 1), problem(1, 3)]
    rows = [Row(1, says(5), False), Row(0, says(1), True)]
    pairs = preference_pairs(rows, problems, "correct", TOKENS)
    assert pairs[0] == Pair(problems[1].prompt + says(5), R + problems[1].solution + E, E)
    assert pairs[1].context == problems[0].prompt
    with pytest.raises(RematchError, match="unknown stage 'corect'; allowed: verify, correct"):
        preference_pairs(rows, problems, "corect", TOKENS)  # type: ignore[arg-type]


# -- text -------------------------------------------------------------------------------------------------------------


def test_problems_of_text() -> None:
    words = tokenizer()
    found = encode_problem(words, "? 1 + 3", "1 + 3 is 4", last_number, instruction="=")
    assert words.decode(found.prompt) == "<unk> ? 1 + 3 = <unk>"  # the user's and the assistant's markers
    assert words.decode(found.solution) == "1 + 3 is 4"
    assert found.answer == 4
    assert encode_prompt(words, "? 1 + 3", "=") == found.prompt
    assert len(encode_prompt(words, "?")) == len(f"User: ?\n{INSTRUCTION}\nAssistant:".split())
    words.chat_template = "+ {{ messages[0].content }} {% if add_generation_prompt %} = {% endif %}"
    assert words.decode(encode_problem(words, "? 1", "is 4", last_number, "is").prompt) == "+ ? 1 is ="
    with pytest.raises(RematchError, match="ends in a final answer"):
        encode_problem(words, "? 1 + 3", "is is", last_number)
