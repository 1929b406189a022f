"""How a model of a server is described, surveyed and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyllm.embedding.methods import EmbeddingMethods
from pyllm.engine import Engine
from pyllm.engine.embedding import products
from pyllm.engine.sizes import context_params, default_n_ctx
from pyllm.errors import InvalidArgumentError
from pyllm.memory import Probe
from pyllm.params import ContextParams, ModelParams, field_names, given
from pyllm.server.settings import Settings

LOADS = ("start", "demand")
_N_PARALLEL, _N_BATCH = 8, 2048  # the engine's own


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model that a server has.

    Attributes:
        name: What requests call it.
        path: Its file.
        arguments: How it is loaded and its context made: arguments of :class:`pyllm.core.model.Model` and
            :class:`pyllm.core.context.Context`.
        engine: Other arguments of :class:`pyllm.engine.Engine`.
        embeddings: Whether a model of texts makes vectors as well.
        settings: The settings for its requests.
        load: "start": with the server; "demand": when it is first asked.

    Raises:
        InvalidArgumentError: A value is out of range.
    """

    name: str
    path: Path
    arguments: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    embeddings: bool = False
    settings: Settings = field(default_factory=Settings)
    load: str = "demand"

    def __post_init__(self) -> None:
        if not self.name or self.name != self.name.strip() or not self.name.isprintable():
            raise InvalidArgumentError(f"the name of a model must be printable, not {self.name!r}")
        if self.load not in LOADS:
            raise InvalidArgumentError(f"load must be one of {', '.join(LOADS)}, not {self.load!r}")

    def split(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The arguments of the model, and those of its context."""
        names = field_names(ModelParams)
        of_model = {name: value for name, value in self.arguments.items() if name in names}
        return of_model, {name: value for name, value in self.arguments.items() if name not in names}


@dataclass(frozen=True)
class Served:
    """A loaded model; close it.

    Attributes:
        engine: Generates texts, makes vectors, or both.
        embedder: Makes vectors, or None.
    """

    engine: Engine | None
    embedder: EmbeddingMethods | None
    _stack: ExitStack

    def close(self) -> None:
        """Free all of it. Closing twice is allowed."""
        self._stack.close()


def serve_model(spec: ModelSpec) -> Served:
    """Load a model for a server.

    Raises:
        PyllmError: It cannot be loaded, does not fit into memory, or an argument is wrong.
    """
    of_model, rest = spec.split()
    with ExitStack() as stack:
        own = {"embeddings": spec.embeddings or None, **spec.engine}
        engine = stack.enter_context(Engine(spec.path, **own, **of_model, **rest))
        return Served(engine, engine if engine.embeds else None, stack.pop_all())


def estimate(spec: ModelSpec) -> int:
    """Bytes that a model will take, as :func:`survey` finds them."""
    return survey(spec).n_bytes


@dataclass(frozen=True)
class Survey:
    """Facts about a model, before it is loaded.

    Attributes:
        n_bytes: Bytes that it will take, wherever they lie: weights, context, and what it keeps on the host.
        generates: Whether it can be asked for texts.
        embeds: Whether it can be asked for vectors.
    """

    n_bytes: int
    generates: bool
    embeds: bool


def survey(spec: ModelSpec) -> Survey:
    """Find out about a model.

    No weights are read. What is made only for some requests, such as contexts for vectors beside texts, is not counted.

    Raises:
        PyllmError: It cannot be loaded, or an argument is wrong.
    """
    of_model, rest = spec.split()
    with Probe(spec.path, **of_model) as probe:
        generates, embeds = products(probe.model, spec.embeddings or None)
        if generates:
            n_parallel = spec.engine.get("n_parallel", _N_PARALLEL)
            n_batch = rest.pop("n_batch", None) or _N_BATCH
            n_ctx = rest.pop("n_ctx", None) or default_n_ctx(probe.model, n_parallel)
            params = context_params(n_ctx, n_parallel, spec.engine.get("kv_unified", False), n_batch, rest)
        else:
            params = ContextParams(**rest)
            n_ctx = params.n_ctx or probe.model.n_ctx_train
        others = {name: value for name, value in given(params).items() if name != "n_ctx"}
        n_bytes = probe.measure(n_ctx, **others).total + (spec.engine.get("host_cache_bytes") or 0)
        return Survey(n_bytes, generates, embeds)
