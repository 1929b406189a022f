"""What a thread carries while it is inside llama.cpp: its log lines, and leave to throw."""

from libcpp cimport bool
from libcpp.string cimport string

# Bumped in every forked child; objects remember the value they were made under.
cdef int fork_generation() noexcept nogil

# Around everything a callback does with the GIL: false means that the interpreter is going down
# and there is no Python any more.
cdef bool begin_python() noexcept nogil
cdef void end_python() noexcept nogil

# Around long calls without the GIL: the interpreter waits for them when it goes down.
cdef void begin_native() noexcept nogil
cdef void end_native() noexcept nogil

# True from the moment the interpreter begins to go down.
cdef bool is_finalizing() noexcept nogil

# Every call into llama.cpp starts with this: it forgets the log of the last call
# and allows a failed assertion in this thread to be thrown as a C++ exception.
cdef void enter() noexcept nogil

# From here on an assertion in this thread is none of ours.
cdef void leave() noexcept nogil

# The warnings and errors of the current call in this thread.
cdef tuple take_log()

# The message of the last assertion thrown in this thread, then forgotten.
cdef str take_assertion()

cdef bool log_append(int level, const char * text, int * out_level, string * out) noexcept nogil
cdef void set_min_level(int level) noexcept nogil

# Python runs signal handlers only in this thread.
cdef bint is_main_thread() noexcept nogil

# Threads that are still inside llama.cpp when the interpreter goes down end here, as daemon threads do.
cdef void park_if_finalizing() noexcept

# While True, this thread's log lines go nowhere: for destructors, in which no Python may run.
cdef void set_quiet(bint value) noexcept nogil
