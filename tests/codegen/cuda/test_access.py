"""The analysis of memory accesses against counts made by hand."""

import numpy as np
import pytest

from tinycomp import te
from tinycomp.codegen.cuda.access import bytes_in_flight, find_accesses
from tinycomp.tir.lower_gpu import lower_gpu


def copy_kernel(shape, index, dtype="float32", vector=1):
    """B[i] = A[index(i)], flat over threads."""
    A = te.placeholder(shape, dtype, name="A")
    B = te.compute((1024,), lambda i: A(*index(i)), name="B")
    s = te.create_schedule(B.op)
    axis = s[B].axis("i")
    if vector > 1:
        axis, lanes = s[B].split(axis, factor=vector)
        s[B].vectorize(lanes)
    block, thread = s[B].split(axis, factor=128)
    s[B].bind(block, "blockIdx.x")
    s[B].bind(thread, "threadIdx.x")
    return lower_gpu(s.func)


def sites(func):
    (launch,) = find_accesses(func)
    return launch, {(s.verb, s.buffer.name): s for s in launch.sites}


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32", "float64"])
@pytest.mark.parametrize("vector", [1, 2])
def test_contiguous(dtype, vector):
    launch, found = sites(copy_kernel((1024,), lambda i: (i,), dtype, vector))
    size = np.dtype(dtype).itemsize
    assert launch.efficiency == 1.0
    assert launch.moved == launch.unique == 2 * 1024 * size
    assert found["load", "A"].width == size * vector
    assert found["load", "A"].requests == 32 / vector


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16])
def test_strided(stride):
    _, found = sites(copy_kernel((1024 * stride,), lambda i: (i * stride,)))
    assert found["load", "A"].efficiency == 1 / min(stride, 8)


def test_same_address_is_one_sector():
    launch, found = sites(copy_kernel((8,), lambda i: (i // 128,)))
    assert found["load", "A"].moved == 32 * 32  # of each of 32 warps
    assert found["load", "A"].efficiency == 1.0
    assert launch.unique == 4 * 1024 + 32


def test_misaligned():
    _, found = sites(copy_kernel((1025,), lambda i: (i + 1,)))
    assert found["load", "A"].efficiency == 4 / 5
    _, found = sites(copy_kernel((1026,), lambda i: (i + 2,), vector=4))
    assert found["load", "A"].width == 4  # not one access: its address is no multiple of 16
    assert found["load", "A"].efficiency < 0.3
    assert found["store", "B"].width == 16


def test_rows_by_index_are_contiguous_inside():
    A = te.placeholder((50, 128), name="A")
    I = te.placeholder((64,), "int64", name="I")
    B = te.compute((64, 128), lambda i, j: A(I(i), j), name="B")
    s = te.create_schedule(B.op)
    s[B].bind("i", "blockIdx.x")
    s[B].bind("j", "threadIdx.x")
    _, found = sites(lower_gpu(s.func))
    assert found["load", "A"].efficiency == 1.0
    C = te.compute((64, 128), lambda i, j: A(I(j % 64), i), name="C")
    s = te.create_schedule(C.op)
    s[C].bind("i", "blockIdx.x")
    s[C].bind("j", "threadIdx.x")
    _, found = sites(lower_gpu(s.func))
    assert found["load", "A"].efficiency < 0.2


def shared_tile(stride, dtype="float32", vector=1):
    """Threads write a tile along rows of `stride` and read it `vector` elements each."""
    A = te.placeholder((32, stride), dtype, name="A")
    S = te.compute((32, stride), lambda i, j: A(i, j), name="S")
    if vector == 1:
        B = te.compute((32, 32), lambda i, j: S(j, i), name="B")
    else:
        B = te.compute((32, 32 * vector), lambda i, j: S(i, j % stride), name="B")
    s = te.create_schedule(B.op)
    i, j = s[B].axes
    if vector > 1:
        j, lanes = s[B].split(j, factor=vector)
        s[B].vectorize(lanes)
    block, i = s[B].split(i, nparts=1)
    s[B].bind(block, "blockIdx.x")
    s[B].bind(j, "threadIdx.x")
    s.set_scope(S, "shared")
    s[S].compute_at(s[B], block)
    s[S].bind(s[S].split(s[S].axes[-1], factor=32)[1], "threadIdx.x")
    _, found = sites(lower_gpu(s.func))
    return found["load", "S"]


@pytest.mark.parametrize(
    ("stride", "dtype", "conflicts"),
    [
        (32, "float32", 32), (33, "float32", 1), (34, "float32", 2), (36, "float32", 4),
        (32, "float64", 16), (33, "float64", 1), (64, "float16", 32),
        (34, "float16", 1), (36, "float16", 2),
    ],
)  # fmt: skip
def test_columns_of_a_shared_tile(stride, dtype, conflicts):
    assert shared_tile(stride, dtype).conflicts == conflicts


def test_wide_reads_of_shared_memory_do_not_conflict():
    site = shared_tile(128, vector=4)
    assert (site.width, site.conflicts) == (16, 1.0)


def test_loops_stand_for_all_their_iterations():
    A = te.placeholder((256, 1000), name="A")
    k = te.reduce_axis((0, 1000), name="k")
    B = te.compute((256,), lambda i: te.sum(A(i, k), axis=k), name="B")
    s = te.create_schedule(B.op)
    block, thread = s[B].split("i", factor=32)
    s[B].bind(block, "blockIdx.x")
    s[B].bind(thread, "threadIdx.x")
    launch, found = sites(lower_gpu(s.func))
    assert found["load", "A"].requests == 8 * 1000
    assert found["load", "A"].efficiency == 1 / 8
    assert launch.in_flight == 4


def test_bytes_in_flight():
    A = te.placeholder((1024,), name="A")
    B = te.compute((1024,), lambda i: A(i) + 1.0, name="B")
    s = te.create_schedule(B.op)
    outer, thread = s[B].split("i", factor=128)
    s[B].bind(thread, "threadIdx.x")
    assert bytes_in_flight(lower_gpu(s.func).body) == 4
    s[B].unroll(outer)
    assert bytes_in_flight(lower_gpu(s.func).body) == 32
