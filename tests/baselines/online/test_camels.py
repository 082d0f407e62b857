"""CaMeLS: the weight network, its second-order gradient, the bookkeeping of meta-training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from baselines.online.camels import MetaBatch, MetaRecipe, WeightNet, meta_train, outer_loss
from baselines.online.documents import Document
from baselines.online.finetuning import online_finetune, weighted_loss
from baselines.qa import QABatch, QAPair, encode_pairs, qa_loss
from rematch.errors import RematchError

VOCABULARY = 18
START = 0.2310490602  # ln 2 / 3
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


@pytest.fixture
def lm(make_lm: Any) -> Any:
    return make_lm["gpt2"](**NO_DROPOUT)


@pytest.fixture
def batch(tokenizer: Any) -> MetaBatch:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[1, 5:] = 0
    pairs = [QAPair("where lives anna ?", "in paris"), QAPair("who works ?", "ben"), QAPair("where now ?", "rome")]
    anchor_mask = torch.ones(2, 6, dtype=torch.long)
    anchor_mask[0, 4:] = 0
    return MetaBatch(
        torch.randint(VOCABULARY, (3, 8), generator=generator), mask, encode_pairs(tokenizer, pairs),
        torch.randint(VOCABULARY, (2, 6), generator=generator), anchor_mask,
    )  # fmt: skip


def parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def disturbed(net: WeightNet) -> WeightNet:
    """Its head away from the start, so that weights differ."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        net.out.weight += torch.randn(net.out.weight.shape, generator=generator).to(net.out.weight)
    return net


# -- the network ------------------------------------------------------------------------------------------------------


def test_all_weights_are_the_same_at_first(lm: Any, batch: MetaBatch) -> None:
    net = WeightNet.from_lm(lm)
    weights = net(batch.input_ids, batch.attention_mask)
    assert torch.allclose(weights[batch.attention_mask == 1], torch.tensor(START), atol=1e-7)
    assert (weights[batch.attention_mask == 0] == 0).all()
    assert net.weigh(Document(torch.tensor([3, 4]))).tolist() == pytest.approx([START] * 2)


def test_padding_does_not_change_the_weights_of_tokens(lm: Any, batch: MetaBatch) -> None:
    net = disturbed(WeightNet.from_lm(lm)).eval()
    weights = net(batch.input_ids, batch.attention_mask)
    torch.testing.assert_close(weights[1, :5], net.weigh(Document(batch.input_ids[1, :5])))
    assert weights[1, :5].std() > 0.01


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_body_starts_as_the_lowest_layers(kind: str, make_lm: Any) -> None:
    lm = make_lm[kind]()
    ids = torch.randint(VOCABULARY, (1, 6))
    states = lm.base_model(ids, output_hidden_states=True)
    assert torch.equal(WeightNet.from_lm(lm).body.eval()(ids).last_hidden_state, states.last_hidden_state)
    short = WeightNet.from_lm(lm, n_layers=1).body
    norm = short.ln_f if kind == "gpt2" else short.norm
    torch.testing.assert_close(short.eval()(ids).last_hidden_state, norm(states.hidden_states[1]))
    assert lm.config.num_hidden_layers == 2
    # A copy: training one does not change the other.
    assert not {p.data_ptr() for p in short.parameters()} & {p.data_ptr() for p in lm.parameters()}
    with pytest.raises(RematchError, match="1 to 2"):
        WeightNet.from_lm(lm, n_layers=3)


def test_saved_and_loaded(lm: Any, tmp_path: Path) -> None:
    net = disturbed(WeightNet.from_lm(lm, n_layers=1, hidden=20))
    net.save_pretrained(tmp_path / "net")
    document = Document(torch.tensor([3, 4, 5, 9]))
    assert torch.equal(WeightNet.from_pretrained(tmp_path / "net").weigh(document), net.weigh(document))
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == ["config.json", "weight_net.safetensors"]


