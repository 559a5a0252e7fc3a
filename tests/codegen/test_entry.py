"""The model's entry function: steps, branches, loops, errors and time stamps."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import numpy as np
import pytest
from tests.codegen.helpers import buffer, load, store

from tinycomp.codegen.entry import emit_entry
from tinycomp.codegen.jit import load_object, pool_runtime
from tinycomp.codegen.llvm import compile_kernels, emit_kernel
from tinycomp.codegen.runtime_abi import MAIN, RuntimeState
from tinycomp.dtype import DType
from tinycomp.ir.expr import Call, const
from tinycomp.relay.plan import (
    Branch,
    BufferRef,
    Copy,
    ExecutionPlan,
    KernelCall,
    Parallel,
    Repeat,
    Space,
)
from tinycomp.target import Target
from tinycomp.tir.nodes import PrimFunc


def kernel(name: str, *dtypes: str, value) -> PrimFunc:
    """One-element buffers; the last one receives `value(*loads of the others)`."""
    buffers = tuple(buffer(f"p{i}", (1,), d) for i, d in enumerate(dtypes))
    body = store(buffers[-1], (const(0),), value(*(load(b, 0) for b in buffers[:-1])))
    return PrimFunc(name, buffers, 1, body)


def checked(x):
    return Call("checked_index", (x, const(100)), DType.INT64)


KERNELS = (
    kernel("increment", "int64", "int64", value=lambda x: x + 1),
    kernel("add", "int64", "int64", "int64", value=lambda x, y: x + y),
    kernel("double", "int64", "int64", value=lambda x: x * 2),
    kernel("less", "int64", "int64", "bool", value=lambda x, y: x < y),
    kernel("check", "int64", "int64", value=lambda x: checked(x)),
)  # fmt: skip


def ref(space: str, position: int = 0, nbytes: int = 8, offset: int = 0) -> BufferRef:
    return BufferRef(Space(space), position, nbytes, offset)


X, LIMIT, ACC, FLAG, OUT = (
    ref("input"), ref("constant", 64), ref("arena"), ref("arena", 64, 1), ref("output")
)  # fmt: skip


class Model:
    def __init__(self, *steps) -> None:
        target = Target.host()
        plan = ExecutionPlan(tuple(steps), (), (), 128, 128, 128)
        kernels = [emit_kernel(f, target).llvm_text for f in KERNELS]
        code = compile_kernels([*kernels, emit_entry(plan, target)], target, 1)
        self.loaded = load_object(code, pool_runtime().imports)
        native = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_void_p] * 6)
        self.main = native(self.loaded.address(MAIN))

    def __call__(
        self, x: int, profile: np.ndarray | None = None, threads: int = 1
    ) -> tuple[int, int]:
        """The entry's result and output 0, for input x and the constant 50."""
        arrays = [np.array([x]), np.array([-1])]
        constants, arena = np.full(16, 50), np.zeros(16, "i8")
        pointers = [(ctypes.c_void_p * 1)(a.ctypes.data) for a in arrays]
        runtime = RuntimeState(num_threads=threads, pool=pool_runtime().pool)
        status = self.main(
            ctypes.addressof(runtime), *(ctypes.addressof(p) for p in pointers),
            constants.ctypes.data, arena.ctypes.data,
            None if profile is None else profile.ctypes.data,
        )  # fmt: skip
        return status, int(arrays[1][0])


def test_calls_copies_and_profile() -> None:
    calls = [KernelCall("double", (ACC, ACC)), KernelCall("increment", (ACC, ACC))]
    model = Model(Copy(X, ACC), *calls, Copy(ACC, OUT))
    profile = np.zeros(3, "i8")
    assert model(5, profile) == (0, 11)
    assert (np.diff(profile) >= 0).all()
    assert profile[0] > 0


@pytest.mark.parametrize(("x", "want"), [(3, 6), (60, 61)])
def test_branch(x: int, want: int) -> None:
    model = Model(
        KernelCall("less", (X, LIMIT, FLAG)),
        Branch(FLAG, (KernelCall("double", (X, OUT)),), (KernelCall("increment", (X, OUT)),)),
    )
    assert model(x) == (0, want)


def test_repeat_with_branch_inside() -> None:
    below = (KernelCall("less", (ACC, LIMIT, FLAG)),)
    body = (Branch(FLAG, (KernelCall("double", (ACC, ACC)),), ()),)
    model = Model(Copy(X, ACC), Repeat(below, FLAG, body), Copy(ACC, OUT))
    assert model(3) == (0, 96)
    assert model(60) == (0, 60)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_branches_run_beside_each_other(threads: int) -> None:
    places = [ref("arena", 8 * i) for i in range(4)]
    branches = tuple(
        (KernelCall("double", (X, place)), *[KernelCall("increment", (place, place))] * count)
        for count, place in enumerate(places)
    )
    sums = [KernelCall("add", (ACC, place, ACC)) for place in places[1:]]
    model = Model(Parallel(branches), *sums, Copy(ACC, OUT))
    expected = (0, 4 * 2 * 7 + 1 + 2 + 3)
    for _ in range(50):
        assert model(7, threads=threads) == expected
    profile = np.zeros(14, "i8")
    assert model(7, profile, threads) == expected
    assert (np.diff(profile) >= 0).all()


def test_failing_call_stops_the_model() -> None:
    model = Model(
        KernelCall("increment", (X, ACC)),
        KernelCall("check", (ACC, ACC), can_fail=True),
        KernelCall("double", (ACC, OUT)),
    )
    assert model(4) == (0, 10)
    assert model(100) == (2, -1)


def test_thousands_of_steps_and_deep_nesting() -> None:
    calls = [KernelCall("increment", (ACC, ACC)) for _ in range(1600)]
    model = Model(Copy(X, ACC), *calls, Copy(ACC, OUT))
    assert model(1) == (0, 1601)
    steps: tuple = (KernelCall("increment", (ACC, ACC)),)
    for _ in range(1100):
        steps = (Branch(FLAG, steps, ()),)
    nested = Model(Copy(X, ACC), KernelCall("less", (X, LIMIT, FLAG)), *steps, Copy(ACC, OUT))
    assert nested(1) == (0, 2)


def test_interpreter_exits_cleanly() -> None:
    """Workers of the pool are asleep or spinning when the interpreter ends."""
    program = (
        "from tests.codegen.test_kernels import *\n"
        "kernel = Kernel(parallel_function(500))\n"
        "assert check_parallel(kernel, 5)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
