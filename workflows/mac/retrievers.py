"""The retrievers of the arena by name: BM25, and those whose encoders come from the hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from baselines.online import BM25, Index, Retriever
from rematch.errors import unknown
from rematch.hub import Hub
from rematch.hub_models import check_model

RetrieverName = Literal["bm25", "contriever", "dpr"]
HUB_IDS: dict[str, tuple[str, ...]] = {
    "bm25": (),
    "contriever": ("facebook/contriever",),
    "dpr": ("facebook/dpr-question_encoder-single-nq-base", "facebook/dpr-ctx_encoder-single-nq-base"),
}
"""The models that a retriever needs."""


def load_retriever(name: str, hub: Hub | None) -> Callable[[Sequence[str]], Index]:
    """What makes an index of documents.

    Raises:
        RematchError: there is no such retriever, or its models are not there.
    """
    if name not in HUB_IDS:
        raise unknown("retriever", name, HUB_IDS, "mac")
    paths = [check_model(hub or Hub(), model) for model in HUB_IDS[name]]
    if name == "contriever":
        return Retriever.contriever(*paths).index
    if name == "dpr":
        return Retriever.dpr(*paths).index
    return BM25
