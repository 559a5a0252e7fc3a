"""Models in 16 bits on Hopper: their products run as tile programs, over the planned memory."""

import numpy as np
import pytest

import tinycomp
from tinycomp.cli.reference import run_reference
from tinycomp.precision import Precision
from tinycomp.runtime.compare import compare
from tinycomp.testing.gpu import run_on_cpu
from tinycomp.testing.graph_builder import GraphBuilder, seeded_inputs


def test_layers_in_bfloat16():
    b = GraphBuilder("layers")
    x = b.input("x", (1, 16, 6, 6))
    y = b.op("Relu", b.op("Conv", x, b.normal((72, 16, 3, 3), 0.1), pads=[1, 1, 1, 1]))
    rows = b.op("Reshape", y, np.array([72, 36]))
    padded = b.op("Pad", rows, np.array([0, 0, 0, 4]))
    model = b.model(y=b.op("Tanh", b.linear(b.op("Relu", b.linear(padded, 64)), 24)))
    inputs = seeded_inputs(model, 5)
    module = tinycomp.compile(model, target="cuda -arch=sm_90a", precision="bf16")
    maps = [launch.maps for ls in module.plan.launches.values() for launch in ls if launch.maps]
    assert len(maps) == 3
    assert all(not r.spill_stores for rs in module.plan.resources.values() for r in rs.values())
    got = run_on_cpu(module, inputs)["y"]
    wanted = tinycomp.compile(model).run(inputs)["y"]
    (found,) = compare({"y": got}, {"y": wanted})
    assert found.difference < 2 * Precision.BF16.tolerance


def convolutional():
    """Every kind of layer of convolutional networks on a small image."""
    b = GraphBuilder("convolutional")

    def conv(x, o, i, size=3, stride=1, groups=1):
        weight = b.normal((o, i // groups, size, size), (2 / (i // groups * size * size)) ** 0.5)
        half = size // 2
        return b.op(
            "Conv", x, weight, b.normal((o,), 0.1), pads=[half] * 4, strides=[stride] * 2,
            group=groups,
        )  # fmt: skip

    x = b.input("x", (1, 3, 32, 24))
    stem = b.op("Relu", conv(x, 16, 3, stride=2))
    wide = b.op("Clip", conv(stem, 48, 16, 1), np.array(0, "f4"), np.array(6, "f4"))
    deep = b.op("Sigmoid", conv(wide, 48, 48, groups=48))
    y = b.op("Add", conv(deep, 16, 48, 1), stem)
    grouped = conv(y, 24, 16, groups=2)
    half = b.op("Relu", conv(grouped, 40, 24, stride=2))
    pooled = b.op("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    z = conv(b.op("Concat", half, pooled, axis=1), 72, 56)
    return b.model(y=b.linear(b.op("Flatten", b.op("GlobalAveragePool", z)), 10), z=z)


@pytest.mark.parametrize(
    ("arch", "precision", "tiles"),
    [("sm_90a", "bf16", 4), ("sm_90a", "fp16", 4), ("sm_80", "bf16", 0)],
)
def test_convolutional_networks(arch, precision, tiles):
    """16-bit convolutions run in NHWC: on Hopper TMA finds their windows; one transpose at each
    border of the network is left."""
    model = convolutional()
    inputs = seeded_inputs(model, 3)
    module = tinycomp.compile(model, target=f"cuda -arch={arch}", precision=precision)
    maps = [launch.maps for ls in module.plan.launches.values() for launch in ls if launch.maps]
    assert len(maps) == tiles
    labels = [k.label for k in module.manifest.kernels]
    assert sum("transpose" in label for label in labels) == 2
    assert all(not r.spill_stores for rs in module.plan.resources.values() for r in rs.values())
    found = compare(run_on_cpu(module, inputs), run_reference("ort", model, inputs))
    assert max(c.difference for c in found) < 2 * Precision(precision).tolerance


@pytest.mark.parametrize(
    ("precision", "overrides", "recorded", "band"),
    [
        ("fp32", {}, "bf16x6 (tensor cores)", 1e-5),
        ("fp32", {"nn.matmul": "fp32_strict"}, "fp32_strict", None),
        ("fp32_strict", {"nn.matmul": "tf32"}, "tf32 (tensor cores)", 2e-3),
    ],
)
def test_float32_by_parts(precision, overrides, recorded, band):
    b = GraphBuilder("layers")
    hidden = b.op("Relu", b.linear(b.input("x", (128, 256)), 512))
    model = b.model(y=b.op("Tanh", b.linear(hidden, 16)))
    inputs = seeded_inputs(model, 5)
    module = tinycomp.compile(
        model, target="cuda -arch=sm_90a", precision=precision, precision_overrides=overrides
    )
    first, _ = module.manifest.kernels
    assert first.precision == recorded
    if band is None:  # plain multiply-adds, as everywhere
        return
    got = run_on_cpu(module, inputs, check_races=False)
    (found,) = compare(got, run_reference("ort", model, inputs))
    assert found.difference < band
