"""The same training by TRL's SFTTrainer and DPOTrainer, in this process or in several that accelerate starts.

They take the steps of the own loop: its rows in its order, its optimizer and its learning rates. What TRL would do otherwise is
put right where it would change the result, so that both loops end in the same weights up to rounding, in whatever number of
processes and passes: the means over a step's rows and tokens are over the whole step, where TRL's DPOTrainer takes those of each
forward pass; no row is tokenised again or cut, nor an end token appended; and of the reference model it is handed the
log-probabilities, so that none is kept. What stays different is the cost: TRL runs both continuations of every pair.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from baselines.checkpoints import claim
from baselines.loading import load_lm
from baselines.post_training.batches import Example, Pair
from baselines.post_training.objectives import Data, Objective, Preferences
from baselines.post_training.training import Recipe, Training, schedule_batches, show_progress, step_flops
from baselines.post_training.trl_steps import Part, parts_of, passes_of, tokens_of
from baselines.transformer_flops import transformer_flops
from rematch.errors import RematchError
from rematch.supervise import die_with_parent

AfterStep = Callable[[int, float], None]
IGNORED = -100
"""The label of tokens that are not predicted."""

FAR = 1e4
"""A reward so high that -log sigmoid is 0, for rows that run for nothing."""

WORKER = "baselines.post_training.trl_worker"
ROWS, JOB, TRAINED, LOSSES = "rows.jsonl", "job.json", "trained.safetensors", "losses.json"
N_TAIL = 60
"""Lines of the log of processes that failed, in the error."""


def train_by_trl(
    model: Any,
    objective: Objective,
    recipe: Recipe,
    seed: int,
    batches: Sequence[Sequence[int]],
    run: str,
    checkpoint: Path | None = None,
    after_step: AfterStep | None = None,
) -> Training:
    """What ``training.train`` does with ``trainer: trl``.

    Args:
        batches: the rows of every step.
        run: what tells this run from others.
        checkpoint: a folder, where Trainer's checkpoints are written and resumed from.

    Raises:
        RematchError: something is to be called after each step of several processes, there are fewer GPUs than processes, one of
            the processes fails, or a checkpoint is another run's.
    """
    data, costs, losses = objective.data, transformer_flops(model), list[float]()
    if after_step and recipe.processes > 1:
        raise RematchError(
            f"after_step is called between steps, and with processes: {recipe.processes} the model is elsewhere then: leave it "
            "out, or train with processes: 1"
        )
    if checkpoint:
        claim(checkpoint, run)
    if batches:
        if recipe.processes > 1:
            losses = trained_in_processes(model, data, recipe, seed, checkpoint)
        else:
            losses = trained_here(model, data, recipe, seed, checkpoint, after_step)
    model.eval()
    rows = [index for batch in batches for index in batch]
    return Training(
        flops=sum(step_flops(costs, objective, batch, recipe, model.device.type) for batch in batches),
        rows=len(rows),
        tokens=sum(length for index in rows for length, _ in tokens_of(data, index)),
        losses=losses,
    )


def trained_here(
    model: Any, data: Data, recipe: Recipe, seed: int, checkpoint: Path | None, after_step: AfterStep | None = None
) -> list[float]:
    """Train a model in place, in this process or as one of those that accelerate started; the losses of all steps."""
    devices = [model.device] if model.device.type == "cuda" else []  # each process touches its own GPU alone
    with torch.random.fork_rng(devices), _folder(checkpoint) as folder:
        trainer = make_trainer(model, data, recipe, seed, folder, checkpoint is not None, after_step)
        trainer.train(resume_from_checkpoint=_last_checkpoint(folder))
        return losses_of(trainer.state)


def losses_of(state: Any) -> list[float]:
    """Of each step, from the state of a trainer."""
    return [entry["loss"] for entry in state.log_history if "loss" in entry]


# -- one trainer ------------------------------------------------------------------------------------------------------


class _Steps:
    """What both trainers share: a step's rows come in the parts that they are dealt out in; nothing is reported to anyone."""

    parts: list[tuple[Part, list[float]]]
    """Of this process, each with the weights of the losses of its rows."""

    train_dataset: Any
    data_collator: Any

    def get_train_dataloader(self) -> DataLoader[Any]:
        parts: Any = self.parts
        return DataLoader(parts, batch_size=1, collate_fn=lambda parts: self.collated(*parts[0]))

    def collated(self, part: Part, weights: list[float]) -> dict[str, Any]:
        """The batch of a part."""
        batch: dict[str, Any] = self.data_collator([self.train_dataset[index] for index in part.indices])
        return batch

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """A checkpoint needs none."""

    def _send_telemetry(self) -> None:
        """Nobody is told of a training run."""


