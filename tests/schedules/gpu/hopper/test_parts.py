"""float32 products by parts on tensor cores: the program, its error, and infinities."""

import re

import numpy as np
import pytest
from tests.tir.tile.test_mutations import changed, is_missed, occurrences

from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.codegen.cuda.nvrtc import compile_cuda, library
from tinycomp.diagnostics import TinycompError
from tinycomp.dtype import DType
from tinycomp.ir.expr import Var, const
from tinycomp.ops import default_ops
from tinycomp.ops.operand_parts import (
    BF16X6,
    BF16X6_ANY,
    STEP,
    TF32,
    MatmulPartsAttrs,
    SplitOperandAttrs,
)
from tinycomp.schedules.gpu.hopper.choice import choose_split
from tinycomp.schedules.gpu.hopper.operands import Epilogue, HopperTile, Operands
from tinycomp.schedules.gpu.hopper.parts import PLANS, parts_program
from tinycomp.schedules.gpu.hopper.tiles import Task, choose_hopper_tile
from tinycomp.target import Target
from tinycomp.tir.gpu_executor import run
from tinycomp.tir.nodes import Buffer, PrimFunc, Seq
from tinycomp.tir.tile import nodes as op
from tinycomp.tir.tile.arithmetic import multiply_add
from tinycomp.tir.tile.interpreter import POLICIES, run_tile_program

from .. import kit

SPLIT = default_ops()["nn.split_operand"]
HOPPER = Target.parse("cuda -arch=sm_90a")


def split_of(b, split):
    return SPLIT.reference(SplitOperandAttrs(split.name, split is not BF16X6_ANY), (b,))


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def program(m, n, k, tile, split=BF16X6, blocks=4):
    """out[i, j] = sum_k A[i, k] B[k, j], as a function of A, the parts of B, and out."""
    a = Buffer("A", (const(m), const(k)), DType.FLOAT32)
    b = Buffer("B", tuple(map(const, split.shape(1, k, n))), split.dtype)
    out = Buffer("out", (const(m), const(n)), DType.FLOAT32)
    batch, i, j, acc = Var("b"), Var("i"), Var("j"), Var("acc", DType.FLOAT32)
    epilogue = Epilogue(out, (i, j), acc, batch, i, j, acc)
    operands = Operands(a, b, 1, m, n, k, b_split=split)
    body = parts_program("product", operands, epilogue, tile, blocks)
    return PrimFunc("product", (a, b, out), 1, body)


class Product:
    """A program and its operands."""

    def __init__(self, a, b, tile, split=BF16X6, blocks=4):
        self.func = program(*a.shape[:1], *b.shape[::-1], tile, split, blocks)
        self.program = self.func.body
        self.arrays = a, split_of(b, split), np.empty((len(a), b.shape[1]), np.float32)
        self.expected = emulated(a, b, split)

    def run(self, policy=POLICIES[0], program=None):
        self.arrays[2][...] = np.nan
        spaces = dict(zip(self.func.params, self.arrays, strict=True))
        run_tile_program(self.func, program or self.program, spaces, policy)
        return self.arrays[2]


def emulated(a, b, split=BF16X6):
    """What the program computes, without the program: stages of 32 steps, the smallest products
    first, each by one instruction after the other."""
    k = a.shape[1]
    plan, depth = PLANS[split], 32 // split.dtype.itemsize
    extra = -k % STEP
    a, b = np.pad(a, ((0, 0), (0, extra))), np.pad(b, ((0, extra), (0, 0)))
    left, right = split_of(a.T, split), split_of(b, split)
    if split.transposed:
        left, right = left[:, : a.shape[0]], right[:, : b.shape[1]]
        names = {"rounded": left[0]}
    else:
        left, right = left[..., : a.shape[0]], np.swapaxes(right, 1, 2)[:, : b.shape[1]]
        high, middle, low, *_ = np.swapaxes(left, 1, 2)
        finite = np.where(np.isfinite(high.astype(np.float32)), high, high.dtype.type(0))
        names = {"high": high, "finite": finite, "middle": middle, "low": low}
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    with np.errstate(all="ignore"):
        for stage in range(0, k + extra, STEP):
            part = np.zeros_like(total) if plan.promotes else total
            for name, number in plan.products:
                for at in range(stage, stage + STEP, depth):
                    at = slice(at, at + depth)
                    part = multiply_add(names[name][:, at], right[number][:, at], part)
            total = total + part if plan.promotes else part
    return total


def multiply_adds(a, b):
    """The sum by float32 multiply-adds, one after the other."""
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for p in range(a.shape[1]):
        product = a[:, p, None].astype(np.float64) * b[p].astype(np.float64)
        total = (total + product).astype(np.float32)
    return total


def error(found, a, b):
    """Relative, in the Frobenius norm."""
    exact = a.astype(np.float64) @ b.astype(np.float64)
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


