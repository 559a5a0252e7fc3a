"""PlanMemory: a fused function becomes steps over planned memory.

The function is walked twice in the same way. The first walk gives every intermediate value a
storage and notes when it is first written and last read; then storages whose lifetimes overlap are
given disjoint offsets in the arena; the second walk emits the steps with these offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace

from ...diagnostics import NO_SPAN, InternalError, Span, UnsupportedModel
from ...types import TensorType, Type
from ..constant_pool import ConstantPool, align
from ..nodes import Atom, Binding, Call, Constant, Function, If, Tuple, TupleGetItem, Var, While
from ..plan import (
    Branch,
    BufferRef,
    Copy,
    ExecutionPlan,
    KernelCall,
    Parallel,
    Repeat,
    Space,
    Step,
)
from ..views import is_whole_view, view_offset
from .arena import BranchMemory, Period, Storage, lay_out
from .branches import ONE, Section, Workers, find_branches
from .fuse_ops import label_of


@dataclass(frozen=True)
class KernelInfo:
    """What the planner must know of a kernel.

    Attributes:
        nanoseconds: estimated, on one worker; None if it uses the whole machine.
    """

    name: str
    workspace_bytes: int = 0
    can_fail: bool = False
    nanoseconds: float | None = None


KernelOf = Callable[[Binding], KernelInfo]


def plan_memory(
    main: Function, kernel_of: KernelOf, constants: ConstantPool, workers: Workers = ONE
) -> ExecutionPlan:
    """The execution plan of a fused function; its constants are added to `constants`.

    With several workers, chains of small kernels that do not need each other become branches of
    a `Parallel` step (`branches.find_branches`).

    A view outside a kernel (a reshape, rows of a matrix) is an alias. Results are written straight
    into the caller's output arrays; a result that is an input, a constant or another result too is
    copied.

    Raises:
        UnsupportedModel: a value's shape is not static.
    """
    planner = _Planner(kernel_of, constants, workers, None)
    planner.run(main)
    offsets, arena_bytes = lay_out(planner.storages)
    planner = _Planner(kernel_of, constants, workers, offsets)
    steps = planner.run(main)
    return ExecutionPlan(
        steps=tuple(steps),
        inputs=tuple(t for p in main.params for t in leaf_types(p.type)),
        outputs=tuple(leaf_types(main.ret_type)),
        arena_bytes=arena_bytes,
        unshared_bytes=sum(align(s.nbytes) for s in planner.storages),
        constant_bytes=constants.nbytes,
    )


def leaf_types(type_: Type) -> list[TensorType]:
    """The tensors of a type, tuples flattened in order."""
    stack, leaves = [type_], []
    while stack:
        top = stack.pop()
        if isinstance(top, TensorType):
            leaves.append(top)
        else:
            stack.extend(reversed(top.fields))
    return leaves


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a tensor is; `storage` numbers a piece of the arena, None is caller's or constant."""

    ref: BufferRef
    storage: int | None = None


_Places = list[_Place]
_Request = tuple[Function, list[_Places], "Sequence[_Place | None]"]
_Frame = Generator[_Request, tuple[list[Step], _Places], tuple[list[Step], _Places]]


