"""A mirror of the hub in miniature: tiny files in the data sets' own formats, tiny random models of the real classes."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from mirror_files import csv, json_lines, write, write_parquet
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DebertaV2TokenizerFast,
    GemmaConfig,
    GemmaForSequenceClassification,
    GemmaTokenizerFast,
    GPT2TokenizerFast,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers import T5Tokenizer as T5

from workflows.remodetect import hub_sources as sources

LLAMA = "meta-llama/Meta-Llama-3-70B-Instruct"
T5_PARAPHRASE = "Vamsi/T5_Paraphrase_Paws"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
N_QUESTIONS = 20


def hc3_row(number: int, humans: int = 1) -> dict[str, Any]:
    return {
        "question": f"What is {number} ?",
        "human_answers": [
            f"Human answer {number} {k} , it says . A second part follows . And a third ." for k in range(humans)
        ],
        "chatgpt_answers": [f"The answer to {number} is clear. It is well known. There is no doubt about it at all."],
        "index": None,
        "source": "reddit_eli5",
    }


def write_hc3(mirror: Path) -> None:
    write(mirror / "datasets" / sources.HC3 / "all.jsonl", json_lines([hc3_row(i) for i in range(N_QUESTIONS)]))


def write_hh(mirror: Path) -> None:
    folder = mirror / "datasets" / sources.HH_RLHF
    for subset in ("harmless-base", "helpful-online"):
        for split, n in (("train", 3), ("test", 2)):
            rows = [{side: f"\n\nHuman: {subset} {split} {i} ?\n\nAssistant: {side}" for side in ("chosen", "rejected")} for i in range(n)]  # fmt: skip
            write(folder / subset / f"{split}.jsonl.gz", gzip.compress(json_lines(rows).encode()))
    # Not preference data, and in another format.
    write(folder / "red-team-attempts" / "red_team_attempts.jsonl.gz", gzip.compress(b'[{"transcript": "no"}]'))


def write_synthetic(mirror: Path) -> None:
    rows = [{key: f" {key} {i} of it." for key in ("prompt", "response", "chosen", "rejected")} for i in range(10)]
    path = mirror / "datasets" / sources.SYNTHETIC_INSTRUCT / "data" / "train-00000-of-00001-1e5d57b93c448e7a.parquet"
    write_parquet(path, rows)


def write_raw_data(mirror: Path, name: str, content: Any, under: str = "exp_gpt3to4/data") -> Path:
    return write(mirror / "datasets" / sources.FAST_DETECT_GPT / under / f"{name}.raw_data.json", json.dumps(content))


def raw_data(n: int, source: str = "sampled") -> dict[str, list[str]]:
    human = [f"human text number {i} is longer than its partner" for i in range(n)]
    return {"original": human, "sampled": [f"{source} text number {i} is shorter" for i in range(n)]}


def write_mgtbench(mirror: Path) -> None:
    for name in sources.MGTBENCH_FILES:
        rows = [["id", "prompt", "human", "ChatGPT-turbo", "Claude"]]
        rows += [
            [str(i), "Write !", f"{name} human {i} , says so .", f"turbo {i}\nsays a thing", f"claude {i} says"]
            for i in range(6)
        ]
        rows[-1][-1] = "Sorry"  # one word
        write(mirror / "datasets" / sources.MGTBENCH / f"{name}_LLMs.csv", csv(rows))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|start|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=258, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["a text"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # a first token, as Llama 3 puts it
        single="<|start|> $A", special_tokens=[("<|start|>", 0)]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|start|>", eos_token="<|end|>")
    made.chat_template = CHAT_TEMPLATE
    return made


def write_llama(mirror: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    folder = mirror / "models" / LLAMA
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def scripted_answer(prompt: str) -> str:
    """What a chat model might answer that paraphrases what it is asked for by turning it to capitals."""
    listed = dict(line.split(". ", 1) for line in prompt.splitlines() if line[:1].isdigit())
    wanted = prompt.rsplit("no others: ", 1)[1].split(". ", 1)[0].split(", ")
    return "Sure!\n\n" + "\n".join(f"{number}. {listed[number].upper()} ." for number in wanted)


def t5_tokenizer(extra_ids: int = 4) -> T5:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:.,"
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in letters)]
    return T5(vocab=vocabulary, extra_ids=extra_ids)


def write_t5(mirror: Path, name: str = T5_PARAPHRASE, extra_ids: int = 4, terse: bool = False) -> None:
    torch.manual_seed(0)
    tokenizer = t5_tokenizer(extra_ids)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    folder = mirror / "models" / name
    model = T5ForConditionalGeneration(config)
    if terse:
        say_little(model, tokenizer.convert_tokens_to_ids(["</s>", *(f"<extra_id_{i}>" for i in range(4))]))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def say_little(model: T5ForConditionalGeneration, likely: list[int]) -> None:
    """Make some tokens a hundred times as likely as the others, whatever was read: answers name gaps, and end soon."""
    embeddings = model.shared.weight  # of the logits too: every hidden state has one direction, in which these lie
    embeddings *= 0.1
    embeddings[:, 0] = 10
    embeddings[likely, 0] = 15


# What detectors are made of

REWARD_MODEL = "OpenAssistant/reward-model-deberta-v3-large-v2"
TRUNK = "microsoft/deberta-v3-large"
GEMMA = "weqweasdas/RM-Gemma-2B"
SCORING, REFERENCE, FILLER = "EleutherAI/gpt-neo-2.7B", "EleutherAI/gpt-j-6B", "google-t5/t5-3b"
OPENAI_LABELS = {0: "Fake", 1: "Real"}
CLASSIFIERS = {
    "openai-community/roberta-base-openai-detector": OPENAI_LABELS,
    "openai-community/roberta-large-openai-detector": OPENAI_LABELS,
    "Hello-SimpleAI/chatgpt-detector-roberta": {0: "Human", 1: "ChatGPT"},
}
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:?"
PIECES = ["the ", "a sentence of words that goes on and on", "Which answer is it? It is 0123456789, they say."]
DEBERTA_SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "initializer_range": 0.2, "pooler_hidden_size": 16, "pooler_dropout": 0, "type_vocab_size": 0,
    "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "max_relative_positions": -1,
}  # fmt: skip


def write_reward_model(mirror: Path) -> None:
    torch.manual_seed(100)
    folder = mirror / "models" / REWARD_MODEL
    special = [(name, 0.0) for name in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")]
    words = [("\u2581", -1.0), *((letter, -2.0) for letter in LETTERS), ("[MASK]", 0.0)]
    tokenizer = DebertaV2TokenizerFast(vocab=[*special, *words], unk_id=3)
    config = DebertaV2Config(vocab_size=len(tokenizer), num_labels=1, **DEBERTA_SIZES)
    DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_trunk(mirror: Path) -> None:
    """As published: weights of the trunk and of heads that a classifier has not, a SentencePiece file as the tokenizer."""
    torch.manual_seed(1)
    folder = mirror / "models" / TRUNK
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PIECES), model_writer=pieces, vocab_size=len(LETTERS), model_type="unigram",
        hard_vocab_limit=False, minloglevel=2, pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]",
        bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]",
    )  # fmt: skip
    write(folder / "spm.model", pieces.getvalue())
    write(folder / "tokenizer_config.json", json.dumps({"do_lower_case": False, "vocab_type": "spm"}))
    config = DebertaV2Config(vocab_size=100, **DEBERTA_SIZES)
    weights = DebertaV2ForSequenceClassification(config).deberta.state_dict()
    heads = {"lm_predictions.lm_head.bias": torch.zeros(100), "mask_predictions.dense.bias": torch.zeros(16)}
    named = {f"deberta.{name}": tensor for name, tensor in weights.items()}
    save_file({name: tensor.contiguous() for name, tensor in (named | heads).items()}, folder / "model.safetensors")
    shown = config.to_diff_dict() | {"model_type": "deberta-v2"}
    write(folder / "config.json", json.dumps(shown))  # names no architecture


def write_gemma(mirror: Path) -> None:
    torch.manual_seed(2)
    folder = mirror / "models" / GEMMA
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    words = [*special, "\u2581", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
    tokenizer = GemmaTokenizerFast(vocab={word: i for i, word in enumerate(words)}, merges=[])
    config = GemmaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, num_labels=1, pad_token_id=0, eos_token_id=1, bos_token_id=2,
        initializer_range=0.2,
    )  # fmt: skip
    GemmaForSequenceClassification(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _byte_vocabulary(special: Sequence[str]) -> dict[str, int]:
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return {word: i for i, word in enumerate(words)}


def write_language_models(
    mirror: Path, scoring: str = SCORING, reference: str = REFERENCE, filler: str = FILLER
) -> None:
    tokenizer = GPT2TokenizerFast(vocab=_byte_vocabulary(["<|endoftext|>"]), merges=[])
    ends = {"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.2}
    torch.manual_seed(3)
    neo = GPTNeoConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, window_size=8,
        attention_types=[[["global", "local"], 1]], **ends,
    )  # fmt: skip
    GPTNeoForCausalLM(neo).half().save_pretrained(mirror / "models" / scoring)
    # More rows of logits than the tokenizer has tokens, as in the original.
    j = GPTJConfig(vocab_size=len(tokenizer) + 15, n_embd=16, n_layer=2, n_head=2, rotary_dim=4, n_inner=24, **ends)
    GPTJForCausalLM(j).half().save_pretrained(mirror / "models" / reference)
    for name in (scoring, reference):
        tokenizer.save_pretrained(mirror / "models" / name)
    write_t5(mirror, filler, extra_ids=100, terse=True)


def write_classifiers(mirror: Path) -> None:
    tokenizer = RobertaTokenizerFast(
        vocab=_byte_vocabulary(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]), merges=[], model_max_length=512
    )
    for seed, (name, labels) in enumerate(CLASSIFIERS.items()):
        torch.manual_seed(10 + seed)
        config = RobertaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=514, type_vocab_size=1, id2label=labels, pad_token_id=1, bos_token_id=0,
            eos_token_id=2, label2id={label: i for i, label in labels.items()}, initializer_range=0.2,
        )  # fmt: skip
        RobertaForSequenceClassification(config).save_pretrained(mirror / "models" / name)
        tokenizer.save_pretrained(mirror / "models" / name)
