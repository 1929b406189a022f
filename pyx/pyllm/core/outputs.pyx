"""Logits and embeddings that know the decode they came from (wraps ``llama_get_logits``, ``llama_get_embeddings``)."""

import weakref

from libc.stdint cimport int32_t
from libc.string cimport memcpy

import numpy as np

from pyllm import errors
from pyllm.core cimport error
from pyllm.core.arguments cimport int32
from pyllm.core.batch cimport Batch
from pyllm.core.context cimport Context
from pyllm.core.view cimport View, make_view
from pyllm.includes cimport llama as lib


cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(object)

cdef extern from "outputs.hpp" namespace "pyllm" nogil:
    int32_t output_row(lib.llama_context * context, int32_t index)

# Code in C reads arrays without asking them. An array of this type is empty and nothing can be computed with it.
cdef object STALE = np.dtype([("stale outputs, read ctx.logits again", "V1")])

# ndarray's own, which the class below replaces.
cdef object as_type = np.ndarray.view
cdef object set_state = np.ndarray.__setstate__


cdef object live(outputs):
    """The rows as a plain array, without a copy.

    Raises:
        StaleLogitsError: There was a newer decode.
        ClosedError: The context was closed.
    """
    rows = outputs._rows
    if rows is not None:
        return rows
    if outputs._error is not None:
        cls, message = outputs._error
        raise cls(message)
    return as_type(outputs, np.ndarray)  # a copy or a part that NumPy made by itself


cdef object plain(value):
    """The same value with plain arrays in place of Outputs."""
    if isinstance(value, Outputs):
        return live(value)
    if type(value) is tuple or type(value) is list:
        return type(value)([plain(each) for each in value])
    if type(value) is dict:
        return {key: plain(each) for key, each in value.items()}
    return value


class _Checked(np.ndarray):
    """An array whose methods first ask whether its contents are still those that it stands for."""

    _rows = None          # the rows as a plain array; None once they are stale
    _error = None         # then the class and the message of what is raised
    _view = None          # keeps the memory for code in C that has its address
    _context = None       # weak: whose vocabulary the rows belong to
    _is_logits = False

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        out = kwargs.get("out", ())
        result = getattr(ufunc, method)(*plain(inputs), **plain(kwargs))
        return (out[0] if len(out) == 1 else out) if out else result

    def __array_function__(self, function, types, args, kwargs):
        return function(*plain(args), **plain(kwargs))

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        import torch  # it is there: it has called this

        def tensors(value):
            if isinstance(value, Outputs):
                return torch.from_numpy(live(value))
            if isinstance(value, (tuple, list)):
                return type(value)([tensors(each) for each in value])
            return value

        return function(*tensors(args), **{key: tensors(value) for key, value in (kwargs or {}).items()})


cdef object forward(name):
    # Of ndarray's methods; what they return is a plain array.
    def method(self, *args, **kwargs):
        return getattr(live(self), name)(*args, **kwargs)

    method.__name__ = name
    method.__qualname__ = f"Outputs.{name}"
    method.__doc__ = f"As :meth:`numpy.ndarray.{name}`; the result is a plain array."
    return method


cdef object forward_property(name):
    return property(lambda self: getattr(live(self), name), doc=f"As :attr:`numpy.ndarray.{name}`.")


for _name in dir(np.ndarray):
    if callable(getattr(np.ndarray, _name)) and not _name.startswith("__"):
        setattr(_Checked, _name, forward(_name))
for _name in ("__copy__", "__deepcopy__", "__reduce__", "__reduce_ex__", "__dlpack__", "__dlpack_device__"):
    setattr(_Checked, _name, forward(_name))
for _name in ("T", "mT", "flat", "real", "imag", "data"):
    if hasattr(np.ndarray, _name):
        setattr(_Checked, _name, forward_property(_name))


