"""Token reduction for state-space models by merging and pruning (Zhan et al., EMNLP 2024, arXiv 2410.14725).

After a few layers the tokens are parted into a less and a more important half; each of the less important is matched
with the most similar of the others, and the best matched of them are removed: merged into their partner in the hidden
branch (the block's output), pruned from the residual one.

Inference on our part, where the published description leaves it open: a token's importance is the mean over channels of
its block output clipped at 0 from below; similarity is the cosine of block outputs; a partner takes the average of its
own output and of all that are merged into it; the sites are spaced evenly over the depth. As for every contender here
only the context is reduced, its last token always stays, and kept tokens stay in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from baselines import stack
from baselines.pruning import Tokens
from rematch.budget import solve_knob


@dataclass
class TokenReduction:
    """Bipartite merging and pruning of context tokens in a Mamba.

    Attributes:
        ratio: share of the tokens that each site removes, 0 to 0.5 (half of them have a partner to go to). The knob
            that meets a FLOPs target.
        n_sites: number of layers after which tokens are removed.
    """

    ratio: float = 0.2
    n_sites: PositiveInt = 4
    model: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 0.5:
            raise ValueError(f"ratio must be 0 to 0.5, not {self.ratio}")
        if self.n_sites < 1:
            raise ValueError(f"n_sites must be at least 1, not {self.n_sites}")

    def prepare(
        self, model: Any, target: float | None = None, measure: Callable[[TokenReduction], float] | None = None
    ) -> None:
        """Adopt a ``MambaForCausalLM`` or ``Mamba2ForCausalLM`` and turn the ratio until the FLOPs meet the target.

        Where removing half of the tokens at every site still costs more than the target, sites are added one by one.

        Raises:
            ValueError: another model, more sites than it has layers between, or a target without a measure.
            RematchError: the target is out of reach.
        """
        self.model = stack.adopt(model)
        most = len(model.backbone.layers) - 1
        if self.n_sites > most:
            raise ValueError(f"n_sites must be at most {most} for {most + 1} layers, not {self.n_sites}")
        if target is None:
            return
        if measure is None:
            raise ValueError("a target needs a measure")

        def flops(ratio: float) -> float:
            self.ratio = ratio
            return measure(self)

        while self.n_sites < most and flops(0.5) > target:
            self.n_sites += 1
        self.ratio = solve_knob(flops, target, 0.0, 0.5, increasing=False).value

    def logits(self, input_ids: Tensor, n_continuation: int, attention_mask: Tensor | None = None) -> Tensor:
        """As ``Dense.logits``, on the reduced context."""
        ids, mask = stack.split(input_ids, n_continuation, attention_mask)
        batch, length = ids.shape
        n_context = length + 1 - n_continuation
        lengths = [n_context] * batch if mask is None else mask[:, :n_context].sum(1).tolist()
        counts = list(zip(*(self.keep_counts(n) for n in lengths), strict=True))
        columns = torch.arange(length, device=ids.device).expand(batch, -1)
        tokens = Tokens(self.model.get_input_embeddings()(ids), columns, mask, length - n_context)
        for layer, block in enumerate(self.model.backbone.layers):
            hidden, output = stack.block_forward(block, tokens.hidden, tokens.mask)
            tokens = replace(tokens, hidden=hidden)
            if layer + 1 < len(counts) and counts[layer + 1] != counts[layer]:
                tokens = _reduce(tokens, output.out, list(counts[layer + 1]))
        return stack.head(self.model, tokens.hidden[:, -n_continuation:])

    def notes(self) -> dict[str, float | str]:
        """The knobs, as turned."""
        return {"ratio": self.ratio, "n_sites": self.n_sites}

    def keep_counts(self, n_context: int) -> list[int]:
        """How many of n_context tokens each layer reads."""
        n_layers = len(self.model.backbone.layers)
        sites = {round(site * n_layers / (self.n_sites + 1)) for site in range(1, self.n_sites + 1)}
        counts = [n_context]
        for layer in range(1, n_layers):
            removed = min(round(self.ratio * counts[-1]), counts[-1] // 2) if layer in sites else 0
            counts.append(counts[-1] - removed)
        return counts


def _reduce(tokens: Tokens, out: Tensor, counts: list[int]) -> Tokens:
    """The tokens less those that were merged away, ``counts`` of each row left.

    Args:
        out: the block's output, (batch, length, d_model), already part of ``tokens.hidden``.
    """
    mask = tokens.context_mask
    kept = torch.ones(out.shape[0], tokens.width, dtype=torch.bool, device=out.device) if mask is None else mask.clone()
    change = torch.zeros_like(out)
    for row, count in enumerate(counts):
        real = kept[row].nonzero().flatten()
        branch = out[row, real]
        gone, partner = _match(branch.detach(), len(real) - count)
        kept[row, real[gone]] = False
        size = torch.ones_like(branch[:, :1]).index_add(0, partner, torch.ones_like(branch[gone, :1]))
        mean = branch.index_add(0, partner, branch[gone]) / size
        change[row, real] = mean - branch
    return tokens.keep(kept, counts, tokens.hidden + change)


def _match(branch: Tensor, n_removed: int) -> tuple[Tensor, Tensor]:
    """Which of (n, d_model) block outputs go, and into which they are merged: two index vectors (n_removed,).

    The last one never goes. Equal ones are told apart by position, the earlier first.
    """
    importance = branch.float().clamp(min=0).mean(-1)
    importance[-1] = torch.inf
    order = importance.argsort(stable=True)
    less, more = order[: len(order) // 2].sort().values, order[len(order) // 2 :].sort().values
    unit = F.normalize(branch.float(), dim=-1)
    similarity, partner = (unit[less] @ unit[more].T).max(dim=1)
    best = similarity.argsort(descending=True, stable=True)[:n_removed]
    return less[best], more[partner[best]]
