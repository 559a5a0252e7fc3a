"""`tinycomp doctor`: what is found on this machine."""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import os
import platform
import sys
from typing import Any

from .. import __version__
from ..config import Config
from .common import add_json_option, human_bytes, print_json, print_values

_PACKAGES = (
    "numpy",
    "onnx",
    "llvmlite",
    "ml_dtypes",
    "onnxruntime",
    "openvino",
    "cupy-cuda13x",
    "nvidia-cuda-nvrtc",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    found = {**_versions(), **_cpu(), **_cuda(), **_cache()}
    if args.json:
        print_json(found)
    else:
        print_values(found)
    return 0


def _versions() -> dict[str, Any]:
    import llvmlite.binding as llvm

    versions = {"tinycomp": __version__, "python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    versions["LLVM"] = ".".join(map(str, llvm.llvm_version_info))
    return versions


def _cpu() -> dict[str, Any]:
    from ..target import Target, default_num_threads

    host = Target.host()
    features = sorted(f[1:] for f in host.features.split(",") if f.startswith("+"))
    return {
        "platform": platform.platform(),
        "CPU": f"{host.cpu} ({host.triple})",
        "vectors": f"{host.vector_bits} bits, {host.vector_registers} registers",
        "caches": f"L1 {human_bytes(host.l1_bytes)}, L2 {human_bytes(host.l2_bytes)} per core",
        "usable cores": default_num_threads(),
        "CPU features": " ".join(features),
    }


def _cuda() -> dict[str, Any]:
    from ..codegen.nvrtc import describe
    from ..runtime.cuda_driver import present_arch

    driver = _cuda_driver()
    arch = present_arch()
    return {"CUDA driver": f"{driver}, {arch}" if arch else driver, "NVRTC": describe()}


def _cuda_driver() -> str:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "not found"
    version, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return "found, but it does not start"
    major, minor = version.value // 1000, version.value % 1000 // 10
    return f"CUDA {major}.{minor}, {count.value} devices"


def _cache() -> dict[str, Any]:
    from ..runtime.cache import Cache

    config = Config.from_environment()
    if not config.cache:
        return {"cache": "off (TINYCOMP_CACHE=0)"}
    entries = Cache.from_config(config).entries()
    existing = config.cache_dir
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    state = "" if os.access(existing, os.W_OK) else ", not writable"
    used = human_bytes(sum(size for _, size, _ in entries))
    return {
        "cache": f"{config.cache_dir}: {len(entries)} entries, {used} of "
        f"{human_bytes(config.cache_limit_bytes)}{state}"
    }
