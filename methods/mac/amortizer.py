"""Texts to a few vectors each: the amortization network for documents, and the same design for questions.

A transformer reads the text, T learned vectors ask it, and one MLP per vector maps what they found to the width of the
frozen language model (the paper's amortization network; layers after the official code).
"""

from __future__ import annotations

import copy
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, T5EncoderModel

from baselines.loading import Quantization, quantized
from methods.mac.token_mlps import TokenMLPs
from rematch.errors import RematchError, unknown

Architecture = Literal["encdec", "encoder", "decoder"]
"""Encoder-decoder; encoder with the learned vectors appended to the text; causal decoder, likewise (table 7)."""

BackboneSource: TypeAlias = PreTrainedConfig | PreTrainedModel | str
"""A configuration (random weights), a model (copied), or an id of the hub or a folder (loaded)."""


class Amortizer(nn.Module):
    """T vectors of a text: a transformer, T learned vectors, and one MLP per vector.

    The decoder's cross-attention gets the text's mask. (The official code gives it none, so that its result depends on
    how far the text was padded.)

    Args:
        backbone: a transformer without a head, owned by this module; see ``load_backbone``.
        n_tokens: T.
        width: d, of the frozen language model.
    """

    def __init__(self, backbone: PreTrainedModel, architecture: Architecture, n_tokens: int, width: int) -> None:
        super().__init__()
        d_backbone = int(backbone.config.hidden_size)
        self.architecture = architecture
        self.backbone: Any = backbone
        self.queries = nn.Parameter(torch.randn(n_tokens, d_backbone) * 0.02)
        self.mlps = TokenMLPs(n_tokens, d_backbone, width, width, torch.tanh)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, length) ids and mask (1 for real tokens, padding on the right) -> (batch, T, d)."""
        # Repeated, not expanded: the FLOP counter cannot follow a view of a parameter where gradients are off.
        queries = self.queries.to(self.backbone.dtype).repeat(len(input_ids), 1, 1)
        if self.architecture == "encdec":
            read = self.backbone.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            found = self.backbone.decoder(
                inputs_embeds=queries,
                encoder_hidden_states=read,
                encoder_attention_mask=attention_mask,
                use_cache=False,
            ).last_hidden_state
        else:
            found = self._appended(input_ids, attention_mask, queries)
        return self.mlps(found.to(self.queries.dtype))

    def _appended(self, input_ids: Tensor, attention_mask: Tensor, queries: Tensor) -> Tensor:
        """Outputs at the learned vectors, which follow right after each text's last token, before the padding.

        Their positions, absolute or relative, then do not depend on how far the batch is padded.
        """
        n_queries = queries.shape[1]
        lengths = attention_mask.sum(1, keepdim=True)
        where = lengths + torch.arange(n_queries, device=lengths.device)  # (batch, T)
        text = self.backbone.get_input_embeddings()(input_ids)
        index = where.unsqueeze(-1).expand(-1, -1, text.shape[-1])
        sequence = torch.cat([text, torch.zeros_like(queries)], dim=1).scatter(1, index, queries)
        positions = torch.arange(sequence.shape[1], device=lengths.device)
        mask = (positions < lengths + n_queries).to(attention_mask.dtype)
        cached = {"use_cache": False} if self.architecture == "decoder" else {}
        read = self.backbone(inputs_embeds=sequence, attention_mask=mask, **cached).last_hidden_state
        return read.gather(1, index)


def load_backbone(
    source: BackboneSource, architecture: Architecture, quantize: Quantization | None = None
) -> PreTrainedModel:
    """A transformer of its own for an ``Amortizer``: nothing is shared with what the caller passes in.

    Args:
        quantize: load the weights of its linear maps in 4 bits. They are not trained then, only what stays in full precision
            is: embeddings, norms, and T5's maps ``wo`` (so the official code for LLaMA-2).

    Raises:
        RematchError: an unknown architecture, weights that cannot be loaded, or not in 4 bits, or a model of another kind.
    """
    if quantize is not None and not isinstance(source, str):
        raise RematchError(f"quantize='{quantize}' loads an encoder by its id or folder: give that, not a model of it")
    if architecture not in get_args(Architecture):
        raise unknown("architecture", architecture, get_args(Architecture), "MAC")
    if isinstance(source, PreTrainedModel):
        model: Any = load_backbone(source.config, architecture)
        model.to(source.dtype)
        # The body alone: a language model's head is of no use here.
        missing = model.load_state_dict(source.base_model.state_dict(), strict=False).missing_keys
        if missing:
            raise RematchError(f"an encoder of class {type(source).__name__} lacks weights: {', '.join(missing[:3])}")
        return cast(PreTrainedModel, model)
    try:
        config: Any = AutoConfig.from_pretrained(source) if isinstance(source, str) else copy.deepcopy(source)
        half = architecture == "encoder" and config.model_type == "t5"
        if isinstance(source, str):
            model = (T5EncoderModel if half else AutoModel).from_pretrained(
                source, use_safetensors=True, **quantized(quantize)
            )
        else:
            model = T5EncoderModel(config) if half else AutoModel.from_config(config)
    except (OSError, ValueError) as error:
        raise RematchError(f"no encoder can be made of '{source}': {error}") from error
    both = bool(model.config.is_encoder_decoder) and architecture != "encoder"
    if (architecture == "encdec") != both:
        needed = {"encdec": "an encoder-decoder (T5)", "decoder": "a causal decoder (GPT-2)", "encoder": "an encoder"}
        raise RematchError(f"amortizer '{architecture}' needs {needed[architecture]}, not {type(model).__name__}")
    return cast(PreTrainedModel, model)


@torch.no_grad()
def copy_embeddings(backbone: PreTrainedModel, lm: PreTrainedModel) -> None:
    """Start a backbone's token embeddings from a copy of a language model's, at the scale of those they replace.

    Where there is no pretrained encoder this stands in for one: tokens that never occur in meta-training still have
    usable vectors. The scale is kept because a backbone reads its own embeddings through residual connections: at a
    language model's much smaller scale they would drown, and an optimizer step would move them much further.

    Raises:
        RematchError: another vocabulary or width.
    """
    own, other = (cast(nn.Embedding, model.get_input_embeddings()).weight for model in (backbone, lm))
    if own.shape != other.shape:
        raise RematchError(f"embeddings of {tuple(other.shape)} cannot start an encoder's of {tuple(own.shape)}")
    own.copy_(other * (own.float().std() / other.float().std()).to(other.dtype))
