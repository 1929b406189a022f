"""What a server says it is."""

from __future__ import annotations

import functools

from pyllm.core.backend import llama_commit
from pyllm.version import __version__


@functools.cache
def build_info() -> str:
    """llama.cpp's commit as llama-server names its builds, and pyllm's version."""
    # A number of a build has only what was built in llama.cpp's own repository.
    return f"b0-{llama_commit()}-pyllm-{__version__}"
