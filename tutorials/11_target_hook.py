# %% [markdown]
# # A hook for a target
#
# A processor has an instruction, and the compiler shall use it for an operator. This tutorial takes
# `vpdpbusd` (tutorial 7) from ONNX to machine code, from outside of tinycomp: a graph pass finds
# the place and packs the weights, an operator of its own stands for it, its schedule calls the
# instruction, and a lowering pass looks at the loops that come out. All of it is one `Extension`,
# given to `tinycomp.compile` together with the target; other models are compiled as before.
# (For this instruction tinycomp has the same inside, see `relay/passes/byte_products.py` and
# `schedules/matmul_bytes.py`. Passes of an extension come first, so here they win.)

# %%
from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import tinycomp
from tinycomp import te
from tinycomp.diagnostics import TypeMismatch
from tinycomp.dtype import DType
from tinycomp.ir.instruction import InstructionCall
from tinycomp.ir.node import postorder
from tinycomp.relay.nodes import Atom, Constant, Function
from tinycomp.relay.op import Attrs, Op, OpPattern
from tinycomp.relay.pass_infra import FunctionPass, PassContext
from tinycomp.relay.pattern import Graph, Match, Rule, is_constant, is_op, rewrite, wildcard
from tinycomp.schedules.common import Kernel
from tinycomp.target import Target
from tinycomp.te.tensor import Tensor
from tinycomp.tir.nodes import PrimFunc
from tinycomp.types import TensorType, Type

LANES, QUAD = 16, 4  # outputs and products of one instruction

# %% [markdown]
# ## The model
#
# `MatMulInteger` multiplies uint8 activations with constant int8 weights. tinycomp imports it as
# casts to int32 and a product of int32; for a machine without the instruction, that is it.

