"""Samplers and chains of samplers (wraps ``llama_sampler`` and ``llama_sampler_chain_*``).

The samplers themselves, one class each, are in :mod:`pyllm.core.samplers`.
"""

import operator
import weakref

cimport cython
from libc.stdint cimport int32_t, uint32_t, uintptr_t

import numpy as np

from pyllm import errors
from pyllm.core.arguments cimport int32
from pyllm.core cimport error, guard
from pyllm.core.choose cimport NO_BATCH, check_choice, choose, collect_row
from pyllm.core.context cimport Context
from pyllm.core.model cimport Model
from pyllm.core.outputs cimport output_index
from pyllm.includes cimport llama as lib

# How choose.hpp begins to say what is wrong with a row.
cdef str CANNOT_CHOOSE = "cannot choose a token: "

# The chain searches them among the candidates, so that with many of them all tokens are looked at faster.
cdef enum:
    MOST_MOVED = 64


@cython.no_gc_clear
cdef class Sampler(Resource):
    """The base of all samplers. Two threads that use one sampler wait for each other.

    A sampler that was added to a chain belongs to it: it works as before, and stays valid as long as it is held.
    """

    def __cinit__(self, *args, **kwargs):
        self.ptr = NULL
        self.params = {}

    def __init__(self):
        raise TypeError("use one of the classes in pyllm.core.samplers, or Chain")

    def __dealloc__(self):
        if self.ptr != NULL and self.chain is None:
            lib.llama_sampler_free(self.ptr)
        self.ptr = NULL

    cdef int own(
        self, lib.llama_sampler * ptr, str function, dict params, model=None, cls=None, str message=None
    ) except -1:
        if self.ptr != NULL:
            if ptr != NULL:
                lib.llama_sampler_free(ptr)
            raise errors.SamplerError(f"this {type(self).__name__} has been initialised already")
        error.not_null(ptr, function, cls or errors.SamplerError, message)
        self.ptr = ptr
        self.params = params
        self.model = model
        return 0

    cdef lib.llama_sampler * require(self) except NULL:
        if self.ptr == NULL:
            raise errors.ClosedError(f"this {type(self).__name__} has been closed")
        if self.model is not None:
            (<Model> self.model).require()
        guard.enter()
        return self.ptr

    cdef Sampler root(self):
        sampler = self
        while sampler.chain is not None:
            sampler = sampler.chain
        return sampler

    cdef int check_fork(self) except -1:
        # Unlike a context it has no threads: a child can go on with what it inherited.
        if self.made_in_parent():
            if self.in_call:
                raise errors.ForkError(
                    f"another thread was using this {type(self).__name__} when os.fork() was called; "
                    "make a new one in the child"
                )
            self.lock_.renew()
            self.depth = 0
            self.generation = guard.fork_generation()
        return 0

    cdef list used_models(self):
        return [] if self.model is None else [self.model]

    cdef Sampler begin(self):
        cdef Sampler root
        cdef list models
        while True:
            root = self.root()
            root.acquire()
            if root is self.root():
                break
            root.release()  # it was added to a chain, or taken out of one, while we waited
        try:
            self.require()
            models = root.used_models()
            for i, model in enumerate(models):
                try:
                    (<Model> model).use()
                except BaseException:
                    for other in models[:i]:
                        (<Model> other).done()
                    raise
        except BaseException:
            root.release()
            raise
        root.in_call = True
        return root

    cdef int finish(self, Sampler root) except -1:
        root.in_call = False
        for model in root.used_models():
            (<Model> model).done()
        root.release()
        return 0

    def close(self):
        """Free the sampler. Closing twice is allowed; a member of a chain is freed with its chain.

        Wraps ``llama_sampler_free``.
        """
        root = self.root()
        root.acquire()
        try:
            if self.ptr != NULL and self.chain is None:
                guard.enter()
                lib.llama_sampler_free(self.ptr)
                self.forget()
        finally:
            root.release()

    cdef reach * within(self) except NULL:
        """Which tokens it can choose, for ``choose``; the caller holds its lock."""
        if not self.reach_known:
            self.reach_.k = 1 if (<bytes> lib.llama_sampler_name(self.ptr)) == b"greedy" else 0
            self.reach_known = True
        return &self.reach_

    cdef int forget(self) except -1:
        """The C object is gone, here and in whatever it owned."""
        self.ptr = NULL
        return 0

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        arguments = ", ".join([f"{key}={value!r}" for key, value in self.params.items()])
        return f"{type(self).__name__}({arguments})"

    @property
    def closed(self):
        """True after :meth:`close`."""
        return self.ptr == NULL

    @property
    def address(self):
        """Address of the ``llama_sampler`` (int), for code that speaks C."""
        return <uintptr_t> self.require()

    @property
    def name(self):
        """llama.cpp's name for it. Wraps ``llama_sampler_name``."""
        return (<bytes> lib.llama_sampler_name(self.require())).decode()

    @property
    def seed(self):
        """The seed in use (int), or None for a sampler without one. Wraps ``llama_sampler_get_seed``."""
        cdef uint32_t seed = lib.llama_sampler_get_seed(self.require())
        return self.params.get("seed") if seed == lib.LLAMA_DEFAULT_SEED else seed

    def sample(self, Context context not None, i=-1, *, index=None, row=None):
        """Choose a token from one output of the last decode, and accept it.

        Args:
            context: Where the logits are. What was written into ``context.logits`` counts.
            i: Which output; -1 is the last one. A number that is the index of a token in the batch and the row of
                another one in ``context.logits`` is an error: say which is meant.
            index: Which output, as the index of its token in the batch.
            row: Which output, as its row in ``context.logits``; negative counts from the end.

        Returns:
            int: The token id.

        Raises:
            NoOutputError: There are no logits at that index, or there is no such row.
            InvalidArgumentError: `i` can mean two outputs.
            SamplerError: The row has no answer: all of its logits are -inf or one is NaN, or the samplers have made
                it so. A token at +inf is forced, and of several one is chosen. Or the chain never selects a token; or
                the token was chosen on the device, by what ``Context.set_sampler`` attached.

        Wraps ``llama_sampler_sample``.
        """
        cdef int32_t c_i
        cdef int32_t token
        cdef Sampler root
        cdef reach * within
        context.acquire()
        try:
            root = self.begin()
            try:
                context.require()
                c_i = output_index(context, i, index, row)
                if context.n_outputs == 0 or lib.llama_get_logits_ith(context.ptr, c_i) == NULL:
                    error.fail(errors.NoOutputError, f"there are no logits at index {c_i} of the last batch")
                if context.n_samplers and lib.llama_get_sampled_token_ith(context.ptr, c_i) != lib.LLAMA_TOKEN_NULL:
                    self.check_attached(context, c_i)
                context.sync_shadow()
                within = self.within()
                context.in_call = True  # a sampler written in Python must not decode with it, or close it
                try:
                    with nogil:
                        token = choose(self.ptr, context.ptr, c_i, within[0])
                except (errors.BackendAssertError, errors.BackendError) as cause:
                    raise explain(cause) from cause
                finally:
                    context.in_call = False
                error.raise_stashed()
                return token
            finally:
                self.finish(root)
        finally:
            context.release()

    cdef int check_attached(self, Context context, int32_t i) except -1:
        # llama.cpp would return the token that is there, whatever this sampler has to say.
        if not any([self is chain for chain in context.samplers_.values()]):
            raise errors.SamplerError(
                f"the token of index {i} was chosen while it was computed, by the sampler of its sequence: read "
                "ctx.sampled, or take that sampler away with set_sampler(seq_id, None)"
            )
        return 0

    def apply(self, logits):
        """Apply the sampler to an array of logits, outside any context.

        Args:
            logits: float32, shape (n_vocab,); it is not changed.

        Returns:
            tuple: Arrays ``(ids, logits, probabilities)`` of the candidates that are left, int32 and float32 of
            shape (n,), and the id of the selected token or None.

        Raises:
            SamplerError: All logits are -inf or one is NaN, as for :meth:`sample`; or the selected token is forbidden.

        Wraps ``llama_sampler_apply``.
        """
        values = np.asarray(logits)
        if values.ndim != 1 or values.dtype.kind not in "fiu":
            raise errors.InvalidArgumentError(
                f"logits must be numbers of shape (n_vocab,), not {values.dtype} of shape {values.shape}"
            )
        values = np.ascontiguousarray(values, dtype=np.float32)
        if values.size == 0:
            raise errors.InvalidArgumentError("logits must be of shape (n_vocab,), and there are none")
        cdef const float[::1] view = values
        cdef size_t n = view.shape[0]
        cdef reach within
        cdef lib.llama_token_data_array array
        cdef Sampler root = self.begin()
        try:
            within.k = 0
            try:
                with nogil:
                    collect_row(within, &view[0], n, NO_BATCH)
                    array.data = within.candidates.data()
                    array.size = within.candidates.size()
                    array.selected = -1
                    array.sorted = False
                    lib.llama_sampler_apply(self.ptr, &array)
                    if array.selected >= 0:
                        check_choice(self.ptr, array, NO_BATCH)
            except (errors.BackendAssertError, errors.BackendError) as cause:
                raise explain(cause) from cause
            # A sampler written in Python has moved them to memory of its own, which is read under its lock.
            error.raise_stashed()
            return _candidates(&array)
        finally:
            self.finish(root)

    def accept(self, token):
        """Tell the sampler that a token was chosen (grammars and penalties remember it).

        Wraps ``llama_sampler_accept``.
        """
        cdef int32_t c_token = int32(token, "token")
        cdef Sampler root = self.begin()
        try:
            if c_token < 0:
                raise errors.InvalidArgumentError(f"{c_token} is not a token id")
            with nogil:
                lib.llama_sampler_accept(self.ptr, c_token)
        finally:
            self.finish(root)

    def reset(self):
        """Forget what was accepted, and start the random numbers anew. Wraps ``llama_sampler_reset``."""
        cdef Sampler root = self.begin()
        try:
            lib.llama_sampler_reset(self.ptr)
        finally:
            self.finish(root)

    def clone(self):
        """A sampler with the same state, independent from now on. Wraps ``llama_sampler_clone``."""
        cdef Sampler root = self.begin()
        cdef Sampler copy
        try:
            copy = type(self).__new__(type(self))
            copy.own(lib.llama_sampler_clone(self.ptr), "llama_sampler_clone", dict(self.params), self.model)
            copy._adopt(self)
            forget_pending(copy.ptr)
            return copy
        finally:
            self.finish(root)

    def _adopt(self, Sampler source):
        """Take over what `source` keeps alive."""


