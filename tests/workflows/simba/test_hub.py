"""The paper tier, end to end on CPU: tiny models and datasets under the real ids, in the real formats, in a mirror."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lm_eval.tasks._index import TaskIndex
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXTokenizerFast, MambaConfig, MambaForCausalLM

from rematch.corpora import python_documents
from rematch.errors import RematchError
from workflows.simba import zero_shot

FAMILY = {"130m": (16, 2), "370m": (24, 2), "790m": (32, 3), "1.4b": (40, 4), "2.8b": (48, 4)}
ARENA = {
    "context": 96,
    "n_scored": 16,
    "choice_context": 24,
    "choice_continuation": 6,
    "n_influence": 2,
    "timing_context": 96,
    "timing_repeats": 1,
    "task_limit": 3,
}
TASKS = ("lambada_openai", "hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande")
TASK_FOLDERS = ("arc", "hellaswag", "lambada", "piqa", "winogrande")
TINY = {"tokens": 192, "batch_size": 1}
SPLITS = ("train", "validation", "test")
PARENT, PARTNER = "1.4b", "790m"


def model_id(size: str) -> str:
    return f"state-spaces/mamba-{size}-hf"


def texts(n: int, length: int) -> list[str]:
    everything = "".join(document.text for document in python_documents(n * length + 50_000))
    return [everything[i * length : (i + 1) * length] for i in range(n)]


def task_files(root: Path) -> list[Path]:
    return sorted(path for folder in TASK_FOLDERS for path in (root / folder).rglob("*.yaml"))


def write(folder: Path, file: str, rows: list[dict[str, Any]]) -> None:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_splits(folder: Path, under: str, rows: list[dict[str, Any]]) -> None:
    for split in SPLITS:
        write(folder, f"{under}/{split}-00000-of-00001.parquet", rows)


def declare(folder: Path, configs: dict[str, dict[str, str]]) -> None:
    """The front matter of a dataset card, as the hub's datasets declare their configurations."""
    lines = ["---", "configs:"]
    for name, files in configs.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [part for split, path in files.items() for part in (f"  - split: {split}", f"    path: {path}")]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


def write_models(mirror: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>", "<|padding|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts(4, 10_000), trainer)
    for index, (size, (width, n_layers)) in enumerate(FAMILY.items()):
        folder = mirror / "models" / model_id(size)
        torch.manual_seed(index)
        config = MambaConfig(vocab_size=320, hidden_size=width, num_hidden_layers=n_layers, state_size=4)
        MambaForCausalLM(config).save_pretrained(folder)
        GPTNeoXTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def write_datasets(datasets: Path) -> None:
    book = {"short_book_title": "A book", "publication_date": 1900, "url": "none"}
    for split in SPLITS:
        rows = [book | {"text": text} for text in texts(4, 4_000)]
        write(datasets / "deepmind/pg19", f"default/{split}/0000.parquet", rows)
        rows = [{"text": text} for text in texts(6, 2_000)]
        write(datasets / "JeanKaddour/minipile", f"data/{split}-00000-of-00001.parquet", rows)
    write(datasets / "EleutherAI/lambada_openai", "data/test.parquet", [{"text": "the cat sat on the mat"}] * 4)
    declare(datasets / "EleutherAI/lambada_openai", {"default": {"test": "data/test.parquet"}})
    row = {
        "ind": 1, "activity_label": "Cooking", "ctx_a": "A pot boils.", "ctx_b": "the cook", "ctx": "A pot boils. the cook",
        "endings": ["stirs.", "sleeps.", "flies.", "sings."], "source_id": "x", "split": "val", "split_type": "indomain",
        "label": "0",
    }  # fmt: skip
    write_splits(datasets / "Rowan/hellaswag", "data", [row] * 4)
    row = {"goal": "Boil water", "sol1": "Heat it.", "sol2": "Freeze it.", "label": 0}
    write_splits(datasets / "baber/piqa", "data", [row] * 4)
    row = {
        "id": "q", "question": "Which is hot?", "answerKey": "B",
        "choices": {"text": ["ice", "fire", "snow", "rain"], "label": ["A", "B", "C", "D"]},
    }  # fmt: skip
    arc = ("ARC-Easy", "ARC-Challenge")
    for name in arc:
        write_splits(datasets / "allenai/ai2_arc", name, [row] * 4)
    declare(datasets / "allenai/ai2_arc", {name: {s: f"{name}/{s}-*" for s in SPLITS} for name in arc})
    row = {"sentence": "The cup fell as _ was pushed.", "option1": "it", "option2": "he", "answer": "1"}
    write_splits(datasets / "allenai/winogrande", "winogrande_xl", [row] * 4)
    declare(datasets / "allenai/winogrande", {"winogrande_xl": {s: f"winogrande_xl/{s}-*" for s in SPLITS}})


