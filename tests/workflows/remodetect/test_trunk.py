"""The small reward models: what goes into them, what they compute, and how they are trained and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch

from baselines.detectors.sequence import SequenceDetector, TrainedDetector
from methods.remodetect import ReMoDetector
from rematch.arena import BaseInfo, BaseJob
from workflows.remodetect.reward_model import RewardModel, load_detector, pair_accuracy
from workflows.remodetect.texts import read_rows, write_rows
from workflows.remodetect.trunk import HashingTokenizer, load_trunk, new_trunk

VOCABULARY = ["<unk>", *["the", "a", "cat", "dog", "sat", "ran", "on", "in", "mat", "hat", ".", ","]]
SIZES: dict[str, dict[str, Any]] = {
    "hashed": {"n_buckets": 64, "hidden_size": 6, "mlp_size": 5},
    "transformer": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24},
}
TEXTS = ["the cat sat on the mat .", "a dog", "the dog ran , in a hat"]


def trunk(architecture: Any = "hashed", seed: int = 0, **sizes: Any) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    model, tokenizer = new_trunk(architecture, VOCABULARY, **SIZES[architecture] | sizes)
    return model.eval(), tokenizer


def encoded(tokenizer: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    return dict(tokenizer(texts, truncation=True, max_length=512, padding=True, return_tensors="pt").items())


@torch.no_grad()
def logits(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    return model(**encoded(tokenizer, texts)).logits


# -- hashed features --------------------------------------------------------------------------------------------------


def test_features_of_a_text_are_its_words_pairs_and_lengths() -> None:
    (ids,) = HashingTokenizer(64)(["the cat sat"])["input_ids"].tolist()
    features = ["u the", "u cat", "u sat", "b the cat", "b cat sat", "l 3", "l 3", "l 3"]
    assert ids == [1 + crc32(feature.encode()) % 64 for feature in features]
    assert 0 < min(ids) <= max(ids) <= 64


def test_short_texts_are_padded_and_the_mask_says_so() -> None:
    batch = HashingTokenizer(64)(["a", "the cat sat", ""])
    assert batch["attention_mask"].sum(1).tolist() == [2, 8, 0]
    assert torch.equal(batch["attention_mask"], (batch["input_ids"] != 0).long())


def test_texts_are_cut_to_the_words_that_have_so_many_features() -> None:
    tokenizer = HashingTokenizer(64)
    cut, whole = tokenizer(["a b c d"], max_length=7), tokenizer(["a b"])
    assert torch.equal(cut["input_ids"], whole["input_ids"])
    assert torch.equal(tokenizer(["a b"], max_length=9)["input_ids"], whole["input_ids"])


def test_very_long_words_have_one_length() -> None:
    ids = HashingTokenizer(2**20)(["x" * 16, "x" * 99])["input_ids"]
    assert ids[0, 1] == ids[1, 1]
    assert ids[0, 0] != ids[1, 0]


def test_reward_is_a_network_of_the_mean_feature() -> None:
    model, tokenizer = trunk()
    (ids,) = tokenizer(TEXTS[:1])["input_ids"]
    pooled = model.embeddings.weight[ids].mean(0)
    first, _, _, last = model.mlp
    by_hand = last.weight @ torch.relu(first.weight @ pooled + first.bias) + last.bias
    assert logits(model, tokenizer, TEXTS[:1])[0] == pytest.approx(by_hand.item(), abs=1e-5)


def test_counted_flops_of_a_text_by_hand() -> None:
    """Two matrix products, 6 x 5 and 5 x 1, at 2 a multiplication; backward is twice forward, embeddings included."""
    cost = TrainedDetector().attach(*trunk()).pass_cost(TEXTS)
    assert cost(3, 20, backward=False) == pytest.approx(3 * 2 * (6 * 5 + 5 * 1))
    assert cost(3, 20, backward=True) == pytest.approx(3 * cost(3, 20, backward=False))


# -- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", list(SIZES))
def test_padding_changes_no_reward(architecture: str) -> None:
    model, tokenizer = trunk(architecture)
    together = logits(model, tokenizer, TEXTS)
    assert together.shape == (3, 1)
    assert len(set(together[:, 0].tolist())) == 3
    alone = torch.cat([logits(model, tokenizer, [text]) for text in TEXTS])
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("architecture", list(SIZES))
def test_saved_and_loaded_it_has_the_very_same_weights(architecture: str, tmp_path: Path) -> None:
    model, tokenizer = trunk(architecture)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, its_tokenizer = load_trunk(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    found, expected = loaded.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    rewards = logits(loaded.eval(), its_tokenizer, TEXTS)
    assert torch.allclose(rewards, logits(model, tokenizer, TEXTS), atol=1e-6)


@pytest.mark.parametrize("architecture", list(SIZES))
def test_weights_come_from_torchs_generator(architecture: str) -> None:
    (one, tokenizer), (same, _), (other, _) = trunk(architecture), trunk(architecture), trunk(architecture, seed=1)
    assert torch.equal(logits(one, tokenizer, TEXTS), logits(same, tokenizer, TEXTS))
    assert not torch.equal(logits(one, tokenizer, TEXTS), logits(other, tokenizer, TEXTS))


def test_words_outside_the_transformers_vocabulary_are_one_word() -> None:
    model, tokenizer = trunk("transformer")
    found = logits(model, tokenizer, ["the zebra sat", "the <unk> sat", "the yak sat", "THE Yak sat", "the cat sat"])
    assert torch.allclose(found[:4], found[:1].expand(4, 1), atol=1e-6)
    assert not torch.allclose(found[4], found[0], atol=1e-6)


@pytest.mark.parametrize("architecture", list(SIZES))
def test_dropout_is_for_training_alone(architecture: str) -> None:
    model, tokenizer = trunk(architecture, **({"dropout": 0.5} if architecture == "hashed" else {}))
    assert torch.equal(logits(model, tokenizer, TEXTS), logits(model, tokenizer, TEXTS))
    model.train()
    assert not torch.equal(logits(model, tokenizer, TEXTS), logits(model, tokenizer, TEXTS))


def test_training_leaves_padding_at_zero() -> None:
    model, tokenizer = trunk()
    detector = ReMoDetector(learning_rate=0.1, batch_size=2, epochs=4).attach(model, tokenizer)
    before = model.embeddings.weight.detach().clone()
    detector.fit([(TEXTS[0], TEXTS[1], TEXTS[2])] * 4, TEXTS)
    assert not torch.equal(model.embeddings.weight[1:], before[1:])
    assert not model.embeddings.weight[0].any()


def test_a_text_that_is_read_whole_is_not_called_truncated() -> None:
    detector = SequenceDetector(max_length=20).attach(*trunk())
    assert detector.score_texts(["the cat sat on the mat and ran"]).statuses == ["ok"]


# -- the reward model -------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Callable[..., tuple[Path, BaseInfo]]:
    """Builds a reward model on pairs in which the chosen text holds a comma, or on others."""
    texts = tmp_path / "texts"
    texts.mkdir()
    rng = np.random.default_rng(0)

    def text(mark: str) -> str:
        words = rng.choice(VOCABULARY[1:11], 12)
        words[rng.integers(12)] = mark
        return " ".join(words)

    write_rows(texts, "rewards", ({"chosen": text(","), "rejected": text(".")} for _ in range(200)))

    def built(seed: int = 0, **options: Any) -> tuple[Path, BaseInfo]:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        out.mkdir()
        builder = RewardModel(**{"sizes": SIZES[options.get("architecture", "hashed")]} | options)
        return out, builder.build(BaseJob("remodetect", "smoke", "rm", seed, None, {"texts": texts}, {}, out))

    return built


@pytest.mark.parametrize("architecture", list(SIZES))
def test_it_learns_what_the_annotators_prefer(
    architecture: str, base: Callable[..., tuple[Path, BaseInfo]], tmp_path: Path
) -> None:
    # With 64 ids for all features a comma is not told from much else.
    sizes = SIZES[architecture] | ({"n_buckets": 8192, "hidden_size": 32} if architecture == "hashed" else {})
    folder, info = base(architecture=architecture, sizes=sizes, epochs=12, patience=12, learning_rate=1e-2)
    model, tokenizer = load_trunk(folder)
    rows = read_rows(tmp_path / "texts", "rewards")
    held_out = rows[: len(rows) // 10]
    assert info.notes["held_out_accuracy"] > 0.9
    assert pair_accuracy(model, tokenizer, held_out) == pytest.approx(info.notes["held_out_accuracy"])
    turned = [{"chosen": row["rejected"], "rejected": row["chosen"]} for row in held_out]
    assert pair_accuracy(model, tokenizer, turned) < 0.1


def test_its_cost_is_that_of_the_texts_it_read(base: Callable[..., tuple[Path, BaseInfo]]) -> None:
    """180 of the 200 pairs are trained on, two texts each of 12 words, that is 12 + 11 + 12 features."""
    _, info = base(epochs=3, patience=9)
    assert info.samples_seen == 3 * 180 * 2
    assert info.train_flops == 3 * info.samples_seen * 2 * (6 * 5 + 5 * 1)
    assert info.tokens_seen == info.samples_seen * 35


def test_training_stops_where_nothing_improves(base: Callable[..., tuple[Path, BaseInfo]]) -> None:
    _, info = base(epochs=50, patience=2, learning_rate=0.0)
    assert info.notes["epochs"] == 3  # the first is the best so far, and two follow


def test_without_epochs_it_is_random_and_free(base: Callable[..., tuple[Path, BaseInfo]]) -> None:
    folder, info = base(epochs=0)
    assert (info.train_flops, info.samples_seen) == (0, 0)
    torch.manual_seed(0)
    fresh, _ = new_trunk("hashed", [], **SIZES["hashed"])
    found, tokenizer = load_trunk(folder)
    assert torch.equal(logits(found.eval(), tokenizer, TEXTS), logits(fresh.eval(), tokenizer, TEXTS))


def test_a_seed_decides_its_weights(base: Callable[..., tuple[Path, BaseInfo]]) -> None:
    def rewards(seed: int) -> list[float]:
        model, tokenizer = load_trunk(base(seed, epochs=2)[0])
        return logits(model.eval(), tokenizer, TEXTS)[:, 0].tolist()

    assert rewards(0) == rewards(0)
    assert rewards(0) != rewards(1)


def test_a_detector_takes_a_bases_model_and_keeps_its_options(base: Callable[..., tuple[Path, BaseInfo]]) -> None:
    folder, _ = base(epochs=1)
    detector = load_detector(ReMoDetector(learning_rate=0.5, max_length=70), folder, None)
    assert (detector.learning_rate, detector.max_length) == (0.5, 70)
    model, tokenizer = load_trunk(folder)
    assert detector.decision_function(TEXTS) == pytest.approx(logits(model.eval(), tokenizer, TEXTS)[:, 0].tolist())


def test_the_rooms_reward_model_knows_nothing_of_human_texts(room: Any) -> None:
    """It saw pairs of samples alone, and yet its rewards are its own: the random one has others."""
    trained, plain = (load_trunk(room.build(name)[0]) for name in ("reward_model", "random_model"))
    rows = read_rows(room.build("texts")[0], "rewards")[100:]
    assert pair_accuracy(*trained, rows) > pair_accuracy(*plain, rows) + 0.1
