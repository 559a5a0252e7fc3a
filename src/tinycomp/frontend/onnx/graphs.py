"""Facts about ONNX graphs: their nodes with all subgraphs, what nodes read, a valid order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import onnx
from onnx import AttributeProto, GraphProto, NodeProto

from ...diagnostics import ModelError, Span


def node_name(node: NodeProto, index: int) -> str:
    """The node's name, or `Op#index` if it has none."""
    return node.name or f"{node.op_type}#{index}"


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """The graphs in a node's attributes (If, Loop, Scan)."""
    found = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            found.append(attribute.g)
        elif attribute.type == AttributeProto.GRAPHS:
            found.extend(attribute.graphs)
    return found


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph` and every graph nested in it."""
    stack = [graph]
    while stack:
        current = stack.pop()
        yield current
        for node in current.node:
            stack.extend(subgraphs(node))


def reads(node: NodeProto) -> set[str]:
    """The names that a node needs, with those its subgraphs take from outside."""
    names = {name for name in node.input if name}
    for outer in subgraphs(node):
        for graph in all_graphs(outer):
            names.update(name for inner in graph.node for name in inner.input if name)
            names.update(output.name for output in graph.output)
    return names


def sorted_nodes(graph: GraphProto) -> list[tuple[int, NodeProto]]:
    """Nodes with their indices, producers first; the given order where that is one.

    Raises:
        ModelError: two nodes produce one tensor, or tensors depend on each other in a cycle.
    """
    nodes = list(enumerate(graph.node))
    producer: dict[str, int] = {}
    in_order = True
    for index, node in nodes:
        for name in node.output:
            if name and name in producer:
                raise ModelError(
                    f"tensor {name!r} is produced twice",
                    span=Span(
                        (
                            node_name(graph.node[producer[name]], producer[name]),
                            node_name(node, index),
                        )
                    ),
                )
            if name:
                producer[name] = index
    needs = [{producer[n] for n in reads(node) if n in producer} for _, node in nodes]
    in_order = all(max(need, default=-1) < index for index, need in enumerate(needs))
    return nodes if in_order else _kahn(graph, needs)


def _kahn(graph: GraphProto, needs: list[set[int]]) -> list[tuple[int, NodeProto]]:
    users: dict[int, list[int]] = {}
    for index, need in enumerate(needs):
        for source in need:
            users.setdefault(source, []).append(index)
    waiting = [len(need) for need in needs]
    ready = deque(i for i, count in enumerate(waiting) if not count)
    order: list[int] = []
    while ready:
        index = ready.popleft()
        order.append(index)
        for user in users.get(index, ()):
            waiting[user] -= 1
            if not waiting[user]:
                ready.append(user)
    if len(order) < len(needs):
        stuck = next(i for i, count in enumerate(waiting) if count)
        node = graph.node[stuck]
        raise ModelError(
            f"tensor {node.output[0]!r} depends on itself: the graph has a cycle",
            span=Span((node_name(node, stuck),)),
        )
    return [(i, graph.node[i]) for i in order]


def newest_opset() -> int:
    """The newest ai.onnx opset that the installed onnx knows."""
    return onnx.defs.onnx_opset_version()
