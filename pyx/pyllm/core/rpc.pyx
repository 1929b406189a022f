"""Devices of RPC servers, and the server itself (wraps ``ggml_backend_rpc_add_server`` and ``…_start_server``).

A server (``pyllm rpc-server``) offers the devices of its machine. Once :func:`add_server` knows it, they have names
like those here, and a model goes to them that names them or their server: ``Model(path, rpc=["host:port"])``. Other
models do not: the devices are not among the default ones.

A server that is lost is an error in the call that needed it, and in all later ones of that model. Closing the model
works, and a model that is loaded afterwards connects anew.
"""

import os
import threading

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uintptr_t
from libcpp cimport bool
from libcpp.vector cimport vector

from pyllm import errors
from pyllm.core cimport error, guard
from pyllm.core.arguments cimport c_text, int32
from pyllm.includes cimport ggml_backend as lib
from pyllm.includes._translate cimport translate

from pyllm.core import backend as _backend
from pyllm.core.introspection import not_pickled, signature

cdef extern from "rpc_api.h" nogil:
    ctypedef struct pyllm_rpc_peer:
        pass
    ctypedef struct pyllm_rpc_api:
        pyllm_rpc_peer * (*peer)(const char * endpoint) noexcept
        int64_t (*connection)(const pyllm_rpc_peer * peer) noexcept
        int64_t (*lost)(const pyllm_rpc_peer * peer) noexcept
        void (*reason)(pyllm_rpc_peer * peer, char * text, size_t size) noexcept
        void (*give_up)(pyllm_rpc_peer * peer, int milliseconds) noexcept
        void (*set_hook)(bool (*hook)() noexcept) noexcept
        void (*set_timeouts)(int connect_ms, int answer_ms) noexcept
        void (*start)() noexcept
        void (*stop)() noexcept
        bool (*listening)() noexcept
        void (*listen_error)(char * text, size_t size) noexcept


cdef extern from "rpc.hpp" namespace "pyllm" nogil:
    cdef cppclass one "pyllm::rpc_peers::one":
        pyllm_rpc_peer * peer
        int64_t connection
    cdef cppclass peers_struct "pyllm::rpc_peers":
        const pyllm_rpc_api * api
        vector[one] all
        int first_lost() noexcept
        void give_up(int milliseconds) noexcept
    cdef cppclass atomic_bool "const std::atomic<bool>":
        pass
    void begin_rpc(peers_struct * peers, atomic_bool * abort) noexcept
    bool end_rpc() noexcept
    bool on_wait() noexcept
    bool (*has_signal)() noexcept
    bool (*c_is_finalizing "pyllm::is_finalizing")() noexcept
    const pyllm_rpc_api * find_rpc_api(const char * path)

ctypedef lib.ggml_backend_reg_t (*add_server_t)(const char * endpoint) except +translate nogil
ctypedef void (*start_server_t)(
    const char * endpoint, const char * cache_dir, size_t n_threads, size_t n_devices, lib.ggml_backend_dev_t * devices
) except +translate nogil

has_signal = signal_raised
c_is_finalizing = guard.is_finalizing

_DEFAULT_TIMEOUT = 600
_CONNECT_TIMEOUT = 3

cdef const pyllm_rpc_api * _api = NULL
cdef dict _devices = {}  # name -> (address of the device, endpoint)
cdef dict _servers = {}  # endpoint -> names of its devices
_lock = threading.Lock()
_serving = threading.Lock()


cdef bool signal_raised() noexcept nogil:
    cdef bool raised = False
    if guard.is_main_thread() and guard.begin_python():
        raised = _check_signals()
        guard.end_python()
    return raised


cdef bool _check_signals() noexcept with gil:
    try:
        PyErr_CheckSignals()
        return False
    except BaseException as exception:
        error.stash(exception)
        return True


cdef void begin(rpc_peers * peers, void * abort) noexcept nogil:
    if peers != NULL:
        begin_rpc(<peers_struct *> peers, <atomic_bool *> abort)


cdef bool end(rpc_peers * peers) noexcept nogil:
    return peers != NULL and end_rpc()


