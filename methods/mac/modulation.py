"""From an aggregated memory to what steers the frozen language model: prefixes of keys and values, or LoRA factors.

Prefixes are P-tuning v2's: P extra keys and values in every layer. In the paper LoRA is an ablation (table 4).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from methods.mac.token_mlps import TokenMLPs
from rematch.errors import RematchError


class Expansion(nn.Module):
    """T tokens to A tokens: each repeated in place, then one MLP per target token (official code).

    With r = A // T and rem = A % T the first rem tokens are repeated r + 1 times and the others r times.

    Args:
        n_tokens: T.
        n_targets: A, at least T.
        width: d, of the tokens.
        d_hidden: of the MLPs, 768 in the paper.
        d_out: of the target tokens.

    Raises:
        RematchError: A < T, with which tokens would be dropped.
    """

    source: Tensor

    def __init__(self, n_tokens: int, n_targets: int, width: int, d_hidden: int, d_out: int) -> None:
        super().__init__()
        if n_targets < n_tokens:
            raise RematchError(
                f"MAC: n_tokens: {n_tokens}; allowed: 1 to {n_targets}, of which the modulation of this language model is made "
                "(prefixes: 2 x layers x n_prefix, LoRA: 4 x layers x lora_rank)"
            )
        repeats, longer = divmod(n_targets, n_tokens)
        counts = torch.tensor([repeats + (t < longer) for t in range(n_tokens)])
        self.register_buffer("source", torch.repeat_interleave(torch.arange(n_tokens), counts), persistent=False)
        self.mlps = TokenMLPs(n_targets, width, d_hidden, d_out, F.gelu)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T, d) -> (N, A, d_out)."""
        return self.mlps(tokens[:, self.source])


class PrefixModulation(nn.Module):
    """Keys and values of P positions before the text, in every layer of the language model.

    Expanded token e[p * 2L + 2l + s] is layer l's key (s = 0) or value (s = 1) at prefix position p, split into heads.
    Under grouped-query attention a token is as wide as the key/value heads together.

    Args:
        config: of the language model.
        n_tokens: T.
        n_positions: P, 2 in the official code.
        d_hidden: of the expansion.
    """

    def __init__(self, config: PreTrainedConfig, n_tokens: int, n_positions: int = 2, d_hidden: int = 768) -> None:
        super().__init__()
        self.n_layers, self.n_positions = int(config.num_hidden_layers), n_positions
        self.n_heads, self.head_dim = key_value_heads(config)
        self.expansion = Expansion(
            n_tokens, 2 * self.n_layers * n_positions, config.hidden_size, d_hidden, self.n_heads * self.head_dim
        )

    def forward(self, phi: Tensor) -> Tensor:
        """(N, T, d) -> keys and values (L, 2, N, heads, P, head_dim)."""
        shape = (self.n_positions, self.n_layers, 2, self.n_heads, self.head_dim)
        return self.expansion(phi).unflatten(1, shape[:3]).unflatten(-1, shape[3:]).permute(2, 3, 0, 4, 1, 5)

    def cache(self, phi: Tensor, dtype: torch.dtype | None = None) -> DynamicCache:
        """The prefixes of modulations (N, T, d) as a cache that a transformers causal language model reads."""
        layers = self(phi).to(dtype or phi.dtype)
        return DynamicCache(ddp_cache_data=[(keys, values) for keys, values in layers])

    @contextlib.contextmanager
    def steer(self, lm: PreTrainedModel, phi: Tensor) -> Iterator[DynamicCache]:
        """The prefixes to be read by ``lm``, which needs nothing else."""
        yield self.cache(phi, lm.dtype)


class LoRAModulation(nn.Module):
    """Low-rank changes of every layer's query and value maps, other ones for every question.

    The paper gives no details; ours: y + B^T A x / d for input x (d,), with A (rank, d) and B (rank, width of y) read off
    the expanded tokens e[((2l + m) * 2 + f) * rank + i] for layer l, map m (0 query, 1 value), factor f (0 A, 1 B) and
    rank i. Wider tokens are cut. Dividing by d lets training start close to the unchanged language model.

    Args:
        config: of the language model.
        n_tokens: T.
        rank: of the change.
        d_hidden: of the expansion.
    """

    def __init__(self, config: PreTrainedConfig, n_tokens: int, rank: int = 4, d_hidden: int = 768) -> None:
        super().__init__()
        self.n_layers, self.rank = int(config.num_hidden_layers), rank
        n_heads, head_dim = key_value_heads(config)
        self.d_in = int(config.hidden_size)
        self.widths = int(config.num_attention_heads) * head_dim, n_heads * head_dim
        self.expansion = Expansion(
            n_tokens, 4 * self.n_layers * rank, self.d_in, d_hidden, max(self.d_in, *self.widths)
        )

    def forward(self, phi: Tensor) -> Tensor:
        """(N, T, d) -> factors (L, 2 maps, 2 factors, N, rank, width)."""
        return self.expansion(phi).unflatten(1, (self.n_layers, 2, 2, self.rank)).permute(1, 2, 3, 0, 4, 5)

    @contextlib.contextmanager
    def steer(self, lm: PreTrainedModel, phi: Tensor) -> Iterator[None]:
        """Change ``lm`` for as long as the block runs. Rows of a larger batch (beams) belong to questions in order."""
        factors, handles = self(phi).to(lm.dtype), []
        for layer, maps in enumerate(query_value_maps(lm)):
            for which, (module, first) in enumerate(maps):
                a = factors[layer, which, 0, ..., : self.d_in]
                b = factors[layer, which, 1, ..., : self.widths[which]]
                handles.append(module.register_forward_hook(functools.partial(_add_low_rank, a, b, first)))
        try:
            yield None
        finally:
            for handle in handles:
                handle.remove()


def _add_low_rank(a: Tensor, b: Tensor, first: int, module: nn.Module, args: tuple[Tensor], y: Tensor) -> Tensor:
    """y (rows, n, out) with x A^T B / d added to its columns from ``first`` on; a and b are (N, rank, width)."""
    x = args[0]
    a, b = (factor.repeat_interleave(len(x) // len(factor), dim=0) for factor in (a, b))
    delta = x @ a.transpose(1, 2) @ b / x.shape[-1]
    return y + F.pad(delta, (first, y.shape[-1] - first - delta.shape[-1]))


def key_value_heads(config: PreTrainedConfig) -> tuple[int, int]:
    """How many key/value heads a language model has, and their width."""
    n_heads = int(config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    return int(getattr(config, "num_key_value_heads", None) or n_heads), int(head_dim)


def query_value_maps(lm: PreTrainedModel) -> list[tuple[tuple[nn.Module, int], tuple[nn.Module, int]]]:
    """For every layer the modules that make queries and values, each with the column at which these start.

    Raises:
        RematchError: a language model whose maps are not known.
    """
    n_layers, named = int(lm.config.num_hidden_layers), dict(lm.named_modules())
    fused, queries, values = (
        [module for name, module in named.items() if name.endswith(end)]
        for end in (".attn.c_attn", ".q_proj", ".v_proj")
    )
    if len(fused) == n_layers:  # GPT-2: queries, keys and values side by side
        return [((module, 0), (module, 2 * int(lm.config.hidden_size))) for module in fused]
    if len(queries) == len(values) == n_layers:
        return [((query, 0), (value, 0)) for query, value in zip(queries, values, strict=True)]
    raise RematchError(
        f"LoRA modulations know the attention of GPT-2 (c_attn) and Llama (q_proj, v_proj), not {type(lm).__name__}'s"
    )
