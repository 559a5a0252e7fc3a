"""Elementwise kernels and transposes: right, coalesced, wide, and with loads in flight."""

import pytest

from tinycomp.ops.shape import ReshapeAttrs, TransposeAttrs

from . import kit

F = "float32"


def chain(b, x, y):
    return b.call("nn.relu", b.call("add", b.call("tanh", x), y))


def transposed(*axes):
    return lambda b, x: b.call("transpose", x, attrs=TransposeAttrs(axes))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize(
    ("a", "b"), [((64, 96), (96,)), ((7, 33), (33,)), ((5, 9, 17), (1, 9, 1)), ((3000,), (3000,))]
)
def test_chains(a, b, dtype):
    rtol = {"float16": 2e-3, "bfloat16": 1.6e-2}.get(dtype, 1e-5)
    kit.check(chain, (a, dtype), (b, dtype), rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    ("dtype", "width"), [("float32", 16), ("float16", 16), ("int8", 16), ("float64", 16)]
)
def test_large_chains_are_wide_with_loads_in_flight(dtype, width):
    (launch,) = kit.launches(
        lambda b, x, y: b.call("add", x, y), ((8192, 4096), dtype), ((8192, 4096), dtype)
    )
    assert all(site.width == width for site in launch.sites)
    assert launch.efficiency == 1.0
    assert launch.in_flight >= 64
    assert launch.moved == launch.unique


def test_vectors_cross_rows_that_no_vector_divides():
    (launch,) = kit.launches(chain, ((8192, 1023), F), ((1023,), F))
    widths = {(s.verb, s.buffer.name): s.width for s in launch.sites}
    assert widths == {("load", "p0"): 16, ("load", "p1"): 4, ("store", "nn.relu"): 16}
    kit.check(chain, ((256 * 132 * 4 // 12 + 4, 33), F), ((33,), F))


TRANSPOSES = [
    ((40, 70), (1, 0)), ((2, 8, 9, 11), (0, 2, 3, 1)), ((1, 24, 24, 3), (0, 3, 1, 2)),
    ((4, 33, 6, 5), (0, 2, 1, 3)), ((3, 40, 35), (2, 0, 1)), ((3, 40, 35), (2, 1, 0)),
    ((1, 300), (1, 0)), ((130, 2), (1, 0)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8"])
@pytest.mark.parametrize(("shape", "axes"), TRANSPOSES)
def test_transposes(shape, axes, dtype):
    kit.check(transposed(*axes), (shape, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((1024, 1000), (1, 0)), ((8, 64, 56, 56), (0, 2, 3, 1)), ((8, 56, 56, 64), (0, 3, 1, 2)),
        ((1, 224, 224, 3), (0, 3, 1, 2)), ((1, 3, 224, 224), (0, 2, 3, 1)),
        ((8, 196, 12, 64), (0, 2, 1, 3)), ((8, 196, 12, 64), (0, 2, 3, 1)),
    ],
)  # fmt: skip
def test_transposes_are_coalesced_on_both_sides(shape, axes, dtype):
    (launch,) = kit.launches(transposed(*axes), (shape, dtype))
    assert min(site.efficiency for site in launch.global_sites) >= 0.7
    assert launch.conflicts <= (1.6 if 3 in shape else 1.1)
    assert launch.moved <= (1.25 if dtype != "float16" else 1.6) * launch.unique


def test_chains_of_reshapes_and_transposes_are_one_permutation():
    def attention_input(b, x):
        y = b.call("transpose", x, attrs=TransposeAttrs((0, 2, 1, 3)))
        y = b.call("reshape", y, attrs=ReshapeAttrs((8, 49, 32)))
        return b.call("transpose", y, attrs=TransposeAttrs((0, 2, 1)))

    func = kit.check(attention_input, ((2, 49, 4, 32), F))
    assert [str(b).split(" global")[0] for b in func.params] == [
        "p0: float32[2, 49, 128]", "transpose: float32[2, 128, 49]",
    ]  # fmt: skip
    (launch,) = kit.launches(attention_input, ((2, 49, 4, 32), F))
    assert launch.efficiency > 0.7  # rows of 49 do not begin at sectors


def test_a_transposed_and_a_straight_operand():
    def add(b, x, y):
        return b.call("add", b.call("transpose", x, attrs=TransposeAttrs((0, 2, 1))), y)

    kit.check(add, ((3, 40, 50), F), ((3, 50, 40), F))
    (launch,) = kit.launches(add, ((8, 256, 196), F), ((8, 196, 256), F))
    assert launch.efficiency >= 0.9


def test_a_matrix_and_its_transpose():
    def add(b, x):
        return b.call("add", b.call("transpose", x, attrs=TransposeAttrs((1, 0))), x)

    kit.check(add, ((40, 40), F))
