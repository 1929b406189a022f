"""LoRA adapters and control vectors (wraps ``llama_adapter_*``, ``llama_set_adapters_lora`` and ``…_cvec``)."""

import errno
import os
import weakref

import numpy as np

cimport cython
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.stdio cimport FILE
from libc.stdlib cimport free, malloc

from pyllm import errors
from pyllm.core.introspection import not_pickled, signature
from pyllm.core cimport error, guard, log
from pyllm.core.arguments cimport c_text, int32, number
from pyllm.core.context cimport Context
from pyllm.core.model cimport Model
from pyllm.core.streams cimport Stream, open_stream
from pyllm.includes cimport ggml, gguf
from pyllm.includes cimport llama as lib

# Types that no matrix multiplication knows: llama.cpp would load them and die computing.
cdef frozenset NO_WEIGHTS = frozenset((
    <int> ggml.GGML_TYPE_I8, <int> ggml.GGML_TYPE_I16, <int> ggml.GGML_TYPE_I32, <int> ggml.GGML_TYPE_I64,
    <int> ggml.GGML_TYPE_F64,
))


@cython.no_gc_clear
cdef class LoraAdapter:
    """A LoRA adapter in memory, for one model; any number of contexts can use it at once.

    Put it to use with :meth:`pyllm.core.context.Context.set_adapters`. Close it with :meth:`close` or a ``with``
    block; closing takes it out of the contexts that use it first. Closing the model closes it too.

    Args:
        model: The model it was trained for.
        path: The GGUF file, or a binary file object that is open on a real file; it is read from where it stands,
            and stands there again afterwards.

    Raises:
        FileNotFoundError: There is no such file.
        AdapterError: It is no LoRA adapter, is damaged, or is not for this model; ``.log`` holds llama.cpp's words.

    Wraps ``llama_adapter_lora_init`` and ``llama_adapter_lora_init_from_file_ptr``.

    Example:
        >>> adapter = LoraAdapter(model, "style.gguf")
        >>> ctx.set_adapters({adapter: 0.8})
    """

    __reduce__ = not_pickled("it belongs to a loaded model; pickle its path, and load it there")
    __signature__ = signature

    def __cinit__(self, Model model not None, path):
        cdef Stream stream = None
        cdef FILE * c_file
        cdef lib.llama_model * c_model
        cdef const char * c_path
        self.ptr = NULL
        self.model = model
        self.contexts = weakref.WeakSet()
        model.require()
        if model.vocab_only or model.no_alloc:
            raise errors.AdapterError("the model was loaded without weights: no adapter can be put on it")
        encoded = None
        if hasattr(path, "fileno"):
            self.path = str(getattr(path, "name", "a file"))
        else:
            encoded = os.fsencode(path)
            self.path = os.fsdecode(encoded)
            c_text(encoded, "the path")
            if not os.path.exists(encoded):
                raise errors.ModelNotFoundError(errno.ENOENT, f"there is no adapter file {self.path!r}", self.path)
        log.refresh()
        c_model = model.use()
        try:
            if encoded is None:
                stream = open_stream(path)
                _check_file(gguf.gguf_init_from_file_ptr(stream.ptr, _no_tensors()), self.path)
                stream.rewind()
                c_file = stream.ptr
                with nogil:
                    self.ptr = lib.llama_adapter_lora_init_from_file_ptr(c_model, c_file)
            else:
                c_path = encoded
                _check_file(gguf.gguf_init_from_file(c_path, _no_tensors()), self.path)
                with nogil:
                    self.ptr = lib.llama_adapter_lora_init(c_model, c_path)
            if model.connections is not None:
                model.connections.check(
                    errors.AdapterError, f"{self.path!r} was not loaded", "llama_adapter_lora_init"
                )
            error.not_null(
                self.ptr, "llama_adapter_lora_init", errors.AdapterError,
                f"{self.path!r} could not be loaded as a LoRA adapter for {model.path!r}",
            )
            model._register_adapter(self)
            self._check_tokens()
        except BaseException:
            if self.ptr != NULL:
                lib.llama_adapter_lora_free(self.ptr)  # now, while the model is still there
                self.ptr = NULL
            raise
        finally:
            if stream is not None:
                stream.close()
            model.done()

    def _check_tokens(self):
        tokens = self.alora_tokens
        if tokens and not (min(tokens) >= 0 and max(tokens) < self.model.n_vocab):
            raise errors.AdapterError(
                f"{self.path!r} is damaged: its invocation tokens are {tokens}, "
                f"and the vocabulary has {self.model.n_vocab}"
            )

    def __dealloc__(self):
        # No context uses it: they hold those that they use.
        cdef lib.llama_adapter_lora * ptr = self.ptr
        self.ptr = NULL
        if ptr != NULL and self.model is not None and self.model.ptr != NULL:
            guard.set_quiet(True)
            lib.llama_adapter_lora_free(ptr)
            guard.set_quiet(False)

    cdef lib.llama_adapter_lora * require(self) except NULL:
        if self.ptr == NULL:
            raise errors.ClosedError(f"the adapter {self.path!r} has been closed")
        guard.enter()
        return self.ptr

    def close(self):
        """Free the adapter. Contexts that use it go on without it. Closing twice is allowed.

        Wraps ``llama_adapter_lora_free``.
        """
        cdef lib.llama_adapter_lora * ptr = self.ptr
        # From here on nobody can put it to use any more.
        self.ptr = NULL
        if ptr == NULL:
            return
        try:
            for context in list(self.contexts):
                if not context._abandon() and not context.closed:
                    context._remove_adapter(self)
        except BaseException:
            self.ptr = ptr
            raise
        guard.enter()
        lib.llama_adapter_lora_free(ptr)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    @property
    def closed(self):
        """True after :meth:`close`."""
        return self.ptr == NULL

    @property
    def address(self):
        """Address of the ``llama_adapter_lora`` (int), for code that speaks C."""
        return <uintptr_t> self.require()

    @property
    def metadata(self):
        """The scalar metadata of the file (dict of str to str).

        Wraps ``llama_adapter_meta_count``, ``llama_adapter_meta_key_by_index`` and
        ``llama_adapter_meta_val_str_by_index``.
        """
        cdef lib.llama_adapter_lora * ptr = self.require()
        cdef int32_t i, n
        cdef char * buffer
        result = {}
        for i in range(lib.llama_adapter_meta_count(ptr)):
            pair = []
            for key in (True, False):
                n = (
                    lib.llama_adapter_meta_key_by_index(ptr, i, NULL, 0) if key
                    else lib.llama_adapter_meta_val_str_by_index(ptr, i, NULL, 0)
                )
                value = bytearray(max(n, 0) + 1)
                buffer = value
                if key:
                    lib.llama_adapter_meta_key_by_index(ptr, i, buffer, n + 1)
                else:
                    lib.llama_adapter_meta_val_str_by_index(ptr, i, buffer, n + 1)
                pair.append(bytes(value[:max(n, 0)]).decode("utf-8", "replace"))
            result[pair[0]] = pair[1]
        return result

    def meta(self, str key):
        """The metadata value of `key` as str, or None. Wraps ``llama_adapter_meta_val_str``."""
        cdef lib.llama_adapter_lora * ptr = self.require()
        encoded = c_text(key, "the key")
        cdef int32_t n = lib.llama_adapter_meta_val_str(ptr, encoded, NULL, 0)
        if n < 0:
            return None
        value = bytearray(n + 1)
        cdef char * buffer = value
        lib.llama_adapter_meta_val_str(ptr, encoded, buffer, n + 1)
        return bytes(value[:n]).decode("utf-8", "replace")

    @property
    def alora_tokens(self):
        """The tokens that switch an activated LoRA on (list of int); empty for an ordinary one.

        Wraps ``llama_adapter_get_alora_n_invocation_tokens`` and ``llama_adapter_get_alora_invocation_tokens``.
        """
        cdef lib.llama_adapter_lora * ptr = self.require()
        cdef const lib.llama_token * tokens = lib.llama_adapter_get_alora_invocation_tokens(ptr)
        cdef size_t i
        return [tokens[i] for i in range(lib.llama_adapter_get_alora_n_invocation_tokens(ptr))]

    def __repr__(self):
        return f"<LoraAdapter {self.path!r}{' (closed)' if self.ptr == NULL else ''}>"


