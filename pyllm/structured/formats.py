"""Formats of JSON schemas as regular expressions: what the whole text of the string matches."""

from __future__ import annotations

_YEAR = r"(?:0(?:0(?:0[1-9]|[1-9]\d)|[1-9]\d\d)|[1-9]\d{3})"
# Divisible by 4, but not by 100 unless by 400.
_LEAP_YEAR = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    rf"|02-(?:0[1-9]|1\d|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,20}[a-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}\.[a-z]{{2,10}}"
_HEX = "[0-9a-f]"


def _uuid(version: str) -> str:
    return rf"{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89ab]{_HEX}{{3}}-{_HEX}{{12}}"


FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": rf"{_DATE}T{_TIME}",
    "duration": (
        r"P(?:\d{1,4}W|\d{1,5}D(?:T\d{1,2}H(?:\d{1,2}M(?:\d{1,2}S)?)?)?"
        r"|T(?:\d{1,2}H(?:\d{1,2}M(?:\d{1,2}S)?)?|\d{1,2}M(?:\d{1,2}S)?|\d{1,2}S))"
    ),
    "uuid": rf"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    **{f"uuid{version}": _uuid(version) for version in "13456 78".replace(" ", "")},
    "ipv4": rf"{_OCTET}(?:\.{_OCTET}){{3}}",
    "ipv6": rf"(?:{_HEX}{{1,4}}:){{7}}{_HEX}{{1,4}}",
    "hostname": _HOST,
    "email": rf"[a-z0-9]+(?:[._+-][a-z0-9]+){{0,3}}@{_HOST}",
    "uri": rf"https?://{_HOST}(?::\d{{2,4}})?(?:/[A-Za-z0-9._~-]+){{0,8}}/?(?:\?[A-Za-z0-9._~=&-]+)?",
}
FORMATS["uuid2"] = FORMATS["uuid"].replace(f"-{_HEX}{{4}}-", f"-2{_HEX}{{3}}-", 1)
FORMATS["uri-reference"] = FORMATS["url"] = FORMATS["uri"]
FORMATS["idn-hostname"], FORMATS["idn-email"], FORMATS["iri"] = FORMATS["hostname"], FORMATS["email"], FORMATS["uri"]

# These describe what the text is for, and any text will do.
FREE_FORMATS = ("password", "path", "binary", "multi-line", "text", "string")
