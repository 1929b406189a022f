"""Samplers written in Python, as members of a chain of llama.cpp's (wraps ``llama_sampler_init``).

:class:`PythonSampler` makes a sampler of an object with a method ``apply(candidates)``, and :class:`Bitmask` of one
that fills a bitmask of allowed tokens. They take the GIL for as long as their Python runs; the rest of a generation
goes on without it.
"""

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t
from libc.string cimport memcpy
from libcpp cimport bool

import numpy as np

from pyllm import errors
from pyllm.core.introspection import not_pickled, signature
from pyllm.core cimport error, guard
from pyllm.core.sampler cimport Sampler
from pyllm.core.vocab cimport Vocab
from pyllm.includes cimport llama as lib


cdef extern from "python_sampler.hpp" namespace "pyllm" nogil:
    cdef struct python_hooks:
        bool (*apply)(void * body, lib.llama_token_data_array * candidates) noexcept nogil
        bool (*accept)(void * body, int32_t token) noexcept nogil
        bool (*reset)(void * body) noexcept nogil
        void * (*clone)(const void * body) noexcept nogil
        void (*release)(void * body) noexcept nogil
    python_hooks hooks
    lib.llama_sampler_i python_interface
    lib.llama_sampler_i bitmask_interface
    int32_t largest_id(const lib.llama_token_data * data, size_t n) noexcept
    size_t find_bad_id(const lib.llama_token_data * data, size_t n, int32_t last) noexcept
    bool is_descending(const lib.llama_token_data * data, size_t n) noexcept
    size_t find_nan(const lib.llama_token_data * data, size_t n) noexcept
    size_t keep_forced(lib.llama_token_data * data, size_t n) noexcept
    size_t keep_allowed(lib.llama_token_data * data, size_t n, const int32_t * words, size_t n_words) noexcept


# One llama_token_data.
CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


cdef class Candidates:
    """The tokens that can still be chosen, while ``apply`` of a sampler written in Python runs.

    ``candidates.array`` is a structured array of shape (size,) with the fields ``id`` (int32), ``logit`` and ``p``
    (float32; p is filled by some samplers only); ``candidates["logit"]`` is a field of it. What is written there
    counts: a logit of -inf forbids a token, +inf forces it (of several one is chosen), and NaN is a SamplerError.
    ``size``, ``selected`` and ``sorted`` can be set.

    After the call, every use of this object raises SamplerError. An array that was kept is safe to read, and shows
    other candidates from the next call on: keep a ``.copy()``.
    """

    __reduce__ = not_pickled(
        "it shows memory of a sampler, which is valid in its call only; pickle copies of its arrays"
    )
    __signature__ = signature

    cdef object storage
    cdef Py_ssize_t size_
    cdef Py_ssize_t n                 # how many there were at first
    cdef Py_ssize_t selected_
    cdef bint sorted_
    cdef bint alive

    def __init__(self):
        raise TypeError("Candidates are made by a PythonSampler, for the time of one call")

    cdef int check_alive(self) except -1:
        if not self.alive:
            raise errors.SamplerError("these candidates belong to a call of apply() that is over; keep a .copy()")
        return 0

    @property
    def array(self):
        """The candidates: a structured array of shape (size,), writable."""
        self.check_alive()
        return self.storage[:self.size_]

    @property
    def size(self):
        """How many there are (int). Setting it drops those at the end."""
        self.check_alive()
        return self.size_

    @size.setter
    def size(self, value):
        self.check_alive()
        if not isinstance(value, (int, np.integer)) or not 1 <= value <= self.n:
            raise errors.InvalidArgumentError(f"size must be an integer from 1 to {self.n}, not {value!r}")
        self.size_ = value

    @property
    def selected(self):
        """Index of the selected candidate (int), or None. The last sampler of a chain sets it."""
        self.check_alive()
        return self.selected_ if self.selected_ >= 0 else None

    @selected.setter
    def selected(self, value):
        self.check_alive()
        if value is not None and (not isinstance(value, (int, np.integer)) or not 0 <= value < self.size_):
            raise errors.InvalidArgumentError(
                f"selected must be an index from 0 to {self.size_ - 1} or None, not {value!r}"
            )
        self.selected_ = -1 if value is None else value

    @property
    def sorted(self):
        """True when the logits are in descending order. It is checked afterwards: a wrong True does no harm."""
        self.check_alive()
        return self.sorted_

    @sorted.setter
    def sorted(self, value):
        self.check_alive()
        self.sorted_ = not not value

    def keep(self, index):
        """Keep only some candidates, in this order.

        Args:
            index: A boolean mask of shape (size,), indices, or a slice.

        Raises:
            InvalidArgumentError: None would be left.
        """
        array = self.array
        kept = array[index if isinstance(index, slice) or len(index) else slice(0)]
        if kept.ndim != 1 or not 1 <= len(kept) <= self.n:
            raise errors.InvalidArgumentError(
                f"from 1 to {self.n} of {self.size_} candidates must be kept, not {kept.size}"
            )
        self.size_ = len(kept)
        self.storage[:self.size_] = kept
        self.selected_ = -1

    def __len__(self):
        self.check_alive()
        return self.size_

    def __getitem__(self, key):
        return self.array[key]

    def __setitem__(self, key, value):
        self.array[key] = value

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype=dtype, copy=copy)

    def __repr__(self):
        if not self.alive:
            return "<Candidates of a call that is over>"
        return f"<Candidates: {self.size_}, selected={self.selected}, sorted={self.sorted_}>"