cdef bint is_lost(rpc_peers * peers) noexcept nogil:
    return peers != NULL and (<peers_struct *> peers).first_lost() >= 0


cdef lib.ggml_backend_reg_t _module() except NULL:
    """The RPC backend, with `_api` set."""
    global _api
    _backend.load_backends()
    cdef lib.ggml_backend_reg_t module = lib.ggml_backend_reg_by_name(b"RPC")
    if module == NULL:
        raise errors.BackendError(
            "there is no RPC backend: install pyllm-rpc of this version, as `pip install pyllm[rpc]` does; from the "
            "sources: `PYLLM_BACKEND=rpc pip wheel --no-deps -w dist .`"
        )
    cdef int answer
    if _api == NULL:
        answer = _answer_timeout()
        path = next((found.path for found in _backend.backends() if found.name == "RPC"), "")
        encoded = c_text(path, "the path")
        _api = find_rpc_api(encoded)
        if _api == NULL:
            raise errors.BackendError(
                f"the RPC backend {path!r} was not built by pyllm: a server that is lost would end the process"
            )
        _api.set_timeouts(_CONNECT_TIMEOUT * 1000, answer * 1000)
        _api.set_hook(on_wait)
    return module


cdef int _answer_timeout() except -1:
    text = os.environ.get("PYLLM_RPC_TIMEOUT", str(_DEFAULT_TIMEOUT))
    if not text.isdecimal() or not 1 <= int(text) <= 86400:
        raise errors.InvalidArgumentError(f"PYLLM_RPC_TIMEOUT must be seconds from 1 to 86400, not {text!r}")
    return int(text)


def parse_endpoints(servers):
    """Check the addresses of servers.

    Args:
        servers: "host:port", several with commas between them, or an iterable of such.

    Returns:
        list[str]: Each "host:port", without doubles.

    Raises:
        InvalidArgumentError: One of them is not an address.
    """
    items = servers.split(",") if isinstance(servers, str) else list(servers)
    result = []
    for item in items:
        if not isinstance(item, str):
            raise errors.InvalidArgumentError(f"an RPC server is a text such as 'host:50052', not {item!r}")
        host, _, port = item.strip().rpartition(":")
        if not host or any([char.isspace() or char in ":/@[]\0" for char in host]) or not (
            port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535
        ):
            raise errors.InvalidArgumentError(
                f"{item!r} is not the address of an RPC server: it is 'host:port', such as '192.168.0.5:50052' "
                "(an IPv6 address by its name)"
            )
        endpoint = f"{host}:{int(port)}"
        if endpoint not in result:
            result.append(endpoint)
    if not result:
        raise errors.InvalidArgumentError("rpc names no server")
    return result


def add_server(endpoint):
    """Connect to a server and learn its devices. Of a server that is known, the names come back at once.

    Args:
        endpoint: "host:port".

    Returns:
        tuple[str, ...]: Names of its devices, for ``Model(devices=[...])``.

    Raises:
        BackendError: The server cannot be reached, is of another version, or there is no RPC backend.
        InvalidArgumentError: This is no address.

    Wraps ``ggml_backend_rpc_add_server``.
    """
    cdef lib.ggml_backend_reg_t module, server
    cdef lib.ggml_backend_dev_t device
    cdef add_server_t function
    cdef pyllm_rpc_peer * peer
    cdef size_t i
    (endpoint,) = parse_endpoints([endpoint])
    module = _module()
    encoded = c_text(endpoint, "the address of an RPC server")
    cdef const char * c_endpoint = encoded
    with _lock:
        if endpoint in _servers:
            return _servers[endpoint]
        function = <add_server_t> lib.ggml_backend_reg_get_proc_address(module, b"ggml_backend_rpc_add_server")
        if function == NULL:
            raise errors.BackendError("the RPC backend has no ggml_backend_rpc_add_server")
        peer = _api.peer(c_endpoint)
        names = []
        try:
            guard.enter()
            with nogil:
                begin_rpc(NULL, NULL)
                server = function(c_endpoint)
            error.raise_stashed()
            if server == NULL:
                raise _unreachable(endpoint, "it has no devices")
            for i in range(lib.ggml_backend_reg_dev_count(server)):
                device = lib.ggml_backend_reg_dev_get(server, i)
                # What is constant is asked now: another answer later, from a server that is lost, would be kept.
                lib.ggml_backend_dev_buffer_type(device)
                names.append(((<bytes> lib.ggml_backend_dev_name(device)).decode(), <uintptr_t> device))
        except errors.BackendAssertError:
            raise _unreachable(endpoint, _reason(peer)) from None
        finally:
            end_rpc()
            guard.leave()
        if _api.lost(peer) >= _api.connection(peer):
            raise _unreachable(endpoint, _reason(peer))
        for name, address in names:
            _devices[name] = (address, endpoint)
        _servers[endpoint] = tuple([name for name, _ in names])
        return _servers[endpoint]


