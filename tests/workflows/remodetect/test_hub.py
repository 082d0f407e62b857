"""The paper and real tiers, end to end on CPU: tiny models and data sets under the real ids, in the real formats, in a mirror."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import remodetect_mirror
import torch
from rooms import Room, load_card
from safetensors.torch import load_file

from baselines.detectors.resampling import T5Filler
from baselines.detectors.sequence import BCEDetector, HubClassifier
from rematch.errors import RematchError
from workflows.remodetect import hub_sources as sources
from workflows.remodetect import language_models, rephrasing
from workflows.remodetect.reward_model import load_detector
from workflows.remodetect.texts import read_cells, read_rows

pytestmark = pytest.mark.slow

CARD = load_card("remodetect")
TIERS = ("real", "paper")
REAL_IDS = {
    "scoring": "EleutherAI/gpt-neo-125m",
    "reference": "EleutherAI/gpt-neo-125m",
    "filler": "google-t5/t5-small",
}
N_TRIPLETS = 5
N_ROWS = 15  # of HC3's 20; four fifths train: enough for the pairs that 2.17 times the FLOPs of a triplet buy
N_MIXED = 8
ARENA = {"n_triplets": N_TRIPLETS, "resamples": 2, "n_timed": 2}
LEVELS: dict[str, list[Any]] = {
    "data_efficiency": [4], "ablation": [N_TRIPLETS], "test_time_compute": [2], "memory_time": [14, 28],
}  # fmt: skip
"""Instead of the tier's, where a tiny data set has no such levels."""
REAL_MATCHES = (
    ("data_efficiency", "remodetect"), ("data_efficiency", "no_replay"), ("data_efficiency", "random_init"),
    ("ood", "remodetect"), ("ood", "bce_random"), ("test_time_compute", "fast_detectgpt"), ("memory_time", "detectgpt"),
)  # fmt: skip


def at_tier(tier: str) -> list[tuple[str, str]]:
    """Every contender of every axis of a tier."""
    return [(axis, name) for axis in CARD.at(tier).axes for name in CARD.axis(axis, tier).contenders]


def matches() -> Iterator[tuple[str, str, str]]:
    """Each contender of the paper tier on one axis, some on every axis, and what is of the real tier's own."""
    seen = set()
    for axis, name in at_tier("paper"):
        if name not in seen or name in ("remodetect", "fast_detectgpt", "npr"):
            yield "paper", axis, name
        seen.add(name)
    for axis, name in at_tier("real"):
        if (axis, name) in REAL_MATCHES:
            yield "real", axis, name


def hub_ids(tier: str) -> set[str]:
    """Every model that the bases of a tier's contenders take from the hub, but for what makes the texts."""
    found: set[str] = set()
    names = {base for _, name in at_tier(tier) for base in CARD.spec.contenders[name].bases}
    for name in names:
        options = CARD.options("bases", name, tier)
        found |= {*options.get("hub_ids", {}).values(), *([options["hub_id"]] if "hub_id" in options else [])}
    return found


def long_pairs(source: str) -> dict[str, list[str]]:
    """Just long enough to be perturbed, swapped and cut; a generated text is shorter than its partner."""
    words = " ".join(f"w{i}" for i in range(26))
    return {
        "original": [f"Human text {i} of {source} is here. {words} and so on to the end." for i in range(3)],
        "sampled": [f"Made text {i} by {source} goes on. It says {words}" for i in range(3)],
    }


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patched:
        yield patched


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    patch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("hc3", "hh", "synthetic", "mgtbench", "llama"):
        getattr(remodetect_mirror, f"write_{name}")(folder)
    remodetect_mirror.write_t5(folder, terse=True)
    for name in ("reward_model", "trunk", "gemma", "language_models", "classifiers"):
        getattr(remodetect_mirror, f"write_{name}")(folder)
    remodetect_mirror.write_language_models(folder, **REAL_IDS)
    for name in ("pubmed_gpt-4", "xsum_gpt-4", "xsum_davinci", "writing_claude"):
        remodetect_mirror.write_raw_data(folder, name, long_pairs(name))
    # A random T5 seldom fills all gaps, however often it is asked; random models paraphrase nothing.
    patch.setattr(language_models, "T5Filler", partial(T5Filler, max_tries=1))
    made = rephrasing.ChatModel.answers

    def answers(self: rephrasing.ChatModel, prompts: list[str], seed: int) -> list[str]:
        made(self, prompts[:2], seed)
        return [remodetect_mirror.scripted_answer(prompt) for prompt in prompts]

    patch.setattr(rephrasing.ChatModel, "answers", answers)
    paraphrased = rephrasing.Paraphraser.rephrase

    def rephrase(self: rephrasing.Paraphraser, texts: list[str], seed: int) -> list[str]:
        paraphrased(self, texts[:1], seed)
        return [text.title() for text in texts]

    patch.setattr(rephrasing.Paraphraser, "rephrase", rephrase)
    return folder


