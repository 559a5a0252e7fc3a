"""What NVIDIA's assembler made of a kernel: its machine instructions, counted.

The disassembler, nvdisasm, comes with the CUDA toolkit and in the wheel of Triton; it is not needed
for anything else.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ...diagnostics import TinycompError

FOLDERS = ("/usr/local/cuda/bin",)

_FUNCTION = re.compile(r"^\.text\.([^:\s]+):")
_LABEL = re.compile(r"^(\.L_\w+):")
_LINE = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
_TARGET = re.compile(r"`\((\.L_\w+)\)")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One machine instruction: where it is, its name with modifiers, and its operands as text."""

    address: int
    name: str
    operands: str = ""
    guarded: bool = False

    @property
    def base(self) -> str:
        """The name without modifiers.

        >>> Instruction(0, "LDG.E.128.CONSTANT").base
        'LDG'
        """
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Code:
    """The instructions of one kernel, and its innermost loops as ranges of their positions."""

    instructions: tuple[Instruction, ...]
    loops: tuple[range, ...]

    def counts(self, part: range | None = None) -> Counter[str]:
        """How many there are of each, by the name without modifiers."""
        chosen = self.instructions if part is None else self.instructions[part.start : part.stop]
        return Counter(i.base for i in chosen)

    def widths(self, base: str) -> Counter[int]:
        """How many memory instructions move how many bytes for a thread.

        >>> Code((Instruction(0, "LDG.E.128"), Instruction(16, "LDG.E.U16")), ()).widths("LDG")
        Counter({16: 1, 2: 1})
        """
        return Counter(_width(i.name) for i in self.instructions if i.base == base)

    def early_reads(self) -> list[Instruction]:
        """Accesses to global memory ahead of the wait of a programmatic launch."""
        found = []
        for one in self.instructions:
            if one.base == "ACQBULK":  # griddepcontrol.wait
                return found
            if one.base in ("LDG", "STG", "ATOMG", "RED", "LDGSTS", "UTMALDG", "LD", "ST"):
                found.append(one)
        return found


def _width(name: str) -> int:
    for part in name.split(".")[1:]:
        if part in ("128", "64"):
            return int(part) // 8
        if part.lstrip("US") in ("8", "16"):
            return int(part.lstrip("US")) // 8
    return 4


@functools.cache
def find_nvdisasm() -> str:
    """The path of nvdisasm; empty if there is none."""
    folders = [f"{os.environ[n]}/bin" for n in ("CUDA_PATH", "CUDA_HOME") if n in os.environ]
    folders += FOLDERS
    spec = importlib.util.find_spec("triton")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folders.append(f"{place}/backends/nvidia/bin")
    return shutil.which("nvdisasm") or shutil.which("nvdisasm", path=os.pathsep.join(folders)) or ""


def disassemble(code: bytes) -> dict[str, Code]:
    """The kernels of a cubin by name.

    Raises:
        TinycompError: there is no nvdisasm, or it does not know this code.
    """
    program = find_nvdisasm()
    if not program:
        raise TinycompError(
            "nvdisasm, which reads machine code of GPUs, is not found",
            hint="it comes with the CUDA toolkit (set CUDA_HOME) and with pip install triton",
        )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        done = subprocess.run(
            [program, "--print-code", file.name], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise TinycompError(f"{program} fails: {done.stderr.strip()[:300]}")
    return parse_sass(done.stdout)


def parse_sass(text: str) -> dict[str, Code]:
    """The kernels in what nvdisasm prints."""
    found: dict[str, Code] = {}
    for name, lines in _functions(text):
        instructions: list[Instruction] = []
        labels: dict[str, int] = {}
        for line in lines:
            if label := _LABEL.match(line):
                labels[label[1]] = len(instructions)
            elif one := _LINE.match(line):
                address, guard, opcode, operands = one.groups()
                instructions.append(
                    Instruction(int(address, 16), opcode, operands.strip(), guard is not None)
                )
        found[name] = Code(tuple(instructions), _innermost(instructions, labels))
    return found


def _functions(text: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", []
    for line in text.splitlines():
        if start := _FUNCTION.match(line):
            if name:
                yield name, lines
            name, lines = start[1], []
        else:
            lines.append(line)
    if name:
        yield name, lines


def _innermost(instructions: list[Instruction], labels: Mapping[str, int]) -> tuple[range, ...]:
    """Ranges between a branch backwards and its target that hold no other such range."""
    loops = []
    for position, one in enumerate(instructions):
        target = _TARGET.search(one.operands) if one.base == "BRA" else None
        start = labels.get(target[1], position + 1) if target else position + 1
        if start < position:  # a branch to itself pads the end
            loops.append(range(start, position + 1))
    return tuple(
        loop
        for loop in loops
        if not any(loop != o and loop.start <= o.start and o.stop <= loop.stop for o in loops)
    )


# ---- what is worth a look

_ROUNDING = ("F2F.BF16.F32", "F2F.F16.F32")  # a quarter of the rate of F2FP


def findings(code: Code) -> list[str]:
    """What makes a kernel slower than it need be, or wrong: a sentence each."""
    counts = code.counts()
    names = Counter(i.name for i in code.instructions)
    found = [
        f"{counts[base]} {base}: values in local memory, not in registers"
        for base in ("LDL", "STL")
        if counts[base]
    ]
    found += [f"{names[one]} {one}, slower than F2FP" for one in _ROUNDING if names[one]]
    loads = code.widths("LDG")
    narrow = sum(count for width, count in loads.items() if width < 4)
    if narrow >= 8 and narrow > loads.total() / 2:
        found.append(f"{narrow} of {loads.total()} loads of global memory are of 1 or 2 bytes")
    for loop in code.loops:
        inside = code.instructions[loop.start : loop.stop]
        here = code.counts(loop)
        where = f"the loop at {inside[0].address:#x}"
        if any(i.name.startswith("I2F") and i.name.endswith(".RP") for i in inside):  # a reciprocal
            found.append(f"{where} divides integers")
        wide = sum(i.name.startswith("IMAD.WIDE") or i.name.endswith(".X") for i in inside)
        memory = sum(here[b] for b in ("LDG", "STG", "LDGSTS"))
        if wide > memory + 2:
            found.append(f"{where} computes {wide} addresses of 64 bits for {memory} accesses")
    return found
