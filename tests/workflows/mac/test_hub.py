"""The real and paper tiers, end to end on CPU: tiny models and data sets under the real ids, in the real formats, in a mirror."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import mac_mirror
import pytest
import torch
from rooms import Room, load_card

from baselines.online import with_documents
from rematch.errors import RematchError
from workflows.mac import arena as room_module
from workflows.mac import hub_sources as sources
from workflows.mac.corpus import read_stream
from workflows.mac.language_models import load_lm
from workflows.mac.memory import load_memory, read_notes
from workflows.mac.retrievers import HUB_IDS, load_retriever
from workflows.mac.streams import read_documents, read_pairs

pytestmark = pytest.mark.slow

CARD = load_card("mac")
TIERS = ("real", "paper")
N_DOCUMENTS, N_FEWER, N_STREAM, N_READ, LIMIT = 6, 4, 6, 5, 3
ARENA = {"n_first": 2, "probes": [0, 2], "max_new_tokens": 3, "n_timed": 2}
LEVELS: dict[str, list[Any]] = {
    "flops_matched": [3.0], "data_efficiency": [N_FEWER, N_DOCUMENTS], "memory_time": [N_READ], "ablation": [N_READ],
}  # fmt: skip
"""Instead of the tier's, where a tiny data set has no such levels; those of ood are streams."""
AGAIN = {("paper", "data_efficiency", "camels"), ("paper", "memory_time", "uniform"), ("paper", "ood", "salient_spans")}
"""Matches of contenders that play on another axis too."""
NEEDS_A_GPU = "mac_4bit"


def matches() -> Iterator[tuple[str, str, str]]:
    """Every contender of a tier on one axis, MAC on every axis."""
    for tier in TIERS:
        seen = {NEEDS_A_GPU}
        for axis in CARD.at(tier).axes:
            for name in CARD.axis(axis, tier).contenders:
                if name not in seen or name == "mac" or (tier, axis, name) in AGAIN:
                    yield tier, axis, name
                seen.add(name)


def options_at(tier: str) -> dict[str, dict[str, Any]]:
    """The options of every base that the tier's matches need."""
    spec, found = CARD.spec, set[str]()
    todo = {base for axis in CARD.at(tier).axes for name in CARD.axis(axis, tier).contenders for base in spec.contenders[name].bases}  # fmt: skip
    while todo:
        found |= todo
        todo = {need for name in todo for need in spec.bases[name].needs} - found
    return {name: CARD.options("bases", name, tier) for name in sorted(found)}


def class_of(base: str) -> str:
    return CARD.spec.bases[base].use.rpartition(":")[2]


def few_documents(base: str) -> bool:
    """Whether a base reads only the documents of the lowest level; ``memory_start``, from which others go on, is one."""
    return base.endswith("_fewer") or base == "memory_start"


def sizes_of(tier: str) -> dict[str, dict[str, Any]]:
    """Each base's options with smaller sizes; all else is the tier's."""
    small: dict[str, dict[str, Any]] = {"streams": {"n_train": N_DOCUMENTS, "n_stream": N_STREAM, "n_validation": 2}}
    for name, options in options_at(tier).items():
        n = N_FEWER if few_documents(name) else N_DOCUMENTS
        if class_of(name) == "Memory":
            recipe = options["recipe"]
            few = {"steps": min(2, recipe["steps"]), "documents": 4, "checkpoint_every": 1}
            steps = few | {"accumulation": min(2, recipe.get("accumulation", 1))}
            aggregator = {"n_heads": 2, "head_dim": 8, "expansion_width": 16}
            small[name] = {"n_documents": n, "recipe": recipe | steps}
            if "encoder" in options:
                small[name]["sizes"] = options["sizes"] | aggregator
        elif class_of(name) == "Weights":
            small[name] = {"n_documents": n, "steps": 1, "batch_size": 2}
        elif class_of(name) == "TunedLM":
            small[name] = {"max_steps": 1}
    return small


