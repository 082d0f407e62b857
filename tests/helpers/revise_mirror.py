"""A mirror of the hub in miniature: the data sets' files in their own formats, tiny random Llamas with Llama 3's tokenizer.

The tokenizer is of Llama 3's class and has its special tokens under their names; its byte-level BPE is trained on the files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from mirror_files import json_lines, write, write_parquet
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workflows.revise.hub_questions import GSM8K, MATH_500, META_MATH, META_MATH_FILE

LLAMA, LLAMA_INSTRUCT = "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"
SMOLLM = "HuggingFaceTB/SmolLM2-135M"
BEGIN, END, END_OF_TURN, REFINE = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|reserved_special_token_0|>"
SPECIAL = [BEGIN, END, REFINE, "<|reserved_special_token_1|>", "<|start_header_id|>", "<|end_header_id|>", END_OF_TURN]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
N_GSM_TRAIN, N_GSM_TEST, N_MATH_TEST = 40, 12, 12
N_ORIGINALS = 10
"""Of each of MetaMath's two parts."""
PER_ORIGINAL = 6
"""Rows of MetaMath made of one original: two answered again, two rephrased, one each turned round."""


def gsm8k_rows(split: str, n: int) -> list[dict[str, str]]:
    """Losses of pens; the sums differ between the splits, and questions in their length."""
    rows = []
    for i in range(n):
        a, b = i + 2, 3 if split == "train" else 7
        rows.append(
            {
                "question": f"Ann has {a} boxes of {b} {'red ' * (i % 3)}pens. She loses 1 pen. How many pens has she got?",
                "answer": f"The boxes hold {a}*{b} = <<{a}*{b}={a * b}>>{a * b} pens.\n"
                f"One is lost: {a * b}-1 = <<{a * b}-1={a * b - 1}>>{a * b - 1}.\n#### {a * b - 1}",
            }
        )
    return rows


def _meta(kind: str, original: str, query: str, response: str) -> dict[str, str]:
    return {"query": query, "response": response, "type": kind, "original_question": original}


def meta_math_rows() -> list[dict[str, str]]:
    """``PER_ORIGINAL`` rows of each original, in the order of their kinds, not of their originals.

    Of MATH, those of kind SV have no box, as some have none in the original.
    """
    rows: list[dict[str, str]] = []
    for kind, n in (("AnsAug", 2), ("Rephrased", 2), ("SV", 1), ("FOBAR", 1)):
        for i in range(N_ORIGINALS):
            asked, total = f"What is ${i} + 20$?", i + 20
            counted = f"Bob has {i} cats and buys 20. How many cats has he got?"
            known = f"If we know the answer to the above question is {total}, what is the value of unknown variable x?"
            for j in range(n):
                if kind in ("SV", "FOBAR"):
                    box = f"x is {i}" if kind == "SV" else rf"$x = \boxed{{{i}}}$"
                    rows.append(
                        _meta(f"MATH_{kind}", asked, f"What is $x + 20$? {known}", f"So {box}.\nThe answer is: {i}")
                    )
                    rows.append(
                        _meta(
                            f"GSM_{kind}", counted, f"Bob has x cats. {known}", f"x = {i}\n#### {i}\nThe answer is: {i}"
                        )
                    )
                else:
                    query = asked if kind == "AnsAug" else f"Add 20 to ${i}$, way {j}."
                    said = rf"In {j + 1} steps the sum is $\boxed{{{total}}}$."
                    rows.append(_meta(f"MATH_{kind}", asked, query, f"{said}\nThe answer is: {total}"))
                    query = counted if kind == "AnsAug" else f"Bob buys 20 cats and had {i}. How many, way {j}?"
                    said = f"In {j + 1} steps: {i} + 20 = {total} cats.\n#### {total}"
                    rows.append(_meta(f"GSM_{kind}", counted, query, f"{said}\nThe answer is: {total}"))
    return rows  # fmt: skip


