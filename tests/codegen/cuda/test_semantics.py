"""CUDA C++ of expressions, run on the CPU, against the NumPy meaning of the operators."""

import numpy as np
import pytest

from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.dtype import DType
from tinycomp.ir.expr import INTRINSICS, BinaryOp, Call, Load, Var, binary, call, cast, const
from tinycomp.ir.instruction import reinterpret
from tinycomp.te.evaluate_expr import BINARY, INTRINSIC
from tinycomp.te.evaluate_expr import cast as reference_cast
from tinycomp.tir.nodes import Buffer, For, ForKind, PrimFunc, Seq, Store

from .host import HostKernel, all_aligned

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 1e-3, 3.7, -7.2, 40.0]
SPECIAL += [np.inf, -np.inf, np.nan]
INTS = (DType.INT8, DType.UINT8, DType.INT32, DType.UINT32, DType.INT64)
FLOATS = (DType.FLOAT32, DType.FLOAT64)


def values(dtype, seed=0, count=64):
    rng = np.random.default_rng(seed)
    if dtype.is_float:
        some = np.concatenate([SPECIAL, rng.standard_normal(count - len(SPECIAL)) * 5])
        return rng.permutation(some).astype(dtype.numpy)
    if dtype is DType.BOOL:
        return rng.integers(0, 2, count).astype(bool)
    low, high = int(dtype.min_value), int(dtype.max_value)
    edges = [low, high, 0, 1, 2, 3, max(low, -1), max(low, -3), low + 1, high - 1]
    return rng.permutation(
        np.array([*edges, *rng.integers(max(low, -50), min(high, 50), count - len(edges))])
    ).astype(dtype.numpy)


def run_all(tmp_path, cases):
    """`function(*elements)` for all elements of `arrays`, for each case (arrays, function)."""
    params, outs, roots, inputs = [], [], [], []
    for number, (arrays, function) in enumerate(cases):
        count = len(arrays[0])
        own = [
            Buffer(f"p{number}_{k}", (const(count),), DType.of(a.dtype))
            for k, a in enumerate(arrays)
        ]
        i = Var("i")
        value = function(*(Load(p, (i,), None) for p in own))
        out = Buffer(f"out{number}", (const(count),), value.dtype)
        params += own
        inputs += arrays
        outs.append(out)
        body = Store(out, (i,), value)
        roots.append(For(i, const(0), const(count), body, ForKind.THREAD, "threadIdx.x"))
    func = PrimFunc("f", (*params, *outs), len(outs), Seq(tuple(roots)))
    results = all_aligned([np.zeros(o.shape[0].value, o.dtype.numpy) for o in outs])
    HostKernel(emit_cuda(func), tmp_path)(*all_aligned(inputs), *results)
    return results


def agree(got, expected, ulps=0):
    expected = np.asarray(expected).astype(got.dtype)
    if got.dtype.itemsize == 2 and got.dtype.kind in "fV":
        got, expected = got.astype(np.float32), expected.astype(np.float32)
    if got.dtype.kind == "f" and ulps:
        scale = np.spacing(np.abs(np.where(np.isfinite(expected), expected, 1)).astype(got.dtype))
        same = np.isnan(got) & np.isnan(expected) | (got == expected)
        with np.errstate(all="ignore"):
            return (same | (np.abs(got - expected) <= ulps * scale)).all()
    return np.array_equal(got, expected, equal_nan=got.dtype.kind == "f")


def check(tmp_path, cases, expected, labels, ulps=0):
    for got, wanted, label in zip(run_all(tmp_path, cases), expected, labels, strict=True):
        assert agree(got, wanted, ulps), label


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


def test_binary_operators(tmp_path):
    ints_only = {BinaryOp.BIT_AND, BinaryOp.BIT_OR, BinaryOp.BIT_XOR, BinaryOp.SHL, BinaryOp.SHR}
    cases, expected, labels = [], [], []
    for dtype in (*INTS, *FLOATS):
        a, b = values(dtype, 0), values(dtype, 1)
        if dtype.is_float:
            finite = np.isfinite(a) & np.isfinite(b)
            a, b = a[finite], b[finite]
        left_out = {BinaryOp.AND, BinaryOp.OR} | (ints_only if dtype.is_float else {BinaryOp.DIV})
        for op in (o for o in BinaryOp if o not in left_out):
            wanted = BINARY[op](a, b)
            if dtype.is_float and op in (BinaryOp.FLOORDIV, BinaryOp.TRUNCDIV):
                wanted = np.floor(a / b) if op is BinaryOp.FLOORDIV else np.trunc(a / b)
            cases.append(((a, b), lambda x, y, op=op: binary(op, x, y)))
            expected.append(wanted)
            labels.append((op, dtype))
    check(tmp_path, cases, expected, labels)


def test_nan_and_infinities_in_comparisons(tmp_path):
    a, b = (np.repeat(SPECIAL, 15).astype("f4"), np.tile(SPECIAL, 15).astype("f4"))
    ops = [BinaryOp.MIN, BinaryOp.MAX, BinaryOp.LT, BinaryOp.LE, BinaryOp.EQ, BinaryOp.NE]
    cases = [((a, b), lambda x, y, op=op: binary(op, x, y)) for op in ops]
    check(tmp_path, cases, [BINARY[op](a, b) for op in ops], ops)


