# %% [markdown]
# # Tensorize: a dot product in one instruction
#
# Quantised models multiply bytes: unsigned activations with signed weights, summed in 32 bits.
# Processors have an instruction for it. `vpdpbusd` (AVX512-VNNI) adds to each of 16 lanes the dot
# product of 4 + 4 bytes: 64 multiply-adds at once. No combination of plain vector operations says
# that, so the schedule must name it: `tensorize` replaces a nest of loops by a *tensor intrinsic*,
# after checking that the nest computes just what the intrinsic declares.

# %%
import numpy as np

import tinycomp
from tinycomp import te
from tinycomp.diagnostics import ScheduleError, TinycompError
from tinycomp.runtime.arrays import aligned_empty
from tinycomp.target import Target
from tinycomp.tir.interpreter import run

m, n, k = 96, 256, 512
lanes, quad = 16, 4  # one instruction: 16 outputs, 4 products each
target = Target.host()
has_vnni = target.has_feature("avx512vnni")
rng = np.random.default_rng(0)
a = rng.integers(0, 256, (m, k), np.uint8)
b = rng.integers(-128, 128, (k, n), np.int8)
expected = a.astype(np.int32) @ b.astype(np.int32)

# %% [markdown]
# ## The computation
#
# The instruction wants 16 columns x 4 rows of weights side by side in 64 bytes. A model's weights
# are constant, so they are packed once: `W[n/16][k/4][column * 4 + row]`.