# Cython knows no keyword for "base of what stands behind a llama_sampler": it is owned by C, see `give`.
@cython.no_gc
cdef class Body:
    """What stands behind the C object: there is one for each clone, also those that llama.cpp makes."""

    __reduce__ = not_pickled("it is a part of a sampler; pickle what the sampler was made from")

    cdef object implementation

    cdef int apply(self, lib.llama_token_data_array * candidates) except -1:
        raise NotImplementedError

    cdef Body copy(self):
        raise NotImplementedError

    cdef object cloned(self):
        clone = getattr(self.implementation, "clone", None)
        if clone is None:
            raise errors.SamplerError(
                f"{self.implementation!r} cannot be cloned: it has no method clone() that returns an independent copy"
            )
        copy = clone()
        if copy is None or copy is self.implementation:
            raise errors.SamplerError(f"clone() of {self.implementation!r} returned no independent copy, but {copy!r}")
        return copy


cdef class PythonBody(Body):
    cdef object method               # implementation.apply
    cdef object storage              # NumPy owns what arrays of the user may point into
    cdef lib.llama_token_data * data
    cdef Py_ssize_t capacity
    cdef int32_t last_id             # the largest id that was seen

    def __cinit__(self):
        self.last_id = -1
        self.capacity = 0

    cdef int make_room(self, Py_ssize_t n) except -1:
        cdef unsigned char[::1] view
        if n > self.capacity:
            storage = np.empty(n, CANDIDATE)
            view = storage.view(np.uint8)
            self.storage = storage
            self.data = <lib.llama_token_data *> &view[0]
            self.capacity = n
        return 0

    cdef int apply(self, lib.llama_token_data_array * c) except -1:
        cdef Py_ssize_t n = <Py_ssize_t> c.size
        cdef Candidates candidates
        cdef size_t bad
        cdef int32_t last
        if n == 0:
            raise errors.SamplerError("there are no candidates left for a sampler written in Python")
        self.make_room(n)
        memcpy(self.data, c.data, n * sizeof(lib.llama_token_data))
        last = largest_id(self.data, n)
        if last > self.last_id:
            self.last_id = last
        candidates = Candidates.__new__(Candidates)
        candidates.storage = self.storage
        candidates.size_ = candidates.n = n
        candidates.selected_ = c.selected
        candidates.sorted_ = c.sorted
        candidates.alive = True
        try:
            self.method(candidates)
        finally:
            candidates.alive = False
        n = candidates.size_
        bad = find_bad_id(self.data, n, self.last_id)
        if <Py_ssize_t> bad < n:
            raise errors.SamplerError(
                f"apply() of {self.implementation!r} left token {self.data[bad].id} at index {bad}; "
                f"ids go from 0 to {self.last_id} here"
            )
        if candidates.selected_ >= n:
            raise errors.SamplerError(
                f"apply() of {self.implementation!r} selected index {candidates.selected_} and left {n} candidates"
            )
        bad = find_nan(self.data, n)
        if <Py_ssize_t> bad < n:
            raise errors.SamplerError(
                f"apply() of {self.implementation!r} made the logit of token {self.data[bad].id} NaN"
            )
        if candidates.selected_ < 0:
            n = keep_forced(self.data, n)
        c.data = self.data
        c.size = n
        c.selected = candidates.selected_
        c.sorted = candidates.sorted_ and is_descending(self.data, n)
        return 0

    cdef Body copy(self):
        return make_body(self.cloned())


