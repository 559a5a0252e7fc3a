"""smoke: every elementary function, conversion, matrix instruction and layout beside NumPy.

New instructions add a function to `GROUPS` that yields cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from device import relative_error, run_func
from harness import Case, Env, Row
from tests.schedules.gpu.attention.cases import SHAPES as ATTENTIONS
from tests.schedules.gpu.attention.cases import Attention
from tests.tir.tensor_intrinsics.products import warp_product
from tests.tir.tile.products import SHAPES, Product
from tests.tir.tile.windows import WINDOWS, windows_product

from tinycomp import te
from tinycomp.dtype import DType
from tinycomp.ir.expr import INTRINSICS, as_int, call
from tinycomp.schedules.gpu.bind import bind_unbound
from tinycomp.te.evaluate_expr import INTRINSIC
from tinycomp.tir.lower_gpu import lower_gpu
from tinycomp.tir.tensor_intrinsics.warp import MMA

N = 4096
ULP = 8.0  # more than the CUDA C++ Programming Guide states for any function but pow and tgamma
_OPERANDS = {"pow": 2, "atan2": 2, "fma": 3}
_NOT_MATH = ("checked_index", "if_then_else", "popcount", "not", "bit_not", "likely", "once")


def cases() -> list[Case]:
    return [case for group in GROUPS for case in group()]


def _elementwise(arrays: list[np.ndarray], dtype: str, body: Callable[..., object], env: Env):
    """The result of one expression for each element of the arrays."""
    tensors = [te.placeholder(a.shape, DType.of(a.dtype), f"x{i}") for i, a in enumerate(arrays)]
    out = te.compute(arrays[0].shape, lambda i: body(*(t[i] for t in tensors)), name="out")
    func = lower_gpu(bind_unbound(te.create_schedule(out.op).func))
    result = np.zeros(arrays[0].shape, DType(dtype).numpy)
    return run_func(func, [*arrays, result], env)[-1]


def functions() -> Iterator[Case]:
    """Elementary functions in float32: the worst error in ulp, and where NaN is."""

    def run_one(name: str, env: Env) -> Iterator[Row]:
        rng = np.random.default_rng(0)
        count = _OPERANDS.get(name, 1)
        arrays = [rng.standard_normal(N).astype("f4") * 4 for _ in range(count)]
        arrays[0][:6] = [0, -0.0, np.inf, -np.inf, np.nan, 1e-40]
        dtype = "bool" if INTRINSICS[name] == "bool" else "float32"
        got = _elementwise(arrays, dtype, lambda *xs: call(name, *xs), env)
        with np.errstate(all="ignore"):
            wanted = INTRINSIC[name](*(a.astype("f8") for a in arrays)).astype(got.dtype)
            scale = np.spacing(np.abs(wanted).astype("f4")).astype("f8")
            ulp = np.abs(got.astype("f8") - wanted.astype("f8")) / scale
        worst = float(ulp[np.isfinite(wanted)].max(initial=0))
        same = np.array_equal(np.isnan(got), np.isnan(wanted))
        yield {"ulp": worst, "nan": "same" if same else "DIFFERS", "ok": same and worst <= ULP}

    for name in INTRINSICS:
        if name not in _NOT_MATH and name in INTRINSIC:
            yield Case(f"function/{name}", lambda env, n=name: run_one(n, env))


def conversions() -> Iterator[Case]:
    """float16 and bfloat16 both ways: every 16-bit pattern up, random floats down."""

    def run_one(short: str, env: Env) -> Iterator[Row]:
        patterns = np.arange(1 << 16, dtype=np.uint16).view(DType(short).numpy)
        up = _elementwise([patterns], "float32", lambda x: x.astype("float32"), env)
        same = np.array_equal(up, patterns.astype(np.float32), equal_nan=True)
        yield {"engine": f"{short} to float32", "ok": same}
        bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype=np.uint64)
        floats = bits.astype(np.uint32).view(np.float32)
        down = _elementwise([floats], short, lambda x: x.astype(short), env)
        with np.errstate(all="ignore"):
            wanted = floats.astype(DType(short).numpy)
        same = np.array_equal(down.astype("f4"), wanted.astype("f4"), equal_nan=True)
        yield {"engine": f"float32 to {short}", "ok": same}

    for short in ("float16", "bfloat16"):
        yield Case(f"conversion/{short}", lambda env, s=short: run_one(s, env))


def integers() -> Iterator[Case]:
    """Division, remainder and shifts at their edges, as tinycomp defines them."""
    from tinycomp.ir.expr import Binary, BinaryOp
    from tinycomp.te.evaluate_expr import BINARY

    def run_one(op: BinaryOp, env: Env) -> Iterator[Row]:
        edges = np.array([0, 1, -1, 2, -7, 31, 32, 33, 2**31 - 1, -(2**31)], np.int32)
        a, b = (x.reshape(-1).copy() for x in np.meshgrid(edges, edges))
        got = _elementwise([a, b], "int32", lambda x, y: Binary(op, x, y), env)
        with np.errstate(all="ignore"):
            yield {"ok": bool(np.array_equal(got, BINARY[op](a, b)))}

    for op in (BinaryOp.FLOORDIV, BinaryOp.FLOORMOD, BinaryOp.TRUNCDIV, BinaryOp.TRUNCMOD,
               BinaryOp.SHL, BinaryOp.SHR):  # fmt: skip
        yield Case(f"integer/{op.name.lower()}", lambda env, o=op: run_one(o, env))


def products() -> Iterator[Case]:
    """Small products through each format of the tensor cores, by the default schedules: one warp's
    instructions, and tile programs with copies by the TMA unit where the GPU has it."""
    from stage_correctness import product_row

    for dtype, precision in (
        ("float16", "fp32"), ("bfloat16", "fp32"), ("float32", "tf32"), ("float32", "fp32"),
    ):  # fmt: skip
        name = dtype if precision == "fp32" else precision
        for sizes in ((96, 72, 64), (64, 256, 128), (192, 136, 200)):
            yield Case(
                f"product/{'x'.join(map(str, sizes))}/{name}",
                lambda env, s=sizes, d=dtype, p=precision: product_row(env, s, d, p),
            )


def instructions() -> Iterator[Case]:
    """Each matrix instruction of warps on values that hold their position: exact, so any wrong
    place in a fragment shows."""

    def run_one(name: str, env: Env) -> Iterator[Row]:
        dtype = MMA[name].dtype
        func = lower_gpu(warp_product(dtype).func)
        arrays = []
        for buffer in func.params[:2]:
            i, j = np.indices([as_int(d) for d in buffer.shape])
            arrays.append(((i * 31 + j * 7) % 61).astype(dtype.numpy))
        out = np.zeros([as_int(d) for d in func.params[-1].shape], func.params[-1].dtype.numpy)
        got = run_func(func, [*arrays, out], env)[-1]
        left, right = (a.astype("f8") for a in arrays)
        error = relative_error(got, 2 * (left @ right.T))
        yield {"error": error, "ok": error == 0}

    for name in MMA:
        yield Case(f"instruction/{name}", lambda env, n=name: run_one(n, env))


def tiles() -> Iterator[Case]:
    """Tile programs of every shape on small integers, whose products are exact: a wrong bit of a
    swizzle, a matrix descriptor, a tensor map or a fragment shows."""

    def run_one(name: str, env: Env) -> Iterator[Row]:
        if env.arch != "sm_90a":
            yield {"skipped": f"tile programs are for sm_90a, this is {env.arch}"}
            return
        tile, options = SHAPES[name]
        sizes = (200, 136, 208) if env.dry else (1000, 1032, 976)
        case = Product(*sizes, tile, blocks=4 if env.dry else 132, bias=True, **options)
        got = run_func(case.func, list(case.arrays.values()), env)[-1]
        wanted = case.expected.astype(case.out.dtype.numpy)
        error = relative_error(got, wanted)
        yield {"error": error, "ok": error == 0}

    for name in SHAPES:
        yield Case(f"tile/{name}", lambda env, n=name: run_one(n, env))


def windows() -> Iterator[Case]:
    """Convolutions of NHWC images on small integers, whose sums are exact: a wrong corner, offset,
    stride or zero of an im2col map shows."""

    def run_one(case: tuple[int, ...], env: Env) -> Iterator[Row]:
        if env.arch != "sm_90a":
            yield {"skipped": f"tile programs are for sm_90a, this is {env.arch}"}
            return
        func, arrays, wanted = windows_product(*case)
        got = run_func(func, arrays, env)[-1]
        error = relative_error(got, wanted)
        yield {"error": error, "ok": error == 0}

    for case in WINDOWS:
        name = "x".join(map(str, case))
        yield Case(f"window/{name}", lambda env, c=case: run_one(c, env))


def attentions() -> Iterator[Case]:
    """Attention as tile programs: operands in registers, values transposed by their descriptors,
    softmax in fragments, named barriers."""

    def run_one(name: str, env: Env) -> Iterator[Row]:
        if env.arch != "sm_90a":
            yield {"skipped": f"tile programs are for sm_90a, this is {env.arch}"}
            return
        sizes, options = ATTENTIONS[name]
        if env.dry:
            sizes = (1, 150, 150, sizes[3])
        case = Attention(*sizes, blocks=1 if env.dry else 8, **options)
        got = run_func(case.func, list(case.arrays.values()), env)[-1]
        error = relative_error(got, case.expected)
        yield {"error": error, "ok": error <= 1e-2}

    for name in ATTENTIONS:
        yield Case(f"attention/{name}", lambda env, n=name: run_one(n, env))


GROUPS: tuple[Callable[[], Iterable[Case]], ...] = (
    functions, conversions, integers, products, instructions, tiles, windows, attentions,
)  # fmt: skip
"""Add a generator of cases here."""
