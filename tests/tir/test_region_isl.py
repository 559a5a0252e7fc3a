"""Regions and orders of execution against the integer set library, an independent oracle."""

import inspect
import random
from dataclasses import replace

import islpy as isl
import pytest

from tinycomp import te
from tinycomp.diagnostics import ScheduleError
from tinycomp.dtype import DType
from tinycomp.ir.expr import Binary, BinaryOp, Call, Expr, IntImm, Load, Var, const, substitute
from tinycomp.ir.node import fold, postorder
from tinycomp.te.simplify import Analyzer
from tinycomp.te.tensor import IterKind, IterVar
from tinycomp.testing.computations import COMPUTATIONS
from tinycomp.testing.schedule_fuzz import Case, random_schedule
from tinycomp.tir.nodes import Block, Buffer, For, PrimFunc, Seq, Store
from tinycomp.tir.passes.visit import conjuncts
from tinycomp.tir.primitives.reorder import reorder
from tinycomp.tir.region import interval, region
from tinycomp.tir.schedule import create_schedule
from tinycomp.tir.tree import (
    child_statements,
    loads_in,
    statements,
    stores_in,
    substitute_stmt,
)

_TEXT = {
    BinaryOp.ADD: "({} + {})", BinaryOp.SUB: "({} - {})", BinaryOp.MUL: "({} * {})",
    BinaryOp.FLOORDIV: "floor({} / {})", BinaryOp.FLOORMOD: "({} mod {})",
    BinaryOp.MIN: "min({}, {})", BinaryOp.MAX: "max({}, {})", BinaryOp.LT: "({} < {})",
    BinaryOp.LE: "({} <= {})", BinaryOp.EQ: "({} = {})", BinaryOp.AND: "({} and {})",
}  # fmt: skip


def text(expr, names):
    """An affine expression or condition in isl's notation."""

    def step(node, parts):
        if isinstance(node, Var):
            return names[node]
        if isinstance(node, IntImm):
            return str(node.value) if node.dtype is DType.INT64 else "1 = " + str(node.value)
        if isinstance(node, Call) and node.name == "likely":
            return parts[0]
        assert isinstance(node, Binary), node
        return _TEXT[node.op].format(*parts)

    return fold(expr, step)


# -- intervals and regions -----------------------------------------------------------------------


def affine(rng, variables):
    """A random sum of multiples of the variables, each at most once."""
    expr: Expr = const(rng.randint(-5, 5))
    for var in rng.sample(variables, rng.randint(0, len(variables))):
        expr = expr + var * rng.choice((-3, -2, -1, 1, 1, 1, 2, 4))
    return expr


def loops(rng):
    """Inner variables with their ranges, outer ones with theirs, and an analyzer that knows all."""
    analyzer = Analyzer()
    inner, outer, ranges = [Var(f"i{d}") for d in range(3)], [Var("p"), Var("q")], {}
    for var in (*inner, *outer):
        low, extent = rng.choice((0, 0, 2)), rng.choice((1, 2, 3, 5, 8))
        ranges[var] = low, extent
        analyzer.bind(var, low, extent)
    bounds = {v: (const(ranges[v][0]), const(ranges[v][0] + ranges[v][1] - 1)) for v in inner}
    return inner, outer, ranges, bounds, analyzer


def image(exprs, inner, ranges, values):
    """All values of the expressions while `inner` range and the other variables have `values`."""
    names = {v: v.name for v in inner} | {v: str(n) for v, n in values.items()}
    variables = ", ".join(v.name for v in inner)
    within = " and ".join(f"{ranges[v][0]} <= {v.name} < {sum(ranges[v])}" for v in inner)
    parts = [f"{{ [{variables}] -> [{text(e, names)}] : {within} }}" for e in exprs]
    result = isl.Set("{ [x] : false }")
    for part in parts:
        result = result.union(isl.Map(part).range())
    return result


def value(expr, values, analyzer):
    found = analyzer.simplify(substitute(expr, {v: const(n) for v, n in values.items()}))
    assert isinstance(found, IntImm), found
    return found.value


