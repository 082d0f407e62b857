"""What needs a generating model: answers of a chat model and the paraphrasing attack; and the attack that needs none."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from methods.remodetect.cleaning import clean_spacing
from methods.remodetect.mixing import mix, parse_rephrased, rephrasing_prompt, split_sentences
from rematch.errors import RematchError

REPHRASER = "meta-llama/Meta-Llama-3-70B-Instruct"
PARAPHRASER = "Vamsi/T5_Paraphrase_Paws"

SWAP_MIN_WORDS = 20
"""Only a sentence of more words than these has a pair of words swapped (official code)."""


class ChatModel:
    """A causal language model of transformers that answers single user messages through its chat template.

    Attributes:
        model, tokenizer: transformers'.
        batch_size: messages in a forward pass.
        max_new_tokens: of an answer, at most.
        tokens: prompt and answer tokens of all answers so far, padding not counted.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 8, max_new_tokens: int = 1024) -> None:
        if not tokenizer.chat_template:
            raise RematchError(
                f"{tokenizer.name_or_path}: its tokenizer has no chat template; an instruction-tuned model is needed"
            )
        self.model, self.tokenizer = model.eval(), tokenizer
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.tokens = 0
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"

    @classmethod
    def from_pretrained(cls, path: str, device: str = "auto", **options: Any) -> ChatModel:
        """From the hub or a folder, in the checkpoint's own precision.

        Args:
            path: an id or a folder.
            device: ``cpu``, ``cuda``, or ``auto``, which spreads the layers over all accelerators.
            options: ``batch_size``, ``max_new_tokens``.
        """
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", device_map=device)
        return cls(model, _tokenizer(path), **options)

    def answers(self, prompts: Sequence[str], seed: int) -> list[str]:
        """The model's answer to each message, sampled at temperature 1 (the official code sets none)."""
        messages = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts
        ]

        def answer(batch: list[str]) -> list[str]:
            # The template has written the special tokens already.
            encoded = self.tokenizer(batch, padding=True, add_special_tokens=False, return_tensors="pt")
            encoded = {key: encoded[key].to(self.model.device) for key in ("input_ids", "attention_mask")}
            made = self.model.generate(
                **encoded,
                max_new_tokens=self.max_new_tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=self.tokenizer.pad_token_id,
            )[:, encoded["input_ids"].shape[1] :]
            self.tokens += int(encoded["attention_mask"].sum()) + int((made != self.tokenizer.pad_token_id).sum())
            return self.tokenizer.batch_decode(made, skip_special_tokens=True)

        with _seeded(seed):
            return _in_batches(messages, self.batch_size, answer)


def mixed_texts(
    humans: Sequence[str], ratios: Sequence[float], chat: ChatModel, seed: int
) -> tuple[list[dict[str, str | None]], dict[str, dict[str, int]]]:
    """Mixed texts of every human text by a chat model, and how many could be made (``methods.remodetect.mixing``).

    Args:
        humans: cleaned texts; of the answers, the paraphrases are cleaned.
        ratios: shares of the sentences to rephrase, drawn anew for each.

    Returns:
        For each text its mixed texts by ratio, None where there is none; and by ratio the numbers of texts ``made``, with
        ``too_few`` sentences to rephrase one, and ``failed``: an answer that holds no paraphrase of each sentence.
    """
    sentences = [split_sentences(human) for human in humans]
    mixed: list[dict[str, str | None]] = [{} for _ in humans]
    counts = {}
    for number, ratio in enumerate(ratios):
        made, n_asked = _mixed_at(ratio, sentences, chat, [seed, number])
        for row, text in zip(mixed, made, strict=True):
            row[f"{ratio:g}"] = text
        n_made = sum(text is not None for text in made)
        counts[f"{ratio:g}"] = {"made": n_made, "too_few": len(humans) - n_asked, "failed": n_asked - n_made}
    return mixed, counts


