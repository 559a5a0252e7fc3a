"""Finding the node that differs first: every tensor of the main graph becomes an output.

Both engines get the same model with intermediate tensors as extra outputs. Tensors that would
stop fusion are compared as well, so what is checked is each operator's kernel, not how operators
are fused; a difference that only fusion makes shows in the outputs but not here.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..runtime.compare import Comparison, compare_arrays
from .reference import expose, run_reference

if TYPE_CHECKING:
    import numpy as np
    import onnx


@dataclass(frozen=True)
class LayerDifference:
    """The first node, in graph order, one of whose results differs."""

    node: str
    op_type: str
    tensor: str
    comparison: Comparison

    def describe(self) -> str:
        c = self.comparison
        detail = c.problem or (
            f"{c.difference:.2e} at {list(c.index)}: {c.got:.7g}, expected {c.expected:.7g}"
        )
        return f"first difference: node {self.node!r} ({self.op_type}), {self.tensor!r}: {detail}"


def first_difference(
    args: argparse.Namespace, inputs: Mapping[str, np.ndarray]
) -> LayerDifference | None:
    """The first tensor that differs by more than the tolerance; None if there is none."""
    from ..compiler import compile as compile_model
    from ..frontend.onnx.read import read_model
    from .common import parse_dims, parse_input_shapes, parse_overrides

    model = read_model(args.model)
    produced = produced_tensors(model)
    reference = run_reference(args.against, expose(model, list(produced)), inputs)
    exposed = expose_typed(model, {n: reference[n] for n in produced if n in reference})
    module = compile_model(
        exposed,
        input_shapes=parse_input_shapes(args.input_shapes),
        dims=parse_dims(args.dim),
        num_threads=args.threads,
        opt_level=args.opt_level,
        precision=args.precision,
        precision_overrides=parse_overrides(args.precision_of),
    )
    got = module.run(inputs)
    for name, (node_label, op_type) in produced.items():
        if name not in got or name not in reference:
            continue
        result = compare_arrays(name, got[name], reference[name])
        if result.problem or not result.difference <= args.tolerance:
            return LayerDifference(node_label, op_type, name, result)
    return None


def produced_tensors(model: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """The name and type of the node that makes each tensor of the main graph, in graph order."""
    from ..frontend.onnx.graphs import node_name

    return {
        output: (node_name(node, index), node.op_type)
        for index, node in enumerate(model.graph.node)
        if node.op_type != "Constant"
        for output in node.output
        if output
    }


def expose_typed(model: onnx.ModelProto, results: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The model with these results as outputs of known type; sequences and maps are left out."""
    import numpy as np
    import onnx

    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    taken = {output.name for output in exposed.graph.output}
    for name, array in results.items():
        if name not in taken and isinstance(array, np.ndarray):
            dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            exposed.graph.output.append(
                onnx.helper.make_tensor_value_info(name, dtype, list(array.shape))
            )
    return exposed
