"""The tables there are, by the name they are asked for with."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from tests.benchmarks.async_dispatch import concurrent, sequential, timeouts
from tests.benchmarks.delivery import delivering
from tests.benchmarks.fan_out import server_sent, websockets
from tests.benchmarks.fan_out_idle import held_open
from tests.benchmarks.fan_out_latency import keeping_pace
from tests.benchmarks.fan_out_polling import polled
from tests.benchmarks.harness import Table
from tests.benchmarks.import_time import importing
from tests.benchmarks.redis import (
    appends as redis_appends,
    hand_over as redis_hand_over,
    idle as redis_idle,
)
from tests.benchmarks.redis_follow import followed
from tests.benchmarks.registration import churn, memory, rotation
from tests.benchmarks.sessions import emitting, idle
from tests.benchmarks.special_tokens import escaped, formatted, parsed
from tests.benchmarks.stores import (
    appends,
    appends_alone,
    appends_in_memory,
    hand_over,
    polls,
    polls_by_length,
)
from tests.benchmarks.streaming import (
    awaited_burst,
    burst,
    from_thread,
    in_turns,
    several_readers,
)
from tests.benchmarks.streaming_latency import across_threads, on_the_loop
from tests.benchmarks.sync_dispatch import by_name, one_raises
from tests.benchmarks.webhooks import posted
from tests.benchmarks.webhooks_waiting import waiting

Build = Callable[[], AbstractContextManager[Table]]


def all_tables(
    registered: int = 100_000, streamed: int = 100_000, clients: int = 100
) -> dict[str, Build]:
    """Return what builds each table.

    Args:
        registered: How many callbacks "many" are.
        streamed: How many tokens a stream has, 200 or more; a tenth where each is waited for, a
            hundredth where there is a pause before each.
        clients: How many read one session; ten times as many read one each, a hundred times as many
            read and get nothing.
    """
    waited_for = streamed // 10
    paused = streamed // 100
    return {
        "sync-10": partial(by_name, 10, target=2.5, stretch=1.8),
        "sync-1": partial(by_name, 1, target=4.0),
        "sync-0": partial(by_name, 0, target=2.5),
        "awaited": sequential,
        "concurrent-suspending": partial(concurrent, "suspend", 1.2),
        "concurrent-ready": partial(concurrent, "do not suspend", 0.3),
        "timeout": timeouts,
        "failure": one_raises,
        "import": importing,
        "memory": partial(memory, registered),
        "register-empty": partial(churn, 0),
        "register-many": partial(churn, registered),
        "register-many-types": partial(churn, registered, 1_000),
        "register-oldest": partial(rotation, registered),
        "special-tokens": formatted,
        "special-tokens-text": escaped,
        "special-tokens-4k": partial(parsed, 2_000, 4_096, 500),
        "special-tokens-16": partial(parsed, 2_000, 16, 30),
        "special-tokens-dense": partial(parsed, 60, 4_096, 40),
        "stream-burst": partial(burst, streamed),
        "stream-acall": partial(awaited_burst, streamed),
        "stream-every-16": partial(in_turns, streamed, 16),
        "stream-thread": partial(from_thread, streamed),
        "stream-readers": partial(several_readers, streamed),
        "stream-latency-p50": partial(on_the_loop, 50, waited_for),
        "stream-latency-p99": partial(on_the_loop, 99, waited_for),
        "stream-thread-latency-p50": partial(across_threads, 50, paused),
        "stream-thread-latency-p99": partial(across_threads, 99, paused),
        "store-append-memory": appends_in_memory,
        "store-poll": partial(polls, 10_000),
        "store-poll-length": partial(polls_by_length, 100, 10_000),
        "store-append": partial(appends, 64, streamed // 50),
        "store-append-alone": partial(appends_alone, streamed // 200),
        "store-hand-over": partial(hand_over, 64, streamed // 50),
        "session-emit": emitting,
        "delivery": partial(delivering, registered // 10),
        "session-idle": partial(idle, registered // 10),
        "poll": partial(polled, 100, 10_000),
        "fan-out-sse": partial(server_sent, clients),
        "fan-out-websocket": partial(websockets, clients),
        "fan-out-latency": partial(keeping_pace, 10 * clients, min(clients, 80)),
        "fan-out-idle": partial(held_open, 100 * clients),
        "redis-append": partial(redis_appends, 64, streamed // 25),
        "redis-hand-over": partial(redis_hand_over, streamed // 200),
        "redis-idle": partial(redis_idle, 100 * clients),
        "redis-follow": partial(followed, 10 * clients, min(clients, 50)),
        "webhooks": partial(posted, 64 * clients),
        "webhooks-waiting": partial(waiting, registered // 10),
    }