def room_of(tier: str, mirror: Path, folder: Path) -> Room:
    papers = CARD.options("bases", "texts", tier)["papers"] | {
        "n_triplets": N_ROWS, "n_replay": 12, "n_pairs": 2, "n_mixed": N_MIXED, "lengths": LEVELS["memory_time"],
        "max_new_tokens": 4, "batch_size": 32,
    }  # fmt: skip
    overrides: dict[str, dict[str, Any]] = {
        "texts": {"papers": papers},
        "token_passes": {"n_triplets": N_TRIPLETS},
        "perturbed": {"k": 2},
        "regenerated": {"k": 2},
    }
    if tier == "real":
        tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        overrides |= {"reward_model": {"sizes": tiny, "epochs": 2}, "random_model": {"sizes": tiny}}
    return Room(CARD, tier, folder, mirror, base_options=overrides, arena_options=ARENA)


@pytest.fixture(scope="module")
def rooms(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Room]:
    return {tier: room_of(tier, mirror, tmp_path_factory.mktemp(f"{tier} bases")) for tier in TIERS}


@pytest.fixture(scope="module")
def paper(rooms: dict[str, Room]) -> Room:
    return rooms["paper"]


# The card


@pytest.mark.parametrize("tier", TIERS)
def test_the_sizes_of_a_tier_fit_together(tier: str) -> None:
    axes = {axis: CARD.axis(axis, tier) for axis in CARD.at(tier).axes}
    bases = {name: CARD.options("bases", name, tier) for name in CARD.spec.bases}
    papers, arena = bases["texts"]["papers"], CARD.at(tier).arena
    most = max([arena["n_triplets"], *axes["data_efficiency"].levels])
    reads = most if "flops_matched" not in axes else 13 / 6 * most
    assert 0.8 * papers["n_triplets"] > 1.005 * reads  # some rows may be dropped
    assert bases["token_passes"]["n_triplets"] >= arena["n_triplets"]
    assert papers["lengths"] == axes["memory_time"].levels
    assert bases["perturbed"]["k"] == max([arena["resamples"], *axes["test_time_compute"].levels])
    assert set(papers["later_models"]) >= hub_ids(tier) - set(bases["language_models"]["hub_ids"].values())
    mixed = {name for _, name in at_tier(tier) if "ReMoDetect" in CARD.spec.contenders[name].use}
    for name in mixed:
        options = {"mix_ratio": 0.5, "finetune": True, "beta1": 1.0} | CARD.options("contenders", name, tier)
        if options["finetune"] and options["beta1"]:
            assert options["mix_ratio"] in papers["ratios"]
            assert papers["n_mixed"] >= most


def test_everything_that_trains_at_the_paper_tier_has_the_papers_optimiser() -> None:
    for name in {name for _, name in at_tier("paper")}:
        options = CARD.options("contenders", name, "paper")
        assert not {"learning_rate", "batch_size", "epochs", "warmup", "weight_decay"} & set(options)
    assert (BCEDetector().learning_rate, BCEDetector().batch_size) == (2e-5, 1)


# Bases


def test_bases_of_the_hub_are_no_copies(paper: Room) -> None:
    for name, spec in CARD.spec.bases.items():
        if spec.use.endswith((":RewardModel", ":LanguageModels")):
            assert [path.name for path in paper.build(name)[0].iterdir()] == ["hub.json"]


