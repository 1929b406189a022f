"""A model at work: the KV cache and the output buffer."""

from libc.stdint cimport int8_t, int32_t, int64_t
from libcpp cimport bool

from pyllm.core.batch cimport Batch
from pyllm.core.context_params cimport ContextArguments
from pyllm.core.context_settings cimport ContextSettings
from pyllm.core.rpc cimport rpc_peers
from pyllm.core.tap cimport tap
from pyllm.core.view cimport OutputMemory
from pyllm.includes cimport llama as lib


cdef extern from "pyllm/core/interrupt.hpp" namespace "pyllm" nogil:
    cdef cppclass interrupt:
        bool (*poll)(void * owner) noexcept
        bool (*is_finalizing)() noexcept
        void * owner

        void begin(bool watch) noexcept
        bool requested
        void request() noexcept
        bool take_request() noexcept

        @staticmethod
        bool callback(void * data) noexcept


cdef class Context(ContextSettings):
    cdef bint borrowed                    # C code owns ptr, and frees it
    cdef object owner                     # kept alive for a context that is borrowed: what owns ptr
    cdef interrupt stop                   # what llama.cpp asks between graph nodes
    cdef tap tap_                         # what reads and writes tensors of the graph; see core.capture
    cdef readonly bint capture            # whether llama.cpp calls it
    cdef int64_t layer_floats             # floats of the output buffer that hold inputs of layers
    cdef tuple layer_inputs               # the layers whose inputs are output; None is none
    cdef object abort_callback_           # the user's, asked every 20 ms
    cdef bint has_abort_callback
    cdef int64_t decodes                  # counts decodes: outputs of an older one are stale
    cdef readonly int32_t n_outputs       # rows that the last decode produced; 0 after a failed one
    cdef OutputMemory output_memory       # the output buffer, which arrays keep when llama.cpp lets go of it
    cdef object logits_                   # the Outputs of the last decode, or None; they hold no context
    cdef object token_embeddings          # the same
    cdef bint warned_of_views             # about arrays of several earlier decodes
    cdef bint kv_unified                  # one cache for all sequences
    cdef bint bf16_keys                   # ggml cannot shift those
    cdef bint poison                      # debug: outputs are copies that turn to NaN when they go stale
    cdef dict shadows                     # debug: kind of output -> that copy
    cdef readonly tuple adapters          # (LoraAdapter, scale) in use: llama.cpp keeps pointers to them
    cdef bint has_control_vector
    cdef dict samplers_                   # sequence -> Chain that runs in the graph: llama.cpp keeps pointers to them
    cdef int32_t n_samplers               # their number, for code without the GIL
    cdef bint raw_logits                  # whether llama.cpp fetched the logits of the last decode
    cdef bint is_t5                       # llama.cpp makes room for embeddings then, asked for or not
    cdef bint f32_cache                   # keys and values are float32, through which gradients can flow
    cdef bint trained                     # llama_opt_init was called; it allows that once
    cdef dict device_states               # sequence -> the ticket of what was saved on the device
    cdef bytes fingerprint                # of the model, for saved states; None until it is asked for
    # constants of model and context, read once
    cdef readonly int32_t n_vocab
    cdef int32_t n_embd_out
    cdef int32_t n_embd_inp
    cdef int32_t n_pos_per_embd
    cdef int32_t n_batch_
    cdef int32_t n_ubatch_
    cdef int32_t n_seq_max_
    cdef int unapplied                    # what the next decode does to the memory first, see core.memory
    cdef rpc_peers * peers                # servers that compute layers; NULL: there are none

    cdef int free_now(self) except -1
    cdef int _read_constants(self, ContextArguments arguments) except -1
    cdef int _run(self, Batch batch, bint encode) except -1
    cdef int _check_batch(self, Batch batch, bint encode) except -1
    cdef int _check_call(self, int32_t n, bint encode) except -1
    cdef bint _needs_raw_logits(self, Batch batch, bint output_all)
    cdef int64_t _floats(self, int32_t n_outputs) noexcept nogil
    cdef bint has_room_for(self, int32_t n_outputs) noexcept
    cdef bint outputs_all(self, bint encode) noexcept nogil
    cdef int forget_outputs(self) except -1
    cdef int _expire(self, object error=*, str message=*) except -1
    cdef int _warn_of_views(self) except -1
    # Lets arrays keep the output buffer; llama.cpp makes another one in its next decode.
    cdef int give_up_buffer(self) except -1
    cdef int prepare(self, int32_t n_outputs) except -1
    cdef int32_t ready_for(self, Batch batch, bint encode) except -1
    # The one place that computes, either kind of batch: `wanted` says of each of its tokens whether its outputs are
    # asked for, which are `n_outputs` together. The caller holds the lock and has called prepare().
    cdef int compute(
        self, lib.llama_batch * batch, lib.llama_batch_ext * ext, const int8_t * wanted, int32_t n_tokens,
        int32_t n_outputs, bint encode
    ) except -99 nogil
    cdef int decode_unchecked(self, lib.llama_batch batch, int32_t n_outputs, bint encode) except -99 nogil
    cdef int raise_for(self, int code, str function) except -1
    cdef int sync_shadow(self) except -1
    cdef int _check_pooling(self, Batch batch) except -1
    # Around calls of llama_decode and the like that others make; see raw_access().
    cdef int begin_raw(self) except -1
    cpdef outputs_changed(self)
    # Raises if a server that computes layers was lost: what came from it since is not to be used.
    cdef int check_peers(self, str function) except -1
