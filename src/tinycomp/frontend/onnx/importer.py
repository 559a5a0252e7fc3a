"""An ONNX graph, node by node, to graph IR."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx

from ...config import Config
from ...diagnostics import (
    MemoryBudgetError,
    ModelError,
    Span,
    TinycompError,
    UnsupportedModel,
)
from ...ops import default_ops, onnx_importers
from ...ops.onnx_node import OnnxImport, OnnxNode
from ...relay.builder import Builder
from ...relay.nodes import Atom, Function, IRModule, Var
from ...relay.op import OpSet
from ...types import TensorType, Type
from .check import NodeChecker
from .graphs import all_graphs, node_name, sorted_nodes
from .inputs import input_types
from .normalize import Normalized, normalize
from .read import Model, read_model
from .values import array_of, attribute_value


def from_onnx(
    model: Model,
    *,
    ops: OpSet | None = None,
    importers: Mapping[str, OnnxImport] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
    memory_budget: int | None = None,
) -> IRModule:
    """The graph IR of an ONNX model.

    Parameters of "main" are the graph's inputs in order, without those that are initializers.
    Every binding carries the name of its ONNX node. Operators of constants are evaluated.

    Args:
        model: a path, the bytes of a file, or a ModelProto (which is not changed).
        ops: the operator set, `default_ops()` if None.
        importers: by operator type, `onnx_importers()` if None.
        input_shapes: shapes by input name, where the model leaves them open.
        dims: sizes of symbolic dimensions by name.
        memory_budget: bytes that one tensor may have; default: this machine's memory.

    Raises:
        ModelError: the file is damaged or inconsistent.
        UnsupportedModel: operators without importer (all of them are listed), or open dimensions.
        InputError: `input_shapes` or `dims` do not fit the model.
        MemoryBudgetError: a tensor exceeds the budget.
        TypeMismatch: a node was given types that its operator does not accept.

    >>> from onnx import parser
    >>> text = "g (float[2] x) => (float[2] y) {y = Relu(x)}"
    >>> header = '<ir_version: 9, opset_import: ["": 20]>'
    >>> from_onnx(parser.parse_model(header + text)).output_names
    ('y',)
    """
    return import_normalized(
        normalize(read_model(model)),
        ops=ops,
        importers=importers,
        input_shapes=input_shapes,
        dims=dims,
        memory_budget=memory_budget,
    )


def import_normalized(
    proto: Normalized,
    *,
    ops: OpSet | None = None,
    importers: Mapping[str, OnnxImport] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
    memory_budget: int | None = None,
) -> IRModule:
    """`from_onnx` of a model that has been read; it may be imported again for other sizes."""
    importers = onnx_importers() if importers is None else importers
    check_supported(proto.graph, importers)
    builder = Builder(default_ops() if ops is None else ops)
    scope = Scope(
        builder,
        importers,
        checker=NodeChecker(proto.opset),
        memory_budget=memory_budget or Config().memory_budget,
    )
    return _import_model(proto, scope, input_shapes, dims)


def _import_model(
    model: Normalized,
    scope: Scope,
    input_shapes: Mapping[str, Sequence[int]] | None,
    dims: Mapping[str, int] | None,
) -> IRModule:
    graph, builder = model.graph, scope.builder
    for name, array in model.weights.items():
        scope.define(name, builder.const(array))
    scope.define_initializers(graph)
    inputs = [i for i in graph.input if i.name not in scope.values]
    for info, type_ in zip(inputs, input_types(inputs, input_shapes, dims), strict=True):
        scope.check_size(type_, f"input {info.name!r}")
        scope.define(info.name, builder.param(info.name, type_))
    outputs = scope.run(graph)
    function = builder.finish(outputs[0] if len(outputs) == 1 else outputs, {"name": graph.name})
    return IRModule(
        {"main": function}, tuple(i.name for i in inputs), tuple(o.name for o in graph.output)
    )


def _key(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def check_supported(graph: onnx.GraphProto, importers: Mapping[str, OnnxImport]) -> None:
    """Raise one error that lists every operator without an importer, in subgraphs too."""
    count: Counter[str] = Counter()
    names: dict[str, list[str]] = {}
    for inner in all_graphs(graph):
        for index, node in enumerate(inner.node):
            key = _key(node)
            if key not in importers:
                count[key] += 1
                names.setdefault(key, []).append(node_name(node, index))
    if count:
        lines = [
            f"{key} ({number}x: {', '.join(names[key][:3])}{', ...' if number > 3 else ''})"
            for key, number in count.most_common()
        ]
        raise UnsupportedModel(
            f"the model uses {len(count)} operator(s) that tinycomp cannot import: "
            + "; ".join(lines)
        )


class Scope:
    """The tensors known by name while a graph is imported.

    A subgraph's scope has a parent. If it emits into another builder (a branch or loop body that
    becomes a function), variables from outside enter through new parameters: `captures`.
    """

    def __init__(
        self,
        builder: Builder,
        importers: Mapping[str, OnnxImport],
        parent: Scope | None = None,
        *,
        checker: NodeChecker,
        memory_budget: int,
    ) -> None:
        self.builder, self.importers, self.parent = builder, importers, parent
        self.checker, self.memory_budget = checker, memory_budget
        self.values: dict[str, Atom] = {}
        self.captures: dict[Atom, Var] = {}

    def define(self, name: str, value: Atom) -> None:
        self.values[name] = value

    def inner(self, builder: Builder) -> Scope:
        """The scope of a subgraph that emits into `builder`."""
        return Scope(
            builder,
            self.importers,
            self,
            checker=self.checker,
            memory_budget=self.memory_budget,
        )

    def check_size(self, type_: Type, what: str) -> None:
        """Refuse a tensor that no memory could hold, before anything allocates it."""
        if isinstance(type_, TensorType) and type_.is_static and type_.nbytes > self.memory_budget:
            raise MemoryBudgetError(
                f"{what} is {type_}, {type_.nbytes / 2**30:.1f} GiB; "
                f"the memory budget is {self.memory_budget / 2**30:.1f} GiB",
                hint="check the model's sizes, or raise the budget: TINYCOMP_MEMORY_LIMIT=MiB",
            )

    def define_initializers(self, graph: onnx.GraphProto) -> None:
        if graph.sparse_initializer:
            raise UnsupportedModel(f"graph {graph.name!r} has sparse initializers")
        for tensor in graph.initializer:
            self.define(tensor.name, self.builder.const(array_of(tensor)))

    def lookup(self, name: str) -> Atom | None:
        """The value of a name, brought in through the functions around; None if undefined."""
        path: list[Scope] = []
        scope: Scope | None = self
        while scope is not None and name not in scope.values:
            path.append(scope)
            scope = scope.parent
        if scope is None:
            return None
        value = scope.values[name]
        for inner in reversed(path):
            value = inner._enter(value, name, scope.builder)
            inner.values[name] = value
            scope = inner
        return value

    def _enter(self, value: Atom, name: str, outer: Builder) -> Atom:
        if self.builder is outer or not isinstance(value, Var):
            return value
        if value not in self.captures:
            self.captures[value] = self.builder.param(name, value.type)
        return self.captures[value]

    def run(self, graph: onnx.GraphProto) -> list[Atom]:
        """Import the nodes of a graph whose inputs are defined; its outputs."""
        for index, node in sorted_nodes(graph):
            self._import_node(node, node_name(node, index))
        return [self._require(o.name, "a graph output") for o in graph.output]

    def _require(self, name: str, user: str) -> Atom:
        value = self.lookup(name)
        if value is None:
            raise ModelError(f"tensor {name!r}, {user}, is not defined anywhere")
        return value

    def _import_node(self, node: onnx.NodeProto, name: str) -> None:
        span = Span((name,))
        with self.builder.at(span):
            try:
                results = self.importers[_key(node)](self._view(node, name))
                results = [results] if not isinstance(results, Sequence) else results
                for output, value in zip(node.output, results, strict=False):
                    self.check_size(value.type, f"tensor {output!r}")
            except TinycompError as error:
                error.span = error.span if error.span.nodes else span
                raise
        for output, value in zip(node.output, results, strict=False):
            if output:
                self.define(output, value)

    def _view(self, node: onnx.NodeProto, name: str) -> OnnxNode:
        inputs = tuple(
            self._require(i, f"read by node {name!r}") if i else None for i in node.input
        )
        self.checker.check_types(node, [None if i is None else i.type for i in inputs])
        attrs = {
            a.name: attribute_value(a, lambda graph: Subgraph(graph, self), name)
            for a in node.attribute
        }
        return OnnxNode(
            node.op_type, name, inputs, attrs, len(node.output), self.builder, node.domain,
            tuple(node.input), {"outputs": tuple(node.output)},
        )  # fmt: skip


class Subgraph:
    """A graph attribute of If or Loop: `ops.control` imports it inline or as a function.

    Importing a nested graph recurses, at most 33 deep: protobuf limits the nesting of messages.
    """

    def __init__(self, graph: onnx.GraphProto, scope: Scope) -> None:
        self.graph, self.scope = graph, scope
        self.num_nodes = len(graph.node)
        self.num_outputs = len(graph.output)

    def __call__(self, *inputs: Atom) -> list[Atom]:
        """Import the nodes into the current function; the graph's outputs for these inputs."""
        return self._run(self.scope.inner(self.scope.builder), inputs)

    def close(
        self,
        types: Sequence[Type],
        finish: Callable[[Builder, list[Atom], list[Atom]], list[Atom]] | None = None,
    ) -> tuple[Function, tuple[Atom, ...]]:
        """The graph as a closed function of inputs of these types, then of the captured values.

        `finish(builder, inputs, outputs)` may compute other results. One result is returned bare,
        several as a tuple. Also gives the values to pass for the captures.
        """  # fmt: skip
        outer = self.scope.builder
        builder = Builder(outer.ops, fold=outer.fold, fold_limit=outer.fold_limit)
        scope = self.scope.inner(builder)
        self._check_inputs(len(types))
        names = [i.name for i in self.graph.input]
        inputs: list[Atom] = [builder.param(n, t) for n, t in zip(names, types, strict=True)]
        outputs = self._run(scope, inputs)
        if finish is not None:
            outputs = finish(builder, inputs, outputs)
        result: Any = outputs if len(outputs) != 1 or finish is not None else outputs[0]
        return builder.finish(result), tuple(scope.captures)

    def _check_inputs(self, count: int) -> None:
        expected = len(self.graph.input)
        if count != expected:
            raise ModelError(f"subgraph {self.graph.name!r} takes {expected} inputs, got {count}")

    def _run(self, scope: Scope, inputs: Sequence[Atom]) -> list[Atom]:
        self._check_inputs(len(inputs))
        for info, value in zip(self.graph.input, inputs, strict=True):
            scope.define(info.name, value)
        scope.define_initializers(self.graph)
        return scope.run(self.graph)
