"""The shared passes: what is looked up for a text is what would be computed for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baselines.detectors.resampling import perturbed_statistics, regenerated_statistics
from baselines.detectors.statistics import GLTR, STATISTICS, TokenStatistics, ZeroShot, token_statistics
from rematch.arena import Task
from workflows.remodetect.entries import entry_for
from workflows.remodetect.language_models import load_filler, load_reference, load_scoring, load_writers
from workflows.remodetect.likelihoods import Likelihoods
from workflows.remodetect.texts import distinct_texts, read_cells, read_rows

N_TRIPLETS, K = 40, 3
BASES = ("token_passes", "texts", "language_models", "perturbed", "regenerated")


@pytest.fixture(scope="module")
def folders(room: Any) -> dict[str, Path]:
    return {name: room.build(name)[0] for name in BASES}


@pytest.fixture(scope="module")
def likelihoods(folders: dict[str, Path]) -> Likelihoods:
    return Likelihoods.load(folders["texts"], folders["token_passes"])


@pytest.fixture(scope="module")
def sample(texts: Path) -> list[str]:
    """Texts of all cells, out of order, short ones and repeated ones among them."""
    some = [text for cell in read_cells(texts) for text in (*cell.human[:3], *cell.llm[:3])]
    return [some[index] for index in np.random.default_rng(0).permutation(len(some))]


def arrays(stats: TokenStatistics) -> dict[str, np.ndarray]:
    return {field.name: getattr(stats, field.name) for field in dataclasses.fields(stats)}


def same(found: TokenStatistics, expected: TokenStatistics) -> None:
    """As rows are padded to the longest that were read together, the looked-up ones may be wider."""
    for name, values in arrays(expected).items():
        theirs = arrays(found)[name]
        assert np.isnan(theirs[:, values.shape[1] :]).all()
        np.testing.assert_allclose(theirs[:, : values.shape[1]], values, atol=1e-5, err_msg=name)


def test_statistics_looked_up_are_those_computed_afresh(
    likelihoods: Likelihoods, sample: list[str], language_models: Path
) -> None:
    scoring, reference = load_scoring(language_models, None), load_reference(language_models, None)
    same(likelihoods.of(sample), token_statistics(scoring, sample, reference))


def test_scoring_model_is_the_other_half_and_wrote_none_of_the_triplets(language_models: Path) -> None:
    writers = load_writers(language_models, "sci")
    scoring, reference = load_scoring(language_models, None), load_reference(language_models, None)
    for model, writer in ((scoring, writers["b"]), (reference, writers["a"])):
        assert isinstance(model, type(writer))
        assert np.array_equal(model.counts, writer.counts)
    assert writers["a"].order == writers["b"].order == 3
    assert writers["bigram"].order == 2
    assert not np.array_equal(writers["a"].counts, writers["b"].counts)
    assert writers["a"].vocabulary == load_writers(language_models, "data")["b"].vocabulary


def test_training_texts_are_read_up_to_the_number_that_was_asked_for(likelihoods: Likelihoods, texts: Path) -> None:
    rows = read_rows(texts, "triplets")
    of_cells = set(distinct_texts(texts, 0))
    assert {row[side] for row in rows[:N_TRIPLETS] for side in ("llm", "human")} <= set(likelihoods.places)
    more = {row[side] for row in rows[N_TRIPLETS:] for side in ("llm", "human")} - of_cells
    assert more
    assert more.isdisjoint(likelihoods.places)


def test_versions_looked_up_are_those_computed_afresh(
    likelihoods: Likelihoods, folders: dict[str, Path], sample: list[str], texts: Path, language_models: Path
) -> None:
    scoring, filler = load_scoring(language_models, None), load_filler(language_models, None)
    everything = distinct_texts(texts, 0)
    places = [everything.index(text) for text in sample]
    for kind in ("perturbed", "regenerated"):
        rng = np.random.default_rng([0, *kind.encode()])
        if kind == "perturbed":
            afresh = perturbed_statistics(scoring, everything, filler, K, rng)
        else:
            afresh = regenerated_statistics(scoring, everything, scoring, K, rng)
        found = likelihoods.versions_of(sample, folders[kind])
        assert found.log_p.shape == (len(sample), K)
        np.testing.assert_allclose(found.log_p, afresh.log_p[places], atol=1e-6)
        np.testing.assert_allclose(found.log_rank, afresh.log_rank[places], atol=1e-6)


def test_versions_are_of_the_very_text(likelihoods: Likelihoods, folders: dict[str, Path], sample: list[str]) -> None:
    """Perturbed in a few words, a text has about the likelihood it had; with too few words to perturb, exactly it."""
    own = np.nanmean(likelihoods.of(sample).log_p, axis=1)
    versions = likelihoods.versions_of(sample, folders["perturbed"]).log_p
    short = np.array([len(text.split()) < 14 for text in sample])
    assert short.any()
    np.testing.assert_allclose(versions[short], np.repeat(own[short, None], K, axis=1), atol=1e-5)
    assert np.corrcoef(own[~short], versions[~short].mean(1))[0, 1] > 0.7
    assert (np.ptp(versions[~short], axis=1) > 0).mean() > 0.9


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_detectors_scores_are_those_of_its_texts(
    statistic: str, room: Any, folders: dict[str, Path], sample: list[str], task_on: Callable[..., Task]
) -> None:
    """In whatever order and company it is asked for them; and they do not change when asked again."""
    task = task_on(ZeroShot(statistic), folders, ["auroc"])
    entry = entry_for(task, K)
    entry.prepare(N_TRIPLETS, None)
    scores = entry.scores(sample)
    assert np.isfinite(scores).all()
    assert np.array_equal(entry.scores(sample[::-1]), scores[::-1])
    assert np.array_equal(entry_for(task, K).scores(sample[5:9]), scores[5:9])
    if not ZeroShot(statistic).resampling:
        models = folders["language_models"]
        stats = token_statistics(load_scoring(models, None), sample, load_reference(models, None))
        np.testing.assert_allclose(scores, ZeroShot(statistic).score(stats), atol=1e-4)


@pytest.mark.parametrize(
    ("statistic", "k", "passes"),
    [("log_likelihood", 3, 1), ("fast_detectgpt", 3, 2), ("detectgpt", 3, 4), ("npr", 2, 3), ("dna_gpt", 1, 2)],
)
def test_passes_of_a_text(
    statistic: str, k: int, passes: int, folders: dict[str, Path], task_on: Callable[..., Task]
) -> None:
    """DetectGPT reads the text and its k versions; Fast-DetectGPT reads it by two models."""
    assert entry_for(task_on(ZeroShot(statistic), folders, []), k).passes() == passes


def test_fewer_versions_are_the_first_ones(
    folders: dict[str, Path], likelihoods: Likelihoods, sample: list[str], task_on: Callable[..., Task]
) -> None:
    task = task_on(ZeroShot("dna_gpt"), folders, [])
    versions = likelihoods.versions_of(sample, folders["regenerated"])
    own = np.nanmean(likelihoods.of(sample).log_p, axis=1)
    for k in (1, 2, 3):
        np.testing.assert_allclose(entry_for(task, k).scores(sample), own - versions.log_p[:, :k].mean(1), atol=1e-9)


def test_gltr_learns_from_the_triplets_alone(
    folders: dict[str, Path], texts: Path, task_on: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    fit = GLTR.fit

    def spy(self: GLTR, stats: TokenStatistics, labels: Any) -> GLTR:
        given.append((stats, list(labels)))
        return fit(self, stats, labels)

    monkeypatch.setattr(GLTR, "fit", spy)
    entry = entry_for(task_on(GLTR(), folders, []), K)
    entry.prepare(10, None)
    rows = read_rows(texts, "triplets")[:10]
    models = folders["language_models"]
    ((stats, labels),) = given
    assert labels == [1] * 10 + [0] * 10
    expected = token_statistics(
        load_scoring(models, None),
        [row[side] for side in ("llm", "human") for row in rows],
        load_reference(models, None),
    )
    same(stats, expected)
    assert entry.samples_seen == 20
    assert entry.train_flops == 0


@pytest.mark.parametrize("statistic", ["log_likelihood", "fast_detectgpt", "detectgpt", "dna_gpt"])
def test_timing_does_all_the_work_anew(
    statistic: str, folders: dict[str, Path], sample: list[str], task_on: Callable[..., Task]
) -> None:
    """Of texts that no shared pass has read, too."""
    entry = entry_for(task_on(ZeroShot(statistic), folders, []), 2)
    assert entry.seconds([*sample[:3], "the cat sat on the mat and then it was the dog that sat there"]) > 0


def test_bases_say_how_much_was_read(room: Any, texts: Path) -> None:
    info = room.build("token_passes")[1]
    everything = distinct_texts(texts, N_TRIPLETS)
    assert info.samples_seen == len(everything)
    assert info.tokens_seen == sum(len(text.split()) - 1 for text in everything)
    for kind in ("perturbed", "regenerated"):
        assert room.build(kind)[1].samples_seen == K * len(distinct_texts(texts, 0))
    assert room.build("perturbed")[1].data_hash == room.build("regenerated")[1].data_hash != info.data_hash
