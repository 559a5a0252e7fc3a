import numpy as np
import pytest

from tinycomp.diagnostics import InputError
from tinycomp.dtype import DType
from tinycomp.runtime.arrays import (
    aligned_empty,
    bind_arguments,
    check_input,
    check_names,
    random_inputs,
)
from tinycomp.runtime.artifact import ValueSpec

X = ValueSpec("x", (2, 3), DType.FLOAT32)
MASK = ValueSpec("mask", (2,), DType.INT64)


class DLPackOnly:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **kwargs):
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class InterfaceOnly:
    def __init__(self, array):
        self.__array_interface__ = array.__array_interface__
        self.array = array


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (7, 5)])
@pytest.mark.parametrize("dtype", list(DType))
def test_aligned_empty(shape, dtype):
    array = aligned_empty(shape, dtype.numpy)
    assert array.shape == shape
    assert array.dtype == dtype.numpy
    assert array.ctypes.data % 64 == 0
    assert array.flags.writeable
    assert array.flags.c_contiguous


def test_good_arrays_are_taken_as_they_are():
    x = np.ones((2, 3), np.float32)
    assert check_input(x, X) is x
    for wrapped in (DLPackOnly(x), InterfaceOnly(x)):
        taken = check_input(wrapped, X)
        assert taken.ctypes.data == x.ctypes.data


def test_strided_and_misaligned_arrays_are_copied():
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    views = [base.T[:2], base[::-1, :][:2, 1:], np.broadcast_to(np.float32(1), (2, 3))]
    raw = np.zeros(25, np.uint8)
    views.append(raw[1:].view(np.float32).reshape(2, 3))
    for view in views:
        taken = check_input(view[:, :3], X)
        assert taken.flags.c_contiguous
        assert taken.flags.aligned
        np.testing.assert_array_equal(taken, view[:, :3])


def test_python_values_take_the_dtype():
    assert check_input([[1, 2, 3], [4, 5, 6]], X).dtype == np.float32
    assert check_input([1, 0], MASK).dtype == np.int64


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((2, 3)), "dtype float64, expected float32"),
        (np.ones((2, 4), np.float32), "dimension 1 is 4, not 3"),
        (np.ones((2, 3, 1), np.float32), "3 dimensions, not 2"),
        (np.ones((2, 3), ">f4"), "dtype"),
        ("text", "is a str"),
        (None, "NoneType"),
        (object(), "object"),
    ],
)
def test_wrong_values_are_refused(value, message):
    with pytest.raises(InputError, match=message):
        check_input(value, X)


def test_names_are_checked_together():
    with pytest.raises(InputError) as caught:
        check_names(["x", "masc", "zzz"], [X, MASK])
    text = str(caught.value)
    assert "missing 'mask'" in text
    assert "unknown 'masc', did you mean 'mask'?" in text
    assert "unknown 'zzz'" in text
    assert "float32[2, 3]" in text
    check_names(["mask", "x"], [X, MASK])


def test_arguments_bind_like_a_call():
    assert bind_arguments([1], {"mask": 2}, [X, MASK]) == {"x": 1, "mask": 2}
    with pytest.raises(InputError, match="3 inputs"):
        bind_arguments([1, 2, 3], {}, [X, MASK])
    with pytest.raises(InputError, match="by position and by name"):
        bind_arguments([1], {"x": 1}, [X, MASK])


def test_random_inputs_are_seeded_and_fit():
    specs = [X, MASK, ValueSpec("b", (), DType.BOOL), ValueSpec("t", ("n", 4), DType.INT32)]
    first, second = random_inputs(specs, 3), random_inputs(specs, 3)
    for spec in specs:
        np.testing.assert_array_equal(first[spec.name], second[spec.name])
        assert first[spec.name].dtype == spec.dtype.numpy
    assert first["t"].shape == (1, 4)
