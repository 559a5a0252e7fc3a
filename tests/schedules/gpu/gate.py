"""Kernels that stand for all kinds of GPU kernels, and what their machine code may use.

`gate.json` holds the registers of each, as recorded by

    python -m tests.schedules.gpu.gate

which is run again when schedules or code generation change on purpose; the difference of the file
is then part of the review.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.codegen.cuda.nvrtc import Cubin, compile_cuda
from tinycomp.ops.conv import Conv2dAttrs
from tinycomp.ops.cumulative import CumulativeAttrs
from tinycomp.ops.fused_attention import AttentionAttrs
from tinycomp.ops.index import AxisAttrs
from tinycomp.ops.matmul import MatmulAttrs
from tinycomp.ops.norm import LayerNormAttrs
from tinycomp.ops.operand_parts import SPLITS, MatmulPartsAttrs, SplitOperandAttrs
from tinycomp.ops.pool import Pool2dAttrs
from tinycomp.ops.reduce import ArgReduceAttrs, ReduceAttrs
from tinycomp.ops.resize import ResizeAttrs
from tinycomp.ops.sampling import GridSampleAttrs, RoiAlignAttrs
from tinycomp.ops.scatter import ScatterElementsAttrs, ScatterNdAttrs
from tinycomp.ops.shape import ConcatenateAttrs, TransposeAttrs
from tinycomp.ops.softmax import SoftmaxAttrs
from tinycomp.ops.topk import TopkAttrs

from . import kit

RECORDS = Path(__file__).with_name("gate.json")
Case = tuple[Callable[..., Any], tuple[Any, ...]]
F, H = "float32", "float16"


def one(op: str, attrs: Any = None) -> Callable[..., Any]:
    """One operator."""
    return lambda b, *args: b.call(op, *args, **({} if attrs is None else {"attrs": attrs}))


def chain(*ops: str) -> Callable[..., Any]:
    """Operators of one operand, one after the other."""

    def make(b: Any, x: Any) -> Any:
        for op in ops:
            x = b.call(op, x)
        return x

    return make


def _elementwise() -> dict[str, Case]:
    gelu = chain("tanh", "exp", "sigmoid", "erf", "sqrt")
    return {
        "add 64M": (one("add"), (((8192, 8192), F), ((8192, 8192), F))),
        "add small": (one("add"), (((128, 768), F), ((768,), F))),
        "add f16": (one("add"), (((8192, 8192), H), ((8192, 8192), H))),
        "add odd rows": (one("add"), (((8192, 1023), F), ((1023,), F))),
        "functions": (gelu, (((4096, 4096), F),)),
        "functions f16": (gelu, (((4096, 4096), H),)),
        "where": (one("where"), (((2048, 2048), "bool"), ((2048, 2048), F), ((2048, 2048), F))),
        "int8": (one("add"), (((4096, 4096), "int8"), ((4096, 4096), "int8"))),
        "float64": (chain("exp"), (((1024, 1024), "float64"),)),
        "transpose": (one("transpose", TransposeAttrs((1, 0))), (((4096, 4096), F),)),
        "transpose f16": (one("transpose", TransposeAttrs((1, 0))), (((4096, 4096), H),)),
        "transpose f64": (one("transpose", TransposeAttrs((1, 0))), (((999, 1000), "float64"),)),
        "image to planes": (
            one("transpose", TransposeAttrs((0, 3, 1, 2))), (((1, 224, 224, 3), F),),
        ),
        "heads": (one("transpose", TransposeAttrs((0, 2, 1, 3))), (((1, 128, 12, 64), F),)),
        "concatenate": (one("concatenate", ConcatenateAttrs(1)), (((8, 64, 56, 56), F),) * 3),
        "resize": (
            one("image.resize", ResizeAttrs((2, 3), (112, 112), (2.0, 2.0), "linear")),
            (((1, 64, 56, 56), F),),
        ),
        "take": (one("take", AxisAttrs(0)), (((30522, 768), F), ((1, 128), "int64"))),
        "gather": (one("gather", AxisAttrs(1)), (((64, 1000), F), ((64, 10), "int64"))),
    }  # fmt: skip


def _rows() -> dict[str, Case]:
    softmax = one("nn.softmax")
    cases: dict[str, Case] = {
        f"softmax {n}x{length}": (softmax, (((n, length), F),))
        for n, length in (
            (4096, 10), (8192, 64), (8192, 768), (128, 768), (2048, 4096), (64, 16384),
            (64, 32768), (64, 50000), (64, 131072), (8, 262144), (8, 800000), (1, 1 << 20),
            (4096, 1031), (1 << 20, 4), (1 << 20, 3),
        )
    }  # fmt: skip
    cases |= {
        "softmax f16": (softmax, (((8192, 1024), H),)),
        "log_softmax": (one("nn.log_softmax"), (((64, 30522), F),)),
    }
    cases |= {
        f"softmax over axis {axis} of {'x'.join(map(str, shape))} {dtype}": (
            one("nn.softmax", SoftmaxAttrs(axis)), ((shape, dtype),),
        )
        for shape, axis, dtype in (
            ((8, 64, 128, 128), 1, F), ((8, 64, 128, 128), 1, H), ((1, 21, 512, 512), 1, F),
            ((2, 1280, 64, 64), 1, F), ((4, 16, 4, 8400), 1, F), ((32, 1000, 7, 7), 1, F),
        )
    }  # fmt: skip
    layer_norm = one("nn.layer_norm", LayerNormAttrs())
    for count, length, dtype in (
        (128, 768, F),
        (8192, 1024, F),
        (8192, 4096, H),
        (8, 16384, F),
        (4, 131072, F),
    ):
        inputs = ((count, length), dtype), ((length,), dtype), ((length,), dtype)
        cases[f"layer_norm {count}x{length} {dtype}"] = (layer_norm, inputs)
    return cases


def variance(*axes: int) -> Callable[..., Any]:
    """The variance over some axes."""

    def make(b: Any, x: Any) -> Any:
        centred = b.call("subtract", x, b.call("mean", x, attrs=ReduceAttrs(axes, True)))
        return b.call("mean", b.call("multiply", centred, centred), attrs=ReduceAttrs(axes))

    return make


def _reductions() -> dict[str, Case]:
    def reduced(op: str, *axes: int) -> Callable[..., Any]:
        return one(op, ReduceAttrs(axes))

    return {
        "sum of all": (reduced("sum", 0, 1), (((8192, 8192), F),)),
        "sum of columns": (reduced("sum", 0), (((65536, 128), F),)),
        "max of rows": (reduced("max", 1), (((8192, 4096), F),)),
        "mean of planes": (reduced("mean", 2, 3), (((8, 2048, 7, 7), F),)),
        "sum of batches": (reduced("sum", 0, 2, 3), (((32, 64, 112, 112), F),)),
        "sum of short rows": (reduced("sum", 1), (((1 << 20, 4), F),)),
        "variance of channels": (variance(1), (((64, 64, 56, 56), F),)),
        "variance of planes": (variance(2, 3), (((64, 64, 56, 56), F),)),
        "mean of tokens": (reduced("mean", 1), (((64, 49, 768), F),)),
        "argmax of rows": (one("argmax", ArgReduceAttrs(1)), (((64, 50257), F),)),
        "argmax of columns": (one("argmax", ArgReduceAttrs(1)), (((1, 21, 128, 128), F),)),
        "cumsum": (one("cumsum", CumulativeAttrs(1)), (((64, 512), F),)),
        "cumsum long": (one("cumsum", CumulativeAttrs(1)), (((2, 1 << 20), F),)),
        "cumsum columns": (one("cumsum", CumulativeAttrs(0)), (((65536, 64), F),)),
        "grid sample": (
            one("image.grid_sample", GridSampleAttrs()),
            (((4, 32, 128, 128), F), ((4, 128, 128, 2), F)),
        ),
        "roi align": (
            one("image.roi_align", RoiAlignAttrs((7, 7), 2, 0.25)),
            (((2, 256, 50, 68), F), ((100, 4), F), ((100,), "int64")),
        ),
        "scatter sorted": (
            one("scatter_elements", ScatterElementsAttrs(0, "add")),
            (((1 << 20,), F), ((4096,), "int64"), ((4096,), F)),
        ),
        "scatter slices": (
            one("scatter_nd", ScatterNdAttrs()),
            (((4096, 8, 128), F), ((4, 1), "int64"), ((4, 8, 128), F)),
        ),
        "topk": (one("topk", TopkAttrs(5, 1)), (((64, 1000), F),)),
        "topk of tiles": (one("topk", TopkAttrs(50, 1)), (((32, 50257), F),)),
        "sort": (one("topk", TopkAttrs(1 << 14, 0)), (((1 << 14,), F),)),
        "sort of int64": (one("topk", TopkAttrs(1 << 13, 0)), (((1 << 13,), "int64"),)),
    }


def _windows() -> dict[str, Case]:
    def conv(
        image: tuple[int, ...], weights: tuple[int, ...], dtype: str = F, **attrs: Any
    ) -> Case:
        return one("nn.conv2d", Conv2dAttrs(**attrs)), ((image, dtype), (weights, dtype))

    def pool(op: str, size: int, stride: int, pad: int) -> Callable[..., Any]:
        return one(op, Pool2dAttrs((size, size), (stride, stride), (pad,) * 4))

    same = {"padding": (1, 1, 1, 1)}
    return {
        "conv stem": conv((1, 3, 224, 224), (64, 3, 7, 7), strides=(2, 2), padding=(3, 3, 3, 3)),
        "conv 3x3": conv((1, 64, 56, 56), (64, 64, 3, 3), **same),
        "conv 3x3 batch": conv((32, 256, 14, 14), (256, 256, 3, 3), **same),
        "conv 1x1": conv((1, 256, 56, 56), (64, 256, 1, 1)),
        "conv 3x3 f16": conv((8, 64, 56, 56), (64, 64, 3, 3), H, **same),
        "depthwise 3x3": conv((1, 144, 56, 56), (144, 1, 3, 3), groups=144, **same),
        "depthwise 7x7": conv((1, 96, 56, 56), (96, 1, 7, 7), groups=96, padding=(3, 3, 3, 3)),
        "depthwise stride 2": conv(
            (1, 96, 112, 112), (96, 1, 3, 3), groups=96, strides=(2, 2), **same
        ),
        "conv of few channels": conv((1, 16, 64, 64), (2, 16, 3, 3), **same),
        "max_pool": (pool("nn.max_pool2d", 3, 2, 1), (((1, 64, 112, 112), F),)),
        "avg_pool": (pool("nn.avg_pool2d", 2, 2, 0), (((1, 64, 112, 112), F),)),
    }  # fmt: skip


def _products() -> dict[str, Case]:
    def matmul(a: tuple[int, ...], b: tuple[int, ...], dtype: str = F) -> Case:
        return one("nn.matmul", MatmulAttrs()), ((a, dtype), (b, dtype))

    def parts(split: str, m: int, n: int, k: int) -> Case:
        b = SPLITS[split, True].shape(1, k, n), str(SPLITS[split, True].dtype)
        return one("nn.matmul_parts", MatmulPartsAttrs(split, True, k, n)), (((m, k), F), b)

    return {
        "matmul 1024": matmul((1024, 1024), (1024, 1024)),
        "matmul bert": matmul((1, 128, 768), (768, 3072)),
        "matmul odd": matmul((100, 77), (77, 50)),
        "matmul batches": matmul((12, 128, 64), (12, 64, 128)),
        "matvec": matmul((1, 1280), (1280, 1000)),
        "matmul f16": matmul((1024, 1024), (1024, 1024), H),
        "matmul bf16": matmul((512, 1024), (1024, 512), "bfloat16"),
        "matmul long sum bf16": matmul((128, 3072), (3072, 768), "bfloat16"),
        "matmul bf16x6": parts("bf16x6", 4096, 4096, 4096),
        "matmul bf16x6 of few rows": parts("bf16x6", 128, 768, 3072),
        "split operand": (
            one("nn.split_operand", SplitOperandAttrs("bf16x6", False)),
            (((4096, 4096), F),),
        ),
        "matmul tf32": parts("tf32", 4096, 4096, 4096),
        "matmul f64": matmul((256, 256), (256, 256), "float64"),
    }


def _attention() -> dict[str, Case]:
    def attention(
        q: tuple[int, ...], keys: int, v_depth: int = 0, causal: int | None = None,
        mask: tuple[int, ...] = (), dtype: str = "bfloat16", kv_heads: int = 0,
    ) -> Case:  # fmt: skip
        batch, heads, _, depth = q
        k = (batch, kv_heads or heads, keys, depth)
        inputs = ((q, dtype), (k, dtype), ((*k[:3], v_depth or depth), dtype))
        masks = ((mask, F),) if mask else ()
        return one("nn.attention", AttentionAttrs(0.125, causal)), (*inputs, *masks)

    return {
        "attention bert": attention((1, 12, 128, 64), 128, mask=(1, 1, 1, 128)),
        "attention bert batch": attention((32, 12, 384, 64), 384, mask=(32, 1, 1, 384)),
        "attention vit": attention((8, 12, 197, 64), 197, dtype=H),
        "attention gpt2": attention((1, 12, 1024, 64), 1024, causal=0),
        "attention whisper": attention((1, 8, 448, 64), 1500),
        "attention llama": attention((1, 32, 2048, 128), 2048, causal=0, kv_heads=8),
        "attention wide": attention((1, 16, 2048, 256), 2048, causal=0),
        "attention odd heads": attention((4, 16, 1000, 80), 999, 112, causal=5),
        "attention decode": attention((1, 32, 1, 128), 4096, kv_heads=8),
        "attention heads of 72": attention((4, 16, 1000, 72), 1000, causal=0),
        "attention biased": attention((4, 16, 512, 64), 512, mask=(1, 16, 512, 512)),
    }


def _channels_last() -> dict[str, Case]:
    """Layers of 16-bit convolutional networks, with bias, residual and activation."""

    def conv(n: int, size: int, channels: int, outputs: int, kernel: int, stride: int = 1) -> Case:
        attrs = Conv2dAttrs(
            strides=(stride, stride), padding=(kernel // 2,) * 4, data_layout="NHWC",
            kernel_layout="packed", out_channels=outputs, kernel_size=(kernel, kernel),
            tile=(1, 1, 1),
        )  # fmt: skip

        def layer(b: Any, x: Any, w: Any, bias: Any, residual: Any) -> Any:
            y = b.call("add", b.call("nn.conv2d", x, w, attrs=attrs), bias)
            return b.call("nn.relu", b.call("add", y, residual))

        image, out = (n, size, size, channels), (n, size // stride, size // stride, outputs)
        weights = (outputs, kernel, kernel, channels, 1)
        return layer, tuple((s, "bfloat16") for s in (image, weights, (outputs,), out))

    depthwise = Conv2dAttrs(
        padding=(1, 1, 1, 1), groups=144, data_layout="NHWC", kernel_layout="HWC",
        out_channels=144, kernel_size=(3, 3),
    )  # fmt: skip
    return {
        "conv nhwc 3x3": conv(1, 56, 64, 64, 3),
        "conv nhwc 3x3 small": conv(1, 14, 256, 256, 3),
        "conv nhwc 3x3 batch": conv(32, 28, 128, 128, 3),
        "conv nhwc stride 2": conv(8, 56, 128, 128, 3, 2),
        "conv nhwc 1x1 batch": conv(32, 56, 64, 256, 1),
        "depthwise nhwc": (
            one("nn.conv2d", depthwise), (((8, 56, 56, 144), H), ((3, 3, 144), H)),
        ),
    }  # fmt: skip


CASES: dict[str, Case] = (
    _elementwise() | _rows() | _reductions() | _windows() | _channels_last() | _products()
    | _attention()
)  # fmt: skip


def compiled(name: str, arch: str = "sm_90a") -> Cubin:
    """The machine code of a case."""
    make, inputs = CASES[name]
    return compile_cuda(emit_cuda(kit.kernel(make, *inputs), arch).source, arch, f"{name}.cu")


def registers(cubin: Cubin) -> list[int]:
    return sorted(r.registers for r in cubin.kernels.values())


def main() -> None:
    records = {name: registers(compiled(name)) for name in CASES}
    lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in records.items())
    RECORDS.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
