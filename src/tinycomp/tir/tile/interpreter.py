"""Runs tile programs on the CPU, as badly as a GPU may, and finds what is not ordered.

Each role of each block is a generator that yields wherever another could come first. A `Policy`
chooses who goes on: copies land as soon or as late as their barrier allows, wgmma reads its
operands when it is issued or when it is waited for, roles run ahead of each other. Memory that
holds nothing holds NaN. Independently of that order, accesses to shared memory that no barrier
orders are reported, as are deadlocks, wrong parities, bytes that do not add up, missing fences, and
elements of the result that are not written exactly once.

What it cannot find: errors in the records of `layout`, and weaknesses of the memory model that
barriers and fences as documented would not show.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...diagnostics import InternalError
from ...ir.expr import Expr, Var
from ..gpu_executor import ThreadGroup
from ..gpu_memory import LaunchShape, Threads
from ..nodes import Buffer, For, If, PrimFunc, Seq, Stmt, Store
from ..passes.visit import drive
from ..tree import statements
from . import nodes as op
from .lanes import Output, WarpgroupMemory
from .memory import POISON, Access, Clock, Components, Fences, MBarrier, SharedMemory, TileError
from .transfers import Product, Stored, check_place, landing

Blocked = tuple[str, Callable[[], bool]]  # what an agent waits for, and whether it may go on
Steps = Generator[Blocked | None, None, None]

__all__ = ["POLICIES", "Policy", "TileError", "run_tile_program"]


@dataclass(frozen=True, slots=True)
class Policy:
    """In which order things happen that may happen in several.

    Attributes:
        copies: when TMA moves data: "early" (when issued), "late" (when nothing else can go on),
            "random".
        products: when wgmma reads its operands: "early" (when issued), "late" (when waited for).
        agents: who goes on: "random", "first" or "last" of those that can.
    """

    copies: str = "late"
    products: str = "late"
    agents: str = "random"
    seed: int = 0


POLICIES = (
    Policy("late", "late", "first"), Policy("late", "late", "last"),
    Policy("early", "late", "first"), Policy("early", "early", "last"),
    *(Policy("random", "late", "random", seed) for seed in range(4)),
)  # fmt: skip


def run_tile_program(
    func: PrimFunc,
    program: op.TileProgram,
    spaces: Mapping[Buffer, np.ndarray],
    policy: Policy | None = None,
) -> None:
    """Execute the program; arrays that it writes are written in place.

    Args:
        func: the function whose statement it is.
        spaces: arrays of the buffers in global memory.

    Raises:
        TileError: a race, a deadlock, or another fault that a GPU may show.
        VerifyError: an access out of bounds.
    """
    written = {s.buffer for s in statements(program) if isinstance(s, Store)}
    written |= {s.map.buffer for s in statements(program) if isinstance(s, op.TmaStore)}
    outputs = {b: Output(array, b in written) for b, array in spaces.items()}
    with np.errstate(all="ignore"):
        Machine(func, program, outputs, policy or Policy()).run()


class Block:
    """Shared memory, barriers and meeting points of one block."""

    def __init__(self, program: op.TileProgram, number: int) -> None:
        self.number, self.rank = number, number % program.cluster
        self.name = f"block {number}"
        self.memory = SharedMemory(program.tiles, self.name)
        self.barriers = {
            (b, s): MBarrier(b, f"{b.name}[{s}] of {self.name}")
            for b in program.barriers
            for s in range(b.stages)
        }
        self.meetings: dict[Any, _Meeting] = {}
        self.in_flight = 0
        self.agents: list[Agent] = []


class _Meeting:
    """Agents that wait for each other."""

    def __init__(self) -> None:
        self.round = 0
        self.here: list[str] = []
        self.gathered, self.clock = Clock(), Clock()

    def join(self, clock: Clock, expected: int, who: str, key: Any) -> None:
        if who in self.here:
            raise TileError(f"{who} arrives at barrier {key} again before the others have")
        self.gathered.join(clock)
        self.here.append(who)
        if len(self.here) == expected:
            self.clock, self.gathered = self.gathered, Clock()
            self.here.clear()
            self.round += 1


class Machine:
    """All blocks of a launch, running at once."""

    def __init__(
        self,
        func: PrimFunc,
        program: op.TileProgram,
        outputs: dict[Buffer, Output],
        policy: Policy,
    ) -> None:
        self.func, self.program, self.outputs, self.policy = func, program, outputs, policy
        self.random = random.Random(policy.seed)
        self.components = Components()
        self.copies: list[Callable[[], None]] = []
        self.blocks = [Block(program, i) for i in range(program.grid)]
        for block in self.blocks:
            for role in program.roles:
                count = 1 if role.single else role.warpgroups
                block.agents += [Agent(self, block, role, i) for i in range(count)]

    def cluster(self, block: Block) -> list[Block]:
        first = block.number - block.rank
        return self.blocks[first : first + self.program.cluster]

    def run(self) -> None:
        running = [agent for block in self.blocks for agent in block.agents]
        while running:
            ready = [agent for agent in running if agent.can_go_on()]
            land = self.copies and (
                not ready or (self.policy.copies == "random" and self.random.random() < 0.5)
            )
            if land:
                self.copies.pop(self.random.randrange(len(self.copies)))()
            elif ready:
                self._go_on(ready, running)
            else:
                waiting = "; ".join(sorted({f"{a.name} for {a.blocked}" for a in running})[:6])
                raise TileError(f"{self.program.name}: deadlock: {waiting}")
        self._check_end()

    def _go_on(self, ready: list[Agent], running: list[Agent]) -> None:
        order = self.policy.agents
        agent = ready[0] if order == "first" else ready[-1]
        if order == "random":
            agent = self.random.choice(ready)
        if agent.go_on():
            return
        running.remove(agent)
        block = agent.block
        if not any(a.block is block for a in running):
            if block.in_flight:
                raise TileError(f"{block.name} exits while copies to it are in flight")
            block.memory.exited = True

    def start_copy(self, copy: Callable[[], None]) -> None:
        if self.policy.copies == "early":
            copy()
        else:
            self.copies.append(copy)

    def _check_end(self) -> None:
        for copy in self.copies:
            copy()
        for block in self.blocks:
            for barrier in block.barriers.values():
                if barrier.nbytes:
                    raise TileError(f"{barrier.name} still expects {barrier.nbytes} bytes")
            for key, meeting in block.meetings.items():
                if meeting.here:
                    who = ", ".join(meeting.here)
                    raise TileError(f"{who} arrived at barrier {key}, where nobody waits any more")
        for buffer, output in self.outputs.items():
            output.check(buffer.name)


class Agent:
    """One warpgroup of a role in a block, or its one thread."""

    def __init__(self, machine: Machine, block: Block, role: op.Role, number: int) -> None:
        self.machine, self.block, self.role = machine, block, role
        self.program = machine.program
        self.number = number
        self.name = f"{role.name} {number} of {block.name}"
        self.me, self.group = machine.components.fresh(), machine.components.fresh()
        self.time = 1
        # What each thread of the warpgroup knows, and the one that copies and arrives: it knows
        # what it waited for alone, but not what the others did, until they meet.
        self.clock, self.elected = Clock({self.me: 1}), Clock({self.me: 1})
        self.fences = Fences()
        self.blocked = ""
        self._may: Callable[[], bool] = lambda: True
        self.rounds = dict.fromkeys(role.cursors, 0)
        lanes = 1 if role.single else op.WARPGROUP
        threads = Threads(LaunchShape((1, 1, 1), (lanes, 1, 1)), 0, 1)
        self.memory = WarpgroupMemory(self, machine.outputs)
        self.lanes = ThreadGroup(machine.func, threads, self.memory)  # type: ignore[arg-type]
        values: dict[Var, Any] = {
            self.program.block: block.number,
            self.program.rank: block.rank,
            role.warpgroup: number,
            role.thread: np.arange(threads.count),
        }
        self.lanes.vars.update(values)
        for acc in role.accumulators:
            self.memory.registers_of(acc.buffer)
        self._uncommitted: list[Product] = []
        self._groups: list[list[Product]] = []
        self._stores: list[Stored] = []
        self._store_groups: list[list[Stored]] = []
        self._steps = self._run()

    # -- scheduling --------------------------------------------------------------------------

    def can_go_on(self) -> bool:
        return self._may()

    def go_on(self) -> bool:
        """Run to the next point where others may come first; False at the end."""
        try:
            waits = next(self._steps)
        except StopIteration:
            return False
        self.blocked, self._may = waits or ("", lambda: True)
        return True

    def _run(self) -> Steps:
        stack: list[Iterator[Stmt]] = [
            iter((self.program.setup, self.role.body, self.program.finish))
        ]
        while stack:
            stmt = next(stack[-1], None)
            if stmt is None:
                stack.pop()
            elif isinstance(stmt, Seq):
                stack.append(iter(stmt.stmts))
            elif isinstance(stmt, For):
                stack.append(self._iterations(stmt))
            elif isinstance(stmt, op.Ahead):
                stack.append(iter((stmt.body,) if self is self.block.agents[0] else ()))
            elif isinstance(stmt, If):
                chosen = stmt.then if self.value(stmt.condition) else stmt.otherwise
                stack.append(iter(() if chosen is None else (chosen,)))
            else:
                yield from self._step(stmt)
        self._finish()

    def _iterations(self, loop: For) -> Iterator[Stmt]:
        low, extent = self.value(loop.min), self.value(loop.extent)
        for i in range(low, low + extent):
            self.lanes.vars[loop.var] = i
            yield loop.body

    def value(self, expr: Expr) -> int:
        return int(self.lanes.evaluate((expr,), None)[0])

    def _tick(self) -> None:
        """What comes now is not part of what was released before."""
        self.time += 1
        self.clock[self.me] = self.time
        self.elected[self.me] = self.time

    def _learn(self, clock: Clock) -> None:
        self.clock.join(clock)
        self.elected.join(clock)

    def _finish(self) -> None:
        if self._uncommitted or self._groups:
            raise TileError(f"{self.name} ends with wgmma that it did not wait for")
        if self._stores or self._store_groups:
            raise TileError(f"{self.name} ends with stores that may still read shared memory")

    # -- operations --------------------------------------------------------------------------

    def _step(self, stmt: Stmt) -> Steps:
        handler = _HANDLERS.get(type(stmt))
        if handler is None:
            raise InternalError(f"{type(stmt).__name__} is no operation of a tile program")
        steps = handler(self, stmt)
        if steps is not None:
            yield from steps
        if not isinstance(stmt, op.Let | op.LetStage | op.Advance):
            yield None

    def let(self, stmt: op.Let) -> None:
        value = self.value(stmt.value)
        if not 0 <= value < stmt.extent:
            raise TileError(f"{stmt.var.name} is {value}, not in [0, {stmt.extent})")
        self.lanes.vars[stmt.var] = value

    def let_stage(self, stmt: op.LetStage) -> None:
        self.lanes.vars[stmt.var] = self.position(stmt.cursor)[0]

    def init_barriers(self, stmt: op.InitBarriers) -> None:
        if self is not self.block.agents[0]:
            return
        for barrier in self.block.barriers.values():
            barrier.init((self.me, self.time))

    def fence_barrier_init(self, stmt: op.FenceBarrierInit) -> None:
        if self is self.block.agents[0]:
            for barrier in self.block.barriers.values():
                barrier.published = barrier.made is not None

    def cluster_sync(self, stmt: op.ClusterSync) -> Steps:
        blocks = self.machine.cluster(self.block)
        expected = sum(len(block.agents) for block in blocks)
        yield from self._meet(blocks[0], "cluster", expected)

    def named_barrier(self, stmt: op.NamedBarrier) -> Steps:
        yield from self._meet(self.block, self.value(stmt.name), stmt.warpgroups)

    def named_arrive(self, stmt: op.NamedArrive) -> None:
        self._join(self.block, self.value(stmt.name), stmt.warpgroups)

    def _meet(self, block: Block, key: Any, expected: int) -> Steps:
        meeting, now = self._join(block, key, expected)
        yield f"barrier {key}", lambda: meeting.round > now
        self._learn(meeting.clock)

    def _join(self, block: Block, key: Any, expected: int) -> tuple[_Meeting, int]:
        """Arrive where others meet; the meeting, and its round."""
        meeting = block.meetings.setdefault(key, _Meeting())
        now = meeting.round
        self.elected.join(self.clock)
        own = Clock(self.elected)
        self._tick()
        meeting.join(own, expected, self.name, key)
        return meeting, now

    def wait(self, stmt: op.Wait) -> Steps:
        stage, turn = self.position(stmt.cursor)
        barrier = self.block.barriers[stmt.barrier, stage]
        barrier.require(self.clock, self.name, False)
        wanted = turn if stmt.before else turn + 1  # phases that have to be over
        parity = (wanted - 1) & 1
        yield f"phase {wanted - 1} of {barrier.name}", lambda: barrier.phase & 1 != parity
        if barrier.phase != wanted:
            raise TileError(
                f"{self.name} waits for the end of phase {wanted - 1} of {barrier.name}, "
                f"and takes that of phase {barrier.phase - 1} for it"
            )
        self._learn(barrier.ended)
        # The assembler puts in a fence where there is none behind a wait, and serialises (C7519).
        for registers in self.memory.registers.values():
            registers.touched = True

    def arrive(self, stmt: op.Arrive) -> None:
        stage, _ = self.position(stmt.cursor)
        for block in self.machine.cluster(self.block) if stmt.everywhere else [self.block]:
            barrier = block.barriers[stmt.barrier, stage]
            barrier.require(self.elected, self.name, block is not self.block)
            if block.memory.exited:
                raise TileError(f"{self.name} arrives at {barrier.name}, which has exited")
            barrier.arrive(self.elected, self.name)
        self._tick()

    def expect_bytes(self, stmt: op.ExpectBytes) -> None:
        stage, _ = self.position(stmt.cursor)
        barrier = self.block.barriers[stmt.barrier, stage]
        barrier.require(self.elected, self.name, False)
        barrier.arrive(self.elected, self.name, stmt.nbytes)
        self._tick()

    def advance(self, stmt: op.Advance) -> None:
        self.rounds[stmt.cursor] += self.value(stmt.by)

    def position(self, cursor: op.Cursor) -> tuple[int, int]:
        """Stage and round of a cursor."""
        turn, stage = divmod(self.rounds[cursor], cursor.stages)
        return stage, turn

    # -- copies ------------------------------------------------------------------------------

    def tma_load(self, stmt: op.TmaLoad) -> None:
        stage, _ = self.position(stmt.cursor)
        corner, tap = ([self.value(c) for c in place] for place in (stmt.coordinates, stmt.tap))
        offset, nbytes = self.value(stmt.offset), stmt.map.box_bytes
        what = f"the copy of {stmt.map.name}{corner} by {self.name}"
        source = self.machine.outputs[stmt.map.buffer].array
        for block in self.machine.cluster(self.block) if stmt.multicast else [self.block]:
            barrier = block.barriers[stmt.barrier, stage]
            barrier.require(self.elected, what, True)
            start = block.memory.address(stmt.tile, stage, offset)
            check_place(stmt, what, start, offset, nbytes)
            component = self.machine.components.fresh()
            begin, end = Clock(self.elected), (component, 1)
            block.memory.use(
                stmt.tile, stage, Access(start, start + nbytes, True, end, what), begin
            )
            block.memory.data[start : start + nbytes] = POISON
            block.in_flight += 1
            done = Clock(begin)
            done[component] = 1
            self.machine.start_copy(
                landing(block, barrier, stmt.map, source, corner, tap, start, done, what)
            )

    def tma_prefetch(self, stmt: op.TmaPrefetch) -> None:
        for place in stmt.coordinates:
            self.value(place)

    def tma_store(self, stmt: op.TmaStore) -> None:
        corner = [self.value(c) for c in stmt.coordinates]
        offset, nbytes = self.value(stmt.offset), stmt.map.box_bytes
        what = f"the store of {stmt.map.name}{corner} by {self.name}"
        memory = self.block.memory
        stage, inside = divmod(offset, stmt.tile.nbytes)
        start = memory.address(stmt.tile, 0, offset)
        check_place(stmt, what, start, inside, nbytes)
        end = (self.machine.components.fresh(), 1)
        access = Access(start, start + nbytes, False, end, what)
        memory.use(stmt.tile, stage, access, self.elected)
        output = self.machine.outputs[stmt.map.buffer]
        stored = Stored(stmt.map, memory, start, corner, output, end)
        if self.machine.policy.copies == "early":
            stored.run()
        self._stores.append(stored)

    def commit_stores(self, stmt: op.CommitStores) -> None:
        self._store_groups.append(self._stores)
        self._stores = []

    def wait_stores(self, stmt: op.WaitStores) -> None:
        while len(self._store_groups) > stmt.pending:
            for stored in self._store_groups.pop(0):
                stored.run()
                self.elected.join(Clock([stored.end]))

    def fence_proxy(self, stmt: op.FenceProxy) -> None:
        self.fences.count += 1

    # -- products ----------------------------------------------------------------------------

    def wgmma_fence(self, stmt: op.WgmmaFence) -> None:
        for registers in self.memory.registers.values():
            registers.touched = False

    def wgmma(self, stmt: op.Wgmma) -> None:
        end = (self.machine.components.fresh(), 1)
        product = Product(self, stmt, end)
        for buffer in product.registers:
            if self.memory.registers_of(buffer).touched:
                raise TileError(
                    f"{self.name} issues wgmma on {buffer.name} after a wait or another use",
                    hint="wgmma.fence must come between",
                )
        product.note(self.elected)
        for buffer in product.registers:
            self.memory.registers_of(buffer).pending += 1
        if self.machine.policy.products == "early":
            product.run()
        self._uncommitted.append(product)

    def wgmma_commit(self, stmt: op.WgmmaCommit) -> None:
        self._groups.append(self._uncommitted)
        self._uncommitted = []

    def wgmma_wait(self, stmt: op.WgmmaWait) -> None:
        while len(self._groups) > stmt.pending:
            for product in self._groups.pop(0):
                product.run()
                for buffer in product.registers:
                    self.memory.registers_of(buffer).pending -= 1
                self._learn(Clock([product.end]))

    def thread_code(self, stmt: op.ThreadCode) -> None:
        drive(self.lanes.visit(stmt.body, None))
        self.clock[self.group] = self.clock.get(self.group, 0) + 1
        self.memory.flush(self.clock, (self.group, self.clock[self.group]))
        if self.role.single:
            self.elected.join(self.clock)


_HANDLERS: dict[type, Callable[[Agent, Any], Steps | None]] = {
    op.Let: Agent.let, op.NamedArrive: Agent.named_arrive,
    op.LetStage: Agent.let_stage, op.InitBarriers: Agent.init_barriers,
    op.FenceBarrierInit: Agent.fence_barrier_init, op.ClusterSync: Agent.cluster_sync,
    op.NamedBarrier: Agent.named_barrier, op.Wait: Agent.wait, op.Arrive: Agent.arrive,
    op.ExpectBytes: Agent.expect_bytes, op.Advance: Agent.advance, op.TmaLoad: Agent.tma_load,
    op.TmaPrefetch: Agent.tma_prefetch, op.TmaStore: Agent.tma_store,
    op.CommitStores: Agent.commit_stores,
    op.WaitStores: Agent.wait_stores, op.FenceProxy: Agent.fence_proxy,
    op.WgmmaFence: Agent.wgmma_fence, op.Wgmma: Agent.wgmma, op.WgmmaCommit: Agent.wgmma_commit,
    op.WgmmaWait: Agent.wgmma_wait, op.ThreadCode: Agent.thread_code,
}  # fmt: skip