def tile(rows=64, columns=64, depth=2, consumers=1, cluster=1, staged=True):
    return HopperTile(rows, columns, depth, consumers, cluster, 8, staged)


SPLITS = pytest.mark.parametrize(
    "split", [BF16X6, BF16X6_ANY, TF32], ids=["bf16x6", "bf16x6 of any", "tf32"]
)


@SPLITS
@pytest.mark.parametrize(
    ("m", "n", "k", "shape"),
    [
        (64, 64, 32, tile()),
        (100, 64, 100, tile(depth=1)),
        (130, 72, 68, tile(128, 128, 3, 2, 2)),
        (65, 60, 36, tile(staged=False)),
        (64, 61, 164, tile(64, 128, staged=False)),
    ],
)
def test_products(split, m, n, k, shape):
    """Bit for bit what the plan says, whoever comes first."""
    case = Product(normal(0, m, k), normal(1, k, n), shape, split)
    for policy in POLICIES[:: 3 if m < 100 else 5]:
        np.testing.assert_array_equal(case.run(policy), case.expected)


@SPLITS
def test_blocks_of_a_cluster_share_a_sum(split):
    a, b = normal(0, 100, 164), normal(1, 164, 72)
    case = Product(a, b, HopperTile(64, 64, 2, 1, split=3), split)
    for policy in POLICIES[::4]:
        np.testing.assert_allclose(case.run(policy), case.expected, rtol=1e-5, atol=1e-5)


