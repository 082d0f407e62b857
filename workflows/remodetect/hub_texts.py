"""The texts of the real and paper tiers as the folder that ``texts`` describes, from the papers' own data sets.

Training pairs are HC3's, replay and preference pairs those of two preference data sets, evaluation pairs those of
Fast-DetectGPT and MGTBench. What is on the hub is read from there or from a mirror of it; what is not has to lie in a
mirror.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args
from zlib import crc32

from rematch.errors import RematchError, unknown
from rematch.hub import Hub
from rematch.hub_models import check_model
from workflows.remodetect.hub_sources import (
    FAST_DETECT_GPT,
    HC3,
    HH_RLHF,
    MGTBENCH,
    MGTBENCH_SOURCES,
    SYNTHETIC_INSTRUCT,
    UNALIGNED,
    cut_pair,
    fast_detect_gpt_cells,
    hc3_answers,
    hc3_cell,
    mgtbench_cells,
    preference_pairs,
    replay_texts,
    split_answers,
    usable,
)
from workflows.remodetect.rephrasing import (
    PARAPHRASER,
    REPHRASER,
    ChatModel,
    Paraphraser,
    mixed_texts,
    swap_adjacent_words,
)
from workflows.remodetect.texts import Cell, Row, cut_cells, write_rows

Attack = Literal["rephrase", "swap"]
ATTACKS: tuple[Attack, ...] = get_args(Attack)


def write_hub_texts(
    folder: Path,
    *,
    seed: int,
    hub: Hub,
    n_triplets: int = 2201,
    n_replay: int = 2201,
    n_pairs: int = 1000,
    n_rewards: int = 0,
    ratios: Sequence[float] = (0.5,),
    n_mixed: int | None = None,
    attacks: Sequence[Attack] = ATTACKS,
    attack_mgtbench: bool = False,
    rephraser: str = REPHRASER,
    paraphraser: str = PARAPHRASER,
    device: str = "auto",
    batch_size: int = 8,
    max_new_tokens: int = 1024,
    hc3: str = HC3,
    hh_rlhf: str = HH_RLHF,
    synthetic_instruct: str = SYNTHETIC_INSTRUCT,
    fast_detect_gpt: str | None = FAST_DETECT_GPT,
    mgtbench: str | None = MGTBENCH,
    mgtbench_sources: Mapping[str, str] = MGTBENCH_SOURCES,
    lengths: Sequence[int] = (),
    later_models: Sequence[str] = (),
) -> dict[str, Any]:
    """Write ``triplets``, ``validation``, ``replay``, ``rewards``, ``preferences`` and ``cells`` (``.jsonl``) into ``folder``.

    Args:
        folder: must exist.
        seed: of everything that is drawn; the same seed writes the same files.
        n_triplets: rows of HC3 that are read for training and validation (80 % and 20 %).
        n_replay: replay texts.
        n_rewards: preference pairs to train a reward model on, where none of the hub is used.
        n_pairs: pairs of a cell, and preference pairs, at most.
        ratios: shares of a human text's sentences that the mixed texts have rephrased; none for no mixed texts.
        n_mixed: triplets that get mixed texts, the first ones, and as many validation rows; None: all.
        attacks: ``rephrase`` and ``swap``, made on the LLM's texts of HC3 and Fast-DetectGPT (Table 4's benchmark).
        attack_mgtbench: attack MGTBench's texts too.
        rephraser: id of the chat model that makes mixed texts.
        paraphraser: id of the T5 that makes the attack ``rephrase``.
        device, batch_size: of both; ``cpu``, ``cuda`` or ``auto`` (over all accelerators).
        max_new_tokens: of an answer of the rephraser; one that is cut off gives no mixed text.
        hc3, hh_rlhf, synthetic_instruct: ids of the data sets.
        fast_detect_gpt, mgtbench: folders of a mirror's data sets, as ids; None leaves them out.
        mgtbench_sources: names of the LLMs by column of MGTBench's files; only the columns that a file has are read.
        lengths: words to which Fast-DetectGPT's pairs are cut for cells of their own (Figure 6: 30, 60, ..., 210),
            those of aligned sources.
        later_models: ids of the models that are to read the texts: one that is missing is named before any text is made.

    Returns:
        Notes: rows written, what was dropped as empty or one word, mixed texts that were made and that were not.

    Raises:
        RematchError: files or models are missing or not in their format, or an option has no such value.
    """
    for attack in attacks:
        if attack not in ATTACKS:
            raise unknown("attack", attack, ATTACKS, "attacks")
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise RematchError(f"ratios: {ratio}; allowed: shares of the sentences above 0 and up to 1")
    writers = [rephraser] * bool(ratios) + [paraphraser] * ("rephrase" in attacks)
    for model in dict.fromkeys([*writers, *later_models]):
        check_model(hub, model)
    dropped: Counter[str] = Counter()
    rows = hc3_answers(hub, hc3)
    train, validation, held_out = split_answers(rows, n_triplets, seed, dropped)
    for what, found in (("training", train), ("validation", validation), ("held-out", held_out)):
        if not found:
            raise RematchError(
                f"{hc3}: no {what} rows. It has {len(rows)}: the first n_triplets ({n_triplets}) are to train on and to "
                f"validate, those behind them to score"
            )
    replay = replay_texts(hub, n_replay, seed, dropped, hh_rlhf=hh_rlhf, synthetic_instruct=synthetic_instruct)
    preferences = preference_pairs(hub, n_pairs, seed, dropped, hh_rlhf=hh_rlhf)
    rewards = preference_pairs(hub, n_rewards, seed, dropped, hh_rlhf=hh_rlhf, split="train") if n_rewards else []
    cells = [hc3_cell(held_out[:n_pairs])]
    if fast_detect_gpt is not None:
        cells += fast_detect_gpt_cells(hub, n_pairs, seed, dropped, repo_id=fast_detect_gpt)
    more: list[Cell] = []
    if mgtbench is not None:
        more = mgtbench_cells(hub, n_pairs, seed, dropped, repo_id=mgtbench, sources=mgtbench_sources)

    # Every file has been read: what takes long begins here.
    attackable = [*cells, *more] if attack_mgtbench else cells
    attacked = [
        asdict(_attacked(cell, name, rewrite, seed, dropped))
        for name, rewrite in _rewriters(attacks, hub, paraphraser, device, batch_size)
        for cell in attackable
    ]
    unattacked = [asdict(cell) for cell in (*cells, *more)]
    short = cut_cells(unattacked, lengths, {(c.domain, c.source) for c in cells if c.aligned and not c.seen})

    parts = {"triplets": train, "validation": validation}
    asked = [pair.human for part in parts.values() for pair in part[:n_mixed]]
    mixed: list[dict[str, str | None]] = [{} for _ in asked]
    mixing_notes: dict[str, dict[str, int]] = {}
    if ratios:
        sizes = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
        chat = ChatModel.from_pretrained(hub.model_path(rephraser), device, **sizes)
        mixed, mixing_notes = mixed_texts(asked, ratios, chat, seed)
        mixing_notes["rephraser"] = {"tokens": chat.tokens}
    in_order = iter(mixed)
    triplets = {
        name: [
            {"llm": pair.llm, "human": pair.human, "mixed": next(in_order) if n_mixed is None or i < n_mixed else {}}
            for i, pair in enumerate(part)
        ]
        for name, part in parts.items()
    }

    files: dict[str, list[Row]] = {
        **triplets,
        "replay": [{"text": text} for text in replay],
        "preferences": preferences,
        "rewards": rewards,
        "cells": [*unattacked, *short, *attacked],
    }
    for name, written in files.items():
        write_rows(folder, name, written)
    return {
        "rows": {name: len(written) for name, written in files.items()},
        "dropped": {where: count for where, count in sorted(dropped.items()) if count},
        "mixed": mixing_notes,
        "unaligned": list(UNALIGNED),
    }


def _rewriters(
    attacks: Sequence[str], hub: Hub, paraphraser: str, device: str, batch_size: int
) -> Iterator[tuple[str, Callable[[Sequence[str], int], list[str]]]]:
    for attack in attacks:
        if attack == "swap":
            yield attack, swap_adjacent_words
        else:
            model = Paraphraser.from_pretrained(hub.model_path(paraphraser), device, batch_size=batch_size)
            yield attack, model.rephrase


def _attacked(
    cell: Cell, attack: str, rewrite: Callable[[Sequence[str], int], list[str]], seed: int, dropped: Counter[str]
) -> Cell:
    """The cell with its LLM texts rewritten. Rephrasing changes lengths, so that the pairs are cut once more."""
    where = f"{cell.domain} {cell.source}"
    made = rewrite(cell.llm, crc32(f"{seed} {where}".encode()))
    pairs = [
        cut_pair(human, llm)
        for human, llm in zip(cell.human, made, strict=True)
        if usable(human, llm, dropped, f"{where} {attack}")
    ]
    return replace(cell, attack=attack, human=[pair[0] for pair in pairs], llm=[pair[1] for pair in pairs])
