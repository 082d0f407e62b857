"""Ways to keep a language model up to date with a stream of documents that change its weights or its input.

Online fine-tuning with four weightings of the tokens (Uniform, Salient Spans, TF-IDF, CaMeLS), and retrieval (BM25, Contriever, DPR).
"""

from baselines.online.camels import MetaBatch, MetaRecipe, MetaTraining, WeightNet, meta_train
from baselines.online.documents import Document, EntitySpans, encode_documents, stream_order
from baselines.online.finetuning import (
    AdaptationCost,
    OnlineFinetuner,
    given,
    online_finetune,
    salient,
    uniform,
    weighted_loss,
)
from baselines.online.retrieval import BM25, Index, Retriever, prepend, with_documents
from baselines.online.tf_idf import TfIdf

__all__ = [
    "BM25",
    "AdaptationCost",
    "Document",
    "EntitySpans",
    "Index",
    "MetaBatch",
    "MetaRecipe",
    "MetaTraining",
    "OnlineFinetuner",
    "Retriever",
    "TfIdf",
    "WeightNet",
    "encode_documents",
    "given",
    "meta_train",
    "online_finetune",
    "prepend",
    "salient",
    "stream_order",
    "uniform",
    "weighted_loss",
    "with_documents",
]
