"""The fast Mamba against transformers' own slow path: same numbers, wherever a model is used."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, MambaConfig, MambaForCausalLM, MambaModel

from baselines.mamba import install, mixer_forward, uninstall

VARIANTS = {
    "default": {},
    "biases everywhere": {"use_bias": True},
    "no bias in the convolution": {"use_conv_bias": False},
    "another activation": {"hidden_act": "gelu"},
    "wide kernel, odd state": {"conv_kernel": 5, "state_size": 3, "expand": 3},
}
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def make(**options) -> MambaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    config = MambaConfig(**sizes | options, pad_token_id=0, eos_token_id=None, bos_token_id=None)
    model = MambaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "dt_proj" not in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def tokens(batch: int = 3, length: int = 21, seed: int = 0) -> Tensor:
    return torch.randint(1, 40, (batch, length), generator=torch.Generator().manual_seed(seed))


def left_padding(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The rows shortened to different lengths and padded on the left, and the mask."""
    mask = torch.ones_like(ids)
    for row in range(len(ids)):
        mask[row, : 3 * row] = 0
    return ids * mask, mask


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request) -> MambaForCausalLM:
    return make(**request.param)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_logits_are_transformers(model: MambaForCausalLM) -> None:
    with torch.no_grad():
        expected = model(tokens()).logits
        torch.testing.assert_close(install(model)(tokens()).logits, expected, **TOLERANCE)


def test_training_gradients_are_transformers(model: MambaForCausalLM) -> None:
    def gradients() -> dict[str, Tensor]:
        model.train().zero_grad()
        model(tokens(), labels=tokens()).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    expected = gradients()
    install(model)
    for name, gradient in gradients().items():
        assert (gradient - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max(), name


@pytest.mark.parametrize("prompt", [1, 3, 12])
def test_prefill_then_decoding_is_transformers(model: MambaForCausalLM, prompt: int) -> None:
    """A prompt shorter than the convolution's kernel is a case of its own."""

    @torch.no_grad()
    def decode() -> Tensor:
        result = model(tokens()[:, :prompt], use_cache=True)
        logits = [result.logits]
        for t in range(prompt, tokens().shape[1]):
            result = model(tokens()[:, t : t + 1], cache_params=result.cache_params, use_cache=True)
            logits.append(result.logits)
        return torch.cat(logits, dim=1)

    expected = decode()
    torch.testing.assert_close(decode_fast := _installed(model, decode), expected, **TOLERANCE)
    with torch.no_grad():
        torch.testing.assert_close(decode_fast, model(tokens()).logits, **TOLERANCE)


def test_a_cache_begun_by_transformers_is_continued() -> None:
    model = make()
    with torch.no_grad():
        expected = model(tokens()).logits[:, -1:]
        cache = model(tokens()[:, :-1], use_cache=True).cache_params
        got = install(model)(tokens()[:, -1:], cache_params=cache, use_cache=True).logits
    torch.testing.assert_close(got, expected, **TOLERANCE)


def test_a_cached_segment_of_several_tokens_continues_the_state() -> None:
    model = install(make())
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        parts = [model(part, cache_params=cache, use_cache=True).logits for part in tokens().split(5, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens()).logits, **TOLERANCE)


def test_left_padding_is_transformers() -> None:
    model = make(use_conv_bias=True)
    ids, mask = left_padding(tokens())
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        torch.testing.assert_close(install(model)(ids, attention_mask=mask).logits, expected, **TOLERANCE)


def test_padding_on_either_side_influences_nothing(model: MambaForCausalLM) -> None:
    install(model)
    with torch.no_grad():
        alone = model(tokens(), use_cache=True)
        padding = torch.zeros_like(tokens())[:, :6]
        ids = torch.cat([padding, tokens(), padding], dim=1)
        padded = model(ids, attention_mask=(ids != 0).long(), use_cache=True)
    torch.testing.assert_close(padded.logits[:, 6:-6], alone.logits, **TOLERANCE)
    for layer in range(model.config.num_hidden_layers):
        states = [result.cache_params.get_recurrent_state(layer) for result in (padded, alone)]
        torch.testing.assert_close(*states, **TOLERANCE)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}])
def test_generation_from_padded_prompts_is_transformers(settings: dict[str, int]) -> None:
    model = make()
    ids, mask = left_padding(tokens())
    options = {"attention_mask": mask, "max_new_tokens": 15, "do_sample": False} | settings
    expected = model.generate(ids, **options)
    assert expected.shape == (3, 36)
    assert torch.equal(install(model).generate(ids, **options), expected)


