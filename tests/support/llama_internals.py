"""The only place where tests reach into a Llama: what it keeps between calls, which no caller sees.

A change to the structure of `Llama` is followed here, and nowhere else in the tests.
"""

from __future__ import annotations

from typing import Any

from pyllm import Llama
from pyllm.conversation import Conversation
from pyllm.core.context import Context
from pyllm.embedding.embedder import Embedder, EmbeddingCall


def history_of(conversation: Conversation) -> list[int]:
    """All tokens of a conversation; `Conversation.tokens` has those whose KV cache is kept."""
    ids: list[int] = conversation._state.history.ids.tolist()
    return ids


def n_dropped_messages(conversation: Conversation) -> int:
    """How many of the oldest messages are left out of prompts, after an overflow."""
    return conversation._state.first


def kept_bytes(llm: Llama) -> int:
    """Bytes of the host's memory that texts and checkpoints take between two calls."""
    texts = [*llm._cache.kept, llm._cache.active]
    return sum(text.host_bytes for text in texts if text is not None)


def n_kept_in_context(llm: Llama) -> int:
    """How many texts are kept in sequences of the context, beside the one where calls compute."""
    return sum(text.seq_id is not None for text in llm._cache.kept)


def checkpoints_of(llm: Llama, name: str) -> list[int]:
    """The numbers of tokens at which a conversation has checkpoints."""
    text = llm._cache.find(name)
    assert text is not None
    return [item.n for item in text.checkpoints.items]


def embedder_of(llm: Llama) -> Embedder | None:
    """What computes embeddings; None before the first call that needs it."""
    return llm._embedder_made


def embedding_contexts(llm: Llama) -> list[Context]:
    """The contexts in which embeddings are computed."""
    embedder = embedder_of(llm)
    return [] if embedder is None else [one.context for one in embedder._contexts.values()]


def embed_job(llm: Llama, texts: Any, job: EmbeddingCall) -> Any:
    """Embed as a call does whose job another thread may have cancelled already."""
    return llm._embedded(texts, job=job)


def draft_of(llm: Llama) -> tuple[Any, Any]:
    """The draft model and its context."""
    speculator = llm._speculator.speculator
    assert speculator is not None
    return speculator.model, speculator._draft_context