def test_it_weighs_a_stream(lm: Any) -> None:
    """At the start every weight is the same, and Adam does not mind the scale: as Uniform, up to its epsilon."""
    documents = [Document(torch.tensor([3, 4, 5, 9])), Document(torch.tensor([3, 8, 8, 2, 1]))]
    net = WeightNet.from_lm(lm, n_layers=1)
    first, second, third = (copy.deepcopy(lm) for _ in range(3))
    cost = online_finetune(first, documents, net.weigh, 1e-3)
    plain = online_finetune(second, documents, lambda document: START * torch.ones(len(document.input_ids)), 1e-3)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    online_finetune(third, documents, disturbed(net).weigh, 1e-3)
    assert not all(torch.allclose(a, b, atol=1e-5) for a, b in zip(first.parameters(), third.parameters(), strict=True))
    # The network's own work counts: a layer of width 16 and the head 16 -> 128 -> 1.
    extra = [24 * n * 16**2 + 4 * n**2 * 16 + 2 * n * (16 * 128 + 128) for n in (4, 5)]
    assert cost.flops - plain.flops == sum(extra)


# -- meta-training ----------------------------------------------------------------------------------------------------


def test_equal_weights_are_uniform_with_a_smaller_rate(lm: Any, batch: MetaBatch) -> None:
    """One document: the update is that of gradient descent on the plain loss with rate w * lr."""
    one = replace(batch, input_ids=batch.input_ids[:1], attention_mask=batch.attention_mask[:1])
    net = WeightNet.from_lm(lm)
    with sdpa_kernel(SDPBackend.MATH):
        _, updated, _, _ = outer_loss(net, lm, parameters(lm), one, MetaRecipe(inner_learning_rate=0.5))
    reference = copy.deepcopy(lm)
    weighted_loss(reference, one.input_ids, torch.ones(1, 8)).backward()
    moved = 0.0
    for name, parameter in reference.named_parameters():
        expected = parameter - START * 0.5 * parameter.grad
        torch.testing.assert_close(updated[name], expected)
        moved = max(moved, (expected - parameter).abs().max().item())
    assert moved > 1e-3
    assert len(updated) == len(list(lm.named_parameters()))  # the tied head is one with the embedding


def test_documents_are_learned_one_after_the_other(lm: Any, batch: MetaBatch) -> None:
    lm.double()
    net = disturbed(WeightNet.from_lm(lm))
    with sdpa_kernel(SDPBackend.MATH):
        _, updated, _, _ = outer_loss(net, lm, parameters(lm), batch, MetaRecipe(inner_learning_rate=0.5))
    weights = net(batch.input_ids, batch.attention_mask).detach()
    reference = copy.deepcopy(lm)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.5)
    for row in range(3):
        optimizer.zero_grad()
        one = slice(row, row + 1)
        weighted_loss(reference, batch.input_ids[one], weights[one], batch.attention_mask[one]).backward()
        optimizer.step()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(updated[name], parameter.detach())


def test_with_positions_given_a_document_is_learned_alike_beside_longer_ones(lm: Any, batch: MetaBatch) -> None:
    lm.double()
    net = disturbed(WeightNet.from_lm(lm))
    one = replace(batch, input_ids=batch.input_ids[1:2, :5], attention_mask=batch.attention_mask[1:2, :5])
    padded = replace(batch, input_ids=batch.input_ids[1:2], attention_mask=batch.attention_mask[1:2])
    learned = {}
    with sdpa_kernel(SDPBackend.MATH):
        for n_positions in (None, 64):
            recipe = MetaRecipe(inner_learning_rate=0.5, n_positions=n_positions)
            for each in (one, padded):
                learned[n_positions, each is padded] = outer_loss(net, lm, parameters(lm), each, recipe)[1]
    moved = {key: updated["transformer.wte.weight"] - lm.transformer.wte.weight for key, updated in learned.items()}
    torch.testing.assert_close(moved[64, False], moved[64, True])
    torch.testing.assert_close(
        moved[None, False] * 4, moved[None, True] * 7
    )  # the mean runs over 4, or over 7 positions
    torch.testing.assert_close(moved[None, False] * 4, moved[64, False] * 63)


def test_second_order_gradient_by_finite_differences(make_lm: Any, batch: MetaBatch) -> None:
    lm = make_lm["gpt2"](n_layer=1, **NO_DROPOUT).double()
    net = disturbed(WeightNet.from_lm(lm, hidden=8))
    recipe = MetaRecipe(inner_learning_rate=0.3, anchor=0.7)
    state = parameters(lm)

    def value() -> torch.Tensor:
        return outer_loss(net, lm, state, batch, recipe)[0]

    places = [(net.out.bias, 0), (net.out.weight, 3), (net.hidden.weight, 17), (net.body.h[0].mlp.c_fc.weight, 40)]
    with sdpa_kernel(SDPBackend.MATH):
        gradients = torch.autograd.grad(value(), [parameter for parameter, _ in places])
        for (parameter, i), gradient in zip(places, gradients, strict=True):
            flat, step = parameter.data.view(-1), 1e-5
            centre = flat[i].item()
            ends = []
            for shift in (step, -step):
                flat[i] = centre + shift
                ends.append(value().item())
            flat[i] = centre
            numeric = (ends[0] - ends[1]) / (2 * step)
            assert abs(numeric) > 1e-6
            assert gradient.flatten()[i].item() == pytest.approx(numeric, rel=1e-3)


