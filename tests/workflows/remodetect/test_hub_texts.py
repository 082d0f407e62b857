"""The real and paper tiers' texts: tiny files in the original formats and tiny models of the real classes, in a mirror."""

from __future__ import annotations

import gzip
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from remodetect_mirror import (
    LLAMA,
    T5_PARAPHRASE,
    byte_tokenizer,
    csv,
    hc3_row,
    json_lines,
    raw_data,
    scripted_answer,
    write,
    write_hc3,
    write_hh,
    write_llama,
    write_mgtbench,
    write_raw_data,
    write_synthetic,
    write_t5,
)

from rematch.errors import RematchError
from rematch.hub import Hub
from workflows.remodetect import hub_sources as sources
from workflows.remodetect.hub_texts import write_hub_texts
from workflows.remodetect.rephrasing import ChatModel, Paraphraser, mixed_texts, swap_adjacent_words
from workflows.remodetect.texts import read_cells, read_rows

CLEANED_HC3 = "YuchuanTian/AIGC_text_detector"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    for fill in (write_hc3, write_hh, write_synthetic, write_mgtbench, write_llama, write_t5):
        fill(folder)
    for name in ("xsum_davinci", "xsum_gpt-4", "pubmed_gpt-3.5-turbo", "writing_llama"):
        write_raw_data(folder, name, raw_data(8, source=name))
    write_raw_data(folder, "squad_gpt2-xl", raw_data(3))  # a domain that the paper has not
    write_raw_data(folder, "xsum_gpt-4.t5-3b.perturbation_100", [{"original": "a b"}], "exp_gpt3to4/results")
    return folder


@pytest.fixture
def hub(mirror: Path) -> Hub:
    return Hub(mirror)


# HC3


def test_hc3_in_both_forms(tmp_path: Path) -> None:
    rows = [hc3_row(7, humans=2), hc3_row(8)]
    write(tmp_path / "datasets" / sources.HC3 / "all.jsonl", json_lines(rows))
    table = [["id", "question", "answer", "label", "source"]]
    for number, row in enumerate(rows):  # human and ChatGPT answers apart, as the join must cope with
        table += [[str(number), row["question"], answer, "0", "reddit_eli5"] for answer in row["human_answers"]]
    for number, row in enumerate(rows):
        table += [[str(number), row["question"], row["chatgpt_answers"][0], "1", "reddit_eli5"]]
    table += [["9", rows[0]["question"], "An answer of another id .", "0", "reddit_eli5"]]
    write(tmp_path / "datasets" / CLEANED_HC3 / "unfilter_full" / "en_train_cleaned.csv", csv(table))
    hub = Hub(tmp_path)
    answers = sources.hc3_answers(hub)
    assert [(row.question, row.human[:14], row.llm[:15]) for row in answers] == [
        ("What is 7 ?", "Human answer 7", "The answer to 7"),
        ("What is 7 ?", "Human answer 7", "The answer to 7"),
        ("What is 8 ?", "Human answer 8", "The answer to 8"),
    ]
    assert answers[1].human == "Human answer 7 1, it says. A second part follows. And a third."  # spacing cleaned
    assert sources.hc3_answers(hub, CLEANED_HC3) == answers


def answers(n: int, per_question: int = 1) -> list[sources.Answers]:
    return [sources.Answers(f"q{i}", f"human {i} {k}", f"llm {i} {k}") for i in range(n) for k in range(per_question)]


def test_the_first_rows_are_shuffled_and_four_fifths_train() -> None:
    dropped: Counter[str] = Counter()
    train, validation, held_out = sources.split_answers(answers(14), 10, 0, dropped)
    order = list(range(10))
    random.Random(0).shuffle(order)  # as the official code shuffles
    assert [row.question for row in train] == [f"q{i}" for i in order[:8]]
    assert [row.question for row in validation] == [f"q{i}" for i in order[8:]]
    assert [row.question for row in held_out] == ["q10", "q11", "q12", "q13"]
    assert sources.split_answers(answers(14), 10, 1, dropped)[0] != train
    assert sum(dropped.values()) == 0


def test_no_question_is_in_two_parts() -> None:
    train, validation, held_out = sources.split_answers(answers(14, per_question=3), 31, 3, Counter())
    parts = [{row.question for row in part} for part in (train, validation, held_out)]
    assert [len(part) for part in parts] == [9, 2, 3]  # q10 has one row among the first, so that it is not held out
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]
    assert [row.human for row in held_out] == ["human 11 0", "human 12 0", "human 13 0"]


