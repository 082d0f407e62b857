"""Documents of a stream and their salient spans."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from baselines.online.documents import EntitySpans, encode_documents, stream_order
from rematch.errors import RematchError


def names(text: str) -> list[tuple[int, int]]:
    """The generator's own spans: it knows its names."""
    return [match.span() for match in re.finditer("anna|ben|paris", text)]


def test_tokens_and_spans(tokenizer: Any) -> None:
    documents = encode_documents(tokenizer, ["anna lives in paris .", "who works now ?"], 8, names)
    assert documents[0].input_ids.tolist() == tokenizer("anna lives in paris .")["input_ids"]
    assert [document.salient.int().tolist() for document in documents] == [[1, 0, 0, 1, 0], [0, 0, 0, 0]]
    assert encode_documents(tokenizer, ["anna lives"], 8)[0].salient is None
    (cut,) = encode_documents(tokenizer, ["anna lives in paris ."], 3, names)
    assert (len(cut.input_ids), cut.salient.tolist()) == (3, [True, False, False])


def test_every_piece_of_an_entity_counts_and_its_neighbours_do_not() -> None:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        ["he saw her, in"],
        trainers.BpeTrainer(show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    text = "he saw Anna in Rome, her"
    (document,) = encode_documents(tokenizer, [text], 99, lambda text: [(7, 11), (15, 19)])
    pieces = [tokenizer.decode([i]) for i in document.input_ids.tolist()]
    assert "".join(pieces) == text
    counted = "".join(p for p, s in zip(pieces, document.salient.tolist(), strict=True) if s)
    assert counted == "AnnaRome"


def test_what_cannot_be_read(tokenizer: Any) -> None:
    with pytest.raises(RematchError, match="two tokens"):
        encode_documents(tokenizer, ["anna"], 8)
    pytest.importorskip("spacy")
    with pytest.raises(RematchError, match="no spaCy pipeline 'none_such'"):
        EntitySpans("none_such")


def test_entities_of_spacy_less_the_types_that_do_not_count(tokenizer: Any) -> None:
    spacy = pytest.importorskip("spacy")
    pipeline = spacy.blank("en")
    ruler = pipeline.add_pipe("entity_ruler")
    ignored = ["TIME", "PERCENT", "MONEY", "QUANTITY", "ORDINAL", "CARDINAL"]
    kinds = {"anna": "PERSON", "paris": "GPE", "1999": "DATE"} | {f"w{kind}": kind for kind in ignored}
    ruler.add_patterns([{"label": kind, "pattern": word} for word, kind in kinds.items()])
    spans = EntitySpans(pipeline)
    text = "in 1999 anna left paris " + " ".join(f"w{kind}" for kind in ignored)
    assert [text[a:b] for a, b in spans(text)] == ["1999", "anna", "paris"]
    (document,) = encode_documents(tokenizer, ["where lives anna ?"], 8, spans)
    assert document.salient.tolist() == [False, False, True, False]


def test_the_order_of_a_stream_is_a_function_of_the_seed() -> None:
    order = stream_order(50, 3)
    assert sorted(order) == list(range(50))
    assert np.array_equal(order, stream_order(50, 3))
    assert not np.array_equal(order, stream_order(50, 4))
