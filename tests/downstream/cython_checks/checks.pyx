"""What the tests ask of the declarations besides; built as a module of the package `every_other`."""

from libc.stdint cimport int32_t, uintptr_t

from pyllm.core cimport Batch, Chain, Context, LoraAdapter, Memory, Model, Sampler, Vocab
from pyllm.includes cimport llama as lib


def count_special(Model model not None):
    """The number of control tokens: one C call for each token, and no Python."""
    cdef const lib.llama_vocab * vocab = (<Vocab> model.vocab).require()
    cdef int32_t token
    cdef int32_t n = 0
    for token in range(lib.llama_vocab_n_tokens(vocab)):
        n += lib.llama_vocab_is_control(vocab, token)
    return n


def assertion(Context context not None):
    """What llama.cpp throws, or asserts, is a Python exception here too."""
    lib.llama_vocab_get_text((<Vocab> context.model.vocab).require(), 1 << 30)


def addresses(Model model not None, Context context not None, Chain chain not None):
    """What require() and use() return, as numbers; begin_raw(), acquire() and their counterparts are called."""
    cdef Vocab vocab = model.vocab
    cdef Memory memory = context.memory
    cdef Sampler sampler = chain
    found = [
        <uintptr_t> model.require(), <uintptr_t> vocab.require(), <uintptr_t> context.require(),
        <uintptr_t> memory.require(), <uintptr_t> sampler.require(),
    ]
    found.append(<uintptr_t> model.use())
    model.done()
    found.append(<uintptr_t> vocab.use())
    model.done()
    context.acquire()
    context.begin_raw()
    context.outputs_changed()
    context.release()
    sampler.acquire()
    sampler.release()
    return found


def classes():
    """The public classes, as this module has imported them, after their sizes were compared."""
    return Batch, Chain, Context, LoraAdapter, Memory, Model, Sampler, Vocab
