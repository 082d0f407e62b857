"""Online fine-tuning: the weighted loss, one step a document, what it costs."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from baselines.online.documents import Document
from baselines.online.finetuning import OnlineFinetuner, online_finetune, salient, uniform, weighted_loss
from baselines.online.memory import SavedBytes
from rematch.errors import RematchError

VOCABULARY = 18


def documents(n: int = 6, seed: int = 0) -> list[Document]:
    generator = torch.Generator().manual_seed(seed)
    lengths = [5, 7, 5, 9, 7, 5][:n]
    return [
        Document(
            torch.randint(VOCABULARY, (length,), generator=generator), torch.rand(length, generator=generator) < 0.5
        )
        for length in lengths
    ]


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# -- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_by_hand() -> None:
    """Two rows of three tokens out of two; every logit is 0 but one, so that a token costs ln 2, ln(1 + 1/3) or ln 4."""
    logits = torch.zeros(2, 3, 2)
    logits[1, 0, 1] = torch.tensor(3.0).log()  # P(1) = 3/4, P(0) = 1/4
    model = lambda **inputs: SimpleNamespace(logits=logits)  # noqa: E731
    ids = torch.tensor([[0, 1, 0], [1, 0, 1]])
    weights = torch.tensor([[9.0, 1.0, 0.5], [9.0, 2.0, 0.0]])
    ln2, ln4 = torch.tensor(2.0).log(), torch.tensor(4.0).log()
    expected = (1 * ln2 + 0.5 * ln2 + 2 * ln4) / 4
    assert weighted_loss(model, ids, weights).item() == pytest.approx(expected.item())
    # Counted on 5 positions a row, of which the first is never predicted: 8 instead of 4.
    assert weighted_loss(model, ids, weights, n_positions=5).item() == pytest.approx(expected.item() / 2)


def test_weight_one_is_the_usual_cross_entropy_and_scales(make_lm: Any) -> None:
    model = make_lm["gpt2"]()
    ids = torch.randint(VOCABULARY, (3, 8))
    usual = model(ids, labels=ids).loss.item()
    assert weighted_loss(model, ids, torch.ones(3, 8)).item() == pytest.approx(usual, rel=1e-6)
    assert weighted_loss(model, ids, torch.full((3, 8), 0.3)).item() == pytest.approx(0.3 * usual, rel=1e-6)


def test_padding_shrinks_the_loss_and_need_not_be_computed(make_lm: Any) -> None:
    model = make_lm["gpt2"]()
    ids = torch.randint(VOCABULARY, (1, 8))
    alone = weighted_loss(model, ids, torch.ones(1, 8)).item()
    padded = torch.cat([ids, torch.zeros(1, 7, dtype=torch.long)], 1)
    mask = (torch.arange(15) < 8).long()[None]
    loss = weighted_loss(model, padded, mask.float(), mask).item()
    assert loss == pytest.approx(alone * 7 / 14, rel=1e-6)
    assert weighted_loss(model, ids, torch.ones(1, 8), n_positions=15).item() == pytest.approx(loss, rel=1e-6)
    with pytest.raises(RematchError, match="longer than the 7 positions"):
        weighted_loss(model, ids, torch.ones(1, 8), n_positions=7)


def test_weightings() -> None:
    document = Document(torch.tensor([4, 5, 6]), torch.tensor([True, False, True]))
    assert uniform(document).tolist() == [1, 1, 1]
    assert salient(document).tolist() == [1, 0, 1]
    with pytest.raises(RematchError, match="spans_fn"):
        salient(Document(document.input_ids))


# -- the steps --------------------------------------------------------------------------------------------------------


def test_one_step_of_adam_a_document_in_order(make_lm: Any) -> None:
    model, reference = make_lm["llama"]().double(), make_lm["llama"]().double()
    stream = documents()
    online_finetune(model, stream, salient, 1e-2)
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-2)
    for document in stream:
        optimizer.zero_grad()
        ids, weights = document.input_ids[None], document.salient[None].double()
        logits = reference(ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        (losses * weights[:, 1:]).mean().backward()
        optimizer.step()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    backwards = make_lm["llama"]().double()
    online_finetune(backwards, stream[::-1], salient, 1e-2)
    assert not same(model, backwards)


def test_in_parts_and_again_bit_for_bit_with_dropout(make_lm: Any) -> None:
    stream, tuned = documents(), []
    for parts, seed in (([6], 0), ([2, 0, 4], 0), ([6], 1)):
        model = make_lm["gpt2"](attn_pdrop=0.0)
        torch.rand(sum(parts) + len(parts))  # the global generator must not matter
        state = torch.get_rng_state()
        finetuner, start = OnlineFinetuner(model, uniform, 1e-2, seed=seed), 0
        for part in parts:
            finetuner.adapt(stream[start : start + part])
            start += part
        assert torch.equal(torch.get_rng_state(), state)
        assert not model.training
        tuned.append(model)
    assert same(tuned[0], tuned[1])
    assert not same(tuned[0], tuned[2])  # dropout is on, and of its own seed


def test_every_step_draws_its_own_dropout(make_lm: Any) -> None:
    finetuner = OnlineFinetuner(make_lm["gpt2"](), uniform, 0.0)
    norms: list[float] = []
    finetuner.parameters[0].register_hook(lambda gradient: norms.append(gradient.norm().item()))
    finetuner.adapt(documents()[:1])
    del norms[:]  # counting asks for the gradient too
    finetuner.adapt(documents()[:1] * 3)
    assert len(set(norms)) == 3


def test_epochs_go_on_with_the_same_optimizer(make_lm: Any) -> None:
    twice, longer = make_lm["llama"](), make_lm["llama"]()
    cost = online_finetune(twice, documents(), uniform, 1e-2, epochs=2)
    online_finetune(longer, documents() * 2, uniform, 1e-2)
    assert same(twice, longer)
    assert (cost.steps, cost.tokens) == (12, 2 * 38)


def test_a_document_without_salient_tokens_changes_nothing_at_first(make_lm: Any) -> None:
    model = make_lm["llama"]()
    before = copy.deepcopy(model)
    ids = documents()[0].input_ids
    online_finetune(model, [Document(ids, torch.zeros(len(ids), dtype=torch.bool))], salient, 1e-2)
    assert same(model, before)


def test_gradients_are_clipped_document_by_document(make_lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: dict[float, list[float]] = {}
    for clip in (750.0, 0.01):
        finetuner = OnlineFinetuner(make_lm["llama"](), uniform, 1e-6, clip=clip)
        step, seen = finetuner.optimizer.step, norms.setdefault(clip, [])

        def watched(step: Any = step, seen: list[float] = seen, finetuner: Any = finetuner) -> None:
            seen.append(torch.stack([p.grad.norm() for p in finetuner.parameters]).norm().item())
            step()

        monkeypatch.setattr(finetuner.optimizer, "step", watched)
        finetuner.adapt(documents())
    assert min(norms[750.0]) > 0.02
    assert norms[0.01] == pytest.approx([0.01] * 6, rel=1e-3)


def test_only_what_may_change_changes(make_lm: Any) -> None:
    model = make_lm["llama"]()
    model.model.embed_tokens.requires_grad_(False)
    before = copy.deepcopy(model)
    online_finetune(model, documents(), uniform, 1e-2)
    assert torch.equal(model.model.embed_tokens.weight, before.model.embed_tokens.weight)
    assert not torch.equal(model.lm_head.weight, before.lm_head.weight)


# -- the cost ---------------------------------------------------------------------------------------------------------


def test_flops_by_formula(make_lm: Any) -> None:
    """A GPT-2 of width d: 24 n d^2 + 4 n^2 d a layer, 2 n d V for the head, and twice that backward."""
    model, d, layers = make_lm["gpt2"](), 16, 2
    cost = online_finetune(model, documents(), uniform, 1e-3)
    forward = [
        layers * (24 * n * d**2 + 4 * n**2 * d) + 2 * n * d * VOCABULARY
        for n in (len(document.input_ids) for document in documents())
    ]
    assert cost.flops == 3 * sum(forward)
    parameters = sum(p.numel() for p in model.parameters())
    assert cost.state_bytes == 3 * 4 * parameters
    assert cost.seconds > 0


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_flops_of_a_length_that_was_not_counted(kind: str, make_lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    real = OnlineFinetuner._count

    def count(self: OnlineFinetuner, document: Document) -> int:
        counted.append(len(document.input_ids))
        return real(self, document)

    monkeypatch.setattr(OnlineFinetuner, "_count", count)
    texts = [Document(torch.arange(n) % VOCABULARY) for n in (5, 9, 12, 7, 4, 11, 6)]

    def cubic(document: Document) -> torch.Tensor:
        n = len(document.input_ids)
        return torch.ones(n, n * n) @ torch.ones(n * n)

    for weights, times in ((uniform, 4), (cubic, 7)):
        finetuner = OnlineFinetuner(make_lm[kind](), weights, 1e-3)
        counted.clear()
        found = [finetuner.flops_of(text) for text in texts]
        assert len(counted) == times
        assert found == [real(finetuner, text) for text in texts]


def test_saved_bytes_by_hand(make_lm: Any) -> None:
    weight = torch.randn(10, 4, requires_grad=True)
    x = torch.randn(3, 10)
    with SavedBytes([weight]) as saved:
        y = torch.mm(x, weight)  # keeps x: 120 bytes; the weight is there anyway
        z = y.view(4, 3).exp()  # keeps its result: 48 bytes
        (z * z.t().reshape(4, 3)).sum()  # keeps z again, and the other factor: 48 bytes
    assert saved.total == 120 + 48 + 48
    assert SavedBytes().total == 0
    model = make_lm["gpt2"]()
    longest = online_finetune(model, [documents()[3]], uniform, 1e-3).saved_bytes
    longest_first = sorted(documents(), key=lambda document: -len(document.input_ids))
    assert online_finetune(model, longest_first, uniform, 1e-3).saved_bytes == longest
    assert longest > 0
