"""Few-shot chain of thought through lm-eval, offline, on tiny Llamas and on one that says what it is told to."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from revise_mirror import BEGIN, LLAMA, LLAMA_INSTRUCT, llama, write_data, write_models
from transformers import LlamaForCausalLM

from baselines.sampling import Sampling, sample
from rematch.errors import RematchError
from rematch.hub import Hub
from rematch.hub_models import load_tokenizer
from workflows.revise.few_shot import few_shot_scores, standard_scores
from workflows.revise.hub_questions import GSM8K, evaluation_questions

N_NEW = 12


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("mirror")
    write_data(folder)
    write_models(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield Hub(folder)


@pytest.fixture(scope="module")
def words(hub: Hub) -> Any:
    return load_tokenizer(hub.model_path(LLAMA))


class Reciter(LlamaForCausalLM):
    """Continues the i-th question of a data set with the i-th text, whatever its weights."""

    def tell(self, words: Any, questions: list[str], texts: list[str]) -> Reciter:
        self.words, self.texts, self.prompts = words, dict(zip(questions, texts, strict=True)), []
        return self.train()

    def generate(self, input_ids: torch.Tensor, max_length: int, pad_token_id: int, **options: Any) -> torch.Tensor:
        assert not options["do_sample"]
        (more,) = self.words(" pens", add_special_tokens=False)["input_ids"]
        rows = []
        for ids, mask in zip(input_ids, options["attention_mask"].bool(), strict=True):
            prompt = self.words.decode(ids[mask])
            self.prompts.append(prompt)
            # The question that is asked is the last one.
            row = self.words(self.texts[max(self.texts, key=prompt.rfind)], add_special_tokens=False)["input_ids"]
            filler = pad_token_id if self.words.eos_token_id in row else more
            rows.append(row + [filler] * (max_length - input_ids.shape[1] - len(row)))
        return torch.cat((input_ids, torch.tensor(rows)), 1)


def reciter(words: Any, hub: Hub, task: str, texts: list[str], **options: Any) -> Reciter:
    questions = [question.question for question in evaluation_questions(task, hub)[0]]
    made = Reciter(llama(words, **options).config)
    return made.tell(words, questions[: len(texts)], texts)


def test_answers_are_scored_item_by_item_in_the_order_of_the_file(hub: Hub, words: Any) -> None:
    end = words.eos_token
    texts = [
        f" 2*7 is 14, and 14-1 is 13. The answer is 13.{end}",
        f" The answer is 21.{end}",  # it is 20
        " It is $27 in all.\n\nQ: What are 3 and 4?\nA: The answer is 7.",
        f" I cannot say.{end}",
        " So 6*7 is 42 and then 41",  # goes on: pens pens pens
        f" 48.{end}",
    ]
    model = reciter(words, hub, "gsm8k", texts)
    found = few_shot_scores(model, words, "gsm8k", hub, limit=6, batch_size=4, max_new_tokens=60)
    assert found.scores == [1, 0, 1, 0, 1, 1]
    assert found.statuses == ["ok", "ok", "ok", "unparsable", "cut", "ok"]
    assert found.texts[2] == " It is $27 in all.\n\n"
    assert found.texts[4].startswith(f"{texts[4]} pens pens")
    spoken = [texts[0], texts[1], texts[2].partition(" What")[0], texts[3], texts[5]]
    assert found.n_tokens == 60 + sum(len(words(text, add_special_tokens=False)["input_ids"]) for text in spoken)
    assert found.flops > 0
    assert all(prompt.count("Q: ") == 9 and prompt.count(BEGIN) == 1 for prompt in model.prompts)
    assert model.training
    assert words.pad_token is None
    assert few_shot_scores(model, words, "gsm8k", hub, limit=6, batch_size=1, max_new_tokens=60) == found


def test_without_examples(hub: Hub, words: Any) -> None:
    model = reciter(words, hub, "gsm8k", [" The answer is: 13", " The answer is: 7"])
    found = standard_scores(model, words, "gsm8k", hub, limit=2)
    assert found.scores == [1, 0]
    assert all(prompt.count("Q: ") == 1 for prompt in model.prompts)


def test_math_is_judged_as_mathematics(hub: Hub, words: Any) -> None:
    pytest.importorskip("math_verify")
    end = words.eos_token
    texts = [
        f"That is $\\boxed{{1}}$.\nFinal Answer: The final answer is $1$. I hope it is correct.{end}",
        f"We get $\\boxed{{\\frac{{8}}{{6}}}}$.{end}",
        f"We get $\\boxed{{5}}$.{end}",
        f"Hard to say.{end}",
    ]
    model = reciter(words, hub, "math", texts)
    found = few_shot_scores(model, words, "math", hub, limit=4)
    assert found.scores == [1, 1, 0, 0]
    assert found.statuses == ["ok", "ok", "ok", "unparsable"]
    assert all(prompt.count("Problem:") == 5 for prompt in model.prompts)
    model.prompts.clear()
    assert standard_scores(model, words, "math", hub, limit=4).scores == found.scores
    assert all(prompt.count("Problem:") == 1 for prompt in model.prompts)


@pytest.mark.parametrize("name", [LLAMA, LLAMA_INSTRUCT])
def test_a_model_of_the_hub_is_continued_greedily(hub: Hub, name: str) -> None:
    """Texts, tokens and FLOPs are those of our own greedy sampling."""
    from transformers import AutoModelForCausalLM

    path = hub.model_path(name)
    words, model = load_tokenizer(path), AutoModelForCausalLM.from_pretrained(path)
    found = standard_scores(model, words, "gsm8k", hub, limit=3, batch_size=2, max_new_tokens=N_NEW)
    prompts = []
    for question in evaluation_questions("gsm8k", hub, 3)[0]:
        asked = f"Q: {question.question}\nA: Let's think step by step."
        if words.chat_template:
            chat = [{"role": "user", "content": asked}]
            asked = words.apply_chat_template(chat, tokenize=False, add_generation_prompt=True).removeprefix(BEGIN)
        prompts.append(words(asked)["input_ids"])
    samples, flops = sample(model, prompts, Sampling(0.0, max_new_tokens=N_NEW), [words.eos_token_id], batch_size=1)
    assert found.texts == [words.decode(one.ids, skip_special_tokens=True) for one in samples]
    assert found.n_tokens == sum(one.n_tokens for one in samples)
    assert found.statuses == ["ok" if one.stop else "cut" for one in samples]
    assert found.flops == flops
    assert len(found.scores) == 3


def test_prompts_longer_than_the_context_are_counted(hub: Hub, words: Any) -> None:
    model = reciter(words, hub, "gsm8k", [" 13", " 20"], max_position_embeddings=512, rope_parameters=None)
    found = few_shot_scores(model, words, "gsm8k", hub, limit=2, max_new_tokens=100)
    assert (found.scores, found.texts, found.statuses) == ([0, 0], ["", ""], ["too_long", "too_long"])
    assert found.n_tokens == found.flops == 0
    assert model.prompts == []
    assert standard_scores(model, words, "gsm8k", hub, limit=2, max_new_tokens=100).scores == [1, 1]


def test_some_prompts_longer_than_the_context(hub: Hub, words: Any) -> None:
    questions = [question.question for question in evaluation_questions("gsm8k", hub, 12)[0]]
    model = reciter(words, hub, "gsm8k", [" 13"] * 12, max_position_embeddings=512, rope_parameters=None)
    lengths = [len(words(f"Q: {question}\nA: Let's think step by step.")["input_ids"]) for question in questions]
    assert len(set(lengths)) == 3
    room = 512 - min(lengths)
    found = standard_scores(model, words, "gsm8k", hub, max_new_tokens=room)
    assert found.statuses == ["cut" if length == min(lengths) else "too_long" for length in lengths]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "gsm"}, "unknown task 'gsm'; allowed: gsm8k, math"),
        ({"n_shots": 9}, "n_shots: 9; gsm8k has 0 to 8 worked examples"),
        ({"n_shots": -1}, "n_shots: -1"),
        ({"limit": 0}, "limit: 0; allowed: whole numbers from 1"),
    ],
)
def test_bad_options(hub: Hub, words: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RematchError, match=message):
        few_shot_scores(None, words, **({"task": "gsm8k", "hub": hub} | options))


def test_data_that_lm_eval_cannot_read(hub: Hub, words: Any, tmp_path: Path) -> None:
    with pytest.raises(RematchError, match=r"no 'datasets/openai/gsm8k' in .*rematch mirror"):
        few_shot_scores(None, words, "gsm8k", Hub(tmp_path))
    folder = tmp_path / "datasets" / GSM8K
    shutil.copytree(hub.dataset_path(GSM8K), folder)
    (folder / "README.md").unlink()  # says which files are which
    with pytest.raises(
        RematchError, match=r"lm-eval's task gsm8k-cot cannot read its data set from .*openai/gsm8k: .*main"
    ):
        few_shot_scores(None, words, "gsm8k", Hub(tmp_path))


def test_what_judges_mathematics_is_missing(hub: Hub, words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    monkeypatch.delitem(sys.modules, "lm_eval.tasks.minerva_math.utils", raising=False)
    with pytest.raises(RematchError, match=r"minerva_math500 needs packages .*rematch\[math\]"):
        few_shot_scores(None, words, "math", hub)