def _cancelling(seed, m, k, n):
    """Sums whose second half nearly takes back the first."""
    a, b = normal(seed, m, k), normal(seed + 1, k, n)
    a[:, k // 2 :] = -a[:, : k // 2]
    b[k // 2 :] = b[: k // 2] * (1 + 2.0**-12 * normal(seed + 2, k // 2, n))
    return a, b


def _wide(seed, *shape):
    exponents = np.random.default_rng(seed + 7).integers(-20, 21, shape)
    return np.ldexp(normal(seed, *shape), exponents)


OPERANDS = {
    "normal": lambda m, k, n: (normal(0, m, k), normal(1, k, n)),
    "uniform": lambda m, k, n: (
        np.random.default_rng(0).random((m, k), np.float32),
        np.random.default_rng(1).random((k, n), np.float32),
    ),
    "wide": lambda m, k, n: (_wide(0, m, k), _wide(1, k, n)),
    "cancelling": lambda m, k, n: _cancelling(0, m, k, n),
}


@pytest.mark.parametrize("k", [64, 128, 512, 2048, 16384])
@pytest.mark.parametrize("kind", OPERANDS)
def test_error_is_below_that_of_multiply_adds(kind, k):
    a, b = OPERANDS[kind](24, k, 16)
    found = error(emulated(a, b), a, b)
    # One or two terms make a short sum of a wide range: that is one rounding, or one cut.
    least = 2.0**-23 if kind == "wide" and k < 256 else 0
    assert found <= max(least, error(multiply_adds(a, b), a, b))
    if kind != "cancelling":
        assert found < 6e-7


def test_error_of_tf32():
    a, b = normal(0, 32, 1024), normal(1, 1024, 32)
    assert 1e-4 < error(emulated(a, b, TF32), a, b) < 3.2e-4


def test_infinities_and_nan():
    """As float32 multiply-adds have them, also where a lower part is 0 or of the other sign."""
    b = normal(1, 32, 64)
    b[0] = np.tile(np.float32([1, -1, 0, 1 + 2.0**-9, -1 - 2.0**-20, 1e38, 1e-20, 3]), 8)
    values = np.float32([np.inf, -np.inf, np.nan, 0, 2.0**127, 1e-30, 1])
    values.view(np.uint32)[3] = 0x7F800001  # a NaN that is an infinity when cut
    a = np.zeros((64, 32), np.float32)
    a[:, 0] = np.resize(values, 64)
    a[::2, 1] = 1.0
    with np.errstate(all="ignore"):
        wanted = multiply_adds(a, b)
    found = Product(a, b, tile()).run()
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-39)


def test_infinities_on_both_sides():
    a, b = normal(0, 64, 32), normal(1, 32, 64)
    for x in (a, b.T):
        x[:, 0] = np.resize(np.float32([np.inf, -np.inf, 0, 1, -1 - 2.0**-20, np.nan, 2]), 64)
    with np.errstate(all="ignore"):
        wanted = multiply_adds(a, b)
    np.testing.assert_allclose(
        Product(a, b, tile(), BF16X6_ANY).run(), wanted, rtol=1e-5, atol=1e-5
    )


def test_large_numbers_stay_finite():
    """Parts are cut, so none is larger than the number."""
    a, b = np.zeros((64, 32), np.float32), np.zeros((32, 64), np.float32)
    a[:, 3], b[3] = np.finfo(np.float32).max, np.linspace(-1, 1, 64)
    np.testing.assert_allclose(Product(a, b, tile()).run(), a @ b, rtol=1e-6)


@pytest.mark.parametrize(
    "kind",
    [op.Wait, op.Arrive, op.Advance, op.WgmmaFence, op.WgmmaCommit, op.WgmmaWait],
    ids=lambda kind: kind.__name__,
)
def test_left_out(kind):
    """Two tiles of three stages for one block: rings are used again."""
    case = Product(normal(0, 128, 96), normal(1, 96, 64), tile(), blocks=1)
    np.testing.assert_array_equal(case.run(), case.expected)
    for number, stmt in enumerate(occurrences(case.program)):
        if isinstance(stmt, kind):
            assert is_missed(case, changed(case.program, number, lambda _: Seq(()))), stmt


def test_readers_of_a_stage_meet_before_it_is_freed():
    case = Product(normal(0, 64, 96), normal(1, 96, 64), tile(staged=False), blocks=1)
    (number,) = (
        i for i, s in enumerate(occurrences(case.program)) if isinstance(s, op.NamedBarrier)
    )
    assert is_missed(case, changed(case.program, number, lambda _: Seq(())))


@pytest.mark.parametrize(
    ("split", "shape"),
    [
        (BF16X6, tile(128, 128, 4, 2)), (BF16X6, tile(64, 128, 6)), (BF16X6, tile(128, 64, 6, 2)),
        (BF16X6_ANY, tile(128, 128, 4, 2)), (BF16X6, tile(128, 128, 4, 2, 2, False)),
        (TF32, tile(128, 256, 4, 2, 2)), (TF32, tile(64, 256, 5)),
    ],
    ids=str,
)  # fmt: skip
def test_compiles(split, shape):
    try:
        library()
    except TinycompError as missing:
        pytest.skip(str(missing))
    cubin = compile_cuda(emit_cuda(program(4000, 4008, 4096, shape, split, 132)).source, "sm_90a")
    used = cubin.kernels["product"]
    assert (used.spill_stores, used.spill_loads, used.stack) == (0, 0, 0)
    assert not re.search(r"C7\d\d\d", cubin.log)


@pytest.mark.parametrize(("split", "band"), [(BF16X6, 1e-5), (TF32, 2e-2)], ids=["bf16x6", "tf32"])
def test_without_a_tile_program(split, band):
    """Too few rows for wgmma: parts are added as they are copied."""
    a, b = normal(0, 16, 64), normal(1, 64, 40)
    parts, attrs = split_of(b, split), MatmulPartsAttrs(split.name, True, 64, 40)
    func = kit.kernel(
        lambda builder, x, p: builder.call("nn.matmul_parts", x, p, attrs=attrs),
        (a.shape, "float32"), (parts.shape, str(split.dtype)),
    )  # fmt: skip
    out = np.full((16, 40), np.nan, np.float32)
    run(func, [a, parts, out])
    np.testing.assert_allclose(out, a @ b, atol=band)


@pytest.mark.parametrize(
    ("precision", "sizes", "wanted"),
    [
        ("fp32", (4096, 4096, 4096), "bf16x6"),
        ("fp32", (128, 768, 3072), "bf16x6"),
        ("fp32", (64, 64, 64), None),  # a launch's overhead counts more
        ("fp32", (16, 4096, 4096), None),  # fewer rows than half of a wgmma
        ("fp32", (4096, 4096, 4095), None),  # rows are no whole 16 bytes
        ("fp32_strict", (4096, 4096, 4096), None),
        ("tf32", (4096, 4096, 4096), "tf32"),
        ("tf32", (64, 64, 64), None),  # mma.sync
    ],
)
def test_choice(precision, sizes, wanted):
    assert choose_split(precision, *sizes, True, target=HOPPER) == wanted
    assert choose_split(precision, *sizes, True, target=Target.parse("cuda -arch=sm_80")) is None


def test_choice_for_operands_that_are_not_constant():
    """Splitting takes a launch; tf32 would need them transposed."""
    assert choose_split("fp32", 4096, 4096, 4096, False, target=HOPPER) == "bf16x6"
    assert choose_split("fp32", 36, 1024, 256, True, target=HOPPER) == "bf16x6"
    assert choose_split("fp32", 36, 1024, 256, False, target=HOPPER) is None
    assert choose_split("tf32", 4096, 4096, 4096, False, target=HOPPER) is None


def test_tiles():
    def chosen(split, m, n, k):
        return choose_hopper_tile(Task(1, m, n, 2 * k, 4, b_split=split))

    assert chosen(BF16X6, 8192, 8192, 8192) == tile(128, 128, 4, 2)
    assert chosen(TF32, 8192, 8192, 8192) == tile(128, 256, 4, 2, 2)
    assert chosen(BF16X6, 64, 64, 64).rows == 64
    assert chosen(BF16X6, 128, 768, 3072).split > 1  # blocks of a cluster share a long sum