cdef class BitmaskBody(Body):
    cdef object mask
    cdef const int32_t * words
    cdef size_t n_words
    cdef int32_t n_vocab
    cdef bint checked

    cdef int apply(self, lib.llama_token_data_array * c) except -1:
        cdef size_t kept, n = c.size
        cdef int32_t last = -1
        # Once is enough: the vocabulary does not change, and looking at all ids takes as long as the mask.
        if not self.checked:
            last = largest_id(c.data, n)
            self.checked = True
        if last >= self.n_vocab:
            self.checked = False
            raise errors.SamplerError(
                f"{self.implementation!r} knows n_vocab={self.n_vocab} tokens, and token {last} is a candidate here: "
                "it was made for another vocabulary"
            )
        if self.implementation.fill(self.mask) is False:
            return 0
        kept = keep_allowed(c.data, n, self.words, self.n_words)
        if kept == 0:
            raise errors.SamplerError(
                f"the bitmask of {self.implementation!r} forbids all {n} candidates; "
                "put Bitmask before samplers that drop candidates, such as TopK"
            )
        c.size = kept
        c.selected = -1
        return 0

    cdef Body copy(self):
        return make_bitmask_body(self.cloned())


cdef PythonBody make_body(implementation):
    cdef PythonBody body = PythonBody.__new__(PythonBody)
    method = getattr(implementation, "apply", None)
    if method is None and callable(implementation):
        method = implementation
    if not callable(method):
        raise errors.InvalidArgumentError(
            f"a sampler written in Python needs a method apply(candidates), and {implementation!r} has none"
        )
    body.implementation = implementation
    body.method = method
    return body


