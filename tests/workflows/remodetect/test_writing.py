"""The texts of a seed: pairs that differ in nothing but who wrote them, and files that hold what they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from rematch.arena import BaseJob
from rematch.errors import RematchError
from workflows.remodetect.annotators import DECISIVENESS, TASTES, Annotators, Selector, Surface
from workflows.remodetect.corpus import DOMAINS, PARTS, load_part
from workflows.remodetect.texts import Cell, cut_cells, distinct_texts, read_cells, read_rows, write_rows
from workflows.remodetect.writing import ATTACK_SPAN, PROMPT, SPAN, Texts, _spans

WORDS = 40
RATIOS = {"0.2": 0, "0.25": 1, "0.5": 2, "0.75": 3}
"""Spans of the four that are written anew."""
FILES = ("triplets", "validation", "replay", "rewards", "preferences", "cells")
Ids = Callable[[Sequence[str]], np.ndarray]


def selector(texts: Path) -> Selector:
    """The reward that picked, as it was written to a base."""
    found = Selector()
    found.read(texts)
    return found


@pytest.fixture(scope="module")
def cells(texts: Path) -> list[Cell]:
    return read_cells(texts)


@pytest.fixture(scope="module")
def windows(corpus: Path) -> dict[tuple[str, str], set[str]]:
    """Human windows by domain and part."""
    return {(d, p): {" ".join(window) for window in load_part(corpus, d, p)} for d in DOMAINS for p in PARTS}


def prompt(text: str) -> str:
    return " ".join(text.split()[:PROMPT])


def the(cells: Sequence[Cell], domain: str, source: str, attack: str = "none", words: int | None = None) -> Cell:
    (found,) = [
        c for c in cells if (c.domain, c.source, c.attack, c.words) == (domain, source, attack, words)
    ]  # fmt: skip
    return found


def differing(first: np.ndarray, second: np.ndarray, start: int, width: int) -> np.ndarray:
    """Spans of ``width`` words from ``start`` on that are not the same in both, (texts, spans)."""
    unlike = (first != second)[:, start:]
    return unlike.reshape(len(first), -1, width).any(2)


# -- alike ------------------------------------------------------------------------------------------------------------


def test_every_text_has_as_many_words_of_the_same_vocabulary(texts: Path, cells: list[Cell], ids_of: Ids) -> None:
    for cell in cells:
        for side in (cell.human, cell.llm):
            assert ids_of(side).shape == (len(side), cell.words or WORDS)
    for name in FILES[:-1]:
        some = [row[key] for row in read_rows(texts, name) for key in row if key != "mixed"]
        some += [text for row in read_rows(texts, name) for text in row.get("mixed", {}).values() if text]
        assert ids_of(some).shape == (len(some), WORDS)


def test_pairs_share_their_prompt_and_no_more(texts: Path, cells: list[Cell]) -> None:
    pairs = [(h, g) for cell in cells for h, g in zip(cell.human, cell.llm, strict=True)]
    pairs += [(row["human"], row["llm"]) for name in ("triplets", "validation") for row in read_rows(texts, name)]
    assert all(prompt(human) == prompt(llm) for human, llm in pairs)
    whole = [pair for pair in pairs if len(pair[0].split()) > PROMPT]
    assert np.mean([human == llm for human, llm in whole]) < 0.01


def test_human_texts_are_windows_of_the_part_they_are_for(
    texts: Path, cells: list[Cell], windows: dict[tuple[str, str], set[str]]
) -> None:
    for cell in cells:
        if cell.words is None:
            assert set(cell.human) <= windows[cell.domain, "test"]
            assert len(cell.human) == len(set(cell.human)) == len(cell.llm) == 30
    for name, part in (("triplets", "train"), ("validation", "validation")):
        human = [row["human"] for row in read_rows(texts, name)]
        assert set(human) <= windows["sci", part]
        assert len(set(human)) == len(human)


def test_no_generated_text_is_a_human_window(
    texts: Path, cells: list[Cell], windows: dict[tuple[str, str], set[str]]
) -> None:
    human = set().union(*windows.values())
    written = [text for cell in cells if cell.words is None for text in cell.llm]
    written += [row["llm"] for row in read_rows(texts, "triplets")]
    assert not human & set(written)


# -- preferences ------------------------------------------------------------------------------------------------------


def test_preference_pairs_hold_no_human_continuation(texts: Path, windows: dict[tuple[str, str], set[str]]) -> None:
    human = {text.split(" ", PROMPT)[PROMPT] for part in windows.values() for text in part}
    # What is left of the lines of tables anybody may repeat: "= = = = ...".
    human = {text for text in human if len(set(text.split())) > 4}
    starts = {prompt(text) for (_, part), some in windows.items() for text in some if part == "preferences"}
    rows = read_rows(texts, "rewards") + read_rows(texts, "preferences")
    for row in rows:
        assert prompt(row["chosen"]) == prompt(row["rejected"])
        assert prompt(row["chosen"]) in starts
        assert human.isdisjoint(row[side].split(" ", PROMPT)[PROMPT] for side in row)


def test_pairs_come_from_all_domains(texts: Path, windows: dict[tuple[str, str], set[str]]) -> None:
    starts = {d: {prompt(text) for text in windows[d, "preferences"]} for d in DOMAINS}
    rows = read_rows(texts, "rewards") + read_rows(texts, "preferences")
    shares = {d: np.mean([prompt(row["chosen"]) in starts[d] for row in rows]) for d in DOMAINS}
    assert shares["sci"] == pytest.approx(1 / 2, abs=0.05)
    for domain in DOMAINS[1:]:
        assert shares[domain] == pytest.approx(1 / 6, abs=0.05)


def test_replay_is_what_the_reward_model_reads_and_held_out_pairs_are_not(texts: Path) -> None:
    rewards, preferences = read_rows(texts, "rewards"), read_rows(texts, "preferences")
    assert (len(rewards), len(preferences)) == (1000, 200)
    read = [row[side] for row in rewards for side in ("chosen", "rejected")]
    assert [row["text"] for row in read_rows(texts, "replay")] == read
    assert set(read).isdisjoint(row[side] for row in preferences for side in row)


def test_labels_follow_the_annotators_choices(texts: Path, vocabulary: list[str], ids_of: Ids) -> None:
    """The slope of the choices in the utility, by maximum likelihood, is the annotators' own within 4 standard errors."""
    rows = read_rows(texts, "rewards") + read_rows(texts, "preferences")
    chosen, rejected = (ids_of([row[side] for row in rows]) for side in ("chosen", "rejected"))
    people = Annotators.of(Surface(tuple(vocabulary)), TASTES["a"], np.concatenate([chosen, rejected]))
    margin = (people.utility(chosen) - people.utility(rejected)) / people.spread

    def loss(slope: float) -> float:
        return float(np.logaddexp(0, -slope * margin).sum())

    slope = minimize_scalar(loss, bounds=(0, 10), method="bounded").x
    p = 1 / (1 + np.exp(-slope * margin))
    error = 1 / np.sqrt((margin**2 * p * (1 - p)).sum())
    assert error < 0.1
    assert abs(slope - DECISIVENESS) < 4 * error
    assert 0.6 < np.mean(margin > 0) < 0.9  # noisy


