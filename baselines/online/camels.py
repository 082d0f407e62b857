"""CaMeLS (Hu et al., 2023): a small network learns how much each token of a document should count in online fine-tuning.

It is meta-trained through the updates that its weights cause: the language model takes steps of gradient descent on a few
documents, and the loss of the result on questions about them is differentiated, to second order, down to the weights.
"""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoConfig, AutoModel, PreTrainedModel

from baselines.checkpoints import resume, save
from baselines.online.documents import Document
from baselines.online.finetuning import weighted_loss
from baselines.qa import QABatch, full_precision, qa_loss
from rematch.errors import RematchError
from rematch.flops import count_flops

Parameters = dict[str, Tensor]


class WeightNet(nn.Module):
    """Weights of tokens: a causal transformer, linear to 128, GELU, linear to 1, softplus with beta 3.

    The last layer starts at zero, so that every weight starts at ln 2 / 3 (official code); the one before it is drawn from
    torch's generator.
    """

    def __init__(self, body: PreTrainedModel, hidden: int = 128) -> None:
        """
        Args:
            body: a transformers causal model without head, on the vocabulary of the language model; it is trained too.
            hidden: width of the head.
        """
        super().__init__()
        self.body = body
        self.hidden = nn.Linear(body.config.hidden_size, hidden)
        self.out = nn.Linear(hidden, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @classmethod
    def from_lm(cls, lm: Any, n_layers: int | None = None, hidden: int = 128) -> Self:
        """A network whose body starts as a copy of a causal LM's, of its lowest layers where ``n_layers`` is given."""
        config = copy.deepcopy(lm.config)
        if n_layers is not None:
            if not 1 <= n_layers <= config.num_hidden_layers:
                raise RematchError(f"n_layers must be 1 to {config.num_hidden_layers}, not {n_layers}")
            config.num_hidden_layers = n_layers
            if getattr(config, "layer_types", None) is not None:
                config.layer_types = config.layer_types[:n_layers]
        body = AutoModel.from_config(config, dtype=lm.dtype).to(lm.device)
        known = body.state_dict()
        body.load_state_dict({name: value for name, value in lm.base_model.state_dict().items() if name in known})
        return cls(body, hidden).to(device=lm.device, dtype=lm.dtype)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The weights of tokens (B, n), padded on the right; 0 for padding."""
        # A causal model needs no mask for what comes later.
        states = self.body(input_ids=input_ids, use_cache=False).last_hidden_state
        weights = F.softplus(self.out(F.gelu(self.hidden(states))).squeeze(-1), beta=3)
        return weights if attention_mask is None else weights * attention_mask

    @torch.no_grad()
    def weigh(self, document: Document) -> Tensor:
        """The weights of a document's tokens, (n,), in evaluation mode: a weighting for online fine-tuning."""
        self.eval()
        return self(document.input_ids[None])[0]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the body's configuration and all weights (safetensors) into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.body.config.save_pretrained(folder)
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "weight_net.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load what ``save_pretrained`` wrote."""
        tensors = load_file(Path(folder) / "weight_net.safetensors")
        hidden = tensors["hidden.weight"]
        body = AutoModel.from_config(AutoConfig.from_pretrained(folder), dtype=hidden.dtype)
        net = cls(body, hidden.shape[0]).to(hidden.dtype)
        net.load_state_dict(tensors)
        return net.eval()


@dataclass(frozen=True)
class MetaBatch:
    """What one step of meta-training reads.

    Attributes:
        input_ids, attention_mask: the documents that the language model learns, (B, n), padded on the right. Padding is
            computed too; batches of the same shapes have their FLOPs counted once.
        qa: questions about them.
        anchor_ids, anchor_mask: unrelated text on which the language model should stay as it is, (A, m), likewise.
    """

    input_ids: Tensor
    attention_mask: Tensor
    qa: QABatch
    anchor_ids: Tensor
    anchor_mask: Tensor

    def to(self, device: torch.device | str) -> MetaBatch:
        """The batch on a device."""
        return MetaBatch(
            self.input_ids.to(device), self.attention_mask.to(device), self.qa.to(device), self.anchor_ids.to(device),
            self.anchor_mask.to(device),
        )  # fmt: skip


@dataclass(frozen=True)
class MetaRecipe:
    """How weights are learned; the defaults are the official ones, with batches of 6 documents.

    Attributes:
        inner_learning_rate: of the gradient descent on documents.
        learning_rate: Adam's, for the network.
        accumulation: batches in a step of Adam.
        anchor: weight of the divergence on unrelated text.
        reset_every: batches after which the language model, which keeps its updates from batch to batch, starts anew.
        clip: largest norm of the network's gradient.
        n_positions: tokens and padding of a document that the mean of the inner loss counts on (``weighted_loss``); the
            official code pads all to 1,024, to which its ``inner_learning_rate`` belongs. None: as many as the longest of the
            batch has, so that a step's size depends on the others.
        checkpoint_every: steps between checkpoints, 0 for none; they are written where the language model starts anew.
    """

    inner_learning_rate: NonNegativeFloat = 5e-4
    learning_rate: NonNegativeFloat = 1e-5
    accumulation: PositiveInt = 4
    anchor: NonNegativeFloat = 0.1
    reset_every: PositiveInt = 4
    clip: PositiveFloat = 1e5
    n_positions: PositiveInt | None = None
    checkpoint_every: NonNegativeInt = 0


@dataclass
class MetaTraining:
    """What meta-training cost and how it went.

    Attributes:
        flops: of all batches, second order included.
        steps: steps of Adam.
        qa_losses: nats a token of the answers, after the updates, a batch.
        anchors: divergence on unrelated text in nats a token, a batch.
        seconds: wall time, counting left out.
    """

    flops: float = 0.0
    steps: int = 0
    qa_losses: list[float] = field(default_factory=list)
    anchors: list[float] = field(default_factory=list)
    seconds: float = 0.0


def meta_train(
    net: WeightNet,
    lm: Any,
    batches: Iterable[MetaBatch],
    recipe: MetaRecipe | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
) -> MetaTraining:
    """Train a weight network in place.

    Args:
        lm: the causal LM that is going to be fine-tuned online, already QA-tuned; it is not changed.
        batches: in the order in which they are read; batches that are left over after the last full accumulation make a
            smaller step.
        seed: of dropout.
        checkpoint: a folder from which an interrupted run is resumed, with the same batches, and into which checkpoints are
            written.

    Raises:
        RematchError: the checkpoint is another run's.
    """
    recipe = MetaRecipe() if recipe is None else recipe
    parameters = dict(net.named_parameters())
    optimizer = torch.optim.Adam(parameters.values(), lr=recipe.learning_rate)
    start = {name: value.detach() for name, value in lm.named_parameters()}
    learned = start
    known: dict[tuple[Any, ...], int] = {}
    run = json.dumps({"recipe": asdict(recipe), "seed": seed}, sort_keys=True)
    was_training, device = lm.training, lm.device
    net.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), sdpa_kernel(SDPBackend.MATH):
        torch.manual_seed(seed)
        before = resume(checkpoint, run, parameters, optimizer) if checkpoint else None
        done = MetaTraining(**before or {})
        for batch in itertools.islice(batches, len(done.qa_losses), None):
            batch = batch.to(device)
            shape = (*batch.input_ids.shape, *batch.qa.input_ids.shape, *batch.anchor_ids.shape)
            if shape not in known:
                known[shape] = count_flops(_gradients, net, lm, learned, batch, recipe).forward
            done.flops += known[shape]
            began = time.perf_counter()
            gradients, learned, qa, anchor = _gradients(net, lm, learned, batch, recipe)
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                scaled = gradient / recipe.accumulation
                parameter.grad = scaled if parameter.grad is None else parameter.grad.add_(scaled)
            done.qa_losses.append(qa)
            done.anchors.append(anchor)
            n_read = len(done.qa_losses)
            stepped, anew = n_read % recipe.accumulation == 0, n_read % recipe.reset_every == 0
            if stepped:
                done.steps += _update(optimizer, net, recipe.clip)
            if anew:
                learned = start
            done.seconds += time.perf_counter() - began
            due = recipe.checkpoint_every and done.steps % recipe.checkpoint_every == 0
            if checkpoint and due and stepped and anew:
                save(checkpoint, run, parameters, optimizer, asdict(done))
        if len(done.qa_losses) % recipe.accumulation:
            done.steps += _update(optimizer, net, recipe.clip)
    lm.train(was_training)
    net.eval()
    return done


