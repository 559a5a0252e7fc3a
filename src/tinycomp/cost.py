"""How much work a primitive function is, and in which format: operations, bytes, precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from .dtype import DType
from .relay.nodes import Binding, Call, Function
from .relay.op import Op, OpPattern
from .relay.passes.to_mixed_precision import ALLOWED, ROUNDED
from .target import Target
from .types import TensorType

_PRODUCTS = ALLOWED | {"nn.matmul_parts"}
_DATA = ROUNDED | {"nn.matmul_parts": 1}  # arguments whose format counts, if not all

# Operations per result element of what costs more than one; by convention, not by measurement.
_PER_ELEMENT = {"nn.softmax": 5, "nn.log_softmax": 5, "nn.layer_norm": 8, "nn.batch_norm": 4}
_MOVES = ("copy", "cast")


def function_flops(function: Function) -> int:
    """Floating-point operations of one call; a multiply-add counts two, moving data none."""
    return sum(binding_flops(binding) for binding in function.bindings)


def function_bytes(function: Function) -> int:
    """Bytes of the parameters and results, each counted once."""
    types = [*(p.type for p in function.params), function.ret_type]
    total = 0
    while types:
        type_ = types.pop()
        if isinstance(type_, TensorType):
            total += type_.nbytes if type_.is_static else 0
        else:
            types.extend(type_.fields)
    return total


_CALL = 200  # cycles to call a kernel
_BYTES_PER_CYCLE = 16  # of a core from its second cache
_GHZ = 3.0


def estimated_nanoseconds(function: Function, target: Target) -> float:
    """Time of one call on one core: two fused multiply-adds a cycle, or what its data takes."""
    flops_per_cycle = 4 * target.lanes(DType.FLOAT32)
    computing = function_flops(function) / flops_per_cycle
    return (_CALL + max(computing, function_bytes(function) / _BYTES_PER_CYCLE)) / _GHZ


def function_precision(function: Function) -> str:
    """The formats of the operands of a function's products and convolutions; of a function without
    them, of the floats that it reads and writes. Empty where there are no floats.

    >>> from tinycomp.relay.nodes import Var
    >>> from tinycomp.types import tensor_type
    >>> x = Var("x", tensor_type((2,), "bfloat16"))
    >>> function_precision(Function((x,), (), x))
    'bf16'
    """
    calls = [b.value for b in function.bindings if isinstance(b.value, Call)]
    heavy = [c for c in calls if isinstance(c.op, Op) and c.op.name in _PRODUCTS]
    types = [a.type for c in heavy for a in c.args[: _DATA.get(repr(c.op))]]
    if not heavy:
        types = [*(p.type for p in function.params), function.ret_type]
    names = {_FORMATS[t.dtype] for t in types if isinstance(t, TensorType) and t.dtype in _FORMATS}
    modes = {getattr(c.attrs, "precision", "fp32") for c in heavy} - {"fp32"}
    splits = {getattr(c.attrs, "split", "") for c in heavy} - {""}
    if modes | splits:
        names = (names - {"fp32"}) | modes | splits
    return "+".join(sorted(names))


_FORMATS = {
    DType.FLOAT16: "fp16",
    DType.BFLOAT16: "bf16",
    DType.FLOAT32: "fp32",
    DType.FLOAT64: "fp64",
}


def binding_flops(binding: Binding) -> int:
    """Floating-point operations of one operator; 0 where a shape is symbolic."""
    value, result = binding.value, binding.var.type
    if not isinstance(value, Call) or not isinstance(value.op, Op):
        return 0
    args = [a.type for a in value.args]
    if not all(isinstance(t, TensorType) and t.is_static for t in (*args, result)):
        return 0
    counter = _COUNTERS.get(value.op.name)
    if counter is not None:
        return counter(value.attrs, args, result)
    assert isinstance(result, TensorType)
    if value.op.pattern is OpPattern.COMM_REDUCE:
        first = args[0]
        assert isinstance(first, TensorType)
        return first.size
    if value.op.name in _PER_ELEMENT:
        return _PER_ELEMENT[value.op.name] * result.size
    moves = value.op.pattern is OpPattern.INJECTIVE or value.op.name in _MOVES
    return 0 if moves or not result.dtype.is_float else result.size


def _convolution(attrs: Any, args: list[TensorType], result: TensorType) -> int:
    data, kernel = args[0].static_shape, args[1]
    if getattr(attrs, "kernel_layout", "OIHW") == "OIHW":
        return 2 * result.size * math.prod(kernel.static_shape[1:])
    channels = data[-1] if attrs.data_layout == "NHWC" else data[1]
    return 2 * result.size * math.prod(attrs.kernel_size) * channels // attrs.groups


def _convolution_transpose(attrs: Any, args: list[TensorType], result: TensorType) -> int:
    return 2 * args[0].size * math.prod(args[1].static_shape[1:])


def _matmul(attrs: Any, args: list[TensorType], result: TensorType) -> int:
    return 2 * result.size * args[0].static_shape[-1]


def _pool(attrs: Any, args: list[TensorType], result: TensorType) -> int:
    return result.size * math.prod(attrs.pool_size)


_COUNTERS: Mapping[str, Callable[[Any, Any, Any], int]] = {
    "nn.conv2d": _convolution,
    "nn.conv3d": _convolution,
    "nn.conv2d_transpose": _convolution_transpose,
    "nn.matmul": _matmul,
    "nn.matmul_packed": _matmul,
    "nn.matmul_parts": _matmul,
    "nn.matmul_bytes": _matmul,
    "nn.max_pool2d": _pool,
    "nn.avg_pool2d": _pool,
}
