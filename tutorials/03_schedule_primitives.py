# %% [markdown]
# # Schedule primitives
#
# A schedule says *how* to compute: the order of the loops, what runs at once, and where each stage
# is computed. Every call rewrites the loops at once and checks itself at once.

# %%
import tempfile
from pathlib import Path

import numpy as np

import tinycomp
from tinycomp import te

n = 64
A = te.placeholder((n, n), name="A")
B = te.compute((n, n), lambda i, j: A[i, j] * 2.0, name="B")
C = te.compute((n, n), lambda i, j: B[i, j] + 1.0, name="C")
a = np.random.default_rng(0).standard_normal((n, n)).astype("float32")


def check(s):
    """Whatever the schedule, the result is the same."""
    c = np.empty((n, n), "float32")
    tinycomp.build(s, [A, C])(a, c)
    np.testing.assert_allclose(c, a * 2 + 1, rtol=1e-6)


s = te.create_schedule(C)
print(s.show())
check(s)

# %% [markdown]
# ## split, reorder, fuse, tile
#
# Axes are handles that the calls return; they can also be named.

# %%
s = te.create_schedule(C)
outer, inner = s[C].split("j", factor=16)
print(s[C].axis_names)
s[C].reorder(outer, "i", inner)
assert s[C].axis_names == ("j.outer", "i", "j.inner")
fused = s[C].fuse(outer, "i")
print(s[C].axis_names)
check(s)

s = te.create_schedule(C)
s[C].tile("i", "j", 8, 16)
assert s[C].axis_names == ("i.outer", "j.outer", "i.inner", "j.inner")
check(s)

# %% [markdown]
# ## vectorize, unroll, parallel

# %%
s = te.create_schedule(C)
io, jo, ii, ji = s[C].tile("i", "j", 4, 16)
s[C].parallel(io)
s[C].unroll(ii)
s[C].vectorize(ji)
print(s.show())
check(s)

# %% [markdown]
# ## compute_inline and compute_at
#
# B can disappear into C, or be computed where C needs it: just the part that one iteration reads.

# %%
s = te.create_schedule(C)
s[B].compute_inline()
assert s.stages == ["C"]
check(s)

s = te.create_schedule(C)
io, jo, ii, ji = s[C].tile("i", "j", 8, 16)
s[B].compute_at(s[C], jo)
print(s.show())
check(s)

# %% [markdown]
# ## cache_write and cache_read
#
# A stage is computed into another buffer first, or its input is copied first.

# %%
s = te.create_schedule(C)
local = s.cache_write(C, "local")
i, j = s[C].axes
s[local].compute_at(s[C], i)
copy = s.cache_read(A, "local", [B])
print(s.show())
check(s)

# %% [markdown]
# ## Mistakes are refused by the call that makes them
#
# The message names the call, the reason and a remedy, with the loops around it.

# %%
k = te.reduce_axis((0, n), name="k")
D = te.compute((n,), lambda i: te.sum(A[i, k], axis=k), name="D")
s = te.create_schedule(D)
try:
    s[D].vectorize("k")
except tinycomp.TinycompError as error:
    print(error)
else:
    raise AssertionError("a reduction cannot be vectorized")

# %% [markdown]
# ## A schedule is a value
#
# `trace` prints Python that repeats the steps; they also travel as JSON, to other shapes too.

# %%
s = te.create_schedule(C)
s[C].tile("i", "j", 8, 16)
s[C].vectorize("j.inner")
print(s.trace())
again = te.create_schedule(C)
again.replay(s.from_json(s.to_json()))
assert again.show() == s.show()

# %% [markdown]
# ## Seeing it
#
# `to_html` is one self-contained page: the stages, the loops and how the axes came from each other,
# before and after every step.

# %%
page = s.to_html()
path = Path(tempfile.mkdtemp()) / "schedule.html"
path.write_text(page)
print(f"open {path} in a browser")
assert "<html" in page
