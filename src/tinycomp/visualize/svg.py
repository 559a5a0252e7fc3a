"""Boxes and curves of a layered drawing, as SVG text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_CHAR, _LINE, _PAD = 7.2, 17, 9  # of a 12 px monospaced font


@dataclass(frozen=True)
class Box:
    """A node of a drawing: lines of text, the first one bold, and a CSS class."""

    key: str
    lines: tuple[str, ...]
    style: str

    @property
    def width(self) -> float:
        return max(len(line) for line in self.lines) * _CHAR + 2 * _PAD if self.lines else 0.0

    @property
    def height(self) -> float:
        return len(self.lines) * _LINE + 8 if self.lines else 2.0


@dataclass(frozen=True)
class Edge:
    """A curve from one box to another; `style` is a CSS class."""

    source: str
    target: str
    style: str = "edge"


def layers_of(keys: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """The layer of each node: one more than the highest of its sources. Keys are in order, so
    that sources come first."""
    sources: dict[str, list[str]] = {k: [] for k in keys}
    for edge in edges:
        sources[edge.target].append(edge.source)
    layer: dict[str, int] = {}
    for key in keys:
        layer[key] = 1 + max((layer.get(s, -1) for s in sources[key]), default=-1)
    return layer


def drawing(
    boxes: Sequence[Box],
    edges: Sequence[Edge],
    wish: Mapping[str, float],
    title: str,
    gap: float = 56,
) -> str:
    """Boxes in columns by layer, left to right.

    Args:
        wish: the row that a box would like, in units of a box; the others are placed at the mean
            of their sources. Boxes of one column never overlap.
        gap: between columns.
    """
    layer = layers_of([b.key for b in boxes], edges)
    boxes, edges, layer = _with_bends(boxes, edges, layer)
    columns: dict[int, list[Box]] = {}
    for box in boxes:
        columns.setdefault(layer[box.key], []).append(box)
    middle = _rows(columns, edges, wish)
    left: dict[str, float] = {}
    x = 6.0
    for number in sorted(columns):
        for box in columns[number]:
            left[box.key] = x
        x += max(b.width for b in columns[number]) + gap
    top = min((middle[b.key] - b.height / 2 for b in boxes), default=0.0) - 6
    height = max((middle[b.key] + b.height / 2 for b in boxes), default=0.0) - top + 6
    by_key = {b.key: b for b in boxes}
    wide = {b.key: max(o.width for o in columns[layer[b.key]]) for b in boxes if not b.lines}
    parts = [_curve(by_key, left, middle, wide, e, top) for e in edges]
    parts += [_box(b, left[b.key], middle[b.key] - top) for b in boxes if b.lines]
    width = max(x - gap + 6, 10.0)
    return (
        f'<svg role="img" aria-label="{escape(title)}" width="{width:.0f}" '
        f'height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">{"".join(parts)}</svg>'
    )


def _with_bends(
    boxes: Sequence[Box], edges: Sequence[Edge], layer: Mapping[str, int]
) -> tuple[list[Box], list[Edge], dict[str, int]]:
    """Edges that pass columns get an empty box in each, so that they go around what is there."""
    all_boxes, all_edges, layers = list(boxes), [], dict(layer)
    for edge in edges:
        previous = edge.source
        for number in range(layer[edge.source] + 1, layer[edge.target]):
            bend = Box(f"{edge.source} -> {edge.target} {number}", (), "bend")
            all_boxes.append(bend)
            layers[bend.key] = number
            all_edges.append(Edge(previous, bend.key, edge.style))
            previous = bend.key
        all_edges.append(Edge(previous, edge.target, edge.style))
    return all_boxes, all_edges, layers


def _rows(
    columns: Mapping[int, list[Box]], edges: Sequence[Edge], wish: Mapping[str, float]
) -> dict[str, float]:
    """The vertical middle of each box."""
    middle: dict[str, float] = {}
    for number in sorted(columns):
        wanted: list[tuple[float, int, Box]] = []
        for order, box in enumerate(columns[number]):
            sources = [middle[e.source] for e in edges if e.target == box.key]
            mean = sum(sources) / len(sources) if sources else order * 60.0
            wanted.append((wish[box.key] * 40.0 if box.key in wish else mean, order, box))
        bottom = float("-inf")
        for row, _, box in sorted(wanted, key=lambda w: w[:2]):
            middle[box.key] = max(row, bottom + 14 + box.height / 2)
            bottom = middle[box.key] + box.height / 2
    return middle


def _box(box: Box, x: float, y: float) -> str:
    top = y - box.height / 2
    styles = ("head", "more")
    text = "".join(
        f"<text class='{styles[min(i, 1)]}' x='{x + _PAD:.1f}' "
        f"y='{top + 16 + i * _LINE:.1f}'>{escape(line)}</text>"
        for i, line in enumerate(box.lines)
    )
    return (
        f'<g class="box {box.style}"><rect x="{x:.1f}" y="{top:.1f}" rx="5" '
        f'width="{box.width:.1f}" height="{box.height:.1f}"/>{text}</g>'
    )


def _curve(
    boxes: Mapping[str, Box],
    left: Mapping[str, float],
    middle: Mapping[str, float],
    wide: Mapping[str, float],
    edge: Edge,
    top: float,
) -> str:
    """From the right side of a box to the left side of another; an empty box is passed straight."""
    x1 = left[edge.source] + wide.get(edge.source, boxes[edge.source].width)
    y1, y2 = middle[edge.source] - top, middle[edge.target] - top
    x2 = left[edge.target]
    through = f" L{x2 + wide[edge.target]:.1f},{y2:.1f}" if edge.target in wide else ""
    end = x2 if through else x2 - 3
    arrow = "" if through else ' marker-end="url(#arrow)"'
    bend = max(16.0, (x2 - x1) / 2)
    return (
        f'<path class="{edge.style}"{arrow} d="M{x1:.1f},{y1:.1f} '
        f'C{x1 + bend:.1f},{y1:.1f} {x2 - bend:.1f},{y2:.1f} {end:.1f},{y2:.1f}{through}"/>'
    )
