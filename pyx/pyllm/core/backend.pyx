"""Backends and devices: what ggml can compute on (wraps the registry of ``ggml-backend.h``).

Backends are modules that are loaded by explicit path from pyllm's own ``lib`` folder, from PYLLM_BACKEND_PATH, and from
packages that announce themselves under the entry point group "pyllm.backends". The folder of the executable and
the current directory are never searched.
"""

import os
import threading
import warnings
from dataclasses import dataclass, field

from libc.stdint cimport uintptr_t
from libcpp.string cimport string

from pyllm import errors
from pyllm.backends import discover
from pyllm.core cimport guard, log
from pyllm.core.arguments cimport c_text
from pyllm.includes cimport ggml, ggml_cpu
from pyllm.includes cimport ggml_backend as lib
from pyllm.includes cimport llama


cdef extern from "module_score.hpp" namespace "pyllm" nogil:
    int module_score(const char * path, string & error) except +


cdef object _lock = threading.Lock()
cdef bint _loaded = False
cdef list _rejected = []  # BackendInfo of each module that is not in use
cdef dict _paths = {}  # name of a loaded backend -> path of its module

_DEVICE_TYPES = {
    <int> lib.GGML_BACKEND_DEVICE_TYPE_CPU: "cpu",
    <int> lib.GGML_BACKEND_DEVICE_TYPE_GPU: "gpu",
    <int> lib.GGML_BACKEND_DEVICE_TYPE_IGPU: "igpu",
    <int> lib.GGML_BACKEND_DEVICE_TYPE_ACCEL: "accel",
    <int> lib.GGML_BACKEND_DEVICE_TYPE_META: "meta",
}

_NUMA = {
    "disabled": <int> ggml_cpu.GGML_NUMA_STRATEGY_DISABLED,
    "distribute": <int> ggml_cpu.GGML_NUMA_STRATEGY_DISTRIBUTE,
    "isolate": <int> ggml_cpu.GGML_NUMA_STRATEGY_ISOLATE,
    "numactl": <int> ggml_cpu.GGML_NUMA_STRATEGY_NUMACTL,
    "mirror": <int> ggml_cpu.GGML_NUMA_STRATEGY_MIRROR,
}


@dataclass(frozen=True)
class BufferType:
    """A kind of memory in which a device can compute or from which it can copy.

    Attributes:
        name: Name for ``tensor_buft_overrides``, where :func:`buffer_type_address` knows it, e.g. "CPU" or "CUDA0".
        kind: "default", "host" (pinned memory of the host, fast to copy from) or "extra" (weights are repacked).
        alignment: Every tensor starts at a multiple of this, in bytes.
        max_size: Largest buffer in bytes; None where there is no limit.
        is_host: Whether tensors in it are ordinary memory in ggml's usual layout.
    """

    name: str
    kind: str
    alignment: int
    max_size: int | None
    is_host: bool


@dataclass(frozen=True)
class DeviceCaps:
    """What a device can do besides computing.

    Attributes:
        async_: Compute while the caller goes on.
        host_buffer: Allocate pinned memory of the host.
        buffer_from_host_ptr: Compute on memory that is there already, such as a mapped file.
        events: Synchronize by events.
        mmap_support: Take weights from a mapped file.
    """

    async_: bool
    host_buffer: bool
    buffer_from_host_ptr: bool
    events: bool
    mmap_support: bool


@dataclass(frozen=True)
class Device:
    """A device that a backend offers.

    Attributes:
        name: Name for ``Model(devices=[...])``, e.g. "CPU" or "CUDA0".
        description: What the hardware calls itself.
        type: "cpu", "gpu", "igpu", "accel" or "meta".
        backend: Name of the backend it belongs to.
        memory_free: Free memory in bytes, when :func:`devices` was called.
        memory_total: All of its memory in bytes.
        id: Which piece of hardware it is, e.g. the PCI address "0000:c1:00.0"; None where it is not known.
        caps: What it can do (DeviceCaps).
        buffer_types: Its kinds of memory (tuple of BufferType), the default one first.
    """

    name: str
    description: str
    type: str
    backend: str
    memory_free: int
    memory_total: int
    id: str | None
    caps: DeviceCaps
    buffer_types: tuple


