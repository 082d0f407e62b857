"""The same losses by the trainers of TRL, on the same token ids: for models of the hub on accelerators.

TRL runs both continuations of every pair and re-tokenises text, after which it appends an end token to whatever lacks one; here
it is handed token ids, which it leaves as they are. Its own loops count no FLOPs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from baselines.post_training.batches import Example, Pair


class PairTrainer(DPOTrainer):
    """A DPOTrainer of pairs that are token ids already: nothing is tokenised, no end token appended, nothing cut."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def pair_trainer(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    output_dir: str,
    weights: tuple[float, float] = (1.0, 0.0),
    beta: float = 0.1,
    reference: Any = None,
    **options: Any,
) -> PairTrainer:
    """A trainer of w_pref * DPO + w_sft * (mean negative log-likelihood of all tokens of the chosen continuations).

    Args:
        tokenizer: names the padding; it tokenises nothing.
        weights: w_pref, w_sft. Both parts are computed even at weight 0.
        reference: a deep copy of the model as it is where None: left alone, TRL would load the path that the model's config
            names, which is another model than the one handed over.
        options: of ``trl.DPOConfig``.
    """
    given: dict[str, Any] = {"max_length": None, "remove_unused_columns": False, "report_to": [], **options}
    config = DPOConfig(
        output_dir=output_dir, loss_type=["sigmoid", "sft"], loss_weights=list(weights), beta=beta, **given
    )
    rows = [
        {"prompt_ids": list(p.context), "chosen_ids": list(p.chosen), "rejected_ids": list(p.rejected)} for p in pairs
    ]
    return PairTrainer(
        model=model,
        ref_model=copy.deepcopy(model) if reference is None else reference,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def example_trainer(
    model: Any, tokenizer: Any, examples: Sequence[Example], output_dir: str, **options: Any
) -> SFTTrainer:
    """A trainer of the mean negative log-likelihood of all tokens of the targets.

    Args:
        tokenizer: names the padding; it tokenises nothing.
        options: of ``trl.SFTConfig``.
    """
    given: dict[str, Any] = {"max_length": None, "report_to": [], **options}
    rows = [
        {"input_ids": [*e.context, *e.target], "labels": [-100] * len(e.context) + list(e.target)} for e in examples
    ]
    return SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=output_dir, **given),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