def _mixed_at(
    ratio: float, sentences: Sequence[Sequence[str]], chat: ChatModel, seed: list[int]
) -> tuple[list[str | None], int]:
    """Mixed texts of texts that are cut into sentences, and how many of them the chat model was asked for."""
    prompts: dict[int, str] = {}
    answers: dict[int, str] = {}

    def ask(text: int, units: Sequence[str], indices: Sequence[int]) -> None:
        prompts[text] = rephrasing_prompt(units, indices)

    def read(text: int, units: Sequence[str], indices: Sequence[int]) -> list[str] | None:
        found = parse_rephrased(answers[text], indices, len(units))
        return None if found is None else [clean_spacing(paraphrase) for paraphrase in found]

    def each(rephrase: Callable[[int, Sequence[str], Sequence[int]], list[str] | None]) -> list[str | None]:
        return [
            mix(units, partial(rephrase, text), np.random.default_rng([*seed, text]), ratio)
            for text, units in enumerate(sentences)
        ]

    # Twice, with the same draws: to know what to ask, so that it can be asked in batches, and to put the answers in.
    each(ask)
    answers.update(zip(prompts, chat.answers(list(prompts.values()), seed[0]), strict=True))
    return each(read), len(prompts)


class Paraphraser:
    """A T5 that paraphrases a text sentence by sentence: the rephrasing attack (Table 4; official code).

    Sampled with top-k 200 and top-p 0.95, at most 256 tokens; a sentence that comes back empty stays as it was.

    Attributes:
        model, tokenizer: a sequence-to-sequence model of transformers that knows the prefix ``paraphrase:``.
        batch_size: sentences in a forward pass.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 32) -> None:
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size

    @classmethod
    def from_pretrained(cls, path: str, device: str = "auto", **options: Any) -> Paraphraser:
        """From the hub or a folder (``device`` and ``path`` as in ``ChatModel``; options: ``batch_size``)."""
        from transformers import AutoModelForSeq2SeqLM

        model = AutoModelForSeq2SeqLM.from_pretrained(path, dtype="auto", device_map=device)
        return cls(model, _tokenizer(path), **options)

    def rephrase(self, texts: Sequence[str], seed: int) -> list[str]:
        """Every text with all its sentences paraphrased, joined by single spaces."""
        sentences = [split_sentences(text) for text in texts]
        flat = [sentence for mine in sentences for sentence in mine]

        def paraphrase(batch: list[str]) -> list[str]:
            prompts = [f"paraphrase: {sentence} </s>" for sentence in batch]
            encoded = self.tokenizer(prompts, padding=True, truncation=True, max_length=512, return_tensors="pt")
            made = self.model.generate(
                input_ids=encoded["input_ids"].to(self.model.device),
                attention_mask=encoded["attention_mask"].to(self.model.device),
                max_length=256,
                do_sample=True,
                top_k=200,
                top_p=0.95,
            )
            decoded = self.tokenizer.batch_decode(made, skip_special_tokens=True)
            return [new.strip() or old for new, old in zip(decoded, batch, strict=True)]

        with _seeded(seed):
            new = iter(_in_batches(flat, self.batch_size, paraphrase))
        return [" ".join(next(new) for _ in mine) for mine in sentences]


def swap_adjacent_words(texts: Sequence[str], seed: int) -> list[str]:
    """In each sentence of more than 20 words, one random pair of adjacent words swapped (official code)."""
    rng = random.Random(seed)

    def swapped(sentence: str) -> str:
        words = sentence.split()
        if len(words) > SWAP_MIN_WORDS:
            at = rng.randrange(len(words) - 1)
            words[at], words[at + 1] = words[at + 1], words[at]
        return " ".join(words)

    return [" ".join(swapped(sentence) for sentence in split_sentences(text)) for text in texts]


def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (ValueError, ImportError) as error:
        raise RematchError(f"{path}: its tokenizer cannot be loaded: {error}") from error


def _in_batches(texts: Sequence[str], batch_size: int, run: Callable[[list[str]], list[str]]) -> list[str]:
    """``run`` over batches of texts of like lengths, longest first so that memory runs out at once or not at all."""
    results = [""] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        with torch.no_grad():
            made = run([texts[i] for i in chosen])
        for i, text in zip(chosen, made, strict=True):
            results[i] = text
    return results


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's random numbers from ``seed``, as before afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