def test_vendors_are_akin_and_know_their_annotators(room: Any) -> None:
    notes = room.build("texts")[1].notes
    assert 0.6 <= notes["utilities"] <= 0.85
    assert all(0.9 < notes[f"reward_{name}_utility"] < 1 for name in TASTES)


# -- to train on ------------------------------------------------------------------------------------------------------


def test_mixed_texts_change_so_many_whole_spans_and_never_the_prompt(texts: Path, ids_of: Ids) -> None:
    for name, n_mixed in (("triplets", 80), ("validation", 20)):
        rows = read_rows(texts, name)
        assert [set(row["mixed"]) for row in rows] == [set(RATIOS) if i < n_mixed else set() for i in range(len(rows))]
        human = ids_of([row["human"] for row in rows[:n_mixed]])
        for ratio, n_spans in RATIOS.items():
            found = [row["mixed"][ratio] for row in rows[:n_mixed]]
            if not n_spans:
                assert found == [None] * n_mixed  # nothing could be rephrased
                continue
            mixed = ids_of(found)
            assert np.array_equal(mixed[:, :PROMPT], human[:, :PROMPT])
            spans = differing(mixed, human, PROMPT, SPAN).sum(1)
            assert spans.max() == n_spans
            assert np.mean(spans == n_spans) > 0.95  # a span may be written as it was, by chance


