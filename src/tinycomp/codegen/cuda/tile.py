"""Tile programs to CUDA C++ with inline PTX, for sm_90a.

One branch per role; positions in rings and parities are variables; addresses in shared memory are
32-bit numbers, so that an operation is one function of `tile_ptx`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...diagnostics import InternalError
from ...ir.expr import Expr, IntImm, Load, Var, as_expr, as_int, const, is_const
from ...ir.node import preorder
from ...tir.nodes import Buffer, PrimFunc, Scope, Stmt, Store
from ...tir.passes.share_memory import size_of
from ...tir.tile import nodes as op
from ...tir.tile.verify import shared_layout, verify_tile_program
from ...tir.tree import statements
from .emit import KernelEmitter
from .limits import Extent, Launch, SymbolicLaunch, TensorMapSpec
from .tile_ptx import NAMES, wgmma_name
from .types import STORED


class TileEmitter(KernelEmitter):
    """Writes the launch of one tile program."""

    def __init__(
        self,
        func: PrimFunc,
        name: str,
        workspace: dict[Buffer, Extent],
        arch: str,
        programmatic: bool = False,
        narrow: bool = True,
    ) -> None:
        super().__init__(func, name, workspace, arch, programmatic, narrow)
        self.taken |= NAMES
        self.parity: dict[op.Cursor, str] = {}
        self.stage: dict[op.Cursor, str] = {}
        self.maps: dict[op.TensorMap, str] = {}
        self.role: op.Role | None = None
        self.fragments: set[Buffer] = set()  # operands in registers

    def run(self, root: Stmt) -> tuple[str, SymbolicLaunch]:
        assert isinstance(root, op.TileProgram)
        verify_tile_program(root)
        program = self.program = root
        for map in program.maps:
            self.maps[map] = self.unique(f"{map.name}_map")
        params, spaces, written = self._name_pointers(root)
        pointers = [self.func.params[i] for i in params] + spaces
        self.used = {n for n in preorder(program) if isinstance(n, Var)}
        products = [s for s in statements(program) if isinstance(s, op.Wgmma)]
        self.fragments = {s.a.buffer for s in products if isinstance(s.a, op.Fragment)}
        layout = shared_layout(program)
        self._prologue(layout.tiles, layout.barriers)
        self._statements(program.setup)
        self.begin()
        for number, role in enumerate(program.roles):
            self._role(role, number)
        self.out.close()
        self._statements(program.finish)
        launch = Launch(
            self.name, (program.grid, 1, 1), (program.threads, 1, 1), layout.nbytes, layout.nbytes,
            tuple(params), tuple(self._offset(b) for b in spaces), self.names.can_fail,
            (program.cluster, 1, 1), tuple(self._spec(map) for map in program.maps),
        )  # fmt: skip
        return self._program_text(pointers, written, launch), SymbolicLaunch.of(launch)

    def _program_text(self, pointers: list[Buffer], written: set[Any], launch: Launch) -> str:
        arguments = [
            f"{'' if b in written else 'const '}{STORED[b.dtype]}* __restrict__ {name}"
            for b, name in ((b, self.names.buffers[b]) for b in pointers)
        ]
        for name in self.maps.values():
            self.out.use("TensorMap")
            arguments.append(f"const __grid_constant__ TensorMap {name}")
        if launch.can_fail:
            arguments += ["int* error", "const int error_code"]
        cluster = self.program.cluster
        size = f"__cluster_dims__({cluster}, 1, 1) " if cluster > 1 else ""
        head = f'extern "C" __global__ void {size}__launch_bounds__({launch.threads}, 1)'
        signature = f"{head} {self.name}(\n    {', '.join(arguments)}) {{"
        return "\n".join([signature, *self.out.lines, "}"])

    def _spec(self, map: op.TensorMap) -> TensorMapSpec:
        inside, walk = map.buffer in self.workspace, map.im2col
        return TensorMapSpec(
            -1 if inside else self.func.params.index(map.buffer), map.buffer.dtype.value,
            map.dims, map.strides, map.box, map.swizzle.span,
            (self._offset(map.buffer) if inside else 0) + map.offset,
            *((walk.lower, walk.upper, walk.strides) if walk is not None else ()),
        )  # fmt: skip

    def _offset(self, buffer: Buffer) -> int:
        return as_int(as_expr(self.workspace[buffer]))

    # -- names of what the program declares --------------------------------------------------

    def _prologue(self, tiles: dict[op.SharedTile, int], barriers: dict[op.Barrier, int]) -> None:
        program, line = self.program, self.out.line
        line("extern __shared__ __align__(1024) unsigned char shared[];")
        self.base = self.unique("base")
        line(f"const unsigned int {self.base} = {self.out.use('shared_address')}(shared);")
        self.address: dict[Any, str] = {}
        named = [t for t in tiles.items() if t[0].buffer.scope is not Scope.CLUSTER]
        for item, offset in [*named, *barriers.items()]:  # the others are only reached by code
            name = self.unique(f"{item.name}_at")
            line(f"const unsigned int {name} = {self.base} + {offset};")
            self.address[item] = name
        for tile, offset in tiles.items():
            if self._is_used(tile.buffer):
                name = self.names.buffers[tile.buffer] = self.unique(tile.name)
                line(f"{STORED[tile.dtype]}* {name} = ({STORED[tile.dtype]}*)(shared + {offset});")
        self._variable(program.block, program.grid, "blockIdx.x")
        rank = f"{self.out.use('cluster_rank')}()" if program.cluster > 1 else "0"
        if program.rank in self.used:
            self._variable(program.rank, program.cluster, rank)
        self.names.rank = program.rank

    def _is_used(self, buffer: Buffer) -> bool:
        stored = any(isinstance(s, Store) and s.buffer is buffer for s in statements(self.program))
        return stored or any(
            isinstance(n, Load) and n.source is buffer for n in preorder(self.program)
        )

    def _variable(self, var: Var, extent: int, value: str) -> None:
        name = self.unique(var.name)
        type_ = self.expressions.bind(var, name, const(0), const(extent))
        self.out.line(f"const {type_} {name} = {value};")

    def _text(self, expr: Expr) -> str:  # type: ignore[override]
        self.expressions.begin([expr])
        return self.expressions.scalar(self.names.analyzer.simplify(expr))

    def call(self, name: str, *arguments: Any, template: str = "") -> None:
        self.out.line(f"{self.out.use(name)}{template}({', '.join(map(str, arguments))});")

    # -- roles -------------------------------------------------------------------------------

    def _role(self, role: op.Role, number: int) -> None:
        end = (role.first + role.warpgroups) * op.WARPGROUP
        test = f"if (threadIdx.x < {end}) {{"
        if number:
            self.out.depth -= 1
            test = "} else {" if number == len(self.program.roles) - 1 else f"}} else {test}"
        self.out.open(f"{test}  // {role.name}")
        self.role = role
        if role.registers:
            up = role.registers > 65536 // self.program.threads // 8 * 8
            self.call(f"set_registers_{'up' if up else 'down'}", template=f"<{role.registers}>")
        group = f"threadIdx.x / {op.WARPGROUP} - {role.first}"
        if role.warpgroup in self.used:
            self._variable(role.warpgroup, role.warpgroups, group if role.warpgroups > 1 else "0")
        self._variable(role.thread, op.WARPGROUP, f"threadIdx.x % {op.WARPGROUP}")
        if role.single:
            self.out.open(f"if ({self.names.vars[role.thread]} == 0) {{")
        for cursor in role.cursors:
            self.stage[cursor] = self.unique(cursor.name)
            self.parity[cursor] = self.unique(f"{cursor.name}_parity")
            self.out.line(f"int {self.stage[cursor]} = 0;")
            self.out.line(f"unsigned int {self.parity[cursor]} = 0;")
        for buffer in (*(acc.buffer for acc in role.accumulators), *role.arrays):
            self._allocate(buffer)
        self._statements(role.body)
        if role.single:
            self.out.close()
            self.out.line("__syncwarp();")

    def _statement(self, stmt: Stmt, work: list[Any]) -> None:
        handler = _HANDLERS.get(type(stmt))
        if handler is not None:
            handler(self, stmt)
        elif isinstance(stmt, op.ThreadCode):
            work.append(stmt.body)
        elif isinstance(stmt, op.TileOp):
            raise InternalError(f"{type(stmt).__name__} cannot be written in CUDA C++")
        else:
            super()._statement(stmt, work)

    def _allocate(self, buffer: Buffer) -> None:
        """Parts of operands are held as wgmma takes them: 16-bit elements in pairs."""
        super()._allocate(buffer)
        if buffer in self.fragments and buffer.dtype.itemsize == 2:
            self.names.packed.add(buffer)
            self.out.lines.pop()
            self.out.line(f"unsigned int {self.names.buffers[buffer]}[{size_of(buffer) // 4}];")

    def _store(self, stmt: Store) -> None:
        if stmt.buffer not in self.names.packed:
            super()._store(stmt)
            return
        emitter = self.expressions
        pair = emitter.pair(stmt.buffer, emitter.place(stmt.buffer, stmt.indices))
        emitter.begin([pair, stmt.value])
        at = emitter.scalar(pair)
        bits = emitter.encode_pair(emitter.lanes(stmt.value), stmt.buffer.dtype)
        self.out.line(f"{self.names.buffers[stmt.buffer]}[{at}] = {bits};")

    def _elected(self, text: str) -> None:
        """One thread of the warpgroup does it."""
        assert self.role is not None
        if self.role.single:
            self.out.line(text)
        else:
            self.out.line(f"if ({self.names.vars[self.role.thread]} == 0) {text}")

    # -- operations --------------------------------------------------------------------------

    def let(self, stmt: op.Let) -> None:
        if stmt.var not in self.used:
            return
        text = self._text(stmt.value)
        name = self.unique(stmt.var.name)
        type_ = self.expressions.bind(stmt.var, name, const(0), const(stmt.extent))
        self.out.line(f"const {type_} {name} = {text};")

    def let_stage(self, stmt: op.LetStage) -> None:
        self._variable(stmt.var, stmt.cursor.stages, self.stage[stmt.cursor])

    def ahead(self, stmt: op.Ahead) -> None:
        if self.programmatic:
            self.out.open("if (threadIdx.x == 0) {")
            self._statements(stmt.body)
            self.out.close()

    def tma_prefetch(self, stmt: op.TmaPrefetch) -> None:
        places = map(self._text, stmt.coordinates)
        self.call(f"tma_prefetch_{len(stmt.coordinates)}d", self.maps[stmt.map], *places)

    def init_barriers(self, stmt: op.InitBarriers) -> None:
        self.out.open("if (threadIdx.x == 0) {")
        for map in self.program.maps:
            self.call("tma_prefetch", self.maps[map])
        for barrier in self.program.barriers:
            for stage in range(barrier.stages):
                at = f"{self.address[barrier]} + {8 * stage}"
                self.call("mbarrier_init", at, barrier.count)
        self.out.close()

    def fence_barrier_init(self, stmt: op.FenceBarrierInit) -> None:
        self.call("fence_mbarrier_init")

    def cluster_sync(self, stmt: op.ClusterSync) -> None:
        if self.program.cluster > 1:
            self.call("cluster_sync")
        else:
            self.out.line("__syncthreads();")

    def named_barrier(self, stmt: op.NamedBarrier) -> None:
        self.call("named_barrier", self._text(stmt.name), stmt.warpgroups * op.WARPGROUP)

    def named_arrive(self, stmt: op.NamedArrive) -> None:
        self.call("named_arrive", self._text(stmt.name), stmt.warpgroups * op.WARPGROUP)

    def _barrier(self, barrier: op.Barrier, cursor: op.Cursor) -> str:
        return f"{self.address[barrier]} + {self.stage[cursor]} * 8"

    def wait(self, stmt: op.Wait) -> None:
        parity = self.parity[stmt.cursor] + (" ^ 1" if stmt.before else "")
        wait = "mbarrier_wait_cluster" if stmt.cluster else "mbarrier_wait"
        self.call(wait, self._barrier(stmt.barrier, stmt.cursor), parity)

    def arrive(self, stmt: op.Arrive) -> None:
        assert self.role is not None
        at = self._barrier(stmt.barrier, stmt.cursor)
        if not stmt.everywhere:
            self._elected(f"{self.out.use('mbarrier_arrive')}({at});")
            return
        thread, count = self.names.vars[self.role.thread], self.program.cluster
        if self.role.single:
            for rank in range(count):
                self.call("mbarrier_arrive_at", at, rank)
            return
        self.out.line(
            f"if ({thread} < {count}) {self.out.use('mbarrier_arrive_at')}({at}, {thread});"
        )

    def expect_bytes(self, stmt: op.ExpectBytes) -> None:
        at = self._barrier(stmt.barrier, stmt.cursor)
        self._elected(f"{self.out.use('mbarrier_expect')}({at}, {stmt.nbytes});")

    def advance(self, stmt: op.Advance) -> None:
        stage, parity = self.stage[stmt.cursor], self.parity[stmt.cursor]
        count = stmt.cursor.stages
        if count == 1:
            self.out.line(f"{parity} ^= {self._text(stmt.by % 2)};")
        elif is_const(stmt.by, 1):
            self.out.line(f"if (++{stage} == {count}) {stage} = 0, {parity} ^= 1;")
        else:
            self.out.line(f"{stage} += {self._text(stmt.by)};")
            self.out.line(f"{parity} ^= {stage} / {count} & 1, {stage} %= {count};")

    def _place(self, tile: op.SharedTile, cursor: op.Cursor | None, offset: Expr) -> str:
        parts = [self.address[tile]]
        if cursor is not None:
            parts.append(f"{self.stage[cursor]} * {tile.nbytes}")
        if not (isinstance(offset, IntImm) and not offset.value):
            parts.append(self._text(offset))
        return " + ".join(parts)

    def tma_load(self, stmt: op.TmaLoad) -> None:
        kind = "multicast" if stmt.multicast else "load"
        place = self._place(stmt.tile, stmt.cursor, stmt.offset)
        barrier = self._barrier(stmt.barrier, stmt.cursor)
        arguments = [place, self.maps[stmt.map], barrier, *map(self._text, stmt.coordinates)]
        arguments += map(self._text, stmt.tap)
        if stmt.multicast:
            arguments.append(str((1 << self.program.cluster) - 1))
        mode = "im2col_" if stmt.tap else ""
        name = self.out.use(f"tma_{mode}{kind}_{len(stmt.coordinates)}d")
        self._elected(f"{name}({', '.join(arguments)});")

    def tma_store(self, stmt: op.TmaStore) -> None:
        place = self._place(stmt.tile, None, stmt.offset)
        arguments = [self.maps[stmt.map], place, *map(self._text, stmt.coordinates)]
        name = self.out.use(f"tma_store_{len(stmt.coordinates)}d")
        self._elected(f"{name}({', '.join(arguments)});")

    def commit_stores(self, stmt: op.CommitStores) -> None:
        self._elected(f"{self.out.use('tma_commit')}();")

    def wait_stores(self, stmt: op.WaitStores) -> None:
        self._elected(f"{self.out.use('tma_wait')}<{stmt.pending}>();")

    def fence_proxy(self, stmt: op.FenceProxy) -> None:
        self.call("fence_async")

    def wgmma(self, stmt: op.Wgmma) -> None:
        acc, shape = stmt.acc, stmt.acc.shape
        name = self.names.buffers[acc.buffer]
        place = f"{name} + {stmt.tile * shape.registers}" if stmt.tile else name
        if isinstance(stmt.a, op.Fragment):
            first = stmt.a.first * shape.dtype.itemsize // 4
            left, major = f"{self.names.buffers[stmt.a.buffer]} + {first}", None
        else:
            left, major = self._descriptor(stmt.a), stmt.a.descriptor.major
        function = wgmma_name(shape, major, stmt.b.descriptor.major)
        self.call(function, place, left, self._descriptor(stmt.b), int(stmt.accumulate))

    def _descriptor(self, operand: op.Operand) -> str:
        place = self._place(operand.tile, operand.cursor, operand.offset)
        layout = f"0x{operand.descriptor.constant():016x}ULL"
        return f"{self.out.use('wgmma_descriptor')}({place}, {layout})"

    def wgmma_fence(self, stmt: op.WgmmaFence) -> None:
        self.call("wgmma_fence")

    def wgmma_commit(self, stmt: op.WgmmaCommit) -> None:
        self.call("wgmma_commit")

    def wgmma_wait(self, stmt: op.WgmmaWait) -> None:
        self.call("wgmma_wait", template=f"<{stmt.pending}>")
        assert self.role is not None
        # Nothing that reads sums, or writes operands, may move up.
        held = [acc.buffer for acc in stmt.ready]
        if not stmt.pending:
            held = [acc.buffer for acc in self.role.accumulators]
            held += [array for array in self.role.arrays if array in self.fragments]
        for buffer in held:
            self.call(
                "wgmma_hold", self.names.buffers[buffer], template=f"<{size_of(buffer) // 4}>"
            )


_HANDLERS: dict[type, Callable[[TileEmitter, Any], None]] = {
    op.Let: TileEmitter.let, op.NamedArrive: TileEmitter.named_arrive,
    op.LetStage: TileEmitter.let_stage, op.InitBarriers: TileEmitter.init_barriers,
    op.FenceBarrierInit: TileEmitter.fence_barrier_init,
    op.Ahead: TileEmitter.ahead, op.TmaPrefetch: TileEmitter.tma_prefetch,
    op.ClusterSync: TileEmitter.cluster_sync, op.NamedBarrier: TileEmitter.named_barrier,
    op.Wait: TileEmitter.wait, op.Arrive: TileEmitter.arrive,
    op.ExpectBytes: TileEmitter.expect_bytes, op.Advance: TileEmitter.advance,
    op.TmaLoad: TileEmitter.tma_load, op.TmaStore: TileEmitter.tma_store,
    op.CommitStores: TileEmitter.commit_stores, op.WaitStores: TileEmitter.wait_stores,
    op.FenceProxy: TileEmitter.fence_proxy, op.WgmmaFence: TileEmitter.wgmma_fence,
    op.Wgmma: TileEmitter.wgmma, op.WgmmaCommit: TileEmitter.wgmma_commit,
    op.WgmmaWait: TileEmitter.wgmma_wait,
}  # fmt: skip
