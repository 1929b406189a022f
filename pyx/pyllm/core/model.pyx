"""A model file in memory (wraps ``llama_model``)."""

import errno
import math
import os
import secrets
import time
import weakref

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libcpp cimport bool

from pyllm import enums, errors
from pyllm.core cimport error, guard, log
from pyllm.core.arguments cimport c_text
from pyllm.core.load_params cimport LoadParams
from pyllm.core cimport rpc as _connections
from pyllm.core.model_source cimport (
    AddressSource, ArraySource, FileSource, ModelSource, SplitSource, check_tensor_types
)
from pyllm.includes cimport gguf
from pyllm.includes cimport llama as lib

from pyllm.core import backend as _backend
from pyllm.core import gguf as _gguf_module
from pyllm.core import vocab as _vocab_module
from pyllm.core.introspection import not_copied, signature

cdef class _Progress:
    """What the progress callback of a load needs."""

    cdef object callback
    cdef int64_t next_check


cdef bool on_progress(float progress, void * user_data) noexcept nogil:
    cdef bool go_on = False
    if guard.begin_python():
        go_on = ask_python(progress, user_data)
        guard.end_python()
    return go_on


cdef bool ask_python(float progress, void * user_data) noexcept with gil:
    self = <_Progress> user_data
    try:
        PyErr_CheckSignals()
        if self.callback is not None and self.callback(progress) is False:
            return False
        return True
    except BaseException as exception:
        error.stash(exception)
        return False


