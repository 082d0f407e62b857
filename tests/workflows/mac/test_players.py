"""Those that take part: what they learn from, that they may read in parts, and that a match leaves nothing behind."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines import qa
from baselines.online import BM25, TfIdf
from baselines.qa import QAPair
from rematch.arena import Task
from rematch.errors import RematchError
from rematch.play import Skip
from workflows.mac import finetuning, more_finetuning
from workflows.mac.corpus import MAIN, read_documents, read_stream
from workflows.mac.finetuning import FinetuningPlayer, SalientPlayer
from workflows.mac.memory_player import MemoryPlayer
from workflows.mac.players import Asking, Player, ReaderPlayer
from workflows.mac.retrieval import RetrievalPlayer
from workflows.mac.streams import Document
from workflows.mac.world import RELATIONS

ASKING = Asking(max_new_tokens=3, max_length=32, max_answer=8, max_document=64)
RATE = {"learning_rate": 0.01}
FINETUNERS = ("uniform", "salient_spans", "tf_idf", "camels")
RETUNED = {**RATE, "max_steps": 2, "tuning_rate": 0.003, "validate_every": 1}
EVERYONE = {
    "no_adaptation": {}, "even_attention": {}, **dict.fromkeys(FINETUNERS, RATE), "uniform_retuned": RETUNED, "bm25": {},
    "mac": {}, "mac_group4": {},
    "mac_nearest": {"limit": 6}, "mac_average": {"limit": 6}, "mac_prune": {"limit": 6}, "mac_retrieved": {"top_k": 2},
    "mac_gold": {}, "mac_none": {},
}  # fmt: skip

Make = Callable[..., Player]


@pytest.fixture
def play(task: Callable[..., Task]) -> Make:
    """A player that has read nothing yet."""

    def made(contender: str, counting: bool = False, options: dict[str, Any] | None = None, **more: Any) -> Any:
        found = task(contender, options=EVERYONE[contender] | (options or {}), **more)
        return found.contender.player(found, ASKING, counting)

    return made


@pytest.fixture(scope="module")
def documents(streams: Path) -> list[Document]:
    return read_stream(streams, MAIN)


def questions(documents: Sequence[Document]) -> tuple[list[str], list[int]]:
    asked = [(pair.question, place) for place, document in enumerate(documents) for pair in document.pairs]
    return [question for question, _ in asked], [place for _, place in asked]


def state(player: Any) -> list[torch.Tensor]:
    """Everything that reading can have changed."""
    found = [p.detach().clone() for p in player.lm.parameters()]
    return [*found, player.mac.bank.tensor.clone()] if isinstance(player, MemoryPlayer) else found


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True))


# -- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERYONE)
def test_reading_in_parts_is_reading_at_once(play: Make, documents: list[Document], name: str) -> None:
    whole, parts = play(name), play(name)
    whole.adapt(documents)
    for first, last in ((0, 1), (1, 6), (6, 12)):
        parts.adapt(documents[first:last])
        parts.answer(*questions(documents[:1]))  # being asked changes nothing
    assert whole.n_seen == parts.n_seen == 12
    if isinstance(whole, MemoryPlayer):  # batches of other sizes differ in the last bits
        for one, other in zip(state(whole), state(parts), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    else:
        assert equal(state(whole), state(parts))
    assert whole.answer(*questions(documents)) == parts.answer(*questions(documents))


def test_nothing_of_a_match_leaks_into_the_next(play: Make, room: Any, documents: list[Document]) -> None:
    bases = {name: room.build(name)[0] for name in ("qa_lm", "lm", "memory", "memory_fewer", "weights", "reader_lm")}

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for folder in bases.values() for path in folder.rglob("*") if path.is_file()}

    before, untouched = files(), play("uniform")
    for name in (*FINETUNERS, "mac", "bm25"):
        player = play(name)
        player.adapt(documents)
        player.answer(*questions(documents[:2]))
        player.document_costs(documents[0])
    assert files() == before
    assert equal(state(play("uniform")), state(untouched))


def test_asking_for_costs_changes_no_one(play: Make, documents: list[Document]) -> None:
    for name in (*FINETUNERS, "mac"):
        player = play(name)
        player.adapt(documents[:2])
        before = state(player)
        costs = player.document_costs(documents[2])
        asked = player.question_costs(documents[0].pairs[0].question)
        assert equal(before, state(player))
        assert costs.peak > 0 < asked.peak
        assert (costs.saved > 0) == (name != "mac") != (costs.kept > 0)


def test_a_document_is_read_beside_the_bank_of_all_that_was_read_before(play: Make, documents: list[Document]) -> None:
    player: Any = play("mac")
    alone = player.document_costs(documents[0])
    player.adapt(documents)
    costs = player.document_costs(documents[0])
    assert costs.peak - alone.peak == player.mac.bank.tensor.nbytes == 12 * costs.kept > 0
    tuner: Any = play("uniform")
    before = tuner.document_costs(documents[0]).peak
    tuner.adapt(documents)
    assert tuner.document_costs(documents[0]).peak == before


def test_networks_beside_the_language_model(play: Make) -> None:
    for name in ("no_adaptation", "even_attention", "uniform", "salient_spans", "bm25"):
        assert not list(play(name).networks())
    mac: Any = play("mac")
    assert {id(p) for _, p in mac.mac.networks()} <= {id(each) for each in mac.networks()}
    assert not {id(p) for p in mac.lm.parameters()} & {id(each) for each in mac.networks()}
    camels: Any = play("camels")
    assert {id(p) for p in camels.net.parameters()} <= {id(each) for each in camels.networks()}


def test_networks_of_a_reader_are_its_modules_but_not_the_language_model(task: Callable[..., Task]) -> None:
    class Reader:
        def begin(self, model: Any, tokenizer: Any, seed: int) -> None:
            self.model, self.encoder = model, torch.nn.Linear(3, 2)

    player = ReaderPlayer(dataclasses.replace(task("no_adaptation"), contender=Reader()), ASKING)
    assert sum(each.numel() for each in player.networks()) == 3 * 2 + 2


def test_counted_answers_are_the_same(play: Make, documents: list[Document]) -> None:
    for name in ("no_adaptation", "mac"):
        plain, counted = play(name), play(name, counting=True)
        plain.adapt(documents)
        counted.adapt(documents)
        assert plain.answer(*questions(documents)) == counted.answer(*questions(documents))
        assert plain.answer_flops == 0 < counted.answer_flops
        assert (counted.adapt_flops > 0) == (name == "mac")


# -- online fine-tuning -----------------------------------------------------------------------------------------------


def test_fine_tuners_learn_and_differ(play: Make, documents: list[Document]) -> None:
    start, found = state(play("no_adaptation")), []
    for name in FINETUNERS:
        player = play(name)
        player.adapt(documents)
        found.append(state(player))
        assert not equal(start, found[-1])
    assert not any(equal(a, b) for a, b in itertools.combinations(found, 2))
    faster = play("uniform", options={"learning_rate": 0.02})
    faster.adapt(documents)
    assert not equal(state(faster), found[0])
    clipped = play("uniform", options={"clip": 1e-8})
    clipped.adapt(documents)
    assert not equal(state(clipped), found[0])


def test_salient_spans_are_the_generators_and_else_the_pipelines(
    play: Make, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Pipeline:
        def __call__(self, text: str) -> list[tuple[int, int]]:
            asked.append(text)
            return [(0, len(text.split()[0]))]

    monkeypatch.setattr(finetuning, "EntitySpans", Pipeline)
    player: Any = play("salient_spans")
    assert isinstance(player, SalientPlayer)
    known, unknown = documents[0], dataclasses.replace(documents[1], salient=())
    first, second = player.encode([known, unknown])
    assert asked == [unknown.text]
    words = known.text.split()
    told = {known.name, *(word for pair in known.pairs for word in pair.answer.split())}
    assert first.salient.tolist() == [word in told for word in words]
    assert second.salient.tolist() == [True] + [False] * (len(unknown.text.split()) - 1)


def test_tf_idf_counts_in_all_documents_of_the_seed(play: Make, streams: Path, documents: list[Document]) -> None:
    player: Any = play("tf_idf")
    every = [streams / "train.jsonl", *(streams / "streams").iterdir()]
    counted = TfIdf([document.text for path in every for document in read_documents(path)])
    (first,), words = player.encode(documents[:1]), documents[0].text.split()
    starts = [sum(len(word) + 1 for word in words[:n]) for n in range(len(words))]
    assert first.weights.tolist() == pytest.approx(counted(documents[0].text)[starts].tolist())
    weights = dict(zip(words, first.weights.tolist(), strict=True))
    assert weights["."] == 0 < weights[documents[0].name] < 1  # the names of the stream are known


def test_a_retuned_model_is_the_fine_tuned_one_tuned_on_questions(
    play: Make, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, player = play("uniform"), play("uniform_retuned", counting=True)
    tuned: list[Any] = []

    def tune(model: Any, *args: Any, **options: Any) -> Any:
        assert equal([p.detach() for p in model.parameters()], state(plain))
        tuned.append((model, qa.qa_tune(model, *args, **options)))
        return tuned[-1][1]

    monkeypatch.setattr(more_finetuning, "qa_tune", tune)
    for part in (documents[:4], documents[4:]):
        plain.adapt(part)
        player.adapt(part)
        spent = player.answer_flops
        first = player.answer(*questions(documents))
        model, tuning = tuned[-1]
        assert tuning.steps == 2
        assert player.answer_flops - spent > tuning.flops  # and answering
        player.counting = False
        assert player.answer(*questions(documents)) == first  # once after a document is enough
        player.counting = True
        assert first == player._generate(questions(documents)[0], ASKING.max_length, model)
        assert equal(state(player), state(plain))  # documents go on from the model before
    assert len(tuned) == 2


def test_documents_are_cut(play: Make, documents: list[Document]) -> None:
    player: Any = play("uniform")
    player.asking = dataclasses.replace(ASKING, max_document=5)
    assert {len(each.input_ids) for each in player.encode(documents)} == {5}


@pytest.mark.parametrize("name", FINETUNERS)
def test_a_budget_is_met_within_half_a_step(play: Make, documents: list[Document], name: str) -> None:
    once: Any = play(name, counting=True)
    once.adapt(documents)
    steps = [once.finetuner.flops_of(each) for each in once.encode(documents)]
    assert once.adapt_flops == sum(steps)
    player = play(name, counting=True)
    player.adapt_within(documents, 1.55 * once.adapt_flops)
    assert abs(player.adapt_flops - 1.55 * once.adapt_flops) <= max(steps) / 2
    assert player.n_seen == 12
    again, twice = play(name, counting=True), play(name)
    again.adapt_within(documents, 2 * once.adapt_flops)
    twice.adapt(documents)
    twice.adapt(documents)
    assert equal(state(again), state(twice))
    little = play(name, counting=True)
    little.adapt_within(documents, 1.0)  # one pass at least
    assert equal(state(little), state(once))


# -- MAC --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "what"), [("mac", "MAC was"), ("camels", "weight network was")])
def test_the_level_picks_the_base(play: Make, room: Any, name: str, what: str) -> None:
    bases = {"mac": ("memory", "memory_fewer"), "camels": ("weights", "weights_fewer")}[name]
    whole = play(name, axis="data_efficiency", level=64)
    fewer = play(name, axis="data_efficiency", level=32)
    assert [each.meta_flops for each in (whole, fewer)] == [room.build(base)[1].train_flops for base in bases]
    assert whole.meta_flops != fewer.meta_flops
    assert [each.meta_texts for each in (whole, fewer)] == [room.build(base)[1].samples_seen for base in bases]
    assert whole.meta_texts != fewer.meta_texts
    assert play(name, level=8).meta_flops == whole.meta_flops  # elsewhere the largest
    with pytest.raises(RematchError, match=rf"no {what} meta-trained on 48 documents; there are: 32, 64"):
        play(name, axis="data_efficiency", level=48)


def test_the_oracle_sees_its_document_only(play: Make, documents: list[Document]) -> None:
    """So what it answers right after a document it answers for ever: retention is exactly 100 %."""
    for name in ("mac_gold", "mac_none"):
        player: Any = play(name)
        asked, gold = questions(documents[:4])
        player.adapt(documents[:4])
        with torch.no_grad():
            phi = player.mac.aggregate(asked, select=player._visible(asked, gold))
            answers = player.answer(asked, gold)
            player.adapt(documents[4:])
            assert torch.equal(player.mac.aggregate(asked, select=player._visible(asked, gold)), phi)
        assert player.answer(asked, gold) == answers
        assert player._visible(asked, gold).flatten().tolist() == gold


def test_it_may_look_at_what_bm25_finds(play: Make, documents: list[Document]) -> None:
    player: Any = play("mac_retrieved")
    player.adapt(documents)
    asked, gold = questions(documents)
    places = BM25([document.text for document in documents]).search(asked, 2)
    assert player._visible(asked, gold).tolist() == places.tolist()
    assert [place in row for place, row in zip(gold, places.tolist(), strict=True)] == [True] * len(gold)
    everything = play("mac_retrieved", options={"top_k": 12})
    everything.adapt(documents)
    whole = play("mac")
    whole.adapt(documents)
    with torch.no_grad():
        torch.testing.assert_close(
            everything.mac.aggregate(asked, select=everything._visible(asked, gold)), whole.mac.aggregate(asked)
        )


def test_a_reader_reads_the_documents_before_the_question(
    play: Make, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    player: Any = play("bm25", options={"top_k": 2})
    assert isinstance(player, RetrievalPlayer)
    player.adapt(documents)
    read: list[str] = []
    monkeypatch.setattr(player, "_generate", lambda prompts, length: read.extend(prompts) or [""] * len(prompts))
    asked, gold = questions(documents)
    player.answer(asked, gold)
    assert read == BM25([document.text for document in documents]).prepended(asked, 2)
    assert all(documents[place].text in text for place, text in zip(gold, read, strict=True))


@pytest.mark.parametrize("name", ["mac_nearest", "mac_average", "mac_prune"])
def test_a_bounded_bank_is_never_longer(play: Make, documents: list[Document], name: str) -> None:
    player: Any = play(name)
    for document in documents:
        player.adapt([document])
        assert len(player.mac.bank) == min(player.n_seen, 6)
    stood_for = [each for ids in player.mac.bank.ids for each in ids]
    assert len(set(stood_for)) == len(stood_for) == (6 if name == "mac_prune" else 12)
    other = play(name, seed=1)
    other.adapt(documents)
    assert (other.mac.bank.ids == player.mac.bank.ids) == (name == "mac_nearest")


def test_groups_that_hold_the_whole_bank_are_the_whole_bank(play: Make, documents: list[Document]) -> None:
    players: list[Any] = [play("mac", options={"group_size": size}) for size in (None, 12, 40, 4)]
    asked, _ = questions(documents)
    found = []
    for player in players:
        player.adapt(documents)
        with torch.no_grad():
            found.append(player.mac.aggregate(asked, group_size=player.options.group_size))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert not torch.allclose(found[0], found[3])


def test_attention(play: Make, documents: list[Document]) -> None:
    asked, gold = questions(documents)
    player: Any = play("mac")
    player.adapt(documents)
    mass = player.attention_mass(asked, gold)
    assert mass.shape == (len(asked), 2)
    assert torch.equal(mass[5], player.mac.attention_mass(asked)[5, :, gold[5]])
    even = play("even_attention")
    even.adapt(documents)
    assert even.attention_mass(asked, gold).unique().tolist() == [pytest.approx(1 / 12)]
    for name in ("no_adaptation", "mac_group4", "mac_nearest", "mac_gold", "mac_none", "mac_retrieved"):
        other = play(name)
        other.adapt(documents)
        with pytest.raises(Skip):
            other.attention_mass(asked, gold)


def test_answers_from_groups_are_those_of_their_banks(
    play: Make, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    player: Any = play("mac")
    player.adapt(documents)
    seen: list[torch.Tensor] = []
    real = player.mac.aggregate

    def spy(asked: Sequence[str], bank: Any = None, **more: Any) -> torch.Tensor:
        seen.append(real(asked, bank, **more))
        return seen[-1]

    monkeypatch.setattr(player.mac, "aggregate", spy)
    player.right_in_groups(documents, 4)
    truths = [pair.answer for document in documents for pair in document.pairs]
    monkeypatch.setattr(player.mac, "answer", lambda asked, **more: [*truths[:-1], ""])
    assert player.right_in_groups(documents, 4) == [1.0] * (len(truths) - 1) + [0.0]
    with torch.no_grad():
        for first in range(0, 12, 4):
            alone: Any = play("mac")
            alone.adapt(documents[first : first + 4])
            asked, _ = questions(documents[first : first + 4])
            torch.testing.assert_close(
                torch.cat(seen)[3 * first : 3 * first + 12], alone.mac.aggregate(asked), rtol=1e-4, atol=1e-5
            )


def test_guessing_in_a_group_by_hand(play: Make) -> None:
    def of(name: str, *asked: tuple[str, str]) -> Document:
        pairs = tuple(QAPair(RELATIONS[key].question.format(name=name), answer) for key, answer in asked)
        return Document(name, "a text", pairs)

    one, other = list(RELATIONS)[:2]
    read = [of("ann", (one, "x"), (other, "u")), of("bob", (one, "y")), of("cyd", (one, "x")), of("dan", (other, "x"))]
    even = play("even_attention")
    assert even.right_in_groups(read, 4) == pytest.approx([2 / 3, 1 / 2, 1 / 3, 2 / 3, 1 / 2])
    assert even.right_in_groups(read, 2) == pytest.approx([1 / 2, 1, 1 / 2, 1, 1])
    published = [Document(name, "a text", (QAPair(f"who ?{name}", name),)) for name in ("a1", "a2")]
    assert even.right_in_groups(published, 2) == [0.5, 0.5]  # all are of one kind


def test_who_cannot_be_asked_in_groups(play: Make, documents: list[Document]) -> None:
    for name in ("no_adaptation", "mac_group4", "mac_nearest", "mac_gold", "mac_none", "mac_retrieved"):
        with pytest.raises(Skip, match="cannot be divided into groups"):
            play(name).right_in_groups(documents, 4)


def test_what_it_may_see_is_one_of_three(play: Make) -> None:
    with pytest.raises(RematchError, match=r"unknown sees 'god'; allowed: all, retrieved, gold\. Did you mean 'gold'"):
        play("mac", options={"sees": "god"})


def test_uniform_is_the_plain_fine_tuner(play: Make) -> None:
    assert type(play("uniform")) is FinetuningPlayer


def test_documents_count_as_if_padded_where_the_card_says_so(play: Make, card: Any) -> None:
    player = play("uniform", options=RATE | {"n_positions": 1024})
    assert player.finetuner.n_positions == 1024
    assert player._options() == RATE | {"clip": 750.0, "n_positions": 1024}
    for tier, expected in (("mini", None), ("real", 1024), ("paper", 1024)):
        for name in FINETUNERS:
            assert card.options("contenders", name, tier).get("n_positions") == expected