@pytest.fixture(scope="module")
def paper_room(
    card: Any, make_room: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch_module: pytest.MonkeyPatch
) -> Any:
    mirror = tmp_path_factory.mktemp("mirror")
    # Of the thousands of files that lm-eval reads to know its tasks; remembered here and nowhere else.
    monkeypatch_module.setattr(TaskIndex, "_iter_yaml_files", staticmethod(task_files))
    monkeypatch_module.setattr(zero_shot, "_known_tasks", cache(zero_shot._known_tasks.__wrapped__))
    monkeypatch_module.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    write_models(mirror)
    write_datasets(mirror / "datasets")
    overrides = {"corpus": {"test_contexts": [96, 192], "n_windows": 3}}
    overrides |= dict.fromkeys(("parent_tuned", "dense_tuned", "simba_tuned"), TINY)
    return make_room(
        card, "paper", tmp_path_factory.mktemp("bases"), mirror, base_options=overrides, arena_options=ARENA
    )


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def share(paper_room: Any) -> float:
    """What the partner costs of the parent: the level, counted as the card's comment says."""
    from workflows.simba.models import _checkpoint_flops
    from workflows.simba.shapes import STANDARD, Shapes

    kinds = [Shapes.of(ARENA).shape(kind) for kind in STANDARD]
    flops = {size: _checkpoint_flops(paper_room.hub.model_path(model_id(size)), kinds) for size in (PARENT, PARTNER)}
    return flops[PARTNER] / flops[PARENT]


def test_a_level_names_its_checkpoint(paper_room: Any, share: float) -> None:
    folder, info = paper_room.build("dense", share)
    assert info.notes["hub_id"] == model_id(PARTNER)
    assert [path.name for path in folder.iterdir()] == ["hub.json"]  # no copy of the weights
    assert json.loads((paper_room.build("parent")[0] / "hub.json").read_text())["hub_id"] == model_id(PARENT)


def test_the_corpus_is_the_hubs(paper_room: Any) -> None:
    from workflows.simba.corpus import load_tokenizer, load_windows

    folder, info = paper_room.build("corpus")
    assert info.notes["dataset"] == "deepmind/pg19"
    assert load_windows(folder, "test").shape == (3, 192)
    assert load_windows(folder, "train").shape[1] == 96
    assert type(load_tokenizer(folder)).__name__.startswith("GPTNeoX")
    text = load_tokenizer(folder).decode(load_windows(folder, "train")[0])
    assert text in texts(6, 2_000)[0]  # trained on MiniPile


@pytest.mark.slow
def test_all_six_tasks_and_perplexity_at_equal_flops(paper_room: Any, share: float) -> None:
    metrics = ("perplexity", "choice_accuracy", "cloze_accuracy", "keep_ratio")
    for contender in ("simba", "dense"):
        task = paper_room.task("flops_matched", contender, share, metrics=metrics)
        outcome = paper_room.arena().play(task)
        accuracy = {m.slice: m for m in outcome.measurements if m.metric == "choice_accuracy"}
        assert set(accuracy) == {f"task={name}" for name in TASKS} | {""}
        assert all(len(accuracy[f"task={name}"].items) == 3 for name in TASKS)
        assert accuracy[""].value == pytest.approx(np.mean([accuracy[f"task={name}"].value for name in TASKS]))
        # One token of a context of 80 is 1 % of the FLOPs here.
        assert outcome.flops / outcome.flops_target == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("contender", ["simba_tuned", "dense_tuned", "parent_tuned"])
def test_fine_tuning_a_checkpoint(paper_room: Any, share: float, contender: str) -> None:
    task = paper_room.task("ablation", contender, share, metrics=("perplexity",))
    outcome = paper_room.arena().play(task)
    assert outcome.tokens_seen == 192
    assert outcome.train_flops > 0
    assert np.isfinite(outcome.measurements[0].value)


def test_longer_contexts(paper_room: Any) -> None:
    task = paper_room.task("memory_time", "simba", 192, metrics=("perplexity", "influence", "influence_decay"))
    assert len(paper_room.arena().play(task).measurements) > 3


def test_a_missing_model_says_how_to_fill_the_mirror(paper_room: Any) -> None:
    with pytest.raises(RematchError, match=r"no 'models/state-spaces/mamba-9b-hf'.*rematch mirror"):
        paper_room.hub.model_path("state-spaces/mamba-9b-hf")


@pytest.mark.slow
def test_an_unknown_lm_eval_task(paper_room: Any) -> None:
    from workflows.simba.zero_shot import task_configs

    with pytest.raises(RematchError, match="no task 'hellasweg'"):
        task_configs(["hellasweg"], paper_room.folder, paper_room.hub)
