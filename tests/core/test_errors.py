"""The exceptions: what they are, what they carry, that they survive a trip to another process."""

import copy
import inspect
import pickle

import pytest

from pyllm import errors

ALL = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.PyllmError)]


def test_all_of_them_are_exported():
    assert {kind.__name__ for kind in ALL} == set(errors.__all__)


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind is not errors.PyllmError])
def test_each_is_a_fitting_builtin_too(kind):
    builtin = [
        base for base in kind.__mro__ if base.__module__ == "builtins" and base not in (Exception, BaseException)
    ]
    assert builtin[0] is not object
    with pytest.raises(builtin[0]):
        raise kind("message")
    assert kind.__doc__


@pytest.mark.parametrize("kind", ALL)
def test_attributes(kind):
    bare = kind("message")
    assert (bare.code, bare.function, bare.log, str(bare)) == (None, None, (), "message")
    full = kind("message", code=-3, function="llama_decode", log=["first", "second"])
    assert (full.code, full.function, full.log) == (-3, "llama_decode", ("first", "second"))
    assert str(full) == "message\nllama.cpp said:\n  first\n  second"
    with pytest.raises(AttributeError):
        _ = full.no_such_attribute


@pytest.mark.parametrize("kind", ALL)
def test_pickling_and_copying(kind):
    error = kind("message", code=-3, function="llama_decode", log=("line",))
    for again in (
        *(pickle.loads(pickle.dumps(error, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)),
        copy.copy(error),
        copy.deepcopy(error),
    ):
        assert type(again) is kind and str(again) == str(error)
        assert (again.code, again.function, again.log) == (-3, "llama_decode", ("line",))


def test_os_errors_have_their_numbers(tmp_path):
    from pyllm.core.model import Model

    with pytest.raises(errors.ModelNotFoundError) as caught:
        Model(tmp_path / "none")
    error = caught.value
    assert (error.errno, error.filename) == (2, str(tmp_path / "none"))
    again = pickle.loads(pickle.dumps(error))
    assert (again.errno, again.filename, str(again)) == (2, error.filename, str(error))


def test_closed_is_a_value_error_as_for_files():
    assert issubclass(errors.ClosedError, ValueError) and issubclass(errors.NoKVSlotError, errors.DecodeError)
    assert issubclass(errors.ModelNotFoundError, errors.ModelLoadError)
