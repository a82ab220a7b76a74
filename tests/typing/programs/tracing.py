"""Decorators keep what they decorate."""

from typing import assert_type

from callbackkit import PerformanceStats, monitor_callback_performance, trace_callback


@trace_callback
def add(a: int, b: int = 0) -> int:
    return a + b


@trace_callback
async def fetch(url: str) -> bytes:
    return url.encode()


@trace_callback(name="named")
def named(a: int) -> str:
    return str(a)


assert_type(add(1, b=2), int)
assert_type(named(1), str)
add("one")  # E
add(1, c=2)  # E
named("one")  # E
trace_callback("name")  # E


@monitor_callback_performance
def measured(a: int) -> int:
    return a


@monitor_callback_performance
async def measured_async(a: int) -> str:
    return str(a)


assert_type(measured(1), int)
assert_type(measured.stats, PerformanceStats)
assert_type(measured_async.stats.count, int)
assert_type(measured.stats.p95, float)
measured("one")  # E
measured.stats.p42  # E


async def main() -> None:
    assert_type(await fetch("x"), bytes)
    assert_type(await measured_async(1), str)
    await fetch(1)  # E
    await measured_async("one")  # E
