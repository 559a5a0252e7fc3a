"""A model compiled for a GPU.

Not run on a GPU yet: see benchmarks/gpu/PENDING.md. Everything but running works without one; the
tests run this code on a driver made of NumPy (`testing.fake_cuda`).
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...diagnostics import InputError
from ..arrays import allocate, check_input, check_names, check_output
from ..artifact import Artifact, ValueSpec
from ..function import TimeResult
from ..module import CUDA_LEVELS, Module
from ..peaks import Peaks
from ..profiler import Profile, profile_of
from .arrays import (
    ArrayLibrary,
    CupyArrays,
    DeviceArray,
    device_array,
    is_on_device,
    producer_stream,
    stream_handle,
)
from .driver import Driver, open_driver
from .plan import CudaPlan
from .program import DeviceProgram, Frame
from .timing import time_on_stream

_LANES = {"sm_80": 64}  # float32 multiply-adds of a multiprocessor in a clock; 128 on others


class CudaModule(Module):
    """A model compiled for a GPU; made by `tinycomp.compile(..., target="cuda")` or `load`.

    Calls may come from several Python threads; each has its own working memory.

    Args:
        artifact: the compiled model.
        driver, arrays: the device and its array library; default: this machine's, and CuPy.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        driver: Driver | None = None,
        arrays: ArrayLibrary | None = None,
    ) -> None:
        self._artifact = artifact
        self.num_threads = 1
        self._driver, self._arrays = driver, arrays or CupyArrays()
        self._program: DeviceProgram | None = None
        self._idle: deque[Frame] = deque()
        self._loading = threading.Lock()

    @property
    def levels(self) -> tuple[str, ...]:
        return CUDA_LEVELS

    @property
    def plan(self) -> CudaPlan:
        """Steps, launches, and what each kernel uses of the machine."""
        return CudaPlan.from_json(self._artifact.texts["plan"])

    def run(
        self,
        inputs: Mapping[str, Any],
        *,
        stream: Any = None,
        out: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The outputs by name for inputs by name.

        NumPy inputs are copied to the device. Arrays on the device (CuPy, PyTorch, and others with
        the CUDA Array Interface or DLPack) stay there: they are used in place if they are dense
        and begin at a multiple of 16 bytes, from the second call with the same addresses on; the
        first copies them, since a graph is recorded for each set of addresses (up to 32 are kept).
        Keep inputs unchanged until the stream has passed the call.

        If an input is on the device, results are new CuPy arrays, and the call returns before
        they are computed: work on the same stream sees them. It does wait if the model can fail
        (an index read from data, as in an embedding) or branches on data. Otherwise results are
        NumPy arrays.

        Args:
            stream: where to run: a stream of CuPy or PyTorch, or a handle. Default: the stream
                that a device input names (CuPy's current one does), else the default stream. Name
                PyTorch's if it is another: `stream=torch.cuda.current_stream()`.
            out: arrays for some or all outputs, by name; written in place, also returned.

        Raises:
            TinycompError: no GPU, no driver or no CuPy; or a GPU that the code is not for.
            MemoryBudgetError: the GPU has too little free memory.
            InputError: an input is missing, unknown, or of another dtype or shape.
            ExecutionError: the data made an index out of range, or the driver failed.
        """
        check_names(inputs, self.inputs)
        out = dict(out or {})
        unknown = out.keys() - {spec.name for spec in self.outputs}
        if unknown:
            raise InputError(f"out: the model has no output {sorted(unknown)[0]!r}")
        frame = self._acquire()
        try:
            return self._run(frame, inputs, out, stream)
        finally:
            self._idle.append(frame)

    def _run(
        self, frame: Frame, inputs: Mapping[str, Any], out: dict[str, Any], stream: Any
    ) -> dict[str, Any]:
        on_device = any(is_on_device(inputs[spec.name]) for spec in self.inputs)
        handle, device = self._place(frame, inputs, stream)
        results: dict[str, Any] = {}
        to_device: list[DeviceArray | None] = []
        to_host: list[np.ndarray | None] = []
        for spec in self.outputs:
            value = out.get(spec.name)
            if value is None:
                value = self._new_output(spec, on_device, handle)
            results[spec.name] = value
            there = is_on_device(value)
            to_device.append(self._device_array(value, spec, "output", handle) if there else None)
            to_host.append(None if there else check_output(value, spec))
        given = [
            a if spec.name in out else None for a, spec in zip(to_device, self.outputs, strict=True)
        ]
        bound = frame.choose(device, given, handle)
        frame.run(bound, handle)
        frame.deliver(bound, to_device, handle)
        frame.finish(bound, to_host, handle)
        return results

    def _place(
        self, frame: Frame, inputs: Mapping[str, Any], stream: Any
    ) -> tuple[int, list[DeviceArray | None]]:
        """The stream, and the inputs that are on the device; those on the host are sent there."""
        there = {s.name for s in self.inputs if is_on_device(inputs[s.name])}
        host = {s.name: check_input(inputs[s.name], s) for s in self.inputs if s.name not in there}
        producers = [producer_stream(inputs[s.name]) for s in self.inputs if s.name in there]
        named = [p for p in producers if p is not None]
        if stream is not None:
            handle = stream_handle(stream)
        elif there:
            handle = named[0] if named else 0
        else:
            handle = frame.stream
        frame.begin(handle, named)
        device: list[DeviceArray | None] = []
        for position, spec in enumerate(self.inputs):
            if spec.name in there:
                device.append(self._device_array(inputs[spec.name], spec, "input", handle))
            else:
                frame.stage(position, host[spec.name], handle)
                device.append(None)
        return handle, device

    def _device_array(self, value: Any, spec: ValueSpec, what: str, stream: int) -> DeviceArray:
        return device_array(value, spec, what, self._arrays, stream)

    def _new_output(self, spec: ValueSpec, on_device: bool, stream: int) -> Any:
        shape = tuple(d for d in spec.shape if isinstance(d, int))
        dtype = spec.dtype.numpy
        if on_device:
            return self._arrays.empty(shape, dtype, stream)
        return allocate(shape, dtype, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)[0]

    def _acquire(self) -> Frame:
        with self._loading:
            if self._program is None:
                driver = self._driver or open_driver()
                self._program = DeviceProgram(self._artifact, self.plan, driver)
        self._program.driver.use()
        try:
            return self._idle.pop()
        except IndexError:
            return Frame(self._program)

    def pad(self, value: Any, spec: ValueSpec) -> Any:
        if is_on_device(value):
            interface = getattr(value, "__cuda_array_interface__", {})
            return self._arrays.pad(value, spec, stream_handle(interface.get("stream") or 0))
        return super().pad(value, spec)

    def profile(self, inputs: Mapping[str, Any], *, repeat: int = 10) -> Profile:
        """Time of each kernel between two events, the median of `repeat` runs after a warm-up.

        Kernels are launched one by one, so gaps between them are longer than in a graph.
        """
        frame = self._acquire()
        try:
            runs = [self._observed(frame, inputs) for _ in range(repeat + 1)][1:]
        finally:
            self._idle.append(frame)
        assert self._program is not None
        nanoseconds = np.median(np.array(runs), axis=0)
        facts, arch = self._program.driver.facts(), self._program.driver.arch
        gflops = facts.multiprocessors * _LANES.get(arch, 128) * 2 * facts.ghz
        peaks = Peaks(1, gflops, facts.memory_gbps, facts.memory_gbps)
        return profile_of(self.manifest, nanoseconds, peaks, facts.l2_bytes)

    def _observed(self, frame: Frame, inputs: Mapping[str, Any]) -> list[float]:
        """Nanoseconds of each kernel call in one run; 0 for those of branches not taken."""
        driver = frame.driver
        handle, device = self._place(frame, inputs, None)
        bound = frame.choose(device, [None] * len(self.outputs), handle)
        marks: list[tuple[int, int]] = []

        def observe(number: int, stream: int) -> None:
            event = driver.new_event(timing=True)
            driver.record(event, stream)
            marks.append((number, event))

        frame.run(bound, handle, observe)
        frame.finish(bound, [None] * len(self.outputs), handle)
        driver.synchronize(handle)
        times = [0.0] * len(frame.program.calls)
        for (number, start), (_, stop) in itertools.pairwise(marks):
            if number >= 0:
                times[number] += driver.elapsed(start, stop) * 1e6
        for _, event in marks:
            driver.free_event(event)
        return times

    def time_evaluator(
        self, number: int = 10, repeat: int = 10, flush_cache: bool = False
    ) -> Callable[[Mapping[str, Any]], TimeResult]:
        """A function that takes inputs and returns the time of the model on the device.

        Between events on the stream, without copies to and from the host. `flush_cache` empties
        L2 before every single run, and ignores `number`.
        """

        def evaluate(inputs: Mapping[str, Any]) -> TimeResult:
            frame = self._acquire()
            try:
                return self._timed(frame, inputs, number, repeat, flush_cache)
            finally:
                self._idle.append(frame)

        return evaluate

    def _timed(
        self, frame: Frame, inputs: Mapping[str, Any], number: int, repeat: int, flush: bool
    ) -> TimeResult:
        handle, device = self._place(frame, inputs, None)
        nothing: Sequence[None] = [None] * len(self.outputs)
        bound = frame.choose(device, nothing, handle)
        frame.run(bound, handle)  # records the graph
        result = time_on_stream(
            frame.driver, handle, lambda: frame.run(bound, handle), number, repeat, flush
        )
        frame.finish(bound, nothing, handle)
        return result
