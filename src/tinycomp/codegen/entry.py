"""The native function of a whole model, from its execution plan.

    i64 tinycomp_main(ptr rt, ptr inputs, ptr outputs, ptr constants, ptr arena, ptr profile)

`inputs` and `outputs` are arrays of pointers. The result is 0, or 1 + the index of the kernel call
that failed, counting the calls of `relay.plan.all_steps` in order. `profile` is null or has room
for 1 + the number of kernel calls: slot 0 receives the time at the start, slot 1 + i the time
after call i (the latest one, in a loop), in nanoseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from ..relay.plan import (
    Branch,
    BufferRef,
    Copy,
    ExecutionPlan,
    KernelCall,
    Parallel,
    Repeat,
    Space,
    Step,
    all_steps,
)
from ..target import Target
from .builder import FunctionBuilder, ModuleBuilder, Value, literal
from .llvm import new_module
from .runtime_abi import ERROR, MAIN, PARALLEL_FOR, POOL_ENTER

STEPS_PER_FUNCTION = 500
"""Longer step lists are divided, since LLVM's time grows faster than a function's size."""

_PARAMS = [("ptr", name) for name in ("rt", "inputs", "outputs", "constants", "arena", "profile")]
_ARGUMENTS = [Value(f"%{name}", "ptr") for _, name in _PARAMS]
_RT, _INPUTS, _OUTPUTS, _CONSTANTS, _ARENA, _PROFILE = _ARGUMENTS


def emit_entry(plan: ExecutionPlan, target: Target | None = None) -> str:
    """The entry function as LLVM text; it calls the plan's kernels by name."""
    module = new_module(target or Target.host())
    _emit_stamp(module)
    main = FunctionBuilder(module, MAIN, _PARAMS, result="i64")
    module.declare(POOL_ENTER, "void", ["ptr"])
    main.line(f"call void @{POOL_ENTER}(ptr %rt)")
    main.line("call void @stamp(ptr %profile, i64 0)")
    main.ret(main.call("steps0", "i64", _ARGUMENTS))
    main.finish()
    _StepsEmitter(module, plan).run()
    return module.text()


def _emit_stamp(module: ModuleBuilder) -> None:
    """Store the time in a profile slot."""
    module.declare("clock_gettime", "i32", ["i32", "ptr"])
    b = FunctionBuilder(module, "stamp", [("ptr", "profile"), ("i64", "slot")], linkage="internal")
    profile = Value("%profile", "ptr")
    b.cond_br(b.compare("icmp eq", profile, Value("null", "ptr")), "done", "write")
    b.start("write")
    time = b.alloca("{ i64, i64 }", align=8)
    b.call("clock_gettime", "i32", [literal(1, "i32"), time])
    seconds = b.load("i64", time)
    nanoseconds = b.load("i64", b.gep(time, "i64", literal(1, "i64")))
    total = b.op("add", b.op("mul", seconds, literal(10**9, "i64")), nanoseconds)
    b.store(total, b.gep(profile, "i64", Value("%slot", "i64")))
    b.br("done")
    b.start("done")
    b.ret()
    b.finish()