cdef _unreachable(endpoint, reason):
    return errors.BackendError(
        f"the RPC server {endpoint} cannot be used: {reason}", function="ggml_backend_rpc_add_server",
        log=guard.take_log(),
    )


cdef str _reason(pyllm_rpc_peer * peer):
    cdef char text[512]
    _api.reason(peer, text, sizeof(text))
    return (<bytes> text).decode("utf-8", "replace")


def device_names(servers, devices=None):
    """The devices of a model that goes to RPC servers: theirs first, which saves copies, then those here.

    Args:
        servers: As for :func:`parse_endpoints`.
        devices: Names of devices here; None means those that a model goes to by default.

    Returns:
        list[str]: Names for ``Model(devices=...)``.

    Raises:
        BackendError: A server cannot be used.
    """
    result = []
    for endpoint in parse_endpoints(servers):
        result += add_server(endpoint)
    if devices is not None:
        return result + [name for name in devices if getattr(name, "name", name) not in result]
    local = [device for device in _backend.devices() if device.name not in _devices]
    # As llama.cpp chooses: processors' own GPUs only where there are no others.
    gpus = [device for device in local if device.type == "gpu"]
    return result + [device.name for device in gpus or [device for device in local if device.type == "igpu"]]


def known_devices():
    """Devices of the servers that were added (dict of name to address of the device and "host:port")."""
    return dict(_devices)


cdef lib.ggml_backend_dev_t find_device(name) except? NULL:
    found = _devices.get(name)
    if found is None:
        return NULL
    return <lib.ggml_backend_dev_t> <void *> <uintptr_t> found[0]


cdef Connections connect(list names):
    remote = [name for name in names if name in _devices]
    return Connections(remote) if remote else None


cdef class Connections:
    __reduce__ = not_pickled("it is a model's open connections; load the model again there")
    __signature__ = signature

    def __cinit__(self, list names):
        cdef lib.ggml_backend_t backend
        cdef lib.ggml_backend_dev_t device
        cdef peers_struct * peers = new peers_struct()
        cdef one each
        self.ptr = <rpc_peers *> peers
        self.endpoints = []
        self.backends = []
        peers.api = _api
        for name in names:
            endpoint = _devices[name][1]
            device = find_device(name)
            encoded = c_text(endpoint, "the address of an RPC server")
            each.peer = _api.peer(encoded)
            try:
                guard.enter()
                with nogil:
                    begin_rpc(NULL, NULL)
                    backend = lib.ggml_backend_dev_init(device, NULL)
                error.raise_stashed()
            except errors.BackendAssertError:
                raise _unreachable(endpoint, _reason(each.peer)) from None
            finally:
                end_rpc()
            self.backends.append(<uintptr_t> backend)
            if endpoint not in self.endpoints:
                each.connection = _api.connection(each.peer)
                peers.all.push_back(each)
                self.endpoints.append(endpoint)
                if peers.first_lost() >= 0:
                    raise _unreachable(
                        endpoint, f"the connection was lost ({_reason(each.peer)}), and a model still uses it; close it"
                    )

    def __dealloc__(self):
        cdef peers_struct * peers = <peers_struct *> self.ptr
        self.release()
        del peers

    cdef void release(self) noexcept:
        cdef lib.ggml_backend_t backend
        if self.backends is None:
            return
        while self.backends:
            backend = <lib.ggml_backend_t> <void *> <uintptr_t> self.backends.pop()
            with nogil:
                lib.ggml_backend_free(backend)

    cdef int check(self, object cls, str consequence, str function=None) except -1:
        cdef peers_struct * peers = <peers_struct *> self.ptr
        cdef int i = peers.first_lost()
        if i < 0:
            return 0
        error.raise_stashed()  # Ctrl-C while it was waited for
        return error.fail(
            cls, f"the RPC server {self.endpoints[i]} was lost: {_reason(peers.all[i].peer)}; {consequence}", function
        )


