"""Text that grows piece by piece: stop strings end it, and only whole characters come out."""

from libcpp.string cimport string
from libcpp.vector cimport vector

from pyllm import errors
from pyllm.core.introspection import not_pickled, signature


cdef class TextStream:
    """Collects the pieces of a generation.

    What :meth:`take` hands out never ends within a character, and never contains a part of a stop string.

    Args:
        stop: A stop string, or several. The text ends before the first one that appears.

    Example:
        >>> stream = TextStream(stop="END")
        >>> stream.append(b"so E"), stream.take()
        (False, 'so ')
        >>> stream.append(b"ND more"), stream.take()
        (True, '')
    """

    __reduce__ = not_pickled("it holds a text that is growing; pickle its text")
    __signature__ = signature

    def __init__(self, stop=()):
        cdef vector[string] values
        self.stops = (stop,) if isinstance(stop, (str, bytes)) else tuple(stop or ())
        for text in self.stops:
            if not isinstance(text, (str, bytes)) or not text:
                raise errors.InvalidArgumentError(f"a stop string must be text that is not empty, not {text!r}")
            encoded = text.encode() if isinstance(text, str) else text
            values.push_back(<string> <bytes> encoded)
        self.c.set_stops(values)

    def append(self, bytes piece not None):
        """Add the bytes of a token.

        Returns:
            bool: True when a stop string was found; the text has ended before it.
        """
        return self.c.append(piece, len(piece))

    def take(self, *, bint all=False):
        """The text that has become safe to show since the last call (str).

        Args:
            all: The generation is over: hand out what is left, invalid bytes as U+FFFD.
        """
        cdef string out = self.c.take(all)
        return out.data()[:out.size()].decode("utf-8", "replace")

    @property
    def text(self):
        """All text so far (bytes), without stop string."""
        cdef string text = self.c.all_text()
        return text.data()[:text.size()]

    @property
    def stopped(self):
        """The stop string that ended the text, or None."""
        cdef int i = self.c.stopped_by()
        return self.stops[i] if i >= 0 else None