cdef BitmaskBody make_bitmask_body(source):
    cdef BitmaskBody body = BitmaskBody.__new__(BitmaskBody)
    cdef const int32_t[::1] view
    n_vocab = getattr(source, "n_vocab", None)
    if not callable(getattr(source, "fill", None)) or not isinstance(n_vocab, int) or n_vocab < 1:
        raise errors.InvalidArgumentError(
            f"a bitmask source needs a method fill(mask) and n_vocab, an integer; {source!r} has not"
        )
    body.implementation = source
    body.mask = np.full((n_vocab + 31) // 32, -1, np.int32)
    view = body.mask
    body.words = &view[0]
    body.n_words = view.shape[0]
    body.n_vocab = n_vocab
    return body


cdef void * give(Body body) noexcept:
    """A reference for the C object; `release_python` takes it back."""
    Py_INCREF(body)
    return <void *> body


# ---- what llama.cpp calls: without the GIL or with it, in any thread

cdef bool apply_python(void * body, lib.llama_token_data_array * candidates) noexcept with gil:
    try:
        (<Body> body).apply(candidates)
        return True
    except BaseException as exception:
        error.stash(exception)
        return False


cdef bool accept_python(void * body, int32_t token) noexcept with gil:
    try:
        accept = getattr((<Body> body).implementation, "accept", None)
        if accept is not None:
            accept(token)
        return True
    except BaseException as exception:
        error.stash(exception)
        return False


cdef bool reset_python(void * body) noexcept with gil:
    try:
        reset = getattr((<Body> body).implementation, "reset", None)
        if reset is not None:
            reset()
        return True
    except BaseException as exception:
        error.stash(exception)
        return False


cdef void * clone_python(void * body) noexcept with gil:
    try:
        return give((<Body> body).copy())
    except BaseException as exception:
        error.stash(exception)
        return NULL


cdef void release_python(void * body) noexcept with gil:
    Py_DECREF(<Body> body)


cdef bool apply_hook(void * body, lib.llama_token_data_array * candidates) noexcept nogil:
    cdef bool done = False
    if guard.begin_python():
        done = apply_python(body, candidates)
        guard.end_python()
    return done


cdef bool accept_hook(void * body, int32_t token) noexcept nogil:
    cdef bool done = False
    if guard.begin_python():
        done = accept_python(body, token)
        guard.end_python()
    return done


cdef bool reset_hook(void * body) noexcept nogil:
    cdef bool done = False
    if guard.begin_python():
        done = reset_python(body)
        guard.end_python()
    return done


cdef void * clone_hook(const void * body) noexcept nogil:
    cdef void * copy = NULL
    if guard.begin_python():
        copy = clone_python(<void *> body)
        guard.end_python()
    return copy


cdef void release_hook(void * body) noexcept nogil:
    if guard.begin_python():
        release_python(body)
        guard.end_python()


hooks.apply = apply_hook
hooks.accept = accept_hook
hooks.reset = reset_hook
hooks.clone = clone_hook
hooks.release = release_hook


cdef int own_body(Sampler sampler, lib.llama_sampler_i * interface, Body body, model=None) except -1:
    guard.enter()
    cdef lib.llama_sampler * ptr = lib.llama_sampler_init(interface, give(body))
    if ptr == NULL:
        Py_DECREF(body)
    sampler.own(ptr, "llama_sampler_init", {}, model)
    return 0


@cython.no_gc_clear
cdef class PythonSampler(Sampler):
    """A sampler written in Python.

    Args:
        implementation: An object with these methods, of which only the first is needed; or just a function that does
            what ``apply`` does.

            - ``apply(candidates)``: filter, rescale or select; see :class:`Candidates`.
            - ``accept(token)``: a token was chosen.
            - ``reset()``: a new text begins.
            - ``clone()``: an independent copy, for ``Sampler.clone``.

    What a method raises is raised by the call that was sampling. No token is chosen then, and what other sequences of
    the context do is not touched. The methods cannot use the chain they are in, nor the context that is sampled from:
    that is a ReentrantError.

    Example:
        >>> class Shorter:
        ...     def apply(self, candidates):
        ...         candidates["logit"] -= 0.1 * lengths[candidates["id"]]
        >>> chain = Chain(TopK(40), PythonSampler(Shorter()), Temp(0.8), Dist(1))

    Wraps ``llama_sampler_init``.
    """

    __signature__ = signature

    def __init__(self, implementation):
        own_body(self, &python_interface, make_body(implementation))

    @property
    def implementation(self):
        """The object that was given, or the clone of it that this sampler uses."""
        return (<Body> self.require().ctx).implementation

    def __repr__(self):
        return f"PythonSampler({'closed' if self.ptr == NULL else repr(self.implementation)})"


@cython.no_gc_clear
cdef class Bitmask(Sampler):
    """Drop all tokens that a bitmask source does not allow.

    Args:
        source: An object with an integer ``n_vocab`` and these methods, of which only the first is needed:

            - ``fill(mask)``: set the bits of the tokens that may come next; int32, shape (ceil(n_vocab / 32),), see
              :func:`pyllm.core.kernels.apply_token_bitmask`. Returning False allows all.
            - ``accept(token)``, ``reset()``, ``clone()``: as in :class:`PythonSampler`.

    :mod:`pyllm.processors` has sources for llguidance, xgrammar and outlines-core. Where samplers before it have
    dropped all tokens that are allowed, the step is a SamplerError: Bitmask belongs first.

    Wraps ``llama_sampler_init``.
    """

    __signature__ = signature

    def __init__(self, source):
        # Libraries such as llguidance call llama_tokenize with this vocabulary.
        vocab = getattr(source, "vocab", None)
        model = (<Vocab> vocab).model if isinstance(vocab, Vocab) else None
        own_body(self, &bitmask_interface, make_bitmask_body(source), model)

    @property
    def source(self):
        """The source that was given, or the clone of it that this sampler uses."""
        return (<Body> self.require().ctx).implementation

    def __repr__(self):
        return f"Bitmask({'closed' if self.ptr == NULL else repr(self.source)})"
