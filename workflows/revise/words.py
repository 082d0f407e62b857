"""Text whose words are tokens: what the generated questions are written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from baselines.post_training.batches import Ids
from rematch.errors import RematchError

PAD, BOS, END, REFINE, ASK = "<pad>", "<bos>", "<end>", "<|refine|>", "?"
SPECIAL = (PAD, BOS, END, REFINE, ASK)
DIGITS = tuple("0123456789")


def numbered(words: Sequence[str]) -> dict[str, int]:
    """A vocabulary: a token's id is its place."""
    return {word: i for i, word in enumerate(words)}


def encode_words(text: str, vocabulary: Mapping[str, int], form: str) -> Ids:
    """Token ids of words with spaces between them.

    Args:
        form: how such a text is written, for the error.

    Raises:
        RematchError: a word that is not in the vocabulary.
    """
    words = text.split()
    for word in words:
        if word not in vocabulary:
            raise RematchError(f"'{text}': unknown word '{word}'; {form}, with spaces between them")
    return tuple(vocabulary[word] for word in words)


def word_tokenizer(vocabulary: Mapping[str, int]) -> PreTrainedTokenizerFast:
    """A tokenizer of these words, which puts ``<bos>`` before a text."""
    inner = Tokenizer(models.WordLevel(dict(vocabulary)))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, bos_token=BOS, eos_token=END, additional_special_tokens=[REFINE]
    )
