"""A sampler that allows every other token."""

import pyllm.core.model  # before sampler: it loads llama.cpp's libraries

from every_other.sampler import EveryOther, greedy

__all__ = ["EveryOther", "greedy"]
