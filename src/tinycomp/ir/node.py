"""How a node declares its fields, once; traversal and rebuilding are derived from that.

A node class is a frozen, slotted dataclass with identity equality. It lists the fields that hold
child nodes in `CHILDREN`; a field may hold a node, a tuple of nodes, or None.

>>> @dataclass(frozen=True, slots=True, eq=False)
... class Pair(Node):
...     CHILDREN = ("left", "right")
...     left: Node | None
...     right: Node | None
>>> leaf = Pair(None, None)
>>> Pair(leaf, None).children() == (leaf,)
True
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, TypeVar

__all__ = ["Node", "dataclass", "fold", "postorder", "preorder", "rewrite"]


class Node:
    """Base of every IR node. Compares and hashes by identity."""

    __slots__ = ("__weakref__",)
    CHILDREN: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        """Classes whose children are plain fields, or that have none, get a faster `children`."""
        super().__init_subclass__()
        annotations = inspect.get_annotations(cls)
        kinds = [str(annotations.get(name)) for name in cls.CHILDREN]
        if not all(kind in ("Expr", "Stmt") for kind in kinds):
            cls.children = Node.children  # type: ignore[method-assign]
        elif not kinds:
            cls.children = lambda self: ()  # type: ignore[method-assign]
        elif len(kinds) == 1:
            (name,) = cls.CHILDREN
            cls.children = lambda self: (getattr(self, name),)  # type: ignore[method-assign]
        else:
            get = operator.attrgetter(*cls.CHILDREN)
            cls.children = lambda self: get(self)  # type: ignore[method-assign]

    def children(self) -> tuple[Node, ...]:
        """Child nodes in declared order; absent (None) children are left out."""
        out: tuple[Node, ...] = ()
        for name in self.CHILDREN:
            value = getattr(self, name)
            if type(value) is tuple:
                out += value
            elif value is not None:
                out += (value,)
        return out

    def with_children(self, new: Sequence[Any]) -> Self:
        """This node with other children, in the order of `children()`; itself if all are same."""
        old = self.children()
        assert len(old) == len(new)
        if old == tuple(new):  # nodes compare by identity
            return self
        updates: dict[str, Any] = {}
        position = 0
        for name in self.CHILDREN:
            value = getattr(self, name)
            if isinstance(value, tuple):
                updates[name] = tuple(new[position : position + len(value)])
                position += len(value)
            elif value is not None:
                updates[name] = new[position]
                position += 1
        names: dict[str, Any] = type(self).__dataclass_fields__  # type: ignore[attr-defined]
        # Positional, because interned classes key on their arguments in order.
        return type(self)(*[updates[n] if n in updates else getattr(self, n) for n in names])

    def attributes(self) -> dict[str, Any]:
        """The fields that are not children, by name."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)  # type: ignore[arg-type]
            if f.name not in self.CHILDREN
        }


N = TypeVar("N", bound=Node)
R = TypeVar("R")


def postorder(roots: Node | Iterable[Node]) -> list[Node]:
    """Every node reachable from the roots, children before parents, each once. Iterative."""
    stack: list[tuple[Node, bool]] = [
        (root, False) for root in ([roots] if isinstance(roots, Node) else list(roots))[::-1]
    ]
    seen: set[Node] = set()
    order: list[Node] = []
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            children = node.children()
            if children:
                stack.append((node, True))
                stack += [(child, False) for child in children[::-1] if child not in seen]
            else:
                order.append(node)
    return order


def preorder(root: Node) -> Iterable[Node]:
    """Every node reachable from the root, parents before children, each once, in text order."""
    stack: list[Node] = [root]
    seen: set[Node] = set()
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            yield node
            stack.extend(node.children()[::-1])


def fold(root: Node, handler: Callable[[Any, list[R]], R], memo: dict[Node, R] | None = None) -> R:
    """Bottom-up evaluation: `handler(node, results of its children)`, each node once. Iterative."""
    results: dict[Node, R] = {} if memo is None else memo
    stack: list[tuple[Node, tuple[Node, ...] | None]] = [(root, None)]
    while stack:
        node, children = stack.pop()
        if node in results:
            continue
        if children is None:
            children = node.children()
            missing = [c for c in children if c not in results]
            if missing:
                stack.append((node, children))
                stack += [(child, None) for child in reversed(missing)]
                continue
        results[node] = handler(node, [results[c] for c in children])
    return results[root]


def rewrite(root: Any, handler: Callable[[Any], Any], memo: dict[Node, Any] | None = None) -> Any:
    """Bottom-up rewriting: children first, then `handler(rebuilt node)` returns its replacement.

    The handler returns the node itself to keep it; a tree in which nothing changed comes back as
    the same object.
    """
    return fold(root, lambda node, children: handler(node.with_children(children)), memo)
