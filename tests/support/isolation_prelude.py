"""The beginning of every script that `isolation` runs."""

import gc  # noqa: F401
import os
import signal  # noqa: F401
import sys
import threading
import time  # noqa: F401

import numpy as np  # noqa: F401

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.generation import Generation  # noqa: F401
from pyllm.core.memory import Memory  # noqa: F401
from pyllm.core.model import Model
from pyllm.core.outputs import Outputs  # noqa: F401
from pyllm.core.sampler import Chain, Sampler  # noqa: F401
from pyllm.core.samplers import *  # noqa: F403
from pyllm.core.vocab import Vocab  # noqa: F401

PATH = sys.argv[1] if len(sys.argv) > 1 else ""


# The address sanitizer reserves terabytes of addresses and holds on to what was freed.
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")


def limit_memory():
    """From here on a runaway allocation ends in MemoryError and does not take the machine with it."""
    if sys.platform == "linux" and not SANITIZED:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))


def make(**arguments):
    """A model and a context that has decoded two tokens."""
    model = Model(PATH)
    context = Context(model, **({"n_ctx": 256, "n_threads": 1} | arguments))
    context.decode(Batch.from_arrays([1, 5]))
    return model, context


def raises(kind, words, call, *arguments, **keywords):
    """Call, and check the class of the exception and that its message has all the words."""
    try:
        result = call(*arguments, **keywords)
    except kind as exception:
        for word in [words] if isinstance(words, str) else words:
            assert word in str(exception), f"{word!r} is not in {exception!r}"
        return exception
    raise AssertionError(f"{call} gave {result!r} instead of {kind}")


def run_threads(*functions):
    """Run functions in threads and raise what one of them raised."""
    failures = []

    def guarded(function):
        try:
            function()
        except BaseException as exception:
            failures.append(exception)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive(), "a thread hangs"
    if failures:
        raise failures[0]


def until(kind, function, counter=None):
    """A function that repeats `function` until it raises `kind`, and lets nothing else pass."""

    def repeat():
        try:
            while True:
                function()
                if counter is not None:
                    counter.append(None)
        except kind:
            pass

    return repeat


_ = errors, Batch
