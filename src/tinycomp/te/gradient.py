"""Reverse-mode differentiation of tensor expressions.

Each element that a compute reads gets a contribution. For `B[v] = f(T[e(v)], ...)`

    dT[x] += sum over v where e(v) == x of dB[v] * df/dT

and solving `e(v) == x` for as many axes as possible turns the sum into what one would write by
hand: elementwise stays elementwise, the gradients of a matmul are two matmuls, a transposed
convolution comes out of a convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.expr import Expr, Var, all_of, const, select
from .contributions import contributions
from .scan_gradient import scan_contributions
from .tensor import ComputeOp, PlaceholderOp, ScanOp, Tensor, compute, topological


def gradient(
    output: Tensor, inputs: Tensor | Sequence[Tensor], head: Tensor | None = None
) -> list[Tensor]:
    """The adjoints of `inputs`: derivatives of `output`, weighted with `head`.

    Args:
        output: a float tensor of shape S.
        inputs: tensors that it depends on, of shapes I; one tensor or several.
        head: a tensor of shape [*P, *S], the derivative of something of shape P by the output
            (for a scalar loss simply S). None stands for the identity, and gives the Jacobians.

    Returns:
        For each input a tensor of shape [*P, *I]; with no head, [*S, *I].

    Where several elements attain a maximum or minimum, they share the derivative evenly. The
    gradient of a scan is a scan from the last time to the first.

    Raises:
        TypeError: an extern operation or a custom reducer lies between them, or a scan that reads
            a state at other times than a fixed number of steps back.

    >>> from tinycomp import te
    >>> A = te.placeholder((4, 8), name="A")
    >>> B = te.compute((4,  8), lambda i, j: A[i, j] * A[i, j], name="B")
    >>> H = te.placeholder((4, 8), name="H")
    >>> te.gradient(B, [A], H)
    [Tensor(A.grad: float32[4, 8])]
    """
    wanted = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if head is not None and head.shape[head.ndim - output.ndim :] != output.shape:
        raise TypeError(
            f"te.gradient: head {head} does not end in the shape of {output}, "
            f"[{', '.join(map(str, output.shape))}]"
        )
    prefix = output.shape if head is None else head.shape[: head.ndim - output.ndim]
    terms: dict[Tensor, list[Tensor | None]] = {output: [head]}  # None: the identity
    for op in reversed(topological([output])):
        reached = [t for t in map(op.output, range(op.num_outputs)) if t in terms]
        if not reached or isinstance(op, PlaceholderOp):
            continue
        adjoints = {t: _sum_terms(t, terms[t], prefix) for t in reached}
        found: list[tuple[Tensor, Tensor]] = []
        if isinstance(op, ScanOp):
            heads = {t: _result(t, a, prefix) for t, a in adjoints.items()}
            found = scan_contributions(op, heads, prefix)
        elif isinstance(op, ComputeOp):
            for tensor, adjoint in adjoints.items():
                found += contributions(op, tensor, adjoint, prefix)
        else:
            raise TypeError(
                f"te.gradient: {op.name} is extern: what its statements compute has no derivative; "
                "write it as te.compute, or pass its result as an input of the gradient"
            )
        for source, term in found:
            terms.setdefault(source, []).append(term)
    return [_result(t, _sum_terms(t, terms.get(t, []), prefix), prefix) for t in wanted]


def _sum_terms(tensor: Tensor, terms: list[Tensor | None], prefix: Sequence[Expr]) -> Tensor | None:
    """The adjoint of `tensor`: the sum of its contributions; None is the identity."""
    known = [t for t in terms if t is not None]
    if len(terms) == 1:
        return terms[0]
    if not known:
        zero = const(0.0, tensor.dtype)
        return compute((*prefix, *tensor.shape), lambda *i: zero, name=f"{tensor.name}.grad")

    def total(*i: Var) -> Expr:
        result = known[0](*i)
        for other in known[1:]:
            result = result + other(*i)
        return result

    return compute(known[0].shape, total, name=f"{tensor.name}.grad")


def _result(tensor: Tensor, adjoint: Tensor | None, prefix: Sequence[Expr]) -> Tensor:
    if adjoint is not None:
        return adjoint

    def identity(*i: Var) -> Expr:
        pairs = zip(i[: len(prefix)], i[len(prefix) :], strict=True)
        same = all_of(a.equal(b) for a, b in pairs)
        return select(same, const(1.0, tensor.dtype), const(0.0, tensor.dtype))

    return compute((*prefix, *tensor.shape), identity, name=f"{tensor.name}.grad")


__all__ = ["gradient"]
