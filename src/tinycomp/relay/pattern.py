"""Dataflow patterns over graph functions, and rewriting with tables of rules.

    x = wildcard()
    inner = is_op("transpose")(x)
    outer = is_op("transpose")(inner)
    found = match(outer, function, binding)  # None, or what each pattern matched: found[x]

A pattern object that occurs twice must match the same value at both places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..diagnostics import InternalError, Span
from ..dtype import DType
from ..types import Dim, TensorType
from .builder import Builder
from .nodes import (
    Atom,
    Binding,
    Call,
    Constant,
    Function,
    Tuple,
    TupleGetItem,
    Var,
    replace_args,
)
from .op import OpSet
from .visitor import Uses, rebuilt, remove_dead_bindings

Match = Mapping["Pattern", Atom]
Producer = Callable[[Atom], Binding | None]


@dataclass(frozen=True, eq=False)
class Pattern:
    """What an atom may look like. Combine with `|`, and narrow with the `has_` methods."""

    def __or__(self, other: Pattern) -> Pattern:
        return Alternative((self, other))

    def has_attr(self, **values: Any) -> Pattern:
        """A call whose attributes have these values."""
        return Where(self, lambda atom, made: _has_attrs(made, values))

    def has_dtype(self, dtype: str | DType) -> Pattern:
        """A tensor of this element type."""
        return Where(self, lambda atom, made: getattr(atom.type, "dtype", None) == dtype)

    def has_shape(self, shape: Sequence[Dim]) -> Pattern:
        """A tensor of this shape."""
        wanted = tuple(shape)
        return Where(self, lambda atom, made: getattr(atom.type, "shape", None) == wanted)

    def where(self, holds: Callable[[Atom], bool]) -> Pattern:
        """An atom for which `holds` is true."""
        return Where(self, lambda atom, made: holds(atom))

    def optional(self, around: Callable[[Pattern], Pattern]) -> Pattern:
        """This pattern, or `around(this)`: `conv.optional(lambda x: is_op("add")(x, bias))`."""
        return Alternative((around(self), self))

    def dominates(self, path: Pattern, child: Pattern) -> Pattern:
        """`child` whose every operand comes from this pattern, through values matching `path`."""
        return Dominates(self, path, child)


@dataclass(frozen=True, eq=False)
class Wildcard(Pattern):
    """Anything."""


@dataclass(frozen=True, eq=False)
class IsConstant(Pattern):
    """A constant; with `value`, one whose every element is `value`."""

    value: float | None = None


@dataclass(frozen=True, eq=False)
class IsVar(Pattern):
    """A parameter of the function."""


@dataclass(frozen=True, eq=False)
class IsOp(Pattern):
    """A call of one of the named operators with any arguments; call it to give arguments."""

    names: frozenset[str]

    def __call__(self, *args: Pattern) -> Pattern:
        return CallPattern(self, args)


@dataclass(frozen=True, eq=False)
class CallPattern(Pattern):
    """A call with arguments that match; commutative operators match either way round."""

    op: IsOp
    args: tuple[Pattern, ...]


@dataclass(frozen=True, eq=False)
class TuplePattern(Pattern):
    """A tuple; with `fields`, one whose fields match."""

    fields: tuple[Pattern, ...] | None = None


@dataclass(frozen=True, eq=False)
class GetItemPattern(Pattern):
    """Field `index` (any, if None) of a value that matches."""

    tuple: Pattern
    index: int | None = None


@dataclass(frozen=True, eq=False)
class Alternative(Pattern):
    choices: tuple[Pattern, ...]


@dataclass(frozen=True, eq=False)
class Where(Pattern):
    """`inner`, if a predicate of the atom and of the binding that defines it holds."""

    inner: Pattern
    holds: Callable[[Atom, Binding | None], bool]


@dataclass(frozen=True, eq=False)
class Dominates(Pattern):
    parent: Pattern
    path: Pattern
    child: Pattern


def wildcard() -> Pattern:
    """Matches anything."""
    return Wildcard()


def is_constant(value: float | None = None) -> Pattern:
    """Matches a constant; with `value`, one whose every element equals it."""
    return IsConstant(value)


def is_var() -> Pattern:
    """Matches a parameter."""
    return IsVar()


def is_op(*names: str) -> IsOp:
    """Matches a call of one of the operators: `is_op("add")(wildcard(), is_constant())`."""
    return IsOp(frozenset(names))


def is_tuple(*fields: Pattern) -> Pattern:
    """Matches a tuple; with arguments, one whose fields match them."""
    return TuplePattern(fields or None)


def is_tuple_get_item(tuple_: Pattern, index: int | None = None) -> Pattern:
    """Matches a field of a tuple."""
    return GetItemPattern(tuple_, index)


_COMMUTATIVE_NAMES = (
    *("add", "multiply", "maximum", "minimum", "equal", "not_equal"),
    *("logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor"),
)
COMMUTATIVE = frozenset(_COMMUTATIVE_NAMES)


def match(pattern: Pattern, function: Function | Uses, binding: Binding) -> Match | None:
    """What each pattern matched, if the value of `binding` matches; None otherwise.

    To match at many bindings of one function, make its `Uses` once and pass that.
    """
    uses = function if isinstance(function, Uses) else Uses(function)
    return match_atom(pattern, binding.var, uses.producer)


def match_atom(pattern: Pattern, atom: Atom, producer: Producer) -> Match | None:
    """Like `match`, given who defines each atom."""
    found: dict[Pattern, Atom] = {}
    return found if _Matcher(producer).matches(pattern, atom, found) else None


class _Matcher:
    """Recursive in the pattern, which is as deep as its author wrote it; never in the graph."""

    def __init__(self, producer: Producer) -> None:
        self.producer = producer

    def matches(self, pattern: Pattern, atom: Atom, found: dict[Pattern, Atom]) -> bool:
        if pattern in found:
            return found[pattern] is atom
        if not self._matches(pattern, atom, found):
            return False
        found[pattern] = atom
        return True

    def _matches(self, pattern: Pattern, atom: Atom, found: dict[Pattern, Atom]) -> bool:
        match pattern:
            case Wildcard():
                return True
            case IsConstant():
                return isinstance(atom, Constant) and (
                    pattern.value is None or is_splat(atom, pattern.value)
                )
            case IsVar():
                return isinstance(atom, Var) and self.producer(atom) is None
            case Alternative():
                return any(self._attempt([(choice, atom)], found) for choice in pattern.choices)
            case Where():
                return self.matches(pattern.inner, atom, found) and pattern.holds(
                    atom, self.producer(atom)
                )
            case Dominates():
                return self._dominates(pattern, atom, found)
        binding = self.producer(atom)
        return binding is not None and self._defines(pattern, binding, found)

    def _defines(self, pattern: Pattern, binding: Binding, found: dict[Pattern, Atom]) -> bool:
        """Patterns of what a binding's value is."""
        value = binding.value
        match pattern:
            case IsOp():
                return isinstance(value, Call) and op_name(value) in pattern.names
            case CallPattern():
                if not isinstance(value, Call) or op_name(value) not in pattern.op.names:
                    return False
                if len(value.args) != len(pattern.args):
                    return False
                if self._attempt(list(zip(pattern.args, value.args, strict=True)), found):
                    return True
                swapped = value.args[::-1]
                return op_name(value) in COMMUTATIVE and self._attempt(
                    list(zip(pattern.args, swapped, strict=True)), found
                )
            case TuplePattern():
                if not isinstance(value, Tuple):
                    return False
                if pattern.fields is None:
                    return True
                return len(pattern.fields) == len(value.fields) and self._attempt(
                    list(zip(pattern.fields, value.fields, strict=True)), found
                )
            case GetItemPattern():
                return (
                    isinstance(value, TupleGetItem)
                    and pattern.index in (None, value.index)
                    and self.matches(pattern.tuple, value.tuple, found)
                )
        raise InternalError(f"unknown pattern {type(pattern).__name__}")

    def _attempt(self, pairs: list[tuple[Pattern, Atom]], found: dict[Pattern, Atom]) -> bool:
        """Match all pairs; what a failed attempt found is forgotten."""
        trial = dict(found)
        if all(self.matches(p, a, trial) for p, a in pairs):
            found.update(trial)
            return True
        return False

    def _dominates(self, pattern: Dominates, atom: Atom, found: dict[Pattern, Atom]) -> bool:
        if not self.matches(pattern.child, atom, found):
            return False
        pending, seen = [atom], {atom}
        while pending:
            binding = self.producer(pending.pop())
            for arg in binding.args if binding else ():
                if isinstance(arg, Constant) or arg in seen:
                    continue
                seen.add(arg)
                if self.matches(pattern.parent, arg, found):
                    continue
                if self.producer(arg) is None or not self.matches(pattern.path, arg, dict(found)):
                    return False
                pending.append(arg)
        return pattern.parent in found


