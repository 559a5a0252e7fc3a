"""Post-dominators of a function's data flow.

Node `i` is binding `i`; an edge goes from a producer to a consumer and carries the operator pattern
with which the consumer reads it. The bindings are in order of evaluation, so one backward sweep
with least common ancestors builds the whole tree.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .op import OpPattern

Edge = tuple[int, OpPattern]
NO_PARENT = -1


@dataclass(frozen=True)
class PostDominatorTree:
    """Immediate post-dominators.

    Attributes:
        parent: of node i the first node that every path from i to the outside goes through, or
            NO_PARENT where there is none (the value is returned, or paths part for good).
        pattern: the greatest edge pattern on all paths from i to its parent.
        depth: distance from the root of the tree.
    """

    parent: tuple[int, ...]
    pattern: tuple[OpPattern, ...]
    depth: tuple[int, ...]


def post_dominators(
    consumers: Sequence[Sequence[Edge]], escaping: Collection[int]
) -> PostDominatorTree:
    """The post-dominator tree of a DAG whose edges all go to larger numbers.

    `escaping` are the nodes whose value leaves the function.

    >>> e = OpPattern.ELEMWISE
    >>> post_dominators([[(1, e), (2, e)], [(3, e)], [(3, e)], []], {3}).parent
    (3, 3, 3, -1)
    """
    count = len(consumers)
    parent = [NO_PARENT] * count
    pattern = [OpPattern.OPAQUE] * count
    depth = [1] * count
    for node in reversed(range(count)):
        edges = consumers[node]
        if node in escaping or not edges:
            continue
        ancestor, greatest = edges[0]
        for consumer, kind in edges[1:]:
            greatest = max(greatest, kind)
            other = consumer
            while ancestor != other and ancestor != NO_PARENT and other != NO_PARENT:
                if depth[ancestor] >= depth[other]:
                    greatest = max(greatest, pattern[ancestor])
                    ancestor = parent[ancestor]
                else:
                    greatest = max(greatest, pattern[other])
                    other = parent[other]
            if ancestor != other:
                ancestor = NO_PARENT
                break
        if ancestor != NO_PARENT:
            parent[node], pattern[node] = ancestor, greatest
            depth[node] = depth[ancestor] + 1
    return PostDominatorTree(tuple(parent), tuple(pattern), tuple(depth))
