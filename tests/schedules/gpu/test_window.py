"""Pooling, depthwise and small convolutions: several outputs of a thread share what they read."""

import pytest

from tinycomp.codegen.cuda.access import find_accesses
from tinycomp.ops.conv import Conv2dAttrs
from tinycomp.ops.pool import Pool2dAttrs

from . import kit

F = "float32"


def depthwise(channels, **attrs):
    attrs = Conv2dAttrs(groups=channels, **attrs)
    return lambda b, x, w: b.call("nn.conv2d", x, w, attrs=attrs)


def pool(op, size, stride, pad):
    attrs = Pool2dAttrs((size, size), (stride, stride), (pad,) * 4)
    return lambda b, x: b.call(op, x, attrs=attrs)


SAME = {"padding": (1, 1, 1, 1)}


@pytest.mark.parametrize(
    ("shape", "kernel", "attrs"),
    [
        ((1, 48, 56, 57), 3, SAME), ((2, 40, 45, 41), 3, {**SAME, "strides": (1, 1)}),
        ((1, 40, 121, 122), 3, {**SAME, "strides": (2, 2)}), ((1, 36, 64, 63), 5, {}),
        ((1, 8, 9, 11), 3, SAME), ((3, 16, 20, 3), 3, {**SAME, "dilation": (2, 1)}),
    ],
)  # fmt: skip
def test_depthwise(shape, kernel, attrs):
    channels = shape[1]
    weights = (channels, 1, kernel, kernel)
    kit.check(depthwise(channels, **attrs), (shape, F), (weights, F), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", ["nn.max_pool2d", "nn.avg_pool2d"])
@pytest.mark.parametrize(("size", "stride", "pad"), [(3, 2, 1), (2, 2, 0), (3, 1, 1)])
def test_pools(op, size, stride, pad):
    side = 46 * stride + 3
    kit.check(pool(op, size, stride, pad), ((1, 64, side, side), F))
    kit.check(pool(op, size, stride, pad), ((1, 3, 9, 10), F))


@pytest.mark.parametrize(
    ("size", "attrs", "limit"),
    [(3, SAME, 1.6), (7, {"padding": (3, 3, 3, 3)}, 3.0)],
)
def test_an_input_is_read_few_times(size, attrs, limit):
    """A 7 x 7 window read by each output alone would ask for 49 times the image."""
    (launch,) = kit.launches(depthwise(96, **attrs), ((8, 96, 56, 56), F), ((96, 1, size, size), F))
    (image,) = [s for s in launch.global_sites if s.buffer.name == "p0"]
    elements = 8 * 96 * 56 * 56
    assert image.requests * 32 <= limit * size * elements
    assert image.efficiency > 0.8
    assert launch.in_flight >= 16 * 4


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_depthwise_channels_last(dtype, stride):
    """A thread has neighbouring pixels of the channels that make a word."""
    attrs = Conv2dAttrs(
        strides=(stride, stride), padding=(1, 1, 1, 1), groups=64, data_layout="NHWC",
        kernel_layout="HWC", out_channels=64, kernel_size=(3, 3),
    )  # fmt: skip

    def layer(b, x, w, bias):
        return b.call("nn.relu", b.call("add", b.call("nn.conv2d", x, w, attrs=attrs), bias))

    size = 44 * stride
    inputs = ((1, size, size, 64), dtype), ((3, 3, 64), dtype), ((64,), dtype)
    tolerance = {"float16": 4e-3, "float32": 1e-5}[dtype]
    func = kit.check(layer, *inputs, rtol=tolerance, atol=tolerance)
    (launch,) = find_accesses(func)
    for site in launch.sites:
        assert site.efficiency > 0.8, str(site)  # borders
        assert "4 bytes a thread" in str(site), str(site)