def test_the_texts_are_the_papers(paper: Room) -> None:
    folder = paper.build("texts")[0]
    cells = read_cells(folder)
    levels = CARD.axis("ood", "paper").levels
    assert {cell.domain for cell in cells} == {"hc3", *levels}
    assert [cell.domain for cell in cells if cell.seen and cell.whole] == ["hc3"]
    for domain in levels:
        assert {cell.attack for cell in cells if cell.domain == domain} == {"none", "rephrase", "swap"}
    assert {cell.words for cell in cells} == {None, *LEVELS["memory_time"]}
    assert all(cell.aligned for cell in cells if cell.words)
    for name, n in (("triplets", 12), ("validation", 3)):
        rows = read_rows(folder, name)
        assert len(rows) == n
        for row in rows[:N_MIXED]:
            assert {ratio: text is None for ratio, text in row["mixed"].items()} == {"0.25": True, "0.5": False, "0.75": False}  # fmt: skip
        assert all(row["mixed"] == {} for row in rows[N_MIXED:])


def test_language_models_are_read_in_half_precision(paper: Room) -> None:
    folder = paper.build("language_models")[0]
    scoring, reference = (
        load(folder, paper.hub) for load in (language_models.load_scoring, language_models.load_reference)
    )
    assert [type(model.model).__name__ for model in (scoring, reference)] == ["GPTNeoForCausalLM", "GPTJForCausalLM"]  # type: ignore[attr-defined]
    assert {next(model.model.parameters()).dtype for model in (scoring, reference)} == {torch.float16}  # type: ignore[attr-defined]
    assert reference.vocab_size == scoring.vocab_size + 15
    filler = language_models.load_filler(folder, paper.hub)
    assert type(filler.model).__name__ == "T5ForConditionalGeneration"  # type: ignore[attr-defined]


def weights_of(room: Room, base: str, seed: int = 0) -> dict[str, torch.Tensor]:
    detector = load_detector(BCEDetector(), room.build(base, seed=seed)[0], room.hub)
    assert type(detector.model).__name__ == "DebertaV2ForSequenceClassification"
    assert detector.encode(["a text"])["input_ids"].shape[0] == 1
    assert detector.decision_function(["a text of words", "another"])[0] is not None
    assert {tensor.dtype for tensor in detector.model.state_dict().values() if tensor.is_floating_point()} == {
        torch.float32
    }
    return detector.model.state_dict()


