"""MAC's networks: layers against plain references, and what the aggregator must and must not depend on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_mac import gpt2, llama, t5, texts, tiny_mac, tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, GPT2Config, T5ForConditionalGeneration, T5Model

from methods.mac import aggregator as aggregation
from methods.mac.aggregator import Aggregator, CrossAttentionBlock
from methods.mac.amortizer import Amortizer, copy_embeddings, load_backbone
from methods.mac.batches import encode_texts
from methods.mac.config import MACConfig
from methods.mac.modulation import Expansion, PrefixModulation
from methods.mac.token_mlps import TokenMLPs
from rematch.errors import RematchError
from rematch.flops import count_flops


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def randomised(module: Any) -> Any:
    """Every parameter random, norms and biases too, in float64."""
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module


# -- MLPs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d_in", "d_out"), [(4, 4), (4, 6)])
def test_every_token_has_an_mlp_of_its_own(d_in: int, d_out: int) -> None:
    mlps = randomised(TokenMLPs(3, d_in, 5, d_out, torch.tanh))
    x = torch.randn(2, 3, d_in, dtype=torch.float64)
    out = mlps(x)
    for i in range(3):
        normed = F.layer_norm(x[:, i], (d_in,), mlps.norm_weight[i], mlps.norm_bias[i])
        hidden = torch.tanh(normed @ mlps.weight1[i] + mlps.bias1[i])
        skip = x[:, i] if d_in == d_out else x[:, i] @ mlps.skip_weight[i] + mlps.skip_bias[i]
        torch.testing.assert_close(out[:, i], skip + hidden @ mlps.weight2[i] + mlps.bias2[i])
    assert mlps.has_skip_map == (d_in != d_out)


def test_mlps_start_like_linear_layers() -> None:
    mlps = TokenMLPs(64, 16, 32, 8, torch.tanh)
    for parameter, fan_in in ((mlps.weight1, 16), (mlps.bias1, 16), (mlps.weight2, 32), (mlps.bias2, 32)):
        assert parameter.abs().max() <= 1 / math.sqrt(fan_in)
        assert parameter.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.1)


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_no_token_is_dropped() -> None:
    with pytest.raises(
        RematchError, match="n_tokens: 4; allowed: 1 to 2, of which the modulation of this language model"
    ):
        Expansion(4, 2, 4, 5, 4)
    with pytest.raises(RematchError, match=r"n_tokens: 24; allowed: 1 to 4, .*2 x layers x n_prefix"):
        tiny_mac(gpt2(n_layers=1), n_tokens=24)
    with pytest.raises(RematchError, match=r"n_tokens: 5; allowed: 1 to 4, .*4 x layers x lora_rank"):
        tiny_mac(gpt2(n_layers=1), n_tokens=5, modulation="lora", lora_rank=1)
    tiny_mac(gpt2(n_layers=1), n_tokens=4)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"n_tokens": 0}, "n_tokens: 0; allowed: whole numbers from 1"),
        ({"n_blocks": 0}, "n_blocks: 0; allowed: whole numbers from 1"),
        ({"n_heads": 0}, "n_heads: 0; allowed: whole numbers from 1"),
        ({"head_dim": -8}, "head_dim: -8; allowed: whole numbers from 1"),
        ({"n_prefix": 0}, "n_prefix: 0; allowed: whole numbers from 1"),
        ({"lora_rank": 0}, "lora_rank: 0; allowed: whole numbers from 1"),
        ({"expansion_width": 0}, "expansion_width: 0; allowed: whole numbers from 1"),
        ({"n_blocks": 1.5}, "n_blocks: 1.5; allowed: whole numbers from 1"),
        ({"n_blocks": True}, "n_blocks: True; allowed: whole numbers from 1"),
        ({"max_document": 0}, "max_document: 0; allowed: whole numbers from 1"),
        ({"max_answer": 1}, "max_answer: 1; allowed: whole numbers from 2"),
        ({"max_length": 8, "max_answer": 8}, "max_length: 8; allowed: whole numbers from 9"),
        ({"max_question": 0}, "max_question: 0; allowed: whole numbers from 1"),
        ({"amortizer": "encoder-decoder"}, "unknown amortizer 'encoder-decoder'; allowed: encdec, encoder, decoder"),
    ],
)  # fmt: skip
def test_sizes_out_of_bounds(size: dict[str, Any], message: str) -> None:
    with pytest.raises(RematchError, match=f"MAC: {message}"):
        MACConfig(**size)


# -- expansion and prefixes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_tokens", "n_targets", "source"),
    [
        (3, 8, [0, 0, 0, 1, 1, 1, 2, 2]),
        (4, 8, [0, 0, 1, 1, 2, 2, 3, 3]),
        (3, 4, [0, 0, 1, 2]),
        (4, 4, [0, 1, 2, 3]),
    ],
)
def test_tokens_are_repeated_in_place(n_tokens: int, n_targets: int, source: list[int]) -> None:
    expansion = Expansion(n_tokens, n_targets, 4, 5, 4).double()
    assert expansion.source.tolist() == source
    with torch.no_grad():
        expansion.mlps.weight2.zero_()
        expansion.mlps.bias2.zero_()
    tokens = torch.randn(2, n_tokens, 4, dtype=torch.float64)
    assert torch.equal(expansion(tokens), tokens[:, source])


def test_expansion_uses_gelu() -> None:
    expansion = randomised(Expansion(2, 2, 4, 5, 4))
    tokens, mlps = torch.randn(1, 2, 4, dtype=torch.float64), expansion.mlps
    normed = F.layer_norm(tokens[:, 1], (4,), mlps.norm_weight[1], mlps.norm_bias[1])
    hidden = normed @ mlps.weight1[1] + mlps.bias1[1]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    torch.testing.assert_close(expansion(tokens)[:, 1], tokens[:, 1] + hidden @ mlps.weight2[1] + mlps.bias2[1])


class Numbered(nn.Module):
    """Instead of an expansion: element c of token a of question n is 10,000 n + 100 a + c."""

    def __init__(self, n_targets: int, width: int) -> None:
        super().__init__()
        self.values = 100 * torch.arange(n_targets)[:, None] + torch.arange(width)

    def forward(self, phi: Tensor) -> Tensor:
        return (10_000 * torch.arange(len(phi))[:, None, None] + self.values).float()


@pytest.mark.parametrize(
    ("lm", "n_heads", "head_dim"), [(gpt2(3), 2, 8), (llama(3), 2, 4), (llama(3, head_dim=6), 2, 6)]
)
def test_where_expanded_tokens_land(lm: Any, n_heads: int, head_dim: int) -> None:
    n_layers, n_positions, n = 3, 2, 2
    modulation: Any = PrefixModulation(lm.config, n_tokens=4, n_positions=n_positions)
    assert modulation(torch.randn(n, 4, 16)).shape == (n_layers, 2, n, n_heads, n_positions, head_dim)
    modulation.expansion = Numbered(2 * n_layers * n_positions, n_heads * head_dim)
    cache = modulation.cache(torch.zeros(n, 4, 16))
    assert len(cache.layers) == n_layers
    assert cache.get_seq_length() == n_positions
    for l, layer in enumerate(cache.layers):  # noqa: E741
        for s, states in enumerate((layer.keys, layer.values)):
            assert states.shape == (n, n_heads, n_positions, head_dim)
            for question in range(n):
                for p in range(n_positions):
                    for head in range(n_heads):
                        token = p * 2 * n_layers + 2 * l + s
                        wanted = 10_000 * question + 100 * token + head * head_dim + torch.arange(head_dim)
                        assert torch.equal(states[question, head, p], wanted.float())


# -- aggregator -------------------------------------------------------------------------------------------------------


def reference_block(block: CrossAttentionBlock, z: Tensor, memory: Tensor) -> Tensor:
    """One question's vectors (T, d) and a memory (rows, d), head by head."""
    normed, context = block.query_norm(z), block.memory_norm(memory)
    q, k, v = normed @ block.query.weight.T, context @ block.key.weight.T, context @ block.value.weight.T
    heads = []
    for h in range(block.n_heads):
        own = slice(h * block.head_dim, (h + 1) * block.head_dim)
        weights = torch.softmax(q[:, own] @ k[:, own].T * block.head_dim**-0.5, -1)
        heads.append(weights @ v[:, own])
    z = z + block.out(torch.cat(heads, -1))
    first, _, second = block.ffn
    return z + second(F.gelu(first(block.ffn_norm(z))))