def test_empty_and_one_word_answers_are_dropped_and_counted() -> None:
    rows = answers(12)
    rows[2] = sources.Answers("q2", "", "an answer")
    rows[5] = sources.Answers("q5", "two words", "One")
    rows[11] = sources.Answers("q11", " \n ", "an answer")
    dropped: Counter[str] = Counter()
    train, validation, held_out = sources.split_answers(rows, 10, 0, dropped)
    assert (len(train), len(validation), len(held_out)) == (7, 1, 1)  # 80 % of 8 is 6.4: the seventh row still trains
    assert dropped == {"hc3": 3}


# Replay and preferences


def test_replay_is_every_dialogue_and_nine_tenths_of_the_other_set(hub: Hub) -> None:
    dropped: Counter[str] = Counter()
    texts = sources.replay_texts(hub, 1000, 0, dropped)
    assert len(texts) == len(set(texts)) == 2 * 2 * 3 + 2 * 9  # subsets, sides, rows; sides, 90 % of 10 rows
    assert "Human: helpful-online train 2?\n\nAssistant: chosen" in texts  # cleaned
    synthetic = {text for text in texts if text.startswith("prompt")}
    numbers = Counter(text.split()[1] for text in synthetic)
    assert len(numbers) == 9
    assert set(numbers.values()) == {2}
    assert "prompt 1 of it. chosen 1 of it." in synthetic or "1" not in numbers
    assert not any("test" in text for text in texts)


def test_replay_is_a_random_sample_of_the_seed(hub: Hub) -> None:
    everything = sources.replay_texts(hub, 1000, 0, Counter())
    assert sources.replay_texts(hub, 5, 0, Counter()) == everything[:5]
    assert sources.replay_texts(hub, 5, 1, Counter()) != everything[:5]
    assert everything != sorted(everything)


def test_preferences_are_the_test_split(hub: Hub) -> None:
    pairs = sources.preference_pairs(hub, 100, 0, Counter())
    assert len(pairs) == 4
    for pair in pairs:
        assert " test " in pair["chosen"]
        assert pair["chosen"].replace("chosen", "rejected") == pair["rejected"]  # a pair stays together
    assert len(sources.preference_pairs(hub, 3, 0, Counter())) == 3


# Pairs to score


def test_fast_detect_gpt_files(hub: Hub) -> None:
    cells = {(cell.domain, cell.source): cell for cell in sources.fast_detect_gpt_cells(hub, 100, 0, Counter())}
    assert set(cells) == {
        ("xsum", "davinci"), ("xsum", "gpt-4"), ("pubmed", "gpt-3.5-turbo"), ("writing", "llama3-70b-instruct"),
    }  # fmt: skip
    cell = cells["xsum", "gpt-4"]
    assert len(cell.human) == len(cell.llm) == 8
    assert (cell.human[3], cell.llm[3]) == ("human text number 3 is longer", "xsum_gpt-4 text number 3 is shorter")
    assert (cell.seen, cell.attack, cell.n, cell.words) == (False, "none", None, None)
    assert [cell.aligned for cell in cells.values()] == [source != "davinci" for _, source in cells]


def test_sources_of_a_domain_share_their_rows(hub: Hub) -> None:
    cells = {(cell.domain, cell.source): cell for cell in sources.fast_detect_gpt_cells(hub, 3, 0, Counter())}
    assert len(cells["xsum", "gpt-4"].human) == 3
    assert cells["xsum", "gpt-4"].human == cells["xsum", "davinci"].human
    other = sources.fast_detect_gpt_cells(hub, 3, 1, Counter())
    assert any(cell.human != cells[cell.domain, cell.source].human for cell in other)


def test_a_source_that_lacks_a_row_leaves_the_others_in_place(tmp_path: Path) -> None:
    write_raw_data(tmp_path, "xsum_gpt-4", raw_data(20))
    shorter = raw_data(18)
    shorter["sampled"][4] = "one"
    write_raw_data(tmp_path, "xsum_gpt4turbo", shorter)
    dropped: Counter[str] = Counter()
    full, lacking = sources.fast_detect_gpt_cells(Hub(tmp_path), 10, 0, dropped)
    assert dropped["xsum gpt-4-turbo"] == 1
    assert len(set(full.human) & set(lacking.human)) >= 7  # all but the rows that are not there


