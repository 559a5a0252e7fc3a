# %% [markdown]
# # Adding an operator
#
# An ONNX file may use operators of a domain of its own. Here a signal is smoothed by the largest of
# its last few values, `my.lab::RollingMax`. The operator is defined here, outside of tinycomp: its
# type, its meaning in NumPy, its tensor expression, its import from ONNX, and its schedule. Nothing
# is registered: all of it is a value that is passed to `tinycomp.compile`.

# %%
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import tinycomp
from tinycomp import te
from tinycomp.diagnostics import ModelError, TypeMismatch, UnsupportedModel
from tinycomp.ops.onnx_node import OnnxNode
from tinycomp.relay.nodes import Atom
from tinycomp.relay.op import Attrs, Op, OpPattern, Sample
from tinycomp.schedules.common import Kernel
from tinycomp.te.interpreter import evaluate
from tinycomp.te.tensor import Tensor
from tinycomp.types import TensorType, Type

# %% [markdown]
# ## Attributes and type
#
# Attributes are a frozen dataclass. The type relation takes them and the argument types, and
# returns the type of the result, or says which argument does not fit.


# %%
@dataclass(frozen=True)
class RollingMaxAttrs(Attrs):
    """The largest of `window` values, the last of which is the one at the same place."""

    window: int


def infer(attrs: RollingMaxAttrs, types: Sequence[Type]) -> Type:
    (x,) = types
    if not isinstance(x, TensorType) or x.rank != 2 or not x.dtype.is_float:
        raise TypeMismatch(f"rolling_max: argument 0 must be a matrix of floats, got {x}")
    if attrs.window < 1:
        raise TypeMismatch(f"rolling_max: the window must be at least 1, got {attrs.window}")
    return x


# %% [markdown]
# ## Meaning
#
# The NumPy reference defines the operator. It is what folding of constants and the interpreter
# use, so write it for clarity, not for speed.


