"""Convolutions of NHWC images as tile programs, on small integers: exact."""

from __future__ import annotations

import numpy as np

from tinycomp.dtype import DType
from tinycomp.ir.expr import Var, const
from tinycomp.schedules.gpu.hopper.operands import Epilogue, Operands, Windows
from tinycomp.schedules.gpu.hopper.program import gemm_program
from tinycomp.schedules.gpu.hopper.tiles import BLOCKS, Task, choose_hopper_tile
from tinycomp.tir.nodes import Buffer, PrimFunc
from tinycomp.tir.tile.layout import Major

# images, height, width, channels, outputs, kernel, stride, dilation, padding before and after
WINDOWS = (
    (2, 13, 11, 72, 64, 3, 1, 1, 1, 1),
    (1, 20, 17, 16, 40, 3, 2, 1, 1, 1),
    (1, 9, 10, 8, 72, 3, 1, 2, 3, 2),
    (3, 9, 9, 64, 128, 1, 2, 1, 0, 0),
    (2, 12, 10, 24, 64, 2, 3, 1, 0, 1),
)


def windows_product(
    n: int, h: int, w: int, c: int, o: int, kernel: int, stride: int, dilation: int, before: int,
    after: int,
) -> tuple[PrimFunc, list[np.ndarray], np.ndarray]:  # fmt: skip
    """A convolution, its arrays with an empty result, and what it should be."""
    reach = (kernel - 1) * dilation
    height, width = ((x + before + after - reach - 1) // stride + 1 for x in (h, w))
    dtype, m, k = DType.BFLOAT16, n * height * width, kernel * kernel * c
    image = Buffer("image", tuple(map(const, (n, h, w, c))), dtype)
    weights = Buffer("weights", (const(o), const(k)), dtype)
    out = Buffer("out", (const(m), const(o)), DType.FLOAT32)
    source = Windows(
        image, (height, width), (kernel,) * 2, (stride,) * 2, (dilation,) * 2,
        (before, before, after, after),
    )  # fmt: skip
    operands = Operands(source, weights, 1, m, o, k, Major.K)
    b, i, j, acc = Var("b"), Var("i"), Var("j"), Var("acc", DType.FLOAT32)
    epilogue = Epilogue(out, (i, j), acc, b, i, j, acc)
    tile = choose_hopper_tile(Task(1, m, o, operands.length, 4, narrow=True))
    program = gemm_program("windows", operands, epilogue, tile, BLOCKS)
    func = PrimFunc("windows", (image, weights, out), 1, program)
    rng = np.random.default_rng(m + k)
    x = rng.integers(-4, 5, (n, h, w, c)).astype(dtype.numpy)
    f = rng.integers(-4, 5, (o, kernel, kernel, c)).astype(dtype.numpy)
    result = np.zeros((m, o), np.float32)
    padded = np.pad(x.astype("f4"), [(0, 0), (before, after), (before, after), (0, 0)])
    wanted = sum(
        padded[
            :, r * dilation : r * dilation + (height - 1) * stride + 1 : stride,
            s * dilation : s * dilation + (width - 1) * stride + 1 : stride,
        ].reshape(m, c)
        @ f[:, r, s].astype("f4").T
        for r in range(kernel)
        for s in range(kernel)
    )  # fmt: skip
    return func, [x, f.reshape(o, k), result], np.asarray(wanted)
