"""One compiled kernel on a device: its memory, its launches, and their time."""

from __future__ import annotations

import ctypes
import weakref
from collections import namedtuple
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...codegen.cuda.emit import CudaKernel
from ...codegen.cuda.nvrtc import Cubin
from ...diagnostics import ExecutionError, InputError
from ...tir.nodes import Buffer
from ..function import TimeResult
from .arrays import holds, is_dense, require_first_gpu
from .driver import Driver
from .program import check_arch, function_of, host_bytes, release
from .timing import time_on_stream

_Flags = namedtuple("_Flags", ["c_contiguous", "aligned", "writeable"])
_WORD = 4


class DeviceView:
    """An array on the device as `Signature` looks at arrays: dtype, shape and layout.

    Args:
        value: a CuPy or PyTorch array, or anything with the CUDA Array Interface.

    Raises:
        InputError: it is something else.
    """

    def __init__(self, value: Any, buffer: Buffer) -> None:
        interface = getattr(value, "__cuda_array_interface__", None)
        if interface is None:
            raise InputError(
                f"{buffer.name!r} is a {type(value).__name__}, not an array on the device",
                hint="pass CuPy or PyTorch arrays, or NumPy arrays for all arguments",
            )
        require_first_gpu(value, repr(buffer.name))
        self.address, self.shape = interface["data"][0], tuple(interface["shape"])
        self.ndim = len(self.shape)
        stored = np.dtype(interface["typestr"])
        fits = holds(interface["typestr"], buffer.dtype)
        self.dtype = buffer.dtype.numpy if fits else stored
        self.strides = interface.get("strides")
        dense = is_dense(self.shape, self.strides, stored.itemsize)
        self.flags = _Flags(dense, True, not interface["data"][1])


class DeviceKernel:
    """Machine code loaded on the device, with the workspace and the error word of its launches.

    Calls share these, so they must follow each other on one stream.

    Args:
        kernel: its code, and the launches of a call; with symbolic sizes, each call gives its own.

    Raises:
        TinycompError: the code is for another GPU, or memory does not suffice.
    """

    def __init__(self, kernel: CudaKernel, cubin: Cubin, driver: Driver) -> None:
        check_arch(cubin.arch, driver.arch)
        self.kernel, self.driver = kernel, driver
        driver.use()
        module = driver.load_module(cubin.code)
        self.functions = [function_of(driver, module, launch) for launch in kernel.launches]
        self.stream = driver.new_stream()
        self.error = driver.allocate(256)
        self.word = driver.allocate_host(_WORD)
        driver.clear(self.error, _WORD, self.stream)
        self._held = [self.error], [self.word]
        weakref.finalize(self, release, driver, *self._held).atexit = False
        self.workspace, self._workspace_bytes = 0, 0

    def launch(self, addresses: Sequence[int], stream: int, call: CudaKernel | None = None) -> None:
        """Enqueue the launches on arrays at these addresses, in the order of the parameters.

        Args:
            call: the launches, if symbolic sizes make them others than those of `kernel`.
        """
        self.driver.use()
        kernel = call or self.kernel
        self._reserve(kernel.workspace_bytes)
        for function, launch in zip(self.functions, kernel.launches, strict=True):
            if launch.is_empty:
                continue
            arguments: list[Any] = [ctypes.c_uint64(addresses[i]) for i in launch.params]
            arguments += [ctypes.c_uint64(self.workspace + offset) for offset in launch.workspace]
            arguments += [
                self.driver.tensor_map(m, m.address(addresses, self.workspace)) for m in launch.maps
            ]
            number = ctypes.c_int64 if launch.wide else ctypes.c_int32
            arguments += [number(size) for size in launch.sizes]
            if launch.can_fail:
                arguments += [ctypes.c_uint64(self.error), ctypes.c_int32(1)]
            self.driver.launch(
                function, launch.grid, launch.block, launch.dynamic_shared, stream, arguments
            )

    def _reserve(self, nbytes: int) -> None:
        """Have a workspace of at least so many bytes."""
        if nbytes <= self._workspace_bytes:
            return
        device, _ = self._held
        if self.workspace:
            device.remove(self.workspace)
            self.driver.free(self.workspace)  # waits for the kernels that use it
        self.workspace, self._workspace_bytes = self.driver.allocate(nbytes), nbytes
        device.append(self.workspace)

    def finish(self, stream: int) -> None:
        """Wait for the stream, and report what the kernel found.

        Raises:
            ExecutionError: the data made an index out of range.
        """
        if self.kernel.can_fail:
            self.driver.copy(self.word, self.error, _WORD, stream)
            self.driver.clear(self.error, _WORD, stream)
        self.driver.synchronize(stream)
        if self.kernel.can_fail and host_bytes(self.word, _WORD).any():
            raise ExecutionError(
                f"{self.kernel.name}: an index computed from the inputs is out of range"
            )

    def run_on_host(
        self, arrays: Sequence[np.ndarray], num_outputs: int, call: CudaKernel | None = None
    ) -> None:
        """Copy NumPy arrays to the device, launch, and copy the outputs back."""
        driver = self.driver
        driver.use()
        sizes = [max(1, a.nbytes) for a in arrays]
        device = [driver.allocate(n) for n in sizes]
        staging = [driver.allocate_host(n) for n in sizes]
        first_output = len(arrays) - num_outputs
        try:
            for array, there, here in zip(arrays, device, staging, strict=True):
                host_bytes(here, array.nbytes)[:] = array.reshape(-1).view(np.uint8)
                driver.copy(there, here, array.nbytes, self.stream)
            self.launch(device, self.stream, call)
            places = [*zip(arrays, device, staging, strict=True)][first_output:]
            for array, there, here in places:
                driver.copy(here, there, array.nbytes, self.stream)
            self.finish(self.stream)
            for array, _, here in places:
                array.reshape(-1).view(np.uint8)[:] = host_bytes(here, array.nbytes)
        finally:
            for address in device:
                driver.free(address)
            for address in staging:
                driver.free_host(address)

    def measure(
        self,
        addresses: Sequence[int],
        number: int,
        repeat: int,
        flush_cache: bool,
        call: CudaKernel | None = None,
    ) -> TimeResult:
        """The time of a launch between events; see `CudaFunction.time_evaluator`."""
        driver, stream = self.driver, self.stream
        driver.use()
        driver.synchronize(0)  # where the arrays were made
        run = lambda: self.launch(addresses, stream, call)  # noqa: E731
        run()
        result = time_on_stream(driver, stream, run, number, repeat, flush_cache)
        self.finish(stream)
        return result
