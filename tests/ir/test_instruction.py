"""Machine instructions in the loop IR: types, meaning, native code, and machines without them."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.codegen.jit import load_object
from tinycomp.codegen.llvm import assembly, compile_kernels, emit_kernel
from tinycomp.diagnostics import TinycompError, VerifyError
from tinycomp.dtype import DType
from tinycomp.ir.expr import Broadcast, Load, Ramp, Var, const
from tinycomp.ir.instruction import (
    SDOT,
    UDOT,
    VPDPBUSD_128,
    VPDPBUSD_256,
    VPDPBUSD_512,
    InstructionCall,
    reinterpret,
    reinterpret_array,
    sum_lanes,
)
from tinycomp.target import _FEATURES, Target
from tinycomp.tir.interpreter import run
from tinycomp.tir.nodes import Buffer, For, ForKind, PrimFunc, Store
from tinycomp.tir.verify import verify

DOTS = (VPDPBUSD_128, VPDPBUSD_256, VPDPBUSD_512, SDOT, UDOT)


def kernel(instruction):
    """out = instruction(total, x, y) on whole vectors."""
    types = (*instruction.operands, instruction.result)
    buffers = [Buffer(n, (const(t.lanes),), t.dtype) for n, t in zip("txyz", types, strict=True)]
    places = [(Ramp(const(0), const(1), t.lanes),) for t in types]
    loads = [Load(b, p, None) for b, p in zip(buffers, places, strict=True)]
    body = Store(buffers[3], places[3], instruction(*loads[:3]))
    func = PrimFunc("dot", tuple(buffers), 1, body)
    verify(func, lowered=True)
    return func


def operands(instruction, seed):
    rng = np.random.default_rng(seed)
    arrays = []
    for t in instruction.operands:
        low, high = int(t.dtype.min_value), int(t.dtype.max_value)
        arrays.append(rng.integers(low, high, t.lanes, t.dtype.numpy, endpoint=True))
    return arrays


def by_definition(total, x, y):
    """In Python's integers, wrapped at the end: the sum does not saturate."""
    lanes = [
        int(total[i]) + sum(int(x[4 * i + q]) * int(y[4 * i + q]) for q in range(4))
        for i in range(len(total))
    ]
    return np.array([v & 0xFFFFFFFF for v in lanes], np.uint32).view(total.dtype)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("instruction", DOTS, ids=lambda i: i.llvm_name)
def test_meaning_and_native_code_agree_with_the_definition(instruction, seed):
    func, arrays = kernel(instruction), operands(instruction, seed)
    expected = by_definition(*arrays)
    result = np.zeros_like(expected)
    run(func, [*arrays, result])
    np.testing.assert_array_equal(result, expected)
    host = Target.host()
    if any(map(host.has_feature, instruction.features)):
        native = _native(func, host)
        result[:] = 0
        native(0, *(a.ctypes.data for a in (*arrays, result)))
        np.testing.assert_array_equal(result, expected)


def _native(func, target):
    import ctypes

    code = load_object(compile_kernels([emit_kernel(func, target).llvm_text], target), {})
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 5)(code.address("dot"))
    return lambda *args: (function(*args), code)[1]


@pytest.mark.parametrize(
    ("instruction", "cpu", "mnemonic"),
    [(VPDPBUSD_512, "cascadelake", "zmm"), (VPDPBUSD_256, "alderlake", "ymm"),
     (VPDPBUSD_128, "znver5", "xmm"), (SDOT, "neoverse-v1", "16b"), (UDOT, "cortex-a76", "16b")],
)  # fmt: skip
def test_the_machine_code_has_the_instruction(instruction, cpu, mnemonic):
    target = Target.parse(f"llvm -mcpu={cpu}")
    text = assembly(emit_kernel(kernel(instruction), target).llvm_text, target)
    (line,) = [line for line in text.splitlines() if instruction.name in line]
    assert mnemonic in line


