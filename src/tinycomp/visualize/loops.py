"""What the page shows of one state of the loops: stage graph, axis relations, loop nests."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from ..ir.expr import Var, variables
from ..tir.nodes import Block, Buffer, For, ForKind, IterKind, PrimFunc
from ..tir.printer import func_text
from ..tir.tree import blocks_in, loops_above, read_buffers, statements, written_buffers
from .svg import Box, Edge, drawing


@dataclass(frozen=True)
class AxisState:
    """A loop around a stage."""

    name: str
    extent: str
    kind: IterKind  # of the block axes that it takes part in
    loop: ForKind

    @property
    def label(self) -> str:
        marks = "" if self.loop is ForKind.SERIAL else f" {self.loop}"
        return f"{self.name} [{self.extent}]{marks}"


@dataclass
class Snapshot:
    """One state of a schedule's loops, read off once."""

    func: PrimFunc
    axes: dict[str, list[AxisState]] = field(default_factory=dict)  # by stage, outermost first
    kinds: list[IterKind] = field(default_factory=list)  # of all loops, in text order

    def __post_init__(self) -> None:
        strongest: dict[For, IterKind] = {}
        for block in blocks_in(self.func.body):
            states: list[AxisState] = []
            for loop in loops_above(self.func, block):
                kind = kind_of(block, loop.var)
                states.append(AxisState(loop.var.name, str(loop.extent), kind, loop.kind))
                if strongest.get(loop, IterKind.SPATIAL) is IterKind.SPATIAL:
                    strongest[loop] = kind
            self.axes[block.name] = states
        loops = (s for s in statements(self.func.body) if isinstance(s, For))
        self.kinds = [strongest.get(loop, IterKind.SPATIAL) for loop in loops]


def kind_of(block: Block, var: Var) -> IterKind:
    """The strongest kind of the block axes that a loop takes part in."""
    kinds = {
        iter_var.kind
        for iter_var, binding in zip(block.iter_vars, block.bindings, strict=True)
        if var in variables(binding)
    }
    for kind in (IterKind.ORDERED, IterKind.REDUCE):
        if kind in kinds:
            return kind
    return IterKind.SPATIAL


def stage_graph(snapshot: Snapshot) -> str:
    """Which stage reads which, where each is computed, and where its result lives."""
    func = snapshot.func
    inputs = func.params[: len(func.params) - func.num_outputs]
    boxes = [Box(f"in {b.name}", (b.name, _type(b)), "input") for b in inputs]
    edges: list[Edge] = []
    writer: dict[Buffer, str] = {b: f"in {b.name}" for b in inputs}
    blocks = blocks_in(func.body)
    inside = _attached(func)
    for block in blocks:
        written = written_buffers(block)
        style = "output" if any(b in func.params for b in written) else "stage"
        lines = [block.name, *(_type(b) for b in written)]
        if inside.get(block.name):
            lines.append(f"at {inside[block.name]}")
        boxes.append(Box(block.name, tuple(lines), style))
        for buffer in read_buffers(block):
            if buffer in writer and buffer not in written:
                edges.append(Edge(writer[buffer], block.name))
        for buffer in written:
            if buffer in writer and writer[buffer] != block.name:  # initialised elsewhere
                edges.append(Edge(writer[buffer], block.name, "edge weak"))
            writer[buffer] = block.name
    return drawing(boxes, list(dict.fromkeys(edges)), {}, "stage graph")


def _type(buffer: Buffer) -> str:
    scope = "" if buffer.scope == "global" else f" {buffer.scope}"
    return f"{buffer.dtype}[{', '.join(map(str, buffer.shape))}]{scope}"


def _attached(func: PrimFunc) -> dict[str, str]:
    """For a stage that is computed inside a loop of later stages: that loop."""
    blocks = blocks_in(func.body)
    last: dict[For, str] = {}  # the last block inside a loop owns it
    above = {block.name: loops_above(func, block) for block in blocks}
    for block in blocks:
        for loop in above[block.name]:
            last[loop] = block.name
    found: dict[str, str] = {}
    for block in blocks:
        shared = [l for l in above[block.name] if last[l] != block.name]
        if shared:
            found[block.name] = f"{shared[-1].var.name} of {last[shared[-1]]}"
    return found


