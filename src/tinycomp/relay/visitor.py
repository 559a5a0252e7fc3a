"""Traversal and rewriting of graph functions, without recursion.

Bindings are visited in order; nested functions are finished before the bindings that hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from .nodes import Call, Function, If, Value, While, regions


def with_regions(value: Value, new: Sequence[Function]) -> Value:
    """`value` with other nested functions, in the order of `regions(value)`; itself if the same."""
    if all(a is b for a, b in zip(regions(value), new, strict=True)):
        return value
    if isinstance(value, If):
        return If(value.condition, new[0], new[1], value.operands)
    if isinstance(value, While):
        return While(new[0], new[1], value.init, value.captured)
    assert isinstance(value, Call)
    return Call(new[0], value.args, value.attrs)


def map_functions(
    root: Function,
    rewrite: Callable[[Function], Function],
    *,
    enter_primitive: bool = False,
) -> Function:
    """`rewrite` applied to `root` and the functions nested in it, inner ones first.

    A function that occurs several times is rewritten once. Fused functions are entered only with
    `enter_primitive`.
    """
    memo: dict[Function, Function] = {}
    stack: list[tuple[Function, bool]] = [(root, False)]
    while stack:
        function, ready = stack.pop()
        if function in memo:
            continue
        if ready:
            memo[function] = rewrite(_replace_regions(function, memo))
            continue
        stack.append((function, True))
        for binding in function.bindings:
            for region in regions(binding.value):
                if enter_primitive or not region.is_primitive:
                    stack.append((region, False))
    return memo[root]


def _replace_regions(function: Function, memo: dict[Function, Function]) -> Function:
    changed = False
    bindings = list(function.bindings)
    for i, binding in enumerate(bindings):
        old = regions(binding.value)
        if old:
            value = with_regions(binding.value, [memo.get(f, f) for f in old])
            if value is not binding.value:
                bindings[i], changed = replace(binding, value=value), True
    return replace(function, bindings=tuple(bindings)) if changed else function
