"""Names of files that clients may give: in one folder, and on any system."""

from __future__ import annotations

import re

from pyllm.server.errors import invalid

_MOST_BYTES = 255
_FORBIDDEN = frozenset('/\\:*?"<>|')
# On Windows these are devices, whatever comes behind the first full stop.
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def check_name(name: str, param: str = "filename") -> str:
    """A name without any path, which can be that of a file.

    Raises:
        APIError: It is something else.
    """
    wrong = None
    if not name:
        wrong = "is empty"
    elif not name.isprintable() or not _FORBIDDEN.isdisjoint(name):
        wrong = "must be the name of a file, without a path and special characters"
    elif name[0] in ". " or name[-1] in ". " or _DEVICES.fullmatch(name):
        wrong = "must be an ordinary name, which neither begins nor ends with a full stop or a blank"
    elif len(name.encode("utf-8", "surrogatepass")) > _MOST_BYTES:
        wrong = f"must be a name of at most {_MOST_BYTES} bytes"
    if wrong is not None:
        raise invalid(param, f"{param} {wrong}, not {name[:80]!r}" if name else f"{param} {wrong}")
    return name