@dataclass(frozen=True)
class BackendInfo:
    """A backend that was found.

    Attributes:
        name: Its name, e.g. "CPU".
        loaded: Whether it is in use.
        path: The module's file, where it is known.
        reason: Why it was rejected; empty for a loaded one.
        devices: Names of its devices.
        features: What it was compiled for and uses, e.g. ``{"AVX2": "1"}`` (dict of str); empty where it does not say.
        remedy: What to do about the reason, e.g. which driver to install; empty where there is no advice.
    """

    name: str
    loaded: bool
    path: str
    reason: str
    devices: tuple
    features: dict = field(default_factory=dict, hash=False)
    remedy: str = ""


def load_backends():
    """Load every backend once; later calls return at once.

    PYLLM_BACKENDS ("cpu,vulkan") names those to load, PYLLM_BACKEND_PATH further files and folders. A module for other
    devices than the CPU that was not seen on this machine before is tried in a child process first. One that cannot be
    used is a BackendWarning, and the CPU goes on.

    Raises:
        BackendError: Not even a CPU backend could be loaded, or PYLLM_CPU_VARIANT names one that cannot run here.

    Wraps ``ggml_backend_load``. ``ggml_backend_load_all`` would also search the folder of the executable, the current
    directory and the path in GGML_BACKEND_PATH, whose modules may be of another ggml.
    """
    global _loaded
    if _loaded:
        return
    with _lock:
        if _loaded:
            return
        log.refresh()
        texts = _load_modules()
        if lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU) == NULL:
            raise errors.BackendError(
                f"no CPU backend could be loaded from {discover.library_folder()!r}; "
                "the installation is damaged: reinstall pyllm",
                log=guard.take_log(),
            )
        guard.enter()
        llama.llama_backend_init()
        _loaded = True
    for text in texts:
        warnings.warn(text, errors.BackendWarning, stacklevel=2)


cdef list _load_modules():
    """Load all modules that are wanted, and of those for the CPU the best one; the texts to warn with."""
    own, others = discover.own_modules(), discover.other_modules()
    found, texts = discover.select([*own, *others])
    cpus = found[:len(own)]
    cpus = [module for module in cpus if module.kind == "cpu"]
    best, rejected = _best_cpu(cpus)
    # ggml lists devices in this order, and a GPU goes before the CPU.
    devices = [module for module in found if module not in cpus]
    if devices:
        from pyllm.backends import loading  # late: without such modules it need not be imported

        outcome = loading.load(devices, _load_file)
        rejected = [*outcome.rejected, *rejected]
        texts += outcome.warnings
    for module in cpus:
        if module.name == best:
            reason = _load_file(module.path)
            if reason:
                rejected.append(module.rejected(reason))
    _rejected[:] = [
        BackendInfo(module.name, False, module.path, module.reason, (), remedy=module.remedy) for module in rejected
    ]
    return texts


cdef tuple _best_cpu(list modules):
    """The name of the module for this processor, or the one that PYLLM_CPU_VARIANT names; the others, rejected."""
    cdef string failure
    scores, reasons = {}, {}
    for module in modules:
        failure.clear()
        guard.enter()
        scores[module.name] = module_score(os.fsencode(module.path), failure)
        if scores[module.name] < 0:
            reasons[module.name] = f"the module cannot be loaded: {failure.decode('utf-8', 'replace')}"
        elif scores[module.name] == 0:
            reasons[module.name] = "the processor lacks instructions that it needs"
    best = discover.best_cpu(scores, os.environ.get("PYLLM_CPU_VARIANT"))
    rejected = []
    for module in modules:
        if module.name != best:
            reason = f"{best} is in use (score {scores.get(best)}, this one {scores[module.name]})"
            rejected.append(module.rejected(reasons.get(module.name, reason)))
    return best, rejected


