"""Zero-copy views on memory that llama.cpp made.

A View exports a C-contiguous buffer: ``np.asarray(view)`` costs no copy, and ``memoryview``, DLPack and
``torch.from_numpy`` follow from there. Each of them keeps the memory, also when llama.cpp has done with it.
"""

cimport cython
from cpython.buffer cimport PyBUF_FORMAT
from libc.stdint cimport uintptr_t

from pyllm.core cimport guard
from pyllm.includes cimport ggml_backend as lib

from pyllm.core.introspection import not_pickled


@cython.no_gc_clear
cdef class OutputMemory:
    """The output buffer of a context, from its making until the last array on it is gone. Not made from Python.

    A llama_context frees its buffer when it is closed, and when a decode needs a larger one. While arrays show it the
    buffer is taken from llama.cpp first, and belongs to this object from then on.
    """

    __reduce__ = not_pickled("it is memory of llama.cpp; pickle a .copy() of the array that shows it")

    def __cinit__(self):
        self.buffer = NULL
        self.generation = guard.fork_generation()
        self.views.store(0)
        self.old_logits.store(0)
        self.old_embeddings.store(0)

    def __init__(self):
        raise TypeError("an OutputMemory is made by a Context")

    def __dealloc__(self):
        cdef lib.ggml_backend_buffer_t buffer = self.buffer
        self.buffer = NULL
        # A forked child must not tell a device of the parent to free something.
        if buffer != NULL and self.generation == guard.fork_generation():
            guard.set_quiet(True)
            lib.ggml_backend_buffer_free(buffer)
            guard.set_quiet(False)


@cython.no_gc_clear
cdef class View:
    """A writable float32 matrix in memory of llama.cpp. Made by a Context, not from Python."""

    __reduce__ = not_pickled("it is memory of llama.cpp; pickle a .copy() of the array that shows it")

    def __init__(self):
        raise TypeError("a View is made by the object that owns the memory, e.g. by Context.logits")

    def __dealloc__(self):
        if self.memory is not None:
            self.memory.views.fetch_sub(1)

    cdef int set_outdated(self) except -1:
        """A newer decode has written into the memory. Arrays that were made from this object show its rows now."""
        if not self.outdated and self.exports.load() > 0:
            self.outdated = True
            self.count(1)
        return 0

    cdef int count(self, Py_ssize_t change) except -1:
        if self.is_logits:
            self.memory.old_logits.fetch_add(change)
        else:
            self.memory.old_embeddings.fetch_add(change)
        return 0

    @property
    def address(self):
        """Address of the first element (int)."""
        return <uintptr_t> self.pointer

    @property
    def nbytes(self):
        """Size in bytes (int)."""
        return self.shape_[0] * self.strides_[0]

    def __getbuffer__(self, Py_buffer * buffer, int flags):
        if self.memory is None:
            raise BufferError("this View was made by hand and shows no memory")
        buffer.buf = self.pointer
        buffer.obj = self
        buffer.len = self.shape_[0] * self.strides_[0]
        buffer.readonly = 0
        buffer.itemsize = sizeof(float)
        buffer.format = NULL
        if flags & PyBUF_FORMAT:
            buffer.format = b"f"
        buffer.ndim = 2
        buffer.shape = self.shape_
        buffer.strides = self.strides_
        buffer.suboffsets = NULL
        buffer.internal = NULL
        self.exports.fetch_add(1)

    def __releasebuffer__(self, Py_buffer * buffer):
        if self.exports.fetch_sub(1) == 1 and self.outdated:
            self.outdated = False
            self.count(-1)


cdef View make_view(OutputMemory memory, bint is_logits, float * pointer, Py_ssize_t n_rows, Py_ssize_t n_columns):
    cdef View self = View.__new__(View)
    self.memory = memory
    memory.views.fetch_add(1)
    self.is_logits = is_logits
    self.pointer = pointer
    self.shape_[0] = n_rows
    self.shape_[1] = n_columns
    self.strides_[0] = n_columns * sizeof(float)
    self.strides_[1] = sizeof(float)
    return self
