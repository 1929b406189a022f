"""How many tokens to draft: from what drafting has cost and brought so far."""

from libc.stdint cimport int32_t, int64_t

from pyllm import errors
from pyllm.core.introspection import not_pickled, signature
from pyllm.core.arguments cimport int32

cdef enum:
    # Plain steps that are measured before the first draft: the first one after a prompt builds another graph.
    WARM_UP = 2
    # After so many rounds with drafts a plain step is measured again: a longer text costs more.
    MEASURE_AGAIN = 64
    # Rounds before drafts can be judged.
    TRIAL = 4
    SHORTEST_PAUSE = 16
    LONGEST_PAUSE = 512
    FIRST_LENGTH = 8

# Weight of the newest measurement in the running averages.
cdef double NEWEST = 0.25
# Below this gain drafting is switched off for a while.
cdef double LOSS = 0.98


cdef class Pace:
    """Decides how long the next draft may be.

    The length doubles where all of a draft was accepted, and halves where less than half of it was. Where drafts cost
    more time than they save, they are switched off for 16 steps and then tried again; each time that they lose again
    the pause is twice as long, up to 512 steps.

    Args:
        n_max: Most tokens of a draft.
        adaptive: False: `n_max` each time, whatever it costs.

    Example:
        >>> pace = Pace(16)
        >>> pace.next_length()  # two steps without drafts show what one costs
        0
    """

    __reduce__ = not_pickled("it measures time in this process; make another one there")
    __signature__ = signature

    def __cinit__(self, n_max, *, bint adaptive=True):
        self.n_max = int32(n_max, "n_max")
        if self.n_max < 1:
            raise errors.InvalidArgumentError(f"n_max must be at least 1, not {self.n_max}")
        self.adaptive = adaptive
        self.length = min(self.n_max, FIRST_LENGTH) if adaptive else self.n_max
        self.next_pause = SHORTEST_PAUSE
        self.gain = 1

    def next_length(self):
        """Most tokens that the next draft may have (int); 0: no draft."""
        return self.allowed()

    def add_plain(self, us):
        """Note a step without a draft that took so many microseconds."""
        self.plain(us)

    def add_round(self, drafted, accepted, us):
        """Note a draft of so many tokens, how many of them were accepted, and the microseconds it all took."""
        cdef int32_t c_drafted = int32(drafted, "drafted")
        cdef int32_t c_accepted = int32(accepted, "accepted")
        if not 0 <= c_accepted <= c_drafted:
            raise errors.InvalidArgumentError(f"of {c_drafted} tokens {c_accepted} cannot have been accepted")
        self.round(c_drafted, c_accepted, us)

    cdef int32_t allowed(self) noexcept nogil:
        if not self.adaptive:
            return self.n_max
        if self.pause > 0 or self.n_plain < WARM_UP or self.since_plain >= MEASURE_AGAIN:
            return 0
        return self.length

    cdef void plain(self, int64_t us) noexcept nogil:
        self.n_plain += 1
        self.since_plain = 0
        # The first measurement of a text is no good one, but better than none.
        if self.n_plain <= WARM_UP:
            self.plain_us = us
        else:
            self.plain_us += NEWEST * (us - self.plain_us)
        if self.pause > 0:
            self.pause -= 1
            self.paused += 1
            if self.pause == 0:
                self.gain = 1
                self.n_rounds = 0

    cdef void round(self, int32_t drafted, int32_t accepted, int64_t us) noexcept nogil:
        if not self.adaptive or drafted == 0:
            return
        if accepted == drafted:
            if drafted >= self.length:
                self.length = min(self.n_max, 2 * self.length)
        elif 2 * accepted < drafted:
            self.length = max(1, min(self.length, drafted) // 2)
        self.n_rounds += 1
        self.since_plain += 1
        self.gain += NEWEST * ((accepted + 1) * self.plain_us / max(us, 1) - self.gain)
        if self.n_rounds < TRIAL:
            return
        if self.gain < LOSS:
            self.pause = self.next_pause
            self.next_pause = min(2 * self.next_pause, LONGEST_PAUSE)
        elif self.n_rounds >= 4 * TRIAL:
            self.next_pause = SHORTEST_PAUSE

    def __repr__(self):
        state = f"paused for {self.pause} steps" if self.pause else f"length={self.length}"
        return f"<Pace n_max={self.n_max} {state} gain={self.gain:.2f}>"
