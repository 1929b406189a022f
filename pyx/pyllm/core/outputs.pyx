"""Logits and embeddings that know the decode they came from."""

cimport cython

import numpy as np

from pyllm import errors
from pyllm.core.context cimport Context
from pyllm.core.view cimport View


@cython.no_gc_clear
cdef class Outputs(View):
    """The output rows of one decode: a float32 view on llama.cpp's own buffer, shape (n_outputs, n_columns).

    Indexing gives NumPy arrays on that memory, ``np.asarray(outputs)`` the whole of it, both without a copy and
    writable. After a newer decode the memory shows the new rows; this object then raises StaleLogitsError instead
    of handing them out as its own. ``.copy()`` keeps the values.

    Example:
        >>> row = ctx.logits[-1]
        >>> row[vocab.eos] = -np.inf  # the samplers will see it
    """

    cdef int check_exportable(self) except -1:
        if self.context is None:
            raise BufferError("these Outputs were made by hand and show no memory")
        self.context.require()
        if self.decode != self.context.decodes:
            raise errors.StaleLogitsError(
                "these outputs belong to an earlier decode and its memory shows newer ones; "
                "read ctx.logits again, or keep a .copy() before the next decode"
            )
        return 0

    @property
    def shape(self):
        """(n_outputs, n_columns)."""
        return (self.shape_[0], self.shape_[1])

    @property
    def dtype(self):
        """float32."""
        return np.dtype(np.float32)

    def __len__(self):
        return self.shape_[0]

    def __getitem__(self, index):
        return self.__array__()[index]

    def __setitem__(self, index, value):
        self.__array__()[index] = value

    def copy(self):
        """The values as an array of their own, shape (n_outputs, n_columns)."""
        return self.__array__(copy=True)

    def _repr_html_(self):
        """The likeliest tokens of the rows, for notebooks; None where there are none to show."""
        if self.context is None or self.kind != LOGITS or self.context.ptr == NULL:
            return None
        if self.decode != self.context.decodes or self.shape_[0] == 0:
            return None
        from pyllm.viz import html  # only here: needed in notebooks alone

        return html.top_tokens(self, self.context.model.vocab)._repr_html_()

    def __repr__(self):
        if self.context is None:
            return "<Outputs without memory>"
        state = "" if self.context.ptr != NULL and self.decode == self.context.decodes else " (stale)"
        return f"<Outputs {self.shape_[0]} x {self.shape_[1]} float32{state}>"


cdef Outputs wrap_outputs(Context context, int kind, float * data):
    cdef Outputs self = Outputs.__new__(Outputs)
    cdef float[:, ::1] view
    self.owner = context
    self.context = context
    self.kind = kind
    self.decode = context.decodes
    self.set_layout(data, context.n_outputs, context.n_vocab if kind == LOGITS else context.n_embd_out)
    if context.poison:
        shadow = context.shadows.get(kind)
        if shadow is None:
            shadow = self.__array__(copy=True)
            context.shadows[kind] = shadow
        self.shadow = shadow
        view = shadow
        self.pointer = &view[0, 0]
    return self
