"""A stage of a schedule: one computation, with the primitives that shape its loops.

The names and their meaning are TVM's; each primitive is described, with its loops before and
after, in its file in `tinycomp.tir.primitives`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..diagnostics import ScheduleError
from ..dtype import DType
from ..ir.expr import Expr, Var
from ..te.intrin import TensorIntrin
from ..te.tensor import ExternOp, IterKind, IterVar, Operation, Tensor
from .nodes import Block
from .primitives.affine import to_tokens
from .primitives.annotate import Bind, Parallel, Pragma, Unroll, Vectorize
from .primitives.compute_at import ComputeAt, ComputeRoot
from .primitives.decompose_reduction import DecomposeReduction
from .primitives.env_threads import EnvThreads
from .primitives.fuse import Fuse
from .primitives.inline import ComputeInline
from .primitives.pad import Pad
from .primitives.partition import Partition
from .primitives.reorder import Reorder
from .primitives.reverse_compute_at import ReverseComputeAt
from .primitives.reverse_compute_inline import ReverseComputeInline
from .primitives.rolling_buffer import RollingBuffer
from .primitives.split import Split
from .primitives.storage import DoubleBuffer, Pipeline, Prefetch, StorageAlign
from .primitives.store_predicate import SetStorePredicate
from .primitives.tensorize import Tensorize
from .primitives.transform_layout import TransformLayout, tokens_of_map
from .tree import block_of

if TYPE_CHECKING:
    from .schedule import Schedule

Axis = Var | IterVar | str


@dataclass(frozen=True)
class CachedTensor:
    """Handle of a stage made by cache_read, cache_write, rfactor and the like."""

    name: str
    dtype: DType


TensorLike = Tensor | CachedTensor


@dataclass(frozen=True)
class StageOp:
    """What a stage computes where no te operation says it: `axis` and `reduce_axis` name loops."""

    name: str
    axis: tuple[IterVar, ...]
    reduce_axis: tuple[IterVar, ...]


@dataclass(frozen=True)
class Stage:
    """One computation of a schedule, with TVM's primitives.

    An axis is given by name, by the handle that an earlier call returned, or as the axis of the
    te tensor.
    """

    schedule: Schedule
    tensor: TensorLike

    @property
    def block_name(self) -> str:
        return self.schedule.stage_name(self.tensor)

    @property
    def block(self) -> Block:
        return block_of(self.schedule.func, self.block_name)

    @property
    def op(self) -> Operation | StageOp:
        """The te operation, whose `axis` and `reduce_axis` name loops.

        A stage that was made or changed by cache_write, rfactor and the like has axes of its own.
        """
        if isinstance(self.tensor, Tensor) and isinstance(self.tensor.op, ExternOp):
            return self.tensor.op
        iter_vars = self.block.iter_vars
        if isinstance(self.tensor, Tensor):
            op = self.tensor.op
            axes = [*getattr(op, "axis", ()), *getattr(op, "reduce_axis", ())]
            if [(v.name, v.kind) for v in axes] == [(v.name, v.kind) for v in iter_vars]:
                return op
        named = [
            replace(v, var=b if isinstance(b, Var) else v.var)
            for v, b in zip(iter_vars, self.block.bindings, strict=True)
        ]
        reduced = tuple(v for v in named if v.kind is IterKind.REDUCE)
        return StageOp(self.block_name, tuple(v for v in named if v not in reduced), reduced)

    @property
    def axes(self) -> tuple[Var, ...]:
        """The loops around the stage, outermost first (leaf axes, and those it is computed at).

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> s = te.create_schedule(B)
        >>> s[B].axes
        (i, j)
        """
        return tuple(l.var for l in self.schedule.loops(self.block_name))

    @property
    def axis_names(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.axes)

    def axis(self, axis: Axis) -> Var:
        """A loop by name, by the axis of the te tensor, or itself."""
        return self.schedule.axis(self.block_name, axis)

    __getitem__ = axis

    def name_of(self, axis: Axis, call: str) -> str:
        """The name of an axis, for the step of a call."""
        if isinstance(axis, str):
            return axis
        name = self.block_name
        try:
            return self.schedule.axis(name, axis).name
        except ScheduleError as error:
            shown = axis.name if isinstance(axis, Var | IterVar) else ""
            text = f'"{shown}"' if shown else repr(axis)
            self.schedule.refuse(f's["{name}"].{call}({text})', name, shown, error)

    def _tokens(self, call: str, make: Callable[[], Any]) -> Any:
        """Index expressions as values, for the step of a call."""
        try:
            return make()
        except ScheduleError as error:
            name = self.block_name
            self.schedule.refuse(f's["{name}"].{call}(...)', name, "", error)

    def split(
        self,
        axis: Axis,
        factor: int | None = None,
        nparts: int | None = None,
        factors: Sequence[int | None] | None = None,
    ) -> tuple[Var, ...]:
        """Split a loop; returns (outer, inner), or as many axes as `factors` has.

        Args:
            axis: the loop.
            factor: the extent of the inner loop, or
            nparts: the extent of the outer loop, or
            factors: all extents, outermost first; one may be None, and is inferred.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> s = te.create_schedule(B)
        >>> s[B].split("i", factor=4)
        (i.outer, i.inner)
        >>> s[B].axes
        (i.outer, i.inner, j)
        """
        sizes = None if factors is None else tuple(factors)
        return self._do(Split(self.block_name, self.name_of(axis, "split"), factor, nparts, sizes))

    def tile(self, x: Axis, y: Axis, x_factor: int, y_factor: int) -> tuple[Var, Var, Var, Var]:
        """Two splits and a reorder: returns (x.outer, y.outer, x.inner, y.inner).

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> s = te.create_schedule(B)
        >>> s[B].tile("i", "j", 4, 2)
        (i.outer, j.outer, i.inner, j.inner)
        """
        with self.schedule.all_or_nothing():
            xo, xi = self.split(x, factor=x_factor)
            yo, yi = self.split(y, factor=y_factor)
            self.reorder(xo, yo, xi, yi)
        return xo, yo, xi, yi

    def fuse(self, *axes: Axis) -> Var:
        """Fuse nested loops, outermost first; returns the fused axis.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> s = te.create_schedule(B)
        >>> s[B].fuse("i", "j")
        i.j.fused
        >>> s[B].axes
        (i.j.fused,)
        """
        return self._do(Fuse(self.block_name, tuple(self.name_of(a, "fuse") for a in axes)))

    def reorder(self, *axes: Axis) -> None:
        """Put loops in this order, outermost first; others between them stay in place.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> s = te.create_schedule(B)
        >>> s[B].reorder("j", "i")
        >>> s[B].axes
        (j, i)
        """
        self._do(Reorder(self.block_name, tuple(self.name_of(a, "reorder") for a in axes)))

    def vectorize(self, axis: Axis) -> None:
        """Run the iterations of a spatial loop as vector lanes.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> s = te.create_schedule(B)
        >>> s[B].vectorize("j")
        >>> print(s.func.body)
        for i in range(8):
            for j in vectorized(6):
                with block("B"): i = i, j = j
                    B[i, j] = A[i, j] + 1f32
        """
        self._do(Vectorize(self.block_name, self.name_of(axis, "vectorize")))

    def unroll(self, axis: Axis) -> None:
        """Write the iterations of a loop out."""
        self._do(Unroll(self.block_name, self.name_of(axis, "unroll")))

    def parallel(self, axis: Axis) -> None:
        """Spread the iterations of a spatial loop over threads.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> s = te.create_schedule(B)
        >>> s[B].parallel("i")
        >>> print(s.func.body)
        for i in parallel(8):
            for j in range(6):
                with block("B"): i = i, j = j
                    B[i, j] = A[i, j] + 1f32
        """
        self._do(Parallel(self.block_name, self.name_of(axis, "parallel")))

    def bind(self, axis: Axis, thread: str) -> None:
        """Run a loop over a GPU thread axis, such as "threadIdx.x" or "vthread".

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> s = te.create_schedule(B)
        >>> s[B].bind("j", "threadIdx.x")
        >>> print(s.func.body)
        for i in range(8):
            for j in thread(6, "threadIdx.x"):
                with block("B"): i = i, j = j
                    B[i, j] = A[i, j] + 1f32
        """
        self._do(Bind(self.block_name, self.name_of(axis, "bind"), str(thread)))

    def pragma(self, axis: Axis, key: str, value: Any = True) -> None:
        """Attach a hint to a loop; the value is a number, a text or a bool.

        "auto_unroll_max_step": unroll this loop and those inside where they become at most so
        many statements. Keys that no pass knows stay in the text and change nothing.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> s = te.create_schedule(B)
        >>> s[B].pragma("j", "auto_unroll_max_step", 16)
        >>> print(s.func.body)
        for i in range(8):
            for j in range(6):  # auto_unroll_max_step=16
                with block("B"): i = i, j = j
                    B[i, j] = A[i, j] + 1f32
        """
        self._do(Pragma(self.block_name, self.name_of(axis, "pragma"), key, value))

    def compute_at(self, consumer: Stage | TensorLike | str, axis: Axis) -> None:
        """Compute just what each iteration of a consumer's loop needs, inside that loop.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> C = te.compute((8, 6), lambda i, j: B[i, j] * 2.0, name="C")
        >>> s = te.create_schedule(C)
        >>> s[B].compute_at(s[C], "i")
        >>> print(s.func.body)
        for i in range(8):
            for i_1 in range(1):
                for j in range(6):
                    with block("B"): i = i + i_1, j = j
                        B[i, j] = A[i, j] + 1f32
            for j in range(6):
                with block("C"): i = i, j = j
                    C[i, j] = B[i, j] * 2f32
        """
        stage = consumer if isinstance(consumer, Stage) else self.schedule[consumer]
        self._do(ComputeAt(self.block_name, stage.block_name, stage.name_of(axis, "compute_at")))

    def compute_inline(self) -> None:
        """Let readers compute the value themselves; the stage disappears.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> C = te.compute((8, 6), lambda i, j: B[i, j] * 2.0, name="C")
        >>> s = te.create_schedule(C)
        >>> s[B].compute_inline()
        >>> print(s.func.body)
        for i in range(8):
            for j in range(6):
                with block("C"): i = i, j = j
                    C[i, j] = (A[i, j] + 1f32) * 2f32
        """
        self._do(ComputeInline(self.block_name))

    def compute_root(self) -> None:
        """Compute the whole stage before its readers, as every stage starts."""
        self._do(ComputeRoot(self.block_name))

    def reverse_compute_at(self, producer: Stage | TensorLike | str, axis: Axis) -> None:
        """Compute this stage inside a loop of the stage that it reads.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> C = te.compute((8, 6), lambda i, j: B[i, j] * 2.0, name="C")
        >>> s = te.create_schedule(C)
        >>> s[C].reverse_compute_at(s[B], "i")
        >>> s[C].axes
        (i, i_1, j)
        """
        stage = producer if isinstance(producer, Stage) else self.schedule[producer]
        name = stage.name_of(axis, "reverse_compute_at")
        self._do(ReverseComputeAt(self.block_name, stage.block_name, name))

    def reverse_compute_inline(self) -> None:
        """Compute this stage in the loops of the one it reads, which disappears.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> C = te.compute((8, 6), lambda i, j: B[i, j] * 2.0, name="C")
        >>> s = te.create_schedule(C)
        >>> s[C].reverse_compute_inline()
        >>> print(s.func.body)
        for i in range(8):
            for j in range(6):
                with block("C"): i = i, j = j
                    C[i, j] = (A[i, j] + 1f32) * 2f32
        """
        self._do(ReverseComputeInline(self.block_name))

    def decompose_reduction(self, axis: Axis) -> CachedTensor:
        """Initialise in a nest of its own before a loop; returns the tensor of that stage.

        >>> from tinycomp import te
        >>> A, k = te.placeholder((8, 6), name="A"), te.reduce_axis((0, 6), name="k")
        >>> B = te.compute((8,), lambda i: te.sum(A[i, k], axis=k), name="B")
        >>> s = te.create_schedule(B)
        >>> s[B].decompose_reduction("k")
        CachedTensor(name='B.init', dtype=<DType.FLOAT32: 'float32'>)
        >>> s.stages
        ['B.init', 'B']
        """
        name = self.name_of(axis, "decompose_reduction")
        return self._do(DecomposeReduction(self.block_name, name))

    def transform_layout(self, index_map: Callable[..., Any]) -> None:
        """Store the element at `i, j, ...` at `index_map(i, j, ...)`, a tuple of indices.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> C = te.compute((8, 6), lambda i, j: B[i, j] * 2.0, name="C")
        >>> s = te.create_schedule(C)
        >>> s[B].transform_layout(lambda i, j: (j, i))
        >>> print(s.func.body)
        for i in range(8):
            for j in range(6):
                with block("B"): i = i, j = j
                    B[j, i] = A[i, j] + 1f32
        for i in range(8):
            for j in range(6):
                with block("C"): i = i, j = j
                    C[i, j] = B[j, i] * 2f32
        """
        name = self.schedule.buffer_name(self.tensor)
        rank = len(self.schedule.buffer(name).shape)
        tokens = self._tokens("transform_layout", lambda: tokens_of_map(index_map, rank))
        self._do(TransformLayout(name, tokens))

    def pad(self, axis: Axis, multiple: int) -> None:
        """Round the extent of an axis up, so that tiles divide it.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> C = te.compute((8, 6), lambda i, j: B[i, j] * 2.0, name="C")
        >>> s = te.create_schedule(C)
        >>> s[B].pad("j", 4)
        >>> s.buffer("B").shape
        (8, 8)
        """
        self._do(Pad(self.block_name, self.name_of(axis, "pad"), multiple))

    def partition(self, axis: Axis, point: int) -> CachedTensor:
        """The first `point` iterations of a loop, then the rest as a stage of its own, whose
        tensor is returned.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> s = te.create_schedule(B)
        >>> s[B].partition("i", 3)
        CachedTensor(name='B.tail', dtype=<DType.FLOAT32: 'float32'>)
        >>> print(s.func.body)
        for i in range(3):
            for j in range(6):
                with block("B"): i = i, j = j
                    B[i, j] = A[i, j] + 1f32
        for i in range(3, 8):
            for j in range(6):
                with block("B.tail"): i = i, j = j
                    B[i, j] = A[i, j] + 1f32
        """
        return self._do(Partition(self.block_name, self.name_of(axis, "partition"), point))

    def tensorize(self, axis: Axis, intrin: TensorIntrin | str) -> None:
        """Replace a loop, and all inside, by a tensor intrinsic (or the name of one that
        `schedule.intrinsics` holds).

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> s = te.create_schedule(B)
        >>> a = te.placeholder((6,), name="a")
        >>> b = te.compute((6,), lambda j: a[j] + 1.0, name="b")
        >>> add = lambda ins, outs: outs[0].vstore(ins[0].vload([0], 6) + 1.0, [0])
        >>> s[B].tensorize("j", te.decl_tensor_intrin(b, add))
        >>> print(s.func.body)
        for i in range(8):
            with block("B"): i = i  # tensorized=b
                B[i, ramp(0, 1, 6)] = A[i, ramp(0, 1, 6)] + x6(1f32)
        """
        if isinstance(intrin, TensorIntrin):
            self.schedule.intrinsics[intrin.name] = intrin
            intrin = intrin.name
        self._do(Tensorize(self.block_name, self.name_of(axis, "tensorize"), intrin))

    def storage_align(self, axis: Axis, factor: int, offset: int) -> None:
        """The stride of an axis shall be `offset` modulo `factor` elements (bank conflicts)."""
        name = self.name_of(axis, "storage_align")
        self._do(StorageAlign(self.block_name, name, factor, offset))

    def double_buffer(self) -> None:
        """Fill one copy of the stage's buffer while the other is read."""
        self._do(DoubleBuffer(self.block_name))

    def pipeline(self, axis: Axis, depth: int = 2) -> None:
        """Fill shared buffers of the next `depth` - 1 iterations of a loop while one is computed
        (GPUs)."""
        self._do(Pipeline(self.block_name, self.name_of(axis, "pipeline"), depth))

    def rolling_buffer(self, axis: Axis | None = None) -> None:
        """Keep what the next iteration of a consumer's loop needs again in a circular buffer; by
        default of the outermost loop where that saves work."""
        name = "" if axis is None else self.name_of(axis, "rolling_buffer")
        self._do(RollingBuffer(self.block_name, name))

    def set_store_predicate(self, predicate: Expr | Sequence[str | int]) -> None:
        """Compute only where a condition holds on loops that just repeat the stage; threads are
        named by their loops, or as `te.thread_axis("threadIdx.x").var`. In traces the condition is
        a list in postfix order."""
        if isinstance(predicate, Sequence) and not isinstance(predicate, str):
            tokens = tuple(predicate)
        else:
            tokens = self._tokens("set_store_predicate", lambda: to_tokens(predicate))
        self._do(SetStorePredicate(self.block_name, tokens))

    def env_threads(self, threads: Sequence[str] | str) -> None:
        """The thread axes to launch around the nest that the stage is part of, such as a scan."""
        names = threads if isinstance(threads, list | tuple) else [threads]
        self._do(EnvThreads(self.block_name, tuple(str(t) for t in names)))

    def prefetch(self, tensor: TensorLike | str, axis: Axis, offset: int = 1) -> None:
        """Fetch what vector loads of a tensor need `offset` iterations of a loop later.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> s = te.create_schedule(B)
        >>> s[B].prefetch(A, "i", offset=2)
        >>> print(s.func.body)
        for i in range(8):  # prefetch=('A', 2)
            for j in range(6):
                with block("B"): i = i, j = j
                    B[i, j] = A[i, j] + 1f32
        """
        buffer = self.schedule.buffer_name(tensor)
        self._do(Prefetch(self.block_name, buffer, self.name_of(axis, "prefetch"), offset))

    def set_scope(self, scope: str) -> None:
        """Keep the stage's result in another memory."""
        self.schedule.set_scope(self.tensor, scope)

    def _do(self, step: Any) -> Any:
        return self.schedule.do(step)
