"""The CUDA driver (libcuda.so.1) through ctypes: what the runtime needs of it, and no more.

Names and signatures are those of the CUDA Driver API reference (CUDA 12 and 13); entry points with
a version in their name (`_v2`) are what cuda.h maps the plain name to. Handles are integers.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import threading
from collections.abc import Iterator, Sequence
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from typing import Any, Protocol

from ...codegen.cuda.limits import TensorMapSpec
from ...diagnostics import ExecutionError, MemoryBudgetError, TinycompError
from ...target import Target
from .tensor_maps import encode_tensor_map, entry_point

DEFAULT_ARCH = "sm_90a"
"""Compiled for where no GPU is present: the H100 and H200, with their own instructions."""

Grid = tuple[int, int, int]

# CUdevice_attribute
_CLOCK_KHZ, _SMS, _MEMORY_KHZ, _BUS_BITS, _L2_BYTES, _MAJOR, _MINOR = 13, 16, 36, 37, 38, 75, 76
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_LARGE_CLUSTERS = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_CAPTURE_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING
_PROGRAMMATIC = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


class Driver(Protocol):
    """What the runtime asks of a device. `CudaDriver` is the real one, tests have another.

    Work given to a stream happens in its order and later than the call. Host memory that is
    copied from or to must stay as it is until then.
    """

    def use(self) -> None:
        """Make the device current for the calling thread."""
        ...

    @property
    def arch(self) -> str: ...
    def memory(self) -> tuple[int, int]: ...
    def facts(self) -> DeviceFacts: ...
    def load_module(self, code: bytes) -> int: ...
    def function(self, module: int, name: str) -> int: ...
    def allow_shared(self, function: int, nbytes: int) -> None: ...
    def allow_large_clusters(self, function: int) -> None: ...
    def tensor_map(self, spec: TensorMapSpec, address: int) -> ctypes.Array: ...
    def launch(
        self, function: int, grid: Grid, block: Grid, shared: int, stream: int,
        arguments: Sequence[Any], programmatic: bool = False,
    ) -> None: ...  # fmt: skip
    def allocate(self, nbytes: int) -> int: ...
    def free(self, address: int) -> None: ...
    def allocate_host(self, nbytes: int) -> int: ...
    def free_host(self, address: int) -> None: ...
    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None: ...
    def clear(self, target: int, nbytes: int, stream: int) -> None: ...
    def new_stream(self) -> int: ...
    def synchronize(self, stream: int) -> None: ...
    def new_event(self, timing: bool = False) -> int: ...
    def free_event(self, event: int) -> None: ...
    def record(self, event: int, stream: int) -> None: ...
    def wait(self, stream: int, event: int) -> None: ...
    def elapsed(self, start: int, stop: int) -> float: ...
    def capture(self, stream: int) -> contextlib.AbstractContextManager[Capture]: ...
    def launch_graph(self, graph: int, stream: int) -> None: ...
    def free_graph(self, graph: int) -> None: ...


@dataclass
class Capture:
    """The executable graph of what was captured; set when the capture ends."""

    graph: int = 0


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What decides about peaks: multiprocessors, GHz, GB/s of memory, bytes of L2."""

    multiprocessors: int
    ghz: float
    memory_gbps: float
    l2_bytes: int