# %%
m, k, n = 120, 512, 256
rng = np.random.default_rng(0)
weights = rng.integers(-128, 128, (k, n), np.int8)
node = helper.make_node("MatMulInteger", ["x", "w"], ["y"], "product")
graph = helper.make_graph(
    [node],
    "quantised",
    [helper.make_tensor_value_info("x", TensorProto.UINT8, [m, k])],
    [helper.make_tensor_value_info("y", TensorProto.INT32, [m, n])],
    [numpy_helper.from_array(weights, "w")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
host = Target.host()
without = replace(host, features=f"{host.features},-avx512vnni,-avxvnni")
plain = tinycomp.compile(model, target=without)
print(plain.ir("relay"))

# %% [markdown]
# ## An operator for the packed product
#
# Its second argument holds the weights as the instruction reads them: `[n/16][k/4][16 * 4]`.


# %%
def unpacked(w: np.ndarray) -> np.ndarray:
    """[n/16][k/4][16 * 4] as [k, n]."""
    panels, quads, _ = w.shape
    split = w.reshape(panels, quads, LANES, QUAD)
    return split.transpose(1, 3, 0, 2).reshape(quads * QUAD, panels * LANES)


def packed(w: np.ndarray) -> np.ndarray:
    """The inverse of `unpacked`."""
    depth, columns = w.shape
    split = w.reshape(depth // QUAD, QUAD, columns // LANES, LANES)
    return split.transpose(2, 0, 3, 1).reshape(columns // LANES, depth // QUAD, LANES * QUAD)


def infer(attrs: Attrs, types: Sequence[Type]) -> Type:
    x, w = types
    if not isinstance(x, TensorType) or x.rank != 2 or x.dtype is not DType.UINT8:
        raise TypeMismatch(f"dot4: argument 0 must be a matrix of uint8, got {x}")
    if not isinstance(w, TensorType) or w.rank != 3 or w.dtype is not DType.INT8:
        raise TypeMismatch(f"dot4: argument 1 must be packed int8 weights, got {w}")
    return TensorType((x.shape[0], w.shape[0] * LANES), DType.INT32)


def compute(attrs: Attrs, tensors: Sequence[Tensor], out: TensorType) -> list[Tensor]:
    x, w = tensors
    r = te.reduce_axis((0, x.shape[1]), name="r")

    def element(i: Any, j: Any) -> Any:
        weight = w[j // LANES, r // QUAD, j % LANES * QUAD + r % QUAD]
        return te.sum(te.cast(x[i, r], "int32") * te.cast(weight, "int32"), axis=r)

    return [te.compute(out.static_shape, element, name="dot4")]


dot4 = Op(
    name="dot4",
    pattern=OpPattern.OUT_ELEMWISE_FUSABLE,
    infer=infer,
    compute=compute,
    reference=lambda attrs, xs: xs[0].astype(np.int32) @ unpacked(xs[1]).astype(np.int32),
    doc="A product of uint8 with packed int8 weights, in int32.",
)

# %% [markdown]
# ## A pass that uses it
#
# The pattern asks for dtypes and for constant weights; the rule declines sizes that do not fit.

# %%
activations, constant = wildcard().has_dtype("uint8"), is_constant().has_dtype("int8")
product = is_op("nn.matmul")(is_op("cast")(activations), is_op("cast")(constant) | is_constant())


def to_dot4(graph: Graph, match: Match) -> Atom | None:
    value = graph.call(match[product]).args[1]
    if not isinstance(value, Constant):
        value = match[constant]
    assert isinstance(value, Constant)
    data = value.data
    depth, columns = data.shape
    x = match[activations]
    in_range = data.min() >= -128 and data.max() <= 127  # the importer may have folded the cast
    if depth % QUAD or columns % LANES or not in_range or len(x.type.shape) != 2:
        return None
    return graph.builder.call("dot4", x, graph.builder.const(packed(data.astype(np.int8))))


@dataclass(frozen=True)
class UseDot4(FunctionPass):
    """Products of bytes with constant weights become `dot4`."""

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        return rewrite([Rule("dot4", product, to_dot4)], function, ctx.ops)


# %% [markdown]
# ## A schedule for the target
#
# The hook is called with the kernel and its target. Where the instruction is missing it returns
# False, and the default schedule is used: the operator works on any machine.

# %%
a = te.placeholder((QUAD,), "uint8", name="a")
b = te.placeholder((LANES * QUAD,), "int8", name="b")
q = te.reduce_axis((0, QUAD), name="q")
dots = te.compute(
    (LANES,),
    lambda j: te.sum(te.cast(a[q], "int32") * te.cast(b[j * QUAD + q], "int32"), axis=q),
    name="dots",
)


def emit(ins: Sequence[Any], outs: Sequence[Any]) -> tuple[Any, Any, Any]:
    number = te.reinterpret(ins[0].vload([0], QUAD), "int32")
    spread = te.reinterpret(te.broadcast(number, LANES), "uint8")
    total = outs[0].vload([0], LANES)
    zero = te.broadcast(te.const(0, "int32"), LANES)
    added = te.instruction.VPDPBUSD_512(total, spread, ins[1].vload([0], LANES * QUAD))
    return None, outs[0].vstore(zero, [0]), outs[0].vstore(added, [0])


vpdpbusd = te.decl_tensor_intrin(dots, emit, name="vpdpbusd")


def schedule(kernel: Kernel) -> bool:
    result = kernel.outputs[0].op
    if not kernel.target.has_feature("avx512vnni") or kernel.reductions != [result]:
        return False
    s, out = kernel.schedule, kernel.outputs[0]
    height, width = (d.value for d in out.shape)
    rows = next(f for f in (12, 8, 6, 4, 2, 1) if height % f == 0)
    columns = LANES * (2 if width % (2 * LANES) == 0 else 1)
    tile = s.cache_write(out, "local")
    i, j = s[out].axes
    i, ii = s[out].split(i, factor=rows)
    j, jj = s[out].split(j, factor=columns)
    s[out].reorder(j, i, ii, jj)
    s[out].unroll(ii)
    s[out].vectorize(jj)
    s[tile].compute_at(s[out], i)
    s[out].parallel(j)
    *_, i, j, r = s[tile].axes
    r, quad = s[tile].split(r, factor=QUAD)
    j, lane = s[tile].split(j, factor=LANES)
    s[tile].reorder(r, i, j, lane, quad)
    s[tile].unroll(i)
    s[tile].unroll(j)
    s[tile].tensorize(lane, vpdpbusd)
    return True


# %% [markdown]
# ## A lowering pass
#
# It gets the plain loops and the target, and returns loops. This one only counts; another could
# rewrite them with `ir.node.rewrite`. What it returns is verified.

# %%
instructions: dict[str, int] = {}


def count_instructions(func: PrimFunc, target: Target) -> PrimFunc:
    calls = [e for e in postorder(func.body) if isinstance(e, InstructionCall)]
    instructions[func.name] = len(calls)
    return func


# %% [markdown]
# ## Together
#
# Without a key nothing is kept in the caches on disk, which suits a hook that is being written.

# %%
extension = tinycomp.Extension(
    ops=(dot4,),
    passes=(UseDot4(),),
    schedules={"dot4": schedule},
    lowering=(count_instructions,),
)
hooked = tinycomp.compile(model, target=host, extension=extension)
print(hooked.ir("relay"))
print("instructions in the loops:", instructions)
x = rng.integers(0, 256, (m, k), np.uint8)
expected = x.astype(np.int32) @ weights.astype(np.int32)
for module in (plain, hooked):
    (y,) = module.run({"x": x}).values()
    np.testing.assert_array_equal(y, expected)
assert "dot4" in hooked.ir("relay")
assert "dot4" not in plain.ir("relay")

# %% [markdown]
# The machine code, on this machine and, to look at, on another.

# %%
assembly = hooked.ir("asm", extension)
if host.has_feature("avx512vnni"):
    assert sum(instructions.values()) > 1
    assert "vpdpbusd" in assembly
    print(next(line for line in assembly.splitlines() if "vpdpbusd" in line))
older = tinycomp.compile(model, target="llvm -mcpu=x86-64-v3", extension=extension)
assert "vpdpbusd" not in older.ir("asm", extension)

# %% [markdown]
# How much it is worth: the fastest of several runs.


# %%
def milliseconds(module: tinycomp.Module) -> float:
    times = []
    for _ in range(20):
        start = time.perf_counter()
        module.run({"x": x})
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


before, after = milliseconds(plain), milliseconds(hooked)
own = milliseconds(tinycomp.compile(model))
print(f"int32 products: {before:.3f} ms, dot4: {after:.3f} ms, tinycomp's own: {own:.3f} ms")
if host.has_feature("avx512vnni"):
    assert after < before
