# %% [markdown]
# # Tensor expressions
#
# A tensor expression says *what* each element of a tensor is, not how to compute it. The names are
# TVM's: `placeholder` for an input, `compute` for a tensor defined element by element.

# %%
import numpy as np

import tinycomp
from tinycomp import te

A = te.placeholder((4, 6), name="A")
B = te.compute((4, 6), lambda i, j: te.exp(A[i, j]) + 1.0, name="B")
print(A, B)

# %% [markdown]
# `create_schedule` turns the expression into naive loops, `lower` prints them, and `build` compiles
# them to a function that writes its outputs in place.

# %%
s = te.create_schedule(B)
print(tinycomp.lower(s, [A, B]))

f = tinycomp.build(s, [A, B])
a = np.random.default_rng(0).standard_normal((4, 6)).astype("float32")
b = np.empty((4, 6), "float32")
f(a, b)
np.testing.assert_allclose(b, np.exp(a) + 1, rtol=1e-6)

# %% [markdown]
# Arguments are checked, and never copied or converted behind your back.

# %%
try:
    f(a.astype("float64"), b)
except tinycomp.TinycompError as error:
    print(error)

# %% [markdown]
# ## Shape and index arithmetic
#
# Indices are integer expressions. `//` and `%` round down, as in Python. `if_then_else` evaluates
# only the side taken, so that a padded tensor reads nothing outside its input; `select` evaluates
# both.

# %%
T = te.compute((6, 4), lambda i, j: A[j, i], name="transposed")
R = te.compute((24,), lambda i: A[i // 6, i % 6], name="reshaped")
P = te.compute(
    (6, 8),
    lambda i, j: te.if_then_else(
        te.all(i >= 1, i < 5, j >= 1, j < 7), A[i - 1, j - 1], te.const(0.0, "float32")
    ),
    name="padded",
)
s = te.create_schedule([T, R, P])
t, r, p = (np.empty([d.value for d in x.shape], "float32") for x in (T, R, P))
tinycomp.build(s, [A, T, R, P])(a, t, r, p)
assert (t == a.T).all()
assert (r == a.reshape(-1)).all()
assert (p == np.pad(a, 1)).all()

# %% [markdown]
# ## Reductions
#
# A reduction runs over axes of its own. It must be the whole body: what is done with its result
# is a second compute.

# %%
k = te.reduce_axis((0, 6), name="k")
total = te.compute((4,), lambda i: te.sum(A[i, k], axis=k), name="total")
mean = te.compute((4,), lambda i: total[i] / 6.0, name="mean")
m = np.empty(4, "float32")
tinycomp.build(te.create_schedule(mean), [A, mean])(a, m)
np.testing.assert_allclose(m, a.mean(1), rtol=1e-5)

try:
    te.compute((4,), lambda i: te.sum(A[i, k], axis=k) / 6.0, name="mean")
except TypeError as error:
    print(error)

# %% [markdown]
# ## Several outputs
#
# A tuple gives several tensors over the same axes.

# %%
low, high = te.compute((4, 6), lambda i, j: (te.minimum(A[i, j], 0.0), te.maximum(A[i, j], 0.0)))
lo, hi = np.empty((4, 6), "float32"), np.empty((4, 6), "float32")
tinycomp.build(te.create_schedule([low, high]), [A, low, high])(a, lo, hi)
assert (lo + hi == a).all()

# %% [markdown]
# ## Symbolic shapes
#
# `te.var` is a size that is known when the function is called: the code is compiled once and takes
# it as a parameter. A variable that is no dimension is a scalar argument. Splitting a symbolic
# extent by a constant gives an inner loop of known length; the last tile may be a part of one, and
# lowering divides the outer loop so that only that one is guarded.

# %%
n, alpha = te.var("n"), te.var("alpha", "float32")
X = te.placeholder((n,), name="X")
Y = te.compute((n,), lambda i: X[i] * alpha, name="Y")
s = te.create_schedule(Y)
_, inner = s[Y].split("i", factor=16)
s[Y].vectorize(inner)
print(tinycomp.lower(s, [alpha, X, Y]))
scale = tinycomp.build(s, [alpha, X, Y], name="scale")
for size in (3, 16, 37):
    x, y = np.ones(size, "float32"), np.empty(size, "float32")
    scale(2.5, x, y)
    assert (y == 2.5).all()

# %% [markdown]
# ## Gradients
#
# `te.gradient` differentiates a tensor expression in reverse mode. The gradients of a matrix
# product come out as the two matrix products that one would write by hand.

# %%
W = te.placeholder((6, 5), name="W")
k = te.reduce_axis((0, 6), name="k")
C = te.compute((4, 5), lambda i, j: te.sum(A[i, k] * W[k, j], axis=k), name="C")
H = te.placeholder((4, 5), name="H")
dA, dW = te.gradient(C, [A, W], head=H)
s = te.create_schedule([dA, dW])
print(s.show())
w, h = (
    np.random.default_rng(i).standard_normal(z).astype("float32")
    for i, z in ((1, (6, 5)), (2, (4, 5)))
)
da, dw = np.empty((4, 6), "float32"), np.empty((6, 5), "float32")
tinycomp.build(s, [A, W, H, dA, dW])(a, w, h, da, dw)
np.testing.assert_allclose(da, h @ w.T, rtol=1e-5, atol=1e-5)
np.testing.assert_allclose(dw, a.T @ h, rtol=1e-5, atol=1e-5)
