"""Passes are values: a name, options, and `run`. A `Sequential` runs several of them.

>>> from tinycomp.relay.op import OpSet
>>> from tinycomp.relay.nodes import Function, IRModule, Var
>>> from tinycomp.types import tensor_type
>>> @dataclass(frozen=True)
... class Nothing(Pass):
...     def run(self, module, ctx):
...         return module
>>> x = Var("x", tensor_type((2,)))
>>> ctx = PassContext(OpSet({}))
>>> module = Sequential((Nothing(),)).run(IRModule({"main": Function((x,), (), x)}), ctx)
>>> ctx.timings[0].name, ctx.timings[0].changed
('Nothing', False)
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ..target import Target
from .nodes import Function, IRModule, all_functions
from .op import OpSet
from .visitor import map_functions


@dataclass(frozen=True, slots=True)
class PassTiming:
    """What one run of a pass did: how long it took and how many bindings there were."""

    name: str
    seconds: float
    changed: bool
    bindings_before: int
    bindings_after: int

    def __str__(self) -> str:
        size = f"{self.bindings_before} -> {self.bindings_after} bindings"
        return (
            f"{self.name:28}{self.seconds * 1e3:9.1f} ms  {size if self.changed else 'unchanged'}"
        )


@dataclass(frozen=True)
class PassContext:
    """What passes run with. Explicit: there is no ambient context.

    Attributes:
        ops: the operators that passes make calls to.
        target: the machine compiled for, or None where it does not matter.
        opt_level: 0 to 3; a pass whose `min_opt_level` is higher is left out.
        disabled: names of passes to leave out.
        print_after: names of passes whose result is printed; "all" for every pass.
        verify: check the module after every pass that changed it.
        stop_after: leave out all passes after the first `stop_after` (to bisect a wrong result).
        timings: filled by `Sequential`, one entry per pass that ran.
        write: where printed modules go.
    """

    ops: OpSet
    target: Target | None = None
    opt_level: int = 3
    disabled: frozenset[str] = frozenset()
    print_after: frozenset[str] = frozenset()
    verify: bool = True
    stop_after: int | None = None
    timings: list[PassTiming] = field(default_factory=list)
    write: Callable[[str], object] = print


class Pass(ABC):
    """A rewrite of a module. Subclasses are frozen dataclasses whose fields are the options.

    A pass that changes nothing returns the module it was given.
    """

    min_opt_level: ClassVar[int] = 0

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def run(self, module: IRModule, ctx: PassContext) -> IRModule:
        """The rewritten module; the same object if nothing changed."""


class FunctionPass(Pass):
    """A pass that rewrites one function at a time, nested functions before the outer ones.

    Fused (primitive) functions are left alone unless `enter_primitive` is set.
    """

    enter_primitive: ClassVar[bool] = False

    @abstractmethod
    def run_function(self, function: Function, ctx: PassContext) -> Function:
        """The rewritten function, of the same type; the same object if nothing changed."""

    def run(self, module: IRModule, ctx: PassContext) -> IRModule:
        def rewrite(function: Function) -> Function:
            return self.run_function(function, ctx)

        functions = {
            name: map_functions(function, rewrite, enter_primitive=self.enter_primitive)
            for name, function in module.functions.items()
        }
        if all(functions[name] is old for name, old in module.functions.items()):
            return module
        return replace(module, functions=functions)


@dataclass(frozen=True)
class Sequential(Pass):
    """Passes one after the other, timed, verified and printed as the context asks."""

    passes: tuple[Pass, ...]

    def run(self, module: IRModule, ctx: PassContext) -> IRModule:
        for pass_ in self._flattened():
            if pass_.min_opt_level > ctx.opt_level or pass_.name in ctx.disabled:
                continue
            if ctx.stop_after is not None and len(ctx.timings) >= ctx.stop_after:
                break
            module = _run_one(pass_, module, ctx)
        return module

    def _flattened(self) -> Iterator[Pass]:
        stack: list[Pass] = [self]
        while stack:
            pass_ = stack.pop()
            if isinstance(pass_, Sequential):
                stack.extend(reversed(pass_.passes))
            else:
                yield pass_


def _run_one(pass_: Pass, module: IRModule, ctx: PassContext) -> IRModule:
    from .verify import verify_module  # verify is a client of this layer for everyone else

    before = count_bindings(module)
    start = time.perf_counter()
    with _noting(f"while running {pass_.name}"):
        result = pass_.run(module, ctx)
    seconds = time.perf_counter() - start
    changed = result is not module
    after = count_bindings(result) if changed else before
    ctx.timings.append(PassTiming(pass_.name, seconds, changed, before, after))
    if changed and ctx.verify:
        with _noting(f"while verifying the result of {pass_.name}"):
            verify_module(result)
    if pass_.name in ctx.print_after or "all" in ctx.print_after:
        ctx.write(f"# after {pass_.name}{'' if changed else ' (unchanged)'}\n{result}")
    return result


def count_bindings(module: IRModule) -> int:
    """Bindings of all functions of a module, nested ones too."""
    return sum(len(f.bindings) for root in module.functions.values() for f in all_functions(root))


@contextmanager
def _noting(note: str) -> Iterator[None]:
    """Errors raised inside leave with `note` attached."""
    try:
        yield
    except Exception as error:
        error.add_note(note)
        raise