cdef class Model:
    """A model loaded from a GGUF file, shared freely between threads and contexts.

    Loading releases the GIL, can be interrupted with Ctrl-C, and reads from the page cache when the file is
    memory-mapped. Close it with :meth:`close` or a ``with`` block; contexts made from it are closed first. A model is
    pickled by its path and arguments, and loaded again where it is unpickled.

    Args:
        path: The GGUF file. Of a split model, the first part.
        n_gpu_layers: Layers to put on the GPU; -1 means all.
        split_mode: How to spread the model over several GPUs: "none", "layer", "row" or "tensor".
        main_gpu: The GPU to use when split_mode is "none".
        tensor_split: Proportion of the model for each GPU.
        devices: Names of the devices to use (see :func:`pyllm.core.backend.devices`); None means all.
        rpc: RPC servers that compute layers, "host:port" each, as a list or with commas between them. Their devices
            come before `devices`. See :mod:`pyllm.core.rpc`.
        load_mode: "auto", "none", "mmap", "mlock", "mmap_mlock" or "direct_io".
        lazy_mode: "off", "auto" or "on": rows of marked tensors are read on demand.
        kv_overrides: Metadata to replace, by key; values are int, float, bool or str.
        tensor_buft_overrides: Buffer types for tensors, by regular expression on the tensor's name.
        progress_callback: Called with a float from 0.0 to 1.0; returning False aborts the load. What it raises is
            raised from here.
        vocab_only: Load only the vocabulary: no weights, no contexts.
        check_tensors: Check the data of every tensor for NaN and invalid blocks.
        use_extra_bufts: Use buffer types that repack weights for speed.
        no_host: Bypass host buffers, so that extra buffers can be used.
        no_alloc: Load metadata and simulate allocations only: for memory estimates, not for decoding.
        load_mtp: Load the layers for multi-token prediction.

    Raises:
        ModelNotFoundError: There is no such file.
        ModelLoadError: llama.cpp could not load it; ``.log`` holds its own words.
        InvalidArgumentError: An argument is out of range.
        KeyboardInterrupt: Ctrl-C during the load.

    Wraps ``llama_model_load_from_file``.
    """

    __signature__ = signature
    __copy__ = __deepcopy__ = not_copied(
        "contexts and threads share one, so use the object itself; Model(model.path) loads the file again"
    )

    def __cinit__(
        self,
        path,
        *,
        n_gpu_layers=None,
        split_mode=None,
        main_gpu=None,
        tensor_split=None,
        devices=None,
        load_mode=None,
        lazy_mode=None,
        kv_overrides=None,
        tensor_buft_overrides=None,
        progress_callback=None,
        vocab_only=None,
        check_tensors=None,
        use_extra_bufts=None,
        no_host=None,
        no_alloc=None,
        load_mtp=None,
        rpc=None,
    ):
        self.ptr = NULL
        self.users.store(0)
        self.generation = guard.fork_generation()
        self.contexts = weakref.WeakSet()
        self.adapters = weakref.WeakSet()
        cdef ModelSource source = path if isinstance(path, ModelSource) else None
        cdef gguf.gguf_init_params init
        cdef const char * c_path = NULL
        encoded = b""
        if source is None:
            encoded = self._check_path(path)
            self.origin = os.path.abspath(self.path)
        else:
            self.path = source.name
            self.borrowed = isinstance(source, AddressSource)  # until from_address() knows better
            self.origin = source if isinstance(source, SplitSource) else None
        _backend.load_backends()

        self.arguments = dict(
            n_gpu_layers=n_gpu_layers, split_mode=split_mode, main_gpu=main_gpu, tensor_split=tensor_split,
            devices=devices, load_mode=load_mode, lazy_mode=lazy_mode, kv_overrides=kv_overrides,
            tensor_buft_overrides=tensor_buft_overrides, vocab_only=vocab_only, check_tensors=check_tensors,
            use_extra_bufts=use_extra_bufts, no_host=no_host, no_alloc=no_alloc, load_mtp=load_mtp, rpc=rpc,
        )
        params = LoadParams(**self.arguments)
        if progress_callback is not None and not callable(progress_callback):
            raise TypeError("progress_callback must be callable")
        progress = _Progress()
        progress.callback = progress_callback
        params.c.progress_callback = on_progress
        params.c.progress_callback_user_data = <void *> progress

        self.vocab_only = params.c.vocab_only
        self.no_alloc = params.c.no_alloc
        self.connections = params.connections
        cdef _connections.rpc_peers * peers = NULL
        if self.connections is not None:
            peers = self.connections.ptr
        log.refresh()
        guard.enter()
        self.extra_bufts = params.c.use_extra_bufts and not isinstance(source, ArraySource)
        _connections.begin(peers, NULL)
        try:
            if source is None:
                c_path = encoded
                with nogil:
                    guard.begin_native()
                    try:
                        self.ptr = lib.llama_model_load_from_file(c_path, params.c)
                    finally:
                        guard.end_native()
            else:
                self.ptr = source.load(&params.c)
        finally:
            _connections.end(peers)
        error.raise_stashed()
        if peers != NULL:
            self.connections.check(
                errors.ModelLoadError, f"{self.path!r} was not loaded", "llama_model_load_from_file"
            )
        error.not_null(
            self.ptr, "llama_model_load_from_file", errors.ModelLoadError,
            f"{self.path!r} could not be loaded as a model",
        )
        self._check_metadata()
        if source is None:
            init.no_alloc = True
            init.ctx = NULL
            check_tensor_types(gguf.gguf_init_from_file(c_path, init), self.path)
        else:
            source.check()

    @classmethod
    def from_splits(cls, paths, **arguments):
        """Load a model whose parts have names of your own; the constructor finds parts with the usual names.

        Args:
            paths: The parts, in order.
            **arguments: As for the constructor.

        Raises:
            ModelNotFoundError: A part is not there.
            ModelLoadError: The parts do not belong together.

        Wraps ``llama_model_load_from_splits``.
        """
        return cls(SplitSource(paths), **arguments)

    @classmethod
    def from_file(cls, file, **arguments):
        """Load a model from a file that is open, from the position at which it stands.

        So a model can be a part of a larger file; for memory mapping it must then begin at a multiple of 32 bytes.
        The file may be closed afterwards, and stands where it stood.

        Args:
            file: A binary file object on a real file, for example from ``open(path, "rb")``.
            **arguments: As for the constructor.

        Raises:
            InvalidArgumentError: C cannot read from this object, for example a BytesIO.
            ModelLoadError: There is no model.

        Wraps ``llama_model_load_from_file_ptr``.
        """
        return cls(FileSource(file), **arguments)

    @classmethod
    def from_arrays(cls, metadata, tensors, **arguments):
        """Make a model of metadata and arrays, without a file.

        Args:
            metadata: A dict as :attr:`pyllm.core.gguf.GGUFReader.metadata` gives it.
            tensors: A dict of name to array, in NumPy order, or to a pair of array and type, as
                :meth:`pyllm.core.gguf.GGUFWriter.add_tensor` takes them. They are copied. Biases that are not there
                are 0, scales and RoPE factors are 1, an output matrix that is not there is that of the embeddings.
            **arguments: As for the constructor.

        Raises:
            ModelLoadError: A tensor is missing, is not part of such a model, or has another shape.
            GGUFError: A value cannot be stored.

        Wraps ``llama_model_init_from_user``.
        """
        return cls(ArraySource(metadata, tensors), **arguments)

    @classmethod
    def from_address(cls, address, *, owned=False, owner=None, **arguments):
        """Wrap a model that C code has loaded with the llama.cpp of this process.

        Args:
            address: Address of the ``llama_model`` (int). It cannot be checked: any other address ends the process.
            owned: Free the model with the Python object. Else the caller frees it, after this object was closed and
                everything that was made of it.
            owner: An object that is kept alive as long as this one, for example the one that frees the model.
            **arguments: ``vocab_only`` and ``no_alloc``, if it was loaded so. Others mean nothing here.

        Raises:
            InvalidArgumentError: The address is NULL, or cannot be one.
        """
        unknown = set(arguments) - {"vocab_only", "no_alloc"}
        if unknown:
            raise errors.InvalidArgumentError(f"a model that is loaded already takes no {', '.join(sorted(unknown))}")
        self = <Model> cls(AddressSource(address), **arguments)
        self.borrowed = not owned
        self.owner = owner
        # Whether its weights were repacked is not known.
        self.extra_bufts = True
        return self

    def __reduce__(self):
        # Pickled by path and arguments: unpickling loads the file again. A progress_callback is left out.
        self.require()
        if self.origin is None:
            raise TypeError(
                f"a Model that was loaded from {self.path} cannot be pickled: there is no path to load it from again; "
                "save it with Model.save(), and load that file"
            )
        given = {name: value for name, value in self.arguments.items() if value is not None}
        return _load_again, (type(self), self.origin, given), getattr(self, "__dict__", None)

    def save(self, path):
        """Write the model as a GGUF file. A file that is there is replaced when the new one is complete.

        Args:
            path: Where to.

        Raises:
            ModelLoadError: The weights may be repacked for this processor; load with ``use_extra_bufts=False``.
            BackendAssertError: llama.cpp cannot save models of this architecture.
            OSError: The file could not be written.

        Wraps ``llama_model_save_to_file``.
        """
        cdef lib.llama_model * ptr = self.require()
        cdef const char * c_path
        if self.vocab_only or self.no_alloc:
            raise errors.ModelLoadError("the model was loaded without weights: there is nothing to save")
        if self.extra_bufts:
            raise errors.ModelLoadError(
                "weights of this model may be repacked for the processor and cannot be read back; "
                "load it with use_extra_bufts=False to save it"
            )
        target = os.path.realpath(os.fsdecode(path))
        temporary = os.path.join(os.path.dirname(target), f".pyllm-{secrets.token_hex(8)}.tmp")
        encoded = c_text(os.fsencode(temporary), "the path")
        c_path = encoded
        try:
            with open(temporary, "xb"):
                pass  # llama.cpp does not say when it cannot write: Python does
            ptr = self.use()
            try:
                with nogil:
                    lib.llama_model_save_to_file(ptr, c_path)
            finally:
                self.done()
            # The reader compares the end of the last tensor with the size of the file.
            _gguf_module.GGUFReader(temporary).close()
            os.replace(temporary, target)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)

    cdef int _check_metadata(self) except -1:
        """Refuse numbers that llama.cpp would only notice in a worker thread, where nothing can be caught."""
        for key, text in self.metadata.items():
            if not key.endswith("_epsilon"):
                continue
            try:
                value = float(text)
            except ValueError:
                continue
            if not 0 <= value < math.inf:
                raise errors.ModelLoadError(f"{self.path!r} is damaged: {key} is {text}, and must be a number >= 0")
        return 0

    cdef bytes _check_path(self, path):
        encoded = os.fsencode(path)
        self.path = os.fsdecode(encoded)
        if b"\0" in encoded:
            raise errors.InvalidArgumentError(f"the path {self.path!r} contains a NUL character")
        try:
            with open(encoded, "rb") as file:
                magic = file.read(4)
        except FileNotFoundError:
            raise errors.ModelNotFoundError(
                errno.ENOENT, f"there is no model file {self.path!r}", self.path
            ) from None
        except OSError as cause:
            raise errors.ModelLoadError(
                cause.errno, f"the model file {self.path!r} cannot be read: {cause.strerror}", self.path
            ) from cause
        if magic != b"GGUF":
            raise errors.ModelLoadError(
                f"{self.path!r} is not a GGUF file: it begins with {magic!r} instead of b'GGUF'",
                log=(f"invalid magic characters: {magic!r}, expected b'GGUF'",),
            )
        return encoded

    def __dealloc__(self):
        cdef lib.llama_model * ptr = self.ptr
        self.ptr = NULL
        if ptr != NULL and not self.borrowed:
            guard.set_quiet(True)
            lib.llama_model_free(ptr)
            guard.set_quiet(False)

    cdef lib.llama_model * require(self) except NULL:
        if self.ptr == NULL:
            raise errors.ClosedError(f"the model {self.path!r} has been closed")
        guard.enter()
        return self.ptr

    cdef lib.llama_model * use(self) except NULL:
        cdef lib.llama_model * ptr = self.require()
        if self.generation != guard.fork_generation():
            self.generation = guard.fork_generation()
            self.users.store(0)  # those were threads of the parent
        self.users.fetch_add(1)
        return ptr

    cdef void done(self) noexcept:
        self.users.fetch_sub(1)
        guard.leave()

    def close(self):
        """Free the model, its contexts first. Closing twice is allowed.

        Arrays on outputs of its contexts stay as they are; see :meth:`pyllm.core.context.Context.close`.
        """
        cdef lib.llama_model * ptr
        contexts = [context for context in self.contexts if not context._abandon()]
        held = []
        try:
            for context in contexts:
                context._hold()
                held.append(context)
            # From here to the next line no other thread runs: there is one who frees it.
            ptr = self.ptr
            self.ptr = NULL
            for context in contexts:
                context.close()
        finally:
            for context in held:
                context._let_go()
        if ptr == NULL:
            return
        # Whoever is inside a call on this model; a context that is being made finds the model closed and gives up.
        while self.generation == guard.fork_generation() and self.users.load() > 0:
            time.sleep(0.0005)
        try:
            # Those that were made between the first look and now.
            for context in [context for context in self.contexts if not context.closed]:
                context.close()
            for adapter in list(self.adapters):
                adapter.close()
        except BaseException:
            self.ptr = ptr
            raise
        if not self.borrowed:
            with nogil:
                lib.llama_model_free(ptr)
        if self.connections is not None:
            self.connections.release()
        self.owner = None

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        if self.ptr == NULL:
            return f"<Model {self.path!r} (closed)>"
        return f"<Model {self.path!r}: {self.description}>"

    def _register(self, context):
        self.contexts.add(context)
        self.require()  # close() may have looked before this one was there

    def _register_adapter(self, adapter):
        self.adapters.add(adapter)
        self.require()

    @property
    def closed(self):
        """True after :meth:`close`."""
        return self.ptr == NULL

    @property
    def address(self):
        """Address of the ``llama_model`` (int), for code that speaks C."""
        return <uintptr_t> self.require()

    @property
    def vocab(self):
        """The tokenizer (:class:`pyllm.core.vocab.Vocab`). Wraps ``llama_model_get_vocab``."""
        self.require()
        vocab = self._vocab() if self._vocab is not None else None
        if vocab is None:
            vocab = _vocab_module.Vocab(self)
            self._vocab = weakref.ref(vocab)  # weak: the vocabulary holds the model
        return vocab

    @property
    def description(self):
        """Type, size and quantization in one line. Wraps ``llama_model_desc``."""
        cdef char buffer[256]
        cdef int32_t n = lib.llama_model_desc(self.require(), buffer, sizeof(buffer))
        return buffer[:min(max(n, 0), 255)].decode("utf-8", "replace")

    @property
    def metadata(self):
        """The scalar metadata of the file as a dict of str to str. Arrays are left out.

        :class:`pyllm.core.gguf.GGUFReader` gives all of it with types.
        Wraps ``llama_model_meta_key_by_index`` and ``llama_model_meta_val_str_by_index``.
        """
        cdef lib.llama_model * ptr = self.require()
        cdef int32_t i
        result = {}
        for i in range(lib.llama_model_meta_count(ptr)):
            key = _meta_text(ptr, i, True)
            if key is not None:
                result[key] = _meta_text(ptr, i, False)
        return result

    def meta(self, str key):
        """The metadata value of `key` as str, or None. Wraps ``llama_model_meta_val_str``."""
        cdef lib.llama_model * ptr = self.require()
        encoded = c_text(key, "the key")
        cdef int32_t n = lib.llama_model_meta_val_str(ptr, encoded, NULL, 0)
        if n < 0:
            return None
        value = bytearray(n + 1)
        cdef char * buffer = value
        lib.llama_model_meta_val_str(ptr, encoded, buffer, n + 1)
        return bytes(value[:n]).decode("utf-8", "replace")

    @property
    def sampling_metadata(self):
        """What the file recommends for sampling: a dict of str to str, e.g. ``{"temp": "0.6"}``; often empty.

        Wraps ``llama_model_meta_key_str``.
        """
        cdef const char * name
        cdef int key
        result = {}
        for key in range(lib.LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT_ETA + 1):
            name = lib.llama_model_meta_key_str(<lib.llama_model_meta_key> key)
            value = None if name == NULL else self.meta((<bytes> name).decode())
            if value is not None:
                result[(<bytes> name).decode().removeprefix("general.sampling.")] = value
        return result

    def chat_template(self, name=None):
        """The chat template with that name (None: the default one) as str, or None.

        Wraps ``llama_model_chat_template``.
        """
        cdef lib.llama_model * ptr = self.require()
        cdef const char * text
        if name is None:
            text = lib.llama_model_chat_template(ptr, NULL)
        else:
            encoded = c_text(name, "the name")
            text = lib.llama_model_chat_template(ptr, encoded)
        return None if text == NULL else (<bytes> text).decode("utf-8", "replace")

    @property
    def size(self):
        """Size of all tensors in bytes (int). Wraps ``llama_model_size``."""
        return lib.llama_model_size(self.require())

    @property
    def n_params(self):
        """Number of parameters (int). Wraps ``llama_model_n_params``."""
        return lib.llama_model_n_params(self.require())

    @property
    def ftype(self):
        """The quantization of the file as text, e.g. "Q4_1". Wraps ``llama_model_ftype`` and ``llama_ftype_name``."""
        cdef const char * name = lib.llama_ftype_name(lib.llama_model_ftype(self.require()))
        return "unknown" if name == NULL else (<bytes> name).decode()

    @property
    def n_vocab(self):
        """Number of tokens in the vocabulary (int). Wraps ``llama_vocab_n_tokens``."""
        return lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.require()))

    @property
    def n_ctx_train(self):
        """Context length the model was trained with, in tokens. Wraps ``llama_model_n_ctx_train``."""
        return lib.llama_model_n_ctx_train(self.require())

    @property
    def n_embd(self):
        """Width of the residual stream. Wraps ``llama_model_n_embd``."""
        return lib.llama_model_n_embd(self.require())

    @property
    def n_embd_inp(self):
        """Width of an embedding given as input. Wraps ``llama_model_n_embd_inp``."""
        return lib.llama_model_n_embd_inp(self.require())

    @property
    def n_embd_out(self):
        """Width of an embedding in the output. Wraps ``llama_model_n_embd_out``."""
        return lib.llama_model_n_embd_out(self.require())

    @property
    def n_layer(self):
        """Number of layers. Wraps ``llama_model_n_layer``."""
        return lib.llama_model_n_layer(self.require())

    @property
    def n_layer_nextn(self):
        """Number of layers for multi-token prediction. Wraps ``llama_model_n_layer_nextn``."""
        return lib.llama_model_n_layer_nextn(self.require())

    @property
    def n_head(self):
        """Number of attention heads. Wraps ``llama_model_n_head``."""
        return lib.llama_model_n_head(self.require())

    @property
    def n_head_kv(self):
        """Number of key and value heads. Wraps ``llama_model_n_head_kv``."""
        return lib.llama_model_n_head_kv(self.require())

    @property
    def n_swa(self):
        """Width of the sliding attention window in tokens, 0 without one. Wraps ``llama_model_n_swa``."""
        return lib.llama_model_n_swa(self.require())

    @property
    def rope_type(self):
        """How positions are rotated (:class:`pyllm.enums.RopeType`). Wraps ``llama_model_rope_type``."""
        return enums.RopeType(<int> lib.llama_model_rope_type(self.require()))

    @property
    def rope_freq_scale_train(self):
        """RoPE frequency scale of the training. Wraps ``llama_model_rope_freq_scale_train``."""
        return lib.llama_model_rope_freq_scale_train(self.require())

    @property
    def has_encoder(self):
        """True when the model needs ``Context.encode``. Wraps ``llama_model_has_encoder``."""
        return lib.llama_model_has_encoder(self.require())

    @property
    def has_decoder(self):
        """True when the model can decode. Wraps ``llama_model_has_decoder``."""
        return lib.llama_model_has_decoder(self.require())

    @property
    def decoder_start_token(self):
        """The token an encoder-decoder model starts its output with, or None.

        Wraps ``llama_model_decoder_start_token``.
        """
        token = lib.llama_model_decoder_start_token(self.require())
        return None if token == lib.LLAMA_TOKEN_NULL else token

    @property
    def is_recurrent(self):
        """True for Mamba, RWKV and the like. Wraps ``llama_model_is_recurrent``."""
        return lib.llama_model_is_recurrent(self.require())

    @property
    def is_hybrid(self):
        """True where attention and recurrent layers mix. Wraps ``llama_model_is_hybrid``."""
        return lib.llama_model_is_hybrid(self.require())

    @property
    def is_diffusion(self):
        """True for diffusion language models. Wraps ``llama_model_is_diffusion``."""
        return lib.llama_model_is_diffusion(self.require())

    @property
    def cls_labels(self):
        """Labels of a classifier's outputs (list of str or None), empty for other models.

        Wraps ``llama_model_n_cls_out`` and ``llama_model_cls_label``.
        """
        cdef lib.llama_model * ptr = self.require()
        cdef const char * label
        labels = []
        for i in range(lib.llama_model_n_cls_out(ptr)):
            label = lib.llama_model_cls_label(ptr, i)
            labels.append(None if label == NULL else (<bytes> label).decode("utf-8", "replace"))
        return labels if any(label is not None for label in labels) else []


cdef str _meta_text(lib.llama_model * ptr, int32_t i, bint key):
    """Key or value of the i-th metadata entry, however long it is."""
    cdef int32_t n
    if key:
        n = lib.llama_model_meta_key_by_index(ptr, i, NULL, 0)
    else:
        n = lib.llama_model_meta_val_str_by_index(ptr, i, NULL, 0)
    if n < 0:
        return None
    value = bytearray(n + 1)
    cdef char * buffer = value
    if key:
        lib.llama_model_meta_key_by_index(ptr, i, buffer, n + 1)
    else:
        lib.llama_model_meta_val_str_by_index(ptr, i, buffer, n + 1)
    return bytes(value[:n]).decode("utf-8", "replace")


def _load_again(cls, origin, arguments):
    return cls(origin, **arguments)
