"""The steps of a model on a device: loaded kernels, and the memory and graphs of one call.

Runs of kernels and copies between two decisions (branches, loops) are one CUDA graph each. A graph
holds the addresses of what it reads and writes, so there is one for the fixed buffers of a frame
and one for each set of arrays in place (see `CudaModule.run`).
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...codegen.cuda.limits import PORTABLE_CLUSTER, Launch
from ...diagnostics import ExecutionError, MemoryBudgetError, Span, TinycompError
from ...relay.constant_pool import align
from ...relay.plan import (
    Branch,
    BufferRef,
    Copy,
    KernelCall,
    Parallel,
    Repeat,
    Space,
    Step,
    all_steps,
)
from ..artifact import Artifact
from .arrays import DeviceArray
from .driver import Driver
from .plan import CudaPlan

_GRAPHS = 32  # of one frame; the least recently launched is forgotten
_SEEN = 64  # sets of addresses remembered
_ALIGNMENT = 16  # of arrays that kernels may use in place

Addresses = tuple[int, ...]
Observer = Callable[[int, int], None]
"""Called with (number of the kernel call, stream) before each call, and with (-1, stream) at the
end."""


class DeviceProgram:
    """A model's kernels and constants on the device; shared by all calls."""

    def __init__(self, artifact: Artifact, plan: CudaPlan, driver: Driver) -> None:
        check_arch(artifact.manifest.target.arch, driver.arch)
        self.driver, self.plan = driver, plan
        driver.use()
        types = plan.plan
        self.input_bytes = [t.nbytes for t in types.inputs]
        self.output_bytes = [t.nbytes for t in types.outputs]
        self.constant_bytes = artifact.constants.nbytes
        self._require_memory(self.constant_bytes + self.frame_bytes)
        self.kernels: dict[str, list[tuple[int, Launch]]] = {}
        for kernel, code in artifact.objects.items():
            module = driver.load_module(code)
            self.kernels[kernel] = [
                (function_of(driver, module, one), one) for one in plan.launches[kernel]
            ]
        self.calls = [s for s in all_steps(types.steps) if isinstance(s, KernelCall)]
        self.numbers = {id(call): i for i, call in enumerate(self.calls)}
        self.can_fail = any(one.can_fail for c in self.calls for one in plan.launches[c.kernel])
        self.constants = self._upload(artifact.constants)
        weakref.finalize(self, release, driver, [self.constants], []).atexit = False

    @property
    def frame_bytes(self) -> int:
        """Device memory of one call: arena, inputs, outputs, and the error word."""
        parts = (self.plan.plan.arena_bytes, *self.input_bytes, *self.output_bytes, 4)
        return sum(map(align, parts))

    def _require_memory(self, needed: int) -> None:
        free, total = self.driver.memory()
        if needed > free:
            parts = {
                "weights": self.constant_bytes,
                "working memory": self.plan.plan.arena_bytes,
                "inputs and outputs": sum(self.input_bytes) + sum(self.output_bytes),
            }
            text = ", ".join(f"{_mib(n)} {what}" for what, n in parts.items())
            raise MemoryBudgetError(
                f"the model needs {text} on the GPU, of whose {_mib(total)} only {_mib(free)} "
                "are free",
                hint="use a smaller batch, or free memory that other programs and modules hold",
            )

    def _upload(self, constants: np.ndarray) -> int:
        """Copy the constants to the device in page-locked pieces."""
        driver, piece = self.driver, min(max(1, constants.nbytes), 32 << 20)
        address = driver.allocate(max(1, constants.nbytes))
        staging, stream = driver.allocate_host(piece), driver.new_stream()
        try:
            for start in range(0, constants.nbytes, piece):
                part = constants[start : start + piece]
                host_bytes(staging, part.nbytes)[:] = part
                driver.copy(address + start, staging, part.nbytes, stream)
                driver.synchronize(stream)
        finally:
            driver.free_host(staging)
        return address

    def fail(self, number: int) -> None:
        raise ExecutionError(
            "an index computed from the inputs is out of range",
            span=Span(self.calls[number].span.nodes),
            hint="check the inputs: token ids, positions and indices must lie inside their tables",
        )


