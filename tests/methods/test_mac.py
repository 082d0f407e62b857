"""MAC as a whole: what is frozen, what has gradients, streams, prefixes, answers, files."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_mac import examples, gpt2, llama, t5, texts, tiny_mac, tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, PreTrainedModel

from baselines.decoding import Beams
from baselines.qa import QAPair, answer_nll, encode_pairs, qa_loss
from methods.mac import MAC, GradientMask, MemoryBank
from methods.mac.modulation import LoRAModulation, PrefixModulation, query_value_maps
from rematch.errors import RematchError
from rematch.flops import count_flops

LMS: dict[str, Any] = {"gpt2": gpt2, "llama": llama}
DECODER = GPT2Config(vocab_size=43, n_positions=64, n_embd=16, n_layer=1, n_head=2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def mac() -> MAC:
    return tiny_mac()


def split(given: list[tuple[str, list[QAPair]]]) -> tuple[list[str], list[list[QAPair]], list[str]]:
    """Documents, their pairs, and all questions."""
    return [d for d, _ in given], [p for _, p in given], [pair.question for _, pairs in given for pair in pairs]


DOCS, PAIRS, QUESTIONS = split(examples(4))


def gradients(mac: MAC, *args: Any) -> dict[str, Tensor]:
    mac.zero_grad()
    mac.loss(DOCS, PAIRS, *args).backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in mac.networks()}


# -- what is trained and what is not ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lm", LMS)
@pytest.mark.parametrize("modulation", ["prefix", "lora"])
def test_the_language_model_is_frozen(lm: str, modulation: str) -> None:
    model = LMS[lm]().double()
    batch = encode_pairs(tokenizer(), [pair for pairs in PAIRS for pair in pairs])
    ids = batch.input_ids, batch.attention_mask
    with torch.no_grad():
        logits = model(*ids[:1], attention_mask=ids[1]).logits
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mac = tiny_mac(model, modulation=modulation, embeddings="lm")
    optimizer = torch.optim.Adam([p for _, p in mac.networks()], lr=0.1)
    for _ in range(3):
        mac.train()
        mac.loss(DOCS, PAIRS).backward()
        optimizer.step()
    mac.adapt(DOCS)
    mac.answer(QUESTIONS)
    assert mac.lm is model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(*ids[:1], attention_mask=ids[1]).logits, logits)
    assert not any(module._forward_hooks for module in model.modules())


def test_encoders_own_their_embeddings() -> None:
    mac = tiny_mac(embeddings="lm")
    assert mac.question_encoder is not None
    tables = [mac.lm.transformer.wte.weight]
    tables += [network.backbone.shared.weight for network in (mac.amortizer, mac.question_encoder)]
    assert len({table.data_ptr() for table in tables}) == 3
    names = [name for name, _ in mac.networks()]
    assert len(names) == len(set(names))
    assert not any(name.startswith("lm.") for name in names)


@pytest.mark.parametrize("modulation", ["prefix", "lora"])
@pytest.mark.parametrize(("amortizer", "encoder"), [("encdec", t5()), ("encoder", t5()), ("decoder", DECODER)])
def test_every_part_has_a_gradient(amortizer: str, encoder: Any, modulation: str) -> None:
    found = gradients(tiny_mac(amortizer=amortizer, encoder=encoder, modulation=modulation))
    assert found
    for name, gradient in found.items():
        assert gradient.abs().sum() > 0, name
    for part in ("queries", "mlps.weight1"):
        rows = (
            found[f"amortizer.{part}"].flatten(1).abs().sum(1),
            found[f"question_encoder.{part}"].flatten(1).abs().sum(1),
        )
        assert all((row > 0).all() for row in rows), part
    assert (found["modulation.expansion.mlps.weight2"].flatten(1).abs().sum(1) > 0).all()


def test_without_aggregation_there_is_nothing_that_asks(mac: MAC) -> None:
    oracle = tiny_mac(aggregate="none")
    assert not any(name.startswith(("question_encoder", "aggregator")) for name, _ in oracle.networks())
    assert all(gradient.abs().sum() > 0 for gradient in gradients(oracle).values())
    entries = oracle.amortize(DOCS)
    phi = entries[[0, 0, 1, 1, 2, 2, 3, 3]]
    assert torch.equal(oracle.loss(DOCS, PAIRS), oracle.qa_loss(phi, oracle.encode(DOCS, PAIRS).qa))
    with pytest.raises(RematchError, match="aggregate='none'"):
        oracle.ask(QUESTIONS)
    with pytest.raises(RematchError, match="hierarchy_aware"):
        oracle.loss(DOCS, PAIRS, None, True)
    oracle.adapt(DOCS)
    with pytest.raises(RematchError, match="needs select"):
        oracle.answer(QUESTIONS)
    select = torch.tensor([[2], [0]])
    assert torch.equal(oracle.aggregate(QUESTIONS[:2], select=select), oracle.bank.tensor[[2, 0]])
    assert len(oracle.answer(QUESTIONS[:2], select=select)) == 2


def test_the_loss_is_that_of_the_aggregated_memory(mac: MAC) -> None:
    entries = mac.amortize(DOCS)
    phi = mac.aggregate(QUESTIONS, entries)
    qa = encode_pairs(tokenizer(), [pair for pairs in PAIRS for pair in pairs])
    loss = mac.loss(DOCS, PAIRS)
    torch.testing.assert_close(loss, qa_loss(mac.lm, qa, mac.prefixes(phi)))
    without = entries.clone()
    without[0] = 0
    changed = qa_loss(mac.lm, qa, mac.prefixes(mac.aggregate(QUESTIONS, without)))
    assert (changed - loss).abs() > 1e-6
    alone = mac.loss(DOCS, [pairs[0] for pairs in PAIRS])
    torch.testing.assert_close(alone, mac.loss(DOCS, [pairs[:1] for pairs in PAIRS]))
    with pytest.raises(RematchError, match="3 documents and questions for 4"):
        mac.loss(DOCS[:3], PAIRS)


def test_answers_do_not_leak_into_what_steers_them(mac: MAC, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(mac, "qa_loss", lambda phi, qa: seen.append(phi) or phi.sum())
    mac.loss(DOCS, PAIRS)
    mac.loss(DOCS, [[QAPair(pair.question, "w7 w8 w9") for pair in pairs] for pairs in PAIRS])
    mac.loss(DOCS, [[QAPair(pair.question + " w7", pair.answer) for pair in pairs] for pairs in PAIRS])
    assert torch.equal(seen[0], seen[1])
    assert ((seen[0] - seen[2]).abs().amax((1, 2)) > 1e-6).all()


def test_aggregating_twice_takes_the_batchs_modulations_for_the_memory(mac: MAC) -> None:
    phi = mac.aggregate(QUESTIONS, mac.amortize(DOCS))
    twice = mac.aggregate(QUESTIONS, phi)
    batch = mac.encode(DOCS, PAIRS)
    torch.testing.assert_close(mac(batch, None, True), mac.qa_loss(twice, batch.qa))
    assert not torch.allclose(mac(batch, None, True), mac(batch))


# -- back-propagation dropout -----------------------------------------------------------------------------------------


def masks() -> list[Tensor]:
    return [torch.tensor(bits, dtype=torch.bool) for bits in itertools.product((False, True), repeat=4)]


def test_forward_values_do_not_depend_on_the_mask(mac: MAC) -> None:
    whole = mac.loss(DOCS, PAIRS)
    for carries in masks():
        loss = mac.loss(DOCS, PAIRS, GradientMask(carries, scale=2.0))
        torch.testing.assert_close(loss, whole, rtol=1e-12, atol=0)


def test_the_amortizers_gradient_is_unbiased_only_after_rescaling(mac: MAC) -> None:
    full = gradients(mac)
    found = [gradients(mac, GradientMask(carries)) for carries in masks()]
    rescaled = [gradients(mac, GradientMask(carries, scale=2.0)) for carries in masks()]
    for name, gradient in full.items():
        if name.startswith("amortizer."):
            mean = torch.stack([each[name] for each in found]).mean(0)
            torch.testing.assert_close(mean, gradient / 2, rtol=1e-8, atol=1e-12)
            mean = torch.stack([each[name] for each in rescaled]).mean(0)
            torch.testing.assert_close(mean, gradient, rtol=1e-8, atol=1e-12)
            assert found[0][name].abs().sum() == 0  # no document with gradient
        else:
            for each in (*found, *rescaled):
                torch.testing.assert_close(each[name], gradient, rtol=1e-8, atol=1e-12)


def test_only_the_first_documents_questions_are_asked_in_prefix_mode(mac: MAC) -> None:
    first = torch.tensor([True, False, False, False])
    batch = mac.encode(DOCS, PAIRS)
    phi = mac.aggregate(QUESTIONS[:2], mac.amortize(DOCS))
    loss = mac(batch, GradientMask(first, asks=first))
    torch.testing.assert_close(loss, mac.qa_loss(phi, encode_pairs(tokenizer(), PAIRS[0])))
    # A document without questions is a distractor like any other, but it cannot be all that is asked about.
    mac.loss(DOCS, [[], *PAIRS[1:]])
    with pytest.raises(RematchError, match="has a question"):
        mac.loss(DOCS, [[], *PAIRS[1:]], GradientMask(first, asks=first))


def test_documents_without_gradient_keep_nothing_for_the_backward_pass(mac: MAC) -> None:
    documents, batch = texts(16, 30, 30), None
    batch = mac.encode(documents, [QAPair("w1", "w2")] * 16)

    def saved(mask: GradientMask | None) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            mac(batch, mask)
        return sum(sizes.values())

    assert saved(GradientMask(torch.arange(16) < 4)) < 0.6 * saved(None)


# -- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_may_be_read_in_parts_and_in_any_order(mac: MAC) -> None:
    documents = texts(12)
    whole = mac.adapt(documents, batch_size=4).tensor.clone()
    for batch_size in (1, 5, 16):
        mac.bank = mac.new_bank()
        mac.adapt(documents[:7], batch_size=batch_size)
        first = mac.bank.tensor.clone()
        mac.adapt(iter(documents[7:]), batch_size=batch_size)
        assert torch.equal(mac.bank.tensor[:7], first)
        torch.testing.assert_close(mac.bank.tensor, whole, rtol=0, atol=1e-10)
    mac.bank = mac.new_bank()
    mac.adapt(documents[::-1])
    torch.testing.assert_close(mac.bank.tensor.flip(0), whole, rtol=0, atol=1e-10)
    assert not mac.bank.tensor.requires_grad


@pytest.mark.parametrize(("amortizer", "encoder"), [("encdec", t5()), ("encoder", t5()), ("decoder", DECODER)])
def test_batches_of_1_and_16_agree_in_single_precision(amortizer: str, encoder: Any) -> None:
    mac = tiny_mac(double=False, amortizer=amortizer, encoder=encoder)
    documents = texts(32, 2, 40)
    one = mac.adapt(documents, batch_size=1).tensor
    mac.bank = mac.new_bank()
    assert (mac.adapt(documents, batch_size=16).tensor - one).abs().max() < 1e-5


def test_what_was_learned_first_is_retained_exactly(mac: MAC) -> None:
    documents, _, questions = split(examples(8, seed=3))
    select = torch.arange(8).repeat_interleave(2)[:, None]
    mac.adapt(documents)
    phi, answers = mac.aggregate(questions, select=select), mac.answer(questions, select=select)
    mac.adapt(texts(100, seed=8))
    assert torch.equal(mac.aggregate(questions, select=select), phi)
    assert mac.answer(questions, select=select) == answers
    assert not torch.allclose(mac.aggregate(questions), phi)


def test_what_a_question_may_see_is_all_that_it_sees(mac: MAC) -> None:
    mac.adapt(DOCS)
    select = torch.tensor([[0, 2], [3, 1]])
    phi = mac.aggregate(QUESTIONS[:2], select=select)
    for i in range(2):
        torch.testing.assert_close(phi[i], mac.aggregate(QUESTIONS[i : i + 1], mac.bank.tensor[select[i]])[0])
    with pytest.raises(RematchError, match="exclude each other"):
        mac.aggregate(QUESTIONS[:2], select=select, group_size=2)


class Interrupted(Exception):
    pass


def stream(documents: list[str], until: int) -> Iterator[str]:
    yield from documents[:until]
    raise Interrupted


@pytest.mark.parametrize("policy", [None, "random_prune", "random_average", "nearest_average"])
def test_an_interrupted_stream_is_taken_up_again(mac: MAC, policy: Any, tmp_path: Path) -> None:
    documents = texts(30)
    options: dict[str, Any] = {"batch_size": 4, "ids": [f"d{i}" for i in range(30)]}
    options |= {"limit": 9, "policy": policy} if policy else {}

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    whole = mac.adapt(documents, **options, generator=generator())
    mac.bank = mac.new_bank()
    options |= {"checkpoint": tmp_path / "bank.safetensors", "checkpoint_every": 8}
    with pytest.raises(Interrupted):
        mac.adapt(stream(documents, 22), **options, generator=generator())
    assert (len(mac.bank), mac.bank.n_added) == (9 if policy else 20, 20)
    mac.bank = mac.new_bank()  # a new process
    resumed = mac.adapt(documents, **options, generator=generator())
    assert torch.equal(resumed.tensor, whole.tensor)
    assert resumed.ids == whole.ids
    assert len(whole) == (9 if policy else 30)
    assert torch.equal(
        mac.adapt(documents, **options, generator=generator()).tensor, whole.tensor
    )  # nothing left to do
    with pytest.raises(RematchError, match="the bank of other documents"):
        mac.adapt(texts(30, seed=5), **options)


@pytest.mark.parametrize("policy", ["random_prune", "random_average", "nearest_average"])
@pytest.mark.parametrize("seed", range(6))
def test_documents_that_recur_end_in_the_same_bank_too(seed: int, policy: Any, tmp_path: Path) -> None:
    """Equal entries are nearest to each other, all of them equally: the pair that is averaged must not depend on the file."""
    mac, rng = tiny_mac(seed=seed, double=False), np.random.default_rng(seed)
    documents = [texts(5, seed=seed)[i] for i in rng.integers(5, size=24)]
    options: dict[str, Any] = {"limit": 8, "policy": policy, "batch_size": 1}
    torch.manual_seed(seed)  # what a policy draws from where no generator is given
    whole = mac.adapt(documents, **options)
    mac.bank, end = mac.new_bank(), torch.get_rng_state()
    options |= {"checkpoint": tmp_path / "bank.safetensors", "checkpoint_every": 1}
    torch.manual_seed(seed)
    with pytest.raises(Interrupted):
        mac.adapt(stream(documents, 17), **options)
    mac.bank = mac.new_bank()
    torch.manual_seed(100)
    resumed = mac.adapt(documents, **options)
    assert resumed.ids == whole.ids
    assert torch.equal(resumed.tensor, whole.tensor)
    if policy != "nearest_average":
        assert torch.equal(torch.get_rng_state(), end)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": 5}, "with limit: 4, and not 5"),
        ({"limit": None}, "with limit: 4, and not None"),
        ({"policy": "random_average"}, "with policy: nearest_average, and not random_average"),
        ({"n_tokens": 4}, "with amortizer: [0-9a-f]{16}, and not [0-9a-f]{16}"),
        ({"max_document": 6}, "with max_document: 32, and not 6"),
        ({"trained": True}, "with amortizer: [0-9a-f]{16}, and not [0-9a-f]{16}"),
    ],
)
def test_a_checkpoint_is_of_its_networks_and_its_limit(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    documents, sizes = texts(8), {"max_document": 32}
    options: dict[str, Any] = {"limit": 4, "checkpoint": tmp_path / "bank.safetensors"}
    kept = tiny_mac(**sizes).adapt(documents, **options).tensor
    mac = tiny_mac(**(sizes | {name: change[name] for name in change if name in ("n_tokens", "max_document")}))
    if "trained" in change:
        with torch.no_grad():
            mac.amortizer.mlps.bias2[0, 0] += 1e-3
    with pytest.raises(RematchError, match=f"is the bank of another run, {message}; remove it to start anew"):
        mac.adapt(documents, **(options | {name: change[name] for name in change if name in ("limit", "policy")}))
    assert not len(mac.bank)
    same = tiny_mac(**sizes)
    with torch.no_grad():
        same.modulation.expansion.mlps.bias2[0, 0] += 1  # no entry depends on it
    assert torch.equal(same.adapt(documents, **options).tensor, kept)


def test_a_bank_of_no_stream_is_no_checkpoint(mac: MAC, tmp_path: Path) -> None:
    mac.adapt(DOCS).save(tmp_path / "bank.safetensors")
    with pytest.raises(RematchError, match="a bank that says nothing of a stream"):
        mac.adapt(DOCS, checkpoint=tmp_path / "bank.safetensors")
    (tmp_path / "text").write_text("no bank")
    with pytest.raises(RematchError, match="no memory bank can be read"):
        mac.adapt(DOCS, checkpoint=tmp_path / "text")


def test_without_a_checkpoint_the_bank_says_where_to_go_on(mac: MAC) -> None:
    documents = texts(10)
    whole = mac.adapt(documents, batch_size=3).tensor
    mac.bank = mac.new_bank()
    with pytest.raises(Interrupted):
        mac.adapt(stream(documents, 8), batch_size=3)
    assert mac.bank.n_added == 6
    assert torch.equal(mac.adapt(documents[mac.bank.n_added :], batch_size=3).tensor, whole)


def test_a_limited_bank_is_limited_after_every_document(mac: MAC) -> None:
    documents = texts(12)
    mac.adapt(documents, limit=5, policy="nearest_average", batch_size=16)
    other = MemoryBank(3, 16, torch.float64)
    for document in documents:
        with torch.no_grad():
            other.add(mac.amortize([document])).limit(5, "nearest_average")
    torch.testing.assert_close(mac.bank.tensor, other.tensor)
    assert mac.bank.ids == other.ids


def test_a_long_stream_shows_its_progress(mac: MAC, capsys: pytest.CaptureFixture[str]) -> None:
    mac.adapt(texts(3), progress=True)
    assert "3/3" in capsys.readouterr().err
    mac.adapt(iter(texts(3)))
    assert capsys.readouterr().err == ""
    assert len(mac.bank) == 6


# -- prefixes and LoRA ------------------------------------------------------------------------------------------------


def reference_logits(lm: Any, ids: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One layer, one row: attention over given keys and values (heads, P, head_dim) followed by the tokens' own."""
    n, p, config = ids.shape[1], keys.shape[1], lm.config
    heads, head_dim = config.num_attention_heads, keys.shape[2]
    positions = torch.arange(n)[None] + p

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.view(n, -1, head_dim).transpose(0, 1) for x in (q, k, v))
        if config.model_type == "llama":
            cos, sin = lm.model.rotary_emb(k, positions)

            def rotate(x: Tensor) -> Tensor:
                half = torch.cat([-x[..., head_dim // 2 :], x[..., : head_dim // 2]], -1)
                return x * cos[0] + half * sin[0]

            q, k = rotate(q), rotate(k)
        k, v = torch.cat([keys, k], 1), torch.cat([values, v], 1)
        k, v = (x.repeat_interleave(heads // len(x), 0) for x in (k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(head_dim)
        visible = torch.arange(p + n)[None] <= torch.arange(n)[:, None] + p
        weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
        return (weights @ v).transpose(0, 1).reshape(n, -1)

    if config.model_type == "gpt2":
        body, block = lm.transformer, lm.transformer.h[0]
        x = body.wte(ids[0]) + body.wpe(positions[0])
        x = x + block.attn.c_proj(attend(*block.attn.c_attn(block.ln_1(x)).chunk(3, -1)))
        return lm.lm_head(body.ln_f(x + block.mlp(block.ln_2(x))))
    body, layer = lm.model, lm.model.layers[0]
    x = body.embed_tokens(ids[0])
    normed, own = layer.input_layernorm(x), layer.self_attn
    x = x + own.o_proj(attend(own.q_proj(normed), own.k_proj(normed), own.v_proj(normed)))
    return lm.lm_head(body.norm(x + layer.mlp(layer.post_attention_layernorm(x))))


@pytest.mark.parametrize("lm", LMS)
def test_prefixes_are_keys_and_values_that_every_token_attends_to(lm: str) -> None:
    mac = tiny_mac(LMS[lm](n_layers=1))
    phi = torch.randn(2, 3, 16, dtype=torch.float64)
    keys, values = mac.modulation(phi)[0]
    pairs = [QAPair("w1 w2 w3", "w4 w5"), QAPair("w6", "w7")]
    qa = encode_pairs(tokenizer(), pairs)
    total = 0.0
    for i, (n_question, n_answer) in enumerate(((3, 3), (1, 2))):
        ids = qa.input_ids[i : i + 1, : n_question + n_answer]
        logits = reference_logits(mac.lm, ids, keys[i], values[i])
        total += F.cross_entropy(logits[n_question - 1 : -1], ids[0, n_question:], reduction="sum")
    torch.testing.assert_close(mac.qa_loss(phi, qa), total / 5, rtol=1e-6, atol=0)
    with torch.no_grad():
        assert (qa_loss(mac.lm, qa) - total / 5).abs() > 1e-4


def greedy(mac: MAC, phi: Tensor, question: str, n: int) -> str:
    """Every token from one forward pass over all that is before it."""
    words = tokenizer()(question)["input_ids"]
    found: list[int] = []
    for _ in range(n):
        ids = torch.tensor([[*words, *found]])
        with torch.no_grad(), mac.modulation.steer(mac.lm, phi) as cache:
            mask = torch.ones(1, ids.shape[1] + (cache.get_seq_length() if cache else 0))
            token = int(mac.lm(ids, past_key_values=cache, attention_mask=mask).logits[0, -1].argmax())
        if token == 1:
            break
        found.append(token)
    return str(tokenizer().decode(found, skip_special_tokens=True))


@pytest.mark.parametrize("lm", LMS)
@pytest.mark.parametrize("modulation", ["prefix", "lora"])
def test_answers_are_those_of_uncached_generation(lm: str, modulation: str) -> None:
    mac = tiny_mac(LMS[lm](), modulation=modulation)
    documents, _, questions = split(examples(6))
    questions += ["w1", "w2 w3 w4 w5 w6 w7"]  # unequal lengths: padded on the left in one batch
    mac.adapt(documents)
    answers = mac.answer(questions, max_new_tokens=5)
    phi = mac.aggregate(questions).detach()
    assert answers == [greedy(mac, phi[i : i + 1], question, 5) for i, question in enumerate(questions)]
    assert answers == mac.answer(questions, max_new_tokens=5, batch_size=3)
    assert mac.answer(questions, max_new_tokens=5, beams=Beams(2)) == [
        answer for question in questions for answer in mac.answer([question], max_new_tokens=5, beams=Beams(2))
    ]
    other = mac.bank
    mac.bank = mac.new_bank()
    assert mac.answer(questions, other, max_new_tokens=5) == answers
    assert mac.answer(questions, other.tensor, max_new_tokens=5) == answers
    assert not mac.bank.tensor.numel()


def test_lora_adds_low_rank_maps_to_queries_and_values() -> None:
    for lm in (gpt2().double(), llama(head_dim=6).double()):
        modulation: Any = LoRAModulation(lm.config, n_tokens=3, rank=2, d_hidden=8).double()
        phi, width = torch.randn(2, 3, 16, dtype=torch.float64), 16
        factors = modulation(phi)
        expanded = modulation.expansion(phi)
        assert factors.shape[:5] == (2, 2, 2, 2, 2)
        for l, m, f, i in itertools.product(range(2), repeat=4):  # noqa: E741
            assert torch.equal(factors[l, m, f, :, i], expanded[:, ((2 * l + m) * 2 + f) * 2 + i])
        x = torch.randn(4, 5, width, dtype=torch.float64)  # two rows (beams) a question
        for layer, maps in enumerate(query_value_maps(lm)):
            for module in {module for module, _ in maps}:
                before = module(x)
                with torch.no_grad(), modulation.steer(lm, phi) as cache:
                    assert cache is None
                    change = module(x) - before
                wanted = torch.zeros_like(before)
                for m, (changed, first) in enumerate(maps):
                    if changed is module:
                        n_out = modulation.widths[m]
                        for row in range(4):
                            a, b = factors[layer, m, :, row // 2]
                            wanted[row, :, first : first + n_out] += x[row] @ a.T[:width] @ b[:, :n_out] / width
                torch.testing.assert_close(change, wanted)
                assert torch.equal(module(x), before)
    with pytest.raises(RematchError, match="LoRA modulations have no prefixes"):
        tiny_mac(modulation="lora").prefixes(phi)


def test_lora_needs_a_model_that_it_knows() -> None:
    lm = gpt2()
    lm.config.num_hidden_layers = 3
    with pytest.raises(RematchError, match="GPT2LMHeadModel"):
        query_value_maps(lm)


def test_the_papers_number_of_prefix_tokens() -> None:
    for n_layers, n_tokens, n_targets in ((6, 12, 24), (36, 24, 144), (48, 24, 192), (32, 24, 128)):
        config = GPT2Config(n_layer=n_layers, n_embd=8, n_head=2)
        modulation = PrefixModulation(config, n_tokens, d_hidden=2)
        assert len(modulation.expansion.source) == n_targets


# -- asking -----------------------------------------------------------------------------------------------------------


def test_grouped_answers(mac: MAC) -> None:
    mac.adapt(texts(9))
    assert torch.equal(mac.aggregate(QUESTIONS, group_size=9), mac.aggregate(QUESTIONS))
    phi = mac.aggregate(QUESTIONS, group_size=2)
    each = torch.cat([mac.aggregate([question], group_size=2) for question in QUESTIONS])
    torch.testing.assert_close(phi, each)
    assert not torch.allclose(phi, mac.aggregate(QUESTIONS))
    assert len(mac.answer(QUESTIONS, group_size=2)) == len(QUESTIONS)


def test_attention_mass(mac: MAC) -> None:
    mac.adapt(DOCS)
    mass = mac.attention_mass(QUESTIONS, batch_size=3)
    assert mass.shape == (8, 2, 4)
    torch.testing.assert_close(mass.sum(-1), torch.ones(8, 2, dtype=torch.float64))
    torch.testing.assert_close(mass, mac.attention_mass(QUESTIONS))
    doubled = torch.cat([mac.bank.tensor, mac.bank.tensor[2:3]])
    again = mac.attention_mass(QUESTIONS, doubled)
    torch.testing.assert_close(again[:, 0, 2], again[:, 0, 4])
    assert mac.aggregator is not None
    weights: list[Tensor] = []
    mac.aggregator(mac.ask(QUESTIONS[5:6]), mac.bank.tensor, weights)
    by_hand = weights[1][0].mean((0, 1)).view(4, 3).sum(1)
    torch.testing.assert_close(mass[5, 1], by_hand)


def test_an_empty_bank_answers_nothing(mac: MAC) -> None:
    for ask in (mac.answer, mac.aggregate, mac.attention_mass):
        with pytest.raises(RematchError, match="the memory bank is empty"):
            ask(QUESTIONS)
    mac.adapt(DOCS)
    assert mac.answer([]) == []


def test_answering_leaves_the_mode_as_it_was() -> None:
    mac = tiny_mac(gpt2(), encoder=t5(dropout=0.5))
    mac.train()
    mac.adapt(DOCS)
    assert mac.training
    assert mac.amortizer.training
    first = mac.answer(QUESTIONS)
    assert mac.answer(QUESTIONS) == first  # no dropout
    assert not torch.equal(mac.amortize(DOCS), mac.amortize(DOCS))


def test_dropout_of_the_language_model_is_a_switch() -> None:
    config = gpt2().config.to_dict() | {"resid_pdrop": 0.5}
    for on in (True, False):
        mac = tiny_mac(type(gpt2())(GPT2Config(**config)), lm_dropout=on)
        assert not mac.lm.training
        mac.train()
        assert mac.lm.training == on
        assert torch.equal(mac.loss(DOCS, PAIRS), mac.loss(DOCS, PAIRS)) != on
        mac.eval()
        assert not mac.lm.training


def test_flops_of_a_step_and_of_adaptation(mac: MAC) -> None:
    batch = mac.encode(DOCS, PAIRS)
    counted = count_flops(mac, batch, backward=True)
    assert counted.backward > counted.forward > 0
    some = GradientMask(torch.tensor([True, False, False, False]))
    dropped = count_flops(mac, batch, some, backward=True)
    assert dropped.forward == counted.forward
    assert dropped.backward < counted.backward
    assert all(p.grad is None for _, p in mac.networks())
    documents = texts(2, 8, 8)
    one, two = (count_flops(mac.adapt, documents[:n]).forward for n in (1, 2))
    assert two == 2 * one > 0


def test_devices_and_types_follow(mac: MAC) -> None:
    assert mac.bank.dtype == torch.float64
    mac.float()
    assert mac.bank.dtype == torch.float32
    mac.adapt(DOCS)
    mac.double()
    assert mac.bank.dtype == torch.float32  # a bank that holds something stays as it is
    assert mac.aggregate(QUESTIONS).dtype == torch.float64
    half = tiny_mac(gpt2().to(torch.bfloat16), double=False)
    assert half.prefixes(torch.randn(1, 3, 16)).layers[0].keys.dtype == torch.bfloat16
    half.adapt(DOCS)
    assert half.bank.dtype == torch.float32
    assert len(half.answer(QUESTIONS)) == 8
    half.loss(DOCS, PAIRS).backward()


# -- making, saving, loading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"amortizer": "encoder"},
        {"amortizer": "decoder", "encoder": DECODER},
        {"aggregate": "none"},
        {"modulation": "lora", "question_encoder": t5(24)},
        {"equal_query_key": True, "max_document": 5},
    ],
)
@pytest.mark.parametrize("lm", LMS)
def test_a_saved_mac_comes_back(options: dict[str, Any], lm: str, tmp_path: Path) -> None:
    model: PreTrainedModel = LMS[lm]()
    model.save_pretrained(tmp_path / "lm")
    tokenizer().save_pretrained(tmp_path / "lm")
    torch.manual_seed(5)
    mac = MAC.from_lm(
        str(tmp_path / "lm"),
        **{"encoder": t5(), "n_tokens": 3, "n_blocks": 1, "n_heads": 2, "head_dim": 8, "expansion_width": 8} | options,
    )
    mac.save_pretrained(tmp_path / "mac")
    files = sorted(str(path.relative_to(tmp_path / "mac")) for path in (tmp_path / "mac").rglob("*") if path.is_file())
    assert "mac.safetensors" in files
    assert all(Path(file).suffix in (".json", ".safetensors", ".jinja", ".model", ".txt") for file in files)
    saved = load_file(tmp_path / "mac" / "mac.safetensors")
    assert set(saved) == {name for name, _ in mac.networks()}
    for again in (
        MAC.from_pretrained(tmp_path / "mac"),
        MAC.from_pretrained(tmp_path / "mac", model, tokenizer()),
        MAC.from_pretrained(tmp_path / "mac", str(tmp_path / "lm")),
    ):
        assert again.config == mac.config
        assert not again.training
        theirs = dict(again.networks())
        assert list(theirs) == [name for name, _ in mac.networks()]
        assert all(torch.equal(p, theirs[name]) and p.requires_grad for name, p in mac.networks())
        assert torch.equal(again.amortize(DOCS), mac.amortize(DOCS))
        assert torch.equal(again.loss(DOCS, PAIRS), mac.loss(DOCS, PAIRS))


def test_what_cannot_be_loaded_says_so(mac: MAC, tmp_path: Path) -> None:
    with pytest.raises(RematchError, match="no MAC can be read"):
        MAC.from_pretrained(tmp_path)
    mac.save_pretrained(tmp_path)
    with pytest.raises(RematchError, match="does not say where its language model is"):
        MAC.from_pretrained(tmp_path)
    with pytest.raises(RematchError, match="give the language model's tokenizer"):
        MAC.from_pretrained(tmp_path, gpt2())
    with pytest.raises(RematchError, match="no language model can be loaded"):
        MAC.from_pretrained(tmp_path, str(tmp_path / "nowhere"))
    with pytest.raises(RematchError, match="no fitting weights"):
        MAC.from_pretrained(tmp_path, gpt2(n_layers=3), tokenizer())
    weights = load_file(tmp_path / "mac.safetensors")
    del weights["amortizer.queries"]
    save_file(weights, tmp_path / "mac.safetensors")
    with pytest.raises(RematchError, match=r"no fitting weights for amortizer\.queries"):
        MAC.from_pretrained(tmp_path, gpt2(), tokenizer())
    settings = json.loads((tmp_path / "mac.json").read_text())
    assert settings["config"]["n_tokens"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modulation": "lore"}, "Did you mean 'lora'"),
        ({"aggregate": "mean"}, "allowed: attention, none"),
        ({"amortizer": "both"}, "allowed: encdec, encoder, decoder"),
        ({"embeddings": "theirs"}, "allowed: own, lm"),
        ({"embeddings": "lm", "encoder": t5(24)}, "cannot start an encoder's"),
    ],
)
def test_unknown_switches(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RematchError, match=message):
        tiny_mac(**options)


def test_an_encoder_given_as_a_model_is_copied_twice() -> None:
    from transformers import T5Model

    source = T5Model(t5())
    mac = tiny_mac(encoder=source)
    assert mac.question_encoder is not None
    tables = [m.shared.weight for m in (source, mac.amortizer.backbone, mac.question_encoder.backbone)]
    assert torch.equal(tables[1].float(), tables[0])
    assert torch.equal(tables[2].float(), tables[0])
    assert len({table.data_ptr() for table in tables}) == 3


def test_encoders_may_have_tokenizers_of_their_own(tmp_path: Path) -> None:
    from transformers import T5Model

    T5Model(t5()).save_pretrained(tmp_path)
    own = tokenizer()
    own.add_special_tokens({"additional_special_tokens": ["<mark>"]})
    own.save_pretrained(tmp_path)
    mac = tiny_mac(encoder=str(tmp_path))
    assert "<mark>" in mac.encoder_tokenizer.get_vocab()
    assert "<mark>" in mac.question_tokenizer.get_vocab()
    assert "<mark>" not in mac.tokenizer.get_vocab()
    given = tiny_mac(encoder=str(tmp_path), encoder_tokenizer=tokenizer(), question_tokenizer=tokenizer())
    assert "<mark>" not in given.encoder_tokenizer.get_vocab()
    assert "<mark>" not in given.question_tokenizer.get_vocab()


def test_documents_and_questions_are_cut(mac: MAC) -> None:
    short = tiny_mac(max_document=5, max_length=8, max_answer=3)
    long = " ".join(f"w{i}" for i in range(12))
    assert torch.equal(short.amortize([long]), short.amortize([" ".join(f"w{i}" for i in range(5))]))
    assert torch.equal(short.ask([long]), short.ask([" ".join(f"w{i}" for i in range(5))]))
    assert not torch.allclose(mac.amortize([long]), mac.amortize([" ".join(f"w{i}" for i in range(5))]))


@pytest.mark.parametrize("modulation", ["prefix", "lora"])
def test_the_likelihood_of_answers_under_modulations(modulation: str) -> None:
    mac = tiny_mac(modulation=modulation)
    phi = mac.aggregate(QUESTIONS, mac.amortize(DOCS))
    qa = mac.encode(DOCS, PAIRS).qa
    nll, n_tokens = mac.answer_nll(phi, qa)
    assert nll.shape == n_tokens.shape == (len(QUESTIONS),)
    torch.testing.assert_close(nll.sum() / n_tokens.sum(), mac.qa_loss(phi, qa))
    assert not torch.allclose(nll, answer_nll(mac.lm, qa)[0])


# -- prompts in place of the questions --------------------------------------------------------------------------------


@pytest.mark.parametrize("modulation", ["prefix", "lora"])
def test_prompts_equal_to_the_questions_change_nothing(modulation: str) -> None:
    mac = tiny_mac(modulation=modulation)
    mac.adapt(DOCS)
    assert torch.equal(mac.loss(DOCS, PAIRS, prompts=QUESTIONS), mac.loss(DOCS, PAIRS))
    for batch_size in (3, 64):
        answers = mac.answer(QUESTIONS, max_new_tokens=5, batch_size=batch_size, prompts=QUESTIONS)
        assert answers == mac.answer(QUESTIONS, max_new_tokens=5, batch_size=batch_size)


def test_other_prompts_change_the_answers_and_not_what_steers_them(mac: MAC, monkeypatch: pytest.MonkeyPatch) -> None:
    mac.adapt(DOCS)
    prompts = [f"{document} {question}" for document, question in zip(texts(8, seed=7), QUESTIONS, strict=True)]
    seen: list[Tensor] = []
    steer = mac.modulation.steer
    monkeypatch.setattr(mac.modulation, "steer", lambda lm, phi: seen.append(phi) or steer(lm, phi))
    plain, prompted = mac.loss(DOCS, PAIRS), mac.loss(DOCS, PAIRS, prompts=prompts)
    assert torch.equal(seen[0], seen[1])
    assert not torch.allclose(plain, prompted)
    answers = [mac.answer(QUESTIONS, max_new_tokens=5, batch_size=3, prompts=given) for given in (None, prompts)]
    assert len(seen) == 2 + 2 * 3
    assert all(torch.equal(first, second) for first, second in zip(seen[2:5], seen[5:], strict=True))
    assert answers[0] != answers[1]
    # Row by row: each question got its own prompt.
    phi = mac.aggregate(QUESTIONS).detach()
    assert answers[1] == [greedy(mac, phi[i : i + 1], prompt, 5) for i, prompt in enumerate(prompts)]
    flat = [pair for pairs in PAIRS for pair in pairs]
    qa = encode_pairs(tokenizer(), [QAPair(prompt, pair.answer) for prompt, pair in zip(prompts, flat, strict=True)])
    torch.testing.assert_close(prompted, mac.qa_loss(phi, qa))
    with pytest.raises(RematchError, match="8 questions and 7 prompts"):
        mac.loss(DOCS, PAIRS, prompts=prompts[:-1])
    with pytest.raises(RematchError, match="2 questions and 8 prompts"):
        mac.answer(QUESTIONS[:2], prompts=prompts)


def test_the_question_encoder_may_read_less_than_the_language_model() -> None:
    short = tiny_mac(max_length=20, max_answer=3, max_question=4)
    long = " ".join(f"w{i}" for i in range(12))
    assert torch.equal(short.ask([long]), short.ask(["w0 w1 w2 w3"]))
    assert not torch.allclose(short.ask([long]), short.ask(["w0 w1 w2"]))
    batch = short.encode(["w1 w2"], [QAPair(long, "w1")], [f"{long} w20"])
    assert batch.questions_mask.sum() == 4
    assert batch.qa.attention_mask.sum() == 13 + 2
    with pytest.raises(RematchError, match="max_question: 0; allowed: whole numbers from 1"):
        tiny_mac(max_question=0)
