"""Branches: what runs beside each other needs nothing of each other, and everything runs once."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.nodes import Binding, Function
from tinycomp.relay.passes.branches import Section, Workers, find_branches

OPS = default_ops()
LEAST_GAIN = 5_000


def workers(count: int) -> Workers:
    return Workers(count, LEAST_GAIN)


def chains(*lengths: int) -> Function:
    """Chains that begin at one value and are added up at the end."""
    b = Builder(OPS)
    ends = []
    for length in lengths:
        y = b.call("exp", b.params[0]) if b.params else b.call("exp", b.param("x", (4,)))
        for _ in range(length - 1):
            y = b.call("negative", y)
        ends.append(y)
    total = ends[0]
    for end in ends[1:]:
        total = b.call("add", total, end)
    return b.finish(total)


def sections(items) -> list[list[int]]:
    return [[len(b) for b in item.branches] for item in items if isinstance(item, Section)]


def test_chains_are_shared_out_among_threads():
    time = LEAST_GAIN / 4
    assert sections(find_branches(chains(8, 8), lambda _: time, workers(2))) == [[8, 8]]
    assert sections(find_branches(chains(8, 8, 8), lambda _: time, workers(3))) == [[8, 8, 8]]
    assert sections(find_branches(chains(9, 4, 5), lambda _: time, workers(2))) == [[9, 9]]


def test_what_saves_little_stays_in_order():
    function = chains(3, 3)
    time = LEAST_GAIN / 4
    assert find_branches(function, lambda _: time, workers(2)) is function.bindings
    assert find_branches(function, lambda _: LEAST_GAIN, workers(1)) is function.bindings
    assert find_branches(function, lambda _: None, workers(2)) is function.bindings


def test_what_runs_alone_goes_ahead_of_branches():
    """The second chain begins with a large kernel, which must not cut the first one."""
    function = chains(8, 8)
    alone = function.bindings[8]
    items = find_branches(function, lambda b: None if b is alone else LEAST_GAIN / 4, workers(2))
    assert items[0] is alone
    assert sections(items) == [[8, 7]]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_functions(data):
    b = Builder(OPS)
    values = [b.param("x", (4,))]
    work: dict[object, float | None] = {}
    for _ in range(data.draw(st.integers(1, 40))):
        x, y = (values[data.draw(st.integers(0, len(values) - 1))] for _ in range(2))
        values.append(b.call("add", x, y))
        work[values[-1]] = data.draw(st.sampled_from([None, 0.0, 2e3, 4e3, 1e4]))
    function = b.finish(values[-1])
    items = find_branches(function, lambda b: work[b.var], workers(data.draw(st.integers(1, 4))))
    done = set(function.params)
    for item in items:
        branches = item.branches if isinstance(item, Section) else ((item,),)
        made = []
        for branch in branches:
            own = set(done)
            for binding in branch:
                assert isinstance(binding, Binding)
                assert all(a in own for a in binding.args)
                assert binding.var not in done
                assert len(branches) == 1 or work[binding.var] is not None
                own.add(binding.var)
            made.append(own - done)
        assert sum(map(len, made)) == len(set().union(*made))
        done |= set().union(*made)
    assert done == {*function.params, *(b.var for b in function.bindings)}
