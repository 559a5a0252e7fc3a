"""Tensor maps of the device made of NumPy."""

from dataclasses import replace

import pytest

from tinycomp.codegen.cuda.limits import TensorMapSpec
from tinycomp.diagnostics import ExecutionError
from tinycomp.runtime.cuda.tensor_maps import encode_tensor_map
from tinycomp.testing.fake_tensor_maps import decode, encode

SPEC = TensorMapSpec(2, "bfloat16", (512, 96, 3), (1024, 98304), (64, 128, 1), 128)


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, dims=(512,), strides=(), box=(8,))])
def test_what_is_encoded_is_decoded(spec):
    found = decode(bytes(encode_tensor_map(spec, 0x7F00, encode)))
    assert found is not None
    assert found.address == 0x7F00
    assert found.describes(spec)
    assert not found.describes(replace(spec, dtype="float16"))
    assert not found.describes(replace(spec, dims=(513, *spec.dims[1:])))


def test_other_bytes_are_no_map():
    assert decode(bytes(128)) is None


@pytest.mark.parametrize(
    ("change", "address"),
    [
        ({}, 0x7F08),  # not aligned
        ({"strides": (1032, 98304)}, 0x7F00),
        ({"box": (128, 128, 1)}, 0x7F00),  # a row is wider than the swizzle
        ({"box": (4, 128, 1)}, 0x7F00),  # and no multiple of 16 bytes
        ({"box": (64, 300, 1)}, 0x7F00),
        ({"dims": (0, 96, 3)}, 0x7F00),
    ],
)
def test_what_the_driver_refuses(change, address):
    with pytest.raises(ExecutionError, match="refuses a tensor map"):
        encode_tensor_map(replace(SPEC, **change), address, encode)
