"""Zero-copy views on memory that llama.cpp owns.

A View exports a C-contiguous buffer: ``np.asarray(view)`` costs no copy, and ``memoryview``, DLPack and
``torch.from_numpy`` follow from there. While anything made from it is alive its owner cannot be closed and
the memory cannot move.
"""

cimport cython
from cpython.buffer cimport PyBUF_FORMAT
from libc.stdint cimport uintptr_t

import numpy as np


@cython.no_gc_clear
cdef class View:
    """A writable float32 matrix in memory of llama.cpp. Made by the object that owns the memory, not from Python."""

    def __init__(self):
        raise TypeError("a View is made by the object that owns the memory, e.g. by Context.logits")

    cdef int set_layout(self, float * pointer, Py_ssize_t n_rows, Py_ssize_t n_columns) except -1:
        self.pointer = pointer
        self.shape_[0] = n_rows
        self.shape_[1] = n_columns
        self.strides_[0] = n_columns * sizeof(float)
        self.strides_[1] = sizeof(float)
        return 0

    cdef int check_exportable(self) except -1:
        if self.owner is None:
            raise BufferError("this View was made by hand and shows no memory")
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
        self.check_exportable()
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
        self.owner.exports.fetch_add(1)

    def __releasebuffer__(self, Py_buffer * buffer):
        self.owner.exports.fetch_sub(1)

    def __array__(self, dtype=None, copy=None):
        # NumPy comes here only when the buffer was refused, and hides why; memoryview() tells.
        return np.array(memoryview(self), dtype=dtype, copy=copy)

    def __dlpack__(self, **kwargs):
        return self.__array__().__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.__array__().__dlpack_device__()
