"""Times on a GPU: CUDA graphs of many launches between two events, engines interleaved.

Each engine is captured as a graph that computes once for each of several sets of buffers, so many
that they do not fit in the L2 cache together: what is measured is not the cache, and the gaps
between launches are those of a graph. Rounds alternate between the engines, and medians over
rounds are compared, because the clock of a GPU under load moves.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from tinycomp.runtime.cuda.driver import Driver

if TYPE_CHECKING:
    from harness import Env

ROUNDS = 9
SAMPLE_SECONDS = 4e-3  # of one engine in one round
L2_BYTES = 64 << 20


class Timed(Protocol):
    """Something to time: `seconds(n)` is what n replays took, of `count` computations each."""

    count: int

    def seconds(self, replays: int) -> float: ...


def sets_for(nbytes: int, most: int = 32) -> int:
    """How many sets of buffers exceed the L2 cache twice.

    >>> sets_for(1 << 20), sets_for(1 << 30), sets_for(48 << 20)
    (32, 1, 3)
    """
    return min(most, max(1, -(-2 * L2_BYTES // max(nbytes, 1)))) if nbytes < 2 * L2_BYTES else 1


class DriverGraph:
    """`enqueue(i, stream)` for i in range(count), captured through tinycomp's driver."""

    def __init__(self, driver: Driver, enqueue: Callable[[int, int], None], count: int = 1) -> None:
        self.driver, self.count = driver, count
        driver.use()
        self.stream = driver.new_stream()
        self._events = driver.new_event(timing=True), driver.new_event(timing=True)
        with driver.capture(self.stream) as captured:
            for i in range(count):
                enqueue(i, self.stream)
        self.graph = captured.graph
        self.seconds(1)

    def seconds(self, replays: int) -> float:
        driver, (start, stop) = self.driver, self._events
        driver.use()
        driver.record(start, self.stream)
        for _ in range(replays):
            driver.launch_graph(self.graph, self.stream)
        driver.record(stop, self.stream)
        return driver.elapsed(start, stop) / 1e3


class Untimed:
    """`call(i)` for i in range(count), in a dry run: called, and never timed."""

    def __init__(self, call: Callable[[int], Any], count: int = 1) -> None:
        self.call, self.count = call, count

    def seconds(self, replays: int) -> float:
        for _ in range(replays):
            for i in range(self.count):
                self.call(i)
        return math.nan


class TorchGraph:
    """`call(i)` for i in range(count), captured by PyTorch on the GPU."""

    def __init__(self, call: Callable[[int], Any], count: int = 1) -> None:
        import torch

        self.torch, self.count = torch, count
        self.stream = torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), torch.no_grad():
            for _ in range(3):  # compilation and autotuning happen here
                for i in range(count):
                    call(i)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream), torch.no_grad():
            for i in range(count):
                call(i)

    def seconds(self, replays: int) -> float:
        torch = self.torch
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self.stream):
            start.record()
            for _ in range(replays):
                self.graph.replay()
            stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3


class TorchCalls:
    """Calls of a model compiled by PyTorch between two events; it replays graphs of its own."""

    count = 1

    def __init__(self, call: Callable[[], Any]) -> None:
        import torch

        self.torch, self.call = torch, call
        for _ in range(5):  # compiles, warms up, records
            self._once()
        torch.cuda.synchronize()

    def _once(self) -> None:
        self.torch.compiler.cudagraph_mark_step_begin()
        with self.torch.no_grad():
            self.call()

    def seconds(self, replays: int) -> float:
        start, stop = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(replays):
            self._once()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3


def torch_graph(env: Env, call: Callable[[int], Any], count: int = 1) -> Timed:
    """How PyTorch's `call(i)` for i in range(count) are timed."""
    return Untimed(call, count) if env.dry else TorchGraph(call, count)


def torch_calls(env: Env, call: Callable[[], Any]) -> Timed:
    """How calls are timed that PyTorch makes graphs of itself."""
    return Untimed(lambda _: call()) if env.dry else TorchCalls(call)


class HostLoop:
    """Calls timed on the host until `finish`, for engines that cannot be captured."""

    def __init__(self, call: Callable[[], Any], finish: Callable[[Any], None]) -> None:
        self.call, self.finish, self.count = call, finish, 1
        for _ in range(3):
            finish(call())

    def seconds(self, replays: int) -> float:
        start = time.perf_counter()
        result = None
        for _ in range(replays):
            result = self.call()
        self.finish(result)
        return time.perf_counter() - start


def measure(
    env: Env, engines: Mapping[str, Timed], rounds: int = ROUNDS
) -> dict[str, dict[str, float]]:
    """Microseconds of one computation of each engine: `us` (median of rounds), `us_min`, and
    `spread` (the width of the middle half over the median). A dry run replays everything, and
    reports nothing."""
    if env.dry:
        for engine in engines.values():
            engine.seconds(1)
        return {name: {} for name in engines}
    replays: dict[str, int] = {}
    for name, engine in engines.items():
        engine.seconds(2)
        once = max(engine.seconds(3) / 3, 1e-7)
        replays[name] = max(3, min(2000, round(SAMPLE_SECONDS / once)))
    samples: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            n = replays[name]
            samples[name].append(engine.seconds(n) / (n * engine.count) * 1e6)
    return {name: summary(times) for name, times in samples.items()}


def beside_best(
    right: Collection[str], times: Mapping[str, Mapping[str, float]], name: str
) -> float | None:
    """The time of the fastest other engine over this one's: above 1, this one is faster.

    Args:
        right: the engines whose results are right; others do not count.

    >>> beside_best("abc", {"a": {"us": 2.0}, "b": {"us": 3.0}, "c": {"us": 5.0}}, "a")
    1.5
    """
    family = name.split()[0]
    others = [
        found["us"]
        for other, found in times.items()
        if other.split()[0] != family and other in right and "us" in found
    ]
    return min(others) / times[name]["us"] if others else None


def rates(found: Mapping[str, float], nbytes: float = 0, flops: float = 0) -> dict[str, float]:
    """What was measured, with GB/s and TFLOP/s of a computation of this size.

    >>> rates({"us": 2.0}, nbytes=3e6)
    {'us': 2.0, 'gbps': 1500.0}
    """
    result = dict(found)
    if nbytes and found:
        result["gbps"] = nbytes / found["us"] / 1e3
    if flops and found:
        result["tflops"] = flops / found["us"] / 1e6
    return result


def summary(times: list[float]) -> dict[str, float]:
    """
    >>> summary([1.0, 2.0, 3.0, 4.0, 5.0])
    {'us': 3.0, 'us_min': 1.0, 'spread': 0.667}
    """
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else (
        times[0], times[0], times[0]
    )  # fmt: skip
    return {"us": median, "us_min": min(times), "spread": round((high - low) / median, 3)}
