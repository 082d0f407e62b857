"""Question answering: scores, text format, loss, generation with and without prefixes, tuning."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DynamicCache, PreTrainedTokenizerFast

from baselines.decoding import OFFICIAL_BEAMS, Beams, _Search, copy_cache, positions
from baselines.qa import (
    QAPair,
    answer_nll,
    em_prefix,
    em_strict,
    encode_pairs,
    encode_questions,
    f1,
    generate_answers,
    is_scorable,
    prefix_pair,
    qa_loss,
    qa_tune,
)
from rematch.errors import RematchError
from rematch.flops import count_flops

PAIRS = [QAPair("where lives anna ?", "in paris"), QAPair("who works ?", "ben"), QAPair("where now ?", "rome rome")]
QUESTIONS = [pair.question for pair in PAIRS]
LMS = ["gpt2", "llama"]


def prefix(model: Any, n: int, length: int = 2, seed: int = 1) -> DynamicCache:
    """Random keys and values for n questions."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    shape = (n, heads, length, config.hidden_size // config.num_attention_heads)
    generator = torch.Generator().manual_seed(seed)
    return DynamicCache(
        [
            (torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
            for _ in range(config.num_hidden_layers)
        ]
    )


# -- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "truth", "as_prefix", "strict", "overlap"),
    [
        ("Paris region", "Paris", 1, 0, 2 / 3),
        ("in Paris", "Paris", 0, 0, 2 / 3),
        ("Parisian life", "Paris", 1, 0, 0),
        ("Smith John", "John Smith", 0, 0, 1),
        ("U.S.A.", "USA", 1, 1, 1),
        ("the  Big, house", "a big house!", 1, 1, 1),
        ("", "Paris", 0, 0, 0),
        ("anything", "The", 1, 0, 0),
        ("rome rome rome", "rome rome", 1, 0, 0.8),
    ],
)
def test_scores(prediction: str, truth: str, as_prefix: float, strict: float, overlap: float) -> None:
    assert em_prefix(prediction, truth) == as_prefix
    assert em_strict(prediction, truth) == strict
    assert f1(prediction, truth) == pytest.approx(overlap)


def test_answers_that_normalise_to_nothing_can_be_filtered() -> None:
    assert [is_scorable(truth) for truth in ("The", "...", "", "theatre")] == [False, False, False, True]


# -- format -----------------------------------------------------------------------------------------------------------


def test_text_of_a_pair(tokenizer: Any) -> None:
    batch = encode_pairs(tokenizer, PAIRS)
    assert tokenizer.batch_decode(batch.input_ids) == [
        "where lives anna ? in paris <eos>",
        "who works ? ben <eos> <pad> <pad>",
        "where now ? rome rome <eos> <pad>",
    ]
    assert batch.attention_mask.tolist() == [[1] * 7, [1] * 5 + [0] * 2, [1] * 6 + [0]]
    assert batch.labels_mask.int().tolist() == [[0] * 4 + [1] * 3, [0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 0]]


def test_rows_may_be_padded_further(tokenizer: Any) -> None:
    batch, wide = encode_pairs(tokenizer, PAIRS), encode_pairs(tokenizer, PAIRS, multiple=5)
    n = batch.input_ids.shape[1]
    assert (n, wide.input_ids.shape[1]) == (7, 10)
    assert torch.equal(wide.input_ids[:, :n], batch.input_ids)
    assert torch.equal(wide.attention_mask[:, :n], batch.attention_mask)
    assert torch.equal(wide.labels_mask[:, :n], batch.labels_mask)
    assert not wide.attention_mask[:, n:].any()
    assert not wide.labels_mask[:, n:].any()


def test_questions_are_padded_on_the_left_and_cut_alike(tokenizer: Any) -> None:
    ids, mask = encode_questions(tokenizer, QUESTIONS, max_length=5, max_answer=2)
    assert tokenizer.batch_decode(ids) == ["lives anna ?", "who works ?", "where now ?"]
    batch = encode_pairs(tokenizer, PAIRS, max_length=5, max_answer=2)
    assert tokenizer.batch_decode(batch.input_ids)[0] == "lives anna ? in <eos>"
    ids, mask = encode_questions(tokenizer, QUESTIONS)
    assert tokenizer.batch_decode(ids)[1] == "<pad> who works ?"
    assert positions(mask, 3).tolist() == [[3, 4, 5, 6], [3, 3, 4, 5], [3, 3, 4, 5]]


