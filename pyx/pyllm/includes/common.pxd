# Declarations of common/common.h and common/log.h: what several of our modules need of llama.cpp's library for its
# own programs. It is C++, and no part of llama.cpp's public interface.

from pyllm.includes._translate cimport translate

cdef extern from "log.h" nogil:
    void common_log_set_verbosity_thold(int verbosity) except +translate
