"""Zero-copy views on memory that llama.cpp owns."""

from pyllm.core.resource cimport Resource


cdef class View:
    cdef Resource owner              # keeps the memory alive, and counts this view while it is exported
    cdef void * pointer
    cdef Py_ssize_t shape_[2]
    cdef Py_ssize_t strides_[2]

    cdef int set_layout(self, float * pointer, Py_ssize_t n_rows, Py_ssize_t n_columns) except -1
    # Raises when the memory may not be handed out any more.
    cdef int check_exportable(self) except -1
