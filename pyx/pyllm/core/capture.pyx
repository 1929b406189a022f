"""What is computed between input and output: tensors of the graph, read and changed by name.

llama.cpp's scheduler asks a callback about each node of its graph. The one that a context with ``capture=True`` has
(``tap.hpp``) looks the name up without the GIL, copies what was asked for, and calls Python for hooks alone.
:mod:`pyllm.interp` is built on this and knows what the tensors mean.
"""

cimport cython
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcmp, memcpy
from libcpp.string cimport string

import difflib
from dataclasses import dataclass

import numpy as np

from pyllm import errors
from pyllm.core cimport error, guard
from pyllm.core.arguments cimport c_text, int32
from pyllm.core.tap cimport tap
from pyllm.includes cimport ggml, llama_ext

# Architectures whose graphs hand out the inputs of their layers as they are. llama.cpp asserts for others.
LAYER_INPUT_ARCHITECTURES = frozenset(
    {"llama", "qwen3", "qwen3moe", "qwen3next", "qwen35", "qwen35moe", "gpt-oss", "minimax-m2", "gemma4"}
)


@dataclass(frozen=True, slots=True)
class Node:
    """A tensor that the graph computes.

    Attributes:
        name: llama.cpp's name, e.g. "l_out-3". Several nodes can have the same one.
        occurrence: Which of those it is, from 0.
        op: The operation that computes it, e.g. "MUL_MAT".
        type: Its data type, as a name, e.g. "f32".
        shape: (n3, n2, n1, n0), the last dimension being the contiguous one.
        param: The first parameter of the operation, read as a float: for SOFT_MAX the scale of its input.
    """

    name: str
    occurrence: int
    op: str
    type: str
    shape: tuple
    param: float


cdef int call_hook(void * owner, int slot, float * data, const int64_t * ne) noexcept nogil:
    cdef int answer = -1
    if guard.begin_python():
        answer = ask_python(owner, slot, data, ne)
        guard.end_python()
    return answer


cdef int ask_python(void * owner, int slot, float * data, const int64_t * ne) noexcept with gil:
    self = <Capture> owner
    try:
        return self._call(slot, data, ne)
    except BaseException as exception:
        error.stash(exception)
        self.context.stop.request()  # what is left to compute is not worth it
        return -1


