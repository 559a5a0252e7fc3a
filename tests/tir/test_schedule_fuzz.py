"""Random sequences of schedule primitives: what is accepted computes what NumPy does."""

import random

import numpy as np
import pytest

from tinycomp import te
from tinycomp.diagnostics import ScheduleError
from tinycomp.ir.expr import if_then_else
from tinycomp.target import Target
from tinycomp.te.interpreter import evaluate
from tinycomp.tir.interpreter import run
from tinycomp.tir.lower import lower
from tinycomp.tir.schedule import create_schedule
from tinycomp.tir.verify import verify

AVX2 = Target.parse("llvm -mcpu=x86-64-v3")


def chain():
    a = te.placeholder((5, 7), name="A")
    b = te.compute((5, 7), lambda i, j: a[i, j] + 1.0, name="B")
    c = te.compute((7, 5), lambda i, j: b[j, i] * 2.0, name="C")
    return [a], [te.compute((7, 5), lambda i, j: c[i, j] - b[j, 6 - i], name="D")]


def stencils():
    a = te.placeholder((14,), name="A")
    b = te.compute((14,), lambda i: a[i] * 2.0, name="B")
    c = te.compute((12,), lambda i: b[i] + b[i + 2], name="C")
    return [a], [te.compute((9,), lambda i: c[i] + c[i + 3] * b[i + 1], name="D")]


def matmul():
    a, b = te.placeholder((5, 6), name="A"), te.placeholder((6, 9), name="B")
    k = te.reduce_axis((0, 6), name="k")
    c = te.compute((5, 9), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")
    return [a, b], [te.compute((5, 9), lambda i, j: c[i, j] + 1.0, name="D")]


def convolution():
    a, w = te.placeholder((8, 3), name="A"), te.placeholder((3, 3, 4), name="W")
    pad = te.compute(
        (10, 3),
        lambda i, c: if_then_else((i >= 1) & (i < 9), a[i - 1, c], 0.0),
        name="pad",
    )
    r, q = te.reduce_axis((0, 3), name="r"), te.reduce_axis((0, 3), name="q")
    conv = te.compute(
        (8, 4), lambda i, o: te.sum(pad[i + r, q] * w[r, q, o], axis=(r, q)), name="conv"
    )
    return [a, w], [te.compute((8, 4), lambda i, o: conv[i, o] * 2.0, name="D")]


def softmax_like():
    a = te.placeholder((4, 7), name="A")
    k, r = te.reduce_axis((0, 7), name="k"), te.reduce_axis((0, 7), name="k")
    top = te.compute((4,), lambda i: te.max(a[i, k], axis=k), name="top")
    e = te.compute((4, 7), lambda i, j: a[i, j] - top[i], name="e")
    total = te.compute((4,), lambda i: te.sum(e[i, r], axis=r), name="total")
    return [a], [te.compute((4, 7), lambda i, j: e[i, j] * 4.0 + total[i], name="D")]


def two_outputs():
    a = te.placeholder((6, 6), name="A")
    b = te.compute((6, 6), lambda i, j: a[j, i] + 3.0, name="B")
    k = te.reduce_axis((1, 6), name="k")
    c = te.compute((6,), lambda i: te.sum(b[i, k], axis=k, where=b[i, k] > 0.0), name="C")
    return [a], [c, te.compute((6, 6), lambda i, j: b[i, j] * c[j], name="D")]


COMPUTATIONS = (chain, stencils, matmul, convolution, softmax_like, two_outputs)


def random_call(rng, s):
    """One primitive with random arguments; most are illegal."""
    names = s.stages
    stage, other = s[rng.choice(names)], s[rng.choice(names)]
    axes = list(stage.axis_names) or ["i"]
    axis, more = rng.choice(axes), list(other.axis_names) or ["i"]
    buffers = [b.name for b in (*s.func.params, *s.func.allocs)]
    size = rng.randint(1, 5)
    calls = {
        "split": lambda: stage.split(axis, factor=size),
        "nparts": lambda: stage.split(axis, nparts=size),
        "factors": lambda: stage.split(axis, factors=[None, size, 2]),
        "fuse": lambda: stage.fuse(*axes[(at := rng.randrange(len(axes))) : at + 2]),
        "reorder": lambda: stage.reorder(*rng.sample(axes, rng.randint(1, len(axes)))),
        "vectorize": lambda: stage.vectorize(axis),
        "unroll": lambda: stage.unroll(axis),
        "parallel": lambda: stage.parallel(axis),
        "bind": lambda: stage.bind(axis, rng.choice(["threadIdx.x", "blockIdx.x", "vthread"])),
        "compute_at": lambda: stage.compute_at(other, rng.choice(more)),
        "compute_at again": lambda: stage.compute_at(other, rng.choice(more)),
        "reverse_compute_at": lambda: stage.reverse_compute_at(other, rng.choice(more)),
        "compute_inline": lambda: stage.compute_inline(),
        "reverse_compute_inline": lambda: stage.reverse_compute_inline(),
        "compute_root": lambda: stage.compute_root(),
        "cache_read": lambda: s.cache_read(rng.choice(buffers), "local", [stage.block_name]),
        "cache_write": lambda: s.cache_write(stage.block_name, rng.choice(["local", "shared"])),
        "rfactor": lambda: s.rfactor(stage.block_name, axis),
        "set_scope": lambda: stage.set_scope("local"),
        "decompose": lambda: stage.decompose_reduction(axis),
        "partition": lambda: stage.partition(axis, size),
        "pad": lambda: stage.pad(axis, size),
        "layout": lambda: stage.transform_layout(lambda *i: (*i[1:], i[0] // 2, i[0] % 2)),
        "normalize": lambda: s.normalize(),
    }
    weights = [4 if "compute" in name or name in ("rfactor", "cache_read") else 1 for name in calls]
    calls[rng.choices(list(calls), weights)[0]]()


def check(make, seed, steps):
    rng = random.Random(seed)
    inputs, outputs = make()
    s = create_schedule(outputs, inputs)
    for _ in range(steps):
        before = s.show()
        refusal = None
        try:
            random_call(rng, s)
        except ScheduleError as error:
            refusal = error
        if refusal is not None:
            assert s.show() == before
            assert refusal.hint, str(refusal)
    generator = np.random.default_rng(seed)
    arrays = [
        generator.integers(-4, 5, [d.value for d in t.shape]).astype(np.float32) for t in inputs
    ]
    expected = evaluate(outputs, dict(zip(inputs, arrays, strict=True)))
    for func, done in ((s.func, False), (lower(s.func, AVX2), True)):
        verify(func, lowered=done)
        results = [np.full(e.shape, 77, e.dtype) for e in expected]
        run(func, [*arrays, *results])
        for result, right in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result, right, err_msg=s.trace())
    again = create_schedule(outputs, inputs)
    again.replay(s.from_json(s.to_json()))
    assert again.show() == s.show()
    return s


@pytest.mark.parametrize("make", COMPUTATIONS)
@pytest.mark.parametrize("seed", range(12))
def test_random_schedules(make, seed):
    check(make, seed, 14)
