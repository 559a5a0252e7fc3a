"""What the driver is asked for when a launch needs tensor maps, without a driver."""

import ctypes
from dataclasses import asdict, replace

import pytest

from tinycomp.codegen.cuda.limits import Launch, TensorMapSpec
from tinycomp.diagnostics import ExecutionError
from tinycomp.runtime.cuda.plan import launch_from_json
from tinycomp.runtime.cuda.tensor_maps import MAP_BYTES, encode_tensor_map, entry_point
from tinycomp.testing.fake_tensor_maps import decode, encode_im2col

SPEC = TensorMapSpec(2, "bfloat16", (512, 96, 3), (1024, 98304), (64, 128, 1), 128)


def test_arguments():
    seen = []

    def encode(result, *arguments):
        assert result.value % 64 == 0
        ctypes.memset(result, 0xAB, MAP_BYTES)
        seen.extend(arguments)
        return 0

    assert bytes(encode_tensor_map(SPEC, 0x7F00, encode)) == b"\xab" * MAP_BYTES
    dtype, rank, address, dims, strides, box, steps, interleave, swizzle, promotion, fill = seen
    assert (dtype, rank.value, address.value) == (9, 3, 0x7F00)
    assert (list(dims), list(strides)) == ([512, 96, 3], [1024, 98304])
    assert (list(box), list(steps)) == ([64, 128, 1], [1, 1, 1])
    assert (interleave, swizzle, promotion, fill) == (0, 3, 3, 0)


def test_windows():
    """cuTensorMapEncodeIm2col: corners and steps as (W, H), channels and pixels of a copy."""
    seen = []
    spec = TensorMapSpec(
        0, "float16", (64, 56, 28, 2), (128, 7168, 200704), (64, 128), 128, 0, (-1, 0), (-2, 3),
        (2, 1),
    )  # fmt: skip
    assert entry_point(spec) == "cuTensorMapEncodeIm2col"
    assert entry_point(SPEC) == "cuTensorMapEncodeTiled"
    encode_tensor_map(spec, 0x7F00, lambda *arguments: seen.extend(arguments) or 0)
    lower, upper, channels, pixels, steps = seen[6:11]
    assert (list(lower), list(upper), list(steps)) == ([-1, 0], [-2, 3], [1, 2, 1, 1])
    assert (channels.value, pixels.value, seen[11:]) == (64, 128, [0, 3, 3, 0])
    assert launch_from_json(asdict(_launch(spec))) == _launch(spec)
    made = encode_tensor_map(spec, 0x7F00, encode_im2col)
    assert decode(bytes(made)).describes(spec)
    assert not decode(bytes(made)).describes(SPEC)
    with pytest.raises(ExecutionError, match="refuses a tensor map"):
        encode_tensor_map(replace(spec, lower=(-129, 0)), 0x7F00, encode_im2col)


def test_addresses():
    assert SPEC.address([10, 20, 30], 1000) == 30
    assert replace(SPEC, param=-1, offset=256).address([10, 20, 30], 1000) == 1256


def test_refusal_names_the_tensor():
    with pytest.raises(ExecutionError, match=r"error 1\): bfloat16\[3, 96, 512\]"):
        encode_tensor_map(SPEC, 8, lambda *_: 1)


def test_launches_keep_their_maps():
    launch = _launch(SPEC, SPEC)
    assert launch_from_json(asdict(launch)) == launch


def _launch(*maps):
    return Launch("f", (1, 1, 1), (384, 1, 1), 9, 9, (), (), False, (2, 1, 1), maps)
