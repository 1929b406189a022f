"""Keyword arguments of a model load, turned into ``llama_model_params``.

The struct starts as ``llama_model_default_params()`` and only what the caller gave is changed.
"""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from pyllm import enums, errors
from pyllm.core.arguments cimport c_text, int32
from pyllm.core.rpc cimport connect, find_device
from pyllm.includes cimport ggml_backend
from pyllm.includes cimport llama as lib

from pyllm.core import backend as _backend
from pyllm.core import rpc as _rpc
from pyllm.core.text_limits import check_pattern
from pyllm.core.introspection import not_pickled, signature


cdef class LoadParams:
    """The parameters of a model load; owns every array the C struct points to."""

    __reduce__ = not_pickled("make it again from its arguments")
    __signature__ = signature

    def __cinit__(self):
        self.kv_overrides = NULL
        self.buft_overrides = NULL
        self.devices = NULL
        self.tensor_split = NULL
        self.keep = []
        self.c = lib.llama_model_default_params()

    def __init__(
        self, *, n_gpu_layers=None, split_mode=None, main_gpu=None, tensor_split=None, devices=None, load_mode=None,
        lazy_mode=None, kv_overrides=None, tensor_buft_overrides=None, vocab_only=None, check_tensors=None,
        use_extra_bufts=None, no_host=None, no_alloc=None, load_mtp=None, rpc=None,
    ):
        if n_gpu_layers is not None:
            self.c.n_gpu_layers = int32(n_gpu_layers, "n_gpu_layers")
        if split_mode is not None:
            self.c.split_mode = <lib.llama_split_mode> <int> enums.coerce(enums.SplitMode, split_mode, "split_mode")
        if load_mode is not None:
            self.c.load_mode = <lib.llama_load_mode> <int> enums.coerce(enums.LoadMode, load_mode, "load_mode")
        if lazy_mode is not None:
            self.c.lazy_mode = <lib.llama_lazy_mode> <int> enums.coerce(enums.LazyMode, lazy_mode, "lazy_mode")
        if main_gpu is not None:
            if main_gpu < 0:
                raise errors.InvalidArgumentError(f"main_gpu must be at least 0, not {main_gpu}")
            self.c.main_gpu = int32(main_gpu, "main_gpu")
        if vocab_only is not None:
            self.c.vocab_only = vocab_only
        if check_tensors is not None:
            self.c.check_tensors = check_tensors
        if use_extra_bufts is not None:
            self.c.use_extra_bufts = use_extra_bufts
        if no_host is not None:
            self.c.no_host = no_host
        if no_alloc is not None:
            self.c.no_alloc = no_alloc
            if no_alloc and load_mode is None:
                self.c.load_mode = lib.LLAMA_LOAD_MODE_NONE
        if load_mtp is not None:
            self.c.load_mtp = load_mtp
        if tensor_split is not None:
            self._set_tensor_split([float(share) for share in tensor_split])
        if rpc is not None:
            devices = _rpc.device_names(rpc, devices)
        if devices is not None:
            self._set_devices(list(devices))
        if kv_overrides:
            self._set_kv_overrides(dict(kv_overrides))
        if tensor_buft_overrides:
            self._set_buft_overrides(dict(tensor_buft_overrides))

    def __dealloc__(self):
        free(self.kv_overrides)
        free(self.buft_overrides)
        free(self.devices)
        free(self.tensor_split)

    cdef int _set_tensor_split(self, list shares) except -1:
        # llama.cpp always reads llama_max_devices() numbers.
        cdef Py_ssize_t n_max = lib.llama_max_devices()
        if len(shares) > n_max or not all([share >= 0 for share in shares]):
            raise errors.InvalidArgumentError(f"tensor_split takes up to {n_max} numbers >= 0, not {shares}")
        self.tensor_split = <float *> calloc(n_max, sizeof(float))
        if self.tensor_split == NULL:
            raise MemoryError()
        for i, share in enumerate(shares):
            self.tensor_split[i] = share
        self.c.tensor_split = self.tensor_split

    cdef int _set_devices(self, list names) except -1:
        _backend.load_backends()
        self.devices = <void **> calloc(len(names) + 1, sizeof(void *))
        if self.devices == NULL:
            raise MemoryError()
        cdef ggml_backend.ggml_backend_dev_t device
        names = [getattr(name, "name", name) for name in names]
        for i, name in enumerate(names):
            encoded = c_text(name, "the name of a device")
            device = find_device(name)
            if device == NULL:
                device = ggml_backend.ggml_backend_dev_by_name(encoded)
            if device == NULL:
                known = ", ".join([repr(known_device.name) for known_device in _backend.devices()])
                raise errors.InvalidArgumentError(f"there is no device {name!r}; there are: {known}")
            self.devices[i] = <void *> device
        self.c.devices = <ggml_backend.ggml_backend_dev_t *> self.devices
        self.connections = connect(names)

    cdef int _set_kv_overrides(self, dict overrides) except -1:
        self.kv_overrides = <lib.llama_model_kv_override *> calloc(
            len(overrides) + 1, sizeof(lib.llama_model_kv_override)
        )
        if self.kv_overrides == NULL:
            raise MemoryError()
        cdef lib.llama_model_kv_override * entry
        for i, (key, value) in enumerate(overrides.items()):
            entry = &self.kv_overrides[i]
            _copy_text(entry.key, key, "kv_overrides: the key")
            if isinstance(value, bool):
                entry.tag = lib.LLAMA_KV_OVERRIDE_TYPE_BOOL
                entry.val_bool = value
            elif isinstance(value, int):
                entry.tag = lib.LLAMA_KV_OVERRIDE_TYPE_INT
                entry.val_i64 = value
            elif isinstance(value, float):
                entry.tag = lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT
                entry.val_f64 = value
            elif isinstance(value, str):
                entry.tag = lib.LLAMA_KV_OVERRIDE_TYPE_STR
                _copy_text(entry.val_str, value, f"kv_overrides[{key!r}]")
            else:
                raise errors.InvalidArgumentError(
                    f"kv_overrides[{key!r}] must be int, float, bool or str, not {type(value).__name__}"
                )
        self.c.kv_overrides = self.kv_overrides

    cdef int _set_buft_overrides(self, dict overrides) except -1:
        cdef Py_ssize_t n_max = lib.llama_max_tensor_buft_overrides()
        if len(overrides) >= n_max:
            raise errors.InvalidArgumentError(f"tensor_buft_overrides takes fewer than {n_max} patterns")
        self.buft_overrides = <lib.llama_model_tensor_buft_override *> calloc(
            len(overrides) + 1, sizeof(lib.llama_model_tensor_buft_override)
        )
        if self.buft_overrides == NULL:
            raise MemoryError()
        cdef bytes pattern
        for i, (key, name) in enumerate(overrides.items()):
            pattern = c_text(key, "a pattern in tensor_buft_overrides")
            check_pattern(pattern, "a pattern in tensor_buft_overrides")
            self.keep.append(pattern)
            self.buft_overrides[i].pattern = pattern
            self.buft_overrides[i].buft = <ggml_backend.ggml_backend_buffer_type_t> <void *> <size_t> (
                _backend.buffer_type_address(name)
            )
        self.c.tensor_buft_overrides = self.buft_overrides


cdef int _copy_text(char * target, value, str what) except -1:
    """Copy text into one of the 128-byte fields of an override."""
    encoded = c_text(value, what)
    if len(encoded) > 127:
        raise errors.InvalidArgumentError(f"{what} is longer than 127 bytes: {value!r}")
    cdef char * source = encoded
    memcpy(target, source, len(encoded))
    return 0
