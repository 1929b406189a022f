"""Logits processors by name, for programs whose users write "module:attribute"."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from pyllm.errors import InvalidArgumentError
from pyllm.processors.base import LogitsProcessor, as_processors


def named_processor(name: str) -> Callable[[], LogitsProcessor]:
    """Find a processor, and make one for each text.

    Args:
        name: "module:attribute", where the attribute may have dots: a processor, which all texts use, or a class or
            another function without arguments whose name begins with ``make_``, which makes one for each text.

    Returns:
        A function that gives the processor of a text.

    Raises:
        InvalidArgumentError: There is no such thing, or it is no processor.

    Example:
        >>> make = named_processor("my_processors:NoDigits")
        >>> processor = make()
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise InvalidArgumentError(f'a logits processor is named as "module:attribute", not {name!r}')
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as cause:
        raise InvalidArgumentError(f"the logits processor {name!r} cannot be imported: {cause}") from cause
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as cause:
            raise InvalidArgumentError(f"the logits processor {name!r} is not there: {cause}") from cause
    if not inspect.isclass(found) and not attribute.rpartition(".")[2].startswith("make_"):
        as_processors(found)
        return lambda: found
    if not callable(found):
        raise InvalidArgumentError(f"{name!r} makes no logits processors: it cannot be called")

    def make() -> LogitsProcessor:
        try:
            (processor,) = as_processors(found())
        except TypeError as cause:
            raise InvalidArgumentError(f"{name!r} makes no logits processor: {cause}") from cause
        return processor

    make()  # its errors are raised now
    return make


__all__ = ["named_processor"]
