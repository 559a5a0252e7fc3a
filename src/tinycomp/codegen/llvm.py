"""Kernels to LLVM IR, and LLVM IR to object code.

>>> from tinycomp.tir.nodes import Buffer, For, PrimFunc, Store
>>> from tinycomp.ir.expr import Load, Var, const
>>> from tinycomp.dtype import DType
>>> A, B = (Buffer(n, (const(8),), DType.FLOAT32) for n in "AB")
>>> i = Var("i")
>>> twice = Load(A, (i,), None) * 2.0
>>> func = PrimFunc("twice", (A, B), 1, For(i, const(0), const(8), Store(B, (i,), twice)))
>>> kernel = emit_kernel(func, Target.host())
>>> kernel.workspace_bytes, kernel.can_fail
(0, False)
>>> type(compile_kernels([kernel.llvm_text], Target.host()))
<class 'bytes'>
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import llvmlite.binding as binding

from ..diagnostics import InternalError
from ..ir.expr import Var, as_expr, as_int
from ..target import Target
from ..tir.nodes import For, ForKind, PrimFunc
from ..tir.sizes import evaluate
from ..tir.tree import statements
from .builder import ModuleBuilder
from .machine import target_machine
from .statements import emit_kernel_body
from .workspace import Bytes, plan_workspace


@dataclass(frozen=True, slots=True)
class KernelIR:
    """A kernel as LLVM text, and what its caller must provide.

    The kernel takes the values of `sizes`, and a workspace pointer, 64-byte aligned, if
    `has_workspace`.

    Attributes:
        sizes: the symbolic sizes of the function.
        shared, private: bytes of the workspace, once and for each thread; over `sizes`.
    """

    name: str
    llvm_text: str
    shared: Bytes
    private: Bytes
    can_fail: bool
    is_threaded: bool
    sizes: tuple[Var, ...] = ()

    @property
    def workspace_bytes(self) -> int:
        """`shared` of a kernel without symbolic sizes."""
        return as_int(as_expr(self.shared))

    @property
    def workspace_bytes_per_thread(self) -> int:
        """`private` of a kernel without symbolic sizes."""
        return as_int(as_expr(self.private))

    @property
    def has_workspace(self) -> bool:
        return self.shared != 0 or self.private != 0

    def workspace_at(self, sizes: Sequence[int], num_threads: int) -> int:
        """Bytes of the workspace in a call with these values of the sizes."""
        values = dict(zip(self.sizes, sizes, strict=True))
        shared, private = (evaluate(as_expr(n), values) for n in (self.shared, self.private))
        return shared + num_threads * private


def emit_kernel(func: PrimFunc, target: Target) -> KernelIR:
    """The native form of a lowered function.

    `func.attrs` may hold "aligned": every parameter is 64-byte aligned; "inplace": an output may
    share memory with an input.

    Raises:
        TinycompError: the function uses an instruction that the target lacks.
        InternalError: the function holds statements that lowering should have removed.
    """
    module = new_module(target)
    workspace = plan_workspace(func.body)
    can_fail = emit_kernel_body(module, func, workspace)
    return KernelIR(
        func.name,
        module.text(),
        workspace.shared_bytes,
        workspace.private_bytes,
        can_fail,
        any(isinstance(s, For) and s.kind is ForKind.PARALLEL for s in statements(func.body)),
        func.sizes,
    )


def new_module(target: Target) -> ModuleBuilder:
    """An empty module for `target`."""
    has_avx512 = target.triple.startswith("x86_64") and target.vector_bits >= 512
    attributes = 'nounwind "prefer-vector-width"="512"' if has_avx512 else "nounwind"
    return ModuleBuilder(
        target.triple,
        has_fma(target),
        has_scalef=has_avx512,
        function_attributes=attributes,
        target=target,
    )


def has_fma(target: Target) -> bool:
    """Whether a fused multiply-add is one instruction."""
    return not target.triple.startswith("x86_64") or target.vector_bits >= 256


def compile_kernels(texts: Sequence[str], target: Target, opt: int = 3) -> bytes:
    """One object file from modules of LLVM text, optimised together.

    Args:
        opt: LLVM optimisation level, 0 to 3.
    """
    machine = target_machine(target, opt)
    return machine.emit_object(_optimised(texts, machine, opt))


def assembly(text: str, target: Target, opt: int = 3) -> str:
    """The assembly of one module, for people."""
    machine = target_machine(target, opt)
    machine.set_asm_verbosity(True)  # comments name loops and spilled registers
    return machine.emit_assembly(_optimised([text], machine, opt))


def _optimised(texts: Sequence[str], machine: binding.TargetMachine, opt: int) -> binding.ModuleRef:
    context = binding.create_context()
    modules = []
    for text in texts:
        try:
            modules.append(binding.parse_assembly(text, context))
            modules[-1].verify()
        except RuntimeError as error:
            raise InternalError(f"LLVM rejects generated code: {error}") from error
    module = modules[0]
    for other in modules[1:]:
        module.link_in(other)
    options = binding.create_pipeline_tuning_options(speed_level=opt)
    options.loop_vectorization = options.slp_vectorization = opt >= 2
    options.loop_unrolling = False  # schedules unroll; LLVM's own takes a quarter of its time
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module