class ExampleTrainer(_Steps, SFTTrainer):
    """A step's loss is the mean over its tokens, which TRL counts over all parts and processes."""

    def collated(self, part: Part, weights: list[float]) -> dict[str, Any]:
        batch = super().collated(part, weights)
        batch["labels"][part.n_counted :] = IGNORED
        return batch


class PairTrainer(_Steps, DPOTrainer):
    """A step's loss is the mean over its rows and tokens: TRL's means over a part weigh what they hold of the step."""

    def collated(self, part: Part, weights: list[float]) -> dict[str, Any]:
        batch = super().collated(part, weights)
        batch["ref_chosen_logps"][part.n_counted :] = -FAR / self.beta
        if part.n_counted:  # where none counts the weights are 0, and TRL needs a token to take a mean over
            batch["completion_mask"].unflatten(0, (2, -1))[:, part.n_counted :] = 0
        return batch | {"loss_weights": weights}

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.loss_weights = inputs.pop("loss_weights")
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class _AfterStep(TrainerCallback):
    def __init__(self, after_step: AfterStep | None) -> None:
        self.after_step, self.losses, self.began, self.first = after_step, list[float](), 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.losses, self.began, self.first = losses_of(state), time.perf_counter(), state.global_step
        if self.first and state.is_world_process_zero:
            print(f"resumed at step {self.first}", flush=True)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" not in logs:
            return
        self.losses.append(logs["loss"])
        if state.is_world_process_zero:
            show_progress(self.losses, state.max_steps, state.global_step - self.first, self.began)
        if self.after_step:
            self.after_step(state.global_step, logs["loss"])


