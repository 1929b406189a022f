"""How a Llama or an Engine gets a model and the size of its context: what fits into memory, found cheaply."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllm.core.model import Model
from pyllm.errors import InsufficientMemoryError, InvalidArgumentError, ModelNotFoundError
from pyllm.host_memory import host_memory
from pyllm.params import ContextParams, ModelParams, given

if TYPE_CHECKING:
    from pyllm import memory

# A default context takes at most this of the host: it is allocated and zeroed at once, used or not.
_CONTEXT_SHARE = 4
_CONTEXT_BYTES = 4 << 30
_LEAST_N_CTX = 4096
_UBATCH = 512
_PART = re.compile(r"^(.+)-00001-of-(\d{5})\.gguf$")
# Whoever says one of these has made the decision that the fit would make.
_DECIDED = ("n_gpu_layers", "tensor_split", "tensor_buft_overrides", "split_mode", "no_alloc", "vocab_only")
_WIDE = ("f32", 0)


def open_model(
    model: str | os.PathLike[str] | Model,
    of_model: Mapping[str, Any],
    for_context: ContextParams,
    *,
    check: bool,
    default_n_ctx: Callable[[Model], int] | None = None,
) -> tuple[Model, ContextParams]:
    """The model that was named, loaded, or the one that was given.

    Args:
        model: A GGUF file, an alias or a reference; or a model that is loaded already, which stays its owner's.
        of_model: How to load it; fields of ModelParams.
        for_context: How its context will be made.
        check: Refuse what does not fit into memory.
        default_n_ctx: Chooses the size of the context where `for_context` has none. None: see :func:`with_n_ctx`.

    Returns:
        The model, and how to make the context.

    Raises:
        InvalidArgumentError: The model is loaded already, and `of_model` says how to load it.
        ModelNotFoundError: There is no such model.
        InsufficientMemoryError: It would not fit.
    """
    choose = default_n_ctx if for_context.n_ctx is None else None
    if isinstance(model, Model):
        if of_model:
            raise InvalidArgumentError(f"the model is loaded already; {', '.join(of_model)} would do nothing")
        wanted = for_context if choose is None else replace(for_context, n_ctx=choose(model))
        return model, with_n_ctx(model, wanted, check=check)
    from pyllm import hub  # only here: a model that is loaded already needs none of it

    path, for_model = hub.resolve(model), ModelParams(**of_model)
    if choose is not None and _has_devices(given(for_model)):
        from pyllm import memory

        # What goes to a device depends on the size of the context: it must be known before.
        with memory.Probe(path, **given(for_model)) as probe:
            for_context = replace(for_context, n_ctx=choose(probe.model))
        choose = None
    loaded, fitted = load(path, for_model, for_context, check=check)
    if choose is None:
        return loaded, fitted
    try:
        wanted = replace(for_context, n_ctx=choose(loaded))
        return loaded, with_n_ctx(loaded, wanted, given(for_model), check=check)
    except BaseException:
        loaded.close()
        raise


def load(path: Path, for_model: ModelParams, for_context: ContextParams, *, check: bool) -> tuple[Model, ContextParams]:
    """Load a model so that it and its context fit.

    Args:
        path: The GGUF file.
        for_model: How to load it.
        for_context: How its context will be made; without n_ctx that is chosen.
        check: Refuse what does not fit.

    Returns:
        The model, and how to make the context.

    Raises:
        InsufficientMemoryError: It would not fit; nothing was allocated.
    """
    arguments = given(for_model)
    if for_model.no_alloc or for_model.vocab_only:
        return Model(path, **arguments), for_context
    if not any(getattr(for_model, name) is not None for name in _DECIDED) and _has_devices(arguments):
        fitted = _fit_devices(path, arguments, for_context, check=check)
        if fitted is not None:
            n_ctx = fitted.pop("n_ctx")
            return Model(path, **arguments, **fitted), replace(for_context, n_ctx=n_ctx)
    available = host_memory().available
    if check and available is not None and _file_bytes(path) > available // 4 and not _has_devices(arguments):
        _require_fit(path, arguments, for_context)
    model = Model(path, **arguments)
    try:
        return model, with_n_ctx(model, for_context, arguments, check=check)
    except BaseException:
        model.close()
        raise


def with_n_ctx(
    model: Model, for_context: ContextParams, arguments: Mapping[str, Any] | None = None, *, check: bool
) -> ContextParams:
    """Choose the size of the context for a loaded model, or check the one that was asked for.

    Without one it is the length that the model was trained with, as far as the context stays below a quarter of the
    memory that is free, and below 4 GiB; down to 4096 tokens it may take all that is free. Where it goes to a
    device, or nobody knows what is free, it is at most 4096.

    Args:
        model: The model.
        for_context: How its context will be made.
        arguments: How it was loaded, for the case that it must be measured.
        check: Refuse what does not fit.

    Raises:
        InsufficientMemoryError: The context would not fit; nothing was allocated for it.
    """
    trained = model.n_ctx_train or _LEAST_N_CTX
    wanted = for_context.n_ctx if for_context.n_ctx is not None else trained
    available = host_memory().available
    plain = replace(for_context, n_ctx=wanted)
    arguments = arguments or {}
    if available is None or model.vocab_only or model.no_alloc or _has_devices(arguments):
        return plain if for_context.n_ctx is not None else replace(plain, n_ctx=min(trained, _LEAST_N_CTX))
    sizes = (wanted, for_context.n_ubatch or 0, for_context.n_seq_max or 0)
    if not all(isinstance(size, Integral) and 0 <= size < 1 << 31 for size in sizes):
        return plain  # the context says what is wrong with it
    context, compute = _bound(model, wanted or trained, for_context)
    limit = min(available // _CONTEXT_SHARE, _CONTEXT_BYTES)
    asked = for_context.n_ctx is not None
    if context + compute <= available // 2 and (asked or context <= limit):
        return plain
    if not Path(model.path).is_file() or (asked and not check):
        return plain if asked else replace(plain, n_ctx=min(trained, _LEAST_N_CTX))
    return _measured(model, plain, arguments, limit, available, asked=asked, check=check)


def _measured(
    model: Model,
    for_context: ContextParams,
    arguments: Mapping[str, Any],
    limit: int,
    available: int,
    *,
    asked: bool,
    check: bool,
) -> ContextParams:
    from pyllm import memory

    others = {name: value for name, value in given(for_context).items() if name != "n_ctx"}
    with memory.Probe(model.path, **arguments) as probe:
        wanted = probe.measure(for_context.n_ctx or 0, **others)
        # The weights are there already.
        budget = available + wanted.host.model
        if asked or wanted.context <= limit:
            if check and wanted.host.used > budget:
                raise _insufficient(probe, wanted.n_ctx, budget, others)
            return for_context
        least = min(_LEAST_N_CTX, wanted.n_ctx)
        low = probe.measure(least, **others)
        if check and low.host.used > budget:
            raise _insufficient(probe, least, budget, others)
        per_token = max(1.0, (wanted.context - low.context) / max(1, wanted.n_ctx - low.n_ctx))
        n_ctx = low.n_ctx + int(max(0, limit - low.context) / per_token)
        return replace(for_context, n_ctx=max(least, min(n_ctx - n_ctx % 256, wanted.n_ctx)))


def _fit_devices(
    path: Path, arguments: dict[str, Any], for_context: ContextParams, *, check: bool
) -> dict[str, Any] | None:
    from pyllm import memory

    others = {name: value for name, value in given(for_context).items() if name != "n_ctx"}
    try:
        return memory.fit(path, n_ctx=for_context.n_ctx, **arguments, **others).arguments
    except InsufficientMemoryError:
        if check:
            raise
        return None


def _require_fit(path: Path, arguments: dict[str, Any], for_context: ContextParams) -> None:
    from pyllm import memory

    others = {name: value for name, value in given(for_context).items() if name != "n_ctx"}
    available = host_memory().available
    with memory.Probe(path, **arguments) as probe:
        n_ctx = for_context.n_ctx
        if n_ctx is None:
            n_ctx = min(_LEAST_N_CTX, probe.model.n_ctx_train or _LEAST_N_CTX)
        wanted = probe.measure(n_ctx, **others)
        if available is not None and wanted.host.used > available:
            raise _insufficient(probe, n_ctx, available, others)


def _insufficient(probe: memory.Probe, n_ctx: int, budget: int, others: Mapping[str, Any]) -> InsufficientMemoryError:
    from pyllm import memory

    error = memory.insufficient(probe, n_ctx, budget, others)
    error.args = (f"{error.message} (check_memory=False tries it all the same)",)
    return error


def _has_devices(arguments: Mapping[str, Any]) -> bool:
    from pyllm import memory

    return bool(memory.used_devices(arguments))


def _file_bytes(path: Path) -> int:
    """The size of a model, all its parts together."""
    paths = [path]
    if part := _PART.match(path.name):
        count = int(part[2])
        paths = [path.with_name(f"{part[1]}-{number:05d}-of-{part[2]}.gguf") for number in range(1, count + 1)]
    try:
        return sum(one.stat().st_size for one in paths)
    except OSError as error:
        if path.is_file():
            raise ModelNotFoundError(
                error.errno, f"a part of the model is missing: {error.filename}", error.filename
            ) from error
        return 0  # the loader says what is wrong


def _bound(model: Model, n_ctx: int, for_context: ContextParams) -> tuple[int, int]:
    """Bytes that context and computing take at most, from what the metadata say."""
    metadata = model.metadata
    arch = metadata.get("general.architecture", "")

    def largest(key: str, default: int) -> int:
        numbers = [int(number) for number in re.findall(r"\d+", metadata.get(f"{arch}.{key}", ""))[:4096]]
        return max(numbers, default=default)

    heads = max(1, model.n_head)
    width = largest("attention.key_length", -(-model.n_embd // heads)) + largest(
        "attention.value_length", -(-model.n_embd // heads)
    )
    item = 4 if for_context.type_k in _WIDE or for_context.type_v in _WIDE else 2
    cells = n_ctx + 256
    context = cells * model.n_layer * largest("attention.head_count_kv", heads) * width * item
    batch = for_context.n_ubatch or _UBATCH
    inner = max(model.n_embd, largest("feed_forward_length", model.n_embd), largest("ssm.inner_size", 0))
    # Where attention has a bias, as in encoders, all of its scores are in memory at once.
    flash = str(for_context.flash_attn_type).lower() not in ("disabled", "0") and not model.has_encoder
    compute = batch * 4 * (model.n_vocab + 8 * inner + cells * (2 if flash else 4 * heads))
    states = max(1, for_context.n_seq_max or 1) * (64 << 20 if model.is_recurrent or model.is_hybrid else 0)
    return context + states, compute
