"""What machine to compile for.

>>> Target.parse("llvm -mcpu=x86-64-v3").cpu
'x86-64-v3'
"""

from __future__ import annotations

import difflib
import functools
import os
import platform
import re
from collections.abc import Collection
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
        programmatic: whether CUDA kernels may be launched before those ahead of them end (-pdl).
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
    programmatic: bool = False

    def lanes(self, dtype: DType) -> int:
        """Elements of `dtype` in one vector register."""
        return max(1, self.vector_bits // dtype.bits)

    def has_feature(self, name: str) -> bool:
        """Whether instructions of this LLVM feature may be used, of those in `_FEATURES`.

        >>> Target.parse("llvm -mcpu=znver4").has_feature("avx512vnni")
        True
        """
        for feature in reversed(self.features.split(",")):
            if feature.lstrip("+-") == name:
                return feature.startswith("+")
        return self.cpu in _FEATURES.get(name, "").split()

    @staticmethod
    def host() -> Target:
        """This machine's CPU with all its features."""
        return _host()

    @staticmethod
    def parse(text: str | Target) -> Target:
        """A target from text: `llvm`, `llvm -mcpu=NAME [-mtriple=T] [-mattr=+a,-b]`, `cpu`,
        `cuda [-arch=sm_90a] [-pdl]`; without an architecture the compiler chooses one.

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
            if name not in ("-mcpu", "-mtriple", "-mattr", "-arch", "-pdl"):
                raise TinycompError(
                    f"unknown option {option!r} of target {text!r}",
                    hint="known options: -mcpu=, -mtriple=, -mattr=, -arch=, -pdl",
                )
            values[name] = value
        if kind == "cuda":
            arch = _cuda_arch(values.get("-arch", ""))
            if "-pdl" in values and arch and int(arch.removeprefix("sm_").rstrip("af")) < 90:
                raise TinycompError(f"-pdl (programmatic launches) needs sm_90, not {arch}")
            return Target("cuda", arch=arch, programmatic="-pdl" in values)
        if not values:
            return Target.host()
        return _cross(values.get("-mcpu", ""), values.get("-mtriple", ""), values.get("-mattr", ""))

    def __str__(self) -> str:
        if self.kind == "cuda":
            arch = f" -arch={self.arch}" if self.arch else ""
            return f"cuda{arch}{' -pdl' if self.programmatic else ''}"
        return f"llvm -mcpu={self.cpu} ({self.triple}, {self.vector_bits}-bit vectors)"


def _cuda_arch(arch: str) -> str:
    """A name of NVIDIA's form; which of them exist, the compiler knows."""
    if arch and not re.fullmatch(r"sm_[1-9]\d{1,2}[af]?", arch):
        raise TinycompError(
            f"unknown architecture {arch!r}",
            hint="GPUs are named sm_80 (A100), sm_86, sm_89, sm_90a (H100, H200), sm_100a (B200); "
            "`tinycomp doctor` shows that of this machine",
        )
    return arch


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


_WIDTHS = {  # (vector bits, registers) -> the CPUs by LLVM's names
    (128, 16): "x86-64 x86-64-v2 generic core2 penryn nehalem westmere sandybridge ivybridge "
    "silvermont goldmont goldmont-plus tremont k8 k8-sse3 amdfam10 barcelona btver1 btver2 bdver1 "
    "bdver2 bdver3",
    (256, 16): "x86-64-v3 haswell broadwell skylake alderlake raptorlake meteorlake arrowlake "
    "arrowlake-s lunarlake pantherlake gracemont sierraforest grandridge clearwaterforest bdver4 "
    "znver1 znver2 znver3",
    (512, 32): "x86-64-v4 skylake-avx512 cascadelake cooperlake cannonlake icelake-client "
    "icelake-server rocketlake tigerlake sapphirerapids emeraldrapids graniterapids "
    "graniterapids-d diamondrapids znver4 znver5",
}
_WITH_VNNI = "sapphirerapids emeraldrapids graniterapids graniterapids-d diamondrapids znver5"
_FEATURES = {  # instructions that kernels may ask for by name -> the CPUs that have them
    "avx512vnni": "cascadelake cooperlake icelake-client icelake-server rocketlake tigerlake "
    f"znver4 {_WITH_VNNI}",
    "avxvnni": "alderlake raptorlake meteorlake arrowlake arrowlake-s lunarlake pantherlake "
    f"gracemont sierraforest grandridge clearwaterforest {_WITH_VNNI}",
    "dotprod": "cortex-a55 cortex-a75 cortex-a76 cortex-a77 cortex-a78 cortex-x1 cortex-x2 "
    "cortex-x3 cortex-x4 neoverse-n1 neoverse-n2 neoverse-v1 neoverse-v2 apple-m1 apple-m2 "
    "apple-m3 apple-m4 ampere1",
}
_X86 = {cpu: width for width, cpus in _WIDTHS.items() for cpu in cpus.split()}
_ARM = frozenset(
    ["generic", "cortex-a53", "cortex-a55", "cortex-a57", "cortex-a72", "cortex-a73", "cortex-a75",
     "cortex-a76", "cortex-a77", "cortex-a78", "cortex-x1", "cortex-x2", "cortex-x3", "cortex-x4",
     "neoverse-n1", "neoverse-n2", "neoverse-v1", "neoverse-v2", "apple-m1", "apple-m2",
     "apple-m3", "apple-m4", "ampere1", "a64fx"]
)  # fmt: skip


def _cross(cpu: str, triple: str, features: str) -> Target:
    """A target of these names. LLVM ends the process over some wrong ones, so they are checked."""
    host = _host()
    if cpu == "native":
        cpu, triple = host.cpu, triple or host.triple
        features = features or host.features
    if not triple:
        is_arm = cpu in _ARM and cpu != "generic"
        triple = ("aarch64" if is_arm else "x86_64") + "-unknown-linux-gnu" if cpu else host.triple
    arch = triple.partition("-")[0]
    if arch not in ("x86_64", "aarch64", "arm64"):
        raise TinycompError(
            f"cannot generate code for {arch!r}", hint="-mtriple must begin with x86_64 or aarch64"
        )
    is_host = arch == host.triple.partition("-")[0]
    cpu = cpu or (host.cpu if is_host else "generic")
    if cpu == host.cpu and triple == host.triple and features in ("", host.features):
        return host
    known = _X86 if arch == "x86_64" else dict.fromkeys(_ARM, (128, 32))
    _check_name("CPU", cpu, {*known, *([host.cpu] if is_host else [])})
    if is_host:
        for feature in filter(None, features.split(",")):
            _check_name("feature", feature.lstrip("+-"), _host_feature_names())
    bits, registers = known.get(cpu, (host.vector_bits, host.vector_registers))
    return Target("llvm", triple, cpu, features, bits, registers)


def _check_name(what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, 3)
        raise TinycompError(
            f"unknown {what} {name!r} in the target",
            hint=f"did you mean {' or '.join(close)}?" if close else "names are those of LLVM",
        )


@functools.cache
def _host_feature_names() -> frozenset[str]:
    import llvmlite.binding as llvm

    return frozenset(llvm.get_host_cpu_features())


def default_num_threads() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