@dataclass
class Relations:
    """How the axes of each stage came from each other, collected step by step.

    A step may use a name again that an earlier axis had (compute_at makes loops anew), so axes have
    keys of their own, and an axis comes only from older ones.
    """

    nodes: dict[str, dict[str, tuple[str, IterKind]]] = field(default_factory=dict)
    edges: dict[str, list[Edge]] = field(default_factory=dict)
    now: dict[str, dict[str, str]] = field(default_factory=dict)  # by stage and name, the key

    def add(self, snapshot: Snapshot) -> None:
        """Take up stages and axes that are new."""
        for stage, axes in snapshot.axes.items():
            known = self.nodes.setdefault(stage, {})
            self.edges.setdefault(stage, [])
            before, keys = self.now.get(stage, {}), {}
            for axis in axes:
                keys[axis.name] = before.get(axis.name) or _fresh(axis.name, known)
                known.setdefault(keys[axis.name], (axis.name, axis.kind))
            self.now[stage] = keys

    def step(self, stage: str, after: Snapshot) -> None:
        """Axes of `stage` that a step replaced by others."""
        before = self.now.get(stage, {})
        self.add(after)
        keys = self.now.get(stage, {}) if stage in after.axes else {}
        gone = [k for k in before.values() if k not in keys.values()]
        made = [k for k in keys.values() if k not in before.values()]
        if gone and made:
            self.edges[stage] += [Edge(a, b) for a in gone for b in made]

    def render(self, stage: str, snapshot: Snapshot) -> str:
        """The relation graph of one stage, as it is now."""
        keys = self.now.get(stage, {})
        present = {keys[a.name]: (i, a) for i, a in enumerate(snapshot.axes.get(stage, []))}
        boxes = []
        for key, (name, kind) in self.nodes.get(stage, {}).items():
            found = present.get(key)
            lines = (found[1].label if found else name,)
            boxes.append(Box(key, lines, f"axis {kind}{' leaf' if found else ' gone'}"))
        edges = self.edges.get(stage, [])
        related = {key for edge in edges for key in (edge.source, edge.target)}
        alone = sorted((b for b in boxes if b.key not in related and b.key in present),
                       key=lambda b: present[b.key][0])  # fmt: skip
        chips = "".join(f'<span class="chip {b.style}">{escape(b.lines[0])}</span>' for b in alone)
        if not edges:
            return chips
        shown = [b for b in boxes if b.key in related]
        wishes = _wishes(shown, edges, present)
        return f"{chips}<div>{drawing(shown, edges, wishes, f'axes of {stage}', 34)}</div>"


def _fresh(name: str, known: Mapping[str, object]) -> str:
    """A key for an axis of this name: the name itself, if it is the first."""
    key, count = name, 1
    while key in known:
        count += 1
        key = f"{name} ({count})"
    return key


def _wishes(
    boxes: Sequence[Box], edges: Sequence[Edge], present: dict[str, tuple[int, AxisState]]
) -> dict[str, float]:
    """Leaves in the order of the nest, others beside what they became."""
    wish = {name: float(position) for name, (position, _) in present.items()}
    for box in reversed(boxes):
        children = [wish[e.target] for e in edges if e.source == box.key and e.target in wish]
        if box.key not in wish and children:
            wish[box.key] = sum(children) / len(children)
    return wish


def loop_lines(snapshot: Snapshot, before: Snapshot | None) -> str:
    """The loops as coloured text; lines that differ from those `before` are marked."""
    lines = func_text(snapshot.func).splitlines()
    old = func_text(before.func).splitlines() if before is not None else lines
    changed: set[int] = set()
    for tag, _, _, low, high in difflib.SequenceMatcher(
        a=old, b=lines, autojunk=False
    ).get_opcodes():
        if tag != "equal":
            changed.update(range(low, high))
    kinds = iter(snapshot.kinds)
    shown = (
        f'<span class="line{" changed" if i in changed else ""}">{_coloured(line, kinds)}</span>'
        for i, line in enumerate(lines)
    )
    return f"<pre>{''.join(shown)}</pre>"


def _coloured(line: str, kinds: Iterator[IterKind]) -> str:
    text = line.strip()
    indent = " " * (len(line) - len(line.lstrip()))
    if text.startswith("for ") and " in " in text:
        name, _, rest = text[4:].partition(" in ")
        kind = next(kinds, IterKind.SPATIAL)
        marks = [k for k in ForKind if rest.startswith(str(k))]
        mark = f" mark {marks[0]}" if marks else ""
        return (
            f'{indent}for <b class="var {kind}">{escape(name)}</b> in '
            f'<span class="{mark}">{escape(rest)}</span>'
        )
    if text.startswith("with block("):
        title, _, rest = text.partition(")")
        return f'{indent}<b class="block">{escape(title)})</b>{escape(rest)}'
    return indent + escape(text)
