"""Virtual threads: the work of several threads, interleaved in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...ir.expr import Expr, IntImm, Load, Var
from ...ir.node import Node, postorder
from ..nodes import Alloc, Buffer, Evaluate, For, ForKind, If, PrimFunc, Seq, Stmt, Store
from ..tree import child_statements, statements
from .visit import Visit, drive, make_if, rename, rewriter, seq

_MOST_UNROLLED = 16  # virtual threads whose copies of a statement are written out


def inject_virtual_threads(func: PrimFunc) -> PrimFunc:
    """Replicate what depends on a virtual thread right where it is done; share the rest.

        for v in thread(2, "vthread"):             for k in range(8):
          alloc T[1] in local:                       alloc T[2, 1] in local:
            for k in range(8):                         S[0] = B[k]
              S[0] = B[k]                  -->         for v in unrolled(2): T[v, 0] = A[v, k]
              T[0] = A[v, k]                           for v in unrolled(2): C[v] += T[v, 0] * S[0]
              C[v] = C[v] + T[0] * S[0]

    The loop over virtual threads moves inwards, past loops and conditions that are the same for
    all of them; so what they load is in registers together. A buffer inside whose contents differ
    between them gets a dimension for them. Comes after `compact_buffers`, which shrinks buffers to
    what one virtual thread needs.

    Legal because iterations of such a loop are independent (`bind` checks it). After TVM's pass of
    the same purpose (Chen et al., OSDI 2018, section 4.4).
    """
    if not any(_is_virtual(s) for s in statements(func.body)):
        return func

    def visit(stmt: Stmt) -> Visit[Stmt]:
        children: list[Any] = []
        for child in stmt.children():
            if isinstance(child, Stmt):
                child = yield visit(child)
            children.append(child)
        stmt = stmt.with_children(children)
        return _Injector(stmt).run() if isinstance(stmt, For) and _is_virtual(stmt) else stmt

    return replace(func, body=drive(visit(func.body)))


def _is_virtual(stmt: Stmt) -> bool:
    return isinstance(stmt, For) and stmt.thread.startswith("vthread")


class _Injector:
    """Moves one loop over virtual threads inwards."""

    def __init__(self, loop: For) -> None:
        short = isinstance(loop.extent, IntImm) and loop.extent.value <= _MOST_UNROLLED
        kind = ForKind.UNROLLED if short else ForKind.SERIAL
        self.loop = replace(loop, kind=kind, thread="")
        self.touched = _touched(loop)
        self.expanded: dict[Buffer, Buffer] = {}
        self.rewrite = rewriter(self._with_dimension)

    def run(self) -> Stmt:
        if not isinstance(self.loop.extent, IntImm):  # buffers could not get a dimension for it
            return self.loop
        return drive(self.visit(self.loop.body))

    def visit(self, stmt: Stmt) -> Visit[Stmt]:
        if isinstance(stmt, Seq):
            parts = []
            for child in stmt.stmts:
                parts.append((yield self.visit(child)))
            return seq(parts)
        if isinstance(stmt, Alloc):
            buffer = stmt.buffer
            if buffer in self.touched:
                wider = replace(buffer, shape=(self.loop.extent, *buffer.shape))
                buffer = self.expanded.setdefault(buffer, wider)  # statements may be there twice
            return replace(stmt, buffer=buffer, body=(yield self.visit(stmt.body)))
        if isinstance(stmt, For) and stmt.kind is not ForKind.VECTORIZED:
            if not self.depends((stmt.min, stmt.extent)):
                return replace(stmt, body=(yield self.visit(stmt.body)))
        elif isinstance(stmt, If) and not self.depends((stmt.condition,)):
            then = yield self.visit(stmt.then)
            otherwise = None if stmt.otherwise is None else (yield self.visit(stmt.otherwise))
            return make_if(stmt.condition, then, otherwise)
        return self.replicated(stmt)

    def replicated(self, stmt: Stmt) -> Stmt:
        """The statement for each virtual thread, or once if it is the same for all."""
        if not any(self.differs(s) for s in statements(stmt)):
            return stmt
        return rename(replace(self.loop, body=self.rewrite(stmt)))

    def differs(self, stmt: Stmt) -> bool:
        if isinstance(stmt, Store):
            return stmt.buffer in self.touched
        return isinstance(stmt, Evaluate) and self.depends((stmt.value,))

    def depends(self, exprs: Sequence[Expr]) -> bool:
        return _depends(exprs, self.touched)

    def _with_dimension(self, node: Any) -> Any:
        """An access to the own part of an expanded buffer."""
        own = self.loop.var - self.loop.min
        if isinstance(node, Load) and node.source in self.expanded:
            wider: Any = self.expanded[node.source]  # type: ignore[index]
            return Load(wider, (own, *node.indices), node.predicate)
        if isinstance(node, Store) and node.buffer in self.expanded:
            wider = self.expanded[node.buffer]
            return replace(node, buffer=wider, indices=(own, *node.indices))
        return node


def _depends(exprs: Sequence[Node], touched: set[Any]) -> bool:
    return any(
        n in touched or (isinstance(n, Load) and n.source in touched) for n in postorder(exprs)
    )


def _touched(loop: For) -> set[Var | Buffer]:
    """The variables and buffers inside whose values differ between the iterations of `loop`."""
    touched: set[Var | Buffer] = {loop.var}
    before = 0
    while len(touched) > before:
        before = len(touched)
        stack: list[tuple[Stmt, bool]] = [(loop.body, False)]  # whether it runs for some only
        while stack:
            stmt, some = stack.pop()
            inside = child_statements(stmt)
            own = [c for c in stmt.children() if not isinstance(c, Stmt)]
            differs = some or _depends(own, touched)
            if isinstance(stmt, Store) and differs:
                touched.add(stmt.buffer)
            elif isinstance(stmt, For) and differs:
                touched.add(stmt.var)
            stack.extend((s, differs) for s in inside)
    return touched
