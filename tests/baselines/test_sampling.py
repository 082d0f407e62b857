"""Batched sampling: one stream a row, whatever shares its batch; what ends a row; probabilities; costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_revise import END, MAKERS, N_POSITIONS, REFINE, VOCAB_SIZE, gpt2, llama

from baselines.sampling import Sample, Sampling, sample
from rematch.errors import RematchError
from rematch.flops import count_flops

STOP = (END, REFINE)
PROMPTS = [(4, 9, 5, 10), (4, 8), (4, 9, 5, 10), (4, 11, 5, 9, 6, 6, 12), (7,)]


def draw(model: Any, prompts: Any = PROMPTS, seed: int = 0, stop: Any = STOP, **options: Any) -> list[Sample]:
    how = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 12}
    how |= {name: options.pop(name) for name in list(options) if name in how}
    return sample(model, prompts, Sampling(**how), stop, seed, watch=STOP, **options)[0]


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
def test_batches_do_not_matter(maker: str, temperature: float) -> None:
    model = MAKERS[maker](double=True)
    alone = [draw(model, [p], streams=[(i,)], temperature=temperature)[0] for i, p in enumerate(PROMPTS)]
    for batch_size in (1, 2, 128):
        together = draw(model, temperature=temperature, batch_size=batch_size)
        assert [(s.ids, s.stop) for s in together] == [(s.ids, s.stop) for s in alone]
        for one, other in zip(together, alone, strict=True):
            assert one.log_prob == pytest.approx(other.log_prob, rel=1e-9)
            assert one.watched == pytest.approx(other.watched, rel=1e-9)


@pytest.mark.parametrize("maker", MAKERS)
def test_greedy_is_generate(maker: str) -> None:
    model = MAKERS[maker](seed=3, double=True)
    for prompt, found in zip(PROMPTS, draw(model, temperature=0.0), strict=True):
        ids = torch.tensor([prompt])
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=list(STOP),
            pad_token_id=0,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert written == [*found.ids, *([] if found.stop is None else [found.stop])]


@pytest.mark.parametrize("maker", MAKERS)
def test_probabilities_are_the_models_own(maker: str) -> None:
    model = MAKERS[maker](double=True)
    for prompt, found in zip(PROMPTS, draw(model, seed=5), strict=True):
        whole = torch.tensor([[*prompt, *found.ids]])
        with torch.no_grad():
            log_probs = torch.log_softmax(model(input_ids=whole).logits[0], -1)
        places = range(len(prompt) - 1, len(prompt) + len(found.ids) - 1)
        expected = sum(log_probs[place, token].item() for place, token in zip(places, found.ids, strict=True))
        assert found.log_prob == pytest.approx(expected, rel=1e-9)
        at = len(prompt) + len(found.ids) - 1 - (found.stop is None)
        assert found.watched == pytest.approx(log_probs[at, list(STOP)].exp().tolist(), rel=1e-9)


def test_streams() -> None:
    model = llama(double=True)
    first, second, other = draw(model, seed=1), draw(model, seed=1), draw(model, seed=2)
    assert first == second
    assert [s.ids for s in first] != [s.ids for s in other]
    equal = draw(model, [PROMPTS[0]] * 4, streams=[(7,), (7,), (8,), (7, 0)], stop=[])
    assert equal[0] == equal[1]
    assert len({s.ids for s in equal}) == 3
    # A stream is as long as it need be: fewer tokens are a beginning.
    shorter = draw(model, [PROMPTS[0]], streams=[(7,)], stop=[], max_new_tokens=5)[0]
    assert shorter.ids == equal[0].ids[:5]


class Fixed(torch.nn.Module):
    """A language model that gives the same logits everywhere."""

    def __init__(self, probs: list[float]) -> None:
        super().__init__()
        self.config, self.device = llama().config, torch.device("cpu")
        logits = torch.full((VOCAB_SIZE,), -1e9, dtype=torch.float64)
        logits[4 : 4 + len(probs)] = torch.tensor(probs, dtype=torch.float64).log()
        self.logits = logits
        self.weight = torch.nn.Parameter(torch.ones(1, 1))

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int = 0, past_key_values: Any = None, **_: Any) -> Any:
        if past_key_values is not None:
            keys = torch.zeros(*input_ids.shape, 1)[:, None]
            for layer in range(2):
                past_key_values.update(keys, keys, layer)
        logits = self.logits.expand(*input_ids.shape, -1) * self.weight
        return type(
            "Output", (), {"logits": (logits @ torch.eye(VOCAB_SIZE, dtype=torch.float64))[:, -logits_to_keep:]}
        )


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (0.5, 1.0, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        (1.0, 0.79, [0.5 / 0.8, 0.3 / 0.8, 0, 0]),
        (1.0, 0.81, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        (1.0, 0.1, [1, 0, 0, 0]),
    ],
)
def test_frequencies(temperature: float, top_p: float, expected: list[float]) -> None:
    model = Fixed([0.15, 0.5, 0.05, 0.3])
    drawn = draw(model, [(4,)] * 400, stop=[], temperature=temperature, top_p=top_p, max_new_tokens=20)
    counts = np.bincount([token - 4 for s in drawn for token in s.ids], minlength=4) / 8000
    assert counts[[1, 3, 0, 2]] == pytest.approx(np.array(expected), abs=0.02)
    assert [p > 0 for p in counts[[1, 3, 0, 2]]] == [p > 0 for p in expected]


@pytest.mark.parametrize("maker", MAKERS)
def test_the_end_of_the_context_cuts(maker: str) -> None:
    model = MAKERS[maker](double=True)
    prompts = [(5,) * N_POSITIONS, (6,) * (N_POSITIONS - 5), (7,) * 8]
    found = draw(model, prompts, stop=[])
    assert [len(s.ids) for s in found] == [1, 6, 12]
    assert all(s.stop is None for s in found)
    assert found[1].ids == draw(model, [prompts[1]], stop=[], streams=[(1,)])[0].ids


@pytest.mark.parametrize("maker", MAKERS)
def test_what_is_run_is_counted(maker: str) -> None:
    model = MAKERS[maker](seed=3)
    samples, flops = sample(model, PROMPTS, Sampling(0.7, 1.0, 6), STOP, 0)
    assert len({len(s.ids) for s in samples}) > 1
    with torch.no_grad():
        counted = count_flops(lambda: sample(model, PROMPTS, Sampling(0.7, 1.0, 6), STOP, 0))
    assert flops == counted.forward


def test_equal_prompts_are_read_once() -> None:
    model = llama()
    _, once = sample(model, [PROMPTS[0]], Sampling(0.7, 1.0, 1), STOP)
    _, many = sample(model, [PROMPTS[0]] * 9, Sampling(0.7, 1.0, 1), STOP)
    assert once == many


def test_nothing_is_left_behind() -> None:
    model = gpt2(attn_pdrop=0.5).train()
    state = torch.get_rng_state()
    first = draw(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert first == draw(model.eval())
    assert draw(model, []) == []


def test_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RematchError, match="prompt 1 has 0 tokens"):
        draw(llama(), [(4,), ()])
    with pytest.raises(RematchError, match=f"prompt 0 has {N_POSITIONS + 1} tokens.*holds, {N_POSITIONS}"):
        draw(llama(), [(4,) * (N_POSITIONS + 1)])
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_new_tokens": 0}):
        with pytest.raises(RematchError, match="Sampling: temperature"):
            Sampling(**wrong)
    draw(llama(), progress="samples")
    shown = capsys.readouterr()
    assert "samples" in shown.err
    assert not shown.out


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_room_for_a_row(batch_size: int) -> None:
    with pytest.raises(RematchError, match=f"batch_size is the number of rows at once, at least 1, not {batch_size}"):
        draw(llama(), batch_size=batch_size)
