"""llama.cpp's log goes to Python's logging."""

# Reads again which levels the logger wants; called before the calls that log most.
cdef void refresh()