class _LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute: an id, padded to 8 bytes, and a union of 64."""

    _fields_ = (("id", c_int), ("pad", c_int), ("value", c_int * 16))


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", c_uint * 3), ("block", c_uint * 3), ("shared", c_uint), ("stream", c_void_p),
        ("attributes", ctypes.POINTER(_LaunchAttribute)), ("count", c_uint),
    )  # fmt: skip


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (c_void_p,),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuDeviceGetName": (c_void_p, c_int, c_int),
    "cuDriverGetVersion": (c_void_p,),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuGetErrorName": (c_int, c_void_p),
    "cuGetErrorString": (c_int, c_void_p),
    "cuMemGetInfo_v2": (c_void_p, c_void_p),
    "cuModuleLoadData": (c_void_p, c_char_p),
    "cuModuleGetFunction": (c_void_p, c_void_p, c_char_p),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuLaunchKernel": (c_void_p, *(c_uint,) * 7, c_void_p, c_void_p, c_void_p),
    "cuLaunchKernelEx": (c_void_p, c_void_p, c_void_p, c_void_p),
    "cuMemAlloc_v2": (c_void_p, c_size_t),
    "cuMemFree_v2": (c_ulonglong,),
    "cuMemHostAlloc": (c_void_p, c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyAsync": (c_ulonglong, c_ulonglong, c_size_t, c_void_p),
    "cuMemsetD8Async": (c_ulonglong, ctypes.c_ubyte, c_size_t, c_void_p),
    "cuStreamCreate": (c_void_p, c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuEventCreate": (c_void_p, c_uint),
    "cuEventDestroy_v2": (c_void_p,),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (c_void_p, c_void_p, c_void_p),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, c_void_p),
    "cuGraphInstantiateWithFlags": (c_void_p, c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuTensorMapEncodeTiled": (c_void_p, c_int, c_uint, *(c_void_p,) * 5, *(c_int,) * 4),
    "cuTensorMapEncodeIm2col": (
        c_void_p,
        c_int,
        c_uint,
        *(c_void_p,) * 5,
        c_uint,
        c_uint,
        c_void_p,
        *(c_int,) * 4,
    ),
}


class CudaDriver:
    """The first GPU of this machine, in its primary context, which CuPy and PyTorch use too.

    Raises:
        TinycompError: there is no driver or no GPU, or the driver is too old.
    """

    def __init__(self, library: Any = None) -> None:
        self._library = library if library is not None else _load_library()
        self._functions: dict[str, Any] = {}
        self._call("cuInit", 0)
        count, device, context = c_int(), c_int(), c_void_p()
        self._call("cuDeviceGetCount", byref(count))
        if not count.value:
            raise _no_gpu()
        self._call("cuDeviceGet", byref(device), 0)
        self._device = device.value
        self._call("cuDevicePrimaryCtxRetain", byref(context), self._device)
        self._context = context

    def use(self) -> None:
        self._call("cuCtxSetCurrent", self._context)

    @property
    def arch(self) -> str:
        return _arch_name(self._attribute(_MAJOR), self._attribute(_MINOR))

    @property
    def version(self) -> tuple[int, int]:
        """The newest CUDA that the driver supports."""
        version = c_int()
        self._call("cuDriverGetVersion", byref(version))
        return version.value // 1000, version.value % 1000 // 10

    @property
    def name(self) -> str:
        """What the GPU is called."""
        text = ctypes.create_string_buffer(128)
        self._call("cuDeviceGetName", ctypes.addressof(text), len(text), self._device)
        return text.value.decode(errors="replace")

    def memory(self) -> tuple[int, int]:
        """Free and total bytes."""
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def facts(self) -> DeviceFacts:
        double_rate = 2 * self._attribute(_MEMORY_KHZ) * 1e3
        return DeviceFacts(
            self._attribute(_SMS),
            self._attribute(_CLOCK_KHZ) / 1e6,
            double_rate * self._attribute(_BUS_BITS) / 8 / 1e9,
            self._attribute(_L2_BYTES),
        )

    def load_module(self, code: bytes) -> int:
        """Load a cubin."""
        return self._new("cuModuleLoadData", code)

    def function(self, module: int, name: str) -> int:
        return self._new("cuModuleGetFunction", module, name.encode())

    def allow_shared(self, function: int, nbytes: int) -> None:
        """Let launches of a function ask for up to `nbytes` of shared memory."""
        self._call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, nbytes)

    def allow_large_clusters(self, function: int) -> None:
        """Let launches of a function have clusters of more than 8 blocks."""
        self._call("cuFuncSetAttribute", function, _LARGE_CLUSTERS, 1)

    def tensor_map(self, spec: TensorMapSpec, address: int) -> ctypes.Array:
        """The map of a tensor at `address`, as a kernel argument."""
        return encode_tensor_map(spec, address, self._function(entry_point(spec)))

    def launch(
        self, function: int, grid: Grid, block: Grid, shared: int, stream: int,
        arguments: Sequence[Any], programmatic: bool = False,
    ) -> None:  # fmt: skip
        """Launch a kernel with ctypes values as arguments; they are copied at once.

        A `programmatic` launch may begin before the one ahead of it in the stream ends; the kernel
        itself waits (griddepcontrol.wait).
        """
        pointers = (c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        if not programmatic:
            self._call("cuLaunchKernel", function, *grid, *block, shared, stream, pointers, None)
            return
        attribute = _LaunchAttribute(_PROGRAMMATIC, 0, (1,))
        config = _LaunchConfig(grid, block, shared, stream, ctypes.pointer(attribute), 1)
        self._call("cuLaunchKernelEx", byref(config), function, pointers, None)

    def allocate(self, nbytes: int) -> int:
        """Device memory, aligned to at least 256 bytes."""
        return self._new("cuMemAlloc_v2", nbytes)

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", address)

    def allocate_host(self, nbytes: int) -> int:
        """Page-locked host memory, which copies run to and from beside the host."""
        return self._new("cuMemHostAlloc", nbytes, 0)

    def free_host(self, address: int) -> None:
        self._call("cuMemFreeHost", address)

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Copy between any two of device and page-locked memory, which one address space holds."""
        if nbytes:
            self._call("cuMemcpyAsync", target, source, nbytes, stream)

    def clear(self, target: int, nbytes: int, stream: int) -> None:
        self._call("cuMemsetD8Async", target, 0, nbytes, stream)

    def new_stream(self) -> int:
        """A stream that does not wait for the default stream."""
        return self._new("cuStreamCreate", _NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def new_event(self, timing: bool = False) -> int:
        return self._new("cuEventCreate", 0 if timing else _DISABLE_TIMING)

    def free_event(self, event: int) -> None:
        self._call("cuEventDestroy_v2", event)

    def record(self, event: int, stream: int) -> None:
        self._call("cuEventRecord", event, stream)

    def wait(self, stream: int, event: int) -> None:
        """Work given to `stream` from now on waits for the event."""
        self._call("cuStreamWaitEvent", stream, event, 0)

    def elapsed(self, start: int, stop: int) -> float:
        """Milliseconds between two recorded events; waits for the second."""
        milliseconds = c_float()
        self._call("cuEventSynchronize", stop)
        self._call("cuEventElapsedTime", byref(milliseconds), start, stop)
        return milliseconds.value

    @contextlib.contextmanager
    def capture(self, stream: int) -> Iterator[Capture]:
        """What is given to `stream` inside becomes a graph instead of running."""
        captured, graph = Capture(), c_void_p()
        self._call("cuStreamBeginCapture_v2", stream, _CAPTURE_THREAD_LOCAL)
        try:
            yield captured
        except BaseException:
            self._function("cuStreamEndCapture")(stream, byref(graph))
            if graph.value:
                self._call("cuGraphDestroy", graph)
            raise
        self._call("cuStreamEndCapture", stream, byref(graph))
        try:
            captured.graph = self._new("cuGraphInstantiateWithFlags", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def launch_graph(self, graph: int, stream: int) -> None:
        self._call("cuGraphLaunch", graph, stream)

    def free_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", graph)

    def _attribute(self, attribute: int) -> int:
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), attribute, self._device)
        return value.value

    def _new(self, name: str, *arguments: Any) -> int:
        """Call a function that stores a handle or address in its first argument."""
        result = c_void_p()
        self._call(name, byref(result), *arguments)
        return result.value or 0

    def _function(self, name: str) -> Any:
        found = self._functions.get(name)
        if found is None:
            try:
                found = getattr(self._library, name)
            except AttributeError:
                raise TinycompError(
                    f"the CUDA driver has no {name}: it is too old",
                    hint="install a driver for CUDA 12.4 or newer",
                ) from None
            found.argtypes, found.restype = _SIGNATURES[name], c_int
            self._functions[name] = found
        return found

    def _call(self, name: str, *arguments: Any) -> None:
        status = self._function(name)(*arguments)
        if status:
            self._fail(name, status)

    def _fail(self, call: str, status: int) -> None:
        texts = []
        for query in ("cuGetErrorName", "cuGetErrorString"):
            text = c_char_p()
            self._function(query)(status, byref(text))
            texts.append((text.value or b"unknown").decode())
        raise driver_error(call, status, texts[0], texts[1])