def test_every_cpu_with_a_feature_has_its_instructions():
    """In a process of its own: LLVM ends it where an instruction does not exist."""
    source = f"""
import sys
sys.path.insert(0, {str(__file__.rpartition("/")[0])!r})
from test_instruction import DOTS, Target, _FEATURES, assembly, emit_kernel, kernel
for feature, cpus in _FEATURES.items():
    for cpu in cpus.split():
        target = Target.parse("llvm -mcpu=" + cpu)
        for dot in DOTS:
            if feature in dot.features:
                assert dot.name in assembly(emit_kernel(kernel(dot), target).llvm_text, target, 0)
print("all", len(_FEATURES))
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.stdout == f"all {len(_FEATURES)}\n", done.stderr[-2000:]


def test_features_of_targets():
    assert Target.parse("llvm -mcpu=znver4").has_feature("avx512vnni")
    assert not Target.parse("llvm -mcpu=znver4").has_feature("avxvnni")
    assert not Target.parse("llvm -mcpu=x86-64-v4").has_feature("avx512vnni")
    if Target.host().triple.startswith("x86_64"):
        assert Target.parse("llvm -mcpu=x86-64-v4 -mattr=+avx512vnni").has_feature("avx512vnni")
        assert not Target.parse("llvm -mcpu=znver4 -mattr=-avx512vnni").has_feature("avx512vnni")


def test_a_machine_without_the_feature_is_an_error():
    with pytest.raises(TinycompError, match="vpdpbusd needs avx512vnni or avxvnni") as caught:
        emit_kernel(kernel(VPDPBUSD_256), Target.parse("llvm -mcpu=haswell"))
    assert caught.value.hint
    with pytest.raises(TinycompError, match="sdot needs dotprod"):
        emit_kernel(kernel(SDOT), Target.parse("llvm -mcpu=cortex-a72"))


def test_a_gpu_has_no_such_instruction():
    func = kernel(VPDPBUSD_512)
    threads = For(Var("i"), const(0), const(1), func.body, ForKind.THREAD, "threadIdx.x")
    with pytest.raises(TinycompError, match="vpdpbusd is an instruction of CPUs"):
        emit_cuda(replace(func, body=threads))


def test_operands_are_checked():
    x = Var("x", DType.UINT8)
    with pytest.raises(TypeError, match="takes 3 operands"):
        VPDPBUSD_512(x)
    with pytest.raises(TypeError, match="takes int8x64, not uint8x64"):
        VPDPBUSD_512(0, x, x)
    with pytest.raises(TypeError, match="takes uint8x64, not uint8x16"):
        VPDPBUSD_512(0, Broadcast(x, 16), const(1, "int8"))
    assert VPDPBUSD_512(0, x, const(1, "int8")) is VPDPBUSD_512(0, x, const(1, "int8"))
    wrong = InstructionCall(VPDPBUSD_128, (const(0, "int32"),) * 3)
    out = Buffer("z", (const(4),), DType.INT32)
    body = Store(out, (Ramp(const(0), const(1), 4),), wrong)
    with pytest.raises(VerifyError, match="vpdpbusd does not take"):
        verify(PrimFunc("f", (out,), 1, body), lowered=True)


def test_reinterpret():
    bytes8 = Broadcast(Var("x", DType.UINT8), 8)
    assert (reinterpret(bytes8, "int32").lanes, reinterpret(bytes8, "int64").lanes) == (2, 1)
    assert reinterpret(bytes8, "uint8") is bytes8
    assert str(reinterpret(bytes8, "float64")) == "reinterpret_float64(x8(x))"
    assert reinterpret_array(np.arange(4, dtype=np.uint8), DType.INT32) == 0x03020100
    assert reinterpret_array(np.float32(1), DType.INT32) == 0x3F800000
    assert reinterpret_array(np.int32(1), DType.INT8).tolist() == [1, 0, 0, 0]
    with pytest.raises(TypeError, match="do not make whole int64"):
        reinterpret(Broadcast(Var("x", DType.UINT8), 4), "int64")
    with pytest.raises(TypeError, match="float16 cannot be reinterpreted"):
        reinterpret(Broadcast(Var("x", DType.UINT16), 4), "float16")


def test_sum_lanes_of_a_scalar_is_itself():
    x = Var("x", DType.FLOAT32)
    assert sum_lanes(x) is x
    assert str(sum_lanes(Broadcast(x, 4))) == "reducelanes(x4(x))"
