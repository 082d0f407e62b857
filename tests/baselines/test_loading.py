"""MAC with language models and encoders that are loaded, in 4 bits where asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_mac import examples, gpt2, llama, t5, tiny_mac, tokenizer
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, BitsAndBytesConfig, T5Model

from baselines import loading
from baselines.loading import load_lm, product_flops, quantization
from methods.mac import MAC, Recipe, train
from methods.mac.amortizer import load_backbone
from rematch.errors import RematchError
from rematch.flops import count_flops

WIDTH = 64  # a block of 4-bit weights
SIZES: dict[str, Any] = {"n_tokens": 3, "n_blocks": 2, "n_heads": 2, "head_dim": 8, "expansion_width": 24}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def hub(tmp_path: Path) -> dict[str, str]:
    """Folders of a language model and of an encoder, with their tokenizers."""
    for name, model in (("lm", llama(width=WIDTH)), ("t5", T5Model(t5(WIDTH)))):
        model.save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
    return {name: str(tmp_path / name) for name in ("lm", "t5")}


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``from_pretrained`` is asked for, as on a machine with a GPU. The weights themselves are loaded as they are."""
    monkeypatch.setattr(loading, "find_spec", lambda name: name == "bitsandbytes")
    monkeypatch.setattr(loading, "_count_4bit_flops", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    calls: list[dict[str, Any]] = []
    for kind in (AutoModelForCausalLM, AutoModel):

        def load(source: str, real: Any = kind.from_pretrained, **options: Any) -> Any:
            calls.append({"source": source, **options})
            asked = options.pop("quantization_config", None)
            model = real(source, **options)
            if asked is not None:
                model.config.quantization_config = asked
            return model

        monkeypatch.setattr(kind, "from_pretrained", load)
    return calls


def check_nf4(call: dict[str, Any]) -> None:
    config = call["quantization_config"]
    assert isinstance(config, BitsAndBytesConfig)
    assert config.load_in_4bit
    assert not config.load_in_8bit
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant is False
    assert config.bnb_4bit_compute_dtype is torch.bfloat16
    assert call["dtype"] is torch.float32


def test_what_is_handed_over(hub: dict[str, str], handed_over: list[dict[str, Any]]) -> None:
    assert quantization(load_lm(hub["lm"]).config) is None
    assert quantization(load_lm(hub["lm"], "nf4").config) == "nf4"
    assert load_lm(hub["lm"], dtype=torch.bfloat16).dtype is torch.bfloat16
    load_lm(hub["lm"], "nf4", torch.bfloat16)
    load_backbone(hub["t5"], "encdec")
    load_backbone(hub["t5"], "encdec", "nf4")
    plain = {"use_safetensors": True}
    assert handed_over[0] == {"source": hub["lm"], **plain}
    check_nf4(handed_over[1])
    assert handed_over[2] == {"source": hub["lm"], "dtype": torch.bfloat16, **plain}
    assert handed_over[3]["dtype"] is torch.bfloat16
    assert handed_over[3]["quantization_config"].load_in_4bit
    assert handed_over[4] == {"source": hub["t5"], **plain}
    check_nf4(handed_over[5])


def test_language_model_and_encoders_are_quantized_apart(
    hub: dict[str, str], handed_over: list[dict[str, Any]]
) -> None:
    MAC.from_lm(hub["lm"], encoder=hub["t5"], quantize="nf4", **SIZES)
    MAC.from_lm(gpt2(width=WIDTH), tokenizer(), encoder=hub["t5"], quantize_encoders="nf4", **SIZES)
    assert ["quantization_config" in call for call in handed_over] == [True, False, False, True, True]
    assert MAC.from_lm(hub["lm"], encoder=t5(WIDTH), dtype=torch.float64, **SIZES).lm.dtype is torch.float64


def test_a_4_bit_model_is_saved_as_where_it_came_from(
    hub: dict[str, str], handed_over: list[dict[str, Any]], tmp_path: Path
) -> None:
    mac = MAC.from_lm(hub["lm"], encoder=hub["t5"], quantize="nf4", quantize_encoders="nf4", **SIZES)
    packed = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    mac.amortizer.backbone.packed = packed
    assert "amortizer.backbone.packed" in dict(mac.named_parameters())
    assert "amortizer.backbone.packed" not in dict(mac.networks())
    with torch.no_grad():
        mac.amortizer.backbone.shared.weight.add_(1.0)
    mac.save_pretrained(tmp_path / "mac")
    handed_over.clear()
    again = MAC.from_pretrained(tmp_path / "mac")
    assert [call["source"] for call in handed_over] == [hub["lm"], hub["t5"], hub["t5"]]
    for call in handed_over:
        check_nf4(call)
    assert torch.equal(again.amortizer.backbone.shared.weight, mac.amortizer.backbone.shared.weight)
    handed_over.clear()
    MAC.from_pretrained(tmp_path / "mac", mac.lm, tokenizer())  # a language model that is there is taken as it is
    assert [call["source"] for call in handed_over] == [hub["t5"], hub["t5"]]


def test_what_cannot_be_quantized(hub: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    unknown: Any = "int4"
    with pytest.raises(RematchError, match=r"quantize 'int4'.*nf4"):
        load_lm(hub["lm"], unknown)
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(RematchError, match=r"needs bitsandbytes: install it with pip install '.*\[gpu\]'"):
        load_lm(hub["lm"], "nf4")
    monkeypatch.setattr(loading, "find_spec", lambda name: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RematchError, match="needs a GPU"):
        load_backbone(hub["t5"], "encdec", "nf4")
    for source in (t5(), T5Model(t5())):
        with pytest.raises(RematchError, match="by its id or folder"):
            load_backbone(source, "encdec", "nf4")
        with pytest.raises(RematchError, match="by its id or folder"):
            tiny_mac(encoder=source, quantize_encoders="nf4")
    for options in ({"quantize": "nf4"}, {"dtype": torch.float32}):
        with pytest.raises(RematchError, match="give that as lm"):
            tiny_mac(**options)


def test_4_bit_products_cost_what_they_compute() -> None:
    assert product_flops((3, 5, 16), (64, 1), (8, 16)) == 2 * 3 * 5 * 16 * 8


def test_in_4_bits(hub: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real thing, where bitsandbytes is installed; it also runs without a GPU, slowly."""
    pytest.importorskip("bitsandbytes")
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        options = loading.quantized("nf4")
    monkeypatch.setattr(loading, "quantized", lambda quantize: options if quantize else {})
    monkeypatch.setattr("methods.mac.amortizer.quantized", loading.quantized)
    plain = MAC.from_lm(hub["lm"], encoder=hub["t5"], **SIZES)
    mac = MAC.from_lm(hub["lm"], encoder=hub["t5"], quantize="nf4", quantize_encoders="nf4", **SIZES)
    given = examples(4)
    batch = mac.encode(*zip(*given, strict=True))
    assert count_flops(mac, batch).total == count_flops(plain, batch).total
    packed = [name for name, p in mac.named_parameters() if not p.is_floating_point()]
    assert packed
    assert all(name.startswith("lm.") or ".backbone." in name for name in packed)
    assert not set(packed) & set(dict(mac.networks()))
    before = {name: p.clone() for name, p in mac.named_parameters()}
    train(mac, given, Recipe(steps=2, documents=4, learning_rate=1e-2), 0)
    for name, p in mac.named_parameters():
        assert torch.equal(p, before[name]) == (name.startswith("lm.") or name in packed), name
    documents, questions = [text for text, _ in given], [pair.question for _, pairs in given for pair in pairs]
    mac.adapt(documents)
    mac.save_pretrained(tmp_path / "mac")
    again = MAC.from_pretrained(tmp_path / "mac")
    assert torch.equal(again.adapt(documents).tensor, mac.bank.tensor)
    assert again.answer(questions) == mac.answer(questions)
