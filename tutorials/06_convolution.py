# %% [markdown]
# # Convolution
#
# A 3x3 convolution in the layout that vector units like: channels last, weights packed so that one
# load gives the weights of a vector of output channels.

# %%
import numpy as np

import tinycomp
from tinycomp import te
from tinycomp.runtime.peaks import measure_peaks
from tinycomp.target import Target

size, channels, outputs, lanes = 28, 64, 64, Target.host().vector_bits // 32
rows = 7  # pixels of a row in a register tile
rng = np.random.default_rng(0)
x = rng.standard_normal((size, size, channels)).astype("float32")
w = rng.standard_normal((outputs, channels, 3, 3)).astype("float32")
flops = 2 * size * size * outputs * channels * 9

# %% [markdown]
# The reference: nine shifted matrix products.

# %%
padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
expected = sum(
    padded[p : p + size, q : q + size] @ w[:, :, p, q].T for p in range(3) for q in range(3)
)

# %% [markdown]
# ## The computation
#
# Padding is a stage of its own: `if_then_else` reads nothing outside the input.

# %%
X = te.placeholder((size, size, channels), name="X")
W = te.placeholder((outputs // lanes, 3, 3, channels, lanes), name="W")
pad = te.compute(
    (size + 2, size + 2, channels),
    lambda y, x, c: te.if_then_else(
        te.all(y >= 1, y < size + 1, x >= 1, x < size + 1), X[y - 1, x - 1, c], 0.0
    ),
    name="pad",
)
p, q, c = (
    te.reduce_axis((0, extent), name) for name, extent in (("p", 3), ("q", 3), ("c", channels))
)
Y = te.compute(
    (size, size, outputs),
    lambda y, x, o: te.sum(
        pad[y + p, x + q, c] * W[o // lanes, p, q, c, o % lanes], axis=[p, q, c]
    ),
    name="Y",
)
packed = np.ascontiguousarray(
    w.reshape(outputs // lanes, lanes, channels, 3, 3).transpose(0, 3, 4, 2, 1)
)


def run(s, label):
    f = tinycomp.build(s, [X, W, Y], num_threads=1)
    out = np.empty((size, size, outputs), "float32")
    f(x, packed, out)
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-3)
    seconds = f.time_evaluator(number=1, repeat=5)(x, packed, out).min
    print(f"{label:16} {flops / seconds / 1e9:7.1f} GFLOP/s")
    return f


# %% [markdown]
# ## Naive loops

# %%
s = te.create_schedule(Y)
run(s, "naive")

# %% [markdown]
# ## A register tile
#
# 7 pixels by two vectors of channels stay in registers while p, q and c run: 14 independent
# accumulators, enough to hide the latency of a multiply-add.

# %%
s = te.create_schedule(Y)
tile = s.cache_write(Y, "local")
y, xx, o = s[Y].axes
oo, oi = s[Y].split(o, factor=2 * lanes)
xo, xi = s[Y].split(xx, factor=rows)
s[Y].reorder(oo, y, xo, xi, oi)
s[Y].unroll(xi)
part, vector = s[Y].split(oi, factor=lanes)
s[Y].unroll(part)
s[Y].vectorize(vector)
s[tile].compute_at(s[Y], xo)
*_, ty, tx, to, tp, tq, tc = s[tile].axes
s[tile].reorder(ty, tp, tq, tc, tx, to)
s[tile].unroll(tx)
part, vector = s[tile].split(to, factor=lanes)
s[tile].unroll(part)
s[tile].vectorize(vector)
s[pad].vectorize(s[pad].split(s[pad].axes[-1], factor=lanes)[1])
f = run(s, "register tile")
print(f.spills())
peak = measure_peaks(1)
print(f"{'peak':16} {peak.gflops:7.1f} GFLOP/s")