class _Planner:
    """One walk; nested functions run on an explicit stack of generators."""

    def __init__(
        self,
        kernel_of: KernelOf,
        constants: ConstantPool,
        workers: Workers,
        offsets: Sequence[int] | None,
    ) -> None:
        self.kernel_of, self.constants, self.offsets = kernel_of, constants, offsets
        self.workers = workers
        self.storages: list[Storage] = []
        self.time = 0

    def run(self, main: Function) -> list[Step]:
        args: list[_Places] = []
        position = 0
        for param in main.params:
            places = []
            for type_ in leaf_types(param.type):
                nbytes = _nbytes(type_, param.span)
                places.append(_Place(BufferRef(Space.INPUT, position, nbytes)))
                position += 1
            args.append(places)
        targets = [
            _Place(BufferRef(Space.OUTPUT, i, _nbytes(t, main.result.span)))
            for i, t in enumerate(leaf_types(main.ret_type))
        ]
        stack = [self._function(main, args, targets)]
        answer: tuple[list[Step], _Places] | None = None
        while stack:
            try:
                request = stack[-1].send(answer)  # type: ignore[arg-type]
            except StopIteration as finished:
                stack.pop()
                answer = finished.value
            else:
                stack.append(self._function(*request))
                answer = None
        assert answer is not None
        return answer[0]

    def _allocate(self, nbytes: int) -> _Place:
        number = len(self.storages)
        self.storages.append(Storage(nbytes, self.time, self.time))
        offset = self.offsets[number] if self.offsets is not None else 0
        return _Place(BufferRef(Space.ARENA, offset, nbytes), number)

    def _touch(self, *places: _Place) -> None:
        """These are read or written now."""
        for place in places:
            if place.storage is not None:
                self.storages[place.storage].end = self.time

    def _copy(self, source: _Place, target: _Place, steps: list[Step]) -> None:
        self.time += 1
        self._touch(source, target)
        if source.ref.nbytes:
            steps.append(Copy(source.ref, target.ref))

    def _function(
        self, function: Function, args: list[_Places], targets: Sequence[_Place | None]
    ) -> _Frame:
        """Steps that leave the results in `targets`; where None, wherever they are."""
        env: dict[Atom, _Places] = dict(zip(function.params, args, strict=True))
        wanted = _direct_targets(function, targets)
        steps: list[Step] = []
        for item in find_branches(function, self._work, self.workers):
            if isinstance(item, Section):
                steps.append(self._section(item, env, wanted))
            else:
                yield from self._binding(item, env, wanted, steps)
        results = list(self._places(function.result, env))
        for i, target in enumerate(targets):
            if target is not None and results[i] is not target:
                self._copy(results[i], target, steps)
                results[i] = target
        return steps, results

    def _binding(
        self,
        binding: Binding,
        env: dict[Atom, _Places],
        wanted: Mapping[tuple[Var, int], _Place],
        steps: list[Step],
    ) -> Generator[_Request, tuple[list[Step], _Places], None]:
        value = binding.value
        inputs = [self._places(a, env) for a in value.args]
        if isinstance(value, Tuple):
            env[binding.var] = [p for places in inputs for p in places]
        elif isinstance(value, TupleGetItem):
            first, last = _field_range(value)
            env[binding.var] = inputs[0][first:last]
        elif (offset := view_offset(binding)) is not None:
            env[binding.var] = [_piece(inputs[0][0], offset, binding)]
        elif isinstance(value, While):
            env[binding.var] = yield from self._while(value, inputs, steps)
        else:
            self.time += 1
            outputs = [
                wanted.get((binding.var, i)) or self._allocate(_nbytes(t, binding.span))
                for i, t in enumerate(leaf_types(binding.var.type))
            ]
            env[binding.var] = outputs
            if isinstance(value, If):
                yield from self._if(value, inputs, outputs, steps)
            else:
                self._kernel(binding, inputs, outputs, steps)

    def _section(
        self,
        section: Section,
        env: dict[Atom, _Places],
        wanted: Mapping[tuple[Var, int], _Place],
    ) -> Parallel:
        """Steps of branches; what they share is in use while any of them runs."""
        self.time += 1
        period, older = Period(self.time, self.time), len(self.storages)
        branches = []
        for bindings in section.branches:
            steps: list[Step] = []
            first = len(self.storages)
            for binding in bindings:
                for _ in self._binding(binding, env, wanted, steps):
                    raise InternalError("a function inside a branch")
            branch = BranchMemory(period)
            for storage in self.storages[first:]:
                storage.branch = branch
            branches.append(tuple(steps))
        period.end = self.time
        for storage in self.storages[:older]:  # what one branch reads may be read at any time
            if storage.end >= period.start:
                storage.end = period.end
        return Parallel(tuple(branches))

    def _work(self, binding: Binding) -> float | None:
        """See `branches.Work`."""
        value = binding.value
        if isinstance(value, Tuple | TupleGetItem) or view_offset(binding) is not None:
            return 0.0
        if not isinstance(value, Call):
            return None
        info = self.kernel_of(binding)
        return None if info.can_fail else info.nanoseconds

    def _places(self, atom: Atom, env: dict[Atom, _Places]) -> _Places:
        if isinstance(atom, Constant):
            offset = self.constants.add(atom.data)
            return [_Place(BufferRef(Space.CONSTANT, offset, atom.data.nbytes))]
        return env[atom]

    def _kernel(
        self, binding: Binding, inputs: list[_Places], outputs: _Places, steps: list[Step]
    ) -> None:
        value = binding.value
        assert isinstance(value, Call)
        info = self.kernel_of(binding)
        args = [p for places in inputs for p in places] + outputs
        self._touch(*args)
        workspace = self._allocate(info.workspace_bytes).ref if info.workspace_bytes else None
        label = label_of(value.op) if isinstance(value.op, Function) else value.op.name
        refs = tuple(a.ref for a in args)
        steps.append(KernelCall(info.name, refs, workspace, info.can_fail, binding.span, label))

    def _if(
        self, value: If, inputs: list[_Places], outputs: _Places, steps: list[Step]
    ) -> Generator[_Request, tuple[list[Step], _Places], None]:
        condition = inputs[0][0]
        self._touch(condition, *outputs)
        then_steps, _ = yield value.then_branch, inputs[1:], outputs
        else_steps, _ = yield value.else_branch, inputs[1:], outputs
        steps.append(Branch(condition.ref, tuple(then_steps), tuple(else_steps)))

    def _while(
        self, value: While, inputs: list[_Places], steps: list[Step]
    ) -> Generator[_Request, tuple[list[Step], _Places], _Places]:
        count = len(value.init)
        state: list[_Places] = []
        for places in inputs[:count]:
            own = []
            for place in places:
                self.time += 1
                own.append(self._allocate(place.ref.nbytes))
                self._copy(place, own[-1], steps)
            state.append(own)
        leaves = [p for places in state for p in places]
        self.time += 1
        begin, arguments = self.time, state + inputs[count:]
        condition_steps, (condition,) = yield value.condition, arguments, [None]
        self.time += 1
        self._touch(condition)
        body_steps, results = yield value.body, arguments, [None] * len(leaves)
        self._assign(results, leaves, body_steps)
        self.time += 1
        self._touch(*leaves)
        for storage in self.storages:  # what the loop reads, it reads again next time
            if storage.start < begin <= storage.end:
                storage.end = self.time
        steps.append(Repeat(tuple(condition_steps), condition.ref, tuple(body_steps)))
        return leaves

    def _assign(self, sources: _Places, targets: _Places, steps: list[Step]) -> None:
        """All targets take the values of the sources at once; they may be the same places."""
        storages = {t.storage for t in targets}
        moves = [(s, t) for s, t in zip(sources, targets, strict=True) if s.storage != t.storage]
        ready = []
        for source, target in moves:
            if source.storage is not None and source.storage in storages:
                self.time += 1
                saved = self._allocate(source.ref.nbytes)
                self._copy(source, saved, steps)
                source = saved
            ready.append((source, target))
        for source, target in ready:
            self._copy(source, target, steps)


