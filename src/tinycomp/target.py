"""What machine to compile for.

>>> Target.parse("llvm -mcpu=x86-64-v3").cpu
'x86-64-v3'
"""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass, replace

from .diagnostics import TinycompError
from .dtype import DType


@dataclass(frozen=True, slots=True)
class Target:
    """A code generator and the machine it generates for.

    Attributes:
        kind: "llvm" or "cuda".
        triple: LLVM target triple.
        cpu: LLVM CPU name.
        features: LLVM feature string, "+avx2,-avx512f,...".
        vector_bits: width of a vector register.
        vector_registers: how many there are; register tiles are chosen by this.
        l1_bytes, l2_bytes: data cache per core.
        arch: "sm_90a" and the like, for CUDA.
    """

    kind: str
    triple: str = ""
    cpu: str = ""
    features: str = ""
    vector_bits: int = 128
    vector_registers: int = 16
    l1_bytes: int = 32 * 1024
    l2_bytes: int = 1024 * 1024
    arch: str = ""

    def lanes(self, dtype: DType) -> int:
        """Elements of `dtype` in one vector register."""
        return max(1, self.vector_bits // dtype.bits)

    @staticmethod
    def host() -> Target:
        """This machine's CPU with all its features."""
        return _host()

    @staticmethod
    def parse(text: str | Target) -> Target:
        """A target from text: `llvm`, `llvm -mcpu=NAME [-mtriple=T] [-mattr=+a,-b]`, `cpu`,
        `cuda [-arch=sm_90a]`; without an architecture the compiler chooses one.

        Raises:
            TinycompError: unknown kind or option.
        """
        if isinstance(text, Target):
            return text
        kind, *options = text.split()
        if kind not in ("llvm", "cpu", "cuda"):
            raise TinycompError(
                f"unknown target {text!r}", hint='use "llvm", "llvm -mcpu=NAME" or "cuda"'
            )
        values: dict[str, str] = {}
        for option in options:
            name, _, value = option.partition("=")
            if name not in ("-mcpu", "-mtriple", "-mattr", "-arch"):
                raise TinycompError(
                    f"unknown option {option!r} of target {text!r}",
                    hint="known options: -mcpu=, -mtriple=, -mattr=, -arch=",
                )
            values[name] = value
        if kind == "cuda":
            return Target("cuda", arch=values.get("-arch", ""))
        if not values:
            return Target.host()
        return _cross(values.get("-mcpu", ""), values.get("-mtriple", ""), values.get("-mattr", ""))

    def __str__(self) -> str:
        if self.kind == "cuda":
            return f"cuda -arch={self.arch}" if self.arch else "cuda"
        return f"llvm -mcpu={self.cpu} ({self.triple}, {self.vector_bits}-bit vectors)"


@functools.cache
def _host() -> Target:
    import llvmlite.binding as llvm  # loaded when first compiling, to keep imports fast

    features = llvm.get_host_cpu_features()
    target = Target(
        "llvm",
        triple=llvm.get_process_triple(),
        cpu=llvm.get_host_cpu_name(),
        features=features.flatten(),
        l1_bytes=_cache_bytes(1, 32 * 1024),
        l2_bytes=_cache_bytes(2, 1024 * 1024),
    )
    if features.get("avx512f"):
        return replace(target, vector_bits=512, vector_registers=32)
    if features.get("avx2") and features.get("fma"):
        return replace(target, vector_bits=256)
    is_arm = platform.machine() in ("aarch64", "arm64")
    return replace(target, vector_registers=32 if is_arm else 16)


def _cache_bytes(level: int, default: int) -> int:
    for index in range(6):
        folder = f"/sys/devices/system/cpu/cpu0/cache/index{index}"
        try:
            with (
                open(f"{folder}/level") as f,
                open(f"{folder}/type") as t,
                open(f"{folder}/size") as s,
            ):
                if int(f.read()) == level and t.read().strip() != "Instruction":
                    return int(s.read().strip().removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    return default


_CROSS = {  # cpu -> (vector bits, registers)
    "x86-64": (128, 16), "x86-64-v2": (128, 16), "x86-64-v3": (256, 16), "x86-64-v4": (512, 32),
    "haswell": (256, 16), "znver3": (256, 16), "skylake-avx512": (512, 32), "znver4": (512, 32),
    "znver5": (512, 32), "sapphirerapids": (512, 32), "icelake-server": (512, 32),
    "cortex-a72": (128, 32), "neoverse-n1": (128, 32), "neoverse-v1": (128, 32),
    "apple-m1": (128, 32),
}  # fmt: skip
_ARM_PREFIXES = ("cortex", "neoverse", "apple")


def _cross(cpu: str, triple: str, features: str) -> Target:
    host = _host()
    cpu = cpu or ("generic" if triple and triple != host.triple else host.cpu)
    if not triple:
        triple = (
            "aarch64-unknown-linux-gnu"
            if cpu.startswith(_ARM_PREFIXES)
            else "x86_64-unknown-linux-gnu"
        )
    if cpu == host.cpu and triple == host.triple and not features:
        return host
    bits, registers = _CROSS.get(cpu, (128, 32 if triple.startswith("aarch64") else 16))
    return Target("llvm", triple, cpu, features, bits, registers)


def default_num_threads() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