def test_the_language_model_stays_and_the_anchor_holds_it(lm: Any, batch: MetaBatch) -> None:
    lm.train()
    before = parameters(lm)
    recipe = MetaRecipe(inner_learning_rate=0.5, learning_rate=1e-3, accumulation=1)
    training = meta_train(WeightNet.from_lm(lm), lm, [batch] * 3, recipe)
    assert all(torch.equal(before[name], value) for name, value in lm.named_parameters())
    assert all(parameter.grad is None for parameter in lm.parameters())
    assert lm.training
    assert min(training.anchors) > 0
    with sdpa_kernel(SDPBackend.MATH):
        still = outer_loss(WeightNet.from_lm(lm), lm, before, batch, MetaRecipe(inner_learning_rate=0.0))
        loss, _, qa, anchor = outer_loss(WeightNet.from_lm(lm), lm, before, batch, replace(recipe, anchor=2.0))
    assert still[3].item() == pytest.approx(0, abs=1e-6)
    assert loss.item() == pytest.approx(qa.item() + 2 * anchor.item())


def test_the_divergence_is_from_before_to_after_over_the_tokens(lm: Any, batch: MetaBatch) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        updated, _, anchor = outer_loss(WeightNet.from_lm(lm), lm, parameters(lm), batch, MetaRecipe(0.5))[1:]
    after = copy.deepcopy(lm)
    after.load_state_dict(updated, strict=False)
    total = 0.0
    for ids, mask in zip(batch.anchor_ids, batch.anchor_mask, strict=True):
        row = ids[None, : int(mask.sum())]
        old, new = (model.eval()(row).logits.log_softmax(-1) for model in (lm, after))
        total += torch.nn.functional.kl_div(new, old, log_target=True, reduction="sum").item()
    assert anchor.item() == pytest.approx(total / batch.anchor_mask.sum().item(), rel=1e-4)
    assert anchor.item() > 1e-3


def test_dropout_is_off_where_the_result_is_judged(make_lm: Any, batch: MetaBatch) -> None:
    lm = make_lm["gpt2"]()
    with sdpa_kernel(SDPBackend.MATH):
        qa = outer_loss(WeightNet.from_lm(lm), lm, parameters(lm), batch, MetaRecipe(inner_learning_rate=0.0))[2]
    assert qa.item() == pytest.approx(qa_loss(lm.eval(), batch.qa).item(), rel=1e-5)


def test_updates_are_kept_from_batch_to_batch_until_the_reset(lm: Any, batch: MetaBatch) -> None:
    recipe = MetaRecipe(inner_learning_rate=0.5, learning_rate=0.0, accumulation=1, reset_every=2)
    losses = meta_train(WeightNet.from_lm(lm), lm, [batch] * 5, recipe).qa_losses
    assert losses[0] == losses[2] == losses[4] != losses[1] == losses[3]
    assert len(set(meta_train(WeightNet.from_lm(lm), lm, [batch] * 3, replace(recipe, reset_every=3)).qa_losses)) == 3


