"""Forty-nine hostile or extreme model files: damaged, inconsistent, huge, or only unusual."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F32, I64 = TensorProto.FLOAT, TensorProto.INT64
Maker = Callable[[Path], Path]


def info(name: str, shape: Sequence[Any] | None, dtype: int = F32) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def const(name: str, value: Any, dtype: str = "int64") -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def proto(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto] = (),
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    opset: int | None = 20,
) -> onnx.ModelProto:
    """A model from x: float32[4] to y unless said otherwise."""
    graph = helper.make_graph(
        nodes, "g", inputs or [info("x", [4])], outputs or [info("y", None)], initializers
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset or 1)])
    if opset is None:
        del model.opset_import[:]
    model.ir_version = 9
    return model


def node(op: str, inputs: str, output: str = "y", name: str = "", **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name or f"the_{op}", **attrs)


def one(
    op: str, inputs: str = "x", *initializers: onnx.TensorProto, **attrs: Any
) -> onnx.ModelProto:
    """A model of one node."""
    return proto([node(op, inputs, **attrs)], initializers)


def _in_file(data: bytes) -> Maker:
    def make(folder: Path) -> Path:
        path = folder / "model.onnx"
        path.write_bytes(data)
        return path

    return make


def _saved(build: Callable[[], onnx.ModelProto]) -> Maker:
    return lambda folder: _in_file(build().SerializeToString())(folder)


def _external(
    location: str, prepare: Callable[[Path], None] = lambda _: None, **entries: str
) -> Maker:
    """A model whose weight w lies in `location`; `w.bin` is there, `../secret.bin` outside."""

    def make(folder: Path) -> Path:
        inside = folder / "model"
        (inside / "sub").mkdir(parents=True)
        (inside / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
        (folder / "secret.bin").write_bytes(bytes(16))
        prepare(inside)
        tensor = TensorProto(name="w", data_type=F32, dims=[4])
        tensor.data_location = TensorProto.EXTERNAL
        where = location.replace("{outside}", str(folder))
        for key, value in {"location": where, **entries}.items():
            tensor.external_data.add(key=key, value=value)
        path = inside / "model.onnx"
        path.write_bytes(proto([node("Add", "x w")], [tensor]).SerializeToString())
        return path

    return make


def _symlink(inside: Path) -> None:
    os.symlink(inside.parent / "secret.bin", inside / "link.bin")


def _hardlink(inside: Path) -> None:
    os.link(inside.parent / "secret.bin", inside / "link.bin")


def _symlinked_folder(inside: Path) -> None:
    os.symlink(inside.parent, inside / "up")


def _weight(dims: Sequence[int], data: bytes, dtype: int = F32) -> Maker:
    tensor = TensorProto(name="w", data_type=dtype, dims=dims, raw_data=data)
    return _saved(lambda: proto([node("Add", "x w")], [tensor]))


def _nested(depth: int) -> onnx.ModelProto:
    """If nodes inside each other."""
    inner = node("Relu", "x", "y0")
    for level in range(depth):
        then = helper.make_graph([inner], "t", [], [info(f"y{level}", [4])])
        other = helper.make_graph(
            [node("Neg", "x", f"n{level}")], "e", [], [info(f"n{level}", [4])]
        )
        inner = node("If", "c", f"y{level + 1}", then_branch=then, else_branch=other)
    return proto(
        [inner, node("Identity", f"y{depth}")],
        inputs=[info("c", [], TensorProto.BOOL), info("x", [4])],
    )


def chain(length: int) -> onnx.ModelProto:
    """x + x + x ... by `length` Add nodes in a row."""
    names = ["x", *(f"t{i}" for i in range(1, length)), "y"]
    nodes = [helper.make_node("Add", [a, "x"], [b]) for a, b in itertools.pairwise(names)]
    return proto(nodes)


def _git_lfs() -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"


def _conv(**attrs: Any) -> onnx.ModelProto:
    weight = const("w", np.ones((2, 2, 3, 3)), "float32")
    return proto([node("Conv", "x w", **attrs)], [weight], [info("x", [1, 2, 8, 8])])


def _huge_range() -> onnx.ModelProto:
    numbers = [const("a", 0), const("b", 2**40), const("c", 1)]
    return proto([node("Range", "a b c", "r"), node("Cast", "r", to=F32)], numbers)


VALID: dict[str, Maker] = {
    "external_ok": _external("w.bin"),
    "nested_if_10": _saved(lambda: _nested(10)),
    "nested_if_20": _saved(lambda: _nested(20)),
    "nested_if_24": _saved(lambda: _nested(24)),
    "zero_size_concat": _saved(
        lambda: proto([node("Concat", "x e", axis=0)], [const("e", np.ones(0), "float32")])
    ),
    "identity": _saved(lambda: one("Identity")),
    "rank_0": _saved(lambda: proto([node("Neg", "x")], inputs=[info("x", [])])),
    "weird_names": _saved(
        lambda: proto(
            [
                node("Neg", "x/\u00fc:0", "\u4e2d\u6587%s{}", "a\nb\"';--"),
                node("Relu", "\u4e2d\u6587%s{}", "\U0001f600"),
            ],
            inputs=[info("x/\u00fc:0", [4])],
            outputs=[info("\U0001f600", [4])],
        )
    ),
}
"""Files that compile and run."""

LONG: dict[str, Maker] = {
    "chain_5000": _saved(lambda: chain(5000)),
    "chain_20000": _saved(lambda: chain(20000)),
}

INVALID: dict[str, tuple[Maker, str]] = {
    "external_dotdot": (_external("../secret.bin"), "'w'"),
    "external_normalised": (_external("sub/../../secret.bin"), "'w'"),
    "external_absolute": (_external("{outside}/secret.bin"), "'w'"),
    "external_symlink": (_external("link.bin", _symlink), "'w'"),
    "external_hardlink": (_external("link.bin", _hardlink), "'w'"),
    "external_symlinked_folder": (_external("up/secret.bin", _symlinked_folder), "'w'"),
    "external_short": (_external("w.bin", length="8"), "'w'"),
    "external_offset": (_external("w.bin", offset=str(2**40)), "'w'"),
    "external_negative_offset": (_external("w.bin", offset="-8"), "'w'"),
    "external_missing": (_external("gone.bin"), "'w'"),
    "external_bad_key": (_external("w.bin", offset="lots"), "'w'"),
    "raw_short": (_weight([4], bytes(15)), "'w'"),
    "raw_long": (_weight([4], bytes(20)), "'w'"),
    "dims_negative": (_weight([-4], bytes(16)), "'w'"),
    "dims_overflow": (_weight([2**33, 2**33, 4], bytes(16)), "'w'"),
    "dims_huge": (_weight([2**40], b""), "'w'"),
    "dtype_99": (_weight([4], bytes(16), 99), "'w'"),
    "constant_of_shape_bomb": (
        _saved(lambda: one("ConstantOfShape", "s", const("s", [2**40]))),
        "the_ConstantOfShape",
    ),
    "expand_bomb": (_saved(lambda: one("Expand", "x s", const("s", [2**38, 4]))), "the_Expand"),
    "tile_bomb": (_saved(lambda: one("Tile", "x s", const("s", [2**38]))), "the_Tile"),
    "pad_bomb": (_saved(lambda: one("Pad", "x s", const("s", [0, 2**40]))), "the_Pad"),
    "range_bomb": (_saved(_huge_range), "the_Range"),
    "one_hot_bomb": (
        _saved(
            lambda: one(
                "OneHot", "i d v", const("i", [1]), const("d", 2**40), const("v", [0, 1], "float32")
            )
        ),
        "the_OneHot",
    ),
    "resize_bomb": (
        _saved(
            lambda: proto(
                [helper.make_node("Resize", ["x", "", "s"], ["y"], "the_Resize")],
                [const("s", [1, 1, 1e6, 1e6], "float32")],
                [info("x", [1, 1, 2, 2])],
            )
        ),
        "the_Resize",
    ),
    "input_bomb": (_saved(lambda: proto([node("Neg", "x")], inputs=[info("x", [2**40])])), "'x'"),
    "reshape_does_not_divide": (
        _saved(lambda: one("Reshape", "x s", const("s", [3, -1]))),
        "the_Reshape",
    ),
    "gather_1e8": (_saved(lambda: one("Gather", "x i", const("i", [100_000_000]))), "the_Gather"),
    "slice_step_0": (
        _saved(
            lambda: one(
                "Slice",
                "x a b c d",
                const("a", [0]),
                const("b", [2]),
                const("c", [0]),
                const("d", [0]),
            )
        ),
        "the_Slice",
    ),
    "range_step_0": (
        _saved(
            lambda: proto(
                [node("Range", "a b c", "r"), node("Cast", "r", to=F32)],
                [const("a", 0), const("b", 9), const("c", 0)],
            )
        ),
        "the_Range",
    ),
    "tile_negative": (_saved(lambda: one("Tile", "x s", const("s", [-1]))), "the_Tile"),
    "cumsum_axis_7": (_saved(lambda: one("CumSum", "x a", const("a", 7))), "the_CumSum"),
    "cycle": (
        _saved(lambda: proto([node("Add", "x b", "a"), node("Relu", "a", "b"), node("Neg", "b")])),
        "cycle",
    ),
    "duplicate_ssa": (
        _saved(lambda: proto([node("Relu", "x"), node("Neg", "x")])),
        "'y' is produced twice",
    ),
    "undefined_input": (_saved(lambda: one("Add", "x nowhere")), "'nowhere'"),
    "unknown_op": (_saved(lambda: one("Frobnicate")), "the_Frobnicate"),
    "unknown_domain": (_saved(lambda: one("Relu", domain="com.example")), "com.example::Relu"),
    "no_opset": (_saved(lambda: proto([node("Relu", "x")], opset=None)), "opset"),
    "opset_999": (_saved(lambda: proto([node("Relu", "x")], opset=999)), "999"),
    "type_mismatch": (_saved(lambda: one("Add", "x i", const("i", [1, 2, 3, 4]))), "the_Add"),
    "shape_mismatch": (
        _saved(lambda: one("Add", "x w", const("w", [1, 2, 3], "float32"))),
        "the_Add",
    ),
    "conv_strides_0": (_saved(lambda: _conv(strides=[0, 0])), "the_Conv"),
    "conv_group_0": (_saved(lambda: _conv(group=0)), "the_Conv"),
    "pool_pads_2_30": (
        _saved(
            lambda: proto(
                [node("MaxPool", "x", kernel_shape=[2, 2], pads=[2**30] * 4)],
                inputs=[info("x", [1, 2, 8, 8])],
            )
        ),
        "the_MaxPool",
    ),
    "truncated": (_in_file(chain(50).SerializeToString()[:-20]), "truncated"),
    "random_bytes": (_in_file(np.random.default_rng(0).bytes(2000)), "not an ONNX model"),
    "empty": (_in_file(b""), "empty"),
    "html": (_in_file(b"<!DOCTYPE html><html><body>404</body></html>"), "HTML"),
    "git_lfs": (_in_file(_git_lfs()), "git-lfs"),
}
"""Files that are refused, and what the message must contain."""
