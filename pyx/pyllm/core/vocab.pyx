"""The tokenizer of a model (wraps ``llama_vocab``)."""

cimport cython
from libc.limits cimport INT_MIN
from libc.stdint cimport int32_t, uintptr_t
from libcpp cimport bool
from libcpp.string cimport string
from libcpp.vector cimport vector

import numpy as np

from pyllm import enums
from pyllm.errors import InvalidArgumentError, TokenizeError
from pyllm.core.introspection import signature
from pyllm.core.arguments cimport int32
from pyllm.core cimport guard
from pyllm.core.model cimport Model
from pyllm.includes cimport llama as lib
from pyllm.includes._translate cimport translate


cdef extern from "big_stack.hpp" namespace "pyllm" nogil:
    int32_t tokenize_text "pyllm::tokenize"(
        const lib.llama_vocab * vocab, const char * text, int32_t length, int32_t * tokens, int32_t n_max,
        bool add_special, bool parse_special, void (*enter)() noexcept,
    ) except +translate


@cython.no_gc_clear
cdef class Vocab:
    """The tokenizer of a model: text to token ids and back.

    All methods are thread-safe, and tokenizing releases the GIL. ``model.vocab`` is the usual way to get one.
    Token ids are lists, to which ``+`` appends; arrays come from the methods that say so in their name.

    Example:
        >>> vocab = model.vocab
        >>> ids = vocab.tokenize("Hello", add_special=False) + vocab.tokenize(" world", add_special=False)
        >>> vocab.detokenize(ids)
        'Hello world'
        >>> vocab.tokenize_array("Hello world").dtype
        dtype('int32')
    """

    __signature__ = signature

    def __cinit__(self, Model model not None):
        self.model = model
        self.ptr = lib.llama_model_get_vocab(model.require())
        self.n_tokens = lib.llama_vocab_n_tokens(self.ptr)

    cdef const lib.llama_vocab * require(self) except NULL:
        self.model.require()
        return self.ptr

    cdef const lib.llama_vocab * use(self) except NULL:
        self.model.use()
        return self.ptr

    cdef int check_token(self, long long token) except -1:
        if token < 0 or token >= self.n_tokens:
            raise InvalidArgumentError(
                f"token {token} is not in the vocabulary: ids go from 0 to {self.n_tokens - 1}"
            )
        return 0

    def __reduce__(self):
        return type(self), (self.model,), getattr(self, "__dict__", None)

    def __copy__(self):
        return self  # nothing of it can change

    def __deepcopy__(self, memo):
        return self

    def __len__(self):
        return self.n_tokens

    def __repr__(self):
        if self.model.closed:
            return "<Vocab of a closed model>"
        return f"<Vocab {self.type.name}: {self.n_tokens} tokens>"

    @property
    def address(self):
        """Address of the ``llama_vocab`` (int), for code that speaks C."""
        return <uintptr_t> self.require()

    @property
    def tokenize_address(self):
        """Address of the function ``llama_tokenize`` (int), for libraries that call it themselves."""
        return <uintptr_t> <void *> lib.llama_tokenize

    @property
    def type(self):
        """How the tokenizer works (:class:`pyllm.enums.VocabType`). Wraps ``llama_vocab_type``."""
        return enums.VocabType(<int> lib.llama_vocab_get_type(self.require()))

    # ---- text and tokens

    def tokenize(self, text, *, bint add_special=True, bint parse_special=False):
        """Turn text into token ids.

        Args:
            text: str (encoded as UTF-8) or bytes.
            add_special: Add BOS and EOS where the model is configured so.
            parse_special: Read control tokens such as ``<|im_end|>`` in the text as tokens, not as text. Leave it
                off for text that comes from others.

        Returns:
            list[int]: Token ids.

        Raises:
            TokenizeError: The text is too long, or bytes that are not UTF-8 which this kind of tokenizer cannot
                take, or the model has no tokenizer.

        Wraps ``llama_tokenize``.
        """
        return self.tokenize_array(text, add_special=add_special, parse_special=parse_special).tolist()

    def tokenize_array(self, text, *, bint add_special=True, bint parse_special=False):
        """As :meth:`tokenize`, as an array: for long texts, and for arithmetic on ids.

        Returns:
            numpy.ndarray: Token ids, int32, shape (n,).

        Wraps ``llama_tokenize``.
        """
        if not isinstance(text, (str, bytes, bytearray, memoryview)):
            raise TypeError(f"text must be str or bytes, not {type(text).__name__}")
        cdef bytes encoded = text.encode() if isinstance(text, str) else bytes(text)
        if len(encoded) > 0x7FFFFFF0:
            raise TokenizeError(f"the text has {len(encoded)} bytes; llama.cpp takes up to 2^31 - 16")
        cdef const char * c_text = encoded
        cdef int32_t length = <int32_t> len(encoded)
        cdef vector[int32_t] tokens
        cdef int32_t n = length + 8
        if self.type == enums.VocabType.NONE:
            raise TokenizeError("this model has no tokenizer (vocabulary type NONE)")
        cdef const lib.llama_vocab * ptr = self.use()
        try:
            with nogil:
                tokens.resize(n)
                n = tokenize_text(
                    ptr, c_text, length, tokens.data(), n, add_special, parse_special, guard.enter
                )
                if n < 0 and n != INT_MIN:
                    tokens.resize(-n)
                    n = tokenize_text(
                        ptr, c_text, length, tokens.data(), -n, add_special, parse_special, guard.enter
                    )
        except InvalidArgumentError as cause:
            raise TokenizeError(f"the text cannot be tokenized: {cause}", function="llama_tokenize") from cause
        finally:
            self.model.done()
        if n < 0:
            raise TokenizeError("the text has more than 2^31 tokens", code=n, function="llama_tokenize")
        return _to_array(tokens.data(), n)

    def detokenize(self, tokens, *, bint remove_special=False, bint unparse_special=True, str errors="replace"):
        """Turn token ids into text.

        Args:
            tokens: Ids: any sequence of int, or an integer array of shape (n,).
            remove_special: Leave out BOS and EOS.
            unparse_special: Write control tokens as text.
            errors: What to do with bytes that are not UTF-8, as in ``bytes.decode``.

        Returns:
            str: The text. :meth:`detokenize_bytes` gives the bytes as they are.

        Wraps ``llama_detokenize``.
        """
        return self.detokenize_bytes(
            tokens, remove_special=remove_special, unparse_special=unparse_special
        ).decode("utf-8", errors)

    def detokenize_bytes(self, tokens, *, bint remove_special=False, bint unparse_special=True):
        """Turn token ids into bytes; see :meth:`detokenize`.

        Raises:
            InvalidArgumentError: An id is not in the vocabulary.

        Wraps ``llama_detokenize``.
        """
        ids = self.as_token_array(tokens)
        cdef const int32_t[::1] view = ids
        cdef int32_t n_tokens = <int32_t> view.shape[0]
        cdef string text
        cdef int32_t n = 4 * n_tokens + 64
        if n_tokens == 0:
            return b""
        cdef const lib.llama_vocab * ptr = self.use()
        try:
            with nogil:
                text.resize(n)
                n = lib.llama_detokenize(
                    ptr, &view[0], n_tokens, <char *> text.data(), n, remove_special, unparse_special
                )
                if n < 0:
                    text.resize(-n)
                    n = lib.llama_detokenize(
                        ptr, &view[0], n_tokens, <char *> text.data(), -n, remove_special, unparse_special
                    )
        finally:
            self.model.done()
        if n < 0:
            raise TokenizeError("the tokens could not be turned into text", code=n, function="llama_detokenize")
        return text.data()[:n]

    def as_token_array(self, tokens):
        """Token ids as a C-contiguous int32 array, every id checked against the vocabulary.

        Args:
            tokens: Any sequence of int, or an integer array of shape (n,).

        Returns:
            numpy.ndarray: int32, shape (n,); the same object where nothing had to be changed.

        Raises:
            InvalidArgumentError: Not one-dimensional, not integers, or an id out of range.
        """
        if isinstance(tokens, bytearray) or (isinstance(tokens, memoryview) and tokens.itemsize == 1):
            raise InvalidArgumentError(
                f"token ids must be integers, and a {type(tokens).__name__} is text: give bytes() of it"
            )
        array = np.asarray(tokens)
        if array.size == 0:
            array = array.astype(np.int32)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InvalidArgumentError(
                f"token ids must be integers in one dimension, not {array.dtype} of shape {array.shape}"
            )
        if array.size:
            self.check_token(int(array.min()))
            self.check_token(int(array.max()))
        return np.ascontiguousarray(array, dtype=np.int32)

    # ---- pieces of the vocabulary

    def token_to_piece(self, token, *, bint special=True, lstrip=0):
        """The bytes of one token.

        Args:
            token: Its id.
            special: Render control tokens; else they give ``b""``.
            lstrip: Skip up to so many leading spaces.

        Returns:
            bytes: A piece of text; it need not be valid UTF-8 by itself.

        Wraps ``llama_token_to_piece``.
        """
        cdef int32_t c_token = int32(token, "token")
        cdef int32_t c_lstrip = int32(lstrip, "lstrip")
        cdef const lib.llama_vocab * ptr = self.require()
        self.check_token(c_token)
        cdef string piece
        _piece(ptr, <int32_t> c_token, c_lstrip, special, &piece)
        return piece.data()[:piece.size()]

    def pieces(self, *, bint special=True):
        """The bytes of every token of the vocabulary, in one call without the GIL.

        Args:
            special: Render control tokens; else they are ``b""``.

        Returns:
            list[bytes]: ``n_tokens`` entries, in the order of the ids.

        Wraps ``llama_token_to_piece``.
        """
        cdef vector[string] found
        cdef int32_t i
        cdef const lib.llama_vocab * ptr = self.use()
        try:
            with nogil:
                found.resize(self.n_tokens)
                for i in range(self.n_tokens):
                    _piece(ptr, i, 0, special, &found[i])
        finally:
            self.model.done()
        result = []
        for i in range(self.n_tokens):
            result.append(found[i].data()[:found[i].size()])
        return result

    def text(self, token):
        """The token as the vocabulary spells it, e.g. ``'Ġworld'``. Wraps ``llama_vocab_get_text``."""
        cdef int32_t c_token = int32(token, "token")
        cdef const lib.llama_vocab * ptr = self.require()
        self.check_token(c_token)
        return (<bytes> lib.llama_vocab_get_text(ptr, <int32_t> c_token)).decode("utf-8", "replace")

    @property
    def attrs(self):
        """Attributes of all tokens: int32, shape (n_tokens,), bits of :class:`pyllm.enums.TokenAttr`.

        Wraps ``llama_vocab_get_attr``.
        """
        cdef int32_t i
        cdef const lib.llama_vocab * ptr = self.require()
        array = np.empty(self.n_tokens, np.int32)
        cdef int32_t[::1] view = array
        for i in range(self.n_tokens):
            view[i] = <int32_t> lib.llama_vocab_get_attr(ptr, i)
        return array

    @property
    def scores(self):
        """Scores of all tokens: float32, shape (n_tokens,). Wraps ``llama_vocab_get_score``."""
        cdef int32_t i
        cdef const lib.llama_vocab * ptr = self.require()
        array = np.empty(self.n_tokens, np.float32)
        cdef float[::1] view = array
        for i in range(self.n_tokens):
            view[i] = lib.llama_vocab_get_score(ptr, i)
        return array

    def is_eog(self, token):
        """True when the token ends a generation (EOS, EOT, …). Wraps ``llama_vocab_is_eog``."""
        cdef int32_t c_token = int32(token, "token")
        cdef const lib.llama_vocab * ptr = self.require()
        self.check_token(c_token)
        return lib.llama_vocab_is_eog(ptr, <int32_t> c_token)

    def is_control(self, token):
        """True when the token is a control token and not text. Wraps ``llama_vocab_is_control``."""
        cdef int32_t c_token = int32(token, "token")
        cdef const lib.llama_vocab * ptr = self.require()
        self.check_token(c_token)
        return lib.llama_vocab_is_control(ptr, <int32_t> c_token)

    @property
    def eog_tokens(self):
        """All tokens that end a generation (list of int). Wraps ``llama_vocab_is_eog``."""
        cdef const lib.llama_vocab * ptr = self.require()
        cdef int32_t i
        return [i for i in range(self.n_tokens) if lib.llama_vocab_is_eog(ptr, i)]

    @property
    def suppress_tokens(self):
        """Tokens the model asks never to sample (list of int). Wraps ``llama_vocab_get_suppress_tokens``."""
        cdef int32_t n = 0
        cdef int32_t i
        cdef const int32_t * tokens = lib.llama_vocab_get_suppress_tokens(self.require(), &n)
        return [tokens[i] for i in range(n)]

    # ---- special tokens: an id, or None where the model has none

    @property
    def bos(self):
        """Beginning of sentence. Wraps ``llama_vocab_bos``."""
        return _optional(lib.llama_vocab_bos(self.require()))

    @property
    def eos(self):
        """End of sentence. Wraps ``llama_vocab_eos``."""
        return _optional(lib.llama_vocab_eos(self.require()))

    @property
    def eot(self):
        """End of turn. Wraps ``llama_vocab_eot``."""
        return _optional(lib.llama_vocab_eot(self.require()))

    @property
    def sep(self):
        """Sentence separator. Wraps ``llama_vocab_sep``."""
        return _optional(lib.llama_vocab_sep(self.require()))

    @property
    def nl(self):
        """Next line. Wraps ``llama_vocab_nl``."""
        return _optional(lib.llama_vocab_nl(self.require()))

    @property
    def pad(self):
        """Padding. Wraps ``llama_vocab_pad``."""
        return _optional(lib.llama_vocab_pad(self.require()))

    @property
    def mask(self):
        """Mask. Wraps ``llama_vocab_mask``."""
        return _optional(lib.llama_vocab_mask(self.require()))

    @property
    def fim_pre(self):
        """Fill in the middle: before the prefix. Wraps ``llama_vocab_fim_pre``."""
        return _optional(lib.llama_vocab_fim_pre(self.require()))

    @property
    def fim_suf(self):
        """Fill in the middle: before the suffix. Wraps ``llama_vocab_fim_suf``."""
        return _optional(lib.llama_vocab_fim_suf(self.require()))

    @property
    def fim_mid(self):
        """Fill in the middle: before the middle. Wraps ``llama_vocab_fim_mid``."""
        return _optional(lib.llama_vocab_fim_mid(self.require()))

    @property
    def fim_pad(self):
        """Fill in the middle: padding. Wraps ``llama_vocab_fim_pad``."""
        return _optional(lib.llama_vocab_fim_pad(self.require()))

    @property
    def fim_rep(self):
        """Fill in the middle: repository name. Wraps ``llama_vocab_fim_rep``."""
        return _optional(lib.llama_vocab_fim_rep(self.require()))

    @property
    def fim_sep(self):
        """Fill in the middle: file separator. Wraps ``llama_vocab_fim_sep``."""
        return _optional(lib.llama_vocab_fim_sep(self.require()))

    @property
    def add_bos(self):
        """Whether tokenizing adds BOS. Wraps ``llama_vocab_get_add_bos``."""
        return lib.llama_vocab_get_add_bos(self.require())

    @property
    def add_eos(self):
        """Whether tokenizing adds EOS. Wraps ``llama_vocab_get_add_eos``."""
        return lib.llama_vocab_get_add_eos(self.require())

    @property
    def add_sep(self):
        """Whether tokenizing adds a separator. Wraps ``llama_vocab_get_add_sep``."""
        return lib.llama_vocab_get_add_sep(self.require())


cdef object _optional(int32_t token):
    return None if token == lib.LLAMA_TOKEN_NULL else token


cdef object _to_array(const int32_t * values, int32_t n):
    array = np.empty(n, np.int32)
    cdef int32_t[::1] view = array
    cdef int32_t i
    for i in range(n):
        view[i] = values[i]
    return array


cdef int _piece(
    const lib.llama_vocab * ptr, int32_t token, int32_t lstrip, bint special, string * piece
) except -1 nogil:
    """Put the bytes of one token into `piece`, however many they are."""
    cdef int32_t n
    piece.resize(32)
    n = lib.llama_token_to_piece(ptr, token, <char *> piece.data(), 32, lstrip, special)
    if n < 0:
        piece.resize(-n)
        n = lib.llama_token_to_piece(ptr, token, <char *> piece.data(), -n, lstrip, special)
    piece.resize(n if n > 0 else 0)
    return 0
