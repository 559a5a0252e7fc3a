import numpy as np
import pytest

from tinycomp.testing.compare import assert_close

Y = np.array([[1.0, -2.0], [np.nan, 4.0]], np.float32)


def test_within_the_tolerance_of_the_largest_value():
    assert_close({"y": Y + np.float32(3e-4)}, {"y": Y})
    with pytest.raises(AssertionError, match=r"differ by more than 1e-05"):
        assert_close({"y": Y + np.float32(3e-4)}, {"y": Y}, 1e-5)


@pytest.mark.parametrize(
    ("got", "message"),
    [
        (np.nan_to_num(Y), r"inf at \[1, 0\]: 0.0, expected nan"),
        (np.where(Y == 4, np.nan, Y).astype(np.float32), r"inf at \[1, 1\]: nan, expected 4.0"),
        (np.where(Y == 4, np.inf, Y).astype(np.float32), r"inf at \[1, 1\]: inf, expected 4.0"),
        (Y[0], r"shape \(2,\), expected \(2, 2\)"),
        (Y.astype(np.float64), "dtype float64, expected float32"),
    ],
)
def test_nans_infinities_shapes_and_dtypes_must_agree(got, message):
    with pytest.raises(AssertionError, match=message):
        assert_close({"y": got}, {"y": Y})


def test_message_begins_with_the_worst_output():
    expected = {name: np.ones(3, np.float32) for name in "abc"}
    got = {"a": expected["a"] * np.float32(1.1), "b": expected["b"] * 2}
    with pytest.raises(AssertionError) as info:
        assert_close(got, expected)
    lines = str(info.value).splitlines()
    assert lines[0].startswith("3 of 3 outputs")
    assert lines[1] == "  'c': missing"
    assert lines[2].startswith("  'b': 1.00e+00 at [0]: 2.0, expected 1.0")
