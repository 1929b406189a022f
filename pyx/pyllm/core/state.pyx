"""The state of a context as bytes and files: the KV cache of all sequences or of one (wraps ``llama_state_*``).

llama.cpp checks little of what it is given to restore, and a restore that fails has already emptied the cache. So
what is saved here carries a seal behind llama.cpp's own bytes (length, checksum, which model), it is checked before
llama.cpp sees anything, and what was in the cache is put back when llama.cpp refuses the rest.
"""

import enum
import hashlib
import os
import secrets
import struct
import zlib

import numpy as np

cimport cython
from cpython.buffer cimport PyBUF_READ, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy

from pyllm import errors
from pyllm.core.introspection import not_pickled, signature
from pyllm.core cimport error, guard
from pyllm.core.arguments cimport int32
from pyllm.core.context cimport Context
from pyllm.includes cimport llama as lib

# size of llama.cpp's bytes, their CRC-32, flags, which model and cache, and how one recognizes it. It stands at the
# end, where llama.cpp's own functions do not look: the whole can be given to them too.
cdef object SEAL = struct.Struct("<QII16s8s")
cdef bytes SEAL_MAGIC = b"pyllmKV1"

# In the flags of the seal: this is the state of all sequences.
cdef uint32_t WHOLE = 1 << 31

# No sequence: the whole context.
cdef int32_t ALL = -1

# How llama.cpp's bytes of one sequence begin, in a buffer but not in a file.
cdef uint32_t SEQUENCE_MAGIC = 0xAF143CD8

# magic, version, number of tokens: how llama.cpp's files begin.
cdef object FILE_HEADER = struct.Struct("<III")


class StateFlags(enum.IntFlag):
    """The ``LLAMA_STATE_SEQ_FLAGS_*``: what of a sequence is saved, and where to.

    Attributes:
        PARTIAL_ONLY: Only what a rollback cannot restore: sliding windows and recurrent states.
        ON_DEVICE: The data stays on the device, and the bytes are a ticket for it.
    """

    NONE = lib.LLAMA_STATE_SEQ_FLAGS_NONE
    PARTIAL_ONLY = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
    ON_DEVICE = lib.LLAMA_STATE_SEQ_FLAGS_ON_DEVICE


cdef bytes _empty_bytes(size_t size):
    # Filled by C before anybody else sees it.
    return bytes(size)