class _StepsEmitter:
    """Every list of steps becomes a function `stepsN`, which returns 0 or fails early."""

    def __init__(self, module: ModuleBuilder, plan: ExecutionPlan) -> None:
        self.module = module
        calls = (step for step in all_steps(plan.steps) if isinstance(step, KernelCall))
        self._call_index: dict[int, deque[int]] = {}  # a step object may occur several times
        for index, call in enumerate(calls):
            self._call_index.setdefault(id(call), deque()).append(index)
        self._pending: deque[tuple[str, Sequence[Step]]] = deque([("steps0", plan.steps)])
        self._named = 1

    def run(self) -> None:
        while self._pending:
            name, steps = self._pending.popleft()
            b = FunctionBuilder(self.module, name, _PARAMS, result="i64", linkage="internal")
            if len(steps) > STEPS_PER_FUNCTION:
                for part in _parts(steps):
                    self._run_list(b, part)
            else:
                for step in steps:
                    self._step(b, step)
            b.ret(literal(0, "i64"))
            b.finish()

    def _run_list(self, b: FunctionBuilder, steps: Sequence[Step]) -> None:
        """Call the function for a list of steps; return its result if it failed."""
        if not steps:
            return
        result = b.call(self._name(steps), "i64", _ARGUMENTS)
        self._return_if(b, b.compare("icmp ne", result, literal(0, "i64")), result)

    def _name(self, steps: Sequence[Step]) -> str:
        """The function for a list of steps, which is emitted later."""
        name = f"steps{self._named}"
        self._named += 1
        self._pending.append((name, steps))
        return name

    def _return_if(self, b: FunctionBuilder, condition: Value, result: Value) -> None:
        failed, fine = b.fresh("failed"), b.fresh("fine")
        b.cond_br(condition, failed, fine)
        b.start(failed)
        b.ret(result)
        b.start(fine)

    def _step(self, b: FunctionBuilder, step: Step) -> None:
        if isinstance(step, KernelCall):
            self._kernel_call(b, step)
        elif isinstance(step, Copy):
            self._copy(b, step)
        elif isinstance(step, Branch):
            self._branch(b, step)
        elif isinstance(step, Parallel):
            self._parallel(b, step)
        else:
            self._repeat(b, step)

    def _kernel_call(self, b: FunctionBuilder, step: KernelCall) -> None:
        index = self._call_index[id(step)].popleft()
        refs = step.args if step.workspace is None else (*step.args, step.workspace)
        arguments = [_RT, *(_address(b, ref) for ref in refs)]
        self.module.declare(step.kernel, "void", ["ptr"] * len(arguments))
        b.line(f"call void @{step.kernel}({', '.join(map(str, arguments))})")
        b.line(f"call void @stamp(ptr %profile, i64 {index + 1})")
        if step.can_fail:
            flag = b.gep(_RT, "i8", literal(ERROR, "i64"))
            error = b.emit(f"load atomic i64, {flag} monotonic, align 8", "i64")
            failed = b.compare("icmp ne", error, literal(0, "i64"))
            self._return_if(b, failed, literal(index + 1, "i64"))

    def _copy(self, b: FunctionBuilder, step: Copy) -> None:
        """Source and target may be the same memory, never overlap otherwise."""
        self.module.declare("memmove", "ptr", ["ptr", "ptr", "i64"])
        arguments = [_address(b, step.target), _address(b, step.source)]
        b.call("memmove", "ptr", [*arguments, literal(step.source.nbytes, "i64")])

    def _branch(self, b: FunctionBuilder, step: Branch) -> None:
        then, otherwise, done = b.fresh("then"), b.fresh("else"), b.fresh("endif")
        b.cond_br(_is_true(b, step.condition), then, otherwise)
        for block, steps in ((then, step.then_steps), (otherwise, step.else_steps)):
            b.start(block)
            self._run_list(b, steps)
            b.br(done)
        b.start(done)

    def _repeat(self, b: FunctionBuilder, step: Repeat) -> None:
        loop, body, done = b.fresh("loop"), b.fresh("body"), b.fresh("done")
        b.br(loop)
        b.start(loop)
        self._run_list(b, step.condition_steps)
        b.cond_br(_is_true(b, step.condition), body, done)
        b.start(body)
        self._run_list(b, step.body_steps)
        b.br(loop)
        b.start(done)

    def _parallel(self, b: FunctionBuilder, step: Parallel) -> None:
        """One iteration of a parallel loop for each branch. While profiling one after the other,
        since a call's time is that since the call before it."""
        names = [self._name(branch) for branch in step.branches]
        shared = f"{names[0]}.branches"
        timed, together, done = b.fresh("timed"), b.fresh("together"), b.fresh("done")
        b.cond_br(b.compare("icmp eq", _PROFILE, Value("null", "ptr")), together, timed)
        b.start(timed)
        for name in names:
            b.call(name, "i64", _ARGUMENTS)
        b.br(done)
        b.start(together)
        env = b.alloca(f"[{len(_ARGUMENTS)} x ptr]", align=8)
        for position, value in enumerate(_ARGUMENTS):
            b.store(value, b.gep(env, "ptr", literal(position, "i64")))
        self.module.declare(PARALLEL_FOR, "void", ["ptr", "ptr", "ptr", "i64"])
        b.line(f"call void @{PARALLEL_FOR}({_RT}, ptr @{shared}, {env}, i64 {len(names)})")
        b.br(done)
        b.start(done)
        self._emit_share(shared, names)

    def _emit_share(self, name: str, branches: Sequence[str]) -> None:
        """What a thread calls: the branches from `begin` to `end`, which cannot fail."""
        parameters = [("ptr", "env"), ("i64", "begin"), ("i64", "end"), ("i64", "thread")]
        b = FunctionBuilder(self.module, name, parameters, linkage="internal")
        env, begin, end = (Value(f"%{n}", t) for t, n in parameters[:3])
        arguments = [
            b.load("ptr", b.gep(env, "ptr", literal(i, "i64"))) for i in range(len(_ARGUMENTS))
        ]
        for number, branch in enumerate(branches):
            mine, after = b.fresh("mine"), b.fresh("after")
            position = literal(number, "i64")
            low, high = b.compare("icmp sle", begin, position), b.compare("icmp slt", position, end)
            b.cond_br(b.op("and", low, high), mine, after)
            b.start(mine)
            b.call(branch, "i64", arguments)
            b.br(after)
            b.start(after)
        b.ret()
        b.finish()


def _parts(steps: Sequence[Step]) -> Iterator[Sequence[Step]]:
    for first in range(0, len(steps), STEPS_PER_FUNCTION):
        yield steps[first : first + STEPS_PER_FUNCTION]


def _is_true(b: FunctionBuilder, condition: BufferRef) -> Value:
    value = b.load("i8", _address(b, condition), align=1)
    return b.compare("icmp ne", value, literal(0, "i8"))


def _address(b: FunctionBuilder, ref: BufferRef) -> Value:
    if ref.space in (Space.INPUT, Space.OUTPUT):
        array = _INPUTS if ref.space is Space.INPUT else _OUTPUTS
        base = b.load("ptr", b.gep(array, "ptr", literal(ref.position, "i64")))
        return b.gep(base, "i8", literal(ref.offset, "i64"))
    base = _CONSTANTS if ref.space is Space.CONSTANT else _ARENA
    return b.gep(base, "i8", literal(ref.position + ref.offset, "i64"))
