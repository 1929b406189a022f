"""From a Python file object to a C stream on the same file."""

import io
import os

from libc.stdio cimport FILE, SEEK_SET, fclose, fseek

from pyllm import errors
from pyllm.core.introspection import not_pickled, signature


cdef extern from "stdio.h":
    FILE * fdopen(int descriptor, const char * mode)


cdef class Stream:
    """A C stream on a file that Python has open. Not made from Python."""

    __reduce__ = not_pickled("it reads an open file; open the file again by its path")
    __signature__ = signature

    def __cinit__(self):
        self.ptr = NULL

    def __dealloc__(self):
        if self.ptr != NULL:
            fclose(self.ptr)

    cdef int rewind(self) except -1:
        if fseek(self.ptr, self.position, SEEK_SET) != 0:
            raise OSError(f"cannot seek to byte {self.position}")
        return 0

    cdef int close(self) except -1:
        if self.ptr != NULL:
            fclose(self.ptr)
            self.ptr = NULL
            os.lseek(self.file.fileno(), self.raw_position, os.SEEK_SET)
        return 0


cdef Stream open_stream(object file):
    cdef Stream self = Stream.__new__(Stream)
    cdef int descriptor
    try:
        number = file.fileno()
        self.position = file.tell()
        self.raw_position = os.lseek(number, 0, os.SEEK_CUR)
    except (AttributeError, io.UnsupportedOperation, OSError) as cause:
        raise errors.InvalidArgumentError(
            f"{file!r} is not open on a file that C can read and seek: write its bytes to a file first"
        ) from cause
    if isinstance(file, io.TextIOBase):
        raise errors.InvalidArgumentError("the file is open in text mode; open it with 'rb'")
    self.file = file
    descriptor = os.dup(number)
    self.ptr = fdopen(descriptor, b"rb")
    if self.ptr == NULL:
        os.close(descriptor)
        raise errors.InvalidArgumentError(f"{file!r} cannot be read: open it with 'rb'")
    self.rewind()
    return self