def driver_error(call: str, status: int, name: str, meaning: str) -> TinycompError:
    """The error of a driver call that returned `status`."""
    if status == _OUT_OF_MEMORY:
        return MemoryBudgetError(
            f"the GPU is out of memory ({call})",
            hint="use a smaller batch, or free memory that other programs and modules hold",
        )
    return ExecutionError(
        f"the CUDA driver refuses {call}: {name}: {meaning}",
        hint=_HINTS.get(name, "`tinycomp doctor` shows what is found"),
    )


_CODE = (
    "machine code by NVRTC of a newer CUDA than the driver's needs a newer driver, which `tinycomp "
    "doctor` shows; else compile the model again for this GPU: target='cuda'"
)
_RESTART = (
    "an input may be freed or of another device (compute-sanitizer names the access); the process "
    "must be restarted"
)
_HINTS = {
    "CUDA_ERROR_NO_DEVICE": "CUDA_VISIBLE_DEVICES hides GPUs if it is set; a container needs to be "
    "started with them (docker run --gpus all)",
    "CUDA_ERROR_STUB_LIBRARY": "libcuda.so.1 is the toolkit's stub: put the folder of the driver's "
    "own first in LD_LIBRARY_PATH",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the driver was updated while it ran: restart the machine",
    "CUDA_ERROR_SYSTEM_NOT_READY": "start the service nvidia-fabricmanager",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "another process has the GPU for itself (nvidia-smi shows it)",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": _CODE,
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": _CODE,
    "CUDA_ERROR_INVALID_IMAGE": _CODE,
    "CUDA_ERROR_INVALID_VALUE": "a launch may be over the limits of this GPU: compile for it",
    "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES": "compile the model again for this GPU",
    "CUDA_ERROR_ILLEGAL_ADDRESS": _RESTART,
    "CUDA_ERROR_MISALIGNED_ADDRESS": _RESTART,
    "CUDA_ERROR_LAUNCH_FAILED": _RESTART,
}


