"""float32 elementary functions against double precision, over random bit patterns."""

from __future__ import annotations

import ctypes
import math

import mpmath
import numpy as np
import pytest

from tinycomp.codegen.jit import load_object
from tinycomp.codegen.llvm import compile_kernels, emit_kernel
from tinycomp.codegen.runtime_abi import RuntimeState
from tinycomp.codegen.vecmath import ULP_BOUNDS
from tinycomp.dtype import DType
from tinycomp.ir.expr import Call, Load, Ramp, Var, const
from tinycomp.target import Target
from tinycomp.tir.nodes import Buffer, For, PrimFunc, Store

SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-40, -1e-40, 1.17549435e-38, 3.4e38]
    + [-3.4e38, 1.0, -1.0, 0.5, -0.5, 88.7, 88.8, 89.0, 89.5, -87.4, -103.9, -104.0, 127.9, 128.0]
    + [-149.0, -150.0, 1e-8, -1e-8, 2.0, 3.0, -2.0, -3.0, 70001.0, 1e10, 1.5, -1.5, 16777217.0],
    dtype=np.float32,
)
COUNT = 1 << 18


def compiled(name: str, count: int, lanes: int, dtype: DType = DType.FLOAT32, arity: int = 1):
    """NumPy-callable of the intrinsic over arrays of `count` elements, `lanes` at a time."""
    params = tuple(Buffer(f"p{i}", (const(count),), dtype) for i in range(arity + 1))
    i = Var("i")
    index = (Ramp(i * lanes, const(1), lanes) if lanes > 1 else i,)
    value = Call(name, tuple(Load(p, index, None) for p in params[:-1]), dtype)
    body = For(i, const(0), const(count // lanes), Store(params[-1], index, value))
    kernel = emit_kernel(PrimFunc("f", params, 1, body), Target.host())
    loaded = load_object(compile_kernels([kernel.llvm_text], Target.host()))
    native = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (arity + 2))(loaded.address("f"))

    def run(*arrays: np.ndarray) -> np.ndarray:
        out = np.empty(count, dtype.numpy)
        runtime = RuntimeState(num_threads=1)
        native(ctypes.addressof(runtime), *(a.ctypes.data for a in arrays), out.ctypes.data)
        return out

    run.keep = loaded  # type: ignore[attr-defined]
    return run


def samples(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 1 << 32, COUNT, dtype=np.uint32).view(np.float32)
    near = np.concatenate([rng.normal(0, 3, COUNT // 4), rng.uniform(-1.2, 1.2, COUNT)])
    return np.concatenate([SPECIAL, bits[: COUNT // 2], near.astype(np.float32)])[:COUNT]


def reference(name: str, *args: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        wide = [a.astype(np.float64) for a in args]
    table = {
        "sigmoid": lambda x: np.where(x < 0, np.exp(x) / (1 + np.exp(x)), 1 / (1 + np.exp(-x))),
        "rsqrt": lambda x: 1 / np.sqrt(x),
        "erf": np.vectorize(math.erf, otypes=[np.float64]),
        "pow": np.power, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan,
        "atan2": np.arctan2, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    }  # fmt: skip
    with np.errstate(all="ignore"):
        return (table.get(name) or getattr(np, name))(*wide)


def ulp_error(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Distance in units of the last place of the float32 result; infinite for a wrong special."""
    with np.errstate(all="ignore"):
        rounded = want.astype(np.float32)
        unit = np.spacing(np.maximum(np.abs(rounded), np.float32(1.17549435e-38))).astype("f8")
        unit = np.where(np.isfinite(rounded), unit, 2.0**104)
        error = np.abs(got.astype(np.float64) - want) / unit
        limit = np.float64(np.finfo(np.float32).max)
        overflowed = (
            np.isinf(got) & (np.abs(want) >= limit * (1 - 2**-23)) & (np.sign(got) == np.sign(want))
        )
    error = np.where(overflowed | (got == rounded), 0.0, error)
    same_nan = np.isnan(got) & np.isnan(want)
    error = np.where(same_nan, 0.0, np.where(np.isnan(got) | np.isnan(want), np.inf, error))
    wrong_sign = (want == 0) & (np.signbit(got) != np.signbit(want))
    return np.where(wrong_sign, np.inf, np.where(np.isnan(error), np.inf, error))


@pytest.mark.parametrize("name", [n for n in ULP_BOUNDS if n not in ("pow", "atan2")])
def test_unary_ulp(name: str) -> None:
    x = samples(1)
    want = reference(name, x)
    error = ulp_error(compiled(name, COUNT, 16)(x), want)
    worst = int(np.argmax(error))
    assert error[worst] <= ULP_BOUNDS[name], (error[worst], x[worst], want[worst])


@pytest.mark.parametrize("name", ["pow", "atan2"])
def test_binary_ulp(name: str) -> None:
    x, y = samples(2), np.random.default_rng(3).permutation(samples(4))
    a, b = (g.ravel() for g in np.meshgrid(SPECIAL, SPECIAL))
    x[: a.size], y[: b.size] = a, b
    want = reference(name, x, y)
    error = ulp_error(compiled(name, COUNT, 16, arity=2)(x, y), want)
    worst = int(np.argmax(error))
    assert error[worst] <= ULP_BOUNDS[name], (error[worst], x[worst], y[worst], want[worst])


@pytest.mark.parametrize("lanes", [1, 4, 8, 32])
@pytest.mark.parametrize("name", ["exp", "tanh", "sin"])
def test_lane_counts_agree(name: str, lanes: int) -> None:
    x = samples(5)[:4096].copy()
    error = ulp_error(compiled(name, 4096, lanes)(x), reference(name, x))
    assert error.max() <= ULP_BOUNDS[name]


@pytest.mark.parametrize("name", ["exp", "log", "erf", "sigmoid", "tanh", "rsqrt", "atan"])
def test_float64(name: str) -> None:
    x = np.abs(np.random.default_rng(0).normal(0, 2, 64)) + 1e-3
    np.testing.assert_allclose(
        compiled(name, 64, 4, DType.FLOAT64)(x), reference(name, x), rtol=1e-14
    )


def test_reference_against_mpmath() -> None:
    """The double-precision reference itself is right where it could lose accuracy."""
    for name, function in {"tan": mpmath.tan, "expm1": mpmath.expm1, "log1p": mpmath.log1p}.items():
        for x in (np.float32(1.5707963), np.float32(1e-6), np.float32(0.3)):
            exact = float(function(mpmath.mpf(float(x))))
            assert reference(name, np.array([x]))[0] == pytest.approx(exact, rel=1e-13)
