# %% [markdown]
# # Scan: recurrent nets
#
# `te.scan` computes a tensor row by row, each from the rows before. Its time axis is ordered; the
# axes of the stages inside are scheduled as usual.

# %%
import numpy as np

import tinycomp
from tinycomp import te

times, n = 20, 32
X = te.placeholder((times, n), name="X")
W = te.placeholder((n, n), name="W")
U = te.placeholder((n, n), name="U")

# %% [markdown]
# What does not depend on the state is an ordinary stage, computed for all times at once. `state`
# stands for the result; `update` may read it at earlier times only.

# %%
k = te.reduce_axis((0, n), name="k")
projected = te.compute((times, n), lambda t, i: te.sum(X[t, k] * U[k, i], axis=k), name="projected")
state = te.placeholder((times, n), name="state")
r = te.reduce_axis((0, n), name="r")
init = te.compute((1, n), lambda t, i: te.tanh(projected[0, i]), name="init")
mixed = te.compute((times, n), lambda t, i: te.sum(state[t - 1, r] * W[r, i], axis=r), name="mixed")
update = te.compute((times, n), lambda t, i: te.tanh(mixed[t, i] + projected[t, i]), name="update")
H = te.scan(init, update, state, [X], name="H")

rng = np.random.default_rng(0)
x = rng.standard_normal((times, n)).astype("float32")
w, u = (rng.standard_normal((n, n)).astype("float32") / 6 for _ in range(2))
rows = [np.tanh(x[0] @ u)]
for t in range(1, times):
    rows.append(np.tanh(rows[-1] @ w + x[t] @ u))


def run(s):
    h = np.empty((times, n), "float32")
    f = tinycomp.build(s, [X, W, U, H])
    f(x, w, u, h)
    np.testing.assert_allclose(h, np.array(rows), rtol=1e-4, atol=1e-5)
    print(f.time_evaluator(number=10, repeat=3)(x, w, u, h))


s = te.create_schedule(H)
print(s.show())
run(s)

# %% [markdown]
# The product inside the time loop runs over vectors of units, and the activation joins the copy
# into the result.

# %%
s = te.create_schedule(H)
s[init].compute_inline()
s[update].compute_inline()
outer, inner = s[mixed].split(mixed.op.axis[1], factor=16)
s[mixed].reorder(outer, mixed.op.reduce_axis[0], inner)
s[mixed].vectorize(inner)
s[H].vectorize(s[H].split(s[H].axes[-1], factor=16)[1])
print(s.show())
run(s)

# %% [markdown]
# Time itself cannot run in parallel, and a stage cannot look at the present or the future.

# %%
try:
    s[H].parallel(H.op.scan_axis)
except tinycomp.TinycompError as error:
    print(error)
try:
    te.scan(init, te.compute((times, n), lambda t, i: state[t, i] * 2.0), state)
except TypeError as error:
    print(error)

# %% [markdown]
# ## Several states
#
# Lists of states advance together, as the cell and hidden state of an LSTM do. Fibonacci numbers:

# %%
a, b = te.placeholder((10,), name="a"), te.placeholder((10,), name="b")
one = [te.compute((1,), lambda t: te.const(1.0, "float32"), name=f"one{i}") for i in range(2)]
nexts = [
    te.compute((10,), lambda t: b[t - 1], name="next_a"),
    te.compute((10,), lambda t: a[t - 1] + b[t - 1], name="next_b"),
]
fa, fb = te.scan(one, nexts, [a, b], name="fib")
first, second = np.empty(10, "float32"), np.empty(10, "float32")
tinycomp.build(te.create_schedule([fa, fb]), [fa, fb])(first, second)
assert first.tolist() == [1, 1, 2, 3, 5, 8, 13, 21, 34, 55]