def _update(optimizer: torch.optim.Optimizer, net: WeightNet, clip: float) -> int:
    nn.utils.clip_grad_norm_(net.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()
    return 1


def _gradients(
    net: WeightNet, lm: Any, state: Parameters, batch: MetaBatch, recipe: MetaRecipe
) -> tuple[tuple[Tensor, ...], Parameters, float, float]:
    """Gradients of the outer loss in the network's parameters; the updated LM, QA loss and divergence."""
    loss, updated, qa, anchor = outer_loss(net, lm, state, batch, recipe)
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    return gradients, {name: value.detach() for name, value in updated.items()}, qa.item(), anchor.item()


def outer_loss(
    net: WeightNet, lm: Any, state: Parameters, batch: MetaBatch, recipe: MetaRecipe
) -> tuple[Tensor, Parameters, Tensor, Tensor]:
    """The loss that weights are learned from, differentiable in the network's parameters.

    Runs under the MATH attention kernel only (``sdpa_kernel``): the others have no second derivative.

    Args:
        state: the LM's parameters before the updates, by name; ``lm`` gives the architecture only. No gradient flows into
            them.

    Returns:
        The loss, the parameters after the updates, the QA loss under them, and the divergence of the LM after from the LM
        before them on the anchor text.
    """
    # The weights are computed once; the updates do not change them.
    weights = net(batch.input_ids, batch.attention_mask)
    lm.train()
    updated = {name: value.detach().requires_grad_() for name, value in state.items()}
    n_positions = recipe.n_positions or batch.input_ids.shape[1]
    for row in range(len(batch.input_ids)):
        place = slice(row, row + 1)
        # No attention mask: padding stands behind the tokens, and its weight is 0.
        loss = weighted_loss(_with(lm, updated), batch.input_ids[place], weights[place], n_positions=n_positions)
        gradients = torch.autograd.grad(loss, list(updated.values()), create_graph=True, allow_unused=True)
        updated = {
            name: value if gradient is None else value - recipe.inner_learning_rate * gradient
            for (name, value), gradient in zip(updated.items(), gradients, strict=True)
        }
    lm.eval()
    qa = qa_loss(_with(lm, updated), batch.qa)
    anchor = _divergence(lm, state, updated, batch.anchor_ids, batch.anchor_mask)
    return qa + recipe.anchor * anchor, updated, qa, anchor


def _with(lm: Any, parameters: Parameters) -> Callable[..., Any]:
    """The LM with other parameters; tied ones stay tied."""
    return lambda **inputs: functional_call(lm, parameters, kwargs=inputs)


def _divergence(lm: Any, before: Parameters, after: Parameters, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """KL(before || after) of the next token, the mean over the tokens of a text."""
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    with torch.no_grad():
        old = full_precision(_with(lm, before)(**inputs).logits).log_softmax(-1)
    new = full_precision(_with(lm, after)(**inputs).logits).log_softmax(-1)
    divergence = (old.exp() * (old - new)).sum(-1)
    return (divergence * attention_mask).sum() / attention_mask.sum()