@pytest.fixture(scope="module", autouse=True)
def patch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    spacy = pytest.importorskip("spacy")

    def pipeline(name: str) -> Any:
        assert name == "en_core_web_sm"
        made = spacy.blank("en")
        made.add_pipe("entity_ruler").add_patterns([{"label": "ORG", "pattern": word} for word in ("News", "test")])
        return made

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patched.setenv("HF_HUB_OFFLINE", "1")
        patched.setattr(sources, "SQUAD_BOUNDS", mac_mirror.SQUAD_BOUNDS)
        patched.setattr(spacy, "load", pipeline)
        yield patched


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    mac_mirror.write_data(folder)
    mac_mirror.write_models(folder)
    return folder


def room_of(tier: str, mirror: Path, folder: Path, **changes: dict[str, Any]) -> Room:
    """A room at small sizes; ``changes`` are further options of bases."""
    folder.mkdir(exist_ok=True)
    options = sizes_of(tier)
    for name, more in changes.items():
        options[name] = options.get(name, {}) | more
    return Room(CARD, tier, folder, mirror, base_options=options, arena_options=ARENA)


@pytest.fixture(scope="module")
def rooms(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Room]:
    return {tier: room_of(tier, mirror, tmp_path_factory.mktemp(f"{tier} bases")) for tier in TIERS}


@pytest.fixture(scope="module")
def paper(rooms: dict[str, Room]) -> Room:
    return rooms["paper"]


def play(room: Room, axis: str, name: str, level: Any) -> Any:
    """A match, with all metrics of the axis but retention: models of random weights retain nothing."""
    metrics = [each for each in CARD.metrics_of(CARD.axis(axis, room.tier), name) if each != "f1_retention"]
    task = room.task(axis, name, level, metrics=tuple(metrics))
    smaller = {"limit": LIMIT, "max_steps": 1}
    fewer = {key: n for key, n in smaller.items() if getattr(task.contender, key, None) is not None}
    task = dataclasses.replace(task, contender=dataclasses.replace(task.contender, **fewer))
    return task, room.arena().play(task)


# The card


@pytest.mark.parametrize("tier", TIERS)
def test_the_sizes_of_a_tier_fit_together(tier: str) -> None:
    axes = {axis: CARD.axis(axis, tier) for axis in CARD.at(tier).axes}
    bases, arena = options_at(tier), CARD.at(tier).arena
    streams = bases["streams"]
    trained = {name: options for name, options in bases.items() if class_of(name) in ("Memory", "Weights")}
    documents = {name: options.get("n_documents", 8192) for name, options in trained.items()}
    assert max(documents.values()) == streams["n_train"]
    fewer, main = axes["data_efficiency"].levels
    for name, n in documents.items():
        assert n == (fewer if few_documents(name) else main)
    assert set(axes["ood"].levels) <= {"main", "long", *streams.get("others", [])}
    assert bases["corpus"]["dataset"] == streams["dataset"]
    assert bases["corpus"].get("later_datasets", []) == streams.get("others", [])
    for axis in ("memory_time", "ablation"):
        assert max(axes[axis].levels) <= streams["n_stream"]
    assert arena["n_first"] + max(arena["probes"]) <= streams["n_stream"]
    for name in axes["ablation"].contenders:
        limit = CARD.options("contenders", name, tier).get("limit")
        assert limit is None or limit < min(axes["ablation"].levels)


@pytest.mark.parametrize("tier", TIERS)
def test_all_models_are_looked_for_first(tier: str) -> None:
    bases = options_at(tier)
    wanted = {options[key] for options in bases.values() for key in ("hub_id", "encoder") if options.get(key)}
    wanted |= {model for options in bases.values() for model in HUB_IDS[options.get("retriever", "bm25")]}
    assert set(bases["corpus"]["later_models"]) == wanted


def test_memories_of_the_paper_tier_see_as_many_questions() -> None:
    for name, options in options_at("paper").items():
        if class_of(name) == "Memory" and options["recipe"]["steps"]:
            recipe, asks = options["recipe"], 1 - options.get("dropout", {}).get("p", 0)
            questions = recipe["steps"] * recipe["documents"] * recipe["accumulation"] * asks
            assert questions / options["n_documents"] == pytest.approx(50)


# Bases


