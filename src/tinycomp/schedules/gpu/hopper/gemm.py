"""Products and convolutions with 16-bit operands on Hopper: which become a tile program, and of
what shape.

The epilogue, everything that is fused behind the product, is computed on the accumulators. A
convolution in NHWC is the product of the windows of its images, which TMA finds by itself, and its
weights, packed as [output channel, tap, channel]. One in NCHW is the product of its weights and the
windows: those of a pointwise one are a matrix in memory, the others are gathered by warpgroups
beside those that multiply.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .... import te
from ....dtype import DType
from ....ir.expr import Call, Expr, Load, Var, all_of, as_int, const, substitute
from ....ir.node import rewrite
from ....ops.operand_parts import Split, split_of
from ....relay.nodes import Call as RelayCall
from ....relay.nodes import Function
from ....relay.op import Op
from ....target import Target
from ....te.simplify import Analyzer
from ....te.tensor import ComputeOp, PlaceholderOp, Tensor, is_reduction, topological
from ....tir.lower_gpu import lower_gpu
from ....tir.nodes import Alloc, Buffer, PrimFunc, Store
from ....tir.passes.visit import seq
from ....tir.schedule import create_schedule
from ....tir.tile.layout import Major
from ....tir.tile.nodes import TileProgram
from ....types import TensorType
from ...common import Kernel
from ...to_te import to_te
from ..bind import bind_unbound
from ..elementwise import schedule_elementwise
from ..products.split_k import choose_slices
from .operands import Epilogue, Gathered, HopperTile, Operands, Windows
from .parts import parts_program
from .program import gemm_program
from .tiles import BLOCKS, CLOCK, Task, choose_hopper_tile, estimated_seconds

ARCH = "sm_90a"
MIN_ROWS = 33  # more than half of one wgmma
_MANY_PIXELS = 1024  # of an image: tiles of columns fit without much waste
_DTYPES = (DType.FLOAT16, DType.BFLOAT16)


def build_hopper_product(function: Function, target: Target, name: str) -> PrimFunc | None:
    """The kernel of a function around one product (of matrices, of bytes, or a convolution) as a
    tile program.

    None where this recipe does not apply: another machine, operands of other dtypes or that are
    computed in the kernel, fewer than 33 rows (pixels in NHWC, channels in NCHW), rows that are
    not multiples of 16 bytes (which TMA needs), groups, or an epilogue that reduces or moves
    elements.
    """
    if target.arch != ARCH or not isinstance(function.ret_type, TensorType):
        return None
    product = _Product(function)
    found = product.find()
    if found is None:
        return None
    operands, epilogue, params = found
    slices = _slices(operands, epilogue)
    if slices > 1:
        return _in_slices(product, operands, slices, target, name)
    return PrimFunc(name, params, 1, _program(name, operands, epilogue))


def _program(name: str, operands: Operands, epilogue: Epilogue) -> TileProgram:
    make = gemm_program if operands.b_split is None else parts_program
    return make(name, operands, epilogue, _tile(operands, epilogue), BLOCKS)


def _tile(operands: Operands, epilogue: Epilogue) -> HopperTile:
    itemsize = epilogue.out.dtype.itemsize
    staged = not epilogue.scattered and operands.n * itemsize % 16 == 0 and itemsize > 1
    task = replace(_task(operands, epilogue), itemsize=itemsize, staged=staged)
    return choose_hopper_tile(task)


def _task(operands: Operands, epilogue: Epilogue) -> Task:
    """The product, each slice of its sum as one of its own; results in float32."""
    pairs = operands.length * operands.dtype.itemsize / 2  # of bytes
    return Task(
        operands.batch * operands.slices, operands.m, operands.n,
        math.ceil(pairs / operands.slices), 4, True, isinstance(operands.b, Gathered),
        operands.b_major is Major.K, not epilogue.scattered, operands.b_split,
    )  # fmt: skip


def _slices(operands: Operands, epilogue: Epilogue) -> int:
    """How many parts of the sum blocks compute on their own; 1: none."""
    whole = _task(operands, epilogue)
    if operands.sum is not DType.FLOAT32:
        return 1

    def cycles(batch: int, m: int, n: int, k: int) -> float:
        task = replace(whole, batch=batch, k=k * operands.dtype.itemsize // 2)
        return estimated_seconds(choose_hopper_tile(task), task) * CLOCK

    return choose_slices((operands.batch, operands.m, operands.n, operands.length), cycles)


def _in_slices(
    product: _Product, operands: Operands, slices: int, target: Target, name: str
) -> PrimFunc:
    """Two launches: slices of the sum to memory, then their sum in a fixed order, with what is
    fused behind it."""
    inputs, outputs, partial = product.summed(slices)
    kernel = Kernel(create_schedule(outputs, [*inputs, partial], name), outputs, target)
    total = lower_gpu(bind_unbound(schedule_elementwise(kernel).schedule.func))
    *params, space, out = total.params
    a, b = (next(p for p in params if p.name == t.name) for t in product.operands or ())
    a, b = product.sources(a, b)
    operands = replace(operands, a=a, b=b, slices=slices)
    result, i, j, acc = Var("result"), Var("i"), Var("j"), Var("acc", DType.FLOAT32)
    indices = (result // slices, result % slices, i, j)
    epilogue = Epilogue(space, indices, acc, result, i, j, acc)
    program = _program(f"{name}_slices", operands, epilogue)
    return PrimFunc(name, (*params, out), 1, Alloc(space, seq((program, total.body))))


class _Product:
    """The product and the epilogue of a primitive function.

    `expand_*` replace the operator by a read of the product, which becomes an input of the rest.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.computes = {
            "nn.matmul": self.expand_matmul,
            "nn.matmul_bytes": self.expand_matmul_bytes,
            "nn.matmul_parts": self.expand_matmul_parts,
            "nn.conv2d": self.expand_conv2d,
        }
        self.sum = DType.FLOAT32
        self.product: Tensor | None = None
        self.source: Tensor | None = None  # what is read in place of a product
        self.operands: tuple[Tensor, Tensor] | None = None
        self.sizes = (0, 0, 0, 0)
        self.a_batches = self.b_batches = True
        self.images = 0  # whose pixels are the columns, one image after the other; 0: no merging
        self.gather: Callable[[Buffer, Expr, Expr, Expr], Expr] | None = None
        self.windows: Callable[[Buffer], Windows] | None = None
        self.b_major = Major.MN
        self.b_split: Split | None = None

    def find(self) -> tuple[Operands, Epilogue, tuple[Buffer, ...]] | None:
        products = [
            b.value
            for b in self.function.bindings
            if isinstance(b.value, RelayCall)
            and isinstance(b.value.op, Op)
            and b.value.op.name in self.computes
        ]
        if len(products) != 1:
            return None
        inputs, outputs = to_te(self.function, self.computes)
        if self.product is None or self.operands is None or len(outputs) != 1:
            return None
        stages = [op for op in topological(outputs) if isinstance(op, ComputeOp)]
        if any(is_reduction(op) for op in stages) or self.product.op not in topological(outputs):
            return None
        return self._epilogue(inputs, outputs[0], stages)

    def summed(self, slices: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Inputs and outputs where the product is a sum of slices, and the tensor of these."""
        batch, m, n, _ = self.sizes
        partial = te.placeholder((batch, slices, m, n), DType.FLOAT32, "partial")

        def total(b: Any, i: Any, j: Any) -> Any:
            value = partial(b, 0, i, j)
            for s in range(1, slices):
                value = value + partial(b, s, i, j)
            return value

        self.source = te.compute((batch, m, n), total, name="total")
        inputs, outputs = to_te(self.function, self.computes)
        return inputs, outputs, partial

    def sources(self, a: Buffer, b: Buffer) -> tuple[Buffer | Windows, Buffer | Gathered]:
        """The operands that these buffers hold."""
        left = a if self.windows is None else self.windows(a)
        return left, b if self.gather is None else self._gathered(self.gather, b)

    def _gathered(self, gather: Callable[[Buffer, Expr, Expr, Expr], Expr], x: Buffer) -> Gathered:
        """The windows of the image `x`."""
        n = self.sizes[2]
        b, k, j = Var("b"), Var("k"), Var("j")
        image = (j // (n // self.images), j % (n // self.images)) if self.images else (b, j)
        return Gathered(gather(x, k, *image), b, k, j)

    def _takes(self, args: Sequence[Tensor], m: int, k: int) -> bool:
        inputs = all(isinstance(t.op, PlaceholderOp) for t in args)
        return inputs and args[0].dtype in _DTYPES and m >= MIN_ROWS and k % 8 == 0 and k > 0

    def expand_matmul(
        self, attrs: Any, args: Sequence[Tensor], out: TensorType
    ) -> list[Tensor] | None:
        """A[batch, m, k] B[batch, k, n]; all rows are one product where B is one matrix."""
        a, b = args
        *batch, m, n = out.static_shape
        k, count = as_int(a.shape[-1]), math.prod(batch)
        a_count, b_count = (math.prod(map(as_int, t.shape[:-2])) for t in args)
        if b_count == 1:
            m, count = a_count * m, 1
        elif a_count not in (1, count) or b_count != count:
            return None
        if not self._takes(args, m, k) or n % 8 or count * n == 0:
            return None
        self.operands, self.sizes = (a, b), (count, m, n, k)
        self.a_batches, self.b_batches = a_count == count, b_count == count
        return self._read(out)

    def expand_matmul_bytes(
        self, attrs: Any, args: Sequence[Tensor], out: TensorType
    ) -> list[Tensor] | None:
        """A[m, k] of uint8 times B[k, n] of int8, packed as [n, k]."""
        a, b = args
        m, k = (as_int(d) for d in a.shape)
        inputs = all(isinstance(t.op, PlaceholderOp) for t in args)
        if not inputs or m < MIN_ROWS or k % 16 or attrs.tile[1] != 1 or not k * attrs.n:
            return None
        self.operands, self.sizes = (a, b), (1, m, attrs.n, k)
        self.b_major, self.sum = Major.K, DType.INT32
        return self._read(out)

    def expand_matmul_parts(
        self, attrs: Any, args: Sequence[Tensor], out: TensorType
    ) -> list[Tensor] | None:
        """A[m, k] in float32 times the operand [k, n] that was split."""
        *batch, m, n = out.static_shape
        m *= math.prod(batch)
        inputs = all(isinstance(t.op, PlaceholderOp) for t in args)
        if not inputs or m < MIN_ROWS or attrs.k % 4 or not attrs.k * n:
            return None
        self.operands, self.sizes = (args[0], args[1]), (1, m, n, attrs.k)
        self.b_split = split_of(attrs)
        return self._read(out)

    def expand_conv2d(
        self, attrs: Any, args: Sequence[Tensor], out: TensorType
    ) -> list[Tensor] | None:
        """W[channels, window] times the windows of each image, or of all images side by side; in
        NHWC, the windows of all images times W[window, channels]."""
        x, w = args
        if attrs.data_layout == "NHWC":
            return self._channels_last(attrs, x, w, out)
        images, m, height, width = out.static_shape
        o, *window = (as_int(d) for d in w.shape)
        pixels, k = height * width, math.prod(window)
        plain = attrs.data_layout == "NCHW" and attrs.kernel_layout == "OIHW" and attrs.groups == 1
        if not plain or not self._takes(args, o, k) or images * pixels == 0:
            return None
        pointwise = is_pointwise(replace(attrs, kernel_size=tuple(window[1:])))
        self.operands, self.a_batches = (w, x), images == 1
        if pointwise and pixels % 8 == 0:
            self.sizes = (images, m, pixels, k)
            return self._read(out)
        self.gather = functools.partial(_window, attrs, window[1:], (height, width))
        if pixels % 8 == 0 and pixels >= _MANY_PIXELS:
            self.sizes = (images, m, pixels, k)
        else:
            self.images, self.a_batches = images, True
            self.sizes = (1, m, images * pixels, k)
        return self._read(out)

    def _channels_last(
        self, attrs: Any, x: Tensor, w: Tensor, out: TensorType
    ) -> list[Tensor] | None:
        images, height, width, o = out.static_shape
        if not takes_channels_last(attrs, out, as_int(x.shape[3])):
            return None
        taps, m = math.prod(attrs.kernel_size), images * height * width
        if attrs.kernel_layout != "packed" or attrs.tile[2] != 1:
            return None
        self.sizes, self.b_major = (1, m, o, taps * as_int(x.shape[3])), Major.K
        if not self._takes((x, w), m, self.sizes[3]):
            return None
        self.operands = (x, w)
        if not is_pointwise(attrs):
            self.windows = lambda image: Windows(
                image, (height, width), attrs.kernel_size, attrs.strides, attrs.dilation,
                attrs.padding,
            )  # fmt: skip
        return self._read(out)

    def _read(self, out: TensorType) -> list[Tensor]:
        """The operator's result as reads of the product."""
        batch, m, n, _ = self.sizes
        product = self.source
        if product is None:
            product = self.product = te.placeholder((batch, m, n), self.sum, "product")
        pixels = n // max(1, self.images)

        def read(*index: Any) -> Any:
            flat: Any = te.const(0)
            for i, extent in zip(index, out.static_shape, strict=True):
                flat = flat * extent + i
            if self.images:
                column = flat // (m * pixels) * pixels + flat % pixels
                return product(0, flat // pixels % m, column).astype(out.dtype)
            return product(flat // (m * n), flat // n % m, flat % n).astype(out.dtype)

        return [te.compute(out.shape, read, name="product_read")]

    def _element(self, b: Expr, i: Expr, j: Expr) -> Expr:
        """The number of the output's element that (b, i, j) of the product becomes."""
        _, m, n, _ = self.sizes
        if self.images:
            pixels = n // self.images
            return (j // pixels * m + i) * pixels + j % pixels
        return (b * m + i) * n + j

    def _epilogue(
        self, inputs: list[Tensor], out: Tensor, stages: list[ComputeOp]
    ) -> tuple[Operands, Epilogue, tuple[Buffer, ...]] | None:
        assert self.product is not None
        assert self.operands is not None
        batch, m, n, k = self.sizes
        if math.prod(map(as_int, out.shape)) != batch * m * n:
            return None
        schedule = create_schedule([out], [*inputs, self.product], "epilogue")
        for op in stages:
            if op is not out.op:
                schedule[op.output(0)].compute_inline()
        *params, product, result = schedule.func.params
        block = schedule[out].block
        store = block.body
        if not isinstance(store, Store):
            return None
        b, i, j, acc = Var("b"), Var("i"), Var("j"), Var("acc", self.sum)
        analyzer = Analyzer()
        for var, extent in ((b, batch), (i, m), (j, n)):
            analyzer.bind(var, 0, extent)
        element = (b if batch > 1 else const(0), i, j)
        place = _unravel(self._element(*element), [as_int(d) for d in out.shape], analyzer)
        known = {v.var: at for v, at in zip(block.iter_vars, place, strict=True)}
        value = _on_accumulator(substitute(store.value, known), product, element, acc, analyzer)
        if value is None:
            return None
        by_name = {p.name: p for p in params}
        a_buffer, b_buffer = (by_name[t.name] for t in self.operands)
        operands = Operands(
            *self.sources(a_buffer, b_buffer), batch, m, n, k, self.b_major, self.a_batches,
            self.b_batches, b_split=self.b_split,
        )  # fmt: skip
        epilogue = Epilogue(result, tuple(place), value, b, i, j, acc, bool(self.images))
        return operands, epilogue, (*params, result)


def takes_channels_last(attrs: Any, out: TensorType, channels: int) -> bool:
    """Whether a convolution in NHWC becomes a tile program: no groups, rows of whole 16 bytes, and
    windows, strides and padding that fit a tensor map (PTX ISA, "im2col mode").

    Args:
        out: what it gives; `channels` is what it takes.
    """
    *pixels, outputs = out.static_shape
    top, left, bottom, right = attrs.padding
    reach = ((k - 1) * d for k, d in zip(attrs.kernel_size, attrs.dilation, strict=True))
    corners = (top, left, *(r - p for r, p in zip(reach, (bottom, right), strict=True)))
    return (
        out.dtype in _DTYPES
        and math.prod(pixels) >= MIN_ROWS
        and attrs.groups == 1
        and channels % 8 == outputs % 8 == 0
        and max(attrs.strides) <= 8
        and all(-128 < c <= 128 for c in corners)
    )


def is_pointwise(attrs: Any) -> bool:
    """Whether the windows of a convolution in NHWC are the image as it lies in memory."""
    return (*attrs.kernel_size, *attrs.strides) == (1, 1, 1, 1) and not any(attrs.padding)


def _window(
    attrs: Any, kernel: Sequence[int], size: tuple[int, int],
    x: Buffer, k: Expr, image: Expr, pixel: Expr,
) -> Expr:  # fmt: skip
    """Element `k` of the window of an output pixel; 0 outside of the image."""
    (kh, kw), (_, width) = kernel, size
    top, left, bottom, right = attrs.padding
    h = pixel // width * attrs.strides[0] + k // kw % kh * attrs.dilation[0] - top
    v = pixel % width * attrs.strides[1] + k % kw * attrs.dilation[1] - left
    edges = [h >= 0] * (top > 0) + [h < x.shape[2]] * (top + bottom > 0)
    edges += [v >= 0] * (left > 0) + [v < x.shape[3]] * (left + right > 0)
    return Load(x, (image, k // (kh * kw), h, v), all_of(edges) if edges else None)


def _unravel(flat: Expr, shape: list[int], analyzer: Analyzer) -> list[Expr]:
    index: list[Expr] = []
    stride = 1
    for extent in reversed(shape):
        index.insert(0, analyzer.simplify(flat // stride % extent))
        stride *= extent
    return index


def _on_accumulator(
    value: Expr, product: Buffer, place: tuple[Expr, ...], acc: Var, analyzer: Analyzer
) -> Expr | None:
    """`value` with the variable `acc` for its reads of the product; None if one of these is of
    another element than `place`, or an index is computed from data."""
    moved = False

    def replace_read(node: Any) -> Any:
        nonlocal moved
        if isinstance(node, Call) and node.name == "checked_index":
            moved = True
        if not isinstance(node, Load) or node.source is not product:
            return node
        found = tuple(analyzer.simplify(i) for i in node.indices)
        expected = tuple(analyzer.simplify(v) for v in place)
        moved = moved or found != expected
        return acc

    result = rewrite(value, replace_read)
    return None if moved else result