def math_500_rows(n: int = N_MATH_TEST) -> list[dict[str, Any]]:
    """Every third answer is a whole number, the others are fractions."""
    finals = [rf"\frac{{{i + 3}}}{{3}}" if i % 3 else str(i // 3 + 1) for i in range(n)]
    return [
        {
            "problem": f"Find $\\frac{{{i}}}{{3}} + 1$.",
            "solution": f"We get $\\boxed{{{final}}}$ from $1 = \\frac{{3}}{{3}}$.",
            "answer": final,
            "subject": "Algebra",
            "level": 1,
            "unique_id": f"test/algebra/{i}.json",
        }
        for i, final in enumerate(finals)
    ]


def write_gsm8k(mirror: Path, train: list[dict[str, str]], test: list[dict[str, str]]) -> None:
    folder = mirror / "datasets" / GSM8K
    write_parquet(folder / "main" / "train-00000-of-00001.parquet", train)
    write_parquet(folder / "main" / "test-00000-of-00001.parquet", test)
    splits = "".join(f"  - split: {split}\n    path: main/{split}-*\n" for split in ("train", "test"))
    write(folder / "README.md", f"---\nconfigs:\n- config_name: main\n  data_files:\n{splits}---\n")


def write_meta_math(mirror: Path, rows: Any) -> Path:
    return write(mirror / "datasets" / META_MATH / META_MATH_FILE, json.dumps(rows))


def write_math_500(mirror: Path, rows: list[dict[str, Any]]) -> Path:
    return write(mirror / "datasets" / MATH_500 / "test.jsonl", json_lines(rows))


def write_data(mirror: Path) -> None:
    """The three data sets."""
    write_gsm8k(mirror, gsm8k_rows("train", N_GSM_TRAIN), gsm8k_rows("test", N_GSM_TEST))
    write_meta_math(mirror, meta_math_rows())
    write_math_500(mirror, math_500_rows())


def tokenizer(instruct: bool = False, reserved: bool = True) -> PreTrainedTokenizerFast:
    """``reserved``: with Llama 3's reserved tokens; other families have none."""
    special = SPECIAL if reserved else [token for token in SPECIAL if "reserved" not in token]
    inner = Tokenizer(models.BPE())
    numbers = pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence([numbers, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    inner.decoder = decoders.ByteLevel()
    texts = [*gsm8k_rows("train", 20), *meta_math_rows(), *math_500_rows()]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator((value for row in texts for value in row.values() if isinstance(value, str)), trainer)
    begins = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, special.index(BEGIN))]
    )
    inner.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begins])
    found = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=BEGIN, eos_token=END_OF_TURN if instruct else END, model_max_length=131072
    )
    if instruct:
        found.chat_template = CHAT_TEMPLATE
    return found


def llama(words: PreTrainedTokenizerFast, seed: int = 0, **options: Any) -> LlamaForCausalLM:
    """Two layers of width 16, large random weights; two query heads a key/value head, tied embeddings, Llama 3's positions."""
    torch.manual_seed(seed)
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    given = {
        "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 131072, "tie_word_embeddings": True,
        "initializer_range": 0.3, "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id,
        "rope_parameters": rope,
    } | options  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**given)).eval()


def write_llama(
    mirror: Path, name: str = LLAMA, instruct: bool = False, seed: int = 0, reserved: bool = True, **options: Any
) -> None:
    """A model with its tokenizer; ``instruct``: with a chat template, and turns that end in another token than texts do."""
    words = tokenizer(instruct, reserved)
    llama(words, seed, **options).save_pretrained(mirror / "models" / name)
    words.save_pretrained(mirror / "models" / name)


def write_models(mirror: Path) -> None:
    write_llama(mirror)
    write_llama(mirror, LLAMA_INSTRUCT, instruct=True, seed=1)
    write_llama(mirror, SMOLLM, seed=2, reserved=False)
