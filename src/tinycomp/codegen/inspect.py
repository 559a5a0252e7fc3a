"""What the compiler made of a kernel: registers spilled to the stack inside loops.

>>> text = '''f:
... .LBB0_1:                # =>This Inner Loop Header: Depth=1
...     vmovups %zmm0, (%rsp)   # 64-byte Spill
...     jne .LBB0_1
... # %bb.2:
...     vmovups (%rsp), %zmm0   # 64-byte Reload
... '''
>>> report = find_spills(text)
>>> report.spills, report.reloads, report.loops[0].loop
(1, 0, 'f .LBB0_1')
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = re.compile(r"^(\.?[\w$.]+):")
_BLOCK = re.compile(r"^(?:#|//|;)\s*%bb\.\d+:")
_HEADER = re.compile(r"This (?:Inner )?Loop Header: Depth=(\d+)")
_INSIDE = re.compile(r"in Loop: Header=(\w+) Depth=(\d+)")
_SPILL = re.compile(r"(\d+)-byte (?:Folded )?(Spill|Reload)")
_VECTOR_BYTES = 16


@dataclass(frozen=True, slots=True)
class LoopSpills:
    """Stack traffic of vector registers in the body of one loop, per iteration.

    Attributes:
        loop: function and label of the loop.
        depth: 1 for an outermost loop.
    """

    loop: str
    depth: int
    spills: int
    reloads: int


@dataclass(frozen=True, slots=True)
class SpillReport:
    """Loops whose bodies spill vector registers; blocks of inner loops count for these only."""

    loops: tuple[LoopSpills, ...]

    @property
    def spills(self) -> int:
        """Stores of vector registers to the stack, inside loops."""
        return sum(loop.spills for loop in self.loops)

    @property
    def reloads(self) -> int:
        """Loads of vector registers from the stack, inside loops."""
        return sum(loop.reloads for loop in self.loops)

    def __str__(self) -> str:
        if not self.loops:
            return "no vector registers are spilled inside loops"
        lines = [f"{'depth':>5} {'spills':>7} {'reloads':>8}  loop"]
        lines += [f"{l.depth:5} {l.spills:7} {l.reloads:8}  {l.loop}" for l in self.loops]
        return "\n".join(lines)


def find_spills(assembly: str) -> SpillReport:
    """Spills and reloads of vector registers per loop, from LLVM's commented assembly."""
    counts: dict[str, list[int]] = {}  # loop -> [depth, spills, reloads]
    function, block, loop, depth = "", "", "", 0
    for line in assembly.splitlines():
        label = _LABEL.match(line)
        if label or _BLOCK.match(line):
            loop, depth = "", 0
            block = label.group(1) if label else ""
            if block and not block.startswith(".L"):
                function = block
        header, inside = _HEADER.search(line), _INSIDE.search(line)
        if header and int(header.group(1)) > depth:
            loop, depth = f"{function} {block}", int(header.group(1))
        elif inside and int(inside.group(2)) > depth:
            loop, depth = f"{function} .L{inside.group(1)}", int(inside.group(2))
        spill = _SPILL.search(line)
        if spill and depth and int(spill.group(1)) >= _VECTOR_BYTES:
            counts.setdefault(loop, [depth, 0, 0])[1 if spill.group(2) == "Spill" else 2] += 1
    return SpillReport(tuple(LoopSpills(name, *values) for name, values in counts.items()))