def op_name(call: Call) -> str:
    """The operator's name; empty for a fused function."""
    return "" if isinstance(call.op, Function) else call.op.name


def is_splat(constant: Constant, value: float) -> bool:
    """Whether every element equals `value`; -0.0 does not equal 0.0 here, NaN equals nothing."""
    data = constant.data
    if not data.size or not bool((data == value).all()):
        return False
    return not DType.of(data.dtype).is_float or bool((np.signbit(data) == np.signbit(value)).all())


def _has_attrs(made: Binding | None, values: Mapping[str, Any]) -> bool:
    if made is None or not isinstance(made.value, Call):
        return False
    attrs = made.value.attrs
    return all(hasattr(attrs, k) and getattr(attrs, k) == v for k, v in values.items())


# --- rewriting ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """Replace what `pattern` matches by what `build` makes.

    Args:
        name: for messages.
        pattern: what to replace.
        build: `(graph, match) -> atom` of the same type, or None to leave the value as it is.
    """

    name: str
    pattern: Pattern
    build: Callable[[Graph, Match], Atom | None]


@dataclass
class Graph:
    """What a rule sees: a builder for new values, and the definitions of existing ones."""

    builder: Builder
    producers: dict[Var, Binding] = field(default_factory=dict)

    def producer(self, atom: Atom) -> Binding | None:
        """The binding that defines an atom; None for parameters and constants."""
        return self.producers.get(atom) if isinstance(atom, Var) else None

    def call(self, atom: Atom) -> Call:
        """The call that defines an atom which a call pattern matched."""
        value = self.producers[atom].value  # type: ignore[index]
        assert isinstance(value, Call)
        return value

    def attrs(self, atom: Atom) -> Any:
        """The attributes of that call."""
        return self.call(atom).attrs


def rewrite(
    rules: Sequence[Rule], function: Function, ops: OpSet, *, budget: int | None = None
) -> Function:
    """`function` rewritten until no rule applies to any of its bindings, without dead bindings.

    Nested functions are not entered: passes do that. What a rule builds is rewritten in turn.

    Raises:
        InternalError: one rule applied more than `budget` times, by default in proportion to the
            size of the function; the rules do not terminate.
    """
    limit = budget if budget is not None else 100 + 10 * len(function.bindings)
    driver = _Driver(RuleIndex(rules), ops, limit)
    while True:
        result = driver.sweep(function)
        if result is function:
            return function
        function = remove_dead_bindings(result)


class RuleIndex:
    """Rules by the operator at their root, so that most bindings try few rules."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        roots = [(rule, _root_names(rule.pattern)) for rule in rules]
        self._general = [rule for rule, names in roots if names is None]
        self._by_name: dict[str, list[Rule]] = {}
        for name in {n for _, names in roots if names for n in names}:
            self._by_name[name] = [r for r, names in roots if names is None or name in names]

    def candidates(self, binding: Binding) -> Sequence[Rule]:
        if isinstance(binding.value, Call):
            return self._by_name.get(op_name(binding.value), self._general)
        return self._general


