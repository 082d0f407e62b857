"""A Mamba language model walked block by block, for contenders that change the sequence on its way up.

Works on transformers' ``MambaForCausalLM`` (around the fast scan of ``baselines.mamba``) and ``Mamba2ForCausalLM``. The
sequence is a context followed by a continuation: of L tokens the last ``n_continuation`` are predicted, so token L - 1
is never read, and the last context token T = L - n_continuation - 1 makes the first prediction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baselines import mamba, mamba2
from baselines.mamba import MixerOutput

_MIXERS = {"MambaMixer": mamba.mixer_forward, "Mamba2Mixer": mamba2.mixer_forward}


def is_mamba(model: Any) -> bool:
    """Whether the functions below can walk this model."""
    return model.config.model_type in ("mamba", "mamba2")


def adopt(model: Any) -> Any:
    """The model in eval mode.

    Raises:
        ValueError: it is no Mamba of transformers.
    """
    if not is_mamba(model):
        raise ValueError(
            f"{type(model).__name__} cannot be walked: MambaForCausalLM or Mamba2ForCausalLM of transformers needed"
        )
    return model.eval()


def split(input_ids: Tensor, n_continuation: int, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """What is read of (batch, L) tokens: all but the last, and their mask (boolean; None where nothing is padded).

    Raises:
        ValueError: no context is left, padding is not on the left, or a row has no context token.
    """
    length = input_ids.shape[1]
    n_context = length - n_continuation
    if n_continuation < 1 or n_context < 1:
        raise ValueError(f"n_continuation must be 1 to {length - 1} for {length} tokens, not {n_continuation}")
    mask = None if attention_mask is None else attention_mask[:, :-1].bool()
    return input_ids[:, :-1], check_padding(mask, n_context)


def check_padding(mask: Tensor | None, n_context: int) -> Tensor | None:
    """The mask (batch, length), or None where nothing is padded.

    Raises:
        ValueError: padding is not on the left, or a row has no context token.
    """
    if mask is None or bool(mask.all()):
        return None
    if bool((mask[:, :-1] & ~mask[:, 1:]).any()) or not bool(mask[:, n_context - 1].all()):
        raise ValueError("padding must be on the left, and every row needs a context token")
    return mask


def block_forward(
    block: Any, hidden: Tensor, mask: Tensor | None = None, states: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, MixerOutput]:
    """One block with its norm and residual: the stream after it, (batch, length, d_model), and what the mixer returned.

    Args:
        mask: (batch, length), as for ``mixer_forward``.
        states: ``conv_state`` and ``ssm_state`` of the segment before, or None at the start.
    """
    forward = _MIXERS[type(block.mixer).__name__]
    output = forward(block.mixer, block.norm(hidden.to(block.norm.weight.dtype)), mask, *(states or ()))
    residual = hidden.float() if block.residual_in_fp32 else hidden
    return residual + output.out, output


def head(model: Any, hidden: Tensor) -> Tensor:
    """Float logits (batch, length, vocabulary) of the stream that left the last block."""
    return model.lm_head(model.backbone.norm_f(hidden).to(model.lm_head.weight.dtype)).float()


def dense_logits(
    model: Any,
    input_ids: Tensor,
    n_continuation: int,
    attention_mask: Tensor | None = None,
    n_layers: int | None = None,
) -> Tensor:
    """Predictions (batch, n_continuation, vocabulary) of the last tokens, by the first ``n_layers`` blocks (all)."""
    ids, mask = split(input_ids, n_continuation, attention_mask)
    hidden = model.get_input_embeddings()(ids)
    for block in model.backbone.layers[:n_layers]:
        hidden, _ = block_forward(block, hidden, mask)
    return head(model, hidden[:, -n_continuation:])


def next_token_loss(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Mean cross-entropy of predictions (batch, n, vocabulary) against the last n of (batch, L) tokens, in nats."""
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), input_ids[:, -logits.shape[1] :].flatten())