@pytest.mark.parametrize("seed", range(150))
def test_interval_of_an_affine_index_is_exact(seed):
    rng = random.Random(seed)
    inner, outer, ranges, bounds, analyzer = loops(rng)
    index = affine(rng, [*inner, *outer])
    found = interval(index, bounds, analyzer)
    assert found is not None
    values = {v: rng.randrange(*(ranges[v][0], sum(ranges[v]))) for v in outer}
    points = image([index], inner, ranges, values)
    assert int(str(points.dim_min_val(0))) == value(found[0], values, analyzer)
    assert int(str(points.dim_max_val(0))) == value(found[1], values, analyzer)


@pytest.mark.parametrize("seed", range(150))
def test_interval_with_division_and_remainder_covers(seed):
    rng = random.Random(1000 + seed)
    inner, outer, ranges, bounds, analyzer = loops(rng)
    divisor = rng.choice((2, 3, 4))
    part = affine(rng, [*inner, *outer])
    index = (part // divisor if rng.random() < 0.5 else part % divisor) + affine(rng, inner)
    found = interval(index, bounds, analyzer)
    if found is None:
        return
    for _ in range(3):
        values = {v: rng.randrange(*(ranges[v][0], sum(ranges[v]))) for v in outer}
        points = image([index], inner, ranges, values)
        assert int(str(points.dim_min_val(0))) >= value(found[0], values, analyzer)
        assert int(str(points.dim_max_val(0))) <= value(found[1], values, analyzer)


@pytest.mark.parametrize("seed", range(150))
def test_region_is_the_hull_of_accesses_that_differ_by_constants(seed):
    rng = random.Random(2000 + seed)
    inner, outer, ranges, bounds, analyzer = loops(rng)
    common = affine(rng, [*inner, *outer])
    accesses = [(common + rng.randint(-4, 4),) for _ in range(rng.randint(1, 4))]
    ((start, extent),) = region(accesses, (const(10_000),), bounds, analyzer)
    values = {v: rng.randrange(*(ranges[v][0], sum(ranges[v]))) for v in outer}
    points = image([a for (a,) in accesses], inner, ranges, values)
    first = value(start, values, analyzer)
    assert int(str(points.dim_min_val(0))) == first
    assert int(str(points.dim_max_val(0))) == first + value(extent, values, analyzer) - 1


# -- what is read was computed before ------------------------------------------------------------

PRIMITIVES = (
    "split", "tile", "fuse", "reorder", "compute_at", "reverse_compute_at", "compute_inline",
    "cache_read", "cache_write", "compute_root", "parallel", "vectorize", "unroll",
)  # fmt: skip
AFFINE = {
    "elementwise_chain": (5, 7), "diamond": (4, 6), "transpose": (5, 3), "permute": (3, 4, 5),
    "flatten": (4, 5), "upsample": (3, 4), "reverse": (5, 4), "strided_slice": (3, 4),
    "sum_columns": (5, 6), "max_all": (4, 5), "min_rows": (5, 7), "matmul_bias_relu": (4, 5, 3),
    "two_matmuls": (3, 4, 5), "stencil_chain": (11,), "blur": (5, 6), "scalar": (7,),
    "layer_norm": (3, 4), "conv1d": (2, 3, 9, 3, 2, 1, 0), "average_pool": (7, 7, 3, 2),
}  # fmt: skip


class Statement:
    """A block as isl sees it: its iterations, when they run, what they read and write."""

    def __init__(self, block, path, number):
        self.block, self.name = block, f"S{number}"
        self.loops = [p for p in path if isinstance(p, For)]
        names = {loop.var: f"v{number}_{d}" for d, loop in enumerate(self.loops)}
        self.variables = [names[loop.var] for loop in self.loops]
        self.time = [names[p.var] if isinstance(p, For) else str(p) for p in path]
        bind = dict(zip((v.var for v in block.iter_vars), block.bindings, strict=True))
        self.text = lambda e: text(substitute(e, bind), names)
        within = [
            f"{text(l.min, names)} <= {names[l.var]} < {text(l.min + l.extent, names)}"
            for l in self.loops
        ]
        within += [text(c, names) for c in conjuncts(block.predicate) if not is_true(c)]
        self.within = " and ".join(within) or "0 = 0"
        self.writes = {s.buffer: s.indices for s in stores_in(block.body)}
        reduced = [v for v in block.iter_vars if v.kind is IterKind.REDUCE]
        self.reduced = [(self.text(v.var), v.min.value, v.extent.value) for v in reduced]

    def map(self, places):
        return isl.Map(
            f"{{ [{', '.join(self.variables)}] -> [{', '.join(places)}] : {self.within} }}"
        )

    def when(self, length):
        return self.map(self.time + ["0"] * (length - len(self.time)))


def is_true(condition):
    return isinstance(condition, IntImm) and condition.value == 1


def statements_of(func):
    """The blocks with their paths: a loop, or the position in a sequence."""
    found, stack = [], [(func.body, ())]
    while stack:
        stmt, path = stack.pop()
        if isinstance(stmt, Block):
            found.append(Statement(stmt, path, len(found)))
        elif isinstance(stmt, Seq):
            stack += [(s, (*path, i)) for i, s in enumerate(stmt.stmts)]
        else:
            assert isinstance(stmt, For)
            stack += [(c, (*path, stmt)) for c in child_statements(stmt)]
    return found


def before(length):
    """Pairs of times of which the first is earlier."""
    return isl.Map.lex_lt(isl.Space.set_alloc(isl.DEFAULT_CONTEXT, 0, length))


def check_reads(func):
    """Whatever is read from an intermediate buffer was computed before, in full, in the same
    iteration of all loops that reader and writer share."""
    statements = statements_of(func)
    length = max(len(s.time) for s in statements)
    for reader in statements:
        for load in loads_in(reader.block.body):
            writers = [s for s in statements if load.source in s.writes and s is not reader]
            if (
                load.source not in func.allocs
                or not writers
                or any(isinstance(n, Load) for i in load.indices for n in postorder(i))
            ):
                continue
            (writer,) = writers
            needed = reader.map([reader.text(i) for i in load.indices])
            element = [writer.text(i) for i in writer.writes[load.source]]
            values = [v for v, _, _ in writer.reduced]
            computed = writer.map([*element, *values])
            if values:  # every step of the reduction
                ranges = [
                    f"{low} <= r{d} < {low + n}" for d, (_, low, n) in enumerate(writer.reduced)
                ]
                names = ", ".join(f"r{d}" for d in range(len(values)))
                index = ", ".join(f"x{d}" for d in range(len(element)))
                steps = f"{{ [{index}] -> [{', '.join(filter(None, (index, names)))}] : "
                needed = needed.apply_range(isl.Map(steps + " and ".join(ranges) + " }"))
            earlier = reader.when(length).apply_range(before(length).reverse())
            earlier = earlier.apply_range(writer.when(length).reverse())
            shared = sum(1 for a, b in zip(reader.loops, writer.loops, strict=False) if a is b)
            for d in range(shared):
                earlier = earlier.equate(isl.dim_type.in_, d, isl.dim_type.out, d)
            available = earlier.apply_range(computed)
            assert needed.is_subset(available), f"{reader.block.name} reads {load}\n{func}"


@pytest.mark.parametrize("seed", range(150))
def test_reads_follow_writes_in_random_schedules(seed):
    rng = random.Random(seed)
    name = rng.choice(list(AFFINE))
    names = inspect.signature(COMPUTATIONS[name]).parameters
    parameters = dict(zip(names, AFFINE[name], strict=True))
    drawn = random_schedule(Case(seed, name, parameters, 128), PRIMITIVES)
    check_reads(drawn.schedule.func)


@pytest.mark.parametrize("seed", range(60))
def test_compute_at_computes_the_hull_of_what_is_read(seed):
    """C[i] = B[i * stride + o] + ... with i split evenly: no element more in any iteration."""
    rng = random.Random(seed)
    stride, factor, parts = rng.choice((1, 2, 3)), rng.choice((1, 2, 4)), rng.choice((2, 3, 5))
    offsets = [rng.randint(0, 6) for _ in range(rng.randint(1, 3))]
    n = factor * parts
    a = te.placeholder((n * stride + 6,), name="A")
    b = te.compute(a.shape, lambda i: a[i] + 1.0, name="B")
    c = te.compute((n,), lambda i: sum(b[i * stride + o] for o in offsets), name="C")
    s = create_schedule(c, [a])
    outer, _ = s[c].split("i", factor=factor)
    s[b].compute_at(s[c], outer)
    writer, reader = sorted(statements_of(s.func), key=lambda x: x.block.name)
    (buffer,) = writer.writes

    def elements(statement, indices, iteration):
        place = [statement.text(i) for i in indices]
        places = statement.map([*statement.variables[:1], *place]).range()
        return places.fix_val(isl.dim_type.set, 0, isl.Val(iteration)).project_out(
            isl.dim_type.set, 0, 1
        )

    for iteration in range(parts):
        written = elements(writer, writer.writes[buffer], iteration)
        read = isl.Set("{ [x] : false }")
        for load in loads_in(reader.block.body):
            read = read.union(elements(reader, load.indices, iteration))
        least, most = read.dim_min_val(0), read.dim_max_val(0)
        assert written.is_equal(isl.Set(f"{{ [x] : {least} <= x <= {most} }}"))


# -- the oracle itself, and the order of dependent iterations ------------------------------------


def nests_of(name, *sizes):
    computation = COMPUTATIONS[name](*sizes)
    return create_schedule(computation.outputs, computation.inputs).func


def test_reads_before_writes_are_found():
    func = nests_of("elementwise_chain", 4, 5)
    first, second, third = func.body.stmts
    check_reads(func)
    with pytest.raises(AssertionError, match="C reads B"):
        check_reads(replace(func, body=Seq((second, first, third))))


def test_writes_of_too_few_elements_are_found():
    func = nests_of("stencil_chain", 6)
    first, *others = func.body.stmts
    shorter = replace(first, extent=first.extent - 1)
    with pytest.raises(AssertionError, match="C reads B"):
        check_reads(replace(func, body=Seq((shorter, *others))))


def test_reads_of_unfinished_sums_are_found():
    func = nests_of("sum_columns", 4, 5)
    sums, reader = func.body.stmts  # for j: for k: B, and for j: C
    values = {reader.var: sums.var}
    inside = substitute_stmt(reader.body, values)
    k = sums.body
    check_reads(replace(func, body=replace(sums, body=Seq((k, inside)))))
    unfinished = replace(k, body=Seq((k.body, inside)))
    func = replace(func, body=replace(sums, body=unfinished))
    with pytest.raises(AssertionError, match="C reads B"):
        check_reads(func)


@pytest.mark.parametrize("seed", range(60))
def test_reorder_keeps_dependent_iterations_in_order(seed):
    """X[t, ...] = X[t - 1, ... + offsets] in a nest over t, which runs in sequence."""
    rng = random.Random(seed)
    rank = rng.choice((2, 3))
    extents = [rng.choice((2, 3, 5)) for _ in range(rank)]
    offsets = [-1, *(rng.choice((-1, 0, 1)) for _ in range(rank - 1))]
    own = [Var(f"a{d}") for d in range(rank)]
    variables = [Var(f"v{d}") for d in range(rank)]
    x = Buffer("X", tuple(const(e + 2) for e in extents), DType.FLOAT32)
    places = tuple(v + 1 for v in own)
    read = Load(x, tuple(p + o for p, o in zip(places, offsets, strict=True)), None)
    kinds = [IterKind.ORDERED, *[IterKind.SPATIAL] * (rank - 1)]
    axes = tuple(
        IterVar(v, const(0), const(e), k) for v, e, k in zip(own, extents, kinds, strict=True)
    )
    body = Block("X", axes, tuple(variables), Store(x, places, read + 1.0))
    for var, extent in reversed(list(zip(variables, extents, strict=True))):
        body = For(var, const(0), const(extent), body)
    func = PrimFunc("f", (x,), 1, body)
    order = rng.sample(variables, rng.randint(2, rank))
    try:
        reordered = reorder(func, order)
    except ScheduleError:
        assert variables[0] in order[1:]  # only because another loop would come outside of time
        return
    names = [loop.var.name for loop in statements(reordered.body) if isinstance(loop, For)]
    sizes = {v.name: e for v, e in zip(variables, extents, strict=True)}
    distance = {v.name: -o for v, o in zip(variables, offsets, strict=True)}
    source = ", ".join(names)
    sink = ", ".join(f"{n} + {distance[n]}" for n in names)
    within = " and ".join(f"0 <= {n} < {sizes[n]}" for n in names)
    dependences = isl.Map(f"{{ [{source}] -> [{sink}] : {within} }}")
    assert dependences.is_subset(before(rank)), str(reordered)
