"""Backends and devices: what ggml can compute on (wraps the registry of ``ggml-backend.h``).

Backends are modules that are loaded by explicit path from pyllm's own ``lib`` folder, and from packages
that announce themselves under the entry point group "pyllm.backends". The folder of the executable and
the current directory are never searched.
"""

import os
import threading
from dataclasses import dataclass

from libc.stdint cimport uintptr_t

from pyllm import errors
from pyllm.backends import discover
from pyllm.core cimport guard, log
from pyllm.core.arguments cimport c_text
from pyllm.includes cimport ggml
from pyllm.includes cimport ggml_backend as lib
from pyllm.includes cimport llama


cdef object _lock = threading.Lock()
cdef bint _loaded = False
cdef list _rejected = []

_DEVICE_TYPES = {
    <int> lib.GGML_BACKEND_DEVICE_TYPE_CPU: "cpu",
    <int> lib.GGML_BACKEND_DEVICE_TYPE_GPU: "gpu",
    <int> lib.GGML_BACKEND_DEVICE_TYPE_IGPU: "igpu",
    <int> lib.GGML_BACKEND_DEVICE_TYPE_ACCEL: "accel",
    <int> lib.GGML_BACKEND_DEVICE_TYPE_META: "meta",
}


@dataclass(frozen=True)
class Device:
    """A device that a backend offers.

    Attributes:
        name: Name for ``Model(devices=[...])``, e.g. "CPU" or "CUDA0".
        description: What the hardware calls itself.
        type: "cpu", "gpu", "igpu", "accel" or "meta".
        backend: Name of the backend it belongs to.
        memory_free: Free memory in bytes.
        memory_total: All of its memory in bytes.
    """

    name: str
    description: str
    type: str
    backend: str
    memory_free: int
    memory_total: int


@dataclass(frozen=True)
class BackendInfo:
    """A backend that was found.

    Attributes:
        name: Its name, e.g. "CPU".
        loaded: Whether it is in use.
        path: The module's file, where it is known.
        reason: Why it was rejected; empty for a loaded one.
        devices: Names of its devices.
    """

    name: str
    loaded: bool
    path: str
    reason: str
    devices: tuple


def load_backends():
    """Load every backend once; later calls return at once.

    Raises:
        BackendError: Not even a CPU backend could be loaded.

    Wraps ``ggml_backend_load_all_from_path`` and ``ggml_backend_load``.
    """
    global _loaded
    if _loaded:
        return
    with _lock:
        if _loaded:
            return
        log.refresh()
        _load_own()
        _load_plugins()
        if lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU) == NULL:
            raise errors.BackendError(
                f"no CPU backend could be loaded from {discover.library_folder()!r}; "
                "the installation is damaged: reinstall pyllm",
                log=guard.take_log(),
            )
        guard.enter()
        llama.llama_backend_init()
        _loaded = True


cdef _load_own():
    folder = discover.library_folder().encode()
    cdef const char * c_folder = folder
    guard.enter()
    with nogil:
        lib.ggml_backend_load_all_from_path(c_folder)


cdef _load_plugins():
    cdef const char * c_path
    cdef lib.ggml_backend_reg_t registered
    for plugin in discover.plugins():
        if plugin.reason:
            _rejected.append(BackendInfo(plugin.name, False, plugin.path, plugin.reason, ()))
            continue
        encoded = plugin.path.encode()
        c_path = encoded
        guard.enter()
        with nogil:
            registered = lib.ggml_backend_load(c_path)
        if registered == NULL:
            reason = "; ".join(guard.take_log()) or "ggml_backend_load failed"
            _rejected.append(BackendInfo(plugin.name, False, plugin.path, reason, ()))


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
    load_backends()
    encoded = c_text(os.fspath(path), "the path")
    cdef const char * c_path = encoded
    cdef lib.ggml_backend_reg_t registered
    guard.enter()
    with nogil:
        registered = lib.ggml_backend_load(c_path)
    if registered == NULL:
        raise errors.BackendError(
            f"the backend {str(path)!r} could not be loaded", function="ggml_backend_load", log=guard.take_log()
        )
    return (<bytes> lib.ggml_backend_reg_name(registered)).decode()


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
        result.append(BackendInfo(name, True, discover.module_in_use(name), "", tuple(names)))
    result.extend(BackendInfo(other.name, False, other.path, other.reason, ()) for other in discover.unused_modules(
        [info.path for info in result]
    ))
    return result + _rejected


def devices():
    """The devices of all loaded backends (list of Device), in ggml's order."""
    load_backends()
    cdef size_t i
    guard.enter()
    return [_device(lib.ggml_backend_dev_get(i)) for i in range(lib.ggml_backend_dev_count())]


cdef _device(lib.ggml_backend_dev_t device):
    cdef size_t free = 0, total = 0
    lib.ggml_backend_dev_memory(device, &free, &total)
    return Device(
        (<bytes> lib.ggml_backend_dev_name(device)).decode("utf-8", "replace"),
        (<bytes> lib.ggml_backend_dev_description(device)).decode("utf-8", "replace"),
        _DEVICE_TYPES.get(<int> lib.ggml_backend_dev_get_type(device), "unknown"),
        (<bytes> lib.ggml_backend_reg_name(lib.ggml_backend_dev_backend_reg(device))).decode(),
        free,
        total,
    )


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
    cdef lib.ggml_backend_dev_t device = lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU)
    cdef void * function = lib.ggml_backend_reg_get_proc_address(
        lib.ggml_backend_dev_backend_reg(device), b"ggml_backend_get_features"
    )
    result = {}
    if function == NULL:
        return result
    cdef lib.ggml_backend_feature * feature = (<lib.ggml_backend_get_features_t> function)(
        lib.ggml_backend_dev_backend_reg(device)
    )
    while feature.name != NULL:
        result[(<bytes> feature.name).decode()] = (<bytes> feature.value).decode()
        feature += 1
    return result


def llama_commit():
    """The commit of llama.cpp that was built, abbreviated. Wraps ``ggml_commit``."""
    return (<bytes> ggml.ggml_commit()).decode()


def llama_version():
    """llama.cpp's own version, e.g. "0.5.0-dev". Wraps ``llama_version``."""
    return (<bytes> llama.llama_version()).decode()
