# %% [markdown]
# # Schedules for a GPU
#
# The same primitives, with loops bound to blocks and threads, shared tiles, and the matrix
# instructions of tensor cores. No GPU is needed: `simulate` runs the program of every thread on the
# CPU and looks for races, missing barriers and accesses out of bounds; NVRTC, if it is installed,
# compiles for a real one and says what the machine code uses.

# %%
import numpy as np

import tinycomp
from tinycomp import te
from tinycomp.codegen.cuda.nvrtc import library
from tinycomp.diagnostics import ScheduleError, TinycompError
from tinycomp.tir.tensor_intrinsics.warp import MMA, load_matrix, mma, store_fragment

TARGET = "cuda -arch=sm_90a"
AXES = ("blockIdx.y", "blockIdx.x", "threadIdx.y", "threadIdx.x")
M = N = K = 64
rng = np.random.default_rng(0)
a, b = rng.standard_normal((M, K), np.float32), rng.standard_normal((K, N), np.float32)

try:
    library()
    HAVE_NVRTC = True
except TinycompError as error:
    HAVE_NVRTC = False
    print(error)


def matmul():
    A, B = te.placeholder((M, K), name="A"), te.placeholder((K, N), name="B")
    k = te.reduce_axis((0, K), name="k")
    C = te.compute((M, N), lambda i, j: te.sum(A[i, k] * B[k, j], axis=k), name="C")
    return A, B, C


def check(s, tensors, label):
    f = tinycomp.build(s, tensors, TARGET)
    c = np.empty((M, N), np.float32)
    f.simulate(a, b, c)
    np.testing.assert_allclose(c, a @ b, rtol=1e-4, atol=1e-4)
    (launch,) = f.launches
    (touched,) = f.accesses
    print(f"{label:24} grid {launch.grid} block {launch.block} shared {launch.shared_bytes} bytes")
    print(touched)
    if HAVE_NVRTC:
        (used,) = f.resources.values()
        print(f"{'':24} {used.registers} registers, {used.spill_stores} bytes spilled")
        assert used.spill_stores == used.stack == 0
    return f


# %% [markdown]
# ## Blocks and threads
#
# Bind the loops over the result: one thread for each element. Every thread then reads a row of A
# and a column of B from memory. What no call binds would get a binding like this by default.

# %%
A, B, C = matmul()
s = te.create_schedule(C.op)
by, bx, ty, tx = s[C].tile(*C.op.axis, 16, 16)
for axis, thread in zip((by, bx, ty, tx), AXES, strict=True):
    s[C].bind(axis, te.thread_axis(thread))
f = check(s, [A, B, C], "one thread per element")
print(f.get_source())

# %% [markdown]
# ## Shared tiles and register tiles
#
# A block computes 32 x 32 elements with 8 x 8 threads, 4 x 4 elements each, in registers. The
# parts of A and B that it needs are copied to shared memory by all its threads together: computed
# inside the loops over threads, a shared stage holds what *all* threads read, and its own loops are
# bound to the same threads. Barriers come by themselves, where the data says so.

# %%
A, B, C = matmul()
s = te.create_schedule(C.op)
shared = [s.cache_read(t, "shared", [C]) for t in (A, B)]
tile = s.cache_write(C, "local")
by, bx, i, j = s[C].tile(*C.op.axis, 32, 32)
ty, i = s[C].split(i, nparts=8)
tx, j = s[C].split(j, nparts=8)
s[C].reorder(by, bx, ty, tx, i, j)
for axis, thread in zip((by, bx, ty, tx), AXES, strict=True):
    s[C].bind(axis, te.thread_axis(thread))
s[C].vectorize(j)
s[tile].compute_at(s[C], tx)
ko, ki = s[tile].split(s[tile].op.reduce_axis[0], factor=16)
s[tile].reorder(ko, ki, *s[tile].op.axis)
for copy in shared:
    s[copy].compute_at(s[tile], ko)
    fused = s[copy].fuse(*s[copy].op.axis)
    _, ty, tx, lanes = s[copy].split(fused, factors=[None, 8, 8, 4])
    s[copy].bind(ty, "threadIdx.y")
    s[copy].bind(tx, "threadIdx.x")
    s[copy].vectorize(lanes)
print(s.show())
f = check(s, [A, B, C], "tiles")
assert f.get_source().count("__syncthreads()") == 2

# %% [markdown]
# The order matters, since every call applies at once. Bound too late, each thread would have its
# own part of the shared tile, and parts overlap:

# %%
A, B, C = matmul()
s = te.create_schedule(C.op)
copy = s.cache_read(A, "shared", [C])
s[copy].compute_at(s[C], C.op.axis[1])
try:
    s[C].bind(C.op.axis[0], "threadIdx.y")
except ScheduleError as error:
    print(error)
else:
    raise AssertionError("the call is refused")