def test_every_span_is_rewritten_as_often_as_the_others(texts: Path, ids_of: Ids) -> None:
    rows = [row for row in read_rows(texts, "triplets") if row["mixed"]]
    spans = differing(
        ids_of([row["mixed"]["0.5"] for row in rows]), ids_of([row["human"] for row in rows]), PROMPT, SPAN
    )
    share = spans.mean(0)  # 80 texts: one standard error is 0.056
    assert share == pytest.approx([0.5] * 4, abs=0.2)


def test_reward_rises_from_human_over_mixed_to_aligned(texts: Path) -> None:
    rows = [row for row in read_rows(texts, "triplets") if row["mixed"]]
    kinds = {ratio: [row["mixed"][ratio] for row in rows] for ratio, n in RATIOS.items() if n}
    kinds = {"0": [row["human"] for row in rows]} | kinds | {"1": [row["llm"] for row in rows]}
    means = [selector(texts).score(some).mean() for some in kinds.values()]
    assert means == sorted(means)


# -- to score ---------------------------------------------------------------------------------------------------------


def test_cells(cells: list[Cell]) -> None:
    whole = {(c.domain, c.source): c for c in cells if c.whole}
    assert len(whole) == sum(c.whole for c in cells)
    others = ["lm_b", "lm_bigram", "vendor_b", "raft"]
    for domain in DOMAINS:
        doses = [1, 4, 16, 32] if domain == "sci" else [1, 4, 16]
        assert [s for d, s in whole if d == domain] == [*(f"bon{n}" for n in doses), *others]
        assert [whole[domain, f"bon{n}"].n for n in doses] == doses
        assert [the(cells, domain, "bon16", attack).n for attack in ("rephrase", "swap")] == [16, 16]
    assert {name for name, c in whole.items() if c.seen} == {("sci", "bon16")}
    assert {name[1] for name, c in whole.items() if not c.aligned} == {"bon1"}
    cut = {(c.domain, c.source, c.words) for c in cells if c.words}
    assert cut == {(domain, "bon16", n) for domain in DOMAINS[1:] for n in (8, 24)}
    assert {c.source for c in cells if c.dose_only} == {"bon32"}
    assert all(c.human == whole[c.domain, "bon1"].human for c in cells if c.words is None)


def test_more_samples_have_a_better_best(texts: Path, cells: list[Cell]) -> None:
    """Text by text: the best of 32 was picked from the same samples as the best of 4, and more."""
    for domain in DOMAINS:
        doses = [4, 16, 32] if domain == "sci" else [4, 16]
        rewards = np.stack([selector(texts).score(the(cells, domain, f"bon{n}").llm) for n in doses])
        assert (np.diff(rewards, axis=0) >= 0).all()
        assert rewards[-1].mean() > rewards[0].mean()
        control = selector(texts).score(the(cells, domain, "bon1").llm)
        assert control.mean() < rewards[0].mean()
        assert (control > rewards[-1]).sum() < 10  # of 30; each has a chance of 1 in 17


def test_the_control_is_a_draw_of_its_own(cells: list[Cell]) -> None:
    """Were it among what the best was picked from, it would be the best of 4 in a quarter of the pairs."""
    for domain in DOMAINS:
        control = the(cells, domain, "bon1").llm
        for source in ("bon4", "bon16"):
            assert sum(x == y for x, y in zip(control, the(cells, domain, source).llm, strict=True)) <= 1


def test_another_vendors_best_is_not_the_first_ones(texts: Path, cells: list[Cell]) -> None:
    for domain in DOMAINS:
        ours, theirs = the(cells, domain, "bon16").llm, the(cells, domain, "vendor_b").llm
        assert selector(texts).score(theirs).mean() < selector(texts).score(ours).mean()
        assert theirs != ours


@pytest.mark.parametrize("attack", ["swap", "rephrase"])
def test_attacks_change_the_share_of_words_that_they_say(attack: str, cells: list[Cell], ids_of: Ids) -> None:
    """Five of the sixteen spans of two words behind the prompt: 0.3 of them, rounded."""
    for domain in DOMAINS:
        before, after = ids_of(the(cells, domain, "bon16").llm), ids_of(the(cells, domain, "bon16", attack).llm)
        assert np.array_equal(before[:, :PROMPT], after[:, :PROMPT])
        spans = differing(before, after, PROMPT, ATTACK_SPAN).sum(1)
        assert spans.max() == 5
        assert spans.mean() > 4.2  # two like neighbours, or a span written as it was, change nothing