# %%
A = te.placeholder((m, k), "uint8", name="A")
W = te.placeholder((n // lanes, k // quad, lanes * quad), "int8", name="W")
r = te.reduce_axis((0, k), name="r")
C = te.compute(
    (m, n),
    lambda i, j: te.sum(
        te.cast(A[i, r], "int32")
        * te.cast(W[j // lanes, r // quad, j % lanes * quad + r % quad], "int32"),
        axis=r,
    ),
    name="C",
)
panels = aligned_empty((n // lanes, k // quad, lanes * quad), np.dtype("int8"))
panels[:] = (
    b.reshape(k // quad, quad, n // lanes, lanes).transpose(2, 0, 3, 1).reshape(panels.shape)
)
table = []


def measure(label, schedule, repeat=5):
    f = tinycomp.build(schedule, [A, W, C], num_threads=1)
    c = aligned_empty((m, n), np.dtype("int32"))
    f(a, panels, c)
    np.testing.assert_array_equal(c, expected)
    seconds = min(f.time_evaluator(number=1, repeat=repeat)(a, panels, c).min for _ in range(3))
    table.append((label, 2 * m * n * k / seconds / 1e9))
    print(f"{label:32} {table[-1][1]:8.1f} GOP/s")
    return f


# %% [markdown]
# ## Scalar, and vectors that know nothing of dot products
#
# The plain vector form widens each byte to 32 bits and multiplies there.

# %%
s = te.create_schedule(C)
measure("scalar", s, repeat=1)


def register_tile(s, rows, columns):
    """C in tiles of rows x columns that stay in registers; returns the tile's loops."""
    tile = s.cache_write(C, "local")
    i, j = s[C].axes
    io, ii = s[C].split(i, factor=rows)
    jo, ji = s[C].split(j, factor=columns)
    s[C].reorder(jo, io, ii, ji)
    s[C].vectorize(ji)
    s[C].unroll(ii)
    s[tile].compute_at(s[C], io)
    *_, i, j, r = s[tile].axes
    ro, ri = s[tile].split(r, factor=quad)
    jo, ji = s[tile].split(j, factor=lanes)
    s[tile].reorder(ro, i, jo, ji, ri)
    s[tile].unroll(i)
    s[tile].unroll(jo)
    return tile, ji, ri


s = te.create_schedule(C)
tile, ji, ri = register_tile(s, 8, 2 * lanes)
s[tile].reorder(ri, ji)
s[tile].unroll(ri)
s[tile].vectorize(ji)
measure("vectorised", s)

# %% [markdown]
# ## The intrinsic
#
# Its first half is a computation on small tensors, written like any other. Its second half is a
# function from operands to statements. For a reduction there are three: compute from scratch (not
# needed here), reset to zero, and accumulate.
#
# `te.instruction` declares machine instructions: the name LLVM knows, the operand types, the
# feature that a machine needs, and a meaning in NumPy. Four bytes of A are one 32-bit number, and
# that number goes into all lanes.

# %%
x = te.placeholder((quad,), "uint8", name="x")
w = te.placeholder((lanes * quad,), "int8", name="w")
q = te.reduce_axis((0, quad), name="q")
dots = te.compute(
    (lanes,),
    lambda j: te.sum(te.cast(x[q], "int32") * te.cast(w[j * quad + q], "int32"), axis=q),
    name="dots",
)
vpdpbusd = te.instruction.VPDPBUSD_512


def emit(ins, outs):
    bytes4, bytes64, total = ins[0].vload([0], quad), ins[1].vload([0], 64), outs[0]
    spread = te.reinterpret(te.broadcast(te.reinterpret(bytes4, "int32"), lanes), "uint8")
    accumulated = vpdpbusd(total.vload([0], lanes), spread, bytes64)
    zero = te.broadcast(te.const(0, "int32"), lanes)
    return None, total.vstore(zero, [0]), total.vstore(accumulated, [0])


dot_vnni = te.decl_tensor_intrin(dots, emit, name="dot4_vnni")

# %% [markdown]
# On machines without the instruction the same declaration gets another body: widening
# multiply-adds, one for each of the four bytes of a lane, which two shifts bring to 32 bits with
# their sign. The schedule does not change.


# %%
def emit_portable(ins, outs):
    packed, total = te.reinterpret(ins[1].vload([0], lanes * quad), "int32"), outs[0]
    accumulated = total.vload([0], lanes)
    for position in range(quad):
        column = (packed << (24 - 8 * position)) >> 24
        accumulated = accumulated + column * te.cast(ins[0][position], "int32")
    zero = te.broadcast(te.const(0, "int32"), lanes)
    return None, total.vstore(zero, [0]), total.vstore(accumulated, [0])


dot_portable = te.decl_tensor_intrin(dots, emit_portable, name="dot4_portable")


def tensorized(intrinsic, rows, columns):
    s = te.create_schedule(C)
    tile, ji, _ = register_tile(s, rows, columns)
    s[tile].tensorize(ji, intrinsic)
    return s


s = tensorized(dot_portable, 4, 2 * lanes)
measure("tensorized, portable", s)

# %% [markdown]
# ## The real instruction
#
# The loop IR shows it by name. The interpreter runs it everywhere, by its meaning in NumPy.

# %%
s = tensorized(dot_vnni, 12, 2 * lanes)
print(s.show())
c = np.empty((m, n), np.int32)
small = te.create_schedule(dots)
small[dots].tensorize("j", dot_vnni)
z = np.empty(lanes, np.int32)
x_data, w_data = a[0, :quad], panels[0, 0]
run(small.func, [x_data, w_data, z])
np.testing.assert_array_equal(z, (x_data.astype(np.int32) * w_data.reshape(lanes, quad)).sum(1))

# %% [markdown]
# Code generation asks the target. A machine without the feature is an error, not a crash; machine
# code for another processor can be looked at anywhere.

# %%
for cpu in ("x86-64-v3", "znver4"):
    try:
        f = tinycomp.build(s, [A, W, C], target=f"llvm -mcpu={cpu}")
        lines = [line for line in f.get_source("asm").splitlines() if "vpdpbusd" in line]
        assert cpu == "znver4"
        assert len(lines) >= 24
        print(f"{cpu}: {len(lines)} instructions in a tile of 12 x 2 vectors, the first is")
        print(lines[0])
    except TinycompError as error:
        assert cpu == "x86-64-v3"
        print(f"{cpu}: {error}")

# %% [markdown]
# A tile of 12 x 32 numbers fills 24 registers; two load weights. Each instruction reads its four
# bytes of A from memory and spreads them itself.

# %%
if has_vnni:
    f = measure("tensorized, vpdpbusd", s)
    assert "vpdpbusd" in f.get_source("asm")
    print(f.spills())
    speeds = dict(table)
    assert speeds["tensorized, vpdpbusd"] > 3 * speeds["vectorised"]

# %% [markdown]
# ## What does not match is refused
#
# `tensorize` compares loops, operands and their layout with the declaration.

# %%
wrong = te.create_schedule(C)
wrong[C].split("r", factor=8)
try:
    wrong[C].tensorize("r.inner", dot_vnni)
    raise AssertionError("a reduction of 8 is no dot product of 4")
except ScheduleError as error:
    print(error)

# %% [markdown]
# ## Floats
#
# The same way for floats: 16 products added in a tree across the lanes of one vector.

# %%
p, q = (te.placeholder((16,), name=name) for name in "pq")
t = te.reduce_axis((0, 16), name="t")
dot16 = te.compute((), lambda: te.sum(p[t] * q[t], axis=t), name="dot16")


def emit_float(ins, outs):
    total = te.sum_lanes(ins[0].vload([0], 16) * ins[1].vload([0], 16))
    return (
        outs[0].store(total),
        outs[0].store(te.const(0.0, "float32")),
        outs[0].store(outs[0][()] + total),
    )


X, Y = te.placeholder((64, 160), name="X"), te.placeholder((64, 160), name="Y")
t = te.reduce_axis((0, 160), name="t")
Z = te.compute((64,), lambda i: te.sum(X[i, t] * Y[i, t], axis=t), name="Z")
s = te.create_schedule(Z)
_, inner = s[Z].split(t, factor=16)
s[Z].tensorize(inner, te.decl_tensor_intrin(dot16, emit_float))
f = tinycomp.build(s, [X, Y, Z], num_threads=1)
x_data, y_data = rng.standard_normal((2, 64, 160)).astype(np.float32)
z = np.empty(64, np.float32)
f(x_data, y_data, z)
np.testing.assert_allclose(z, (x_data * y_data).sum(1), rtol=1e-4, atol=1e-4)

# %%
most = max(speed for _, speed in table)
for label, speed in table:
    print(f"{label:24} {speed:8.1f} GOP/s  {'#' * round(40 * speed / most)}")
