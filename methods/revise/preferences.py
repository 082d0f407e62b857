"""Preference pairs of both stages (the paper's D_verify and D_correct, section 3.2).

========  =============================  =====================================
row       stage 1, ``verify``            stage 2, ``correct``
========  =============================  =====================================
ŷ right   x: ŷ⊕E over ŷ⊕R                the same
ŷ wrong   x⊕ŷ: R over E                  x⊕ŷ: R⊕y⊕E over E
========  =============================  =====================================

The wrong attempt is context and never imitated. Every pair takes one forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from baselines.post_training.batches import Ids, Pair
from baselines.post_training.problems import Problem
from methods.revise.attempts import Row
from methods.revise.tokens import Tokens
from rematch.errors import unknown

StageName = Literal["verify", "correct"]
STAGES: tuple[StageName, ...] = ("verify", "correct")


def preference_pair(
    row: Row, problem: Problem, stage: StageName, tokens: Tokens, eos_after_refine: bool = False
) -> Pair:
    """The pair of one row.

    Args:
        problem: the row's.
        eos_after_refine: E also after an R that ends a continuation, which teaches "refine, then stop" (official code).
    """
    end: Ids = (tokens.end,)
    refine: Ids = (tokens.refine,)
    refine_and_stop = refine + end if eos_after_refine else refine
    if stage not in STAGES:
        raise unknown("stage", stage, STAGES, "preference_pair")
    if row.right:
        return Pair(problem.prompt, chosen=row.ids + end, rejected=row.ids + refine_and_stop)
    chosen = refine_and_stop if stage == "verify" else refine + problem.solution + end
    return Pair(problem.prompt + row.ids, chosen=chosen, rejected=end)


def preference_pairs(
    rows: Sequence[Row],
    problems: Sequence[Problem],
    stage: StageName,
    tokens: Tokens,
    eos_after_refine: bool = False,
) -> list[Pair]:
    """The pairs of all rows, in order."""
    return [preference_pair(row, problems[row.question], stage, tokens, eos_after_refine) for row in rows]
