"""Whether a model for larger sizes, given padded inputs, computes what a smaller one does.

Both are the same model, imported for two sets of sizes. The claim about a value of the small model
and its counterpart in the large one is that they agree wherever the small one is defined:

    small[i] == large[i]   for every index i inside the small one's shape

It holds for inputs by padding at the end of an axis. It carries over to the result of an operator
whose tensor expressions have the same bodies in both models: the same reads at the same indices,
the same constants, reductions over the same ranges. (Reads that are inside the small operand are
inside the large one, where the claim gives the same value.) So a batch passes through convolutions,
matmuls and softmax of other axes; a sum over the batch, a flip of it, or its size used as a number
do not. What is beyond the small shape never matters: it is cut off.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir.expr import Call as ScalarCall
from ..ir.expr import Cast, Expr, IntImm, Load, is_const, rebuild
from ..ir.expr import Var as ScalarVar
from ..te.simplify import Analyzer
from ..te.tensor import (
    ComputeOp,
    Operation,
    PlaceholderOp,
    Reduce,
    Tensor,
    placeholder,
    topological,
)
from ..types import TensorType, Type
from .nodes import Atom, Binding, Call, Constant, IRModule, Tuple, TupleGetItem
from .op import Attrs, Op


def obstacle(small: IRModule, large: IRModule) -> str | None:
    """Why cropping what `large` makes of padded inputs may not give what `small` gives.

    None if it is proven that it does. Neither may be fused yet.
    """
    f, g = small.main, large.main
    if len(f.bindings) != len(g.bindings):
        return "the model has another number of operators for other sizes"
    proof = _Proof(dict(zip(f.params, g.params, strict=True)))
    for a, b in zip(f.bindings, g.bindings, strict=True):
        reason = proof.step(a, b)
        if reason:
            where = f" (node {a.span})" if a.span.nodes else ""
            return f"{reason}{where}"
    return None if proof.agree(f.result, g.result) else "a result is another value"


@dataclass
class _Proof:
    """The pairs of values that are known to agree."""

    large: dict[Atom, Atom]
    known: dict[Any, str | None] = field(default_factory=dict)  # of operators seen before

    def agree(self, a: Atom, b: Atom) -> bool:
        if isinstance(a, Constant) and isinstance(b, Constant):
            return _agree(a.data, b.data)
        return self.large.get(a) is b

    def step(self, a: Binding, b: Binding) -> str | None:
        """Extend the claim to one more binding, or say why not."""
        x, y = a.value, b.value
        if type(x) is not type(y) or not isinstance(x, Call | Tuple | TupleGetItem):
            return f"{type(x).__name__} is not followed"
        if len(x.args) != len(y.args) or not all(map(self.agree, x.args, y.args)):
            return "an operand is another value, such as a size used as a number"
        if isinstance(x, TupleGetItem) and isinstance(y, TupleGetItem) and x.index != y.index:
            return "another element of a tuple"
        if isinstance(x, Call) and isinstance(y, Call):
            if x.op is not y.op or not isinstance(x.op, Op):
                return "another operator"
            ours = _Use(x.op, x.attrs, tuple(v.type for v in x.args), a.var.type)
            theirs = _Use(x.op, y.attrs, tuple(v.type for v in y.args), b.var.type)
            if ours != theirs:
                indices = tuple(map(_integers, x.args))
                key = (ours, theirs, tuple(map(id, indices)))  # which live as long as the models
                if key not in self.known:
                    self.known[key] = _compare(ours, theirs, indices)
                if self.known[key]:
                    return self.known[key]
        self.large[a.var] = b.var
        return None


@dataclass(frozen=True)
class _Use:
    """An operator with what decides about its tensor expressions."""

    op: Op
    attrs: Attrs
    args: tuple[Type, ...]
    result: Type

    def tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Placeholders for the arguments, and the outputs."""
        assert self.op.compute is not None
        arguments = [placeholder(t.static_shape, t.dtype) for t in self.args]  # type: ignore[union-attr]
        return arguments, self.op.compute(self.attrs, arguments, self.result)


