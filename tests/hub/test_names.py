"""The rules for names are llama.cpp's, and names that others chose lead nowhere."""

from __future__ import annotations

import pytest

from pyllm.errors import DownloadError
from pyllm.hub import names

FILES = [
    ".gitattributes",
    "README.md",
    "mmproj-F16.gguf",
    "imatrix.gguf",
    "x-BF16-00002-of-00002.gguf",
    "x-BF16-00001-of-00002.gguf",
    "x-Q3_K_S.gguf",
    "x-Q4_K_M.gguf",
    "x-Q8_0.gguf",
    "big/x-IQ2_M-00001-of-00003.gguf",
]


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("", "x-Q4_K_M.gguf"),
        ("Q8_0", "x-Q8_0.gguf"),
        ("q3_k_s", "x-Q3_K_S.gguf"),
        ("BF16", "x-BF16-00001-of-00002.gguf"),
        ("IQ2_M", "big/x-IQ2_M-00001-of-00003.gguf"),
        ("Q4_K", None),
        ("F16", "x-BF16-00001-of-00002.gguf"),  # llama.cpp searches the name for the tag
        ("Q4.K", None),
        ("(", None),
    ],
)
def test_choice_is_that_of_llama_cpp(tag, expected):
    assert names.choose(FILES, tag) == expected


def test_without_a_quantization_q4_k_m_then_q8_0_then_the_first():
    assert names.choose([name for name in FILES if "Q4_K_M" not in name]) == "x-Q8_0.gguf"
    rest = [name for name in FILES if "Q4_K_M" not in name and "Q8_0" not in name]
    assert names.choose(rest) == "x-BF16-00001-of-00002.gguf"
    assert names.choose(["mmproj-Q4_K_M.gguf", "README.md"]) is None


def test_parts():
    assert names.part_names("a/x-00001-of-00003.gguf") == [f"a/x-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert names.part_names("x-Q8_0.gguf") == ["x-Q8_0.gguf"]
    with pytest.raises(DownloadError, match="99,999 parts"):
        names.part_names("x-00001-of-99999.gguf")


def test_quantizations_are_listed_once():
    assert names.tags_of(FILES) == ["BF16", "Q3_K_S", "Q4_K_M", "Q8_0", "IQ2_M"]


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x.gguf", "a/../../x.gguf", "/etc/x.gguf", "a//x.gguf", "C:/x.gguf", "..\\x.gguf", "a\\..\\x.gguf",
     "x\0.gguf", "x\n.gguf", ". /x.gguf", "./x.gguf", "x.gguf:stream", "a/.../x.gguf"],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_not_safe(name):
    assert not names.is_safe(name)


def test_ordinary_names_are_safe():
    assert all(map(names.is_safe, FILES))
