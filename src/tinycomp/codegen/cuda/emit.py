"""Lowered loop IR with thread bindings to CUDA C++ without headers.

Every statement at the root of a function is one kernel launch. Loops bound to blockIdx and
threadIdx are the grid and the block; `Evaluate(Call("barrier"))` is __syncthreads().

>>> from tinycomp import te
>>> from tinycomp.tir.lower_gpu import lower_gpu
>>> A = te.placeholder((1024,), name="A")
>>> B = te.compute((1024,), lambda i: A[i] * 2.0, name="B")
>>> s = te.create_schedule(B.op)
>>> block, thread = s[B].split("i", factor=256)
>>> s[B].bind(block, "blockIdx.x"), s[B].bind(thread, "threadIdx.x")
(None, None)
>>> kernel = emit_cuda(lower_gpu(s.func), "sm_90a")
>>> print(kernel.source)
extern "C" __global__ void __launch_bounds__(256) main_(
    const float* __restrict__ A, float* __restrict__ B) {
  const int blockIdx_x = blockIdx.x;
  const int threadIdx_x = threadIdx.x;
  const int t1 = blockIdx_x * 256 + threadIdx_x;
  B[t1] = A[t1] * 2.0f;
}
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...diagnostics import InternalError, ScheduleError
from ...ir.expr import Call, IntImm, Load, Var, as_expr, as_int
from ...ir.node import preorder
from ...te.simplify import Analyzer
from ...tir.nodes import (
    Alloc,
    Async,
    Buffer,
    Evaluate,
    For,
    ForKind,
    If,
    PrimFunc,
    Scope,
    Seq,
    Stmt,
    Store,
)
from ...tir.passes.share_memory import (
    ALIGNMENT,
    IN_BLOCK,
    shape_in_block,
    shared_bytes,
    size_of,
)
from ...tir.primitives.annotate import CLUSTER
from ...tir.sizes import evaluate
from ...tir.tile.nodes import TileProgram
from ...tir.tree import statements
from ..workspace import buffer_end
from .async_copy import ASYNC_HELPERS, async_copy
from .cluster import CLUSTER_HELPERS, cluster_size
from .expressions import ExprEmitter, Names, Writer
from .helpers import HELPERS, helper_source
from .intrinsics import FUNCTIONS
from .limits import (
    STATIC_SHARED,
    Extent,
    Launch,
    SymbolicLaunch,
    check_launch,
    has_async_copies,
    spills_for_blocks,
)
from .tile_ptx import tile_helpers
from .types import STORED, bare
from .warp import WARP_HELPERS, is_warp_call, warp_call

_KEYWORDS = frozenset(
    ["auto", "bool", "break", "case", "char", "const", "continue", "default", "do", "double",
     "else", "enum", "extern", "false", "float", "for", "goto", "if", "inline", "int", "long",
     "new", "operator", "private", "public", "register", "return", "short", "signed", "sizeof",
     "static", "struct", "switch", "template", "this", "true", "typedef", "union",
     "unsigned", "using", "void", "volatile", "while", "error", "error_code", "shared", "main"]
)  # fmt: skip
_MORE_HELPERS = WARP_HELPERS | ASYNC_HELPERS | CLUSTER_HELPERS
# Functions that a kernel may call; what is named like one would hide it.
_RESERVED = (
    _KEYWORDS
    | set(HELPERS)
    | set(WARP_HELPERS)
    | set(CLUSTER_HELPERS)
    | {f"{n}{end}" for n in FUNCTIONS for end in ("", "f")}
)


# The first returns when the kernel ahead is complete and what it wrote can be seen; that has waited
# for the one before it in the same way. The second lets the next kernel take what room there is,
# where it waits in turn (PTX ISA, griddepcontrol).
_PROGRAMMATIC = (
    'asm volatile("griddepcontrol.wait;" ::: "memory");',
    'asm volatile("griddepcontrol.launch_dependents;" ::: "memory");',
)


@dataclass(frozen=True, slots=True)
class CudaKernel:
    """A function in CUDA C++ and how to launch it.

    Attributes:
        source: complete; needs no header.
        workspace_bytes: memory for buffers that live between its launches, 256-byte aligned.
    """

    name: str
    source: str
    launches: tuple[Launch, ...]
    workspace_bytes: int

    @property
    def can_fail(self) -> bool:
        return any(launch.can_fail for launch in self.launches)


@dataclass(frozen=True, slots=True)
class SymbolicKernel:
    """A function in CUDA C++ whose launches depend on its symbolic sizes."""

    name: str
    source: str
    launches: tuple[SymbolicLaunch, ...]
    workspace: Extent
    sizes: tuple[Var, ...]

    def at(self, sizes: Mapping[Var, int]) -> CudaKernel:
        """The kernel as it is launched in a call with these values of the sizes."""
        values = {v: sizes[v] for v in self.sizes}
        launches = tuple(launch.at(values) for launch in self.launches)
        workspace = evaluate(as_expr(self.workspace), values)
        return CudaKernel(self.name, self.source, launches, workspace)


def emit_cuda(
    func: PrimFunc, arch: str = "sm_90a", comment: str = "", programmatic: bool = False
) -> CudaKernel:
    """The CUDA C++ of a lowered function of known sizes.

    Args:
        comment: text above the kernels.
        programmatic: let kernels be launched before the one ahead of them ends; they wait for it
            themselves (programmatic dependent launch).

    Raises:
        ScheduleError: a launch is over the limits of `arch`.
    """
    kernel = emit_symbolic(func, arch, comment, programmatic).at({})
    for launch in kernel.launches:
        check_launch(launch, arch, func.span)
    return kernel


def emit_symbolic(
    func: PrimFunc,
    arch: str = "sm_90a",
    comment: str = "",
    programmatic: bool = False,
    wide: bool = False,
) -> SymbolicKernel:
    """The CUDA C++ of a lowered function for any values of its sizes; the grid is unchecked.

    Args:
        wide: hold sizes, and indices that depend on them, as `long long`. Else they are int, and
            who calls makes sure that they fit (`fits_int`).

    Raises:
        ScheduleError: a block is over the limits of `arch`.
    """
    from .tile import TileEmitter  # it extends the emitter below

    workspace, size, body = _workspace(func)
    roots = body.stmts if isinstance(body, Seq) else (body,)
    launches: list[SymbolicLaunch] = []
    texts: list[str] = []
    helpers: set[str] = set()
    for index, root in enumerate(roots):
        name = _identifier(func.name if len(roots) == 1 else f"{func.name}_{index}")
        kind = TileEmitter if isinstance(root, TileProgram) else KernelEmitter
        emitter = kind(func, name, workspace, arch, programmatic, not wide)
        text, launch = emitter.run(root)
        fixed = dataclasses.replace(launch.fixed, programmatic=programmatic, wide=wide)
        check_launch(fixed, arch, func.span)
        launches.append(dataclasses.replace(launch, fixed=fixed))
        texts.append(text)
        helpers |= emitter.out.helpers
    lines = [f"// {line}" for line in comment.splitlines()]
    if func.span.nodes:
        lines.append(f"// ONNX nodes: {_printable(func.span)}")
    more = {**_MORE_HELPERS, **tile_helpers(helpers)}
    parts = ["\n".join(lines), helper_source(helpers, more), "\n\n".join(texts)]
    source = "\n\n".join(part for part in parts if part)
    return SymbolicKernel(func.name, source, tuple(launches), size, func.sizes)


def fits_int(func: PrimFunc, bounds: Mapping[Var, int]) -> bool:
    """Whether all indices of a lowered function fit an int if its sizes are at most these."""
    workspace, _, body = _workspace(func)
    for root in body.stmts if isinstance(body, Seq) else (body,):
        emitter = KernelEmitter(func, func.name, workspace, "sm_80", narrow=False, bounds=bounds)
        emitter.run(root)
        if not emitter.names.fits:
            return False
    return True


def _printable(text: object) -> str:
    """ONNX names may hold anything; a comment may not end early or continue a line."""
    return re.sub(r"[^\x20-\x7e]|\\", "?", str(text))


def _identifier(name: str) -> str:
    text = re.sub(r"\W", "_", name)
    return f"{text}_" if text in _RESERVED or text[0].isdigit() else text


def _workspace(func: PrimFunc) -> tuple[dict[Buffer, Extent], Extent, Stmt]:
    """Offsets of the buffers that several launches share, their end, and the body without their
    Allocs."""
    offsets: dict[Buffer, Extent] = {}
    size: Extent = 0
    body = func.body
    while isinstance(body, Alloc) and body.buffer.scope is Scope.GLOBAL:
        offsets[body.buffer] = size
        size = size + buffer_end(body.buffer, 256)
        body = body.body
    return offsets, size, body


class KernelEmitter:
    """Writes one launch."""

    def __init__(
        self,
        func: PrimFunc,
        name: str,
        workspace: dict[Buffer, Extent],
        arch: str,
        programmatic: bool = False,
        narrow: bool = True,
        bounds: Mapping[Var, int] | None = None,
    ) -> None:
        self.arch, self.programmatic = arch, programmatic
        self.func, self.name, self.workspace = func, name, workspace
        self.out, self.names = Writer(), Names(narrow=narrow and bool(func.sizes))
        self.names.analyzer = Analyzer(func.sizes)
        for size, most in (bounds or {}).items():
            self.names.analyzer.bind(size, 0, most + 1)
        self.expressions = ExprEmitter(self.out, self.names)
        self.taken = set(_RESERVED)
        self.extents: dict[str, Extent] = {}
        self.is_async = self.is_collective = False
        self.cluster = 1  # blocks that are one
        self.comments: set[str] = set()

    def run(self, root: Stmt) -> tuple[str, SymbolicLaunch]:
        params, spaces, written = self._name_pointers(root)
        pointers = [self.func.params[i] for i in params] + spaces
        for size in self.func.sizes:
            self.names.vars[size] = self.unique(size.name)
        shared = [
            s.buffer
            for s in statements(root)
            if isinstance(s, Alloc) and s.buffer.scope in IN_BLOCK
        ]
        for buffer in shared:
            self.names.buffers[buffer] = self.unique(buffer.name)
        self.begin()
        nbytes = self._declare_shared(shared)
        self.cluster = cluster_size(root)
        self._statements(root)
        x, y, z = (self.extents.get(f"blockIdx.{d}", 1) for d in "xyz")
        grid = (x * self.cluster, y, z)
        block = tuple(as_int(as_expr(self.extents.get(f"threadIdx.{d}", 1))) for d in "xyz")
        launch = Launch(
            self.name, (self.cluster, 1, 1), block, nbytes, nbytes if nbytes > STATIC_SHARED else 0,  # type: ignore[arg-type]
            tuple(params), (), self.names.can_fail, (self.cluster, 1, 1),
        )  # fmt: skip
        text = self._text(pointers, written, launch)
        return text, SymbolicLaunch(launch, grid, tuple(self.workspace[b] for b in spaces))

    def _name_pointers(self, root: Stmt) -> tuple[list[int], list[Buffer], set[Buffer]]:
        """Names for the global memory that a launch touches: the indices of its parameters, the
        buffers of the workspace, and which of both it writes."""
        written = {s.buffer for s in statements(root) if isinstance(s, Store)}
        used = {n.source for n in preorder(root) if isinstance(n, Load)} | written
        params = [i for i, b in enumerate(self.func.params) if b in used]
        spaces = [b for b in self.workspace if b in used]
        for buffer in [self.func.params[i] for i in params] + spaces:
            self.names.buffers[buffer] = self.unique(buffer.name)
        return params, spaces, written

    def _text(self, pointers: list[Buffer], written: set[Buffer], launch: Launch) -> str:
        restrict = "" if self.func.attrs.get("inplace") else " __restrict__"
        arguments = [
            f"{'' if b in written else 'const '}{STORED[b.dtype]}*{restrict} {name}"
            for b, name in ((b, self.names.buffers[b]) for b in pointers)
        ]
        for size in self.func.sizes:
            arguments.append(f"const {self.expressions.type_of(size)} {self.names.vars[size]}")
        if launch.can_fail:
            arguments += ["int* error", "const int error_code"]
        bounds = f"__launch_bounds__({launch.threads}{self._least_blocks()}) "
        if self.cluster > 1:
            bounds = f"__cluster_dims__({self.cluster}, 1, 1) {bounds}"
        head = f'extern "C" __global__ void {bounds}{self.name}(\n'
        return "\n".join([f"{head}    {', '.join(arguments)}) {{", *self.out.lines, "}"])

    def _least_blocks(self) -> str:
        """Register tiles of tensor cores are meant to stay in registers. For some architectures the
        assembler moves a few away to fit another block, unless it is told that one will do."""
        return ", 1" if self.is_collective and spills_for_blocks(self.arch) else ""

    def begin(self) -> None:
        """What precedes all accesses to global memory."""
        for line in _PROGRAMMATIC * self.programmatic:
            self.out.line(line)

    def _declare_shared(self, buffers: list[Buffer]) -> int:
        """Shared arrays of their own, or parts of the one that is sized at launch."""
        total = shared_bytes(buffers)
        together = total > STATIC_SHARED or any(b.offset is not None for b in buffers)
        if together:
            size = "" if total > STATIC_SHARED else str(total)
            kind = "__shared__" if size else "extern __shared__"
            self.out.line(f"{kind} __align__({ALIGNMENT}) unsigned char shared[{size}];")
        offset = shared_bytes(b for b in buffers if b.offset is not None)
        for buffer in buffers:
            name, type_ = self.names.buffers[buffer], STORED[buffer.dtype]
            if together:
                start = offset if buffer.offset is None else buffer.offset
                self.out.line(f"{type_}* {name} = ({type_}*)(shared + {start});")
            else:
                self.out.line(f"__shared__ __align__(16) {type_} {name}[{_elements(buffer)}];")
            offset += size_of(buffer) if buffer.offset is None else 0
        return total

    def unique(self, name: str) -> str:
        text = _identifier(name)
        base, count = text, 1
        while text in self.taken:
            count += 1
            text = f"{base}_{count}"
        self.taken.add(text)
        return text

    # -- statements --------------------------------------------------------------------------

    def _statements(self, root: Stmt) -> None:
        work: list[Any] = [root]
        while work:
            item = work.pop()
            if not isinstance(item, Stmt):
                item()
            elif isinstance(item, Seq):
                work.extend(reversed(item.stmts))
            else:
                self._statement(item, work)
                self.expressions.forget()

    def _statement(self, stmt: Stmt, work: list[Any]) -> None:
        if isinstance(stmt, Store):
            self._store(stmt)
        elif isinstance(stmt, For):
            self._thread(stmt, work) if stmt.kind is ForKind.THREAD else self._loop(stmt, work)
        elif isinstance(stmt, If):
            self._if(stmt, work)
        elif isinstance(stmt, Alloc):
            if stmt.buffer.scope is Scope.LOCAL or stmt.buffer not in self.names.buffers:
                self._allocate(stmt.buffer)  # in every scope that has it
            work.append(stmt.body)
        elif isinstance(stmt, Async):
            self.is_async = has_async_copies(self.arch)
            work.extend((self._end_async, stmt.body))
        elif isinstance(stmt, Evaluate):
            self._evaluate(stmt)
        else:
            raise InternalError(f"a {type(stmt).__name__} statement was not lowered")

    def _end_async(self) -> None:
        self.is_async = False

    def _thread(self, loop: For, work: list[Any]) -> None:
        """A thread axis is a variable, not a loop."""
        extent = loop.extent.value if isinstance(loop.extent, IntImm) else loop.extent
        known = self.extents.setdefault(loop.thread, extent)
        if known != extent:
            raise ScheduleError(f"{self.name}: {loop.thread} has extents {known} and {loop.extent}")
        name = self.unique(loop.thread)
        type_ = self.expressions.bind(loop.var, name, loop.min, loop.extent)
        low = "" if isinstance(loop.min, IntImm) and not loop.min.value else f" + {loop.min}"
        place = loop.thread
        if self.cluster > 1 and place in ("blockIdx.x", CLUSTER):
            place = f"blockIdx.x {'%' if place == CLUSTER else '/'} {self.cluster}"
        if loop.thread == CLUSTER:
            self.names.rank = loop.var
        self.out.line(f"const {type_} {name} = {place}{low};")
        work.append(loop.body)

    def _loop(self, loop: For, work: list[Any]) -> None:
        if loop.kind not in (ForKind.SERIAL, ForKind.UNROLLED):
            raise InternalError(f"a {loop.kind} loop over {loop.var} was not lowered")
        self.expressions.begin([loop.min, loop.extent])
        low = self.expressions.scalar(loop.min)
        end = self.expressions.scalar(self.names.analyzer.simplify(loop.min + loop.extent))
        name = self.unique(loop.var.name)
        type_ = self.expressions.bind(loop.var, name, loop.min, loop.extent)
        if loop.kind is ForKind.UNROLLED:
            self.out.line("#pragma unroll")
        elif loop.annotations.get("unroll") == 1:
            self.out.line("#pragma unroll 1")
        self.out.open(f"for ({type_} {name} = {low}; {name} < {end}; ++{name}) {{")
        work.extend((lambda: self._close(name), loop.body))

    def _close(self, name: str = "") -> None:
        self.taken.discard(name)
        self.out.close()

    def _if(self, stmt: If, work: list[Any]) -> None:
        self.expressions.begin([stmt.condition])
        self.out.open(f"if ({self.expressions.scalar(stmt.condition)}) {{")
        if stmt.otherwise is None:
            work.extend((self._close, stmt.then))
        else:
            work.extend((self._close, stmt.otherwise, self._else, stmt.then))

    def _else(self) -> None:
        self.out.close("} else {")
        self.out.depth += 1

    def _allocate(self, buffer: Buffer) -> None:
        if buffer.scope is not Scope.LOCAL:
            raise InternalError(f"{self.name}: {buffer} cannot be allocated inside a kernel")
        name = self.names.buffers[buffer] = self.unique(buffer.name)
        self.out.line(f"{STORED[buffer.dtype]} {name}[{_elements(buffer)}];")

    def _evaluate(self, stmt: Evaluate) -> None:
        value = stmt.value
        if isinstance(value, Call) and value.name == "barrier":
            self.out.line("__syncthreads();")
        elif isinstance(value, Call) and value.name in CLUSTER_HELPERS:
            self.out.line(f"{self.out.use(value.name)}();")
        elif isinstance(value, Call) and value.name in ("async_commit", "async_wait"):
            if not has_async_copies(self.arch):
                return
            groups = [str(as_int(arg)) for arg in value.args]
            template = f"<{groups[0]}>" if groups else ""
            self.out.line(f"{self.out.use(value.name)}{template}();")
        elif isinstance(value, Call) and is_warp_call(value):
            self.is_collective = True
            self.out.line(warp_call(self.expressions, value))
        elif not (isinstance(value, Call) and value.name == "prefetch"):
            self.expressions.begin([value])
            self.out.line(f"(void)({self.expressions.scalar(value)});")

    def _store(self, stmt: Store) -> None:
        comment = _printable(stmt.span) if stmt.span.nodes else ""
        if comment and comment not in self.comments:
            self.comments.add(comment)
            self.out.line(f"// {comment}")
        buffer, emitter = stmt.buffer, self.expressions
        access = emitter.place(buffer, stmt.indices)
        index = access.index
        parts = [index, stmt.value] + ([] if stmt.predicate is None else [stmt.predicate])
        owner = emitter.owner(buffer, stmt.indices)
        emitter.begin([*parts, *owner])
        name, lanes = emitter.memory(buffer, owner), max(access.lanes, 1)
        wide = stmt.predicate is None and emitter.is_wide(buffer, lanes, index)
        if self.is_async and (line := async_copy(emitter, stmt)):
            self.out.line(line)
            return
        ats, values = emitter.lanes(index), emitter.lanes(stmt.value)
        if wide and not access.scattered:
            self._wide_store(name, buffer, bare(ats[0]), values, lanes)
            return
        masks = None if stmt.predicate is None else emitter.lanes(stmt.predicate)
        exact = emitter.is_exact(stmt.value)
        for lane in range(lanes):
            value = emitter.encode(values[lane if len(values) > 1 else 0], buffer.dtype, exact)
            text = f"{name}[{emitter.element(index, access, lane)}] = {value};"
            if masks is not None:
                text = f"if ({bare(masks[lane if len(masks) > 1 else 0])}) {text}"
            self.out.line(text)

    def _wide_store(
        self, name: str, buffer: Buffer, at: str, values: list[str], lanes: int
    ) -> None:
        type_ = f"{self.out.use('Vec')}<{STORED[buffer.dtype]}, {lanes}>"
        stored = [
            self.expressions.encode(values[i % len(values)], buffer.dtype) for i in range(lanes)
        ]
        self.out.line(f"*({type_}*)({name} + {at}) = {type_}{{{{{', '.join(stored)}}}}};")


def _elements(buffer: Buffer) -> int:
    count = 1
    for extent in shape_in_block(buffer):
        count *= as_int(extent)
    return max(1, count)


__all__ = ["CudaKernel", "Launch", "emit_cuda"]
