"""Compile a PrimFunc and call it with NumPy arrays."""

from __future__ import annotations

import ctypes

import numpy as np

from tinycomp.codegen.jit import load_object, pool_runtime
from tinycomp.codegen.llvm import compile_kernels, emit_kernel
from tinycomp.codegen.runtime_abi import POOL_ENTER, RuntimeState
from tinycomp.dtype import DType
from tinycomp.ir.expr import Expr, Load, Var, as_expr, const
from tinycomp.target import Target
from tinycomp.tir.nodes import Buffer, For, ForKind, PrimFunc, Scope, Stmt, Store


def buffer(name: str, shape, dtype="float32", scope: Scope = Scope.GLOBAL) -> Buffer:
    return Buffer(name, tuple(const(d) for d in shape), DType(dtype), scope)


def load(source: Buffer, *indices, predicate: Expr | None = None) -> Expr:
    return Load(source, tuple(as_expr(i) for i in indices), predicate)


def store(target: Buffer, indices, value: Expr, predicate: Expr | None = None) -> Stmt:
    return Store(target, tuple(as_expr(i) for i in indices), value, predicate)


def loop(var: Var, extent: int, body: Stmt, kind: ForKind = ForKind.SERIAL) -> Stmt:
    return For(var, const(0), const(extent), body, kind)


class Kernel:
    """A loaded kernel; calling it returns the runtime's error flag."""

    def __init__(self, func: PrimFunc, opt: int = 3) -> None:
        self.ir = emit_kernel(func, Target.host())
        objects = compile_kernels([self.ir.llvm_text], Target.host(), opt)
        self.loaded = load_object(objects, pool_runtime().imports)
        self.address = self.loaded.address(func.name)

    def __call__(self, *arrays: np.ndarray, num_threads: int = 1) -> int:
        runtime = RuntimeState(num_threads=num_threads, pool=pool_runtime().pool)
        enter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(pool_runtime().imports[POOL_ENTER])
        enter(ctypes.addressof(runtime))
        size = self.ir.workspace_bytes + num_threads * self.ir.workspace_bytes_per_thread
        pointers = [a.ctypes.data for a in arrays]
        space = np.empty(size + 64, np.uint8)
        if size:
            pointers.append(space.ctypes.data + -space.ctypes.data % 64)
        native = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (len(pointers) + 1))(self.address)
        native(ctypes.addressof(runtime), *pointers)
        return runtime.error


def elementwise(function, arrays, out_dtype, count: int, lanes: int = 1) -> np.ndarray:
    """`function(*loads)` for every element of the arrays, `lanes` at a time."""
    from tinycomp.ir.expr import Ramp

    params = [buffer(f"p{i}", (count,), DType.of(a.dtype)) for i, a in enumerate(arrays)]
    out = buffer("out", (count,), out_dtype)
    i = Var("i")
    index = Ramp(i * lanes, const(1), lanes) if lanes > 1 else i
    value = function(*(load(p, index) for p in params))
    body = loop(i, count // lanes, store(out, (index,), value))
    kernel = Kernel(PrimFunc("f", (*params, out), 1, body))
    result = np.empty(count, DType(out_dtype).numpy)
    assert kernel(*arrays, result) == 0
    return result