# %% [markdown]
# ## Reductions across threads
#
# As on the CPU, rfactor makes partial results; binding the axis that combines them lets the threads
# of a warp exchange registers.

# %%
X = te.placeholder((4, 1000), name="X")
k = te.reduce_axis((0, 1000), name="k")
Y = te.compute((4,), lambda i: te.sum(X[i, k], axis=k), name="Y")
s = te.create_schedule(Y.op)
_, lane = s[Y].split(Y.op.reduce_axis[0], factor=32)
partial = s.rfactor(Y, lane)
s[Y].bind(s[Y].op.axis[0], "blockIdx.x")
s[Y].bind(s[Y].op.reduce_axis[0], "threadIdx.x")
s[partial].compute_at(s[Y], s[Y].op.reduce_axis[0])
f = tinycomp.build(s, [X, Y], TARGET)
x, y = rng.standard_normal((4, 1000), np.float32), np.empty(4, np.float32)
f.simulate(x, y)
np.testing.assert_allclose(y, x.sum(1), rtol=1e-4, atol=1e-4)
print(f.get_source())
assert "__shfl_xor_sync" in f.get_source()

# %% [markdown]
# ## Tensor cores
#
# One warp multiplies 16 x 16 by 16 x 8 elements with one instruction. Its operands are fragments:
# buffers in scope "warp", spread over the registers of the 32 threads. `tensorize` puts in the
# instructions that load, multiply and store them; each is a record that says what it computes, so
# the loops are compared with it, and `simulate` executes it lane by lane.

# %%
print("\n".join(MMA))
A, B = te.placeholder((M, K), "bfloat16", name="A"), te.placeholder((N, K), "bfloat16", name="B")
k = te.reduce_axis((0, K), name="k")
C = te.compute(
    (M, N),
    lambda i, j: te.sum(A[i, k].astype("float32") * B[j, k].astype("float32"), axis=k),
    name="C",
)
s = te.create_schedule(C.op)
product = s.cache_write(C, "shared")  # a tile of results, from which they are stored in lines
warp_product = s.cache_write(product, "warp")
copies = [s.cache_read(t, "shared", [warp_product]) for t in (A, B)]
fragments = [s.cache_read(t, "warp", [warp_product]) for t in copies]


def over_threads(stage, axis, width=1):
    """An axis over 4 warps of 32 threads, `width` neighbours each."""
    _, y, x, lane = stage.split(axis, factors=[None, 4, 32, width])
    stage.bind(y, "threadIdx.y")
    stage.bind(x, "threadIdx.x")
    if width > 1:
        stage.vectorize(lane)


by, bx, i, j = s[C].tile(*s[C].op.axis, 32, 32)
s[C].bind(by, "blockIdx.y")
s[C].bind(bx, "blockIdx.x")
for stage in (product, warp_product):
    s[stage].compute_at(s[C], bx)
over_threads(s[C], s[C].fuse(i, j), 4)

warps = s[warp_product]  # 2 x 2 warps of 16 x 16 elements, in fragments of 16 x 8
i, j, k = warps.axes[-3:]
wi, ti = warps.split(i, factor=16)
wj, nj, tj = warps.split(j, factors=[None, 2, 8])
ko, kk, tk = warps.split(k, factors=[None, 2, 16])
warps.reorder(ko, wi, wj, kk, nj, ti, tj, tk)
warps.bind(warps.fuse(wi, wj), "threadIdx.y")
warps.unroll(kk)
warps.unroll(nj)
for fragment, role in zip(fragments, "ab", strict=True):
    stage = s[fragment]
    stage.compute_at(warps, kk)
    outer, rows = stage.split(stage.axes[-2], factor=16)
    stage.unroll(outer)
    stage.tensorize(rows, load_matrix(role, "bfloat16"))
warps.tensorize(ti, mma("bfloat16", "float32"))
for copy in copies:
    s[copy].compute_at(warps, ko)
    over_threads(s[copy], s[copy].fuse(*s[copy].axes[-2:]), 8)
store = s[product]
i, j = store.axes[-2:]
wi, ti = store.split(i, factor=16)
wj, nj, tj = store.split(j, factors=[None, 2, 8])
store.reorder(wi, wj, nj, ti, tj)
store.bind(store.fuse(wi, wj), "threadIdx.y")
store.tensorize(ti, store_fragment("float32"))
print(s.show())

f = tinycomp.build(s, [A, B, C], TARGET)
x, w = a.astype(A.dtype.numpy), np.ascontiguousarray(b.T).astype(B.dtype.numpy)
c = np.empty((M, N), np.float32)
f.simulate(x, w, c)
np.testing.assert_allclose(c, x.astype("f4") @ w.astype("f4").T, rtol=1e-3, atol=1e-3)
assert "mma.sync.aligned.m16n8k16" in f.get_source()
if HAVE_NVRTC:
    (used,) = f.resources.values()
    print(used)
    assert used.spill_stores == 0