@cython.no_gc_clear
cdef class Chain(Sampler):
    """Samplers that are applied one after the other; the last one selects the token.

    Args:
        *samplers: Members, taken over by the chain. End with one that selects: Greedy, Dist, Mirostat,
            MirostatV2 or AdaptiveP.
        no_perf: Do not measure; see :meth:`perf`.

    Example:
        >>> chain = Chain(TopK(40), TopP(0.95), Temp(0.8), Dist(seed=42))
        >>> token = chain.sample(ctx)

    Wraps ``llama_sampler_chain_init`` and ``llama_sampler_chain_add``.
    """

    def __init__(self, *samplers, bint no_perf=True):
        cdef lib.llama_sampler_chain_params params = lib.llama_sampler_chain_default_params()
        params.no_perf = no_perf
        guard.enter()
        self.own(lib.llama_sampler_chain_init(params), "llama_sampler_chain_init", {})
        self.members = weakref.WeakValueDictionary()
        self.models = []
        self.kinds = {}
        for sampler in samplers:
            self.add(sampler)

    cdef lib.llama_sampler * require(self) except NULL:
        for model in self.models or ():
            (<Model> model).require()
        return Sampler.require(self)

    def add(self, Sampler sampler not None):
        """Append a sampler; the chain owns it from now on.

        Raises:
            SamplerError: It belongs to a chain already, or contains this one.

        Wraps ``llama_sampler_chain_add``.
        """
        root = self.root()
        if sampler is root:
            raise errors.SamplerError("a chain cannot be a member of itself")
        root.acquire()
        try:
            sampler.acquire()  # waits for a call that is using it by itself
            try:
                self.require()
                sampler.require()
                if sampler.chain is not None:
                    raise errors.SamplerError(f"{sampler!r} belongs to a chain already; add a .clone() of it")
                lib.llama_sampler_chain_add(self.ptr, sampler.ptr)
                sampler.chain = self
                self.members[<uintptr_t> sampler.ptr] = sampler
                self.kinds[<uintptr_t> sampler.ptr] = (type(sampler), sampler.params, sampler.model)
                self.reach_known = False
                self._adopt(sampler)
            finally:
                sampler.release()
        finally:
            root.release()
        return self

    cdef list used_models(self):
        return self.models or []

    def _adopt(self, Sampler source):
        if self.members is None:
            self.members = weakref.WeakValueDictionary()
            self.models = []
            self.kinds = {}
            self._copy_kinds(source)
        models = [source.model] if source.model is not None else []
        if isinstance(source, Chain):
            models += (<Chain> source).models
        self.models = self.models + [model for model in models if model not in self.models]
        if self.chain is not None:
            self.chain._adopt(source)

    cdef int _copy_kinds(self, Chain source) except -1:
        """For a clone: the same members stand at other addresses."""
        cdef int32_t i
        for i in range(lib.llama_sampler_chain_n(self.ptr)):
            kind = source.kinds.get(<uintptr_t> lib.llama_sampler_chain_get(source.ptr, i))
            if kind is not None:
                self.kinds[<uintptr_t> lib.llama_sampler_chain_get(self.ptr, i)] = kind
        return 0

    def remove(self, i):
        """Take the i-th sampler out of the chain.

        Returns:
            Sampler: It belongs to the caller now.

        Raises:
            IndexError: There is none.

        Wraps ``llama_sampler_chain_remove``.
        """
        cdef int32_t c_i = int32(i, "i")
        cdef Sampler sampler
        root = self.root()
        root.acquire()
        try:
            sampler = self[c_i]
            lib.llama_sampler_chain_remove(self.ptr, c_i if c_i >= 0 else len(self) + c_i)
            self.members.pop(<uintptr_t> sampler.ptr, None)
            self.kinds.pop(<uintptr_t> sampler.ptr, None)
            self.reach_known = False
            sampler.chain = None
            return sampler
        finally:
            root.release()

    cdef reach * within(self) except NULL:
        if not self.reach_known:
            self._find_reach()
            self.reach_known = True
        return &self.reach_

    cdef int _find_reach(self) except -1:
        """Of a chain like ``LogitBias, TopK, …``: the k largest, and those that are moved before."""
        cdef lib.llama_sampler * member
        self.reach_.k = 0
        self.reach_.moved.clear()
        for i in range(lib.llama_sampler_chain_n(self.ptr)):
            member = lib.llama_sampler_chain_get(self.ptr, i)
            name = <bytes> lib.llama_sampler_name(member)
            params = self.kinds.get(<uintptr_t> member, (None, {}))[1]
            if name == b"logit-bias" and "bias" in params and not self.reach_.moved.size():
                tokens = {operator.index(token) for token in params["bias"]}
                if len(params["bias"]) > MOST_MOVED or len(tokens) < len(params["bias"]):
                    return 0
                for token in sorted(tokens):
                    self.reach_.moved.push_back(token)
                continue
            if name == b"greedy":
                self.reach_.k = 1
            elif name == b"top-k" and "k" in params:
                self.reach_.k = max(params["k"], 0)
            return 0
        return 0

    cdef int forget(self) except -1:
        for member in list(self.members.values()):
            (<Sampler> member).forget()
        return Sampler.forget(self)

    def __len__(self):
        return lib.llama_sampler_chain_n(self.require())

    def __getitem__(self, i):
        cdef int32_t c_i = int32(i, "i")
        cdef int32_t n = len(self)
        if not -n <= c_i < n:
            raise IndexError(f"the chain has {n} samplers, there is no index {c_i}")
        cdef lib.llama_sampler * ptr = lib.llama_sampler_chain_get(self.require(), c_i if c_i >= 0 else n + c_i)
        found = self.members.get(<uintptr_t> ptr)
        return found if found is not None else wrap_member(self, ptr)

    def __iter__(self):
        return iter([self[i] for i in range(len(self))])

    def __repr__(self):
        if self.ptr == NULL:
            return "Chain(closed)"
        return f"Chain({', '.join([repr(sampler) for sampler in self])})"

    def perf(self):
        """Milliseconds spent and tokens sampled (dict); zeros unless made with no_perf=False.

        Wraps ``llama_perf_sampler``.
        """
        cdef lib.llama_perf_sampler_data data = lib.llama_perf_sampler(self.require())
        return {"t_sample_ms": data.t_sample_ms, "n_sample": data.n_sample}

    def perf_reset(self):
        """Start measuring anew. Wraps ``llama_perf_sampler_reset``."""
        lib.llama_perf_sampler_reset(self.require())


