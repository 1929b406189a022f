"""Training of all weights of a model (wraps ``llama_opt_*`` and the datasets and results of ``ggml-opt.h``)."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy
from libcpp cimport bool

import numpy as np

from pyllm import errors
from pyllm.core cimport error, guard
from pyllm.core.arguments cimport int32, number
from pyllm.core.batch cimport Batch
from pyllm.core.context cimport Context
from pyllm.includes cimport ggml
from pyllm.includes cimport ggml_backend
from pyllm.includes cimport ggml_opt as opt
from pyllm.includes cimport llama as lib


cdef extern from "training.hpp" namespace "pyllm" nogil:
    cdef cppclass step_settings:
        float lr
        float beta1
        float beta2
        float eps
        float wd

        @staticmethod
        opt.ggml_opt_optimizer_params get(void * userdata) noexcept


cdef dict OPTIMIZERS = {
    "adamw": <int> opt.GGML_OPT_OPTIMIZER_TYPE_ADAMW,
    "sgd": <int> opt.GGML_OPT_OPTIMIZER_TYPE_SGD,
}


cdef bool is_parameter(const ggml.ggml_tensor * tensor, void * trainer) noexcept nogil:
    cdef bool result = False
    if guard.begin_python():
        result = ask_filter(tensor, trainer)
        guard.end_python()
    return result


cdef bool ask_filter(const ggml.ggml_tensor * tensor, void * trainer) noexcept with gil:
    self = <Trainer> trainer
    try:
        return self.choose(tensor)
    except BaseException as exception:
        error.stash(exception)
        return False


def windows(tokens, n_ctx, stride=None):
    """Cut a text into windows for training, each with the tokens that follow its own.

    Args:
        tokens: Token ids, shape (n,).
        n_ctx: Tokens in a window: ``Context.n_ctx`` of the context that trains.
        stride: From the start of one window to the next; None takes half of n_ctx.

    Returns:
        numpy.ndarray: int32, shape (windows, n_ctx + 1).

    Raises:
        InvalidArgumentError: The tokens do not fill one window.
    """
    ids = np.asarray(tokens)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise errors.InvalidArgumentError(f"tokens must be integers of shape (n,), not {ids.dtype} of {ids.shape}")
    n_ctx = int32(n_ctx, "n_ctx")
    step = max(1, n_ctx // 2) if stride is None else int32(stride, "stride")
    if n_ctx < 1 or step < 1:
        raise errors.InvalidArgumentError(f"n_ctx and stride must be at least 1, not {n_ctx} and {step}")
    if len(ids) < n_ctx + 1:
        raise errors.InvalidArgumentError(f"{len(ids)} tokens do not fill a window of n_ctx + 1 = {n_ctx + 1}")
    starts = np.arange(0, len(ids) - n_ctx, step)
    return ids[starts[:, None] + np.arange(n_ctx + 1)].astype(np.int32)


@cython.no_gc_clear
cdef class Trainer:
    """Trains the weights of a model by gradient descent on next-token prediction.

    The weights change in memory, for every context of the model; ``Model.save`` writes them to a file. What the
    optimizer needs takes about three times the memory of the model beside it.

    Three things to know: saving needs a model that was loaded with ``use_extra_bufts=False``, because weights that
    were repacked for the CPU cannot be read back. ``n_ctx_train`` of the model becomes n_ctx, and so does what is
    saved; load the file with ``kv_overrides`` where the former length matters. And all windows are computed by as
    many threads as ``n_threads_batch`` of the context says when the Trainer is made.

    Args:
        context: It must have ``type_k="f32", type_v="f32"``, and sizes of which each divides the one before: n_ctx,
            n_batch, n_ubatch. Make all three equal, or keys and values get no gradients. Its model must be F32
            throughout and loaded with ``load_mode="none"``. What is in its KV cache is lost, flash attention is off
            from now on, and with three equal sizes it cannot decode any more: use another context of the model for
            that. A context takes one Trainer.
        optimizer: "adamw" or "sgd".
        lr: Learning rate, from 0 (excluded) on. It can be set between epochs.
        weight_decay: From 0 to 1.
        beta1: First momentum of AdamW, from 0 to 1 (excluded).
        beta2: Second momentum of AdamW.
        eps: Keeps AdamW from dividing by nothing.
        param_filter: Called once for each tensor as ``param_filter(name, shape)``; those for which it returns True
            are trained. None trains all except token embeddings, which llama.cpp never trains.

    Raises:
        ContextError: The context or its model cannot be trained; the message says what to change.
        InvalidArgumentError: A number is out of range, or the filter chose nothing.
        DecodeAborted: The context's ``abort()`` was called before.
        ForkError: The context was made in the parent process.

    Wraps ``llama_opt_init``.
    """

    cdef readonly Context context          # holds the optimizer's state in C, until it is closed
    cdef step_settings settings            # llama.cpp keeps a pointer to it
    cdef object param_filter
    cdef bint mapped                       # a weight lies in a file: writing it would end the process
    cdef readonly list parameters          # names of the tensors that are trained
    cdef readonly str optimizer
    cdef bint broken                       # a window was left half done

    def __cinit__(
        self, Context context not None, *, optimizer="adamw", lr=1e-4, weight_decay=0.0, beta1=0.9, beta2=0.999,
        eps=1e-8, param_filter=None,
    ):
        cdef lib.llama_opt_params params
        if optimizer not in OPTIMIZERS:
            raise errors.InvalidArgumentError(f"optimizer={optimizer!r} is not one of {', '.join(OPTIMIZERS)}")
        if param_filter is not None and not callable(param_filter):
            raise TypeError("param_filter must be callable or None")
        self.context = context
        self.optimizer = optimizer
        self.param_filter = param_filter
        self.parameters = []
        self.lr = lr
        self.settings.wd = number(weight_decay, "weight_decay", 0, 1)
        self.settings.beta1 = number(beta1, "beta1", 0, 0.999999)
        self.settings.beta2 = number(beta2, "beta2", 0, 0.999999)
        self.settings.eps = number(eps, "eps", 0, 1)
        context.acquire()
        try:
            context.require()
            self.check_context()
            self.use_threads()
            context.prepare(context.n_batch_)
            context.n_outputs = 0
            params.n_ctx_train = 0  # that of the context
            params.param_filter = is_parameter
            params.param_filter_ud = <void *> self
            params.get_opt_pars = step_settings.get
            params.get_opt_pars_ud = &self.settings
            params.optimizer_type = <opt.ggml_opt_optimizer_type> <int> OPTIMIZERS[optimizer]
            context.trained = True  # llama.cpp takes no second one, even when this one fails
            context.require()
            with nogil:
                lib.llama_opt_init(context.ptr, context.model.ptr, params)
            error.raise_stashed()
            if self.mapped:
                raise errors.ContextError(
                    "the weights are mapped from their file and cannot be written: load the model with "
                    "load_mode='none', and make a new context"
                )
            if not self.parameters:
                raise errors.InvalidArgumentError("there is no tensor to train: param_filter refused all of them")
        finally:
            context.release()

    cdef int check_context(self) except -1:
        cdef Context context = self.context
        model = context.model
        n_ctx, n_batch, n_ubatch = lib.llama_n_ctx(context.ptr), context.n_batch_, context.n_ubatch_
        if context.trained:
            raise errors.ContextError("this context had a Trainer already; llama.cpp takes one for each context")
        if model.no_alloc:
            raise errors.ContextError("the model was loaded with no_alloc=True: it has no weights to train")
        if not context.has_memory or model.has_encoder or model.is_recurrent or model.is_hybrid:
            raise errors.ContextError(
                "only decoders with attention can be trained: for other layers ggml has no backward pass"
            )
        if not context.f32_cache:
            raise errors.ContextError("training needs a cache of float32: make the context with type_k=type_v='f32'")
        if n_ctx % n_batch or n_batch % n_ubatch:
            raise errors.ContextError(
                f"n_batch must divide n_ctx, and n_ubatch n_batch; they are n_ctx={n_ctx}, n_batch={n_batch}, "
                f"n_ubatch={n_ubatch}"
            )
        if context.n_seq_max_ != 1 and lib.llama_n_ctx_seq(context.ptr) != n_ctx:
            raise errors.ContextError(
                f"a window fills one sequence: make the context with n_seq_max=1, not {context.n_seq_max_}"
            )
        self.check_samplers()
        if model.size != 4 * model.n_params:
            raise errors.ContextError(
                f"training needs a model of float32 throughout, of {4 * model.n_params} bytes, and this one has "
                f"{model.size}: convert it to F32 first"
            )
        return 0

    cdef int check_samplers(self) except -1:
        # Their operations would be in the graph, where ggml has no room for them and no backward pass.
        if self.context.n_samplers:
            raise errors.ContextError(
                f"{self.context.n_samplers} sequence(s) of the context have a sampler in its graph; "
                "take them away with set_sampler(seq_id, None) before training"
            )
        return 0

    cdef int use_threads(self) except -1:
        """Decode two tokens: only a decode tells the backend how many threads to use.

        Training does not, and four threads on fewer cores wait for each other a hundred times longer than they work.
        """
        cdef Context context = self.context
        cdef int32_t n = min(2, context.n_batch_)
        lib.llama_memory_clear(lib.llama_get_memory(context.ptr), False)
        context._run(Batch.from_arrays(np.zeros(n, np.int32)), False)
        lib.llama_memory_clear(lib.llama_get_memory(context.ptr), False)
        return 0

    cdef bool choose(self, const ggml.ggml_tensor * tensor) except *:
        cdef int i, n = 4
        name = (<bytes> tensor.name).decode("utf-8", "replace")
        if tensor.buffer != NULL:
            buffer = (<bytes> ggml_backend.ggml_backend_buffer_name(tensor.buffer)).decode("utf-8", "replace")
            if buffer.endswith("_Mapped"):
                self.mapped = True
                return False
        if name in ("token_embd.weight", "rope_freqs.weight"):
            return False
        while n > 1 and tensor.ne[n - 1] == 1:
            n -= 1
        shape = tuple([tensor.ne[i] for i in range(n - 1, -1, -1)])
        if self.param_filter is not None and not self.param_filter(name, shape):
            return False
        if name not in self.parameters:
            self.parameters.append(name)
        return True

    @property
    def lr(self):
        """The learning rate of the next epoch (float)."""
        return self.settings.lr

    @lr.setter
    def lr(self, value):
        cdef float rate = number(value, "lr", 0, 1e6)
        if rate <= 0:
            raise errors.InvalidArgumentError(f"lr must be greater than 0, not {value}")
        self.settings.lr = rate

    def epoch(self, tokens, *, val_split=0.0, stride=None, shuffle=None, progress=None):
        """Go once through a text: train on its front, evaluate on its end.

        Args:
            tokens: Token ids: shape (n,), cut into windows as :func:`windows` does; or windows of shape
                (n, n_ctx + 1).
            val_split: The part of the windows, counted from the end, that is only evaluated; 1 trains nothing.
            stride: For tokens of shape (n,), from one window to the next; None takes half of n_ctx.
            shuffle: Seed of the order in which windows are trained on; None keeps theirs.
            progress: Called after each window as ``progress(train, i, n, loss)``, with the mean loss so far. What
                it raises ends the epoch and is raised here; the windows before have been learned.

        Returns:
            dict: ``train_loss``, ``train_accuracy``, ``val_loss`` and ``val_accuracy``: mean negative log-likelihood
            in nats, and the part of tokens that were likeliest; NaN where there were no windows; ``train_windows``
            and ``val_windows``, their numbers.

        Raises:
            InvalidArgumentError: The tokens do not fit, or the split leaves nothing.
            DecodeAborted: The context's ``abort()`` was called. The weights may be half changed.
            BackendAssertError: ggml has no gradient for an operation of the model, such as GEGLU or experts. The
                trainer cannot be used after that.
            KeyboardInterrupt: Ctrl-C, after the window that was being computed.

        What is in the KV cache is lost. Wraps ``llama_opt_epoch``, called once for each window.
        """
        cdef Context context = self.context
        cdef int32_t n_ctx = <int32_t> context.n_ctx
        cdef double split = number(val_split, "val_split", 0, 1)
        data = np.asarray(tokens)
        if data.ndim == 1:
            data = windows(data, n_ctx, stride)
        if data.ndim != 2 or data.shape[1] != n_ctx + 1 or data.dtype.kind not in "iu" or len(data) == 0:
            raise errors.InvalidArgumentError(
                f"windows must be integers of shape (n, n_ctx + 1 = {n_ctx + 1}), not {data.dtype} of {data.shape}"
            )
        if data.min() < 0 or data.max() >= context.n_vocab:
            raise errors.InvalidArgumentError(
                f"token ids go from 0 to {context.n_vocab - 1}, and these from {data.min()} to {data.max()}"
            )
        data = np.ascontiguousarray(data, dtype=np.int32)
        n_train = len(data) - round(split * len(data))
        order = np.arange(n_train)
        if shuffle is not None:
            np.random.default_rng(shuffle).shuffle(order)
        result = {}
        for train, rows in ((True, data[order]), (False, data[n_train:])):
            name = "train" if train else "val"
            results = Results()
            for i in range(len(rows)):
                PyErr_CheckSignals()
                self.window(rows[i], train, results)
                if progress is not None:
                    progress(train, i + 1, len(rows), results.loss)
            result[f"{name}_loss"] = results.loss
            result[f"{name}_accuracy"] = results.accuracy
            result[f"{name}_windows"] = len(rows)
        return result

    cdef int window(self, row, bint train, Results results) except -1:
        """One window at a time: between two of them Python runs, and an error leaves nothing half done."""
        cdef Context context = self.context
        cdef const int32_t[::1] ids = row
        cdef int32_t n = <int32_t> ids.shape[0] - 1
        cdef opt.ggml_opt_dataset_t dataset
        cdef opt.ggml_opt_result_t result = results.ptr
        context.acquire()
        try:
            context.require()
            if self.broken:
                raise errors.ContextError(
                    "an earlier window failed half way and llama.cpp cannot go on from there: load the model again"
                )
            self.check_samplers()
            context.prepare(context.n_batch_)
            context.n_outputs = 0
            dataset = opt.ggml_opt_dataset_init(ggml.GGML_TYPE_I32, ggml.GGML_TYPE_I32, n, n, 1, 1)
            try:
                memcpy(opt.ggml_opt_dataset_data(dataset).data, &ids[0], n * sizeof(int32_t))
                memcpy(opt.ggml_opt_dataset_labels(dataset).data, &ids[1], n * sizeof(int32_t))
                # Ctrl-C is looked for between windows: one that stops inside would leave weights half changed.
                context.stop.begin(False)
                guard.begin_native()
                context.in_call = True
                self.broken = True
                try:
                    with nogil:
                        context.lock_pool()
                        lib.llama_opt_epoch(context.ptr, dataset, result, result, 1 if train else 0, NULL, NULL)
                finally:
                    context.unlock_pool()
                    context.in_call = False
                    guard.end_native()
            finally:
                opt.ggml_opt_dataset_free(dataset)
            if context.stop.take_request():
                error.fail(errors.DecodeAborted, "training was aborted; the weights may be half changed")
            self.broken = False
            return 0
        finally:
            context.release()

    def __repr__(self):
        return f"<Trainer: {self.optimizer}, lr={self.lr:g}, {len(self.parameters)} tensors>"


@cython.internal
cdef class Results:
    """The losses of the windows so far."""

    cdef opt.ggml_opt_result_t ptr

    def __cinit__(self):
        self.ptr = opt.ggml_opt_result_init()

    def __dealloc__(self):
        if self.ptr != NULL:
            opt.ggml_opt_result_free(self.ptr)
            self.ptr = NULL

    @property
    def loss(self):
        cdef double value = 0, uncertainty = 0
        cdef int64_t n = 0
        opt.ggml_opt_result_ndata(self.ptr, &n)
        opt.ggml_opt_result_loss(self.ptr, &value, &uncertainty)
        return value if n else float("nan")

    @property
    def accuracy(self):
        cdef double value = 0, uncertainty = 0
        cdef int64_t n = 0
        opt.ggml_opt_result_ndata(self.ptr, &n)
        if n:
            opt.ggml_opt_result_accuracy(self.ptr, &value, &uncertainty)
        return value if n else float("nan")