@pytest.mark.parametrize(
    ("source", "aligned"),
    [
        ("davinci", False), ("gpt2-xl", False), ("gpt-neo-2.7B", False), ("gpt-neox-20b", False), ("gpt-j-6B", False),
        ("opt-2.7b", False), ("text-davinci-003", True), ("bloomz", True), ("gpt-4", True), ("a-new-one", True),
    ],
)  # fmt: skip
def test_which_sources_are_aligned(source: str, aligned: bool) -> None:
    assert sources.is_aligned(source) is aligned


def test_pairs_are_cut_to_the_shorter_one() -> None:
    assert sources.cut_pair("a b\n\nc  d", "e f\u2028g") == ("a b c", "e f g")
    assert sources.cut_pair("a b", "c d") == ("a b", "c d")


def test_mgtbench_files(hub: Hub) -> None:
    dropped: Counter[str] = Counter()
    cells = {(cell.domain, cell.source): cell for cell in sources.mgtbench_cells(hub, 100, 0, dropped)}
    domains, names = ("essay", "reuters", "wp"), ("gpt-3.5-turbo", "claude")
    assert set(cells) == {(domain, name) for domain in domains for name in names}
    cell = cells["wp", "gpt-3.5-turbo"]
    assert (cell.human[1], cell.llm[1]) == ("WP human 1, says so.", "turbo 1 says a thing")
    assert [len(cells["wp", name].human) for name in names] == [6, 5]
    assert {where: count for where, count in dropped.items() if count} == {f"{d} claude": 1 for d in domains}


def test_mgtbench_columns_of_ones_own(hub: Hub) -> None:
    cells = sources.mgtbench_cells(hub, 2, 0, Counter(), sources={"Claude": "my-claude", "absent": "x"})
    assert [cell.source for cell in cells] == ["my-claude"] * 3


# Files that are bad or missing


def bad_hc3(content: str, name: str = "all.jsonl") -> Callable[[Path], Path]:
    return lambda mirror: write(mirror / "datasets" / sources.HC3 / name, content)


def bad_raw_data(content: Any) -> Callable[[Path], Path]:
    return lambda mirror: write_raw_data(mirror, "xsum_gpt-4", content)


def bad_mgtbench(content: str | bytes) -> Callable[[Path], Path]:
    return lambda mirror: write(mirror / "datasets" / sources.MGTBENCH / "WP_LLMs.csv", content)


def bad_preferences(content: bytes) -> Callable[[Path], Path]:
    return lambda mirror: write(mirror / "datasets" / sources.HH_RLHF / "helpful-base" / "test.jsonl.gz", content)


def read_all(hub: Hub, which: str) -> None:
    if which == "hc3":
        sources.hc3_answers(hub)
    elif which == "raw":
        sources.fast_detect_gpt_cells(hub, 1, 0, Counter())
    elif which == "mgtbench":
        sources.mgtbench_cells(hub, 1, 0, Counter())
    else:
        sources.preference_pairs(hub, 1, 0, Counter())


