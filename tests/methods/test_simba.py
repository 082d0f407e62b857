"""Simba's invariants, on tiny random models: what is kept, what that depends on, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

from baselines import pruning
from baselines.dense import Dense
from baselines.mamba import install
from baselines.stack import block_forward, head
from methods.simba import Simba, sparsify
from methods.simba.model import LOWEST_RATIO
from rematch.errors import RematchError
from rematch.flops import count_flops

VOCABULARY, LAYERS, N_CONTEXT, N_CONTINUATION = 61, 4, 40, 9
CRITERIA = ["global", "random", "recency", "dt", "x_norm", "residual_norm", "local"]
SCHEDULES = ["linear", "uniform", "reversed", "step"]
VARIANTS: list[dict[str, Any]] = [
    *({"criterion": criterion} for criterion in CRITERIA),
    *({"schedule": schedule} for schedule in SCHEDULES[1:]),
    {"reduce": "l2"},
    {"reduce": "mean_abs"},
    {"signed": True},
    {"project": True},
    {"criterion": "local", "project": True},
    {"prune_every": 2},
    {"schedule": "reversed", "prune_every": 2},
    {"merge": True},
    {"r_last": 0.3, "r_first": 0.8},
]


def variant_name(options: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in options.items())


def mamba() -> MambaForCausalLM:
    torch.manual_seed(1)
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=24, state_size=5, num_hidden_layers=LAYERS)
    model = MambaForCausalLM(config).eval()
    with torch.no_grad():  # larger steps than at initialisation: the state forgets within the context
        for block in model.backbone.layers:
            block.mixer.dt_proj.bias += 1.5
    return model


def mamba2() -> Mamba2ForCausalLM:
    torch.manual_seed(1)
    config = Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=24,
        state_size=5,
        num_heads=6,
        head_dim=8,
        n_groups=2,
        chunk_size=16,
        num_hidden_layers=LAYERS,
    )
    model = Mamba2ForCausalLM(config).eval()
    for block in model.backbone.layers:
        torch.nn.init.uniform_(block.mixer.norm.weight, 0.2, 2.0)
    return model


@pytest.fixture(scope="module", params=[mamba, mamba2])
def model(request: pytest.FixtureRequest) -> Any:
    return request.param()


def tokens(batch: int = 3, length: int = N_CONTEXT + N_CONTINUATION, seed: int = 0) -> Tensor:
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def same(first: list[list[Tensor]], second: list[list[Tensor]]) -> bool:
    return all(torch.equal(a, b) for rows in zip(first, second, strict=True) for a, b in zip(*rows, strict=True))


# -- 1: the limit --------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_keeping_everything_is_the_dense_model_bit_for_bit(model: Any, schedule: str) -> None:
    dense = Dense()
    dense.prepare(model)
    expected = dense.logits(tokens(), N_CONTINUATION)
    assert torch.equal(sparsify(model, r_last=1.0, schedule=schedule).logits(tokens(), N_CONTINUATION), expected)


@torch.no_grad()
def test_keeping_everything_is_transformers_model_with_the_fast_scan_bit_for_bit() -> None:
    actual = sparsify(mamba(), r_last=1.0).logits(tokens(), N_CONTINUATION)
    expected = install(mamba())(tokens()[:, :-1], use_cache=False, logits_to_keep=N_CONTINUATION).logits
    assert torch.equal(actual, expected)


# -- 4 and 5: the kept sets ----------------------------------------------------------------------------------------


def test_the_strongest_tokens_stay_of_the_worked_example() -> None:
    """dy = (1, 1/e, 1): of three tokens two stay, the last and the first."""
    kept = pruning.keep_top(torch.tensor([[1.0, 0.3679, 1.0]]), [2])
    assert kept.tolist() == [[True, False, True]]


@pytest.mark.parametrize("options", VARIANTS, ids=variant_name)
def test_kept_tokens(model: Any, options: dict[str, Any]) -> None:
    simba = sparsify(model, **options)
    counts = simba.keep_counts(N_CONTEXT)
    assert counts[0] == N_CONTEXT
    layers = simba.kept(tokens(), N_CONTINUATION)
    assert len(layers) == LAYERS
    assert min(counts) < N_CONTEXT
    below: list[Tensor] | None = None
    for count, rows in zip(counts, layers, strict=True):
        for row, columns in enumerate(rows):
            assert len(columns) == count
            assert torch.all(columns[1:] > columns[:-1])
            assert int(columns[-1]) == N_CONTEXT - 1
            if below is not None and simba.schedule != "reversed":
                assert set(columns.tolist()) <= set(below[row].tolist())
        below = rows


@pytest.mark.parametrize("options", VARIANTS, ids=variant_name)
def test_rows_do_not_know_of_each_other(model: Any, options: dict[str, Any]) -> None:
    simba, ids = sparsify(model, **options), tokens()
    whole = simba.kept(ids, N_CONTINUATION)
    order = torch.tensor([2, 0, 1])
    permuted = simba.kept(ids[order], N_CONTINUATION)
    assert same(permuted, [[rows[i] for i in order] for rows in whole])
    alone = simba.kept(ids[1:2], N_CONTINUATION)
    assert same(alone, [[rows[1]] for rows in whole])


@pytest.mark.parametrize("options", VARIANTS, ids=variant_name)
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(model: Any, options: dict[str, Any]) -> None:
    simba = sparsify(model, **options)
    lengths = [N_CONTEXT, 7, 23]
    alone = [tokens(1, length + N_CONTINUATION, seed) for seed, length in enumerate(lengths)]
    longest = max(lengths) + 5
    padded = torch.zeros(3, longest + N_CONTINUATION, dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, ids in enumerate(alone):
        padded[row, -ids.shape[1] :] = ids[0]
        mask[row, -ids.shape[1] :] = 1
    kept = simba.kept(padded, N_CONTINUATION, mask)
    logits = simba.logits(padded, N_CONTINUATION, mask)
    for row, ids in enumerate(alone):
        shift = longest - lengths[row]
        assert same([[rows[row] - shift] for rows in kept], simba.kept(ids, N_CONTINUATION))
        torch.testing.assert_close(logits[row : row + 1], simba.logits(ids, N_CONTINUATION), atol=1e-5, rtol=1e-4)


def test_a_mask_without_padding_changes_nothing(model: Any) -> None:
    simba = sparsify(model)
    with torch.no_grad():
        masked = simba.logits(tokens(), N_CONTINUATION, torch.ones_like(tokens()))
        assert torch.equal(masked, simba.logits(tokens(), N_CONTINUATION))


# -- 6: causality --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", VARIANTS, ids=variant_name)
def test_what_comes_after_the_context_moves_no_kept_set(model: Any, options: dict[str, Any]) -> None:
    simba, ids = sparsify(model, **options), tokens()
    other = ids.clone()
    other[:, N_CONTEXT:] = tokens(3, N_CONTINUATION, seed=9)
    assert same(simba.kept(ids, N_CONTINUATION), simba.kept(other, N_CONTINUATION))
    # Nor does its length.
    assert same(simba.kept(ids, N_CONTINUATION), simba.kept(ids[:, : N_CONTEXT + 2], 2))


@pytest.mark.parametrize("options", [v for v in VARIANTS if v.get("criterion") != "recency"], ids=variant_name)
def test_the_context_decides_what_is_kept(model: Any, options: dict[str, Any]) -> None:
    simba, ids = sparsify(model, **options), tokens()
    assert not same(simba.kept(ids, N_CONTINUATION), simba.kept(tokens(seed=5), N_CONTINUATION))


@torch.no_grad()
@pytest.mark.parametrize("options", VARIANTS, ids=variant_name)
def test_no_prediction_sees_what_it_predicts(model: Any, options: dict[str, Any]) -> None:
    simba, ids = sparsify(model, **options), tokens()
    before = simba.logits(ids, N_CONTINUATION)
    for target in range(N_CONTINUATION):
        other = ids.clone()
        other[:, N_CONTEXT + target :] = tokens(3, N_CONTINUATION - target, seed=9)
        after = simba.logits(other, N_CONTINUATION)
        torch.testing.assert_close(after[:, : target + 1], before[:, : target + 1])


# -- the criterion in place ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize(
    ("options", "score"),
    [
        ({}, lambda change: change.abs().amax(-1)),
        ({"reduce": "l2"}, lambda change: change.square().sum(-1)),
        ({"reduce": "mean_abs"}, lambda change: change.abs().sum(-1)),
        ({"signed": True}, lambda change: change.amax(-1)),
    ],
    ids=["max", "l2", "mean_abs", "signed"],
)
@torch.no_grad()
def test_the_second_layer_reads_the_tokens_whose_loss_would_change_the_output_most(
    model: Any, options: dict[str, Any], score: Callable[[Tensor], Tensor], project: bool
) -> None:
    """By brute force on the first block: the recurrence once without each token's input."""
    ids = tokens(1)
    simba = sparsify(model, project=project, **options)
    block = model.backbone.layers[0]
    _, output = block_forward(block, model.get_input_embeddings()(ids[:, :N_CONTEXT]))
    x, dt, A, B, C, z = output.trace
    if A.dim() == 1:  # Mamba-2: write heads and groups out for every channel
        per_head = x.shape[-1] // len(A)
        dt, A = dt.repeat_interleave(per_head, -1), A.repeat_interleave(per_head)[:, None].expand(-1, B.shape[-1])
        B, C = (t.repeat_interleave(x.shape[-1] // t.shape[2], dim=2) for t in (B, C))
    else:
        B, C = (t[:, :, None].expand(-1, -1, x.shape[-1], -1) for t in (B, C))

    state = torch.zeros(N_CONTEXT, *A.shape)  # without the token of that number; the last one has them all
    for t in range(N_CONTEXT):
        state = torch.exp(dt[:, t, :, None] * A) * state
        with_it = (torch.arange(N_CONTEXT) != t) | (t == N_CONTEXT - 1)
        state[with_it] += dt[:, t, :, None] * B[:, t] * x[:, t, :, None]
    last_output = (state * C[:, -1]).sum(-1)
    change = last_output[-1] - last_output[:-1]
    if project:  # what the block hands to the residual stream; the scale of Mamba-2's norm is common to all tokens
        change = change * torch.nn.functional.silu(z[:, -1])
        change = change * block.mixer.norm.weight if hasattr(block.mixer, "norm") else change
        change = change @ block.mixer.out_proj.weight.T
    scores = score(change)
    count = simba.keep_counts(N_CONTEXT)[1]
    expected = sorted([*scores.topk(count - 1).indices.tolist(), N_CONTEXT - 1])
    assert simba.kept(ids, N_CONTINUATION)[1][0].tolist() == expected


def test_recency_keeps_the_end() -> None:
    simba = sparsify(mamba(), criterion="recency")
    for count, rows in zip(simba.keep_counts(N_CONTEXT), simba.kept(tokens(), N_CONTINUATION), strict=True):
        assert rows[0].tolist() == list(range(N_CONTEXT - count, N_CONTEXT))


def test_the_seed_moves_the_random_criterion_and_nothing_else() -> None:
    def kept(**options: Any) -> list[list[Tensor]]:
        return sparsify(mamba(), **options).kept(tokens(), N_CONTINUATION)

    assert same(kept(criterion="random", seed=1), kept(criterion="random", seed=1))
    assert not same(kept(criterion="random", seed=1), kept(criterion="random", seed=2))
    assert same(kept(seed=1), kept(seed=2))


@pytest.mark.parametrize("options", [v for v in VARIANTS if v != {"criterion": "global"}], ids=variant_name)
@torch.no_grad()
def test_no_switch_is_dead(options: dict[str, Any]) -> None:
    model = mamba()
    reference = dict(list(options.items())[:-1])
    changed = sparsify(model, **options).logits(tokens(), N_CONTINUATION)
    assert not torch.equal(changed, sparsify(model, **reference).logits(tokens(), N_CONTINUATION))


@torch.no_grad()
def test_reversed_brings_pruned_tokens_back_with_the_residual_stream_they_left_with() -> None:
    """One pruning and one return: tokens that skip the second layer meet the third one as the first left them."""
    model, ids = mamba(), tokens(2)
    model.backbone.layers = model.backbone.layers[:3]
    simba = sparsify(model, schedule="reversed", r_last=0.2)
    _, second, third = simba.kept(ids, N_CONTINUATION)
    after_first, _ = block_forward(model.backbone.layers[0], model.get_input_embeddings()(ids[:, :-1]))
    end = torch.arange(N_CONTEXT, N_CONTEXT + N_CONTINUATION - 1)
    for row in range(2):
        stream = after_first[row : row + 1].clone()
        for block, columns in zip(model.backbone.layers[1:], (second[row], third[row]), strict=True):
            read = torch.cat([columns, end])
            stream[:, read] = block_forward(block, stream[:, read])[0]
        expected = head(model, stream[:, -N_CONTINUATION:])
        actual = simba.logits(ids[row : row + 1], N_CONTINUATION)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


# -- 7: FLOPs ------------------------------------------------------------------------------------------------------


def measured(simba: Simba) -> float:
    with torch.no_grad():
        return count_flops(lambda: simba.logits(tokens(1), N_CONTINUATION)).total


def test_flops_are_those_of_the_tokens_that_each_layer_reads() -> None:
    model = mamba()
    config: Any = model.config
    width, inner, state, rank = config.hidden_size, config.intermediate_size, config.state_size, config.time_step_rank
    per_token = 6 * width * inner + 2 * inner * (config.conv_kernel + 2 * rank + 2 * state) + 9 * inner * state
    simba = sparsify(model)
    counts = simba.keep_counts(N_CONTEXT)
    blocks = sum(count + N_CONTINUATION - 1 for count in counts) * per_token
    scores = sum(counts[:-1]) * 4 * inner * state
    predictions = N_CONTINUATION * 2 * width * VOCABULARY
    assert measured(simba) == pytest.approx(blocks + scores + predictions, rel=0.02)


@pytest.mark.parametrize("share", [1.0, 0.85, 0.6])
@pytest.mark.parametrize(
    "options", [{}, {"criterion": "random"}, *VARIANTS[7:10], {"project": True}, {"merge": True}], ids=variant_name
)
def test_a_target_is_met(options: dict[str, Any], share: float) -> None:
    model = mamba()
    dense = Dense()
    dense.prepare(model)
    target = share * count_flops(lambda: dense.logits(tokens(1), N_CONTINUATION)).total
    calls = []

    def measure(simba: Simba) -> float:
        calls.append(simba)
        return measured(simba)

    simba = Simba(**options)
    simba.prepare(model, target, measure)
    assert measured(simba) == pytest.approx(target, rel=0.02)
    assert len(calls) <= 12


def test_a_low_target_lowers_the_first_ratio_too() -> None:
    model = mamba()
    floor = Simba(r_last=LOWEST_RATIO)
    floor.prepare(model)
    simba = Simba()
    simba.prepare(model, 0.9 * measured(floor), measured)
    assert simba.r_last == LOWEST_RATIO
    assert simba.r_first < 1
    assert simba.notes()["r_first"] == simba.r_first
    assert measured(simba) == pytest.approx(0.9 * measured(floor), rel=0.02)


def test_a_target_out_of_reach_is_an_error() -> None:
    with pytest.raises(RematchError, match="cannot be met"):
        Simba().prepare(mamba(), 1.0, measured)


# -- 8: generation -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"schedule": "reversed"}, {"merge": True}], ids=variant_name)
def test_decoding_step_by_step_is_one_pass_with_the_same_kept_sets(model: Any, options: dict[str, Any]) -> None:
    simba = sparsify(model, **options)
    n_new = 6
    prompt = tokens(2, N_CONTEXT)
    generated = simba.generate(prompt, n_new)
    assert generated.shape == (2, N_CONTEXT + n_new)
    assert torch.equal(generated[:, :N_CONTEXT], prompt)
    # One pass over prompt and answer prunes the prompt alike, as the answer is its protected continuation.
    logits = simba.logits(generated, n_new)
    best = logits.max(-1).values
    chosen = logits.gather(-1, generated[:, -n_new:, None]).squeeze(-1)
    torch.testing.assert_close(chosen, best, atol=1e-5, rtol=0)


@torch.no_grad()
def test_states_after_the_prompt_continue_it(model: Any) -> None:
    """Logits of decoding, fed with the true continuation, against one pass: 1e-5."""
    simba, ids = sparsify(model), tokens(2)
    run = simba._run(ids[:, :N_CONTEXT], None, N_CONTEXT)
    logits = [head(model, run.hidden[:, -1:])]
    for t in range(N_CONTEXT, N_CONTEXT + N_CONTINUATION - 1):
        hidden = model.get_input_embeddings()(ids[:, t : t + 1])
        for layer, block in enumerate(model.backbone.layers):
            hidden, output = block_forward(block, hidden, None, run.states[layer])
            run.states[layer] = output.conv_state, output.ssm_state
        logits.append(head(model, hidden))
    torch.testing.assert_close(torch.cat(logits, 1), simba.logits(ids, N_CONTINUATION), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_padded_prompt_generates_as_it_does_alone(model: Any) -> None:
    simba, prompt = sparsify(model), tokens(2, N_CONTEXT)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), prompt[:1, 4:]], dim=1)
    mask = (torch.arange(N_CONTEXT) >= 4).long()[None]
    both = simba.generate(torch.cat([padded, prompt[1:]]), 5, torch.cat([mask, torch.ones_like(mask)]))
    assert torch.equal(both[0, 4:], simba.generate(prompt[:1, 4:], 5)[0])
    assert torch.equal(both[1], simba.generate(prompt[1:], 5)[0])