class Outputs(_Checked):
    """The output rows of one decode: a float32 array on llama.cpp's own buffer, shape (n_outputs, n_columns).

    It is a :class:`numpy.ndarray` that knows its decode. Indexing, methods and NumPy's functions give plain arrays;
    slices and rows show the same memory, without a copy and writable. After a newer decode the memory shows the new
    rows; this object then raises StaleLogitsError instead of handing them out as its own, and what code in C makes of
    it (``np.asarray``, ``memoryview``) is an empty array of a type that nothing can be computed with. A row or a slice
    that was taken before is plain memory and cannot know. ``.copy()`` keeps the values.

    Example:
        >>> row = ctx.logits[-1]
        >>> row[vocab.eos] = -np.inf  # the samplers will see it
    """

    def __new__(cls, *args, **kwargs):
        raise TypeError("Outputs are made by a Context: read Context.logits")

    def __getitem__(self, index):
        rows = self._rows
        if rows is None:
            rows = live(self)
        return rows[index]

    def __setitem__(self, index, value):
        live(self)[index] = plain(value)

    @property
    def address(self):
        """Address of the first element (int)."""
        return live(self).ctypes.data

    def copy(self, order="C"):
        """The values as an array of their own, shape (n_outputs, n_columns)."""
        return live(self).copy(order)

    def _repr_html_(self):
        """The likeliest tokens of the rows, for notebooks; None where there are none to show."""
        context = self._context() if self._context is not None else None
        if context is None or not self._is_logits or context.closed or self._rows is None or len(self) == 0:
            return None
        from pyllm.viz import html  # only here: needed in notebooks alone

        return html.top_tokens(self, context.model.vocab)._repr_html_()

    def __repr__(self):
        if self._error is not None:
            return "<Outputs (stale)>"
        rows = live(self)
        return f"<Outputs {' x '.join([str(n) for n in rows.shape])} {rows.dtype}>"

    def __str__(self):
        return repr(self) if self._error is not None else str(live(self))


cdef object read_outputs(Context context, int kind):
    cdef float * data
    context.acquire()
    try:
        context.require()
        if context.n_outputs == 0:
            raise errors.NoOutputError("the last decode gave no outputs; ask for them with Batch outputs=...")
        if kind == LOGITS and not context.raw_logits:
            raise errors.NoOutputError(
                "all outputs of the last decode were sampled while they were computed, and llama.cpp did not fetch "
                "their logits: read ctx.sampled, or take the samplers away with set_sampler(seq_id, None)"
            )
        outputs = context.logits_ if kind == LOGITS else context.token_embeddings
        if outputs is not None:
            return outputs
        with nogil:
            # Synchronizes the device, and puts the rows in the order of the batch.
            data = lib.llama_get_logits(context.ptr) if kind == LOGITS else lib.llama_get_embeddings(context.ptr)
        if data == NULL or not (has_logits(context) if kind == LOGITS else has_token_embeddings(context)):
            raise errors.NoOutputError(
                "there are no token embeddings: make the context with embeddings=True and pooling_type='none', "
                "or read embeddings_seq()" if kind == EMBEDDINGS else "this model has no logits"
            )
        outputs = wrap_outputs(context, kind, data)
        if kind == LOGITS:
            context.logits_ = outputs
        else:
            context.token_embeddings = outputs
        return outputs
    finally:
        context.release()


cdef bint has_logits(Context context):
    # Encoders fill the rows with zeros.
    return context.has_memory or context.model.is_diffusion


cdef bint has_token_embeddings(Context context):
    return lib.llama_get_pooling_type(context.ptr) == lib.LLAMA_POOLING_TYPE_NONE


cdef object wrap_outputs(Context context, int kind, float * data):
    cdef View view = make_view(
        context.output_memory, kind == LOGITS, data, context.n_outputs,
        context.n_vocab if kind == LOGITS else context.n_embd_out
    )
    rows = np.asarray(view)
    if context.poison:
        rows = context.shadows[kind] = rows.copy()
    self = as_type(rows, Outputs)
    self._rows = rows
    self._view = view
    self._context = weakref.ref(context)
    self._is_logits = kind == LOGITS
    return self


cdef int expire_outputs(Context context, int kind, object reason, str message) except -1:
    cdef View view
    if kind == LOGITS:
        outputs = context.logits_
        context.logits_ = None
    else:
        outputs = context.token_embeddings
        context.token_embeddings = None
    view = outputs._view
    if Py_REFCNT(outputs) > 1:  # in the usual loop nobody else has it, and it goes without being told
        outputs._error = (reason, message)
        outputs._rows = None
        set_state(outputs, (1, (0,), STALE, False, b""))
    outputs = None  # what shows the memory now are arrays that were taken from it
    return view.set_outdated()


