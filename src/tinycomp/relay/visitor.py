"""Traversal and rewriting of graph functions, without recursion.

Bindings are visited in order; nested functions are finished before the bindings that hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .builder import Builder
from .nodes import (
    Atom,
    Binding,
    Call,
    Function,
    If,
    Tuple,
    TupleGetItem,
    Value,
    Var,
    While,
    all_functions,
    regions,
    replace_args,
)
from .op import OpSet
from .verify import infer_type


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


class Uses:
    """The def-use index of one function: who defines and who reads each variable.

    Nested functions are closed, so their parameters and bindings have nothing to do with it.
    """

    def __init__(self, function: Function) -> None:
        self.result = function.result
        self._producers: dict[Var, Binding] = {}
        self._users: dict[Var, list[Binding]] = {}
        for binding in function.bindings:
            self._producers[binding.var] = binding
            for arg in binding.args:
                if isinstance(arg, Var):
                    self._users.setdefault(arg, []).append(binding)

    def producer(self, atom: Atom) -> Binding | None:
        """The binding that defines `atom`; None for parameters and constants."""
        return self._producers.get(atom) if isinstance(atom, Var) else None

    def users(self, var: Var) -> Sequence[Binding]:
        """The bindings that read `var`, once per argument that is `var`."""
        return self._users.get(var, ())

    def count(self, var: Var) -> int:
        """How often `var` is read, being the function's result included."""
        return len(self.users(var)) + (var is self.result)


def remove_dead_bindings(function: Function) -> Function:
    """`function` without bindings whose value nobody needs; itself if there are none."""
    live: set[Atom] = {function.result}
    kept: list[Binding] = []
    for binding in reversed(function.bindings):
        if binding.var in live:
            kept.append(binding)
            live.update(binding.args)
    if len(kept) == len(function.bindings):
        return function
    return replace(function, bindings=tuple(reversed(kept)))


class ExprVisitor:
    """Reads every binding of a function and of those nested in it, outer functions first.

    Subclasses override the handlers they care about. While a handler runs, `self.function` is the
    function that the binding is in.

    >>> class CountCalls(ExprVisitor):
    ...     calls = 0
    ...     def visit_call(self, binding, call):
    ...         self.calls += 1
    """

    function: Function

    def run(self, root: Function) -> None:
        for function in all_functions(root):
            self.function = function
            for binding in function.bindings:
                _dispatch(self, binding, binding.value)

    def visit_call(self, binding: Binding, call: Call) -> None: ...

    def visit_tuple(self, binding: Binding, value: Tuple) -> None: ...

    def visit_tuple_get_item(self, binding: Binding, value: TupleGetItem) -> None: ...

    def visit_if(self, binding: Binding, value: If) -> None: ...

    def visit_while(self, binding: Binding, value: While) -> None: ...


class ExprMutator:
    """Rewrites a function binding by binding; nested functions are rewritten before it.

    A handler gets the original binding and its value with arguments already rewritten, and
    returns the atom that takes the place of `binding.var`: by `keep`, or by calling operators on
    `self.builder`, whose span is that of the binding. A function whose handlers all keep what
    they get comes back as the same object.

    >>> class ReluToMaximum(ExprMutator):
    ...     def visit_call(self, binding, call):
    ...         if getattr(call.op, "name", "") != "nn.relu":
    ...             return self.keep(binding, call)
    ...         zero = self.builder.const(0, call.args[0].type.dtype)
    ...         return self.builder.call("maximum", call.args[0], zero)
    """

    enter_primitive = False
    function: Function
    builder: Builder
    env: dict[Var, Atom]

    def __init__(self, ops: OpSet) -> None:
        self.ops = ops
        self._producers: dict[Var, Binding] = {}

    def run(self, root: Function) -> Function:
        """The rewritten function."""
        return map_functions(root, self._run_one, enter_primitive=self.enter_primitive)

    def begin(self) -> None:
        """Called before the bindings of `self.function` are visited."""

    def keep(self, binding: Binding, value: Value) -> Atom:
        """Emit `value` under the name of `binding`; the binding itself if nothing changed."""
        if value is binding.value:
            self.builder.bindings.append(binding)
            return binding.var
        type_ = infer_type(value)
        if type_ != binding.var.type:
            return self.builder.bind(value, type_, binding.var.name)
        self.builder.bindings.append(replace(binding, value=value))
        return binding.var

    def producer(self, atom: Atom) -> Binding | None:
        """The already rewritten binding that defines `atom`; None if there is none.

        A handler that merges a producer into its binding adds the producer's span to
        `self.builder.span`.
        """
        return self._producers.get(atom) if isinstance(atom, Var) else None

    def map(self, atom: Atom) -> Atom:
        """What an atom of the original function became."""
        return self.env.get(atom, atom) if isinstance(atom, Var) else atom

    def visit_call(self, binding: Binding, call: Call) -> Atom:
        return self.keep(binding, call)

    def visit_tuple(self, binding: Binding, value: Tuple) -> Atom:
        return self.keep(binding, value)

    def visit_tuple_get_item(self, binding: Binding, value: TupleGetItem) -> Atom:
        return self.keep(binding, value)

    def visit_if(self, binding: Binding, value: If) -> Atom:
        return self.keep(binding, value)

    def visit_while(self, binding: Binding, value: While) -> Atom:
        return self.keep(binding, value)

    def _run_one(self, function: Function) -> Function:
        self.function, self.env, self._producers = function, {}, {}
        self.builder = Builder(self.ops)
        self.begin()
        emitted = self.builder.bindings
        for binding in function.bindings:
            self.builder.span = binding.span
            count = len(emitted)
            value = replace_args(binding.value, [self.map(a) for a in binding.args])
            self.env[binding.var] = _dispatch(self, binding, value)
            self._producers.update((b.var, b) for b in emitted[count:])
        return rebuilt(function, emitted, self.map(function.result))


def _dispatch(visitor: ExprVisitor | ExprMutator, binding: Binding, value: Value) -> Any:
    if isinstance(value, Call):
        return visitor.visit_call(binding, value)
    if isinstance(value, Tuple):
        return visitor.visit_tuple(binding, value)
    if isinstance(value, TupleGetItem):
        return visitor.visit_tuple_get_item(binding, value)
    if isinstance(value, If):
        return visitor.visit_if(binding, value)
    return visitor.visit_while(binding, value)


def rebuilt(function: Function, bindings: Sequence[Binding], result: Atom) -> Function:
    """`function` with other bindings and result; itself if they are the same."""
    same = result is function.result and len(bindings) == len(function.bindings)
    if same and all(a is b for a, b in zip(bindings, function.bindings, strict=True)):
        return function
    return replace(function, bindings=tuple(bindings), result=result)
