"""What is read off what a contender wrote: one method for each metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from baselines.loading import load_tokenizer
from baselines.post_training.answers import pass_at_n
from baselines.post_training.problems import Problem
from methods.revise.trajectories import Attempt, Trajectory
from methods.revise.verification import Cells, auroc, auroc_within, cells, verification_score
from rematch.arena import Exhibit, Measurement, Task, Undefined
from rematch.errors import RematchError
from workflows.revise.contenders import Oracle
from workflows.revise.data import ID, hash_of, problems_of, read_test
from workflows.revise.models import load_model, read_notes
from workflows.revise.questions import Question
from workflows.revise.tasks import AnswerTask, load_task
from workflows.revise.written import Cost, Written, read_cost, read_written

if TYPE_CHECKING:
    from workflows.revise.arena import Arena

M0_WRITTEN = "m0_written"
"""The base of what M0 wrote."""

UNUSED = ("unfinished", "empty", "blank", "too_long")
"""Why a completion is not trained on; the last is of attempts."""


class Match:
    """One contender, one test set, and one method for each metric."""

    def __init__(self, arena: Arena, task: Task) -> None:
        self.arena, self.task, self.contender = arena, task, task.contender
        self.folder = task.bases["questions"]
        self.set = str(task.level) if task.axis == "ood" else ID
        self.n = int(task.level) if task.axis in ("test_time_compute", "ablation") else arena.n_votes
        self.tries = int(self.contender.tries)
        self.base = self._base()

    def _base(self) -> str:
        """What the contender wrote: its first base, and on ``data_efficiency`` that of as many questions as the level says.

        Who was not post-trained is the same at every level.
        """
        first = next(iter(self.task.bases))
        if self.task.axis != "data_efficiency" or self._n_questions(first) is None:
            return first
        stem = first.removesuffix("_written")
        found = {
            self._n_questions(name): name
            for name in self.task.bases
            if name.startswith(stem) and name.endswith("_written")
        }
        if self.task.level not in found:
            known = ", ".join(map(str, sorted(filter(None, found))))
            raise RematchError(
                f"{self.task.name}: nothing learned from {self.task.level} questions; there are: {known}"
            )
        return found[int(self.task.level)]

    def _n_questions(self, base: str) -> int | None:
        return self.task.base_info[base].notes.get("n_questions")

    @cached_property
    def answer_task(self) -> AnswerTask:
        """How answers are read: with the tokenizer of the model that all start from."""
        return load_task(self.folder, load_tokenizer(str(self.task.bases["m0"])))

    @cached_property
    def _questions(self) -> list[Question]:
        return read_test(self.folder, self.set)

    @cached_property
    def names(self) -> list[str]:
        """What the questions are called."""
        return [question.name for question in self._questions]

    @cached_property
    def problems(self) -> list[Problem]:
        return problems_of(self._questions, self.answer_task)

    @cached_property
    def written(self) -> Written:
        written = read_written(self.task.bases[self.base], self.set)
        if len(written.trajectories) != len(self.problems):
            raise RematchError(
                f"{self.base}: {len(written.trajectories)} questions, and the test set has {len(self.problems)}"
            )
        return written

    @cached_property
    def cost(self) -> Cost:
        return read_cost(self.task.bases[self.base], self.set)

    @property
    def data_hash(self) -> str:
        """Hash of the test set."""
        return hash_of(self.folder, self.set)

    # -- answers ------------------------------------------------------------------------------------------------------

    def right(self, n: int) -> list[bool]:
        """Whether each question is answered right with n trajectories. Who cannot read a question has not."""
        answered: list[bool] = []
        for i, (problem, found) in enumerate(zip(self.problems, self.written.trajectories, strict=True)):
            last = [each.last(self.tries) for each in found[:n]]
            answers = [attempt.answer(problem.final_answer) for attempt in last]
            if isinstance(self.contender, Oracle):
                answered.append(pass_at_n(answers, problem.answer))
            else:
                rng = np.random.default_rng([self.task.seed, i, *b"vote"])
                answered.append(bool(last) and self.contender.choose(last, answers, rng) == problem.answer)
        return answered

    def _need(self, n: int) -> None:
        """Raise RematchError unless so many trajectories were written."""
        most = max(map(len, self.written.trajectories), default=0)
        if n > most:
            raise RematchError(
                f"{self.task.axis}: {n} trajectories a question are asked for, and the base '{self.base}' has {most} for "
                f"'{self.set}'; raise its n"
            )

    def accuracy(self) -> Iterator[Measurement]:
        """Of the greedy trajectory (Maj@1)."""
        yield _share("accuracy", self.right(1))

    def vote_accuracy(self) -> Iterator[Measurement]:
        """Of the vote."""
        self._need(self.n)
        yield _share("vote_accuracy", self.right(self.n))

    def equal_tokens_accuracy(self) -> Iterator[Measurement]:
        """Of a vote between as many trajectories as come nearest to the tokens that ReVISE generates for its own."""
        self._need(1)
        budget, _ = read_cost(self.task.bases["revise_written"], self.set).of(self.n, 2)
        most = max(map(len, self.written.trajectories), default=0)
        costs = [self.cost.of(n, self.tries)[0] for n in range(1, most + 1)]
        nearest = min(range(most), key=lambda i: abs(costs[i] - budget))
        if budget - costs[nearest] > costs[0]:
            raise RematchError(
                f"{self.task.axis}: ReVISE generates {budget:.1f} tokens a question with {self.n} trajectories, and all {most} of the "
                f"base '{self.base}' have {costs[-1]:.1f}; raise its n"
            )
        yield _share("equal_tokens_accuracy", self.right(nearest + 1))

    # -- cost ---------------------------------------------------------------------------------------------------------

    def tokens(self) -> Iterator[Measurement]:
        """Generated a question."""
        yield Measurement("tokens", self.cost.of(self.n, self.tries)[0])

    def flops(self) -> Iterator[Measurement]:
        """Of answering a question."""
        yield Measurement("flops", self.cost.of(self.n, self.tries)[1])

    def post_flops(self) -> Iterator[Measurement]:
        """Of post-training, sampling included."""
        yield Measurement("post_flops", float(self._written_notes["post_flops"]))

    def generations(self) -> Iterator[Measurement]:
        """Completions sampled in post-training."""
        yield Measurement("generations", float(self._written_notes["generations"]))

    @property
    def _written_notes(self) -> dict[str, Any]:
        return dict(self.task.base_info[self.base].notes)

    @property
    def train_flops(self) -> float:
        """Of all training, M0's included."""
        return float(self.task.base_info[self.base].train_flops)

    @property
    def target(self) -> float | None:
        """The FLOPs that post-training may spend."""
        if self.task.share is None or self.task.reference is None:
            return None
        return self.task.share * float(read_notes(self.task.reference)["post_flops"])

    @property
    def own_flops(self) -> float:
        if self.task.axis == "flops_matched":
            return float(self._written_notes["post_flops"])
        return self.cost.of(self.n, self.tries)[1]

    # -- first attempts, and what becomes of them ---------------------------------------------------------------------

    @cached_property
    def _greedy(self) -> list[tuple[Problem, Trajectory]]:
        return [
            (problem, found[0])
            for problem, found in zip(self.problems, self.written.trajectories, strict=True)
            if found
        ]

    def _is_right(self, problem: Problem, attempt: Attempt) -> bool:
        return attempt.answer(problem.final_answer) == problem.answer

    @cached_property
    def _firsts_right(self) -> list[bool]:
        """Of every question; who cannot read it has not answered it."""
        return [
            bool(found) and self._is_right(problem, found[0].attempts[0])
            for problem, found in zip(self.problems, self.written.trajectories, strict=True)
        ]

    @cached_property
    def _cells(self) -> Cells:
        refined = [bool(found) and len(found[0].attempts[: self.tries]) > 1 for found in self.written.trajectories]
        last = [
            bool(found) and self._is_right(problem, found[0].last(self.tries))
            for problem, found in zip(self.problems, self.written.trajectories, strict=True)
        ]
        return cells(self._firsts_right, refined, last)

    def first_accuracy(self) -> Iterator[Measurement]:
        """Of greedy first attempts."""
        yield _share("first_accuracy", self._firsts_right)

    def refine_rate(self) -> Iterator[Measurement]:
        yield Measurement("refine_rate", self._cells.refine_rate)

    def fate(self) -> Iterator[Measurement]:
        """The shares of questions by how their first attempt was and what became of it."""
        for name, value in vars(self._cells).items():
            yield Measurement("fate", float(value), f"fate={name.replace('_', ' ')}")

    def unanswered(self) -> Iterator[Measurement]:
        """The share of questions whose greedy trajectory has no answer, and by why."""
        reasons = Counter(self._why_unanswered())
        n = len(self.problems)
        yield Measurement("unanswered", sum(reasons.values()) / n)
        for reason in sorted(reasons):
            yield Measurement("unanswered", reasons[reason] / n, f"reason={reason}")

    def _why_unanswered(self) -> Iterator[str]:
        for problem, found, status in zip(self.problems, self.written.trajectories, self.written.statuses, strict=True):
            if status:
                yield status
                continue
            attempt = found[0].last(self.tries)
            reason = self.answer_task.status(attempt.ids, problem.prompt) if attempt.ended else "cut"
            if reason != "ok":
                yield reason

    # -- verification -------------------------------------------------------------------------------------------------

    @cached_property
    def _verified(self) -> tuple[list[float], list[bool]]:
        """The verification score of every greedy first attempt that came to its end, and whether it is right."""
        ended = [(problem, found.attempts[0]) for problem, found in self._greedy if found.attempts[0].ended]
        labels = [self._is_right(problem, attempt) for problem, attempt in ended]
        return self._scores(ended), labels

    def _scores(self, attempts: Sequence[tuple[Problem, Attempt]]) -> list[float]:
        """How right each attempt is held to be."""
        return [verification_score(attempt) for _, attempt in attempts]

    def auroc(self) -> Iterator[Measurement]:
        """Of M(E) - M(R) after greedy first attempts."""
        yield Measurement("auroc", _defined(auroc(*self._verified), "greedy first attempts"))

    def auroc_end(self) -> Iterator[Measurement]:
        """Of M(E) alone."""
        ended = [(problem, found.attempts[0]) for problem, found in self._greedy if found.attempts[0].ended]
        scores = [attempt.confidence() for _, attempt in ended]
        labels = [self._is_right(problem, attempt) for problem, attempt in ended]
        yield Measurement("auroc_end", _defined(auroc(scores, labels), "greedy first attempts"))

    def auroc_within(self) -> Iterator[Measurement]:
        """Of M(E) - M(R) between first attempts at the same question."""
        firsts = [
            (i, problem, trajectory.attempts[0])
            for i, (problem, found) in enumerate(zip(self.problems, self.written.trajectories, strict=True))
            for trajectory in found[: self.arena.n_votes]
            if trajectory.attempts[0].ended
        ]
        scores = self._scores([(problem, first) for _, problem, first in firsts])
        labels = [self._is_right(problem, first) for _, problem, first in firsts]
        value = auroc_within(scores, labels, [i for i, _, _ in firsts])
        yield Measurement("auroc_within", _defined(value, "first attempts at any one question"))

    def score_density(self) -> Iterator[Measurement]:
        """Histograms of M(E) - M(R), of right and of wrong greedy first attempts."""
        scores, labels = self._verified
        edges = np.linspace(-1, 1, self.arena.n_bins + 1)
        for family, wanted in (("right", True), ("wrong", False)):
            chosen = [score for score, label in zip(scores, labels, strict=True) if label is wanted]
            counts, _ = np.histogram(chosen, edges)
            for middle, count in zip((edges[:-1] + edges[1:]) / 2, counts, strict=True):
                yield Measurement("score_density", float(count) / max(1, len(chosen)), f"{family}={middle:.2g}")

    def calibration(self) -> Iterator[Measurement]:
        """Greedy accuracy of M0 on validation questions while it was trained; the whole value is the last."""
        curve = read_notes(self.task.bases["m0"])["curve"]
        if not curve:
            raise Undefined("no curve was measured: curve_points of the base 'm0' is 0")
        for step, value in curve:
            yield Measurement("calibration", value, f"step={step}")
        yield Measurement("calibration", curve[-1][1])

    def lm_eval_accuracy(self) -> Iterator[Measurement]:
        """On lm-eval's task, without worked examples."""
        folder = self.task.bases.get(self.base.removesuffix("_written"))
        if folder is None or not self.arena.lm_eval_task:
            raise Undefined("the arena names no lm_eval_task, or the contender no model among its bases")
        from workflows.revise.few_shot import standard_scores

        model, tokenizer, _ = load_model(folder)
        found = by_lm_eval(standard_scores, self.arena, model, tokenizer, self.task.hub)
        yield Measurement("lm_eval_accuracy", float(np.mean(found.scores)), items=found.scores)

    # -- what was trained on --------------------------------------------------------------------------------------------

    @property
    def _counts(self) -> dict[str, dict[str, int]]:
        """What became of the completions sampled in post-training, by its parts."""
        return dict(self._written_notes.get("counts", {}))

    def unused(self) -> Iterator[Measurement]:
        """The share of completions that post-training sampled and could not use, and by why; and of those kept in part."""
        sampled = sum(part["sampled"] for part in self._counts.values())
        if not sampled:
            raise Undefined("nothing was sampled in post-training")
        shares = {
            reason: sum(part[reason] for part in self._counts.values() if reason in part) / sampled
            for reason in (*UNUSED, "cut")
            if any(reason in part for part in self._counts.values())
        }
        yield Measurement("unused", sum(share for reason, share in shares.items() if reason in UNUSED))
        for reason, share in shares.items():
            yield Measurement("unused", share, f"unused={reason.replace('_', ' ')}")

    def right_rows(self) -> Iterator[Measurement]:
        """The share of right attempts among those trained on, of all and by stage."""
        stages = {name: part for name, part in self._counts.items() if part.get("rows")}
        if not stages:
            raise Undefined("nothing was trained on attempts that are right or wrong")
        yield Measurement(
            "right_rows", sum(part["right"] for part in stages.values()) / sum(part["rows"] for part in stages.values())
        )
        for name, part in stages.items():
            yield Measurement("right_rows", part["right"] / part["rows"], f"stage={name}")

    # -- what a reader may look at ------------------------------------------------------------------------------------

    @property
    def notes(self) -> dict[str, Any]:
        """How many questions there were, and what became of the completions that post-training sampled."""
        found: dict[str, Any] = {"questions": len(self.problems)}
        if self.task.axis == "ablation" and self._counts:
            found["counts"] = self._counts
        return found

    @property
    def remarks(self) -> dict[str, str]:
        """What to say under tables: where nothing, or everything, was refined, and where M0 is not as it was meant to be."""
        if self.base == M0_WRITTEN:
            said = str(self.task.base_info["m0"].notes.get("warning", ""))
            return dict.fromkeys(("accuracy", "calibration"), said) if said else {}
        said = self._cells.note if self.tries > 1 else ""
        return dict.fromkeys(("refine_rate", "accuracy"), said) if said else {}

    def exhibits(self) -> list[Exhibit]:
        """Transcripts of the greedy trajectories to the first questions."""
        if self.tries == 1 or self.task.axis != "ablation":
            return []
        asked = list(zip(self.names, self.problems, self.written.trajectories, strict=True))
        return [self._transcript(*each) for each in asked[: self.arena.n_transcripts]]

    def _transcript(self, name: str, problem: Problem, found: Sequence[Trajectory]) -> Exhibit:
        show = self.answer_task.text
        fields = [("Question", show(problem.prompt)), ("Right answer", str(problem.answer))]
        for number, attempt in enumerate(found[0].attempts[: self.tries] if found else (), start=1):
            verdict = "right" if self._is_right(problem, attempt) else "wrong"
            fields.append((f"Attempt {number}, {verdict}", show(attempt.ids)))
            end, refine = attempt.standalone
            decision = "refine" if attempt.refine else "done" if attempt.ended else "cut"
            fields.append(("Decision", f"{decision}: M(E) {end:.3f}, M(R) {refine:.3f}"))
        return Exhibit(name, fields)


def by_lm_eval(scores_of: Callable[..., Any], arena: Arena, model: Any, tokenizer: Any, hub: Any) -> Any:
    """What lm-eval finds on the arena's task."""
    return scores_of(
        model, tokenizer, arena.lm_eval_task, hub, arena.lm_eval_limit, max_new_tokens=arena.lm_eval_tokens
    )


def _share(metric: str, right: Sequence[bool]) -> Measurement:
    items = [float(each) for each in right]
    return Measurement(metric, float(np.mean(items)), items=items)


def _defined(value: float, of: str) -> float:
    """The value, unless there was nothing to compare."""
    if np.isnan(value):
        raise Undefined(f"{of} are all right or all wrong")
    return value