def test_the_end_of_the_text_may_also_be_the_padding(tokenizer: Any) -> None:
    before = encode_pairs(tokenizer, PAIRS)
    tokenizer.pad_token = "<eos>"
    batch = encode_pairs(tokenizer, PAIRS)
    assert torch.equal(batch.labels_mask, before.labels_mask)
    assert torch.equal(batch.attention_mask, before.attention_mask)


def test_what_cannot_be_asked(tokenizer: Any, make_lm: Any) -> None:
    with pytest.raises(RematchError, match="no tokens"):
        encode_questions(tokenizer, ["", "who ?"])
    with pytest.raises(RematchError, match="max_length must exceed"):
        encode_pairs(tokenizer, PAIRS, max_length=24, max_answer=24)
    tokenizer.eos_token = None
    with pytest.raises(RematchError, match="end-of-text"):
        generate_answers(make_lm["gpt2"](), tokenizer, QUESTIONS)
    with pytest.raises(RematchError, match="equal groups"):
        Beams(n_beams=4, n_groups=3)


# -- language modelling ------------------------------------------------------------------------------------------------


def test_the_beginning_of_a_document_asks_for_the_rest(tokenizer: Any) -> None:
    document = " ".join(["who", "lives", "in", "paris", "now", "."] * 5)
    for share, n_words in ((0.1, 3), (0.5, 15), (0.12, 3), (0.99, 29), (0.001, 1)):
        question, answer = prefix_pair(tokenizer, f"\n{document} ", share)
        assert f"{question} {answer}" == document
        assert len(question.split()) == n_words
    assert prefix_pair(tokenizer, document) == prefix_pair(tokenizer, document, 0.1)
    assert prefix_pair(tokenizer, "who  lives\nnow", 0.5) == ("who", "lives\nnow")