# %%
def reference(attrs: RollingMaxAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    (x,) = arrays
    padded = np.pad(x, ((0, 0), (attrs.window - 1, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, attrs.window, axis=1)
    return windows.max(-1)


# %% [markdown]
# ## Tensor expression
#
# `if_then_else` reads only what is inside. `te.max` propagates NaN, as NumPy does.


# %%
def compute(attrs: RollingMaxAttrs, tensors: Sequence[Tensor], out: Any) -> list[Tensor]:
    (x,) = tensors
    n, time = x.shape
    k = te.reduce_axis((0, attrs.window), name="k")
    lowest = te.const(-np.inf, x.dtype)
    padded = te.compute(
        (n, time + attrs.window - 1),
        lambda i, t: te.if_then_else(t >= attrs.window - 1, x[i, t - (attrs.window - 1)], lowest),
        name="padded",
    )
    return [
        te.compute((n, time), lambda i, t: te.max(padded[i, t + k], axis=k), name="rolling_max")
    ]


def samples() -> Iterable[Sample]:
    rng = np.random.default_rng(0)
    for shape, window in (((3, 17), 4), ((1, 5), 8), ((2, 1), 1)):
        yield Sample((rng.standard_normal(shape).astype(np.float32),), RollingMaxAttrs(window))


# %% [markdown]
# `OUT_ELEMWISE_FUSABLE` says: elementwise work that follows may become part of the same kernel.

# %%
rolling_max = Op(
    name="rolling_max",
    pattern=OpPattern.OUT_ELEMWISE_FUSABLE,
    infer=infer,
    compute=compute,
    reference=reference,
    attrs_type=RollingMaxAttrs,
    samples=samples,
    doc="The largest of the last `window` values of each row.",
)
for sample in rolling_max.samples():
    (data,) = sample.inputs
    X = te.placeholder(data.shape, data.dtype.name, name="X")
    outputs = rolling_max.compute(sample.attrs, [X], None)
    (got,) = evaluate(outputs, {X: data})
    np.testing.assert_array_equal(got, reference(sample.attrs, sample.inputs))
    print(f"window {sample.attrs.window} on {data.shape}: te computes what NumPy does")

# %% [markdown]
# ## Import from ONNX
#
# An importer turns a node into relay. `OnnxNode` hands out inputs and attributes, and its errors
# name the node.


# %%
def import_rolling_max(node: OnnxNode) -> Atom:
    window = node.attr("window")
    node.expect(isinstance(window, int), "it needs the attribute window")
    return node.builder.call("rolling_max", node.input(0), window=window)


def model(**attributes: Any) -> onnx.ModelProto:
    """relu(RollingMax(x + bias)) * 2"""
    bias = np.linspace(-1, 1, 200, dtype=np.float32)
    nodes = [
        helper.make_node("Add", ["x", "bias"], ["shifted"], "shift"),
        helper.make_node("RollingMax", ["shifted"], ["top"], "top", domain="my.lab", **attributes),
        helper.make_node("Relu", ["top"], ["positive"], "positive"),
        helper.make_node("Add", ["positive", "positive"], ["y"], "double"),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 200]) for name in ("x", "y")
    )
    graph = helper.make_graph(nodes, "signal", [x], [y], [numpy_helper.from_array(bias, "bias")])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("my.lab", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


# %% [markdown]
# Without the importer the error names what is missing; with it the model compiles.

# %%
try:
    tinycomp.compile(model(window=9))
    raise AssertionError("tinycomp has no RollingMax")
except UnsupportedModel as error:
    print(error)

extension = tinycomp.Extension(
    ops=(rolling_max,),
    onnx={"my.lab::RollingMax": import_rolling_max},
    key="my.lab, version 1",
)
module = tinycomp.compile(model(window=9), extension=extension)
print(module.ir("relay"))
data = np.random.default_rng(1).standard_normal((64, 200)).astype(np.float32)
shifted = data + np.linspace(-1, 1, 200, dtype=np.float32)
expected = np.maximum(reference(RollingMaxAttrs(9), [shifted]), 0) * 2
(y,) = module.run({"x": data}).values()
np.testing.assert_allclose(y, expected, rtol=1e-6)
assert "fused_rolling_max_nn_relu_add" in module.ir("relay")

try:
    tinycomp.compile(model(), extension=extension)
    raise AssertionError("the window is missing")
except ModelError as error:
    print(error)

# %% [markdown]
# The levels below relay are generated again when they are looked at, so they want the extension.

# %%
print(module.ir("te", extension))

# %% [markdown]
# ## Schedule
#
# The operator had a default schedule already: those belong to the shape of a computation, and this
# is a reduction whose neighbouring outputs lie side by side. A schedule of one's own goes into the
# extension by the operator's name. It gets the whole kernel, with whatever was fused, and returns
# False for those that it would rather leave to the default.


# %%
def schedule(kernel: Kernel) -> bool:
    if kernel.target.kind != "llvm" or len(kernel.reductions) != 1:
        return False
    (maximum,) = kernel.reductions
    result = kernel.outputs[0].op
    for op in kernel.stages:
        if op not in (maximum, result):
            kernel.stage(op).compute_inline()
    stage = kernel.stage(result)
    _, t = stage.axes
    lanes = kernel.target.lanes(kernel.outputs[0].dtype)
    outer, inner = stage.split(t, factor=4 * lanes)
    stage.vectorize(inner)
    if maximum is not result:
        inner_stage = kernel.stage(maximum)
        inner_stage.compute_at(stage, outer)
        *_, row, column, window = inner_stage.axes
        inner_stage.reorder(row, window, column)
        inner_stage.vectorize(column)
    return True


tuned = tinycomp.Extension(
    ops=extension.ops,
    onnx=extension.onnx,
    schedules={"rolling_max": schedule},
    key="my.lab, version 2",
)
module2 = tinycomp.compile(model(window=9), extension=tuned)
(y,) = module2.run({"x": data}).values()
np.testing.assert_allclose(y, expected, rtol=1e-6)
assert module2.ir("tir", tuned) != module.ir("tir", extension)
print(module2.ir("tir", tuned).partition("\n\n")[2])  # the second kernel
for name, each in (("default schedule", module), ("own schedule", module2)):
    profile = each.profile({"x": data})
    print(f"{name}:\n{profile}")
