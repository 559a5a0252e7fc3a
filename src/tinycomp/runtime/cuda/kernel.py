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
        self.workspace = driver.allocate(kernel.workspace_bytes + 256)
        self.error = self.workspace + kernel.workspace_bytes // 256 * 256
        self.word = driver.allocate_host(_WORD)
        driver.clear(self.error, _WORD, self.stream)
        held = [self.workspace], [self.word]
        weakref.finalize(self, release, driver, *held).atexit = False

    def launch(self, addresses: Sequence[int], stream: int) -> None:
        """Enqueue the launches on arrays at these addresses, in the order of the parameters."""
        self.driver.use()
        for function, launch in zip(self.functions, self.kernel.launches, strict=True):
            arguments: list[Any] = [ctypes.c_uint64(addresses[i]) for i in launch.params]
            arguments += [ctypes.c_uint64(self.workspace + offset) for offset in launch.workspace]
            arguments += [
                self.driver.tensor_map(m, m.address(addresses, self.workspace)) for m in launch.maps
            ]
            if launch.can_fail:
                arguments += [ctypes.c_uint64(self.error), ctypes.c_int32(1)]
            self.driver.launch(
                function, launch.grid, launch.block, launch.dynamic_shared, stream, arguments
            )

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

    def run_on_host(self, arrays: Sequence[np.ndarray], num_outputs: int) -> None:
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
            self.launch(device, self.stream)
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
        self, addresses: Sequence[int], number: int, repeat: int, flush_cache: bool
    ) -> TimeResult:
        """The time of a launch between events; see `CudaFunction.time_evaluator`."""
        driver, stream = self.driver, self.stream
        driver.use()
        driver.synchronize(0)  # where the arrays were made
        self.launch(addresses, stream)
        result = time_on_stream(
            driver, stream, lambda: self.launch(addresses, stream), number, repeat, flush_cache
        )
        self.finish(stream)
        return result
