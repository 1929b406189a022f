"""llama-common, the library of llama.cpp's own programs, made silent before anything else of it is used.

Its log goes to stderr and has no callback. What it has to say about bad input it throws, and that becomes an exception.
"""

from pyllm.includes cimport common as lib

lib.common_log_set_verbosity_thold(-1)
