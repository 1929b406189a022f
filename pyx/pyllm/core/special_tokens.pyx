"""Texts in which some control tokens are meant and others are only quoted."""

from weakref import WeakKeyDictionary

from libc.stdint cimport int32_t
from libcpp cimport bool
from libcpp.string cimport string
from libcpp.vector cimport vector

import numpy as np

from pyllm import enums, errors
from pyllm.core.vocab cimport Vocab
from pyllm.includes cimport llama as lib
from pyllm.includes._translate cimport translate


cdef extern from "special_tokens.hpp" namespace "pyllm" nogil:
    cdef cppclass text_piece:
        int32_t token
        size_t begin
        size_t end

    cdef cppclass special_tokens:
        void add(const string & text, int32_t id, bool control, bool lstrip, bool rstrip) except +translate
        void sort() except +translate
        bool divide(const string & text, const string & marks, vector[text_piece] & pieces) except +translate


# By model, whose vocabularies are all the same; the entry goes with it.
cdef object _known = WeakKeyDictionary()


cdef class _SpecialTokens:
    """The special tokens of a vocabulary, longest first."""

    cdef special_tokens c

    def __cinit__(self, Vocab vocab):
        cdef int32_t i
        cdef string text
        cdef const lib.llama_vocab * ptr = vocab.require()
        cdef int control = int(enums.TokenAttr.CONTROL | enums.TokenAttr.UNKNOWN)
        cdef int special = control | int(enums.TokenAttr.USER_DEFINED)
        cdef int lstrip = int(enums.TokenAttr.LSTRIP)
        cdef int rstrip = int(enums.TokenAttr.RSTRIP)
        cdef int attr
        for i in range(vocab.n_tokens):
            attr = <int> lib.llama_vocab_get_attr(ptr, i)
            if attr & special:
                text = string(lib.llama_vocab_get_text(ptr, i))
                self.c.add(text, i, (attr & control) != 0, (attr & lstrip) != 0, (attr & rstrip) != 0)
        self.c.sort()


def tokenize_marked_array(Vocab vocab not None, bytes text not None, bytes marks not None, *, bint close=True):
    """Tokenize a text that is not all from one hand: control tokens count only outside of its marked bytes.

    A text with no control tokens in marked bytes gives the same tokens as ``vocab.tokenize`` of the whole. Special
    tokens that are not control tokens (type USER_DEFINED) are text to llama.cpp, and read wherever they stand.

    Args:
        vocab: The vocabulary.
        text: The text, UTF-8.
        marks: As many bytes as the text has. A control token is one only where all its bytes are marked 0.
        close: Put an EOS or separator at the end, if the model is configured so.

    Returns:
        numpy.ndarray: int32, shape (n,). BOS is added where the model is configured so, unless the text begins with it.

    Raises:
        InvalidArgumentError: There are more or fewer marks than bytes.
        TokenizeError: See :meth:`pyllm.core.vocab.Vocab.tokenize`.
    """
    cdef string c_text = text
    cdef string c_marks = marks
    cdef vector[text_piece] pieces
    cdef bool hidden
    cdef size_t i
    cdef _SpecialTokens special
    if len(text) != len(marks):
        raise errors.InvalidArgumentError(f"{len(marks)} marks for a text of {len(text)} bytes")
    if vocab.type == enums.VocabType.NONE:
        raise errors.TokenizeError("this model has no tokenizer (vocabulary type NONE)")
    special = _known.get(vocab.model)
    if special is None:
        special = _known[vocab.model] = _SpecialTokens(vocab)
    with nogil:
        hidden = special.c.divide(c_text, c_marks, pieces)
    if hidden:
        parts = [np.empty(0, np.int32)]
        for i in range(pieces.size()):
            if pieces[i].token >= 0:
                parts.append(np.array([pieces[i].token], np.int32))
            else:
                parts.append(vocab.tokenize_array(text[pieces[i].begin:pieces[i].end], add_special=False))
        ids = np.concatenate(parts)
    else:
        ids = vocab.tokenize_array(text, add_special=False, parse_special=True)
    # What the tokenizer puts around an empty text it puts around any.
    around = vocab.tokenize_array(b"", add_special=True)
    has_end = len(around) > 0 and (vocab.add_eos or len(around) > 1)
    before, after = (around[:-1], around[-1:]) if has_end else (around, around[:0])
    if len(before) and len(ids) and ids[0] == before[0]:
        before = before[:0]
    if not close or (len(after) and len(ids) and ids[-1] == after[-1]):
        after = after[:0]
    return np.concatenate([before, ids, after])