def test_the_tokenizers_are_of_the_real_kinds(mirror: Path) -> None:
    kinds = {name: type(tokenizer).__name__ for name, tokenizer in mac_mirror.tokenizers(mirror)}
    assert set(kinds.values()) == {"GPT2Tokenizer", "T5Tokenizer", "LlamaTokenizer"}
    for name, tokenizer in mac_mirror.tokenizers(mirror):
        ids = tokenizer("What is train 3?")["input_ids"]
        assert tokenizer.unk_token_id not in ids or name in (mac_mirror.DISTILGPT2, mac_mirror.GPT2)
        assert tokenizer.decode(ids, skip_special_tokens=True) == "What is train 3?"
        assert (tokenizer.pad_token is None) == ("gpt2" in name or "llama" in name)


def test_the_data_are_the_tiers(rooms: dict[str, Room]) -> None:
    corpus = rooms["paper"].build("corpus")[0]
    assert [document.text for document in read_documents(corpus / "documents.jsonl")] == [
        f"Web page {i}.\n\nIt says so." for i in range(mac_mirror.N_ANCHORS)
    ]
    assert read_pairs(corpus / "qa_train.jsonl")[0].question == "What is qa_train 0 ?"
    assert read_documents(rooms["real"].build("corpus")[0] / "documents.jsonl") == []
    for tier, names in (
        ("real", {"main", "long", "validation"}),
        ("paper", {"main", "squad", "archivalqa", "validation"}),
    ):
        folder = rooms[tier].build("streams")[0]
        assert {path.stem for path in (folder / "streams").iterdir()} == names
        assert len(read_documents(folder / "train.jsonl")) == N_DOCUMENTS
        for name in names - {"validation"}:
            assert len(read_stream(folder, name)) == N_STREAM * (1 + (name == "long"))
    real = rooms["real"].build("streams")[0]
    assert {len(document.pairs) for document in read_stream(real, "main")} == {2}  # one document of each text
    assert read_stream(real, "long")[:N_STREAM] == read_stream(real, "main")


def test_training_documents_are_drawn_by_the_seed(paper: Room) -> None:
    first, other = (read_documents(paper.build("streams", seed=seed)[0] / "train.jsonl") for seed in (0, 1))
    assert {document.name for document in first} != {f"row {i + 1}" for i in range(N_DOCUMENTS)}
    assert first != other


def test_a_language_model_of_the_hub_is_no_copy(paper: Room) -> None:
    folder = paper.build("lm")[0]
    assert [path.name for path in folder.iterdir()] == ["hub.json"]
    model, tokenizer = load_lm(folder, paper.hub)
    assert (type(model).__name__, len(tokenizer)) == ("GPT2LMHeadModel", model.config.vocab_size)


def test_a_memory_that_others_start_from_is_untrained(paper: Room) -> None:
    start, info = paper.build("memory_start")
    trained, cost = paper.build("memory")
    assert (info.train_flops, info.samples_seen, read_notes(start)["steps"], read_notes(start)["curve"]) == (
        0,
        0,
        0,
        [],
    )
    assert (cost.samples_seen, read_notes(trained)["steps"]) == (16, 2)  # 4 documents in 2 batches a step
    assert not [*trained.glob("checkpoint*")]
    bases = {name: paper.build(name)[0] for name in ("qa_lm", "lm")}
    before, after = (load_memory(folder, bases, paper.hub) for folder in (start, trained))
    changed = [not torch.equal(a, b) for (_, a), (_, b) in zip(before.networks(), after.networks(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)


def test_a_step_of_the_reader_reads_the_retrieved_documents(paper: Room) -> None:
    reader, plain = (read_notes(paper.build(name)[0]) for name in ("memory_reader", "memory_plain"))
    assert (reader["reads"], plain["reads"]) == (5, 0)
    assert reader["train_bytes"][""] > 1.5 * plain["train_bytes"][""]


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("contriever", ("BertModel", "BertModel", "mean")),
        ("dpr", ("DPRQuestionEncoder", "DPRContextEncoder", "pooler")),
    ],
)
def test_a_reader_reads_what_its_retriever_finds(
    paper: Room, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, kinds: tuple[str, ...]
) -> None:
    tuned: list[Any] = []

    def tune(model: Any, tokenizer: Any, pairs: Any, *args: Any, **options: Any) -> Any:
        tuned.extend(pairs)
        raise InterruptedError

    monkeypatch.setattr("workflows.mac.language_models.qa_tune", tune)
    with pytest.raises(InterruptedError):
        dataclasses.replace(paper, folder=tmp_path).build_anew(f"reader_lm_{name}", None, 0)
    documents = read_documents(paper.build("streams")[0] / "train.jsonl")
    index: Any = load_retriever(name, paper.hub)([document.text for document in documents])
    encoders = index._retriever
    assert (
        type(encoders.questions.model).__name__,
        type(encoders.documents.model).__name__,
        encoders.documents.pooling,
    ) == kinds
    assert tuned == with_documents(index, [pair for document in documents for pair in document.pairs], 5)
    words = load_retriever("bm25", None)([document.text for document in documents])
    assert tuned != with_documents(words, [pair for document in documents for pair in document.pairs], 5)
    monkeypatch.undo()
    player = paper.task("ablation", name, N_READ).contender.player(paper.task("ablation", name, N_READ), None, False)
    assert player.lm.name_or_path == str(paper.build(f"reader_lm_{name}")[0])
    player.adapt(documents[:2])
    assert player.index.documents == [document.text for document in documents[:2]]
    player.adapt(documents[2:])
    assert player.index.documents == index.documents


