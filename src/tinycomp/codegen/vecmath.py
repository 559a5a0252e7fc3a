"""Elementary functions."""

from __future__ import annotations

from collections.abc import Sequence

from .builder import FunctionBuilder, Value


def emit(b: FunctionBuilder, name: str, args: Sequence[Value]) -> Value:
    x = args[0]
    suffix = "f" if x.element == "float" else ""
    b.module.declare(name + suffix, x.element, [x.element] * len(args))
    return b.join(
        [b.call(name + suffix, x.element, [b.extract(a, i) for a in args]) for i in range(x.lanes)]
    )