def make_trainer(
    model: Any,
    data: Data,
    recipe: Recipe,
    seed: int,
    folder: Path,
    save: bool = False,
    after_step: AfterStep | None = None,
) -> ExampleTrainer | PairTrainer:
    """A trainer of the model's own weights, which leaves all else of the model as it is; ``.train()`` it.

    Args:
        folder: where checkpoints go.
        save: whether there are any.
    """
    batches = schedule_batches(len(data.pairs) if isinstance(data, Preferences) else len(data), recipe, seed)
    n_passes = passes_of(recipe)
    options: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": len(batches), "seed": seed, "max_grad_norm": recipe.clip,
        "per_device_train_batch_size": -(-recipe.batch_size // (n_passes * recipe.processes)),
        "gradient_accumulation_steps": n_passes, "max_length": None, "remove_unused_columns": False,
        # As of the own loop: everything in the type of the weights.
        "bf16": False, "activation_checkpointing": False, "use_cpu": model.device.type == "cpu",
        "ddp_find_unused_parameters": False,
        "logging_steps": 1, "logging_nan_inf_filter": False, "report_to": [], "disable_tqdm": True,
        "save_strategy": "steps" if save else "no", "save_steps": recipe.checkpoint_every or len(batches), "save_total_limit": 1,
    }  # fmt: skip
    config: Any
    if isinstance(data, Preferences):
        config = DPOConfig(
            loss_type=["sigmoid", "sft"], loss_weights=list(data.weights), beta=data.beta, disable_dropout=False,
            precompute_ref_log_probs=True, **options,
        )  # fmt: skip
    else:
        config = SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, **options)
    model.to(config.device)
    if recipe.processes == 1:
        config._n_gpu = 1  # more GPUs than that are another job's; TRL refuses to run where it sees them
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: recipe.learning_rate_at(step, len(batches)) / recipe.learning_rate
    )
    trainer = (PairTrainer if isinstance(data, Preferences) else ExampleTrainer)(
        model=_shell(model),
        args=config,
        train_dataset=Dataset.from_list(_columns(data)),
        processing_class=_padding(),
        optimizers=(optimizer, rates),
        callbacks=[_AfterStep(after_step)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.parts = _parts(data, batches, recipe, config.process_index)
    return trainer


def _shell(model: Any) -> Any:
    """Another body of the same weights: trainers and ``save_pretrained`` write into configs, and TRL changes the forward pass."""
    shell = copy.copy(model)
    shell.config, shell.generation_config = copy.deepcopy(model.config), copy.deepcopy(model.generation_config)
    return shell


def _padding() -> PreTrainedTokenizerFast:
    """A tokenizer that tokenises nothing. Token 0 pads, as in the own loop; what is padding is known by length."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<pad>": 0}, "<pad>")), pad_token="<pad>")


def _columns(data: Data) -> list[dict[str, Any]]:
    """The rows as TRL names them. Of reference log-probabilities only the difference matters."""
    if not isinstance(data, Preferences):
        return [
            {"input_ids": [*e.context, *e.target], "labels": [IGNORED] * len(e.context) + list(e.target)} for e in data
        ]
    return [
        {
            "prompt_ids": list(p.context), "chosen_ids": list(p.chosen), "rejected_ids": list(p.rejected),
            "ref_chosen_logps": margin, "ref_rejected_logps": 0.0,
        }
        for p, margin in zip(data.pairs, data.reference, strict=True)
    ]  # fmt: skip


def _parts(
    data: Data, batches: Sequence[Sequence[int]], recipe: Recipe, process: int
) -> list[tuple[Part, list[float]]]:
    """The parts of a process, in the order in which it runs them.

    The trainer takes the mean over all parts of a step, and TRL's losses are means over the rows, or tokens, of a part. So that
    the step's loss be the mean over the step's, those of a part weigh as much more as it holds more than its share.
    """
    found = []
    for batch in batches:
        parts = parts_of(batch, recipe)
        weights: list[list[float]] = [[] for _ in parts]
        if isinstance(data, Preferences):
            n_tokens = [sum(tokens_of(data, i)[0][1] for i in part.indices[: part.n_counted]) for part in parts]
            n_rows = [len(part.indices) if part.n_counted else 0 for part in parts]
            w_pref, w_sft = (len(parts) * weight for weight in data.weights)
            weights = [
                [w_pref * rows / len(batch), w_sft * tokens / sum(n_tokens)]
                for rows, tokens in zip(n_rows, n_tokens, strict=True)
            ]
        found += list(zip(parts, weights, strict=True))[process :: recipe.processes]
    return found


# -- checkpoints ------------------------------------------------------------------------------------------------------


@contextmanager
def _folder(checkpoint: Path | None) -> Iterator[Path]:
    """The folder of checkpoints, or one that is gone afterwards."""
    if checkpoint:
        yield checkpoint
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def _last_checkpoint(folder: Path) -> str | None:
    """The last one that is whole: the state of the trainer is written last."""
    for found in sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1])):
        try:
            json.loads((found / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(found)
    return None


# -- several processes ------------------------------------------------------------------------------------------------


def trained_in_processes(model: Any, data: Data, recipe: Recipe, seed: int, checkpoint: Path | None) -> list[float]:
    """Train a model in place in processes that accelerate starts; the losses of all steps.

    What they need goes into a folder as safetensors and JSON: ``trl_worker`` reads it there, and leaves the weights and losses.
    """
    device, n_gpus = model.device, torch.cuda.device_count()
    if device.type == "cuda" and recipe.processes > n_gpus:
        raise RematchError(
            f"Recipe: processes: {recipe.processes}; this machine has {n_gpus} GPUs, and each process needs one: give {n_gpus} "
            "or fewer, or make more of them visible (CUDA_VISIBLE_DEVICES)"
        )
    with _folder(checkpoint) as parent:
        folder = parent / "processes"
        shutil.rmtree(folder, ignore_errors=True)
        _shell(model.to("cpu")).save_pretrained(folder)  # its GPU is needed
        _hand_over(folder, model, data, recipe, seed, checkpoint, device.type)
        try:
            _launch(folder, recipe.processes)
        finally:
            model.to(device)
        trained = load_file(folder / TRAINED)
        for name, parameter in model.named_parameters():
            parameter.data.copy_(trained[name])
        losses: list[float] = json.loads((folder / LOSSES).read_text(encoding="utf-8"))
        shutil.rmtree(folder)
    return losses


def _hand_over(
    folder: Path, model: Any, data: Data, recipe: Recipe, seed: int, checkpoint: Path | None, device: str
) -> None:
    """Write all but the model."""
    rows = [[*p, m] for p, m in zip(data.pairs, data.reference, strict=True)] if isinstance(data, Preferences) else data
    with (folder / ROWS).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    job = {
        "recipe": asdict(recipe), "seed": seed, "device": device, "checkpoint": str(checkpoint) if checkpoint else None,
        "preference": {"beta": data.beta, "weights": data.weights} if isinstance(data, Preferences) else None,
        "trained": [name for name, p in model.named_parameters() if p.requires_grad],
        "attention": model.config._attn_implementation,
    }  # fmt: skip
    (folder / JOB).write_text(json.dumps(job), encoding="utf-8")


def work(folder: Path) -> None:
    """What each of the processes does; one that fails leaves the reason."""
    die_with_parent(
        os.getppid()
    )  # its parent gave it a session of its own, where no signal for the job's group reaches it
    rank = os.environ["RANK"]
    try:
        _work(folder, int(rank))
    except Exception as error:
        (folder / f"error{rank}.txt").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        raise


def _work(folder: Path, rank: int) -> None:
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    model: Any = load_lm(str(folder))
    model.set_attn_implementation(job["attention"])
    if job["device"] == "cuda":
        model.to(torch.device("cuda", int(os.environ["LOCAL_RANK"])))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in job["trained"]
    with (folder / ROWS).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    data: Data
    if job["preference"]:
        pairs = [Pair(*(tuple(ids) for ids in row[:3])) for row in rows]
        data = Preferences(
            pairs, [row[3] for row in rows], job["preference"]["beta"], tuple(job["preference"]["weights"])
        )
    else:
        data = [Example(*(tuple(ids) for ids in row)) for row in rows]
    checkpoint = Path(job["checkpoint"]) if job["checkpoint"] else None
    losses = trained_here(model, data, Recipe(**job["recipe"]), job["seed"], checkpoint)
    if rank == 0:
        save_file({name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}, folder / TRAINED)
        (folder / LOSSES).write_text(json.dumps(losses), encoding="utf-8")
    torch.distributed.destroy_process_group()


def _launch(folder: Path, processes: int) -> None:
    """Run the workers; what they print goes to this process's output.

    Raises:
        RematchError: one fails; with the end of what they printed.
    """
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        "--num_cpu_threads_per_process", str(torch.get_num_threads()), "--module", WORKER, str(folder),
    ]  # fmt: skip
    here = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}
    tail: deque[str] = deque(maxlen=N_TAIL)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    ) as launched:  # fmt: skip
        assert launched.stdout is not None
        try:
            for line in launched.stdout:
                print(line, end="", flush=True)
                tail.append(line)
        except BaseException:
            launched.terminate()  # it ends its workers
            raise
    if launched.returncode:
        reasons = sorted(folder.glob("error*.txt"), key=lambda path: path.stat().st_mtime)  # the others lose the first
        reason = reasons[0].read_text(encoding="utf-8") if reasons else f"exit code {launched.returncode}"
        raise RematchError(
            f"training in {processes} processes failed; the end of their log:\n{''.join(tail)}in short, {reason}"
        )
