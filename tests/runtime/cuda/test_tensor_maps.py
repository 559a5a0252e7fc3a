"""What the driver is asked for when a launch needs tensor maps, without a driver."""

import ctypes
from dataclasses import asdict, replace

import pytest

from tinycomp.codegen.cuda.limits import Launch, TensorMapSpec
from tinycomp.diagnostics import ExecutionError
from tinycomp.runtime.cuda.plan import launch_from_json
from tinycomp.runtime.cuda.tensor_maps import MAP_BYTES, encode_tensor_map

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


def test_addresses():
    assert SPEC.address([10, 20, 30], 1000) == 30
    assert replace(SPEC, param=-1, offset=256).address([10, 20, 30], 1000) == 1256


def test_refusal_names_the_tensor():
    with pytest.raises(ExecutionError, match=r"error 1\): bfloat16\[3, 96, 512\]"):
        encode_tensor_map(SPEC, 8, lambda *_: 1)


def test_launches_keep_their_maps():
    launch = Launch("f", (1, 1, 1), (384, 1, 1), 9, 9, (), (), False, (2, 1, 1), (SPEC, SPEC))
    assert launch_from_json(asdict(launch)) == launch
