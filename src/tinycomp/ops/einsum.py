"""ONNX Einsum, composed of sums, transposes and matrix products."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..diagnostics import ModelError
from ..relay.nodes import Atom
from ..types import TensorType
from .layout import reshape, transpose
from .onnx_node import OnnxImport, OnnxNode


@dataclass(frozen=True)
class Term:
    """A tensor with one label per axis."""

    value: Atom
    labels: str

    def size(self, label: str) -> int:
        assert isinstance(self.value.type, TensorType)
        return self.value.type.static_shape[self.labels.index(label)]

    def sizes(self, labels: str) -> list[int]:
        return [self.size(label) for label in labels]


def parse_equation(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """Labels of the operands and of the result; an ellipsis becomes capital letters.

    >>> parse_equation("...ij,jk", [3, 2])
    (['Aij', 'jk'], 'Aik')
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    if len(operands) != len(ranks):
        raise ModelError(f"Einsum: {equation!r} has {len(operands)} operands, not {len(ranks)}")
    extra = [r - len(o.replace("...", "")) for o, r in zip(operands, ranks, strict=True)]
    free = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in left + right]
    widest = max((e for o, e in zip(operands, extra, strict=True) if "..." in o), default=0)
    ellipsis = "".join(free[:widest])
    labels = []
    for operand, count in zip(operands, extra, strict=True):
        if count < 0 or (count and "..." not in operand):
            raise ModelError(f"Einsum: {equation!r} does not fit operands of rank {ranks}")
        labels.append(operand.replace("...", ellipsis[len(ellipsis) - count :]))
    if arrow:
        return labels, right.replace("...", ellipsis)
    joined = "".join(labels)
    once = sorted(c for c in set(joined) - set(ellipsis) if joined.count(c) == 1)
    return labels, ellipsis + "".join(once)


def _sum_out(node: OnnxNode, term: Term, keep: set[str]) -> Term:
    """`term` summed over the labels that nothing else needs."""
    axes = tuple(d for d, label in enumerate(term.labels) if label not in keep)
    if not axes:
        return term
    value = node.builder.call("sum", term.value, axis=axes, keepdims=False)
    return Term(value, "".join(label for label in term.labels if label in keep))


def _squeeze_broadcast(node: OnnxNode, term: Term, other: Term) -> Term:
    """Without axes of size 1 that broadcast against the other term's."""
    drop = {x for x in term.labels if x in other.labels and term.size(x) == 1 != other.size(x)}
    labels = "".join(x for x in term.labels if x not in drop)
    return Term(reshape(node, term.value, term.sizes(labels)), labels) if drop else term


def _arrange(node: OnnxNode, term: Term, *groups: str) -> Atom:
    """The axes in the order of the groups; each group after the first becomes one axis."""
    order = "".join(groups)
    value = transpose(node, term.value, [term.labels.index(label) for label in order])
    merged = [math.prod(term.sizes(group)) for group in groups[1:]]
    return reshape(node, value, [*term.sizes(groups[0]), *merged])


def _contract(node: OnnxNode, a: Term, b: Term, keep: set[str]) -> Term:
    """The product of two terms, summed over their common labels that are not kept."""
    a, b = _squeeze_broadcast(node, a, b), _squeeze_broadcast(node, b, a)
    a, b = _sum_out(node, a, keep | set(b.labels)), _sum_out(node, b, keep | set(a.labels))
    batch = "".join(x for x in a.labels if x in b.labels and x in keep)
    summed = "".join(x for x in a.labels if x in b.labels and x not in keep)
    rows = "".join(x for x in a.labels if x not in b.labels)
    columns = "".join(x for x in b.labels if x not in a.labels)
    sizes = a.sizes(batch) + a.sizes(rows) + b.sizes(columns)
    left, right = _arrange(node, a, batch, rows, summed), _arrange(node, b, batch, summed, columns)
    operator = "nn.matmul" if summed else "multiply"  # an outer product sums nothing
    product = node.builder.call(operator, left, right)
    return Term(reshape(node, product, sizes), batch + rows + columns)


def _import_einsum(node: OnnxNode) -> Atom:
    values = [node.input(i) for i in range(len(node.inputs))]
    ranks = [node.type(i).rank for i in range(len(values))]
    labels, result = parse_equation(node.attr("equation"), ranks)
    if any(len(set(x)) != len(x) for x in labels):
        raise node.unsupported("a repeated label within one operand (a diagonal)")
    terms = [Term(v, x) for v, x in zip(values, labels, strict=True)]
    current = terms[0]
    for n, following in enumerate(terms[1:], 2):
        keep = set(result).union(*(t.labels for t in terms[n:]))
        current = _contract(node, current, following, keep)
    current = _sum_out(node, current, set(result))
    return transpose(node, current.value, [current.labels.index(x) for x in result])


ONNX: dict[str, OnnxImport] = {"Einsum": _import_einsum}