def _load_file(path):
    """Load the backend of one file; the reason, where that fails, or an empty text."""
    if _load(path) != NULL:
        return ""
    return "; ".join(guard.take_log()) or "ggml_backend_load failed"


cdef lib.ggml_backend_reg_t _load(path) except? NULL:
    encoded = c_text(os.fspath(path), "the path")
    cdef const char * c_path = encoded
    cdef lib.ggml_backend_reg_t registered
    guard.enter()
    with nogil:
        registered = lib.ggml_backend_load(c_path)
    if registered != NULL:
        _paths[(<bytes> lib.ggml_backend_reg_name(registered)).decode()] = os.fspath(path)
    return registered


def load_backend(path):
    """Load one more backend module from a file.

    Args:
        path: The shared library, e.g. ``libggml-vulkan.so``, built for this version of ggml.

    Returns:
        str: The backend's name.

    Raises:
        BackendError: It could not be loaded, or is not for this machine; ``.log`` says why.

    Wraps ``ggml_backend_load``.
    """
    return (<bytes> lib.ggml_backend_reg_name(_load_checked(path))).decode()


cdef lib.ggml_backend_reg_t _load_checked(path) except NULL:
    load_backends()
    cdef lib.ggml_backend_reg_t registered = _load(path)
    if registered == NULL:
        raise errors.BackendError(
            f"the backend {str(path)!r} could not be loaded", function="ggml_backend_load", log=guard.take_log()
        )
    return registered


def start_devices(path):
    """Load one more backend module and start each of its devices once.

    Args:
        path: The shared library.

    Returns:
        list[str]: Names of the devices. A backend whose devices are on other machines (RPC) may have none.

    Raises:
        BackendError: It could not be loaded, it has no device, or one of them could not be started.

    Wraps ``ggml_backend_load`` and ``ggml_backend_dev_init``.
    """
    cdef lib.ggml_backend_t started
    cdef lib.ggml_backend_dev_t device
    cdef lib.ggml_backend_reg_t registered = _load_checked(path)
    cdef size_t i
    names = []
    guard.enter()
    for i in range(lib.ggml_backend_reg_dev_count(registered)):
        device = lib.ggml_backend_reg_dev_get(registered, i)
        names.append((<bytes> lib.ggml_backend_dev_name(device)).decode("utf-8", "replace"))
        with nogil:
            started = lib.ggml_backend_dev_init(device, NULL)
        if started == NULL:
            raise errors.BackendError(
                f"the device {names[-1]!r} could not be started", function="ggml_backend_dev_init", log=guard.take_log()
            )
        with nogil:
            lib.ggml_backend_free(started)
    if not names and lib.ggml_backend_reg_get_proc_address(registered, b"ggml_backend_rpc_add_server") == NULL:
        raise errors.BackendError("it finds no device on this machine", log=guard.take_log())
    return names


def backends():
    """The backends that were found: those in use, then those rejected with the reason.

    Returns:
        list[BackendInfo]: Loaded plugins and own backends first.
    """
    load_backends()
    cdef size_t i, j
    cdef lib.ggml_backend_reg_t registered
    result = []
    guard.enter()
    for i in range(lib.ggml_backend_reg_count()):
        registered = lib.ggml_backend_reg_get(i)
        names = []
        for j in range(lib.ggml_backend_reg_dev_count(registered)):
            device = lib.ggml_backend_reg_dev_get(registered, j)
            names.append((<bytes> lib.ggml_backend_dev_name(device)).decode())
        name = (<bytes> lib.ggml_backend_reg_name(registered)).decode()
        result.append(BackendInfo(name, True, _paths.get(name, ""), "", tuple(names), _features(registered)))
    return result + _rejected


def devices():
    """The devices of all loaded backends (list of Device), in ggml's order, then those of RPC servers that were added.

    Wraps ``ggml_backend_dev_get_props`` and ``ggml_backend_buft_*``.
    """
    load_backends()
    cdef size_t i
    guard.enter()
    result = [_device(lib.ggml_backend_dev_get(i)) for i in range(lib.ggml_backend_dev_count())]
    return result + [_remote(name, found[0], found[1]) for name, found in _remote_devices().items()]


