"""Memory plans are run here with NumPy over real bytes, so an overwritten live buffer shows."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinycomp.diagnostics import UnsupportedModel
from tinycomp.ir.expr import Var as Symbol
from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.constant_pool import ConstantPool
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Binding, Call, Function, IRModule
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.arena import Storage, assign_offsets
from tinycomp.relay.passes.branches import Workers
from tinycomp.relay.passes.fuse_ops import FuseOps
from tinycomp.relay.passes.plan_memory import KernelInfo, plan_memory
from tinycomp.relay.plan import (
    Branch,
    BufferRef,
    Copy,
    ExecutionPlan,
    KernelCall,
    Parallel,
    Step,
    all_steps,
)

OPS = default_ops()


class Simulator:
    """Runs a plan: kernels by the interpreter, memory as bytes that start as garbage."""

    def __init__(self, main: Function, workspace: int, threads: int, seed: int) -> None:
        self.kernels: dict[str, Function] = {}
        self.workspace = workspace
        self.constants = ConstantPool()
        self.random = random.Random(seed)
        self.plan: ExecutionPlan = plan_memory(
            main, self.kernel_of, self.constants, Workers(threads, 5e3)
        )

    def kernel_of(self, binding: Binding) -> KernelInfo:
        assert isinstance(binding.value, Call)
        assert isinstance(binding.value.op, Function)
        name = f"k_{binding.value.op.attrs['key']}"
        self.kernels[name] = binding.value.op
        return KernelInfo(name, self.workspace, nanoseconds=1e5)

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        plan = self.plan
        block = np.zeros(plan.constant_bytes, np.uint8)
        self.constants.write_into(block)
        outputs = [np.zeros(t.static_shape, t.dtype.numpy) for t in plan.outputs]
        self.spaces = {
            "input": [x.reshape(-1).view(np.uint8).copy() for x in inputs],
            "output": [x.reshape(-1).view(np.uint8) for x in outputs],
            "constant": block,
            "arena": np.full(plan.arena_bytes, 0xA5, np.uint8),
        }
        stack = list(reversed(plan.steps))
        while stack:
            step = stack.pop()
            if isinstance(step, KernelCall):
                self.call(step)
            elif isinstance(step, Copy):
                self.bytes(step.target)[:] = self.bytes(step.source)
            elif isinstance(step, Branch):
                chosen = step.then_steps if self.bytes(step.condition)[0] else step.else_steps
                stack.extend(reversed(chosen))
            elif isinstance(step, Parallel):
                stack.extend(self.mixed(step))
            elif isinstance(step, tuple):  # the test of a loop
                if self.bytes(step[0].condition)[0]:
                    again = (*step[0].body_steps, *step[0].condition_steps, step)
                    stack.extend(reversed(again))
            else:
                stack.extend(reversed((*step.condition_steps, (step,))))
        return outputs

    def mixed(self, step: Parallel) -> list[Step]:
        """The steps of all branches in an order in which they may happen to run."""
        branches = [list(branch) for branch in step.branches]
        order: list[Step] = []
        while any(branches):
            order.append(self.random.choice([b for b in branches if b]).pop())
        return order

    def bytes(self, ref: BufferRef) -> np.ndarray:
        space = self.spaces[ref.space.value]
        if isinstance(space, list):
            return space[ref.position][ref.offset : ref.offset + ref.nbytes]
        begin = ref.position + ref.offset
        assert begin % 64 == 0
        assert begin + ref.nbytes <= len(space)
        return space[begin : begin + ref.nbytes]

    def call(self, step: KernelCall) -> None:
        kernel = self.kernels[step.kernel]
        args = [
            self.bytes(ref).view(p.type.dtype.numpy).reshape(p.type.static_shape).copy()
            for ref, p in zip(step.args, kernel.params, strict=False)
        ]
        if step.workspace is not None:
            self.bytes(step.workspace)[:] = 0x5A
        for ref, result in zip(step.args[len(args) :], evaluate(kernel, args), strict=True):
            self.bytes(ref)[:] = np.ascontiguousarray(result).reshape(-1).view(np.uint8)


def check(function: Function, workspace: int = 0, seed: int = 0, threads: int = 1) -> ExecutionPlan:
    fused = FuseOps(fuse=False).run(IRModule({"main": function}), PassContext(OPS)).main
    rng = np.random.default_rng(seed)
    inputs = [
        (rng.standard_normal(p.type.static_shape) * 3).astype(p.type.dtype.numpy)
        for p in function.params
    ]
    simulator = Simulator(fused, workspace, threads, seed)
    for got, expected in zip(simulator.run(inputs), evaluate(function, inputs), strict=True):
        np.testing.assert_array_equal(got, expected)
    return simulator.plan


def copies(plan: ExecutionPlan) -> int:
    return sum(isinstance(s, Copy) for s in all_steps(plan.steps))


def test_a_chain_needs_two_buffers():
    b = Builder(OPS)
    y = b.param("x", (16,))
    for _ in range(10):
        y = b.call("negative", y)
    plan = check(b.finish(y))
    assert plan.arena_bytes == 2 * 64
    assert plan.unshared_bytes == 9 * 64
    assert copies(plan) == 0


def test_outputs_that_need_copies():
    b = Builder(OPS)
    x = b.param("x", (4,))
    y = b.call("exp", x)
    view = b.call("reshape", y, newshape=(2, 2))
    plan = check(b.finish([y, view, x, b.const(np.ones(3, np.float32)), b.call("negative", y)]))
    assert copies(plan) == 3
    assert plan.arena_bytes == 0


def test_a_view_of_a_result_is_written_in_place():
    b = Builder(OPS)
    y = b.call("reshape", b.call("exp", b.param("x", (4,))), newshape=(2, 2))
    plan = check(b.finish(y))
    assert copies(plan) == 0


def test_a_view_of_an_input_is_copied():
    b = Builder(OPS)
    assert copies(check(b.finish(b.call("reshape", b.param("x", (4,)), newshape=(2, 2))))) == 1


def rows(b: Builder, x, begin: int, end: int):
    return b.call("strided_slice", x, begin=(begin, 0), end=(end, 16), strides=(1, 1))


def test_rows_of_a_matrix_are_read_where_they_are():
    b = Builder(OPS)
    x = b.call("exp", b.param("x", (4, 16)))
    halves = [b.call("negative", rows(b, x, i, i + 2)) for i in (0, 2)]
    plan = check(b.finish(halves))
    calls = [s for s in all_steps(plan.steps) if isinstance(s, KernelCall)]
    assert len(calls) == 3
    assert calls[1].kernel == calls[2].kernel
    assert [c.args[0].offset for c in calls[1:]] == [0, 128]


def test_rows_as_results_are_copied():
    b = Builder(OPS)
    x = b.call("exp", b.param("x", (4, 16)))
    assert copies(check(b.finish([rows(b, x, 1, 3), rows(b, x, 2, 4)]))) == 2


def test_branches_have_memory_of_their_own():
    b = Builder(OPS)
    ends = []
    x = b.param("x", (2, 16))
    for _ in range(2):
        y = b.call("exp", x)
        for _ in range(6):
            y = b.call("negative", y)
        ends.append(y)
    function = b.finish(b.call("add", *ends))
    plan = check(function, threads=2)
    assert [len(s.branches) for s in plan.steps if isinstance(s, Parallel)] == [2]
    for seed in range(20):
        check(function, workspace=100, seed=seed, threads=2)
    assert plan.arena_bytes == 2 * 3 * 128  # each chain needs two buffers and one for its result


def test_constants_are_shared_by_identity():
    b = Builder(OPS)
    x, w = b.param("x", (4,)), b.const(np.arange(4, dtype=np.float32))
    plan = check(b.finish(b.call("add", b.call("multiply", x, w), w)))
    assert plan.constant_bytes == 64


def test_workspace_does_not_overlap_the_kernel_arguments():
    b = Builder(OPS)
    x = b.param("x", (100,))
    y = b.call("negative", b.call("exp", b.call("negative", x)))
    plan = check(b.finish(y), workspace=1000)
    assert plan.arena_bytes >= 2 * 400 + 1000


def branch(op: str, count: int = 1) -> Function:
    b = Builder(OPS)
    x, y = b.param("x", (4,)), b.param("y", (4,))
    z = x
    for _ in range(count):
        z = b.call(op, z, y)
    return b.finish([z, x])


def test_branches_share_memory_and_write_results_in_place():
    b = Builder(OPS)
    x, y = b.param("x", (4,)), b.param("y", (4,))
    condition = b.call("greater", b.call("sum", x, axis=(0,), keepdims=False), b.const(0.0))
    early = b.call("exp", y)
    chosen = b.if_(condition, branch("add", 4), branch("multiply", 3), [early, y])
    total = b.call("add", b.get(chosen, 0), b.get(chosen, 1))
    f = b.finish([b.call("add", total, early), b.get(chosen, 0)])
    for seed in range(4):
        check(f, seed=seed)


def loop(swap: bool) -> Function:
    """Count to 5; two vectors change, swapping places or not, with a captured third."""
    test = Builder(OPS)
    i, _, _, _ = (test.param(n, s) for n, s in (("i", ()), ("a", (4,)), ("b", (4,)), ("c", (4,))))
    condition = test.finish(test.call("less", i, test.const(5.0)))
    body = Builder(OPS)
    i, u, v, c = (body.param(n, s) for n, s in (("i", ()), ("a", (4,)), ("b", (4,)), ("c", (4,))))
    later = body.call("add", i, body.const(1.0))
    extra = body.call("add", body.call("tanh", u), c)
    state = [later, v, u] if swap else [later, extra, body.call("reshape", v, newshape=(4,))]
    body_function = body.finish(state)
    b = Builder(OPS)
    x, y, z = b.param("x", (4,)), b.param("y", (4,)), b.param("z", (4,))
    captured = b.call("exp", z)
    start = b.call("negative", y)
    result = b.while_(condition, body_function, [b.const(0.0), x, start], [captured])
    tail = b.call("negative", b.call("negative", b.get(result, 1)))
    return b.finish([tail, b.get(result, 2), b.get(result, 0)])


@pytest.mark.parametrize("swap", [True, False])
def test_loops(swap):
    check(loop(swap))


def test_symbolic_shapes_are_refused():
    b = Builder(OPS)
    x = b.param("x", (Symbol("n"), 4))
    f = FuseOps().run(IRModule({"main": b.finish(b.call("exp", x))}), PassContext(OPS)).main
    with pytest.raises(UnsupportedModel, match="not known while compiling"):
        plan_memory(f, lambda _: KernelInfo("k"), ConstantPool())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_graphs(data):
    b = Builder(OPS)
    values = [b.param("x", (4, 16)), b.param("y", (4, 16))]
    for _ in range(data.draw(st.integers(1, 20))):
        kind = data.draw(st.sampled_from(["add", "neg", "view", "concat", "slice"]))
        x, y = (values[data.draw(st.integers(0, len(values) - 1))] for _ in range(2))
        if kind == "add":
            values.append(b.call("add", x, y))
        elif kind == "neg":
            values.append(b.call("negative", x))
        elif kind == "view":
            tall = b.call("reshape", x, newshape=(16, 4))
            values.append(b.call("reshape", b.call("negative", tall), newshape=(4, 16)))
        else:
            both = b.call("concatenate", x, y, axis=0)
            begin = data.draw(st.integers(0, 4)) if kind == "slice" else 0
            values.append(rows(b, both, begin, begin + 4))
    picked = data.draw(st.lists(st.sampled_from(values), min_size=1, max_size=4))
    check(
        b.finish(picked),
        workspace=data.draw(st.sampled_from([0, 300])),
        seed=data.draw(st.integers(0, 99)),
        threads=data.draw(st.integers(1, 3)),
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 20), st.integers(0, 8)), max_size=25))
def test_offsets_of_overlapping_lifetimes_are_disjoint(items):
    storages = [Storage(size, start, start + length) for size, start, length in items]
    offsets, total = assign_offsets(storages)
    for i, a in enumerate(storages):
        assert offsets[i] % 64 == 0
        assert offsets[i] + a.nbytes <= total
        for j in range(i):
            b = storages[j]
            if a.start <= b.end and b.start <= a.end and a.nbytes and b.nbytes:
                apart = offsets[i] + a.nbytes <= offsets[j] or offsets[j] + b.nbytes <= offsets[i]
                assert apart
