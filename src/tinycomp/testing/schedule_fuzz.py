"""Random schedules: a seed gives a computation, its sizes, and a sequence of schedule primitives.

Every primitive is called through the public API with random arguments. A ScheduleError means that
it was refused, which must leave the schedule as it was; anything else that is raised is a bug.

>>> case = draw_case(3)
>>> case == draw_case(3)
True
>>> drawn = random_schedule(case)
>>> drawn.schedule.steps == random_schedule(case).schedule.steps
True
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

from .. import te
from ..diagnostics import InternalError, ScheduleError
from ..dtype import DType
from ..ir.expr import IntImm
from ..te.intrin import TensorIntrin, decl_tensor_intrin
from ..te.tensor import IterKind, topological
from ..tir.nodes import Block, For
from ..tir.primitives.common import kinds_in
from ..tir.primitives.step import Step
from ..tir.schedule import Schedule, Stage, create_schedule
from ..tir.tree import blocks_in, read_buffers, written_buffers
from .computations import COMPUTATIONS, Computation

_SIZES = (2, 3, 4, 5, 7, 8, 11, 13, 16, 17, 23, 32, 37)  # primes and powers of two
_CHOICES: Mapping[str, Sequence[int]] = {  # of parameters that are no sizes
    "kernel": (1, 2, 3, 3, 4), "stride": (1, 1, 2, 3), "dilation": (1, 1, 2), "padding": (0, 1, 2),
}  # fmt: skip
_MOST_POINTS = 2500  # of the product of all sizes
_MOST_STEPS = 12
_WITH_NUMBERS = ("flatten", "space_to_depth", "mean_and_variance", "layer_norm")
_FACTORS = (1, 2, 3, 4, 5, 7, 8, 16)
_DOT = 4  # elements of the dot products that tensorize puts in
# Drawn as several steps, of which the first ones stay.
_OF_SEVERAL = ("tile", "tensorize", "rolling_buffer", "set_store_predicate", "vectorize")


@dataclass(frozen=True)
class Case:
    """What a seed stands for, but for the schedule."""

    seed: int
    computation: str
    sizes: Mapping[str, int]
    vector_bits: int
    symbolic: bool = False  # the schedule is for any sizes

    def make(self) -> Computation:
        """The tensors."""
        if not self.symbolic:
            return COMPUTATIONS[self.computation](**self.sizes)
        return COMPUTATIONS[self.computation](**{name: te.var(name) for name in self.sizes})

    def runs(self) -> list[Mapping[str, int]]:
        """The sizes to run with."""
        if not self.symbolic:
            return [self.sizes]
        rng = random.Random(self.seed ^ 0x512E)
        small = (0, 1, 1, 2, 3, 4, 5, 7, 8, 9)
        return [self.sizes, *({name: rng.choice(small) for name in self.sizes} for _ in range(3))]

    def __str__(self) -> str:
        names = self.sizes if not self.symbolic else {n: f"{n}[{s}]" for n, s in self.sizes.items()}
        sizes = ", ".join(f"{name}={size}" for name, size in names.items())
        return f"seed {self.seed}: {self.computation}({sizes}), {self.vector_bits}-bit vectors"


@dataclass
class Drawn:
    """A scheduled computation, and how often each primitive was accepted and refused."""

    computation: Computation
    schedule: Schedule
    accepted: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)


def draw_case(seed: int, symbolic: bool = False) -> Case:
    """The computation and sizes of a seed: mostly primes, at times 1, seldom 0.

    Args:
        symbolic: one whose schedule is for any sizes.
    """
    rng = random.Random(seed)
    name = rng.choice([c for c in COMPUTATIONS if not symbolic or _takes_any_sizes(c)])
    names = list(signature(COMPUTATIONS[name]).parameters)
    sizes: dict[str, int] = {}
    free = [n for n in names if n not in _CHOICES]
    limit = max(2, int(_MOST_POINTS ** (1 / max(2, len(free)))))
    for parameter in names:
        allowed = _CHOICES.get(parameter) or [s for s in _SIZES if s <= limit]
        size = rng.choice(allowed)
        if parameter in free:
            odd = rng.random()
            size = 0 if odd < 0.02 else 1 if odd < 0.08 else size
        sizes[parameter] = size
    return Case(seed, name, sizes, rng.choice((128, 256, 512)), symbolic)


def _takes_any_sizes(name: str) -> bool:
    """Whether a computation does not need its sizes as numbers, as windows do."""
    return name not in _WITH_NUMBERS and "kernel" not in signature(COMPUTATIONS[name]).parameters


def random_schedule(
    case: Case, only: Collection[str] = (), weights: Mapping[str, float] | None = None
) -> Drawn:
    """The schedule of a seed, of all primitives or some, each drawn as often as its weight says.

    Raises:
        Exception: whatever a primitive raises besides ScheduleError, which is a bug.
    """
    drawn = naive(case)
    draw = _Draw(random.Random(case.seed ^ 0x5EED), drawn)
    weights = weights or PRIMITIVES
    weights = {name: w for name, w in weights.items() if not only or name in only}
    for _ in range(draw.rng.randint(1, _MOST_STEPS)):
        name = draw.rng.choices(list(weights), weights=list(weights.values()))[0]
        before = drawn.schedule.func, drawn.schedule.steps
        try:
            getattr(draw, name)()
        except ScheduleError as error:
            drawn.refused[name] += 1
            if not error.hint:
                raise InternalError(f"a refusal without a hint: {error}") from error
            if name not in _OF_SEVERAL and (drawn.schedule.func, drawn.schedule.steps) != before:
                raise InternalError(f"a refused {name} changed the schedule") from error
        else:
            drawn.accepted[name] += 1
    return drawn


def naive(case: Case) -> Drawn:
    """The schedule of a case before any step; it knows the intrinsics of `tensorize`."""
    computation = case.make()
    schedule = create_schedule(computation.outputs, computation.inputs)
    schedule.intrinsics.update(INTRINSICS)
    return Drawn(computation, schedule)


def replay(case: Case, steps: Sequence[Step]) -> Drawn:
    """The schedule of a case from given steps; those that are refused are left out."""
    drawn = naive(case)
    for step in steps:
        try:
            drawn.schedule.do(step)
        except ScheduleError:
            drawn.refused[step.NAME] += 1
    return drawn


def smallest(
    steps: Sequence[Step], fails: Callable[[Sequence[Step]], bool], tries: int = 60
) -> list[Step]:
    """The steps without those that a failure does not need.

    >>> from tinycomp.tir.primitives.annotate import Unroll
    >>> steps = [Unroll("B", axis) for axis in "abcdef"]
    >>> [step.axis for step in smallest(steps, lambda s: steps[1] in s and steps[4] in s)]
    ['b', 'e']
    """
    kept = list(steps)
    size = max(1, len(kept) // 2)
    while tries > 0:
        for start in range(0, len(kept), size):
            fewer = kept[:start] + kept[start + size :]
            tries -= 1
            if len(fewer) < len(kept) and fails(fewer):
                kept = fewer
                break
        else:
            if size == 1:
                break
            size = max(1, size // 2)
    return kept


def _dot(x_dtype: DType, y_dtype: DType, dtype: DType) -> TensorIntrin:
    """A dot product of few elements as one vector operation."""
    x, y = te.placeholder((_DOT,), x_dtype, name="x"), te.placeholder((_DOT,), y_dtype, name="y")
    k = te.reduce_axis((0, _DOT), name="k")
    z = te.compute(
        (), lambda: te.sum(te.cast(x[k], dtype) * te.cast(y[k], dtype), axis=k), name="z"
    )

    def emit(ins: Sequence[Any], outs: Sequence[Any]) -> tuple[Any, Any, Any]:
        a, b = (te.cast(operand.vload([0], _DOT), dtype) for operand in ins)
        total, out = te.sum_lanes(a * b), outs[0]
        return out.store(total), out.store(te.const(0, dtype)), out.store(out[()] + total)

    return decl_tensor_intrin(z, emit, name=f"dot_{x_dtype}_{y_dtype}")


INTRINSICS: Mapping[str, TensorIntrin] = {
    intrin.name: intrin
    for intrin in (
        _dot(DType.FLOAT32, DType.FLOAT32, DType.FLOAT32),
        _dot(DType.FLOAT64, DType.FLOAT64, DType.FLOAT64),
        _dot(DType.UINT8, DType.INT8, DType.INT32),
    )
}


class _Draw:
    """One method per primitive: calls it with random arguments, legal ones more often."""

    def __init__(self, rng: random.Random, drawn: Drawn) -> None:
        self.rng, self.schedule, self.outputs = rng, drawn.schedule, drawn.computation.outputs

    def stage(self, wanted: Callable[[Block], bool] = lambda block: True) -> Stage:
        """A stage that is still in the loops, mostly one with a wanted property."""
        blocks = blocks_in(self.schedule.func.body)
        likely = [b for b in blocks if wanted(b)]
        if not blocks:
            raise ScheduleError("there is no stage", hint="nothing is computed")
        chosen = self.rng.choice(likely if likely and self.rng.random() < 0.8 else blocks)
        return self.schedule[chosen.name]

    def reader(self, stage: Stage) -> Stage:
        """Mostly a stage that reads what this one computes."""
        mine = written_buffers(stage.block)
        return self.stage(
            lambda b: any(r in mine for r in read_buffers(b)) and b.name != stage.block_name
        )

    def intermediate(self) -> Stage:
        """Mostly a stage that computes no output."""
        params = self.schedule.func.params
        return self.stage(lambda b: not any(w in params for w in written_buffers(b)))

    def inside_reader(self) -> Stage:
        """Mostly a stage that was just moved into a loop of its reader."""
        func = self.schedule.func
        read = {b for block in blocks_in(func.body) for b in read_buffers(block)}
        mine = lambda b: {w for w in written_buffers(b) if w not in func.params}  # noqa: E731
        stage = self.stage(lambda b: bool(mine(b) & read))
        if self.rng.random() < 0.9:
            reader = self.reader(stage)
            stage.compute_at(reader, self.axis(reader, 0.3))
        return stage

    def reduction(self) -> Stage:
        return self.stage(lambda b: b.init is not None)

    def axis(self, stage: Stage, place: float = 0.5) -> str:
        """A loop of the stage: the outermost (`place` 0) or innermost (1) more often."""
        names = stage.axis_names
        if not names or self.rng.random() < 0.01:
            return "nowhere"
        spread = self.rng.gauss(place * (len(names) - 1), len(names) / 4)
        return names[min(len(names) - 1, max(0, round(spread)))]

    def reduced_axis(self, stage: Stage) -> str:
        """Mostly a reduction loop."""
        block = stage.block
        reduced = [a.name for a in stage.axes if IterKind.REDUCE in kinds_in(block, a)]
        usual = reduced and self.rng.random() < 0.9
        return self.rng.choice(reduced) if usual else self.axis(stage)

    def factor(self) -> int:
        return self.rng.choice((0, -3)) if self.rng.random() < 0.01 else self.rng.choice(_FACTORS)

    def scope(self) -> str:
        return self.rng.choice(("local", "local", "global", "shared"))

    def loops(self, stage: Stage) -> list[For]:
        return self.schedule.loops(stage.block_name)

    def split(self) -> None:
        stage = self.stage()
        axis, form = self.axis(stage), self.rng.choice(("factor", "factor", "nparts", "factors"))
        if form == "factors":
            count = self.rng.randint(2, 3)
            sizes: list[int | None] = [self.factor() for _ in range(count)]
            sizes[self.rng.randrange(count)] = None
            stage.split(axis, factors=sizes)
        elif form == "factor":
            stage.split(axis, factor=self.factor())
        else:
            stage.split(axis, nparts=self.factor())

    def tile(self) -> None:
        stage = self.stage()
        stage.tile(self.axis(stage, 0.3), self.axis(stage, 0.7), self.factor(), self.factor())

    def fuse(self) -> None:
        stage = self.stage()
        names = stage.axis_names
        first = self.rng.randrange(max(1, len(names) - 1))
        stage.fuse(*names[first : first + self.rng.choice((2, 2, 2, 3))])

    def reorder(self) -> None:
        stage = self.stage()
        names = stage.axis_names
        stage.reorder(*self.rng.sample(names, self.rng.randint(min(2, len(names)), len(names))))

    def vectorize(self) -> None:
        stage = self.stage()
        axis = self.axis(stage, 0.9)
        known = all(isinstance(l.extent, IntImm) for l in self.loops(stage) if l.var.name == axis)
        if not known:
            axis = stage.split(axis, factor=self.rng.choice((2, 4, 8, 16)))[1].name
        stage.vectorize(axis)

    def unroll(self) -> None:
        stage = self.stage()
        stage.unroll(self.axis(stage, 0.8))

    def parallel(self) -> None:
        stage = self.stage()
        stage.parallel(self.axis(stage, 0.1))

    def bind(self) -> None:
        stage = self.stage()
        stage.bind(self.axis(stage), self.rng.choice(("vthread", "threadIdx.x", "blockIdx.x")))

    def thread(self) -> None:
        """Threads and blocks of a GPU in two dimensions."""
        stage = self.stage()
        axes = ("threadIdx.x", "threadIdx.x", "threadIdx.y", "blockIdx.x", "blockIdx.y")
        stage.bind(self.axis(stage), self.rng.choice(axes))

    def vthread(self) -> None:
        """Virtual threads, mostly around other loops that they share."""
        stage = self.stage()
        stage.bind(self.axis(stage, 0.2), self.rng.choice(("vthread", "vthread.x")))

    def pragma(self) -> None:
        stage = self.stage()
        key = self.rng.choice(("reduce_lanes", "auto_unroll_max_step"))
        stage.pragma(self.axis(stage, 0.9), key)

    def compute_at(self) -> None:
        stage = self.intermediate()
        consumer = self.reader(stage)
        stage.compute_at(consumer, self.axis(consumer, 0.3))

    def reverse_compute_at(self) -> None:
        producer = self.intermediate()
        self.reader(producer).reverse_compute_at(producer, self.axis(producer, 0.3))

    def compute_inline(self) -> None:
        self.intermediate().compute_inline()

    def reverse_compute_inline(self) -> None:
        self.reader(self.intermediate()).reverse_compute_inline()

    def compute_root(self) -> None:
        self.stage().compute_root()

    def cache_read(self) -> None:
        reader = self.stage()
        func = self.schedule.func
        read = read_buffers(reader.block) if self.rng.random() < 0.9 else []
        buffers = [b.name for b in read or (*func.params, *func.allocs)]
        readers = [reader] if self.rng.random() < 0.8 else [reader, self.stage()]
        name = self.rng.choice(buffers)
        self.schedule.cache_read(name, self.scope(), [r.block_name for r in readers])

    def cache_write(self) -> None:
        self.schedule.cache_write(self.stage().tensor, self.scope())

    def rfactor(self) -> None:
        stage = self.reduction()
        place = self.rng.choice((-1, -1, -1, 0, 1))
        self.schedule.rfactor(stage.tensor, self.reduced_axis(stage), place)

    def set_scope(self) -> None:
        self.intermediate().set_scope(self.scope())

    def decompose_reduction(self) -> None:
        stage = self.reduction()
        stage.decompose_reduction(self.axis(stage))

    def pad(self) -> None:
        stage = self.intermediate()
        stage.pad(self.axis(stage), self.factor())

    def partition(self) -> None:
        stage = self.stage()
        stage.partition(self.axis(stage), self.rng.randint(0, 9))

    def transform_layout(self) -> None:
        stage = self.intermediate()
        rank, width = len(stage.block.iter_vars), self.rng.choice((1, 2, 4, 5))
        order = self.rng.sample(range(rank), rank)

        def layout(*axes: Any) -> list[Any]:
            if len(axes) != rank:
                order[:] = self.rng.sample(range(len(axes)), len(axes))
            moved = [axes[i] for i in order]
            if not moved or self.rng.random() < 0.4:
                return moved
            return [*moved[:-1], moved[-1] // width, moved[-1] % width]

        stage.transform_layout(layout)

    def storage_align(self) -> None:
        stage = self.intermediate()
        stage.storage_align(self.axis(stage), self.rng.choice((4, 8, 16)), self.rng.choice((0, 1)))

    def double_buffer(self) -> None:
        self.intermediate().double_buffer()

    def normalize(self) -> None:
        self.schedule.normalize()

    def create_group(self) -> None:
        first, last = sorted(self.rng.choices(range(len(ops := topological(self.outputs))), k=2))
        group = self.schedule.create_group(
            ops[last].output(0), ops[first].output(0), self.rng.random() < 0.5
        )
        if self.rng.random() < 0.2:
            group.compute_root()
        else:
            consumer = self.stage()
            group.compute_at(consumer, self.axis(consumer, 0.3))

    def tensorize(self) -> None:
        stage = self.reduction()
        mine = written_buffers(stage.block)
        read = [b.dtype for b in read_buffers(stage.block) if b not in mine]
        usual = next(
            (n for n, i in INTRINSICS.items() if [t.dtype for t in i.op.inputs] == read), ""
        )
        axis = self.reduced_axis(stage)
        if self.rng.random() < 0.9:
            _, inner = stage.split(axis, factor=_DOT)
            axis = inner.name
            stage.reorder(*(n for n in stage.axis_names if n != axis), axis)
        stage.tensorize(axis, usual or self.rng.choice([*INTRINSICS, "unknown"]))

    def rolling_buffer(self) -> None:
        stage = self.inside_reader()
        shared = self.rng.random() < 0.5
        stage.rolling_buffer(self.axis(stage, 0.2) if shared else None)

    def set_store_predicate(self) -> None:
        """Mostly that a loop which only repeats the stage is in its first iterations."""
        stage = self.inside_reader()
        block = stage.block
        repeated = [a.name for a in stage.axes if not kinds_in(block, a)]
        axis = stage.axis(self.rng.choice(repeated) if repeated else self.axis(stage))
        stage.set_store_predicate(axis < self.rng.choice((0, 1, 1, 2)))

    def env_threads(self) -> None:
        self.stage().env_threads(self.rng.sample(("threadIdx.x", "blockIdx.x"), 1))

    def prefetch(self) -> None:
        stage = self.stage()
        tensor = self.rng.choice(self.schedule.func.params).name
        stage.prefetch(tensor, self.axis(stage, 0.8), self.rng.choice((1, 2, 8)))


PRIMITIVES: Mapping[str, float] = {  # how often each is drawn
    "split": 5, "tile": 2, "fuse": 3, "reorder": 4, "vectorize": 4, "unroll": 2, "parallel": 3,
    "compute_at": 6, "compute_inline": 2, "compute_root": 0.7, "cache_read": 3, "cache_write": 3,
    "rfactor": 2, "set_scope": 1, "pragma": 1, "bind": 1, "reverse_compute_at": 2,
    "reverse_compute_inline": 1.5, "decompose_reduction": 1.5, "pad": 1, "partition": 1.5,
    "transform_layout": 2, "storage_align": 0.5, "double_buffer": 0.5, "prefetch": 0.5,
    "normalize": 0.5, "create_group": 0.7, "tensorize": 1.5, "vthread": 1.5,
    "rolling_buffer": 3, "set_store_predicate": 2, "env_threads": 0.3,
}  # fmt: skip


FOR_GPUS: Mapping[str, float] = {
    name: weight for name, weight in PRIMITIVES.items() if name not in ("parallel", "pragma")
} | {
    "thread": 14, "split": 8, "reorder": 5, "cache_read": 5, "cache_write": 5, "compute_at": 8,
    "set_scope": 4, "rfactor": 4,
}  # fmt: skip
"""Weights of `random_schedule` that bind most computations to threads and use shared memory."""