def test_a_retriever_that_is_none() -> None:
    with pytest.raises(RematchError, match="unknown retriever 'bm52'; allowed: bm25, contriever, dpr"):
        load_retriever("bm52", None)


def test_camels_is_held_to_the_anchors(paper: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer = load_lm(paper.build("lm")[0], paper.hub)
    texts = []

    def read(net: Any, lm: Any, batches: Any, *_: Any) -> None:
        for batch in batches:
            rows = zip(batch.anchor_ids, batch.anchor_mask, strict=True)
            texts.extend(tokenizer.decode(ids[mask.bool()]) for ids, mask in rows)
        raise InterruptedError

    monkeypatch.setattr("workflows.mac.weights.meta_train", read)
    room = dataclasses.replace(paper, folder=tmp_path)
    with pytest.raises(InterruptedError):
        room.build_anew("weights", None, 0)
    assert len(texts) == 8  # a step of 4 batches of 2
    assert all(text.startswith("Web page ") for text in texts)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("memory", ("T5Model", "T5Model", "PrefixModulation")),
        ("memory_encoder", ("T5EncoderModel", "T5EncoderModel", "PrefixModulation")),
        ("memory_decoder", ("GPT2Model", "GPT2Model", "PrefixModulation")),
        ("memory_lora", ("T5Model", "T5Model", "LoRAModulation")),
        ("memory_none", ("T5Model", "NoneType", "PrefixModulation")),
    ],
)
def test_a_memory_is_made_of(paper: Room, name: str, kinds: tuple[str, ...]) -> None:
    bases = {each: paper.build(each)[0] for each in ("qa_lm", "lm")}
    mac = load_memory(paper.build(name)[0], bases, paper.hub)
    question = getattr(mac.question_encoder, "backbone", None)
    assert tuple(type(each).__name__ for each in (mac.amortizer.backbone, question, mac.modulation)) == kinds
    assert mac.config.n_tokens == 12


def test_the_untuned_language_model_is_the_hubs(paper: Room) -> None:
    bases = {name: paper.build(name)[0] for name in ("qa_lm", "lm")}
    published, _ = load_lm(bases["lm"], paper.hub)
    plain, tuned = (load_memory(paper.build(name)[0], bases, paper.hub).lm for name in ("memory_plain", "memory"))
    same = [torch.equal(a, b) for a, b in zip(published.parameters(), plain.parameters(), strict=True)]
    assert all(same)
    assert not all(torch.equal(a, b) for a, b in zip(published.parameters(), tuned.parameters(), strict=True))


def test_four_bits_need_a_gpu(paper: Room) -> None:
    with pytest.raises(RematchError, match=r"quantize='nf4' needs (a GPU|bitsandbytes)"):
        paper.build("memory_4bit")


def test_a_memory_goes_on_from_its_like_only(mirror: Path, tmp_path: Path) -> None:
    room = room_of("paper", mirror, tmp_path / "bases", memory={"base_lm": "plain"})
    with pytest.raises(RematchError, match=r"bases\.memory: base_lm: 'plain'; it goes on from one with 'tuned'"):
        room.build("memory")


