# %% [markdown]
# # The life of a model
#
# One small network goes through every level of tinycomp, from ONNX to machine code. At each level
# we look at it and run it: the answer stays the same all the way down.

# %%
from __future__ import annotations

import numpy as np

import tinycomp
from tinycomp.frontend.onnx import from_onnx
from tinycomp.ops import default_ops
from tinycomp.pipeline import default_pipeline
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Function, all_functions
from tinycomp.relay.pass_infra import PassContext
from tinycomp.schedules import build_kernel, default_schedule
from tinycomp.schedules.to_te import to_te
from tinycomp.target import Target
from tinycomp.testing.graph_builder import GraphBuilder
from tinycomp.tir.from_te import create_func
from tinycomp.tir.interpreter import run


def show(title: str, text: object, lines: int = 24) -> None:
    """The first lines of a text."""
    head = str(text).splitlines()
    print(f"\n--- {title}")
    print("\n".join(line[:110] for line in head[:lines]))
    if len(head) > lines:
        print(f"... {len(head) - lines} more lines")


# %% [markdown]
# ## ONNX
# A convolution with bias, a ReLU, the mean over the pixels, and a softmax. Exporters write much the
# same, only longer.

# %%
g = GraphBuilder("first", seed=0)
image = g.input("image", (1, 3, 12, 12))
features = g.relu(g.conv(image, 16, 3, pad=1))
pooled = g.flatten(g.op("GlobalAveragePool", features))
model = g.model(probabilities=g.op("Softmax", g.linear(pooled, 10), axis=-1))
x = np.random.default_rng(0).standard_normal((1, 3, 12, 12)).astype(np.float32)

# %% [markdown]
# ## relay: the graph
# The importer brings the model to the newest opset and builds a flat list of typed bindings. The
# comment behind each names the ONNX node it came from. Every operator has a NumPy reference, so the
# graph can be run as it is; this is the answer that all later levels must give.

# %%
module = from_onnx(model)
show("relay, as imported", module)
(expected,) = evaluate(module, [x])
assert expected.shape == (1, 10)
np.testing.assert_allclose(expected.sum(), 1.0, rtol=1e-5)

# %% [markdown]
# ## relay: after the passes
# Convolutions moved to NHWC, weights were packed for the register tiles, and operators were fused:
# each function marked `primitive` becomes one kernel.

# %%
target = Target.host()
fused = default_pipeline(3, target).run(module, PassContext(ops=default_ops(), target=target))
show("relay, fused", fused, 40)
np.testing.assert_allclose(evaluate(fused, [x])[0], expected, rtol=1e-4, atol=1e-6)
kernels = [f for f in all_functions(fused.main) if f.is_primitive]
convolution: Function = next(f for f in kernels if "conv2d" in str(f.attrs["name"]))

# %% [markdown]
# ## te: what to compute
# The convolution with its bias and ReLU as tensor expressions. They say what each element is, and
# nothing about loops.

# %%
inputs, outputs = to_te(convolution)
for tensor in (*inputs, *outputs):
    print(tensor)

# %% [markdown]
# ## tir: loops
# First the obvious loops, then the same loops under the default schedule: a tile of pixels and
# channels stays in registers while the window is summed.

# %%
naive, _ = create_func(inputs, outputs, "naive")
show("naive loops", naive)
schedule = default_schedule(convolution, target, "kernel")
show("scheduled loops", schedule.show(), 40)

# %% [markdown]
# Lowering makes plain loops of it: guards are partitioned away, vectors and unrolled loops written
# out. The interpreter of the loop IR runs them in Python and would notice any access out of bounds.

# %%
lowered = build_kernel(convolution, target, "kernel")
show("lowered loops", lowered, 30)
rng = np.random.default_rng(1)
arrays = [
    rng.standard_normal(p.type.static_shape).astype(np.float32)  # type: ignore[union-attr]
    for p in convolution.params
]
(wanted,) = evaluate(convolution, arrays)
shapes = [[int(str(d)) for d in p.shape] for p in lowered.params]
buffers = [a.reshape(s) for a, s in zip([*arrays, np.empty_like(wanted)], shapes, strict=True)]
run(lowered, buffers)
np.testing.assert_allclose(buffers[-1].reshape(wanted.shape), wanted, rtol=1e-3, atol=1e-4)

# %% [markdown]
# ## Machine code
# `tinycomp.compile` does all of the above for every kernel, plans the memory, and writes one native
# function that calls the kernels in order.

# %%
compiled = tinycomp.compile(model)
(result,) = compiled.run({"image": x}).values()
np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)
show("LLVM IR", compiled.ir("llvm"))
assembly = compiled.ir("asm").splitlines()
multiply_adds = [line.strip() for line in assembly if "fmadd" in line or "fmla" in line]
show("multiply-adds in the assembly", "\n".join(multiply_adds), 6)

# %% [markdown]
# ## Where the time goes
# Each kernel with the ONNX nodes it computes and its share of what this machine can do.

# %%
print(compiled.profile({"image": x}))