def reference(aggregator: Aggregator, z: Tensor, memory: Tensor) -> Tensor:
    """Question by question, block by block, always over the raw memory (K, T, d)."""
    rows = []
    for question in z:
        for block in aggregator.blocks:
            question = reference_block(block, question, memory.flatten(0, 1))
        rows.append(question)
    return torch.stack(rows)


@pytest.fixture
def aggregator() -> Aggregator:
    return randomised(Aggregator(6, n_blocks=3, n_heads=2, head_dim=4))


@pytest.fixture
def z() -> Tensor:
    return torch.randn(5, 3, 6, dtype=torch.float64)


@pytest.fixture
def bank() -> Tensor:
    return torch.randn(7, 3, 6, dtype=torch.float64)


def test_the_aggregator_equals_its_reference(aggregator: Aggregator, z: Tensor, bank: Tensor) -> None:
    torch.testing.assert_close(aggregator(z, bank), reference(aggregator, z, bank))


def test_the_papers_sizes() -> None:
    aggregator = Aggregator(1024)
    assert len(aggregator.blocks) == 4
    block: Any = aggregator.blocks[0]
    assert (block.n_heads, block.head_dim) == (8, 96)
    assert block.ffn[0].weight.shape == (768, 1024)
    assert [layer.bias is not None for layer in (block.query, block.key, block.value, block.out)] == [0, 0, 0, 1]
    small: Any = Aggregator(32, 1).blocks[0]
    assert small.ffn[0].weight.shape == (32, 32)