# Matches


@pytest.mark.parametrize(("tier", "axis", "name"), [*matches()])
def test_every_match(rooms: dict[str, Room], tier: str, axis: str, name: str) -> None:
    room, spec = rooms[tier], CARD.axis(axis, tier)  # type: ignore[arg-type]
    hashes = set()
    for level in LEVELS.get(axis, spec.levels):
        task, outcome = play(room, axis, name, level)
        assert {m.metric for m in outcome.measurements} == set(task.metrics) - set(outcome.undefined)
        assert bool(outcome.undefined) == name.startswith("text_")
        for m in outcome.measurements:
            assert math.isfinite(m.value)
            assert CARD.spec.metrics[m.metric].scale != "log" or m.value > 0
            if m.metric in room_module.SCORES and not m.slice:
                assert m.items is not None
                assert len(m.items) == outcome.notes["questions"] > 0
        assert len(outcome.data_hash) == 16
        assert (outcome.train_flops > 0) == (name not in ("text_none", "text_uniform"))  # a model of the hub as it is
        assert outcome.samples_seen > 0
        hashes.add(outcome.data_hash)
        if spec.budget is not None:
            assert (outcome.flops_target is None) == (name in spec.budget.fixed)
            assert outcome.flops > 0
    assert len(hashes) == (len(spec.levels) if axis == "ood" else 1)