cdef gguf.gguf_init_params _no_tensors() noexcept:
    cdef gguf.gguf_init_params params
    params.no_alloc = True
    params.ctx = NULL
    guard.enter()
    return params


cdef int _check_file(gguf.gguf_context * file, str path) except -1:
    """Refuse what llama.cpp would load and then die of; frees `file`."""
    cdef int64_t i
    error.not_null(file, "gguf_init_from_file", errors.AdapterError, f"{path!r} is not a well-formed GGUF file")
    try:
        thirds = {}
        for i in range(gguf.gguf_get_n_tensors(file)):
            kind = <int> gguf.gguf_get_tensor_type(file, i)
            name = (<bytes> gguf.gguf_get_tensor_name(file, i)).decode("utf-8", "replace")
            if kind in NO_WEIGHTS:
                type_name = (<bytes> ggml.ggml_type_name(<ggml.ggml_type> kind)).decode()
                raise errors.AdapterError(f"{path!r} is damaged: {name} is of type {type_name}")
            pair = name.removesuffix(".lora_a").removesuffix(".lora_b")
            shape = (gguf.gguf_get_tensor_ne(file, i)[2], gguf.gguf_get_tensor_ne(file, i)[3])
            if thirds.setdefault(pair, shape) != shape:
                raise errors.AdapterError(f"{path!r} is damaged: the two halves of {pair} do not fit each other")
    finally:
        gguf.gguf_free(file)
    return 0


