"""Detectors that are sequence classifiers: one trunk, one training loop, one treatment of bad rows for all of them.

``SequenceDetector`` scores texts with a transformers sequence classifier in the manner of a scikit-learn estimator;
``TrainedDetector`` adds the optimiser, the schedule and the metered loop in which every trained detector trains.
``BCEDetector`` is the supervised baseline. ``HubClassifier`` is a two-class classifier that somebody else has trained.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.detectors import texts as rows
from baselines.detectors.planning import PassCost
from rematch.errors import RematchError
from rematch.flops import count_flops

CHARACTERS_PER_TOKEN = 16
"""How much of a long text is tokenised at first, per token wanted; more only where that proves too little."""

SETTINGS = "detector.json"
"""Beside the weights in a saved detector's folder: what scoring needs to know beyond them."""


class Scores(NamedTuple):
    """Scores of texts.

    Attributes:
        values: (n,) float64, higher = more likely generated; NaN exactly where the status has no score.
        statuses: of each row; see ``baselines.detectors.texts``.
    """

    values: np.ndarray
    statuses: list[str]


@dataclass(eq=False)
class SequenceDetector(BaseEstimator):
    """A sequence classifier of transformers that scores texts; its one logit is the score.

    Model and tokenizer are attached, not options: ``sklearn.base.clone`` gives a detector without either.

    Attributes:
        max_length: tokens of a text that are read. A tokenizer's own ``model_max_length`` limits it further.
        inference_batch_size: texts in one forward pass when scoring.
        model: called as ``model(input_ids=..., attention_mask=...)``; gives ``logits`` (batch, 1).
        tokenizer: called as ``tokenizer(texts, truncation=True, max_length=..., padding=True, return_tensors="pt")``.
        calibration_: slope and intercept of Platt scaling, None before ``calibrate``.
    """

    max_length: PositiveInt = 512
    inference_batch_size: PositiveInt = 32
    model: Any = field(default=None, init=False, repr=False)
    tokenizer: Any = field(default=None, init=False, repr=False)
    calibration_: tuple[float, float] | None = field(default=None, init=False, repr=False)

    n_logits: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        for name in ("max_length", "inference_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)!r}")

    def set_params(self, **params: Any) -> Self:
        """Set hyper-parameters by name; they are checked as at construction."""
        super().set_params(**params)
        self._check()
        return self

    # -- model ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path: str | Path, **hyperparameters: Any) -> Self:
        """A detector on a model of the hub or of a folder; weights are read from safetensors only, as float32.

        What ``save_pretrained`` wrote is restored, calibration included; hyper-parameters that are given win.

        Raises:
            RematchError: no such model, or one with another number of logits.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        saved = {}
        if (file := Path(path) / SETTINGS).is_file():
            saved = json.loads(file.read_text(encoding="utf-8"))
            hyperparameters = {"max_length": saved["max_length"], **hyperparameters}
        detector = cls(**hyperparameters)
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise RematchError(f"no sequence classifier can be loaded from '{path}': {error}") from error
        if model.config.num_labels != cls.n_logits:
            raise RematchError(
                f"'{path}' has {model.config.num_labels} logits and {cls.__name__} needs {cls.n_logits}: "
                "ReMoDetector and BCEDetector work on a reward model (one logit), HubClassifier on two classes"
            )
        if tokenizer.pad_token is None:  # decoder-only reward models: texts of a batch are padded with the end token
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        detector.attach(model, tokenizer)
        if saved.get("calibration"):
            slope, intercept = saved["calibration"]
            detector.calibration_ = (slope, intercept)
        return detector

    def attach(self, model: nn.Module, tokenizer: Callable[..., Any]) -> Self:
        """Take a model (put in eval mode) and its tokenizer; any calibration is dropped."""
        self.model, self.tokenizer, self.calibration_ = model.eval(), tokenizer, None
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model (safetensors), the tokenizer, ``max_length`` and the calibration."""
        self._check_attached()
        folder = Path(folder)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        settings = {"max_length": self.max_length, "calibration": self.calibration_}
        (folder / SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")

    def to(self, device: str | torch.device) -> Self:
        """Move the model."""
        self._check_attached()
        self.model.to(device)
        return self

    def _check_attached(self) -> None:
        if self.model is None:
            name = type(self).__name__
            raise RematchError(f"{name} has no model: use {name}.from_pretrained(...) or attach(model, tokenizer)")

    # -- scores ---------------------------------------------------------------------------------------------------

    def score_texts(self, texts: Iterable[object]) -> Scores:
        """Scores and statuses of texts (n,). Equal texts are read once and get the very same score.

        Raises:
            RematchError: no model, or one that gives a score that is not finite.
        """
        self._check_attached()
        found, statuses = rows.read_all(texts)
        # Texts of like length together: less padding. The order does not depend on how the caller sorted them.
        distinct = sorted({text for text in found if text}, key=lambda text: (len(text), text))
        self.model.eval()
        values: dict[str, float] = {}
        truncated: set[str] = set()
        with torch.inference_mode():
            for start in range(0, len(distinct), self.inference_batch_size):
                part = distinct[start : start + self.inference_batch_size]
                batch = self.encode(part)
                scores = self._scores(self._logits(self.model, batch)).double().cpu().tolist()
                values.update(zip(part, scores, strict=True))
                truncated.update(self._longer(part, batch))
        if bad := [text for text, value in values.items() if not math.isfinite(value)]:
            raise RematchError(
                f"the model gives {len(bad)} of {len(values)} texts a score that is not finite, as for {bad[0][:60]!r}"
            )
        statuses = [
            rows.TRUNCATED if text in truncated else status for text, status in zip(found, statuses, strict=True)
        ]
        return Scores(np.array([values.get(text, math.nan) for text in found], dtype=np.float64), statuses)

    def decision_function(self, texts: Iterable[object]) -> np.ndarray:
        """Scores (n,), float64, higher = more likely generated; NaN for rows without a score (``score_texts`` says why)."""
        return self.score_texts(texts).values

    def score(self, texts: Iterable[object]) -> np.ndarray:
        """The same as ``decision_function``: a detector's score is the reward, not an accuracy."""
        return self.decision_function(texts)

    def calibrate(self, texts: Iterable[object], labels: Sequence[int] | np.ndarray) -> Self:
        """Fit Platt scaling on validation data that took no part in training.

        Logistic regression of the label on the score, with Platt's smoothed targets (N+ + 1) / (N+ + 2) and
        1 / (N- + 2), which keep the slope finite where the score separates the classes (Platt 1999, section 2.2).
        Rows without a score are left out. A detector that is wrong more often than right gets a negative slope and a
        warning; its scores are never flipped.

        Args:
            labels: (n,), 1 for generated and 0 for human.

        Raises:
            RematchError: a label other than 0 and 1, or scores of one class only.
        """
        values, labels = self.decision_function(texts), np.asarray(labels)
        if labels.shape != values.shape or not np.isin(labels, (0, 1)).all():
            raise RematchError("calibrate: one label a text is needed, 1 for generated and 0 for human")
        scored = np.isfinite(values)
        values, positive = values[scored], labels[scored] == 1
        n_positive, n_negative = int(positive.sum()), int((~positive).sum())
        if not (n_positive and n_negative):
            raise RematchError(
                f"calibrate: scored texts of both classes are needed, not {n_positive} generated and {n_negative} human"
            )
        target = np.where(positive, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
        centre, scale = float(values.mean()), float(values.std()) or 1.0
        x = ((values - centre) / scale)[:, None]
        # A soft target is the same row with either label, weighted.
        regression = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(
            np.concatenate([x, x]),
            np.repeat([1, 0], len(x)),
            sample_weight=np.concatenate([target, 1 - target]),
        )
        slope = float(regression.coef_[0, 0]) / scale
        self.calibration_ = (slope, float(regression.intercept_[0]) - slope * centre)
        if slope < 0:
            warnings.warn("on the validation texts a higher score means human more often than not", stacklevel=2)
        return self

    def predict_proba(self, texts: Iterable[object]) -> np.ndarray:
        """Calibrated probabilities (n, 2) of human and generated; NaN for rows without a score.

        Raises:
            sklearn.exceptions.NotFittedError: before ``calibrate``.
        """
        return self.probabilities(self.decision_function(texts))

    def probabilities(self, values: np.ndarray) -> np.ndarray:
        """``predict_proba`` of scores (n,) that are known already."""
        if self.calibration_ is None:
            raise NotFittedError("probabilities need calibrate(texts, labels) on validation data first")
        slope, intercept = self.calibration_
        generated = 0.5 * (1 + np.tanh((slope * values + intercept) / 2))  # the logistic function, without overflow
        return np.stack([1 - generated, generated], axis=1)

    def predict(self, texts: Iterable[object]) -> np.ndarray:
        """Labels (n,) at probability 1/2: 1 generated, 0 human, -1 for rows without a score."""
        generated = self.predict_proba(texts)[:, 1]
        return np.where(np.isnan(generated), -1, generated >= 0.5).astype(np.int64)

    # -- passes ---------------------------------------------------------------------------------------------------

    @property
    def _limit(self) -> int:
        return int(min(self.max_length, getattr(self.tokenizer, "model_max_length", None) or math.inf))

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """A padded batch on the model's device; a long text costs no more than the tokens that are read of it."""
        self._check_attached()
        return {name: tensor.to(self._device) for name, tensor in self._tokenize(texts, self._limit).items()}

    def _tokenize(self, texts: Sequence[str], limit: int) -> dict[str, Tensor]:
        """At most ``limit`` tokens of each text, fewer only where the text has no more."""
        characters = CHARACTERS_PER_TOKEN * limit
        while True:
            heads = [rows.head(text, characters) for text in texts]
            batch = self.tokenizer(heads, truncation=True, max_length=limit, padding=True, return_tensors="pt")
            lengths = batch["attention_mask"].sum(1).tolist()
            if all(n >= limit or head == text for n, head, text in zip(lengths, heads, texts, strict=True)):
                return dict(batch.items())
            characters *= 8

    def _longer(self, texts: Sequence[str], batch: dict[str, Tensor]) -> list[str]:
        """Those of an encoded batch's texts of which tokens were cut off."""
        lengths = batch["attention_mask"].sum(1).tolist()
        full = [text for text, n in zip(texts, lengths, strict=True) if n >= self._limit]
        if not full:
            return []
        # One token more is asked for: a text that has just the tokens that are read is whole.
        lengths = self._tokenize(full, self._limit + 1)["attention_mask"].sum(1).tolist()
        return [text for text, n in zip(full, lengths, strict=True) if n > self._limit]

    def _logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits = model(**batch).logits
        if logits.ndim != 2 or logits.shape[1] != self.n_logits:
            raise RematchError(
                f"{type(self).__name__} needs a model with logits (batch, {self.n_logits}), not {tuple(logits.shape)}"
            )
        return logits

    def _scores(self, logits: Tensor) -> Tensor:
        """Scores (batch,) of logits (batch, n_logits)."""
        return logits[:, 0]


@dataclass(eq=False)
class HubClassifier(SequenceDetector):
    """A two-class classifier of the hub, oriented by its training label; it never trains.

    The score is the log-odds of ``positive_class``: in the same order as its probability, without the ties where that
    rounds to 1. Classes are not numbered alike: class 1 of the ChatGPT-Detector is ChatGPT, class 0 of the
    OpenAI-Detector is "Fake". (ReMoDetect's evaluation takes class 0 of either.)

    Attributes:
        positive_class: the logit that means "generated", 0 or 1.
    """

    positive_class: int = field(kw_only=True)

    n_logits: ClassVar[int] = 2
    HUMAN_LABELS: ClassVar[frozenset[str]] = frozenset({"human", "real"})

    def _check(self) -> None:
        super()._check()
        if self.positive_class not in (0, 1):
            raise ValueError(f"positive_class must be 0 or 1, not {self.positive_class!r}")

    def attach(self, model: nn.Module, tokenizer: Callable[..., Any]) -> Self:
        """As of every detector; a model whose own label for ``positive_class`` says "human" is refused.

        Raises:
            RematchError: the label contradicts ``positive_class``.
        """
        label = (getattr(getattr(model, "config", None), "id2label", None) or {}).get(self.positive_class, "")
        if str(label).lower() in self.HUMAN_LABELS:
            raise RematchError(
                f"positive_class={self.positive_class} is the class of generated texts, "
                f"but the model's own label for it is '{label}'; take {1 - self.positive_class}"
            )
        return super().attach(model, tokenizer)

    def _scores(self, logits: Tensor) -> Tensor:
        logits = logits.double()
        return logits[:, self.positive_class] - logits[:, 1 - self.positive_class]


def item_order(n_items: int, epoch: int, n_drawn: int, seed: int, stream: int) -> np.ndarray:
    """Which items of a stream are read, in order, (n_drawn,): a function of sizes and seed alone.

    Args:
        n_items: items of the stream.
        epoch: items that are read in an epoch, of a permutation that is drawn for it.
        stream: streams of one seed are shuffled independently.
    """
    rng = np.random.default_rng([seed, stream])
    epochs = -(-n_drawn // epoch)
    return np.concatenate([rng.permutation(n_items)[:epoch] for _ in range(epochs)] or [np.empty(0, int)])[:n_drawn]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: no decay for biases and for the weights of norms; frozen parameters are left out.

    A norm is told by its module's class (``nn.LayerNorm`` and whatever else calls itself a norm), a bias by its name.
    A parameter that several modules share does not decay if it is one of these in any of them.
    """
    spared: set[int] = set()
    for module in model.modules():
        is_norm = isinstance(module, nn.LayerNorm) or "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            if is_norm or name == "bias" or name.endswith(("_bias", ".bias")):
                spared.add(id(parameter))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in spared], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in spared], "weight_decay": 0.0},
    ]


@dataclass(eq=False)
class TrainedDetector(SequenceDetector):
    """A detector that trains the attached model in place; the defaults are ReMoDetect's official code's.

    AdamW without gradient clipping; the learning rate rises linearly over ``int(warmup * steps)`` updates, starting AT
    ZERO (the first update changes nothing), and falls along half a cosine to 0. Dropout is on. The last weights are
    kept. Texts that a detector would not score (empty, one word, no text) take their pair or triplet with them.

    Attributes:
        finetune: off, ``fit`` leaves the model as it is: the zero-shot detector.
        learning_rate: its peak.
        weight_decay: on all but biases and norms.
        warmup: share of the updates, in [0, 1].
        epochs: may be a fraction.
        batch_size: items (pairs, triplets) in an update; the last one may have fewer.
        seed: of the order of the items and of dropout.
        training_flops_: counted floating-point operations of ``fit``, forward and backward, of every model that ran.
        texts_seen_, tokens_seen_: what the trained model read, padding not counted.
        steps_: updates.
        losses_: of each update.
        n_dropped_: items that ``fit`` was given and left out.
    """

    finetune: bool = True
    learning_rate: PositiveFloat = 2e-5
    weight_decay: NonNegativeFloat = 0.01
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    epochs: NonNegativeFloat = 1.0
    batch_size: PositiveInt = 1
    seed: int = 0

    training_flops_: float = field(default=0.0, init=False, repr=False)
    texts_seen_: int = field(default=0, init=False, repr=False)
    tokens_seen_: int = field(default=0, init=False, repr=False)
    steps_: int = field(default=0, init=False, repr=False)
    losses_: list[float] = field(default_factory=list, init=False, repr=False)
    n_dropped_: int = field(default=0, init=False, repr=False)

    _cost: ClassVar[PassCost | None] = None

    def pass_cost(self, texts: Sequence[str]) -> PassCost:
        """The FLOPs of this detector's passes over such texts, counted on the two longest of them."""
        by_words = sorted(set(texts), key=lambda text: (len(text.split()), text))
        shortest = self.encode(by_words[:1])["input_ids"].shape[1]
        return PassCost.measure(lambda batch: self._logits(self.model, batch), self.encode(by_words[-2:]), shortest)

    def planner(self, cost: PassCost) -> Self:
        """A copy whose ``fit`` trains nothing: it only adds up, in ``training_flops_``, what the same call would cost."""
        planner = copy.copy(self)
        planner._cost = cost  # type: ignore[misc]
        return planner

    def _check(self) -> None:
        super()._check()
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size!r}")
        for name in ("learning_rate", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)!r}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must lie in [0, 1], not {self.warmup!r}")
        if not (math.isfinite(self.epochs) and self.epochs > 0):
            raise ValueError(f"epochs must be positive, not {self.epochs!r}")

    def _optimizer(self, steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        from transformers import get_cosine_schedule_with_warmup

        optimizer = torch.optim.AdamW(parameter_groups(self.model, self.weight_decay), lr=self.learning_rate)
        return optimizer, get_cosine_schedule_with_warmup(optimizer, int(self.warmup * steps), steps)

    def _train(self, sizes: Sequence[int], loss: Callable[..., Tensor]) -> None:
        """Train on streams that are read side by side; an epoch is as long as the shortest of them.

        Args:
            sizes: items of each stream.
            loss: called as ``loss(passes, *indices)`` with the indices (batch,) of each stream's items; a scalar.

        Raises:
            RematchError: a stream is empty, or ``epochs`` make less than one item.
        """
        self._check()
        self._check_attached()
        passes, losses = Passes(self), []
        n_drawn = int(self.epochs * min(sizes) + 0.5) if self.finetune else 0
        if self.finetune and n_drawn < 1:
            raise RematchError(
                f"{type(self).__name__}.fit: nothing to train on ({self.epochs} epochs of {min(sizes)} items)"
            )
        orders = [item_order(n, min(sizes), n_drawn, self.seed, stream) for stream, n in enumerate(sizes)]
        steps = -(-n_drawn // self.batch_size)
        devices = [self._device] if self._device.type == "cuda" else []
        if self._cost is not None:
            for start in range(0, n_drawn, self.batch_size):
                loss(passes, *(order[start : start + self.batch_size] for order in orders))
            self.training_flops_ = passes.flops
            return
        self.calibration_ = None
        try:
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(self.seed)  # dropout
                self.model.train()
                optimizer, schedule = self._optimizer(steps)
                for start in range(0, n_drawn, self.batch_size):
                    value = loss(passes, *(order[start : start + self.batch_size] for order in orders))
                    value.backward()
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                    losses.append(value.detach())
        finally:
            self.model.eval()
        self.training_flops_, self.texts_seen_, self.tokens_seen_ = passes.flops, passes.texts, passes.tokens
        self.steps_, self.losses_ = steps, torch.stack(losses).tolist() if losses else []


class Passes:
    """The forward passes of one ``fit``, metered. FLOPs are counted once a padded shape and multiplied."""

    def __init__(self, detector: TrainedDetector) -> None:
        self.detector = detector
        self.flops = 0.0
        self.texts = 0
        self.tokens = 0
        self._counted: dict[tuple[Any, ...], int] = {}

    def trained(self, *groups: Sequence[str]) -> list[Tensor]:
        """Rewards of each group of texts by the model in training, all groups in one forward pass."""
        batch = self.detector.encode([text for group in groups for text in group])
        self.texts += len(batch["input_ids"])
        self.tokens += int(batch["attention_mask"].sum())
        rewards = self._pass(self.detector.model, batch, backward=True)
        return list(rewards.split([len(group) for group in groups]))

    def frozen(self, model: nn.Module, texts: Sequence[str]) -> Tensor:
        """Rewards of texts by a model that does not train."""
        with torch.no_grad():
            return self._pass(model, self.detector.encode(texts), backward=False)

    def _pass(self, model: nn.Module, batch: dict[str, Tensor], backward: bool) -> Tensor:
        if self.detector._cost is not None:
            n_texts, length = batch["input_ids"].shape
            self.flops += self.detector._cost(n_texts, length, backward)
            return torch.zeros(n_texts)

        def rewards() -> Tensor:
            return self.detector._scores(self.detector._logits(model, batch))

        shape = (backward, *batch["input_ids"].shape)
        if shape not in self._counted:
            self._counted[shape] = count_flops(rewards, backward=backward).total
        self.flops += self._counted[shape]
        return rewards()


@dataclass(eq=False)
class BCEDetector(TrainedDetector):
    """The supervised baseline: logistic loss on generated against human texts, on the same trunk and with the same loop.

    From a reward model's weights or from random ones: that is the attached model's affair.
    """

    def fit(self, llm: Sequence[object], human: Sequence[object]) -> Self:
        """Train on pairs: ``llm[i]`` and ``human[i]``, which stay together in a batch.

        The loss is the mean over the 2 * batch_size texts of -ln sigma(r) for generated and -ln sigma(-r) for human
        ones. The pairs are read in the order in which a ``ReMoDetector`` of the same seed reads as many triplets.

        Raises:
            RematchError: not as many texts of either kind, or none that can be trained on.
        """
        (llm_texts, llm_statuses), (human_texts, human_statuses) = rows.read_all(llm), rows.read_all(human)
        if len(llm_texts) != len(human_texts):
            raise RematchError(f"BCEDetector.fit: pairs are needed, not {len(llm_texts)} and {len(human_texts)} texts")
        kept = [
            i for i, pair in enumerate(zip(llm_statuses, human_statuses, strict=True)) if pair == (rows.OK, rows.OK)
        ]

        def loss(passes: Passes, indices: np.ndarray) -> Tensor:
            r_llm, r_human = passes.trained(
                [llm_texts[kept[i]] for i in indices], [human_texts[kept[i]] for i in indices]
            )
            return 0.5 * (F.softplus(-r_llm).mean() + F.softplus(r_human).mean())

        self._train([len(kept)], loss)
        self.n_dropped_ = len(llm_texts) - len(kept)
        return self
