"""The time of work on a stream, by events."""

from __future__ import annotations

from collections.abc import Callable

from ..function import TimeResult
from .driver import Driver


def time_on_stream(
    driver: Driver,
    stream: int,
    run: Callable[[], None],
    number: int,
    repeat: int,
    flush_cache: bool,
) -> TimeResult:
    """`repeat` times the mean of `number` runs, which `run` gives to the stream.

    With `flush_cache` L2 is emptied before every single run, and `number` is ignored.
    """
    number = 1 if flush_cache else number
    junk_bytes = 2 * driver.facts().l2_bytes if flush_cache else 0
    junk = driver.allocate(junk_bytes) if flush_cache else 0
    start, stop = (driver.new_event(timing=True) for _ in range(2))
    seconds: list[float] = []
    for _ in range(repeat):
        if flush_cache:
            driver.clear(junk, junk_bytes, stream)
        driver.record(start, stream)
        for _ in range(number):
            run()
        driver.record(stop, stream)
        seconds.append(driver.elapsed(start, stop) / 1e3 / number)
    if flush_cache:
        driver.free(junk)
    for event in (start, stop):
        driver.free_event(event)
    return TimeResult(tuple(seconds), number)
