"""NVRTC, NVIDIA's run-time compiler: CUDA C++ to machine code, on machines without a GPU too.

    pip install nvidia-cuda-nvrtc

>>> source = 'extern "C" __global__ void f(float* x) { x[0] = 1; }'
>>> compile_cuda(source, "sm_90a").kernels["f"].registers       # doctest: +SKIP
8
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import glob
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...diagnostics import InternalError, TinycompError

OPTIONS = ("--std=c++17", "--ptxas-options=-v", "--restrict", "--fmad=true", "-default-device")
_HINT = "pip install nvidia-cuda-nvrtc (or install the CUDA toolkit); no GPU is needed"


@dataclass(frozen=True, slots=True)
class Resources:
    """What one kernel uses, as the assembler reports it.

    Attributes:
        registers: per thread.
        spill_stores, spill_loads: bytes of registers moved to memory and back, per thread.
        stack: bytes of stack, per thread; arrays that are not in registers.
        shared: bytes of shared memory that the kernel declares itself.
    """

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int


@dataclass(frozen=True, slots=True)
class Cubin:
    """Machine code for one architecture.

    Attributes:
        kernels: what each kernel uses, by name.
        log: of the compiler.
    """

    arch: str
    code: bytes
    kernels: Mapping[str, Resources]
    log: str


def compile_cuda(source: str, arch: str, name: str = "kernel.cu") -> Cubin:
    """Compile CUDA C++ without headers.

    Args:
        arch: "sm_90a" and the like.
        name: shown in messages.

    Raises:
        TinycompError: NVRTC is not installed, or does not know the architecture.
        InternalError: it rejects the source.
    """
    nvrtc = library()
    known = nvrtc.architectures
    if arch.rstrip("af").removeprefix("sm_") not in map(str, known):
        raise TinycompError(
            f"NVRTC {nvrtc.version} does not know the architecture {arch!r}",
            hint="it knows " + ", ".join(f"sm_{a}" for a in known) + "; another version of "
            "nvidia-cuda-nvrtc may know more",
        )
    options = (f"--gpu-architecture={arch}", *OPTIONS)
    status, code, log = nvrtc.compile(source, name, options)
    if status:
        if "invalid value for --gpu-architecture" in log:
            raise TinycompError(f"NVRTC {nvrtc.version} does not know the architecture {arch!r}")
        shown = "\n".join(log.splitlines()[:12])
        raise InternalError(f"NVRTC rejects generated code ({name}):\n{shown}")
    return Cubin(arch, code, parse_log(log), log)


_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse_log(log: str) -> dict[str, Resources]:
    """What each kernel uses, from the messages of `ptxas -v`."""
    found: dict[str, Resources] = {}
    name, stack = "", (0, 0, 0)
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            name = entry.group(1)
        elif frame := _STACK.search(line):
            stack = tuple(map(int, frame.groups()))  # type: ignore[assignment]
        elif (used := _USED.search(line)) and name:
            shared = _SHARED.search(line)
            found[name] = Resources(
                int(used.group(1)), stack[1], stack[2], stack[0],
                int(shared.group(1)) if shared else 0,
            )  # fmt: skip
    return found


class Library:
    """The functions of libnvrtc that are used."""

    def __init__(self, path: str, dll: ctypes.CDLL) -> None:
        self.path, self._dll = path, dll
        dll.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        dll.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"
        count = ctypes.c_int()
        dll.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        archs = (ctypes.c_int * count.value)()
        dll.nvrtcGetSupportedArchs(archs)
        self.architectures = tuple(archs)

    def compile(self, source: str, name: str, options: tuple[str, ...]) -> tuple[int, bytes, str]:
        """Status, machine code and log."""
        dll, program = self._dll, ctypes.c_void_p()
        self._check(
            dll.nvrtcCreateProgram(
                ctypes.byref(program), source.encode(), name.encode(), 0, None, None
            )
        )
        try:
            texts = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
            status = dll.nvrtcCompileProgram(program, len(options), texts)
            log = self._bytes(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            code = b"" if status else self._bytes(program, "CUBIN")
            return status, code, log
        finally:
            dll.nvrtcDestroyProgram(ctypes.byref(program))

    def _bytes(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._dll, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._dll, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw

    def _check(self, status: int) -> None:
        if status:
            text = self._dll.nvrtcGetErrorString(status).decode()
            raise TinycompError(f"NVRTC {self.version} fails: {text}", hint=_HINT)


@functools.cache
def library() -> Library:
    """The NVRTC of this machine.

    Raises:
        TinycompError: there is none.
    """
    for path in _candidates():
        builtins = sorted(glob.glob(str(Path(path).parent / "libnvrtc-builtins.so*")))
        try:
            for dependency in builtins[:1]:  # libnvrtc looks for it by name only
                ctypes.CDLL(dependency, mode=ctypes.RTLD_GLOBAL)
            return Library(path, ctypes.CDLL(path))
        except OSError:
            continue
    raise TinycompError("NVRTC, which compiles CUDA kernels, is not installed", hint=_HINT)


def _candidates() -> Iterator[str]:
    """Paths of libnvrtc: the PyPI package, the CUDA toolkit, the system's libraries."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(glob.glob(f"{folder}/*/lib/libnvrtc.so.*"), reverse=True)
    homes = [os.environ.get(n, "") for n in ("CUDA_PATH", "CUDA_HOME")]
    for home in [*filter(None, homes), *sorted(glob.glob("/usr/local/cuda*"), reverse=True)]:
        yield from sorted(glob.glob(f"{home}/lib64/libnvrtc.so*"), reverse=True)
    found = ctypes.util.find_library("nvrtc")
    if found:
        yield found


def describe() -> str:
    """The version and place of NVRTC, or that it is missing, in one line."""
    try:
        found = library()
    except TinycompError:
        return "not found: pip install nvidia-cuda-nvrtc"
    newest = found.architectures[-1] if found.architectures else "none"
    return f"{found.version} ({found.path}), architectures up to sm_{newest}"
