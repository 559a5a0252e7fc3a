"""env_threads: scans launched as one nest of blocks and threads."""

import numpy as np
import pytest

from tinycomp import te
from tinycomp.tir import gpu_executor
from tinycomp.tir.lower_gpu import lower_gpu


@pytest.fixture
def scan(computation):
    """total[t, i] = total[t - 1, i] + X[t, i], over batches i."""

    def build(shift=0):
        x, state = te.placeholder((7, 12), name="X"), te.placeholder((7, 12), name="S")
        init = te.compute((1, 12), lambda t, i: x[0, i], name="init")
        update = te.compute(
            (7, 12),
            lambda t, i: state[t - 1, (i + shift) % 12 if shift else i] + x[t, i],
            name="update",
        )
        return computation([x], te.scan(init, update, state, [x], name="total"))

    return build


def bound(work, *threads):
    s = work.schedule()
    for stage in ("update", "total"):
        axis = s[stage].axes[-1]
        if len(threads) == 2:
            block, thread = s[stage].split(axis, factor=4)
            s[stage].bind(block, threads[0])
            s[stage].bind(thread, threads[1])
        else:
            s[stage].bind(axis, threads[0])
    return s


def on_gpu(work, s):
    func = lower_gpu(s.func)
    results = [np.zeros([d.value for d in t.shape], t.dtype.numpy) for t in work.outputs]
    gpu_executor.run(func, [*work.arrays, *results])
    for result, expected in zip(results, work.expected, strict=True):
        np.testing.assert_array_equal(result, expected)
    return func


def test_blocks_go_around_the_scan(scan):
    work = scan()
    s = bound(work, "blockIdx.x", "threadIdx.x")
    s["total"].env_threads(["blockIdx.x", "threadIdx.x"])
    assert s["update"].axis_names[:2] == ("blockIdx.x", "total.t")
    work.check(s)
    on_gpu(work, s)


def test_threads_of_a_block_may_exchange_values(scan):
    work = scan(shift=5)
    s = bound(work, "threadIdx.x")
    s["update"].env_threads(te.thread_axis("threadIdx.x"))
    work.check(s)
    assert "barrier()" in str(on_gpu(work, s))


def test_refusals(scan, refuses):
    work = scan(shift=5)
    s = bound(work, "blockIdx.x", "threadIdx.x")
    words = ["'total' is written and read inside the nest", "part of their own"]
    refuses(s, words, lambda: s["total"].env_threads(["blockIdx.x"]))
    refuses(s, "no loop of the nest", lambda: s["total"].env_threads("threadIdx.y"))
    refuses(s, "not a thread axis", lambda: s["total"].env_threads("warp"))
    refuses(s, "no threads are given", lambda: s["total"].env_threads([]))
    s = scan().schedule()
    s["update"].bind(s["update"].axes[-1], "blockIdx.x")
    words = ["'total' is in the same nest", "bind one of its loops"]
    refuses(s, words, lambda: s["update"].env_threads(["blockIdx.x"]))