# -- fine-tuning ---------------------------------------------------------------------------------------------------


def test_the_loss_trains_every_parameter_through_the_kept_tokens(model: Any) -> None:
    simba, ids = sparsify(model), tokens()
    model.train()
    loss = simba.loss(ids, N_CONTINUATION)
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    model.eval()
    with torch.no_grad():
        log = simba.logits(ids, N_CONTINUATION).log_softmax(-1)
        expected = -log.gather(-1, ids[:, -N_CONTINUATION:, None]).mean()
    torch.testing.assert_close(loss.detach(), expected)


def test_a_pruned_token_gets_no_gradient_from_the_layers_above() -> None:
    """A dropped token acts on the loss only through layers that read it; the choice itself passes no gradient."""
    model: Any = mamba()
    simba, ids = sparsify(model, criterion="recency", r_last=0.1), tokens(1)
    seen: list[Tensor] = []
    handle = model.backbone.layers[1].norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    loss = simba.loss(ids, N_CONTINUATION)
    handle.remove()
    (gradient,) = torch.autograd.grad(loss, seen[0])
    assert seen[0].shape[1] == simba.keep_counts(N_CONTEXT)[1] + N_CONTINUATION - 1
    assert bool((gradient != 0).any(-1).all())


def test_a_few_steps_of_adamw_lower_the_loss() -> None:
    model, ids = mamba(), tokens(4)
    simba = sparsify(model)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = simba.loss(ids, N_CONTINUATION)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1


