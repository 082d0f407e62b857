"""How an answer is read off what a model wrote: the rules that compete at test time.

A contender is a model, its first base, with such a rule. A rule of one's own offers ``tries`` and ``choose``.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import PositiveInt

from methods.revise.trajectories import CONFIDENCE_CONTEXTS, Attempt, ConfidenceContext
from methods.revise.voting import VOTES, Vote, voted_answer
from rematch.errors import RematchError, unknown


@dataclass
class Solver:
    """A vote between the last attempts of trajectories.

    Attributes:
        vote, conf_context: see ``methods.revise.voting.voted_answer``.
        tries: attempts of a trajectory that count at most; 1 for models that never refine, and for ReVISE cut at R.
    """

    vote: Vote = "plain"
    tries: PositiveInt = 1
    conf_context: ConfidenceContext = "standalone"

    def __post_init__(self) -> None:
        if self.vote not in VOTES:
            raise unknown("vote", self.vote, VOTES, "Solver")
        if self.conf_context not in CONFIDENCE_CONTEXTS:
            raise unknown("conf_context", self.conf_context, CONFIDENCE_CONTEXTS, "Solver")
        if self.tries < 1:
            raise RematchError(f"Solver: tries must be at least 1, not {self.tries}")

    def choose(
        self, attempts: Sequence[Attempt], answers: Sequence[Hashable | None], rng: np.random.Generator
    ) -> Hashable | None:
        """The answer to a question.

        Args:
            attempts: the last of each trajectory.
            answers: theirs, None where none can be read.
            rng: for rules that draw at random.
        """
        return voted_answer(attempts, answers, self.vote, self.conf_context, rng)


@dataclass
class Revise(Solver):
    """ReVISE at test time: two tries, and votes weighted by the confidence of being done."""

    vote: Vote = "weighted"
    tries: PositiveInt = 2


@dataclass
class Oracle(Solver):
    """pass@N: right where any trajectory is. It is told the answer, as no other is, and is a bound and no contender."""


@dataclass
class Verifier(Solver):
    """A model that scores solutions by their likelihood, of which nothing but its verification is measured (V-STaR)."""


@dataclass
class FewShot:
    """The model before any training, told worked examples (lm-eval's task of the arena)."""