def test_each_question_may_have_a_bank_of_its_own(aggregator: Aggregator, z: Tensor) -> None:
    banks = torch.randn(5, 2, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(
        aggregator(z, banks), torch.cat([aggregator(z[i : i + 1], banks[i]) for i in range(len(z))])
    )


def test_order_and_doubling_of_the_bank_do_not_matter_but_one_duplicate_does(
    aggregator: Aggregator, z: Tensor, bank: Tensor
) -> None:
    phi = aggregator(z, bank)
    permuted = bank[torch.randperm(len(bank))]
    assert (aggregator(z, permuted) - phi).abs().max() < 1e-10
    rows = bank.flatten(0, 1)
    rows = rows[torch.randperm(len(rows))].view_as(bank)
    assert (aggregator(z, rows) - phi).abs().max() < 1e-10
    assert (aggregator(z, torch.cat([bank, bank])) - phi).abs().max() < 1e-10
    assert (aggregator(z, torch.cat([bank, bank[:1]])) - phi).abs().max() > 1e-3


def test_attention_weights_are_those_that_are_used(aggregator: Aggregator, z: Tensor, bank: Tensor) -> None:
    weights: list[Tensor] = []
    phi = aggregator(z, bank, weights)
    torch.testing.assert_close(phi, aggregator(z, bank))
    assert [w.shape for w in weights] == [(5, 2, 3, 21)] * 3
    for w in weights:
        torch.testing.assert_close(w.sum(-1), torch.ones(5, 2, 3, dtype=torch.float64))
    block: Any = aggregator.blocks[0]
    q, k = block.query(block.query_norm(z[4])), block.key(block.memory_norm(bank.flatten(0, 1)))
    torch.testing.assert_close(weights[0][4, 1], torch.softmax(q[:, 4:] @ k[:, 4:].T / 2, -1))
    own = torch.stack([bank] * 5)
    per_question: list[Tensor] = []
    aggregator(z, own, per_question)
    torch.testing.assert_close(per_question[2], weights[2])


@pytest.mark.parametrize("shared", [True, False])
def test_attention_in_parts_equals_attention_at_once(
    aggregator: Aggregator, z: Tensor, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = torch.randn(50, 3, 6, dtype=torch.float64) * 20  # large scores: the running maximum matters
    bank = bank if shared else torch.stack([bank] * 5)
    whole = aggregator(z, bank)
    sizes: list[int] = []
    for block in aggregator.blocks:
        block.key.register_forward_hook(lambda module, args, out: sizes.append(args[0].shape[1]))
    monkeypatch.setattr(aggregation, "ROWS_AT_ONCE", 64)
    with torch.no_grad():
        torch.testing.assert_close(aggregator(z, bank), whole)
    assert sizes == [64, 64, 22] * 3


def test_a_large_bank_is_read_in_parts(z: Tensor) -> None:
    aggregator = Aggregator(6, n_blocks=1, n_heads=2, head_dim=4).double()
    block: Any = aggregator.blocks[0]
    rows = aggregation.ROWS_AT_ONCE + 5
    bank = torch.randn(rows, 1, 6, dtype=torch.float64)
    sizes = []
    block.key.register_forward_hook(lambda module, args, out: sizes.append(args[0].shape[1]))
    with torch.no_grad():
        phi = aggregator(z[:1], bank)
    assert sizes == [aggregation.ROWS_AT_ONCE, 5]
    torch.testing.assert_close(phi, aggregator(z[:1], bank).detach())


def test_queries_and_keys_start_equal_only_where_asked() -> None:
    for equal in (True, False):
        for block in Aggregator(6, 2, 2, 4, equal_query_key=equal).blocks:
            mapped: Any = block
            assert torch.equal(mapped.query.weight, mapped.key.weight) == equal
            assert mapped.query.weight is not mapped.key.weight


# -- hierarchy --------------------------------------------------------------------------------------------------------


def aggregations(aggregator: Aggregator, z: Tensor) -> list[int]:
    """A list that grows by the number of aggregations (per question) at each call of the first block."""
    counts: list[int] = []
    aggregator.blocks[0].register_forward_hook(
        lambda module, args, out: counts.append(args[0].shape[:2].numel() // z.shape[:2].numel())
    )
    return counts


def reference_hierarchy(aggregator: Aggregator, z: Tensor, bank: Tensor, m: int) -> Tensor:
    rows = []
    for question in z:
        entries = bank
        while len(entries) > m:
            groups = [entries[j : j + m] for j in range(0, len(entries), m)]
            entries = torch.cat([reference(aggregator, question[None], group) for group in groups])
        rows.append(reference(aggregator, question[None], entries))
    return torch.cat(rows)


@pytest.mark.parametrize(("k", "m", "calls"), [(11, 4, 4), (11, 2, 12), (11, 3, 7), (27, 3, 13), (16, 4, 5), (9, 8, 3)])
def test_groups_of_documents(aggregator: Aggregator, z: Tensor, k: int, m: int, calls: int) -> None:
    bank = torch.randn(k, 3, 6, dtype=torch.float64)
    counts = aggregations(aggregator, z)
    phi = aggregator.hierarchical(z, bank, m)
    assert sum(counts) == calls
    torch.testing.assert_close(phi, reference_hierarchy(aggregator, z, bank, m))
    assert (phi - aggregator(z, bank)).abs().max() > 1e-3


@pytest.mark.parametrize("m", [7, 8, 100])
def test_groups_that_hold_the_whole_bank_are_full_aggregation(
    aggregator: Aggregator, z: Tensor, bank: Tensor, m: int
) -> None:
    assert torch.equal(aggregator.hierarchical(z, bank, m), aggregator(z, bank))


@pytest.mark.parametrize("m", [1, 0, -3])
def test_groups_of_one_would_never_end(aggregator: Aggregator, z: Tensor, bank: Tensor, m: int) -> None:
    with pytest.raises(RematchError, match="group_size >= 2"):
        aggregator.hierarchical(z, bank, m)


def test_flops_of_aggregation(aggregator: Aggregator, z: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    n, t, d, inner, blocks = 5, 3, 6, 8, 3

    def formula(k: int, groups: int = 1) -> int:
        questions = groups * n * t * (2 * d * inner + 2 * inner * d + 2 * 2 * d * min(d, inner))
        memory = groups * k * t * 2 * 2 * d * inner
        return blocks * (questions + memory + groups * 2 * 2 * n * t * k * t * inner)

    bank = torch.randn(12, t, d, dtype=torch.float64)
    count = count_flops(aggregator, z, bank).forward
    assert count == formula(12)
    with torch.no_grad():
        monkeypatch.setattr(aggregation, "ROWS_AT_ONCE", 7)
        assert count_flops(aggregator, z, bank).forward == count
    monkeypatch.undo()
    top = blocks * (
        n * t * (4 * d * inner + 4 * d * min(d, inner)) + n * 3 * t * 4 * d * inner + 4 * n * t * 3 * t * inner
    )
    assert count_flops(aggregator.hierarchical, z, bank, 4).forward == formula(4, groups=3) + top


# -- amortizer --------------------------------------------------------------------------------------------------------

BACKBONES: dict[str, Any] = {
    "encdec": t5(),
    "encoder": t5(),
    "decoder": GPT2Config(vocab_size=43, n_positions=64, n_embd=16, n_layer=1, n_head=2),
}


def amortizer(architecture: Any, source: Any = None) -> Amortizer:
    backbone = load_backbone(source or BACKBONES[architecture], architecture)
    return Amortizer(backbone, architecture, n_tokens=3, width=12).double().eval()


@pytest.mark.parametrize("architecture", BACKBONES)
def test_padding_does_not_leak(architecture: Any) -> None:
    network, documents = amortizer(architecture), texts(6, 2, 20)
    ids, mask = encode_texts(tokenizer(), documents, 64)
    entries = network(ids, mask)
    assert entries.shape == (6, 3, 12)
    for i, document in enumerate(documents):
        alone = network(*encode_texts(tokenizer(), [document], 64))
        assert (entries[i] - alone[0]).abs().max() < 1e-10
    assert (entries[0] - entries[1]).abs().max() > 1e-3


def test_an_encoder_with_absolute_positions_may_be_padded_too() -> None:
    config = BertConfig(vocab_size=43, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    network = amortizer("encoder", config)
    ids, mask = encode_texts(tokenizer(), texts(2, 3, 20, seed=3), 64)
    n = int(mask[0].sum())
    assert (network(ids, mask)[:1] - network(ids[:1, :n], mask[:1, :n])).abs().max() < 1e-10


def test_every_vector_sees_the_text_and_the_decoders_earlier_vectors() -> None:
    network = amortizer("encdec")
    ids, mask = encode_texts(tokenizer(), texts(1), 64)
    before = network(ids, mask)
    changed = ids.clone()
    changed[0, 0] = (ids[0, 0] + 1 - 3) % 40 + 3
    assert ((network(changed, mask) - before).abs().amax(-1) > 1e-6).all()
    with torch.no_grad():
        network.queries[1] += 1.0
    moved = (network(ids, mask) - before).abs().amax(-1)[0] > 1e-9
    assert moved.tolist() == [False, True, True]  # causal among the learned vectors


def test_skips_are_maps_only_between_unequal_widths() -> None:
    assert amortizer("encdec").mlps.has_skip_map
    assert not Amortizer(load_backbone(t5(12), "encdec"), "encdec", 3, 12).mlps.has_skip_map


def test_learned_vectors_start_small() -> None:
    network = Amortizer(load_backbone(t5(16), "encdec"), "encdec", 500, 16)
    assert network.queries.std().item() == pytest.approx(0.02, rel=0.05)


def test_models_are_copied_without_their_heads() -> None:
    source = T5ForConditionalGeneration(t5())
    copied = load_backbone(source, "encdec")
    assert isinstance(copied, T5Model)
    own, theirs = dict(copied.named_parameters()), dict(source.named_parameters())
    assert set(own) <= set(theirs)
    for name, parameter in own.items():
        assert torch.equal(parameter, theirs[name])
        assert parameter.data_ptr() != theirs[name].data_ptr()
    lm = gpt2()
    body = load_backbone(lm, "decoder")
    assert torch.equal(body.get_input_embeddings().weight, lm.transformer.wte.weight)
    assert body.get_input_embeddings().weight.data_ptr() != lm.transformer.wte.weight.data_ptr()
    half = load_backbone(T5Model(t5()), "encoder")
    assert not any(name.startswith("decoder") for name, _ in half.named_parameters())


def test_a_folder_is_loaded(tmp_path: Any) -> None:
    source = T5Model(t5())
    source.save_pretrained(tmp_path)
    for architecture in ("encdec", "encoder"):
        loaded: Any = load_backbone(str(tmp_path), architecture)
        assert torch.equal(loaded.encoder.block[0].layer[0].SelfAttention.q.weight, source.encoder.block[0].layer[0].SelfAttention.q.weight)  # fmt: skip


@pytest.mark.parametrize(
    ("source", "architecture", "message"),
    [
        (t5(), "decoder", "needs a causal decoder"),
        (GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=43), "encdec", "needs an encoder-decoder"),
        (t5(), "encdecc", "allowed: encdec, encoder, decoder"),
        ("no/such-folder/here", "encdec", "no encoder can be made"),
    ],
)
def test_unfit_encoders(source: Any, architecture: Any, message: str) -> None:
    with pytest.raises(RematchError, match=message):
        load_backbone(source, architecture)


def test_embeddings_are_copied_at_the_encoders_scale() -> None:
    lm, backbone = gpt2(), load_backbone(t5(), "encdec")
    before = backbone.get_input_embeddings().weight.std().item()
    lm_before = lm.transformer.wte.weight.clone()
    copy_embeddings(backbone, lm)
    own: Any = backbone.get_input_embeddings().weight
    assert own.std().item() == pytest.approx(before)
    torch.testing.assert_close(own / own.std(), lm.transformer.wte.weight / lm.transformer.wte.weight.std())
    with torch.no_grad():
        own.zero_()
    assert torch.equal(lm.transformer.wte.weight, lm_before)
    with pytest.raises(RematchError, match="cannot start"):
        copy_embeddings(load_backbone(t5(24), "encdec"), lm)


def test_texts_without_tokens_are_refused() -> None:
    with pytest.raises(RematchError, match="no tokens: ''"):
        encode_texts(tokenizer(), ["w1", ""], 8)
    with pytest.raises(RematchError, match="no texts"):
        encode_texts(tokenizer(), [], 8)


def test_encoded_texts_are_padded_to_few_lengths_and_cut() -> None:
    ids, mask = encode_texts(tokenizer(), ["w1 w2", " ".join(["w3"] * 30)], 11)
    assert ids.shape == (2, 16)
    assert mask.sum(1).tolist() == [2, 11]
    assert ids[0].tolist() == [4, 5, *[0] * 14]


def test_the_bank_of_an_untrained_mac_has_the_language_models_width() -> None:
    mac = tiny_mac(gpt2(width=24), encoder=t5(16))
    assert mac.amortize(texts(2)).shape == (2, 3, 24)