def _load_library() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise _no_gpu() from None


def _no_gpu() -> TinycompError:
    return TinycompError(
        "no GPU or CUDA driver is found",
        hint="run it on a machine with an NVIDIA GPU, or compile for the CPU: target='llvm'; "
        "`tinycomp doctor` shows what is found",
    )


def _arch_name(major: int, minor: int) -> str:
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


_opening = threading.Lock()


@functools.cache
def _opened() -> CudaDriver:
    return CudaDriver()


def open_driver() -> CudaDriver:
    """The driver of this machine, opened once per process.

    Raises:
        TinycompError: there is no driver or no GPU.
    """
    with _opening:
        return _opened()


def describe(library: Any = None) -> dict[str, str]:
    """The driver and the GPU, or what is wrong with them, in a line each.

    Args:
        library: in place of libcuda.so.1.
    """
    try:
        driver = CudaDriver(library)
        driver.use()
        free, total = (f"{n / 2**30:.1f} GiB" for n in driver.memory())
        return {
            "CUDA driver": "CUDA {}.{}".format(*driver.version),
            "GPU": f"{driver.name}, {driver.arch}, {total} of memory, {free} free",
        }
    except TinycompError as error:
        advice = {"problem": error.hint} if error.hint in _HINTS.values() else {}
        return {"CUDA driver": error.message, **advice}


@functools.cache
def present_arch() -> str:
    """The architecture of the first GPU, such as "sm_90a"; empty if there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    count, device = c_int(), c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(byref(count)) or not count.value:
        return ""
    driver.cuDeviceGet(byref(device), 0)
    values = []
    for attribute in (_MAJOR, _MINOR):
        value = c_int()
        if driver.cuDeviceGetAttribute(byref(value), attribute, device):
            return ""
        values.append(value.value)
    return _arch_name(values[0], values[1])


def choose_target(target: str | Target) -> Target:
    """The target meant: "cuda" alone is the architecture of this machine's GPU, if there is one."""
    parsed = Target.parse(target)
    if parsed.kind == "cuda" and not parsed.arch:
        return dataclasses.replace(parsed, arch=present_arch() or DEFAULT_ARCH)
    return parsed
