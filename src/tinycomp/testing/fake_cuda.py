"""A CUDA device made of NumPy, to test the runtime on machines without one.

`FakeDriver` stands in for `runtime.cuda.driver.CudaDriver`. Its memory is the host's, and launches
run the kernel's loop IR on the executor. What a real device does late happens late here: work waits
in its stream until somebody synchronises, so a missing wait, or staging memory that is overwritten
too early, gives wrong results. Addresses, sizes, handles, contexts and what is allowed while a
stream is captured are checked.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import math
import operator
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..codegen.cuda.limits import (
    BLOCK,
    CLUSTER_SIZE,
    GRID,
    PORTABLE_CLUSTER,
    STATIC_SHARED,
    Launch,
    SymbolicLaunch,
    TensorMapSpec,
    shared_limit,
)
from ..diagnostics import ExecutionError
from ..ir.expr import as_int
from ..kernels import kernel_name
from ..levels import kernel_functions
from ..runtime.artifact import Artifact, ValueSpec
from ..runtime.cuda.driver import Capture, DeviceFacts, driver_error
from ..runtime.cuda.plan import CudaPlan
from ..runtime.cuda.tensor_maps import MapBytes, encode_tensor_map
from ..schedules import build_kernel
from ..tir.gpu_executor import root_statements, run_launch
from ..tir.nodes import Alloc, Buffer, PrimFunc, Scope
from ..tir.specialize import specialize_sizes
from ..tir.tile.nodes import TileProgram
from .fake_tensor_maps import decode, encode, encode_im2col

Work = Callable[[], None]
AnyLaunch = Launch | SymbolicLaunch
_UNWRITTEN = 0xFF  # NaN in every float type


def refuse(call: str, name: str, status: int = 1) -> Exception:
    """The error that the driver would give."""
    return driver_error(call, status, name, "as the fake device says")


@dataclass
class _Kernel:
    """A `__global__` function: what the artifact says of it, and its loop IR."""

    launch: Launch
    index: int
    func: PrimFunc
    symbolic: SymbolicLaunch | None = None  # whose sizes each launch gives
    shared_allowed: int = STATIC_SHARED
    cluster_allowed: int = PORTABLE_CLUSTER


@dataclass
class _Stream:
    """Work in order; the first `done` pieces have been done."""

    work: list[Work] = field(default_factory=list)
    done: int = 0
    waits: bool = False


@dataclass
class _Event:
    stream: int = 0
    position: int = 0  # in that stream
    timing: bool = False
    time: float = 0.0
    captured: tuple[_Graph, frozenset[int]] | None = None  # nodes, if recorded in a capture


@dataclass(eq=False)
class _Graph:
    """Work and what must be done before it.

    Attributes:
        ends: of each stream that takes part in the capture, the nodes that its next one needs.
    """

    nodes: list[tuple[Work, frozenset[int]]] = field(default_factory=list)
    ends: dict[int, frozenset[int]] = field(default_factory=dict)

    def add(self, stream: int, work: Work) -> None:
        self.nodes.append((work, self.ends[stream]))
        self.ends[stream] = frozenset({len(self.nodes) - 1})

    def before(self, nodes: frozenset[int]) -> set[int]:
        """These nodes and all that they need."""
        found, stack = set(nodes), list(nodes)
        while stack:
            new = self.nodes[stack.pop()][1] - found
            found |= new
            stack += new
        return found


class FakeDriver:
    """A device that knows the kernels of some artifacts.

    Args:
        artifacts: modules that may be loaded; `know` adds more.
        arch: of the device.
        total: bytes of memory.
        seed: of the order in which streams advance beside each other.

    Attributes:
        launches, programmatic, graph_launches, captures, synchronizations: how many there were.
    """

    def __init__(
        self,
        *artifacts: Artifact,
        arch: str = "sm_90a",
        total: int = 1 << 30,
        seed: int = 0,
    ) -> None:
        self.arch, self.total = arch, total
        self._known: dict[bytes, Callable[[], dict[str, _Kernel]]] = {}
        for artifact in artifacts:
            self.know(artifact)
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._current = threading.local()
        self._handles = itertools.count(1000)
        self.device_memory: dict[int, np.ndarray] = {}
        self.host_memory: dict[int, np.ndarray] = {}
        self._modules: dict[int, dict[str, _Kernel]] = {}
        self._functions: dict[int, _Kernel] = {}
        self._streams: dict[int, _Stream] = {0: _Stream()}
        self._events: dict[int, _Event] = {}
        self._graphs: dict[int, _Graph] = {}
        self._capturing: dict[int, _Graph] = {}  # by the streams that take part
        self._clock = itertools.count(1)
        self.launches = self.graph_launches = self.captures = self.synchronizations = 0
        self.programmatic = 0

    def know(self, artifact: Artifact) -> None:
        """Let the machine code of a model be loaded."""
        for name, code in artifact.objects.items():
            self._known[code] = functools.partial(_kernels_of, artifact, name)

    def know_kernel(self, code: bytes, launches: Sequence[AnyLaunch], func: PrimFunc) -> None:
        """Let machine code that is in no artifact be loaded: its launches and its loop IR."""
        made = [_kernel(one, i, func) for i, one in enumerate(launches)]
        kernels = {one.launch.name: one for one in made}
        self._known[code] = lambda: kernels

    # -- the device ----------------------------------------------------------------------------

    def use(self) -> None:
        self._current.device = True

    def memory(self) -> tuple[int, int]:
        used = sum(m.nbytes for m in self.device_memory.values())
        return self.total - used, self.total

    def facts(self) -> DeviceFacts:
        return DeviceFacts(132, 1.98, 4800.0, 50 << 20)

    def load_module(self, code: bytes) -> int:
        self._check("cuModuleLoadData", capturing=False)
        if code not in self._known:
            raise refuse("cuModuleLoadData", "CUDA_ERROR_INVALID_IMAGE", 200)
        return self._new(self._modules, self._known[code]())

    def function(self, module: int, name: str) -> int:
        if name not in self._modules[module]:
            raise refuse("cuModuleGetFunction", "CUDA_ERROR_NOT_FOUND", 500)
        return self._new(self._functions, self._modules[module][name])

    def allow_shared(self, function: int, nbytes: int) -> None:
        if nbytes > shared_limit(self.arch):
            raise refuse("cuFuncSetAttribute", "CUDA_ERROR_INVALID_VALUE")
        self._functions[function].shared_allowed = nbytes

    def allow_large_clusters(self, function: int) -> None:
        self._functions[function].cluster_allowed = CLUSTER_SIZE

    def tensor_map(self, spec: TensorMapSpec, address: int) -> ctypes.Array:
        return encode_tensor_map(spec, address, encode_im2col if spec.lower else encode)

    # -- memory --------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> int:
        self._check("cuMemAlloc", capturing=False)
        if nbytes <= 0:
            raise refuse("cuMemAlloc", "CUDA_ERROR_INVALID_VALUE")
        if nbytes > self.memory()[0]:
            raise refuse("cuMemAlloc", "CUDA_ERROR_OUT_OF_MEMORY", 2)
        return self._hold(self.device_memory, nbytes)

    def free(self, address: int) -> None:
        self._finish_all()
        del self.device_memory[address]

    def allocate_host(self, nbytes: int) -> int:
        self._check("cuMemHostAlloc", capturing=False)
        return self._hold(self.host_memory, nbytes)

    def free_host(self, address: int) -> None:
        self._finish_all()
        del self.host_memory[address]

    def _hold(self, table: dict[int, np.ndarray], nbytes: int) -> int:
        raw = np.full(nbytes + 256, _UNWRITTEN, np.uint8)
        memory = raw[-raw.ctypes.data % 256 :][:nbytes]
        with self._lock:
            table[memory.ctypes.data] = memory
        return memory.ctypes.data

    def bytes_at(self, address: int, nbytes: int, device_only: bool = False) -> np.ndarray:
        """The memory there, which must lie in one allocation."""
        tables = [self.device_memory] if device_only else [self.device_memory, self.host_memory]
        with self._lock:
            for table in tables:
                for start, memory in table.items():
                    if start <= address and address + nbytes <= start + memory.nbytes:
                        return memory[address - start : address - start + nbytes]
        raise refuse("an access", "CUDA_ERROR_ILLEGAL_ADDRESS", 700)

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        places = self.bytes_at(target, nbytes), self.bytes_at(source, nbytes)
        self._give("cuMemcpyAsync", stream, lambda: np.copyto(*places))

    def clear(self, target: int, nbytes: int, stream: int) -> None:
        place = self.bytes_at(target, nbytes, device_only=True)
        self._give("cuMemsetD8Async", stream, lambda: place.fill(0))

    # -- streams and events --------------------------------------------------------------------

    def new_stream(self) -> int:
        return self._new(self._streams, _Stream())

    def synchronize(self, stream: int) -> None:
        self._check("cuStreamSynchronize", capturing=False)
        self.synchronizations += 1
        self._drain(stream, None)

    def new_event(self, timing: bool = False) -> int:
        return self._new(self._events, _Event(timing=timing))

    def free_event(self, event: int) -> None:
        del self._events[event]

    def record(self, event: int, stream: int) -> None:
        found = self._events[event]

        def mark() -> None:
            found.time = next(self._clock)

        graph = self._capturing.get(stream)
        if graph is not None:
            found.captured = graph, graph.ends[stream]
            return
        self._give("cuEventRecord", stream, mark)
        found.captured = None
        found.stream, found.position = stream, len(self._streams[stream].work)

    def wait(self, stream: int, event: int) -> None:
        found = self._events[event]
        if found.captured is not None:  # the stream takes part in the capture from here on
            graph, nodes = found.captured
            if graph not in self._capturing.values():
                raise refuse("cuStreamWaitEvent", "CUDA_ERROR_CAPTURED_EVENT", 907)
            self._capturing[stream] = graph
            graph.ends[stream] = graph.ends.get(stream, frozenset()) | nodes
            return
        other, position = found.stream, found.position
        self._give("cuStreamWaitEvent", stream, lambda: self._drain(other, position))

    def elapsed(self, start: int, stop: int) -> float:
        first, last = self._events[start], self._events[stop]
        if not (first.timing and last.timing):
            raise refuse("cuEventElapsedTime", "CUDA_ERROR_INVALID_HANDLE", 400)
        self._drain(last.stream, last.position)
        return last.time - first.time

    def _drain(self, stream: int, position: int | None) -> None:
        """Do the work of a stream, up to a position; others advance meanwhile, or not."""
        with self._lock:
            found = self._streams[stream]
            stop = len(found.work) if position is None else position
            while found.done < stop:
                if self._random.random() < 0.5:
                    self._advance(self._random.choice(list(self._streams.values())))
                if found.done < stop:
                    self._advance(found)

    def _advance(self, stream: _Stream) -> None:
        if stream.done < len(stream.work) and not stream.waits:
            stream.waits = True  # work that waits for another stream runs that one inside
            stream.work[stream.done]()
            stream.waits = False
            stream.done += 1

    def _finish_all(self) -> None:
        for stream in list(self._streams):
            self._drain(stream, None)

    def _give(self, call: str, stream: int, work: Work) -> None:
        self._check(call)
        with self._lock:
            graph = self._capturing.get(stream)
            if graph is not None:
                graph.add(stream, work)
            elif stream in self._streams:
                self._streams[stream].work.append(work)
            else:
                raise refuse(call, "CUDA_ERROR_INVALID_HANDLE", 400)

    # -- kernels and graphs --------------------------------------------------------------------

    def launch(
        self, function: int, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int,
        stream: int, arguments: Sequence[Any], programmatic: bool = False,
    ) -> None:  # fmt: skip
        kernel = self._functions[function]
        if kernel.symbolic is not None:
            kernel = _at_sizes(kernel, kernel.symbolic, arguments)
        too_large = any(e > limit or e < 1 for e, limit in zip((*grid, *block), GRID + BLOCK,
                                                               strict=True))  # fmt: skip
        if too_large or block[0] * block[1] * block[2] > 1024:
            raise refuse("cuLaunchKernel", "CUDA_ERROR_INVALID_VALUE")
        if shared > kernel.shared_allowed:
            raise refuse("cuLaunchKernel", "CUDA_ERROR_INVALID_VALUE")
        cluster = kernel.launch.cluster
        if math.prod(cluster) > kernel.cluster_allowed or any(map(operator.mod, grid, cluster)):
            raise refuse("cuLaunchKernel", "CUDA_ERROR_INVALID_CLUSTER_SIZE", 912)
        if (grid, block) != (kernel.launch.grid, kernel.launch.block):
            raise refuse("cuLaunchKernel", "CUDA_ERROR_INVALID_VALUE")
        if programmatic != kernel.launch.programmatic:
            raise refuse("cuLaunchKernelEx", "CUDA_ERROR_INVALID_VALUE")
        self.launches += 1
        self.programmatic += programmatic
        work = self._bind(kernel, arguments)
        self._give("cuLaunchKernel", stream, work)

    def _bind(self, kernel: _Kernel, arguments: Sequence[Any]) -> Work:
        """Read the arguments, as a launch does at once."""
        buffers = [kernel.func.params[i] for i in kernel.launch.params]
        offsets = _workspace(kernel.func)
        buffers += [offsets[offset] for offset in kernel.launch.workspace]
        count, maps = len(buffers), kernel.launch.maps
        kinds: list[Any] = [ctypes.c_uint64] * count + [MapBytes] * len(maps)
        kinds += [_size_type(kernel.launch)] * len(kernel.launch.sizes)
        if kernel.launch.can_fail:
            kinds = [*kinds, ctypes.c_uint64, ctypes.c_int32]
        if [type(a) for a in arguments] != kinds:
            raise refuse("cuLaunchKernel", "CUDA_ERROR_INVALID_VALUE")
        spaces = {b: self._array(b, a.value) for b, a in zip(buffers, arguments, strict=False)}
        spaces |= self._mapped(kernel, arguments[count : count + len(maps)])
        word, code = None, 0
        if kernel.launch.can_fail:
            word = self.bytes_at(arguments[-2].value, 4, True).view(np.int32)
            code = arguments[-1].value

        def work() -> None:
            try:
                run_launch(kernel.func, kernel.index, spaces)
            except ExecutionError:
                if word is None:
                    raise
                word[0] = code

        return work

    def _mapped(self, kernel: _Kernel, maps: Sequence[Any]) -> dict[Buffer, np.ndarray]:
        """The tensors that a tile program copies from and to, where their maps say."""
        found: dict[Buffer, np.ndarray] = {}
        program = root_statements(kernel.func)[kernel.index]
        tensors = program.maps if isinstance(program, TileProgram) else ()
        for tensor, spec, data in zip(tensors, kernel.launch.maps, maps, strict=True):
            decoded = decode(bytes(data))
            if decoded is None or not decoded.describes(spec):
                raise refuse("cuLaunchKernel", "CUDA_ERROR_INVALID_VALUE")
            found[tensor.buffer] = self._array(tensor.buffer, decoded.address - tensor.offset)
        return found

    def _array(self, buffer: Buffer, address: int) -> np.ndarray:
        shape = tuple(as_int(d) for d in buffer.shape)
        dtype = buffer.dtype.numpy
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if address % 16:
            raise refuse("cuLaunchKernel", "CUDA_ERROR_MISALIGNED_ADDRESS", 716)
        return self.bytes_at(address, nbytes, device_only=True).view(dtype).reshape(shape)

    @contextlib.contextmanager
    def capture(self, stream: int) -> Iterator[Capture]:
        if stream == 0:
            raise refuse("cuStreamBeginCapture", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", 900)
        captured, graph = Capture(), _Graph(ends={stream: frozenset()})
        self._capturing[stream] = graph
        self._current.capturing = True
        try:
            yield captured
        finally:
            self._current.capturing = False
            for one in graph.ends:
                del self._capturing[one]
        if len(graph.before(graph.ends[stream])) < len(graph.nodes):
            raise refuse("cuStreamEndCapture", "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", 904)
        self.captures += 1
        captured.graph = self._new(self._graphs, graph)

    def launch_graph(self, graph: int, stream: int) -> None:
        self.graph_launches += 1
        for work in self._in_some_order(self._graphs[graph]):
            self._give("cuGraphLaunch", stream, work)

    def _in_some_order(self, graph: _Graph) -> Iterator[Work]:
        """The nodes of a graph as they may happen to run."""
        left = dict(enumerate(graph.nodes))
        while left:
            ready = [i for i, (_, needs) in left.items() if not needs & left.keys()]
            yield left.pop(self._random.choice(ready))[0]

    def free_graph(self, graph: int) -> None:
        del self._graphs[graph]

    # -- arrays of the tests -------------------------------------------------------------------

    def array(self, values: np.ndarray, stream: int = 0, offset: int = 0) -> FakeArray:
        """An array on the device that `stream` will fill."""
        values = values.copy(order="C")
        self.use()
        base = self.allocate(values.nbytes + offset + 1)
        array = FakeArray(self, base + offset, values.shape, values.dtype, stream)
        place = self.bytes_at(base + offset, values.nbytes)
        self._give("fill", stream, lambda: np.copyto(place, values.reshape(-1).view(np.uint8)))
        return array

    def _new(self, table: dict[int, Any], value: Any) -> int:
        handle = next(self._handles)
        with self._lock:
            table[handle] = value
        return handle

    def _check(self, call: str, capturing: bool = True) -> None:
        if not getattr(self._current, "device", False):
            raise refuse(call, "CUDA_ERROR_INVALID_CONTEXT", 201)
        if not capturing and getattr(self._current, "capturing", False):
            raise refuse(call, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", 900)


@dataclass
class FakeArray:
    """An array on a `FakeDriver`, with the CUDA Array Interface."""

    driver: FakeDriver
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype
    stream: int | None
    strides: tuple[int, ...] | None = None

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        found = {
            "shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False),
            "version": 3, "strides": self.strides,
        }  # fmt: skip
        if self.stream is not None:
            found["stream"] = self.stream or 1  # 0 is not allowed; 1 is the default stream
        return found

    def __getitem__(self, corner: Any) -> FakeArray:
        view = self.host()[corner]
        return FakeArray(
            self.driver, view.ctypes.data, view.shape, self.dtype, self.stream, view.strides
        )

    def host(self) -> np.ndarray:
        """The memory as it is now, whether it has been written or not."""
        step, strides = self.dtype.itemsize, []
        for size in reversed(self.shape):
            strides.insert(0, step)
            step *= size
        strides = self.strides or tuple(strides)
        span = sum((n - 1) * s for n, s in zip(self.shape, strides, strict=True))
        flat = self.driver.bytes_at(self.address, span + self.dtype.itemsize)
        return np.lib.stride_tricks.as_strided(flat.view(self.dtype), self.shape, strides)

    def get(self) -> np.ndarray:
        """A copy on the host, after the work on its stream."""
        self.driver.use()
        self.driver.synchronize(self.stream or 0)
        return self.host().copy()


class FakeArrays:
    """The array library of a `FakeDriver`."""

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver

    def empty(self, shape: tuple[int, ...], dtype: Any, stream: int) -> FakeArray:
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return FakeArray(self.driver, self.driver.allocate(max(1, nbytes)), shape, dtype, stream)

    def contiguous(self, value: Any, stream: int) -> FakeArray:
        source: FakeArray = value.__dlpack__() if hasattr(value, "__dlpack__") else value
        return self._made(source, source.shape, stream, lambda a: a)

    def pad(self, value: FakeArray, spec: ValueSpec, stream: int) -> FakeArray:
        shape = tuple(d for d in spec.shape if isinstance(d, int))
        widths = [(0, w - h) for h, w in zip(value.shape, shape, strict=True)]
        return self._made(value, shape, stream, lambda a: np.pad(a, widths, mode="edge"))

    def _made(
        self, source: FakeArray, shape: tuple[int, ...], stream: int,
        function: Callable[[np.ndarray], np.ndarray],
    ) -> FakeArray:  # fmt: skip
        made = self.empty(shape, source.dtype, stream)
        self.driver._give(
            "a kernel", stream, lambda: np.copyto(made.host(), function(source.host()))
        )
        return made


def _kernels_of(artifact: Artifact, kernel: str) -> dict[str, _Kernel]:
    """The `__global__` functions of one kernel of an artifact, by name."""
    target = artifact.manifest.target
    launches = CudaPlan.from_json(artifact.texts["plan"]).launches[kernel]
    function = next(f for f in kernel_functions(artifact) if kernel_name(f) == kernel)
    func = build_kernel(function, target, kernel)
    return {one.name: _Kernel(one, i, func) for i, one in enumerate(launches)}


def _kernel(launch: AnyLaunch, index: int, func: PrimFunc) -> _Kernel:
    if isinstance(launch, SymbolicLaunch):
        return _Kernel(launch.fixed, index, func, launch)
    return _Kernel(launch, index, func)


def _size_type(launch: Launch) -> Any:
    return ctypes.c_int64 if launch.wide else ctypes.c_int32


def _at_sizes(kernel: _Kernel, launch: SymbolicLaunch, arguments: Sequence[Any]) -> _Kernel:
    """The kernel for the symbolic sizes among the arguments of a launch."""
    names, last = kernel.func.sizes, len(arguments) - 2 * launch.fixed.can_fail
    values = [argument.value for argument in arguments[last - len(names) : last]]
    sizes = dict(zip(names, values, strict=True))
    func = specialize_sizes(kernel.func, sizes)
    return replace(kernel, launch=launch.at(sizes), func=func)


def _workspace(func: PrimFunc) -> dict[int, Buffer]:
    """The buffers between launches by their offsets, as `codegen.cuda` lays them out."""
    found: dict[int, Buffer] = {}
    position, body = 0, func.body
    while isinstance(body, Alloc) and body.buffer.scope is Scope.GLOBAL:
        found[position] = body.buffer
        nbytes = int(np.prod([as_int(d) for d in body.buffer.shape], dtype=np.int64))
        position += -(-nbytes * body.buffer.dtype.itemsize // 256) * 256
        body = body.body
    return found
