"""How much memory a model takes, before it is loaded; and what fits into the memory there is."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from pyllm.core import rpc
from pyllm.core.backend import Device, devices
from pyllm.core.breakdown import BufferMemory, memory_breakdown
from pyllm.core.context import Context
from pyllm.core.model import Model
from pyllm.errors import InsufficientMemoryError, InvalidArgumentError
from pyllm.host_memory import host_memory
from pyllm.params import ContextParams, ModelParams, given, split_arguments

HOST = "host"
"""The name of the host's memory among those of devices."""

LEAST_N_CTX = 4096
"""A context is not made smaller than this, in tokens, unless the model was trained with less."""

_DEVICE_MARGIN = 1 << 30  # what llama.cpp's own programs leave free on a device
_HOST_MARGIN_SHARE = 16
_MAX_MEASURED = 1 << 20
_STEP = 256  # contexts come in multiples of this


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What a model would take of the memory of one device, in bytes.

    Attributes:
        name: Name of the device, or "host".
        total: What it has; None where the system does not say.
        free: What can be used now; None where the system does not say.
        model: Weights.
        context: KV cache or recurrent state, and outputs.
        compute: Room for intermediate results.
    """

    name: str
    total: int | None
    free: int | None
    model: int
    context: int
    compute: int

    @property
    def used(self) -> int:
        """What the model would take altogether."""
        return self.model + self.context + self.compute


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes that a model would take.

    Attributes:
        model: Weights.
        context: KV cache or recurrent state, and outputs.
        compute: Room for intermediate results.
        n_ctx: The size of context that this is for, in tokens.
        buffers: The same by kind of buffer.
        devices: The same by device, the host last.
    """

    model: int
    context: int
    compute: int
    n_ctx: int
    buffers: tuple[BufferMemory, ...]
    devices: tuple[DeviceMemory, ...] = ()

    @property
    def total(self) -> int:
        """All of it."""
        return self.model + self.context + self.compute

    @property
    def host(self) -> DeviceMemory:
        """What it takes of the host."""
        return self.devices[-1]


_Counted = TypeVar("_Counted", MemoryEstimate, DeviceMemory, BufferMemory)


