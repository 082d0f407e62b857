"""A mirror of the hub in miniature: the data sets' files in their own formats, tiny random models of the real classes.

Tokenizers are of the real kinds, trained on what the files say: byte-level BPE for GPT-2, SentencePiece's unigrams for T5 and
its BPE with bytes for Llama.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from mac_files import (
    BOUNDS,
    N_TEST,
    N_TRAIN,
    archivalqa_table,
    squad_rows,
    streamingqa_table,
    write_camels,
    write_squad,
)
from mirror_files import write, write_parquet
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    DPRConfig,
    DPRContextEncoder,
    DPRQuestionEncoder,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from workflows.mac import hub_sources as sources

DISTILGPT2, GPT2, LLAMA = "distilbert/distilgpt2", "openai-community/gpt2", "meta-llama/Llama-2-7b-hf"
T5_SMALL, T5_BASE = "google-t5/t5-small", "google-t5/t5-base"
CONTRIEVER = "facebook/contriever"
DPR_QUESTIONS, DPR_DOCUMENTS = "facebook/dpr-question_encoder-single-nq-base", "facebook/dpr-ctx_encoder-single-nq-base"
OPENWEBTEXT = "Skylion007/openwebtext"
N_ANCHORS = 5
SQUAD_BOUNDS = tuple(BOUNDS)
"""In place of the paper's: a file of 87,599 rows is no small one."""


def texts() -> list[str]:
    """What the files say."""
    rows = [*squad_rows(N_TRAIN), *squad_rows(N_TEST, "test")]
    tables = [cell for part in ("train", "test") for row in streamingqa_table(part) for cell in row]
    return [row[key] for row in rows for key in ("context", "question")] + [cell for cell in tables if " " in cell]


def write_data(mirror: Path) -> None:
    write_squad(mirror, squad_rows(N_TRAIN), squad_rows(N_TEST, "test"))
    write_camels(mirror, sources.STREAMINGQA_FILES, streamingqa_table)
    write_camels(mirror, sources.ARCHIVALQA_FILES, archivalqa_table)
    rows = [{"text": f"Web page {i}.\n\nIt says so."} for i in range(N_ANCHORS)]
    folder = mirror / "datasets" / OPENWEBTEXT / "plain_text"
    write_parquet(folder / "train-00000-of-00080.parquet", [{"text": "word"}, *rows])
    write_parquet(folder / "train-00001-of-00080.parquet", [{"text": "Not read at all."}])


def _pieces(**options: Any) -> bytes:
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()), model_writer=made, hard_vocab_limit=False, minloglevel=2, **options
    )
    return made.getvalue()


def _settings(**options: Any) -> str:
    return json.dumps(options)


def write_gpt2(mirror: Path, name: str, seed: int, n_layers: int = 3) -> None:
    """Two heads; GPT-2's one special token ends texts, starts them and pads nothing."""
    torch.manual_seed(seed)
    folder = mirror / "models" / name
    folder.mkdir(parents=True)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts(), vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.save_model(str(folder))
    end = tokenizer.token_to_id("<|endoftext|>")
    write(folder / "tokenizer_config.json", _settings(model_max_length=1024))
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(), n_embd=16, n_layer=n_layers, n_head=2, bos_token_id=end, eos_token_id=end,
        initializer_range=0.2,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)


def write_t5(mirror: Path, name: str, seed: int) -> None:
    """A hundred sentinels behind the words, and more rows of embeddings than the tokenizer has tokens."""
    torch.manual_seed(seed)
    folder = mirror / "models" / name
    pieces = _pieces(vocab_size=120, model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    write(folder / "spiece.model", pieces)
    ends = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write(folder / "tokenizer_config.json", _settings(extra_ids=100, model_max_length=512, **ends))
    config = T5Config(
        vocab_size=256, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0,
        initializer_factor=1.0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)


def write_llama(mirror: Path, name: str = LLAMA) -> None:
    """Two query heads a key/value head; a token begins every text, none pads."""
    torch.manual_seed(3)
    folder = mirror / "models" / name
    write(folder / "tokenizer.model", _pieces(vocab_size=340, model_type="bpe", byte_fallback=True))
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write(folder / "tokenizer_config.json", _settings(tokenizer_class="LlamaTokenizer", add_bos_token=True, **ends))
    config = LlamaConfig(
        vocab_size=352, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def write_bert(mirror: Path, name: str, seed: int) -> None:
    """An encoder of a retriever, with WordPiece."""
    torch.manual_seed(seed)
    folder = mirror / "models" / name
    folder.mkdir(parents=True)
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(texts(), vocab_size=200, show_progress=False)
    tokenizer.save_model(str(folder))
    write(folder / "tokenizer_config.json", _settings(do_lower_case=True, model_max_length=512))
    kinds = {CONTRIEVER: (BertConfig, BertModel), DPR_QUESTIONS: (DPRConfig, DPRQuestionEncoder)}
    config_class, model_class = kinds.get(name, (DPRConfig, DPRContextEncoder))
    config = config_class(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, initializer_range=0.2,
    )  # fmt: skip
    model_class(config).save_pretrained(folder)


def write_models(mirror: Path) -> None:
    write_gpt2(mirror, DISTILGPT2, 0)
    write_gpt2(mirror, GPT2, 1, n_layers=1)
    write_t5(mirror, T5_SMALL, 2)
    write_t5(mirror, T5_BASE, 4)
    write_llama(mirror)
    for seed, name in enumerate((CONTRIEVER, DPR_QUESTIONS, DPR_DOCUMENTS), start=5):
        write_bert(mirror, name, seed)


def tokenizers(mirror: Path) -> Iterator[tuple[str, Any]]:
    """Every model's tokenizer, by the model's id."""
    for name in (DISTILGPT2, GPT2, T5_SMALL, T5_BASE, LLAMA):
        yield name, AutoTokenizer.from_pretrained(mirror / "models" / name)