def _piece(place: _Place, offset: int, binding: Binding) -> _Place:
    """A view's place in its argument's."""
    if is_whole_view(binding):
        return place
    assert isinstance(binding.var.type, TensorType)
    nbytes = _nbytes(binding.var.type, binding.span)
    ref = replace(place.ref, offset=place.ref.offset + offset, nbytes=nbytes)
    return replace(place, ref=ref)


def _nbytes(type_: TensorType, span: Span = NO_SPAN) -> int:
    if not type_.is_static:
        raise UnsupportedModel(
            f"memory for {type_} cannot be planned, its shape is not known while compiling",
            span=span,
            hint="give the model's symbolic dimensions with --dim NAME=VALUE or --input-shapes",
        )
    return type_.nbytes


def _field_range(value: TupleGetItem) -> tuple[int, int]:
    """Which leaves of the tuple the field has."""
    if isinstance(value.tuple.type, TensorType):
        raise InternalError("TupleGetItem of a tensor")
    fields = value.tuple.type.fields
    first = sum(len(leaf_types(f)) for f in fields[: value.index])
    return first, first + len(leaf_types(fields[value.index]))


def _direct_targets(
    function: Function, targets: Sequence[_Place | None]
) -> dict[tuple[Var, int], _Place]:
    """Which leaf of which binding may be written straight into which target."""
    made_by = {b.var: b for b in function.bindings}
    wanted: dict[tuple[Var, int], _Place] = {}
    for position, target in enumerate(targets):
        atom, leaf = function.result, position
        while target is not None and isinstance(atom, Var) and atom in made_by:
            binding = made_by[atom]
            value = binding.value
            if isinstance(value, Tuple):
                for field in value.fields:
                    count = len(leaf_types(field.type))
                    if leaf < count:
                        atom = field
                        break
                    leaf -= count
            elif isinstance(value, TupleGetItem):
                atom, leaf = value.tuple, leaf + _field_range(value)[0]
            elif is_whole_view(binding):
                atom = value.args[0]
            else:
                if not isinstance(value, While) and view_offset(binding) is None:
                    wanted.setdefault((atom, leaf), target)
                break
    return wanted
