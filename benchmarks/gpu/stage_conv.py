"""conv: layers of ResNet-50, MobileNetV2 and YOLO beside cuDNN (through PyTorch).

Images in 16 bits are NHWC, as they are inside of networks; others NCHW, which the peers may store
with channels innermost.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from contest import contest
from harness import Case, Env, Row

LAYERS = (  # image, channels in, channels out, kernel, stride, groups
    (224, 3, 64, 7, 2, 1), (56, 64, 64, 3, 1, 1), (56, 64, 256, 1, 1, 1), (28, 128, 128, 3, 1, 1),
    (14, 256, 256, 3, 1, 1), (14, 1024, 256, 1, 1, 1), (7, 512, 512, 3, 1, 1),
    (56, 144, 144, 3, 1, 144), (112, 96, 96, 3, 2, 96), (80, 64, 64, 3, 1, 1),
)  # fmt: skip
FORMATS = (("bf16", "bfloat16"), ("tf32", "float32"), ("fp32", "float32"))


def cases() -> list[Case]:
    return [
        Case(
            f"conv/{precision}/b{batch}/{'x'.join(map(str, layer))}",
            functools.partial(_run, layer, batch, precision, dtype),
        )
        for precision, dtype in FORMATS
        for batch in (1, 32)
        for layer in LAYERS
    ]


def _run(layer: tuple[int, ...], batch: int, precision: str, dtype: str, env: Env) -> Iterator[Row]:
    size, channels, features, kernel, stride, groups = env.sizes(*layer, most=24)
    (batch,) = env.sizes(batch, most=2)
    pad = kernel // 2
    out = (size + 2 * pad - kernel) // stride + 1
    weight = (features, channels // groups, kernel, kernel)
    nhwc = dtype == "bfloat16"
    image = (batch, size, size, channels) if nhwc else (batch, channels, size, size)

    def make(b, x, w):
        return b.call(
            "nn.conv2d", x, w, strides=(stride, stride), padding=(pad,) * 4, groups=groups,
            data_layout="NHWC" if nhwc else "NCHW",
        )  # fmt: skip

    return contest(
        env,
        make,
        [(image, dtype), (weight, dtype)],
        lambda ops: ops.conv2d(stride, pad, groups, nhwc),
        precision="tf32" if precision == "tf32" else "fp32",
        flops=2.0 * batch * out * out * features * channels // groups * kernel * kernel,
        channels_last=(1,) if nhwc else (0, 1),
        weights=(1,),
    )
