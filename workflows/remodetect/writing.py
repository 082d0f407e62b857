"""The texts that every match of a seed starts from; at smoke and mini they are written here: n-gram models continue human prompts and are aligned by best-of-n towards a vendor's reward.

There is one writer's model for each half of a domain's documents. What a detector is trained on was written by the first
in the seen domain, best of 16 by vendor A. Everything else is unseen: fewer or more samples, the other half's model, a
bigram model, vendor B, other domains, and RAFT: a model fitted anew on best-of-8 texts and sampled once, aligned without
a reward at the end.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from baselines.ngram import NGram
from rematch.arena import BaseInfo, BaseJob
from rematch.errors import unknown
from workflows.remodetect.annotators import TASTES, Annotators, Selector, Surface, VendorReward, best_of
from workflows.remodetect.corpus import DOMAINS, UNKNOWN, load_part, load_vocabulary
from workflows.remodetect.hub_texts import write_hub_texts
from workflows.remodetect.language_models import load_writers
from workflows.remodetect.texts import Row, cut_cells, write_rows

PROMPT = 8
"""Words of a human window that a continuation begins with; the generated text holds them too."""
SPAN = 8
"""Words of the spans that stand in for sentences in mixed texts: a window is too short for sentences."""
ATTACK_SPAN, ATTACK_SHARE = 2, 0.3
SOURCE_DOSE = 4
"""The one dose beside the trained one that counts as a source of its own."""
FIXED = ("folder", "seed", "hub")
"""What the engine gives ``write_hub_texts``."""


@dataclass
class Texts:
    """The texts of a seed. Needs ``corpus`` and ``language_models``.

    Attributes:
        n_triplets: human windows with an aligned text of the same prompt; the first ``n_mixed`` also with mixed texts.
        mix_ratios: shares of the spans of a human text that are written anew.
        n_validation: triplets to choose hyper-parameters on.
        n_rewards, n_preferences: labelled pairs of unaligned samples, to fit reward models on and held out.
        n_vendor: labelled pairs that each vendor fits its linear reward to.
        n_pairs: pairs in a cell, at most.
        best_of: samples that the best is picked from.
        doses: the n of best-of-n in the seen domain; the others are written with those up to ``best_of``, which is always
            among them.
        raft_prompts, raft_best_of: of the texts that the RAFT model is fitted on.
        lengths: words that texts of the unseen domains are cut to; the prompt is the same for both sides, and counts.
        papers: instead of all that: take the paper's data sets, with these arguments of ``hub_texts.write_hub_texts``.
    """

    n_triplets: PositiveInt = 1100
    n_mixed: NonNegativeInt = 750
    mix_ratios: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75])
    n_validation: PositiveInt = 200
    n_rewards: PositiveInt = 2000
    n_preferences: PositiveInt = 400
    n_vendor: PositiveInt = 500
    n_pairs: PositiveInt = 200
    best_of: PositiveInt = 16
    doses: list[PositiveInt] = field(default_factory=lambda: [1, 4, 16, 64])
    raft_prompts: PositiveInt = 2000
    raft_best_of: PositiveInt = 8
    lengths: list[PositiveInt] = field(default_factory=lambda: [16, 24])
    papers: Annotated[dict[str, Any], write_hub_texts] = field(default_factory=dict)

    def build(self, job: BaseJob) -> BaseInfo:
        """Write the files that ``texts`` describes.

        Raises:
            RematchError: ``papers`` has an unknown argument, or a data set is missing or not in its format.
        """
        if self.papers:
            known = [name for name in inspect.signature(write_hub_texts).parameters if name not in FIXED]
            for name in self.papers:
                if name not in known:
                    raise unknown("argument", name, known, "bases.texts: papers")
            notes = write_hub_texts(job.out, seed=job.seed or 0, hub=job.hub, **self.papers)
            return BaseInfo(notes=notes)
        pen = _Pen(self, job.needs["corpus"], job.needs["language_models"], int(job.seed or 0))
        rewards, preferences = pen.preference_pairs()
        write_rows(job.out, "rewards", rewards)
        write_rows(job.out, "preferences", preferences)
        write_rows(job.out, "replay", ({"text": row[side]} for row in rewards for side in ("chosen", "rejected")))
        write_rows(job.out, "triplets", pen.triplets("train", self.n_triplets, self.n_mixed))
        write_rows(job.out, "validation", pen.triplets("validation", self.n_validation, self.n_validation))
        cells = [row for domain in DOMAINS for row in pen.cells(domain)]
        cells += list(cut_cells(cells, self.lengths, {(domain, self.seen[1]) for domain in DOMAINS[1:]}))
        write_rows(job.out, "cells", cells)
        pen.rewards["a"].save(job.out / Selector.FILE)
        return BaseInfo(notes=pen.notes(cells))

    @property
    def seen(self) -> tuple[str, str]:
        """Domain and source of the triplets."""
        return DOMAINS[0], f"bon{self.best_of}"


class _Pen:
    """Everything that is drawn for one seed, from one generator for each purpose."""

    def __init__(self, sizes: Texts, corpus: Path, models: Path, seed: int) -> None:
        self.sizes, self.corpus, self.seed = sizes, corpus, seed
        vocabulary = load_vocabulary(corpus)
        self.ids = {word: index for index, word in enumerate(vocabulary)}
        self.writers = {domain: load_writers(models, domain) for domain in DOMAINS}
        self.surface = Surface(tuple(vocabulary))
        self._unaligned = self._draw_unaligned("rewards", sizes.n_rewards)
        first = self._unaligned[0]
        self.annotators = {name: Annotators.of(self.surface, taste, first) for name, taste in TASTES.items()}
        self.rewards = {name: self._vendor(name) for name in TASTES}

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *purpose.encode()])

    def windows(self, domain: str, part: str) -> np.ndarray:
        """Human windows (n, words) as ids."""
        rows = load_part(self.corpus, domain, part)
        return np.array([[self.ids[word] for word in row] for row in rows], dtype=np.int64)

    def samples(self, model: NGram, windows: np.ndarray, n: int, purpose: str) -> np.ndarray:
        """n continuations of each window's prompt, (windows, n, words), prompt included."""
        prompts = np.repeat(windows[:, :PROMPT], n, axis=0)
        drawn = model.sample(list(prompts), windows.shape[1] - PROMPT, self.rng(purpose))
        return np.concatenate([prompts, drawn], axis=1).reshape(len(windows), n, -1)

    def texts(self, ids: np.ndarray) -> list[str]:
        return self.writers[DOMAINS[0]]["a"].decode(list(ids))

    # -- preferences --------------------------------------------------------------------------------------------------

    def _draw_unaligned(self, purpose: str, n: int) -> tuple[np.ndarray, np.ndarray]:
        """n pairs of unaligned samples of one prompt and writer, over all domains and both halves; (pairs, words) each.

        What is held out has prompts of its own, the last sixth of them.
        """
        rng = self.rng(f"{purpose} prompts")
        drawn = []
        for domain in DOMAINS:
            windows = self.windows(domain, "preferences")
            held_out = max(1, len(windows) // 6)
            windows = windows[-held_out:] if purpose == "preferences" else windows[:-held_out]
            share = n - n // 2 if domain == DOMAINS[0] else -(-(n // 2) // (len(DOMAINS) - 1))
            for writer, count in (("a", share - share // 2), ("b", share // 2)):
                chosen = windows[rng.integers(len(windows), size=count)]
                drawn.append(self.samples(self.writers[domain][writer], chosen, 2, f"{purpose} {domain} {writer}"))
        pairs = rng.permutation(np.concatenate(drawn))[:n]
        return pairs[:, 0], pairs[:, 1]

    def preference_pairs(self) -> tuple[list[Row], list[Row]]:
        """Pairs labelled by vendor A's annotators, to train a reward model on and held out."""
        held_out = self._draw_unaligned("preferences", self.sizes.n_preferences)
        return self._labelled("rewards", *self._unaligned), self._labelled("preferences", *held_out)

    def _labelled(self, purpose: str, first: np.ndarray, second: np.ndarray) -> list[Row]:
        labels = self.annotators["a"].prefers_first(first, second, self.rng(f"{purpose} labels"))
        return [
            {"chosen": x if label else y, "rejected": y if label else x}
            for x, y, label in zip(self.texts(first), self.texts(second), labels, strict=True)
        ]

    def _vendor(self, name: str) -> VendorReward:
        """A vendor's reward, from pairs of its own."""
        windows, rng = self.windows(DOMAINS[0], "preferences"), self.rng(f"vendor {name} labels")
        chosen = windows[rng.integers(len(windows), size=self.sizes.n_vendor)]
        pairs = self.samples(self.writers[DOMAINS[0]]["a"], chosen, 2, f"vendor {name}")
        return VendorReward.fit(self.annotators[name], pairs[:, 0], pairs[:, 1], rng)

    # -- to train on --------------------------------------------------------------------------------------------------

    def triplets(self, part: str, n: int, n_mixed: int) -> Iterator[Row]:
        """Human windows, the best of n continuations of their prompts, and mixed texts."""
        windows = self.windows(DOMAINS[0], part)
        windows = self.rng(f"order {part}").permutation(windows)[:n]
        model = self.writers[DOMAINS[0]]["a"]
        candidates = self.samples(model, windows, self.sizes.best_of, f"triplets {part}")
        aligned = best_of(self.rewards["a"], candidates, self.sizes.best_of)
        mixed = {f"{ratio:g}": self._mixed(windows[:n_mixed], ratio, part) for ratio in self.sizes.mix_ratios}
        for index, (llm, human) in enumerate(zip(self.texts(aligned), self.texts(windows), strict=True)):
            yield {
                "llm": llm,
                "human": human,
                "mixed": {ratio: rows[index] for ratio, rows in mixed.items() if index < n_mixed},
            }

    def _mixed(self, windows: np.ndarray, ratio: float, part: str) -> list[str | None]:
        """Human windows of which a share of the spans after the prompt is written anew, the best of n ways."""
        n_texts, n_words = windows.shape
        starts = np.arange(PROMPT, n_words, SPAN)
        n_new = int(ratio * len(starts))
        if n_new == 0:
            return [None] * n_texts
        rng, model, n = self.rng(f"mixed {part} {ratio}"), self.writers[DOMAINS[0]]["a"], self.sizes.best_of
        chosen = np.sort(rng.permuted(np.tile(starts, (n_texts, 1)), axis=1)[:, :n_new], axis=1)
        columns = np.arange(n_words)
        masks = ((columns[:, None] >= chosen[:, None]) & (columns[:, None] < chosen[:, None] + SPAN)).any(2)
        # All spans of a text at once: were each the best of n by itself, half of a text would outdo a whole one.
        filled = model.infill(list(np.repeat(windows, n, axis=0)), list(np.repeat(masks, n, axis=0)), rng)
        return list(self.texts(best_of(self.rewards["a"], np.stack(filled).reshape(n_texts, n, n_words), n)))

    # -- to score -----------------------------------------------------------------------------------------------------

    def cells(self, domain: str) -> Iterator[Row]:
        """Every source in a domain, and the attacks on the source that is seen in training."""
        sizes, writers = self.sizes, self.writers[domain]
        windows = self.windows(domain, "test")[: sizes.n_pairs]
        human = self.texts(windows)

        def cell(
            source: str, ids: np.ndarray, attack: str = "none", n: int | None = None, dose_only: bool = False
        ) -> Row:
            return {
                "domain": domain, "source": source, "seen": (domain, source) == sizes.seen, "aligned": n != 1,
                "attack": attack, "n": n, "dose_only": dose_only, "words": None, "human": human, "llm": self.texts(ids),
            }  # fmt: skip

        doses = [n for n in sorted({*sizes.doses, sizes.best_of}) if domain == DOMAINS[0] or n <= sizes.best_of]
        drawn = self.samples(writers["a"], windows, max(doses), f"cells {domain}")
        for n in doses:
            # The unaligned control is a draw of its own: it is also what best-of-n is compared with, prompt by prompt.
            ids = (
                self.samples(writers["a"], windows, 1, f"fresh {domain}")[:, 0]
                if n == 1
                else best_of(self.rewards["a"], drawn, n)
            )
            yield cell(f"bon{n}", ids, n=n, dose_only=n not in (1, SOURCE_DOSE, sizes.best_of))
        for source in ("b", "bigram"):
            candidates = self.samples(writers[source], windows, sizes.best_of, f"cells {domain} {source}")
            yield cell(f"lm_{source}", best_of(self.rewards["a"], candidates, sizes.best_of))
        yield cell("vendor_b", best_of(self.rewards["b"], drawn, sizes.best_of))
        yield cell("raft", self.samples(self._raft(domain), windows, 1, f"cells {domain} raft")[:, 0])
        seen = best_of(self.rewards["a"], drawn, sizes.best_of)
        source = sizes.seen[1]
        yield cell(source, self._rephrased(seen, writers["b"], domain), "rephrase", n=sizes.best_of)
        yield cell(source, self._swapped(seen, domain), "swap", n=sizes.best_of)

    def _raft(self, domain: str) -> NGram:
        """A model fitted on best-of-n texts of the first model's own documents."""
        model = self.writers[domain]["a"]
        domains = DOMAINS[:1] if domain == DOMAINS[0] else DOMAINS[1:]
        windows = np.concatenate([self.windows(d, "lm_a") for d in domains])
        rng = self.rng(f"raft prompts {len(domains)}")
        chosen = windows[rng.permutation(len(windows))[: self.sizes.raft_prompts]]
        candidates = self.samples(model, chosen, self.sizes.raft_best_of, f"raft {len(domains)}")
        best = best_of(self.rewards["a"], candidates, self.sizes.raft_best_of)
        words = [[model.vocabulary[index] for index in row] for row in best]
        return NGram.fit(words, order=model.order, discount=model.discount, vocabulary=model.vocabulary)

    def _rephrased(self, ids: np.ndarray, model: NGram, domain: str) -> np.ndarray:
        """A share of the words, in spans of two, written anew by another model."""
        rng = self.rng(f"rephrase {domain}")
        masks = np.zeros(ids.shape, dtype=bool)
        for start in _spans(ids, rng).T:
            for offset in range(ATTACK_SPAN):
                masks[np.arange(len(ids)), start + offset] = True
        return np.stack(model.infill(list(ids), list(masks), rng))

    def _swapped(self, ids: np.ndarray, domain: str) -> np.ndarray:
        """As many spans of two words, each in reverse order."""
        found, rows = ids.copy(), np.arange(len(ids))
        for start in _spans(ids, self.rng(f"swap {domain}")).T:
            found[rows, start], found[rows, start + 1] = ids[rows, start + 1], ids[rows, start]
        return found

    def notes(self, cells: Sequence[Row]) -> dict[str, Any]:
        """How alike the vendors are and how well each knows its annotators (correlations over unaligned samples), and how
        many unknown words human and unaligned texts of a domain hold."""
        first = self._unaligned[0]
        utility = {name: people.utility(first) for name, people in self.annotators.items()}
        found = {f"reward_{name}_utility": _correlation(self.rewards[name](first), utility[name]) for name in TASTES}
        for cell in cells:
            if cell["n"] == 1:
                for side in ("human", "llm"):
                    words = " ".join(cell[side]).split()
                    found[f"unknown_{cell['domain']}_{side}"] = words.count(UNKNOWN) / len(words)
        return found | {"utilities": _correlation(utility["a"], utility["b"])}


def _spans(ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Starts of distinct spans of ``ATTACK_SPAN`` words behind the prompt that hold ``ATTACK_SHARE`` of them, (texts, spans)."""
    starts = np.arange(PROMPT, ids.shape[1] - ATTACK_SPAN + 1, ATTACK_SPAN)
    n = round(ATTACK_SHARE * len(starts))
    return rng.permuted(np.tile(starts, (len(ids), 1)), axis=1)[:, :n]


def _correlation(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1])
