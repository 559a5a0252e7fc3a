"""Swizzles, descriptors and fragments, by what they must be."""

import numpy as np
import pytest

from tinycomp.dtype import DType
from tinycomp.tir.tile.layout import Major, MatrixDescriptor, Swizzle, WgmmaShape


@pytest.mark.parametrize("span", [0, 32, 64, 128])
def test_swizzle_permutes_units_within_its_span(span):
    address = np.arange(2048)
    moved = Swizzle(span).apply(address)
    assert np.array_equal(np.sort(moved), address)
    assert np.array_equal(Swizzle(span).apply(moved), address)
    assert np.array_equal(moved % 16, address % 16)
    assert np.array_equal(moved // max(16, span), address // max(16, span))


def test_columns_of_a_swizzled_tile_touch_all_banks():
    """Eight rows at one column: what ldmatrix, stores of fragments and TMA meet."""
    units = Swizzle(128).apply(np.arange(8) * 128 + 48) // 16 % 8
    assert sorted(units) == list(range(8))


@pytest.mark.parametrize("n", [8, 64, 256])
def test_fragment_holds_each_element_once(n):
    row, column = WgmmaShape(n, DType.BFLOAT16).fragment()
    assert len(set(zip(row.ravel(), column.ravel(), strict=True))) == 64 * n
    # PTX ISA: d0, d1 of thread 5 are row 1, columns 2 and 3; d2, d3 eight rows below
    assert [(int(row[5, r]), int(column[5, r])) for r in range(4)] == [
        (1, 2), (1, 3), (9, 2), (9, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(("major", "extent"), [(Major.K, 64), (Major.MN, 128)])
def test_descriptor_finds_what_a_copy_wrote(major, extent):
    """Boxes of 128-byte rows, one after the other, as TMA writes them."""
    dtype, k = np.uint16, 64
    matrix = np.arange(extent * k, dtype=dtype).reshape(extent, k)
    if major is Major.K:
        linear, descriptor = matrix, MatrixDescriptor(major, 16, 1024)
        step = 32
    else:
        linear = np.concatenate([matrix[i : i + 64].T for i in range(0, extent, 64)])
        descriptor, step = MatrixDescriptor(major, k * 128, 1024), 16 * 128
    memory = np.zeros(linear.nbytes, np.uint8)
    memory[Swizzle(128).apply(np.arange(linear.nbytes))] = (
        np.ascontiguousarray(linear).reshape(-1).view(np.uint8)
    )
    for p in range(4):
        at = descriptor.addresses(p * step, extent, 16, 2)
        found = memory[at[..., None] + np.arange(2)].view(dtype)[..., 0]
        assert np.array_equal(found, matrix[:, p * 16 : p * 16 + 16])


def test_descriptor_bits():
    """PTX ISA, matrix descriptor format: offsets in 16-byte units at 16 and 32, mode at 62."""
    bits = MatrixDescriptor(Major.MN, 8192, 1024).constant()
    assert bits & 0x3FFF == 0
    assert bits >> 16 & 0x3FFF == 8192 // 16
    assert bits >> 32 & 0x3FFF == 64
    assert bits >> 62 == 1
