"""`tinycomp doctor`: what is found on this machine."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
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
    from ..codegen.cuda import nvrtc
    from ..runtime.cuda.driver import describe

    found: dict[str, Any] = {**describe(), "NVRTC": nvrtc.describe()}
    return {**found, **cuda_advice(found["CUDA driver"], found["NVRTC"])}


def cuda_advice(driver: str, nvrtc: str) -> dict[str, str]:
    """What does not go together, from the lines about the driver and NVRTC.

    >>> cuda_advice("CUDA 12.4", "13.0 (...)")
    {'problem': 'code by NVRTC 13 needs a driver for CUDA 13: update it, or install nvidia-cuda-nvrtc-cu12'}
    """  # noqa: E501
    supported = re.match(r"CUDA (\d+)\.", driver)
    makes = re.match(r"(\d+)\.", nvrtc)
    if supported is None or makes is None or int(makes[1]) <= int(supported[1]):
        return {}
    return {
        "problem": f"code by NVRTC {makes[1]} needs a driver for CUDA {makes[1]}: update it, or "
        f"install nvidia-cuda-nvrtc-cu{supported[1]}"
    }


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
