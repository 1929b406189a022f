"""The enums against the values in llama.h."""

import enum
import inspect
import re
from pathlib import Path

import pytest
from support.headers import parse_header

from pyllm import enums, errors

SOURCES = Path(__file__).parents[2] / "llama_cpp_src" / "llama.cpp"
ENUMS = [value for value in vars(enums).values() if inspect.isclass(value) and issubclass(value, enum.Enum)]
ENUMS = [value for value in ENUMS if value.__module__ == enums.__name__]


@pytest.fixture(scope="module")
def header() -> dict[str, dict[str, int]]:
    if not SOURCES.exists():
        pytest.skip("the sources are not here")
    names: dict[str, int] = {}
    for include in ("ggml/include/ggml.h", "ggml/include/ggml-backend.h"):
        parse_header((SOURCES / include).read_text(), names)
    found = parse_header((SOURCES / "include/llama.h").read_text(), names)
    return {
        # ..._MAX_VALUE repeats the last one.
        name: {key: number for key, number in value.values if not key.endswith("_MAX_VALUE")}
        for name, value in found.enums.items()
    }


def c_name(kind: type[enum.Enum]) -> str:
    return "llama_" + re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


@pytest.mark.parametrize("kind", ENUMS)
def test_members_are_those_of_the_header(header, kind):
    expected = header[c_name(kind)]
    found = {name.removeprefix(c_prefix(expected) + "_"): value for name, value in expected.items()}
    assert {name: int(member) for name, member in kind.__members__.items()} == found


def c_prefix(names: dict[str, int]) -> str:
    """The words that all names begin with."""
    words = [name.split("_") for name in names]
    common = []
    for column in zip(*words, strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return "_".join(common)


def test_every_enum_that_users_meet_is_there(header):
    ours = {c_name(kind) for kind in ENUMS}
    internal = {
        "llama_token_type",  # the older form of llama_token_attr
        "llama_ftype",  # Model.ftype is a name
        "llama_model_kv_override_type",  # the Python type of the value says it
        "llama_model_meta_key",
        "llama_process_type",  # encode() or decode()
    }
    assert set(header) - internal == ours


def test_coerce():
    kind = enums.PoolingType
    for value in (kind.MEAN, 1, "mean", "MEAN"):
        assert enums.coerce(kind, value, "pooling_type") is kind.MEAN
    assert enums.coerce(enums.AttentionType, "non-causal", "x") is enums.AttentionType.NON_CAUSAL
    for wrong in ("median", 99, None, 1.5, ""):
        with pytest.raises(errors.InvalidArgumentError, match=r"pooling_type=.*'mean', 'cls'"):
            enums.coerce(kind, wrong, "pooling_type")