def test_attack_spans_are_distinct_and_as_many_as_said() -> None:
    starts = _spans(np.zeros((200, WORDS), int), np.random.default_rng(0))
    assert starts.shape == (200, 5)
    assert all(len(set(row)) == 5 for row in starts.tolist())
    assert set(starts.ravel().tolist()) == set(range(PROMPT, WORDS, ATTACK_SPAN))


def test_swap_keeps_the_words_and_exchanges_neighbours(cells: list[Cell], ids_of: Ids) -> None:
    for domain in DOMAINS:
        before, after = the(cells, domain, "bon16").llm, the(cells, domain, "bon16", "swap").llm
        for x, y in zip(before, after, strict=True):
            assert Counter(x.split()) == Counter(y.split())
        one, two = ids_of(before)[:, PROMPT:].reshape(-1, 2), ids_of(after)[:, PROMPT:].reshape(-1, 2)
        same, turned = (one == two).all(1), (one == two[:, ::-1]).all(1)
        assert (same | turned).all()


def test_cut_cells_are_the_first_words_of_an_unseen_domain(cells: list[Cell]) -> None:
    whole = the(cells, "std", "bon16")
    for n in (8, 24):
        cut = the(cells, "std", "bon16", words=n)
        assert cut.human == [" ".join(text.split()[:n]) for text in whole.human]
        assert cut.llm == [" ".join(text.split()[:n]) for text in whole.llm]
        assert (cut.seen, cut.aligned, cut.attack, cut.n) == (False, True, "none", 16)
        assert not cut.whole


def test_cutting_never_changes_shorter_texts_and_leaves_other_cells_alone() -> None:
    row: dict[str, Any] = {"domain": "d", "source": "s", "attack": "none", "human": ["a b c", "a"], "llm": ["x y", "z"]}
    rows = [row, row | {"attack": "swap"}, row | {"source": "t"}]
    found = list(cut_cells(rows, [2, 9], {("d", "s")}))
    assert [r["words"] for r in found] == [2, 9]
    assert found[0]["human"] == ["a b", "a"]
    assert found[0]["llm"] == ["x y", "z"]
    assert found[1]["human"] == row["human"]


# -- files and seeds --------------------------------------------------------------------------------------------------


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b\nc"}, {"text": "שלום"}, {"text": ""}]
    write_rows(tmp_path, "some", rows)
    assert read_rows(tmp_path, "some") == rows
    assert read_rows(tmp_path, "none") == []


def test_distinct_texts_start_with_those_of_the_cells(texts: Path, cells: list[Cell]) -> None:
    of_cells = distinct_texts(texts, 0)
    assert set(of_cells) == {text for cell in cells for text in (*cell.human, *cell.llm)}
    assert len(set(of_cells)) == len(of_cells)
    more, everything = distinct_texts(texts, 10), distinct_texts(texts, None)
    assert more[: len(of_cells)] == of_cells
    assert everything[: len(more)] == more
    rows = read_rows(texts, "triplets")
    assert set(more) - set(of_cells) == {row[side] for row in rows[:10] for side in ("llm", "human")} - set(of_cells)


@pytest.mark.slow
def test_a_seed_decides_what_is_written_and_not_the_human_texts(room: Any, texts: Path, cells: list[Cell]) -> None:
    again, _ = room.build_anew("texts", None, 0)
    other, _ = room.build_anew("texts", None, 1)
    for name in FILES:
        assert (again / f"{name}.jsonl").read_bytes() == (texts / f"{name}.jsonl").read_bytes()
        assert (other / f"{name}.jsonl").read_bytes() != (texts / f"{name}.jsonl").read_bytes()
    assert (again / Selector.FILE).read_bytes() == (texts / Selector.FILE).read_bytes()
    for mine, theirs in zip(cells, read_cells(other), strict=True):
        assert mine.human == theirs.human
        assert (mine.llm != theirs.llm) or mine.words == PROMPT  # a prompt alone is nobody's


def test_an_unknown_argument_for_the_papers_texts_is_named(tmp_path: Path) -> None:
    job = BaseJob("remodetect", "paper", "texts", 0, None, {}, {}, tmp_path)
    with pytest.raises(RematchError, match=r"bases\.texts: papers"):
        Texts(papers={"no_such_argument": 1}).build(job)