def test_reinterpret(tmp_path):
    pairs = [
        ("float32", "int32"), ("float64", "int64"), ("int32", "float32"), ("uint64", "float64"),
        ("float32", "uint32"), ("int64", "uint64"), ("uint32", "int32"),
    ]  # fmt: skip
    arrays = [values(DType(source)) for source, _ in pairs]
    cases = [
        ((x,), lambda a, to=to: reinterpret(a, to))
        for x, (_, to) in zip(arrays, pairs, strict=True)
    ]
    wanted = [x.view(to) for x, (_, to) in zip(arrays, pairs, strict=True)]
    check(tmp_path, cases, wanted, pairs)


def test_division_by_constants(tmp_path):
    ops = (BinaryOp.FLOORDIV, BinaryOp.FLOORMOD, BinaryOp.TRUNCDIV, BinaryOp.TRUNCMOD)
    labels = [(o, t, d) for o in ops for t in INTS for d in (1, 3, 8, 100)]
    cases = [
        ((values(t),), lambda x, o=o, d=d, t=t: binary(o, x, const(d, t))) for o, t, d in labels
    ]
    expected = [BINARY[o](values(t), np.full_like(values(t), d)) for o, t, d in labels]
    check(tmp_path, cases, expected, labels)


def test_casts(tmp_path):
    cases, expected, labels = [], [], []
    for source in (*INTS, *FLOATS, DType.BOOL, DType.FLOAT16, DType.BFLOAT16):
        x = values(source)
        if source.is_float:  # also what does not fit
            x = np.concatenate([x, np.array([3e9, -3e9, 1e19, -1e19]).astype(x.dtype)])
        for target in DType:
            own = x[np.isfinite(x)] if target is DType.UINT64 and source.is_float else x
            cases.append(((own,), lambda a, t=target: cast(a, t)))
            expected.append(reference_cast(own, target))
            labels.append((source, target))
    check(tmp_path, cases, expected, labels)


def test_float_intrinsics(tmp_path):
    left_out = ("checked_index", "if_then_else", "popcount", "not", "bit_not", "likely", "once")
    count = {"pow": 2, "atan2": 2, "fma": 3}
    cases, expected, labels = [], [], []
    for dtype in FLOATS:
        arrays = [values(dtype, seed) for seed in range(3)]
        for name in (n for n in INTRINSICS if n not in left_out):
            own = arrays[: count.get(name, 1)]
            if (name, dtype) == ("fma", DType.FLOAT64):
                continue  # the reference rounds twice
            cases.append((own, lambda *x, n=name: call(n, *x)))
            expected.append(INTRINSIC[name](*own))
            labels.append((name, dtype))
    check(tmp_path, cases, expected, labels, ulps=4)


def test_integer_intrinsics(tmp_path):
    unary = ["neg", "abs", "sign", "bit_not", "popcount"]
    cases, expected, labels = [], [], []
    for dtype in INTS:
        x = values(dtype, 0)
        y = (np.abs(values(dtype, 1).astype(np.int64)) % 5).astype(x.dtype)
        for name in unary:
            cases.append(((x,), lambda a, n=name: call(n, a)))
            expected.append(INTRINSIC[name](x))
        cases.append(((x, y), lambda a, b: call("pow", a, b)))
        expected.append(INTRINSIC["pow"](x, y))
        labels += [(name, dtype) for name in (*unary, "pow")]
    check(tmp_path, cases, expected, labels)


def test_short_floats_are_computed_as_float32(tmp_path):
    cases, expected, types = [], [], (DType.FLOAT16, DType.BFLOAT16)
    for dtype in types:
        x = values(dtype)
        cases.append(((x,), lambda a: a * a + a))
        expected.append(x.astype(np.float32) * x.astype(np.float32) + x.astype(np.float32))
    expected = [e.astype(t.numpy) for e, t in zip(expected, types, strict=True)]
    check(tmp_path, cases, expected, types)


def test_an_index_out_of_range_sets_the_error_code(tmp_path):
    table = np.arange(8, dtype=np.float32)
    index = np.array([0, 7, -1, -8, 3], np.int64)
    a, n, out = (
        Buffer("a", (const(8),), DType.FLOAT32),
        Buffer("n", (const(5),), DType.INT64),
        Buffer("out", (const(5),), DType.FLOAT32),
    )
    i = Var("i")
    place = Call("checked_index", (Load(n, (i,), None), const(8)), DType.INT64)
    body = Store(out, (i,), Load(a, (place,), None))
    loop = For(i, const(0), const(5), body, ForKind.THREAD, "threadIdx.x")
    kernel = HostKernel(emit_cuda(PrimFunc("f", (a, n, out), 1, loop)), tmp_path)
    result = np.zeros(5, np.float32)
    assert kernel(table, index, result) == 0
    assert result.tolist() == [0, 7, 7, 0, 3]
    for bad in (8, -9):
        index[2] = bad
        assert kernel(table, index, result) == 7