@dataclass(frozen=True, slots=True)
class Bound:
    """The addresses that one call uses for inputs and outputs."""

    inputs: Addresses
    outputs: Addresses


class Frame:
    """Working memory, staging memory and graphs of one call at a time."""

    def __init__(self, program: DeviceProgram) -> None:
        self.program, self.driver = program, program.driver
        driver = self.driver
        program._require_memory(program.frame_bytes)
        base = driver.allocate(program.frame_bytes)
        parts = (program.plan.plan.arena_bytes, *program.input_bytes, *program.output_bytes, 4)
        places = [base]
        for nbytes in parts:
            places.append(places[-1] + align(nbytes))
        count = len(program.input_bytes)
        self.arena = base
        self.fixed = Bound(tuple(places[1 : 1 + count]), tuple(places[1 + count : -2]))
        self.error = places[-2]
        # Page-locked memory in the same order, without the arena.
        self._offset = {address: address - places[1] for address in (*places[1:-1],)}
        self._staging = driver.allocate_host(places[-1] - places[1])
        self.stream = driver.new_stream()
        self._done, self._ready, self._forked = (driver.new_event() for _ in range(3))
        self._sides: list[tuple[int, int]] = []  # streams of branches, events at their ends
        self._last: int | None = None  # the stream of the call before
        self._unfinished: int | None = None  # the stream of a call that has not come to its end
        self._staged = False  # whether copies from staging memory may be under way
        self._graphs: OrderedDict[Any, int] = OrderedDict()
        self._seen: OrderedDict[Addresses, None] = OrderedDict()
        driver.clear(self.error, 4, self.stream)
        driver.synchronize(self.stream)
        memory = [base], [self._staging]
        weakref.finalize(self, release, driver, *memory, self._graphs).atexit = False

    def begin(self, stream: int, producers: Sequence[int]) -> None:
        """Order `stream` behind the call before, and behind the streams that made the inputs."""
        if self._unfinished is not None:  # the call before failed
            self.driver.synchronize(self._unfinished)
        elif self._last is not None and self._last != stream:
            self.driver.wait(stream, self._done)
        self._unfinished = stream
        for producer in {p for p in producers if p != stream}:
            self.driver.record(self._ready, producer)
            self.driver.wait(stream, self._ready)

    def stage(self, position: int, array: np.ndarray, stream: int) -> None:
        """Copy an input from the host into its fixed buffer."""
        if self._staged:
            self.synchronize(stream)
        address = self.fixed.inputs[position]
        staging = self._staging + self._offset[address]
        host_bytes(staging, array.nbytes)[:] = array.reshape(-1).view(np.uint8)
        self.driver.copy(address, staging, array.nbytes, stream)

    def choose(self, inputs: Sequence[DeviceArray | None], outputs: Sequence[DeviceArray | None],
               stream: int) -> Bound:  # fmt: skip
        """The addresses to use: arrays in place if these came before, else fixed buffers.

        Inputs that are not used in place are copied into theirs.
        """
        written = [o for o in outputs if o is not None]
        places = tuple(
            a.address if a is not None and _usable(a) and not _overlaps(a, written) else fixed
            for a, fixed in zip(inputs, self.fixed.inputs, strict=True)
        )
        targets = tuple(
            a.address if a is not None and _usable(a) and not _overlaps(a, inputs) else fixed
            for a, fixed in zip(outputs, self.fixed.outputs, strict=True)
        )
        key = places + targets
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > _SEEN:
                self._seen.popitem(last=False)
            places, targets = self.fixed.inputs, self.fixed.outputs
        for array, place in zip(inputs, places, strict=True):
            if array is not None and place != array.address:
                self.driver.copy(place, array.address, array.nbytes, stream)
        return Bound(places, targets)

    def run(self, bound: Bound, stream: int, observe: Observer | None = None) -> None:
        """Give all steps to the stream. A condition is read back, so branches wait for it."""
        work: list[tuple[tuple[Step, ...] | Repeat, int]] = [(self.program.plan.plan.steps, 0)]
        while work:
            steps, start = work.pop()
            if isinstance(steps, Repeat):  # its condition has been computed
                if self._holds(steps.condition, bound, stream):
                    work += [(steps, 0), (steps.condition_steps, 0), (steps.body_steps, 0)]
                continue
            stop = start
            while stop < len(steps) and isinstance(steps[stop], KernelCall | Copy | Parallel):
                stop += 1
            if stop > start:
                self._segment(steps, start, stop, bound, stream, observe)
            if stop == len(steps):
                continue
            step = steps[stop]
            work.append((steps, stop + 1))
            if isinstance(step, Branch):
                holds = self._holds(step.condition, bound, stream)
                work.append((step.then_steps if holds else step.else_steps, 0))
            elif isinstance(step, Repeat):
                work += [(step, 0), (step.condition_steps, 0)]

    def enqueue(self, bound: Bound, stream: int) -> None:
        """Give all steps to the stream, not as a graph, so that the caller can capture them; for
        plans without decisions."""
        self._give(self.program.plan.plan.steps, bound, stream, None)

    def deliver(self, bound: Bound, outputs: Sequence[DeviceArray | None], stream: int) -> None:
        """Copy results that are wanted on the device, and are not there yet."""
        for array, place in zip(outputs, bound.outputs, strict=True):
            if array is not None and array.address != place:
                self.driver.copy(array.address, place, array.nbytes, stream)

    def finish(self, bound: Bound, host: Sequence[np.ndarray | None], stream: int) -> None:
        """Copy results to the host, and look whether a kernel failed.

        Raises:
            ExecutionError: the data made an index out of range.
        """
        driver, wanted = self.driver, []
        for array, place, fixed in zip(host, bound.outputs, self.fixed.outputs, strict=True):
            if array is not None:
                staging = self._staging + self._offset[fixed]
                driver.copy(staging, place, array.nbytes, stream)
                wanted.append((array, staging))
        word = self._staging + self._offset[self.error]
        if self.program.can_fail:
            driver.copy(word, self.error, 4, stream)
        driver.record(self._done, stream)
        self._last, self._unfinished = stream, None
        if not wanted and not self.program.can_fail:
            self._staged = True
            return
        self.synchronize(stream)
        code = int(host_bytes(word, 4).view(np.int32)[0]) if self.program.can_fail else 0
        if code:
            driver.clear(self.error, 4, stream)
            driver.synchronize(stream)
            self.program.fail(code - 1)
        for array, staging in wanted:
            array.reshape(-1).view(np.uint8)[:] = host_bytes(staging, array.nbytes)

    def synchronize(self, stream: int) -> None:
        """Wait until everything given to the frame so far is done."""
        self.driver.synchronize(stream if self._last is None else self._last)
        self.driver.synchronize(stream)
        self._staged = False

    def _segment(
        self, steps: tuple[Step, ...], start: int, stop: int, bound: Bound, stream: int,
        observe: Observer | None,
    ) -> None:  # fmt: skip
        part = steps[start:stop]
        if observe is not None or stop - start == 1:
            self._give(part, bound, stream, observe)
            return
        key = (id(steps), start, bound)
        graph = self._graphs.get(key)
        if graph is None:
            with self.driver.capture(self.stream) as captured:
                self._give(part, bound, self.stream, None)
            graph = self._graphs[key] = captured.graph
            if len(self._graphs) > _GRAPHS:
                self.synchronize(stream)
                self.driver.free_graph(self._graphs.popitem(last=False)[1])
        self._graphs.move_to_end(key)
        self.driver.launch_graph(graph, stream)

    def _give(
        self, steps: Sequence[Step], bound: Bound, stream: int, observe: Observer | None
    ) -> None:
        if observe is not None:  # one kernel after the other
            steps = [s for s in all_steps(tuple(steps)) if not isinstance(s, Parallel)]
        for step in steps:
            if isinstance(step, KernelCall):
                if observe is not None:
                    observe(self.program.numbers[id(step)], stream)
                self._launch(step, bound, stream)
            elif isinstance(step, Copy):
                source, target = (
                    self._address(step.source, bound),
                    self._address(step.target, bound),
                )
                self.driver.copy(target, source, step.source.nbytes, stream)
            elif isinstance(step, Parallel):
                self._fork(step, bound, stream)
        if observe is not None:
            observe(-1, stream)

    def _fork(self, step: Parallel, bound: Bound, stream: int) -> None:
        """Branches on streams of their own, which begin and end with `stream`; in a graph they
        become branches of it."""
        first, *others = step.branches
        while len(self._sides) < len(others):
            self._sides.append((self.driver.new_stream(), self.driver.new_event()))
        sides = self._sides[: len(others)]
        self.driver.record(self._forked, stream)
        for (side, joined), branch in zip(sides, others, strict=True):
            self.driver.wait(side, self._forked)
            self._give(branch, bound, side, None)
            self.driver.record(joined, side)
        self._give(first, bound, stream, None)
        for _, joined in sides:
            self.driver.wait(stream, joined)

    def _launch(self, call: KernelCall, bound: Bound, stream: int) -> None:
        addresses = [self._address(ref, bound) for ref in call.args]
        base = 0 if call.workspace is None else self._address(call.workspace, bound)
        for function, launch in self.program.kernels[call.kernel]:
            arguments: list[Any] = [ctypes.c_uint64(addresses[i]) for i in launch.params]
            arguments += [ctypes.c_uint64(base + offset) for offset in launch.workspace]
            arguments += [
                self.driver.tensor_map(m, m.address(addresses, base)) for m in launch.maps
            ]
            if launch.can_fail:
                number = self.program.numbers[id(call)]
                arguments += [ctypes.c_uint64(self.error), ctypes.c_int32(number + 1)]
            self.driver.launch(
                function, launch.grid, launch.block, launch.dynamic_shared, stream, arguments,
                launch.programmatic,
            )  # fmt: skip

    def _address(self, ref: BufferRef, bound: Bound) -> int:
        if ref.space is Space.INPUT:
            return bound.inputs[ref.position] + ref.offset
        if ref.space is Space.OUTPUT:
            return bound.outputs[ref.position] + ref.offset
        base = self.program.constants if ref.space is Space.CONSTANT else self.arena
        return base + ref.position + ref.offset

    def _holds(self, condition: BufferRef, bound: Bound, stream: int) -> bool:
        word = self._staging + self._offset[self.error]
        self.driver.copy(word, self._address(condition, bound), 1, stream)
        self.driver.synchronize(stream)
        return bool(host_bytes(word, 1)[0])


