"""Writing ONNX models by hand: operators by name, layers with seeded weights, shapes always known.

>>> b = GraphBuilder("perceptron")
>>> x = b.input("x", (2, 8))
>>> y = b.linear(b.op("Relu", b.linear(x, 16)), 4)
>>> b.shape(y)
(2, 4)
>>> [node.op_type for node in b.model(y=y).graph.node]
['Gemm', 'Relu', 'Gemm']
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Operand = str | np.ndarray
"""The name of a value ("" for an optional input left out), or an array that becomes a constant."""

IR_VERSION = 10
RANGE = "range:"  # metadata key prefix: the exclusive limit of an integer input


class GraphBuilder:
    """Builds one model node by node; values are their names.

    Args:
        name: of the graph.
        seed: of the weights.
        opset: version of the default operator set, 17 to 21.
    """

    def __init__(self, name: str, seed: int = 0, opset: int = 18) -> None:
        self.name = name
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self._types: dict[str, onnx.TypeProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._ranges: dict[str, int] = {}

    # values

    def input(self, name: str, shape: Sequence[int], dtype: type = np.float32) -> str:
        """A graph input."""
        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        info = helper.make_tensor_value_info(name, element, list(shape))
        self._inputs.append(info)
        self._types[name] = info.type
        return name

    def ids(self, name: str, shape: Sequence[int], limit: int) -> str:
        """An int64 graph input with values in [0, limit); the limit goes into the metadata."""
        self._ranges[name] = limit
        return self.input(name, shape, np.int64)

    def constant(self, array: np.ndarray, hint: str = "constant") -> str:
        """An initializer."""
        name = f"{hint}_{len(self._constants)}"
        tensor = numpy_helper.from_array(np.asarray(array, order="C"), name)
        self._constants[name] = tensor
        self._types[name] = helper.make_tensor_type_proto(tensor.data_type, list(array.shape))
        return name

    def normal(self, shape: Sequence[int], std: float, mean: float = 0.0) -> np.ndarray:
        """Seeded float32 values."""
        return self.rng.standard_normal(tuple(shape), np.float32) * np.float32(std) + np.float32(
            mean
        )

    def shape(self, value: str) -> tuple[int, ...]:
        """The static shape of a value."""
        return tuple(d.dim_value for d in self._types[value].tensor_type.shape.dim)

    # operators

    def op(self, op_type: str, *inputs: Operand, **attributes: Any) -> str:
        """A node with one output."""
        return self.multi(op_type, *inputs, outputs=1, **attributes)[0]

    def multi(
        self, op_type: str, *inputs: Operand, outputs: int, **attributes: Any
    ) -> tuple[str, ...]:
        """A node with several outputs."""
        names = [self.constant(x) if isinstance(x, np.ndarray) else x for x in inputs]
        base = f"{op_type.lower()}_{len(self._nodes)}"
        results = [base if outputs == 1 else f"{base}_{i}" for i in range(outputs)]
        node = helper.make_node(op_type, names, results, base, **attributes)
        self._nodes.append(node)
        self._types.update(self._infer(node))
        return tuple(results)

    def _infer(self, node: onnx.NodeProto) -> dict[str, onnx.TypeProto]:
        known = [self._constants[name] for name in node.input if name in self._constants]
        small = {t.name: t for t in known if math.prod(t.dims) <= 16}  # shapes, axes, scales
        return onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op_type, self.opset),
            node,
            {name: self._types[name] for name in node.input if name},
            small,
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=IR_VERSION,
        )

    def add(self, x: Operand, y: Operand) -> str:
        return self.op("Add", x, y)

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def concat(self, values: Sequence[str], axis: int = 1) -> str:
        return self.op("Concat", *values, axis=axis)

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        return self.op("Reshape", x, np.array(shape, np.int64))

    def transpose(self, x: str, perm: Sequence[int]) -> str:
        return self.op("Transpose", x, perm=list(perm))

    def flatten(self, x: str) -> str:
        return self.op("Flatten", x, axis=1)

    def slice(self, x: str, start: int, end: int, axis: int) -> str:
        """x[start:end] along an axis."""
        return self.op("Slice", x, *(np.array([i], np.int64) for i in (start, end, axis)))

    # layers

    def conv(
        self,
        x: str,
        channels: int,
        kernel: int,
        stride: int = 1,
        pad: int | None = None,
        groups: int = 1,
        dilation: int = 1,
        bias: bool = True,
    ) -> str:
        """2-D convolution of NCHW data with He-scaled weights; `pad` keeps the size by default."""
        pad = dilation * (kernel // 2) if pad is None else pad
        fan_in = self.shape(x)[1] // groups
        weight = self.normal(
            (channels, fan_in, kernel, kernel), math.sqrt(2 / (fan_in * kernel * kernel))
        )
        return self.op(
            "Conv",
            x,
            self.constant(weight, "weight"),
            *([self.constant(self.normal((channels,), 0.1), "bias")] if bias else []),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
            dilations=[dilation, dilation],
            group=groups,
        )

    def conv_transpose(
        self, x: str, channels: int, kernel: int, stride: int, pad: int = 0, bias: bool = True
    ) -> str:
        """2-D transposed convolution of NCHW data; out = (in - 1) * stride - 2 * pad + kernel."""
        fan_in = self.shape(x)[1]
        std = math.sqrt(2 * stride * stride / (fan_in * kernel * kernel))
        weight = self.normal((fan_in, channels, kernel, kernel), std)
        return self.op(
            "ConvTranspose",
            x,
            self.constant(weight, "weight"),
            *([self.constant(self.normal((channels,), 0.1), "bias")] if bias else []),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
        )

    def batch_norm(self, x: str, gain: float = 1.0) -> str:
        """Batch normalisation with non-trivial statistics, whose result is about `gain` x."""
        channels = self.shape(x)[1]
        uniform = self.rng.uniform
        scale = (gain * uniform(0.6, 1.4, channels)).astype(np.float32)
        variance = uniform(0.6, 1.4, channels).astype(np.float32)
        shift, mean = self.normal((channels,), 0.1), self.normal((channels,), 0.1)
        return self.op("BatchNormalization", x, scale, shift, mean, variance, epsilon=1e-5)

    def linear(self, x: str, features: int, bias: bool = True) -> str:
        """x W + b over the last axis: Gemm for matrices, else MatMul and Add."""
        fan_in = self.shape(x)[-1]
        weight = self.constant(self.normal((fan_in, features), math.sqrt(1 / fan_in)), "weight")
        if not bias:
            return self.op("MatMul", x, weight)
        offset = self.constant(self.normal((features,), 0.1), "bias")
        if len(self.shape(x)) == 2:
            return self.op("Gemm", x, weight, offset)
        return self.add(self.op("MatMul", x, weight), offset)

    def layer_norm(self, x: str, epsilon: float = 1e-5) -> str:
        """Layer normalisation over the last axis."""
        width = self.shape(x)[-1]
        gamma, beta = self.normal((width,), 0.1, 1.0), self.normal((width,), 0.1)
        return self.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=epsilon)

    def embedding(self, ids: str, count: int, width: int) -> str:
        """Rows of a seeded table [count, width]."""
        return self.op("Gather", self.constant(self.normal((count, width), 1.0), "table"), ids)

    def pool(
        self, kind: str, x: str, kernel: int, stride: int, pad: int = 0, **attributes: int
    ) -> str:
        """`MaxPool` or `AveragePool` of NCHW data."""
        return self.op(
            kind, x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, **attributes
        )

    def max_pool(self, x: str, kernel: int, stride: int, pad: int = 0, **attributes: int) -> str:
        return self.pool("MaxPool", x, kernel, stride, pad, **attributes)

    def avg_pool(self, x: str, kernel: int, stride: int, pad: int = 0, **attributes: int) -> str:
        return self.pool("AveragePool", x, kernel, stride, pad, **attributes)

    # the result

    def model(self, **outputs: str) -> onnx.ModelProto:
        """The model with values as its outputs, by output name."""
        rename = {value: name for name, value in outputs.items()}
        for node in self._nodes:
            node.input[:] = [rename.get(name, name) for name in node.input]
            node.output[:] = [rename.get(name, name) for name in node.output]
        infos = [
            onnx.ValueInfoProto(name=name, type=self._types[value])
            for name, value in outputs.items()
        ]
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, infos, list(self._constants.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=IR_VERSION,
            producer_name="tinycomp.testing",
        )
        helper.set_model_props(
            model, {RANGE + name: str(limit) for name, limit in self._ranges.items()}
        )
        return model


def seeded_inputs(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs by name: normal floats, integers below the limit that `GraphBuilder.ids` noted."""
    rng = np.random.default_rng(seed)
    properties = {p.key: p.value for p in model.metadata_props}
    initialized = {tensor.name for tensor in model.graph.initializer}
    arrays = {}
    for info in model.graph.input:
        if info.name in initialized:
            continue
        tensor = info.type.tensor_type
        shape = [d.dim_value or 1 for d in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if dtype.kind == "f":
            array = rng.standard_normal(shape)
        else:
            array = rng.integers(0, int(properties.get(RANGE + info.name, 2)), shape)
        arrays[info.name] = np.asarray(array, dtype)
    return arrays
