import anyio
import pytest

from callbackkit.stores.waking import call_there, place_here


async def test_a_loop_calls_what_it_is_told_to() -> None:
    called = anyio.Event()
    assert call_there(place_here(), called.set)
    with anyio.fail_after(10):
        await called.wait()


def test_outside_of_a_loop_there_is_no_place() -> None:
    assert place_here() is None


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_loop_that_has_ended_calls_nothing(backend: str) -> None:
    async def here() -> object:
        return place_here()

    assert not call_there(anyio.run(here, backend=backend), pytest.fail)