@dataclass(frozen=True, slots=True)
class FittedParams:
    """Arguments with which a model fits.

    Attributes:
        n_ctx: Size of the context in tokens.
        n_gpu_layers: Layers for the devices; -1 means all. None where there is no device.
        tensor_split: The share of each device; None where nothing is to be split.
        tensor_buft_overrides: Buffer types for tensors, by regular expression; None where all go with their layer.
        estimate: What the model takes with them.
    """

    n_ctx: int
    n_gpu_layers: int | None
    tensor_split: tuple[float, ...] | None
    tensor_buft_overrides: Mapping[str, str] | None
    estimate: MemoryEstimate

    @property
    def arguments(self) -> dict[str, Any]:
        """What to pass to :class:`pyllm.Llama`, beside what :func:`fit` was called with."""
        names = ("n_ctx", "n_gpu_layers", "tensor_split", "tensor_buft_overrides")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class Probe:
    """A model without weights, which tells how much memory it and its contexts would take. Close it.

    Args:
        path: A GGUF file.
        **model_arguments: Arguments of :class:`pyllm.core.model.Model`.
    """

    def __init__(self, path: str | os.PathLike[str], **model_arguments: Any) -> None:
        for name in ("no_alloc", "load_mode", "progress_callback"):
            model_arguments.pop(name, None)
        self.path = os.fspath(path)
        self.model = Model(path, no_alloc=True, **model_arguments)
        self._measured: dict[str, MemoryEstimate] = {}

    def measure(self, n_ctx: int, **context_arguments: Any) -> MemoryEstimate:
        """What it would take with such a context; 0 is the length it was trained with."""
        n_ctx = operator.index(n_ctx)  # NumPy's would overflow
        key = repr((n_ctx, sorted(context_arguments.items())))
        if key not in self._measured:
            self._measured[key] = self._measure(n_ctx, context_arguments)
        return self._measured[key]

    def _measure(self, n_ctx: int, context_arguments: dict[str, Any]) -> MemoryEstimate:
        if n_ctx > _MAX_MEASURED:
            # The list of cells is made even where their contents are not.
            half, whole = (self.measure(size, **context_arguments) for size in (_MAX_MEASURED // 2, _MAX_MEASURED))
            return _extrapolated(half, whole, n_ctx)
        with Context(self.model, n_ctx=n_ctx, **context_arguments) as context:
            buffers = tuple(memory_breakdown(context))
            return MemoryEstimate(
                model=sum(buffer.model for buffer in buffers),
                context=sum(buffer.context for buffer in buffers),
                compute=sum(buffer.compute for buffer in buffers),
                n_ctx=context.n_ctx,
                buffers=buffers,
                devices=_by_device(buffers),
            )

    def largest(self, budget: int, least: int, most: int, **context_arguments: Any) -> MemoryEstimate | None:
        """The estimate for the largest context that fits.

        Args:
            budget: Bytes of the host that may be used.
            least: The smallest context to think of, in tokens.
            most: The largest, in tokens.
            **context_arguments: Other arguments of the context.

        Returns:
            MemoryEstimate | None: None where not even the smallest fits.
        """
        high = self.measure(most, **context_arguments)
        if high.host.used <= budget or most <= least:
            return high if high.host.used <= budget else None
        low = self.measure(least, **context_arguments)
        if low.host.used > budget:
            return None
        # Almost linear; where it is not, one or two steps more find the place.
        for _ in range(8):
            grown = max(1, high.host.used - low.host.used)
            n_ctx = low.n_ctx + (high.n_ctx - low.n_ctx) * (budget - low.host.used) // grown
            n_ctx -= n_ctx % _STEP
            if n_ctx <= low.n_ctx:
                break
            between = self.measure(n_ctx, **context_arguments)
            if between.host.used > budget:
                high = between
                continue
            low = between
            if high.n_ctx - low.n_ctx <= _STEP or budget - low.host.used < grown // 64:
                break
        return low

    def close(self) -> None:
        """Free it."""
        self.model.close()

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _extrapolated(half: MemoryEstimate, whole: MemoryEstimate, n_ctx: int) -> MemoryEstimate:
    """The estimate for a larger context: what grows, grows with it."""
    factor = (n_ctx - whole.n_ctx) / (whole.n_ctx - half.n_ctx)

    def grown(low: _Counted, high: _Counted) -> _Counted:
        kinds = ("model", "context", "compute")
        values: dict[str, Any] = {
            kind: int(getattr(high, kind) + factor * (getattr(high, kind) - getattr(low, kind))) for kind in kinds
        }
        return replace(high, **values)

    buffers = zip(sorted(half.buffers, key=_name), sorted(whole.buffers, key=_name), strict=True)
    return replace(
        grown(half, whole),
        n_ctx=n_ctx,
        buffers=tuple(grown(*pair) for pair in buffers),
        devices=tuple(grown(*pair) for pair in zip(half.devices, whole.devices, strict=True)),
    )


def _name(buffer: BufferMemory) -> str:
    return buffer.buffer_type


def _by_device(buffers: tuple[BufferMemory, ...]) -> tuple[DeviceMemory, ...]:
    known = {device.name: device for device in devices()}
    names = [name for name in known if any(buffer.device == name for buffer in buffers)] + [HOST]
    host = host_memory()
    result = []
    for name in names:
        mine = [buffer for buffer in buffers if buffer.device == name]
        total, free = (
            (host.total, host.available) if name == HOST else (known[name].memory_total, known[name].memory_free)
        )
        sums = [sum(getattr(buffer, kind) for buffer in mine) for kind in ("model", "context", "compute")]
        result.append(DeviceMemory(name, total, free, *sums))
    return tuple(result)


def estimate(model: str | os.PathLike[str], *, n_ctx: int | None = None, **arguments: Any) -> MemoryEstimate:
    """Ask llama.cpp how much memory a model would take; no weights are read.

    Args:
        model: A GGUF file, or whatever else :func:`pyllm.hub.resolve` takes.
        n_ctx: Size of the context in tokens; None and 0 take the length the model was trained with.
        **arguments: Other arguments of :class:`pyllm.core.context.Context` and :class:`pyllm.core.model.Model`, e.g.
            ``type_k="q8_0"`` or ``n_gpu_layers=20``.

    Returns:
        MemoryEstimate: Its numbers are those of llama.cpp's own allocator, simulated.

    Raises:
        UnknownArgumentError: A keyword exists in neither.
        ModelLoadError: The file cannot be loaded.
        ContextError: No such context is possible.
    """
    of_model, of_context = split_arguments(arguments, "estimate()", ModelParams, ContextParams)
    with Probe(_path(model), **given(ModelParams(**of_model))) as probe:
        return probe.measure(n_ctx or 0, **given(ContextParams(**of_context)))


def fit(
    model: str | os.PathLike[str],
    *,
    n_ctx: int | None = None,
    n_ctx_min: int = LEAST_N_CTX,
    budget: int | Mapping[str, int] | None = None,
    **arguments: Any,
) -> FittedParams:
    """Find arguments with which a model fits into memory, by llama.cpp's own rules.

    Where there are devices, as much as possible goes there: the context shrinks first, if it may, down to `n_ctx_min`;
    then whole layers, and of a mixture of experts single tensors, stay on the host. Without a device only the context
    can shrink.

    Args:
        model: A GGUF file, or whatever else :func:`pyllm.hub.resolve` takes.
        n_ctx: Size of the context in tokens, which must fit; 0: the length the model was trained with, which must fit.
            None: as large as possible, at most that length.
        n_ctx_min: The context is not made smaller than this.
        budget: Bytes that may be used: of each device, or of the host where there is none; or a dict by the name of
            the device and "host". None: what is free, less 1 GiB of each device and a sixteenth of the host's.
        **arguments: Other arguments of :class:`pyllm.core.model.Model` and :class:`pyllm.core.context.Context`.

    Returns:
        FittedParams: ``.arguments`` goes to :class:`pyllm.Llama`.

    Raises:
        InsufficientMemoryError: Nothing fits.
        InvalidArgumentError: The budget names something that is not there.
    """
    path = _path(model)
    of_model, of_context = split_arguments(arguments, "fit()", ModelParams, ContextParams)
    for_model, for_context = given(ModelParams(**of_model)), given(ContextParams(**of_context))
    used = used_devices(for_model)
    limits = _limits(budget, used)
    if used:
        return _fit_devices(path, used, limits, n_ctx, n_ctx_min, for_model, for_context)
    with Probe(path, **for_model) as probe:
        most = n_ctx or probe.model.n_ctx_train or LEAST_N_CTX
        least = min(n_ctx_min, most) if n_ctx is None else most
        found = probe.largest(limits[HOST], least, most, **for_context)
        if found is None:
            raise insufficient(probe, least, limits[HOST], for_context)
        return FittedParams(min(found.n_ctx, most), None, None, None, found)


def used_devices(for_model: Mapping[str, Any]) -> list[Device]:
    """The devices beside the host that a model with these arguments goes to, in llama.cpp's order."""
    if for_model.get("n_gpu_layers") == 0:
        return []
    names = for_model.get("devices")
    if (servers := for_model.get("rpc")) is not None:
        names = rpc.device_names(servers, names)
    found = devices()
    if names is not None:
        wanted = [getattr(name, "name", name) for name in names]
        return [device for name in wanted for device in found if device.name == name and device.type != "cpu"]
    found = [device for device in found if device.backend != "RPC"]  # they are used where they are named
    # Those inside the processor only where there is no other.
    return [device for device in found if device.type == "gpu"] or [device for device in found if device.type == "igpu"]


def _limits(budget: int | Mapping[str, int] | None, used: list[Device]) -> dict[str, int]:
    available = host_memory().available
    room = (1 << 62) if available is None else available - available // _HOST_MARGIN_SHARE
    limits = {device.name: max(0, device.memory_free - _DEVICE_MARGIN) for device in used} | {HOST: room}
    if isinstance(budget, Mapping):
        if unknown := [name for name in budget if name not in limits]:
            raise InvalidArgumentError(f"budget names {unknown[0]!r}; there are {', '.join(limits)}")
        limits |= budget
    elif budget is not None:
        limits |= dict.fromkeys([device.name for device in used] or [HOST], budget)
    for name, limit in limits.items():
        if not isinstance(limit, Integral) or isinstance(limit, bool) or limit < 0:
            raise InvalidArgumentError(f"the budget of {name} must be a number of bytes >= 0, not {limit!r}")
    return {name: int(limit) for name, limit in limits.items()}


def _fit_devices(
    path: Path,
    used: list[Device],
    limits: Mapping[str, int],
    n_ctx: int | None,
    n_ctx_min: int,
    for_model: dict[str, Any],
    for_context: dict[str, Any],
) -> FittedParams:
    from pyllm.core.fit import fit_params

    margins = [max(0, device.memory_free - limits[device.name]) for device in used]
    plain = {name: value for name, value in for_model.items() if name not in ("progress_callback", "no_alloc")}
    if n_ctx == 0:  # which llama.cpp's fit would make smaller
        with Probe(path, **for_model) as probe:
            n_ctx = probe.model.n_ctx_train or LEAST_N_CTX
    found = fit_params(path, margins=margins, n_ctx_min=n_ctx_min, model=plain, context={**for_context, "n_ctx": n_ctx})
    with Probe(path, **for_model) as probe:
        trained = probe.model.n_ctx_train or LEAST_N_CTX
        if found is None:
            raise insufficient(probe, n_ctx or min(n_ctx_min, trained), limits[HOST], for_context)
    chosen = {
        "n_gpu_layers": found.n_gpu_layers,
        "tensor_split": found.tensor_split,
        "tensor_buft_overrides": found.tensor_buft_overrides or None,
    }
    arguments = for_model | {name: value for name, value in chosen.items() if value is not None}
    n_ctx = n_ctx or min(found.n_ctx or trained, trained)
    with Probe(path, **arguments) as probe:
        measured = probe.measure(n_ctx, **for_context)
        if measured.host.used > limits[HOST]:
            raise insufficient(probe, n_ctx, limits[HOST], for_context)
    return FittedParams(n_ctx, found.n_gpu_layers, found.tensor_split, found.tensor_buft_overrides or None, measured)


def insufficient(probe: Probe, n_ctx: int, budget: int, for_context: Mapping[str, Any]) -> InsufficientMemoryError:
    """The error for a model that does not fit into the memory of the host, which says what would."""
    wanted = probe.measure(n_ctx, **for_context)
    smaller = probe.largest(budget, _STEP, wanted.n_ctx, **for_context)
    host = wanted.host
    text = (
        f"{probe.path} needs {_size(host.used)} of memory with a context of {wanted.n_ctx:,} tokens "
        f"({_size(host.model)} for weights, {_size(host.context)} for the context, {_size(host.compute)} to compute), "
        f"and {_size(budget)} can be used; "
    )
    if smaller is not None:
        text += f"a context of {smaller.n_ctx:,} tokens fits: n_ctx={smaller.n_ctx}"
        if for_context.get("type_k") is None and wanted.context > wanted.compute:
            text += '; with type_k="q8_0", type_v="q8_0" about twice as many'
    else:
        smallest = probe.measure(_STEP, **for_context).host
        room = max(0, budget - smallest.context - smallest.compute)
        text += "no context makes it fit"
        text += f": a file of the same model must have at most {_size(room)}" if room else ", nor does another file"
    return InsufficientMemoryError(
        text,
        needed=host.used,
        available=budget,
        n_ctx=None if smaller is None else smaller.n_ctx,
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _path(model: str | os.PathLike[str]) -> Path:
    from pyllm import hub

    return hub.resolve(model)