def serve(host="127.0.0.1", port=50052, *, devices=None, n_threads=None, cache_dir=None):
    """Offer devices of this machine to one client after the other, until :func:`stop_serving` is called.

    There is no authentication and no encryption, and a client can make the process do anything: never listen where
    others than your own programs can connect. The call does not see Ctrl-C: run it in a thread, as
    ``pyllm rpc-server`` does.

    Args:
        host: The address to listen at.
        port: The port.
        devices: Names of devices; None means the GPUs, or the CPU where there are none.
        n_threads: Threads of a CPU device; None means the processor's cores.
        cache_dir: A folder in which large tensors are kept, so that they are sent once; None keeps none.

    Raises:
        BackendError: The port is taken, the address is not one of this machine, or there is no RPC backend.
        InvalidArgumentError: There is no such device.
        BackendAssertError: A client sent what ggml cannot do. Serve again.

    Wraps ``ggml_backend_rpc_start_server``.
    """
    cdef lib.ggml_backend_reg_t module
    cdef start_server_t function
    cdef vector[lib.ggml_backend_dev_t] chosen
    cdef lib.ggml_backend_dev_t device
    cdef const char * c_endpoint
    cdef const char * c_cache = NULL
    cdef char text[512]
    cdef size_t c_threads = int32(n_threads or os.cpu_count() or 1, "n_threads")
    (endpoint,) = parse_endpoints([f"{host}:{port}"])
    module = _module()
    if devices is None:
        local = [found for found in _backend.devices() if found.name not in _devices]
        names = [found.name for found in local if found.type in ("gpu", "igpu")]
        names = names or [found.name for found in local if found.type == "cpu"]
    else:
        names = [getattr(name, "name", name) for name in devices]
    for name in names:
        encoded_name = c_text(name, "the name of a device")
        device = lib.ggml_backend_dev_by_name(encoded_name)
        if device == NULL:
            known = ", ".join([repr(found.name) for found in _backend.devices() if found.name not in _devices])
            raise errors.InvalidArgumentError(f"there is no device {name!r} here; there are: {known}")
        chosen.push_back(device)
    if chosen.empty():
        raise errors.InvalidArgumentError("devices is empty: a server needs one")
    encoded, encoded_cache = c_text(endpoint, "the address"), b""
    c_endpoint = encoded
    if cache_dir is not None:
        os.makedirs(cache_dir, exist_ok=True)
        encoded_cache = c_text(os.fsencode(cache_dir), "the folder")
        c_cache = encoded_cache
    function = <start_server_t> lib.ggml_backend_reg_get_proc_address(module, b"ggml_backend_rpc_start_server")
    if function == NULL:
        raise errors.BackendError("the RPC backend has no ggml_backend_rpc_start_server")
    if not _serving.acquire(blocking=False):
        raise errors.BackendError("this process runs an RPC server already")
    try:
        _api.start()
        guard.enter()
        with nogil:
            guard.begin_native()
            try:
                function(c_endpoint, c_cache, c_threads, chosen.size(), chosen.data())
            finally:
                guard.end_native()
                guard.leave()
        if not _api.listening():
            _api.listen_error(text, sizeof(text))
            raise errors.BackendError(
                f"cannot listen at {endpoint}: {(<bytes> text).decode('utf-8', 'replace')}",
                function="ggml_backend_rpc_start_server", log=guard.take_log(),
            )
    finally:
        _serving.release()


def stop_serving():
    """Let the server that runs in another thread close its connections and return. Takes no lock."""
    _module()
    _api.stop()


def is_listening():
    """Whether the server in another thread takes connections (bool)."""
    _module()
    return _api.listening()
