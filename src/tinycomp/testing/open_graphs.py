"""Random graphs with an open dimension, for tests of padding.

The same seed gives the same graph for every size, so one size can be compared with another.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from ..ops import default_ops
from ..relay.builder import Builder
from ..relay.nodes import Atom, IRModule
from ..types import TensorType

_UNARY = ("tanh", "nn.relu", "exp", "negative", "sigmoid")
_BINARY = ("add", "subtract", "multiply", "maximum", "divide")
_REDUCE = ("sum", "mean", "max", "min", "prod")


def random_graph(seed: int, size: int, steps: int = 8) -> IRModule:
    """A graph of float32 values over axes of `size`, 2 and 3, in any order and merged.

    Its results are the last value and one that was made on the way.
    """
    choice = random.Random(seed)
    b = Builder(default_ops())
    values: list[Atom] = [b.param("x", (2, size, 3)), b.param("y", (size, 3))]
    for _ in range(steps):
        values.append(_step(b, choice, values, size))
    results = [values[-1], choice.choice(values[2:])]
    names = ("x", "y"), ("a", "b")
    return IRModule({"main": b.finish(results)}, *names)


def _shape(x: Atom) -> tuple[int, ...]:
    assert isinstance(x.type, TensorType)
    return x.type.static_shape


def _step(b: Builder, choice: random.Random, values: list[Atom], size: int) -> Atom:
    """One more value. Every decision depends on ranks and on which axes are open, not on sizes."""
    x = choice.choice(values[-4:])
    if not _shape(x):
        x = values[0]
    kinds: list[Callable[[], Atom]] = [
        lambda: b.call(choice.choice(_UNARY), x),
        lambda: _binary(b, choice, x, values),
        lambda: b.call(
            choice.choice(_REDUCE), x, axis=(_axis(choice, x),), keepdims=choice.random() < 0.5
        ),
        lambda: b.call("nn.softmax", x, axis=_axis(choice, x)),
        lambda: b.call("transpose", x, axes=tuple(choice.sample(range(_rank(x)), _rank(x)))),
        lambda: _merged(b, choice, x),
        lambda: _product(b, choice, x),
        lambda: _sliced(b, choice, x),
        lambda: b.call("cumsum", x, axis=_axis(choice, x), reverse=choice.random() < 0.5),
        lambda: b.call("concatenate", x, b.call("tanh", x), axis=_axis(choice, x)),
        lambda: b.call("multiply", x, b.const(1.0 / size, "float32")),
        lambda: b.call("argmax", x, axis=_axis(choice, x)),
    ]
    value = choice.choice(kinds)()
    assert isinstance(value.type, TensorType)
    return value if value.type.dtype.is_float else b.call("cast", value, dtype="float32")


def _rank(x: Atom) -> int:
    return len(_shape(x))


def _axis(choice: random.Random, x: Atom) -> int:
    return choice.randrange(_rank(x))


def _binary(b: Builder, choice: random.Random, x: Atom, values: list[Atom]) -> Atom:
    """With another value of the same shape, else with the largest along an axis."""
    same = [v for v in values if _shape(v) == _shape(x)]
    other = choice.choice([*same, b.call("max", x, axis=(_axis(choice, x),), keepdims=True)])
    return b.call(choice.choice(_BINARY), x, other)


def _merged(b: Builder, choice: random.Random, x: Atom) -> Atom:
    """Two neighbouring axes as one, something done there, and two again."""
    if _rank(x) < 2:
        return b.call("tanh", x)
    shape, axis = _shape(x), choice.randrange(_rank(x) - 1)
    flat = (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
    merged = b.call("reshape", x, newshape=flat)
    kind = choice.randrange(3)
    if kind == 0:
        return merged
    if kind == 1:
        return b.call("sum", merged, axis=(axis,))
    return b.call("reshape", b.call("tanh", merged), newshape=shape)


def _product(b: Builder, choice: random.Random, x: Atom) -> Atom:
    """x x^T or x^T x of the last two axes, which may contract the open one."""
    if _rank(x) < 2:
        return b.call("tanh", x)
    rank = _rank(x)
    swapped = b.call("transpose", x, axes=(*range(rank - 2), rank - 1, rank - 2))
    pair = (x, swapped) if choice.random() < 0.5 else (swapped, x)
    return b.call("nn.matmul", *pair)


def _sliced(b: Builder, choice: random.Random, x: Atom) -> Atom:
    """Without the first element of an axis, or in reverse, or its last element."""
    shape, axis = _shape(x), _axis(choice, x)
    begin, end, strides = [0] * len(shape), list(shape), [1] * len(shape)
    kind = choice.randrange(3)
    if kind == 0:
        begin[axis] = min(1, shape[axis] - 1)
    elif kind == 1:
        begin[axis], end[axis], strides[axis] = shape[axis] - 1, -1, -1
    else:
        begin[axis] = shape[axis] - 1
    return b.call("strided_slice", x, begin=tuple(begin), end=tuple(end), strides=tuple(strides))
