"""Give symbolic dimensions and scalars of a function their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..ir.expr import Expr, Load, Var, const, substitute
from ..ir.fold import refold
from ..ir.node import Node, fold
from .nodes import Alloc, Block, Buffer, PrimFunc, Store


def specialize(func: PrimFunc, values: Mapping[Var, Expr]) -> PrimFunc:
    """`func` with free variables replaced, also in shapes of buffers and domains of block axes.

    def f(A: float32[n]) -> (B: float32[n]):        def f(A: float32[8]) -> (B: float32[8]):
        for i in range(n): B[i] = A[i] + 1    -->       for i in range(8): B[i] = A[i] + 1
    """
    buffers: dict[Buffer, Buffer] = {}

    def renew(buffer: Buffer) -> Buffer:
        if buffer not in buffers:
            shape = tuple(substitute(d, values) for d in buffer.shape)
            same = all(a is b for a, b in zip(shape, buffer.shape, strict=True))
            buffers[buffer] = buffer if same else replace(buffer, shape=shape)
        return buffers[buffer]

    def step(node: Node, children: list[Node]) -> Node:
        if isinstance(node, Var):
            return values.get(node, node)
        node = refold(node, children)
        match node:
            case Load():
                return Load(renew(node.source), node.indices, node.predicate)
            case Store() | Alloc():
                return replace(node, buffer=renew(node.buffer))
            case Block():
                axes = tuple(
                    replace(a, min=substitute(a.min, values), extent=substitute(a.extent, values))
                    for a in node.iter_vars
                )
                return replace(node, iter_vars=axes)
        return node

    return replace(
        func,
        params=tuple(renew(b) for b in func.params),
        allocs=tuple(renew(b) for b in func.allocs),
        body=fold(func.body, step),
        sizes=tuple(v for v in func.sizes if v not in values),
    )


def specialize_sizes(func: PrimFunc, sizes: Mapping[Var, int]) -> PrimFunc:
    """`func` for given values of its symbolic sizes."""
    if not func.sizes:
        return func
    return specialize(func, {v: const(sizes[v], v.dtype) for v in func.sizes})
