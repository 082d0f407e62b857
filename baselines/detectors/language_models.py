"""The language models that zero-shot detectors read: what they need of one, and transformers' causal models as such.

``baselines.ngram.NGram`` is the other model that meets the protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rematch.errors import RematchError


class LanguageModel(Protocol):
    """An autoregressive model with its tokenizer."""

    @property
    def vocab_size(self) -> int:
        """V, the width of a row of ``log_probs``."""
        ...

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The token ids of each text, int64."""
        ...

    def decode(self, ids_batch: Sequence[np.ndarray]) -> list[str]:
        """The text of each row of ids."""
        ...

    def log_probs(self, ids_batch: Sequence[np.ndarray]) -> Tensor:
        """ln P of every token at places 2 .. n given all that stands before: (texts, longest - 1, V) float32, finite.

        The rows beyond a text's end mean nothing. No text may be empty.
        """
        ...

    def sample(
        self, prefixes: Sequence[np.ndarray], length: int, rng: np.random.Generator, temperature: float = 1.0
    ) -> Iterable[np.ndarray]:
        """Continuations of the prefixes, without them, of ``length`` tokens each."""
        ...


@runtime_checkable
class RanksTokens(Protocol):
    """A language model that knows a token's probability and rank without the row of all probabilities."""

    def ranked_tokens(self, ids_batch: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """ln P and rank (1 + the tokens strictly more probable) of tokens 2 .. n: (texts, longest - 1), NaN beyond the end."""
        ...


@dataclass(eq=False)
class CausalLM:
    """Any transformers causal language model with its tokenizer; it runs where the model is, in the model's dtype.

    Attributes:
        max_length: tokens read of a text, the first ones; None: as many as the model has positions, if it says so.
        batch_size: prefixes continued at once by ``sample``.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None
    batch_size: int = 16

    def __post_init__(self) -> None:
        self.model.eval()
        if self.max_length is None:
            self.max_length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        max_length: int | None = None,
    ) -> CausalLM:
        """Load model (safetensors) and tokenizer; ``dtype`` None keeps the dtype of the files."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model: Any = AutoModelForCausalLM.from_pretrained(path_or_id, dtype="auto" if dtype is None else dtype)
        if device is not None:
            model.to(device)
        return cls(model, AutoTokenizer.from_pretrained(path_or_id), max_length)

    @property
    def vocab_size(self) -> int:
        """V: the rows of the output layer, which may be more than the tokenizer knows."""
        return self.model.config.get_text_config().vocab_size

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The token ids of each text, the first ``max_length`` ones, with the special tokens that the tokenizer adds."""
        if not len(texts):
            return []
        limit: dict[str, Any] = {} if self.max_length is None else {"truncation": True, "max_length": self.max_length}
        return [np.asarray(ids, np.int64) for ids in self.tokenizer(list(texts), **limit)["input_ids"]]

    def decode(self, ids_batch: Sequence[np.ndarray]) -> list[str]:
        """The text of each row of ids, without special tokens."""
        return [str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)) for ids in ids_batch]

    @torch.inference_mode()
    def log_probs(self, ids_batch: Sequence[np.ndarray]) -> Tensor:
        """One forward pass over the texts, padded on the right; see ``LanguageModel``. On the model's device."""
        ids, mask = _padded(ids_batch, left=False)
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return torch.log_softmax(logits[:, :-1].float(), -1)

    @torch.inference_mode()
    def sample(
        self, prefixes: Sequence[np.ndarray], length: int, rng: np.random.Generator, temperature: float = 1.0
    ) -> np.ndarray:
        """Continuations drawn from the model (no top-k, no top-p, no end-of-text token), (prefixes, length) int64.

        A prefix that leaves no room for ``length`` tokens is read from its end. torch's own random numbers are left alone.

        Raises:
            RematchError: for an empty prefix, a temperature that is not positive, or no room for ``length`` tokens.
        """
        if not temperature > 0:
            raise RematchError(f"a sampling temperature is positive, not {temperature}")
        room = None if self.max_length is None else self.max_length - length
        if room is not None and room < 1:
            raise RematchError(f"the model reads {self.max_length} tokens: no room for {length} new ones")
        if any(len(prefix) == 0 for prefix in prefixes):
            raise RematchError("a transformers model cannot continue an empty prefix: give it at least one token")
        model: Any = self.model
        device = model.device
        drawn = np.zeros((len(prefixes), length), np.int64)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(rng.integers(2**63)))
            for first in range(0, len(prefixes) if length else 0, self.batch_size):
                batch = [
                    prefix if room is None else prefix[-room:] for prefix in prefixes[first : first + self.batch_size]
                ]
                ids, mask = _padded(batch, left=True)
                out = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    do_sample=True,
                    temperature=temperature,
                    top_k=0,
                    top_p=1.0,
                    min_new_tokens=length,
                    max_new_tokens=length,
                    pad_token_id=0,
                )
                drawn[first : first + self.batch_size] = out[:, ids.shape[1] :].cpu().numpy()
        return drawn


def _padded(ids_batch: Sequence[np.ndarray], left: bool) -> tuple[Tensor, Tensor]:
    """Ids, padded by 0, and the attention mask, both (texts, longest) int64."""
    longest = max(len(ids) for ids in ids_batch)
    ids, mask = np.zeros((len(ids_batch), longest), np.int64), np.zeros((len(ids_batch), longest), np.int64)
    for row, text in enumerate(ids_batch):
        place = slice(longest - len(text), None) if left else slice(len(text))
        ids[row, place] = text
        mask[row, place] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