def _agree(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype != b.dtype or a.ndim != b.ndim:
        return False
    if any(n > m for n, m in zip(a.shape, b.shape, strict=True)):
        return False
    if a.shape == b.shape and a.ctypes.data == b.ctypes.data and a.strides == b.strides:
        return True
    corner = b[tuple(slice(n) for n in a.shape)]
    return a.tobytes() == corner.tobytes()


def _integers(atom: Atom) -> np.ndarray | None:
    """The array of a constant of integers."""
    if isinstance(atom, Constant) and atom.type.dtype.is_int and atom.data.size:
        return atom.data
    return None


def _compare(small: _Use, large: _Use, constants: tuple[np.ndarray | None, ...]) -> str | None:
    name = small.op.name
    if small.op.compute is None or not all(isinstance(t, TensorType) for t in small.args):
        return f"{name} has no tensor expression"
    (inputs, outputs), (others, results) = small.tensors(), large.tensors()
    ours, theirs = topological(outputs), topological(results)
    matched: dict[Operation, Operation] = {b.op: a.op for a, b in zip(inputs, others, strict=True)}
    if len(ours) != len(theirs):
        return f"{name} is computed in another way for other sizes"
    known = {t.op: c for t, c in zip(inputs, constants, strict=True) if c is not None}
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(b, PlaceholderOp):
            same = matched.get(b) is a
        else:
            same = _same_stage(a, b, matched, known)
            matched[b] = a
        if not same:
            return f"{name} mixes or counts what is padded"
    pairs = zip(outputs, results, strict=True)
    same = all(matched.get(t.op) is o.op and t.index == o.index for o, t in pairs)
    return None if same else f"{name} has other outputs"


def _same_stage(
    a: Operation,
    b: Operation,
    matched: Mapping[Operation, Operation],
    constants: Mapping[Operation, np.ndarray],
) -> bool:
    """Whether stage `b` has the body of stage `a`, once its variables and tensors are replaced."""
    if not (isinstance(a, ComputeOp) and isinstance(b, ComputeOp)):
        return False
    counts = [(len(op.axis), len(op.body), len(op.reduce_axis)) for op in (a, b)]
    if counts[0] != counts[1]:
        return False
    summed = list(zip(a.reduce_axis, b.reduce_axis, strict=True))
    if any(i.min is not j.min or i.extent is not j.extent for i, j in summed):
        return False
    analyzer = Analyzer()
    variables: dict[ScalarVar, Expr] = {}
    for i, j in [*zip(a.axis, b.axis, strict=True), *summed]:
        analyzer.bind(i.var, i.min, i.extent)  # only indices of the small one count
        single = is_const(i.extent, 1) and is_const(i.min)
        variables[i.var] = variables[j.var] = i.min if single else i.var
    unify = functools.partial(_unify, variables=variables, matched=matched, constants=constants)
    for x, y in zip(a.body, b.body, strict=True):
        parts = _parts(x, y)
        if parts is None:
            return False
        for p, q in parts:
            p, q = unify(p), unify(q)
            if p is not q and analyzer.simplify(p) is not analyzer.simplify(q):
                return False
    return True


def _unify(
    expr: Expr,
    variables: Mapping[ScalarVar, Expr],
    matched: Mapping[Operation, Operation],
    constants: Mapping[Operation, np.ndarray],
) -> Expr:
    """An expression of either model in the variables and tensors of the small one.

    Bounds checks of constant indices that lie inside the small operand are left out.
    """

    def handler(node: Expr) -> Expr:
        if isinstance(node, ScalarVar):
            return variables.get(node, node)
        if isinstance(node, Load) and node.source.op in matched:
            source = matched[node.source.op].output(node.source.index)
            return Load(source, node.indices, node.predicate)
        if isinstance(node, ScalarCall) and node.name == "checked_index":
            index, extent = node.args
            load = index.value if isinstance(index, Cast) else index
            if isinstance(load, Load) and _inside(load, extent, constants):
                return index
        return node

    return rebuild(expr, handler)


def _inside(load: Load, extent: Expr, constants: Mapping[Operation, np.ndarray]) -> bool:
    """Whether all indices that `load` may read from a constant lie in [0, extent)."""
    array = constants.get(load.source.op)
    if array is None or not isinstance(extent, IntImm):
        return False
    read = array[tuple(i.value if isinstance(i, IntImm) else slice(None) for i in load.indices)]
    return int(read.min()) >= 0 and int(read.max()) < extent.value


def _parts(x: Expr, y: Expr) -> list[tuple[Expr, Expr]] | None:
    """The pairs of expressions that must be equal for two bodies to be; None if they differ."""
    if not isinstance(x, Reduce) or not isinstance(y, Reduce):
        return None if isinstance(x, Reduce) or isinstance(y, Reduce) else [(x, y)]
    if x.index != y.index or len(x.sources) != len(y.sources):
        return None
    c, d = x.combiner, y.combiner
    renamed = dict(zip(d.lhs + d.rhs, c.lhs + c.rhs, strict=True))

    def rename(expr: Expr) -> Expr:
        return rebuild(expr, lambda n: renamed.get(n, n) if isinstance(n, ScalarVar) else n)

    combine = zip(c.results + c.identity, d.results + d.identity, strict=True)
    if any(p is not rename(q) for p, q in combine):
        return None
    return [*zip(x.sources, y.sources, strict=True), (x.condition, y.condition)]


def output_shapes(module: IRModule) -> list[tuple[int, ...]]:
    """The shapes of a module's results."""
    result = module.main.ret_type
    types: Sequence[Type] = [result] if isinstance(result, TensorType) else result.fields
    return [t.static_shape for t in types if isinstance(t, TensorType)]