@pytest.mark.parametrize(
    ("which", "spoil", "message"),
    [
        ("hc3", bad_hc3('{"question": "q", "human_answers": ["a b"]}\n'), r"line 1: no key 'chatgpt_answers'.*human_answers"),
        ("hc3", bad_hc3('\n{"question": "q", "human_answers": "a", "chatgpt_answers": []}'), "line 2: 'human_answers' must be a list of texts, is str"),
        ("hc3", bad_hc3("[1]\n"), "line 1: not an object but list"),
        ("hc3", bad_hc3("{nonsense\n"), "line 1: cannot be read as JSON Lines"),
        ("hc3", bad_hc3(csv([["id", "question", "answer", "source"], ["1", "q", "a", "s"]]), "en_train.csv"), "no column 'label'.*id, question, answer, source"),
        ("hc3", bad_hc3(csv([["id", "question", "answer", "label", "source"], ["1", "q", "a", "human", "s"]]), "en_train.csv"), r"row 1: label 'human'; allowed: 0 \(human\), 1 \(ChatGPT\)"),
        ("raw", bad_raw_data({"original": ["a b"]}), "keys 'original' and 'sampled'; has original"),
        ("raw", bad_raw_data({"original": ["a b"], "sampled": ["a b", "c d"]}), "1 texts in 'original' but 2"),
        ("raw", bad_raw_data({"original": [None], "sampled": ["a b"]}), "'original' must be a list of texts"),
        ("raw", bad_raw_data({"original": ["a"], "sampled": ["a b"]}), "xsum of gpt-4: no pair"),
        ("mgtbench", bad_mgtbench(csv([["human", "prompt"], ["a b", "c"]])), "no column of an LLM; known: ChatGPT-turbo.*has human, prompt"),
        ("mgtbench", bad_mgtbench(csv([["Claude"], ["a b"]])), "no column 'human'"),
        ("mgtbench", bad_mgtbench(b"human,Claude\n\xff\xfe,b c\n"), "cannot be read as CSV"),
        ("mgtbench", bad_mgtbench(""), "cannot be read as CSV"),
        ("hh", bad_preferences(b"not gzip"), "line 0: cannot be read"),
        ("hh", bad_preferences(gzip.compress(b'{"chosen": "a b", "rejected": "c d"}\n' * 50)[:-12]), "cannot be read"),
        ("hh", bad_preferences(gzip.compress(b'{"chosen": "a b", "rejected": 3}')), "'rejected' must be a text, is int"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named_with_what_is_allowed(
    tmp_path: Path, which: str, spoil: Callable[[Path], Path], message: str
) -> None:
    path = spoil(tmp_path)
    with pytest.raises(RematchError, match=message) as caught:
        read_all(Hub(tmp_path), which)
    if "no pair" not in message:
        assert str(path) in str(caught.value)


def test_a_bad_parquet_file(tmp_path: Path) -> None:
    write_hh(tmp_path)
    path = write(tmp_path / "datasets" / sources.SYNTHETIC_INSTRUCT / "data" / "train.parquet", b"PAR1 not")
    with pytest.raises(RematchError, match=r"train\.parquet: cannot be read as Parquet"):
        sources.replay_texts(Hub(tmp_path), 1, 0, Counter())
    pq.write_table(pa.Table.from_pylist([{"prompt": "a", "chosen": "b"}]), path)
    with pytest.raises(RematchError, match=r"no column 'rejected'; the file needs prompt, chosen, rejected"):
        sources.replay_texts(Hub(tmp_path), 1, 0, Counter())


def test_two_files_for_one_thing(tmp_path: Path) -> None:
    write_hc3(tmp_path)
    write(tmp_path / "datasets" / sources.HC3 / "en_train.csv", "")
    with pytest.raises(RematchError, match="keep one of them"):
        sources.hc3_answers(Hub(tmp_path))
    write_raw_data(tmp_path, "xsum_gpt-4", raw_data(1))
    write_raw_data(tmp_path, "xsum_gpt-4", raw_data(1), "exp_test/data")
    with pytest.raises(RematchError, match=r"xsum of gpt-4 is in .* too; keep one"):
        sources.fast_detect_gpt_cells(Hub(tmp_path), 1, 0, Counter())


@pytest.mark.parametrize("which", ["raw", "mgtbench"])
def test_data_sets_that_the_hub_has_not_must_lie_in_a_mirror(tmp_path: Path, which: str) -> None:
    parts = {
        "raw": ("raw_data.json", "fast-detect-gpt", "MIT for the compilation", "baoguangsheng/fast-detect-gpt"),
        "mgtbench": ("Essay_LLMs.csv", "MGTBench", "keep their own terms", "xinleihe/MGTBench"),
    }[which]
    for hub, place in (
        (Hub(None), f"DIR/datasets/{parts[3]}, and set hub_mirror"),
        (Hub(tmp_path), str(tmp_path)),
    ):
        with pytest.raises(RematchError) as caught:
            read_all(hub, which)
        for part in (*parts, place):
            assert part in str(caught.value)


def test_a_mirror_without_a_data_set_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(RematchError, match=r"rematch mirror .* --dataset Hello-SimpleAI/HC3.*CC BY-SA"):
        sources.hc3_answers(Hub(tmp_path))


def test_without_a_mirror_the_hub_is_asked(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(repo_id: str, *, repo_type: str, allow_patterns: list[str]) -> str:
        asked.append((repo_id, repo_type, allow_patterns))
        return str(mirror / "datasets" / repo_id)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert sources.hc3_answers(Hub(None)) == sources.hc3_answers(Hub(mirror))
    assert asked == [(sources.HC3, "dataset", ["all.jsonl", "en_train*.csv"])]

    def refuse(repo_id: str, **_: Any) -> str:
        raise OSError("no such data set")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(
        RematchError, match=r"AIGC_text_detector cannot be had from the hub \(no such data set\).*needed"
    ):
        sources.hc3_answers(Hub(None), CLEANED_HC3)


# Generating models


@pytest.fixture(scope="module")
def chat(mirror: Path) -> ChatModel:
    return ChatModel.from_pretrained(str(mirror / "models" / LLAMA), "cpu", batch_size=2, max_new_tokens=8)


def test_a_chat_model_answers_in_order_whatever_the_lengths(chat: ChatModel) -> None:
    prompts = ["a long message " * 5, "b", "c c"]
    made = chat.answers(prompts, seed=0)
    assert len(made) == 3
    assert chat.answers(prompts, seed=0) == made
    assert chat.answers(prompts, seed=1) != made
    state = torch.random.get_rng_state()
    chat.answers(prompts, seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's random numbers are touched
    assert chat.tokens > 4 * 3 * 8


def test_padding_and_the_chat_template(chat: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, torch.Tensor] = {}

    def generate(**options: Any) -> torch.Tensor:
        seen.update(options)
        return torch.cat([options["input_ids"], torch.full((2, 1), 70)], dim=1)

    monkeypatch.setattr(chat.model, "generate", generate)
    assert chat.answers(["ab", "abcdef"], seed=0) == [chat.tokenizer.decode([70])] * 2  # without the message
    decoded = [chat.tokenizer.decode(ids[mask.bool()]) for ids, mask in zip(seen["input_ids"], seen["attention_mask"], strict=True)]  # fmt: skip
    assert decoded == [f"<|start|>user\n{text}<|end|><|start|>assistant\n" for text in ("abcdef", "ab")]
    assert seen["attention_mask"][1].tolist() == [0] * 4 + [1] * (seen["attention_mask"].shape[1] - 4)  # on the left


def test_garbage_makes_no_mixed_text_and_is_counted(chat: ChatModel) -> None:
    humans = ["First one. Second one. Third one.", "Only one.", "Here are two. This is it."]
    mixed, counts = mixed_texts(humans, [0.5, 0.75], chat, seed=0)
    assert mixed == [{"0.5": None, "0.75": None}] * 3
    assert counts == {
        "0.5": {"made": 0, "too_few": 1, "failed": 2},
        "0.75": {"made": 0, "too_few": 1, "failed": 2},  # floor(0.75) is 0
    }


class Scripted:
    """Stands for a chat model that paraphrases what it is asked for by turning it to capitals."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def answers(self, prompts: Sequence[str], seed: int) -> list[str]:
        self.prompts += prompts
        return [self.answer(prompt) for prompt in prompts]

    def answer(self, prompt: str) -> str:
        return scripted_answer(prompt)


def test_mixed_texts_hold_the_paraphrases_in_place() -> None:
    humans = ["First one. Second one. Third one. Fourth one.", "Only one.", "Here are two. This is it."]
    chat = Scripted()
    mixed, counts = mixed_texts(humans, [0.5], chat, seed=0)  # type: ignore[arg-type]
    assert counts == {"0.5": {"made": 2, "too_few": 1, "failed": 0}}
    assert mixed[1] == {"0.5": None}
    for human, row, n in ((humans[0], mixed[0], 2), (humans[2], mixed[2], 1)):
        text = row["0.5"]
        assert text is not None
        assert text.replace("..", ".").lower() == human.lower()  # in place; spacing of the answer cleaned
        assert sum(sentence.isupper() for sentence in text.replace("..", ".").split(". ")) == n
    assert len(chat.prompts) == 2
    again, _ = mixed_texts(humans, [0.5], Scripted(), seed=0)  # type: ignore[arg-type]
    assert again == mixed
    others = [mixed_texts(humans, [0.5], Scripted(), seed=seed)[0] for seed in range(1, 5)]  # type: ignore[arg-type]
    assert any(other != mixed for other in others)


def test_one_bad_answer_shifts_no_other_row() -> None:
    class OneBad(Scripted):
        def answer(self, prompt: str) -> str:
            return "I cannot do that." if "Second" in prompt else super().answer(prompt)

    humans = ["First one. Second one.", "Here are two. This is it."]
    mixed, counts = mixed_texts(humans, [0.5], OneBad(), seed=0)  # type: ignore[arg-type]
    assert mixed[0] == {"0.5": None}
    assert "HERE" in str(mixed[1]["0.5"]) or "THIS" in str(mixed[1]["0.5"])
    assert counts == {"0.5": {"made": 1, "too_few": 0, "failed": 1}}


def test_a_chat_model_needs_a_chat_template(chat: ChatModel) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(RematchError, match="no chat template"):
        ChatModel(chat.model, tokenizer)


def test_paraphrasing_is_sentence_by_sentence(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = Paraphraser.from_pretrained(str(mirror / "models" / T5_PARAPHRASE), "cpu", batch_size=2)
    seen: list[str] = []

    def generate(**options: Any) -> torch.Tensor:
        prompts = attack.tokenizer.batch_decode(options["input_ids"], skip_special_tokens=True)
        seen.extend(prompts)
        assert (options["max_length"], options["top_k"], options["top_p"], options["do_sample"]) == (
            256,
            200,
            0.95,
            True,
        )
        new = [prompt.removeprefix("paraphrase: ").upper() if "keep" not in prompt else "" for prompt in prompts]
        return attack.tokenizer(new, padding=True, return_tensors="pt")["input_ids"]

    monkeypatch.setattr(attack.model, "generate", generate)
    made = attack.rephrase(["A first one. Please keep it. Last one.", "Another text."], seed=0)
    assert made == ["A FIRST ONE. Please keep it. LAST ONE.", "ANOTHER TEXT."]  # nothing came back for the second
    assert sorted(prompt.removeprefix("paraphrase: ").strip() for prompt in seen) == [
        "A first one.", "Another text.", "Last one.", "Please keep it.",
    ]  # fmt: skip


def test_paraphrasing_with_a_real_t5_is_deterministic(mirror: Path) -> None:
    attack = Paraphraser.from_pretrained(str(mirror / "models" / T5_PARAPHRASE), "cpu")
    attack.model.generation_config.max_length = 20
    texts = ["A first one. The second.", "Another text."]
    made = attack.rephrase(texts, seed=0)
    assert attack.rephrase(texts, seed=0) == made
    assert attack.rephrase(texts, seed=1) != made
    assert len(made) == 2
    assert made != texts


def test_swapping_one_pair_of_words_in_long_sentences() -> None:
    long = " ".join(f"w{i}" for i in range(21)) + "."
    short = " ".join(f"v{i}" for i in range(20)) + "."
    text = f"{long.capitalize()} {short.capitalize()}"
    (swapped,) = swap_adjacent_words([text], seed=0)
    before, after = text.split(), swapped.split()
    differing = [i for i in range(41) if before[i] != after[i]]
    assert len(differing) == 2
    assert differing[1] == differing[0] + 1 < 21
    assert (after[differing[0]], after[differing[1]]) == (before[differing[1]], before[differing[0]])
    assert swap_adjacent_words([text], seed=0) == [swapped]
    assert len({swap_adjacent_words([text], seed=seed)[0] for seed in range(20)}) > 3


# All of it


OPTIONS: dict[str, Any] = {
    "n_triplets": 15,
    "n_replay": 12,
    "n_pairs": 4,
    "device": "cpu",
    "batch_size": 32,
    "max_new_tokens": 8,
}
FILES = ("triplets", "validation", "replay", "preferences", "rewards", "cells")


@pytest.fixture(scope="module")
def written(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("texts")
    notes = write_hub_texts(folder, seed=0, hub=Hub(mirror), ratios=(0.25, 0.5), lengths=(3,), **OPTIONS)
    return folder, notes


def test_a_room_of_hub_texts(written: tuple[Path, dict[str, Any]]) -> None:
    folder, notes = written
    rows = {name: read_rows(folder, name) for name in FILES}
    assert notes["rows"] == {name: len(mine) for name, mine in rows.items()}
    assert [len(rows[name]) for name in FILES[:4]] == [12, 3, 12, 4]
    for row in rows["triplets"] + rows["validation"]:
        assert set(row) == {"llm", "human", "mixed"}
        assert row["mixed"] == {"0.25": None, "0.5": None}  # a random model's answers
        assert " ," not in row["human"]
    assert notes["mixed"].pop("rephraser")["tokens"] > 15 * 8
    assert notes["mixed"] == {
        "0.25": {"made": 0, "too_few": 15, "failed": 0}, "0.5": {"made": 0, "too_few": 0, "failed": 15},
    }  # fmt: skip
    assert set(rows["replay"][0]) == {"text"}
    assert set(rows["preferences"][0]) == {"chosen", "rejected"}


def test_cells_of_hub_texts(written: tuple[Path, dict[str, Any]]) -> None:
    folder, notes = written
    cells = read_cells(folder)
    whole = [(cell.domain, cell.source) for cell in cells if cell.whole]
    assert len(whole) == len(set(whole)) == 1 + 4 + 6
    assert [cell.domain for cell in cells if cell.seen and cell.whole] == ["hc3"]
    assert {cell.source for cell in cells if cell.seen} == {"gpt-3.5-turbo"}
    assert {cell.source for cell in cells if not cell.aligned} == {"davinci"}
    attacked = Counter(cell.attack for cell in cells)
    assert attacked["swap"] == attacked["rephrase"] == 5  # HC3 and Fast-DetectGPT, not MGTBench
    assert sum(cell.words == 3 for cell in cells) == 3  # of aligned sources
    by_key = {(cell.domain, cell.source, cell.attack): cell for cell in cells if cell.words is None}
    for cell in cells:
        assert len(cell.human) == len(cell.llm) <= 4
        for human, llm in zip(cell.human, cell.llm, strict=True):
            assert len(human.split()) == len(llm.split()) > 1
            assert "\n" not in human + llm
        if cell.attack == "rephrase":
            assert cell.llm != by_key[cell.domain, cell.source, "none"].llm
    trained = {row["llm"] for name in ("triplets", "validation") for row in read_rows(folder, name)}
    held_out = by_key["hc3", "gpt-3.5-turbo", "none"].llm
    assert len(held_out) == 4
    assert not any(text.startswith(new) for new in held_out for text in trained)
    assert notes["dropped"]["essay claude"] == 1


def test_the_same_seed_writes_the_same_files(mirror: Path, tmp_path: Path) -> None:
    texts = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_hub_texts(folder, seed=seed, hub=Hub(mirror), ratios=(), attacks=("swap",), **OPTIONS)
        texts.append({name: (folder / f"{name}.jsonl").read_bytes() for name in FILES})
    assert texts[0] == texts[1]
    assert all(texts[0][name] != texts[2][name] for name in ("triplets", "validation", "replay", "cells"))
    assert b'"mixed": {}' in texts[0]["triplets"]


def test_without_the_benchmarks_of_a_mirror(mirror: Path, tmp_path: Path) -> None:
    options = OPTIONS | {"fast_detect_gpt": None, "mgtbench": None, "ratios": (), "attacks": ()}
    write_hub_texts(tmp_path, seed=0, hub=Hub(mirror), **options)
    assert [(cell.domain, cell.seen) for cell in read_cells(tmp_path)] == [("hc3", True)]


def test_strange_characters_spoil_no_row(mirror: Path, tmp_path: Path) -> None:
    strange = "one\u2028two \u0085 three\x0c four \U0001f600 "
    for dataset in (sources.HH_RLHF, sources.SYNTHETIC_INSTRUCT):
        link = tmp_path / "datasets" / dataset
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(mirror / "datasets" / dataset, target_is_directory=True)
    half = "\ud83d"  # of a character, as JSON can hold it
    rows = [hc3_row(i) | {"human_answers": [strange + half]} for i in range(8)]
    write(tmp_path / "datasets" / sources.HC3 / "all.jsonl", json_lines(rows))
    options = OPTIONS | {"n_triplets": 6, "fast_detect_gpt": None, "mgtbench": None, "ratios": (), "attacks": ()}
    write_hub_texts(tmp_path, seed=0, hub=Hub(tmp_path), **options)
    assert {row["human"] for row in read_rows(tmp_path, "triplets")} == {strange + "\ufffd"}


def test_options_are_checked(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(RematchError, match="unknown attack 'swop'; allowed: rephrase, swap"):
        write_hub_texts(tmp_path, seed=0, hub=hub, attacks=("swop",))
    with pytest.raises(RematchError, match=r"ratios: 1\.5; allowed"):
        write_hub_texts(tmp_path, seed=0, hub=hub, ratios=(1.5,))
    with pytest.raises(RematchError, match=r"no held-out rows. It has 20: the first n_triplets \(2201\)"):
        write_hub_texts(tmp_path, seed=0, hub=hub, ratios=())
    with pytest.raises(RematchError, match=r"rematch mirror .* --model no/model"):
        write_hub_texts(tmp_path, seed=0, hub=hub, rephraser="no/model", attacks=(), **OPTIONS)
