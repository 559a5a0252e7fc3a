"""A model that has been read, to be imported for one set of sizes after the other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from ...dtype import DType
from ...ops import onnx_importers
from ...ops.onnx_node import OnnxImport
from ...relay.nodes import IRModule
from ...relay.op import OpSet
from .importer import check_supported, import_normalized
from .inputs import Declared, declared_inputs, declared_outputs
from .normalize import Normalized, normalize
from .read import Model, read_model

_ALIGNMENT = 64


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX model in the newest opset: its graph, and its large weights beside it."""

    normalized: Normalized

    @staticmethod
    def read(model: Model, importers: Mapping[str, OnnxImport] | None = None) -> OnnxModel:
        """Read a path, bytes or ModelProto; `importers` are `onnx_importers()` if None.

        Raises:
            ModelError: see `read_model`.
            UnsupportedModel: operators without importer; all of them are listed.
        """
        found = OnnxModel(normalize(read_model(model)))
        known = onnx_importers() if importers is None else importers
        check_supported(found.normalized.graph, known)
        return found

    def interface(
        self,
        input_shapes: Mapping[str, Sequence[int]] | None,
        dims: Mapping[str, int] | None,
        open_dims: Iterable[str] = (),
    ) -> tuple[list[Declared], list[Declared]]:
        """Inputs and outputs with the given sizes; dimensions that remain open are names.

        If none does, outputs are left out: importing the model finds their types.

        Raises:
            InputError: sizes or names do not fit the model.
            UnsupportedModel: an input has no rank, or an output no dtype.
        """
        graph, weights = self.normalized.graph, self.normalized.weights
        constant = weights.keys() | {i.name for i in graph.initializer}
        declared = [i for i in graph.input if i.name not in constant]
        inputs, known = declared_inputs(declared, input_shapes, dims, open_dims)
        names = {d for i in inputs for d in i.shape if isinstance(d, str)}
        return inputs, declared_outputs(graph.output, known, names) if names else []

    def specialize(
        self,
        input_shapes: Mapping[str, Sequence[int]],
        dims: Mapping[str, int],
        memory_budget: int,
        ops: OpSet | None = None,
        importers: Mapping[str, OnnxImport] | None = None,
    ) -> IRModule:
        """The graph IR for these sizes; see `from_onnx`."""
        return import_normalized(
            self.normalized,
            ops=ops,
            importers=importers,
            input_shapes=input_shapes,
            dims=dims,
            memory_budget=memory_budget,
        )

    def to_sections(self) -> tuple[bytes, list[np.ndarray]]:
        """The model as bytes, and the weights that these refer to, in order."""
        model = self.normalized
        table = {
            "opset": model.opset,
            "inputs": sorted(model.input_names),
            "weights": [
                [name, str(DType.of(a.dtype)), list(a.shape)] for name, a in model.weights.items()
            ],
        }
        head = json.dumps(table).encode()
        graph = model.graph.SerializeToString(deterministic=True)
        weights = [np.ascontiguousarray(a) for a in model.weights.values()]
        return len(head).to_bytes(4, "little") + head + graph, weights

    @staticmethod
    def from_sections(data: bytes, block: np.ndarray) -> OnnxModel:
        """The inverse; `block` is uint8, each weight at the next multiple of 64."""
        size = int.from_bytes(data[:4], "little")
        table = json.loads(data[4 : 4 + size])
        graph = onnx.GraphProto()
        graph.ParseFromString(data[4 + size :])
        weights, position = {}, 0
        for name, dtype, shape in table["weights"]:
            numpy_dtype = DType(dtype).numpy
            nbytes = int(np.prod(shape, dtype=np.int64)) * numpy_dtype.itemsize
            array = block[position : position + nbytes].view(numpy_dtype).reshape(shape)
            weights[name] = array
            position += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        return OnnxModel(Normalized(graph, weights, frozenset(table["inputs"]), table["opset"]))