def test_bfloat16_model_is_as_close_to_float32_as_transformers() -> None:
    model = make()
    with torch.no_grad():
        exact = model(tokens()).logits
        model.bfloat16()
        theirs = model(tokens()).logits
        ours = install(model)(tokens()).logits
    assert ours.dtype == theirs.dtype
    assert (ours - exact).abs().max() <= 1.5 * (theirs - exact).abs().max()
    model.train()(tokens(), labels=tokens()).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_small_steps_survive_bfloat16() -> None:
    """A bias near -7 leaves bfloat16 about 2 significant digits of dt_raw + bias, and dt is its exponential."""
    mixer = make().bfloat16().backbone.layers[0].mixer
    nn.init.constant_(mixer.dt_proj.bias, -7)
    hidden_states = torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    dt = mixer_forward(mixer, hidden_states).trace.dt
    exact = mixer_forward(mixer.float(), hidden_states.float()).trace.dt
    assert dt.dtype == torch.float32
    torch.testing.assert_close(dt, exact, rtol=5e-3, atol=0)


def test_float64_model_stays_float64() -> None:
    model = make().double()
    mixer = model.backbone.layers[0].mixer
    result = mixer_forward(mixer, torch.randn(2, 7, 16, dtype=torch.float64))
    assert {tensor.dtype for tensor in (result.out, result.ssm_state, *result.trace)} == {torch.float64}


def test_segments_equal_one_pass(model: MambaForCausalLM) -> None:
    mixer = model.backbone.layers[0].mixer
    hidden_states = torch.randn(2, 19, 16, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 19)
    mask[1, :4] = 0
    whole = mixer_forward(mixer, hidden_states, mask)
    outputs, conv_state, ssm_state = [], None, None
    for part in (slice(0, 1), slice(1, 3), slice(3, 12), slice(12, 19)):
        result = mixer_forward(mixer, hidden_states[:, part], mask[:, part], conv_state, ssm_state)
        outputs.append(result.out)
        conv_state, ssm_state = result.conv_state, result.ssm_state
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole.out, **TOLERANCE)
    torch.testing.assert_close(conv_state, whole.conv_state, **TOLERANCE)
    torch.testing.assert_close(ssm_state, whole.ssm_state, **TOLERANCE)


def test_gradients_flow_across_segments() -> None:
    mixer = make().backbone.layers[0].mixer
    hidden_states = torch.randn(2, 19, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    (expected,) = torch.autograd.grad(mixer_forward(mixer, hidden_states).out[:, 10:].square().sum(), hidden_states)
    head = mixer_forward(mixer, hidden_states[:, :10])
    tail = mixer_forward(mixer, hidden_states[:, 10:], None, head.conv_state, head.ssm_state)
    (got,) = torch.autograd.grad(tail.out.square().sum(), hidden_states)
    assert expected[:, :10].abs().max() > 0
    torch.testing.assert_close(got, expected, **TOLERANCE)


def test_trace_reproduces_the_output_and_the_state() -> None:
    from baselines.mamba.reference import selective_scan_reference

    mixer = make().backbone.layers[0].mixer
    mask = torch.ones(2, 9)
    mask[0, :3] = 0
    result = mixer_forward(mixer, torch.randn(2, 9, 16), mask)
    x, dt, A, B, C, z = result.trace
    assert (x.shape, dt.shape, z.shape) == ((2, 9, 32),) * 3
    assert (A.shape, B.shape, C.shape) == ((32, 4), (2, 9, 4), (2, 9, 4))
    assert (A < 0).all()
    assert all(tensor[0, :3].abs().max() == 0 for tensor in (x, dt, B, C))
    y, last_state = selective_scan_reference(x, dt, A, B, C, mixer.D, z)
    torch.testing.assert_close(mixer.out_proj(y), result.out, **TOLERANCE)
    torch.testing.assert_close(last_state, result.ssm_state, **TOLERANCE)


def test_the_same_run_gives_the_same_bits() -> None:
    model = install(make()).train()
    runs = []
    for _ in range(2):
        model.zero_grad()
        model(tokens(), labels=tokens()).loss.backward()
        runs.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_gradient_checkpointing_changes_nothing() -> None:
    model = install(make()).train()
    model(tokens(), labels=tokens()).loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.activation_checkpointing_enable()
    model(tokens(), labels=tokens()).loss.backward()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), expected, strict=True))


def test_install_works_on_the_bare_model_and_is_reversible() -> None:
    model = MambaModel(make().config).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert install(install(model)) is model
    assert all("forward" in layer.mixer.__dict__ for layer in model.layers)
    assert uninstall(uninstall(model)) is model
    assert not any("forward" in layer.mixer.__dict__ for layer in model.layers)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_copy_of_an_installed_model_uses_its_own_weights() -> None:
    model = install(make())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(tokens()).logits
        twin.backbone.layers[0].mixer.out_proj.weight.zero_()
        assert torch.equal(model(tokens()).logits, expected)
        assert not torch.allclose(twin(tokens()).logits, expected)


def test_install_refuses_a_model_without_mamba_blocks() -> None:
    with pytest.raises(ValueError, match="Linear has no MambaMixer"):
        install(nn.Linear(2, 2))


def _installed(model: MambaForCausalLM, function) -> Tensor:
    install(model)
    return function()