cdef dict _remote_devices():
    from pyllm.core import rpc  # late: it needs this module

    return rpc.known_devices()


cdef _remote(name, address, endpoint):
    guard.enter()
    try:
        return _device(<lib.ggml_backend_dev_t> <void *> <uintptr_t> address)
    except errors.BackendAssertError:
        caps = DeviceCaps(True, False, False, True, True)
        return Device(name, f"{endpoint} (cannot be reached)", "gpu", "RPC", 0, 0, None, caps, ())


cdef _device(lib.ggml_backend_dev_t device):
    cdef lib.ggml_backend_dev_props props
    lib.ggml_backend_dev_get_props(device, &props)
    # Some backends leave the memory out of the properties.
    lib.ggml_backend_dev_memory(device, &props.memory_free, &props.memory_total)
    return Device(
        (<bytes> lib.ggml_backend_dev_name(device)).decode("utf-8", "replace"),
        (<bytes> lib.ggml_backend_dev_description(device)).decode("utf-8", "replace"),
        _DEVICE_TYPES.get(<int> lib.ggml_backend_dev_get_type(device), "unknown"),
        (<bytes> lib.ggml_backend_reg_name(lib.ggml_backend_dev_backend_reg(device))).decode(),
        props.memory_free,
        props.memory_total,
        None if props.device_id == NULL else (<bytes> props.device_id).decode("utf-8", "replace"),
        DeviceCaps(
            props.caps.async_, props.caps.host_buffer, props.caps.buffer_from_host_ptr, props.caps.events,
            props.caps.mmap_support,
        ),
        _buffer_types(device),
    )


cdef tuple _buffer_types(lib.ggml_backend_dev_t device):
    cdef lib.ggml_backend_buffer_type_t buft = lib.ggml_backend_dev_buffer_type(device)
    cdef lib.ggml_backend_buffer_type_t * extra
    cdef void * function
    result = []
    if buft != NULL:
        result.append(_buffer_type(buft, "default"))
    buft = lib.ggml_backend_dev_host_buffer_type(device)
    if buft != NULL:
        result.append(_buffer_type(buft, "host"))
    function = lib.ggml_backend_reg_get_proc_address(
        lib.ggml_backend_dev_backend_reg(device), b"ggml_backend_dev_get_extra_bufts"
    )
    if function != NULL:
        extra = (<lib.ggml_backend_dev_get_extra_bufts_t> function)(device)
        while extra != NULL and extra[0] != NULL:
            result.append(_buffer_type(extra[0], "extra"))
            extra += 1
    return tuple(result)


cdef _buffer_type(lib.ggml_backend_buffer_type_t buft, str kind):
    cdef size_t max_size = lib.ggml_backend_buft_get_max_size(buft)
    return BufferType(
        (<bytes> lib.ggml_backend_buft_name(buft)).decode("utf-8", "replace"),
        kind,
        lib.ggml_backend_buft_get_alignment(buft),
        None if max_size == <size_t> -1 else max_size,
        lib.ggml_backend_buft_is_host(buft),
    )


cdef dict _features(lib.ggml_backend_reg_t registered):
    cdef lib.ggml_backend_feature * feature
    cdef void * function = lib.ggml_backend_reg_get_proc_address(registered, b"ggml_backend_get_features")
    result = {}
    if function != NULL:
        feature = (<lib.ggml_backend_get_features_t> function)(registered)
        while feature != NULL and feature.name != NULL:
            result[(<bytes> feature.name).decode()] = (<bytes> feature.value).decode()
            feature += 1
    return result


