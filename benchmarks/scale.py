"""Very long and very wide models: how long each stage takes, and the peak memory.

    python benchmarks/scale.py [--length 100000] [--width 1000] [--json]

A chain of Add nodes and a Concat of many inputs are made as ONNX files, imported, passed through
every graph pass up to fused relay, printed, parsed back and freed. Nothing of that may recurse over
the graph or take more than linear time. The Concat is compiled and run too.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
from onnx import TensorProto, helper

from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.frontend.onnx import from_onnx
from tinycomp.ops import default_ops
from tinycomp.pipeline import default_pipeline
from tinycomp.relay.parser import parse_module
from tinycomp.relay.pass_infra import PassContext
from tinycomp.target import Target


def chain(length: int) -> onnx.ModelProto:
    """y = x + x + ... by `length` Add nodes, each reading the one before."""
    names = ["x", *(f"t{i}" for i in range(1, length)), "y"]
    nodes = [
        helper.make_node("Add", [names[i], "x"], [names[i + 1]], f"add{i}") for i in range(length)
    ]
    return _model(nodes, ["x"], [1, 4])


def wide_concat(width: int) -> onnx.ModelProto:
    """Inputs x0, x1, ... each doubled, side by side."""
    names = [f"x{i}" for i in range(width)]
    nodes = [helper.make_node("Add", [n, n], [f"d{n}"], f"add{n}") for n in names]
    nodes.append(helper.make_node("Concat", [f"d{n}" for n in names], ["y"], "concat", axis=0))
    return _model(nodes, names, [1, 4])


def _model(nodes: list[onnx.NodeProto], inputs: list[str], shape: list[int]) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in inputs]
    output = helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)
    graph = helper.make_graph(nodes, "g", infos, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


class Stopwatch:
    """Seconds by stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start


def front_half(data: bytes) -> dict[str, float]:
    """Everything up to fused relay; seconds by stage."""
    stage = Stopwatch()
    with stage("import"):
        module = from_onnx(data)
    with stage("print relay"):
        text = str(module)
    with stage("parse relay"):
        parsed = parse_module(text, default_ops())
    ctx = PassContext(default_ops(), Target.host())
    with stage("passes"):
        fused = default_pipeline(3, Target.host()).run(module, ctx)
    with stage("print fused relay"):
        text = str(fused)
    with stage("free"):
        del module, parsed, fused, text
        gc.collect()
    for timing in ctx.timings:
        name = f"  {timing.name}"
        stage.seconds[name] = stage.seconds.get(name, 0.0) + timing.seconds
    return stage.seconds


def whole(model: onnx.ModelProto) -> dict[str, float]:
    """Compile and run the Concat; seconds by stage."""
    stage = Stopwatch()
    config = Config(cache=False)
    with stage("compile"):
        module = compile_with(config, model)
    rng = np.random.default_rng(0)
    inputs = {s.name: rng.standard_normal((1, 4)).astype(np.float32) for s in module.inputs}
    with stage("run"):
        y = module.run(inputs)["y"]
    np.testing.assert_array_equal(y, 2 * np.concatenate(list(inputs.values())))
    return stage.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=100_000, help="nodes of the chain")
    parser.add_argument("--width", type=int, default=1_000, help="inputs of the Concat")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    args = parser.parse_args()
    wide = wide_concat(args.width)
    results = {
        f"chain of {args.length} Adds": front_half(chain(args.length).SerializeToString()),
        f"Concat of {args.width}": {**front_half(wide.SerializeToString()), **whole(wide)},
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if args.json:
        print(json.dumps({"seconds": results, "peak_mib": peak}, indent=1))
        return
    for name, seconds in results.items():
        print(name)
        for stage, value in seconds.items():
            print(f"  {stage:32}{value:8.2f} s")
        total = sum(v for stage, v in seconds.items() if not stage.startswith("  "))
        print(f"  {'total':32}{total:8.2f} s")
    print(f"peak memory {peak:.0f} MiB")


if __name__ == "__main__":
    main()