cdef int forget_pending(lib.llama_sampler * ptr) except -1:
    """A cloned adaptive-p sampler remembers a choice without the probabilities it would need to accept it."""
    cdef int32_t i
    if lib.llama_sampler_chain_get(ptr, -1) != NULL:
        for i in range(lib.llama_sampler_chain_n(ptr)):
            forget_pending(lib.llama_sampler_chain_get(ptr, i))
    elif (<bytes> lib.llama_sampler_name(ptr)) == b"adaptive-p":
        lib.llama_sampler_accept(ptr, -2)  # no token: any other than the remembered one clears it
    return 0


cdef Sampler wrap_member(Chain chain, lib.llama_sampler * ptr):
    """A Sampler for a member of a chain whose first one is gone."""
    cls, params, model = chain.kinds.get(<uintptr_t> ptr, (Sampler, {}, None))
    cdef Sampler self = cls.__new__(cls)
    self.params = params
    self.model = model
    if isinstance(self, Chain):
        (<Chain> self).members = weakref.WeakValueDictionary()
        (<Chain> self).models = list(chain.models)
        (<Chain> self).kinds = {}
    self.ptr = ptr
    self.chain = chain
    chain.members[<uintptr_t> ptr] = self
    return self


cdef object explain(object cause):
    _, mark, words = cause.message.partition(CANNOT_CHOOSE)
    if mark:
        return errors.SamplerError(CANNOT_CHOOSE + words, function="llama_sampler_sample")
    if "cur_p->size > 0" in str(cause):
        return errors.SamplerError(
            CANNOT_CHOOSE + "the samplers have dropped all, and the next one needs some",
            function="llama_sampler_sample",
        )
    if "selected" in str(cause):
        return errors.SamplerError(
            "the sampler never selects a token: end the chain with Greedy(), Dist(), Mirostat(), MirostatV2() or "
            "AdaptiveP()", function="llama_sampler_sample", log=cause.log,
        )
    if "no token of the vocabulary" in str(cause):
        return errors.GrammarError("no token of the vocabulary continues the text as the grammar demands")
    return cause


cdef tuple _candidates(lib.llama_token_data_array * array):
    cdef Py_ssize_t i, n = <Py_ssize_t> array.size
    ids, logits, probs = np.empty(n, np.int32), np.empty(n, np.float32), np.empty(n, np.float32)
    cdef int32_t[::1] ids_view = ids
    cdef float[::1] logits_view = logits
    cdef float[::1] probs_view = probs
    for i in range(n):
        ids_view[i] = array.data[i].id
        logits_view[i] = array.data[i].logit
        probs_view[i] = array.data[i].p
    selected = array.data[array.selected].id if 0 <= array.selected < n else None
    return ids, logits, probs, selected