def _root_names(pattern: Pattern) -> frozenset[str] | None:
    """The operators that a pattern's root may be; None if it may be anything else."""
    while isinstance(pattern, Where | CallPattern | Dominates):
        if isinstance(pattern, Where):
            pattern = pattern.inner
        elif isinstance(pattern, CallPattern):
            pattern = pattern.op
        else:
            pattern = pattern.child
    return pattern.names if isinstance(pattern, IsOp) else None


class _Driver:
    """One sweep rewrites bindings in order, from a worklist that takes up what rules emit."""

    def __init__(self, rules: RuleIndex, ops: OpSet, limit: int) -> None:
        self.rules, self.ops, self.limit = rules, ops, limit
        self.applied: Counter[str] = Counter()
        self.recent: list[str] = []

    def sweep(self, function: Function) -> Function:
        graph = Graph(Builder(self.ops))
        output = graph.builder.bindings
        env: dict[Atom, Atom] = {}
        # a pending item is a binding, or (variable, atom that replaces it)
        pending: list[Binding | tuple[Var, Atom]] = list(reversed(function.bindings))
        while pending:
            item = pending.pop()
            if isinstance(item, tuple):
                env[item[0]] = env.get(item[1], item[1])
                continue
            binding = _mapped(item, env)
            graph.producers[binding.var] = binding
            count = len(output)
            replacement = self._apply(binding, graph)
            if replacement is None:
                assert len(output) == count, "a rule emitted bindings and then declined"
                output.append(binding)
                env[item.var] = binding.var
                continue
            emitted = output[count:]
            del output[count:]
            pending.append((item.var, replacement))
            pending.extend(reversed(emitted))
        return rebuilt(function, output, env.get(function.result, function.result))

    def _apply(self, binding: Binding, graph: Graph) -> Atom | None:
        for rule in self.rules.candidates(binding):
            found = match_atom(rule.pattern, binding.var, graph.producer)
            if found is None:
                continue
            graph.builder.span = _span_of(found, graph, binding)
            count = len(graph.builder.bindings)
            replacement = rule.build(graph, found)
            if replacement is None:
                del graph.builder.bindings[count:]
                continue
            if replacement.type != binding.var.type:
                raise InternalError(
                    f"rule {rule.name} replaced {binding.var.type} by {replacement.type}"
                )
            self._count(rule)
            return replacement
        return None

    def _count(self, rule: Rule) -> None:
        self.applied[rule.name] += 1
        self.recent = [*self.recent[-7:], rule.name]
        if self.applied[rule.name] > self.limit:
            raise InternalError(
                f"rewriting does not end: rule {rule.name} applied {self.limit} times; "
                f"the last rules were {', '.join(self.recent)}"
            )


def _mapped(binding: Binding, env: Mapping[Atom, Atom]) -> Binding:
    """The binding with rewritten arguments; replacements keep types, so the variable stays."""
    value = replace_args(binding.value, [env.get(a, a) for a in binding.args])
    return binding if value is binding.value else Binding(binding.var, value, binding.span)


def _span_of(found: Match, graph: Graph, root: Binding) -> Span:
    """The spans of the calls that the pattern named, which the replacement comes from."""
    span = root.span
    for pattern, atom in found.items():
        binding = graph.producer(atom)
        if binding is not None and isinstance(pattern, IsOp | CallPattern):
            span = span | binding.span
    return span


def tensor(atom: Atom) -> TensorType:
    """The type of an atom known to be a tensor."""
    assert isinstance(atom.type, TensorType)
    return atom.type