def test_a_trunk_gets_a_head_of_the_seed(paper: Room) -> None:
    state = torch.random.get_rng_state()
    first, other = (weights_of(paper, "plain_model", seed) for seed in (0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    published = load_file(paper.mirror / "models" / remodetect_mirror.TRUNK / "model.safetensors")  # type: ignore[operator]
    trunk = [name for name in first if name.startswith("deberta.")]
    assert len(trunk) > 20
    for name in trunk:
        assert torch.equal(first[name], published[name])
        assert torch.equal(other[name], published[name])
    assert first["classifier.weight"].shape == (1, 16)
    for name in ("classifier.weight", "pooler.dense.weight"):
        assert not torch.equal(first[name], other[name])
        assert torch.equal(first[name], weights_of(paper, "plain_model")[name])


def test_an_architecture_with_weights_of_the_seed(paper: Room) -> None:
    first, other, reward = (
        weights_of(paper, *which) for which in (("random_model", 0), ("random_model", 1), ("reward_model", 0))
    )
    assert {name: tensor.shape for name, tensor in first.items()} == {
        name: tensor.shape for name, tensor in reward.items()
    }
    again = weights_of(paper, "random_model")
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        if tensor.ndim > 1:
            assert not torch.equal(tensor, other[name])
            assert not torch.equal(tensor, reward[name])


def test_a_gemma_is_a_reward_model_too(paper: Room) -> None:
    detector = load_detector(BCEDetector(), paper.build("larger_reward_model")[0], paper.hub)
    assert type(detector.model).__name__ == "GemmaForSequenceClassification"
    assert next(detector.model.parameters()).dtype == torch.float32  # published in bfloat16
    alone = detector.decision_function(["a short text"])
    padded = detector.decision_function(["a short text", "a text that is longer " * 3])
    np.testing.assert_allclose(alone[0], padded[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "positive"), [("openai_classifier", 0), ("openai_large_classifier", 0), ("chatgpt_classifier", 1)]
)
def test_classifiers_are_turned_by_their_labels(paper: Room, name: str, positive: int) -> None:
    folder = paper.build(name)[0]
    detector = load_detector(HubClassifier(positive_class=positive), folder, paper.hub)
    with torch.no_grad():
        logits = detector.model(**detector.encode(["some text"])).logits[0]
    expected = float(logits[positive] - logits[1 - positive])
    assert detector.decision_function(["some text"])[0] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(RematchError, match=f"take {positive}"):
        load_detector(HubClassifier(positive_class=1 - positive), folder, paper.hub)


def test_a_reward_model_is_trained_on_preference_pairs(rooms: dict[str, Room]) -> None:
    room = rooms["real"]
    folder, info = room.build("reward_model")
    assert len(read_rows(room.build("texts")[0], "rewards")) == 6
    assert info.train_flops > 0
    detector = load_detector(BCEDetector(), folder, room.hub)
    assert type(detector.model).__name__ == "BertForSequenceClassification"
    untrained = load_detector(BCEDetector(), room.build("random_model")[0], room.hub)
    assert untrained.model.config.hidden_size == detector.model.config.hidden_size


# Matches


@pytest.mark.parametrize(("tier", "axis", "name"), [*matches()])
def test_every_match(rooms: dict[str, Room], tier: str, axis: str, name: str) -> None:
    room, spec = rooms[tier], CARD.axis(axis, tier)  # type: ignore[arg-type]
    arena = room.arena()
    for level in LEVELS.get(axis, spec.levels):
        outcome = arena.play(room.task(axis, name, level, metrics=tuple(spec.metrics)))
        assert {m.metric for m in outcome.measurements} == set(spec.metrics)
        assert all(np.isfinite(m.value) for m in outcome.measurements)
        assert outcome.notes["pairs_without_score"] == 0
        if spec.budget is not None:
            assert outcome.flops_target is not None
            assert outcome.flops / outcome.flops_target == pytest.approx(1, abs=0.2)


# What is missing is named at once


def without(mirror: Path, folder: Path, left_out: str) -> Path:
    """A mirror with links to all of another one's models and data sets but one."""
    for path in mirror.glob("*/*/*"):
        name = str(path.relative_to(mirror))
        if name != left_out:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(path, target_is_directory=True)
    return folder


MAKERS = {rephrasing.REPHRASER, rephrasing.PARAPHRASER}
DATASETS = (sources.HC3, sources.HH_RLHF, sources.SYNTHETIC_INSTRUCT, sources.FAST_DETECT_GPT, sources.MGTBENCH)


@pytest.fixture
def nothing_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded to write texts")

    for maker in (rephrasing.ChatModel, rephrasing.Paraphraser):
        monkeypatch.setattr(maker, "from_pretrained", generate)


@pytest.mark.usefixtures("nothing_is_generated")
@pytest.mark.parametrize(
    "missing",
    [*(f"models/{name}" for name in sorted(hub_ids("paper") | MAKERS)), *(f"datasets/{name}" for name in DATASETS)],
)
def test_before_a_text_is_made(mirror: Path, tmp_path: Path, missing: str) -> None:
    room = room_of("paper", without(mirror, tmp_path / "mirror", missing), tmp_path / "bases")
    room.folder.mkdir()
    with pytest.raises(RematchError, match=missing):
        room.build("texts")


@pytest.mark.usefixtures("nothing_is_generated")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), r"no weights as safetensors.*@refs/pr/N"),
        (lambda folder: (folder / "config.json").unlink(), "no model can be read from .*deberta-v3-large"),
        (lambda folder: (folder / "spm.model").unlink(), "no tokenizer can be read from .*deberta-v3-large"),
    ],
)
def test_a_model_without_its_files(mirror: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoilt = without(mirror, tmp_path / "mirror", f"models/{remodetect_mirror.TRUNK}")
    folder = spoilt / "models" / remodetect_mirror.TRUNK
    for path in (mirror / "models" / remodetect_mirror.TRUNK).iterdir():
        remodetect_mirror.write(folder / path.name, path.read_bytes())
    spoil(folder)
    room = room_of("paper", spoilt, tmp_path / "bases")
    room.folder.mkdir()
    with pytest.raises(RematchError, match=message):
        room.build("texts")
