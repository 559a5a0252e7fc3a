"""Intrinsics of `ir.expr.INTRINSICS` and those of GPU threads, as CUDA C++ text.

Elementary functions are CUDA's own, without fast-math: at most 2 units in the last place for
exp, log, tanh and erf in float32, 1 to 4 for the others (CUDA C++ Programming Guide).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...diagnostics import InternalError
from ...dtype import DType
from ...ir.expr import Call, as_int
from .types import VALUE

_SAME_NAME = frozenset(
    ["exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "sin", "cos", "tan",
     "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "floor",
     "ceil", "trunc", "pow", "atan2"]
)  # fmt: skip
_OTHER_NAME = {
    "exp2_approx": "exp2",
    "round": "rint",
    "nearbyint": "rint",
    "abs": "fabs",
    "fma": "fma",
}
FUNCTIONS = _SAME_NAME | set(_OTHER_NAME.values()) | {"fmod"}
_CLASSIFY = {"isnan": "({0} != {0})", "isinf": "({1}({0}) == {2})", "isfinite": "({1}({0}) < {2})"}
_SHUFFLED = frozenset(
    {DType.INT32, DType.UINT32, DType.INT64, DType.UINT64, DType.FLOAT32, DType.FLOAT64,
     DType.FLOAT16, DType.BFLOAT16}
)  # fmt: skip


def call_text(out: Any, name: str, dtype: DType, args: Sequence[str], node: Call) -> str:
    """The call `name(*args)`; `dtype` is the first argument's."""
    x = args[0] if args else ""
    if name == "likely":
        return x
    if name == "not":
        return f"(!{x})"
    if name == "bit_not":
        return f"({VALUE[dtype]})(~{x})"
    if name == "shuffle_xor":
        return _shuffle(x, dtype, as_int(node.args[1]))
    if name == "neg":
        return f"(-{x})" if dtype.is_float else f"(({VALUE[dtype]})(0 - {x}))"
    return _float(out, name, dtype, args) if dtype.is_float else _integer(out, name, dtype, args)


def _shuffle(x: str, dtype: DType, mask: int) -> str:
    """The value of the thread of the warp whose lane differs in the bits of `mask`."""
    if dtype in _SHUFFLED:
        return f"__shfl_xor_sync(0xffffffffu, {x}, {mask})"
    return f"({VALUE[dtype]})__shfl_xor_sync(0xffffffffu, (int){x}, {mask})"


def _float(out: Any, name: str, dtype: DType, args: Sequence[str]) -> str:
    suffix = "" if dtype is DType.FLOAT64 else "f"
    if name == "exp2_approx" and suffix:
        return f"{out.use(name)}({args[0]})"
    if name in ("sign", "sigmoid", "round_tf32", "truncate_bf16"):
        return f"{out.use(name)}({args[0]})"
    if name in _CLASSIFY:
        limit = "__longlong_as_double(0x7ff0000000000000LL)" if not suffix else (
            "__int_as_float(0x7f800000)"
        )  # fmt: skip
        return _CLASSIFY[name].format(args[0], f"fabs{suffix}", limit)
    function = name if name in _SAME_NAME else _OTHER_NAME.get(name)
    if function is None:
        raise InternalError(f"intrinsic {name} is not defined for {dtype}")
    return f"{function}{suffix}({', '.join(args)})"


def _integer(out: Any, name: str, dtype: DType, args: Sequence[str]) -> str:
    x, type_ = args[0], VALUE[dtype]
    if name in ("floor", "ceil", "trunc", "round", "nearbyint"):
        return x
    if name in ("isnan", "isinf", "isfinite"):
        return "true" if name == "isfinite" else "false"
    if name == "abs":
        unsigned = dtype.is_unsigned or dtype is DType.BOOL
        return x if unsigned else f"{out.use('integer_abs')}<{type_}>({x})"
    if name == "sign":
        return f"{out.use('sign')}<{type_}>({x})"
    if name == "fma":
        return f"(({type_})({x} * {args[1]} + {args[2]}))"
    if name == "pow":
        return f"{out.use('integer_power')}<{type_}>({x}, {args[1]})"
    if name == "popcount":
        if dtype.bits == 64:
            return f"(({type_})__popcll((unsigned long long){x}))"
        mask = f" & {(1 << dtype.bits) - 1}u" if dtype.bits < 32 else ""
        return f"(({type_})__popc((unsigned int){x}{mask}))"
    raise InternalError(f"intrinsic {name} is not defined for {dtype}")