def test_retention_of_nothing_is_undefined(paper: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(room_module.SCORES, "f1", lambda answer, truth: 0.0)
    task = paper.task("data_efficiency", "no_adaptation", N_DOCUMENTS, metrics=("f1_retention", "f1"))
    outcome = paper.arena().play(task)
    assert {found.metric for found in outcome.measurements} == {"f1"}
    assert list(outcome.undefined) == ["f1_retention"]


def test_the_official_beams_are_searched(paper: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []
    made = room_module.Player._generate

    def generate(self: Any, *arguments: Any) -> list[str]:
        searched.append(self.asking.beams)
        return made(self, *arguments)

    monkeypatch.setattr(room_module.Player, "_generate", generate)
    play(paper, "data_efficiency", "no_adaptation", N_DOCUMENTS)
    assert {(beams.n_beams, beams.n_groups, beams.diversity) for beams in searched} == {(12, 4, 10.0)}


@pytest.mark.parametrize("name", ["mac", "uniform", "camels", "no_adaptation"])
def test_another_language_model_by_its_id(mirror: Path, tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "llama bases"
    room = room_of("paper", mirror, folder, lm={"hub_id": mac_mirror.LLAMA})
    model, _ = load_lm(room.build("lm")[0], room.hub)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    _, outcome = play(room, "ood", name, "main")
    assert all(math.isfinite(m.value) for m in outcome.measurements)


# What is missing is named at once


def without(mirror: Path, folder: Path, left_out: str) -> Path:
    """A mirror with links to all of another one's models and data sets but one."""
    for path in mirror.glob("*/*/*"):
        name = str(path.relative_to(mirror))
        if name != left_out:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(path, target_is_directory=True)
    return folder


@pytest.fixture
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: Any, **__: Any) -> None:
        raise AssertionError("something was trained")

    for place in ("language_models.qa_tune", "memory.train", "weights.meta_train"):
        monkeypatch.setattr(f"workflows.mac.{place}", train)


@pytest.mark.usefixtures("nothing_is_trained")
@pytest.mark.parametrize(
    ("tier", "missing"),
    [
        *(
            ("paper", f"models/{name}")
            for name in (mac_mirror.DISTILGPT2, mac_mirror.T5_BASE, mac_mirror.GPT2, mac_mirror.DPR_DOCUMENTS)
        ),
        *(("paper", f"datasets/{name}") for name in (sources.SQUAD, sources.CAMELS, mac_mirror.OPENWEBTEXT)),
        *(("real", missing) for missing in (f"models/{mac_mirror.T5_SMALL}", f"datasets/{sources.SQUAD}")),
    ],
)
def test_what_is_not_in_the_mirror(mirror: Path, tmp_path: Path, tier: str, missing: str) -> None:
    room = room_of(tier, without(mirror, tmp_path / "mirror", missing), tmp_path / "bases")
    with pytest.raises(RematchError, match=missing):
        room.build("corpus")


def _remove(name: str, folder: Path) -> None:
    (folder / name).unlink()


@pytest.mark.usefixtures("nothing_is_trained")
@pytest.mark.parametrize(
    ("of", "spoil", "message"),
    [
        (f"models/{mac_mirror.T5_BASE}", partial(_remove, "model.safetensors"), "t5-base: no weights as safetensors"),
        (f"models/{mac_mirror.GPT2}", partial(_remove, "vocab.json"), "no tokenizer can be read from .*gpt2"),
        (f"datasets/{sources.CAMELS}", partial(_remove, "StreamingQA/val.csv"), r"no file StreamingQA/val\.csv in"),
        (f"datasets/{sources.CAMELS}", partial(_remove, "ArchivalQA/qa_lt.csv"), r"ArchivalQA/qa_lt\.csv.*LDC2008T19"),
        (f"datasets/{mac_mirror.OPENWEBTEXT}", partial(_remove, "plain_text/train-00000-of-00080.parquet"), "no file .*00000-of-.*openwebtext"),
    ],
)  # fmt: skip
def test_a_file_is_missing(mirror: Path, tmp_path: Path, of: str, spoil: Callable[[Path], None], message: str) -> None:
    spoilt = without(mirror, tmp_path / "mirror", of)
    shutil.copytree(mirror / of, spoilt / of)
    spoil(spoilt / of)
    room = room_of("paper", spoilt, tmp_path / "bases")
    with pytest.raises(RematchError, match=message):
        room.build("corpus")


@pytest.mark.usefixtures("nothing_is_trained")
@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        ("corpus", {"dataset": "streamqa"}, "unknown data set 'streamqa'.*streamingqa"),
        ("corpus", {"later_datasets": ["squat"]}, "unknown data set 'squat'.*squad"),
        ("corpus", {"later_models": ["google-t5/t5"]}, "no 'models/google-t5/t5' in .*; fill it with: rematch mirror"),
        ("corpus", {"options": {"limit": {"train": 3}}}, r"bases\.corpus: options.*limit.*limits"),
        ("lm", {"hub_id": "distilgpt"}, "no 'models/distilgpt' in"),
        ("streams", {"n_train": 9}, r"bases\.streams: n_train: 9; allowed: 1 to 8, what there is of streamingqa"),
        ("streams", {"n_stream": 7}, r"bases\.streams: n_stream: 7; allowed: 1 to 6, what there is of archivalqa"),
        ("streams", {"others": ["squat"]}, "unknown data set 'squat'.*squad"),
    ],
)
def test_bad_options(mirror: Path, tmp_path: Path, base: str, options: dict[str, Any], message: str) -> None:
    room = room_of("paper", mirror, tmp_path / "bases", **{base: options})
    with pytest.raises(RematchError, match=message):
        room.build(base)


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        ("memory_plain", {"n_documents": 7}, r"bases\.memory_plain: n_documents: 7; the base 'streams' holds 6"),
        ("memory_plain", {"encoder": "google-t5/t5"}, "no 'models/google-t5/t5' in"),
        ("memory_plain", {"encoder": mac_mirror.GPT2}, r"amortizer 'encdec' needs an encoder-decoder \(T5\)"),
        ("weights", {"n_documents": 7}, r"bases\.weights: n_documents: 7; the base 'streams' holds 6"),
    ],
)
def test_bad_options_of_what_is_trained(
    paper: Room, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, options: dict[str, Any], message: str
) -> None:  # fmt: skip
    room = room_of("paper", mirror, tmp_path / "bases", **{base: options})
    for need in ("corpus", "lm", "qa_lm", "streams"):
        paper.build(need)
    room.built = {key: value for key, value in paper.built.items() if key[0] in ("corpus", "lm", "qa_lm", "streams")}
    for place in ("memory.train", "weights.meta_train"):
        monkeypatch.setattr(f"workflows.mac.{place}", None)
    with pytest.raises(RematchError, match=message):
        room.build(base)
