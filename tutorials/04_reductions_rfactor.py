# %% [markdown]
# # Reductions and rfactor
#
# The iterations of a reduction update one accumulator, so they cannot simply run at once. `rfactor`
# turns part of a reduction axis into an axis of partial results, which can.

# %%
import numpy as np

import tinycomp
from tinycomp import te

n = 1 << 16
A = te.placeholder((n,), name="A")
k = te.reduce_axis((0, n), name="k")
B = te.compute((), lambda: te.sum(A[k], axis=k), name="B")
a = np.random.default_rng(0).standard_normal(n).astype("float32")
b = np.empty((), "float32")


def run(s, label):
    f = tinycomp.build(s, [A, B], num_threads=2)
    f(a, b)
    np.testing.assert_allclose(b, a.sum(dtype="float64"), rtol=1e-3, atol=1e-2)
    print(f"{label:20} {f.time_evaluator(number=5, repeat=3)(a, b)}")


# %% [markdown]
# The naive loop is one chain of additions, each waiting for the one before.

# %%
s = te.create_schedule(B)
print(s.show())
run(s, "naive")

# %% [markdown]
# Sixteen partial sums become the lanes of a vector: split the axis, take the inner part out, and
# vectorize the stage of partial results.

# %%
s = te.create_schedule(B)
outer, inner = s[B].split("k", factor=16)
partial = s.rfactor(B, inner)
lanes = s[partial].axes[-1]
print(s[partial].axis_names)
spatial = next(x for x in s[partial].axis_names if "inner" in x)
reduction = next(x for x in s[partial].axis_names if "outer" in x)
s[partial].reorder(reduction, spatial)
s[partial].vectorize(spatial)
print(s.show())
run(s, "vector of sums")

# %% [markdown]
# The same with threads: each thread sums one contiguous part.

# %%
s = te.create_schedule(B)
outer, inner = s[B].split("k", nparts=8)
partial = s.rfactor(B, outer)
spatial = next(x for x in s[partial].axis_names if "outer" in x)
s[partial].reorder(spatial, next(x for x in s[partial].axis_names if "inner" in x))
s[partial].parallel(spatial)
run(s, "parallel sums")

# %% [markdown]
# ## Reducers of one's own
#
# `comm_reducer` makes a reducer from a combining function and its identity. With tuples it reduces
# several values at once: argmax keeps a position and a value.


# %%
def combine(x, y):
    first = te.any(x[1] > y[1], te.all(x[1].equal(y[1]), x[0] < y[0]))
    return te.select(first, x[0], y[0]), te.select(first, x[1], y[1])


argmax = te.comm_reducer(
    combine, lambda i, v: (te.max_value(i), te.const(float("-inf"), v)), name="argmax"
)
X = te.placeholder((8, 100), name="X")
k = te.reduce_axis((0, 100), name="k")
where, top = te.compute((8,), lambda i: argmax((te.cast(k, "int32"), X[i, k]), axis=k), name="top")
s = te.create_schedule([where, top])
x = np.random.default_rng(1).standard_normal((8, 100)).astype("float32")
position, value = np.empty(8, "int32"), np.empty(8, "float32")
tinycomp.build(s, [X, where, top])(x, position, value)
assert (position == x.argmax(1)).all()
assert (value == x.max(1)).all()