def host_bytes(address: int, nbytes: int) -> np.ndarray:
    """Page-locked memory as an array."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def check_arch(arch: str, present: str) -> None:
    """Refuse code for another GPU than the one that is present.

    Code for sm_80 runs on sm_86 too (same major version, not newer); code for sm_90a only there.

    Raises:
        TinycompError: it does not fit.
    """
    specific = arch.endswith(("a", "f"))
    wanted, have = (int(a.removeprefix("sm_").rstrip("af")) for a in (arch, present))
    fits = wanted == have if specific else wanted // 10 == have // 10 and wanted <= have
    if not fits:
        raise TinycompError(
            f"this module is compiled for {arch}, but the GPU is {present}",
            hint=f"compile it again with target='cuda -arch={present}'",
        )


def function_of(driver: Driver, module: int, launch: Launch) -> int:
    """The function of a launch, allowed all that the launch asks for."""
    function = driver.function(module, launch.name)
    if launch.dynamic_shared:
        driver.allow_shared(function, launch.dynamic_shared)
    if math.prod(launch.cluster) > PORTABLE_CLUSTER:
        driver.allow_large_clusters(function)
    return function


def _usable(array: DeviceArray) -> bool:
    return array.dense and array.address % _ALIGNMENT == 0


def _overlaps(array: DeviceArray, others: Sequence[DeviceArray | None]) -> bool:
    return any(
        o is not None
        and o is not array
        and array.address < o.address + o.nbytes
        and o.address < array.address + array.nbytes
        for o in others
    )


def release(driver: Driver, memory: list[int], host: list[int], graphs: Any = ()) -> None:
    driver.use()
    for graph in graphs.values() if graphs else ():
        driver.free_graph(graph)
    for address in memory:
        driver.free(address)
    for address in host:
        driver.free_host(address)


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"