cdef object copy_outputs(Context context, int kind, row):
    context.acquire()
    try:
        outputs = read_outputs(context, kind)
        if row is None:
            return outputs.copy()
        if not -context.n_outputs <= int32(row, "row") < context.n_outputs:
            raise errors.NoOutputError(f"the last decode gave {context.n_outputs} outputs: there is no row {row}")
        return outputs[int(row)].copy()
    finally:
        context.release()


cdef int make_room(Context context, int32_t n_outputs) except -1:
    """Let llama.cpp enlarge its output buffer by a decode that is aborted before it computes anything."""
    if n_outputs < 1 or n_outputs > context.n_batch_:
        raise errors.InvalidArgumentError(
            f"reserve_outputs must be from 1 to n_batch={context.n_batch_}, not {n_outputs}"
        )
    if context.has_room_for(n_outputs):
        return 0
    encode = context.model.has_encoder or not context.has_memory
    if encode and n_outputs > context.n_ubatch_:
        raise errors.InvalidArgumentError(
            f"reserve_outputs can be at most n_ubatch={context.n_ubatch_} where a model has an encoder, "
            f"not {n_outputs}"
        )
    batch = Batch.from_arrays(np.zeros(n_outputs, np.int32), pos=np.arange(n_outputs), outputs="all")
    context.abort()
    try:
        context._run(batch, encode)
    except errors.DecodeAborted:
        pass
    finally:
        context.stop.take_request()
    if context.has_memory:
        lib.llama_memory_clear(lib.llama_get_memory(context.ptr), False)
    return 0


cdef object read_ith(Context context, int kind, int32_t i):
    cdef float * base
    cdef float * row = NULL
    context.acquire()
    try:
        outputs = read_outputs(context, kind)
        with nogil:
            if kind == LOGITS:
                base = lib.llama_get_logits(context.ptr)
                row = lib.llama_get_logits_ith(context.ptr, i)
            else:
                base = lib.llama_get_embeddings(context.ptr)
                row = lib.llama_get_embeddings_ith(context.ptr, i)
        if row == NULL:
            error.fail(errors.NoOutputError, f"no output was asked for index {i} of the batch")
        return outputs[(row - base) // (context.n_vocab if kind == LOGITS else context.n_embd_out)]
    finally:
        context.release()


cdef object read_pooled(Context context, int32_t seq_id):
    cdef float * data
    cdef float[::1] view
    cdef int32_t n = context.n_embd_out
    context.acquire()
    try:
        context.require()
        if lib.llama_get_pooling_type(context.ptr) == lib.LLAMA_POOLING_TYPE_RANK:
            n = <int32_t> lib.llama_model_n_cls_out(context.model.require())
        with nogil:
            data = lib.llama_get_embeddings_seq(context.ptr, seq_id)
        if data == NULL:
            raise errors.NoOutputError(
                f"there is no pooled embedding for sequence {seq_id}: it was not in the last batch, "
                "or the context was not made with embeddings=True and a pooling_type"
            )
        result = np.empty(n, np.float32)
        view = result
        memcpy(&view[0], data, <size_t> n * sizeof(float))
        return result
    finally:
        context.release()


cdef int32_t output_index(Context context, object i, object index, object row) except *:
    cdef int32_t c_i, own
    cdef int32_t n = context.n_outputs
    cdef int given = (index is not None) + (row is not None)
    c_i = int32(i, "i")
    if given:
        if given == 2 or c_i != -1:
            raise errors.InvalidArgumentError("one output is named by i, index= or row=, and these are several")
        if index is not None:
            return int32(index, "index")
        c_i = int32(row, "row")
        if not -n <= c_i < n:
            raise errors.NoOutputError(f"the last decode gave {n} outputs: there is no row {c_i}")
        return c_i if c_i < 0 else c_i - n  # negative ones count outputs from the end
    if c_i < 0 or c_i >= n:
        return c_i
    own = output_row(context.ptr, c_i)
    if own == c_i:
        return c_i
    if own < 0:
        raise errors.NoOutputError(
            f"no output was asked for index {c_i} of the batch; row {c_i} of ctx.logits is named by row={c_i}"
        )
    raise errors.InvalidArgumentError(
        f"{c_i} can mean two outputs: the token at index {c_i} of the batch is row {own} of ctx.logits, and "
        f"ctx.logits[{c_i}] is another one; say index={c_i} or row={c_i}"
    )