def buffer_type_address(name):
    """Address of the default or host buffer type with that name (int), for tensor_buft_overrides.

    Raises:
        InvalidArgumentError: No device has such a buffer type; the message lists those there are.
    """
    load_backends()
    cdef lib.ggml_backend_buffer_type_t buft
    cdef lib.ggml_backend_dev_t device
    cdef size_t i
    known = []
    guard.enter()
    for i in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(i)
        for host in (False, True):
            buft = lib.ggml_backend_dev_host_buffer_type(device) if host else lib.ggml_backend_dev_buffer_type(device)
            if buft == NULL:
                continue
            found = (<bytes> lib.ggml_backend_buft_name(buft)).decode()
            if found == name:
                return <uintptr_t> buft
            known.append(found)
    for address, _ in _remote_devices().values():
        buft = lib.ggml_backend_dev_buffer_type(<lib.ggml_backend_dev_t> <void *> <uintptr_t> address)
        found = (<bytes> lib.ggml_backend_buft_name(buft)).decode()
        if found == name:
            return <uintptr_t> buft
        known.append(found)
    raise errors.InvalidArgumentError(f"there is no buffer type {name!r}; there are: {', '.join(map(repr, known))}")


def system_info():
    """One line on what the loaded CPU backend was compiled for and uses. Wraps ``llama_print_system_info``."""
    load_backends()
    guard.enter()
    return (<bytes> llama.llama_print_system_info()).decode("utf-8", "replace").strip()


def cpu_features():
    """What the loaded CPU backend uses of the processor.

    Returns:
        dict[str, str]: Feature to value, e.g. ``{"AVX2": "1", "LLAMAFILE": "1"}``.

    Wraps the backend's ``ggml_backend_get_features``.
    """
    load_backends()
    guard.enter()
    return _features(lib.ggml_backend_dev_backend_reg(lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU)))


def support():
    """What this build and its backends can do.

    Returns:
        dict[str, bool]: "mmap" and "mlock" of files, "gpu_offload" of layers, "rpc" to other machines.

    Wraps ``llama_supports_mmap``, ``llama_supports_mlock``, ``llama_supports_gpu_offload`` and
    ``llama_supports_rpc``.
    """
    load_backends()
    guard.enter()
    return {
        "mmap": llama.llama_supports_mmap(),
        "mlock": llama.llama_supports_mlock(),
        "gpu_offload": llama.llama_supports_gpu_offload(),
        "rpc": llama.llama_supports_rpc(),
    }


def limits():
    """What llama.cpp was compiled for at most.

    Returns:
        dict[str, int]: "devices", "parallel_sequences" (the largest n_seq_max) and "tensor_buft_overrides".

    Wraps ``llama_max_devices``, ``llama_max_parallel_sequences`` and ``llama_max_tensor_buft_overrides``.
    """
    load_backends()
    guard.enter()
    return {
        "devices": llama.llama_max_devices(),
        "parallel_sequences": llama.llama_max_parallel_sequences(),
        "tensor_buft_overrides": llama.llama_max_tensor_buft_overrides(),
    }


def numa_init(strategy):
    """Tell the CPU backend how to spread its threads over NUMA nodes. Once for a process, before models are loaded.

    Args:
        strategy: "disabled", "distribute", "isolate", "numactl" or "mirror".

    Raises:
        InvalidArgumentError: There is no such strategy.

    Wraps ``llama_numa_init``.
    """
    if strategy not in _NUMA:
        raise errors.InvalidArgumentError(f"strategy={strategy!r} is not one of {', '.join(map(repr, _NUMA))}")
    load_backends()
    guard.enter()
    llama.llama_numa_init(<ggml_cpu.ggml_numa_strategy> <int> _NUMA[strategy])


def time_us():
    """ggml's clock in microseconds (int): the one in which its own measurements are. Wraps ``llama_time_us``."""
    load_backends()
    guard.enter()
    return llama.llama_time_us()


def llama_commit():
    """The commit of llama.cpp that was built, abbreviated. Wraps ``ggml_commit``."""
    return (<bytes> ggml.ggml_commit()).decode()


def llama_version():
    """llama.cpp's own version, e.g. "0.5.0-dev". Wraps ``llama_version``."""
    return (<bytes> llama.llama_version()).decode()