@cython.no_gc_clear
cdef class Capture:
    """Reads and changes tensors of the graph while a context computes.

    Args:
        context: A context made with ``capture=True``.

    Raises:
        ContextError: It was made without.

    Wraps the eval callback of ``ggml_backend_sched``.
    """

    def __cinit__(self, Context context not None):
        if not context.capture:
            raise errors.ContextError("the context cannot be looked into: make it with Context(..., capture=True)")
        self.context = context
        self.hooks = []
        self.names = []

    def nodes(self, Batch batch not None, *, bint encode=False):
        """Decode a batch and list what its graph computes.

        The list depends on the model, on flash attention, and for some models on whether there is one token or more.

        Args:
            batch: At most n_ubatch tokens.
            encode: Use the encoder.

        Returns:
            list[Node]: In the order of computation.
        """
        cdef Py_ssize_t i
        cdef tap.node * c_node
        self.context.acquire()
        try:
            self.context.require()
            self._check_idle()
            self.context.tap_.reset()
            self.context.tap_.listing = True
            self._run(batch, encode)
            result = []
            for i in range(<Py_ssize_t> self.context.tap_.nodes.size()):
                c_node = &self.context.tap_.nodes[i]
                result.append(
                    Node(
                        c_node.name.c_str().decode("utf-8", "replace"), c_node.occurrence,
                        c_node.op.c_str().decode("utf-8", "replace"),
                        ggml.ggml_type_name(<ggml.ggml_type> c_node.type).decode(),
                        (c_node.ne[3], c_node.ne[2], c_node.ne[1], c_node.ne[0]), c_node.param,
                    )
                )
            return result
        finally:
            self.context.tap_.reset()
            self.context.release()

    def decode(self, Batch batch not None, read=(), hooks=(), *, bint encode=False):
        """Decode a batch, read tensors and run hooks on them.

        Args:
            batch: At most n_ubatch tokens, so that all of them are in one graph.
            read: The tensors to read, each (name, occurrence).
            hooks: Pairs of (name, occurrence) and a function ``f(array)``. It gets the float32 values in the shape
                of :attr:`Node.shape`, may change them in place or return others of the same shape, and llama.cpp goes
                on with these. None returned and nothing changed: nothing is written. What it raises aborts the
                decode and is raised from here. Several hooks on one tensor are called in order.
            encode: Use the encoder.

        Returns:
            tuple: A dict from each (name, occurrence) to its values, float32 in the shape of :attr:`Node.shape`,
            copies and as the hooks left them; a tensor without elements is left out. And the tokens in the order of
            the rows (int32), or None for a batch of embeddings.

        Raises:
            InvalidBatchError: More than n_ubatch tokens.
            NoActivationError: The graph computed no such tensor; the message names the nearest ones. The batch is in
                the memory then, and there are no outputs.
            BackendError: A tensor has a type that cannot be read or written; or a hook made an index, such as that
                of an expert, that does not exist.

        Rows are in the order in which llama.cpp computes them. It may reorder the tokens of several sequences; it does
        not when they all have the same number of tokens, stand one after the other and have ids 0, 1, ….
        """
        cdef Py_ssize_t i
        cdef tap.piece * piece
        cdef float[::1] view
        cdef int32_t[::1] tokens
        cdef string name
        cdef int32_t occurrence
        self.context.acquire()
        try:
            self.context.require()
            self._check_idle()
            self.context.tap_.reset()
            for wanted, function in [*((key, None) for key in read), *hooks]:
                if function is not None and not callable(function):
                    raise TypeError(f"a hook must be callable, not {function!r}")
                name = c_text(wanted[0], "a tensor's name")
                occurrence = int32(wanted[1], "occurrence")
                self.context.tap_.add(
                    name, occurrence, <int> len(self.hooks), function is None, function is not None
                )
                self.hooks.append(function)
                self.names.append((wanted[0], occurrence))
            self._run(batch, encode)
            self._check_seen()
            values = {}
            for i in range(<Py_ssize_t> self.context.tap_.pieces.size()):
                piece = &self.context.tap_.pieces[i]
                array = np.empty(piece.data.size(), np.float32)
                view = array
                memcpy(&view[0], piece.data.data(), piece.data.size() * sizeof(float))
                values[self.names[piece.slot]] = array.reshape(piece.ne[3], piece.ne[2], piece.ne[1], piece.ne[0])
            order = None
            if self.context.tap_.has_tokens and not batch.n_embd:
                order = np.empty(self.context.tap_.tokens.size(), np.int32)
                tokens = order
                memcpy(&tokens[0], self.context.tap_.tokens.data(), len(order) * sizeof(int32_t))
            return values, order
        finally:
            self.context.tap_.reset()
            self.hooks = []
            self.names = []
            self.context.release()

    def layer_inputs(self, Batch batch not None, layers):
        """Decode a batch and read what goes into layers, without stopping at nodes of the graph.

        Args:
            batch: The tokens; any number of micro-batches.
            layers: Indices of layers, from 0 to n_layer - 1.

        Returns:
            dict[int, numpy.ndarray]: For each layer float32 of shape (n_tokens, n_embd), a copy, in the order of the
            batch.

        Raises:
            ContextError: The architecture does not hand them out; see :data:`LAYER_INPUT_ARCHITECTURES`.

        Wraps ``llama_set_embeddings_layer_inp`` and ``llama_get_embeddings_layer_inp``.
        """
        cdef Context context = self.context
        cdef int32_t n_layer = context.model.n_layer
        cdef int32_t n_embd = context.model.n_embd
        cdef int32_t layer
        cdef float * data
        cdef float[:, ::1] view
        architecture = context.model.metadata.get("general.architecture")
        if architecture not in LAYER_INPUT_ARCHITECTURES:
            raise errors.ContextError(
                f"the graphs of {architecture!r} do not hand out the inputs of their layers; use decode()"
            )
        wanted = sorted({int32(each, "layer") for each in layers})
        if not wanted or wanted[0] < 0 or wanted[len(wanted) - 1] >= n_layer:
            raise errors.InvalidArgumentError(f"layers go from 0 to {n_layer - 1}, not {wanted}")
        context.acquire()
        try:
            context.require()
            self._check_idle()
            try:
                # Each change makes llama.cpp plan its memory anew, so that they stay on for the next call.
                self._set_layer_inputs(tuple(wanted))
                context._run(batch, False)
            except BaseException:
                if context.ptr != NULL:
                    self._set_layer_inputs(())
                raise
            result = {}
            for each in wanted:
                layer = each
                values = np.empty((batch.c.n_tokens, n_embd), np.float32)
                view = values
                with nogil:
                    data = llama_ext.llama_get_embeddings_layer_inp(context.ptr, layer)
                memcpy(&view[0, 0], data, <size_t> batch.c.n_tokens * n_embd * sizeof(float))
                result[each] = values
            return result
        finally:
            context.release()

    def _set_layer_inputs(self, layers):
        cdef Context context = self.context
        cdef int32_t layer
        before = context.layer_inputs or ()
        if layers == before:
            return
        for each in set(before) ^ set(layers):
            layer = each
            llama_ext.llama_set_embeddings_layer_inp(context.ptr, layer, each in layers)
        context.layer_inputs = layers
        # They lie in the buffer of the outputs, which grows by so much.
        context.layer_floats = <int64_t> len(layers) * context.model.n_embd * context.n_batch_

    def _check_seen(self):
        """Whether the graph had all that was asked for."""
        cdef string name
        for wanted, occurrence in self.names:
            name = c_text(wanted, "a tensor's name")
            count = self.context.tap_.count(name)
            if 0 <= occurrence < count:
                continue
            self.context.n_outputs = 0
            if count:
                raise errors.NoActivationError(
                    f"the graph computed {count} tensor(s) of the name {wanted!r}: occurrence goes from 0 to "
                    f"{count - 1}, not {occurrence}"
                )
            known = [each.decode("utf-8", "replace") for each in self.context.tap_.names]
            near = difflib.get_close_matches(name.decode("utf-8", "replace"), sorted(known), 3)
            hint = f"; near it are {', '.join(map(repr, near))}" if near else ""
            raise errors.NoActivationError(f"the graph computed no tensor {wanted!r}{hint}; nodes() lists them")

    def _check_idle(self):
        if self.context.tap_.active:
            raise errors.ReentrantError("this context is being looked into by the call that called back")

    cdef int _run(self, Batch batch, bint encode) except -1:
        cdef tap * taps = &self.context.tap_
        if batch.c.n_tokens > self.context.n_ubatch_:
            raise errors.InvalidBatchError(
                f"the batch has {batch.c.n_tokens} tokens and the graph holds n_ubatch={self.context.n_ubatch_}; "
                "decode it in parts, or make the context with a larger n_ubatch"
            )
        taps.hook = call_hook
        taps.owner = <void *> self
        taps.active = True
        try:
            self.context._run(batch, encode)
        except BaseException:
            # A hook that failed late has let the decode come to its end: nobody may read numbers that it half changed.
            self.context.n_outputs = 0
            raise
        finally:
            taps.active = False
        taps.names_known = True
        if taps.failed and taps.error.size():
            self.context.n_outputs = 0
            raise errors.BackendError(taps.error.c_str().decode("utf-8", "replace"))
        if taps.has_tokens and not batch.n_embd and <int32_t> taps.tokens.size() != batch.c.n_tokens:
            raise errors.BackendError(
                f"llama.cpp computed {taps.tokens.size()} of {batch.c.n_tokens} tokens first and the rest later; "
                "give sequences of equal length with consecutive ids, or one at a time"
            )
        return 0

    cdef int _call(self, int slot, float * data, const int64_t * ne) except -2:
        cdef Py_ssize_t n = ne[0] * ne[1] * ne[2] * ne[3]
        cdef float[::1] view
        cdef const float[::1] result
        flat = np.empty(n, np.float32)
        view = flat
        memcpy(&view[0], data, n * sizeof(float))
        shape = (ne[3], ne[2], ne[1], ne[0])
        array = flat.reshape(shape)
        answer = self.hooks[slot](array)
        if answer is None:
            if memcmp(&view[0], data, n * sizeof(float)) == 0:
                return 0
            memcpy(data, &view[0], n * sizeof(float))
            return 1
        answer = np.asarray(answer)
        if answer.shape != shape:
            raise errors.InvalidArgumentError(
                f"the hook on {self.names[slot][0]!r} must return an array of shape {shape}, not {answer.shape}"
            )
        if answer.dtype.kind not in "fiub":
            raise errors.InvalidArgumentError(
                f"the hook on {self.names[slot][0]!r} must return numbers, not {answer.dtype}"
            )
        result = np.ascontiguousarray(answer, dtype=np.float32).reshape(-1)
        memcpy(data, &result[0], n * sizeof(float))
        return 1