def test_a_word_that_is_begun_belongs_to_the_question() -> None:
    core = Tokenizer(models.BPE({"a": 0, "Ġ": 1, "b": 2, "c": 3, "<eos>": 4}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    assert prefix_pair(letters, "abc abc abc", 0.2) == ("abc", "abc abc")  # two of eleven tokens
    assert prefix_pair(letters, "abc abc abc", 0.3) == ("abc", "abc abc")  # three
    assert prefix_pair(letters, "abc abc abc", 0.5) == ("abc abc", "abc")  # five, the first space among them
    # The same tokens in the pair's text as in the document.
    batch = encode_pairs(letters, [prefix_pair(letters, "abc abc abc", 0.5)], end=False)
    assert batch.input_ids[0].tolist() == letters("abc abc abc")["input_ids"]
    with pytest.raises(RematchError, match="nothing is left"):
        prefix_pair(letters, "abc abc abc", 0.9)


def test_what_has_no_rest(tokenizer: Any) -> None:
    for document in ("paris", "  ", ""):
        with pytest.raises(RematchError, match="nothing is left"):
            prefix_pair(tokenizer, document)
    for share in (0.0, 1.0, -0.1):
        with pytest.raises(RematchError, match="between 0 and 1"):
            prefix_pair(tokenizer, "who lives", share)


def test_the_rest_of_a_document_has_no_end(tokenizer: Any) -> None:
    batch = encode_pairs(tokenizer, PAIRS, end=False)
    assert tokenizer.batch_decode(batch.input_ids)[:2] == ["where lives anna ? in paris", "who works ? ben <pad> <pad>"]
    assert batch.labels_mask.sum(1).tolist() == [2, 1, 2]
    cut = encode_pairs(tokenizer, PAIRS, max_answer=1, end=False)
    assert tokenizer.batch_decode(cut.input_ids)[0] == "where lives anna ? in"


# -- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LMS)
def test_loss_is_the_mean_over_the_answers_tokens_row_by_row(kind: str, tokenizer: Any, make_lm: Any) -> None:
    model = make_lm[kind]()
    prefixes = prefix(model, 3)
    total, n_tokens = 0.0, 0
    for row, pair in enumerate(PAIRS):
        question, answer = tokenizer(pair.question)["input_ids"], [*tokenizer(pair.answer)["input_ids"], 1]
        cache = copy_cache(prefixes, slice(row, row + 1))
        logits = model(torch.tensor([question + answer]), past_key_values=cache).logits[0]
        log_probs = logits.log_softmax(-1)[len(question) - 1 : -1]
        total -= log_probs[range(len(answer)), answer].sum().item()
        n_tokens += len(answer)
    loss = qa_loss(model, encode_pairs(tokenizer, PAIRS), copy_cache(prefixes))
    assert loss.item() == pytest.approx(total / n_tokens, rel=1e-5)
    assert prefixes.get_seq_length() == 2
    assert loss.item() != pytest.approx(qa_loss(model, encode_pairs(tokenizer, PAIRS)).item(), rel=1e-2)


@pytest.mark.parametrize("kind", LMS)
@pytest.mark.parametrize("end", [True, False])
def test_the_likelihood_of_every_answer(kind: str, end: bool, tokenizer: Any, make_lm: Any) -> None:
    model = make_lm[kind]()
    prefixes = prefix(model, 3)
    batch = encode_pairs(tokenizer, PAIRS, end=end)
    nll, n_tokens = answer_nll(model, batch, copy_cache(prefixes))
    assert n_tokens.tolist() == [2 + end, 1 + end, 2 + end]
    for row, pair in enumerate(PAIRS):
        alone = encode_pairs(tokenizer, [pair], end=end)
        loss = qa_loss(model, alone, copy_cache(prefixes, slice(row, row + 1)))
        assert (nll[row] / n_tokens[row]).item() == pytest.approx(loss.item(), rel=1e-5)
    loss = qa_loss(model, batch, copy_cache(prefixes))
    torch.testing.assert_close(nll.sum() / n_tokens.sum(), loss)
    head = model.lm_head.weight
    gradients = [torch.autograd.grad(each, head)[0] for each in (nll.sum() / n_tokens.sum(), loss)]
    torch.testing.assert_close(*gradients)


# -- answers ----------------------------------------------------------------------------------------------------------


def slowly(model: Any, tokenizer: Any, question: str, n_new: int, cache: DynamicCache | None) -> str:
    """Greedy decoding without padding and without caching what was read."""
    ids = tokenizer(question)["input_ids"]
    new: list[int] = []
    while len(new) < n_new:
        past = None if cache is None else copy_cache(cache)
        token = int(model(torch.tensor([ids + new]), past_key_values=past).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        new.append(token)
    return tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", LMS)
@pytest.mark.parametrize("prefixed", [False, True])
def test_cached_generation_equals_reading_everything_again(
    kind: str, prefixed: bool, tokenizer: Any, make_lm: Any
) -> None:
    seen = set()
    for seed in range(6):
        model = make_lm[kind](seed)
        prefixes = prefix(model, 3) if prefixed else None
        expected = [
            slowly(
                model, tokenizer, question, 6, None if prefixes is None else copy_cache(prefixes, slice(row, row + 1))
            )
            for row, question in enumerate(QUESTIONS)
        ]
        for batch_size in (1, 2, 3):
            assert (
                generate_answers(model, tokenizer, QUESTIONS, 6, prefixes=prefixes, batch_size=batch_size) == expected
            )
        assert prefixes is None or prefixes.get_seq_length() == 2
        seen |= {len(answer.split()) for answer in expected}
    assert len(seen) > 1  # some answers ended by themselves
    assert generate_answers(model, tokenizer, []) == []


@pytest.mark.parametrize("kind", LMS)
def test_beam_search_without_groups_is_that_of_transformers(kind: str, tokenizer: Any, make_lm: Any) -> None:
    differs = 0
    for seed in range(8):
        model = make_lm[kind](seed)
        ids, mask = encode_questions(tokenizer, QUESTIONS)
        out = model.generate(
            input_ids=ids, attention_mask=mask, num_beams=3, max_new_tokens=5, early_stopping=True, do_sample=False
        )
        expected = [text.strip() for text in tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)]
        assert generate_answers(model, tokenizer, QUESTIONS, 5, beams=Beams(3)) == expected
        differs += expected != generate_answers(model, tokenizer, QUESTIONS, 5)
    assert differs


def two_greedy_groups(model: Any, tokenizer: Any, question: str, n_new: int, diversity: float) -> str:
    """Diverse beam search with two groups of one beam, written out."""
    ids = tokenizer(question)["input_ids"]
    texts: list[list[int]] = [[], []]
    scores, ended = [0.0, 0.0], [False, False]
    for _ in range(n_new):
        log_probs = [model(torch.tensor([ids + text])).logits[0, -1].log_softmax(-1) for text in texts]
        first = 1 if ended[0] else int(log_probs[0].argmax())
        if not ended[0]:
            scores[0] += log_probs[0][first].item()
            texts[0].append(first)
            ended[0] = first == 1
            if ended[0]:  # the beam goes on with what comes next best, and that is what the other group avoids
                log_probs[0][1] = -torch.inf
                first = int(log_probs[0].argmax())
        if not ended[1]:
            log_probs[1][first] -= diversity
            second = int(log_probs[1].argmax())
            scores[1] += log_probs[1][second].item()
            texts[1].append(second)
            ended[1] = second == 1
    best = max((0, 1), key=lambda group: scores[group] / len(texts[group]))
    return tokenizer.decode(texts[best], skip_special_tokens=True).strip()


def test_groups_are_pushed_apart(tokenizer: Any, make_lm: Any) -> None:
    won_by_second = 0
    for seed in range(12):
        model = make_lm["gpt2"](seed)
        expected = [two_greedy_groups(model, tokenizer, question, 4, 0.3) for question in QUESTIONS]
        assert generate_answers(model, tokenizer, QUESTIONS, 4, beams=Beams(2, 2, diversity=0.3)) == expected
        won_by_second += expected != generate_answers(model, tokenizer, QUESTIONS, 4)
    assert won_by_second


class Chain:
    """A language model for which only the last token matters, given as the probabilities of what follows it."""

    def __init__(self, follows: dict[int, dict[int, float]]) -> None:
        self.logits = torch.full((6, 6), -30.0)
        for token, probabilities in follows.items():
            for after, probability in probabilities.items():
                self.logits[token, after] = math.log(probability)

    def select(self, rows: torch.Tensor) -> None:
        pass

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits[tokens]


def test_an_end_that_is_not_among_the_best_does_not_count() -> None:
    """Two beams: after two steps "2 4" (0.312) leads "2 end" (0.288) and "3 end" (0.28), of which only the first is kept.

    So the search goes on, to "2 4 end" with the best mean: ln 0.312 / 3 over ln 0.288 / 2.
    """
    chain: Any = Chain({0: {2: 0.6, 3: 0.4}, 2: {1: 0.48, 4: 0.52}, 3: {1: 0.7, 5: 0.3}, 4: {1: 1.0}, 5: {5: 1.0}})
    assert _Search(Beams(2))(chain, chain(torch.tensor([0])), 5, 1) == [[2, 4]]
    assert _Search(Beams(2))(chain, chain(torch.tensor([0])), 2, 1) == [[2, 4]]  # no room for the end
    assert _Search(Beams(2))(chain, chain(torch.tensor([3])), 5, 1) == [[]]


def test_every_earlier_beam_pushes() -> None:
    """Three greedy groups: the first two begin with 2, the third, pushed twice, with 3, which turns out best."""
    chain: Any = Chain({0: {2: 0.6, 3: 0.38}, 2: {1: 0.5, 4: 0.5}, 3: {1: 1.0}, 4: {1: 1.0}})
    assert _Search(Beams(3, 3, diversity=0.3))(chain, chain(torch.tensor([0])), 5, 1) == [[3]]
    assert _Search(Beams(2, 2, diversity=0.3))(chain, chain(torch.tensor([0])), 5, 1) == [[2]]


def test_a_group_that_is_done_stays_so_while_another_goes_on() -> None:
    """The first group ends with "2 end" (mean ln 0.3 / 2), though "2 4 end" (ln 0.24 / 3) would be better."""
    chain: Any = Chain(
        {0: {2: 0.6, 3: 0.4}, 2: {1: 0.5, 4: 0.4}, 3: {3: 0.5, 5: 0.5}, 4: {1: 1.0}, 5: {3: 0.5, 5: 0.5}}
    )
    assert _Search(Beams(2, 2, diversity=5.0))(chain, chain(torch.tensor([0])), 4, 1) == [[2]]


def test_the_official_search_answers_questions_independently(tokenizer: Any, make_lm: Any) -> None:
    model = make_lm["llama"](3)
    prefixes = prefix(model, 3)
    together = generate_answers(model, tokenizer, QUESTIONS, 5, prefixes=prefixes, beams=OFFICIAL_BEAMS)
    assert together == [
        generate_answers(
            model, tokenizer, [q], 5, prefixes=copy_cache(prefixes, slice(i, i + 1)), beams=OFFICIAL_BEAMS
        )[0]
        for i, q in enumerate(QUESTIONS)
    ]


def test_generation_leaves_the_mode_alone(tokenizer: Any, make_lm: Any) -> None:
    model = make_lm["gpt2"]().train()
    generate_answers(model, tokenizer, QUESTIONS, 2)
    assert model.training


# -- tuning -----------------------------------------------------------------------------------------------------------


def test_tuning_learns_counts_and_is_repeatable(tokenizer: Any, make_lm: Any) -> None:
    runs = []
    for _ in range(2):
        model = make_lm["gpt2"](resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        tuning = qa_tune(
            model, tokenizer, PAIRS, PAIRS, seed=0, max_steps=60, learning_rate=1e-2, batch_size=3, accumulation=1,
            validate_every=20,
        )  # fmt: skip
        runs.append((tuning, [parameter.clone() for parameter in model.parameters()]))
        assert generate_answers(model, tokenizer, QUESTIONS, 4) == [pair.answer for pair in PAIRS]
        assert not model.training
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
    tuning = runs[0][0]
    assert [step for step, _ in tuning.validation_losses] == [0, 20, 40, 60]
    # Every batch holds all three pairs, so that a step and a validation always cost the same.
    batch = encode_pairs(tokenizer, PAIRS)
    both = count_flops(qa_loss, model, batch, backward=True)
    assert tuning.flops == 60 * both.total + 4 * both.forward


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation": []}, "pairs of both kinds: 3 to learn, 0 for validation"),
        ({"pairs": []}, "pairs of both kinds: 0 to learn, 3 for validation"),
        ({"validate_every": 0}, "validate_every: 0; allowed: whole numbers from 1"),
        ({"batch_size": 0}, "batch_size: 0; allowed: whole numbers from 1"),
        ({"accumulation": 0}, "accumulation: 0; allowed: whole numbers from 1"),
        ({"patience": 0}, "patience: 0; allowed: whole numbers from 1"),
        ({"max_steps": -1}, "max_steps: -1; allowed: whole numbers from 0"),
    ],
)
def test_tuning_out_of_bounds(tokenizer: Any, make_lm: Any, change: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"pairs": PAIRS, "validation": PAIRS, "seed": 0, "max_steps": 1}
    with pytest.raises(RematchError, match=f"QA tuning.*{message}"):
        qa_tune(make_lm["gpt2"](), tokenizer, **options | change)


def test_tuning_stops_early_and_keeps_the_best(tokenizer: Any, make_lm: Any) -> None:
    model = make_lm["gpt2"](resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    other = [QAPair(pair.question, "cook smith") for pair in PAIRS]  # learning PAIRS makes these unlikely
    tuning = qa_tune(
        model, tokenizer, PAIRS, other, seed=0, max_steps=500, learning_rate=1e-2, batch_size=3, validate_every=30,
        patience=2,
    )  # fmt: skip
    losses = dict(tuning.validation_losses)
    assert tuning.steps < 500
    assert tuning.steps == tuning.best_step + 60
    assert losses[tuning.best_step] == min(losses.values())
    with torch.no_grad():
        assert qa_loss(model, encode_pairs(tokenizer, other)).item() == pytest.approx(losses[tuning.best_step])
