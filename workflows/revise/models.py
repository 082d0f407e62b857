"""The model that everything starts from, M0: fine-tuned on solutions; and how a base's model is kept and loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from transformers import LlamaConfig, LlamaForCausalLM

from baselines.loading import Dtype, load_lm, load_tokenizer
from baselines.post_training.objectives import SFTObjective
from baselines.post_training.problems import Problem
from baselines.post_training.training import Recipe, train
from baselines.sampling import Sampling, sample
from methods.revise.tokens import Tokens, add_tokens, find_tokens
from rematch.arena import BaseInfo, BaseJob
from rematch.errors import RematchError, unknown
from rematch.hub import Hub
from rematch.hub_files import read_json
from rematch.hub_models import check_model
from rematch.options import made
from rematch.records import write_text
from workflows.revise.data import TRAIN, VALIDATION, read_problems
from workflows.revise.tasks import load_task

BAND = 0.35, 0.75
"""Where M0's greedy accuracy was meant to end."""

NOTES, POINTER = "training.json", "hub.json"
STAGE_1 = "stage1"
"""Folder of the model after ReVISE's first stage, in that of the one after both."""


class Sizes(TypedDict, total=False):
    """Of a Llama from scratch; see ``LlamaConfig``."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    max_position_embeddings: PositiveInt
    initializer_range: PositiveFloat
    rope_theta: PositiveFloat


MODEL_SIZES = tuple(Sizes.__annotations__)


@dataclass
class Pretrained:
    """A model of the hub as it is, for what is told worked examples instead of being trained.

    Attributes:
        hub_id: which one.
        dtype: that it is loaded in; M0's, as both are compared.
    """

    hub_id: str = ""
    dtype: Dtype = "float32"

    def build(self, job: BaseJob) -> BaseInfo:
        """Write a pointer to the hub."""
        check_model(job.hub, self.hub_id)
        pointer = {"id": self.hub_id, "dtype": self.dtype}
        (job.out / POINTER).write_text(json.dumps(pointer), encoding="utf-8")
        return BaseInfo(notes=pointer)


def load_pretrained(folder: Path, hub: Hub) -> tuple[Any, Any]:
    """The model that a base points to, in evaluation mode, and its tokenizer."""
    pointer = json.loads((folder / POINTER).read_text(encoding="utf-8"))
    path = hub.model_path(pointer["id"])
    return on_device(load_lm(path, None, getattr(torch, pointer["dtype"]))).eval(), load_tokenizer(path)


@dataclass
class FineTuned:
    """M0: a causal language model fine-tuned on solutions. Needs ``questions``.

    Where its greedy accuracy ends outside ``BAND`` a note says so: too little is right, or too little wrong, to learn from.

    Attributes:
        sizes: of a Llama from scratch (``MODEL_SIZES``), for questions whose words are tokens.
        hub_id: a model of the hub instead.
        dtype: that it is loaded in.
        recipe: of SFT; with 0 steps the model is taken as it is (an instruct model).
        max_new_tokens: of a solution, where accuracy is measured.
        curve_points, curve_questions: how often greedy accuracy is measured while it trains, on how many validation questions.
            The curve is what settings were chosen by; the last weights are kept, whatever it says.
    """

    sizes: Annotated[dict[str, Any], Sizes] = field(default_factory=dict)
    hub_id: str = ""
    dtype: Dtype = "float32"
    recipe: Annotated[dict[str, Any], Recipe] = field(default_factory=dict)
    max_new_tokens: PositiveInt = 1024
    curve_points: NonNegativeInt = 0
    curve_questions: PositiveInt = 100

    def build(self, job: BaseJob) -> BaseInfo:
        """Write the model with its tokenizer, and how its training went.

        Raises:
            RematchError: an option is unknown, or the model cannot be had.
        """
        where, seed = f"bases.{job.name}", job.seed or 0
        recipe = made(Recipe, self.recipe, f"{where}: recipe")
        if self.curve_points and recipe.processes > 1:
            raise RematchError(
                f"{where}: curve_points: {self.curve_points}; with processes: {recipe.processes} the model is elsewhere while it "
                "trains: give curve_points: 0, or processes: 1"
            )
        model, tokenizer = self._fresh(job, seed, where)
        tokens = add_tokens(tokenizer, model)
        task = load_task(job.needs["questions"], tokenizer)
        problems = read_problems(job.needs["questions"] / TRAIN, task)
        checked = read_problems(job.needs["questions"] / VALIDATION, task)[: self.curve_questions]
        objective = SFTObjective([problem.truth(tokens.end) for problem in problems])
        points = job.out / "checkpoint-curve" / "curve.json"
        curve: dict[int, float] = dict(read_json(points)) if points.exists() else {}

        def measure(step: int, _: float) -> None:
            if step % every == 0 or step == n_steps:
                curve[step] = greedy_accuracy(model, checked, tokens, self.max_new_tokens)
                write_text(json.dumps(sorted(curve.items())), points)

        n_steps = recipe.steps if recipe.steps is not None else recipe.epochs * -(-len(problems) // recipe.batch_size)
        every = max(1, n_steps // max(1, self.curve_points))
        after_step = measure if self.curve_points else None
        done = train(model, objective, recipe, seed, job.out / "checkpoint", after_step)
        notes: dict[str, Any] = {"curve": sorted(curve.items()), "final_loss": done.final_loss, "steps": done.steps}
        if curve:
            notes |= {"accuracy": curve[max(curve)]} | outside_band(curve[max(curve)])
        return save_model(model, tokenizer, job.out, done.flops, done.rows, done.tokens, notes)

    def _fresh(self, job: BaseJob, seed: int, where: str) -> tuple[Any, Any]:
        if self.hub_id:
            if self.sizes:
                raise RematchError(f"{where}: sizes: of a model from scratch, and hub_id names {self.hub_id}")
            path = check_model(job.hub, self.hub_id)
            return on_device(load_lm(path, None, getattr(torch, self.dtype))), load_tokenizer(path)
        for key in self.sizes:
            if key not in MODEL_SIZES:
                raise unknown("key", key, MODEL_SIZES, f"{where}: sizes")
        task = load_task(job.needs["questions"])
        if not hasattr(task, "tokenizer"):
            raise RematchError(
                f"{where}: hub_id: none is given, and a model from scratch is for generated questions only"
            )
        tokenizer = task.tokenizer()
        sizes = dict(self.sizes)
        rope = {"rope_type": "default", "rope_theta": float(sizes.pop("rope_theta", 10000.0))}
        config = LlamaConfig(
            vocab_size=len(tokenizer), tie_word_embeddings=True, rope_parameters=rope, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **sizes,
        )  # fmt: skip
        torch.manual_seed(seed)
        return LlamaForCausalLM(config), tokenizer


def outside_band(accuracy: float) -> dict[str, str]:
    """What to note of an accuracy outside ``BAND``, as ``warning``; nothing else."""
    low, high = BAND
    if low <= accuracy <= high:
        return {}
    return {"warning": f"M0 ends at {accuracy:.3f} on validation questions, outside {low} to {high}"}


def greedy_accuracy(model: Any, problems: Sequence[Problem], tokens: Tokens, max_new_tokens: int) -> float:
    """The share of problems whose greedy first attempt is right."""
    stop = (tokens.end, tokens.refine)
    found, _ = sample(model, [problem.prompt for problem in problems], Sampling(0.0, 1.0, max_new_tokens), stop)
    return sum(
        each.stop is not None and problem.is_right(each.ids) for each, problem in zip(found, problems, strict=True)
    ) / len(problems)


def save_model(
    model: Any, tokenizer: Any, folder: Path, flops: float, rows: int, n_tokens: int, notes: dict[str, Any]
) -> BaseInfo:
    """Keep a model, its tokenizer and what its training left to be known; training checkpoints go."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for checkpoint in folder.glob("checkpoint*"):
        shutil.rmtree(checkpoint)
    (folder / NOTES).write_text(json.dumps({"train_flops": flops, **notes}), encoding="utf-8")
    return BaseInfo(float(flops), rows, n_tokens, notes={k: v for k, v in notes.items() if not isinstance(v, list)})


def load_model(folder: Path) -> tuple[Any, Any, Tokens]:
    """A base's model in evaluation mode, where there is a GPU on it, its tokenizer, and how it ends an attempt."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = on_device(load_lm(str(folder), None, getattr(torch, config.get("dtype") or "float32")))
    tokenizer = load_tokenizer(str(folder))
    return model.eval(), tokenizer, find_tokens(tokenizer, model)


def on_device(model: Any) -> Any:
    """On the GPU, where there is one."""
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def read_notes(folder: Path) -> dict[str, Any]:
    """What a base's training left to be known."""
    return dict(json.loads((folder / NOTES).read_text(encoding="utf-8")))
