"""A pretrained Mamba that prunes its context on the way up the layers.

Only the context is pruned, and by what is known at its last token T: were T taken from the tokens whose predictions are
scored, later tokens would decide which earlier ones survive. The continuation after T is protected and runs through all
layers on top of the pruned context.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from baselines import pruning, stack
from baselines.mamba import Trace
from baselines.pruning import Tokens
from methods.simba.impact import global_impact
from methods.simba.schedule import keep_count, keep_ratios
from rematch.budget import solve_knob

LOWEST_RATIO = 0.02
"""Where ``prepare`` stops lowering r_last and lowers r_first instead."""


@dataclass
class Simba:
    """Simba on a ``MambaForCausalLM`` or ``Mamba2ForCausalLM`` of transformers; the defaults are the paper's.

    A fine-tuned Simba is this same class on a base that was trained with ``loss``, so there is no option for it.

    Attributes:
        criterion: what ranks the tokens. ``global`` is Simba's; its rivals are ``random`` (a draw for each row from
            ``seed`` and its tokens), ``recency``, ``dt`` (mean step size), ``x_norm`` (norm of the recurrence's input),
            ``residual_norm`` (norm of the residual stream after the block) and ``local`` (the impact of a token on the
            output at its own position).
        schedule: how many tokens each layer reads; see ``methods.simba.schedule``.
        r_first: keep ratio that the schedule starts from, in (0, 1], at least r_last.
        r_last: keep ratio that the schedule ends at, in (0, 1]. The knob that meets a FLOPs target.
        reduce: how the impact on all channels becomes one score. Only for ``global`` and ``local``.
        signed: the largest impact counts, not the largest magnitude. Only for ``reduce: max``.
        project: measure the impact after the gate and the output projection, in d_model. Only for ``global`` and
            ``local``. (The gated norm of Mamba-2 enters with its weight; its scale at T is one factor for all tokens.)
        prune_every: layers from one pruning to the next.
        merge: add a pruned token's residual stream to its next kept neighbour instead of dropping it (ours). Not for
            ``reversed``, which drops no token for good.
        seed: of the ``random`` criterion.
    """

    criterion: Literal["global", "random", "recency", "dt", "x_norm", "residual_norm", "local"] = "global"
    schedule: Literal["linear", "uniform", "reversed", "step"] = "linear"
    r_first: float = 1.0
    r_last: float = 0.1
    reduce: Literal["max", "l2", "mean_abs"] = "max"
    signed: bool = False
    project: bool = False
    prune_every: PositiveInt = 1
    merge: bool = False
    seed: int = 0
    model: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                allowed = ", ".join(get_args(hint))
                raise ValueError(f"{name} must be one of {allowed}, not {getattr(self, name)!r}")
        if not 0 < self.r_last <= self.r_first <= 1:
            raise ValueError(f"0 < r_last <= r_first <= 1 is needed, not r_last={self.r_last}, r_first={self.r_first}")
        if self.prune_every < 1:
            raise ValueError(f"prune_every must be at least 1, not {self.prune_every}")
        if self.criterion not in ("global", "local") and (self.reduce != "max" or self.signed or self.project):
            raise ValueError(f"reduce, signed and project say nothing for criterion {self.criterion!r}")
        if self.signed and self.reduce != "max":
            raise ValueError(f"signed says nothing for reduce {self.reduce!r}")
        if self.merge and self.schedule == "reversed":
            raise ValueError("merge says nothing for schedule 'reversed', which drops no token for good")

    def prepare(self, model: Any, target: float | None = None, measure: Callable[[Simba], float] | None = None) -> None:
        """Adopt the model in eval mode and, for a target, turn the knob until the measured FLOPs meet it.

        The knob is r_last, between 0.02 and r_first. Where even 0.02 costs more than the target, r_last stays there and
        r_first is lowered too, down to 0.02; the first layer reads everything all the same.

        Args:
            target: FLOPs of one inference item, or None to take the options as they are.
            measure: counts these FLOPs for this contender as it stands.

        Raises:
            ValueError: the model is no Mamba, or a target came without a measure.
            RematchError: the target is out of reach.
        """
        self.model = stack.adopt(model)
        if target is None:
            return
        if measure is None:
            raise ValueError("a target needs a measure")

        @functools.cache
        def flops(r_first: float, r_last: float) -> float:
            self.r_first, self.r_last = r_first, r_last
            return measure(self)

        r_first, r_last = self.r_first, LOWEST_RATIO
        if flops(r_first, LOWEST_RATIO) <= target:
            r_last = solve_knob(lambda ratio: flops(r_first, ratio), target, LOWEST_RATIO, r_first).value
        else:
            r_first = solve_knob(lambda ratio: flops(ratio, LOWEST_RATIO), target, LOWEST_RATIO, r_first).value
        self.r_first, self.r_last = r_first, r_last

    def logits(self, input_ids: Tensor, n_continuation: int, attention_mask: Tensor | None = None) -> Tensor:
        """Predictions (batch, n_continuation, vocabulary), float, of the last n_continuation of (batch, L) tokens.

        The first comes from T = L - n_continuation - 1, the last token of the context. Differentiable; which tokens
        stay is a constant to the gradient.

        Args:
            attention_mask: (batch, L), 0 for padding, which must be on the left.

        Raises:
            ValueError: no context is left, padding is not on the left, or a row has no context token.
        """
        ids, mask = stack.split(input_ids, n_continuation, attention_mask)
        hidden = self._run(ids, mask, input_ids.shape[1] - n_continuation).hidden
        return stack.head(self.model, hidden[:, -n_continuation:])

    def loss(self, input_ids: Tensor, n_continuation: int, attention_mask: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats of the last n_continuation tokens, for a caller that trains ``self.model``."""
        return stack.next_token_loss(self.logits(input_ids, n_continuation, attention_mask), input_ids)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, max_new_tokens: int, attention_mask: Tensor | None = None) -> Tensor:
        """Continue a prompt (batch, L) greedily: (batch, L + max_new_tokens).

        The prompt is pruned once; then each layer decodes from its own convolution and recurrence states, at the cost
        of a dense model. Nothing stops at an end-of-text token.

        Raises:
            ValueError: padding is not on the left, or a row is nothing but padding.
        """
        length = input_ids.shape[1]
        mask = stack.check_padding(None if attention_mask is None else attention_mask.bool(), length)
        run = self._run(input_ids, mask, length)
        hidden, states = run.hidden[:, -1:], run.states
        for _ in range(max_new_tokens):
            token = stack.head(self.model, hidden).argmax(-1)
            input_ids = torch.cat([input_ids, token], dim=1)
            hidden = self.model.get_input_embeddings()(token)
            for layer, block in enumerate(self.model.backbone.layers):
                hidden, output = stack.block_forward(block, hidden, None, states[layer])
                states[layer] = output.conv_state, output.ssm_state
        return input_ids

    @torch.no_grad()
    def kept(self, input_ids: Tensor, n_continuation: int, attention_mask: Tensor | None = None) -> list[list[Tensor]]:
        """The context tokens that each layer reads: for each layer and row, their columns of the input, ascending."""
        ids, mask = stack.split(input_ids, n_continuation, attention_mask)
        layers = self._run(ids, mask, input_ids.shape[1] - n_continuation).kept
        return [
            list(columns) if real is None else [row[own] for row, own in zip(columns, real, strict=True)]
            for columns, real in layers
        ]

    def notes(self) -> dict[str, float | str]:
        """The knobs, as turned, and the mean keep ratio of the layers."""
        ratios = self._ratios()
        return {"r_first": self.r_first, "r_last": self.r_last, "keep_ratio": sum(ratios) / len(ratios)}

    def keep_counts(self, n_context: int) -> list[int]:
        """n_l: how many of n_context tokens each layer reads."""
        return [keep_count(ratio, n_context) for ratio in self._ratios()]

    def _ratios(self) -> list[float]:
        n_layers = len(self.model.backbone.layers)
        return keep_ratios(self.schedule, n_layers, self.r_first, self.r_last, self.prune_every)

    def _run(self, ids: Tensor, mask: Tensor | None, n_context: int) -> _Run:
        """All blocks over (batch, length) tokens, of which the first n_context are context.

        n_0 is a row's own number of real tokens, not the padded length: a row keeps what it would keep alone.
        """
        batch, length = ids.shape
        lengths = [n_context] * batch if mask is None else mask[:, :n_context].sum(1).tolist()
        counts = list(zip(*(self.keep_counts(n) for n in lengths), strict=True))
        columns = torch.arange(length, device=ids.device).expand(batch, -1)
        tokens = Tokens(self.model.get_input_embeddings()(ids), columns, mask, length - n_context)
        fixed = self._fixed_scores(ids[:, :n_context], tokens)
        dense: tuple[Tokens, Tensor] | None = None  # of ``reversed``: all tokens, and their scores
        run = _Run()
        for layer, block in enumerate(self.model.backbone.layers):
            run.kept.append((tokens.positions[:, : tokens.width], tokens.context_mask))
            hidden, output = stack.block_forward(block, tokens.hidden, tokens.mask)
            tokens = replace(tokens, hidden=hidden)
            run.states.append((output.conv_state.clone(), output.ssm_state))
            if layer + 1 == len(counts) or counts[layer + 1] == counts[layer]:
                continue
            wanted = list(counts[layer + 1])
            if self.schedule == "reversed":
                dense = (tokens, self._scores(tokens, block, output.trace, fixed)) if dense is None else dense
                dense = dense[0].put(tokens), dense[1]
                source, scores = dense
            else:
                source, scores = tokens, self._scores(tokens, block, output.trace, fixed)
            kept = pruning.keep_top(scores, wanted, source.context_mask)
            tokens = source.keep(kept, wanted, pruning.merge_into_next(source, kept) if self.merge else None)
        run.hidden = tokens.hidden
        return run

    def _fixed_scores(self, context: Tensor, tokens: Tokens) -> Tensor | None:
        """Scores by column of the input, (batch, n_context), for the criteria that look at no block."""
        if self.criterion == "random":
            return pruning.random_scores(context, tokens.context_mask, self.seed)
        if self.criterion == "recency":
            return tokens.positions[:, : tokens.width].float()
        return None

    @torch.no_grad()
    def _scores(self, tokens: Tokens, block: Any, trace: Trace, fixed: Tensor | None) -> Tensor:
        """How much each context token is worth keeping, (batch, W). Of the trace nothing after T is read."""
        width = tokens.width
        if fixed is not None:
            return fixed.gather(1, tokens.positions[:, :width])
        if self.criterion == "residual_norm":
            return tokens.hidden[:, :width].float().norm(dim=-1)
        if self.criterion == "global":
            return self._reduce(global_impact(trace, width), trace.z[:, width - 1 : width], block.mixer)
        trace = pruning.first(trace, width)
        if self.criterion == "local":
            return self._reduce(pruning.local_impact(trace), trace.z, block.mixer)
        return pruning.step_size(trace) if self.criterion == "dt" else pruning.input_norm(trace)

    def _reduce(self, dy: Tensor, z: Tensor, mixer: Any) -> Tensor:
        """s(t), (batch, W), of the impact (batch, W, E) on an output that is gated by z."""
        if self.project:
            gate = F.silu(z) * mixer.norm.weight if hasattr(mixer, "norm") else F.silu(z)
            dy = F.linear((dy * gate).to(mixer.out_proj.weight.dtype), mixer.out_proj.weight).float()
        if self.reduce == "l2":
            return dy.norm(dim=-1)
        if self.reduce == "mean_abs":
            return dy.abs().mean(-1)
        return dy.amax(-1) if self.signed else torch.linalg.vector_norm(dy, torch.inf, dim=-1)


@dataclass
class _Run:
    """What came out of all blocks; by layer, the columns read with their mask, and the convolution's and scan's states."""

    hidden: Tensor = field(default_factory=lambda: torch.empty(0))
    kept: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    states: list[tuple[Tensor, Tensor]] = field(default_factory=list)


def sparsify(model: Any, **options: Any) -> Simba:
    """Simba on a ``MambaForCausalLM`` or ``Mamba2ForCausalLM``; options are the fields of ``Simba``.

    Raises:
        ValueError: the model is no Mamba, or an option has a value that is not allowed.
    """
    simba = Simba(**options)
    simba.prepare(model)
    return simba