# -- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "best"}, "criterion must be one of global"),
        ({"schedule": "cubic"}, "schedule must be one of linear"),
        ({"r_last": 0.0}, "r_last"),
        ({"r_first": 0.5, "r_last": 0.6}, "r_first"),
        ({"prune_every": 0}, "prune_every"),
        ({"criterion": "dt", "reduce": "l2"}, "say nothing"),
        ({"criterion": "random", "signed": True}, "say nothing"),
        ({"reduce": "l2", "signed": True}, "signed says nothing"),
        ({"schedule": "reversed", "merge": True}, "merge says nothing"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Simba(**options)


def test_inputs_that_make_no_sense() -> None:
    simba, ids = sparsify(mamba()), tokens()
    length = ids.shape[1]
    for n_continuation in (0, length):
        with pytest.raises(ValueError, match="n_continuation"):
            simba.logits(ids, n_continuation)
    mask = torch.ones_like(ids)
    mask[:, -1] = 0
    mask[:, -2] = 0
    with pytest.raises(ValueError, match="on the left"):
        simba.logits(ids, N_CONTINUATION, mask)
    mask = (torch.arange(length) >= N_CONTEXT).long().expand_as(ids)
    with pytest.raises(ValueError, match="needs a context token"):
        simba.logits(ids, N_CONTINUATION, mask)