@cython.no_gc_clear
cdef class State:
    """Saves and restores what a context remembers: ``ctx.state``.

    Without `seq_id` it is everything; with it one sequence, which may be loaded under another number. A state fits
    every context of the same model with the same types of K and V, the same flash attention and, for everything, the
    same number of streams. Outputs are not part of it: after a load, logits of before are stale.

    Example:
        >>> saved = ctx.state.save(seq_id=0)
        >>> other.state.load(saved, seq_id=3)
    """

    __reduce__ = not_pickled("it belongs to its context; pickle what ctx.state.save() returns")
    __signature__ = signature

    def __cinit__(self, Context context not None):
        self.context = context

    # ---- bytes

    def size(self, seq_id=None, *, flags=0):
        """Bytes that :meth:`save` would return now (int).

        Args:
            seq_id: A sequence; None means the whole context.
            flags: :class:`StateFlags`, with a sequence only.

        Wraps ``llama_state_get_size``, ``llama_state_seq_get_size`` and ``llama_state_seq_get_size_ext``.
        """
        cdef int32_t c_seq_id = _seq(seq_id)
        cdef uint32_t c_flags = _flags(flags)
        self.context.acquire()
        try:
            self._check(c_seq_id, c_flags)
            return self._payload_size(c_seq_id, c_flags) + <size_t> SEAL.size
        finally:
            self.context.release()

    def save(self, seq_id=None, *, flags=0):
        """The state as bytes: llama.cpp's own, with a seal of 40 bytes behind them.

        Args:
            seq_id: A sequence; None means the whole context.
            flags: :class:`StateFlags`, with a sequence only. ``PARTIAL_ONLY`` saves what a rollback
                cannot restore: sliding windows and recurrent states. ``ON_DEVICE`` leaves the data on the device
                and returns a ticket for it, which is valid in this context until the sequence is saved so again.

        Raises:
            InvalidArgumentError: There is no such sequence, or flags were given without one.
            StateError: llama.cpp could not save it.

        Wraps ``llama_state_get_data``, ``llama_state_seq_get_data`` and ``llama_state_seq_get_data_ext``.
        """
        cdef int32_t c_seq_id = _seq(seq_id)
        cdef uint32_t c_flags = _flags(flags)
        cdef size_t size
        cdef uint8_t * target
        self.context.acquire()
        try:
            self._check(c_seq_id, c_flags)
            size = self._payload_size(c_seq_id, c_flags)
            data = _empty_bytes(size + <size_t> SEAL.size)
            target = <uint8_t *> <char *> data
            self._write(target, size, c_seq_id, c_flags)
            seal = self._seal(target, size, c_seq_id, c_flags)
            memcpy(target + size, <char *> seal, SEAL.size)
            if c_flags & lib.LLAMA_STATE_SEQ_FLAGS_ON_DEVICE:
                self.context.device_states[c_seq_id] = data
            return data
        finally:
            self.context.release()

    def save_into(self, buffer, seq_id=None, *, flags=0):
        """Save into memory of yours, for example a NumPy array of uint8 that is used again and again.

        Args:
            buffer: Writable and contiguous, at least :meth:`size` bytes.
            seq_id: As for :meth:`save`.
            flags: As for :meth:`save`.

        Returns:
            int: Bytes written; ``buffer[:n]`` is what :meth:`load` takes.

        Raises:
            InvalidArgumentError: The buffer is too small.
        """
        cdef int32_t c_seq_id = _seq(seq_id)
        cdef uint32_t c_flags = _flags(flags)
        cdef Py_buffer view
        cdef size_t size
        if c_flags & lib.LLAMA_STATE_SEQ_FLAGS_ON_DEVICE:
            raise errors.InvalidArgumentError("a state that stays on the device is a ticket of a few bytes: use save()")
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            self.context.acquire()
            try:
                self._check(c_seq_id, c_flags)
                size = self._payload_size(c_seq_id, c_flags)
                if <size_t> view.len < size + <size_t> SEAL.size:
                    raise errors.InvalidArgumentError(
                        f"the buffer has {view.len} bytes and the state needs {size + <size_t> SEAL.size}"
                    )
                self._write(<uint8_t *> view.buf, size, c_seq_id, c_flags)
                seal = self._seal(<uint8_t *> view.buf, size, c_seq_id, c_flags)
                memcpy(<uint8_t *> view.buf + size, <char *> seal, SEAL.size)
                return size + <size_t> SEAL.size
            finally:
                self.context.release()
        finally:
            PyBuffer_Release(&view)

    def load(self, data, seq_id=None, *, flags=0, raw=False):
        """Restore what :meth:`save` returned.

        Args:
            data: Any buffer with it.
            seq_id: The sequence that becomes it, whatever number it had; None for the state of a whole context.
            flags: Those it was saved with.
            raw: The bytes come from llama.cpp itself and have no seal. They are then checked as far as that can be
                done, and the cache is saved before, all of it.

        Raises:
            StateError: The data is damaged, cut off, of another model, or does not fit the context. What was in the
                cache is there as before.
            InvalidArgumentError: There is no such sequence.

        Wraps ``llama_state_set_data``, ``llama_state_seq_set_data`` and ``llama_state_seq_set_data_ext``.
        """
        cdef int32_t c_seq_id = _seq(seq_id)
        cdef uint32_t c_flags = _flags(flags)
        cdef int32_t backup_id = ALL if raw else c_seq_id
        cdef Py_buffer view
        cdef size_t size
        cdef size_t done = 0
        cdef uint32_t on_device = c_flags & lib.LLAMA_STATE_SEQ_FLAGS_ON_DEVICE
        if raw and on_device:
            raise errors.InvalidArgumentError("a state that is on the device has a seal: leave out raw=True")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.context.acquire()
            try:
                self._check(c_seq_id, c_flags)
                size = view.len
                if raw:
                    self._check_raw(<const uint8_t *> view.buf, size, c_seq_id)
                else:
                    size = self._check_seal(<const uint8_t *> view.buf, size, c_seq_id, c_flags)
                if on_device:
                    self._check_ticket(bytes(data))
                before = self._backup(backup_id)
                refused = None
                try:
                    done = self._read(<const uint8_t *> view.buf, size, c_seq_id, c_flags)
                except errors.PyllmError as exception:
                    refused = exception
                if done == size and size > 0 and (not raw or self._positions_are_sane()):
                    self.context.forget_outputs()
                    return
                log = refused.log if refused is not None else _log()
                self._put_back(before, backup_id)
                raise errors.StateError(
                    "llama.cpp could not restore this state: it does not fit the context "
                    f"({done} of {size} bytes were read); the cache is as it was",
                    function="llama_state_set_data", log=log,
                ) from refused
            finally:
                self.context.release()
        finally:
            PyBuffer_Release(&view)

    # ---- files

    def save_file(self, path, tokens=(), seq_id=None):
        """Write the state to a file in llama.cpp's own format, as its programs do.

        A file that is there is replaced when the new one is complete.

        Args:
            path: Where to.
            tokens: The tokens that led to the state; they come back from :meth:`load_file`.
            seq_id: A sequence; None means the whole context.

        Returns:
            int: Size of the file in bytes.

        Raises:
            InvalidArgumentError: A token is not in the vocabulary.
            StateError: It could not be written.

        Wraps ``llama_state_save_file`` and ``llama_state_seq_save_file``.
        """
        cdef int32_t c_seq_id = _seq(seq_id)
        cdef const int32_t[::1] ids = self._tokens(tokens)
        cdef const lib.llama_token * c_ids = <const lib.llama_token *> &ids[0] if ids.shape[0] else NULL
        cdef size_t n_ids = ids.shape[0]
        cdef size_t written
        cdef const char * c_path
        target = os.path.realpath(os.fsdecode(path))
        temporary = os.path.join(os.path.dirname(target), f".pyllm-{secrets.token_hex(8)}.tmp")
        encoded = os.fsencode(temporary)
        if b"\0" in encoded:
            raise errors.InvalidArgumentError(f"the path {target!r} contains a NUL character")
        c_path = encoded
        try:
            self.context.acquire()
            try:
                self._check(c_seq_id, 0)
                with nogil:
                    if c_seq_id == ALL:
                        written = lib.llama_state_save_file(self.context.ptr, c_path, c_ids, n_ids)
                    else:
                        written = lib.llama_state_seq_save_file(self.context.ptr, c_path, c_seq_id, c_ids, n_ids)
                self.context.check_peers("llama_state_save_file")
                if written == 0:
                    error.fail(
                        errors.StateError, f"the state could not be written to {target!r}", "llama_state_save_file"
                    )
            finally:
                self.context.release()
            size = os.path.getsize(temporary)
            os.replace(temporary, target)
            return size
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)

    def load_file(self, path, seq_id=None):
        """Restore what :meth:`save_file`, or a program of llama.cpp, has written.

        Such files have no checksum. What can be checked is checked, and when llama.cpp refuses the rest, the cache
        is put back as it was.

        Args:
            path: The file.
            seq_id: The sequence that becomes it; None for the state of a whole context.

        Returns:
            list[int]: The tokens in the file.

        Raises:
            FileNotFoundError: There is no such file.
            StateError: It is damaged, or does not fit.

        Wraps ``llama_state_set_data`` and ``llama_state_seq_set_data``.
        """
        cdef int32_t c_seq_id = _seq(seq_id)
        encoded = os.fsencode(path)
        name = os.fsdecode(encoded)
        if b"\0" in encoded:
            raise errors.InvalidArgumentError(f"the path {name!r} contains a NUL character")
        self.context.acquire()
        try:
            self._check(c_seq_id, 0)
            # llama.cpp's own reader goes on with uninitialized memory where a file ends too early. Its reader of
            # buffers does not, and takes the same bytes.
            tokens, payload = self._read_file(name, c_seq_id)
            try:
                self.load(payload, seq_id, raw=True)
            except errors.StateError as exception:
                raise errors.StateError(
                    f"{name!r} could not be restored: it is damaged or does not fit the context; "
                    "the cache is as it was",
                    function=exception.function, log=exception.log,
                ) from exception
            return tokens.tolist()
        finally:
            self.context.release()

    def _read_file(self, name, seq_id):
        """The tokens of a state file, checked, and its state as `load` takes it with raw=True."""
        magic = lib.LLAMA_SESSION_MAGIC if seq_id == ALL else lib.LLAMA_STATE_SEQ_MAGIC
        version = lib.LLAMA_SESSION_VERSION if seq_id == ALL else lib.LLAMA_STATE_SEQ_VERSION
        other = lib.LLAMA_STATE_SEQ_MAGIC if seq_id == ALL else lib.LLAMA_SESSION_MAGIC
        with open(name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = file.read(FILE_HEADER.size)
            if len(header) < FILE_HEADER.size:
                raise errors.StateError(f"{name!r} is not a state file: it has {size} bytes")
            found_magic, found_version, n_tokens = FILE_HEADER.unpack(header)
            if found_magic == other:
                raise errors.StateError(
                    f"{name!r} holds one sequence: load it with seq_id=" if seq_id == ALL
                    else f"{name!r} holds a whole context: load it without seq_id"
                )
            if found_magic != magic or found_version != version:
                raise errors.StateError(
                    f"{name!r} is not a state file of this version of llama.cpp: it begins with "
                    f"{found_magic:#x}, {found_version} instead of {magic:#x}, {version}"
                )
            if n_tokens * 4 > size - FILE_HEADER.size:
                raise errors.StateError(
                    f"{name!r} is cut off: it speaks of {n_tokens} tokens and has {size} bytes"
                )
            tokens = np.frombuffer(file.read(n_tokens * 4), np.int32)
            rest = file.read()
        bad = tokens[(tokens < 0) | (tokens >= self.context.n_vocab)]
        if bad.size:
            raise errors.StateError(
                f"{name!r} is damaged or of another model: it holds the token {bad[0]}, "
                f"and the vocabulary has {self.context.n_vocab}"
            )
        # In a buffer, the state of a sequence begins with a magic number and the number that it had.
        return tokens, rest if seq_id == ALL else struct.pack("<Ii", SEQUENCE_MAGIC, seq_id) + rest

    def _tokens(self, tokens):
        ids = np.asarray(tokens if len(tokens) else np.empty(0, np.int32))
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise errors.InvalidArgumentError(
                f"tokens must be integers in one dimension, not {ids.dtype} with shape {ids.shape}"
            )
        bad = ids[(ids < 0) | (ids >= self.context.n_vocab)]
        if bad.size:
            raise errors.InvalidArgumentError(
                f"there is no token {bad[0]}: the vocabulary has {self.context.n_vocab}"
            )
        return np.ascontiguousarray(ids, np.int32)

    # ---- checks

    cdef int _check(self, int32_t seq_id, uint32_t flags) except -1:
        self.context.require()
        if seq_id != ALL and not 0 <= seq_id < self.context.n_seq_max_:
            raise errors.InvalidArgumentError(
                f"sequence id {seq_id} is out of range: the context has n_seq_max={self.context.n_seq_max_}"
            )
        if seq_id == ALL and flags:
            raise errors.InvalidArgumentError("flags need a sequence: give seq_id")
        if self.context.unapplied:
            raise errors.StateError(
                "sequences were copied or their positions shifted, and llama.cpp moves the data with the next decode: "
                "decode first, then save or load"
            )
        return 0

    def _check_ticket(self, ticket):
        seq_id = struct.unpack_from("<i", ticket, 4)[0]
        if self.context.device_states.get(seq_id) != ticket:
            raise errors.StateError(
                f"what was saved on the device for sequence {seq_id} is not there any more: "
                "it was saved so again, or in another context"
            )

    cdef bytes _seal(self, const uint8_t * payload, size_t size, int32_t seq_id, uint32_t flags):
        return SEAL.pack(
            size, _crc(payload, size), WHOLE if seq_id == ALL else flags, self._fingerprint(), SEAL_MAGIC
        )

    cdef size_t _check_seal(self, const uint8_t * data, size_t size, int32_t seq_id, uint32_t flags) except? 0:
        cdef size_t seal_size = SEAL.size
        if size < seal_size or data[size - 8:size] != SEAL_MAGIC:
            raise errors.StateError(
                f"these {size} bytes are no state that was saved here, or are cut off; "
                "if they come from llama.cpp itself, load them with raw=True"
            )
        payload, checksum, found, fingerprint, _ = SEAL.unpack(data[size - seal_size:size])
        if payload != size - seal_size:
            raise errors.StateError(f"the state is damaged: it has {size - seal_size} bytes, not {payload}")
        if _crc(data, payload) != checksum:
            raise errors.StateError("the state is damaged: its checksum does not agree")
        expected = WHOLE if seq_id == ALL else flags
        if found != expected:
            raise errors.StateError(f"this is {_kind(found)}, not {_kind(expected)}")
        if fingerprint != self._fingerprint():
            raise errors.StateError("the state is of another model, or of a cache with another layout")
        return payload

    def _fingerprint(self):
        """16 bytes that are the same for the same model with the same kind of cache."""
        if self.context.fingerprint is None:
            model = self.context.model
            facts = repr((sorted(model.metadata.items()), model.n_params, model.size)).encode()
            self.context.fingerprint = hashlib.blake2b(facts, digest_size=16).digest()
        return self.context.fingerprint

    cdef int _check_raw(self, const uint8_t * data, size_t size, int32_t seq_id) except -1:
        if seq_id == ALL:
            self._check_arch(data[:min(size, 256)])
        elif size < 8:
            raise errors.StateError(f"the state of a sequence has at least 8 bytes, not {size}")
        return 0

    def _check_arch(self, start):
        """llama.cpp allocates as many bytes for the name of the architecture as the data says."""
        arch = self.context.model.meta("general.architecture").encode()
        if start[:4 + len(arch)] != struct.pack("<I", len(arch)) + arch:
            raise errors.StateError(f"the state is damaged, or not of a {arch.decode()!r} model")

    cdef bint _positions_are_sane(self) except -1:
        cdef int32_t seq_id
        cdef lib.llama_memory_t memory = lib.llama_get_memory(self.context.ptr)
        if memory == NULL:
            return True
        for seq_id in range(self.context.n_seq_max_):
            first = lib.llama_memory_seq_pos_min(memory, seq_id)
            last = lib.llama_memory_seq_pos_max(memory, seq_id)
            # -1 and -1: the sequence is empty. The last position must leave room for one more.
            if first < -1 or (first == -1) != (last == -1) or first > last or last == 0x7FFFFFFF:
                return False
        return True

    # ---- calls

    cdef size_t _payload_size(self, int32_t seq_id, uint32_t flags) except? 0:
        cdef size_t size
        with nogil:
            if seq_id == ALL:
                size = lib.llama_state_get_size(self.context.ptr)
            elif flags:
                size = lib.llama_state_seq_get_size_ext(self.context.ptr, seq_id, flags)
            else:
                size = lib.llama_state_seq_get_size(self.context.ptr, seq_id)
        if size == 0:
            error.fail(errors.StateError, "llama.cpp cannot tell the size of the state", "llama_state_get_size")
        return size

    cdef size_t _write(self, uint8_t * target, size_t size, int32_t seq_id, uint32_t flags) except? 0:
        cdef size_t written
        with nogil:
            if seq_id == ALL:
                written = lib.llama_state_get_data(self.context.ptr, target, size)
            elif flags:
                written = lib.llama_state_seq_get_data_ext(self.context.ptr, target, size, seq_id, flags)
            else:
                written = lib.llama_state_seq_get_data(self.context.ptr, target, size, seq_id)
        self.context.check_peers("llama_state_get_data")
        if written != size:
            error.fail(
                errors.StateError, f"llama.cpp could not save the state: {written} of {size} bytes were written",
                "llama_state_get_data",
            )
        return written

    cdef size_t _read(self, const uint8_t * source, size_t size, int32_t seq_id, uint32_t flags) except? 0:
        cdef size_t done
        with nogil:
            if seq_id == ALL:
                done = lib.llama_state_set_data(self.context.ptr, source, size)
            elif flags:
                done = lib.llama_state_seq_set_data_ext(self.context.ptr, source, size, seq_id, flags)
            else:
                done = lib.llama_state_seq_set_data(self.context.ptr, source, size, seq_id)
        self.context.check_peers("llama_state_set_data")
        return done

    cdef bytes _backup(self, int32_t seq_id):
        # Of an empty cache these are a few bytes.
        cdef size_t size = self._payload_size(seq_id, 0)
        data = _empty_bytes(size)
        self._write(<uint8_t *> <char *> data, size, seq_id, 0)
        return data

    cdef int _put_back(self, bytes before, int32_t seq_id) except -1:
        cdef lib.llama_memory_t memory = lib.llama_get_memory(self.context.require())
        cdef const uint8_t * data = <const uint8_t *> <const char *> before
        if memory == NULL:
            return 0
        # Not by seq_rm alone: what a damaged state has left may be at positions that it does not find.
        if seq_id == ALL:
            lib.llama_memory_clear(memory, True)
        else:
            lib.llama_memory_seq_rm(memory, seq_id, -1, -1)
        if self._read(data, len(before), seq_id, 0) != <size_t> len(before):
            lib.llama_memory_clear(memory, True)
            error.fail(
                errors.StateError,
                "the state could not be restored, and neither could what was there before: the cache is empty now",
                "llama_state_set_data",
            )
        return 0

    def __repr__(self):
        if self.context.closed:
            return "<State of a closed context>"
        return f"<State of {self.context!r}>"


cdef int32_t _seq(seq_id) except? -2:
    if seq_id is None:
        return ALL
    cdef int32_t c_seq_id = int32(seq_id, "seq_id")
    if c_seq_id < 0:
        raise errors.InvalidArgumentError(f"seq_id must be at least 0, or None for the whole context, not {c_seq_id}")
    return c_seq_id


cdef uint32_t _flags(flags) except? 0xFFFFFFFF:
    cdef int32_t c_flags = int32(flags, "flags")
    if c_flags & ~3:
        raise errors.InvalidArgumentError(f"flags={flags!r} has bits that StateFlags does not know")
    return <uint32_t> c_flags


cdef uint32_t _crc(const uint8_t * data, size_t size):
    # zlib lets other threads run meanwhile.
    if size == 0:
        return zlib.crc32(b"")
    return zlib.crc32(PyMemoryView_FromMemory(<char *> data, size, PyBUF_READ))


cdef str _kind(uint32_t flags):
    if flags & WHOLE:
        return "the state of a whole context (no seq_id)"
    return f"the state of one sequence (seq_id) with flags={StateFlags(flags)!r}"


cdef tuple _log():
    return guard.take_log()
