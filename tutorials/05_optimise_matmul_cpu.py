# %% [markdown]
# # Optimising a matrix product on the CPU
#
# From naive loops to the peak of one core, step by step. Each step prints the GFLOP/s measured and
# its share of the peak, measured on this machine with a loop of independent multiply-adds. The
# machine may be busy with other work, so the fastest of several runs counts, for the peak too.

# %%
import numpy as np

import tinycomp
from tinycomp import te
from tinycomp.runtime.arrays import aligned_empty
from tinycomp.runtime.peaks import measure_peaks
from tinycomp.target import Target

n = 576
flops = 2 * n**3
target = Target.host()
lanes = target.vector_bits // 32
mr, nr = (12, 2 * lanes) if target.vector_registers == 32 else (6, 2 * lanes)
rng = np.random.default_rng(0)


def array(*shape):
    """Aligned to 64 bytes, so that no vector straddles two cache lines."""
    return aligned_empty(shape, np.dtype("float32"))


a, b, c = array(n, n), array(n, n), array(n, n)
a[:], b[:] = rng.standard_normal((2, n, n))
expected = a @ b
A, B = te.placeholder((n, n), name="A"), te.placeholder((n, n), name="B")
k = te.reduce_axis((0, n), name="k")
C = te.compute((n, n), lambda i, j: te.sum(A[i, k] * B[k, j], axis=k), name="C")
table, peaks = [], [measure_peaks(1).gflops]


def measure(label, schedule, args, *arrays, repeat=3):
    f = tinycomp.build(schedule, args, num_threads=1)
    f(*arrays)
    np.testing.assert_allclose(arrays[-1], expected, rtol=1e-3, atol=1e-3)
    evaluate = f.time_evaluator(number=1, repeat=repeat)
    speed = 0.0
    for _ in range(3 if repeat > 1 else 1):  # the peak between the runs, under the same conditions
        peaks.append(measure_peaks(1).gflops)
        speed = max(speed, flops / evaluate(*arrays).min / 1e9)
    table.append((label, speed))
    print(f"{label:28} {speed:7.1f} GFLOP/s  {speed / max(peaks):6.1%} of {max(peaks):.0f}")
    return f


# %% [markdown]
# ## 1. Naive
#
# Three loops. Every step waits for the addition before it, and walks down a column of B.

# %%
s = te.create_schedule(C)
measure("naive", s, [A, B, C], a, b, c, repeat=1)

# %% [markdown]
# ## 2. Reorder
#
# With j innermost, rows of B and C are read in order and the loop can be vectorised.

# %%
s = te.create_schedule(C)
i, j = C.op.axis
s[C].reorder(i, k, j)
measure("reorder i, k, j", s, [A, B, C], a, b, c, repeat=1)

# %% [markdown]
# ## 3. Vectorise, tile for the cache
#
# A tile of C is reused for all k before the next is begun.

# %%
s = te.create_schedule(C)
jo, ji = s[C].split(j, factor=4 * lanes)
io, ii = s[C].split(i, factor=mr)
s[C].reorder(jo, io, k, ii, ji)
s[C].vectorize(ji)
measure("tile and vectorise", s, [A, B, C], a, b, c)


# %% [markdown]
# ## 4. Register tile
#
# `cache_write` gives the tile a buffer of its own. Written out (unrolled and vectorised), it lives
# in registers for all of k: mr x nr/lanes independent accumulators. Two multiply-adds start per
# cycle and each takes four cycles, so at least eight must be under way.


# %%
def register_tile(s):
    tile = s.cache_write(C, "local")
    i, j = s[C].axes
    jo, ji = s[C].split(j, factor=nr)
    io, ii = s[C].split(i, factor=mr)
    s[C].reorder(jo, io, ii, ji)
    s[C].unroll(ii)
    part, vector = s[C].split(ji, factor=lanes)
    s[C].unroll(part)
    s[C].vectorize(vector)
    s[tile].compute_at(s[C], io)
    *_, i, j, k = s[tile].axes
    s[tile].reorder(k, i, j)
    s[tile].unroll(i)
    part, vector = s[tile].split(j, factor=lanes)
    s[tile].unroll(part)
    s[tile].vectorize(vector)


s = te.create_schedule(C)
register_tile(s)
print(s.show())
f = measure(f"register tile {mr} x {nr}", s, [A, B, C], a, b, c)

# %% [markdown]
# The machine code keeps all of it in registers:

# %%
print(f.spills())

# %% [markdown]
# ## 5. Pack B
#
# The tile reads nr columns of B, row after row: n * 4 bytes apart, each row on another page. Packed
# into panels, these reads are one stream. Packing is a stage of its own.

# %%
k = te.reduce_axis((0, n), name="k")
packed = te.compute((n // nr, n, nr), lambda p, k, v: B[k, p * nr + v], name="packed")
C = te.compute((n, n), lambda i, j: te.sum(A[i, k] * packed[j // nr, k, j % nr], axis=k), name="C")
s = te.create_schedule(C)
register_tile(s)
s[packed].vectorize("v")
measure("pack B in the kernel", s, [A, B, C], a, b, c)

# %% [markdown]
# ## 6. Pack B beforehand
#
# The weights of a model do not change, so the compiler packs them once.

# %%
P = te.placeholder((n // nr, n, nr), name="P")
C = te.compute((n, n), lambda i, j: te.sum(A[i, k] * P[j // nr, k, j % nr], axis=k), name="C")
panels = array(n // nr, n, nr)
panels[:] = b.reshape(n, n // nr, nr).transpose(1, 0, 2)
s = te.create_schedule(C)
register_tile(s)
f = measure("B packed beforehand", s, [A, P, C], a, panels, c, repeat=8)

# %% [markdown]
# The same schedule on several threads: panels of columns are independent.

# %%
s[C].parallel(s[C].axes[0])
parallel = tinycomp.build(s, [A, P, C])
parallel(a, panels, c)
np.testing.assert_allclose(c, expected, rtol=1e-3, atol=1e-3)
seconds = parallel.time_evaluator(number=1, repeat=5)(a, panels, c).min
print(f"{parallel.num_threads} threads: {flops / seconds / 1e9:.1f} GFLOP/s")

# %%
for label, speed in table:
    share = speed / max(peaks)
    print(f"{label:28} {speed:7.1f} GFLOP/s {share:6.1%}  {'#' * round(40 * share)}")
