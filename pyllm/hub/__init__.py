"""Models by name, from wherever they are: pull them once, verify them, find them again.

Example:
    >>> from pyllm import hub
    >>> sorted(hub.ALIASES)
    ['gemma3-270m', 'minilm', 'smollm2']
"""

from pyllm.hub.cache import Record, cache_dir, read_record
from pyllm.hub.https import UnverifiedModelWarning
from pyllm.hub.progress import Progress
from pyllm.hub.registry import ALIASES, DEFAULT_MODEL, KnownModel, lookup
from pyllm.hub.resolve import is_reference, looks_like_path, resolve
from pyllm.hub.source import Offer
from pyllm.hub.store import ListedModel, list_models, pull, remove

__all__ = [
    "ALIASES",
    "DEFAULT_MODEL",
    "KnownModel",
    "ListedModel",
    "Offer",
    "Progress",
    "Record",
    "UnverifiedModelWarning",
    "cache_dir",
    "is_reference",
    "list_models",
    "looks_like_path",
    "lookup",
    "pull",
    "read_record",
    "remove",
    "resolve",
]
