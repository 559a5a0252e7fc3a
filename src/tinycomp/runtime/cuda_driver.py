"""The CUDA driver, as far as it is asked without CuPy: whether there is a GPU, and which."""

from __future__ import annotations

import ctypes
import dataclasses
import functools

from ..target import Target

DEFAULT_ARCH = "sm_90a"
"""Compiled for where no GPU is present: the H100 and H200, with their own instructions."""

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@functools.cache
def present_arch() -> str:
    """The architecture of the first GPU, such as "sm_90a"; empty if there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    count, device = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return ""
    driver.cuDeviceGet(ctypes.byref(device), 0)
    values = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return ""
        values.append(value.value)
    major, minor = values
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


def choose_target(target: str | Target) -> Target:
    """The target meant: "cuda" alone is the architecture of this machine's GPU, if there is one."""
    parsed = Target.parse(target)
    if parsed.kind == "cuda" and not parsed.arch:
        return dataclasses.replace(parsed, arch=present_arch() or DEFAULT_ARCH)
    return parsed
