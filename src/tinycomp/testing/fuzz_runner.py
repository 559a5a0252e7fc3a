"""Runs random schedules natively, in processes of their own, and compares with the interpreter.

`fuzz(range(2000))` reports the cases that went wrong: a primitive, lowering or code generation
that raised, a crash, a hang, a result that differs, or a byte written outside of the arrays.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import selectors
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..codegen.jit import LoadedObject, load_object, pool_runtime
from ..codegen.llvm import KernelIR, compile_kernels, emit_kernel
from ..codegen.runtime_abi import PARALLEL_FOR, POOL_ENTER, RuntimeState
from ..diagnostics import ExecutionError, InternalError, TinycompError
from ..runtime.arrays import address
from ..runtime.compare import compare_arrays
from ..target import Target
from ..te.interpreter import evaluate
from ..tir.lower import lower
from ..tir.nodes import PrimFunc
from ..tir.primitives.step import Step
from ..tir.schedule import Schedule
from ..tir.sizes import shape_at
from ..tir.verify import verify
from .guarded import GuardedMemory
from .schedule_fuzz import Case, Drawn, draw_case, random_schedule, replay, smallest

BATCH = 25  # cases that are compiled together
OPTIMISED = 10  # one batch in so many is compiled with all optimisations
_CELLS, _CELL_BYTES, _WORKSPACE_BYTES = 8, 1 << 16, 1 << 20
_SECONDS = 120  # after which a batch hangs


@dataclass
class Failure:
    """A case that went wrong."""

    case: Case
    kind: str  # "raised", "crash", "hang", "mismatch", "guard"
    message: str
    trace: str = ""

    def __str__(self) -> str:
        return f"{self.case}\n{self.kind}: {self.message}\n{self.trace}"


@dataclass
class Report:
    """What a run found."""

    cases: int = 0
    accepted: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def __str__(self) -> str:
        names = sorted(self.accepted | self.refused)
        width = max(map(len, names), default=0)
        lines = [f"{self.cases} cases, {len(self.failures)} failures"]
        lines += [
            f"  {n:{width}} {self.accepted[n]:7} accepted {self.refused[n]:7} refused"
            for n in names
        ]
        return "\n".join([*lines, *(f"\n{f}" for f in self.failures)])


# -- in the worker process -----------------------------------------------------------------------


@dataclass
class _Prepared:
    case: Case
    drawn: Drawn
    ir: KernelIR
    func: PrimFunc


class _Runner:
    """Compiles and runs cases in this process."""

    def __init__(self) -> None:
        self.arrays = GuardedMemory(_CELLS, _CELL_BYTES)
        self.workspace = GuardedMemory(1, _WORKSPACE_BYTES)
        self.pool = pool_runtime()
        self.enter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.pool.imports[POOL_ENTER])

    def run(
        self, cases: Sequence[tuple[Case, Sequence[Step] | None]], opt: int
    ) -> Iterator[dict[str, Any]]:
        """One result for each case; None for steps draws them."""
        prepared: list[_Prepared] = []
        for case, steps in cases:
            try:
                prepared.append(_prepare(case, steps))
            except Exception:  # whatever it is, it is a bug to report
                yield _failed(case, "raised", traceback.format_exc(limit=-6))
        if not prepared:
            return
        code: LoadedObject | None = None
        if len(prepared) > 1:
            with contextlib.suppress(InternalError):  # LLVM rejects one of them: each alone
                code = self._compile(prepared, opt)
        for p in prepared:
            try:
                problem = self._check(p, code or self._compile([p], opt))
            except (TinycompError, InternalError) as error:
                problem = "raised", f"{type(error).__name__}: {error}"
            if problem:
                yield _failed(p.case, *problem, p.drawn.schedule)
            else:
                yield {
                    "seed": p.case.seed,
                    "accepted": p.drawn.accepted,
                    "refused": p.drawn.refused,
                }

    def _compile(self, prepared: Sequence[_Prepared], opt: int) -> LoadedObject:
        texts = [p.ir.llvm_text for p in prepared]
        return load_object(compile_kernels(texts, Target.host(), opt), self.pool.imports)

    def _check(self, p: _Prepared, code: LoadedObject) -> tuple[str, str] | None:
        for sizes in p.case.runs():
            problem = self._check_at(p, code, sizes)
            if problem:
                kind, message = problem
                return kind, f"at {sizes}: {message}" if p.case.symbolic else message
        return None

    def _check_at(
        self, p: _Prepared, code: LoadedObject, sizes: Mapping[str, int]
    ) -> tuple[str, str] | None:
        computation = replace(p.case, sizes=sizes, symbolic=False).make()
        rng = np.random.default_rng(p.case.seed)
        inputs = computation.arrays(rng)
        expected = evaluate(computation.outputs, dict(zip(computation.inputs, inputs, strict=True)))
        order = p.drawn.schedule.func.params
        names = {b.name: a for b, a in zip(order, [*inputs, *expected], strict=True)}
        for threads in (1, 2):
            got = self._call(p, code, inputs, sizes, threads, bool(rng.integers(2)))
            for index, (name, want) in enumerate(names.items()):
                tolerance = 0.0 if index < len(inputs) else _tolerance(computation.exact, want)
                found = compare_arrays(name, got[index], want)
                if not found.difference <= tolerance:
                    return "mismatch", f"{threads} threads: {found}\n{got[index]}\n{want}"
            touched = [b.name for i, b in enumerate(order) if not self.arrays.untouched(i)]
            if touched or not self.workspace.untouched(0):
                return "guard", f"{threads} threads wrote around {touched or 'the workspace'}"
        return None

    def _call(
        self,
        p: _Prepared,
        code: LoadedObject,
        inputs: Sequence[np.ndarray],
        sizes: Mapping[str, int],
        threads: int,
        at_end: bool,
    ) -> list[np.ndarray]:
        arrays: list[np.ndarray] = []
        values = {size: sizes[size.name] for size in p.func.sizes}
        for cell, buffer in enumerate(p.func.params):
            shape = shape_at(buffer, values)
            array = self.arrays.array(cell, shape, buffer.dtype.numpy, at_end=at_end)
            if cell < len(inputs):
                array[...] = inputs[cell]
            arrays.append(array)
        state = RuntimeState(num_threads=threads, pool=self.pool.pool)
        arguments = [ctypes.addressof(state), *map(address, arrays), *values.values()]
        size = p.ir.workspace_at(tuple(values.values()), threads)
        byte = np.dtype(np.uint8)
        workspace = self.workspace.array(0, (size,), byte, at_end=at_end, alignment=64)
        if p.ir.has_workspace:
            arguments.append(address(workspace))
        native = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(arguments))
        if PARALLEL_FOR in p.ir.llvm_text:
            self.enter(ctypes.addressof(state))
        native(code.address(p.ir.name))(*arguments)
        if state.error:
            raise ExecutionError("an index is out of range")
        return [array.copy() for array in arrays]


def _prepare(case: Case, steps: Sequence[Step] | None) -> _Prepared:
    drawn = random_schedule(case) if steps is None else replay(case, steps)
    target = replace(Target.host(), vector_bits=min(case.vector_bits, Target.host().vector_bits))
    if case.seed % 16 == 0:
        _check_replay(case, drawn)
    verify(drawn.schedule.func)
    func = lower(replace(drawn.schedule.func, name=f"case{case.seed}"), target)
    verify(func, lowered=True)
    return _Prepared(case, drawn, emit_kernel(func, target), func)


def _check_replay(case: Case, drawn: Drawn) -> None:
    """The steps rebuild the same loops from JSON and from the printed Python."""
    schedule, other = drawn.schedule, replay(case, []).schedule
    other.replay(Schedule.from_json(schedule.to_json()))
    assert str(other.func) == str(schedule.func), "steps replayed from JSON give other loops"
    assert other.hash() == schedule.hash()
    names: dict[str, Any] = {}
    exec(schedule.trace(), names)
    traced = replay(case, []).schedule
    names["apply"](traced)
    assert str(traced.func) == str(schedule.func), "the trace gives other loops"


def _tolerance(exact: bool, expected: np.ndarray) -> float:
    if exact or expected.dtype.kind != "f":
        return 0.0
    return 1e-12 if expected.dtype.itemsize == 8 else 1e-5


def _failed(case: Case, kind: str, message: str, schedule: Schedule | None = None) -> dict:
    steps = None if schedule is None else schedule.to_json()
    return {"seed": case.seed, "kind": kind, "message": message, "steps": steps}


def worker() -> None:
    """Reads requests as lines of JSON and answers each with one: the list of results."""
    runner = _Runner()
    for line in sys.stdin:
        request = json.loads(line)
        steps = request.get("steps")
        given = None if steps is None else Schedule.from_json(steps)
        symbolic = request["symbolic"]
        cases = [(draw_case(seed, symbolic), given) for seed in request["seeds"]]
        results = list(runner.run(cases, request["opt"]))
        print(json.dumps(results), flush=True)


# -- in the parent -------------------------------------------------------------------------------


class _Worker:
    """A process that runs cases; started anew after a crash or a hang."""

    def __init__(self, symbolic: bool) -> None:
        self.symbolic = symbolic
        self._process: subprocess.Popen[str] | None = None

    def __call__(
        self, seeds: Sequence[int], opt: int, steps: str | None = None
    ) -> tuple[list[dict[str, Any]], str]:
        """The results of the cases, or none and "crash ..." or "hang"."""
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-c", f"from {__name__} import worker; worker()"]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        process = self._process
        assert process.stdin is not None
        request = {"seeds": list(seeds), "opt": opt, "steps": steps, "symbolic": self.symbolic}
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=process.stdin, flush=True)
        line = _line(process)  # never more than one at a time, so none waits in a buffer
        if line is None:
            self.close()
            return [], "hang"
        return (json.loads(line), "") if line else ([], f"crash with status {process.wait()}")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _line(process: subprocess.Popen[str]) -> str | None:
    """The next line of output, "" at the end, None if it takes too long."""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
        if not selector.select(_SECONDS):
            return None
    return process.stdout.readline()  # type: ignore[union-attr]


def fuzz(
    seeds: Sequence[int],
    most_failures: int = 5,
    progress: Callable[[Report], object] = lambda report: None,
    symbolic: bool = False,
) -> Report:
    """Run the cases of these seeds; stops after `most_failures`, each reduced to few steps.

    `progress` is called after each batch with what is known so far. With `symbolic`, the code of a
    case is for any sizes, and runs with several.
    """
    report = Report()
    run = _Worker(symbolic)
    try:
        for start in range(0, len(seeds), BATCH):
            _batch(run, seeds[start : start + BATCH], report)
            progress(report)
            if len(report.failures) >= most_failures:
                break
        for failure in report.failures:
            _minimise(run, failure)
    finally:
        run.close()
    return report


def _batch(run: _Worker, seeds: Sequence[int], report: Report) -> None:
    opt = _opt(seeds[0])
    results, problem = run(seeds, opt)
    if not problem:
        _add(report, results, run.symbolic)
        return
    for seed in seeds:  # one of them is to blame
        _batch_of_one(run, seed, opt, report)


def _batch_of_one(run: _Worker, seed: int, opt: int, report: Report) -> None:
    results, problem = run([seed], opt)
    _add(report, results, run.symbolic)
    if problem:
        report.cases += 1
        case = draw_case(seed, run.symbolic)
        report.failures.append(Failure(case, problem.split()[0], problem))


def _opt(seed: int) -> int:
    return 3 if seed // BATCH % OPTIMISED == 0 else 0


def _add(report: Report, results: Sequence[dict[str, Any]], symbolic: bool) -> None:
    for result in results:
        report.cases += 1
        if "kind" in result:
            case = draw_case(result["seed"], symbolic)
            report.failures.append(Failure(case, result["kind"], result["message"]))
        else:
            report.accepted.update(result["accepted"])
            report.refused.update(result["refused"])


def _minimise(run: _Worker, failure: Failure) -> None:
    """Leave out the steps that the failure does not need, and keep the trace of the others."""
    case = failure.case
    try:
        drawn = random_schedule(case)
    except Exception as error:  # a primitive raised: the trace ends before it
        failure.trace = f"{type(error).__name__} while drawing"
        return

    def fails(steps: Sequence[Step]) -> bool:
        text = json.dumps({"format": 1, "steps": [s.to_dict() for s in steps]})
        results, problem = run([case.seed], _opt(case.seed), text)
        return bool(problem) or any(r.get("kind") == failure.kind for r in results)

    if not fails(drawn.schedule.steps):
        failure.trace = f"{drawn.schedule.trace()}\n(does not fail alone)"
        return
    failure.trace = replay(case, smallest(drawn.schedule.steps, fails)).schedule.trace()