cdef int apply_adapters(Context context, object adapters) except -1:
    cdef LoraAdapter adapter
    cdef size_t n, i
    cdef lib.llama_adapter_lora ** pointers
    cdef float * scales
    pairs = []
    for one, scale in list(adapters.items() if hasattr(adapters, "items") else adapters):
        if not isinstance(one, LoraAdapter):
            raise TypeError(f"adapters are LoraAdapter objects, not {type(one).__name__}")
        if any([one is other for other, _ in pairs]):
            raise errors.AdapterError(f"{one!r} is there twice; add up the scales")
        pairs.append((one, number(scale, "the scale of an adapter", -3.0e38, 3.0e38)))
    context.acquire()
    try:
        context.require()
        for one, _ in pairs:
            adapter = one
            adapter.require()
            if adapter.model is not context.model:
                raise errors.AdapterError(
                    f"{adapter!r} was loaded for {adapter.model!r}, and this context is of {context.model!r}"
                )
        n = len(pairs)
        pointers = <lib.llama_adapter_lora **> malloc((n + 1) * sizeof(void *))
        scales = <float *> malloc((n + 1) * sizeof(float))
        try:
            if pointers == NULL or scales == NULL:
                raise MemoryError()
            for i in range(n):
                adapter = pairs[i][0]
                pointers[i] = adapter.ptr
                scales[i] = pairs[i][1]
            # With the GIL from the check to here: a close() in another thread comes before or after.
            guard.enter()
            error.check(lib.llama_set_adapters_lora(context.ptr, pointers, n, scales), "llama_set_adapters_lora")
            for one, _ in pairs:
                (<LoraAdapter> one).contexts.add(context)
            context.adapters = tuple(pairs)
        finally:
            free(pointers)
            free(scales)
    finally:
        context.release()
    return 0


cdef int remove_adapter(Context context, LoraAdapter adapter) except -1:
    context.acquire()
    try:
        if context.ptr != NULL and any([one is adapter for one, _ in context.adapters]):
            apply_adapters(context, [(one, scale) for one, scale in context.adapters if one is not adapter])
    finally:
        context.release()
    return 0


cdef int apply_control_vector(Context context, object data, object il_start, object il_end) except -1:
    cdef int32_t first, last, n_layer, n_embd
    cdef const float[:, ::1] values
    cdef const float * c_values = NULL
    cdef size_t n = 0
    context.acquire()
    try:
        context.require()
        n_layer = lib.llama_model_n_layer(context.model.require())
        n_embd = lib.llama_model_n_embd(context.model.require())
        first = 1 if il_start is None else int32(il_start, "il_start")
        last = n_layer - 1 if il_end is None else int32(il_end, "il_end")
        if data is not None:
            if n_layer < 2:
                raise errors.AdapterError("a model of one layer takes no control vector: layer 0 has none")
            if not 1 <= first <= last < n_layer:
                raise errors.InvalidArgumentError(
                    f"a control vector goes to layers from 1 to {n_layer - 1}, not from {first} to {last}"
                )
            array = np.ascontiguousarray(data, np.float32)
            if array.shape != (n_layer - 1, n_embd):
                raise errors.AdapterError(
                    f"a control vector for this model has the shape {(n_layer - 1, n_embd)} "
                    f"(layers 1 to {n_layer - 1}), not {array.shape}"
                )
            if not np.isfinite(array).all():
                raise errors.AdapterError("the control vector has values that are NaN or infinite")
            values = array
            c_values = &values[0, 0]
            n = array.size
        with nogil:
            code = lib.llama_set_adapter_cvec(context.ptr, c_values, n, n_embd, first, last)
        error.check(code, "llama_set_adapter_cvec", errors.AdapterError, "llama.cpp refused the control vector")
        context.has_control_vector = data is not None
    finally:
        context.release()
    return 0
