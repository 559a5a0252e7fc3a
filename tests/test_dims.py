import pytest

from tinycomp.diagnostics import InputError, TinycompError
from tinycomp.dims import DimRange, split_dims


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (8, DimRange(8, 8)),
        (None, DimRange()),
        ((1, 64), DimRange(1, 64)),
        ((2, None), DimRange(2)),
        ([8, 1, 32], DimRange(0, 32, (1, 8, 32))),
        (DimRange(1, 9, (4,)), DimRange(1, 9, (4,))),
        ("auto", DimRange(auto=True)),
        ("auto..100", DimRange(0, 100, auto=True)),
    ],
)
def test_what_users_write(value, expected):
    assert DimRange.of(value) == expected


@pytest.mark.parametrize("value", ["x", -1, (5, 2), [], [1.5], (1, 2, 3), 2.0])
def test_what_is_no_size_is_refused(value):
    with pytest.raises(TinycompError, match="'batch' is not a size"):
        DimRange.of(value, "batch")


@pytest.mark.parametrize("text", ["8", "1..64", "3..", "1,8,32", "*", "auto", "auto..512"])
def test_text_round_trip(text):
    assert str(DimRange.parse(text)) == text


@pytest.mark.parametrize("text", ["", "x", "1..x", "1,", "-1", "..5", "1 2", "auto..", "auto5"])
def test_text_that_is_none(text):
    with pytest.raises((ValueError, TinycompError)):
        DimRange.parse(text)


def test_sizes_outside_the_range_are_refused():
    DimRange.of((2, 4)).check("batch", 4)
    for size in (1, 5):
        with pytest.raises(InputError, match=r"batch has size \d, but .* 2..4"):
            DimRange.of((2, 4)).check("batch", size)


def test_ranges_of_one_size_are_fixed():
    assert split_dims({"a": (3, 3), "b": None, "c": [2]}) == ({"a": 3, "c": 2}, {"b": DimRange()})


@pytest.mark.parametrize("text", ["auto", "auto..100", "1,8,32"])
def test_every_size_has_one_bucket(text):
    """Sizes above one bucket and up to the next share it."""
    r = DimRange.parse(text)
    for size in range(1, 33):
        bucket = r.bucket(size)
        assert r.below(bucket) < size <= bucket
        assert r.bucket(bucket) == bucket
    assert len({DimRange.parse("auto").bucket(size) for size in range(1, 513)}) == 10
