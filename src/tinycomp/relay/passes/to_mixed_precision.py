"""Matmuls and convolutions in the precision that was asked for, the rest in float32.

As in automatic mixed precision of PyTorch (`torch.autocast`) and TVM's pass of this name, lists
of operators decide: some are computed in the short format, some follow their operands, and all
others are computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...diagnostics import TinycompError
from ...dtype import DType
from ...precision import Precision, PrecisionPolicy
from ...types import TensorType
from ..nodes import Atom, Binding, Call, Constant, Function, Var
from ..op import Op
from ..pass_infra import FunctionPass, PassContext
from ..visitor import ExprMutator, remove_dead_bindings

ALLOWED = frozenset(
    {"nn.matmul", "nn.matmul_packed", "nn.conv2d", "nn.conv3d", "nn.attention"}
)  # fmt: skip
"""Computed in the short format whatever their operands are; sums are float32 still."""

_UNPACKED = {"nn.matmul_packed": "nn.matmul"}  # the name that users know

FOLLOWING = frozenset(
    {
        "abs", "add", "clip", "copy", "divide", "erf", "maximum", "minimum", "multiply", "negative",
        "nn.leaky_relu", "nn.relu", "sigmoid", "subtract", "tanh", "where",
        "nn.avg_pool2d", "nn.layer_norm", "nn.log_softmax", "nn.lrn", "nn.max_pool2d", "nn.softmax",
        "broadcast_to", "concatenate", "gather", "gather_nd", "image.resize", "nn.pack_conv2d",
        "nn.pack_matmul", "nn.pad", "reshape", "reverse_sequence", "strided_slice", "take", "tile",
        "transpose", "trilu",
    }
)  # fmt: skip
"""Stored in the short format if all their operands are: movement of data, cheap arithmetic whose
results are about as large as its operands, and what computes in float32 inside (normalisations,
softmax, pooling). All others (exp, logarithms, powers, square roots, sums) stay in float32."""


ROUNDED = {"nn.attention": 3}
"""How many arguments are rounded, if not all: masks hold numbers that float16 cannot."""


@dataclass(frozen=True)
class ToMixedPrecision(FunctionPass):
    """Rewrites operators to the precision that `policy` gives them.

    - tf32 and fp32_strict become the attribute `precision` of nn.matmul and nn.conv2d.
    - fp16 and bf16 become the operators' type: operands are rounded, results stay short until an
      operator needs float32. Constants are stored rounded, in half the memory.

    Inputs and outputs of a function keep their types. An operator that an override names is
    computed in that format, whatever list it is in.

        %0 = nn.matmul(%x, W)     ->     %0 = cast(%x, dtype="bfloat16")
        %1 = nn.relu(%0)                 %1 = nn.matmul(%0, W in bfloat16)
                                         %2 = nn.relu(%1)
                                         %3 = cast(%2, dtype="float32")

    Raises:
        TinycompError: a weight does not fit the range of float16.
    """

    policy: PrecisionPolicy

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        if function.is_primitive or self.policy.used == {Precision.FP32}:
            return function
        return remove_dead_bindings(_Mutator(ctx, self.policy).run(function))


class _Mutator(ExprMutator):
    """`short[a, d]` is atom `a` of the original function in the 16-bit dtype `d`.

    Each reader that needs float32 gets a cast of its own, which fuses into its kernel; one cast
    for all would write float32 to memory.
    """

    def __init__(self, ctx: PassContext, policy: PrecisionPolicy) -> None:
        super().__init__(ctx.ops)
        self.policy = policy
        self.short: dict[tuple[Atom, DType], Atom] = {}
        self.narrowed: dict[Var, Atom] = {}  # original variables that exist in 16 bits only

    def begin(self) -> None:
        self.short, self.narrowed = {}, {}
        self.builder.fold_limit = 1 << 40  # a rounded weight is smaller than the weight

    def map(self, atom: Atom) -> Atom:
        if isinstance(atom, Var) and atom in self.narrowed:
            return self.builder.call("cast", self.narrowed[atom], dtype=DType.FLOAT32)
        return super().map(atom)

    def visit_call(self, binding: Binding, call: Call) -> Atom:
        if isinstance(call.op, Function) or not _is_float32(binding.var):
            return self.keep(binding, call)
        override = self.policy.named(binding.span.nodes, _UNPACKED.get(call.op.name, call.op.name))
        precision = override or self.policy.base
        if precision in (Precision.TF32, Precision.FP32_STRICT):
            return self._as_attribute(binding, call, precision)
        if not precision.is_short:
            return self.keep(binding, call)
        wanted = override is not None or call.op.name in ALLOWED
        if not wanted and not self._follows(binding, call.op, precision.storage):
            return self.keep(binding, call)
        return self._shortened(binding, call, precision.storage)

    def _as_attribute(self, binding: Binding, call: Call, precision: Precision) -> Atom:
        if not hasattr(call.attrs, "precision") or not all(map(_is_float32, call.args)):
            return self.keep(binding, call)
        attrs = replace(call.attrs, precision=str(precision))  # type: ignore[call-arg]
        return self.keep(binding, Call(call.op, call.args, attrs))

    def _follows(self, binding: Binding, op: Op, dtype: DType) -> bool:
        """Whether every operand of an operator that may follow is there in `dtype`."""
        floats = [a for a in binding.args if _is_float32(a)]
        return (
            op.name in FOLLOWING
            and bool(floats)
            and all(
                _fits(a.data, dtype) if isinstance(a, Constant) else (a, dtype) in self.short
                for a in floats
            )
        )

    def _shortened(self, binding: Binding, call: Call, dtype: DType) -> Atom:
        assert isinstance(call.op, Op)
        count = ROUNDED.get(call.op.name, len(call.args))
        args = [
            self._round(a, dtype, call.op) if _is_float32(a) and i < count else new
            for i, (a, new) in enumerate(zip(binding.args, call.args, strict=True))
        ]
        result = self.builder.call(call.op, *args, attrs=call.attrs)
        assert isinstance(result.type, TensorType)
        if result.type.dtype is dtype:
            self.short[binding.var, dtype] = self.narrowed[binding.var] = result
        return result

    def _round(self, atom: Atom, dtype: DType, op: Op) -> Atom:
        if (atom, dtype) not in self.short:
            if isinstance(atom, Constant):
                _check_range(atom, dtype, op, self.builder.span.nodes)
            source = atom if isinstance(atom, Constant) else self.map(atom)
            self.short[atom, dtype] = self.builder.call("cast", source, dtype=dtype)
        return self.short[atom, dtype]


def _is_float32(atom: Atom) -> bool:
    return isinstance(atom.type, TensorType) and atom.type.dtype is DType.FLOAT32


def _fits(data: np.ndarray, dtype: DType) -> bool:
    """Whether no finite value of an array overflows in `dtype`."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.float32(_largest(data)).astype(dtype.numpy)))


def _largest(data: np.ndarray) -> float:
    return float(np.abs(data).max(initial=0.0, where=np.isfinite(data)))


def _check_range(weight: Constant, dtype: DType, op: Op, nodes: Sequence[str]) -> None:
    """Refuse a constant that `dtype` cannot hold: it overflows, or all of it is subnormal."""
    largest = _largest(weight.data)
    smallest = {DType.FLOAT16: 2.0**-14, DType.BFLOAT16: 2.0**-126}[dtype]
    if largest == 0 or (_fits(weight.data, dtype) and largest >= smallest):
        return
    limit = "65504 is the largest number" if largest > 1 else "6.1e-5 is the least normal number"
    names = [*weight.span.nodes, *nodes]
    name = names[0] if names else op.name
    raise TinycompError(
        f"a weight {weight.type} of {op.name} does not fit {dtype}: its largest value is "
        f"{largest:.3g}, and {limit} of {dtype}",
        span=replace(weight.span, nodes=tuple(dict.fromkeys(names))),
        hint='use precision="bf16", or leave it in float32 by precision_overrides='
        f'{{"{name}": "fp32"}}',
    )
