"""Views: where an operator says that its result is, there it is."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.views import is_whole_view, view_offset

OPS = default_ops()


@st.composite
def slices(draw):
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    ranges = []
    for dim in shape:
        begin = draw(st.integers(0, dim - 1))
        ranges.append((begin, draw(st.integers(begin, dim)), draw(st.sampled_from([1, 1, 1, 2]))))
    return shape, tuple(zip(*ranges, strict=True))


@given(slices())
def test_slices(drawn):
    shape, (begin, end, strides) = drawn
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    op = OPS["strided_slice"]
    b = Builder(OPS)
    result = b.call(op, b.param("x", shape), begin=begin, end=end, strides=strides)
    (binding,) = b.bindings
    expected = array[tuple(map(slice, begin, end, strides))].ravel()
    offset = op.view(binding.value.attrs, binding.args[0].type)
    is_piece = expected.size > 0 and bool((np.diff(expected) == 1).all())
    assert (offset is not None) == is_piece
    if offset is not None:
        first = offset // 4
        np.testing.assert_array_equal(array.ravel()[first : first + expected.size], expected)
        assert view_offset(binding) == (offset if offset % 64 == 0 else None)
        whole = expected.size == array.size
        assert is_whole_view(binding) == (offset % 64 == 0 and whole)
    assert result.type.shape == tuple(len(range(*t)) for t in zip(begin, end, strides, strict=True))


def test_others():
    b = Builder(OPS)
    x = b.param("x", (4, 4))
    b.call("reshape", x, newshape=(2, 8))
    b.call("transpose", x, axes=(1, 0))
    assert list(map(is_whole_view, b.bindings)) == [True, False]
    assert view_offset(b.bindings[1]) is None