def test_accumulation_and_the_rest(lm: Any, batch: MetaBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same batch k times, from the same state, is one step on it; batches left over make a step of their own."""
    nets, steps, norms = [], [], []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args: norms.append(clip(*args).item()))
    for n_batches, accumulation in ((1, 1), (4, 4), (6, 4)):
        torch.manual_seed(7)
        net = WeightNet.from_lm(lm)
        recipe = MetaRecipe(learning_rate=1e-3, accumulation=accumulation, reset_every=1)
        steps.append(meta_train(net, lm, [batch] * n_batches, recipe).steps)
        nets.append(net.out.weight.detach().clone())
    assert steps == [1, 1, 2]
    assert norms[:3] == pytest.approx([norms[0]] * 3, rel=1e-4)
    torch.testing.assert_close(nets[0], nets[1], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(nets[1], nets[2])
    assert meta_train(WeightNet.from_lm(lm), lm, []).steps == 0


def test_same_seed_same_network_and_cost(make_lm: Any, batch: MetaBatch) -> None:
    runs = []
    for seed in (0, 0, 1):
        lm = make_lm["gpt2"]()  # with dropout
        torch.manual_seed(3)
        net = WeightNet.from_lm(lm)
        torch.rand(len(runs))
        training = meta_train(net, lm, [batch, batch], MetaRecipe(learning_rate=1e-3, accumulation=1), seed=seed)
        runs.append((training, parameters(net)))
    assert runs[0][0].qa_losses == runs[1][0].qa_losses != runs[2][0].qa_losses
    assert all(torch.equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])
    assert runs[0][0].flops == runs[2][0].flops
    once = meta_train(WeightNet.from_lm(lm), lm, [batch], MetaRecipe())
    assert runs[0][0].flops == 2 * once.flops


def test_an_interrupted_run_ends_the_same(make_lm: Any, batch: MetaBatch, tmp_path: Path) -> None:
    """Dropout, moments of Adam and losses go on where they were; the language model had started anew."""
    recipe = MetaRecipe(0.5, 1e-2, accumulation=2, reset_every=4, checkpoint_every=1)
    lm = make_lm["gpt2"]()

    def net() -> WeightNet:
        torch.manual_seed(3)
        return WeightNet.from_lm(lm)

    whole = net()
    expected = meta_train(whole, lm, [batch] * 10, recipe, seed=7)

    def broken() -> Iterator[MetaBatch]:
        yield from [batch] * 7
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        meta_train(net(), lm, broken(), recipe, 7, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    resumed = net()
    found = meta_train(resumed, lm, [batch] * 10, recipe, 7, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    assert replace(found, seconds=0) == replace(expected, seconds=0)
    assert found.steps == 5
    with pytest.raises(RematchError, match="is the checkpoint of another run"):
        meta_train(net(), lm, [batch], recipe, 8, tmp_path)


def test_flops_by_formula(lm: Any, batch: MetaBatch) -> None:
    """In units of forward work: 3 with the gradient. Learning a document takes 9: these 3, 4 to differentiate the gradient's 2
    products, and 2 for what the loss depends on; the first one 5, since where it starts needs no gradient.
    """
    d, layers = 16, 2

    def forward(rows: int, n: int, head: int = 2 * d * VOCABULARY) -> int:
        return rows * (layers * (24 * n * d**2 + 4 * n**2 * d) + n * head)

    expected = (
        (5 + 9 + 9) * forward(1, 8)
        + 3 * forward(*batch.qa.input_ids.shape)
        + (1 + 3) * forward(2, 6)  # the language model before, and after
        + 3 * forward(3, 8, head=2 * (d * 128 + 128))  # the network
    )
    assert meta_train(WeightNet.from_lm(lm), lm, [batch], MetaRecipe()).flops == expected


def test_it_learns_which_tokens_matter(lm: Any) -> None:
    """One token of every document is the answer to the question; the others are noise, which the anchor makes costly."""
    generator = torch.Generator().manual_seed(1)
    net = WeightNet.from_lm(lm, n_layers=1)
    batches = []
    for _ in range(60):
        ids = torch.randint(9, VOCABULARY, (2, 8), generator=generator)
        ids[:, 3] = 5  # "where" comes before what matters
        answers = ids[:, 4]
        qa = torch.stack([torch.full((2,), 5), answers], 1)
        labels = torch.tensor([[False, True]] * 2)
        anchor = torch.randint(9, VOCABULARY, (2, 8), generator=generator)
        batches.append(
            MetaBatch(
                ids, torch.ones_like(ids), QABatch(qa, torch.ones_like(qa), labels), anchor, torch.ones_like(anchor)
            )
        )
    recipe = MetaRecipe(
        inner_learning_rate=0.3, learning_rate=3e-3, accumulation=1, reset_every=1, anchor=1.0, clip=1.0
    )
    training = meta_train(net, lm, batches, recipe)
    weights = torch.stack([net.weigh(Document(row)) for batch in batches for row in batch.input_ids]).mean(0)
    others = torch.cat([weights[1:4], weights[5:]])
    assert weights[4] > 2 * others.max()
    assert sum(training.qa_losses[-15:]) < sum(training.qa_losses[:15])
